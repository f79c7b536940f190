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

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
