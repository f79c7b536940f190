//! The registers that a vCPU starts with.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::errno;

use super::layout::{
    BOOT_GDT, BOOT_IDT, BOOT_STACK_TOP, FLAT_LOAD, FLAT_STACK_SIZE, FLAT_STACK_TOP, ZERO_PAGE,
};

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

/// What a vCPU that starts in long mode has by way of descriptors.
struct Descriptors {
    code: u16,
    data: u16,
    gdt: kvm_dtable,
    idt: kvm_dtable,
}

/// No tables: the segments are loaded already, and an exception shuts the CPU down.
const FLAT_DESCRIPTORS: Descriptors = Descriptors {
    code: 0x8,
    data: 0x10,
    gdt: kvm_dtable { base: 0, limit: 0, padding: [0; 3] },
    idt: kvm_dtable { base: 0, limit: 0, padding: [0; 3] },
};

/// What a kernel is entered with: the 64-bit boot protocol wants these selectors, and a table that has
/// them.
const BOOT_DESCRIPTORS: Descriptors = Descriptors {
    code: 0x10,
    data: 0x18,
    gdt: kvm_dtable { base: BOOT_GDT.0, limit: (8 * GDT.len() - 1) as u16, padding: [0; 3] },
    idt: kvm_dtable { base: BOOT_IDT.0, limit: 15, padding: [0; 3] },
};

/// Two empty descriptors, then [`flat`] code and data in the form that a table has.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes the tables that a kernel is entered with.
///
/// # Errors
/// If there is no memory where they are to be.
pub fn write_boot_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (descriptor, at) in GDT.into_iter().zip((BOOT_GDT.0..).step_by(8)) {
        memory.write_obj(descriptor.to_le(), GuestAddress(at))?;
    }
    memory.write_obj(0u128, BOOT_IDT)
}

fn long_sregs(
    mut sregs: kvm_sregs,
    page_tables: GuestAddress,
    descriptors: Descriptors,
) -> kvm_sregs {
    sregs.cs = flat(descriptors.code, CODE_ACCESSED);
    let data = flat(descriptors.data, DATA_ACCESSED);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: TSS_BUSY, present: 1, ..Default::default() };
    (sregs.gdt, sregs.idt) = (descriptors.gdt, descriptors.idt);
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

/// The state after FNINIT, and SSE's exceptions masked.
fn set_fpu(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
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
        Mode::Long(page_tables) => long_sregs(sregs, page_tables, FLAT_DESCRIPTORS),
    };
    vcpu.set_sregs(&sregs)?;
    set_fpu(vcpu)?;
    vcpu.set_regs(&flat_regs(mode, index))
}

/// Sets the registers with which the boot processor enters a kernel in 64-bit mode at `entry`, as Linux'
/// boot protocol has it (`Documentation/arch/x86/boot.rst`, "64-bit boot protocol"): the boot parameters'
/// address in RSI. Other processors are left as they are: they wait for the kernel to start them.
///
/// # Errors
/// What KVM says to KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_REGS or KVM_SET_FPU.
pub fn set_up_kernel(
    vcpu: &VcpuFd,
    page_tables: GuestAddress,
    entry: GuestAddress,
) -> Result<(), errno::Error> {
    vcpu.set_sregs(&long_sregs(vcpu.get_sregs()?, page_tables, BOOT_DESCRIPTORS))?;
    set_fpu(vcpu)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsi: ZERO_PAGE.0,
        rsp: BOOT_STACK_TOP.0,
        rflags: RFLAGS,
        ..Default::default()
    })
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

    #[test]
    fn the_table_describes_the_segments_that_are_loaded() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        write_boot_tables(&memory).unwrap();
        let sregs = long_sregs(kvm_sregs::default(), GuestAddress(0x1000), BOOT_DESCRIPTORS);
        for segment in [sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs] {
            let at = sregs.gdt.base + u64::from(segment.selector);
            assert!(u64::from(segment.selector) + 7 <= u64::from(sregs.gdt.limit));
            let descriptor: u64 = memory.read_obj(GuestAddress(at)).unwrap();
            let bits = |from: u32, count: u32| descriptor >> from & ((1 << count) - 1);
            assert_eq!(bits(0, 16) | bits(48, 4) << 16, 0xf_ffff, "the limit, in pages");
            assert_eq!(bits(16, 24) | bits(56, 8) << 24, segment.base);
            let expected = [segment.type_, segment.s, segment.dpl, segment.present];
            assert_eq!(
                [bits(40, 4), bits(44, 1), bits(45, 2), bits(47, 1)],
                expected.map(u64::from)
            );
            let expected = [segment.l, segment.db, segment.g];
            assert_eq!([bits(53, 1), bits(54, 1), bits(55, 1)], expected.map(u64::from));
        }
        // The boot protocol's selectors.
        assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
        assert_eq!(memory.read_obj::<u64>(BOOT_GDT).unwrap(), 0);
    }
}
