//! Why a machine can not be made or started.

use std::io;

use thiserror::Error;
use vm_memory::GuestMemoryError;
use vmm_sys_util::errno;

use super::{MAX_MEMORY, MIN_MEMORY};
use crate::arch::x86_64::layout;
use crate::bus::BusError;
use crate::flat::FlatError;
use crate::kernel::KernelError;
use crate::tree::TreeError;
use crate::virtio::VirtioError;

/// Why a machine can not be made or started.
#[derive(Debug, Error)]
pub enum VmError {
    /// KVM refuses.
    #[error("KVM refuses {what}: {error}")]
    Kvm {
        /// What it was asked for.
        what: String,
        /// Why.
        #[source]
        error: errno::Error,
    },
    /// KVM lacks what only machines with a kernel need.
    #[error("KVM lacks {0}, which a guest with a kernel needs: update the host's kernel")]
    Capability(&'static str),
    /// KVM does not take what a vCPU is to be like.
    #[error("vCPU {index} can not be set up: {what}: {error}")]
    Vcpu {
        /// The vCPU.
        index: u32,
        /// What was being set.
        what: &'static str,
        /// Why.
        error: String,
    },
    /// There is no memory.
    #[error("{size} bytes of guest memory can not be mapped: {error}: give less with --memory")]
    Memory {
        /// How much was wanted.
        size: u64,
        /// Why.
        error: vm_memory::mmap::FromRangesError,
    },
    /// The number of vCPUs is out of range.
    #[error("a guest has 1 to {max} vCPUs, not {0}", max = layout::MAX_VCPUS)]
    Vcpus(u32),
    /// The size of memory is out of range.
    #[error(
        "a guest has {MIN_MEMORY} to {MAX_MEMORY} bytes of memory in whole pages of 4096 bytes, not {0}"
    )]
    MemorySize(u64),
    /// A resource of the host is missing.
    #[error("{what} can not be had: {error}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The program can not be loaded.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// The kernel can not be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The virtio devices can not be had.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The ACPI tables do not fit.
    #[error("the ACPI tables can not be written: {0}")]
    Acpi(GuestMemoryError),
    /// The devices do not fit together.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The statistics can not be set up.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// What KVM refuses.
pub(super) fn kvm(what: impl Into<String>) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Kvm { what: what.into(), error }
}

/// What the host does not give.
pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |error| VmError::Host { what, error }
}
