//! A minimal KVM virtual machine monitor whose every exit is counted.
//!
//! Around each KVM_RUN the exit loop ([`vcpu`]) accounts ([`accounting`]) for what it was and how long
//! it took, into statistics ([`stats`]) of the vCPU's own that are published as a tree ([`tree`]) by the
//! `statsfs` library.

// They panic where nothing can be written: see `message`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod accounting;
pub mod arch;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod console;
pub mod demo;
pub mod exit;
pub mod files;
pub mod flat;
pub mod heap;
pub mod hypervisor;
pub mod kernel;
pub mod kernel_stats;
pub mod kick;
pub mod lifecycle;
pub mod limits;
pub mod list;
pub mod message;
pub mod publish;
pub mod run;
pub mod sched;
pub mod seccomp;
pub mod signals;
pub mod stats;
pub mod terminal;
pub mod tree;
pub mod trim;
pub mod vcpu;
pub mod virtio;
pub mod vm;

#[cfg(test)]
#[path = "../tests/common/images.rs"]
mod images;
