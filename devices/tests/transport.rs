//! The registers of a device, used as a driver must, as it may, and as it must not.

mod driver;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use devices::BusDevice;
use devices::virtio::entropy::Entropy;
use devices::virtio::stats::EntropyCounters;
use devices::virtio::{Chain, Device, DeviceId, NoEvents, Progress, QueueError, Transport, Turn};
use driver::{
    ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, EVENT_IDX, FAILED, FEATURES_OK, Guest, INDIRECT,
    MEMORY, NEEDS_RESET, Queue, READY, VERSION_1, into,
};
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

fn guest() -> Guest {
    Guest::new(|source| Entropy::new(EntropyCounters::new(source.add_values().unwrap())).unwrap())
}

/// A request for random bytes is answered: the device works.
fn assert_works(guest: &Guest, queue: &mut Queue) {
    guest.put(BUFFERS, &[0; 64]);
    assert_eq!(guest.submit(queue, &[into(BUFFERS, 64)]), 64);
    assert_ne!(guest.get(BUFFERS, 64), [0; 64]);
}

/// After whatever happened, a reset makes it work.
fn assert_can_be_reset(guest: &Guest) {
    let [mut queue] = guest.start(VERSION_1 | INDIRECT, 16);
    assert_works(guest, &mut queue);
    assert_eq!(guest.status(), READY);
}

#[test]
fn the_constant_registers_are_what_the_specification_says() {
    let guest = guest();
    let constant = [
        (reg::VIRTIO_MMIO_MAGIC_VALUE, 0x7472_6976),
        (reg::VIRTIO_MMIO_VERSION, 2),
        (reg::VIRTIO_MMIO_DEVICE_ID, 4),
        (reg::VIRTIO_MMIO_STATUS, 0),
        (reg::VIRTIO_MMIO_INTERRUPT_STATUS, 0),
        (reg::VIRTIO_MMIO_CONFIG_GENERATION, 0),
        (reg::VIRTIO_MMIO_QUEUE_NUM_MAX, 64),
        (reg::VIRTIO_MMIO_QUEUE_READY, 0),
        (reg::VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
        (reg::VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX),
        (reg::VIRTIO_MMIO_SHM_BASE_LOW, u32::MAX),
        (reg::VIRTIO_MMIO_SHM_BASE_HIGH, u32::MAX),
    ];
    for (register, value) in constant {
        assert_eq!(guest.read(register), value, "{register:#x}");
    }
    assert_eq!(guest.offered(), VERSION_1 | INDIRECT | EVENT_IDX);
    for select in [2, 3, u32::MAX] {
        guest.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        assert_eq!(guest.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }
    for select in [1, 2, u32::MAX] {
        guest.write(reg::VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no such queue");
        assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    guest.write(reg::VIRTIO_MMIO_SHM_SEL, 1);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 0, "all of that is right");
}

#[test]
fn a_driver_goes_step_by_step() {
    let guest = guest();
    let status = |value| {
        guest.write(reg::VIRTIO_MMIO_STATUS, value);
        guest.status()
    };
    let bad = || guest.stats.get("virtio_bad_accesses");
    for early in [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE << 8, 0x10, 0x20] {
        assert_eq!(status(early), 0, "{early:#x} is too early");
    }
    assert_eq!(bad(), 6);
    assert_eq!(status(ACKNOWLEDGE), 1);
    guest.set_features(VERSION_1);
    assert_eq!(bad(), 8, "features come after DRIVER");
    assert_eq!(status(ACKNOWLEDGE | DRIVER), 3);
    assert_eq!(status(ACKNOWLEDGE), 3, "bits stay");
    assert_eq!(bad(), 9);
    // Not without VERSION_1, and not with what was not offered.
    assert_eq!(status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 3);
    for features in [0, INDIRECT, VERSION_1 | 1, VERSION_1 | 1 << 63, u64::MAX] {
        guest.set_features(features);
        assert_eq!(status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 3, "{features:#x}");
    }
    assert_eq!(bad(), 15);
    guest.set_features(VERSION_1);
    // A device that is not ready has no queues.
    guest.write(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(bad(), 16);
    assert_eq!(status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 11);
    guest.set_features(VERSION_1 | INDIRECT);
    assert_eq!(bad(), 18, "they are agreed upon");
    let mut queue = guest.queue(0, 16, 0);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    // Before DRIVER_OK nothing is done.
    queue.add(&[into(BUFFERS, 64)]);
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take(), []);
    assert_eq!(status(READY), READY);
    guest.serve();
    assert_eq!(queue.take(), [(0, 64)]);
    assert_works(&guest, &mut queue);
    assert_eq!(guest.status(), READY);
    assert_eq!(bad(), 18);
    assert_eq!(guest.stats.get("virtio_activations"), 1);
}

#[test]
fn steps_may_be_taken_at_once_and_a_driver_may_give_up() {
    let guest = guest();
    guest.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    guest.set_features(VERSION_1);
    guest.write(reg::VIRTIO_MMIO_STATUS, READY);
    assert_eq!(guest.status(), READY);
    guest.add_status(FAILED);
    assert_eq!(guest.status(), READY | FAILED);
    guest.write(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 1, "it gave up");
    assert_can_be_reset(&guest);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 1);
}

#[test]
fn accesses_that_no_driver_makes_are_ignored_and_counted() {
    let guest = guest();
    let [mut queue] = guest.start(VERSION_1, 16);
    let mut expected = 0;
    let mut counted = |what: &str| {
        expected += 1;
        assert_eq!(guest.stats.get("virtio_bad_accesses"), expected, "{what}");
    };
    // Registers are 32 bits wide and aligned.
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (0x70, 1), (0x60, 8), (2, 2)] {
        let mut data = [0xee; 8];
        guest.transport.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 8][..len]);
        counted("a read of another width");
        guest.transport.write(offset, &[0; 8][..len]);
        counted("a write of another width");
    }
    assert_eq!(guest.status(), READY, "that was no reset");
    // Registers that are only written, or not there.
    let readable =
        [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x44, 0x60, 0x70, 0xb0, 0xb4, 0xb8, 0xbc, 0xfc];
    for register in (0..0x100).step_by(4).filter(|r| !readable.contains(r)) {
        assert_eq!(guest.read(register), 0, "{register:#x}");
        counted("a read of what can not be read");
    }
    // Registers that are only read, not there, or not to be written now.
    let writable = [0x14, 0x24, 0x30, 0x44, 0x50, 0x64, 0x70, 0xac];
    for register in (0..0x100).step_by(4).filter(|r| !writable.contains(r)) {
        guest.write(register, 1);
        counted("a write of what can not be written");
    }
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    counted("a queue that is ready already");
    // The configuration space, of which this device has nothing.
    for (offset, len) in [(0x100, 4), (0x100, 1), (0x104, 2), (0xffc, 8), (0xffff_ffff_ffff, 1)] {
        let mut data = [0xee; 8];
        guest.transport.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 8][..len]);
        counted("a read behind the configuration");
        guest.transport.write(offset, &[1; 8][..len]);
        counted("a write to the configuration");
    }
    for queue in [1, 2, 0x1_0000, u32::MAX] {
        guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        counted("a notification of a queue that there is not");
        guest.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        for register in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
            guest.write(register, 1);
            counted("a setting of a queue that there is not");
        }
        guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        counted("a setting of a queue that there is not");
    }
    guest.serve();
    assert_eq!(guest.status(), READY);
    assert_works(&guest, &mut queue);
    counted_nothing(&guest, expected);
}

fn counted_nothing(guest: &Guest, before: u64) {
    assert_eq!(guest.stats.get("virtio_bad_accesses"), before);
    assert_eq!(guest.stats.get("virtio_queue_errors"), 0);
}

#[test]
fn a_wrong_size_is_ignored() {
    let guest = guest();
    guest.negotiate(VERSION_1);
    for size in [0, 3, 63, 65, 128, 0x8000, 0x1_0000, 0x1_0040, u32::MAX] {
        guest.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
    }
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 9);
    let mut queue = guest.queue(0, 1, 0);
    guest.add_status(DRIVER_OK);
    (0..5).for_each(|_| assert_works(&guest, &mut queue));
}

/// A queue whose rings can not be used makes the device ask for a reset.
#[test]
fn a_queue_that_is_not_in_memory_is_refused() {
    let guest = guest();
    let good = Queue::new(&guest.memory, 0, 16, false);
    let (d, a, u) = (good.descriptors, good.available, good.used);
    let cases = [
        ("no memory", 0x1000_0000, a, u),
        ("no memory", d, u64::MAX - 1, u),
        ("no memory", d, a, 0xffff_ffff_ffff_fff0),
        ("past the end", MEMORY - 0x80, a, u),
        ("past the end", d, MEMORY - 0x10, u),
        ("past the end", d, a, MEMORY - 0x10),
        ("not aligned", d + 8, a, u),
        ("not aligned", d, a + 1, u),
        ("not aligned", d, a, u + 2),
        ("not set", d, 0, u),
        ("not set", d, a, 0),
    ];
    for (n, (what, descriptors, available, used)) in (1..).zip(cases) {
        guest.negotiate(VERSION_1);
        let mut queue = Queue::new(&guest.memory, 0, 16, false);
        (queue.descriptors, queue.available, queue.used) = (descriptors, available, used);
        guest.place(&queue);
        guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "{what}");
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET, "{what}");
        assert_eq!(guest.stats.get("virtio_queue_errors"), n);
        // virtio 1.2, 2.1.2: not before DRIVER_OK.
        assert_eq!(guest.interrupts(), (0, 0));
        guest.add_status(DRIVER_OK);
        guest.serve();
    }
    assert_eq!(guest.stats.get("virtio_config_interrupts"), 0);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 0);
    assert_can_be_reset(&guest);
}

#[test]
fn a_queue_may_be_taken_back_and_set_up_again() {
    let guest = guest();
    let [mut queue] = guest.start(VERSION_1, 16);
    assert_works(&guest, &mut queue);
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    queue.add(&[into(BUFFERS, 64)]);
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take(), []);
    let mut queue = guest.queue(0, 32, 0);
    assert_works(&guest, &mut queue);
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    guest.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    counted_nothing(&guest, 0);
}

/// The registers that a driver reads at interrupts, while the device is in the middle of a request; and a
/// reset, which waits for just that one.
#[test]
fn interrupts_are_acknowledged_while_the_device_works_and_a_reset_waits_for_it() {
    struct Slow {
        stopped: mpsc::Sender<usize>,
        started: mpsc::Sender<()>,
        finish: mpsc::Receiver<()>,
        chain: Chain,
    }
    impl Device for Slow {
        fn id(&self) -> DeviceId {
            DeviceId::Block
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[8]
        }
        fn config(&self) -> &[u8] {
            &[1, 2, 3, 4, 5, 6, 7, 8, 9]
        }
        fn activate(&mut self, _: u64) {}
        fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
            while turn.next(&mut self.chain)? {
                self.started.send(()).unwrap();
                self.finish.recv().unwrap();
                turn.give_back(self.chain.head, 0)?;
            }
            Ok(Progress::Done)
        }
        fn queue_stopped(&mut self, queue: usize) {
            self.stopped.send(queue).unwrap();
        }
    }
    let ((started, has_started), (finish, may_finish)) = (mpsc::channel(), mpsc::channel());
    let (has_stopped, stopped) = mpsc::channel();
    let device =
        Slow { stopped: has_stopped, started, finish: may_finish, chain: Chain::default() };
    let mut guest = Guest::new(|_| device);
    guest.spawn();
    let [mut queue] = guest.start(VERSION_1, 8);
    (0..3).for_each(|_| _ = queue.add(&[into(BUFFERS, 1)]));
    guest.notify(&queue);
    has_started.recv().unwrap();
    // None of this waits; if it did, it would for ever.
    assert_eq!(guest.interrupts(), (0, 0));
    assert_eq!(guest.status(), READY);
    assert_eq!(guest.config(0), [1_u8]);
    assert_eq!(guest.config(1), [2_u8, 3]);
    assert_eq!(guest.config(1), [2_u8, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(guest.config(7), [8_u8, 9, 0, 0], "it ends there");
    guest.notify(&queue);
    guest.write(0x100, 0);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 2);
    thread::scope(|scope| {
        let reset = scope.spawn(|| guest.write(reg::VIRTIO_MMIO_STATUS, 0));
        thread::sleep(Duration::from_millis(20));
        assert!(!reset.is_finished());
        assert_eq!(guest.status(), READY, "not before it is quiet");
        finish.send(()).unwrap();
        while !reset.is_finished() {
            if has_started.try_recv().is_ok() {
                // So that this ends.
                (0..3).for_each(|_| finish.send(()).unwrap());
                panic!("another request was begun");
            }
            thread::yield_now();
        }
    });
    assert_eq!(stopped.try_iter().collect::<Vec<_>>(), [0], "the device was told");
    assert_eq!(guest.status(), 0);
    assert_eq!(queue.take(), [(0, 0)], "the others were not begun");
    assert_eq!(has_started.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert_eq!(guest.stats.get("virtio_resets"), 2);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(guest.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn all_registers_may_be_used_from_many_threads_at_once() {
    let mut guest = guest();
    guest.spawn();
    let guest = &guest;
    thread::scope(|scope| {
        for seed in 1..4_u32 {
            scope.spawn(move || {
                let mut random = seed;
                for _ in 0..20_000 {
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let register = (random % 0x110) & !3;
                    match random >> 20 & 3 {
                        0 => _ = guest.read(register),
                        1 => guest.write(register, random >> 22 & 0xf),
                        2 => guest.write(reg::VIRTIO_MMIO_STATUS, 0),
                        _ => guest.write(reg::VIRTIO_MMIO_STATUS, random >> 22 & 0xf),
                    }
                }
            });
        }
    });
    let [queue] = guest.start(VERSION_1, 8);
    assert_eq!(guest.status(), READY);
    drop(queue);
    assert!(guest.stats.get("virtio_bad_accesses") > 0);
}

#[test]
#[should_panic(expected = "descriptors")]
fn a_device_with_an_impossible_queue_is_a_bug() {
    struct Wrong;
    impl Device for Wrong {
        fn id(&self) -> DeviceId {
            DeviceId::Entropy
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[3]
        }
        fn config(&self) -> &[u8] {
            &[]
        }
        fn activate(&mut self, _: u64) {}
        fn process(&mut self, _: &mut Turn<'_>) -> Result<Progress, QueueError> {
            Ok(Progress::Done)
        }
        fn queue_stopped(&mut self, _: usize) {}
    }
    let line = EventFd::new(0).unwrap();
    let _ = Arc::new(Transport::new(Wrong, driver::memory(), line, NoEvents, NoEvents));
}
