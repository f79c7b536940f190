//! Where `/metrics` is served: sockets of either kind, and connections of which nobody waits for long.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::peer::{Diag, Peer};
use crate::host::server::listen::{Name, There};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// An address and a port; port 0 is any that is free.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    /// `ADDRESS:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing after `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!(
                    "`{text}` is neither an address and a port, as 127.0.0.1:9101, nor unix:PATH"
                )
            }),
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that nobody is answered at yet.
#[derive(Debug)]
pub(in crate::host::server) enum Listening {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _name: Name },
}

/// A connection of either kind.
#[derive(Debug)]
pub(super) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listening {
    /// # Errors
    /// What the kernel says of the address.
    pub(in crate::host::server) fn at(address: &MetricsAddress) -> io::Result<Self> {
        let listening = match address {
            MetricsAddress::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            MetricsAddress::Unix(path) => {
                if There::at(path) == There::LeftOver {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                Self::Unix { listener, _name: Name::of(path)? }
            }
        };
        match &listening {
            Self::Tcp(listener) => listener.set_nonblocking(true)?,
            Self::Unix { listener, .. } => listener.set_nonblocking(true)?,
        }
        Ok(listening)
    }

    pub(super) fn address(&self, asked: &MetricsAddress) -> MetricsAddress {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| asked.clone(), MetricsAddress::Tcp)
            }
            Self::Unix { .. } => asked.clone(),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Connection> {
        let connection = match self {
            Self::Tcp(listener) => Connection::Tcp(listener.accept()?.0),
            Self::Unix { listener, .. } => Connection::Unix(listener.accept()?.0),
        };
        match &connection {
            Connection::Tcp(stream) => stream.set_nonblocking(false)?,
            Connection::Unix(stream) => stream.set_nonblocking(false)?,
        }
        Ok(connection)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl Connection {
    /// Has the next call wait no longer than until then.
    fn wait_until(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
        }
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// What the kernel says: then it is not known.
    pub(super) fn peer(&self, diag: Option<&Diag>) -> io::Result<Peer> {
        match self {
            Self::Tcp(stream) => match stream.peer_addr() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(Peer::Unknown),
                its => Peer::of_tcp(diag, its?, stream.local_addr()?),
            },
            Self::Unix(stream) => Ok(Peer::User(getsockopt(stream, PeerCredentials)?.uid())),
        }
    }

    /// Ends it, whoever reads or writes.
    pub(super) fn hang_up(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Ends it once the other end has, or has said very much more, which nobody hears.
    pub(super) fn finish(&self, end: Instant) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write)?,
            Self::Unix(stream) => stream.shutdown(Shutdown::Write)?,
        }
        let mut unheard = [0; 4096];
        for _ in 0..256 {
            if self.read(&mut unheard, end)? == 0 {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, buffer: &mut [u8], end: Instant) -> io::Result<usize> {
        self.wait_until(end)?;
        match self {
            Self::Tcp(stream) => (&*stream).read(buffer),
            Self::Unix(stream) => (&*stream).read(buffer),
        }
    }

    pub(super) fn write_all(&self, mut bytes: &[u8], end: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait_until(end)?;
            let written = match self {
                Self::Tcp(stream) => (&*stream).write(bytes),
                Self::Unix(stream) => (&*stream).write(bytes),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_they_are_written() {
        for text in ["127.0.0.1:9101", "[::1]:0", "unix:/run/metrics.sock"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
        for text in ["", "9101", "localhost:9101", "unix:"] {
            assert!(text.parse::<MetricsAddress>().is_err(), "{text}");
        }
    }
}
