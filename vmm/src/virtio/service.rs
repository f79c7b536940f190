//! The thread of a device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use devices::virtio::{Source, Stopper, Worker};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

use crate::lifecycle::{EndOnPanic, Ending, Lifecycle};
use crate::seccomp::{self, ConfineError, confine};

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
    /// Its thread can not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
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
    kind: seccomp::Device,
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
        kind: seccomp::Device,
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
            kind,
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
        let (kind, stopping) = (self.kind, self.stopping.clone());
        let thread = thread::Builder::new()
            .name(device.clone())
            .spawn(move || run(&device, kind, events, &lifecycle, &stopping))
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
    kind: seccomp::Device,
    mut events: EventManager<Subscriber>,
    lifecycle: &Lifecycle,
    stopping: &AtomicBool,
) {
    let panicked = || Ending::DeviceFailed(DeviceError::Panicked { device: device.to_string() });
    let _panicking = EndOnPanic { lifecycle, ending: panicked };
    if let Err(error) = confine(seccomp::Thread::Device(kind)) {
        return lifecycle.end(Ending::DeviceFailed(error.into()));
    }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use devices::BusDevice;
    use devices::virtio::mmio::QUEUE_NOTIFY;
    use devices::virtio::{
        Chain, Device, DeviceId, Memory, NoEvents, Progress, QueueError, Transport, Turn,
    };
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// Says that it has a request, and is done with it when it is told so; panics if it is told no more.
    struct Told {
        has: Sender<()>,
        done: Receiver<()>,
        chain: Chain,
    }

    impl Device for Told {
        fn id(&self) -> DeviceId {
            DeviceId::Entropy
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[8]
        }
        fn config(&self) -> &[u8] {
            &[]
        }
        fn activate(&mut self, _: u64) {}
        fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
            while turn.next(&mut self.chain)? {
                self.has.send(()).unwrap();
                self.done.recv().expect("told");
                turn.give_back(self.chain.head, 0)?;
            }
            Ok(Progress::Done)
        }
        fn queue_stopped(&mut self, _: usize) {}
    }

    /// A service whose device has eight requests, its registers, and its strings.
    fn service() -> (Service, Transport, Arc<Lifecycle>, Receiver<()>, Sender<()>, Memory) {
        let ((has, has_request), (tell, done)) = (mpsc::channel(), mpsc::channel());
        let device = Told { has, done, chain: Chain::default() };
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let (transport, worker) =
            Transport::new(device, memory.clone(), line, NoEvents, NoEvents).unwrap();
        let lifecycle = Arc::new(Lifecycle::new().unwrap());
        let mut service =
            Service::new("dev0", seccomp::Device::Entropy, worker, &lifecycle).unwrap();
        service.start().unwrap();
        // As a driver does it: features, then a queue, then the requests.
        memory.write_obj([0x4000_u32, 0, 16, 0], GuestAddress(0x1000)).unwrap();
        memory.write_obj([0_u16, 8], GuestAddress(0x2000)).unwrap();
        for (register, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x80, 0x1000),
            (0x90, 0x2000),
            (0xa0, 0x3000),
            (0x44, 1),
            (0x70, 15_u32),
        ] {
            transport.write(register, &value.to_le_bytes());
        }
        transport.write(QUEUE_NOTIFY, &[0; 4]);
        (service, transport, lifecycle, has_request, tell, memory)
    }

    fn used(memory: &Memory) -> u16 {
        memory.read_obj(GuestAddress(0x3002)).unwrap()
    }

    #[test]
    fn a_service_ends_after_the_request_that_it_is_at() {
        let (mut service, _transport, lifecycle, has_request, tell, memory) = service();
        has_request.recv().unwrap();
        tell.send(()).unwrap();
        has_request.recv().unwrap();
        service.tell_to_stop();
        tell.send(()).unwrap();
        service.stop();
        assert!(has_request.try_recv().is_err(), "no other was begun");
        assert_eq!(used(&memory), 2);
        assert!(!lifecycle.is_stopping());
        service.stop();
    }

    #[test]
    fn a_service_that_waits_or_was_never_started_ends_at_once() {
        let (mut service, _transport, _, has_request, tell, _memory) = service();
        (0..8).for_each(|_| {
            has_request.recv().unwrap();
            tell.send(()).unwrap();
        });
        service.tell_to_stop();
        service.stop();

        let (transport, worker) = Transport::new(
            Told { has: mpsc::channel().0, done: mpsc::channel().1, chain: Chain::default() },
            Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap(),
            EventFd::new(EFD_NONBLOCK).unwrap(),
            NoEvents,
            NoEvents,
        )
        .unwrap();
        let lifecycle = Arc::new(Lifecycle::new().unwrap());
        let mut service =
            Service::new("dev0", seccomp::Device::Entropy, worker, &lifecycle).unwrap();
        service.tell_to_stop();
        service.stop();
        drop(transport);
    }

    #[test]
    fn a_device_that_panics_ends_the_machine() {
        let (mut service, transport, lifecycle, has_request, tell, _memory) = service();
        has_request.recv().unwrap();
        drop(tell);
        service.stop();
        assert!(lifecycle.is_stopping());
        let Some(Ending::DeviceFailed(error)) = lifecycle.ending() else { panic!("it failed") };
        assert_eq!(
            error.to_string(),
            "the thread of device dev0 panicked: this is a bug in the VMM"
        );
        // vCPUs that have not ended yet do not hang on its registers.
        transport.write(0x70, &[0; 4]);
        let mut status = [0xff; 4];
        transport.read(0x70, &mut status);
        assert_eq!(status, [0; 4]);
    }
}
