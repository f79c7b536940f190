//! Packets from outside, on their way into the driver's buffers.
//!
//! A packet is read straight into the buffers, though nobody knows before how long it is. Therefore as many
//! buffers are taken off the queue as the longest packet needs, if there are as many, and what does not
//! fit into them goes to memory of our own. That part is copied into the buffers that the driver adds.

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::mem::offset_of;

use virtio_bindings::virtio_net::virtio_net_hdr_v1;

use super::{AT_ONCE, Backend, HEADER, MAX_PACKET, NetEvents, Offloads, QUEUE_SIZE, USUAL_PACKET};
use crate::sys;
use crate::virtio::{Chain, Memory, Progress, QueueError, Turn};

/// Packets that were meant for an earlier driver, of which no more are looked for at once: several times
/// what a tap interface keeps.
const MAX_STALE: usize = 4096;

/// Pieces of buffers after which no more buffers are taken off the queue for reading. A buffer has at most
/// 256, so that what is taken, and the overflow, are never more than one system call takes.
const MOST_PIECES: usize = 512;
const _: () = assert!(MOST_PIECES + QUEUE_SIZE as usize <= sys::MAX_PIECES);

/// A packet that was read but not delivered.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// All its bytes, with its header.
    len: usize,
    /// How many of them are in the driver's buffers. The others are in the overflow.
    placed: usize,
}

/// The receiving side of an interface.
pub(super) struct Receiver {
    /// A packet may be spread over several buffers.
    mergeable: bool,
    /// Bytes of buffers that the longest packet needs.
    wanted: usize,
    /// Buffers of the driver's, to be filled in this order.
    buffers: VecDeque<Chain>,
    /// Bytes of all of them.
    room: usize,
    /// Pieces of memory of all of them.
    pieces: usize,
    /// Buffers' places, for the next ones.
    spare: Vec<Chain>,
    /// What waits for more buffers.
    waiting: Option<Packet>,
    overflow: Box<[u8]>,
    /// There was no buffer when last looked.
    starved: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            mergeable: false,
            wanted: USUAL_PACKET,
            buffers: VecDeque::new(),
            room: 0,
            pieces: 0,
            spare: Vec::new(),
            waiting: None,
            overflow: vec![0; MAX_PACKET].into(),
            starved: false,
        }
    }
}

impl Receiver {
    /// The driver is ready.
    pub(super) fn set_up(&mut self, offloads: Offloads, mergeable: bool) {
        self.mergeable = mergeable;
        self.wanted = match (mergeable, offloads.tso4 || offloads.tso6) {
            (true, true) => MAX_PACKET,
            (true, false) => USUAL_PACKET,
            // A single buffer, whatever its length.
            (false, _) => 1,
        };
    }

    /// Throws away what waits in the backend.
    pub(super) fn discard(&mut self, backend: &impl Backend, events: &impl NetEvents) {
        for _ in 0..MAX_STALE {
            match sys::read(backend, iter::empty(), &mut self.overflow) {
                Ok(len) => events.receive_dropped(len.saturating_sub(HEADER)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    events.receive_failed();
                    if is_lasting(&error) {
                        return;
                    }
                }
            }
        }
    }

    /// The queue is gone, and with it the buffers.
    pub(super) fn stop(&mut self, events: &impl NetEvents) {
        if let Some(packet) = self.waiting.take() {
            events.receive_dropped(packet.len - HEADER);
        }
        self.spare.extend(self.buffers.drain(..));
        (self.room, self.pieces) = (0, 0);
        self.starved = false;
    }

    /// Delivers what there is, as far as there are buffers for it.
    pub(super) fn process(
        &mut self,
        turn: &mut Turn<'_>,
        backend: &impl Backend,
        events: &impl NetEvents,
    ) -> Result<Progress, QueueError> {
        for _ in 0..AT_ONCE {
            self.take_buffers(turn, self.waiting.map_or(self.wanted, |packet| packet.len))?;
            let packet = match self.waiting {
                Some(packet) => packet,
                None if self.buffers.is_empty() => {
                    self.note_starved(turn, events);
                    return Ok(Progress::Done);
                }
                None => {
                    // Whatever its length: the overflow takes what the buffers do not.
                    let placed = self.room.min(self.wanted.max(self.buffers[0].writable.len()));
                    let slices = slices(&self.buffers, turn.memory(), placed);
                    match sys::read(backend, slices, &mut self.overflow) {
                        Ok(len) if (HEADER + 1..=MAX_PACKET).contains(&len) => {
                            Packet { len, placed: placed.min(len) }
                        }
                        Ok(len) => {
                            events.receive_dropped(len.saturating_sub(HEADER));
                            continue;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(Progress::Done);
                        }
                        Err(error) => {
                            events.receive_failed();
                            if is_lasting(&error) {
                                return Ok(Progress::Done);
                            }
                            // The packet is lost, but there may be others behind it, and the backend
                            // tells of what is there only once.
                            continue;
                        }
                    }
                }
            };
            self.waiting = Some(packet);
            self.take_buffers(turn, packet.len)?;
            if self.room_for_packet() >= packet.len {
                self.waiting = None;
                self.deliver(turn, packet, events)?;
            } else if !self.mergeable || self.has_all(turn) {
                // It never fits.
                self.waiting = None;
                events.receive_dropped(packet.len - HEADER);
            } else {
                self.note_starved(turn, events);
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::More)
    }

    /// Takes buffers off the queue until they are `wanted` bytes, or there are no more.
    fn take_buffers(&mut self, turn: &mut Turn<'_>, wanted: usize) -> Result<(), QueueError> {
        let enough = |this: &Self| {
            this.room >= wanted
                || !this.mergeable && !this.buffers.is_empty()
                || this.waiting.is_none() && this.pieces >= MOST_PIECES
        };
        while !enough(self) {
            let mut buffer = self.spare.pop().unwrap_or_default();
            let taken = turn.next(&mut buffer);
            if !matches!(taken, Ok(true)) {
                self.spare.push(buffer);
                return taken.map(|_| ());
            }
            if !buffer.readable.is_empty() || buffer.writable.len() < HEADER {
                return Err(QueueError::Request("a buffer for packets is memory to be written"));
            }
            self.room += buffer.writable.len();
            self.pieces += buffer.writable.count();
            self.buffers.push_back(buffer);
            self.starved = false;
        }
        Ok(())
    }

    /// Whether the driver has no descriptor left to add a buffer with.
    fn has_all(&self, turn: &Turn<'_>) -> bool {
        let descriptors = self.buffers.iter().map(|buffer| turn.descriptors(buffer)).sum::<usize>();
        descriptors >= usize::from(turn.queue_size())
    }

    /// Bytes of the buffers that one packet can have.
    fn room_for_packet(&self) -> usize {
        match (self.mergeable, self.buffers.front()) {
            (true, _) => self.room,
            (false, first) => first.map_or(0, |buffer| buffer.writable.len()),
        }
    }

    fn note_starved(&mut self, turn: &Turn<'_>, events: &impl NetEvents) {
        if !self.starved && !turn.is_held() {
            self.starved = true;
            events.starved();
        }
    }

    /// Gives the buffers back that have the packet, all at once. There is room for it.
    fn deliver(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet,
        events: &impl NetEvents,
    ) -> Result<(), QueueError> {
        let memory = turn.memory();
        let mut rest = &self.overflow[..packet.len - packet.placed];
        let (mut start, mut count) = (0, 0);
        for buffer in &self.buffers {
            if start == packet.len {
                break;
            }
            let end = packet.len.min(start + buffer.writable.len());
            // From where on it is not in the buffer yet.
            let from = packet.placed.clamp(start, end);
            let (now, later) = rest.split_at(end - from);
            buffer.writable.write(memory, from - start, now);
            rest = later;
            start = end;
            count += 1;
        }
        // At most as many as the queue has.
        let number = (count as u16).to_le_bytes();
        let field = offset_of!(virtio_net_hdr_v1, num_buffers);
        self.buffers[0].writable.write(memory, field, &number);

        // Before the driver can know of it, so that it never knows of more than is counted.
        events.received(packet.len - HEADER);
        let mut left = packet.len;
        for buffer in self.buffers.drain(..count) {
            let len = buffer.writable.len();
            self.room -= len;
            self.pieces -= buffer.writable.count();
            // Both are below 2^32.
            turn.put_back(buffer.head, left.min(len) as u32)?;
            left -= left.min(len);
            self.spare.push(buffer);
        }
        turn.publish()
    }
}

/// Whether a backend that could not be read can not be read again at once: its interface is down (EIO of
/// a tap interface) or gone (EBADFD). It tells when it is back.
fn is_lasting(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// The first `len` bytes of the buffers.
fn slices<'m>(
    buffers: &VecDeque<Chain>,
    memory: &'m Memory,
    len: usize,
) -> impl Iterator<Item = vm_memory::VolatileSlice<'m>> {
    let mut left = len;
    buffers
        .iter()
        .map(move |buffer| {
            let take = left.min(buffer.writable.len());
            left -= take;
            (buffer, take)
        })
        .take_while(|(_, take)| *take > 0)
        .flat_map(move |(buffer, take)| buffer.writable.slices(memory, 0, take))
}
