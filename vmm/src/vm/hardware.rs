//! What a machine consists of besides its vCPUs and memory: interrupt controllers, and a PC's devices.

use std::sync::Arc;

use devices::acpi_power::{self, Request};
use devices::stats::{
    AcpiPowerCounters, AcpiPowerStats, ExitPortCounters, ExitPortStats, I8042Counters, I8042Stats,
    PvpanicCounters, PvpanicStats, SerialCounters, SerialInterrupt, SerialInterruptStats,
    SerialStats,
};
use devices::trigger::EventFdTrigger;
use devices::{AcpiPower, ExitPort, I8042, Pvpanic, SerialPort, i8042, pvpanic, serial};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::{VmError, host, kvm};
use crate::arch::x86_64::layout;
use crate::bus::{Devices, Space};
use crate::console::{Com, Output};
use crate::lifecycle::{Ending, Lifecycle, MAX_STATUS, Reset};
use crate::tree::MachineTree;

/// Makes KVM emulate a PC's interrupt controllers and timer, before there are vCPUs.
pub fn make_interrupt_controllers(fd: &VmFd) -> Result<(), VmError> {
    fd.create_irq_chip().map_err(kvm("interrupt controllers (KVM_CREATE_IRQCHIP)"))?;
    // Port 0x61 too, by which kernels measure their TSC against the timer.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    fd.create_pit2(pit).map_err(kvm("a timer (KVM_CREATE_PIT2)"))
}

fn event() -> Result<EventFd, VmError> {
    EventFd::new(EFD_NONBLOCK).map_err(host("an eventfd"))
}

/// COM1, and the event that says that it has room for input.
pub struct Com1 {
    pub port: Arc<Com>,
    pub room: EventFd,
}

impl Com1 {
    /// Puts COM1 on the bus. `interrupts` is the machine that it interrupts, if that has interrupt
    /// controllers.
    pub fn make(
        devices: &mut Devices,
        tree: &MachineTree,
        lifecycle: &Arc<Lifecycle>,
        console: bool,
        interrupts: Option<&VmFd>,
    ) -> Result<Self, VmError> {
        let output = if console {
            Output::stdout(lifecycle.clone()).map_err(host("the standard output"))?
        } else {
            Output::Discard
        };
        let source = tree.device("serial0")?;
        let counters = SerialCounters::new(source.add_values::<SerialStats>()?);
        let interrupt = match interrupts {
            Some(fd) => {
                let line = event()?;
                fd.register_irqfd(&line, layout::COM1_GSI)
                    .map_err(kvm("an interrupt of COM1 (KVM_IRQFD)"))?;
                let slot = source.add_values::<SerialInterruptStats>()?;
                SerialInterrupt::new(EventFdTrigger::new(line), slot)
            }
            None => SerialInterrupt::not_connected(),
        };
        let room = event()?;
        let trigger = EventFdTrigger::new(room.try_clone().map_err(host("an eventfd"))?);
        let port = Arc::new(SerialPort::new(interrupt, counters, output, trigger));
        devices.insert("serial0", Space::Port, layout::COM1, serial::REGISTERS, port.clone())?;
        Ok(Self { port, room })
    }
}

/// The device that ends a flat guest.
pub fn make_flat_devices(
    devices: &mut Devices,
    tree: &MachineTree,
    lifecycle: &Arc<Lifecycle>,
) -> Result<(), VmError> {
    let counters = ExitPortCounters::new(tree.add_device::<ExitPortStats>("exit0")?);
    let ends = lifecycle.clone();
    let exit = ExitPort::new(counters, move |status| {
        ends.end(if status <= MAX_STATUS {
            Ending::Exited(status)
        } else {
            Ending::BadStatus(status)
        });
    });
    devices.insert("exit0", Space::Port, layout::EXIT_PORT, 1, Arc::new(exit))?;
    Ok(())
}

/// The devices by which a kernel ends its machine.
pub fn make_kernel_devices(
    devices: &mut Devices,
    tree: &MachineTree,
    lifecycle: &Arc<Lifecycle>,
) -> Result<(), VmError> {
    let counters = I8042Counters::new(tree.add_device::<I8042Stats>("i8042")?);
    let ends = lifecycle.clone();
    let controller = I8042::new(counters, move || ends.end(Ending::Reset(Reset::I8042)));
    devices.insert("i8042", Space::Port, layout::I8042, i8042::PORTS, Arc::new(controller))?;

    let counters = PvpanicCounters::new(tree.add_device::<PvpanicStats>("pvpanic0")?);
    let ends = lifecycle.clone();
    let port = Pvpanic::new(counters, move || ends.end(Ending::Panicked));
    devices.insert("pvpanic0", Space::Port, layout::PVPANIC, pvpanic::REGISTERS, Arc::new(port))?;

    let counters = AcpiPowerCounters::new(tree.add_device::<AcpiPowerStats>("power0")?);
    let ends = lifecycle.clone();
    let power = AcpiPower::new(counters, move |request| {
        ends.end(match request {
            Request::Off => Ending::PoweredOff,
            Request::Reset => Ending::Reset(Reset::Acpi),
        });
    });
    let (base, length) = (layout::ACPI_POWER, acpi_power::REGISTERS);
    devices.insert("power0", Space::Port, base, length, Arc::new(power))?;
    Ok(())
}
