//! A backend that can not be read now and then: what is behind the failure is received all the same.

mod driver;
#[path = "driver/network.rs"]
mod network;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use devices::virtio::net::{Backend, Mac, Net, Offloads};
use devices::virtio::stats::NetCounters;
use driver::{BUFFERS, Guest, VERSION_1, into};
use network::{in_network, ip};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const PATIENCE: Duration = Duration::from_secs(60);

/// A socket whose datagrams are packets. As with a tap interface, a failure is told once, by the same edge
/// as the packets.
struct Socket(UdpSocket);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Backend for Socket {
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn packets_behind_one_that_can_not_be_read_do_not_wait() {
    in_network(|| {
        ip("link set lo up");
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (our_address, their_address) =
            (ours.local_addr().unwrap(), theirs.local_addr().unwrap());
        ours.connect(their_address).unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = ours.try_clone().unwrap();
        let guest = Guest::new(|source| {
            let counters = NetCounters::new(source.add_values().unwrap());
            Net::new(Socket(socket), Mac::new([2, 0, 0, 0, 0, 7]), counters)
        });
        let [mut rx, _tx] = guest.start::<2>(VERSION_1, 64);
        (0..32).for_each(|i| _ = rx.add(&[into(BUFFERS + 2048 * i, 2048)]));
        guest.notify(&rx);
        guest.serve();

        // Nobody is there, which is an error for whoever reads next.
        drop(theirs);
        ours.send(b"is anybody there?").unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::ERROR, 0);
        epoll.ctl(ControlOperation::Add, ours.as_raw_fd(), event).unwrap();
        let patience = PATIENCE.as_millis() as i32;
        assert_eq!(epoll.wait(patience, &mut [EpollEvent::default()]).unwrap(), 1);
        let theirs = UdpSocket::bind(their_address).unwrap();
        for _ in 0..3 {
            theirs.send_to(&[0x42; 12 + 60], our_address).unwrap();
        }
        guest.serve();
        assert_eq!(guest.stats.get("net_rx_errors"), 1);
        assert_eq!(rx.take().iter().map(|(_, len)| *len).collect::<Vec<_>>(), [72; 3]);
        assert_eq!(guest.stats.get("net_rx_packets"), 3);
    });
}
