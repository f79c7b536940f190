//! The thread of a device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use devices::virtio::{Source, Stopper, Worker};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

use crate::lifecycle::{EndOnPanic, Ending, Lifecycle};

/// Why a device can not run on.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// There is no thread for it.
    #[error("the thread of device {device} can not be had: {error}")]
    Thread {
        /// The device.
        device: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It can not wait for events.
    #[error("the event loop of device {device} failed: {error}")]
    Events {
        /// The device.
        device: String,
        /// Why.
        error: event_manager::Error,
    },
    /// The thread panicked.
    #[error("the thread of device {device} panicked: this is a bug in the VMM")]
    Panicked {
        /// The device.
        device: String,
    },
}

/// A device's work, on its way to a thread or on one.
pub(super) struct Service {
    device: String,
    lifecycle: Arc<Lifecycle>,
    stopping: Arc<AtomicBool>,
    stopper: Stopper,
    /// Until it is started.
    events: Option<EventManager<Subscriber>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(super) fn new(
        device: &str,
        worker: Worker,
        lifecycle: &Arc<Lifecycle>,
    ) -> Result<Self, DeviceError> {
        let mut events = EventManager::new()
            .map_err(|error| DeviceError::Events { device: device.to_string(), error })?;
        let stopper = worker.stopper();
        let sources = worker.sources().collect();
        events.add_subscriber(Subscriber { worker, sources });
        Ok(Self {
            device: device.to_string(),
            lifecycle: lifecycle.clone(),
            stopping: Arc::default(),
            stopper,
            events: Some(events),
            thread: None,
        })
    }

    /// Starts the thread, unless it was started.
    pub(super) fn start(&mut self) -> Result<(), DeviceError> {
        let Some(events) = self.events.take() else { return Ok(()) };
        let (device, lifecycle) = (self.device.clone(), self.lifecycle.clone());
        let stopping = self.stopping.clone();
        let thread = thread::Builder::new()
            .name(device.clone())
            .spawn(move || run(&device, events, &lifecycle, &stopping))
            .map_err(|error| DeviceError::Thread { device: self.device.clone(), error })?;
        self.thread = Some(thread);
        Ok(())
    }

    pub(super) fn tell_to_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stopper.stop();
    }

    /// Waits for the thread, which was told to stop.
    pub(super) fn stop(&mut self) {
        self.events = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been noted as the machine's ending.
            let _ = thread.join();
        }
    }
}

fn run(
    device: &str,
    mut events: EventManager<Subscriber>,
    lifecycle: &Lifecycle,
    stopping: &AtomicBool,
) {
    let panicked = || Ending::DeviceFailed(DeviceError::Panicked { device: device.to_string() });
    let _panicking = EndOnPanic { lifecycle, ending: panicked };
    while !stopping.load(Ordering::Acquire) {
        if let Err(error) = events.run() {
            let device = device.to_string();
            return lifecycle.end(Ending::DeviceFailed(DeviceError::Events { device, error }));
        }
    }
}

/// Hands a worker the events that it waits for.
struct Subscriber {
    worker: Worker,
    /// By the number that is registered with their file.
    sources: Vec<(Source, std::os::fd::RawFd)>,
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, _: &mut EventOps) {
        if let Some((source, _)) = self.sources.get(events.data() as usize) {
            self.worker.handle(*source);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (number, (source, fd)) in (0..).zip(&self.sources) {
            let set = match source {
                Source::Backend(_) => EventSet::IN | EventSet::EDGE_TRIGGERED,
                Source::Wake | Source::Notification(_) => EventSet::IN,
            };
            ops.add(Events::with_data_raw(*fd, number, set))
                .expect("eventfds and backends can be waited for");
        }
    }
}
