//! Models for loom of what a driver and its device tell each other (`src/virtio/suppression.rs`): every
//! interleaving and every value that a relaxed load may answer, on that file itself, compiled here with loom's
//! atomics. The driver is as Linux's.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p devices --release --test models
//! ```

#![cfg(loom)]

#[path = "../src/virtio/suppression.rs"]
mod suppression;
mod sync {
    pub(crate) use loom::sync::atomic::{Ordering, fence};
}

use std::convert::Infallible;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU16;
use loom::thread;
use suppression::{Rings, Word};
use sync::{Ordering, fence};

/// VRING_AVAIL_F_NO_INTERRUPT and VRING_USED_F_NO_NOTIFY.
const NO: u16 = 1;
/// Where the indices stand at first, and after two chains, of which the second wraps them.
const START: u16 = u16::MAX - 1;
const END: u16 = START.wrapping_add(2);

/// A queue of which neither side wants to hear yet.
struct Model {
    has_event_indices: bool,
    available_index: AtomicU16,
    available_flags: AtomicU16,
    used_event: AtomicU16,
    used_index: AtomicU16,
    used_flags: AtomicU16,
    available_event: AtomicU16,
    /// The last element of the ring of used chains.
    used: AtomicU16,
}

impl Model {
    fn new(has_event_indices: bool) -> Self {
        Self {
            has_event_indices,
            available_index: AtomicU16::new(START),
            available_flags: AtomicU16::new(NO),
            // Chains of long ago.
            used_event: AtomicU16::new(START.wrapping_sub(9)),
            used_index: AtomicU16::new(START),
            used_flags: AtomicU16::new(0),
            available_event: AtomicU16::new(START.wrapping_sub(9)),
            used: AtomicU16::new(0),
        }
    }

    fn word(&self, word: Word) -> &AtomicU16 {
        match word {
            Word::AvailableIndex => &self.available_index,
            Word::AvailableFlags => &self.available_flags,
            Word::UsedEvent => &self.used_event,
            Word::UsedIndex => &self.used_index,
            Word::UsedFlags => &self.used_flags,
            Word::AvailableEvent => &self.available_event,
        }
    }
}

impl Rings for Model {
    type Error = Infallible;

    fn has_event_indices(&self) -> bool {
        self.has_event_indices
    }

    fn load(&self, word: Word, order: Ordering) -> Result<u16, Infallible> {
        Ok(self.word(word).load(order))
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Infallible> {
        self.word(word).store(value, order);
        Ok(())
    }
}

/// Runs a model without event indices and with them, each with this order of the driver's fence.
fn explore(order: Ordering, model: fn(Arc<Model>, Ordering)) {
    for has_event_indices in [false, true] {
        loom::model(move || model(Arc::new(Model::new(has_event_indices)), order));
    }
}

/// The device uses two chains, one after the other or both at once. The driver asks to be interrupted
/// when both are, and sleeps if they are not yet.
fn interrupts(model: Arc<Model>, order: Ordering) {
    let device = {
        let model = model.clone();
        thread::spawn(move || {
            model.used.store(1, Ordering::Relaxed);
            suppression::publish(&*model, START.wrapping_add(1)).unwrap();
            model.used.store(2, Ordering::Relaxed);
            suppression::publish(&*model, END).unwrap();
            suppression::is_interrupt_wanted(&*model, END, 2).unwrap()
        })
    };
    model.used_event.store(END.wrapping_sub(1), Ordering::Relaxed);
    model.available_flags.store(0, Ordering::Relaxed);
    fence(order);
    let sleeps = model.used_index.load(Ordering::Relaxed) != END;
    if !sleeps {
        fence(Ordering::Acquire);
        assert_eq!(model.used.load(Ordering::Relaxed), 2, "an element is missing");
    }
    let interrupted = device.join().unwrap();
    assert!(interrupted || !sleeps, "the driver sleeps for ever");
}

/// The driver makes two chains available. The device was busy, finds none, asks to be notified of the first,
/// and waits if it is not there yet.
fn notifications(model: Arc<Model>, order: Ordering) {
    suppression::want_no_notifications(&*model).unwrap();
    let device = {
        let model = model.clone();
        thread::spawn(move || !suppression::want_notification(&*model, START).unwrap())
    };
    model.available_index.store(END, Ordering::Release);
    fence(order);
    let notifies = if model.has_event_indices {
        let event = model.available_event.load(Ordering::Relaxed);
        END.wrapping_sub(event).wrapping_sub(1) < 2
    } else {
        model.used_flags.load(Ordering::Relaxed) & NO == 0
    };
    let waits = device.join().unwrap();
    assert!(notifies || !waits, "the device waits for ever");
}

#[test]
fn no_interrupt_is_missed() {
    explore(Ordering::SeqCst, interrupts);
}

#[test]
fn no_notification_is_missed() {
    explore(Ordering::SeqCst, notifications);
}

/// Shows that the models find what a driver's missing fence does.
#[test]
#[should_panic(expected = "the driver sleeps for ever")]
fn a_driver_must_fence_before_it_sleeps() {
    explore(Ordering::AcqRel, interrupts);
}

/// As above.
#[test]
#[should_panic(expected = "the device waits for ever")]
fn a_driver_must_fence_before_it_skips_a_notification() {
    explore(Ordering::AcqRel, notifications);
}
