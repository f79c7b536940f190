//! The atomics of the shared-memory protocol. The models in `tests/models` compile the protocol's own
//! files with loom's in their place.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
