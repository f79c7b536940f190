//! Page tables for guests that start in long mode.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::PAGE_TABLES;

const PAGE: u64 = 0x1000;
const ENTRIES: u64 = 512;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Maps the low 4 GiB to themselves with 2 MiB pages. Returns the address for CR3.
///
/// # Errors
/// If the memory does not reach [`PAGE_TABLES_END`](super::layout::PAGE_TABLES_END).
pub fn identity_map(memory: &GuestMemoryMmap) -> Result<GuestAddress, GuestMemoryError> {
    let pml4 = PAGE_TABLES.0;
    let pdpt = pml4 + PAGE;
    let directories = pdpt + PAGE;
    memory.write_obj((pdpt | PRESENT_WRITABLE).to_le(), GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = directories + gib * PAGE;
        let entry = directory | PRESENT_WRITABLE;
        memory.write_obj(entry.to_le(), GuestAddress(pdpt + gib * 8))?;
        let mut table = [0u8; PAGE as usize];
        for (i, entry) in (0..ENTRIES).zip(table.chunks_exact_mut(8)) {
            let page = ((gib * ENTRIES + i) << 21) | LARGE | PRESENT_WRITABLE;
            entry.copy_from_slice(&page.to_le_bytes());
        }
        memory.write_slice(&table, GuestAddress(directory))?;
    }
    Ok(PAGE_TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::PAGE_TABLES_END;

    #[test]
    fn every_address_below_4_gib_maps_to_itself() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let cr3 = identity_map(&memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let table = |entry: u64| {
            assert_eq!(entry & 0xfff, PRESENT_WRITABLE);
            let address = entry & !0xfff;
            assert!(address >= PAGE_TABLES.0 && address + PAGE <= PAGE_TABLES_END.0);
            address
        };
        for address in [0u64, 0x1_0000, 0x3fff_ffff, 0x4000_0000, 0xc000_1234, 0xffff_ffff] {
            let pdpt = table(read(cr3.0 + (address >> 39) * 8));
            let directory = table(read(pdpt + ((address >> 30) & 511) * 8));
            let page = read(directory + ((address >> 21) & 511) * 8);
            assert_eq!(page & 0xfff, LARGE | PRESENT_WRITABLE);
            assert_eq!((page & !0xfff) + (address & 0x1f_ffff), address);
        }
        assert_eq!(read(cr3.0 + 8), 0, "nothing is mapped above");
        assert_eq!(read(cr3.0 + PAGE + 4 * 8), 0, "nothing is mapped above");
        assert_eq!(read(PAGE_TABLES_END.0), 0, "nothing is written past the tables");
    }
}
