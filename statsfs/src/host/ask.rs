//! Asking a server what it says of itself.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::protocol::{
    Buffer, ClientMessage, Incoming, ProtocolError, ReceiveError, SendError, ServerMessage, Socket,
    StatusText,
};

/// How long to wait until there may be room for one more to wait.
const AGAIN: Duration = Duration::from_millis(10);

/// Why a server did not say.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody listens.
    #[error("no server listens at {at}: `statsfs serve`, or say where with --socket or STATSFS_SOCKET", at = .0.display())]
    NoServer(PathBuf),
    /// One may not ask.
    #[error("{at} may not be used by this user: ask as root or as a member of the socket's group", at = .0.display())]
    Forbidden(PathBuf),
    /// It could not be connected to.
    #[error("cannot connect to {at}: {source}", at = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not take the question.
    #[error("the server does not take the question: {0}")]
    Send(#[from] SendError),
    /// What it said is nothing that a server says.
    #[error("the server's answer is of no use: {0}")]
    Receive(#[from] ReceiveError),
    /// It refused.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// It said nothing, or not all.
    #[error("the server has not answered within {} s", .0.as_secs())]
    Silent(Duration),
    /// It broke off.
    #[error("the server broke off")]
    BrokeOff,
    /// Its answer has pieces that do not belong together.
    #[error("the server's answer is not whole: {0}")]
    Parts(#[source] ProtocolError),
}

/// What the server at `socket` says of itself, in JSON: of all clients to root, else of the user's own. See
/// [`Status`](super::server::Status).
///
/// # Errors
/// [`AskError`] says what is missing.
pub fn ask_status(socket: &Path, timeout: Duration) -> Result<String, AskError> {
    let path = || socket.to_path_buf();
    let end = Instant::now() + timeout;
    let connection = loop {
        match Socket::connect(socket) {
            // Too many others wait to be accepted.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(AGAIN);
            }
            connected => break connected,
        }
    };
    let connection = connection.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NoServer(path()),
        io::ErrorKind::PermissionDenied => AskError::Forbidden(path()),
        _ => AskError::Connect { path: path(), source },
    })?;
    match connection.send(&ClientMessage::Status, &[]) {
        // It may have been turned away before it asked: then why is there to be read.
        Ok(()) | Err(SendError::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    let (mut buffer, mut fds, mut text) = (Buffer::default(), Vec::new(), StatusText::default());
    loop {
        fds.clear();
        match connection.receive(&mut buffer, &mut fds)? {
            Incoming::Message(ServerMessage::StatusPart { offset, total, part }) => {
                if text.add(offset, total, part).map_err(AskError::Parts)? {
                    return text.into_text().map_err(AskError::Parts);
                }
            }
            Incoming::Message(ServerMessage::Refused { reason, .. }) => {
                return Err(AskError::Refused(reason.to_owned()));
            }
            Incoming::Message(_) => {}
            Incoming::End => return Err(AskError::BrokeOff),
            Incoming::Nothing => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(AskError::Silent(timeout));
                }
                let left = PollTimeout::try_from(left.as_micros().div_ceil(1000));
                let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, left.unwrap_or(PollTimeout::MAX));
            }
        }
    }
}
