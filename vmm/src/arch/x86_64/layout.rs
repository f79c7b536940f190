//! Every guest-physical address, and why it is what it is.

use vm_memory::GuestAddress;

/// The BIOS data area's word with which an operating system tells the BIOS what kind of reset follows;
/// Linux sets it to [`WARM_RESET`] or 0 before every reset.
pub const RESET_FLAG: GuestAddress = GuestAddress(0x472);
/// The value of [`RESET_FLAG`] that means a warm reset.
pub const WARM_RESET: u16 = 0x1234;

/// The segment descriptors that a kernel is entered with, in the hole between the BIOS data area and the
/// page tables.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// The interrupt descriptors that a kernel is entered with: one, empty, so that an exception before the
/// kernel has its own shuts the CPU down.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x520);

/// Page tables that map the low 4 GiB to themselves: one level-4 table, one level-3 table and four
/// level-2 tables of 2 MiB pages. Below everything else, and above page 0, which stays unused so that
/// real-mode interrupt vectors and the BIOS data area are the guest's.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x1000);
/// End of the page tables.
pub const PAGE_TABLES_END: GuestAddress = GuestAddress(0x7000);

/// The boot parameters ("zero page") of a kernel.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Where the stack ends that a kernel is entered with. Kernels make their own at once.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x9000);
/// A kernel's command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// End of the room for a kernel's command line.
pub const CMDLINE_END: GuestAddress = GuestAddress(0x3_0000);
/// Where the memory below 1 MiB ends that a kernel may use: a PC's BIOS keeps its data above.
pub const LOW_MEMORY_END: GuestAddress = GuestAddress(0x9_fc00);
/// The ACPI tables, the root pointer first: where a PC's BIOS is, and where kernels look for it.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: GuestAddress = HIGH_MEMORY;
/// The least address that a kernel is loaded at.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// Where a flat program is loaded and entered: the first address past the first 64 KiB, so that a
/// real-mode segment begins there, and what is below can hold tables and stacks.
pub const FLAT_LOAD: GuestAddress = GuestAddress(0x1_0000);
/// Where the stack of vCPU 0 ends; that of vCPU i ends [`FLAT_STACK_SIZE`] × i lower.
pub const FLAT_STACK_TOP: GuestAddress = FLAT_LOAD;
/// Bytes of stack per vCPU.
pub const FLAT_STACK_SIZE: u64 = 0x100;

/// Most vCPUs: their stacks fill the 16 KiB below [`FLAT_STACK_TOP`].
pub const MAX_VCPUS: u32 = 64;

/// Where the gap in memory begins that is left for devices. KVM itself takes pages at its top, the
/// local APICs and the I/O APIC sit there, and 32-bit devices can only be there.
pub const MMIO_GAP: GuestAddress = GuestAddress(0xc000_0000);
/// Where memory goes on after the gap: at 4 GiB.
pub const MMIO_GAP_END: GuestAddress = GuestAddress(0x1_0000_0000);

/// The registers of the I/O APIC, as KVM has it.
pub const IOAPIC: GuestAddress = GuestAddress(0xfec0_0000);
/// The registers of each CPU's local APIC, as KVM has it.
pub const LAPIC: GuestAddress = GuestAddress(0xfee0_0000);

/// Three pages that KVM needs on older Intel CPUs to run real mode, inside the gap.
pub const KVM_TSS: GuestAddress = GuestAddress(0xfffb_d000);

/// The virtio devices' registers, a page for each, in the gap: below everything that KVM or the chipset
/// has there, and far above memory.
pub const VIRTIO_MMIO: GuestAddress = GuestAddress(0xd000_0000);
/// Bytes of address space per virtio device.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The interrupt (GSI) of the first virtio device; the next ones follow. Those below are a PC's timer,
/// keyboard, cascade and serial ports. There is no other device that has one of them.
pub const VIRTIO_GSI: u32 = 5;
/// The last interrupt line of the I/O APIC.
pub const LAST_GSI: u32 = 23;
/// Most virtio devices: one per interrupt line.
pub const MAX_VIRTIO: usize = (LAST_GSI - VIRTIO_GSI + 1) as usize;

/// Where one device's registers are in memory, and the interrupt that it raises: what the guest's tables
/// have to say of it. The interrupt is edge-triggered and active high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioNode {
    /// The first address.
    pub base: u64,
    /// Bytes of address space.
    pub size: u64,
    /// The interrupt line of the I/O APIC.
    pub gsi: u32,
}

impl MmioNode {
    /// Where virtio device `index` is, if there is room for so many.
    pub fn virtio(index: usize) -> Option<Self> {
        (index < MAX_VIRTIO).then(|| Self {
            base: VIRTIO_MMIO.0 + index as u64 * VIRTIO_MMIO_SIZE,
            size: VIRTIO_MMIO_SIZE,
            gsi: VIRTIO_GSI + index as u32,
        })
    }
}

/// COM1's ports, where every PC has it.
pub const COM1: u64 = 0x3f8;
/// COM1's interrupt, where every PC has it.
pub const COM1_GSI: u32 = 4;
/// The keyboard controller's ports, where every PC has it. Port 0x61 among them is the timer's, in KVM.
pub const I8042: u64 = 0x60;
/// The port by which a guest tells that it panics, where QEMU has it.
pub const PVPANIC: u64 = 0x505;
/// The ports of ACPI's sleep and reset registers.
pub const ACPI_POWER: u64 = 0x600;
/// The port that ends a flat guest; QEMU's `isa-debug-exit` is commonly put there.
pub const EXIT_PORT: u64 = 0xf4;

const _: () = {
    assert!(PAGE_TABLES_END.0 <= FLAT_STACK_TOP.0 - MAX_VCPUS as u64 * FLAT_STACK_SIZE);
    assert!(RESET_FLAG.0 + 2 <= BOOT_GDT.0 && BOOT_IDT.0 + 16 <= PAGE_TABLES.0);
    assert!(PAGE_TABLES_END.0 <= ZERO_PAGE.0 && ZERO_PAGE.0 + 0x1000 < BOOT_STACK_TOP.0);
    assert!(BOOT_STACK_TOP.0 <= CMDLINE.0 && CMDLINE_END.0 <= LOW_MEMORY_END.0);
    assert!(LOW_MEMORY_END.0 <= ACPI_TABLES.0 && ACPI_TABLES_END.0 <= HIGH_MEMORY.0);
    assert!(VIRTIO_MMIO.0 >= MMIO_GAP.0);
    assert!(VIRTIO_MMIO.0 + MAX_VIRTIO as u64 * VIRTIO_MMIO_SIZE <= IOAPIC.0);
    assert!(KVM_TSS.0 > MMIO_GAP.0 && KVM_TSS.0 + 0x3000 <= MMIO_GAP_END.0);
};

/// The ranges of `size` bytes of memory around the gap.
pub fn memory_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(MMIO_GAP.0);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((MMIO_GAP_END, size - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_devices_have_a_page_and_an_interrupt_each() {
        let node = |i| MmioNode::virtio(i).map(|node| (node.base, node.size, node.gsi));
        assert_eq!(node(0), Some((0xd000_0000, 0x1000, 5)));
        assert_eq!(node(18), Some((0xd001_2000, 0x1000, 23)));
        assert_eq!(node(19), None);
    }

    #[test]
    fn memory_leaves_the_gap_free() {
        const GIB: u64 = 1 << 30;
        assert_eq!(memory_ranges(GIB), [(GuestAddress(0), GIB)]);
        assert_eq!(memory_ranges(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        let above = memory_ranges(3 * GIB + 4096);
        assert_eq!(above, [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 4096)]);
    }
}
