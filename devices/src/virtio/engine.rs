//! What a device's registers and its thread share.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::Queue;
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{LiveQueue, Turn};
use super::{Device, Memory, Progress, TransportEvents};
use crate::trigger::EventFdTrigger;

/// What is read and written without the engine's lock.
pub(super) struct Shared {
    /// The device status. Bits are set under the engine's lock, and cleared by a reset.
    pub(super) status: AtomicU32,
    /// Why the line was last raised.
    pub(super) interrupt_status: AtomicU32,
    line: EventFdTrigger,
    /// How many wait for the engine and want the worker to let go of it.
    held: AtomicU32,
    /// Wakes the worker.
    wake: EventFd,
}

impl Shared {
    pub(super) fn new(line: EventFd) -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            line: EventFdTrigger::new(line),
            held: AtomicU32::new(0),
            wake: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    /// Whether somebody waits for the engine.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    pub(super) fn interrupt_for_queue(&self) {
        self.interrupt(VIRTIO_MMIO_INT_VRING);
    }

    fn interrupt(&self, reason: u32) {
        self.interrupt_status.fetch_or(reason, Ordering::SeqCst);
        // It can only fail when so many are pending already that they can not be counted.
        let _ = self.line.trigger();
    }

    fn wake(&self) {
        // As above.
        let _ = self.wake.write(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The driver is not ready.
    Idle,
    /// The driver is, with these features; the device does not know yet.
    Starting(u64),
    Running,
    /// The driver broke something.
    Broken,
}

/// The queues and the device.
pub(super) struct Engine<D: Device + ?Sized> {
    memory: Memory,
    queues: Vec<Option<LiveQueue>>,
    state: State,
    events: Box<dyn TransportEvents>,
    device: D,
}

impl<D: Device> Engine<D> {
    pub(super) fn new(memory: Memory, events: Box<dyn TransportEvents>, device: D) -> Self {
        let queues = device.queue_sizes().iter().map(|_| None).collect();
        Self { memory, queues, state: State::Idle, events, device }
    }
}

impl Engine<dyn Device> {
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn accepts(&self, features: u64) -> bool {
        self.device.accepts(features)
    }

    pub(super) fn start(&mut self, features: u64) {
        if self.state == State::Idle {
            self.state = State::Starting(features);
        }
    }

    pub(super) fn insert(&mut self, index: usize, queue: Queue) {
        self.queues[index] = Some(LiveQueue::new(queue));
    }

    pub(super) fn remove(&mut self, index: usize) {
        if self.queues[index].take().is_some() {
            self.device.queue_stopped(index);
        }
    }

    pub(super) fn reset(&mut self) {
        (0..self.queues.len()).for_each(|index| self.remove(index));
        self.state = State::Idle;
    }

    /// The driver has broken a queue. `events` are those of the thread that noticed.
    pub(super) fn fail(&mut self, shared: &Shared) {
        self.state = State::Broken;
        self.events.queue_error();
        let before = shared.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        // virtio 1.2, 2.1.2: only a driver that is ready is told.
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.events.config_interrupt();
            shared.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn process(&mut self, index: usize, shared: &Shared) -> Progress {
        if let State::Starting(features) = self.state {
            self.events.activated();
            self.device.activate(features);
            self.state = State::Running;
        }
        let Some(Some(live)) = self.queues.get_mut(index) else { return Progress::Done };
        if self.state != State::Running {
            return Progress::Done;
        }
        let (memory, events) = (&self.memory, &*self.events);
        let mut turn = Turn { index, live, memory, shared, events };
        // What the driver got back before it broke something is its own.
        let processed = self.device.process(&mut turn);
        match turn.signal().and(processed) {
            Ok(progress) => progress,
            Err(_) => {
                self.fail(shared);
                Progress::Done
            }
        }
    }
}

pub(super) type SharedEngine = Arc<Mutex<Engine<dyn Device>>>;

fn lock(engine: &SharedEngine) -> MutexGuard<'_, Engine<dyn Device>> {
    // If the worker panicked, its machine is ending; until then its registers stay registers.
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the engine from the worker, as soon as it is through with the request that it is at.
pub(super) fn with_engine<R>(
    engine: &SharedEngine,
    shared: &Shared,
    change: impl FnOnce(&mut Engine<dyn Device>) -> R,
) -> R {
    struct Held<'a>(&'a Shared);
    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.0.held.fetch_sub(1, Ordering::SeqCst);
            // It may have left something undone.
            self.0.wake();
        }
    }
    shared.held.fetch_add(1, Ordering::SeqCst);
    let _held = Held(shared);
    change(&mut lock(engine))
}

/// Something that a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The other threads want something of it.
    Wake,
    /// The driver notified this queue.
    Notification(usize),
    /// The device's [backend](Device::backend) has something for this queue. To be waited for
    /// edge-triggered.
    Backend(usize),
}

/// A device's work, for a thread of its own: it waits for the [sources](Self::sources) to become readable,
/// and hands those that are to [`handle`](Self::handle).
pub struct Worker {
    shared: Arc<Shared>,
    engine: SharedEngine,
    notifiers: Arc<[EventFd]>,
    /// The file stays open as long as the device, which the engine keeps.
    backend: Option<(RawFd, usize)>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        engine: SharedEngine,
        notifiers: Arc<[EventFd]>,
        backend: Option<(RawFd, usize)>,
    ) -> Self {
        Self { shared, engine, notifiers, backend }
    }

    /// What to wait for, and the file that becomes readable.
    pub fn sources(&self) -> impl Iterator<Item = (Source, RawFd)> {
        let notifiers = self.notifiers.iter().enumerate();
        std::iter::once((Source::Wake, self.shared.wake.as_raw_fd()))
            .chain(notifiers.map(|(index, fd)| (Source::Notification(index), fd.as_raw_fd())))
            .chain(self.backend.map(|(fd, index)| (Source::Backend(index), fd)))
    }

    /// Does what there is to do when a source has become readable.
    pub fn handle(&self, source: Source) {
        let mut engine;
        let progress = match source {
            Source::Wake => {
                // Only that it was woken matters, not how often.
                let _ = self.shared.wake.read();
                engine = lock(&self.engine);
                let queues = 0..self.notifiers.len();
                queues.map(|index| engine.process(index, &self.shared)).fold(Progress::Done, most)
            }
            Source::Notification(index) => {
                // The eventfd counts the driver's writes.
                let times = self.notifiers.get(index).and_then(|fd| fd.read().ok()).unwrap_or(0);
                engine = lock(&self.engine);
                engine.events.notified(times);
                engine.process(index, &self.shared)
            }
            Source::Backend(index) => {
                engine = lock(&self.engine);
                engine.process(index, &self.shared)
            }
        };
        drop(engine);
        if progress == Progress::More {
            self.shared.wake();
        }
    }

    /// A way to stop the worker from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shared.clone())
    }
}

impl Drop for Worker {
    /// Counts the notifications that are left: those that came after the stop, and of requests that were
    /// found before their notification was.
    fn drop(&mut self) {
        for notifier in self.notifiers.iter() {
            if let Ok(times) = notifier.read() {
                lock(&self.engine).events.notified(times);
            }
        }
    }
}

fn most(a: Progress, b: Progress) -> Progress {
    if a == Progress::More { a } else { b }
}

/// Keeps a worker from starting anything new.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// The worker takes no chain off a queue any more, for good, and wakes up.
    pub fn stop(&self) {
        self.0.held.fetch_add(1, Ordering::SeqCst);
        self.0.wake();
    }
}
