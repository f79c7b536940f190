//! Why KVM_RUN returned.
//!
//! One [`ExitReason`] for everything that a return of KVM_RUN can be: every exit reason that KVM has,
//! by KVM's own name (`KVM_EXIT_*`), port and memory accesses told apart by direction, and the ways in
//! which KVM_RUN fails. Each becomes a pair of values, a count and a time (see [`crate::stats`]).

use kvm_bindings as kvm;
use kvm_ioctls::VcpuExit;
use statsfs::LabelSet;
use statsfs::value::LabelSet as _;
use vmm_sys_util::errno;

/// Why KVM_RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, LabelSet)]
#[labels(key = "reason")]
pub enum ExitReason {
    /// of something that KVM does not know (KVM_EXIT_UNKNOWN)
    Unknown,
    /// of an exception of the guest (KVM_EXIT_EXCEPTION)
    Exception,
    /// the guest read an I/O port (KVM_EXIT_IO, in)
    IoIn,
    /// the guest wrote an I/O port (KVM_EXIT_IO, out)
    IoOut,
    /// the guest made a hypercall (KVM_EXIT_HYPERCALL)
    Hypercall,
    /// of a breakpoint or single step (KVM_EXIT_DEBUG)
    Debug,
    /// the guest halted (KVM_EXIT_HLT)
    Hlt,
    /// the guest read device memory (KVM_EXIT_MMIO, read)
    MmioRead,
    /// the guest wrote device memory (KVM_EXIT_MMIO, write)
    MmioWrite,
    /// an interrupt can be injected (KVM_EXIT_IRQ_WINDOW_OPEN)
    IrqWindowOpen,
    /// the guest's CPU shut down, as by a triple fault (KVM_EXIT_SHUTDOWN)
    Shutdown,
    /// the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY)
    FailEntry,
    /// a signal arrived (KVM_EXIT_INTR, or KVM_RUN failed with EINTR)
    Intr,
    /// the guest changed its task priority (KVM_EXIT_SET_TPR)
    SetTpr,
    /// the guest accessed its task priority register (KVM_EXIT_TPR_ACCESS)
    TprAccess,
    /// of an s390 interception (KVM_EXIT_S390_SIEIC)
    S390Sieic,
    /// of an s390 reset (KVM_EXIT_S390_RESET)
    S390Reset,
    /// of a PowerPC device control register (KVM_EXIT_DCR)
    Dcr,
    /// of a non-maskable interrupt (KVM_EXIT_NMI)
    Nmi,
    /// KVM failed inside (KVM_EXIT_INTERNAL_ERROR)
    InternalError,
    /// of a PowerPC OSI call (KVM_EXIT_OSI)
    Osi,
    /// of a PowerPC PAPR hypercall (KVM_EXIT_PAPR_HCALL)
    PaprHcall,
    /// of an s390 user-controlled machine (KVM_EXIT_S390_UCONTROL)
    S390Ucontrol,
    /// a watchdog expired (KVM_EXIT_WATCHDOG)
    Watchdog,
    /// of the s390 instruction TEST SUBCHANNEL (KVM_EXIT_S390_TSCH)
    S390Tsch,
    /// of a PowerPC external proxy (KVM_EXIT_EPR)
    Epr,
    /// the guest shut down, reset or crashed (KVM_EXIT_SYSTEM_EVENT)
    SystemEvent,
    /// of the s390 instruction STSI (KVM_EXIT_S390_STSI)
    S390Stsi,
    /// the guest ended an interrupt of a user-space I/O APIC (KVM_EXIT_IOAPIC_EOI)
    IoapicEoi,
    /// of a Hyper-V event (KVM_EXIT_HYPERV)
    Hyperv,
    /// of an Arm access without syndrome (KVM_EXIT_ARM_NISV)
    ArmNisv,
    /// the guest read an MSR (KVM_EXIT_X86_RDMSR)
    X86Rdmsr,
    /// the guest wrote an MSR (KVM_EXIT_X86_WRMSR)
    X86Wrmsr,
    /// the ring of dirty pages is full (KVM_EXIT_DIRTY_RING_FULL)
    DirtyRingFull,
    /// a vCPU waits to be woken after reset (KVM_EXIT_AP_RESET_HOLD)
    ApResetHold,
    /// the guest locked the bus (KVM_EXIT_X86_BUS_LOCK)
    X86BusLock,
    /// of a Xen event (KVM_EXIT_XEN)
    Xen,
    /// of a RISC-V SBI call (KVM_EXIT_RISCV_SBI)
    RiscvSbi,
    /// of a RISC-V control register (KVM_EXIT_RISCV_CSR)
    RiscvCsr,
    /// the guest ran too long without an event (KVM_EXIT_NOTIFY)
    Notify,
    /// of a LoongArch I/O control register (KVM_EXIT_LOONGARCH_IOCSR)
    LoongarchIocsr,
    /// the guest's access to memory can not be resolved (KVM_EXIT_MEMORY_FAULT)
    MemoryFault,
    /// of a TDX request (KVM_EXIT_TDX)
    Tdx,
    /// of an Arm synchronous external abort (KVM_EXIT_ARM_SEA)
    ArmSea,
    /// of exit reason 42, which had no name when this was built
    #[label("nr_42")]
    Nr42,
    /// of exit reason 43, which had no name when this was built
    #[label("nr_43")]
    Nr43,
    /// of exit reason 44, which had no name when this was built
    #[label("nr_44")]
    Nr44,
    /// of exit reason 45, which had no name when this was built
    #[label("nr_45")]
    Nr45,
    /// of exit reason 46, which had no name when this was built
    #[label("nr_46")]
    Nr46,
    /// of exit reason 47, which had no name when this was built
    #[label("nr_47")]
    Nr47,
    /// of an exit reason above 47
    Other,
    /// the vCPU was not ready to run (KVM_RUN failed with EAGAIN)
    Again,
    /// KVM_RUN failed with another error than EINTR and EAGAIN
    Error,
}

/// KVM_EXIT_TDX, newer than the bindings.
const KVM_EXIT_TDX: u32 = 40;
/// KVM_EXIT_ARM_SEA, newer than the bindings.
const KVM_EXIT_ARM_SEA: u32 = 41;

impl ExitReason {
    /// The reason of one return of KVM_RUN.
    #[inline]
    pub fn of(result: &Result<VcpuExit<'_>, errno::Error>) -> Self {
        match result {
            Ok(exit) => Self::of_exit(exit),
            Err(error) => Self::of_errno(error.errno()),
        }
    }

    /// The reason when KVM_RUN failed with this error number.
    #[inline]
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::EINTR => Self::Intr,
            libc::EAGAIN => Self::Again,
            _ => Self::Error,
        }
    }

    #[inline]
    fn of_exit(exit: &VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoIn(..) => Self::IoIn,
            VcpuExit::IoOut(..) => Self::IoOut,
            VcpuExit::MmioRead(..) => Self::MmioRead,
            VcpuExit::MmioWrite(..) => Self::MmioWrite,
            VcpuExit::Hlt => Self::Hlt,
            VcpuExit::Unknown => Self::Unknown,
            VcpuExit::Exception => Self::Exception,
            VcpuExit::Hypercall(..) => Self::Hypercall,
            VcpuExit::Debug(..) => Self::Debug,
            VcpuExit::IrqWindowOpen => Self::IrqWindowOpen,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::FailEntry(..) => Self::FailEntry,
            VcpuExit::Intr => Self::Intr,
            VcpuExit::SetTpr => Self::SetTpr,
            VcpuExit::TprAccess => Self::TprAccess,
            VcpuExit::S390Sieic => Self::S390Sieic,
            VcpuExit::S390Reset => Self::S390Reset,
            VcpuExit::Dcr => Self::Dcr,
            VcpuExit::Nmi => Self::Nmi,
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::Osi => Self::Osi,
            VcpuExit::PaprHcall => Self::PaprHcall,
            VcpuExit::S390Ucontrol => Self::S390Ucontrol,
            VcpuExit::Watchdog => Self::Watchdog,
            VcpuExit::S390Tsch => Self::S390Tsch,
            VcpuExit::Epr => Self::Epr,
            VcpuExit::SystemEvent(..) => Self::SystemEvent,
            VcpuExit::S390Stsi => Self::S390Stsi,
            VcpuExit::IoapicEoi(..) => Self::IoapicEoi,
            VcpuExit::Hyperv => Self::Hyperv,
            VcpuExit::X86Rdmsr(..) => Self::X86Rdmsr,
            VcpuExit::X86Wrmsr(..) => Self::X86Wrmsr,
            VcpuExit::MemoryFault { .. } => Self::MemoryFault,
            VcpuExit::Unsupported(number) => Self::of_number(*number),
        }
    }

    /// The reason with this number (`kvm_run.exit_reason`). Port and memory accesses, which a number
    /// alone does not tell apart, count as `other`: kvm-ioctls never leaves them to us.
    pub fn of_number(number: u32) -> Self {
        match number {
            kvm::KVM_EXIT_UNKNOWN => Self::Unknown,
            kvm::KVM_EXIT_EXCEPTION => Self::Exception,
            kvm::KVM_EXIT_HYPERCALL => Self::Hypercall,
            kvm::KVM_EXIT_DEBUG => Self::Debug,
            kvm::KVM_EXIT_HLT => Self::Hlt,
            kvm::KVM_EXIT_IRQ_WINDOW_OPEN => Self::IrqWindowOpen,
            kvm::KVM_EXIT_SHUTDOWN => Self::Shutdown,
            kvm::KVM_EXIT_FAIL_ENTRY => Self::FailEntry,
            kvm::KVM_EXIT_INTR => Self::Intr,
            kvm::KVM_EXIT_SET_TPR => Self::SetTpr,
            kvm::KVM_EXIT_TPR_ACCESS => Self::TprAccess,
            kvm::KVM_EXIT_S390_SIEIC => Self::S390Sieic,
            kvm::KVM_EXIT_S390_RESET => Self::S390Reset,
            kvm::KVM_EXIT_DCR => Self::Dcr,
            kvm::KVM_EXIT_NMI => Self::Nmi,
            kvm::KVM_EXIT_INTERNAL_ERROR => Self::InternalError,
            kvm::KVM_EXIT_OSI => Self::Osi,
            kvm::KVM_EXIT_PAPR_HCALL => Self::PaprHcall,
            kvm::KVM_EXIT_S390_UCONTROL => Self::S390Ucontrol,
            kvm::KVM_EXIT_WATCHDOG => Self::Watchdog,
            kvm::KVM_EXIT_S390_TSCH => Self::S390Tsch,
            kvm::KVM_EXIT_EPR => Self::Epr,
            kvm::KVM_EXIT_SYSTEM_EVENT => Self::SystemEvent,
            kvm::KVM_EXIT_S390_STSI => Self::S390Stsi,
            kvm::KVM_EXIT_IOAPIC_EOI => Self::IoapicEoi,
            kvm::KVM_EXIT_HYPERV => Self::Hyperv,
            kvm::KVM_EXIT_ARM_NISV => Self::ArmNisv,
            kvm::KVM_EXIT_X86_RDMSR => Self::X86Rdmsr,
            kvm::KVM_EXIT_X86_WRMSR => Self::X86Wrmsr,
            kvm::KVM_EXIT_DIRTY_RING_FULL => Self::DirtyRingFull,
            kvm::KVM_EXIT_AP_RESET_HOLD => Self::ApResetHold,
            kvm::KVM_EXIT_X86_BUS_LOCK => Self::X86BusLock,
            kvm::KVM_EXIT_XEN => Self::Xen,
            kvm::KVM_EXIT_RISCV_SBI => Self::RiscvSbi,
            kvm::KVM_EXIT_RISCV_CSR => Self::RiscvCsr,
            kvm::KVM_EXIT_NOTIFY => Self::Notify,
            kvm::KVM_EXIT_LOONGARCH_IOCSR => Self::LoongarchIocsr,
            kvm::KVM_EXIT_MEMORY_FAULT => Self::MemoryFault,
            KVM_EXIT_TDX => Self::Tdx,
            KVM_EXIT_ARM_SEA => Self::ArmSea,
            42 => Self::Nr42,
            43 => Self::Nr43,
            44 => Self::Nr44,
            45 => Self::Nr45,
            46 => Self::Nr46,
            47 => Self::Nr47,
            _ => Self::Other,
        }
    }

    /// The name, as in the values' names.
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_but_io_and_mmio_has_a_reason_of_its_own() {
        let mut seen = HashSet::new();
        for number in 0..48 {
            let reason = ExitReason::of_number(number);
            if number == kvm::KVM_EXIT_IO || number == kvm::KVM_EXIT_MMIO {
                assert_eq!(reason, ExitReason::Other);
            } else {
                assert_ne!(reason, ExitReason::Other, "{number}");
                assert!(seen.insert(reason.name()), "{number}: {}", reason.name());
            }
        }
        for number in [48, 64, 1000, u32::MAX] {
            assert_eq!(ExitReason::of_number(number), ExitReason::Other);
        }
        // 46 numbers, four directions, other, again, error.
        assert_eq!(ExitReason::NAMES.len(), 46 + 4 + 3);
    }

    #[test]
    fn names_are_those_of_kvm() {
        for (reason, name) in [
            (ExitReason::IoIn, "io_in"),
            (ExitReason::MmioWrite, "mmio_write"),
            (ExitReason::IrqWindowOpen, "irq_window_open"),
            (ExitReason::FailEntry, "fail_entry"),
            (ExitReason::S390Sieic, "s390_sieic"),
            (ExitReason::X86Rdmsr, "x86_rdmsr"),
            (ExitReason::X86BusLock, "x86_bus_lock"),
            (ExitReason::IoapicEoi, "ioapic_eoi"),
            (ExitReason::Nr42, "nr_42"),
        ] {
            assert_eq!(reason.name(), name);
        }
    }

    #[test]
    fn a_failure_of_kvm_run_is_a_reason_too() {
        let failed = |errno| ExitReason::of(&Err(errno::Error::new(errno)));
        assert_eq!(failed(libc::EINTR), ExitReason::Intr);
        assert_eq!(failed(libc::EAGAIN), ExitReason::Again);
        assert_eq!(failed(libc::EFAULT), ExitReason::Error);
    }

    #[test]
    fn exits_map_by_what_they_are() {
        let (mut a, b) = ([0u8; 1], [0u8; 1]);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::IoIn(1, &mut a))), ExitReason::IoIn);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::IoOut(1, &b))), ExitReason::IoOut);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::MmioRead(1, &mut a))), ExitReason::MmioRead);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::MmioWrite(1, &b))), ExitReason::MmioWrite);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::Unsupported(33))), ExitReason::X86BusLock);
        assert_eq!(ExitReason::of(&Ok(VcpuExit::Unsupported(99))), ExitReason::Other);
        let fault = VcpuExit::MemoryFault { flags: 0, gpa: 0, size: 0 };
        assert_eq!(ExitReason::of(&Ok(fault)), ExitReason::MemoryFault);
    }
}
