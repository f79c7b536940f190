//! The shared-memory format: layout, protocol, writer and validating reader.

pub(crate) mod arena;
mod error;
pub(crate) mod latch;
pub mod layout;
pub(crate) mod memfd;
pub(crate) mod plan;
pub mod process;
pub(crate) mod protocol;
pub mod reader;
pub(crate) mod region;
pub(crate) mod schema;
pub(crate) mod sync;

pub use error::SegmentError;
pub use memfd::{CreateError, FileError};
pub use process::Process;
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

#[cfg(test)]
mod tests;
