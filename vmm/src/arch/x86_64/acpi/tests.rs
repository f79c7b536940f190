//! The tables as a kernel reads them, and as ACPICA's compiler does.

use std::collections::HashMap;
use std::process::Command;

use vm_memory::GuestAddress;

use super::*;
use crate::arch::x86_64::layout::{ACPI_POWER, MAX_VCPUS, MAX_VIRTIO};

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut number = [0; 8];
    number[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(number)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn virtio(count: usize) -> Vec<MmioNode> {
    (0..count).map(|i| MmioNode::virtio(i).unwrap()).collect()
}

/// The tables by signature, found as a kernel finds them.
fn parse(all: &[u8]) -> HashMap<[u8; 4], Vec<u8>> {
    let at = |address: u64| &all[(address - ACPI_TABLES.0) as usize..];
    assert_eq!(&all[..8], b"RSD PTR ");
    assert_eq!(sum(&all[..20]), 0, "the checksum of the first version");
    assert_eq!(number(all, 20, 4), 36, "the length");
    assert_eq!(sum(&all[..36]), 0, "the whole checksum");
    let table = |address: u64| {
        assert_eq!(address % 4, 0);
        let bytes = at(address);
        let bytes = &bytes[..number(bytes, 4, 4) as usize];
        assert_eq!(sum(bytes), 0, "the checksum of {:?}", &bytes[..4]);
        assert_eq!(&bytes[10..16], b"STATFS");
        (bytes[..4].try_into().unwrap(), bytes.to_vec())
    };
    let (signature, xsdt) = table(number(all, 24, 8));
    assert_eq!(&signature, b"XSDT");
    let mut tables: HashMap<_, _> =
        xsdt[36..].chunks_exact(8).map(|entry| table(number(entry, 0, 8))).collect();
    let dsdt = table(number(&tables[b"FACP"], 140, 8));
    tables.extend([(signature, xsdt), dsdt]);
    tables
}

#[test]
fn the_madt_has_every_vcpu_and_one_io_apic() {
    for vcpus in [1, 4, 64] {
        let tables = parse(&super::tables(vcpus, &[]));
        let madt = &tables[b"APIC"];
        assert_eq!((number(madt, 36, 4), number(madt, 40, 4)), (0xfee0_0000, 1));
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            let (entry, after) = rest.split_at(rest[1].into());
            entries.push(entry);
            rest = after;
        }
        let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        let expected: Vec<_> = (0..vcpus as u8).map(|i| [0, 8, i, i, 1, 0, 0, 0]).collect();
        assert_eq!(of(0).map(|entry| entry.to_vec()).collect::<Vec<_>>(), expected);
        assert_eq!(of(1).collect::<Vec<_>>(), [&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]]);
        // All processors, LINT1.
        assert_eq!(of(4).collect::<Vec<_>>(), [&[4, 6, 0xff, 0, 0, 1]]);
        assert_eq!(entries.len(), vcpus as usize + 2);
    }
}

#[test]
fn the_fadt_says_how_to_power_off_and_to_reset() {
    let tables = parse(&super::tables(1, &[]));
    let fadt = &tables[b"FACP"];
    assert_eq!(fadt[8], 6, "the revision");
    let flags = number(fadt, 112, 4);
    for bit in [10, 20] {
        assert_ne!(flags & 1 << bit, 0, "there is a reset register, and nothing of fixed hardware");
    }
    // No 8042, VGA, MSI and RTC, but other legacy devices.
    assert_eq!(number(fadt, 109, 2), 0b10_1101);
    // System I/O, 8 bits wide, byte access.
    let register = |at: usize| (fadt[at..at + 4].to_vec(), number(fadt, at + 4, 8));
    assert_eq!(register(116), (vec![1, 8, 0, 1], ACPI_POWER + 2));
    assert_eq!(fadt[128], 1, "what is to be written there");
    assert_eq!(register(244), (vec![1, 8, 0, 1], ACPI_POWER));
    assert_eq!(register(256), (vec![1, 8, 0, 1], ACPI_POWER + 1));
}

#[test]
fn the_most_devices_fit() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    write(&memory, MAX_VCPUS, &virtio(MAX_VIRTIO)).unwrap();
    let mut found = [0; 8];
    memory.read_slice(&mut found, ACPI_TABLES).unwrap();
    assert_eq!(&found, b"RSD PTR ");
}

/// Runs iasl in a directory; what it says.
fn iasl(directory: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output().expect(
        "this test needs ACPICA's compiler: as root, `apt-get install acpica-tools` (Debian)",
    );
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}

#[test]
fn acpicas_compiler_has_nothing_against_the_tables() {
    for (vcpus, devices) in [(1, 0), (4, 4), (64, MAX_VIRTIO)] {
        let directory = tempfile::tempdir().unwrap();
        for (signature, bytes) in parse(&super::tables(vcpus, &virtio(devices))) {
            let name = String::from_utf8(signature.to_vec()).unwrap();
            std::fs::write(directory.path().join(format!("{name}.aml")), bytes).unwrap();
            let said = iasl(directory.path(), &["-d", &format!("{name}.aml")]);
            let source = std::fs::read_to_string(directory.path().join(format!("{name}.dsl")));
            let source = source.unwrap();
            for text in [&said, &source] {
                let lower = text.to_lowercase();
                for bad in ["error", "warning", "invalid", "unknown", "incorrect"] {
                    assert!(!lower.contains(bad), "{name}, {vcpus} vCPUs: {bad} in\n{text}");
                }
            }
            if signature == *b"DSDT" {
                let devices_found = source.matches("\"LNRO0005\"").count();
                assert_eq!(devices_found, devices, "{source}");
                assert!(source.contains("EisaId (\"PNP0501\")") && source.contains("\"QEMU0001\""));
                // The compiler looks at more than the disassembler: names, resources, methods.
                let said = iasl(directory.path(), &["-p", "again", "DSDT.dsl"]);
                assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
            }
        }
    }
}
