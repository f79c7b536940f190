//! What the guest's CPUID instruction says: what KVM supports, with the machine's own topology. All vCPUs
//! are cores of one package, with one thread each; a vCPU's number is the id of its local APIC.
//!
//! Leaves are those of Intel's Software Developer's Manual, volume 2A, and of AMD's Architecture
//! Programmer's Manual, volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_sys_util::fam;

/// Leaf 0: the vendor, in EBX, EDX and ECX.
const VENDOR: u32 = 0x0;
/// What EBX says there of AMD's CPUs, and of Hygon's, which are AMD's.
const AMD: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];
/// Leaf 1: features, and the local APIC's id.
const FEATURES: u32 = 0x1;
/// Leaf 4: caches, and by how many CPUs they are shared (Intel).
const CACHES: u32 = 0x4;
/// Leaves 0xb and 0x1f: the topology, level by level.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
/// Leaf 0x80000001: extended features.
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// Leaf 0x80000008: sizes; in ECX the number of cores (AMD).
const SIZES: u32 = 0x8000_0008;
/// Leaf 0x8000001d: caches, as leaf 4 has them (AMD).
const AMD_CACHES: u32 = 0x8000_001d;
/// Leaf 0x8000001e: ids of APIC, core and node (AMD).
const AMD_IDS: u32 = 0x8000_001e;
/// Leaf 0x80000026: the topology, level by level (AMD).
const AMD_TOPOLOGY: u32 = 0x8000_0026;

/// ECX of leaf 1: the local APIC's timer has a mode of TSC deadlines.
const TSC_DEADLINE: u32 = 1 << 24;
/// ECX of leaf 1: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// EDX of leaf 1: the package has several logical CPUs, and EBX says how many.
const HTT: u32 = 1 << 28;
/// ECX of leaf 0x80000001: the several logical CPUs are cores (AMD).
const CMP_LEGACY: u32 = 1 << 1;
/// Types of levels in the leaves of the topology.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// A machine, as far as CPUID speaks of it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether KVM's local APICs take TSC deadlines.
    pub tsc_deadline: bool,
}

/// What KVM supports, made to speak of vCPU `index` of a flat guest, which has no APIC to speak of.
pub fn for_flat(supported: &CpuId, index: u32) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            FEATURES => entry.ebx = (entry.ebx & 0x00ff_ffff) | (index << 24),
            TOPOLOGY | TOPOLOGY_V2 => entry.edx = index,
            _ => {}
        }
    }
    cpuid
}

/// What KVM supports, made to speak of vCPU `index` of a machine.
///
/// # Errors
/// If there are more entries than KVM takes.
pub fn for_vcpu(supported: &CpuId, machine: Machine, index: u32) -> Result<CpuId, fam::Error> {
    let Machine { vcpus, .. } = machine;
    // Bits of an APIC id that tell the cores of the package apart.
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    let supported = supported.as_slice();
    let is_amd = supported.iter().any(|e| e.function == VENDOR && AMD.contains(&e.ebx));
    let mut entries = Vec::with_capacity(supported.len() + 3);
    for entry in supported {
        let mut entry = *entry;
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0x0000_ffff | vcpus.next_power_of_two() << 16 | index << 24;
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, machine.tsc_deadline);
                set(&mut entry.edx, HTT, vcpus > 1);
            }
            CACHES | AMD_CACHES => share_cache(&mut entry, vcpus),
            EXTENDED_FEATURES if is_amd => set(&mut entry.ecx, CMP_LEGACY, vcpus > 1),
            // The APIC id's bits for cores, and the number of cores less one.
            SIZES if is_amd => entry.ecx = entry.ecx & 0xffff_0000 | core_bits << 12 | (vcpus - 1),
            // One thread a core, one node.
            AMD_IDS => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
            // Made anew below; whatever the host's topology is, it is not the guest's.
            TOPOLOGY | TOPOLOGY_V2 | AMD_TOPOLOGY => continue,
            _ => {}
        }
        entries.push(entry);
    }
    let has = |function| supported.iter().any(|entry| entry.function == function);
    for function in [TOPOLOGY, TOPOLOGY_V2, AMD_TOPOLOGY].into_iter().filter(|f| has(*f)) {
        entries.extend(topology(function, vcpus, core_bits, index));
    }
    CpuId::from_entries(&entries)
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !bit | if on { bit } else { 0 };
}

/// Caches of the first two levels are a core's own, the others the package's. Bits 25–14 of EAX are the
/// number of APIC ids that share the cache, bits 31–26 (Intel) the number of cores, both less one.
fn share_cache(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let ids = vcpus.next_power_of_two();
    let sharing = if entry.eax >> 5 & 0x7 <= 2 { 1 } else { ids };
    entry.eax = entry.eax & 0x0000_3fff | (sharing - 1) << 14;
    if entry.function == CACHES {
        entry.eax |= (ids - 1) << 26;
    }
}

/// The levels: one thread a core, all cores in the package, and no more. EAX is the number of bits of the
/// x2APIC id below the next level, EBX the number of CPUs in this one, EDX the x2APIC id.
fn topology(function: u32, vcpus: u32, core_bits: u32, index: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |level: u32, kind: u32, bits: u32, cpus: u32| kvm_cpuid_entry2 {
        function,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: cpus,
        ecx: kind << 8 | level,
        edx: index,
        ..Default::default()
    };
    // AMD's leaf calls its levels core and complex, but they have the same numbers.
    [level(0, LEVEL_THREAD, 0, 1), level(1, LEVEL_CORE, core_bits, vcpus), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn registers(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
        let entry = cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index));
        let entry = entry.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"));
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    #[test]
    fn every_flat_vcpu_has_its_own_apic_id_and_all_else_is_as_supported() {
        let entry = |function, ebx, edx| entry(function, [0, ebx, 0, edx]);
        let host =
            CpuId::from_entries(&[entry(0, 1, 2), entry(1, 0xff12_3456, 7), entry(0xb, 5, 99)])
                .unwrap();
        let guest = for_flat(&host, 3);
        let guest = guest.as_slice();
        assert_eq!((guest[0].ebx, guest[0].edx), (1, 2));
        assert_eq!((guest[1].ebx, guest[1].edx), (0x0312_3456, 7));
        assert_eq!((guest[2].ebx, guest[2].edx), (5, 3));
    }

    const AMD_VENDOR: kvm_cpuid_entry2 = kvm_cpuid_entry2 {
        function: VENDOR,
        index: 0,
        flags: 0,
        eax: 0x1f,
        ebx: AMD[0],
        ecx: 2,
        edx: 3,
        padding: [0; 3],
    };

    #[test]
    fn all_vcpus_are_cores_of_one_package() {
        let host = CpuId::from_entries(&[
            AMD_VENDOR,
            entry(0x1, [9, 0xff12_3456, TSC_DEADLINE | 1, HTT | 2]),
            // The host's: 16 threads share its second level, 32 its third.
            entry(0x4, [0xfc03_c043, 1, 2, 3]),
            entry(0x1f, [7, 7, 7, 7]),
            entry(0xb, [7, 7, 7, 7]),
            entry(0x8000_0001, [1, 2, 0, 4]),
            entry(0x8000_0008, [1, 2, 0x0001_703f, 4]),
            entry(0x8000_001d, [0x0007_c163, 1, 2, 3]),
            entry(0x8000_001e, [77, 0x177, 0x307, 0]),
        ])
        .unwrap();
        let machine = Machine { vcpus: 6, tsc_deadline: true };
        let guest = for_vcpu(&host, machine, 5).unwrap();
        let of = |function| registers(&guest, function, 0);
        assert_eq!(of(0x0), [0x1f, AMD[0], 2, 3]);
        assert_eq!(of(0x1), [9, 0x0508_3456, HYPERVISOR | TSC_DEADLINE | 1, HTT | 2]);
        // Level 2 is a core's own; there are ids for 8 cores.
        assert_eq!(of(0x4), [7 << 26 | 0x43, 1, 2, 3]);
        assert_eq!(of(0x8000_0001), [1, 2, CMP_LEGACY, 4]);
        assert_eq!(of(0x8000_0008), [1, 2, 0x0001_3005, 4]);
        // Level 3 is shared by all.
        assert_eq!(of(0x8000_001d), [7 << 14 | 0x163, 1, 2, 3]);
        assert_eq!(of(0x8000_001e), [5, 5, 0, 0]);
        for leaf in [0xb, 0x1f] {
            assert_eq!(registers(&guest, leaf, 0), [0, 1, 0x100, 5]);
            assert_eq!(registers(&guest, leaf, 1), [3, 6, 0x201, 5]);
            assert_eq!(registers(&guest, leaf, 2), [0, 0, 2, 5]);
        }
        // A leaf that the host does not have is not made up.
        assert!(guest.as_slice().iter().all(|entry| entry.function != AMD_TOPOLOGY));
        assert_eq!(guest.as_slice().len(), 7 + 2 * 3);
    }

    #[test]
    fn a_single_vcpu_is_no_multiprocessor() {
        let host = CpuId::from_entries(&[
            AMD_VENDOR,
            entry(0x1, [9, 0xff12_3456, TSC_DEADLINE, HTT]),
            entry(0xb, [7, 7, 7, 7]),
            entry(0x8000_0001, [0, 0, CMP_LEGACY, 0]),
            entry(0x8000_0008, [0, 0, 0x703f, 0]),
        ])
        .unwrap();
        let guest = for_vcpu(&host, Machine { vcpus: 1, tsc_deadline: false }, 0).unwrap();
        assert_eq!(registers(&guest, 0x1, 0), [9, 0x0001_3456, HYPERVISOR, 0]);
        assert_eq!(registers(&guest, 0xb, 1), [0, 1, 0x201, 0]);
        assert_eq!(registers(&guest, 0x8000_0001, 0)[2], 0);
        assert_eq!(registers(&guest, 0x8000_0008, 0)[2], 0);
    }

    #[test]
    fn leaves_that_only_amd_has_are_left_alone_elsewhere() {
        let host = [entry(0x8000_0001, [1, 2, 3, 4]), entry(0x8000_0008, [1, 2, 0, 4])];
        let machine = Machine { vcpus: 4, tsc_deadline: false };
        let guest = for_vcpu(&CpuId::from_entries(&host).unwrap(), machine, 1).unwrap();
        assert_eq!(guest.as_slice(), host);
    }
}
