//! A source of random bytes (virtio 1.2, 5.4): the host's.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Chain, Device, DeviceId, Memory, Progress, QueueError, Turn};
use crate::sys;

/// Most requests in the queue. Linux has one at a time.
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request. A driver that asks for more gets fewer, as it may at any time.
pub const MAX_BYTES: usize = 64 << 10;
/// The host's source: never at its end, and never waiting once the host has booted.
const SOURCE: &str = "/dev/urandom";

/// Why there is no source of random bytes.
#[derive(Debug, Error)]
#[error("the host's random bytes can not be had: {SOURCE}: {0}")]
pub struct EntropyError(#[source] io::Error);

/// What an [`Entropy`] reports.
pub trait EntropyEvents: Send {
    /// So many requests are with the device.
    fn in_flight(&self, requests: u16);
    /// A request was answered with so many bytes.
    fn answered(&self, bytes: usize);
    /// A request could not be answered.
    fn failed(&self);
    /// A request was with the device for so long.
    fn request_time(&self, time: Duration);
}

impl EntropyEvents for super::NoEvents {
    fn in_flight(&self, _requests: u16) {}
    fn answered(&self, _bytes: usize) {}
    fn failed(&self) {}
    fn request_time(&self, _time: Duration) {}
}

/// A source of random bytes.
pub struct Entropy<EV> {
    source: File,
    chain: Chain,
    events: EV,
}

impl<EV: EntropyEvents> Entropy<EV> {
    /// A device that gives the host's random bytes.
    ///
    /// # Errors
    /// [`EntropyError`] if the host has none.
    pub fn new(events: EV) -> Result<Self, EntropyError> {
        let source = File::open(SOURCE).map_err(EntropyError)?;
        Ok(Self { source, chain: Chain::default(), events })
    }

    /// Fills the memory that the driver gave, and returns with how many bytes.
    fn answer(&self, memory: &Memory) -> Result<u32, QueueError> {
        let Chain { readable, writable, .. } = &self.chain;
        if !readable.is_empty() || writable.is_empty() {
            return Err(QueueError::Request("it is memory to be written, and nothing else"));
        }
        let slices = writable.slices(memory, 0, MAX_BYTES);
        match sys::read(&self.source, slices, &mut []) {
            Ok(bytes) => {
                self.events.answered(bytes);
                // At most `MAX_BYTES`.
                Ok(bytes as u32)
            }
            Err(_) => {
                self.events.failed();
                Ok(0)
            }
        }
    }
}

impl<EV: EntropyEvents> Device for Entropy<EV> {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) {}

    fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
        let mut taken = Instant::now();
        while turn.next(&mut self.chain)? {
            let outstanding = turn.outstanding()?;
            self.events.in_flight(outstanding);
            let written = self.answer(turn.memory())?;
            let now = Instant::now();
            self.events.request_time(now - taken);
            self.events.in_flight(outstanding.saturating_sub(1));
            turn.give_back(self.chain.head, written)?;
            taken = now;
        }
        Ok(Progress::Done)
    }

    fn queue_stopped(&mut self, _queue: usize) {
        self.events.in_flight(0);
    }
}
