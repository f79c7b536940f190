//! The shared-memory format: layout, protocol, writer and validating reader.

#[cfg(not(loom))]
pub(crate) mod arena;
#[cfg(not(loom))]
mod error;
pub(crate) mod latch;
pub mod layout;
#[cfg(not(loom))]
pub(crate) mod memfd;
#[cfg(not(loom))]
pub(crate) mod plan;
#[cfg(not(loom))]
pub mod process;
pub(crate) mod protocol;
#[cfg(not(loom))]
pub mod reader;
pub(crate) mod region;
pub(crate) mod schema;
pub(crate) mod sync;

#[cfg(not(loom))]
pub use error::SegmentError;
#[cfg(not(loom))]
pub use memfd::{CreateError, FileError};
#[cfg(not(loom))]
pub use process::Process;
#[cfg(not(loom))]
pub use reader::{Limits, SegmentReader};
pub use schema::SchemaError;

/// Decodes a group's record. One that is accepted must be the same when it is encoded and decoded again.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_schema(words: &[u64]) {
    if let Ok(group) = schema::decode(words) {
        let mut again = schema::encode(&group);
        again.insert(0, 2);
        assert_eq!(schema::decode(&again).as_ref(), Ok(&group));
        plan::Plan::new(std::sync::Arc::new(group), 0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
