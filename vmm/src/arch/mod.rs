//! What depends on the CPU's architecture.

pub mod x86_64;
