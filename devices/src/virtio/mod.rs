//! virtio devices (virtio 1.2) behind the memory-mapped transport.
//!
//! ```text
//!   vCPUs ──registers──▶ Transport ─┐ (rare: set-up, reset)
//!     │                             ├─▶ engine: queues and device
//!     └─notification (eventfd)─▶ Worker ─┘      │
//!                                ▲              ├─▶ file, tap interface, …
//!                     a thread of its own       └─▶ interrupt (eventfd)
//! ```
//!
//! A device is made by [`Transport::new`], which gives two halves: the [`Transport`], its registers, for a
//! bus; and the [`Worker`], for a thread of the device's own, which does all its work. They meet in the
//! engine, the queues and the [`Device`] behind a lock. A vCPU takes it only to set up a queue or to reset
//! the device, and the worker then gives way after the request that it is at. So a reset is done when the
//! write to the register is, and nothing waits for a disk that needs not.
//!
//! What a driver does wrong is counted, never trusted. A wrong access to a register is ignored; a wrong
//! queue or descriptor chain stops the device, which then asks to be reset (`DEVICE_NEEDS_RESET`).

pub mod block;
mod chain;
mod engine;
pub mod entropy;
pub mod mmio;
pub mod net;
mod queue;
pub mod stats;
mod suppression;

/// The atomics of `suppression`, in whose place its models have loom's.
mod sync {
    pub(super) use std::sync::atomic::{Ordering, fence};
}

use std::os::fd::BorrowedFd;

pub use chain::{Chain, Pieces};
pub use engine::{Source, Stopper, Worker};
pub use mmio::Transport;
pub use queue::{QueueError, Turn};

/// The guest's memory.
pub type Memory = vm_memory::GuestMemoryMmap;

/// The kinds of devices, by their number (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// A network interface.
    Net = virtio_bindings::virtio_ids::VIRTIO_ID_NET,
    /// A block device.
    Block = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK,
    /// A source of random bytes.
    Entropy = virtio_bindings::virtio_ids::VIRTIO_ID_RNG,
}

/// A set of feature bits with this one.
const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// Whether a device has done all that there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for the next event.
    Done,
    /// It has done enough at once, and is to be called again after the others.
    More,
}

/// What is particular to a kind of device. Everything but the constant properties is called with the
/// engine locked, `activate` and `process` on the device's thread.
pub trait Device: Send {
    /// What kind of device it is.
    fn id(&self) -> DeviceId;

    /// The features that it offers, beside the transport's own.
    fn features(&self) -> u64;

    /// Whether it can do with this subset of its features, of which some need others.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The largest size of each of its queues: powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration space, which never changes.
    fn config(&self) -> &[u8];

    /// A file that makes work for a queue when it becomes readable, and the queue. It is waited for
    /// edge-triggered: the device reads until there is nothing left, or is called again anyway.
    fn backend(&self) -> Option<(BorrowedFd<'_>, usize)> {
        None
    }

    /// The driver is ready, and has accepted these features.
    fn activate(&mut self, features: u64);

    /// There may be something to do at a queue.
    ///
    /// # Errors
    /// [`QueueError`] if the driver has broken the queue: the device then stops until it is reset.
    fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError>;

    /// A queue is gone, by a reset or because the driver took it back: whatever was taken off it is not
    /// to be used any more. No system calls.
    fn queue_stopped(&mut self, queue: usize);
}

/// What devices report beside what is particular to each kind.
pub trait TransportEvents: Send {
    /// The driver notified a queue so many times.
    fn notified(&self, times: u64) {
        let _ = times;
    }
    /// The driver was interrupted for buffers that were used.
    fn interrupt(&self) {}
    /// Buffers were used, of which the driver did not want to hear now.
    fn interrupt_suppressed(&self) {}
    /// The driver was interrupted because the device needs to be reset.
    fn config_interrupt(&self) {}
    /// The driver set the device going.
    fn activated(&self) {}
    /// The driver reset the device.
    fn reset(&self) {}
    /// An access to a register that no driver makes; it was ignored.
    fn bad_access(&self) {}
    /// A queue or a descriptor chain that no driver makes; the device stopped.
    fn queue_error(&self) {}
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl TransportEvents for NoEvents {}
