//! Who is at the other end of a connection, so that nobody takes the places of others.
//!
//! Of a Unix socket that is said by the kernel, and so it is of TCP from this host: it is asked by sock_diag(7) for the
//! other end's socket (`linux/sock_diag.h`, `linux/inet_diag.h`), which is one look into a hash table, however many
//! connections there are.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Who has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// A user of this host.
    User(u32),
    /// Another host; of IPv6 the network, in which it may have as many addresses as it likes.
    Host(IpAddr),
    /// Nobody any more, or it is not known.
    Unknown,
}

/// Asks the kernel.
#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

/// Length of a message's header (`struct nlmsghdr`), of a request (`inet_diag_req_v2`), and of an answer (`inet_diag_msg`).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// Types of messages.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Where an answer has the user, and the socket's inode number, which is 0 of one that no process has.
const UID: usize = HEADER + 64;
const INODE: usize = HEADER + 68;

impl Diag {
    /// # Errors
    /// What the kernel says of such a socket: `EAFNOSUPPORT` where a unit allows none.
    pub(super) fn new() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(socket(AddressFamily::Netlink, kind, flags, protocol)?))
    }

    /// The user whose process has the TCP socket that is bound to `its` and connected to `other`; none if no process has it.
    ///
    /// # Errors
    /// What the kernel says: `ENOENT` if there is no such socket, also where it can not look for any.
    fn user(&self, its: SocketAddr, other: SocketAddr) -> io::Result<Option<u32>> {
        let fd = self.0.as_raw_fd();
        send(fd, &request(its, other), MsgFlags::empty())?;
        let mut answer = [0; HEADER + ANSWER + 64];
        // It was answered before sending came back. What is behind the user is not of interest.
        let len = recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT)?;
        let word = |at: usize| {
            let bytes = answer[..len].get(at..).and_then(<[u8]>::first_chunk);
            bytes.map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(io::ErrorKind::InvalidData)
        };
        if answer[4..6] != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
            return Err(io::Error::from_raw_os_error((word(HEADER)? as i32).wrapping_neg()));
        }
        Ok((word(INODE)? != 0).then_some(word(UID)?))
    }
}

fn request(its: SocketAddr, other: SocketAddr) -> Vec<u8> {
    let family = if its.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let address = |of: SocketAddr| match of.ip() {
        IpAddr::V4(ip) => Ipv6Addr::from_bits(u128::from(ip.to_bits()) << 96).octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    // An address of one link only is of that interface.
    let interface = match its {
        SocketAddr::V6(its) => its.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Neither a sequence number nor a sender is needed for one answer at a time.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    // In whatever state it is.
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&its.port().to_be_bytes());
    bytes.extend_from_slice(&other.port().to_be_bytes());
    bytes.extend_from_slice(&address(its));
    bytes.extend_from_slice(&address(other));
    bytes.extend_from_slice(&interface.to_ne_bytes());
    // Any cookie.
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

impl Peer {
    /// Who is at `its` end of a TCP connection, of which `own` is this one.
    ///
    /// # Errors
    /// If it is of this host, and can not be asked for.
    pub(super) fn of_tcp(
        diag: Option<&Diag>,
        its: SocketAddr,
        own: SocketAddr,
    ) -> io::Result<Self> {
        let [its, own] = [its, own].map(|of| match of.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), of.port()),
            IpAddr::V6(_) => of,
        });
        if !its.ip().is_loopback() && its.ip() != own.ip() {
            return Ok(Self::Host(match its.ip() {
                IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
                ip => ip,
            }));
        }
        let Some(diag) = diag else { return Ok(Self::Unknown) };
        match diag.user(its, own) {
            Ok(uid) => Ok(uid.map_or(Self::Unknown, Self::User)),
            // It has hung up since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Unknown),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::fchown;

    use super::*;

    #[test]
    fn users_of_this_host_are_told_apart_at_every_address_of_it() {
        let diag = Diag::new().unwrap();
        for [address, to] in [["127.0.0.1", "127.0.0.1"], ["::1", "::1"], ["::", "127.0.0.1"]] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            for uid in [0, 1234] {
                let stream = TcpStream::connect((to, port)).unwrap();
                // The user whose a socket is, is that of its inode.
                if uid != 0 {
                    fchown(&stream, Some(uid), None).unwrap();
                }
                let (accepted, its) = listener.accept().unwrap();
                let own = accepted.local_addr().unwrap();
                assert_eq!(Peer::of_tcp(Some(&diag), its, own).unwrap(), Peer::User(uid), "{its}");
                assert_eq!(Peer::of_tcp(None, its, own).unwrap(), Peer::Unknown);
                drop(stream);
                assert_eq!(Peer::of_tcp(Some(&diag), its, own).unwrap(), Peer::Unknown, "{its}");
            }
        }
    }

    #[test]
    fn other_hosts_are_their_addresses() {
        let of = |its: &str| {
            Peer::of_tcp(None, its.parse().unwrap(), "[2001:db8::1]:9101".parse().unwrap()).unwrap()
        };
        let host = |address: &str| Peer::Host(address.parse().unwrap());
        assert_eq!(of("192.0.2.7:1"), host("192.0.2.7"));
        assert_eq!(of("[::ffff:192.0.2.7]:2"), host("192.0.2.7"));
        assert_eq!(of("[2001:db8:1:2:3:4:5:6]:3"), host("2001:db8:1:2::"));
        assert_eq!(of("[2001:db8::1]:4"), Peer::Unknown, "it is this one");
    }
}
