//! Changes of the structure: sources are made, filled and attached. How they leave is `departure`'s.

use std::collections::HashMap;
use std::sync::Arc;

use super::RegistryOptions;
use super::names::Names;
use super::state::{Block, Node, Place, SlotBlock, State};
use crate::error::SourceError;
use crate::segment::arena::{Arena, now_ns};
use crate::segment::layout::{
    MAX_DEPTH, MAX_LABELS, ROOT_ID, block_shape, flag, head, is_source_name, kind, role, word,
};
use crate::segment::protocol;
use crate::slot::SlotInner;
use crate::value::{GroupDescriptor, MAX_LABEL_KEY, MAX_LABEL_VALUE, is_value_name};

impl State {
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

    /// Adds a slot of a group to a source: a block that a dropped slot left, or a new one. Of one that is sampled from
    /// a descriptor, by its number, there is only one.
    pub(crate) fn add_slot(
        &mut self,
        options: &RegistryOptions,
        source: u64,
        group: &Arc<GroupDescriptor>,
        fd_group: u32,
        make: impl FnOnce(&Arena, &Block) -> Arc<SlotInner>,
    ) -> Result<Arc<SlotInner>, SourceError> {
        self.live(source)?;
        let key = self.intern(group);
        let new_here = !self.nodes[&source].groups.contains_key(&key);
        if fd_group != 0 && !new_here {
            let (name, directory) = (group.name().to_owned(), self.nodes[&source].name.to_string());
            return Err(SourceError::AlreadyExists { name, directory });
        }
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
        let block = match self.add_block(options, source, key, role::SLOT, shape.len, fd_group) {
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
        let block = self.add_block(options, source, key, role::AGGREGATE, 0, 0)?;
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
}

/// Puts a text into words, little-endian.
fn put(words: &mut [u64], text: &str) {
    for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(all);
    }
}
