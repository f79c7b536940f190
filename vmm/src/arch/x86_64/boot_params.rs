//! The boot parameters ("zero page") of Linux' boot protocol: what a kernel is told of its memory, its
//! command line and its initial RAM disk (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestMemoryRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, CMDLINE, HIGH_MEMORY, LOW_MEMORY_END, ZERO_PAGE};

/// A boot loader without an assigned number. With 0, that of a boot loader too old for it, a kernel ignores
/// its RAM disk.
const LOADER_UNKNOWN: u8 = 0xff;

/// Types of ranges of memory.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the boot parameters: those that the kernel's image brought along in `header`, completed.
/// `initrd` is the RAM disk's address and size.
///
/// # Errors
/// If there is no memory where they are to be.
pub fn write(
    memory: &GuestMemoryMmap,
    header: setup_header,
    initrd: Option<(GuestAddress, u32)>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.cmd_line_ptr = CMDLINE.0 as u32;
    if let Some((address, size)) = initrd {
        // It lies below 4 GiB.
        params.hdr.ramdisk_image = address.0 as u32;
        params.hdr.ramdisk_size = size;
    }
    params.acpi_rsdp_addr = ACPI_TABLES.0;
    let map = memory_map(memory);
    params.e820_table[..map.len()].copy_from_slice(&map);
    params.e820_entries = map.len() as u8;
    memory.write_obj(params, ZERO_PAGE)
}

/// All memory is RAM but a PC's hole below 1 MiB, where there is memory too, with the ACPI tables in it.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<boot_e820_entry> {
    let entry =
        |from: u64, end: u64, kind| boot_e820_entry { addr: from, size: end - from, r#type: kind };
    let mut map = vec![
        entry(0, LOW_MEMORY_END.0, E820_RAM),
        entry(LOW_MEMORY_END.0, HIGH_MEMORY.0, E820_RESERVED),
    ];
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if end > HIGH_MEMORY.0 {
            map.push(entry(start.max(HIGH_MEMORY.0), end, E820_RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::memory_ranges;

    const MIB: u64 = 1 << 20;

    fn memory(size: u64) -> GuestMemoryMmap {
        let ranges: Vec<_> =
            memory_ranges(size).into_iter().map(|(at, size)| (at, size as usize)).collect();
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn map(size: u64) -> Vec<(u64, u64, u32)> {
        memory_map(&memory(size)).iter().map(|e| (e.addr, e.size, e.r#type)).collect()
    }

    #[test]
    fn the_map_has_the_hole_below_1_mib_and_the_gap_below_4_gib() {
        let low = [(0, 0x9_fc00, E820_RAM), (0x9_fc00, 0x6_0400, E820_RESERVED)];
        let with = |rest: &[(u64, u64, u32)]| [&low, rest].concat();
        assert_eq!(map(MIB), low);
        assert_eq!(map(512 * MIB), with(&[(MIB, 511 * MIB, E820_RAM)]));
        assert_eq!(
            map(5120 * MIB),
            with(&[(MIB, 3071 * MIB, E820_RAM), (4096 * MIB, 2048 * MIB, E820_RAM)])
        );
    }

    #[test]
    fn the_images_header_is_kept_and_completed() {
        let memory = memory(2 * MIB);
        let header = setup_header { version: 0x20f, init_size: 77, ..Default::default() };
        write(&memory, header, Some((GuestAddress(0x1f_f000), 5))).unwrap();
        let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
        let header = params.hdr;
        assert_eq!({ header.version }, 0x20f);
        assert_eq!({ header.init_size }, 77);
        assert_eq!({ header.type_of_loader }, 0xff);
        assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
        assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x1f_f000, 5));
        assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!(params.e820_entries, 3);
        // At the offsets of the protocol.
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x7206)).unwrap(), 0x20f);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x71e8)).unwrap(), 3);
    }

    #[test]
    fn without_a_ram_disk_there_is_none() {
        let memory = memory(2 * MIB);
        write(&memory, setup_header::default(), None).unwrap();
        let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
        assert_eq!(({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size }), (0, 0));
    }
}
