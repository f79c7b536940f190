//! Memory of the `vmm` command that is not to be in huge pages: large allocations, and stacks.
//!
//! The threads that answer FUSE requests each have a buffer of 16 MiB of which they use a page or two, and all
//! threads have stacks of which they do. Where transparent huge pages are on for all memory (Debian's setting),
//! the kernel would back each with 2 MiB as soon as it is touched, or later when it tidies up: many times what
//! the whole VMM needs. The guest's memory is to have huge pages, so they can not be turned off for the process.
//! And once a large piece was freed, the C library takes such pieces from its heap, and keeps as much of it: the
//! heap then reaches over huge pages itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Pieces from this size on have mappings of their own: those for which glibc, at first, makes one too.
const LARGE: usize = 128 << 10;
/// No mapping is aligned to more.
const PAGE: usize = 4096;

/// Large pieces are mappings without huge pages; all others are the C library's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

/// Gives the threads to come stacks that are smaller than a huge page (2 MiB, std's default, may be aligned to
/// one), unless the environment says how large. Kernels since 6.7 use no huge pages for stacks.
///
/// To be called before there are other threads.
pub fn make_stacks_small() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    const SIZE: &str = "1048576";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread reads or writes the environment.
        unsafe { std::env::set_var(VARIABLE, SIZE) };
    }
}

fn is_large(size: usize, align: usize) -> bool {
    size >= LARGE && align <= PAGE
}

/// New memory, all zeroes; null if there is none.
fn map(size: usize) -> *mut u8 {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    // SAFETY: advice on the mapping just made. Kernels without huge pages refuse it, and need none.
    unsafe { libc::madvise(start, size, libc::MADV_NOHUGEPAGE) };
    start.cast()
}

// SAFETY: by size and alignment alone, which callers give alike for the whole life of a piece, each is either
// the system allocator's or a mapping. A mapping is new, at least as large as asked for, aligned to a page,
// and stays until it is given back; nothing here panics or allocates.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout.size(), layout.align()) {
            // SAFETY: a mapping of this size that `map` or `realloc` made, which nobody uses any more.
            unsafe { libc::munmap(piece.cast(), layout.size()) };
        } else {
            // SAFETY: as above.
            unsafe { System.dealloc(piece, layout) }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (is_large(layout.size(), layout.align()), is_large(size, layout.align())) {
            // SAFETY: as above.
            (false, false) => unsafe { System.realloc(piece, layout, size) },
            (true, true) => {
                let (piece, may_move) = (piece.cast(), libc::MREMAP_MAYMOVE);
                // SAFETY: a whole mapping, which keeps its advice, and which the caller no longer uses where
                // it was.
                let moved = unsafe { libc::mremap(piece, layout.size(), size, may_move) };
                if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() }
            }
            _ => {
                // SAFETY: the caller promises that the size, rounded up to this alignment, is a valid one.
                let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
                // SAFETY: the size is not zero, as promised.
                let to = unsafe { self.alloc(new) };
                if !to.is_null() {
                    // SAFETY: both are as large as this, and they are different pieces.
                    unsafe { ptr::copy_nonoverlapping(piece, to, layout.size().min(size)) };
                    // SAFETY: it was allocated with this layout, and is copied.
                    unsafe { self.dealloc(piece, layout) };
                }
                to
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the mapping at an address has the advice: `nh` among its flags (proc_pid_smaps(5)).
    fn is_advised(piece: *const u8) -> bool {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&(piece as usize));
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split(' ').any(|flag| flag == "nh");
            }
        }
        panic!("nothing is mapped there");
    }

    #[test]
    fn pieces_keep_what_is_in_them_across_all_sizes() {
        let sizes = [24, 4096, LARGE - 1, LARGE, 3 * LARGE + 5, LARGE, 40 * LARGE, 100, 2 * LARGE];
        let mut layout = Layout::from_size_align(8, 8).unwrap();
        // SAFETY: each piece is used within its size, and given back with its own layout.
        unsafe {
            let mut piece = Heap.alloc(layout);
            for n in 0..8 {
                piece.add(n).write(n as u8);
            }
            for size in sizes {
                piece = Heap.realloc(piece, layout, size);
                assert!(!piece.is_null());
                layout = Layout::from_size_align(size, 8).unwrap();
                assert_eq!(
                    std::slice::from_raw_parts(piece, 8),
                    [0, 1, 2, 3, 4, 5, 6, 7],
                    "{size}"
                );
                piece.add(size - 1).write(7);
                assert_eq!(is_advised(piece), size >= LARGE, "{size}");
            }
            Heap.dealloc(piece, layout);
        }
    }

    #[test]
    fn zeroed_pieces_are() {
        for size in [LARGE / 2, LARGE, LARGE * 2] {
            let layout = Layout::from_size_align(size, 16).unwrap();
            // SAFETY: as above.
            unsafe {
                let piece = Heap.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(piece, size).iter().all(|byte| *byte == 0));
                Heap.dealloc(piece, layout);
            }
        }
    }

    #[test]
    fn what_can_not_be_had_is_null_and_wide_alignments_are_kept() {
        let huge = Layout::from_size_align(1 << 60, 8).unwrap();
        let wide = Layout::from_size_align(LARGE, 1 << 16).unwrap();
        // SAFETY: as above.
        unsafe {
            assert!(Heap.alloc(huge).is_null());
            let piece = Heap.alloc(wide);
            assert_eq!(piece as usize % (1 << 16), 0);
            Heap.dealloc(piece, wide);
        }
    }
}
