//! What driver and device tell each other about a queue, and how neither misses that the other wants to hear
//! of it (virtio 1.2, 2.7.7 and 2.7.10).
//!
//! Each side stores how far it has come, and then looks whether the other one waits for that; who is about to
//! wait says so first, and then looks how far the other one has come. Whatever happens at the same time,
//! one of them sees what the other one has stored, as long as nobody looks before what it has stored can be
//! seen: hence the full fences. The models in `tests/models.rs` explore this very code under loom.

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::sync::{Ordering, fence};

/// A number of 16 bits in a queue's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The driver's: how many chains it has made available, modulo 2^16.
    AvailableIndex,
    /// The driver's, without event indices: whether it wants interrupts.
    AvailableFlags,
    /// The driver's, with event indices: the used chain for which it wants an interrupt.
    UsedEvent,
    /// The device's: how many chains it has used, modulo 2^16.
    UsedIndex,
    /// The device's, without event indices: whether it wants notifications.
    UsedFlags,
    /// The device's, with event indices: the available chain for which it wants a notification.
    AvailableEvent,
}

/// The rings of a queue.
pub(super) trait Rings {
    /// Why they can not be read or written.
    type Error;

    /// Whether event indices were negotiated (VIRTIO_F_EVENT_IDX).
    fn has_event_indices(&self) -> bool;

    fn load(&self, word: Word, order: Ordering) -> Result<u16, Self::Error>;

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Self::Error>;
}

/// Tells the driver that all chains before `index` are used.
pub(super) fn publish<R: Rings>(rings: &R, index: u16) -> Result<(), R::Error> {
    // Whoever sees it sees the elements, too.
    rings.store(Word::UsedIndex, index, Ordering::Release)
}

/// Whether the driver wants an interrupt for the last `count` chains before `index`, which were published.
pub(super) fn is_interrupt_wanted<R: Rings>(
    rings: &R,
    index: u16,
    count: u16,
) -> Result<bool, R::Error> {
    fence(Ordering::SeqCst);
    if !rings.has_event_indices() {
        let flags = rings.load(Word::AvailableFlags, Ordering::Relaxed)?;
        return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let wanted = rings.load(Word::UsedEvent, Ordering::Relaxed)?;
    Ok(index.wrapping_sub(wanted).wrapping_sub(1) < count)
}

/// Asks the driver to notify the chain with index `next`, and tells whether it is there already: then it may
/// not be notified.
pub(super) fn want_notification<R: Rings>(rings: &R, next: u16) -> Result<bool, R::Error> {
    if rings.has_event_indices() {
        rings.store(Word::AvailableEvent, next, Ordering::Relaxed)?;
    } else {
        rings.store(Word::UsedFlags, 0, Ordering::Relaxed)?;
    }
    fence(Ordering::SeqCst);
    Ok(rings.load(Word::AvailableIndex, Ordering::Relaxed)? != next)
}

/// Asks the driver not to notify. With event indices there is nothing to ask: it notifies one chain only.
pub(super) fn want_no_notifications<R: Rings>(rings: &R) -> Result<(), R::Error> {
    if rings.has_event_indices() {
        return Ok(());
    }
    rings.store(Word::UsedFlags, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed)
}
