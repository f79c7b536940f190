//! Groups of values that the kernel counts, and that are read from a descriptor: KVM's statistics of a VM, or of a
//! vCPU (`KVM_GET_STATS_FD`).
//!
//! Such a group is an ordinary one, with a slot in the segment like any other. Its writer samples the descriptor into
//! it once a second, at once when nobody reads the descriptor any more, and when the source is removed. Who reads the
//! segment and has the descriptor as well, whether it is the writer's own tree or a host's server to which it was
//! sent, reads that instead of the samples, and so shows what the kernel counts now, and the last of what it
//! counted for a process that was killed. Who has no descriptor shows what was sampled; that is in the segment, and
//! outlasts both the process and the server.
//!
//! # Falling back
//! The kernel's counters can fall: whoever may write to KVM's debugfs can set them to 0. Here they go on from what
//! was last read. Where writer and reader are two, and the source is removed by a process that lives on, the last
//! second before such a fall may be missing afterwards. What is counted while the source is being removed is nobody's.
//!
//! A reader that has lost the descriptor falls back on the last sample, and so may show less than before until it has
//! it again: up to a second of counts, or what came since a process was stopped.

pub(crate) mod format;

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use self::format::{Description, Format, Place};
use crate::slot::DynSlot;
use crate::value::GroupDescriptor;

pub use self::format::FdGroupError;

/// How old a sample may be.
pub(crate) const SAMPLED_EVERY: Duration = Duration::from_secs(1);

/// Where the words of a group are in the data of a format.
type Map = (Arc<Format>, Arc<[Place]>);

/// Where the words of one group are in the data of each format: found once for each.
#[derive(Debug, Default)]
pub(crate) struct Maps(RwLock<Vec<Map>>);

impl Maps {
    fn of(&self, format: &Arc<Format>, group: &GroupDescriptor) -> Arc<[Place]> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, places)) = maps.iter().find(|(of, _)| Arc::ptr_eq(of, format)) {
            return places.clone();
        }
        drop(maps);
        let places: Arc<[Place]> = format.places(group).into();
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        maps.push((format.clone(), places.clone()));
        places
    }
}

/// A descriptor that is a group of values.
#[derive(Debug)]
pub(crate) struct FdGroup {
    file: File,
    id: String,
    format: Arc<Format>,
    counts: Mutex<Counts>,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Counts {
    /// The data as they were last read.
    last: Box<[u64]>,
    /// What is to be added to each that fell, if any ever did.
    lost: Option<Box<[u64]>>,
}

impl Counts {
    /// What a counter shows that reads `now`, and has shown `shown` to somebody else: it never falls.
    fn grow(&mut self, at: usize, now: u64, shown: u64) -> u64 {
        let last = std::mem::replace(&mut self.last[at], now);
        let lost = self.lost.as_ref().map_or(0, |lost| lost[at]);
        let mut more = lost;
        if now < last {
            more = more.wrapping_add(last);
        }
        if more.wrapping_add(now) < shown {
            more = shown.wrapping_sub(now);
        }
        if more != lost {
            let len = self.last.len();
            self.lost.get_or_insert_with(|| vec![0; len].into())[at] = more;
        }
        more.wrapping_add(now)
    }
}

/// Descriptors with their numbers, in order.
pub(crate) type Numbered = Vec<(u32, Arc<FdGroup>)>;

/// A descriptor that was opened, and is not in any set yet.
#[derive(Debug)]
pub(crate) struct Opened {
    file: File,
    description: Description,
}

impl Opened {
    /// Reads what a descriptor has. One that is not known to be the kernel's may keep the caller waiting.
    ///
    /// # Errors
    /// [`FdGroupError`] says what it is not; it comes back with that, to be closed.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, (FdGroupError, OwnedFd)> {
        let file = File::from(fd);
        match Description::read(&file) {
            Ok(description) => Ok(Self { file, description }),
            Err(error) => Err((error, file.into())),
        }
    }

    /// The names of what is no value of any kind that is known here.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.description.left_out
    }

    /// The group that it is, but for the values of these names.
    ///
    /// # Errors
    /// [`FdGroupError`]: nothing is left.
    pub(crate) fn group(
        &self,
        name: &str,
        but: &[String],
    ) -> Result<Arc<GroupDescriptor>, FdGroupError> {
        self.description.group(name, but)
    }
}

impl FdGroup {
    /// Replaces words by what the kernel counts now, where they have a place.
    fn read(&self, places: &[Place], cells: &mut [u64]) {
        thread_local! {
            static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BYTES.with_borrow_mut(|bytes| {
            // In one order for all: what falls was zeroed, and not read late.
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = self.format.read(&self.file, bytes) {
                tracing::debug!(%error, id = self.id, "a statistics descriptor can not be read");
                return;
            }
            let word = |at: u32| {
                let bytes = &bytes[at as usize * 8..];
                bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
            };
            for (cell, place) in cells.iter_mut().zip(places) {
                *cell = match *place {
                    Place::Nowhere => continue,
                    Place::Growing(at) => counts.grow(at as usize, word(at), *cell),
                    Place::Bool(at) => u64::from(word(at) != 0),
                    Place::Other(at) => word(at),
                };
            }
        });
    }
}

impl AsFd for FdGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Samples a descriptor into the slot of its block, and takes it out of the set when the source goes.
#[derive(Debug)]
pub(crate) struct Sampler {
    groups: Arc<FdGroups>,
    number: u32,
    slot: DynSlot,
    maps: Maps,
    words: Box<[u64]>,
}

impl Sampler {
    pub(crate) fn new(groups: Arc<FdGroups>, number: u32, slot: DynSlot) -> Self {
        let words = vec![0; slot.group().words()].into();
        Self { groups, number, slot, maps: Maps::default(), words }
    }

    pub(crate) fn sample(&mut self) {
        let (group, words) = (self.slot.group(), &mut self.words);
        self.groups.read(self.number, &self.maps, group, 0..words.len(), words);
        self.slot.store_all(words);
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.groups.remove(self.number);
    }
}

/// What a process has of them, by the numbers that their blocks in its segments have: the writer's own, or those that
/// a server has received.
#[derive(Debug, Default)]
pub(crate) struct FdGroups {
    /// Whether nobody else takes them out again.
    is_received: bool,
    all: RwLock<All>,
    /// How many came so far: asked whenever somebody looks whether something has changed.
    came: AtomicU64,
}

#[derive(Debug, Default)]
struct All {
    /// With how many had come when it did.
    by_number: BTreeMap<u32, (u64, Arc<FdGroup>)>,
    /// Each once: those of all vCPUs of a host are the same.
    formats: Vec<Arc<Format>>,
    /// So are the groups of the writer's own.
    groups: Vec<Arc<GroupDescriptor>>,
    /// Numbers given so far.
    numbers: u32,
    /// How often one came or went.
    changes: u64,
    /// What is to be closed by somebody who may be kept waiting.
    gone: Vec<Arc<FdGroup>>,
}

impl FdGroups {
    fn all(&self) -> RwLockReadGuard<'_, All> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_to_change(&self) -> RwLockWriteGuard<'_, All> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for one that is to come: from 1 on, never used again.
    pub(crate) fn next_number(&self) -> u32 {
        let mut all = self.all_to_change();
        all.numbers += 1;
        all.numbers
    }

    /// The group that is equal to this one and is here already, or else this one.
    pub(crate) fn known(&self, group: Arc<GroupDescriptor>) -> Arc<GroupDescriptor> {
        let mut all = self.all_to_change();
        if let Some(known) = all.groups.iter().find(|known| **known == group) {
            return known.clone();
        }
        all.groups.push(group.clone());
        group
    }

    /// Adds one. The block of this number is published: a reader that looks for it finds it.
    pub(crate) fn insert(&self, number: u32, opened: Opened) {
        let Opened { file, description } = opened;
        let mut all = self.all_to_change();
        let format = match all.formats.iter().find(|format| ***format == description.format) {
            Some(format) => format.clone(),
            None => {
                all.formats.push(Arc::new(description.format));
                all.formats[all.formats.len() - 1].clone()
            }
        };
        let counts = Counts { last: vec![0; format.words()].into(), lost: None };
        let counts = Mutex::new(counts);
        let group = Arc::new(FdGroup { file, id: description.id, format, counts });
        self.put(&mut all, number, group);
    }

    fn put(&self, all: &mut All, number: u32, group: Arc<FdGroup>) {
        match all.by_number.entry(number) {
            Entry::Vacant(entry) => {
                all.changes += 1;
                entry.insert((self.came.fetch_add(1, Ordering::AcqRel) + 1, group));
            }
            // Of a connection before this one: it is the same, and knows what was read of it.
            Entry::Occupied(_) => all.gone.push(group),
        }
    }

    /// Takes one away, which is closed when nobody reads it any more.
    pub(crate) fn remove(&self, number: u32) -> Option<Arc<FdGroup>> {
        let mut all = self.all_to_change();
        all.changes += 1;
        all.by_number.remove(&number).map(|(_, group)| group)
    }

    /// How many came so far: what comes from now on is later.
    pub(crate) fn came(&self) -> u64 {
        self.came.load(Ordering::Acquire)
    }

    /// Takes those away that had come by then and have none of these numbers: their sources are gone. The writer sees
    /// to its own.
    pub(crate) fn keep_only(&self, came: u64, numbers: &BTreeSet<u32>) {
        if !self.is_received {
            return;
        }
        let mut all = self.all_to_change();
        let before = std::mem::take(&mut all.by_number);
        let stays = |(number, (of, _)): &(u32, (u64, _))| *of > came || numbers.contains(number);
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = before.into_iter().partition(stays);
        all.by_number = stay;
        all.changes += gone.len() as u64;
        all.gone.extend(gone.into_values().map(|(_, group)| group));
    }

    /// All of them, and how often one came or went, unless that is still so often.
    pub(crate) fn list_unless(&self, changes: u64) -> Option<(u64, Numbered)> {
        let all = self.all();
        let list = || all.by_number.iter().map(|(number, (_, group))| (*number, group.clone()));
        (all.changes != changes).then(|| (all.changes, list().collect()))
    }

    /// Replaces words of a group, which were `cells`, by what the kernel counts now: those of the words in
    /// `range` that the descriptor of this number has. They stay where there is none, or it can not be read. The maps
    /// are this group's.
    pub(crate) fn read(
        &self,
        number: u32,
        maps: &Maps,
        group: &GroupDescriptor,
        range: Range<usize>,
        cells: &mut [u64],
    ) {
        let Some((_, of)) = self.all().by_number.get(&number).cloned() else { return };
        of.read(&maps.of(&of.format, group)[range], cells);
    }
}

/// What only a server does.
#[cfg(feature = "server")]
impl FdGroups {
    /// None yet, of those that somebody sends who can not take them back.
    pub(crate) fn received() -> Self {
        Self { is_received: true, ..Self::default() }
    }

    /// Takes all of another set over.
    pub(crate) fn take_over(&self, other: &Self) {
        let theirs = std::mem::take(&mut *other.all_to_change());
        let mut all = self.all_to_change();
        for (number, (_, group)) in theirs.by_number {
            self.put(&mut all, number, group);
        }
        all.gone.extend(theirs.gone);
    }

    /// What was taken away like that, or all that there is, to be closed by somebody who may be kept waiting: that
    /// may be the last that keeps a VM in the kernel.
    pub(crate) fn take_gone(&self, also_others: bool) -> Vec<Arc<FdGroup>> {
        let mut all = self.all_to_change();
        let mut gone = std::mem::take(&mut all.gone);
        if also_others {
            gone.extend(std::mem::take(&mut all.by_number).into_values().map(|(_, group)| group));
        }
        gone
    }

    /// How many there are, with those that are still to be closed.
    pub(crate) fn len(&self) -> usize {
        let all = self.all();
        all.by_number.len() + all.gone.len()
    }
}

#[cfg(feature = "server")]
impl Opened {
    /// Whose it is: `kvm-<pid>` or `kvm-<pid>/vcpu-<n>`.
    pub(crate) fn id(&self) -> &str {
        &self.description.id
    }
}

#[cfg(test)]
mod tests;
