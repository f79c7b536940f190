//! Queues: taking descriptor chains off, giving them back, and hearing of and telling about both.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::chain::Chain;
use super::engine::Shared;
use super::suppression::{self, Rings, Word};
use super::{Memory, TransportEvents};

/// Where a ring's index is, behind its flags (virtio 1.2, 2.7.6 and 2.7.8).
const RING_INDEX: u64 = 2;
/// Where a ring's elements begin, behind its index.
const RING_ELEMENTS: u64 = 4;
/// Bytes of an element of the ring of available chains: the index of a descriptor.
const AVAILABLE_ELEMENT: u64 = size_of::<u16>() as u64;
/// Bytes of an element of the ring of used chains: the index of a descriptor, and the bytes written.
const USED_ELEMENT: u64 = size_of::<[u32; 2]>() as u64;

/// What a driver did to a queue that no driver does. The device can not go on with it.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The rings are not what they must be.
    #[error("a ring is broken: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// More chains are available than the queue has descriptors.
    #[error("more descriptor chains are available than there can be")]
    TooMany,
    /// A descriptor is of memory that does not exist.
    #[error("a descriptor is of {len} bytes at {address:#x}, which is not memory")]
    Address {
        /// The guest-physical address.
        address: u64,
        /// The number of bytes.
        len: usize,
    },
    /// A chain ends in a descriptor that says it goes on, because it loops, leaves the table, is longer
    /// than a chain can be, or has a table of descriptors inside one; or it has no descriptor at all.
    #[error("a descriptor chain does not end as it must")]
    Chain,
    /// A descriptor to be read follows one to be written.
    #[error("a descriptor chain has a descriptor to be read after one to be written")]
    Order,
    /// A chain is not one of this device's requests.
    #[error("a descriptor chain is no request: {0}")]
    Request(&'static str),
}

/// A queue that the driver made ready.
pub(super) struct LiveQueue {
    queue: Queue,
    /// The driver was asked not to notify.
    quiet: bool,
    /// Chains put into the ring of used ones of which its index does not tell yet.
    unpublished: u16,
    /// Chains of which the index tells, since the driver was last considered for an interrupt.
    unsignalled: u16,
}

impl LiveQueue {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, quiet: false, unpublished: 0, unsignalled: 0 }
    }

    fn rings<'a>(&'a self, memory: &'a Memory) -> GuestRings<'a> {
        GuestRings { queue: &self.queue, memory }
    }
}

/// One turn of a device at one of its queues.
pub struct Turn<'a> {
    pub(super) index: usize,
    pub(super) live: &'a mut LiveQueue,
    pub(super) memory: &'a Memory,
    pub(super) shared: &'a Shared,
    pub(super) events: &'a dyn TransportEvents,
}

impl<'a> Turn<'a> {
    /// Which of the device's queues it is.
    pub fn queue(&self) -> usize {
        self.index
    }

    /// Number of chains that the queue can hold, as the driver set it.
    pub fn queue_size(&self) -> u16 {
        self.live.queue.size()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// Takes the next chain off the queue. If there is none, the driver is asked to notify the next one.
    /// There is also none while somebody waits for the device: it is called again after that.
    ///
    /// # Errors
    /// [`QueueError`] if what is there is no chain. The queue can not be used any more.
    pub fn next(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let Self { live, memory, shared, .. } = self;
        let memory = *memory;
        // A second look, since the driver may have added one before it was asked to notify. Not a third:
        // its index would have to have gone back.
        for _ in 0..2 {
            if shared.is_held() {
                return Ok(false);
            }
            if !live.quiet {
                suppression::want_no_notifications(&live.rings(memory))?;
                live.quiet = true;
            }
            let longest = live.queue.max_size();
            if let Some(descriptors) = live.queue.iter(memory)?.next() {
                let queue = &live.queue;
                if queue.next_avail().wrapping_sub(queue.next_used()) > queue.size() {
                    return Err(QueueError::TooMany);
                }
                fill(chain, descriptors, memory, longest)?;
                return Ok(true);
            }
            live.quiet = false;
            let next = live.queue.next_avail();
            if !suppression::want_notification(&live.rings(memory), next)? {
                break;
            }
        }
        Ok(false)
    }

    /// Whether somebody waits for the device.
    pub fn is_held(&self) -> bool {
        self.shared.is_held()
    }

    /// How many chains the driver has made available and not got back.
    ///
    /// # Errors
    /// [`QueueError`] if the ring can not be read.
    pub fn outstanding(&self) -> Result<u16, QueueError> {
        let queue = &self.live.queue;
        let available = queue.avail_idx(self.memory, Ordering::Relaxed)?;
        Ok(available.0.wrapping_sub(queue.next_used()).min(queue.size()))
    }

    /// How many of the queue's descriptors a chain that was taken off it has: one, if there is a table of
    /// its own for the others.
    pub fn descriptors(&self, chain: &Chain) -> usize {
        let table = GuestAddress(self.live.queue.desc_table());
        let first = table.unchecked_add(u64::from(chain.head) * size_of::<Descriptor>() as u64);
        match self.memory.read_obj::<Descriptor>(first) {
            Ok(first) if !first.refers_to_indirect_table() => {
                chain.readable.count() + chain.writable.count()
            }
            _ => 1,
        }
    }

    /// Gives a chain back, of whose memory to be written the first `len` bytes were.
    ///
    /// # Errors
    /// [`QueueError`] if the ring can not be written.
    pub fn give_back(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        self.put_back(head, len)?;
        self.publish()
    }

    /// As [`give_back`](Self::give_back), but the driver does not see it before [`publish`](Self::publish):
    /// chains that belong together must be seen together.
    ///
    /// # Errors
    /// [`QueueError`] if the ring can not be written.
    pub fn put_back(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        let queue = &self.live.queue;
        let place = queue.next_used().wrapping_add(self.live.unpublished) % queue.size();
        let offset = RING_ELEMENTS + u64::from(place) * USED_ELEMENT;
        let element = [u32::from(head).to_le(), len.to_le()];
        self.memory
            .write_obj(element, GuestAddress(queue.used_ring()).unchecked_add(offset))
            .map_err(virtio_queue::Error::GuestMemory)?;
        self.live.unpublished += 1;
        Ok(())
    }

    /// Lets the driver see what was put back.
    ///
    /// # Errors
    /// [`QueueError`] if the ring can not be written.
    pub fn publish(&mut self) -> Result<(), QueueError> {
        let LiveQueue { queue, unpublished, unsignalled, .. } = &mut *self.live;
        let next = queue.next_used().wrapping_add(*unpublished);
        queue.set_next_used(next);
        *unsignalled = unsignalled.saturating_add(*unpublished);
        *unpublished = 0;
        suppression::publish(&self.live.rings(self.memory), next)?;
        Ok(())
    }

    /// Interrupts the driver, if chains were given back since it last was and it wants to know.
    ///
    /// # Errors
    /// [`QueueError`] if the ring can not be read.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if self.live.unsignalled == 0 {
            return Ok(());
        }
        let LiveQueue { queue, unsignalled, .. } = &*self.live;
        let (rings, next) = (self.live.rings(self.memory), queue.next_used());
        if suppression::is_interrupt_wanted(&rings, next, *unsignalled)? {
            // Counted first: a guest that has seen the interrupt can not find it missing.
            self.events.interrupt();
            self.shared.interrupt_for_queue();
        } else {
            self.events.interrupt_suppressed();
        }
        self.live.unsignalled = 0;
        Ok(())
    }
}

/// The rings in the guest's memory.
struct GuestRings<'a> {
    queue: &'a Queue,
    memory: &'a Memory,
}

impl GuestRings<'_> {
    fn address(&self, word: Word) -> GuestAddress {
        let queue = self.queue;
        let (ring, element) = match word {
            Word::AvailableIndex | Word::AvailableFlags | Word::UsedEvent => {
                (queue.avail_ring(), AVAILABLE_ELEMENT)
            }
            Word::UsedIndex | Word::UsedFlags | Word::AvailableEvent => {
                (queue.used_ring(), USED_ELEMENT)
            }
        };
        let offset = match word {
            Word::AvailableFlags | Word::UsedFlags => 0,
            Word::AvailableIndex | Word::UsedIndex => RING_INDEX,
            // Behind the elements.
            Word::UsedEvent | Word::AvailableEvent => {
                RING_ELEMENTS + u64::from(queue.size()) * element
            }
        };
        GuestAddress(ring).unchecked_add(offset)
    }
}

impl Rings for GuestRings<'_> {
    type Error = virtio_queue::Error;

    fn has_event_indices(&self) -> bool {
        self.queue.event_idx_enabled()
    }

    fn load(&self, word: Word, order: Ordering) -> Result<u16, Self::Error> {
        let value = self.memory.load(self.address(word), order);
        value.map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Self::Error> {
        let stored = self.memory.store(value.to_le(), self.address(word), order);
        stored.map_err(virtio_queue::Error::GuestMemory)
    }
}

/// Fills `chain` with what the descriptors describe.
fn fill(
    chain: &mut Chain,
    descriptors: DescriptorChain<&Memory>,
    memory: &Memory,
    longest: u16,
) -> Result<(), QueueError> {
    chain.clear();
    chain.head = descriptors.head_index();
    // The descriptors just end where something is wrong with them: then the last one promised another.
    let mut goes_on = true;
    for (number, descriptor) in descriptors.enumerate() {
        // A table of its own may be longer than the queue, but not without bound.
        if number >= usize::from(longest) {
            return Err(QueueError::Chain);
        }
        goes_on = descriptor.has_next();
        if descriptor.is_write_only() {
            chain.writable.push(memory, descriptor.addr(), descriptor.len())?;
        } else if chain.writable.is_empty() {
            chain.readable.push(memory, descriptor.addr(), descriptor.len())?;
        } else {
            return Err(QueueError::Order);
        }
    }
    if goes_on { Err(QueueError::Chain) } else { Ok(()) }
}
