//! Making vCPUs, each in the state that it starts in.

use kvm_ioctls::{VcpuFd, VmFd};

use super::error::{VmError, kvm};
use crate::arch::x86_64::regs::{self, Mode};
use crate::arch::x86_64::{cpuid, interrupts, msrs};
use crate::hypervisor::Hypervisor;
use crate::kernel;

/// How a machine's vCPUs start.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// All in a flat program, in this mode.
    Flat(Mode),
    /// The first in a kernel. The others wait until it starts them.
    Kernel {
        /// How the first enters it.
        entry: kernel::Entry,
        /// The machine, as CPUID tells of it.
        machine: cpuid::Machine,
    },
}

/// Makes vCPU `index`.
pub fn make(
    fd: &VmFd,
    hypervisor: &Hypervisor,
    start: Start,
    index: u32,
) -> Result<VcpuFd, VmError> {
    let vcpu =
        fd.create_vcpu(index.into()).map_err(kvm(format!("vCPU {index} (KVM_CREATE_VCPU)")))?;
    let supported = hypervisor.cpuid();
    match start {
        Start::Flat(mode) => {
            set_cpuid(&vcpu, index, &cpuid::for_flat(supported, index))?;
            regs::set_up_flat(&vcpu, mode, index).map_err(failed(index, "its registers"))?;
        }
        Start::Kernel { entry, machine } => {
            let cpuid = cpuid::for_vcpu(supported, machine, index)
                .map_err(|error| failed(index, "its CPUID")(format!("{error:?}")))?;
            set_cpuid(&vcpu, index, &cpuid)?;
            msrs::set_up(&vcpu).map_err(failed(index, "its model-specific registers"))?;
            if index == 0 {
                regs::set_up_kernel(&vcpu, entry.page_tables, entry.address)
                    .map_err(failed(index, "its registers"))?;
                interrupts::connect_local_pins(&vcpu)
                    .map_err(failed(index, "its interrupt controller"))?;
            }
        }
    }
    Ok(vcpu)
}

fn set_cpuid(vcpu: &VcpuFd, index: u32, cpuid: &kvm_bindings::CpuId) -> Result<(), VmError> {
    vcpu.set_cpuid2(cpuid).map_err(failed(index, "its CPUID (KVM_SET_CPUID2)"))
}

fn failed<E: ToString>(index: u32, what: &'static str) -> impl FnOnce(E) -> VmError {
    move |error| VmError::Vcpu { index, what, error: error.to_string() }
}
