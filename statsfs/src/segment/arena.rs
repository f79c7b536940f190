//! The writer's side of one segment: its header, and what is free in it.
//!
//! The bookkeeping is in ordinary memory of the writer; the segment itself holds records and cells only.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::layout::{
    HEADER_SIZE, MAGIC, UNIT, UNIT_WORDS, VERSION, header, pair, unit_limit, unit_offset,
};
use super::memfd::{self, CreateError};
use super::protocol;
use super::region::Region;
use super::schema;
use crate::fork;
use crate::value::GroupDescriptor;

/// A segment that this process writes.
#[derive(Debug)]
pub(crate) struct Segment {
    // Dropped before the region: the entry must not outlive the mapping that it names.
    _fork: fork::Hidden,
    pub(crate) region: Region,
    pub(crate) fd: OwnedFd,
}

/// What is free in a segment.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) segment: Arc<Segment>,
    /// Units below this one were used before; the header says so to readers.
    units: u32,
    free_units: Vec<u32>,
    /// Blocks lie at and above this offset.
    blocks: usize,
    /// Free ranges above it: offset and length, never adjacent.
    free_blocks: BTreeMap<usize, usize>,
    used_bytes: usize,
    /// Units of the groups that the segment describes, by the registry's key.
    groups: HashMap<usize, u32>,
    group_units: u32,
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Arena {
    /// Makes a segment.
    pub(crate) fn create(
        publisher: [u64; 2],
        id: [u64; 2],
        index: u32,
        size: usize,
    ) -> Result<Self, CreateError> {
        let (fd, region) = memfd::create(&index.to_string(), size)?;
        let fork = fork::hide(&region)?;
        let set = |at, value| region.word(at).store(value, Ordering::Relaxed);
        set(header::VERSION, pair(VERSION, HEADER_SIZE as u32));
        set(header::ID, id[0]);
        set(header::ID + 8, id[1]);
        set(header::PUBLISHER, publisher[0]);
        set(header::PUBLISHER + 8, publisher[1]);
        set(header::INDEX, index.into());
        set(header::SIZE, size as u64);
        set(header::CREATED, now_ns());
        set(header::PID, std::process::id().into());
        region.word(header::MAGIC).store(MAGIC, Ordering::Release);
        Ok(Self {
            segment: Arc::new(Segment { _fork: fork, region, fd }),
            units: 0,
            free_units: Vec::new(),
            blocks: size,
            free_blocks: BTreeMap::new(),
            used_bytes: 0,
            groups: HashMap::new(),
            group_units: 0,
        })
    }

    pub(crate) fn region(&self) -> &Region {
        &self.segment.region
    }

    /// Units that hold records which can be freed (all but groups').
    pub(crate) fn used_units(&self) -> u32 {
        self.units - self.group_units - self.free_units.len() as u32
    }

    /// Bytes of blocks in use.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn fits(&self, units: u32) -> bool {
        let end = self.units + units;
        end <= unit_limit(self.region().len()) && unit_offset(end) <= self.blocks
    }

    /// Publishes a record of one unit: `words` from the head on.
    pub(crate) fn publish(&mut self, words: &[u64]) -> Option<u32> {
        debug_assert!(words.len() < UNIT_WORDS);
        if let Some(unit) = self.free_units.pop() {
            // What the last record left beyond this one's words is cleared.
            let mut all = [0; UNIT_WORDS - 1];
            all[..words.len()].copy_from_slice(words);
            protocol::publish(self.region(), unit, &all);
            return Some(unit);
        }
        if !self.fits(1) {
            return None;
        }
        let unit = self.units;
        self.clear_fresh(unit);
        protocol::publish(self.region(), unit, words);
        self.raise_units(1);
        Some(unit)
    }

    /// A block may have been where a fresh unit is now: its generation must begin at 0, whatever was
    /// counted there.
    fn clear_fresh(&self, unit: u32) {
        protocol::zero(self.region(), unit_offset(unit), UNIT);
    }

    /// Readers look at a unit only when it was published once: the rest of a group's record would look
    /// like records of their own.
    fn raise_units(&mut self, by: u32) {
        self.units += by;
        self.region().word(header::UNITS).store(self.units.into(), Ordering::Release);
    }

    /// Frees the unit of a record.
    pub(crate) fn free(&mut self, unit: u32) {
        protocol::free(self.region(), unit);
        self.free_units.push(unit);
    }

    /// The unit of a group's record, which is made if the segment lacks it.
    pub(crate) fn group(&mut self, key: usize, group: &GroupDescriptor) -> Option<u32> {
        if let Some(unit) = self.groups.get(&key) {
            return Some(*unit);
        }
        let words = schema::encode(group);
        let units = words.len().div_ceil(UNIT_WORDS) as u32;
        if !self.fits(units) {
            return None;
        }
        let unit = self.units;
        self.clear_fresh(unit);
        protocol::publish(self.region(), unit, &words);
        self.raise_units(units);
        self.group_units += units;
        self.groups.insert(key, unit);
        Some(unit)
    }

    /// Whether there is memory for a block of `len` bytes.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let end = unit_offset(self.units);
        len == 0
            || self.blocks.checked_sub(len).is_some_and(|at| at >= end)
            || self.free_blocks.values().any(|free| *free >= len)
    }

    /// Takes zeroed memory for a block.
    pub(crate) fn take(&mut self, len: usize) -> Option<usize> {
        debug_assert!(len > 0 && len.is_multiple_of(UNIT));
        let fit =
            self.free_blocks.iter().find(|(_, free)| **free >= len).map(|(at, free)| (*at, *free));
        let at = match fit {
            Some((at, free)) => {
                self.free_blocks.remove(&at);
                if free > len {
                    self.free_blocks.insert(at + len, free - len);
                }
                at
            }
            None => {
                let at = self.blocks.checked_sub(len)?;
                if at < unit_offset(self.units) {
                    return None;
                }
                self.blocks = at;
                at
            }
        };
        protocol::zero(self.region(), at, len);
        self.used_bytes += len;
        Some(at)
    }

    /// Gives a block's memory back. No published record may name it.
    pub(crate) fn give(&mut self, at: usize, len: usize) {
        self.used_bytes -= len;
        let (mut at, mut len) = (at, len);
        if let Some((&before, &free)) = self.free_blocks.range(..at).next_back()
            && before + free == at
        {
            self.free_blocks.remove(&before);
            (at, len) = (before, len + free);
        }
        if let Some(free) = self.free_blocks.remove(&(at + len)) {
            len += free;
        }
        if at == self.blocks {
            self.blocks += len;
        } else {
            self.free_blocks.insert(at, len);
        }
    }
}
