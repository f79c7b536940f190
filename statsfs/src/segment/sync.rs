//! The atomics of the shared-memory protocol: those of `std`, or of `loom` when it explores every
//! interleaving of the same code (`--cfg loom`).

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use modelled::{AtomicU64, Ordering, fence, kill_after};

#[cfg(loom)]
mod modelled {
    use std::cell::Cell;

    pub(crate) use loom::sync::atomic::{Ordering, fence};

    loom::thread_local! {
        /// Stores that this thread still does.
        static LIFE: Cell<usize> = Cell::new(usize::MAX);
    }

    /// Kills this thread after `stores` more stores, as far as others can tell: it runs on, but
    /// nothing that it does is seen.
    pub(crate) fn kill_after(stores: usize) {
        LIFE.with(|life| life.set(stores));
    }

    /// Loom's atomic, for a thread that can be killed.
    #[derive(Debug)]
    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
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
}
