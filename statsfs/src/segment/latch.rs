//! The latch: two copies of a consistent group's counters, one of which is whole at every instant.
//!
//! As in the kernel's `seqcount_latch`: before writing copy 0 the writer makes the sequence odd, which
//! sends readers to copy 1; before writing copy 1 it makes it even again, which sends them to copy 0. A
//! reader that finds the sequence unchanged after copying has a whole copy, and a writer that stops for
//! ever inside an update leaves one. A plain sequence counter would make readers wait for it.
//!
//! Orders: each store of the sequence is Release, so that a reader sent to a copy sees it whole, and is
//! followed by a release fence, so that whoever sees a cell of the new update also sees the sequence
//! moved. The reader loads Relaxed and fences, since its mapping is read-only.

use super::sync::{AtomicU64, Ordering, fence, spin_loop};

/// Runs one update: `write(0)` must change copy 0 and `write(1)` change copy 1 in the same way.
#[inline(always)]
pub(crate) fn update(sequence: &AtomicU64, mut write: impl FnMut(usize)) {
    let s = sequence.load(Ordering::Relaxed);
    sequence.store(s.wrapping_add(1), Ordering::Release);
    fence(Ordering::Release);
    write(0);
    sequence.store(s.wrapping_add(2), Ordering::Release);
    fence(Ordering::Release);
    write(1);
}

/// Reads a whole copy: `read(n)` copies the cells of copy `n`. Gives up after `tries` attempts that
/// the writer overtook, and then answers false.
#[inline]
pub(crate) fn read(sequence: &AtomicU64, tries: usize, mut read: impl FnMut(usize)) -> bool {
    for _ in 0..tries {
        let before = sequence.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        read((before % 2) as usize);
        fence(Ordering::Acquire);
        if sequence.load(Ordering::Relaxed) == before {
            return true;
        }
        spin_loop();
    }
    false
}
