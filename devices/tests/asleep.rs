//! Devices on threads of their own, and drivers that sleep until they are interrupted, as Linux' do: a
//! notification or an interrupt that is lost is one that somebody waits for in vain.

mod driver;
#[path = "driver/network.rs"]
mod network;

use std::fs;
use std::thread;
use std::time::Duration;

use devices::virtio::block::{Block, Disk};
use devices::virtio::net::{Mac, Net, Tap};
use devices::virtio::stats::{BlockCounters, NetCounters};
use devices::virtio::{Chain, Device, DeviceId, Progress, QueueError, Turn};
use driver::{BUFFERS, EVENT_IDX, Guest, Queue, VERSION_1, into, out};
use network::{Wire, in_network, ip};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How long nobody has to wait, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// `STATSFS_SOAK` times as many.
fn rounds(count: u64) -> u64 {
    let soak = std::env::var("STATSFS_SOAK").ok().and_then(|n| n.parse().ok());
    count * soak.unwrap_or(1).max(1)
}

/// The same numbers in each run, which look like any.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }

    /// So that the driver comes at any point of the device's work.
    fn pause(&mut self, longest: u64) {
        (0..self.below(longest)).for_each(|_| std::hint::spin_loop());
    }
}

/// The driver's interrupt line.
struct Line<'a> {
    guest: &'a Guest,
    epoll: Epoll,
    sleeps: u64,
}

impl<'a> Line<'a> {
    fn of(guest: &'a Guest) -> Self {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let line = std::os::fd::AsRawFd::as_raw_fd(&guest.line);
        epoll.ctl(ControlOperation::Add, line, event).unwrap();
        Self { guest, epoll, sleeps: 0 }
    }

    /// Sleeps until an interrupt says that a queue has used something. As Linux' handler, it looks at the
    /// queues only if the register says so, and acknowledges before it looks.
    fn sleep(&mut self, what: impl Fn() -> String) {
        loop {
            self.sleeps += 1;
            let ready = self.epoll.wait(PATIENCE.as_millis() as i32, &mut [EpollEvent::default()]);
            assert_eq!(ready.unwrap(), 1, "nobody interrupts: {}", what());
            if self.guest.interrupts().1 & 1 != 0 {
                return;
            }
        }
    }
}

/// Makes a chain available, and notifies the device if it asks for that.
fn add(guest: &Guest, queue: &mut Queue, pieces: &[driver::Piece]) -> u16 {
    let before = queue.offered();
    let head = queue.add(pieces);
    if queue.is_notification_due(before) {
        guest.notify(queue);
    }
    head
}

fn features(event_idx: bool) -> u64 {
    VERSION_1 | if event_idx { EVENT_IDX } else { 0 }
}

const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 7]);
/// Bytes of the header before a packet.
const HEADER: u64 = 12;
const FRAME: u64 = 60;
/// Packets on their way.
const WINDOW: u64 = 16;
/// Fewer than packets can come, so that the device runs out of them.
const RECEIVE_BUFFERS: u64 = 4;

fn frame(number: u64) -> Vec<u8> {
    let mut frame = vec![0; FRAME as usize];
    frame[..6].copy_from_slice(&MAC.bytes());
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    // A protocol for experiments.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..22].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Frames go out and come back, in any number at once, and all sleep as soon as they have nothing to do.
fn there_and_back(event_idx: bool) {
    let count = rounds(50_000);
    ip("tuntap add tap0 mode tap");
    ip("link set tap0 up");
    let mut guest = Guest::new(|source| {
        let counters = NetCounters::new(source.add_values().unwrap());
        Net::new(Tap::open("tap0").unwrap(), MAC, counters)
    });
    let wire = Wire::open("tap0");
    let [mut rx, mut tx] = guest.start(features(event_idx), 64);
    guest.spawn();
    let guest = &guest;
    let echo = thread::spawn(move || {
        for number in 0..count {
            let frame = loop {
                if let Some(frame) = wire.receive() {
                    break frame;
                }
                assert!(wire.wait(PATIENCE), "frame {number} does not come out");
            };
            wire.send(&frame);
        }
    });

    let (mut places, mut spare) = ([0; 64], Vec::new());
    for buffer in 0..RECEIVE_BUFFERS {
        let place = BUFFERS + buffer * 2048;
        places[usize::from(add(guest, &mut rx, &[into(place, 2048)]))] = place;
    }
    let mut sending = [0; 64];
    spare.extend((0..2 * WINDOW).map(|slot| BUFFERS + 0x8_0000 + slot * 2048));
    let mut line = Line::of(guest);
    let mut numbers = Numbers(if event_idx { 7 } else { 77 });
    let (mut sent, mut received, mut sent_back) = (0, 0, 0);
    let mut window = 1;
    while received < count || sent_back < count {
        for (head, _) in tx.take() {
            spare.push(sending[head as usize]);
            sent_back += 1;
        }
        // The places of all, before a head is used again.
        let come: Vec<_> =
            rx.take().iter().map(|(head, len)| (places[*head as usize], *len)).collect();
        for (place, len) in come {
            assert_eq!(u64::from(len), HEADER + FRAME);
            assert_eq!(guest.get(place + HEADER, FRAME as usize), frame(received), "in order");
            received += 1;
            places[usize::from(add(guest, &mut rx, &[into(place, 2048)]))] = place;
        }
        if sent == received {
            window = 1 + numbers.below(WINDOW);
        }
        if sent < count && sent - received < window && !spare.is_empty() {
            let place = spare.pop().unwrap();
            guest.put(place, &[&[0; HEADER as usize][..], &frame(sent)].concat());
            sent += 1;
            numbers.pause(200);
            let head = add(guest, &mut tx, &[out(place, (HEADER + FRAME) as u32)]);
            sending[usize::from(head)] = place;
            continue;
        }
        // Both ask, even if the first has something.
        let is_over = received == count && sent_back == count;
        if !(tx.arm() | rx.arm() | is_over) {
            line.sleep(|| format!("{sent} sent, {sent_back} of them back, {received} received"));
            tx.disarm();
            rx.disarm();
        }
    }
    echo.join().unwrap();
    println!("event_idx {event_idx}: {count} there and back in {} sleeps", line.sleeps);
    let get = |name: &str| guest.stats.get(name);
    assert_eq!((get("net_tx_packets"), get("net_rx_packets")), (count, count));
    assert_eq!((get("net_tx_bytes"), get("net_rx_bytes")), (count * FRAME, count * FRAME));
    assert_eq!(get("net_rx_drops"), 0);
}

#[test]
fn frames_both_ways_find_whoever_sleeps() {
    in_network(|| there_and_back(false));
    in_network(|| there_and_back(true));
}

/// A driver with one queue, of requests whose chain `request` says for a slot: keeps several at the
/// device, and sleeps until some are done.
fn keep_busy(
    guest: &Guest,
    queue: &mut Queue,
    count: u64,
    request: impl Fn(u64) -> Vec<driver::Piece>,
) {
    const SLOTS: u64 = 16;
    let mut line = Line::of(guest);
    let mut numbers = Numbers(5);
    let mut spare: Vec<_> = (0..SLOTS).collect();
    let mut slots = [0; 64];
    let (mut begun, mut done, mut window) = (0, 0, 1);
    while done < count {
        for (head, _) in queue.take() {
            spare.push(slots[head as usize]);
            done += 1;
        }
        if begun == done {
            window = 1 + numbers.below(SLOTS);
        }
        if begun < count && begun - done < window {
            let slot = spare.pop().unwrap();
            begun += 1;
            numbers.pause(40);
            slots[usize::from(add(guest, queue, &request(slot)))] = slot;
            continue;
        }
        if !queue.arm() && done < count {
            line.sleep(|| format!("{done} of {begun} are done"));
            queue.disarm();
        }
    }
    println!("{count} requests in {} sleeps", line.sleeps);
}

#[test]
fn disks_find_whoever_sleeps() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![0x5a; 1 << 20]).unwrap();
    for event_idx in [false, true] {
        let count = rounds(100_000);
        let mut guest = Guest::new(|source| {
            let counters = BlockCounters::new(source.add_values().unwrap());
            Block::new(Disk::open(file.path(), true).unwrap(), "blk0", counters)
        });
        let [mut queue] = guest.start(features(event_idx), 64);
        guest.spawn();
        // A read of the sector of this number.
        keep_busy(&guest, &mut queue, count, |slot| {
            let place = BUFFERS + slot * 4096;
            guest.put(place, &[0, slot].map(u64::to_le_bytes).concat());
            vec![out(place, 16), into(place + 512, 512), into(place + 1024, 1)]
        });
        assert_eq!(guest.stats.get("blk_reads"), count);
        assert_eq!(guest.stats.get("blk_read_bytes"), count * 512);
        assert_eq!(guest.get(BUFFERS + 512, 512), [0x5a; 512]);
    }
}

/// Is done with each request as soon as it sees it, and says so: what it does is all queues and no work.
#[derive(Default)]
struct AtOnce(Chain);

impl Device for AtOnce {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn activate(&mut self, _: u64) {}
    fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
        while turn.next(&mut self.0)? {
            turn.give_back(self.0.head, 0)?;
            turn.signal()?;
        }
        Ok(Progress::Done)
    }
    fn queue_stopped(&mut self, _: usize) {}
}

#[test]
fn requests_that_take_no_time_find_whoever_sleeps() {
    for event_idx in [false, true] {
        let mut guest = Guest::uncounted(AtOnce::default());
        let [mut queue] = guest.start(features(event_idx), 64);
        guest.spawn();
        keep_busy(&guest, &mut queue, rounds(1_000_000), |slot| vec![out(BUFFERS + slot, 1)]);
    }
}
