//! What devices did.

use std::collections::BTreeMap;

use statsfs::snapshot::{Change, Recorded};

/// What of a device's values is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Io {
    Reads,
    ReadBytes,
    Writes,
    WrittenBytes,
    Notifications,
    Interrupts,
    /// Requests that failed, and what was lost.
    Errors,
}

/// Which of them a value is. From the guest's side: what it receives is read.
fn io(name: &str) -> Option<Io> {
    Some(match name {
        "blk_reads" | "net_rx_packets" | "rng_requests" | "serial_rx_reads" => Io::Reads,
        "blk_read_bytes" | "net_rx_bytes" | "rng_bytes" | "serial_rx_bytes" => Io::ReadBytes,
        "blk_writes" | "net_tx_packets" => Io::Writes,
        "blk_write_bytes" | "net_tx_bytes" | "serial_tx_bytes" => Io::WrittenBytes,
        "virtio_notifications" => Io::Notifications,
        "virtio_interrupts" | "serial_interrupts" => Io::Interrupts,
        "blk_io_errors"
        | "blk_invalid"
        | "blk_read_only_errors"
        | "blk_unsupported"
        | "net_rx_drops"
        | "net_rx_errors"
        | "net_tx_drops"
        | "net_tx_errors"
        | "rng_errors"
        | "serial_tx_lost_bytes"
        | "serial_rx_lost_bytes"
        | "virtio_queue_errors"
        | "virtio_bad_accesses" => Io::Errors,
        _ => return None,
    })
}

fn is_time(name: &str) -> bool {
    matches!(name, "blk_request_time" | "net_tx_time" | "rng_request_time")
}

/// One device, over the whole recording.
#[derive(Debug, Default)]
pub struct Device {
    counts: BTreeMap<Io, u64>,
    /// How long its requests took.
    pub time: Option<Recorded>,
}

impl Device {
    pub fn add(&mut self, change: &Change<'_>) {
        let name = &*change.value.descriptor().name;
        if let (Some(io), Some(increase)) = (io(name), change.increase) {
            let count = self.counts.entry(io).or_default();
            *count = count.saturating_add(increase);
        }
        if is_time(name)
            && let Some(more) = change.recorded()
        {
            match &mut self.time {
                Some(time) => _ = time.add(&more),
                None => self.time = Some(more),
            }
        }
    }

    /// Missing if it has no such value.
    pub fn count(&self, io: Io) -> Option<u64> {
        self.counts.get(&io).copied()
    }

    /// Whether it did anything.
    pub fn is_idle(&self) -> bool {
        self.counts.values().all(|count| *count == 0)
    }
}
