//! A network interface, from its driver's side, with a real tap interface behind it, in a network of the
//! test's own.

mod driver;
#[path = "driver/network.rs"]
mod network;

use devices::virtio::net::{Mac, Net, Tap};
use devices::virtio::stats::NetCounters;
use driver::{BUFFERS, EVENT_IDX, Guest, INDIRECT, NEEDS_RESET, Queue, VERSION_1, into, out};
use network::{Wire, in_network, ip};

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MERGEABLE: u64 = 1 << 15;

const ADDRESS: Mac = Mac::new([2, 0, 0, 0, 0, 7]);
/// Bytes of the header before a packet.
const HEADER: usize = 12;

/// A device on the tap interface `tap0`, which is made here.
fn guest() -> (Guest, Wire) {
    ip("tuntap add tap0 mode tap");
    ip("link set tap0 up");
    let guest = Guest::new(|source| {
        let counters = NetCounters::new(source.add_values().unwrap());
        Net::new(Tap::open("tap0").unwrap(), ADDRESS, counters)
    });
    (guest, Wire::open("tap0"))
}

/// A frame of `len` bytes that is told apart by `mark`. Of a protocol for experiments, so that nobody
/// answers it.
fn frame(len: usize, mark: u8) -> Vec<u8> {
    let mut frame = vec![mark; len];
    frame[..6].copy_from_slice(&ADDRESS.bytes());
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Sends a frame, its header before it, cut in pieces of `piece` bytes.
fn send(guest: &Guest, queue: &mut Queue, frame: &[u8], piece: usize) {
    let packet = [&[0; HEADER], frame].concat();
    guest.put(BUFFERS, &packet);
    let pieces: Vec<_> = (0..packet.len())
        .step_by(piece)
        .map(|at| out(BUFFERS + at as u64, piece.min(packet.len() - at) as u32))
        .collect();
    queue.add_indirect(&pieces);
    guest.notify(queue);
    guest.serve();
    assert_eq!(queue.take().len(), 1);
}

/// The device's counts are those of the tap interface, exactly. What the tap sends is what we receive.
fn assert_counts_are_those_of_the_tap(guest: &Guest) {
    let tap = network::counters("tap0");
    let get = |name: &str| guest.stats.get(name);
    assert_eq!(get("net_tx_packets"), tap.rx_packets);
    assert_eq!(get("net_tx_bytes"), tap.rx_bytes);
    assert_eq!(get("net_rx_packets") + get("net_rx_drops"), tap.tx_packets);
    assert_eq!(get("net_rx_bytes") + get("net_rx_drop_bytes"), tap.tx_bytes);
    assert_eq!(tap.tx_drops, 0, "the test keeps the tap from being full");
}

#[test]
fn it_says_what_it_is() {
    in_network(|| {
        let (guest, _wire) = guest();
        assert_eq!(guest.read(8), 1);
        assert_eq!(guest.config(0), ADDRESS.bytes());
        let features = VERSION_1 | INDIRECT | EVENT_IDX | CSUM | GUEST_CSUM | MAC | MERGEABLE;
        let large = GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
        assert_eq!(guest.offered(), features | large);
    });
}

#[test]
fn features_that_need_others_are_not_accepted_alone() {
    in_network(|| {
        let (guest, _wire) = guest();
        for (features, accepted) in [
            (0, true),
            (CSUM | GUEST_CSUM | MERGEABLE | MAC, true),
            (GUEST_TSO4, false),
            (GUEST_TSO6 | CSUM, false),
            (GUEST_CSUM | GUEST_TSO6, true),
            (GUEST_CSUM | GUEST_ECN, false),
            (GUEST_CSUM | GUEST_ECN | GUEST_TSO6, true),
            (HOST_TSO4 | GUEST_CSUM, false),
            (HOST_TSO4 | HOST_TSO6 | CSUM, true),
            (HOST_ECN | CSUM, false),
            (HOST_ECN | HOST_TSO4 | CSUM, true),
        ] {
            guest.write(0x70, 0);
            guest.add_status(1);
            guest.add_status(2);
            guest.set_features(VERSION_1 | features);
            guest.add_status(8);
            assert_eq!(guest.status() == 11, accepted, "{features:#x}");
        }
    });
}

#[test]
fn frames_are_sent_as_they_are() {
    in_network(|| {
        let (guest, wire) = guest();
        let [_, mut tx] = guest.start(VERSION_1 | INDIRECT, 64);
        for (mark, (len, piece)) in
            (1..).zip([(60, 4096), (1514, 4096), (1514, 7), (61, 1), (14 + 1, 12), (999, 13)])
        {
            let frame = frame(len, mark);
            send(&guest, &mut tx, &frame, piece);
            assert_eq!(wire.receive(), Some(frame));
        }
        assert_eq!(guest.stats.get("net_tx_packets"), 6);
        assert_eq!(guest.stats.get("net_tx_bytes"), 60 + 1514 + 1514 + 61 + 15 + 999);
        assert_eq!(guest.stats.get("net_tx_time/count"), 6);
        assert_eq!(guest.stats.get("net_tx_in_flight"), 0);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    in_network(|| {
        let (guest, wire) = guest();
        let [_, mut tx] = guest.start(VERSION_1 | INDIRECT, 64);
        let mut submit = |pieces: &[driver::Piece]| assert_eq!(guest.submit(&mut tx, pieces), 0);
        guest.put(BUFFERS, &[0; 128]);
        // Nothing; half a header; no frame; no Ethernet header; more than any frame has.
        for len in [0, 1, 11, 12, 13, 25, 0x2_0000] {
            submit(&[out(BUFFERS, len)]);
        }
        // A header that promises more than there is.
        guest.put(BUFFERS, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        submit(&[out(BUFFERS, 80)]);
        assert_eq!(guest.stats.get("net_tx_errors"), 8);
        assert_eq!(guest.stats.get("net_tx_packets"), 0);
        assert_eq!(wire.receive(), None);
        // An interface that is down.
        ip("link set tap0 down");
        send(&guest, &mut tx, &frame(60, 1), 4096);
        assert_eq!(guest.stats.get("net_tx_errors"), 9);
        ip("link set tap0 up");
        send(&guest, &mut tx, &frame(60, 2), 4096);
        assert_eq!(wire.receive(), Some(frame(60, 2)));
        assert_eq!(guest.stats.get("net_tx_packets"), 1);
        assert_eq!(guest.status() & NEEDS_RESET, 0);
    });
}

#[test]
fn a_packet_to_be_sent_with_memory_to_be_written_is_no_packet() {
    in_network(|| {
        let (guest, _wire) = guest();
        let [_, mut tx] = guest.start(VERSION_1, 64);
        tx.add(&[out(BUFFERS, 80), into(BUFFERS, 1)]);
        guest.notify(&tx);
        guest.serve();
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        let [mut rx, _tx] = guest.start::<2>(VERSION_1, 64);
        rx.add(&[into(BUFFERS, 11)]);
        guest.notify(&rx);
        guest.serve();
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET, "no room for the header");
    });
}

/// Buffers for packets, one after the other.
struct Buffers {
    at: u64,
    heads: std::collections::HashMap<u32, (u64, u32)>,
}

impl Buffers {
    fn new() -> Self {
        Self { at: BUFFERS + 0x2_0000, heads: Default::default() }
    }

    /// Adds `count` of `len` bytes each.
    fn add(&mut self, queue: &mut Queue, count: usize, len: u32) {
        for _ in 0..count {
            // In two pieces, to be unkind.
            let first = len / 3;
            let head =
                queue.add(&[into(self.at, first), into(self.at + u64::from(first), len - first)]);
            self.heads.insert(head.into(), (self.at, len));
            self.at += u64::from(len);
        }
    }

    /// The packets that the device has delivered: without their headers, and the number of buffers that
    /// each was in.
    fn take(&mut self, guest: &Guest, queue: &mut Queue) -> Vec<(Vec<u8>, u16)> {
        let mut used = queue.take().into_iter();
        let mut packets = Vec::new();
        let mut next = |packet: &mut Vec<u8>| {
            let (head, len) = used.next()?;
            let (at, room) = self.heads.remove(&head).expect("a buffer of ours");
            assert!(len <= room);
            packet.extend(guest.get(at, len as usize));
            Some(len == room)
        };
        loop {
            let mut packet = Vec::new();
            let Some(mut full) = next(&mut packet) else { return packets };
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..count {
                assert!(full, "only the last one is not full");
                full = next(&mut packet).expect("all of them at once");
            }
            packets.push((packet.split_off(HEADER), count));
        }
    }
}

#[test]
fn frames_are_received_whole_in_one_buffer_or_in_many() {
    in_network(|| {
        let (guest, wire) = guest();
        for features in [VERSION_1, VERSION_1 | MERGEABLE, VERSION_1 | MERGEABLE | EVENT_IDX] {
            let [mut rx, _tx] = guest.start::<2>(features, 64);
            let mut buffers = Buffers::new();
            buffers.add(&mut rx, 8, 1526);
            guest.notify(&rx);
            guest.serve();
            assert_eq!(rx.take(), []);
            for (mark, len) in (0..).zip([60, 1514, 61, 999]) {
                wire.send(&frame(len, mark));
            }
            guest.serve();
            let expected: Vec<_> =
                (0..).zip([60, 1514, 61, 999]).map(|(mark, len)| (frame(len, mark), 1)).collect();
            assert_eq!(buffers.take(&guest, &mut rx), expected);
            if features & MERGEABLE != 0 {
                // The four that are left, then small ones.
                buffers.add(&mut rx, 20, 100);
                guest.notify(&rx);
                (0..4).for_each(|mark| wire.send(&frame(1000, mark)));
                wire.send(&frame(1514, 9));
                wire.send(&frame(88, 10));
                wire.send(&frame(89, 11));
                guest.serve();
                let got = buffers.take(&guest, &mut rx);
                let lens: Vec<_> = got.iter().map(|(f, count)| (f.len(), f[20], *count)).collect();
                let one = |mark| (1000, mark, 1);
                let many = [(1514, 9, 16), (88, 10, 1), (89, 11, 2)];
                assert_eq!(lens, [&[one(0), one(1), one(2), one(3)][..], &many].concat());
                assert_eq!(got[4].0, frame(1514, 9));
            }
        }
        assert_eq!(guest.stats.get("net_rx_packets"), 4 + 11 + 11);
        assert_eq!(guest.stats.get("net_rx_drops"), 0);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn a_device_without_buffers_does_not_read_and_does_not_wake_up_for_ever() {
    in_network(|| {
        let (guest, wire) = guest();
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 64);
        guest.serve();
        (0..10).for_each(|mark| wire.send(&frame(1000, mark)));
        // It ends, though the tap interface stays readable.
        guest.serve();
        assert_eq!(guest.serve(), 0);
        assert_eq!(guest.stats.get("net_rx_starved"), 1);
        assert_eq!(guest.stats.get("net_rx_packets"), 0);
        assert!(rx.is_notification_wanted());
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 3, 1526);
        guest.notify(&rx);
        guest.serve();
        let marks = |got: Vec<(Vec<u8>, u16)>| got.iter().map(|(f, _)| f[20]).collect::<Vec<_>>();
        assert_eq!(marks(buffers.take(&guest, &mut rx)), [0, 1, 2]);
        assert_eq!(guest.stats.get("net_rx_starved"), 2);
        buffers.add(&mut rx, 20, 1526);
        guest.notify(&rx);
        guest.serve();
        assert_eq!(marks(buffers.take(&guest, &mut rx)), [3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(guest.stats.get("net_rx_starved"), 2);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn buffers_may_be_in_more_pieces_than_one_system_call_takes() {
    in_network(|| {
        let (guest, wire) = guest();
        let large = VERSION_1 | INDIRECT | MERGEABLE | GUEST_CSUM | GUEST_TSO4;
        let [mut rx, _tx] = guest.start::<2>(large, 64);
        for number in 0..60 {
            let (table, at) = (0x10_0000 + number * 0x1000, 0x20_0000 + number * 0x1000);
            let pieces: Vec<_> = (0..200).map(|i| into(at + 10 * i, 7)).collect();
            rx.add_table(table, &pieces);
        }
        guest.notify(&rx);
        guest.serve();
        wire.send(&frame(1500, 1));
        guest.serve();
        let used: Vec<_> = rx.take().iter().map(|(_, len)| *len).collect();
        assert_eq!(used, [1400, 1500 + HEADER as u32 - 1400]);
        let bytes = |number: u64| {
            let at = 0x20_0000 + number * 0x1000;
            (0..200).flat_map(|i| guest.get(at + 10 * i, 7)).collect::<Vec<_>>()
        };
        let got = [bytes(0), bytes(1)].concat();
        assert_eq!(got[HEADER..HEADER + 1500], frame(1500, 1));
        assert_eq!(guest.stats.get("net_rx_errors"), 0);
    });
}

/// virtio 1.2, 5.1.6.4: a driver that sees one of the buffers of a packet sees all of them.
#[test]
fn the_buffers_of_a_frame_are_given_back_together() {
    in_network(|| {
        let (mut guest, wire) = guest();
        guest.spawn();
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 256);
        // 1000 bytes and a header are eleven buffers.
        for round in 0..100_u16 {
            (0..220).for_each(|i| _ = rx.add(&[into(BUFFERS + 100 * i, 92)]));
            guest.notify(&rx);
            (0..20).for_each(|mark| wire.send(&frame(1000, mark)));
            let all = 220 * (round + 1);
            loop {
                let index = rx.load16(rx.used + 2);
                assert_eq!(index % 11, 0, "in the middle of a frame");
                if index == all {
                    break;
                }
            }
            assert_eq!(rx.take().len(), 220);
        }
    });
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_still_needs() {
    in_network(|| {
        let (guest, wire) = guest();
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 64);
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 3, 100);
        guest.notify(&rx);
        wire.send(&frame(1000, 1));
        wire.send(&frame(60, 2));
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), []);
        assert!(rx.is_notification_wanted());
        buffers.add(&mut rx, 5, 100);
        guest.notify(&rx);
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), []);
        buffers.add(&mut rx, 4, 100);
        guest.notify(&rx);
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), [(frame(1000, 1), 11), (frame(60, 2), 1)]);
        assert_eq!(guest.stats.get("net_rx_drops"), 0);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn a_frame_that_never_fits_is_dropped() {
    in_network(|| {
        let (guest, wire) = guest();
        // A single buffer, that is too small.
        let [mut rx, _tx] = guest.start::<2>(VERSION_1, 8);
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 2, 500);
        guest.notify(&rx);
        wire.send(&frame(1000, 1));
        wire.send(&frame(488, 2));
        wire.send(&frame(489, 3));
        wire.send(&frame(60, 4));
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), [(frame(488, 2), 1), (frame(60, 4), 1)]);
        assert_eq!(guest.stats.get("net_rx_drops"), 2);
        assert_eq!(guest.stats.get("net_rx_drop_bytes"), 1489);
        // A whole queue of buffers that is too small for it.
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 8);
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 4, 100);
        guest.notify(&rx);
        guest.serve();
        wire.send(&frame(1000, 5));
        wire.send(&frame(100, 6));
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), [(frame(100, 6), 2)], "8 descriptors are 4 here");
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn a_large_segment_is_received_by_a_driver_that_can_and_cut_for_one_that_can_not() {
    in_network(|| {
        let (guest, wire) = guest();
        let large = VERSION_1 | MERGEABLE | GUEST_CSUM | GUEST_TSO4;
        for (features, packets) in [(large, 1), (VERSION_1 | MERGEABLE, 42)] {
            let [mut rx, _tx] = guest.start::<2>(features, 256);
            let mut buffers = Buffers::new();
            buffers.add(&mut rx, 100, 2000);
            guest.notify(&rx);
            guest.serve();
            let payload = 60_000;
            wire.send_tcp_segment(&ADDRESS.bytes(), payload, 1448);
            guest.serve();
            let got = buffers.take(&guest, &mut rx);
            assert_eq!(got.len(), packets, "{features:#x}");
            let bytes: usize = got.iter().map(|(frame, _)| frame.len() - 14 - 20 - 20).sum();
            assert_eq!(bytes, payload);
        }
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn frames_for_an_earlier_driver_are_not_for_the_next_one() {
    in_network(|| {
        let (guest, wire) = guest();
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 64);
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 2, 100);
        guest.notify(&rx);
        // One that waits for buffers, and some in the tap interface.
        (0..5).for_each(|mark| wire.send(&frame(1000, mark)));
        guest.serve();
        let [mut rx, _tx] = guest.start::<2>(VERSION_1 | MERGEABLE, 64);
        let mut buffers = Buffers::new();
        buffers.add(&mut rx, 5, 1526);
        guest.notify(&rx);
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), []);
        wire.send(&frame(1000, 9));
        guest.serve();
        assert_eq!(buffers.take(&guest, &mut rx), [(frame(1000, 9), 1)]);
        assert_eq!(guest.stats.get("net_rx_drops"), 5);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn both_directions_go_on_under_load() {
    in_network(|| {
        let (guest, wire) = guest();
        let [mut rx, mut tx] = guest.start(VERSION_1 | MERGEABLE | INDIRECT | EVENT_IDX, 256);
        let mut received = 0;
        for round in 0..50_u8 {
            let mut buffers = Buffers::new();
            buffers.add(&mut rx, 60, 1526);
            (0..60).for_each(|mark| wire.send(&frame(1514, mark)));
            guest.notify(&rx);
            let sent = frame(1400, round);
            send(&guest, &mut tx, &sent, 200);
            assert_eq!(wire.receive(), Some(sent));
            received += buffers.take(&guest, &mut rx).len();
        }
        assert_eq!(received, 50 * 60);
        assert_eq!(guest.stats.get("net_rx_packets"), 50 * 60);
        assert_eq!(guest.stats.get("net_rx_bytes"), 50 * 60 * 1514);
        assert_counts_are_those_of_the_tap(&guest);
    });
}

#[test]
fn a_full_queue_is_worked_off_and_the_next_notification_is_asked_for() {
    in_network(|| {
        let (guest, wire) = guest();
        for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
            let [_, mut tx] = guest.start::<2>(features, 256);
            guest.put(BUFFERS, &[&[0; HEADER], &frame(60, 1)[..]].concat());
            for _ in 0..3 {
                (0..256).for_each(|_| _ = tx.add(&[out(BUFFERS, 72)]));
                guest.notify(&tx);
                guest.serve();
                assert_eq!(tx.take().len(), 256);
                assert!(tx.is_notification_wanted());
                while wire.receive().is_some() {}
            }
        }
        assert_eq!(guest.stats.get("net_tx_packets"), 2 * 3 * 256);
        assert_counts_are_those_of_the_tap(&guest);
    });
}
