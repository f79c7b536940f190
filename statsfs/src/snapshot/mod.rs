//! Reading a tree all at once, in any process: `.stats/snapshot` of a directory is everything in and below it, from one sweep.
//!
//! ```
//! use statsfs::{Embedded, Registry, fs::MountOptions, snapshot::Snapshot, stats};
//!
//! stats! {
//!     /// What a worker does.
//!     pub struct Worker: "worker", prefix "worker_" {
//!         /// Requests answered.
//!         worker_requests: Counter,
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::new()?;
//! let pool = registry.create_source("pool")?;
//! pool.register()?;
//! let slot = pool.add_values::<Worker>()?;
//! # let dir = tempfile::tempdir()?;
//! # let mount = dir.path();
//! let mounted = Embedded::mount(&registry, mount, MountOptions::new())?;
//!
//! let before = Snapshot::read(mount)?;
//! slot.worker_requests.add(300);
//! std::fs::write(mount.join("pool/worker_requests"), "0")?; // what is raw does not mind
//! slot.worker_requests.add(12);
//! let after = Snapshot::read(mount)?;
//!
//! assert_eq!(after.number("pool/worker_requests"), Some(12));
//! let requests = |snapshot| Snapshot::dir(snapshot, "pool")?.value("worker_requests");
//! let (old, new) = (requests(&before).unwrap(), requests(&after).unwrap());
//! let seconds = (after.monotonic() - before.monotonic()).as_secs_f64();
//! println!("{:.0} requests a second", new.increase_since(&old).unwrap() as f64 / seconds);
//! assert_eq!(new.increase_since(&old), Some(312));
//!
//! // Everything that there is:
//! for dir in after.dirs() {
//!     for value in dir.values() {
//!         println!("{}/{} {:?}", dir.path(), value.name(), value.number());
//!     }
//! }
//! # mounted.unmount()?;
//! # Ok(())
//! # }
//! ```
//!
//! [`mod@format`] is what is in the file. It has what its reader may see; what they may not is in totals only, which are
//! what the files show all the same.

mod changes;
pub mod format;
mod parse;
mod read;
mod recorded;
#[cfg(feature = "recording")]
pub mod recording;
mod shown;
mod totals;
mod value;
mod what;

use std::path::Path;
use std::time::{Duration, SystemTime};

use zerocopy::IntoBytes;

use self::format::{flag, header, section};
use self::totals::Sums;
use crate::pages::will_be_filled;
use crate::segment::layout::split_pair;
use crate::tree::nodes::DEPARTED;
use crate::value::Descriptor;

pub use self::changes::{Change, Changes, ChangesError};
pub use self::parse::SnapshotError;
pub use self::read::ReadError;
pub use self::recorded::Recorded;
pub use self::value::{Histogram, Value};
pub use self::what::What;

/// Everything in and below a directory, as one sweep found it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    words: Vec<u64>,
    sections: [Section; 10],
    values: Vec<Valued>,
    identities: usize,
}

/// Where a section begins, in words, and how many records it has.
#[derive(Clone, Copy, Debug, Default)]
struct Section {
    at: usize,
    count: usize,
}

/// A value as a group has it.
#[derive(Clone, Debug)]
struct Valued {
    descriptor: Descriptor,
    /// What it is the same as; none if it is shown nowhere.
    identity: Option<usize>,
    group: usize,
    /// Its first word among its group's.
    word: usize,
}

/// What a directory is, whatever it is called: equal in two snapshots of one mount if it is the same, and of no other
/// that comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirIdentity {
    number: u64,
    created: u64,
    pid: u32,
}

impl Snapshot {
    /// Takes what was read of a `.stats/snapshot`, all of it. Nothing that these bytes say is trusted: it takes as long as they
    /// are long, and some four times their memory.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut words = vec![0; bytes.len().div_ceil(8)];
        will_be_filled(&words);
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        parse::check(words, bytes.len() as u64)
    }

    /// Reads the `.stats/snapshot` of a directory: a mount, or one in it.
    ///
    /// # Errors
    /// [`ReadError`] says what is missing, and what to do.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self, ReadError> {
        read::read(dir.as_ref())
    }

    /// Reads a snapshot that was saved: a copy of a `.stats/snapshot`.
    ///
    /// # Errors
    /// [`ReadError`] says what is wrong with it.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ReadError> {
        read::load(file.as_ref())
    }

    /// The bytes that it was read of: a copy of the `.stats/snapshot`.
    pub fn as_bytes(&self) -> &[u8] {
        self.words.as_bytes()
    }

    /// The path of the directory that it is of, from the root of the mount; empty if it is that.
    pub fn path(&self) -> &str {
        self.text(self.words[header::PATH])
    }

    /// When it was taken.
    pub fn taken(&self) -> SystemTime {
        let since = Duration::from_nanos(self.words[header::REALTIME]);
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// When it was taken by `CLOCK_MONOTONIC`, which nobody sets: for the time between two.
    pub fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.words[header::MONOTONIC])
    }

    /// The directory that it is of.
    pub fn root(&self) -> Dir<'_> {
        Dir { snapshot: self, n: 0 }
    }

    /// All directories, each before those in it.
    pub fn dirs(&self) -> impl ExactSizeIterator<Item = Dir<'_>> {
        (0..self.sections[section::DIRECTORIES].count).map(|n| Dir { snapshot: self, n })
    }

    /// The directory at a path from the root of the mount.
    pub fn dir(&self, path: &str) -> Option<Dir<'_>> {
        let (dir, rest) = self.walk(path)?;
        rest.is_empty().then_some(dir)
    }

    /// What the file at a path from the root of the mount shows: as `.stats/flat` has it, also what is in `.departed`, and
    /// in a histogram's directory (`…/buckets/<upper bound>` is a bucket's count).
    pub fn number(&self, path: &str) -> Option<i128> {
        let (dir, mut rest) = self.walk(path)?;
        let departed = match rest.strip_prefix(DEPARTED) {
            Some(below) => {
                rest = below.strip_prefix('/')?;
                true
            }
            None => false,
        };
        let (name, field) = rest.split_once('/').unwrap_or((rest, ""));
        let value = if departed { dir.departed(name) } else { dir.value(name) }?;
        value.field(field)
    }

    /// All values that there are, in groups: what they are called, what they mean, and how they add up. Values that
    /// are described in several ways, by processes of several versions, come several times.
    pub fn descriptors(&self) -> impl Iterator<Item = (&str, &Descriptor)> {
        let group = |n| self.text(self.record::<4>(section::GROUPS, n)[0]);
        self.values.iter().map(move |value| (group(value.group), &value.descriptor))
    }

    /// The last directory on a path from the root of the mount, and the rest of it.
    fn walk<'a, 'p>(&'a self, path: &'p str) -> Option<(Dir<'a>, &'p str)> {
        let path = path.trim_matches('/');
        let mut rest = match self.path() {
            "" => path,
            root => match path.strip_prefix(root)? {
                "" => "",
                rest => rest.strip_prefix('/')?,
            },
        };
        let mut dir = self.root();
        while !rest.is_empty() {
            let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
            let Some(child) = dir.children().find(|child| child.name() == name) else { break };
            (dir, rest) = (child, below);
        }
        Some((dir, rest))
    }

    /// A record of this many words.
    fn record<const N: usize>(&self, section: usize, n: usize) -> [u64; N] {
        debug_assert!(section::SIZES[section] == N * 8 && n < self.sections[section].count);
        let at = self.sections[section].at + n * N;
        let mut record = [0; N];
        record.copy_from_slice(&self.words[at..at + N]);
        record
    }

    /// Words of that section.
    fn words(&self, first: usize, len: usize) -> &[u64] {
        let at = self.sections[section::WORDS].at + first;
        &self.words[at..at + len]
    }

    fn text(&self, text: u64) -> &str {
        let (at, len) = split_pair(text);
        let texts = self.sections[section::TEXTS];
        let all = &self.words[texts.at..].as_bytes()[..texts.count];
        // All were checked.
        std::str::from_utf8(&all[at as usize..at as usize + len as usize]).unwrap_or_default()
    }
}

/// A directory in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Dir<'a> {
    snapshot: &'a Snapshot,
    n: usize,
}

impl<'a> Dir<'a> {
    fn record(self) -> [u64; 9] {
        self.snapshot.record(section::DIRECTORIES, self.n)
    }

    /// Its name; empty for the root of the mount.
    pub fn name(self) -> &'a str {
        self.snapshot.text(self.record()[3])
    }

    /// What its program calls it: its name, on a host without the process before it.
    pub fn bare_name(self) -> &'a str {
        &self.name()[split_pair(self.record()[4]).1 as usize..]
    }

    /// Its path from the root of the mount.
    pub fn path(self) -> String {
        let mut names: Vec<_> = std::iter::successors(Some(self), |dir| dir.parent())
            .take_while(|dir| dir.n > 0)
            .map(Dir::name)
            .collect();
        names.extend(Some(self.snapshot.path()).filter(|path| !path.is_empty()));
        names.reverse();
        names.join("/")
    }

    /// The process whose it is, of one right below the top level.
    pub fn pid(self) -> Option<u32> {
        Some(split_pair(self.record()[4]).0).filter(|pid| *pid != 0)
    }

    /// What tells whether it is the same as one in another snapshot: of `kvm/4242-web1` another when the process has been
    /// started again. Collect those of an earlier snapshot in a map to find them again.
    pub fn identity(self) -> DirIdentity {
        let [number, created, ..] = self.record();
        DirIdentity { number, created, pid: self.pid().unwrap_or(0) }
    }

    /// The labels of its source.
    pub fn labels(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let snapshot = self.snapshot;
        let (first, count) = split_pair(self.record()[6]);
        (first as usize..).take(count as usize).map(move |n| {
            let [key, value] = snapshot.record(section::LABELS, n);
            (snapshot.text(key), snapshot.text(value))
        })
    }

    /// The directory that it is in, if that is in the snapshot.
    pub fn parent(self) -> Option<Self> {
        let (parent, _) = split_pair(self.record()[2]);
        (self.n > 0).then_some(Self { n: parent as usize, ..self })
    }

    /// How many directories of the snapshot it is in.
    pub fn depth(self) -> usize {
        std::iter::successors(self.parent(), |dir| dir.parent()).count()
    }

    /// The directories right below it.
    pub fn children(self) -> impl Iterator<Item = Self> {
        let end = self.end();
        let first = Some(self.n + 1).filter(|n| *n < end);
        let next = move |n: &usize| Some(Self { n: *n, ..self }.end()).filter(|n| *n < end);
        std::iter::successors(first, next).map(move |n| Self { n, ..self })
    }

    /// How many directories are right below it, also of those that the reader may not enter, which are not in the snapshot.
    pub fn child_count(self) -> usize {
        split_pair(self.record()[5]).1 as usize
    }

    /// The first directory that is not in or below it.
    fn end(self) -> usize {
        split_pair(self.record()[2]).1 as usize
    }

    /// The files of its kind: their names, values, and what of them they show.
    fn files(self) -> impl Iterator<Item = (&'a str, usize, u32)> {
        let snapshot = self.snapshot;
        let [files] = snapshot.record(section::KINDS, split_pair(self.record()[5]).0 as usize);
        let (first, count) = split_pair(files);
        (first as usize..).take(count as usize).map(move |n| {
            let [name, what] = snapshot.record(section::FILES, n);
            let (value, part) = split_pair(what);
            (snapshot.text(name), value as usize, part)
        })
    }

    /// What each of its files shows (and each of its histograms' directories), in the order of listings.
    pub fn values(self) -> Vec<Value<'a>> {
        self.over(self.files().collect())
    }

    /// What those of them show whose names are wanted, at the cost of one sweep.
    pub fn values_of(self, wanted: impl Fn(&str) -> bool) -> Vec<Value<'a>> {
        self.over(self.files().filter(|(name, ..)| wanted(name)).collect())
    }

    /// What one of them shows.
    pub fn value(self, name: &str) -> Option<Value<'a>> {
        self.values_of(|of| of == name).pop()
    }

    fn over(self, files: Vec<(&'a str, usize, u32)>) -> Vec<Value<'a>> {
        let mut sums = Sums::new(self.snapshot, files);
        sums.add_all(self.n..self.end());
        sums.values()
    }

    /// What a file in its `.departed` shows: what sources have left here that are gone.
    pub fn departed(self, name: &str) -> Option<Value<'a>> {
        let snapshot = self.snapshot;
        let mut found = None;
        for (group, _, _) in self.cells(flag::DEPARTED) {
            let (first, count) = split_pair(snapshot.record::<4>(section::GROUPS, group)[2]);
            let values = (first as usize..).take(count as usize);
            found = found.or_else(|| {
                values.into_iter().find(|n| {
                    snapshot.values[*n].descriptor.name == name
                        && snapshot.values[*n].identity.is_some()
                })
            });
        }
        let value = found?;
        let is_histogram = snapshot.values[value].descriptor.ty.is_histogram();
        let file =
            (&*snapshot.values[value].descriptor.name, value, if is_histogram { 8 } else { 1 });
        let mut sums = Sums::new(snapshot, vec![file]);
        sums.add_departed(self.n);
        sums.values().pop()
    }

    /// The cells of this directory with at least these flags: of which group, flags, and which they are.
    fn cells(self, flags: u32) -> impl Iterator<Item = (usize, u32, usize)> {
        let snapshot = self.snapshot;
        let (first, count) = split_pair(self.record()[7]);
        let all = (first as usize..).take(count as usize);
        all.filter_map(move |n| {
            let (group, of) = split_pair(snapshot.record::<3>(section::CELLS, n)[0]);
            (of & flags == flags).then_some((group as usize, of, n))
        })
    }
}
