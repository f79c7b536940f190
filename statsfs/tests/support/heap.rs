//! An allocator that counts what the whole process has allocated, for the test programs that use this.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Counts what the whole process has allocated and not freed, and the most that this was.
struct Counting;

/// What has been allocated and not freed, in bytes.
pub static IN_USE: AtomicUsize = AtomicUsize::new(0);
/// The most that this was.
pub static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), SeqCst) + layout.size();
        MOST.fetch_max(in_use, SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
