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
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::{VmError, host, kvm};
use super::vcpus::Start;
use crate::arch::x86_64::{acpi, cpuid, layout};
use crate::bus::{Devices, Space};
use crate::console::{Com, Lost, Output};
use crate::flat::FlatProgram;
use crate::hypervisor::Hypervisor;
use crate::kernel::Kernel;
use crate::lifecycle::{Ending, Lifecycle, MAX_STATUS, Reset};
use crate::tree::MachineTree;
use crate::virtio::{self, VirtioConfig, VirtioDevices};

/// A machine that gets its hardware.
pub struct Board<'a> {
    pub hypervisor: &'a Hypervisor,
    pub fd: &'a VmFd,
    pub memory: &'a GuestMemoryMmap,
    pub tree: &'a MachineTree,
    pub lifecycle: &'a Arc<Lifecycle>,
}

/// The hardware of a machine, with what it runs in its memory.
pub struct Hardware {
    pub devices: Devices,
    pub com1: Com1,
    pub virtio: Option<VirtioDevices>,
    /// How its vCPUs start.
    pub start: Start,
}

/// COM1, with the event that says that it has room for input.
pub struct Com1 {
    pub port: Arc<Com>,
    pub room: EventFd,
    /// What its output lost.
    pub lost: Arc<Lost>,
}

impl Board<'_> {
    /// Makes a machine that runs a flat program, and can not do much else.
    pub fn make_flat(&self, program: &FlatProgram, console: bool) -> Result<Hardware, VmError> {
        let start = Start::Flat(program.load(self.memory)?);
        let mut devices = Devices::new();
        let com1 = self.add_com1(&mut devices, console, SerialLine::NotConnected)?;
        let counters = ExitPortCounters::new(self.tree.add_device::<ExitPortStats>("exit0")?);
        let ends = self.lifecycle.clone();
        let exit = ExitPort::new(counters, move |status| {
            ends.end(if status <= MAX_STATUS {
                Ending::Exited(status)
            } else {
                Ending::BadStatus(status)
            });
        });
        devices.insert("exit0", Space::Port, layout::EXIT_PORT, 1, Arc::new(exit))?;
        Ok(Hardware { devices, com1, virtio: None, start })
    }

    /// Makes a machine with so many vCPUs that is enough of a PC for a kernel.
    pub fn make_kernel(
        &self,
        kernel: &Kernel,
        virtio: &VirtioConfig,
        vcpus: u32,
        console: bool,
    ) -> Result<Hardware, VmError> {
        self.hypervisor.check_for_kernel().map_err(VmError::Capability)?;
        self.make_interrupt_controllers()?;
        let entry = kernel.load(self.memory)?;
        let mut devices = Devices::new();
        let com1 = self.add_com1(&mut devices, console, SerialLine::Interrupt)?;
        self.add_ends(&mut devices)?;
        let virtio =
            virtio::attach(self.fd, self.memory, &mut devices, self.tree, virtio, self.lifecycle)?;
        let nodes: Vec<_> = virtio.nodes().collect();
        acpi::write(self.memory, vcpus, &nodes).map_err(VmError::Acpi)?;
        let machine = cpuid::Machine { vcpus, tsc_deadline: self.hypervisor.has_tsc_deadline() };
        let start = Start::Kernel { entry, machine };
        Ok(Hardware { devices, com1, virtio: Some(virtio), start })
    }

    /// Makes KVM emulate a PC's interrupt controllers and timer, before there are vCPUs.
    fn make_interrupt_controllers(&self) -> Result<(), VmError> {
        self.fd.create_irq_chip().map_err(kvm("interrupt controllers (KVM_CREATE_IRQCHIP)"))?;
        // Port 0x61 too, by which kernels measure their TSC against the timer.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(kvm("a timer (KVM_CREATE_PIT2)"))
    }

    fn add_com1(
        &self,
        devices: &mut Devices,
        console: bool,
        line: SerialLine,
    ) -> Result<Com1, VmError> {
        let lost = Arc::<Lost>::default();
        let output = if console {
            Output::stdout(self.lifecycle.clone(), lost.clone())
                .map_err(host("the standard output"))?
        } else {
            Output::Discard
        };
        let source = self.tree.device("serial0")?;
        let counters = SerialCounters::new(source.add_values::<SerialStats>()?);
        let interrupt = match line {
            SerialLine::NotConnected => SerialInterrupt::not_connected(),
            SerialLine::Interrupt => {
                let line = event()?;
                self.fd
                    .register_irqfd(&line, layout::COM1_GSI)
                    .map_err(kvm("an interrupt of COM1 (KVM_IRQFD)"))?;
                let slot = source.add_values::<SerialInterruptStats>()?;
                SerialInterrupt::new(EventFdTrigger::new(line), slot)
            }
        };
        let room = event()?;
        let trigger = EventFdTrigger::new(room.try_clone().map_err(host("an eventfd"))?);
        let port = Arc::new(SerialPort::new(interrupt, counters, output, trigger));
        devices.insert("serial0", Space::Port, layout::COM1, serial::REGISTERS, port.clone())?;
        Ok(Com1 { port, room, lost })
    }

    /// Adds the devices by which a kernel ends its machine.
    fn add_ends(&self, devices: &mut Devices) -> Result<(), VmError> {
        let counters = I8042Counters::new(self.tree.add_device::<I8042Stats>("i8042")?);
        let ends = self.lifecycle.clone();
        let controller = I8042::new(counters, move || ends.end(Ending::Reset(Reset::I8042)));
        devices.insert("i8042", Space::Port, layout::I8042, i8042::PORTS, Arc::new(controller))?;

        let counters = PvpanicCounters::new(self.tree.add_device::<PvpanicStats>("pvpanic0")?);
        let ends = self.lifecycle.clone();
        let port = Pvpanic::new(counters, move || ends.end(Ending::Panicked));
        let (base, length) = (layout::PVPANIC, pvpanic::REGISTERS);
        devices.insert("pvpanic0", Space::Port, base, length, Arc::new(port))?;

        let counters = AcpiPowerCounters::new(self.tree.add_device::<AcpiPowerStats>("power0")?);
        let ends = self.lifecycle.clone();
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
}

/// Whether COM1's interrupt line is connected.
#[derive(Clone, Copy)]
enum SerialLine {
    NotConnected,
    Interrupt,
}

fn event() -> Result<EventFd, VmError> {
    EventFd::new(EFD_NONBLOCK).map_err(host("an eventfd"))
}
