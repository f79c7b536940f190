//! Following the writer: what changed since the last time is compared, taken in, and checked against
//! all that is known.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::super::SegmentError;
use super::super::layout::{MAX_DEPTH, ROOT_ID, UNIT_WORDS, flag, header, role, word};
use super::super::protocol;
use super::super::reader::{BlockUnit, Cached, Findings, Parsed, Record};
use super::{BlockRef, Entry, Key, Process, SourceGroup, SourceRecord};

/// Scans in one refresh: an honest writer that works on needs two or three.
const SCANS: usize = 8;

/// Groups that are known to get along are remembered up to this number of ways to combine them.
const GET_ALONG: usize = 1 << 10;

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

impl Process {
    /// Reads what changed of the structure since the last time, or looks at all of it if `force`: a
    /// writer that was killed may have changed something without saying so. Appends to `touched` the
    /// ids of the sources that are new or gone, or whose state, parent, labels, blocks or groups
    /// changed, each once; [`ROOT_ID`] stands for what departed at the top level.
    ///
    /// # Errors
    /// [`SegmentError`] if the publisher is refused. It must not be used any more then.
    pub fn refresh(&mut self, force: bool, touched: &mut Vec<u64>) -> Result<(), SegmentError> {
        self.torn.store(0, Ordering::Relaxed);
        let came = self.fd_groups.came();
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
        let is_whole = !self.unsettled && self.segments.len() >= self.segments_expected();
        let went = self.fd_group_went || came > self.fd_groups_came;
        self.fd_groups_came = came;
        self.fd_group_went = went && !is_whole;
        if went && is_whole {
            // A block is published before its descriptor is sent, so one without a block has lost it.
            let numbers = self.fd_group_blocks.keys().copied().collect();
            self.fd_groups.keep_only(came, &numbers);
        }
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
                let selected = protocol::accumulator(region, key.1, offset, block.plan.words());
                if protocol::is_still(region, key.1, *generation) {
                    self.selected.insert(key, (*generation, selected));
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
                if self.fd_group_blocks.get(&block.fd_group) == Some(&key) {
                    self.fd_group_blocks.remove(&block.fd_group);
                    self.fd_group_went = true;
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
                if block.fd_group != 0
                    && *self.fd_group_blocks.entry(block.fd_group).or_insert(key) != key
                {
                    // Of one block: there are no more readings than descriptors.
                    block.fd_group = 0;
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
            let groups = self.source_groups(entry);
            Some(SourceRecord {
                id,
                parent: source.map_or(0, |s| s.parent),
                departed: source.is_some_and(|s| s.departed),
                name: source.map_or(String::new(), |s| s.name.clone()),
                hidden: source.is_some_and(|s| s.flags & flag::HIDDEN != 0),
                private: source.is_some_and(|s| s.flags & flag::PRIVATE != 0),
                created_ns: source.map_or(0, |s| s.created_ns),
                labels,
                groups,
            })
        };
        if let Some(record) = &record {
            self.check_names(id, &record.groups)?;
        }
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
                    // A source that could not be made may leave labels to the next of its id.
                    if self.unsettled {
                        continue;
                    }
                    return Err(SegmentError::DuplicateLabel(id));
                }
                labels.push((label.key.clone(), label.value.clone()));
            }
        }
        Ok(labels)
    }

    /// Whether the groups that a source has values of have no name in common.
    fn check_names(&mut self, id: u64, groups: &[SourceGroup]) -> Result<(), SegmentError> {
        let own = || groups.iter().filter_map(|group| group.slots.first());
        let together: Vec<_> = own().map(|slot| slot.plan.id()).collect();
        if together.len() < 2 || self.get_along.contains(&together) {
            return Ok(());
        }
        let mut names = HashSet::new();
        for name in own().flat_map(|slot| slot.plan.group().values()).map(|value| &*value.name) {
            if !names.insert(name) {
                return Err(SegmentError::DuplicateValue { source_id: id, name: name.to_owned() });
            }
        }
        if self.get_along.len() >= GET_ALONG {
            self.get_along.clear();
        }
        self.get_along.insert(together);
        Ok(())
    }

    fn source_groups(&self, entry: &Entry) -> Vec<SourceGroup> {
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
            let BlockUnit { offset, fd_group, ref plan, .. } = *block;
            let is_accumulator = block.role == role::ACCUMULATOR;
            let plan = plan.clone();
            let index = self.segments[usize::from(key.0)].index();
            let (generation, source) = (*generation, block.source);
            let block_ref =
                BlockRef { key, index, generation, source, offset, is_accumulator, fd_group, plan };
            match block.role {
                role::SLOT => groups[at].slots.push(block_ref),
                role::ACCUMULATOR => groups[at].accumulator = Some(block_ref),
                _ => groups[at].explicit = true,
            }
        }
        groups.sort_by(|a, b| a.group.name().cmp(b.group.name()));
        groups
    }
}
