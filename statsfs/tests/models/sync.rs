//! The atomics of loom in place of the library's `segment/sync.rs`, for threads that can be killed.

use std::cell::Cell;

pub(crate) use loom::sync::atomic::{Ordering, fence};
pub(crate) use loom::thread::yield_now as spin_loop;

loom::thread_local! {
    /// Stores that this thread still does.
    static LIFE: Cell<usize> = Cell::new(usize::MAX);
    /// Whether no other thread stores to anything.
    static WRITER: Cell<bool> = Cell::new(false);
}

/// Kills this thread after `stores` more stores, as far as others can tell: it runs on, but
/// nothing that it does is seen.
pub(crate) fn kill_after(stores: usize) {
    LIFE.with(|life| life.set(stores));
}

/// Says that from here on no other thread stores to anything that this one loads, until this one ends, but
/// for what [has several writers](AtomicU64::has_several_writers).
///
/// Its own loads then answer what was stored last, so they are no choice to explore. More than that:
/// loom looks for races with the last access to an atomic only, so that a writer's own load before
/// its store would hide the reader's load before that, and the interleaving would never be run.
pub(crate) fn only_writer() {
    WRITER.with(|writer| writer.set(true));
}

/// Loom's atomic, for a thread that can be killed.
#[derive(Debug)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64, std::sync::atomic::AtomicBool);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value), std::sync::atomic::AtomicBool::new(false))
    }

    /// Says, before any thread is spawned, that several threads store to this one.
    pub(crate) fn has_several_writers(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        if WRITER.with(Cell::get) && !self.1.load(Ordering::Relaxed) {
            // SAFETY: nobody else stores while this thread runs, and what was stored before was
            // stored before it was spawned; loom checks both.
            return unsafe { self.0.unsync_load() };
        }
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        let left = LIFE.with(Cell::get);
        if left > 0 {
            LIFE.with(|life| life.set(left.saturating_sub(usize::from(left != usize::MAX))));
            self.0.store(value, order);
        }
    }
}
