//! The Differentiated System Description Table: the devices that can not be found by probing, and the sleep
//! state that is power-off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::sdt::Sdt;
use devices::{acpi_power, pvpanic, serial};

use super::table;
use crate::arch::x86_64::layout::{COM1, COM1_GSI, MmioNode, PVPANIC};

/// `_STA`: present, enabled, shown, working (ACPI 6.5, 6.3.7).
const WORKING: u8 = 0xf;

pub fn dsdt(virtio: &[MmioNode]) -> Sdt {
    // Revision 2 or higher: integers have 64 bits.
    const REVISION: u8 = 2;
    let mut body = Vec::new();
    let off = acpi_power::SLEEP_TYPE_OFF;
    Name::new("_S5_".into(), &Package::new(vec![&off, &ZERO, &ZERO, &ZERO]))
        .to_aml_bytes(&mut body);
    let mut devices = Vec::new();
    com1(&mut devices);
    panic_port(&mut devices);
    for (index, node) in virtio.iter().enumerate() {
        virtio_mmio(index, node, &mut devices);
    }
    body.extend_from_slice(&Scope::raw("_SB_".into(), devices));
    table(*b"DSDT", REVISION, &body)
}

fn ports(base: u64, count: u64) -> IO {
    IO::new(base as u16, base as u16, 1, count as u8)
}

/// Edge-triggered, active high, not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn com1(aml: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            // A 16550A-compatible port.
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_STA".into(), &WORKING),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(COM1, serial::REGISTERS), &interrupt(COM1_GSI)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn panic_port(aml: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            // What Linux' pvpanic-mmio driver looks for; it takes ports as well as memory.
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_STA".into(), &WORKING),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(PVPANIC, pvpanic::REGISTERS)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn virtio_mmio(index: usize, node: &MmioNode, aml: &mut Vec<u8>) {
    // It lies in the gap below 4 GiB.
    let registers = Memory32Fixed::new(true, node.base as u32, node.size as u32);
    Device::new(
        format!("VR{index:02X}").as_str().into(),
        vec![
            // The identifier of virtio-mmio devices.
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_STA".into(), &WORKING),
            // Its accesses to memory are coherent.
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &interrupt(node.gsi)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}
