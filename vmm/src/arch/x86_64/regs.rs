//! The registers that a vCPU starts with.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;
use vmm_sys_util::errno;

use super::layout::{FLAT_LOAD, FLAT_STACK_SIZE, FLAT_STACK_TOP};

/// The CPU mode that a guest is entered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode.
    Real,
    /// 64-bit long mode, ring 0, with the page tables at this address.
    Long(GuestAddress),
}

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// Segment types.
const CODE_ACCESSED: u8 = 0b1011;
const DATA_ACCESSED: u8 = 0b0011;
const TSS_BUSY: u8 = 0b1011;

/// A flat segment of ring 0.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    let code = type_ == CODE_ACCESSED;
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: code.into(),
        db: (!code).into(),
        ..Default::default()
    }
}

fn long_sregs(mut sregs: kvm_sregs, page_tables: GuestAddress) -> kvm_sregs {
    sregs.cs = flat(0x8, CODE_ACCESSED);
    let data = flat(0x10, DATA_ACCESSED);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: TSS_BUSY, present: 1, ..Default::default() };
    // No tables: the segments are loaded already, and an exception shuts the CPU down.
    (sregs.gdt.base, sregs.gdt.limit) = (0, 0);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0_PG | CR0_NE | CR0_ET | CR0_MP | CR0_PE;
    sregs.cr3 = page_tables.0;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

fn real_sregs(mut sregs: kvm_sregs) -> kvm_sregs {
    let paragraph = (FLAT_LOAD.0 >> 4) as u16;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        segment.selector = paragraph;
        segment.base = FLAT_LOAD.0;
    }
    sregs.ss.selector = 0;
    sregs.ss.base = 0;
    sregs
}

fn flat_regs(mode: Mode, index: u32) -> kvm_regs {
    let stack = FLAT_STACK_TOP.0 - u64::from(index) * FLAT_STACK_SIZE;
    let (rip, rsp) = match mode {
        // Offsets in segments of 64 KiB; the stack of vCPU 0 begins by wrapping from 0 to 0xfffe.
        Mode::Real => (0, stack & 0xffff),
        Mode::Long(_) => (FLAT_LOAD.0, stack),
    };
    kvm_regs { rip, rsp, rdi: u64::from(index), rflags: RFLAGS, ..Default::default() }
}

/// Sets the registers with which vCPU `index` enters a flat program: at [`FLAT_LOAD`], with its index in
/// RDI (DI) and its stack below the program. In real mode CS, DS and ES begin at the program.
///
/// # Errors
/// What KVM says to KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_REGS or KVM_SET_FPU.
pub fn set_up_flat(vcpu: &VcpuFd, mode: Mode, index: u32) -> Result<(), errno::Error> {
    let sregs = vcpu.get_sregs()?;
    let sregs = match mode {
        Mode::Real => real_sregs(sregs),
        Mode::Long(page_tables) => long_sregs(sregs, page_tables),
    };
    vcpu.set_sregs(&sregs)?;
    // The state after FNINIT, and SSE's exceptions masked.
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    vcpu.set_regs(&flat_regs(mode, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_has_its_own_stack_and_knows_its_index() {
        let long = |i| flat_regs(Mode::Long(GuestAddress(0x1000)), i);
        assert_eq!((long(0).rip, long(0).rsp, long(0).rdi), (0x1_0000, 0x1_0000, 0));
        assert_eq!((long(63).rsp, long(63).rdi), (0x1_0000 - 63 * 0x100, 63));
        let real = |i| flat_regs(Mode::Real, i);
        assert_eq!((real(0).rip, real(0).rsp), (0, 0));
        assert_eq!((real(1).rip, real(1).rsp, real(1).rdi), (0, 0xff00, 1));
    }

    #[test]
    fn real_mode_enters_at_1000_0000() {
        let sregs = real_sregs(kvm_sregs::default());
        assert_eq!((sregs.cs.selector, sregs.cs.base), (0x1000, 0x1_0000));
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), 0);
    }
}
