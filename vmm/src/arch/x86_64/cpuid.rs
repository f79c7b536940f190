//! What the guest's CPUID instruction says.

use kvm_bindings::CpuId;

/// Leaf 1: features; EBX bits 24–31 are the local APIC's id.
const FEATURES: u32 = 0x1;
/// Leaves of the topology: EDX is the local APIC's id.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;

/// What KVM supports, made to speak of vCPU `index`.
pub fn for_vcpu(supported: &CpuId, index: u32) -> CpuId {
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

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn every_vcpu_has_its_own_apic_id_and_all_else_is_as_supported() {
        let entry =
            |function, ebx, edx| kvm_cpuid_entry2 { function, ebx, edx, ..Default::default() };
        let host =
            CpuId::from_entries(&[entry(0, 1, 2), entry(1, 0xff12_3456, 7), entry(0xb, 5, 99)])
                .unwrap();
        let guest = for_vcpu(&host, 3);
        let guest = guest.as_slice();
        assert_eq!((guest[0].ebx, guest[0].edx), (1, 2));
        assert_eq!((guest[1].ebx, guest[1].edx), (0x0312_3456, 7));
        assert_eq!((guest[2].ebx, guest[2].edx), (5, 3));
    }
}
