//! Queues and descriptor chains that no driver makes: the device stops, says so, and works again after a
//! reset.

mod driver;

use std::sync::mpsc;
use std::thread;

use devices::virtio::entropy::Entropy;
use devices::virtio::stats::EntropyCounters;
use devices::virtio::{Chain, Device, DeviceId, Progress, QueueError, Turn};
use driver::{
    BUFFERS, EVENT_IDX, FEATURES_OK, Guest, INDIRECT, MEMORY, NEEDS_RESET, NEXT, Piece, Queue,
    READY, TABLE, VERSION_1, WRITE, into, out,
};
use virtio_bindings::virtio_mmio as reg;

fn guest() -> Guest {
    Guest::new(|source| Entropy::new(EntropyCounters::new(source.add_values().unwrap())).unwrap())
}

/// A request for random bytes is answered: the device works.
fn assert_works(guest: &Guest, queue: &mut Queue) {
    assert_eq!(guest.submit(queue, &[into(BUFFERS, 64)]), 64);
}

/// After whatever happened, a reset makes it work.
fn assert_can_be_reset(guest: &Guest) {
    let [mut queue] = guest.start(VERSION_1 | INDIRECT, 16);
    assert_works(guest, &mut queue);
    assert_eq!(guest.status(), READY);
}

/// What is done, and how.
type Break = (&'static str, fn(&Guest, &mut Queue));

/// What a driver may do to a queue that no driver does.
fn broken_chains() -> Vec<Break> {
    fn head(queue: &mut Queue, head: u16) {
        queue.offer(head);
        queue.expose();
    }
    vec![
        ("a loop of one", |_, q| {
            q.describe(q.descriptors, 0, Piece(BUFFERS, 8, WRITE | NEXT), 0);
            head(q, 0);
        }),
        ("a loop of many", |_, q| {
            for i in 0..16 {
                q.describe(q.descriptors, i, Piece(BUFFERS, 8, WRITE | NEXT), (i + 1) % 16);
            }
            head(q, 3);
        }),
        ("a next one outside the table", |_, q| {
            q.describe(q.descriptors, 0, Piece(BUFFERS, 8, WRITE | NEXT), 16);
            head(q, 0);
        }),
        ("a head outside the table", |_, q| head(q, 16)),
        ("a head far outside the table", |_, q| head(q, u16::MAX)),
        ("memory that there is not", |_, q| _ = q.add(&[into(0x4000_0000, 8)])),
        ("memory up to where there is none", |_, q| _ = q.add(&[into(MEMORY - 8, 9)])),
        ("memory around the end of the address space", |_, q| _ = q.add(&[into(u64::MAX, 16)])),
        ("more than all memory", |_, q| _ = q.add(&[into(BUFFERS, u32::MAX)])),
        ("chains longer than 4 GiB", |_, q| {
            let all = [into(BUFFERS, 0x20_0000); 16];
            q.add_indirect(&[all; 129].concat());
        }),
        ("something to be read after something to be written", |_, q| {
            q.add(&[into(BUFFERS, 8), out(BUFFERS, 8)]);
        }),
        ("an empty table", |_, q| _ = q.add(&[Piece(q.tables, 0, TABLE)])),
        ("half a descriptor in a table", |_, q| _ = q.add(&[Piece(q.tables, 24, TABLE)])),
        ("a table that is not in memory", |_, q| _ = q.add(&[Piece(0x4000_0000, 16, TABLE)])),
        ("a table in a table", |_, q| {
            q.describe(q.tables, 0, Piece(q.tables, 16, TABLE), 0);
            q.add(&[Piece(q.tables, 16, TABLE)]);
        }),
        ("a table in a table, later", |_, q| {
            q.describe(q.tables, 0, Piece(BUFFERS, 16, WRITE | NEXT), 1);
            q.describe(q.tables, 1, Piece(q.tables, 32, TABLE), 0);
            q.add(&[Piece(q.tables, 32, TABLE)]);
        }),
        ("a table with a loop", |_, q| {
            q.describe(q.tables, 0, Piece(BUFFERS, 16, WRITE | NEXT), 0);
            q.add(&[Piece(q.tables, 16 * 4, TABLE)]);
        }),
        ("a table of 65535", |_, q| {
            for i in 0..=u16::MAX - 1 {
                q.describe(0x10_0000, i, Piece(BUFFERS, 1, WRITE | NEXT), i + 1);
            }
            q.add(&[Piece(0x10_0000, 16 * 0xffff, TABLE)]);
        }),
        ("an index ahead of the ring", |_, q| q.set_index(17)),
        ("an index far ahead", |_, q| q.set_index(0x8000)),
        ("an index that went back", |g, q| {
            assert_works(g, q);
            q.set_index(0);
        }),
        ("no request of this device", |_, q| _ = q.add(&[out(BUFFERS, 8)])),
        ("nothing", |_, q| _ = q.add(&[into(BUFFERS, 0)])),
    ]
}

#[test]
fn a_broken_queue_stops_the_device_until_it_is_reset() {
    for (n, (what, break_it)) in (1..).zip(broken_chains()) {
        let guest = guest();
        for features in [VERSION_1 | INDIRECT, VERSION_1 | INDIRECT | EVENT_IDX] {
            let [mut queue] = guest.start(features, 16);
            break_it(&guest, &mut queue);
            let before = guest.stats.get("virtio_queue_errors");
            guest.interrupts();
            guest.notify(&queue);
            guest.serve();
            assert_eq!(guest.status(), READY | NEEDS_RESET, "{n}: {what}");
            assert_eq!(guest.stats.get("virtio_queue_errors"), before + 1, "{what}");
            assert_eq!(guest.interrupts(), (1, 2), "{what}");
            assert_eq!(queue.take(), [], "{what}");
            // Nothing works, and nothing more is said.
            guest.notify(&queue);
            guest.serve();
            assert_eq!(guest.interrupts(), (0, 0), "{what}");
            guest.add_status(FEATURES_OK);
            assert_eq!(guest.status(), READY | NEEDS_RESET, "{what}");
            assert_can_be_reset(&guest);
        }
        assert_eq!(guest.stats.get("virtio_bad_accesses"), 0, "{what}");
    }
}

#[test]
fn what_was_done_before_a_broken_chain_is_given_back() {
    let guest = guest();
    let [mut queue] = guest.start(VERSION_1, 16);
    queue.add(&[into(BUFFERS, 8)]);
    queue.add(&[into(BUFFERS, 16)]);
    queue.add(&[into(0x4000_0000, 8)]);
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take(), [(0, 8), (1, 16)]);
    let (_, why) = guest.interrupts();
    assert_eq!(why, 3, "of both");
    assert_eq!(guest.stats.get("rng_requests"), 2);
}

/// More chains than the queue has, by a driver that adds them while the device works.
#[test]
fn a_driver_can_not_have_more_chains_with_the_device_than_there_are() {
    struct Hoarder {
        chains: mpsc::Sender<u16>,
        go_on: mpsc::Receiver<()>,
        chain: Chain,
    }
    impl Device for Hoarder {
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
                self.chains.send(self.chain.head).unwrap();
                self.go_on.recv().unwrap();
            }
            Ok(Progress::Done)
        }
        fn queue_stopped(&mut self, _: usize) {}
    }
    let ((chains, heads), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let mut guest = Guest::new(|_| Hoarder { chains, go_on, chain: Chain::default() });
    guest.spawn();
    let [mut queue] = guest.start(VERSION_1, 8);
    queue.describe(queue.descriptors, 0, into(BUFFERS, 8), 0);
    let mut add = || {
        queue.offer(0);
        queue.expose();
    };
    add();
    guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    for _ in 0..8 {
        assert_eq!(heads.recv(), Ok(0));
        add();
        go.send(()).unwrap();
    }
    // The ninth was never given to the device.
    while guest.status() != READY | NEEDS_RESET {
        assert_eq!(heads.try_recv(), Err(mpsc::TryRecvError::Empty));
        thread::yield_now();
    }
    assert_eq!(heads.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert_eq!(guest.stats.get("virtio_queue_errors"), 1);
}
