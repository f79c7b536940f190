//! The run loop of a vCPU: KVM_RUN, account for its return, handle it, again.

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_bindings as kvm;
use kvm_ioctls::{VcpuExit, VcpuFd};
use statsfs::Slot;
use thiserror::Error;
use vmm_sys_util::errno;

use crate::accounting::Account;
use crate::bus::VcpuIo;
use crate::clock::Moment;
use crate::exit::ExitReason;
use crate::kick::{InternalError, RunPage};
use crate::lifecycle::{EndOnPanic, Ending, Lifecycle, Reset};
use crate::seccomp::ConfineError;
use crate::stats::VmStartStats;

/// Why a guest can not go on: what the guest did, or what its CPU said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The vCPU.
    pub vcpu: u32,
    /// What happened.
    pub cause: Cause,
    /// Where the guest was, if KVM still knows. After a triple fault on AMD processors it does not: the
    /// registers are then those of a reset.
    pub at: Option<CodeAddress>,
}

/// A place in a guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeAddress {
    /// The instruction pointer, relative to the code segment.
    pub rip: u64,
    /// The code segment's base, which is 0 in long mode.
    pub cs_base: u64,
}

impl CodeAddress {
    /// Where a CPU begins after a reset.
    const RESET: Self = Self { rip: 0xfff0, cs_base: 0xffff_0000 };
}

impl fmt::Display for CodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RIP {:#x}", self.rip)?;
        match self.cs_base {
            0 => Ok(()),
            base => write!(f, " in the code segment at {base:#x}"),
        }
    }
}

/// What happened to a guest that can not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The CPU shut down: an exception while an exception was delivered while an exception was.
    TripleFault,
    /// The CPU refused to enter the guest.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM can not go on.
    Internal(InternalError),
    /// KVM_RUN returned with a reason that nothing on this machine should lead to.
    Unexpected(ExitReason),
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.cause)?;
        self.at.map_or(Ok(()), |at| write!(f, ", {at}"))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("triple fault (KVM_EXIT_SHUTDOWN)"),
            Self::FailEntry { reason } => {
                write!(
                    f,
                    "the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY, reason {reason:#x})"
                )
            }
            Self::Internal(error) => error.fmt(f),
            Self::Unexpected(reason) => {
                write!(f, "unexpected exit from the guest ({})", reason.name())
            }
        }
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.suberror {
            kvm::KVM_INTERNAL_ERROR_EMULATION => "an instruction could not be emulated",
            kvm::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
            kvm::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
            kvm::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit of the hardware",
            _ => "unknown",
        };
        write!(
            f,
            "KVM failed inside (KVM_EXIT_INTERNAL_ERROR, suberror {}: {name}",
            self.suberror
        )?;
        if !self.instruction.is_empty() {
            f.write_str("; instruction bytes")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        } else if !self.data.is_empty() {
            write!(f, "; data {:x?}", self.data)?;
        }
        f.write_str(")")
    }
}

/// Why the VMM can not run a vCPU.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// KVM_RUN failed.
    #[error("KVM_RUN of vCPU {vcpu} failed: {error}")]
    Run {
        /// The vCPU.
        vcpu: u32,
        /// What KVM says.
        #[source]
        error: errno::Error,
    },
    /// KVM could not resolve the guest's access to memory.
    #[error(
        "the guest's memory at {address:#x} ({size:#x} bytes) can not be accessed by vCPU {vcpu}: is the host out of memory?"
    )]
    Memory {
        /// The vCPU.
        vcpu: u32,
        /// The guest-physical address.
        address: u64,
        /// The size of the range.
        size: u64,
    },
    /// Its thread can not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The thread panicked.
    #[error("the thread of vCPU {vcpu} panicked: this is a bug in the VMM")]
    Panicked {
        /// The vCPU.
        vcpu: u32,
    },
}

/// What it means when a vCPU shuts down, as by a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// The guest has crashed.
    Crash,
    /// The machine is reset.
    Reset,
}

/// A vCPU, ready to run on a thread of its own.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    page: RunPage,
    io: VcpuIo,
    lifecycle: Arc<Lifecycle>,
    on_shutdown: OnShutdown,
    /// Where to note the time from this moment to the guest's first instruction, if it is this vCPU's
    /// to do so.
    start: Option<(Slot<VmStartStats>, Moment)>,
}

/// What to do after handling an exit.
enum Next {
    Run,
    Crash(Cause),
    End(Ending),
}

impl Vcpu {
    /// Puts a vCPU together.
    ///
    /// # Errors
    /// If its run page can not be mapped.
    pub fn new(
        index: u32,
        fd: VcpuFd,
        io: VcpuIo,
        lifecycle: Arc<Lifecycle>,
        on_shutdown: OnShutdown,
        start: Option<(Slot<VmStartStats>, Moment)>,
    ) -> io::Result<Self> {
        let page = RunPage::map(&fd)?;
        Ok(Self { index, fd, page, io, lifecycle, on_shutdown, start })
    }

    /// The vCPU's number in its machine.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The vCPU's file.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the vCPU on this thread until the machine ends, which may be this vCPU's doing. Every return
    /// of KVM_RUN is accounted for.
    pub fn run(mut self, account: &mut impl Account) {
        let lifecycle = self.lifecycle.clone();
        let vcpu = self.index;
        let panicked = || Ending::Failed(VcpuError::Panicked { vcpu });
        let _panicking = EndOnPanic { lifecycle: &lifecycle, ending: panicked };
        if let Some((slot, start)) = self.start.take() {
            slot.vm_start_ns.set(start.time().elapsed().as_nanos() as u64);
        }
        if let Some(ending) = self.run_loop(&lifecycle, account) {
            lifecycle.end(ending);
        }
    }

    fn run_loop(&mut self, lifecycle: &Lifecycle, account: &mut impl Account) -> Option<Ending> {
        let armed = self.page.arm();
        let mut next = Next::Run;
        while matches!(next, Next::Run) && !lifecycle.is_stopping() {
            let handled = account.enter();
            self.io.handled(handled);
            let result = self.fd.run();
            account.exit(ExitReason::of(&result));
            match result {
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.io.port_read(port, self.page.io_size(), data);
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.io.port_write(port, self.page.io_size(), data);
                }
                Ok(VcpuExit::MmioRead(address, data)) => self.io.mmio_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => self.io.mmio_write(address, data),
                // Only without an interrupt controller in KVM, and then nothing could wake it: it goes on at
                // once.
                Ok(VcpuExit::Hlt) => {}
                // What the kick was for, the loop's condition looks at after this.
                Err(error) if error.errno() == libc::EINTR => armed.clear(),
                // A vCPU that has waited to be started now is. The first has not: it would be so for ever, since
                // KVM can not start a thread of its own.
                Err(error) if error.errno() == libc::EAGAIN && self.index > 0 => {}
                Err(error) => {
                    next = Next::End(Ending::Failed(VcpuError::Run { vcpu: self.index, error }));
                }
                Ok(exit) => next = handle_rare(self.index, exit, &self.page, self.on_shutdown),
            }
        }
        let handled = account.close();
        self.io.handled(handled);
        match next {
            Next::Run => None,
            Next::End(ending) => Some(ending),
            Next::Crash(cause) => {
                let at = || {
                    let rip = self.fd.get_regs().ok()?.rip;
                    let at = CodeAddress { rip, cs_base: self.fd.get_sregs().ok()?.cs.base };
                    let lost = cause == Cause::TripleFault && at == CodeAddress::RESET;
                    (!lost).then_some(at)
                };
                let at = at();
                Some(Ending::Crashed(Crash { vcpu: self.index, cause, at }))
            }
        }
    }
}

/// Handles the exits that a guest seldom or never leads to.
#[cold]
fn handle_rare(vcpu: u32, exit: VcpuExit<'_>, page: &RunPage, on_shutdown: OnShutdown) -> Next {
    match exit {
        VcpuExit::Shutdown => match on_shutdown {
            OnShutdown::Crash => Next::Crash(Cause::TripleFault),
            OnShutdown::Reset => Next::End(Ending::Reset(Reset::TripleFault { vcpu })),
        },
        VcpuExit::FailEntry(reason, _cpu) => Next::Crash(Cause::FailEntry { reason }),
        VcpuExit::InternalError => Next::Crash(Cause::Internal(page.internal_error())),
        VcpuExit::MemoryFault { gpa, size, .. } => {
            Next::End(Ending::Failed(VcpuError::Memory { vcpu, address: gpa, size }))
        }
        // Nothing to handle.
        VcpuExit::Intr
        | VcpuExit::IrqWindowOpen
        | VcpuExit::SetTpr
        | VcpuExit::TprAccess
        | VcpuExit::IoapicEoi(_)
        | VcpuExit::Nmi => Next::Run,
        exit => Next::Crash(Cause::Unexpected(ExitReason::of(&Ok(exit)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_says_which_vcpu_what_and_where() {
        let crash = |cause, cs_base| {
            Crash { vcpu: 3, cause, at: Some(CodeAddress { rip: 0x12, cs_base }) }.to_string()
        };
        assert_eq!(
            crash(Cause::TripleFault, 0),
            "vCPU 3: triple fault (KVM_EXIT_SHUTDOWN), RIP 0x12"
        );
        assert_eq!(
            crash(Cause::FailEntry { reason: 0x8000_0021 }, 0x1_0000),
            "vCPU 3: the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY, reason 0x80000021), \
             RIP 0x12 in the code segment at 0x10000"
        );
        let internal = |suberror, data: &[u64], instruction: &[u8]| {
            Cause::Internal(InternalError {
                suberror,
                data: data.to_vec(),
                instruction: instruction.to_vec(),
            })
            .to_string()
        };
        assert!(
            internal(1, &[1, 2], &[0x0f, 0x0b]).ends_with("emulated; instruction bytes 0f 0b)")
        );
        assert!(internal(3, &[0x10, 2], &[]).ends_with("delivered; data [10, 2])"));
        assert!(internal(77, &[], &[]).contains("suberror 77: unknown"));
        let unexpected = Cause::Unexpected(ExitReason::Xen).to_string();
        assert_eq!(unexpected, "unexpected exit from the guest (xen)");
    }
}
