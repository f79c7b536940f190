//! Where the numbers of directories come from.
//!
//! Inode numbers are made of them, so none is ever used for two things, not even by two servers that
//! follow each other. A source's directory needs no number of its own that would have to be kept: it has a
//! place in a *block* of 4096, one for all sources of a process whose ids have the same upper bits.
//!
//! ```text
//! number = block << 12 | (source id & 0xfff)
//! ```
//!
//! Blocks are counted, and a count that is kept is ahead of the blocks that are granted: whatever else of a
//! grant could not be kept, no number is granted again.

use std::io;

use super::inode::{DirId, MAX_DIR};

/// Bits of a directory's number that are its place in the block.
pub(crate) const PLACE_BITS: u32 = 12;
/// Most blocks that there can be.
pub(crate) const MAX_BLOCKS: u64 = (MAX_DIR + 1) >> PLACE_BITS;
/// How many blocks a count that is kept is ahead.
const AHEAD: u64 = 256;

/// Grants numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The next block. Block 0 is the tree's own, for the root and what else it has itself.
    next: u64,
    /// The blocks below this one are known to be taken by whoever comes later; `None` if nobody does.
    kept: Option<u64>,
    /// The last number that was granted in a block of the tree's own.
    last: Option<DirId>,
}

impl Numbers {
    /// Numbers that are kept nowhere, for trees that end with their process; from this block on.
    pub(super) fn from(next: u64) -> Self {
        Self { next, kept: None, last: None }
    }

    /// From now on only what is kept is granted, which is nothing yet.
    pub(super) fn grant_only_kept(&mut self) {
        self.kept = Some(self.next);
    }

    /// The block that those who come later are to begin with.
    pub(super) fn to_keep(&self) -> u64 {
        match self.kept {
            None => self.next,
            Some(kept) if kept.saturating_sub(self.next) > AHEAD / 2 => kept,
            Some(_) => (self.next + AHEAD).min(MAX_BLOCKS),
        }
    }

    /// Those who come later begin with this block.
    pub(super) fn are_kept(&mut self, below: u64) {
        self.kept = Some(below);
    }

    /// A block that was never granted.
    pub(super) fn block(&mut self) -> io::Result<u64> {
        if self.next >= MAX_BLOCKS {
            return Err(io::Error::other("all numbers for directories are used up"));
        }
        if self.kept.is_some_and(|kept| self.next >= kept) {
            return Err(io::Error::other("no more numbers for directories could be kept"));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// The number of a directory at the top level.
    pub(super) fn directory(&mut self) -> io::Result<DirId> {
        let next = match self.last {
            Some(last) if !(last + 1).is_multiple_of(1 << PLACE_BITS) => last + 1,
            _ => self.block()? << PLACE_BITS,
        };
        self.last = Some(next);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_granted_twice() {
        let mut numbers = Numbers::from(1);
        let mut seen = std::collections::HashSet::new();
        for n in 0..10_000 {
            assert!(seen.insert(numbers.directory().unwrap()));
            if n % 1000 == 0 {
                let block = numbers.block().unwrap() << PLACE_BITS;
                assert!((block..block + (1 << PLACE_BITS)).all(|number| seen.insert(number)));
            }
        }
        assert!(!seen.contains(&1) && !seen.contains(&2));
    }

    #[test]
    fn the_last_number_is_the_last() {
        let mut numbers = Numbers::from(MAX_BLOCKS - 1);
        assert!(numbers.block().unwrap() << PLACE_BITS <= MAX_DIR);
        assert!(numbers.block().is_err() && numbers.directory().is_err());
    }

    #[test]
    fn what_is_granted_is_below_what_is_kept() {
        let mut numbers = Numbers::from(7);
        numbers.grant_only_kept();
        assert!(numbers.block().is_err());
        let mut kept = 7;
        for n in 7..7 + 10 * AHEAD {
            if n % 100 == 7 {
                assert!(numbers.to_keep() >= kept);
                kept = numbers.to_keep();
                numbers.are_kept(kept);
            }
            assert_eq!(numbers.block().unwrap(), n);
            assert!(n < kept);
        }
        // Without it, there is an end to it.
        while let Ok(block) = numbers.block() {
            assert!(block < kept);
        }
    }
}
