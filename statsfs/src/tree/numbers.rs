//! Where the numbers of directories come from.
//!
//! Inode numbers are made of them, so none is ever used for two things, not even by two servers that
//! follow each other. A source's directory needs no number of its own that would have to be kept: it has a
//! place in a *block* of 4096, one for all sources of a process whose ids have the same upper bits.
//!
//! ```text
//! number = block << 12 | (source id & 0xfff)
//! ```

use std::io;

use super::inode::{DirId, MAX_DIR};

/// Bits of a directory's number that are its place in the block.
pub(super) const PLACE_BITS: u32 = 12;
/// Most blocks that there can be.
const MAX_BLOCKS: u64 = (MAX_DIR + 1) >> PLACE_BITS;

/// Grants numbers. What is granted must be kept, where it is to outlast this process, before the answer is
/// given: it is shown as soon as it is there.
pub trait Numbers: Send + Sync + 'static {
    /// The block of the sources of a set of segments, whose publisher has this id, for those source ids
    /// that are `high` without their lower 12 bits: always the same for the same two.
    ///
    /// # Errors
    /// If none is left, or it could not be kept. The directory is not shown then.
    fn block(&mut self, publisher: u128, high: u64) -> io::Result<u64>;

    /// The number of a directory at the top level; of the same name another one or the same, but no other
    /// directory's.
    ///
    /// # Errors
    /// As [`block`](Self::block).
    fn directory(&mut self, name: &str) -> io::Result<u64>;
}

/// Numbers that are kept nowhere: for trees that end with their process.
#[derive(Debug, Default)]
pub struct Counted {
    /// Block 0 is the tree's own, for the root and what else it has itself.
    blocks: u64,
    /// The last number that was granted in a block of the tree's own.
    last: Option<DirId>,
}

impl Counted {
    fn next_block(&mut self) -> io::Result<u64> {
        if self.blocks + 1 >= MAX_BLOCKS {
            return Err(io::Error::other("all numbers for directories are used up"));
        }
        self.blocks += 1;
        Ok(self.blocks)
    }
}

impl Numbers for Counted {
    fn block(&mut self, _publisher: u128, _high: u64) -> io::Result<u64> {
        self.next_block()
    }

    fn directory(&mut self, _name: &str) -> io::Result<u64> {
        let next = match self.last {
            Some(last) if !(last + 1).is_multiple_of(1 << PLACE_BITS) => last + 1,
            _ => self.next_block()? << PLACE_BITS,
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
        let mut numbers = Counted::default();
        let mut seen = std::collections::HashSet::new();
        for n in 0..10_000 {
            assert!(seen.insert(numbers.directory("kvm").unwrap()));
            if n % 1000 == 0 {
                let block = numbers.block(1, n).unwrap() << PLACE_BITS;
                assert!((block..block + (1 << PLACE_BITS)).all(|number| seen.insert(number)));
            }
        }
        assert!(!seen.contains(&1) && !seen.contains(&2));
    }

    #[test]
    fn the_last_number_is_the_last() {
        let mut numbers = Counted { blocks: MAX_BLOCKS - 2, last: None };
        assert!(numbers.block(1, 0).unwrap() << PLACE_BITS <= MAX_DIR);
        assert!(numbers.block(1, 1).is_err() && numbers.directory("kvm").is_err());
    }
}
