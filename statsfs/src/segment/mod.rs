//! The shared-memory format: layout, protocol, writer and validating reader.

#[cfg(not(loom))]
pub(crate) mod arena;
pub(crate) mod latch;
pub mod layout;
#[cfg(not(loom))]
pub(crate) mod memfd;
pub(crate) mod protocol;
pub(crate) mod region;
pub(crate) mod schema;
pub(crate) mod sync;

#[cfg(not(loom))]
pub use memfd::{CreateError, FileError};
pub use schema::SchemaError;
