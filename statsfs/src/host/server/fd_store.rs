//! Descriptors that the service manager keeps while no server is there: systemd's file descriptor store.
//!
//! What a server puts there it finds again when it is started the next time, by name, whatever ended it before
//! (sd_notify(3), `FDSTORE=1`; sd_listen_fds(3)). Nobody answers, and nothing here waits: what finds no room now is
//! sent later, in order. Without a service manager all this does nothing.
//!
//! There is room for so many segments of all users, and each user has a [share](Outbox::share) of it. Of a process
//! for which there is none the first segments are kept, as far as there is room, and the others once there is: what
//! is in the first ones can be taken in without them, as of a process that goes on making them.

use std::collections::hash_map::Entry;
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
use nix::unistd::geteuid;

use super::clients::Who;
use super::inherited::SEGMENTS_NAME;
use crate::host::protocol::inherited;
use crate::repeats::Repeats;

/// Descriptors in one message; the kernel passes at most 253.
const AT_ONCE: usize = 64;
/// Bytes of the names of all segments, each with a colon: a started process is given them in one variable of its
/// environment, which can have 128 KiB (execve(2)). What is left of that is for the names of the mount's devices.
const MOST_NAMES: usize = 96 << 10;
/// How many segments of all users can be kept, whatever the service manager is told.
const MOST_SEGMENTS: usize = MOST_NAMES / (SEGMENTS_NAME + 1);
/// How many descriptors are left to the server's own: the mount's devices, one for each thread that answers
/// readers, and for a moment those of the mount before.
const OWN: usize = 16;
/// The part of the room that is left to the others by root, and by the user whose the server is.
const PART_OF_OTHERS: usize = 16;
/// Messages that wait before it is given up: so many that nobody is going to read them.
const MOST_WAITING: usize = 1 << 14;
/// How long a server that ends waits for what is still to be sent.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Message {
    text: String,
    fds: Vec<OwnedFd>,
}

/// What is kept under a name.
#[derive(Debug, Default)]
struct Kept {
    uid: u32,
    /// How many descriptors there are.
    held: usize,
    /// How many of the first segments of a process are among them.
    first: usize,
    /// How many segments it has.
    all: usize,
}

#[derive(Debug, Default)]
struct Outbox {
    /// `None` where there is no store, or none that is of use.
    socket: Option<UnixDatagram>,
    waiting: VecDeque<Message>,
    /// For how many segments there is room.
    room: usize,
    /// The user whose the server is.
    owner: u32,
    /// The segments that are kept, and of which users.
    kept: HashMap<String, Kept>,
    of_users: HashMap<u32, usize>,
    numbers: Numbers,
    /// Whether there is more room than when it was last asked.
    has_more_room: bool,
    /// Of which users it was said that there is no room.
    logged: Repeats<u32>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Descriptors of segments that are kept.
    pub(super) kept: usize,
    /// Segments that are not, for want of room.
    pub(super) unkept: usize,
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
                let most = std::env::var("FDSTORE").ok();
                let owner = geteuid().as_raw();
                Self(Mutex::new(Outbox::new(socket, room(most.as_deref()), owner)))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the service manager keeps nothing for the next server");
                Self::default()
            }
        };
        (store, Inherited(inherited))
    }

    /// Has these of the server's own kept under a name, with what is kept under it already.
    pub(super) fn put(&self, name: &str, fds: &[impl AsFd]) {
        let mut outbox = self.lock();
        if outbox.socket.is_some() {
            outbox.put(name, fds);
            outbox.send();
        }
    }

    /// Has a process's segments kept under a name: these are all that it has. As many of the first ones as there is
    /// room for, now and before.
    pub(super) fn keep(&self, name: &str, who: &Who, all: &[impl AsFd]) {
        let mut outbox = self.lock();
        if outbox.socket.is_some() {
            outbox.keep(name, who, all);
            outbox.send();
        }
    }

    /// So many descriptors are kept under the name of a process's segments: a server before has put them there. So
    /// many of its first segments are among them, of all that it had made.
    pub(super) fn has_kept(&self, name: &str, uid: u32, held: usize, first: usize, all: usize) {
        let mut outbox = self.lock();
        if outbox.socket.is_some() {
            outbox.forget(name);
            outbox.count(name, Kept { uid, held, first, all: all.max(first) });
        }
    }

    /// Whether there is more room than when this was last asked, and something for which there was none.
    pub(super) fn has_more_room(&self) -> bool {
        let mut outbox = self.lock();
        std::mem::take(&mut outbox.has_more_room) && outbox.numbers.unkept > 0
    }

    /// For how many segments there is room, and how many are kept.
    pub(super) fn numbers(&self) -> (usize, Numbers) {
        let outbox = self.lock();
        (outbox.room, outbox.numbers)
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
    fn new(socket: UnixDatagram, room: usize, owner: u32) -> Self {
        Self { socket: Some(socket), room, owner, ..Self::default() }
    }

    fn of(&self, uid: u32) -> usize {
        self.of_users.get(&uid).copied().unwrap_or_default()
    }

    /// How many segments of a user can be kept: half of what the others leave of the room. So nobody has more than
    /// half of it, and however many come, there is always some for one more: who has a few is kept whatever the
    /// others have. Root, and whose the server is, can have nearly all that the others leave.
    fn share(&self, uid: u32) -> usize {
        let left = self.room.saturating_sub(self.numbers.kept - self.of(uid));
        if uid == 0 || uid == self.owner { left - left.div_ceil(PART_OF_OTHERS) } else { left / 2 }
    }

    fn keep(&mut self, name: &str, who: &Who, all: &[impl AsFd]) {
        let before = self.forget(name).unwrap_or_default();
        let mut kept = Kept { uid: who.uid, ..before };
        let room = self.share(kept.uid).saturating_sub(self.of(kept.uid) + kept.held);
        let more = all.get(kept.first..).unwrap_or_default();
        let put = self.put(name, &more[..room.min(more.len())]);
        let has_grown = all.len() > kept.all;
        kept.held += put;
        kept.first += put;
        kept.all = kept.all.max(all.len());
        // One that waits for room is heard of once.
        if has_grown
            && kept.first < all.len()
            && let Some(unsaid) = self.logged.say(kept.uid, Instant::now())
        {
            self.say_unkept(who, &kept, unsaid);
        }
        self.count(name, kept);
    }

    fn say_unkept(&self, who: &Who, kept: &Kept, unsaid: u64) {
        let Who { pid, uid, .. } = *who;
        let (have, made) = (kept.first, kept.all);
        let raise = if self.room < MOST_SEGMENTS {
            format!("raise `FileDescriptorStoreMax=` ({} are of use), or ", MOST_SEGMENTS + OWN)
        } else {
            String::new()
        };
        tracing::warn!(
            pid,
            uid,
            have,
            made,
            unsaid,
            "not all segments of a process are kept for the next server, since its user has all that there is room \
             for: if this server is killed, what is counted in the others is missing until the process is back, and \
             lost if it has ended by then; {raise}have the user's processes make fewer segments, larger ones"
        );
    }

    /// Has these put under a name, from the first on: how many there were descriptors for.
    fn put(&mut self, name: &str, fds: &[impl AsFd]) -> usize {
        let mut put = 0;
        for some in fds.chunks(AT_ONCE) {
            let fds = some.iter().map(|fd| fd.as_fd().try_clone_to_owned()).collect();
            match fds {
                Ok(fds) => {
                    // That it is gone is ours to see: to be told of it, systemd would wake up at every request.
                    let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
                    self.waiting.push_back(Message { text, fds });
                    put += some.len();
                }
                Err(error) => {
                    tracing::warn!(%error, name, "not kept for the next server");
                    break;
                }
            }
        }
        put
    }

    /// Counts what is kept under a name of which [nothing is known](Self::forget).
    fn count(&mut self, name: &str, kept: Kept) {
        *self.of_users.entry(kept.uid).or_default() += kept.held;
        self.numbers.kept += kept.held;
        self.numbers.unkept += kept.all - kept.first;
        self.kept.insert(name.to_owned(), kept);
    }

    fn forget(&mut self, name: &str) -> Option<Kept> {
        let kept = self.kept.remove(name)?;
        if let Entry::Occupied(mut of_user) = self.of_users.entry(kept.uid) {
            *of_user.get_mut() -= kept.held;
            if *of_user.get() == 0 {
                of_user.remove();
            }
        }
        self.numbers.kept -= kept.held;
        self.numbers.unkept -= kept.all - kept.first;
        Some(kept)
    }

    fn remove(&mut self, name: &str) {
        match self.forget(name) {
            // There is nothing.
            Some(Kept { held: 0, .. }) => return,
            kept => self.has_more_room |= kept.is_some(),
        }
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

/// For how many segments there is room if the service manager keeps so many descriptors at `most`, as it says in
/// `FDSTORE` (systemd 254); one that does not say it is taken for one that keeps as many as can be.
fn room(most: Option<&str>) -> usize {
    let most = most.and_then(|most| most.parse::<usize>().ok());
    most.map_or(MOST_SEGMENTS, |most| most.saturating_sub(OWN).min(MOST_SEGMENTS))
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
pub(super) mod tests {
    use std::fs::File;

    use super::*;

    /// A store with so much room, and what is told to whoever keeps it.
    pub(in crate::host::server) fn store(room: usize) -> (FdStore, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (FdStore(Mutex::new(Outbox::new(ours, room, OWNER))), theirs)
    }

    const OWNER: u32 = 99;

    fn told(socket: &UnixDatagram) -> String {
        let mut text = [0; 256];
        let len = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    /// Has a user's process with so many segments kept, and takes what is told of that: how many of them are.
    fn keep((store, theirs): &(FdStore, UnixDatagram), name: &str, uid: u32, all: usize) -> usize {
        let fd = File::open("/dev/null").unwrap();
        let who = Who { pid: 1, uid, gid: uid, start_time: 1 };
        let before = store.numbers().1.kept;
        store.keep(name, &who, &vec![&fd; all]);
        let more = store.numbers().1.kept - before;
        for _ in 0..more.div_ceil(AT_ONCE) {
            assert_eq!(told(theirs), format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n"));
        }
        let outbox = store.lock();
        assert!(outbox.waiting.is_empty());
        outbox.kept[name].first
    }

    fn remove((store, theirs): &(FdStore, UnixDatagram), name: &str) {
        store.remove(name);
        assert_eq!(told(theirs), format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
    }

    #[test]
    fn names_are_never_longer_than_an_environment_takes() {
        let store = store(room(None));
        let name = |n: usize| crate::host::server::inherited::segments_name(n as u128);
        // Whoever they are of.
        let all = (0..MOST_SEGMENTS as u32).map(|n| keep(&store, &name(n as usize), n % 300, 2));
        let kept = all.sum::<usize>();
        assert!(kept > MOST_SEGMENTS / 2, "{kept}");
        let outbox = store.0.lock();
        let names = outbox.kept.iter().map(|(name, kept)| (name.len() + 1) * kept.held);
        assert!(names.sum::<usize>() <= MOST_NAMES);
        assert_eq!(outbox.numbers.kept, kept);
        assert_eq!(outbox.of_users.values().sum::<usize>(), kept);
    }

    #[test]
    fn there_is_no_more_room_than_the_service_manager_says() {
        assert_eq!(room(Some("100")), 100 - OWN);
        assert_eq!(room(Some("1")), 0);
        for most in [None, Some("4096"), Some("many")] {
            assert_eq!(room(most), MOST_SEGMENTS, "{most:?}");
        }
    }

    #[test]
    fn each_user_has_half_of_what_the_others_leave() {
        let store = store(64);
        assert_eq!(keep(&store, "seg.1", 1, 8), 8);
        // However many processes they are in, and whoever else has something.
        assert_eq!(keep(&store, "seg.2", 2, 20) + keep(&store, "seg.3", 2, 20), (64 - 8) / 2);
        assert_eq!(keep(&store, "seg.4", 3, 64), (64 - 8 - 28) / 2);
        // Who had little may have more.
        assert_eq!(keep(&store, "seg.1", 1, 64), (64 - 28 - 14) / 2);
        assert_eq!(keep(&store, "seg.5", 4, 64), (64 - 28 - 14 - 11) / 2);
        assert_eq!(keep(&store, "seg.6", 5, 1), 1);
        assert_eq!(keep(&store, "seg.7", 6, 1), 1);
    }

    #[test]
    fn root_and_the_servers_user_have_nearly_all() {
        for uid in [0, OWNER] {
            let store = store(64);
            assert_eq!(keep(&store, "seg.1", uid, 1000), 60);
            assert_eq!(keep(&store, "seg.2", 7, 1000), 2);
            assert_eq!(keep(&store, "seg.3", 8, 1000), 1);
        }
    }

    #[test]
    fn the_first_segments_stay_kept_and_the_others_are_once_there_is_room() {
        let store = store(64);
        assert_eq!(keep(&store, "seg.1", 7, 20), 20);
        assert_eq!(keep(&store, "seg.2", 7, 10), 10);
        // It grows beyond the share of its user.
        assert_eq!(keep(&store, "seg.2", 7, 14), 12);
        assert_eq!(keep(&store, "seg.2", 7, 15), 12);
        assert_eq!(store.0.numbers(), (64, Numbers { kept: 32, unkept: 3 }));
        assert!(!store.0.has_more_room());
        remove(&store, "seg.1");
        assert!(store.0.has_more_room());
        assert!(!store.0.has_more_room(), "it was asked");
        assert_eq!(keep(&store, "seg.2", 7, 15), 15);
        assert_eq!(store.0.numbers(), (64, Numbers { kept: 15, unkept: 0 }));
        // There is more again, but nobody needs it.
        remove(&store, "seg.2");
        assert!(!store.0.has_more_room());
        assert_eq!(store.0.numbers(), (64, Numbers::default()));
        assert!(store.0.lock().of_users.is_empty());
    }

    #[test]
    fn what_the_server_before_had_put_there_is_charged() {
        let store = store(64);
        // Of what is held some is none of its first segments.
        store.0.has_kept("seg.1", 7, 30, 28, 29);
        assert_eq!(store.0.numbers().1, Numbers { kept: 30, unkept: 1 });
        assert_eq!(keep(&store, "seg.2", 7, 64), 2);
        assert_eq!(keep(&store, "seg.3", 8, 64), 16);
        // It has come back with all.
        assert_eq!(keep(&store, "seg.1", 7, 29), 28);
        remove(&store, "seg.3");
        assert_eq!(keep(&store, "seg.1", 7, 29), 28);
        remove(&store, "seg.2");
        assert_eq!(keep(&store, "seg.1", 7, 29), 29);
    }

    #[test]
    fn the_servers_own_is_kept_whatever_the_others_have() {
        let store = store(64);
        keep(&store, "seg.1", 0, 64);
        let fd = File::open("/dev/null").unwrap();
        store.0.put("fuse.1", &[&fd, &fd]);
        assert_eq!(told(&store.1), "FDSTORE=1\nFDPOLL=0\nFDNAME=fuse.1\n");
        remove(&store, "fuse.1");
    }

    #[test]
    fn what_finds_no_room_in_the_end_is_waited_for() {
        let (store, theirs) = store(room(None));
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
