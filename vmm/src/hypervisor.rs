//! KVM: opening it, and what all machines need to know of it.

use std::path::PathBuf;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::limits;

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// Why KVM can not be used.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// There is no device.
    #[error(
        "{} does not exist: load KVM (`modprobe kvm_intel` or `modprobe kvm_amd`), and enable virtualisation in the firmware (in a virtual machine: nested virtualisation)",
        .0.display()
    )]
    Missing(PathBuf),
    /// There is no permission.
    #[error(
        "{} may not be opened by this user: run as root, or join the group that may open it (see `ls -l {}`; usually `sudo usermod -aG kvm $USER`, then log in again)",
        .0.display(), .0.display()
    )]
    Forbidden(PathBuf),
    /// It can not be opened for another reason.
    #[error(
        "{} can not be opened: {error}: {}",
        .path.display(),
        limits::way_out(.error).unwrap_or("see what the kernel says (`dmesg | grep -i kvm`)")
    )]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        error: errno::Error,
    },
    /// What is called `/dev/kvm` is something else.
    #[error(
        "{} is not the KVM device: remove it and create it with `mknod {} c 10 232`",
        .0.display(), .0.display()
    )]
    NotTheDevice(PathBuf),
    /// It is not a KVM that we know.
    #[error("{} is not KVM with API version {KVM_API_VERSION} (it says {version}): update the kernel", .path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// What it says.
        version: i32,
    },
    /// It lacks something.
    #[error("KVM lacks {0:?}: update the kernel")]
    Capability(Cap),
    /// It does not say what CPUs it can offer.
    #[error("KVM does not say which CPUID it supports (KVM_GET_SUPPORTED_CPUID): {0}")]
    Cpuid(#[source] errno::Error),
}

/// What a machine needs of KVM.
const NEEDED: [Cap; 4] = [Cap::UserMemory, Cap::SetTssAddr, Cap::ImmediateExit, Cap::ExtCpuid];

/// What a machine with a kernel needs as well, and what it is called in messages.
const NEEDED_FOR_KERNEL: [(Cap, &str); 3] = [
    (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Pit2, "a timer (KVM_CAP_PIT2)"),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
];

/// KVM, opened and found to be sufficient.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Hypervisor {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`HypervisorError`] says what is missing and what to do about it.
    pub fn open() -> Result<Self, HypervisorError> {
        let path = PathBuf::from(DEVICE);
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                return Err(match error.errno() {
                    libc::ENOENT | libc::ENODEV | libc::ENXIO => HypervisorError::Missing(path),
                    libc::EACCES | libc::EPERM => HypervisorError::Forbidden(path),
                    libc::EISDIR => HypervisorError::NotTheDevice(path),
                    _ => HypervisorError::Open { path, error },
                });
            }
        };
        let version = kvm.get_api_version();
        if version < 0 {
            return Err(HypervisorError::NotTheDevice(path));
        }
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(HypervisorError::Version { path, version });
        }
        if let Some(lacking) = NEEDED.into_iter().find(|cap| !kvm.check_extension(*cap)) {
            return Err(HypervisorError::Capability(lacking));
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(HypervisorError::Cpuid)?;
        Ok(Self { kvm, cpuid })
    }

    /// The system file.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Whether KVM suffices for machines with a kernel, which need more of it.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_for_kernel(&self) -> Result<(), &'static str> {
        let lacking = NEEDED_FOR_KERNEL.iter().find(|(cap, _)| !self.kvm.check_extension(*cap));
        lacking.map_or(Ok(()), |(_, what)| Err(*what))
    }

    /// Whether KVM's local APICs have timers with TSC deadlines, which its CPUID does not tell.
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// The CPUID that KVM supports.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }
}
