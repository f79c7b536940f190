//! What KVM itself counts of machines and vCPUs: the descriptors that it gives of its statistics.

use std::ffi::c_ulong;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{KVM_CAP_BINARY_STATS_FD, KVMIO};
use kvm_ioctls::Kvm;
use statsfs::{Source, SourceError};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl, ioctl_expr};

use crate::limits;
use crate::message::Missing;

/// `KVM_GET_STATS_FD`, of both VMs' and vCPUs' files: `_IO(KVMIO, 0xce)` in Linux' `include/uapi/linux/kvm.h`.
const KVM_GET_STATS_FD: c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xce, 0);

/// What kind of object is counted: each has values of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A machine.
    Vm,
    /// A vCPU.
    Vcpu,
}

impl Of {
    /// The name of the group of values.
    fn group(self) -> &'static str {
        match self {
            Self::Vm => "kvm_vm",
            Self::Vcpu => "kvm_vcpu",
        }
    }
}

/// Adds what KVM counts to the sources of a process's machines. Machines run as well without.
#[derive(Debug, Default)]
pub struct KernelStats(Missing);

impl KernelStats {
    /// Adds what KVM counts of a machine or vCPU to its source. To be called before a vCPU runs: while it does, KVM
    /// lets nobody else at its file.
    ///
    /// # Errors
    /// [`SourceError::SegmentFull`]. Whatever else is in the way is noted, to be [told](Self::tell).
    pub fn add(
        &self,
        kvm: &Kvm,
        of: Of,
        fd: &impl AsRawFd,
        source: &Source,
    ) -> Result<(), SourceError> {
        if kvm.check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) <= 0 {
            self.is_missing(|| "KVM has none (KVM_CAP_BINARY_STATS_FD, Linux 5.14)".to_string());
            return Ok(());
        }
        let fd = match open(fd) {
            Ok(fd) => fd,
            Err(error) => {
                let hint = limits::way_out(&error).map(|hint| format!(": {hint}"));
                let hint = hint.unwrap_or_default();
                self.is_missing(|| format!("KVM refuses them (KVM_GET_STATS_FD): {error}{hint}"));
                return Ok(());
            }
        };
        match source.add_fd_group(of.group(), fd) {
            Ok(left_out) if left_out.is_empty() => {}
            Ok(left_out) => self.is_missing(|| format!("but for {}", left_out.join(", "))),
            Err(error @ SourceError::SegmentFull { .. }) => return Err(error),
            Err(error) => self.is_missing(|| error.to_string()),
        }
        Ok(())
    }

    fn is_missing(&self, why: impl FnOnce() -> String) {
        self.0.note(|| format!("KVM's own statistics are missing: {}", why()));
    }

    /// Says once what is missing.
    pub fn tell(&self) {
        self.0.tell();
    }
}

/// The descriptor of a machine's or vCPU's statistics.
fn open(fd: &impl AsRawFd) -> Result<OwnedFd, errno::Error> {
    // SAFETY: the ioctl has no argument, and makes a new descriptor. That of another file is refused.
    let stats = unsafe { ioctl(fd, KVM_GET_STATS_FD) };
    if stats < 0 {
        return Err(errno::Error::last());
    }
    // SAFETY: the kernel has just made it for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(stats) })
}
