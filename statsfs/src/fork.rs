//! What fork must not share: a child maps private memory over every segment of its parent, so that it
//! never counts into its parent's cells.
//!
//! `MADV_WIPEONFORK` is refused for shared memory and `MADV_DONTFORK` would make a child that counts
//! fault, so the child itself maps anonymous memory over the segments, in a handler of pthread_atfork(3),
//! before it runs anything else. Children made by clone(2), vfork(2) or posix_spawn(3) do not run such
//! handlers: they either share all memory with their parent until they exec, or are on their own.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::segment::CreateError;
use crate::segment::region::Region;

/// The handler may only use what is safe in a child of a threaded process: a table without locks.
const TABLE: usize = 4096;
static BASES: [AtomicUsize; TABLE] = [const { AtomicUsize::new(0) }; TABLE];
static LENGTHS: [AtomicUsize; TABLE] = [const { AtomicUsize::new(0) }; TABLE];
/// Grows with every fork that lies between this process and the first.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Whether the handler is in its place.
static INSTALLED: AtomicBool = AtomicBool::new(false);
/// Marks an entry that is being filled.
const FILLING: usize = 1;

/// An entry of the table, freed when dropped.
#[derive(Debug)]
pub(crate) struct Hidden {
    entry: usize,
}

/// A number that grows with every fork since the first segment was hidden: where it is not what it was,
/// this process is a child of that one.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

impl Drop for Hidden {
    fn drop(&mut self) {
        BASES[self.entry].store(0, Ordering::Release);
    }
}

/// Hides a segment's mapping from children.
///
/// # Errors
/// `CreateError::TooMany` if the table is full.
pub(crate) fn hide(region: &Region) -> Result<Hidden, CreateError> {
    // No lock, which a child could find held. Two handlers, where two threads come at once, do no harm.
    if !INSTALLED.load(Ordering::Acquire) {
        // SAFETY: the handler is a function that only uses atomics and mmap(2).
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        INSTALLED.store(true, Ordering::Release);
    }
    for (entry, base) in BASES.iter().enumerate() {
        if base.compare_exchange(0, FILLING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            LENGTHS[entry].store(region.len(), Ordering::Relaxed);
            base.store(region.address(0).as_ptr() as usize, Ordering::Release);
            return Ok(Hidden { entry });
        }
    }
    Err(CreateError::TooMany)
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    for (base, len) in BASES.iter().zip(&LENGTHS) {
        let base = base.load(Ordering::Acquire);
        if base > FILLING {
            let len = len.load(Ordering::Relaxed);
            let at = base as *mut libc::c_void;
            // SAFETY: the range is a mapping of ours that nothing unmaps while it is in the table
            // (`Segment` drops its entry before its region, and the child has one thread). Cells in it
            // are atomics, for which fresh zeroed memory is valid.
            unsafe {
                let mapped = libc::mmap(
                    at,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    // The child rarely counts at all: its memory is not set aside beforehand.
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                    -1,
                    0,
                );
                if mapped == libc::MAP_FAILED {
                    // A child that counts must rather fault than count for its parent.
                    libc::munmap(at, len);
                }
            }
        }
    }
}
