//! The segments of one publisher, seen together: its sources, and how to read their cells.
//!
//! A scan is not atomic: the writer goes on while it runs, and a record that is read late may belong to
//! a later state than one that was read early. What an honest writer can cause in passing (the same
//! name twice, since one source left and its successor came in between; memory that two blocks seem to
//! share) is therefore no reason to refuse it. Such a record is left out and everything is scanned
//! again; if both it and what it collided with are then still what they were, they did exist together,
//! and the publisher is refused. What no honest writer can cause in any order is refused at once.
//!
//! # Reading sums
//!
//! 1. Load [`Process::folds`].
//! 2. [`Process::refresh`], if [`Process::is_stale`].
//! 3. Read the accumulators and the slots, in any order, and leave out those that are folded: *upto* and
//!    cells of an accumulator are those of the copy that was selected at the refresh, for all of the
//!    sweep. If there is one that is [cut](Retired::cut) and not folded, start again.
//! 4. If it [is not current](Process::is_current) any more, start again.
//!
//! A block that is [`Reading::Gone`] has nothing to add: if it counted, *folds* moved.
//!
//! Where folds overtake one sweep after the other, `Process::settle` reads without starting again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::SegmentError;
use super::layout::{CUT, MAX_SEGMENTS, ROOT_ID, header, split_pair};
use super::plan::Plan;
use super::protocol::{self, LATCH_TRIES, Selected, copy_words};
use super::reader::{Groups, Limits, SegmentReader};
use super::region::Region;
use crate::fd_groups::FdGroups;
use crate::value::GroupDescriptor;

mod scan;
mod settle;

pub(crate) use self::settle::{Found, ROUNDS};

/// How long a block that is being cut is waited for until its writer is taken for dead.
const CUT_PATIENCE: Duration = Duration::from_millis(500);

/// Where a record is: place of its segment in [`Process::segments`], and unit.
type Key = (u16, u32);

/// A published block of cells.
#[derive(Clone, Debug)]
pub struct BlockRef {
    key: Key,
    /// Index of the segment, as the writer counts.
    index: u32,
    generation: u64,
    source: u64,
    offset: u32,
    is_accumulator: bool,
    /// The descriptor from which its cells are sampled; 0 if there is none.
    fd_group: u32,
    plan: Arc<Plan>,
}

impl BlockRef {
    /// Where the block's record is.
    pub fn place(&self) -> Place {
        Place { segment: self.index, unit: self.key.1 }
    }

    /// Id of the source whose block it is.
    pub fn source(&self) -> u64 {
        self.source
    }

    /// Whether it is what departed sources left, and no slot's.
    pub fn is_accumulator(&self) -> bool {
        self.is_accumulator
    }

    /// Whether its cells are sampled from a descriptor.
    pub(crate) fn is_sampled(&self) -> bool {
        self.fd_group != 0
    }

    /// Number of words that [`Process::read`] fills: one for each cell of the group.
    pub fn words(&self) -> usize {
        self.plan.words()
    }
}

/// What a source has of one group.
#[derive(Clone, Debug)]
pub struct SourceGroup {
    /// The group; one and the same `Arc` wherever the process has it.
    pub group: Arc<GroupDescriptor>,
    /// The source's own blocks, one per slot.
    pub slots: Vec<BlockRef>,
    /// What sources that departed below this one left.
    pub accumulator: Option<BlockRef>,
    /// Whether the group's aggregates are shown even if nothing below has it.
    pub explicit: bool,
}

/// A source.
#[derive(Clone, Debug)]
pub struct SourceRecord {
    /// Id, unique in the process and never reused.
    pub id: u64,
    /// The parent's id: [`ROOT_ID`] at the top level, 0 if it is attached to nothing. There may be no
    /// record of that id (yet).
    pub parent: u64,
    /// Whether it was removed; its cells count in its parent's `.departed` then.
    pub departed: bool,
    /// Name; empty for the root.
    pub name: String,
    /// Whether it has no directory.
    pub hidden: bool,
    /// Whether its directory is for its owner and the readers' group only.
    pub private: bool,
    /// When it was made, nanoseconds since 1970, as the writer says.
    pub created_ns: u64,
    /// Labels: key and value.
    pub labels: Vec<(String, String)>,
    /// What it has of each group, by the groups' names.
    pub groups: Vec<SourceGroup>,
}

/// Where a block's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the segment among the publisher's.
    pub segment: u32,
    /// The unit.
    pub unit: u32,
}

/// A block that a fold takes into an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Its retire number, not 0.
    pub number: u64,
    /// The accumulator that it goes to, as the writer says: there may be none.
    pub target: Place,
    /// Whether its slot still counts, in vain: what it holds until it is folded must not be shown, unless
    /// the writer is gone.
    pub cut: bool,
}

impl Retired {
    /// From the words of a block's record.
    fn new((number, target): (u64, u64)) -> Option<Self> {
        let (unit, segment) = split_pair(target & !CUT);
        let cut = target & CUT != 0;
        (number != 0).then_some(Self { number, target: Place { segment, unit }, cut })
    }
}

/// What came of reading a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The block is no longer published.
    Gone,
    /// The writer overtook every attempt at a whole latched copy; what was copied is not consistent.
    Torn,
    /// The cells were copied.
    Cells {
        /// Whether the block is retired: then it counts only if [`Process::is_folded`] says no.
        retired: Option<Retired>,
        /// Of an accumulator, the *upto* that goes with the cells: what is retired into it with a
        /// number up to this is in them. 0 for a slot.
        upto: u64,
    },
}

/// Everything known under one source id.
#[derive(Debug, Default)]
struct Entry {
    source: Option<Key>,
    labels: BTreeMap<u8, Key>,
    blocks: BTreeSet<Key>,
    children: BTreeSet<u64>,
    record: Option<SourceRecord>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.source.is_none()
            && self.labels.is_empty()
            && self.blocks.is_empty()
            && self.children.is_empty()
    }
}

/// The segments of one publisher seen together.
#[derive(Debug)]
pub struct Process {
    limits: Limits,
    publisher: u128,
    segments: Vec<SegmentReader>,
    by_index: HashMap<u32, u16>,
    groups: Groups,
    entries: HashMap<u64, Box<Entry>>,
    sources: usize,
    /// Live, visible, attached sources by parent and name.
    names: HashMap<(u64, String), u64>,
    /// Groups, by their plans' numbers, that have no name in common.
    get_along: HashSet<Vec<u32>>,
    /// Accumulators by source and group.
    accumulators: HashMap<(u64, u32), Key>,
    /// Accumulators' generations, and the copies that were selected at the last refresh.
    selected: HashMap<Key, (u64, Selected)>,
    /// *folds* when `selected` was loaded, *changes* when the last scan began.
    folds: u64,
    changes: u64,
    /// Whether the last scan left something out, or there was none yet.
    unsettled: bool,
    /// Its descriptors, and by their numbers the blocks that have these.
    fd_groups: Arc<FdGroups>,
    fd_group_blocks: HashMap<u32, Key>,
    /// How many descriptors had come when those without a block were last looked for, and whether a block went since.
    fd_groups_came: u64,
    fd_group_went: bool,
    /// Blocks found torn since the last refresh: a writer that tears them on purpose costs a reader
    /// fewer attempts each time.
    torn: AtomicU32,
    /// The highest retire number of a cut block that was waited for in vain.
    given_up: AtomicU64,
    times_given_up: AtomicU32,
}

impl Process {
    /// Attaches the segments of one publisher, in any order; that with index 0 must be among them.
    /// The structure is read by the first [`refresh`](Self::refresh).
    ///
    /// # Errors
    /// [`SegmentError`] says which segment is refused and why, or how they do not go together.
    pub fn attach(segments: Vec<OwnedFd>, limits: &Limits) -> Result<Self, SegmentError> {
        let mut process = Self {
            limits: limits.clone(),
            publisher: 0,
            segments: Vec::new(),
            by_index: HashMap::new(),
            groups: Groups::new(limits),
            entries: HashMap::new(),
            sources: 0,
            names: HashMap::new(),
            get_along: HashSet::new(),
            accumulators: HashMap::new(),
            selected: HashMap::new(),
            folds: 0,
            changes: 0,
            unsettled: true,
            fd_groups: Arc::default(),
            fd_group_blocks: HashMap::new(),
            fd_groups_came: 0,
            fd_group_went: false,
            torn: AtomicU32::new(0),
            given_up: AtomicU64::new(0),
            times_given_up: AtomicU32::new(0),
        };
        for fd in segments {
            process.add_segment(fd)?;
        }
        if !process.by_index.contains_key(&0) {
            return Err(SegmentError::NoFirst);
        }
        Ok(process)
    }

    /// Has what the kernel counts read from these descriptors.
    pub(crate) fn read_from(&mut self, fd_groups: Arc<FdGroups>) {
        self.fd_groups = fd_groups;
    }

    /// Attaches one more segment.
    ///
    /// # Errors
    /// [`SegmentError`] says why it is refused; the others stay attached.
    pub fn add_segment(&mut self, fd: OwnedFd) -> Result<(), SegmentError> {
        if self.segments.len() >= self.limits.segments.min(MAX_SEGMENTS) {
            return Err(SegmentError::TooManySegments(self.segments.len()));
        }
        let segment = SegmentReader::attach(fd.as_fd(), &self.limits)?;
        let bytes = self.segments.iter().map(SegmentReader::size).sum::<usize>() + segment.size();
        if bytes > self.limits.bytes {
            return Err(SegmentError::TooManyBytes { bytes, limit: self.limits.bytes });
        }
        if self.segments.is_empty() {
            self.publisher = segment.publisher();
        } else if segment.publisher() != self.publisher {
            return Err(SegmentError::Publisher(segment.index()));
        }
        if self.by_index.contains_key(&segment.index()) {
            return Err(SegmentError::DuplicateIndex(segment.index()));
        }
        self.by_index.insert(segment.index(), self.segments.len() as u16);
        self.segments.push(segment);
        self.unsettled = true;
        Ok(())
    }

    /// The publisher's random id.
    pub fn publisher(&self) -> u128 {
        self.publisher
    }

    /// The attached segments, in the order in which they were attached.
    pub fn segments(&self) -> &[SegmentReader] {
        &self.segments
    }

    fn first(&self) -> &SegmentReader {
        &self.segments[usize::from(self.by_index[&0])]
    }

    /// How many segments the publisher has; more are to be attached if that is more than
    /// [`segments`](Self::segments).
    pub fn segments_expected(&self) -> usize {
        let expected = protocol::acquire(&self.first().region, header::SEGMENTS);
        expected.min(MAX_SEGMENTS as u64) as usize
    }

    /// The publisher's number of folds, ordered after all that was read before and before all that is
    /// read after.
    pub fn folds(&self) -> u64 {
        std::sync::atomic::fence(Ordering::SeqCst);
        protocol::acquire(&self.first().region, header::FOLDS)
    }

    /// Whether the structure changed since it was last read, or descriptors came.
    pub fn is_stale(&self) -> bool {
        let first = &self.first().region;
        self.unsettled
            || self.fd_groups.came() != self.fd_groups_came
            || protocol::acquire(first, header::CHANGES) != self.changes
            || protocol::acquire(first, header::FOLDS) != self.folds
    }

    /// Whether no fold came since the last refresh: what was read in between adds up.
    pub fn is_current(&self) -> bool {
        protocol::is_current(&self.first().region, self.folds)
    }

    /// Whether a block that is not folded must not be shown: its slot counts on, but what it counts
    /// after the fold has looked will be lost.
    pub(crate) fn is_being_cut(&self, retired: Retired) -> bool {
        retired.cut && retired.number > self.given_up.load(Ordering::Relaxed)
    }

    /// Whether, having been waited for so long, the writer is taken for dead, or stopped, in the middle of
    /// cutting this block: then it and all before are as they will be for long, and are shown. A writer that
    /// does so on purpose costs a reader less each time.
    pub(crate) fn is_enough(&self, retired: Retired, waited: Duration) -> bool {
        let times = self.times_given_up.load(Ordering::Relaxed);
        let enough = waited >= CUT_PATIENCE / (1 << times.min(8));
        if enough {
            self.times_given_up.fetch_add(1, Ordering::Relaxed);
            self.given_up.fetch_max(retired.number, Ordering::Relaxed);
        }
        enough
    }

    /// A source by its id. [`ROOT_ID`] names what the root keeps of departed top-level sources, if it
    /// keeps anything.
    pub fn source(&self, id: u64) -> Option<&SourceRecord> {
        self.entries.get(&id)?.record.as_ref()
    }

    /// All sources, in no order; the root is not among them.
    pub fn sources(&self) -> impl Iterator<Item = &SourceRecord> {
        let records = self.entries.values().filter_map(|entry| entry.record.as_ref());
        records.filter(|record| record.id != ROOT_ID)
    }

    /// How many sources there are, the root not among them.
    pub fn source_count(&self) -> usize {
        self.sources
    }

    /// The ids of the sources whose parent is `id`, departed ones included. There may be some though
    /// there is no source of that id (yet).
    pub fn children(&self, id: u64) -> &BTreeSet<u64> {
        static NONE: BTreeSet<u64> = BTreeSet::new();
        self.entries.get(&id).map_or(&NONE, |entry| &entry.children)
    }

    /// Copies all cells of a block to `out` as 64-bit words, in the order of the group's values (of a
    /// histogram, the sum if there is one, then the buckets), extended by
    /// [`ValueType::extend`](crate::value::ValueType::extend).
    ///
    /// # Panics
    /// If `out` is shorter than [`BlockRef::words`].
    #[inline]
    pub fn read(&self, block: &BlockRef, out: &mut [u64]) -> Reading {
        let out = &mut out[..block.plan.words()];
        self.read_fresh(block, 0..out.len(), out, |out| {
            self.read_with(block, |region, selected, tries| match selected {
                None => block.plan.copy(region, block.offset as usize, out, tries),
                Some(cells) => {
                    copy_words(region, cells, out);
                    true
                }
            })
        })
    }

    /// Copies the cells of one value of a block, number `value` of its group, to the beginning of
    /// `out`; as [`read`](Self::read).
    ///
    /// # Panics
    /// If the group has no such value, or `out` is shorter than its cells.
    pub fn read_value(&self, block: &BlockRef, value: usize, out: &mut [u64]) -> Reading {
        let words = block.plan.value_words(value);
        let out = &mut out[..words.len()];
        self.read_fresh(block, words.clone(), out, |out| {
            self.read_with(block, |region, selected, tries| match selected {
                None => block.plan.copy_value(region, block.offset as usize, value, out, tries),
                Some(cells) => {
                    copy_words(region, cells + words.start * 8, out);
                    true
                }
            })
        })
    }

    /// Reads these words of a block as `read` does, and what is sampled as it is now.
    #[inline]
    fn read_fresh(
        &self,
        block: &BlockRef,
        words: Range<usize>,
        out: &mut [u64],
        read: impl Fn(&mut [u64]) -> Reading,
    ) -> Reading {
        let reading = read(out);
        if block.is_sampled() && self.read_fd_group(block, reading, words, out) {
            return read(out);
        }
        reading
    }

    /// Replaces what was sampled by what the kernel counts now, unless that was the last sample. Whether it has been
    /// meanwhile: then that is to be read, and what the kernel has counted since is nobody's.
    #[cold]
    fn read_fd_group(
        &self,
        block: &BlockRef,
        reading: Reading,
        words: Range<usize>,
        out: &mut [u64],
    ) -> bool {
        if !matches!(reading, Reading::Torn | Reading::Cells { retired: None, .. }) {
            return false;
        }
        self.fd_groups.read(block.fd_group, block.plan.fd_maps(), block.plan.group(), words, out);
        let region = &self.segments[usize::from(block.key.0)].region;
        let now = protocol::read_block(region, block.key.1, block.generation, || {});
        now.and_then(Retired::new).is_some()
    }

    #[inline]
    fn read_with(
        &self,
        block: &BlockRef,
        copy: impl FnOnce(&Region, Option<usize>, usize) -> bool,
    ) -> Reading {
        #[cfg(test)]
        meanwhile::run();
        let BlockRef { key, generation, is_accumulator, .. } = *block;
        let region = &self.segments[usize::from(key.0)].region;
        let mut selected = None;
        if is_accumulator {
            match self.selected.get(&key) {
                Some((of, found)) if *of == generation => selected = Some(*found),
                _ => return Reading::Gone,
            }
        }
        let torn = self.torn.load(Ordering::Relaxed);
        let tries = (LATCH_TRIES >> torn.min(10)).max(8);
        let mut whole = true;
        let read = protocol::read_block(region, key.1, generation, || {
            whole = copy(region, selected.map(|s| s.cells), tries);
        });
        let Some(retired) = read else { return Reading::Gone };
        if !whole {
            self.torn.fetch_add(1, Ordering::Relaxed);
            return Reading::Torn;
        }
        Reading::Cells { retired: Retired::new(retired), upto: selected.map_or(0, |s| s.upto) }
    }

    /// Whether a retired block is in its accumulator's cells, as they are read since the last refresh,
    /// so that it must not be counted by itself.
    pub fn is_folded(&self, retired: Retired) -> bool {
        let Retired { number, target: Place { segment, unit }, .. } = retired;
        let target = self.by_index.get(&segment).and_then(|at| self.selected.get(&(*at, unit)));
        target.is_some_and(|(_, target)| protocol::is_folded(number, target.upto))
    }
}

/// What a test has the writer do while blocks are read: it is called before each look at one.
#[cfg(test)]
pub(crate) mod meanwhile {
    use std::cell::RefCell;

    type Writer = Box<dyn FnMut()>;

    thread_local! {
        static WRITER: RefCell<Option<Writer>> = const { RefCell::new(None) };
    }

    /// Lets `writer` run in the middle of all that `f` reads.
    pub(crate) fn with<T>(writer: impl FnMut() + 'static, f: impl FnOnce() -> T) -> T {
        WRITER.set(Some(Box::new(writer)));
        let answer = f();
        WRITER.set(None);
        answer
    }

    pub(super) fn run() {
        if let Some(mut writer) = WRITER.take() {
            writer();
            WRITER.set(Some(writer));
        }
    }
}
