//! Live statistics as a file tree, in the style of the statsfs RFC.
extern crate self as statsfs;

#[cfg(not(loom))]
pub mod cell;
#[cfg(not(loom))]
mod fork;
#[cfg(not(loom))]
pub mod fs;
#[cfg(not(loom))]
mod registry;
pub mod segment;
#[cfg(not(loom))]
mod slot;
#[cfg(not(loom))]
mod source;
pub mod value;

#[cfg(not(loom))]
pub use registry::{Registry, RegistryOptions, Usage};
#[cfg(not(loom))]
pub use slot::{DynSlot, Slot};
#[cfg(not(loom))]
pub use source::{RegistryError, Source, SourceBuilder, SourceError};
