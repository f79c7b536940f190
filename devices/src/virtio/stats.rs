//! What virtio devices count, and the events types that count it.

use std::io;
use std::time::Duration;

use statsfs::Slot;

use super::TransportEvents;
use super::block::{BlockEvents, Operation, Outcome};
use super::entropy::EntropyEvents;
use super::net::NetEvents;

statsfs::stats! {
    /// What is common to virtio devices: queues, interrupts, registers.
    pub struct VirtioStats: "virtio", prefix "virtio_" {
        /// Times the driver notified a queue.
        virtio_notifications: Counter,
        /// Interrupts raised because the driver's buffers were used.
        virtio_interrupts: Counter,
        /// Times the driver's buffers were used without an interrupt, because it did not want one.
        virtio_interrupts_suppressed: Counter,
        /// Interrupts raised because the device needs to be reset.
        virtio_config_interrupts: Counter,
        /// Times the driver set the device going.
        virtio_activations: Counter,
        /// Times the driver reset the device.
        virtio_resets: Counter,
        /// Accesses to registers that no driver makes; they were ignored.
        virtio_bad_accesses: Counter,
        /// Times the driver broke a queue or a descriptor chain; the device then waits to be reset.
        virtio_queue_errors: Counter,
    }
}

statsfs::stats! {
    /// A block device.
    pub struct BlockStats: "blk", prefix "blk_" {
        /// Requests to read that succeeded.
        blk_reads: Counter,
        /// Requests to write that succeeded.
        blk_writes: Counter,
        /// Requests to make what was written durable that succeeded.
        blk_flushes: Counter,
        /// Requests to discard that succeeded.
        blk_discards: Counter,
        /// Requests to write zeroes that succeeded.
        blk_write_zeroes: Counter,
        /// Requests for the device's name that succeeded.
        blk_get_ids: Counter,
        /// Bytes read from the disk.
        blk_read_bytes: Counter<Bytes>,
        /// Bytes written to the disk.
        blk_write_bytes: Counter<Bytes>,
        /// Bytes discarded.
        blk_discard_bytes: Counter<Bytes>,
        /// Bytes set to zero by requests to write zeroes.
        blk_write_zeroes_bytes: Counter<Bytes>,
        /// Requests that failed because the file behind the disk did.
        blk_io_errors: Counter,
        /// Requests that failed because they were wrong: past the end, or not of whole sectors.
        blk_invalid: Counter,
        /// Requests to change a read-only disk, which failed.
        blk_read_only_errors: Counter,
        /// Requests of a kind that the device does not know, which failed.
        blk_unsupported: Counter,
        /// Requests that the driver has made and not got back, when the device last looked.
        blk_in_flight: Gauge<u32>,
        /// Time from taking a request off the queue to giving it back.
        blk_request_time: Histogram<Nanoseconds> { buckets: 40 },
    }
}

statsfs::stats! {
    /// A network interface. Packets and bytes are those of the tap interface: without the vnet header.
    pub struct NetStats: "net", prefix "net_" {
        /// Packets delivered to the guest.
        net_rx_packets: Counter,
        /// Bytes of packets delivered to the guest.
        net_rx_bytes: Counter<Bytes>,
        /// Packets from the tap interface that were dropped: too large for the driver's buffers, or meant
        /// for the driver before the last reset.
        net_rx_drops: Counter,
        /// Bytes of packets from the tap interface that were dropped.
        net_rx_drop_bytes: Counter<Bytes>,
        /// Times reading from the tap interface stopped because the driver had no buffer for a packet.
        net_rx_starved: Counter,
        /// Times reading from the tap interface failed.
        net_rx_errors: Counter,
        /// Packets from the guest that the tap interface took.
        net_tx_packets: Counter,
        /// Bytes of packets from the guest that the tap interface took.
        net_tx_bytes: Counter<Bytes>,
        /// Packets from the guest that were dropped because the tap interface was full.
        net_tx_drops: Counter,
        /// Packets from the guest that were dropped because they were none, or the tap interface refused
        /// them: it does so while it is down.
        net_tx_errors: Counter,
        /// Packets that the driver wants to send and has not got back, when the device last looked.
        net_tx_in_flight: Gauge<u32>,
        /// Time from taking a packet to be sent off the queue to giving it back.
        net_tx_time: Histogram<Nanoseconds> { buckets: 40 },
    }
}

statsfs::stats! {
    /// A source of random bytes.
    pub struct EntropyStats: "rng", prefix "rng_" {
        /// Requests answered.
        rng_requests: Counter,
        /// Random bytes given.
        rng_bytes: Counter<Bytes>,
        /// Requests that failed because the host's source did; they were given back empty.
        rng_errors: Counter,
        /// Requests that the driver has made and not got back, when the device last looked.
        rng_in_flight: Gauge<u32>,
        /// Time from taking a request off the queue to giving it back.
        rng_request_time: Histogram<Nanoseconds> { buckets: 40 },
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts what is common to virtio devices.
pub struct TransportCounters(Slot<VirtioStats>);

impl TransportCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<VirtioStats>) -> Self {
        Self(slot)
    }
}

impl TransportEvents for TransportCounters {
    fn notified(&self, times: u64) {
        self.0.virtio_notifications.add(times);
    }
    fn interrupt(&self) {
        self.0.virtio_interrupts.inc();
    }
    fn interrupt_suppressed(&self) {
        self.0.virtio_interrupts_suppressed.inc();
    }
    fn config_interrupt(&self) {
        self.0.virtio_config_interrupts.inc();
    }
    fn activated(&self) {
        self.0.virtio_activations.inc();
    }
    fn reset(&self) {
        self.0.virtio_resets.inc();
    }
    fn bad_access(&self) {
        self.0.virtio_bad_accesses.inc();
    }
    fn queue_error(&self) {
        self.0.virtio_queue_errors.inc();
    }
}

/// Counts a block device's requests.
pub struct BlockCounters(Slot<BlockStats>);

impl BlockCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<BlockStats>) -> Self {
        Self(slot)
    }
}

impl BlockEvents for BlockCounters {
    fn in_flight(&self, requests: u16) {
        self.0.blk_in_flight.set(requests.into());
    }

    fn done(&self, operation: Operation, outcome: Outcome, time: Duration) {
        let slot = &self.0;
        slot.blk_request_time.record(ns(time));
        let bytes = match outcome {
            Outcome::Ok { bytes } => bytes,
            Outcome::IoError => return slot.blk_io_errors.inc(),
            Outcome::Invalid => return slot.blk_invalid.inc(),
            Outcome::ReadOnly => return slot.blk_read_only_errors.inc(),
            Outcome::Unsupported => return slot.blk_unsupported.inc(),
        };
        match operation {
            Operation::Read => {
                slot.blk_reads.inc();
                slot.blk_read_bytes.add(bytes);
            }
            Operation::Write => {
                slot.blk_writes.inc();
                slot.blk_write_bytes.add(bytes);
            }
            Operation::Flush => slot.blk_flushes.inc(),
            Operation::Discard => {
                slot.blk_discards.inc();
                slot.blk_discard_bytes.add(bytes);
            }
            Operation::WriteZeroes => {
                slot.blk_write_zeroes.inc();
                slot.blk_write_zeroes_bytes.add(bytes);
            }
            Operation::GetId => slot.blk_get_ids.inc(),
            Operation::Other => slot.blk_unsupported.inc(),
        }
    }

    fn host_error(&self, _operation: Operation, _offset: Option<u64>, _error: &io::Error) {
        // Counted by the outcome.
    }
}

/// Counts a network interface's packets.
pub struct NetCounters(Slot<NetStats>);

impl NetCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<NetStats>) -> Self {
        Self(slot)
    }
}

impl NetEvents for NetCounters {
    fn received(&self, bytes: usize) {
        self.0.net_rx_packets.inc();
        self.0.net_rx_bytes.add(bytes as u64);
    }
    fn receive_dropped(&self, bytes: usize) {
        self.0.net_rx_drops.inc();
        self.0.net_rx_drop_bytes.add(bytes as u64);
    }
    fn starved(&self) {
        self.0.net_rx_starved.inc();
    }
    fn receive_failed(&self) {
        self.0.net_rx_errors.inc();
    }
    fn sent(&self, bytes: usize) {
        self.0.net_tx_packets.inc();
        self.0.net_tx_bytes.add(bytes as u64);
    }
    fn send_dropped(&self) {
        self.0.net_tx_drops.inc();
    }
    fn send_failed(&self) {
        self.0.net_tx_errors.inc();
    }
    fn in_flight(&self, packets: u16) {
        self.0.net_tx_in_flight.set(packets.into());
    }
    fn send_time(&self, time: Duration) {
        self.0.net_tx_time.record(ns(time));
    }
}

/// Counts a source of random bytes.
pub struct EntropyCounters(Slot<EntropyStats>);

impl EntropyCounters {
    /// Counts into this slot.
    pub fn new(slot: Slot<EntropyStats>) -> Self {
        Self(slot)
    }
}

impl EntropyEvents for EntropyCounters {
    fn in_flight(&self, requests: u16) {
        self.0.rng_in_flight.set(requests.into());
    }
    fn answered(&self, bytes: usize) {
        self.0.rng_requests.inc();
        self.0.rng_bytes.add(bytes as u64);
    }
    fn failed(&self) {
        self.0.rng_errors.inc();
    }
    fn request_time(&self, time: Duration) {
        self.0.rng_request_time.record(ns(time));
    }
}
