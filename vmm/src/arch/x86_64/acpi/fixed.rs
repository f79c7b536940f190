//! The tables of fixed layout: FADT and MADT.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use devices::acpi_power;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, table};
use crate::arch::x86_64::layout::{ACPI_POWER, IOAPIC, LAPIC};

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11). The flag that there is an 8042 is not set: the
/// controller is good for resets only, and a kernel that believes in a keyboard waits for its answers.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_MSI: u16 = 1 << 3;
const NO_CMOS_RTC: u16 = 1 << 5;

/// A register of the power device.
fn power_register(offset: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, ACPI_POWER + offset)
}

/// The Fixed ACPI Description Table (ACPI 6.5, 5.2.9).
pub fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // Whatever buttons and wake-up timers there were, they would not be in fixed registers.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_MSI | NO_CMOS_RTC).into();
    fadt.reset_reg = power_register(acpi_power::RESET);
    fadt.reset_value = acpi_power::RESET_VALUE;
    fadt.sleep_control_reg = power_register(acpi_power::SLEEP_CONTROL);
    fadt.sleep_status_reg = power_register(acpi_power::SLEEP_STATUS);
    fadt.finalize()
}

/// Interrupt controller structures (ACPI 6.5, table 5.21).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
/// The machine has a PC's pair of 8259 interrupt controllers as well.
const PCAT_COMPAT: u32 = 1;

/// The Multiple APIC Description Table (ACPI 6.5, 5.2.12). There are no interrupt source overrides: KVM's
/// default routing connects interrupt n, edge-triggered and active high where it is a PC's, to pin n of the
/// I/O APIC.
pub fn madt(vcpus: u32) -> Sdt {
    const REVISION: u8 = 5;
    let mut body = Vec::new();
    body.extend_from_slice(&(LAPIC.0 as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for vcpu in 0..vcpus {
        // At most 64, so the numbers are bytes: that of the processor, that of its APIC, enabled.
        body.extend_from_slice(&[LOCAL_APIC, 8, vcpu as u8, vcpu as u8, 1, 0, 0, 0]);
    }
    // Number 0, as KVM's says of itself, and interrupts from 0 on.
    body.extend_from_slice(&[IO_APIC, 12, 0, 0]);
    body.extend_from_slice(&(IOAPIC.0 as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // On all processors, with the polarity and trigger mode of the bus, LINT1.
    body.extend_from_slice(&[LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    table(*b"APIC", REVISION, &body)
}
