//! Descriptors that the service manager keeps while no server is there: systemd's file descriptor store.
//!
//! What a server puts there it finds again when it is started the next time, by name, whatever ended it before
//! (sd_notify(3), `FDSTORE=1`; sd_listen_fds(3)). Nobody answers, and nothing here waits: what finds no room now is
//! sent later, in order. Without a service manager all this does nothing.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::host::protocol::inherited;

/// Descriptors in one message; the kernel passes at most 253.
const AT_ONCE: usize = 64;
/// Bytes of all names, each with a colon, for each descriptor: a started process is given them in one variable of
/// its environment, which can have 128 KiB (execve(2)).
const MOST_NAMES: usize = 96 << 10;
/// Messages that wait before it is given up: so many that nobody is going to read them.
const MOST_WAITING: usize = 1 << 14;
/// How long a server that ends waits for what is still to be sent.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Message {
    text: String,
    fds: Vec<OwnedFd>,
}

#[derive(Debug, Default)]
struct Outbox {
    /// `None` where there is no store, or none that is of use.
    socket: Option<UnixDatagram>,
    waiting: VecDeque<Message>,
    /// How many descriptors are kept, by name; none under a name for which there was no room.
    kept: HashMap<String, usize>,
    /// Bytes of their names.
    names: usize,
}

/// The service manager's store.
#[derive(Debug, Default)]
pub struct FdStore(Mutex<Outbox>);

/// What a store held when this process was started: names and descriptors.
#[derive(Debug, Default)]
pub struct Inherited(pub Vec<(String, OwnedFd)>);

impl FdStore {
    /// The store of whoever started this process, and what it has kept; to be asked once. There is none unless
    /// the environment says so.
    pub fn of_this_process() -> (Self, Inherited) {
        // What was inherited is let go in any case: what nobody serves must not seem to be served.
        let inherited = inherited().unwrap_or_else(|error| {
            tracing::error!(%error, "what the service manager kept is of no use");
            Vec::new()
        });
        let store = match std::env::var_os("NOTIFY_SOCKET").map(connect) {
            None => Self::default(),
            Some(Ok(socket)) => {
                let mut outbox = Outbox { socket: Some(socket), ..Outbox::default() };
                inherited.iter().for_each(|(name, _)| _ = outbox.count(name, 1));
                Self(Mutex::new(outbox))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the service manager keeps nothing for the next server");
                Self::default()
            }
        };
        (store, Inherited(inherited))
    }

    /// Has these kept under a name, with what is kept under it already: all, or, where there is no room, none of
    /// that name any more.
    pub(super) fn put(&self, name: &str, fds: &[impl AsFd]) {
        let mut outbox = self.lock();
        if outbox.socket.is_none() {
            return;
        }
        let had = outbox.kept.get(name).copied();
        if !outbox.count(name, fds.len()) {
            if had != Some(0) {
                tracing::warn!(
                    name,
                    "the service manager has no room for more: not kept for the next server"
                );
                outbox.remove(name);
                outbox.kept.insert(name.to_owned(), 0);
            }
            return;
        }
        for some in fds.chunks(AT_ONCE) {
            let fds = some.iter().map(|fd| fd.as_fd().try_clone_to_owned()).collect();
            match fds {
                Ok(fds) => {
                    // That it is gone is ours to see: to be told of it, systemd would wake up at every request.
                    let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
                    outbox.waiting.push_back(Message { text, fds });
                }
                Err(error) => tracing::warn!(%error, name, "not kept for the next server"),
            }
        }
        outbox.send();
    }

    /// Has nothing kept any more under a name.
    pub(super) fn remove(&self, name: &str) {
        let mut outbox = self.lock();
        if outbox.socket.is_some() {
            outbox.remove(name);
        }
    }

    /// Sends what has found no room so far; to be called from time to time.
    pub(super) fn send(&self) {
        self.lock().send();
    }

    /// Sends all that has found no room so far, and waits for that, at most so long: there is nobody to send it
    /// later.
    pub(super) fn send_all(&self, most: Duration) {
        let end = Instant::now() + most;
        loop {
            let mut outbox = self.lock();
            outbox.send();
            if outbox.waiting.is_empty() {
                return;
            }
            drop(outbox);
            if Instant::now() > end {
                tracing::warn!("the service manager does not take what is sent: it keeps too much");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox {
    /// Counts more descriptors under a name. False, and nothing is counted, if there is no room, now or before.
    fn count(&mut self, name: &str, more: usize) -> bool {
        let names = self.names + (name.len() + 1) * more;
        if names > MOST_NAMES || self.kept.get(name) == Some(&0) {
            return false;
        }
        self.names = names;
        *self.kept.entry(name.to_owned()).or_default() += more;
        true
    }

    fn remove(&mut self, name: &str) {
        let kept = self.kept.remove(name).unwrap_or_default();
        self.names -= (name.len() + 1) * kept;
        let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        self.waiting.push_back(Message { text, fds: Vec::new() });
        self.send();
    }

    fn send(&mut self) {
        while let (Some(socket), Some(message)) = (&self.socket, self.waiting.front()) {
            match send(socket, message) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                // Not read yet; or, of descriptors, too many not received yet.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS)
                    if self.waiting.len() < MOST_WAITING =>
                {
                    return;
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the service manager keeps nothing more for the next server");
                    *self = Self::default();
                }
            }
        }
    }
}

fn connect(path: OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(socket: &UnixDatagram, message: &Message) -> nix::Result<()> {
    let fds: Vec<_> = message.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let text = [IoSlice::new(message.text.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &text, rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A store, and what is told to whoever keeps it.
    fn store() -> (FdStore, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let outbox = Outbox { socket: Some(ours), ..Outbox::default() };
        (FdStore(Mutex::new(outbox)), theirs)
    }

    fn told(socket: &UnixDatagram) -> String {
        let mut text = [0; 256];
        let len = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    #[test]
    fn names_are_never_longer_than_an_environment_takes() {
        let (store, theirs) = store();
        let fd = [File::open("/dev/null").unwrap()];
        let name = |n: usize| format!("seg.{n:032x}");
        let most = MOST_NAMES / 37;
        for n in 0..most {
            store.put(&name(n), &fd);
            assert!(told(&theirs).contains("FDSTORE=1"), "{n}");
        }
        assert!(store.lock().names <= MOST_NAMES);
        // One more of a name that is there: all of that name goes, and nothing more of it is kept.
        store.put(&name(0), &fd);
        assert_eq!(told(&theirs), format!("FDSTOREREMOVE=1\nFDNAME={}\n", name(0)));
        store.put(&name(0), &fd);
        // There is room for another one now, but for one only.
        store.put(&name(most), &fd);
        assert!(told(&theirs).contains(&name(most)));
        store.put(&name(most + 1), &fd);
        assert!(told(&theirs).starts_with("FDSTOREREMOVE=1"));
        // Once it is over with a name, it may come again.
        store.remove(&name(1));
        assert!(told(&theirs).starts_with("FDSTOREREMOVE=1"));
        store.remove(&name(0));
        assert!(told(&theirs).starts_with("FDSTOREREMOVE=1"));
        store.put(&name(0), &fd);
        assert!(told(&theirs).starts_with("FDSTORE=1"));
    }

    #[test]
    fn what_finds_no_room_in_the_end_is_waited_for() {
        let (store, theirs) = store();
        let fd = [File::open("/dev/null").unwrap()];
        let mut sent = 0;
        while store.lock().waiting.is_empty() {
            store.put("seg.1", &fd);
            sent += 1;
        }
        store.remove("fuse.1");
        assert!(store.lock().waiting.len() >= 2);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                (0..sent).for_each(|_| assert!(told(&theirs).starts_with("FDSTORE=1")));
                assert_eq!(told(&theirs), "FDSTOREREMOVE=1\nFDNAME=fuse.1\n");
            });
            store.send_all(Duration::from_secs(60));
            assert!(store.lock().waiting.is_empty());
        });
    }
}
