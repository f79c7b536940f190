//! The atomics of the shared-memory protocol: those of `std`, or of `loom` when it explores every
//! interleaving of the same code (`--cfg loom`).

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
