//! ACPI tables: how a kernel finds the CPUs, interrupt controllers and devices of its machine, and how it
//! powers off and resets it.
//!
//! The machine is "hardware-reduced" (ACPI 6.5, 4.1): it has none of a PC's fixed power management
//! registers, only the registers for sleep and reset that [`AcpiPower`](devices::AcpiPower) has. There is
//! no more than a kernel needs, in the order RSDP, DSDT, FADT, MADT, XSDT.

mod dsdt;
mod fixed;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, ACPI_TABLES_END, MmioNode};

/// Who made the tables.
const OEM_ID: [u8; 6] = *b"STATFS";
const OEM_TABLE_ID: [u8; 8] = *b"STATSVMM";
const OEM_REVISION: u32 = 1;

/// The tables of a machine with this many vCPUs and these virtio devices, as they are to lie in memory
/// from [`ACPI_TABLES`] on.
pub fn tables(vcpus: u32, virtio: &[MmioNode]) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let address = ACPI_TABLES.0 + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let dsdt = append(&dsdt::dsdt(virtio));
    let fadt = append(&fixed::fadt(dsdt));
    let madt = append(&fixed::madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// Writes the tables into the guest's memory.
///
/// # Errors
/// If the memory does not reach [`ACPI_TABLES_END`], or there are more devices than there is room for:
/// [`MAX_VIRTIO`](super::layout::MAX_VIRTIO) fit.
pub fn write(
    memory: &GuestMemoryMmap,
    vcpus: u32,
    virtio: &[MmioNode],
) -> Result<(), GuestMemoryError> {
    let tables = tables(vcpus, virtio);
    let room = (ACPI_TABLES_END.0 - ACPI_TABLES.0) as usize;
    if tables.len() > room {
        return Err(GuestMemoryError::PartialBuffer { expected: tables.len(), completed: room });
    }
    memory.write_slice(&tables, ACPI_TABLES)
}

/// A table with this signature and revision, and this after its header.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER: u32 = 36;
    let mut sdt = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt
}

#[cfg(test)]
mod tests;
