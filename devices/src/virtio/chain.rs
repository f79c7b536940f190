//! Descriptor chains, as the pieces of guest memory that they describe.

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::Memory;
use super::queue::QueueError;

/// One buffer of the driver's: what the device may read of it, and what it may write. Kept and filled
/// anew, so that taking a chain off a queue allocates nothing once it has seen the longest.
#[derive(Debug, Default)]
pub struct Chain {
    /// The index of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What the driver wrote.
    pub readable: Pieces,
    /// What is to be filled.
    pub writable: Pieces,
}

impl Chain {
    /// Forgets what it described.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    address: GuestAddress,
    len: usize,
}

/// Pieces of guest memory in a row. Only memory that there is gets in.
#[derive(Debug, Default)]
pub struct Pieces {
    pieces: Vec<Piece>,
    len: usize,
}

impl Pieces {
    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.len = 0;
    }

    /// Adds a piece. One of no bytes is nothing, wherever it is.
    pub(super) fn push(
        &mut self,
        memory: &Memory,
        address: GuestAddress,
        len: u32,
    ) -> Result<(), QueueError> {
        let len = len as usize;
        if len == 0 {
            return Ok(());
        }
        if !memory.check_range(address, len) {
            return Err(QueueError::Address { address: address.0, len });
        }
        self.pieces.push(Piece { address, len });
        // The chain's length was checked to fit into 32 bits.
        self.len += len;
        Ok(())
    }

    /// The memory of the `len` bytes from `offset` on, or of as many as there are.
    pub fn slices<'m>(
        &self,
        memory: &'m Memory,
        mut offset: usize,
        mut len: usize,
    ) -> impl Iterator<Item = VolatileSlice<'m>> {
        self.pieces
            .iter()
            .filter_map(move |piece| {
                let skip = offset.min(piece.len);
                let take = len.min(piece.len - skip);
                offset -= skip;
                len -= take;
                // Not beyond the piece, which does not overflow.
                (take > 0).then(|| (GuestAddress(piece.address.0 + skip as u64), take))
            })
            // Each piece was checked when it was added, and memory does not go away.
            .flat_map(move |(address, len)| memory.get_slices(address, len).map_while(Result::ok))
    }

    /// Copies what is at `offset` to `to`. Returns how many bytes there were to copy.
    pub fn read(&self, memory: &Memory, offset: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices(memory, offset, to.len()) {
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies `from` to `offset`. Returns how many bytes there was room for.
    pub fn write(&self, memory: &Memory, offset: usize, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices(memory, offset, from.len()) {
            let len = slice.len();
            slice.copy_from(&from[done..done + len]);
            done += len;
        }
        done
    }

    /// Fills the `len` bytes from `offset` on with zeroes.
    pub fn zero(&self, memory: &Memory, offset: usize, len: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for slice in self.slices(memory, offset, len) {
            let mut rest = slice;
            while !rest.is_empty() {
                let len = rest.len().min(ZEROES.len());
                rest.copy_from(&ZEROES[..len]);
                match rest.offset(len) {
                    Ok(next) => rest = next,
                    Err(_) => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two regions next to each other, and nothing above.
    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)]).unwrap()
    }

    fn pieces(memory: &Memory, pieces: &[(u64, u32)]) -> Pieces {
        let mut all = Pieces::default();
        for (address, len) in pieces {
            all.push(memory, GuestAddress(*address), *len).unwrap();
        }
        all
    }

    #[test]
    fn what_is_written_across_pieces_and_regions_is_read_again() {
        let memory = memory();
        let pieces = pieces(&memory, &[(0x1ffe, 4), (0x10, 1), (0x9999, 0), (0x100, 7)]);
        assert_eq!(pieces.len(), 12);
        let text = b"hello, world";
        assert_eq!(pieces.write(&memory, 0, text), 12);
        let mut all = [0; 20];
        assert_eq!(pieces.read(&memory, 0, &mut all), 12);
        assert_eq!(&all[..12], text);
        for offset in 0..=12 {
            for len in 0..=12 - offset {
                let lens = pieces.slices(&memory, offset, len).map(|slice| slice.len());
                assert_eq!(lens.sum::<usize>(), len);
                let mut part = vec![0; len];
                assert_eq!(pieces.read(&memory, offset, &mut part), len);
                assert_eq!(part, text[offset..offset + len]);
            }
        }
        assert_eq!(pieces.write(&memory, 11, b"!?"), 1);
        assert_eq!(pieces.read(&memory, 13, &mut all), 0);
        pieces.zero(&memory, 3, 5);
        pieces.read(&memory, 0, &mut all);
        assert_eq!(&all[..12], b"hel\0\0\0\0\0orl!");
    }

    #[test]
    fn zeroes_are_as_many_as_asked_for() {
        let memory = memory();
        let pieces = pieces(&memory, &[(0, 0x3000)]);
        let ones = vec![1; 0x3000];
        pieces.write(&memory, 0, &ones);
        pieces.zero(&memory, 1, 0x2ffe);
        let mut all = vec![0; 0x3000];
        pieces.read(&memory, 0, &mut all);
        assert_eq!(all.iter().map(|b| usize::from(*b)).sum::<usize>(), 2);
        assert_eq!((all[0], all[0x2fff]), (1, 1));
    }

    #[test]
    fn memory_that_does_not_exist_gets_in_nowhere() {
        let memory = memory();
        for (address, len) in
            [(0x3000, 1), (0x2fff, 2), (0, 0x3001), (u64::MAX, 1), (u64::MAX, 2), (0x8000, 0x10)]
        {
            let mut pieces = Pieces::default();
            let error = pieces.push(&memory, GuestAddress(address), len).unwrap_err();
            assert!(matches!(error, QueueError::Address { .. }));
            assert!(pieces.is_empty());
        }
    }
}
