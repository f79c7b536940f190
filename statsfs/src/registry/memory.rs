//! Where records and blocks are: memory in the segments, found, reserved and given back.

use std::time::Instant;

use super::RegistryOptions;
use super::state::{Accumulator, Block, GroupKey, Place, State, random};
use crate::error::{RegistryError, SourceError};
use crate::segment::arena::Arena;
use crate::segment::layout::{accumulator_copy, head, header, kind, pair, role, word};

impl State {
    /// Allocates in the first segment that has room; if none has, after a fold or in a new segment. A fold
    /// makes readers start again: before it is due there is none as long as there may be more segments.
    pub(super) fn allocate<T>(
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
            let may_fold =
                self.arenas.len() >= options.max_segments || self.fold_due() <= Instant::now();
            if round > 0 || !may_fold || !self.fold() {
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

    pub(crate) fn free_records(&mut self, records: &[Place]) {
        for place in records {
            self.arenas[place.segment].free(place.unit);
        }
    }

    /// Publishes a block of a group for a source: one whose cells are sampled from the descriptor of this number,
    /// if it is not 0.
    pub(super) fn add_block(
        &mut self,
        options: &RegistryOptions,
        source: u64,
        key: GroupKey,
        role: u8,
        len: usize,
        fd_group: u32,
    ) -> Result<Block, SourceError> {
        let group = self.known[key].group.clone();
        let need = len + self.known[key].record;
        let (segment, (unit, offset)) = self.allocate(options, need, |arena| {
            // A description that is published stays: none where there is no room for the block.
            let group = arena.has_room(len).then(|| arena.group(key, &group))??;
            let offset = if len == 0 { 0 } else { arena.take(len)? };
            let mut words = [0; 7];
            words[0] = head(kind::BLOCK, role, 0, 0, group);
            words[word::EXTENT - 1] = pair(offset as u32, len as u32);
            words[word::BLOCK_SOURCE - 1] = source;
            words[word::FD_GROUP - 1] = fd_group.into();
            let unit = arena.publish(&words);
            if unit.is_none() && len > 0 {
                arena.give(offset, len);
            }
            Some((unit?, offset))
        })?;
        Ok(Block { place: Place { segment, unit }, offset, len })
    }

    /// The address of a block's memory, by which it is known in `cut_off`.
    fn address(&self, block: &Block) -> usize {
        self.arenas[block.place.segment].region().address(block.offset).as_ptr() as usize
    }

    /// Whether a slot still counts in a block though its source was revoked.
    pub(super) fn is_cut_off(&self, block: &Block) -> bool {
        !self.cut_off.is_empty() && self.cut_off.contains_key(&self.address(block))
    }

    /// Frees a block's record, and its memory unless a slot still counts there.
    pub(super) fn free_block(&mut self, block: &Block) {
        let address = (block.len > 0).then(|| self.address(block));
        let arena = &mut self.arenas[block.place.segment];
        arena.free(block.place.unit);
        match address.map(|address| self.cut_off.get_mut(&address)) {
            Some(Some(cut_off)) => cut_off.record_freed = true,
            Some(None) => arena.give(block.offset, block.len),
            None => {}
        }
    }

    /// Reserves accumulators for `groups` in each of `sources`, so that no removal can ever find the
    /// segments full. All or none; answers which were not there before.
    pub(super) fn reserve(
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
                match self.add_block(options, source, key, role::ACCUMULATOR, len, 0) {
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
    pub(super) fn unreserve(&mut self, made: Vec<(u64, GroupKey)>) {
        for (source, key) in made {
            if let Some(made) = self.node(source).accumulators.remove(&key) {
                self.free_block(&made.block);
            }
        }
    }
}
