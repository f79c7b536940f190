//! A network interface (virtio 1.2, 5.1), connected to a tap interface of the host.
//!
//! Frames go straight between the kernel and the guest's memory, with the vnet header before them that
//! both know, so that checksums and the segmentation of large packets are left to whoever does them last.

mod mac;
mod receive;
mod tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, virtio_net_hdr_v1,
};

use super::{Chain, Device, DeviceId, Progress, QueueError, Turn, feature};
use crate::sys;
pub use mac::{Mac, MacError};
use receive::Receiver;
pub use tap::{Tap, TapError};

/// The queue of buffers for packets from outside.
pub const RECEIVE: usize = 0;
/// The queue of packets to outside.
pub const TRANSMIT: usize = 1;
/// Most buffers in each.
const QUEUE_SIZE: u16 = 256;

/// Bytes of the header before each packet.
pub const HEADER: usize = size_of::<virtio_net_hdr_v1>();
/// Bytes of the header of an Ethernet frame, with a tag.
const ETHERNET_HEADER: usize = 14 + 4;
/// Most bytes of a packet, its header included: that of a large one to be segmented.
pub const MAX_PACKET: usize = HEADER + ETHERNET_HEADER + (64 << 10);
/// Most bytes of a packet of the usual size, its header included.
const USUAL_PACKET: usize = HEADER + ETHERNET_HEADER + 1500;

/// Packets after which one direction lets the other have its turn.
const AT_ONCE: usize = 256;

/// The features of packets to outside that may be left to the host, who can always do it.
const HOST_FEATURES: u64 = feature(VIRTIO_NET_F_CSUM)
    | feature(VIRTIO_NET_F_HOST_TSO4)
    | feature(VIRTIO_NET_F_HOST_TSO6)
    | feature(VIRTIO_NET_F_HOST_ECN);
/// The features of packets from outside that the guest can do.
const GUEST_FEATURES: u64 = feature(VIRTIO_NET_F_GUEST_CSUM)
    | feature(VIRTIO_NET_F_GUEST_TSO4)
    | feature(VIRTIO_NET_F_GUEST_TSO6)
    | feature(VIRTIO_NET_F_GUEST_ECN);

/// What the guest does with packets from outside, so that the host needs not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It completes checksums.
    pub checksum: bool,
    /// It takes large TCP segments over IPv4.
    pub tso4: bool,
    /// It takes large TCP segments over IPv6.
    pub tso6: bool,
    /// … also with congestion notification.
    pub ecn: bool,
}

impl Offloads {
    fn of(features: u64) -> Self {
        let has = |bit| features & feature(bit) != 0;
        Self {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
        }
    }
}

/// The other end of a network interface: a file that never blocks, of which each read gives one packet
/// with its header, and each write takes one. [`Tap`] is the one that machines have.
pub trait Backend: AsFd + Send {
    /// From now on packets may be as this allows.
    ///
    /// # Errors
    /// If the host can not do it.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
}

/// What a [`Net`] reports. Bytes are without the vnet header.
pub trait NetEvents: Send {
    /// A packet was delivered to the guest.
    fn received(&self, bytes: usize);
    /// A packet from outside was dropped.
    fn receive_dropped(&self, bytes: usize);
    /// There is no buffer of the driver's for what may come from outside.
    fn starved(&self);
    /// The backend could not be read.
    fn receive_failed(&self);
    /// A packet of the guest was sent.
    fn sent(&self, bytes: usize);
    /// A packet of the guest was dropped because the backend was full.
    fn send_dropped(&self);
    /// A packet of the guest was none, or refused by the backend.
    fn send_failed(&self);
    /// So many packets to be sent are with the device.
    fn in_flight(&self, packets: u16);
    /// A packet to be sent was with the device for so long.
    fn send_time(&self, time: Duration);
}

impl NetEvents for super::NoEvents {
    fn received(&self, _bytes: usize) {}
    fn receive_dropped(&self, _bytes: usize) {}
    fn starved(&self) {}
    fn receive_failed(&self) {}
    fn sent(&self, _bytes: usize) {}
    fn send_dropped(&self) {}
    fn send_failed(&self) {}
    fn in_flight(&self, _packets: u16) {}
    fn send_time(&self, _time: Duration) {}
}

/// A network interface.
pub struct Net<B, EV> {
    backend: B,
    config: [u8; 6],
    receiver: Receiver,
    outgoing: Chain,
    /// It has been active before: what waits in the backend was meant for another driver.
    was_active: bool,
    events: EV,
}

impl<B: Backend, EV: NetEvents> Net<B, EV> {
    /// An interface with this address.
    pub fn new(backend: B, mac: Mac, events: EV) -> Self {
        Self {
            backend,
            config: mac.bytes(),
            receiver: Receiver::default(),
            outgoing: Chain::default(),
            was_active: false,
            events,
        }
    }

    fn transmit(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
        let memory = turn.memory();
        let mut taken = Instant::now();
        for _ in 0..AT_ONCE {
            if !turn.next(&mut self.outgoing)? {
                return Ok(Progress::Done);
            }
            let outstanding = turn.outstanding()?;
            self.events.in_flight(outstanding);
            let Chain { head, readable, writable } = &self.outgoing;
            if !writable.is_empty() {
                return Err(QueueError::Request("a packet to be sent has memory to be written"));
            }
            let len = readable.len();
            if (HEADER + 1..=MAX_PACKET).contains(&len) {
                match sys::write(&self.backend, readable.slices(memory, 0, len)) {
                    Ok(_) => self.events.sent(len - HEADER),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.events.send_dropped();
                    }
                    Err(_) => self.events.send_failed(),
                }
            } else {
                self.events.send_failed();
            }
            let now = Instant::now();
            self.events.send_time(now - taken);
            self.events.in_flight(outstanding.saturating_sub(1));
            turn.give_back(*head, 0)?;
            taken = now;
        }
        Ok(Progress::More)
    }
}

impl<B: Backend, EV: NetEvents> Device for Net<B, EV> {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn features(&self) -> u64 {
        HOST_FEATURES | GUEST_FEATURES | feature(VIRTIO_NET_F_MAC) | feature(VIRTIO_NET_F_MRG_RXBUF)
    }

    fn accepts(&self, features: u64) -> bool {
        // virtio 1.2, 5.1.3.1: those that need others, and the others, of which one is enough.
        let has = |bit| features & feature(bit) != 0;
        [
            (VIRTIO_NET_F_GUEST_TSO4, [VIRTIO_NET_F_GUEST_CSUM; 2]),
            (VIRTIO_NET_F_GUEST_TSO6, [VIRTIO_NET_F_GUEST_CSUM; 2]),
            (VIRTIO_NET_F_GUEST_ECN, [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
            (VIRTIO_NET_F_HOST_TSO4, [VIRTIO_NET_F_CSUM; 2]),
            (VIRTIO_NET_F_HOST_TSO6, [VIRTIO_NET_F_CSUM; 2]),
            (VIRTIO_NET_F_HOST_ECN, [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
        ]
        .into_iter()
        .all(|(one, needs)| !has(one) || needs.into_iter().any(has))
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn backend(&self) -> Option<(BorrowedFd<'_>, usize)> {
        Some((self.backend.as_fd(), RECEIVE))
    }

    fn activate(&mut self, features: u64) {
        let offloads = Offloads::of(features);
        // A host that can not do it sends packets that every guest takes.
        let _ = self.backend.set_offloads(offloads);
        self.receiver.set_up(offloads, features & feature(VIRTIO_NET_F_MRG_RXBUF) != 0);
        if self.was_active {
            self.receiver.discard(&self.backend, &self.events);
        }
        self.was_active = true;
    }

    fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
        match turn.queue() {
            RECEIVE => self.receiver.process(turn, &self.backend, &self.events),
            _ => self.transmit(turn),
        }
    }

    fn queue_stopped(&mut self, queue: usize) {
        match queue {
            RECEIVE => self.receiver.stop(&self.events),
            _ => self.events.in_flight(0),
        }
    }
}
