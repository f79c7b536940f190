//! The writer's bookkeeping: sources, their groups and blocks, names and reservations. All of it is
//! under one lock, the structure lock, which no counting ever takes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::RegistryOptions;
use super::departure::Retired;
use super::names::{Identities, KnownGroup, Meaning, Names};
use crate::segment::arena::{Arena, now_ns};
use crate::segment::layout::{
    MAX_DEPTH, MAX_LABELS, ROOT_ID, accumulator_copy, block_shape, flag, head, header,
    is_source_name, kind, pair, role, word,
};
use crate::segment::protocol;
use crate::slot::SlotInner;
use crate::source::{RegistryError, SourceError};
use crate::value::{GroupDescriptor, MAX_LABEL_KEY, MAX_LABEL_VALUE, is_value_name};

/// The registry's number for a group.
pub(crate) type GroupKey = usize;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) segment: usize,
    pub(crate) unit: u32,
}

/// A block with its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) place: Place,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A slot's block: handed to the next slot when its own was dropped.
#[derive(Debug)]
pub(crate) struct SlotBlock {
    pub(crate) block: Block,
    pub(crate) slot: Option<Arc<SlotInner>>,
}

/// What departed sources left here of one group.
#[derive(Debug)]
pub(crate) struct Accumulator {
    pub(crate) block: Block,
    /// Blocks and accumulators that are to be folded into this one and were not yet.
    pub(crate) outstanding: usize,
    pub(crate) retired: bool,
}

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// In the tree, or not yet attached.
    Live,
    /// In the subtree that was removed with this source, which may be itself.
    Departed(u64),
    /// In a subtree that was never attached and that nobody holds any more.
    Abandoned,
}

/// One source.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) hidden: bool,
    /// Its records: the source's, then its labels'.
    pub(crate) records: Vec<Place>,
    pub(crate) parent: Option<u64>,
    pub(crate) life: Life,
    /// Subordinates that are there, or that left together with this source.
    pub(crate) children: BTreeSet<u64>,
    /// Subordinates that left before, and that still have records.
    pub(crate) leaving: BTreeSet<u64>,
    pub(crate) groups: HashMap<GroupKey, Vec<SlotBlock>>,
    pub(crate) explicit: HashMap<GroupKey, Place>,
    pub(crate) accumulators: HashMap<GroupKey, Accumulator>,
    /// Its blocks that are retired and wait to be folded. Readers find them through its record.
    pub(crate) retired: usize,
    /// How many sources strictly below have each group.
    pub(crate) below: HashMap<GroupKey, usize>,
    /// The groups whose aggregates' names are in `names`: those below, and those that left a total.
    named: HashSet<GroupKey>,
    pub(crate) names: Names,
}

/// Everything under the structure lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) arenas: Vec<Arena>,
    pub(crate) publisher: [u64; 2],
    pub(crate) nodes: HashMap<u64, Node>,
    pub(crate) known: Vec<KnownGroup>,
    identities: Identities,
    next_id: u64,
    pub(crate) next_retire: u64,
    /// Retired blocks by the accumulator that they go to.
    pub(crate) pending: HashMap<(u64, GroupKey), Vec<Retired>>,
    pub(crate) last_fold: Instant,
    /// Blocks, by the address of their memory, whose source was revoked and whose slot is still held.
    pub(crate) cut_off: HashMap<usize, Block>,
}

fn random() -> Result<[u64; 2], RegistryError> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is as long as stated.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n != bytes.len() as isize {
        return Err(RegistryError::Random(std::io::Error::last_os_error()));
    }
    let half = |at| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    Ok([half(0), half(8)])
}

impl Node {
    fn new(name: Arc<str>, hidden: bool) -> Self {
        Self {
            name,
            hidden,
            records: Vec::new(),
            parent: None,
            life: Life::Live,
            children: BTreeSet::new(),
            leaving: BTreeSet::new(),
            groups: HashMap::new(),
            explicit: HashMap::new(),
            accumulators: HashMap::new(),
            retired: 0,
            below: HashMap::new(),
            named: HashSet::new(),
            names: Names::default(),
        }
    }

    /// The groups in this subtree, with the number of sources that have each.
    pub(crate) fn subtree_groups(&self) -> HashMap<GroupKey, usize> {
        let mut all = self.below.clone();
        for key in self.groups.keys() {
            *all.entry(*key).or_default() += 1;
        }
        all
    }
}

impl State {
    pub(crate) fn new(options: &RegistryOptions) -> Result<Self, RegistryError> {
        let publisher = random()?;
        let first = Arena::create(publisher, random()?, 0, options.segment_size)?;
        first.region().word(header::SEGMENTS).store(1, std::sync::atomic::Ordering::Release);
        let root = Node::new("".into(), false);
        Ok(Self {
            arenas: vec![first],
            publisher,
            nodes: HashMap::from([(ROOT_ID, root)]),
            known: Vec::new(),
            identities: Identities::default(),
            next_id: ROOT_ID + 1,
            next_retire: 1,
            pending: HashMap::new(),
            last_fold: Instant::now(),
            cut_off: HashMap::new(),
        })
    }

    /// Tells readers that something changed.
    pub(crate) fn changed(&self) {
        protocol::bump(self.arenas[0].region(), header::CHANGES);
    }

    /// Allocates in the first segment that has room: after a fold if none has, in a new segment if
    /// that did not help.
    fn allocate<T>(
        &mut self,
        options: &RegistryOptions,
        need: usize,
        mut take: impl FnMut(&mut Arena) -> Option<T>,
    ) -> Result<(usize, T), SourceError> {
        for round in 0..2 {
            for (segment, arena) in self.arenas.iter_mut().enumerate() {
                if let Some(taken) = take(arena) {
                    return Ok((segment, taken));
                }
            }
            if round == 0 && !self.fold() {
                break;
            }
        }
        let index = self.arenas.len();
        if index >= options.max_segments {
            return Err(SourceError::SegmentFull {
                segments: index,
                limit: options.max_segments,
                size: options.segment_size,
            });
        }
        let size = options.segment_size.max((need + (64 << 10)).next_multiple_of(4096));
        let id = random()?;
        let mut arena =
            Arena::create(self.publisher, id, index as u32, size).map_err(RegistryError::from)?;
        let taken = take(&mut arena);
        self.arenas.push(arena);
        self.arenas[0]
            .region()
            .word(header::SEGMENTS)
            .store(index as u64 + 1, std::sync::atomic::Ordering::Release);
        self.changed();
        taken.map(|taken| (index, taken)).ok_or(SourceError::SegmentFull {
            segments: index + 1,
            limit: options.max_segments,
            size,
        })
    }

    /// The registry's number for a group.
    fn intern(&mut self, group: &Arc<GroupDescriptor>) -> GroupKey {
        let known =
            self.known.iter().position(|k| Arc::ptr_eq(&k.group, group) || *k.group == **group);
        known.unwrap_or_else(|| {
            self.known.push(KnownGroup::new(group, &mut self.identities));
            self.known.len() - 1
        })
    }

    /// A source that may be changed.
    pub(crate) fn live(&self, id: u64) -> Result<&Node, SourceError> {
        self.nodes.get(&id).filter(|n| n.life == Life::Live).ok_or(SourceError::Removed)
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a source that the structure lock protects")
    }

    /// A source's ancestors, nearest first, itself excluded.
    pub(crate) fn ancestors(&self, id: u64) -> Vec<u64> {
        let mut all = Vec::new();
        let mut at = self.nodes[&id].parent;
        while let Some(id) = at {
            all.push(id);
            at = self.nodes[&id].parent;
        }
        all
    }

    pub(crate) fn create(
        &mut self,
        options: &RegistryOptions,
        name: &str,
        flags: u8,
        labels: &[(String, String)],
    ) -> Result<(u64, Arc<str>), SourceError> {
        if !is_source_name(name.as_bytes()) {
            return Err(SourceError::Name(name.to_owned()));
        }
        if labels.len() > MAX_LABELS {
            return Err(SourceError::Labels(labels.len()));
        }
        for (n, (key, value)) in labels.iter().enumerate() {
            if !is_value_name(key, MAX_LABEL_KEY)
                || value.len() > MAX_LABEL_VALUE
                || value.chars().any(char::is_control)
                || labels[..n].iter().any(|(k, _)| k == key)
            {
                return Err(SourceError::Label(key.clone(), value.clone()));
            }
        }
        let id = self.next_id;
        let mut node = Node::new(name.into(), flags & flag::HIDDEN != 0);
        let mut words = [0; 15];
        words[0] = head(kind::SOURCE, flags, name.len() as u8, labels.len() as u8, 0);
        words[word::ID - 1] = id;
        words[word::CREATED - 1] = now_ns();
        put(&mut words[word::NAME - 1..], name);
        let mut records = vec![words];
        for (n, (key, value)) in labels.iter().enumerate() {
            let mut words = [0; 15];
            words[0] = head(kind::LABEL, n as u8, key.len() as u8, value.len() as u8, 0);
            words[word::LABEL_SOURCE - 1] = id;
            put(&mut words[word::LABEL_KEY - 1..], key);
            put(&mut words[word::LABEL_VALUE - 1..], value);
            records.push(words);
        }
        // Labels first: whoever sees a source sees its labels.
        for words in records.iter().rev() {
            match self.allocate(options, 128, |arena| arena.publish(words)) {
                Ok((segment, unit)) => node.records.push(Place { segment, unit }),
                Err(error) => {
                    self.free_records(&node.records);
                    return Err(error);
                }
            }
        }
        self.next_id += 1;
        let name = node.name.clone();
        self.nodes.insert(id, node);
        self.changed();
        Ok((id, name))
    }

    pub(crate) fn free_records(&mut self, records: &[Place]) {
        for place in records {
            self.arenas[place.segment].free(place.unit);
        }
    }

    /// Publishes a block of a group for a source.
    fn add_block(
        &mut self,
        options: &RegistryOptions,
        source: u64,
        key: GroupKey,
        role: u8,
        len: usize,
    ) -> Result<Block, SourceError> {
        let group = self.known[key].group.clone();
        let need = len + self.known[key].record;
        let (segment, (unit, offset)) = self.allocate(options, need, |arena| {
            // A description that is published stays: none where there is no room for the block.
            let group = arena.has_room(len).then(|| arena.group(key, &group))??;
            let offset = if len == 0 { 0 } else { arena.take(len)? };
            let mut words = [0; 6];
            words[0] = head(kind::BLOCK, role, 0, 0, group);
            words[word::EXTENT - 1] = pair(offset as u32, len as u32);
            words[word::BLOCK_SOURCE - 1] = source;
            let unit = arena.publish(&words);
            if unit.is_none() && len > 0 {
                arena.give(offset, len);
            }
            Some((unit?, offset))
        })?;
        Ok(Block { place: Place { segment, unit }, offset, len })
    }

    /// Whether a slot still counts in a block though its source was revoked.
    pub(crate) fn is_cut_off(&self, block: &Block) -> bool {
        let region = self.arenas[block.place.segment].region();
        self.cut_off.contains_key(&(region.address(block.offset).as_ptr() as usize))
    }

    pub(crate) fn free_block(&mut self, block: &Block) {
        let cut_off = block.len > 0 && self.is_cut_off(block);
        let arena = &mut self.arenas[block.place.segment];
        arena.free(block.place.unit);
        if block.len > 0 && !cut_off {
            arena.give(block.offset, block.len);
        }
    }

    /// Reserves accumulators for `groups` in each of `sources`, so that no removal can ever find the
    /// segments full. All or none; answers which were not there before.
    fn reserve(
        &mut self,
        options: &RegistryOptions,
        sources: &[u64],
        groups: &[GroupKey],
    ) -> Result<Vec<(u64, GroupKey)>, SourceError> {
        let mut made = Vec::new();
        for &source in sources {
            for &key in groups {
                if self.nodes[&source].accumulators.contains_key(&key)
                    || !self.known[key].group.has_cumulative()
                {
                    continue;
                }
                let len = 2 * accumulator_copy(self.known[key].words);
                match self.add_block(options, source, key, role::ACCUMULATOR, len) {
                    Ok(block) => {
                        let accumulator = Accumulator { block, outstanding: 0, retired: false };
                        self.node(source).accumulators.insert(key, accumulator);
                        made.push((source, key));
                    }
                    Err(error) => {
                        self.unreserve(made);
                        return Err(error);
                    }
                }
            }
        }
        Ok(made)
    }

    /// Takes back accumulators that were just reserved.
    fn unreserve(&mut self, made: Vec<(u64, GroupKey)>) {
        for (source, key) in made {
            if let Some(made) = self.node(source).accumulators.remove(&key) {
                self.free_block(&made.block);
            }
        }
    }

    /// The error if one of `names` can not be in a source's directory.
    fn check_names<'a>(
        &self,
        source: u64,
        names: impl IntoIterator<Item = &'a (String, Meaning)>,
    ) -> Result<(), SourceError> {
        let node = &self.nodes[&source];
        for (name, meaning) in names {
            if !node.names.admits(name, *meaning) {
                return Err(SourceError::AlreadyExists {
                    name: name.clone(),
                    directory: node.name.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The error if one of a group's values would stand beside one of another group of the same source.
    /// Even if they have the same identity, as in two versions of a group, they are two.
    fn check_own_names(&self, source: u64, key: GroupKey) -> Result<(), SourceError> {
        let node = &self.nodes[&source];
        let others = node.groups.keys().flat_map(|other| &self.known[*other].own);
        let there: HashSet<&str> = others.map(|(name, _)| &**name).collect();
        match self.known[key].own.iter().find(|(name, _)| there.contains(&**name)) {
            Some((name, _)) => Err(SourceError::AlreadyExists {
                name: name.clone(),
                directory: node.name.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn add_names(&mut self, source: u64, names: &[(String, Meaning)]) {
        let node = self.node(source);
        names.iter().for_each(|(name, meaning)| node.names.add(name, *meaning));
    }

    fn remove_names(&mut self, source: u64, names: &[(String, Meaning)]) {
        let node = self.node(source);
        names.iter().for_each(|(name, _)| node.names.remove(name));
    }

    /// Counts `groups` in or out (`add`) of what is below each of `ancestors`, with their names.
    pub(crate) fn count_below(
        &mut self,
        ancestors: &[u64],
        groups: &HashMap<GroupKey, usize>,
        add: bool,
    ) {
        for &ancestor in ancestors {
            for (&key, &n) in groups {
                let node = self.node(ancestor);
                let below = node.below.entry(key).or_default();
                *below = if add { *below + n } else { *below - n };
                let none = *below == 0;
                if none {
                    node.below.remove(&key);
                }
                // The name of a total that stays belongs to it for good.
                let stays = node.accumulators.contains_key(&key);
                let (appears, disappears) =
                    (add && node.named.insert(key), none && !stays && node.named.remove(&key));
                // The root is no source: it shows no values.
                if ancestor != ROOT_ID && (appears || disappears) {
                    let names = std::mem::take(&mut self.known[key].aggregates);
                    if appears {
                        self.add_names(ancestor, &names);
                    } else {
                        self.remove_names(ancestor, &names);
                    }
                    self.known[key].aggregates = names;
                }
            }
        }
    }

    /// The names that a source gives to the directory that shows it: its own, or, if it is hidden,
    /// those of its subordinates.
    pub(crate) fn shown_as(&self, id: u64) -> Vec<(String, Meaning)> {
        let node = &self.nodes[&id];
        if !node.hidden {
            return vec![(node.name.to_string(), Meaning::Source(id))];
        }
        node.children.iter().flat_map(|child| self.shown_as(*child)).collect()
    }

    /// The source in whose directory the subordinates of `id` appear: the nearest that is not hidden,
    /// itself included; `None` if a hidden one has no parent yet. Those in between, which keep the names
    /// until they are attached, are named too.
    pub(crate) fn shown_in(&self, id: u64) -> Vec<u64> {
        let mut all = vec![id];
        let mut at = id;
        while self.nodes[&at].hidden {
            let Some(parent) = self.nodes[&at].parent else { break };
            all.push(parent);
            at = parent;
        }
        all
    }

    /// Adds a slot of a group to a source: a block that a dropped slot left, or a new one.
    pub(crate) fn add_slot(
        &mut self,
        options: &RegistryOptions,
        source: u64,
        group: &Arc<GroupDescriptor>,
        make: impl FnOnce(&Arena, &Block) -> Arc<SlotInner>,
    ) -> Result<Arc<SlotInner>, SourceError> {
        self.live(source)?;
        let key = self.intern(group);
        let new_here = !self.nodes[&source].groups.contains_key(&key);
        if !new_here {
            let blocks = self.node(source).groups.get_mut(&key).expect("just looked up");
            if let Some(n) = blocks.iter().position(|b| b.slot.is_none()) {
                let block = blocks[n].block;
                let slot = make(&self.arenas[block.place.segment], &block);
                let blocks = self.node(source).groups.get_mut(&key).expect("just looked up");
                blocks[n].slot = Some(slot.clone());
                return Ok(slot);
            }
        }
        let ancestors = self.ancestors(source);
        let mut reserved = Vec::new();
        if new_here {
            self.check_own_names(source, key)?;
            self.check_names(source, &self.known[key].own)?;
            for ancestor in ancestors.iter().filter(|id| **id != ROOT_ID) {
                self.check_names(*ancestor, &self.known[key].aggregates)?;
            }
            reserved = self.reserve(options, &ancestors, &[key])?;
        }
        let shape = block_shape(group.latched_size(), group.plain_size());
        let block = match self.add_block(options, source, key, role::SLOT, shape.len) {
            Ok(block) => block,
            Err(error) => {
                self.unreserve(reserved);
                return Err(error);
            }
        };
        let slot = make(&self.arenas[block.place.segment], &block);
        let slot_block = SlotBlock { block, slot: Some(slot.clone()) };
        self.node(source).groups.entry(key).or_default().push(slot_block);
        if new_here {
            let own = std::mem::take(&mut self.known[key].own);
            self.add_names(source, &own);
            self.known[key].own = own;
            self.count_below(&ancestors, &HashMap::from([(key, 1)]), true);
        }
        self.changed();
        Ok(slot)
    }

    /// Makes a source show a group's aggregates even while nothing below it has the group.
    pub(crate) fn add_aggregates(
        &mut self,
        options: &RegistryOptions,
        source: u64,
        group: &Arc<GroupDescriptor>,
    ) -> Result<(), SourceError> {
        self.live(source)?;
        let key = self.intern(group);
        if self.nodes[&source].explicit.contains_key(&key) {
            return Ok(());
        }
        self.check_names(source, &self.known[key].aggregates)?;
        let block = self.add_block(options, source, key, role::AGGREGATE, 0)?;
        let names = std::mem::take(&mut self.known[key].aggregates);
        self.add_names(source, &names);
        self.known[key].aggregates = names;
        self.node(source).explicit.insert(key, block.place);
        self.changed();
        Ok(())
    }

    /// Attaches a source, with all that is below it, to a parent.
    pub(crate) fn attach(
        &mut self,
        options: &RegistryOptions,
        parent: u64,
        child: u64,
    ) -> Result<(), SourceError> {
        self.live(parent)?;
        let node = self.live(child)?;
        if node.parent == Some(parent) {
            return Err(SourceError::AlreadyExists {
                name: node.name.to_string(),
                directory: self.nodes[&parent].name.to_string(),
            });
        }
        if let Some(other) = node.parent {
            return Err(SourceError::HasParent {
                name: node.name.to_string(),
                parent: self.nodes[&other].name.to_string(),
            });
        }
        let mut groups = node.subtree_groups();
        // Those of which only totals are left in the subtree come along too.
        for member in self.subtree(child) {
            for key in self.nodes[&member].accumulators.keys() {
                groups.entry(*key).or_insert(0);
            }
        }
        let mut chain = vec![parent];
        chain.extend(self.ancestors(parent));
        if chain.contains(&child) {
            return Err(SourceError::Cycle(self.nodes[&child].name.to_string()));
        }
        let above = chain.iter().filter(|id| **id != ROOT_ID).count();
        if above + self.height(child) > MAX_DEPTH {
            return Err(SourceError::TooDeep(MAX_DEPTH));
        }
        let shown = self.shown_as(child);
        for directory in self.shown_in(parent) {
            self.check_names(directory, &shown)?;
        }
        for directory in chain.iter().filter(|id| **id != ROOT_ID) {
            for key in groups.keys() {
                self.check_names(*directory, &self.known[*key].aggregates)?;
            }
        }
        // The names that come together must not meet each other for the first time in an ancestor
        // either: the child's own directory has the groups below it, but not its own groups' aggregates.
        let mut together = Names::default();
        let shows_values = parent != ROOT_ID;
        let aggregates = groups.keys().flat_map(|key| &self.known[*key].aggregates);
        for (name, meaning) in aggregates.filter(|_| shows_values).chain(&shown) {
            if !together.admits(name, *meaning) {
                return Err(SourceError::AlreadyExists {
                    name: name.clone(),
                    directory: self.nodes[&parent].name.to_string(),
                });
            }
            together.add(name, *meaning);
        }
        let keys: Vec<_> = groups.keys().copied().collect();
        self.reserve(options, &chain, &keys)?;
        for directory in self.shown_in(parent) {
            self.add_names(directory, &shown);
        }
        self.count_below(&chain, &groups, true);
        self.node(parent).children.insert(child);
        let node = self.node(child);
        node.parent = Some(parent);
        let record = *node.records.last().expect("a source's own record is its last");
        let region = self.arenas[record.segment].region();
        protocol::set_word(region, record.unit, word::PARENT, parent);
        self.changed();
        Ok(())
    }

    /// Levels of a source and what is below it. What has left counts as long as it has records: readers
    /// follow it, too.
    fn height(&self, id: u64) -> usize {
        let node = &self.nodes[&id];
        let below = node.children.iter().chain(&node.leaving);
        1 + below.map(|child| self.height(*child)).max().unwrap_or(0)
    }

    /// Takes the names of a subtree out of the directories above it.
    pub(crate) fn remove_shown(&mut self, parent: u64, child: u64) {
        let shown = self.shown_as(child);
        for directory in self.shown_in(parent) {
            self.remove_names(directory, &shown);
        }
    }
}

/// Puts a text into words, little-endian.
fn put(words: &mut [u64], text: &str) {
    for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(all);
    }
}
