//! What devices count, and the events types that count it.

use statsfs::Slot;
use vm_superio::serial::SerialEvents;

use crate::exit_port::ExitPortEvents;
use crate::serial::SerialPortEvents;

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
