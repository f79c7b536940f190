//! Sockets that carry messages, and never wait.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind,
    connect, getsockopt, listen, sendmsg, shutdown, socket, sockopt,
};
use thiserror::Error;

use super::message::{MAX_MESSAGE, Message, ProtocolError};
use super::peer::{self, Peer, PeerError};
use super::sys::{self, CONTROL_WORDS, Discarded};

/// Messages that are thrown away with a connection.
const MOST_DISCARDED: usize = 64;

/// Why a message could not be sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// The other side has not read what was sent before, or this user has too many descriptors on their way:
    /// it may be sent later.
    #[error("the socket is full")]
    Full,
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// No receiver would accept it.
    #[error("not sent: {0}")]
    Message(#[from] ProtocolError),
    /// sendmsg(2) failed.
    #[error("cannot send: {0}")]
    Io(#[source] io::Error),
}

/// Why a message could not be received. The connection is of no use any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// It is not as it must be.
    #[error(transparent)]
    Message(#[from] ProtocolError),
    /// recvmsg(2) failed.
    #[error("cannot receive: {0}")]
    Io(#[source] io::Error),
}

/// What there was to be received.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<M> {
    /// A message.
    Message(M),
    /// Nothing, now.
    Nothing,
    /// Nothing any more: the other side has closed the connection, or sent an empty datagram, which is
    /// not to be told from that.
    End,
}

/// Room for one message: one for each thread that receives is enough.
pub struct Buffer {
    bytes: Box<[u8; MAX_MESSAGE]>,
    control: Box<[u64; CONTROL_WORDS]>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: Box::new([0; MAX_MESSAGE]), control: Box::new([0; CONTROL_WORDS]) }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").finish_non_exhaustive()
    }
}

/// One end of a connection. Nothing that is done with it waits, whatever the other side does.
///
/// But for closing it: descriptors that were sent and not received are closed with it, and such a close can
/// take as long as whoever sent them likes (`SO_LINGER` of socket(7) is one way). A server drops the
/// sockets, and the received descriptors, of whom it does not trust where that harms nobody.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// socket(2) and connect(2): nobody listens there, or one may not ask; `WouldBlock` if too many are
    /// waiting already.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        let address = UnixAddr::new(path)?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => return Ok(Self(socket)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// [`PeerError`]; a process that this one does not see is [`Foreign`](PeerError::Foreign).
    pub fn peer(&self) -> Result<Peer, PeerError> {
        Peer::of(&self.0)
    }

    /// The effective user at the other end: what of the [`peer`](Self::peer) can be had for little.
    ///
    /// # Errors
    /// [`PeerError::Credentials`].
    pub fn user(&self) -> Result<u32, PeerError> {
        peer::user(&self.0)
    }

    /// Closes the connection, unless there are descriptors on their way to here, or so much else that they
    /// might be behind it: then it is given back, and nothing more comes.
    ///
    /// # Errors
    /// The socket, to be closed where that harms nobody.
    pub fn close_unless_it_may_hang(self) -> Result<(), Self> {
        if shutdown(self.0.as_raw_fd(), Shutdown::Both).is_err() {
            return Err(self);
        }
        for _ in 0..MOST_DISCARDED {
            match sys::discard(self.0.as_fd()) {
                Ok(Discarded::Message) => {}
                Ok(Discarded::Nothing) => return Ok(()),
                // The other side's end, which is said once.
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
                Ok(Discarded::HasFds) | Err(_) => return Err(self),
            }
        }
        Err(self)
    }

    /// Sends a message, and with it duplicates of these descriptors: whole, or not at all.
    ///
    /// # Errors
    /// [`SendError`]. [`Full`](SendError::Full) is no fault of anybody's.
    pub fn send<'a>(
        &self,
        message: &impl Message<'a>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SendError> {
        let mut bytes = [0; MAX_MESSAGE];
        let len = message.encode(fds.len(), &mut bytes)?;
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            let bytes = [IoSlice::new(&bytes[..len])];
            return match sendmsg::<()>(self.0.as_raw_fd(), &bytes, control, flags, None) {
                // One datagram goes whole.
                Ok(_) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS) => Err(SendError::Full),
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => Err(SendError::Closed),
                Err(error) => Err(SendError::Io(error.into())),
            };
        }
    }

    /// Receives a message. Every descriptor that came is added to `fds`, whatever else the result is, to be
    /// closed wherever the caller closes what it does not trust; at most 253 come at once.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive<'a, M: Message<'a>>(
        &self,
        buffer: &'a mut Buffer,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Incoming<M>, ReceiveError> {
        let before = fds.len();
        let mut was_reset = false;
        let received = loop {
            let Buffer { bytes, control } = buffer;
            match sys::receive(self.0.as_fd(), &mut bytes[..], control, fds) {
                Ok(received) => break received,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => return Ok(Incoming::Nothing),
                    // The other side has closed without having read all. That is said once, and first; what
                    // it sent before, a goodbye perhaps, is still there.
                    Some(libc::ECONNRESET) if !was_reset => was_reset = true,
                    Some(libc::ECONNRESET | libc::ENOTCONN) => return Ok(Incoming::End),
                    _ => return Err(ReceiveError::Io(error)),
                },
            }
        };
        if received.has_lost_fds {
            return Err(ProtocolError::LostFds.into());
        }
        if received.is_cut {
            return Err(ProtocolError::Long.into());
        }
        let new = fds.len() - before;
        if received.len == 0 && new == 0 {
            return Ok(Incoming::End);
        }
        Ok(Incoming::Message(M::decode(&buffer.bytes[..received.len], new)?))
    }
}

impl From<OwnedFd> for Socket {
    /// A connected socket of type `SOCK_SEQPACKET`.
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

/// Where a server is connected to. It never waits.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, where there must be nothing yet. Who may connect, the mode of that file says,
    /// which depends on the umask.
    ///
    /// # Errors
    /// socket(2), bind(2) and listen(2).
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&socket, Backlog::MAXCONN)?;
        Ok(Self(socket))
    }

    /// Takes over a socket that somebody else has bound, systemd or a server before this one.
    ///
    /// # Errors
    /// `InvalidInput` if it is no listening socket of type `SOCK_SEQPACKET`.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let fits = getsockopt(&socket, sockopt::SockType)? == SockType::SeqPacket
            && getsockopt(&socket, sockopt::AcceptConn)?;
        if !fits {
            let message = "not a listening socket of type SOCK_SEQPACKET (ListenSequentialPacket=)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(socket))
    }

    /// The next one that has connected, if any.
    ///
    /// # Errors
    /// accept4(2): this process has too many files open, for one.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        loop {
            return match sys::accept(self.0.as_fd()) {
                Ok(fd) => Ok(Some(Socket(fd))),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::ECONNABORTED) => continue,
                    Some(libc::EAGAIN) => Ok(None),
                    _ => Err(error),
                },
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}
