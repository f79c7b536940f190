//! Networks of a test's own, and what goes over an interface in them.
#![allow(dead_code, reason = "every test uses another part")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs a piece of a test on a thread in a network of its own, in which nothing is sent but by the test.
pub fn in_network(run: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread =
            scope.spawn(|| {
                // SAFETY: no memory is involved; the thread's own view alone changes.
                check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
                    .expect("networks of their own need root: `sudo -E cargo test`");
                fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
                    .or_else(|error| {
                        if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
                    })
                    .expect("/proc/sys is mounted and can be written");
                run();
            });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `ip` with these arguments.
pub fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("the command `ip` is needed: `apt-get install -y iproute2`");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {error}");
}

/// Takes from this thread the rights over networks that root has.
pub fn give_up_rights() {
    // A header (version 3, this thread), and effective, permitted and inheritable capabilities: none.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both are what capset(2) reads in this version.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// What an interface has counted, as the kernel says it.
#[derive(Debug)]
pub struct Counters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_drops: u64,
}

/// The line of `/proc/net/dev` of this thread's network.
fn line(interface: &str) -> Option<Vec<u64>> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    table.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts = counts.split_whitespace().map(|n| n.parse().expect("a number"));
        (name.trim() == interface).then(|| counts.collect())
    })
}

pub fn exists(interface: &str) -> bool {
    line(interface).is_some()
}

pub fn counters(interface: &str) -> Counters {
    let all = line(interface).expect("it exists");
    Counters {
        rx_bytes: all[0],
        rx_packets: all[1],
        tx_bytes: all[8],
        tx_packets: all[9],
        tx_drops: all[11],
    }
}

/// A socket that sends and receives whole frames on an interface.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn open(interface: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: a new descriptor.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, all.into()) }).unwrap();
        // SAFETY: it is ours alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: all zeroes is a valid address to be filled in.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        // SAFETY: a C string that lives across the call.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: an address of this size.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), size) }).unwrap();
        Self(socket)
    }

    /// Waits for a frame, up to this long. Whether there may be one.
    pub fn wait(&self, patience: Duration) -> bool {
        let mut wanted = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which is valid for the call.
        let ready = unsafe { libc::poll(&raw mut wanted, 1, patience.as_millis() as libc::c_int) };
        check(ready).unwrap() > 0
    }

    /// Sends a frame out of the interface.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Sends a TCP segment over IPv4 that is to be cut into pieces of at most `mss` bytes by whoever can
    /// not take it whole.
    pub fn send_tcp_segment(&self, to: &[u8; 6], payload: usize, mss: u16) {
        let one: libc::c_int = 1;
        // SAFETY: the option is an int.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const one).cast(),
                size_of_val(&one) as libc::socklen_t,
            )
        })
        .unwrap();
        // A vnet header of 10 bytes: the checksum is to be completed, TCP over IPv4, 54 bytes of headers.
        let mut packet = vec![1, 1, 54, 0];
        packet.extend(mss.to_le_bytes());
        packet.extend(34_u16.to_le_bytes());
        packet.extend(16_u16.to_le_bytes());
        packet.extend(to);
        packet.extend([2, 0, 0, 0, 0, 1, 8, 0]);
        let length = (40 + payload) as u16;
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum: u32 =
            header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(header);
        packet.extend([
            0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        packet.resize(packet.len() + payload, 0x42);
        self.send(&packet);
        let zero: libc::c_int = 0;
        // SAFETY: as above.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const zero).cast(),
                size_of_val(&zero) as libc::socklen_t,
            )
        })
        .unwrap();
    }

    /// The next frame that came in over the interface, if there is one. Those that go out are left out.
    pub fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 70_000];
            // SAFETY: all zeroes is a valid address to be filled in.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut size = size_of_val(&from) as libc::socklen_t;
            // SAFETY: both are valid for their sizes.
            let len = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut from).cast(),
                    &mut size,
                )
            };
            if len < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return None,
                    // It was down meanwhile.
                    Some(libc::ENETDOWN) => continue,
                    _ => panic!("{error}"),
                }
            }
            frame.truncate(len as usize);
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Some(frame);
            }
        }
    }
}
