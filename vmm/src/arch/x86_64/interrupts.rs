//! Interrupt controllers: the boot processor's local APIC, as a PC's firmware leaves it.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

/// Entries of the local vector table for the local interrupt pins.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes, bits 10–8 of an entry; bit 16, which masks the entry, is clear.
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_EXTINT: u32 = 0b111 << 8;

/// Connects the local interrupt pins of the boot processor: LINT0 to the 8259 interrupt controllers, LINT1 to
/// non-maskable interrupts. Other processors reset theirs when they are started.
///
/// # Errors
/// What KVM says to KVM_GET_LAPIC or KVM_SET_LAPIC.
pub fn connect_local_pins(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_register(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_register(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)
}

fn set_register(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (byte, new) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *byte = new as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_four_bytes_and_no_more() {
        let mut lapic = kvm_lapic_state::default();
        set_register(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
        assert_eq!(lapic.regs.iter().filter(|byte| **byte != 0).count(), 1);
        assert_eq!(lapic.regs[0x351], 7);
        set_register(&mut lapic, LVT_LINT1, 0xff02_0304);
        assert_eq!(
            lapic.regs[0x360..0x365].iter().map(|b| *b as u8).collect::<Vec<_>>(),
            [4, 3, 2, 0xff, 0]
        );
    }
}
