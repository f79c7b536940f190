//! What devices count, and the events types that count it.

use statsfs::Slot;
use vm_superio::serial::SerialEvents;

use crate::acpi_power::{AcpiPowerEvents, Request};
use crate::exit_port::ExitPortEvents;
use crate::i8042::I8042Events;
use crate::pvpanic::PvpanicEvents;
use crate::serial::SerialPortEvents;
use crate::trigger::{EventFdTrigger, Trigger};

statsfs::stats! {
    /// A serial port.
    pub struct SerialStats: "serial", prefix "serial_" {
        /// Bytes that the guest sent and that were written to the output.
        serial_tx_bytes: Counter<Bytes>,
        /// Bytes that the guest sent and that could not be written to the output.
        serial_tx_lost_bytes: Counter<Bytes>,
        /// Bytes of input put into the receive FIFO.
        serial_rx_bytes: Counter<Bytes>,
        /// Bytes of input lost because the guest had put the port into loop-back mode.
        serial_rx_lost_bytes: Counter<Bytes>,
        /// Times the guest read the receive buffer, empty or not.
        serial_rx_reads: Counter,
        /// Times the guest read the last byte of the receive FIFO, or read it empty.
        serial_rx_drained: Counter,
    }
}

statsfs::stats! {
    /// The interrupt line of a serial port.
    pub struct SerialInterruptStats: "serial_interrupt", prefix "serial_" {
        /// Interrupts raised.
        serial_interrupts: Counter,
    }
}

statsfs::stats! {
    /// The part of a keyboard controller that resets the CPU.
    pub struct I8042Stats: "i8042", prefix "i8042_" {
        /// Times the guest asked to be reset.
        i8042_resets: Counter,
        /// Writes of commands or data that the controller does not know.
        i8042_ignored_writes: Counter,
    }
}

statsfs::stats! {
    /// The port by which a guest tells that it panics.
    pub struct PvpanicStats: "pvpanic", prefix "pvpanic_" {
        /// Times the guest told that it panics.
        pvpanic_panics: Counter,
        /// Times the guest told that it panics and goes on with a kernel loaded for this case.
        pvpanic_crash_loads: Counter,
        /// Writes of events that there are not.
        pvpanic_ignored_writes: Counter,
    }
}

statsfs::stats! {
    /// ACPI's sleep and reset registers.
    pub struct AcpiPowerStats: "acpi_power", prefix "power_" {
        /// Times the guest asked to be powered off.
        power_offs: Counter,
        /// Times the guest asked to be reset.
        power_resets: Counter,
        /// Writes of values that mean nothing there.
        power_ignored_writes: Counter,
    }
}

statsfs::stats! {
    /// The port that ends a guest.
    pub struct ExitPortStats: "exit_port", prefix "exit_" {
        /// Times the guest asked to be ended.
        exit_requests: Counter,
        /// The exit status of the last request.
        exit_status: Gauge<u8> { aggregate: none },
    }
}

/// Counts a serial port's events.
pub struct SerialCounters(Slot<SerialStats>);

impl SerialCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<SerialStats>) -> Self {
        Self(slot)
    }
}

impl SerialEvents for SerialCounters {
    fn buffer_read(&self) {
        self.0.serial_rx_reads.inc();
    }
    fn out_byte(&self) {
        self.0.serial_tx_bytes.inc();
    }
    fn tx_lost_byte(&self) {
        self.0.serial_tx_lost_bytes.inc();
    }
    fn in_buffer_empty(&self) {
        self.0.serial_rx_drained.inc();
    }
}

impl SerialPortEvents for SerialCounters {
    fn rx_bytes(&self, n: usize) {
        self.0.serial_rx_bytes.add(n as u64);
    }
    fn rx_lost_bytes(&self, n: usize) {
        self.0.serial_rx_lost_bytes.add(n as u64);
    }
}

/// The interrupt line of a serial port, which counts the interrupts raised.
pub struct SerialInterrupt(Option<(EventFdTrigger, Slot<SerialInterruptStats>)>);

impl SerialInterrupt {
    /// Raises interrupts through `line`, and counts into this slot.
    pub fn new(line: EventFdTrigger, slot: Slot<SerialInterruptStats>) -> Self {
        Self(Some((line, slot)))
    }

    /// Leads nowhere: for machines without an interrupt controller.
    pub fn not_connected() -> Self {
        Self(None)
    }
}

impl Trigger for SerialInterrupt {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        if let Some((line, slot)) = &self.0 {
            line.trigger()?;
            slot.serial_interrupts.inc();
        }
        Ok(())
    }
}

/// Counts a keyboard controller's events.
pub struct I8042Counters(Slot<I8042Stats>);

impl I8042Counters {
    /// Counts into this slot.
    pub fn new(slot: Slot<I8042Stats>) -> Self {
        Self(slot)
    }
}

impl I8042Events for I8042Counters {
    fn reset(&self) {
        self.0.i8042_resets.inc();
    }
    fn ignored_write(&self) {
        self.0.i8042_ignored_writes.inc();
    }
}

/// Counts the events that come through a [`Pvpanic`](crate::Pvpanic) port.
pub struct PvpanicCounters(Slot<PvpanicStats>);

impl PvpanicCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<PvpanicStats>) -> Self {
        Self(slot)
    }
}

impl PvpanicEvents for PvpanicCounters {
    fn panic(&self) {
        self.0.pvpanic_panics.inc();
    }
    fn crash_load(&self) {
        self.0.pvpanic_crash_loads.inc();
    }
    fn ignored_write(&self) {
        self.0.pvpanic_ignored_writes.inc();
    }
}

/// Counts what a guest asks of ACPI's power registers.
pub struct AcpiPowerCounters(Slot<AcpiPowerStats>);

impl AcpiPowerCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<AcpiPowerStats>) -> Self {
        Self(slot)
    }
}

impl AcpiPowerEvents for AcpiPowerCounters {
    fn request(&self, request: Request) {
        match request {
            Request::Off => self.0.power_offs.inc(),
            Request::Reset => self.0.power_resets.inc(),
        }
    }
    fn ignored_write(&self) {
        self.0.power_ignored_writes.inc();
    }
}

/// Counts an exit port's events.
pub struct ExitPortCounters(Slot<ExitPortStats>);

impl ExitPortCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<ExitPortStats>) -> Self {
        Self(slot)
    }
}

impl ExitPortEvents for ExitPortCounters {
    fn request(&self, status: u8) {
        self.0.exit_requests.inc();
        self.0.exit_status.set(status);
    }
}
