//! The model-specific registers that a vCPU starts with, where a PC's firmware leaves them otherwise than
//! a CPU's reset does.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::errno;

const IA32_MISC_ENABLE: u32 = 0x1a0;
/// String instructions are fast.
const FAST_STRINGS: u64 = 1 << 0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are enabled, and memory is write-back.
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// Why the registers can not be set.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MsrError {
    /// KVM refuses all.
    #[error("{0}")]
    Kvm(errno::Error),
    /// KVM refuses one.
    #[error("KVM refuses MSR {0:#x}")]
    Refused(u32),
}

/// Sets the registers of a vCPU, whose CPUID is set already: KVM takes MSRs by it.
///
/// # Errors
/// [`MsrError`], if KVM refuses (KVM_SET_MSRS).
pub fn set_up(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).expect("two are not too many");
    // KVM sets them in order, up to the first that it refuses.
    let set = vcpu.set_msrs(&msrs).map_err(MsrError::Kvm)?;
    entries.get(set).map_or(Ok(()), |refused| Err(MsrError::Refused(refused.index)))
}
