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
//!    sweep.
//! 4. Load [`Process::folds`] again. If it moved, start again.
//!
//! A block that is [`Reading::Gone`] has nothing to add: if it counted, *folds* moved.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::layout::{
    MAX_DEPTH, MAX_SEGMENTS, ROOT_ID, UNIT_WORDS, flag, header, role, split_pair, word,
};
use super::plan::Plan;
use super::protocol::{self, LATCH_TRIES};
use super::reader::{
    BlockUnit, Cached, Findings, Groups, Limits, Parsed, Record, SegmentError, SegmentReader,
};
use crate::value::GroupDescriptor;

/// Scans in one refresh: an honest writer that works on needs two or three.
const SCANS: usize = 8;

/// Where a record is: place of its segment in [`Process::segments`], and unit.
type Key = (u16, u32);

/// A published block of cells.
#[derive(Clone, Debug)]
pub struct BlockRef {
    key: Key,
    /// Index of the segment, as the writer counts.
    index: u32,
    generation: u64,
    offset: u32,
    is_accumulator: bool,
    plan: Arc<Plan>,
}

impl BlockRef {
    /// Where the block's record is.
    pub fn place(&self) -> Place {
        Place { segment: self.index, unit: self.key.1 }
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

/// A block that nobody writes any more and that a fold takes into an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Its retire number, not 0.
    pub number: u64,
    /// The accumulator that it goes to, as the writer says: there may be none.
    pub target: Place,
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

/// The copy of an accumulator that was selected at the last refresh.
#[derive(Clone, Copy, Debug)]
struct Selected {
    generation: u64,
    upto: u64,
    cells: usize,
}

/// A record that could not be taken in, and what stood in its way.
#[derive(Debug)]
struct Conflict {
    key: Key,
    generation: u64,
    opponent: Option<(Key, u64)>,
    error: SegmentError,
}

impl Conflict {
    /// Whether this is the same conflict between the same records as `other` was.
    fn is(&self, other: &Self) -> bool {
        (self.key, self.generation, self.opponent) == (other.key, other.generation, other.opponent)
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
    entries: HashMap<u64, Entry>,
    sources: usize,
    /// Live, visible, attached sources by parent and name.
    names: HashMap<(u64, String), u64>,
    /// Accumulators by source and group.
    accumulators: HashMap<(u64, u32), Key>,
    selected: HashMap<Key, Selected>,
    /// *folds* when `selected` was loaded, *changes* when the last scan began.
    folds: u64,
    changes: u64,
    /// Whether the last scan left something out, or there was none yet.
    unsettled: bool,
    /// Blocks found torn since the last refresh: a writer that tears them on purpose costs a reader
    /// fewer attempts each time.
    torn: AtomicU32,
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
            groups: Groups::default(),
            entries: HashMap::new(),
            sources: 0,
            names: HashMap::new(),
            accumulators: HashMap::new(),
            selected: HashMap::new(),
            folds: 0,
            changes: 0,
            unsettled: true,
            torn: AtomicU32::new(0),
        };
        for fd in segments {
            process.add_segment(fd)?;
        }
        if !process.by_index.contains_key(&0) {
            return Err(SegmentError::NoFirst);
        }
        Ok(process)
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
        std::sync::atomic::fence(Ordering::Acquire);
        protocol::acquire(&self.first().region, header::FOLDS)
    }

    /// Whether the structure changed since it was last read.
    pub fn is_stale(&self) -> bool {
        let first = &self.first().region;
        self.unsettled
            || protocol::acquire(first, header::CHANGES) != self.changes
            || protocol::acquire(first, header::FOLDS) != self.folds
    }

    /// Whether no fold came since the last refresh: what was read in between adds up.
    pub fn is_current(&self) -> bool {
        self.folds() == self.folds
    }

    /// Reads what changed of the structure since the last time, or looks at all of it if `force`: a
    /// writer that was killed may have changed something without saying so. Appends to `touched` the
    /// ids of the sources that are new or gone, or whose state, parent, labels, blocks or groups
    /// changed, each once; [`ROOT_ID`] stands for what departed at the top level.
    ///
    /// # Errors
    /// [`SegmentError`] if the publisher is refused. It must not be used any more then.
    pub fn refresh(&mut self, force: bool, touched: &mut Vec<u64>) -> Result<(), SegmentError> {
        self.torn.store(0, Ordering::Relaxed);
        let mut dirty = BTreeSet::new();
        let mut before: Vec<Conflict> = Vec::new();
        self.unsettled |= force;
        for n in 0..SCANS {
            let changes = protocol::acquire(&self.first().region, header::CHANGES);
            if !self.unsettled && changes == self.changes {
                break;
            }
            self.changes = changes;
            let mut conflicts = Vec::new();
            self.scan(&mut dirty, &mut conflicts)?;
            self.unsettled = !conflicts.is_empty();
            let again = |c: &Conflict| before.iter().any(|b| b.is(c));
            if let Some(lasting) = conflicts.iter().position(again) {
                return Err(conflicts.swap_remove(lasting).error);
            }
            // A writer that works on is met half-way: what came meanwhile is taken along twice.
            if conflicts.is_empty() && n >= 2 {
                break;
            }
            before = conflicts;
        }
        for id in dirty {
            self.rebuild(id)?;
            touched.push(id);
        }
        self.select();
        Ok(())
    }

    /// Loads which copy each accumulator has selected, and its *upto*. As long as *folds* does not move
    /// those copies stay as they are, and nothing that they lack is freed.
    fn select(&mut self) {
        for _ in 0..4 {
            self.folds = self.folds();
            self.selected.clear();
            for &key in self.accumulators.values() {
                let segment = &self.segments[usize::from(key.0)];
                let Cached { generation, record: Record::Block(block) } =
                    &segment.units[key.1 as usize]
                else {
                    continue;
                };
                let (region, offset) = (&segment.region, block.offset as usize);
                let (upto, cells) =
                    protocol::accumulator(region, key.1, offset, block.plan.words());
                if protocol::is_still(region, key.1, *generation) {
                    self.selected.insert(key, Selected { generation: *generation, upto, cells });
                }
            }
            if self.first().still_counts(header::FOLDS, self.folds) {
                break;
            }
        }
    }

    /// Compares all segments with what is known and takes in what changed.
    fn scan(
        &mut self,
        dirty: &mut BTreeSet<u64>,
        conflicts: &mut Vec<Conflict>,
    ) -> Result<(), SegmentError> {
        let mut all = Vec::with_capacity(self.segments.len());
        for segment in &mut self.segments {
            let mut found = Findings::default();
            segment.scan(&mut self.groups, &mut found)?;
            all.push(found);
        }
        // First all that left, in every segment, then all that came.
        for (at, found) in all.iter_mut().enumerate() {
            for (unit, record) in found.gone.drain(..) {
                self.forget((at as u16, unit), record, dirty);
            }
            for &(unit, departed, _) in &found.moved {
                if departed {
                    self.depart((at as u16, unit), dirty);
                }
            }
        }
        let mut attach = Vec::new();
        for (at, found) in all.iter().enumerate() {
            for &(unit, ref copy) in &found.new {
                self.adopt((at as u16, unit), copy, &mut attach, dirty, conflicts)?;
            }
            attach.extend(found.moved.iter().map(|&(unit, _, to)| ((at as u16, unit), to)));
        }
        for (key, parent) in attach {
            self.attach_source(key, parent, dirty, conflicts)?;
        }
        Ok(())
    }

    fn cached(&self, key: Key) -> &Cached {
        &self.segments[usize::from(key.0)].units[key.1 as usize]
    }

    fn opponent(&self, key: Key) -> Option<(Key, u64)> {
        Some((key, self.cached(key).generation))
    }

    /// Takes a record out that is no longer published.
    fn forget(&mut self, key: Key, record: Record, dirty: &mut BTreeSet<u64>) {
        let id = match record {
            Record::Source(source) => {
                self.sources -= 1;
                self.unname(source.parent, &source.name, source.id);
                if let Some(parent) = self.entries.get_mut(&source.parent) {
                    parent.children.remove(&source.id);
                    self.drop_if_empty(source.parent);
                }
                self.entries.entry(source.id).or_default().source = None;
                source.id
            }
            Record::Label(label) => {
                self.entries.entry(label.source).or_default().labels.remove(&label.index);
                label.source
            }
            Record::Block(block) => {
                self.entries.entry(block.source).or_default().blocks.remove(&key);
                if block.role == role::ACCUMULATOR {
                    self.accumulators.remove(&(block.source, block.plan.id()));
                }
                block.source
            }
            Record::Vacant | Record::Group(..) | Record::Continued => return,
        };
        dirty.insert(id);
    }

    fn unname(&mut self, parent: u64, name: &str, id: u64) {
        let key = (parent, name.to_owned());
        if self.names.get(&key) == Some(&id) {
            self.names.remove(&key);
        }
    }

    fn drop_if_empty(&mut self, id: u64) {
        if self.entries.get(&id).is_some_and(|e| e.is_empty() && e.record.is_none()) {
            self.entries.remove(&id);
        }
    }

    fn depart(&mut self, key: Key, dirty: &mut BTreeSet<u64>) {
        let cached = &mut self.segments[usize::from(key.0)].units[key.1 as usize];
        let Record::Source(source) = &mut cached.record else { return };
        source.departed = true;
        let (parent, id, name) = (source.parent, source.id, source.name.clone());
        self.unname(parent, &name, id);
        dirty.insert(id);
    }

    /// Takes in the copy of a new record.
    fn adopt(
        &mut self,
        key: Key,
        copy: &[u64; UNIT_WORDS],
        attach: &mut Vec<(Key, u64)>,
        dirty: &mut BTreeSet<u64>,
        conflicts: &mut Vec<Conflict>,
    ) -> Result<(), SegmentError> {
        let segment = &self.segments[usize::from(key.0)];
        let generation = copy[word::GENERATION];
        let mut clash = |opponent, error| {
            conflicts.push(Conflict { key, generation, opponent, error });
            Ok(())
        };
        let mut record = match segment.parse(key.1, copy)? {
            Parsed::Record(record) => record,
            Parsed::NoGroup { group } => {
                return clash(None, SegmentError::NoGroup { unit: key.1, group });
            }
        };
        let id = match &mut record {
            Record::Source(source) => {
                let id = source.id;
                if let Some(other) = self.entries.get(&id).and_then(|e| e.source) {
                    return clash(self.opponent(other), SegmentError::DuplicateId(id));
                }
                if self.sources >= self.limits.sources {
                    return Err(SegmentError::TooManySources(self.sources));
                }
                self.sources += 1;
                // Attached separately: if that has to wait, the source is there already.
                attach.push((key, std::mem::take(&mut source.parent)));
                self.entries.entry(id).or_default().source = Some(key);
                id
            }
            Record::Label(label) => {
                let labels = self.entries.get(&label.source).map(|e| &e.labels);
                if let Some(&other) = labels.and_then(|l| l.get(&label.index)) {
                    let error = SegmentError::DuplicateLabel(label.source);
                    return clash(self.opponent(other), error);
                }
                self.entries.entry(label.source).or_default().labels.insert(label.index, key);
                label.source
            }
            Record::Block(block) => {
                if let Some(unit) = segment.overlapping(block) {
                    let error = SegmentError::Overlap(unit, key.1);
                    return clash(self.opponent((key.0, unit)), error);
                }
                if block.role == role::ACCUMULATOR {
                    let place = (block.source, block.plan.id());
                    if let Some(&other) = self.accumulators.get(&place) {
                        let error = SegmentError::DuplicateAccumulator {
                            source_id: block.source,
                            group: block.plan.group().name().to_owned(),
                        };
                        return clash(self.opponent(other), error);
                    }
                    self.accumulators.insert(place, key);
                }
                self.entries.entry(block.source).or_default().blocks.insert(key);
                block.source
            }
            Record::Vacant | Record::Group(..) | Record::Continued => return Ok(()),
        };
        dirty.insert(id);
        self.segments[usize::from(key.0)].adopt(key.1, generation, record);
        Ok(())
    }

    /// Puts a source below its parent.
    fn attach_source(
        &mut self,
        key: Key,
        parent: u64,
        dirty: &mut BTreeSet<u64>,
        conflicts: &mut Vec<Conflict>,
    ) -> Result<(), SegmentError> {
        let Cached { generation, record: Record::Source(source) } = self.cached(key) else {
            return Ok(());
        };
        let (generation, id) = (*generation, source.id);
        if parent == 0 || source.parent == parent {
            return Ok(());
        }
        let shown = !source.departed && source.flags & flag::HIDDEN == 0;
        let name = (parent, source.name.clone());
        if shown && let Some(&other) = self.names.get(&name) {
            let opponent = self.entries[&other].source.and_then(|other| self.opponent(other));
            let error = SegmentError::DuplicateName { parent, name: name.1 };
            conflicts.push(Conflict { key, generation, opponent, error });
            return Ok(());
        }
        self.check_depth(id, parent)?;
        if shown {
            self.names.insert(name, id);
        }
        self.entries.entry(parent).or_default().children.insert(id);
        let cached = &mut self.segments[usize::from(key.0)].units[key.1 as usize];
        if let Record::Source(source) = &mut cached.record {
            source.parent = parent;
        }
        dirty.insert(id);
        Ok(())
    }

    /// Whether `id`, with what is below it, may come below `parent`. Parents are set once, so that a
    /// cycle is one however the scan met its edges.
    fn check_depth(&self, id: u64, parent: u64) -> Result<(), SegmentError> {
        let mut above = 0;
        let mut at = parent;
        while at > ROOT_ID {
            if at == id {
                return Err(SegmentError::Cycle(id));
            }
            above += 1;
            if above >= MAX_DEPTH {
                return Err(SegmentError::Depth(id));
            }
            let source = self.entries.get(&at).and_then(|e| e.source);
            at = match source.map(|key| &self.cached(key).record) {
                Some(Record::Source(source)) => source.parent,
                _ => break,
            };
        }
        let mut below = vec![(id, above + 1)];
        while let Some((id, depth)) = below.pop() {
            if depth > MAX_DEPTH {
                return Err(SegmentError::Depth(id));
            }
            let children = self.entries.get(&id).into_iter().flat_map(|e| &e.children);
            below.extend(children.map(|child| (*child, depth + 1)));
        }
        Ok(())
    }

    /// Makes the record of a source anew from all that is known of it.
    fn rebuild(&mut self, id: u64) -> Result<(), SegmentError> {
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        let source = match entry.source.map(|key| &self.cached(key).record) {
            Some(Record::Source(source)) => Some(source),
            _ => None,
        };
        let record = if source.is_none() && (id != ROOT_ID || entry.blocks.is_empty()) {
            None
        } else {
            let labels = self.labels(id, entry, source.map_or(0, |s| s.labels))?;
            Some(SourceRecord {
                id,
                parent: source.map_or(0, |s| s.parent),
                departed: source.is_some_and(|s| s.departed),
                name: source.map_or(String::new(), |s| s.name.clone()),
                hidden: source.is_some_and(|s| s.flags & flag::HIDDEN != 0),
                private: source.is_some_and(|s| s.flags & flag::PRIVATE != 0),
                created_ns: source.map_or(0, |s| s.created_ns),
                labels,
                groups: self.source_groups(id, entry)?,
            })
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.record = record;
        }
        self.drop_if_empty(id);
        Ok(())
    }

    fn labels(
        &self,
        id: u64,
        entry: &Entry,
        count: u8,
    ) -> Result<Vec<(String, String)>, SegmentError> {
        let mut labels: Vec<(String, String)> = Vec::new();
        for key in entry.labels.values() {
            if let Record::Label(label) = &self.cached(*key).record
                && label.index < count
            {
                if labels.iter().any(|(key, _)| *key == label.key) {
                    return Err(SegmentError::DuplicateLabel(id));
                }
                labels.push((label.key.clone(), label.value.clone()));
            }
        }
        Ok(labels)
    }

    fn source_groups(&self, id: u64, entry: &Entry) -> Result<Vec<SourceGroup>, SegmentError> {
        let mut groups: Vec<SourceGroup> = Vec::new();
        let mut places = HashMap::new();
        for &key in &entry.blocks {
            let Cached { generation, record: Record::Block(block) } = self.cached(key) else {
                continue;
            };
            let at = *places.entry(block.plan.id()).or_insert_with(|| {
                groups.push(SourceGroup {
                    group: block.plan.group().clone(),
                    slots: Vec::new(),
                    accumulator: None,
                    explicit: false,
                });
                groups.len() - 1
            });
            let BlockUnit { offset, ref plan, .. } = *block;
            let is_accumulator = block.role == role::ACCUMULATOR;
            let plan = plan.clone();
            let index = self.segments[usize::from(key.0)].index();
            let generation = *generation;
            let block_ref = BlockRef { key, index, generation, offset, is_accumulator, plan };
            match block.role {
                role::SLOT => groups[at].slots.push(block_ref),
                role::ACCUMULATOR => groups[at].accumulator = Some(block_ref),
                _ => groups[at].explicit = true,
            }
        }
        let mut names = HashSet::new();
        let own = groups.iter().filter(|g| !g.slots.is_empty());
        for name in own.flat_map(|g| g.group.values()).map(|v| &*v.name) {
            if !names.insert(name) {
                return Err(SegmentError::DuplicateValue { source_id: id, name: name.to_owned() });
            }
        }
        groups.sort_by(|a, b| a.group.name().cmp(b.group.name()));
        Ok(groups)
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
        self.read_with(block, |region, selected, tries| match selected {
            None => block.plan.copy(region, block.offset as usize, out, tries),
            Some(cells) => {
                copy_words(region, cells, out);
                true
            }
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
        self.read_with(block, |region, selected, tries| match selected {
            None => block.plan.copy_value(region, block.offset as usize, value, out, tries),
            Some(cells) => {
                copy_words(region, cells + words.start * 8, out);
                true
            }
        })
    }

    #[inline]
    fn read_with(
        &self,
        block: &BlockRef,
        copy: impl FnOnce(&super::region::Region, Option<usize>, usize) -> bool,
    ) -> Reading {
        let (key, generation) = (block.key, block.generation);
        let region = &self.segments[usize::from(key.0)].region;
        if protocol::generation(region, key.1) != generation {
            return Reading::Gone;
        }
        let (mut selected, mut upto) = (None, 0);
        if block.is_accumulator {
            let Some(s) = self.selected.get(&key).filter(|s| s.generation == generation) else {
                return Reading::Gone;
            };
            (selected, upto) = (Some(s.cells), s.upto);
        }
        let torn = self.torn.load(Ordering::Relaxed);
        let whole = copy(region, selected, (LATCH_TRIES >> torn.min(10)).max(8));
        let number = protocol::dynamic(region, key.1, word::RETIRE);
        let retired = (number != 0).then(|| {
            let target = protocol::dynamic(region, key.1, word::TARGET);
            let (unit, segment) = split_pair(target);
            Retired { number, target: Place { segment, unit } }
        });
        if !protocol::is_still(region, key.1, generation) {
            return Reading::Gone;
        }
        if !whole {
            self.torn.fetch_add(1, Ordering::Relaxed);
            return Reading::Torn;
        }
        Reading::Cells { retired, upto }
    }

    /// Whether a retired block is in its accumulator's cells, as they are read since the last refresh,
    /// so that it must not be counted by itself.
    pub fn is_folded(&self, retired: Retired) -> bool {
        let Retired { number, target: Place { segment, unit } } = retired;
        let target = self.by_index.get(&segment).and_then(|at| self.selected.get(&(*at, unit)));
        target.is_some_and(|target| protocol::is_folded(number, target.upto))
    }
}

fn copy_words(region: &super::region::Region, at: usize, out: &mut [u64]) {
    let words = region.words(at, out.len());
    for (out, word) in out.iter_mut().zip(words) {
        *out = word.load(Ordering::Relaxed);
    }
}
