//! The driver's side of virtio devices: registers, rings in guest memory, and a look at what the device
//! counted. Everything that a driver must do is here, and nothing keeps it from doing what it must not.
#![allow(dead_code, reason = "every test uses another part")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, JoinHandle};

use devices::BusDevice;
use devices::virtio::stats::{TransportCounters, VirtioStats};
use devices::virtio::{
    Device, Memory, NoEvents, Source as Event, Stopper, Transport, TransportEvents, Worker,
};
use statsfs::{Registry, Source};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const FAILED: u32 = 128;
/// The status of a device that works.
pub const READY: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

/// Guest memory: the rings below, the buffers above, and a gap further up.
pub const MEMORY: u64 = 4 << 20;
/// Where buffers are.
pub const BUFFERS: u64 = 1 << 20;
/// A second piece of memory, right behind which there is nothing.
pub const HIGH: u64 = 16 << 20;
pub const HIGH_SIZE: u64 = 64 << 10;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const TABLE: u16 = VRING_DESC_F_INDIRECT as u16;

pub fn memory() -> Memory {
    let ranges = [(GuestAddress(0), MEMORY as usize), (GuestAddress(HIGH), HIGH_SIZE as usize)];
    Memory::from_ranges(&ranges).unwrap()
}

/// Statistics of one device, if it has any.
pub struct Stats(Option<Registry>);

impl Stats {
    /// The file of this name, as everybody reads it.
    pub fn get(&self, name: &str) -> u64 {
        let registry = self.0.as_ref().expect("the device counts");
        let mut flat = Vec::new();
        registry.tree().unwrap().flat(&mut flat);
        let flat = String::from_utf8(flat).unwrap();
        let line = format!("dev/{name} ");
        let value = flat.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {name} in:\n{flat}")).parse().unwrap()
    }
}

/// A device with its registers, whose work is done when the test says so, or on a thread.
pub struct Guest {
    pub memory: Memory,
    pub transport: Transport,
    pub line: EventFd,
    pub stats: Stats,
    worker: Option<Served>,
    thread: Option<(JoinHandle<()>, Stopper, Arc<AtomicBool>)>,
}

struct Served {
    worker: Worker,
    epoll: Epoll,
    events: Vec<Event>,
}

impl Served {
    /// Serves what there is, waiting up to `timeout` ms for something (−1: for ever). Whether there was.
    fn serve(&self, timeout: i32) -> bool {
        let mut ready = [EpollEvent::default(); 8];
        let count = self.epoll.wait(timeout, &mut ready).unwrap();
        for event in &ready[..count] {
            self.worker.handle(self.events[event.data() as usize]);
        }
        count > 0
    }
}

impl Guest {
    /// `make` makes the device, which counts in this source.
    pub fn new<D: Device + 'static>(make: impl FnOnce(&Source) -> D) -> Self {
        let registry = Registry::new().unwrap();
        let source = registry.create_source("dev").unwrap();
        source.register().unwrap();
        let device = make(&source);
        let counters = || TransportCounters::new(source.add_values::<VirtioStats>().unwrap());
        Self::with(device, Stats(Some(registry)), [counters(), counters()])
    }

    /// With a device that counts nothing.
    pub fn uncounted(device: impl Device + 'static) -> Self {
        Self::with(device, Stats(None), [NoEvents; 2])
    }

    fn with<EV: TransportEvents + 'static>(
        device: impl Device + 'static,
        stats: Stats,
        [vcpu, worker]: [EV; 2],
    ) -> Self {
        let memory = memory();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (transport, worker) =
            Transport::new(device, memory.clone(), line.try_clone().unwrap(), vcpu, worker)
                .unwrap();
        let epoll = Epoll::new().unwrap();
        let mut events = Vec::new();
        for (event, fd) in worker.sources() {
            let set = match event {
                Event::Backend(_) => EventSet::IN | EventSet::EDGE_TRIGGERED,
                _ => EventSet::IN,
            };
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(set, events.len() as u64))
                .unwrap();
            events.push(event);
        }
        let worker = Some(Served { worker, epoll, events });
        Self { memory, transport, line, stats, worker, thread: None }
    }

    /// Lets the device do all that there is to do. Returns how often it woke up.
    pub fn serve(&self) -> usize {
        let worker = self.worker.as_ref().expect("it is not on a thread");
        // A device that goes on for ever would hang the test.
        (0..100_000).take_while(|_| worker.serve(0)).count()
    }

    /// Lets the device do its work on a thread from now on, until this is dropped.
    pub fn spawn(&mut self) {
        let served = self.worker.take().expect("it is not on a thread");
        let (stopper, stopping) = (served.worker.stopper(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let stopping = stopping.clone();
            move || {
                while !stopping.load(Ordering::Acquire) {
                    served.serve(-1);
                }
            }
        });
        self.thread = Some((thread, stopper, stopping));
    }

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        let Some((thread, stopper, stopping)) = self.thread.take() else { return };
        stopping.store(true, Ordering::Release);
        stopper.stop();
        thread.join().unwrap();
    }

    pub fn read(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u32, value: u32) {
        self.transport.write(offset.into(), &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    pub fn add_status(&self, bits: u32) {
        self.write(reg::VIRTIO_MMIO_STATUS, self.status() | bits);
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(1) << 32 | half(0)
    }

    pub fn set_features(&self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half as u32);
        }
    }

    /// Resets the device and agrees on those of `features` that it offers.
    pub fn negotiate(&self, features: u64) -> u64 {
        let agreed = self.try_negotiate(features);
        agreed.unwrap_or_else(|| panic!("the device does not accept {features:#x}"))
    }

    /// As [`negotiate`](Self::negotiate), unless the device can not do with just these.
    pub fn try_negotiate(&self, features: u64) -> Option<u64> {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let features = features & self.offered();
        self.set_features(features);
        self.add_status(FEATURES_OK);
        (self.status() == ACKNOWLEDGE | DRIVER | FEATURES_OK).then_some(features)
    }

    /// Makes a queue ready, its rings from `0x1_0000 * (index + 1)` on.
    pub fn queue(&self, index: u32, size: u16, features: u64) -> Queue {
        let queue = Queue::new(&self.memory, index, size, features & EVENT_IDX != 0);
        self.place(&queue);
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        queue
    }

    /// Tells the device where a queue is.
    pub fn place(&self, queue: &Queue) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.index);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        for (low, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.descriptors),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.available),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
    }

    /// All of it: a device that is ready, with queues of this size.
    pub fn start<const N: usize>(&self, features: u64, size: u16) -> [Queue; N] {
        let features = self.negotiate(features);
        let queues = std::array::from_fn(|index| self.queue(index as u32, size, features));
        self.add_status(DRIVER_OK);
        queues
    }

    pub fn notify(&self, queue: &Queue) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.index);
    }

    /// Takes the interrupts that were raised since the last time: how many, and why. Acknowledges them.
    pub fn interrupts(&self) -> (u64, u32) {
        let times = self.line.read().unwrap_or(0);
        let why = self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, why);
        (times, why)
    }

    /// Makes a chain available, lets the device work, and takes it back: the bytes written.
    pub fn submit(&self, queue: &mut Queue, pieces: &[Piece]) -> u32 {
        let head = queue.add(pieces);
        self.notify(queue);
        self.serve();
        let used = queue.take();
        assert_eq!(used.len(), 1, "the device gives one chain back for one");
        assert_eq!(used[0].0, u32::from(head));
        used[0].1
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A descriptor: address, length, flags.
#[derive(Clone, Copy, Debug)]
pub struct Piece(pub u64, pub u32, pub u16);

/// Memory that the device reads.
pub fn out(address: u64, len: u32) -> Piece {
    Piece(address, len, 0)
}

/// Memory that the device writes.
pub fn into(address: u64, len: u32) -> Piece {
    Piece(address, len, WRITE)
}

/// A split queue, as its driver sees it.
pub struct Queue {
    memory: Memory,
    pub index: u32,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Behind the rings, for tables of descriptors.
    pub tables: u64,
    event_idx: bool,
    free: Vec<u16>,
    chains: HashSet<u16>,
    lengths: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    pub fn new(memory: &Memory, index: u32, size: u16, event_idx: bool) -> Self {
        let descriptors = 0x1_0000 * u64::from(index + 1);
        let available = descriptors + 16 * u64::from(size);
        // Behind `used_event`, aligned.
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let tables = (used + 6 + 8 * u64::from(size)).next_multiple_of(16);
        let zeroes = vec![0; (tables - descriptors) as usize];
        memory.write_slice(&zeroes, GuestAddress(descriptors)).unwrap();
        Self {
            memory: memory.clone(),
            index,
            size,
            descriptors,
            available,
            used,
            tables,
            event_idx,
            free: (0..size).rev().collect(),
            chains: HashSet::new(),
            lengths: vec![Vec::new(); size.into()],
            next_available: 0,
            next_used: 0,
        }
    }

    pub fn store16(&self, address: u64, value: u16) {
        self.memory.store(value, GuestAddress(address), Ordering::Release).unwrap();
    }

    pub fn load16(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::Acquire).unwrap()
    }

    /// Writes a descriptor.
    pub fn describe(&self, table: u64, index: u16, Piece(address, len, flags): Piece, next: u16) {
        let at = table + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj([flags, next], GuestAddress(at + 12)).unwrap();
    }

    /// Puts a head into the ring, seen by the device or not yet.
    pub fn offer(&mut self, head: u16) {
        let place = self.next_available % self.size;
        self.store16(self.available + 4 + 2 * u64::from(place), head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Lets the device see what was offered.
    pub fn expose(&self) {
        self.set_index(self.next_available);
    }

    pub fn set_index(&self, index: u16) {
        self.store16(self.available + 2, index);
    }

    /// Writes a chain, and makes it available.
    pub fn add(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.describe_chain(pieces);
        self.offer(head);
        self.expose();
        head
    }

    fn describe_chain(&mut self, pieces: &[Piece]) -> u16 {
        let all: Vec<_> = pieces.iter().map(|_| self.free.pop().expect("a free one")).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let next = all.get(i + 1).copied();
            let flags = piece.2 | next.map_or(0, |_| NEXT);
            let piece = Piece(piece.0, piece.1, flags);
            self.describe(self.descriptors, all[i], piece, next.unwrap_or(0));
        }
        let head = all[0];
        assert!(self.chains.insert(head));
        self.lengths[usize::from(head)] = all;
        head
    }

    /// As [`add`](Self::add), but the descriptors are in a table of their own at `tables`.
    pub fn add_indirect(&mut self, pieces: &[Piece]) -> u16 {
        self.add_table(self.tables, pieces)
    }

    /// As [`add`](Self::add), but the descriptors are in a table of their own.
    pub fn add_table(&mut self, table: u64, pieces: &[Piece]) -> u16 {
        let last = pieces.len() - 1;
        for (i, piece) in pieces.iter().enumerate() {
            let flags = piece.2 | if i < last { NEXT } else { 0 };
            let next = if i < last { i as u16 + 1 } else { 0 };
            self.describe(table, i as u16, Piece(piece.0, piece.1, flags), next);
        }
        self.add(&[Piece(table, 16 * pieces.len() as u32, TABLE)])
    }

    /// Takes back what the device has used: the heads, and the bytes written.
    pub fn take(&mut self) -> Vec<(u32, u32)> {
        let index = self.load16(self.used + 2);
        let mut all = Vec::new();
        while self.next_used != index {
            let place = u64::from(self.next_used % self.size);
            let element: [u32; 2] =
                self.memory.read_obj(GuestAddress(self.used + 4 + 8 * place)).unwrap();
            let head = element[0] as u16;
            assert!(self.chains.remove(&head), "the device gave {head} back, which it had not got");
            self.free.append(&mut self.lengths[usize::from(head)]);
            self.next_used = self.next_used.wrapping_add(1);
            all.push((element[0], element[1]));
        }
        all
    }

    /// Asks for interrupts, or for none.
    pub fn want_interrupts(&self, wanted: bool) {
        let flags = if wanted { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 };
        self.store16(self.available, flags);
    }

    /// Asks for an interrupt when the chain of this number, counted from the first, is used.
    pub fn want_interrupt_for(&self, number: u16) {
        assert!(self.event_idx);
        self.store16(self.available + 4 + 2 * u64::from(self.size), number);
    }

    /// Number of chains that were made available so far, modulo 2^16.
    pub fn offered(&self) -> u16 {
        self.next_available
    }

    /// Whether the device asks to be notified of those that were made available since there were `before`
    /// of them. It sees them before this looks.
    pub fn is_notification_due(&self, before: u16) -> bool {
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.load16(self.used) & 1 == 0;
        }
        let event = self.load16(self.used + 4 + 8 * u64::from(self.size));
        let now = self.next_available;
        now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
    }

    /// Asks for an interrupt for whatever is used next. Whether there is something already: then there may
    /// be no interrupt.
    pub fn arm(&self) -> bool {
        if self.event_idx {
            self.want_interrupt_for(self.next_used);
        } else {
            self.want_interrupts(true);
        }
        fence(Ordering::SeqCst);
        self.load16(self.used + 2) != self.next_used
    }

    /// Asks for no interrupts, as far as a driver can.
    pub fn disarm(&self) {
        if !self.event_idx {
            self.want_interrupts(false);
        }
    }

    /// Whether the device asks to be notified of the next chain.
    pub fn is_notification_wanted(&self) -> bool {
        if self.event_idx {
            self.load16(self.used + 4 + 8 * u64::from(self.size)) == self.next_available
        } else {
            self.load16(self.used) & 1 == 0
        }
    }
}
