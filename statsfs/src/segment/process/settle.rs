//! Reading blocks under a storm of folds, each count once: the layout's *settling*.

use std::collections::HashMap;

use super::super::protocol::{self, Block};
use super::{BlockRef, Key, Place, Process, Reading, Retired};

/// Rounds until a reader takes the writer for one that never lets it settle. Blocks are freed far less
/// often than a round takes, unless memory is at its limit.
pub(crate) const ROUNDS: usize = 32;

/// What a block adds to what was read, once it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: what it held is in an accumulator, or is gone.
    Folded,
    /// Its cells.
    Cells,
    /// Its cells, but the writer overtook every attempt at a whole latched copy.
    Torn,
    /// Its cells, which must not be shown: it is [being cut](Process::is_being_cut).
    Cut(Retired),
}

impl Process {
    /// Reads blocks, of each all cells or those of one value, so that what was counted in them is in what
    /// is found once, whatever is folded meanwhile; what was folded outside of them is not in there. False
    /// if the writer freed blocks faster than they could be looked at, in all of these rounds.
    pub(crate) fn settle(
        &self,
        blocks: &[(&BlockRef, Option<usize>)],
        rounds: usize,
    ) -> (Vec<(Found, Vec<u64>)>, bool) {
        let mut states = Vec::with_capacity(blocks.len());
        let mut words = Vec::with_capacity(blocks.len());
        let mut torn = vec![false; blocks.len()];
        let mut places: HashMap<Key, usize> = HashMap::new();
        for (n, (block, value)) in blocks.iter().enumerate() {
            let mut cells =
                vec![0; value.map_or(block.words(), |v| block.plan.value_words(v).len())];
            let mut is_there = true;
            if block.is_accumulator {
                places.insert(block.key, n);
            } else {
                let reading = match value {
                    None => self.read(block, &mut cells),
                    Some(value) => self.read_value(block, *value, &mut cells),
                };
                is_there = reading != Reading::Gone;
                torn[n] = reading == Reading::Torn;
            }
            words.push(cells);
            let is_accumulator = block.is_accumulator;
            states.push(Block { is_there, is_accumulator, ..Block::default() });
        }
        let region = |block: &BlockRef| &self.segments[usize::from(block.key.0)].region;
        let mut cells = Vec::new();
        let settled = protocol::settle(
            &mut states,
            rounds,
            |n| {
                let (block, value) = blocks[n];
                cells.resize(block.words(), 0);
                let upto = protocol::copy_accumulator(
                    region(block),
                    block.key.1,
                    block.generation,
                    block.offset as usize,
                    &mut cells,
                );
                let wanted = value.map_or(0..cells.len(), |value| block.plan.value_words(value));
                words[n].copy_from_slice(&cells[wanted]);
                upto
            },
            |n| {
                #[cfg(test)]
                super::meanwhile::run();
                let block = blocks[n].0;
                protocol::read_block(region(block), block.key.1, block.generation, || {})
            },
        );
        let found = states.iter().zip(torn).map(|(state, torn)| {
            if !state.is_there {
                return Found::Folded;
            }
            let Some(retired) = Retired::new(state.retired) else {
                return if torn { Found::Torn } else { Found::Cells };
            };
            let Place { segment, unit } = retired.target;
            let target = self.by_index.get(&segment).and_then(|at| places.get(&(*at, unit)));
            let upto = target.map_or(0, |target| states[*target].upto);
            if protocol::is_folded(retired.number, upto) {
                Found::Folded
            } else if self.is_being_cut(retired) {
                Found::Cut(retired)
            } else if torn {
                Found::Torn
            } else {
                Found::Cells
            }
        });
        let found: Vec<_> = found.collect();
        (found.into_iter().zip(words).collect(), settled)
    }
}
