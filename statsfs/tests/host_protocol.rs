//! The protocol between publishers and the server of a host: what every message looks like, and what a
//! socket does when the process at its other end is killed, is another user's, or does not keep to it.

use std::fs::Permissions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen,
    sendmsg, socket, socketpair,
};
use proptest::prelude::*;
use statsfs::host::protocol::{
    Buffer, ClientMessage, Hello, Incoming, Life, Listener, MAGIC, MAX_FDS, MAX_MESSAGE, MAX_PART,
    MAX_REASON, Message, PeerError, ProtocolError, ReceiveError, SendError, ServerMessage, Socket,
    StatusText, VERSION,
};

// --- Messages as bytes ---

fn encoded<'a>(message: &impl Message<'a>, fds: usize) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = [0xaa; MAX_MESSAGE];
    let len = message.encode(fds, &mut bytes)?;
    Ok(bytes[..len].to_vec())
}

fn hello() -> ClientMessage {
    ClientMessage::Hello(Hello { publisher: 1 << 100 | 7, public: true, segments: 3 })
}

/// One message of each type, with the descriptors that it may have.
fn from_publishers() -> [(ClientMessage, usize); 5] {
    [
        (hello(), 3),
        (ClientMessage::Segments { first: 255 }, 1),
        (ClientMessage::Changed, 0),
        (ClientMessage::Goodbye, 0),
        (ClientMessage::Status, 0),
    ]
}

fn from_servers() -> [ServerMessage<'static>; 4] {
    [
        ServerMessage::Welcome { pid: 4242, mount: Path::new("/run/statsfs") },
        ServerMessage::Refused { reason: "too many segments: 256 are allowed", again: false },
        ServerMessage::Bye,
        ServerMessage::StatusPart { offset: 5, total: 9, part: b"last" },
    ]
}

#[test]
fn messages_are_as_documented() {
    let word = |n: u32| n.to_le_bytes();
    let header = |kind: u16, len: u32| {
        let version = [1u16.to_le_bytes(), kind.to_le_bytes()].concat();
        [b"SFSP".as_slice(), &version, &word(len), &word(0)].concat()
    };
    let mut id = [0; 16];
    (id[0], id[12]) = (7, 16);
    let body = [&id[..], &word(1), &word(3)].concat();
    let is = |bytes: Vec<u8>, header: Vec<u8>, body: &[u8]| {
        assert_eq!(bytes, [&header, body].concat());
    };
    let [hello, segments, changed, goodbye, status] =
        from_publishers().map(|(message, fds)| encoded(&message, fds).unwrap());
    is(hello, header(1, 40), &body);
    is(segments, header(2, 20), &word(255));
    is(changed, header(3, 16), &[]);
    is(goodbye, header(4, 16), &[]);
    is(status, header(5, 16), &[]);
    let [welcome, refused, bye, part] = from_servers().map(|message| encoded(&message, 0).unwrap());
    is(welcome, header(0x101, 32), &[&word(4242)[..], b"/run/statsfs"].concat());
    let reason = b"too many segments: 256 are allowed";
    is(refused, header(0x102, 54), &[&word(0)[..], reason].concat());
    is(bye, header(0x103, 16), &[]);
    is(part, header(0x104, 28), &[&word(5)[..], &word(9), b"last"].concat());
}

/// Decoded, by both sides; what one accepts it writes again as it was.
fn decode(bytes: &[u8], fds: usize) -> Result<(), ProtocolError> {
    let client = ClientMessage::decode(bytes, fds);
    let server = ServerMessage::decode(bytes, fds);
    assert!(client.is_err() || server.is_err());
    if let Ok(message) = &client {
        assert_eq!(encoded(message, fds).unwrap(), bytes);
    }
    if let Ok(message) = &server {
        assert_eq!(encoded(message, fds).unwrap()[6..], bytes[6..]);
    }
    client.map(drop).or(server.map(drop))
}

#[test]
fn half_and_longer_messages_are_refused() {
    let client = from_publishers().map(|(message, fds)| (encoded(&message, fds).unwrap(), fds));
    let server = from_servers().map(|message| (encoded(&message, 0).unwrap(), 0));
    for (bytes, fds) in client.into_iter().chain(server) {
        decode(&bytes, fds).unwrap();
        for len in 0..bytes.len() {
            let error = decode(&bytes[..len], fds).unwrap_err();
            if len < 16 {
                assert_eq!(error, ProtocolError::Short(len));
            }
            // Also if it says so itself.
            if len >= 16 {
                let mut bytes = bytes[..len].to_vec();
                bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
                let kind = bytes[6..8].to_vec();
                // Texts and paths may be of any length.
                assert!(
                    decode(&bytes, fds).is_err()
                        || [[1, 1], [2, 1], [4, 1]].contains(&[kind[0], kind[1]])
                );
            }
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(decode(&longer, fds), Err(ProtocolError::Length { .. })));
    }
}

#[test]
fn what_is_wrong_with_a_message_is_said() {
    let good = encoded(&hello(), 3).unwrap();
    let changed_at = |at: usize, bytes: &[u8]| {
        let mut all = good.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        ClientMessage::decode(&all, 3).unwrap_err()
    };
    assert_eq!(changed_at(0, b"SFSQ"), ProtocolError::Magic(u32::from_le_bytes(*b"SFSQ")));
    assert_eq!(changed_at(4, &[2, 0]), ProtocolError::Version(2));
    assert_eq!(changed_at(6, &[9, 0]), ProtocolError::Type(9));
    assert_eq!(changed_at(6, &[1, 1]), ProtocolError::Type(0x101));
    assert_eq!(changed_at(6, &[3, 0]), ProtocolError::Size { message: "changed", actual: 40 });
    assert_eq!(changed_at(8, &[41]), ProtocolError::Length { stated: 41, actual: 40 });
    assert_eq!(changed_at(12, &[1]), ProtocolError::Reserved(1));
    assert_eq!(changed_at(16, &[0; 16]), ProtocolError::ZeroId);
    assert_eq!(changed_at(32, &[3]), ProtocolError::Flags { message: "hello", flags: 3 });
    for segments in [0, 2, 257] {
        let error = ProtocolError::Segments { segments, fds: 3 };
        assert_eq!(changed_at(36, &segments.to_le_bytes()), error);
    }
    // Descriptors where none belong, none where some belong, too many.
    for (message, fds) in from_publishers() {
        let bytes = encoded(&message, fds).unwrap();
        let (wrong, min, max) = if fds == 0 { ([1, 16], 0, 0) } else { ([0, 17], 1, MAX_FDS) };
        for actual in wrong {
            let error = ProtocolError::Fds { message: message.name(), actual, min, max };
            assert_eq!(ClientMessage::decode(&bytes, actual), Err(error));
            assert!(encoded(&message, actual).is_err());
        }
    }
    for message in from_servers() {
        let bytes = encoded(&message, 0).unwrap();
        let error = ProtocolError::Fds { message: message.name(), actual: 1, min: 0, max: 0 };
        assert_eq!(ServerMessage::decode(&bytes, 1), Err(error));
    }
    for (first, fds) in [(0, 1), (250, 7), (u32::MAX, 16)] {
        let error = Err(ProtocolError::First { first, fds });
        assert_eq!(encoded(&ClientMessage::Segments { first }, fds), error);
    }
    let welcome =
        |pid, mount: &str| encoded(&ServerMessage::Welcome { pid, mount: Path::new(mount) }, 0);
    assert_eq!(welcome(0, "/m"), Err(ProtocolError::Pid));
    for mount in ["", "m", "/m\0m", &format!("/{}", "m".repeat(4095))] {
        assert_eq!(welcome(1, mount), Err(ProtocolError::MountPath(mount.len())));
    }
    assert!(welcome(1, &format!("/{}", "m".repeat(4094))).is_ok());
    for (offset, total, len) in [(0, 0, 0), (5, 8, 4), (u32::MAX, u32::MAX, 1), (0, 9000, 8169)] {
        let part = &vec![0; len][..];
        let error = Err(ProtocolError::Part { offset, total, len });
        assert_eq!(encoded(&ServerMessage::StatusPart { offset, total, part }, 0), error);
    }
}

#[test]
fn a_refusal_is_understood_in_every_version_and_cut_between_characters() {
    let mut bytes = encoded(&ServerMessage::refused("not version 1", true), 0).unwrap();
    bytes[4] = 9;
    let refused = ServerMessage::Refused { reason: "not version 1", again: true };
    assert_eq!(ServerMessage::decode(&bytes, 0), Ok(refused));
    *bytes.last_mut().unwrap() = 0xff;
    assert_eq!(ServerMessage::decode(&bytes, 0), Err(ProtocolError::Reason));

    let reason = format!("x{}", "ü".repeat(1000));
    let refused = ServerMessage::refused(&reason, false);
    let ServerMessage::Refused { reason: shorter, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(shorter, &reason[..MAX_REASON - 1]);
    encoded(&refused, 0).unwrap();
    let longer = ServerMessage::Refused { reason: &reason, again: false };
    assert!(matches!(encoded(&longer, 0), Err(ProtocolError::Size { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        kind in prop_oneof![0..7u16, 0xff..0x106u16],
        body in prop::collection::vec(any::<u8>(), 0..64),
        fds in 0..20usize,
        flip in prop::option::of((0..16usize, any::<u8>())),
    ) {
        let len = 16 + body.len() as u32;
        let mut bytes = [&MAGIC.to_le_bytes()[..], &VERSION.to_le_bytes(), &kind.to_le_bytes(),
            &len.to_le_bytes(), &[0; 4], &body].concat();
        if let Some((at, with)) = flip {
            bytes[at] ^= with;
        }
        let _ = decode(&bytes, fds);
    }

    #[test]
    fn what_a_publisher_says_comes_back(
        publisher in 1..u128::MAX, public: bool, segments in 1..=256u32, fds in 1..=16usize,
    ) {
        prop_assume!(fds <= segments as usize);
        let message = ClientMessage::Hello(Hello { publisher, public, segments });
        let bytes = encoded(&message, fds).unwrap();
        prop_assert_eq!(ClientMessage::decode(&bytes, fds), Ok(message));
    }
}

// --- Sockets ---

fn pair() -> (Socket, Socket) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (a.into(), b.into())
}

fn memfd(name: &str) -> OwnedFd {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a C string; the descriptor is new and ours.
    unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

/// How many descriptors of this process are of the memfd of this name, which no other test uses.
fn open_ones(name: &str) -> usize {
    let target = PathBuf::from(format!("/memfd:{name} (deleted)"));
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|entry| {
        // Those of other tests come and go.
        std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|link| link == target)
    })
    .count()
}

/// Sends whatever bytes, and descriptors in so many control messages.
fn send_raw(socket: &impl AsFd, bytes: &[u8], fds: &[&[RawFd]]) -> nix::Result<usize> {
    let control: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
    let fd = socket.as_fd().as_raw_fd();
    sendmsg::<()>(fd, &[IoSlice::new(bytes)], &control, MsgFlags::MSG_DONTWAIT, None)
}

fn receive(
    socket: &Socket,
    fds: &mut Vec<OwnedFd>,
) -> Result<Incoming<ClientMessage>, ReceiveError> {
    socket.receive(&mut Buffer::default(), fds)
}

fn wrong(socket: &Socket, fds: &mut Vec<OwnedFd>) -> ProtocolError {
    match receive(socket, fds) {
        Err(ReceiveError::Message(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn wait_readable(fd: &impl AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)), Ok(1), "nothing within a minute");
}

/// A forked child, killed and waited for when dropped.
struct Child(libc::pid_t);

impl Child {
    fn start(run: impl FnOnce()) -> Self {
        // SAFETY: the child runs nothing but `run` and _exit(2), and no lock of this process but those of
        // malloc, which fork takes care of.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: plain system calls. The alarm ends a child that waits for ever.
            unsafe { libc::alarm(60) };
            let outcome = catch_unwind(AssertUnwindSafe(run));
            // SAFETY: a plain system call.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        Self(pid)
    }

    fn kill(&self) {
        // SAFETY: a plain system call; the child was not waited for, so it has its pid.
        assert_eq!(unsafe { libc::kill(self.0, libc::SIGKILL) }, 0);
    }

    fn wait(mut self) -> i32 {
        self.reap()
    }

    fn reap(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        assert_eq!(unsafe { libc::waitpid(self.0, &mut status, 0) }, self.0);
        self.0 = 0;
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 != 0 {
            self.kill();
            self.reap();
        }
    }
}

#[test]
fn messages_and_descriptors_arrive() {
    let (server, client) = pair();
    let fd = memfd("arrives");
    let mut fds = Vec::new();
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Nothing);
    client.send(&hello(), &[fd.as_fd(); 3]).unwrap();
    client.send(&ClientMessage::Changed, &[]).unwrap();
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Message(hello()));
    assert_eq!((fds.len(), open_ones("arrives")), (3, 4));
    for fd in &fds {
        // SAFETY: a plain system call.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Message(ClientMessage::Changed));
    drop(client);
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::End);
    assert!(matches!(server.send(&ServerMessage::Bye, &[]), Err(SendError::Closed)));
    drop(fds);
    assert_eq!(open_ones("arrives"), 1);
}

#[test]
fn every_descriptor_is_received_and_closed() {
    let (server, client) = pair();
    let fd = memfd("thousand");
    let message = encoded(&hello(), 3).unwrap();
    let many = [fd.as_raw_fd(); 253];
    // As many as the kernel passes, in one control message or in several, four times: over a thousand.
    let (a, b) = many.split_at(100);
    for control in [&[&many[..]][..], &[a, b], &[&many[..1], &many[1..]], &[&many]] {
        send_raw(&client, &message, control).unwrap();
    }
    assert!(send_raw(&client, &message, &[&many, &many[..1]]).is_err());
    let mut fds = Vec::new();
    for n in 1..=4 {
        let error = wrong(&server, &mut fds);
        let expected = ProtocolError::Fds { message: "hello", actual: 253, min: 1, max: 16 };
        assert_eq!(error, expected);
        assert_eq!((fds.len(), open_ones("thousand")), (253 * n, 253 * n + 1));
    }
    drop(fds);
    assert_eq!(open_ones("thousand"), 1);

    // Some with an empty datagram, with one that is too long, with one that is no message.
    let mut fds = Vec::new();
    send_raw(&client, &[], &[&many[..2]]).unwrap();
    assert_eq!(wrong(&server, &mut fds), ProtocolError::Short(0));
    send_raw(&client, &[0; MAX_MESSAGE + 1], &[&many[..2]]).unwrap();
    assert_eq!(wrong(&server, &mut fds), ProtocolError::Long);
    send_raw(&client, &[0; 16], &[&many[..2]]).unwrap();
    assert_eq!(wrong(&server, &mut fds), ProtocolError::Magic(0));
    assert_eq!((fds.len(), open_ones("thousand")), (6, 7));
    drop(fds);
    // Some that nobody receives.
    send_raw(&client, &message, &[&many]).unwrap();
    drop(server);
    assert_eq!(open_ones("thousand"), 1);
}

#[test]
fn an_empty_datagram_is_an_end() {
    let (server, client) = pair();
    send_raw(&client, &[], &[]).unwrap();
    assert_eq!(receive(&server, &mut Vec::new()).unwrap(), Incoming::End);
}

#[test]
fn descriptors_that_find_no_room_are_missed() {
    let child = Child::start(|| {
        let (server, client) = pair();
        let fd = memfd("crowded");
        let message = encoded(&hello(), 3).unwrap();
        send_raw(&client, &message, &[&[fd.as_raw_fd(); 16]]).unwrap();
        send_raw(&client, &message, &[&[fd.as_raw_fd(); 3]]).unwrap();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a live rlimit.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
        let next = fd.try_clone().unwrap().as_raw_fd() as u64;
        // Room for five, more or less: there may be gaps below.
        let less = libc::rlimit { rlim_cur: next + 5, ..limit };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &less) }, 0);
        let mut fds = Vec::with_capacity(32);
        assert_eq!(wrong(&server, &mut fds), ProtocolError::LostFds);
        assert!((1..16).contains(&fds.len()), "{}", fds.len());
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        assert_eq!(open_ones("crowded"), 1 + fds.len());
        drop(fds);
        let mut fds = Vec::new();
        assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Message(hello()));
        assert_eq!(open_ones("crowded"), 4);
    });
    assert_eq!(child.wait(), 0);
}

#[test]
fn a_full_socket_says_so() {
    let (server, client) = pair();
    let mut sent = 0;
    let error = loop {
        match client.send(&ClientMessage::Changed, &[]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 1_000_000);
    };
    assert!(matches!(error, SendError::Full), "{error:?}");
    let mut fds = Vec::new();
    for _ in 0..sent {
        let message = receive(&server, &mut fds).unwrap();
        assert_eq!(message, Incoming::Message(ClientMessage::Changed));
    }
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Nothing);
    client.send(&ClientMessage::Changed, &[]).unwrap();
}

/// Becomes an ordinary user, of a process that has one thread.
fn become_user(uid: u32, gid: u32) {
    // SAFETY: plain system calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0, "to be run as root");
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0, "to be run as root");
    }
}

#[test]
fn a_user_may_not_have_any_number_of_descriptors_on_their_way() {
    let child = Child::start(|| {
        become_user(54_321, 54_321);
        let (server, client) = pair();
        let fd = memfd("flight");
        let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        // SAFETY: the pointer is to a live rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        let message = ClientMessage::Segments { first: 1 };
        let mut sent = 0;
        let error = loop {
            match client.send(&message, &[fd.as_fd(); MAX_FDS]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 64);
        };
        assert!(matches!(error, SendError::Full), "{error:?}");
        for _ in 0..sent {
            assert_eq!(receive(&server, &mut Vec::new()).unwrap(), Incoming::Message(message));
        }
        client.send(&message, &[fd.as_fd(); MAX_FDS]).unwrap();
    });
    assert_eq!(child.wait(), 0);
}

#[test]
fn what_was_said_before_the_end_is_heard() {
    let (server, client) = pair();
    client.send(&hello(), &[memfd("said").as_fd(); 3]).unwrap();
    client.send(&ClientMessage::Goodbye, &[]).unwrap();
    // Something that the publisher never reads: the kernel says that its end is a reset.
    server.send(&ServerMessage::Welcome { pid: 1, mount: Path::new("/m") }, &[]).unwrap();
    drop(client);
    let mut fds = Vec::new();
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Message(hello()));
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::Message(ClientMessage::Goodbye));
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::End);
    assert_eq!(receive(&server, &mut fds).unwrap(), Incoming::End);
}

#[test]
fn a_status_text_comes_in_parts() {
    let (server, client) = pair();
    let text = "{\"connected\": 200, \"refused\": \"wäre zu groß\"}\n".repeat(500);
    assert!(text.len() > 2 * MAX_PART);
    let (mut buffer, mut whole, mut done) = (Buffer::default(), StatusText::default(), false);
    for part in ServerMessage::status(&text) {
        server.send(&part, &[]).unwrap();
        match client.receive(&mut buffer, &mut Vec::new()).unwrap() {
            Incoming::Message(ServerMessage::StatusPart { offset, total, part }) => {
                assert!(!done);
                done = whole.add(offset, total, part).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(done);
    assert_eq!(whole.into_text(), Ok(text));
    // Parts that are missing, come twice, or make it larger than is said.
    let mut whole = StatusText::default();
    assert_eq!(whole.add(0, 4, b"ab"), Ok(false));
    for (offset, total, part) in
        [(0, 4, &b"ab"[..]), (3, 4, b"d"), (2, 4, b"cde"), (2, u32::MAX, b"c")]
    {
        assert!(matches!(whole.add(offset, total, part), Err(ProtocolError::Part { .. })));
    }
    assert_eq!(whole.add(2, 4, b"cd"), Ok(true));
}

// --- Processes ---

/// A directory with a socket that any user may connect to.
struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    listener: Listener,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let missing = Socket::connect(&path).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let listener = Listener::bind(&path).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(listener.accept().unwrap().is_none());
        Self { _dir: dir, path, listener }
    }

    fn accept(&self) -> Socket {
        wait_readable(&self.listener);
        self.listener.accept().unwrap().unwrap()
    }
}

#[test]
fn the_peer_is_who_the_kernel_says() {
    let place = Place::new();
    let child = Child::start(|| {
        become_user(12_345, 23_456);
        let socket = Socket::connect(&place.path).unwrap();
        socket.send(&hello(), &[memfd("theirs").as_fd(); 3]).unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::pause() };
    });
    let socket = place.accept();
    let peer = socket.peer().unwrap();
    assert_eq!((peer.pid, peer.uid, peer.gid), (child.0 as u32, 12_345, 23_456));
    let life = peer.life.unwrap();
    let of_pid = Life::of(peer.pid).unwrap().unwrap();
    assert_eq!(life.start_time, of_pid.start_time);
    let this = Life::of(std::process::id()).unwrap().unwrap();
    assert!(life.start_time >= this.start_time);
    wait_readable(&socket);
    let mut fds = Vec::new();
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::Message(hello()));
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::Nothing);
    child.kill();
    wait_readable(&life.pidfd);
    wait_readable(&socket);
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::End);
    // It is dead, but has its pid until it is waited for.
    assert_eq!(socket.peer().unwrap().life.unwrap().start_time, life.start_time);
    child.wait();
    assert!(socket.peer().unwrap().life.is_none());
}

#[test]
fn a_peer_that_is_gone_is_still_known_and_heard() {
    let place = Place::new();
    let child = Child::start(|| {
        let socket = Socket::connect(&place.path).unwrap();
        socket.send(&hello(), &[memfd("late").as_fd(); 3]).unwrap();
    });
    let pid = child.0 as u32;
    assert_eq!(child.wait(), 0);
    let socket = place.accept();
    let peer = socket.peer().unwrap();
    assert_eq!(peer.pid, pid);
    assert!(peer.life.is_none(), "{peer:?}");
    let mut fds = Vec::new();
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::Message(hello()));
    assert_eq!((fds.len(), receive(&socket, &mut fds).unwrap()), (3, Incoming::End));
}

#[test]
fn a_peer_that_dies_between_the_parts_leaves_nothing() {
    let place = Place::new();
    let message = ClientMessage::Hello(Hello { publisher: 9, public: false, segments: 40 });
    let child = Child::start(|| {
        let socket = Socket::connect(&place.path).unwrap();
        let fd = memfd("parts");
        socket.send(&message, &[fd.as_fd(); MAX_FDS]).unwrap();
        let second = ClientMessage::Segments { first: 16 };
        socket.send(&second, &[fd.as_fd(); MAX_FDS]).unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::pause() };
    });
    let socket = place.accept();
    wait_readable(&socket);
    let mut fds = Vec::new();
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::Message(message));
    let life = socket.peer().unwrap().life.unwrap();
    wait_readable(&socket);
    child.kill();
    child.wait();
    wait_readable(&life.pidfd);
    let second = receive(&socket, &mut fds).unwrap();
    assert_eq!(second, Incoming::Message(ClientMessage::Segments { first: 16 }));
    assert_eq!(receive(&socket, &mut fds).unwrap(), Incoming::End);
    assert_eq!(open_ones("parts"), 32);
    drop(fds);
    assert_eq!(open_ones("parts"), 0);
}

#[test]
fn a_peer_of_a_foreign_pid_namespace_is_refused() {
    let place = Place::new();
    let _socket = Socket::connect(&place.path).unwrap();
    let child = Child::start(|| {
        // SAFETY: a plain system call.
        let new = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        assert_eq!(new, 0, "to be run as root: {}", io::Error::last_os_error());
        let server = Child::start(|| {
            let error = place.accept().peer().unwrap_err();
            assert!(matches!(error, PeerError::Foreign), "{error:?}");
        });
        assert_eq!(server.wait(), 0);
    });
    assert_eq!(child.wait(), 0);
}

#[test]
fn connecting_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let new = |kind| socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let bound = new(SockType::SeqPacket);
    bind(bound.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    assert_eq!(Socket::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let unfit = |fd: OwnedFd| Listener::from_fd(fd).unwrap_err().kind();
    assert_eq!(unfit(bound.try_clone().unwrap()), io::ErrorKind::InvalidInput);
    assert_eq!(unfit(new(SockType::Stream)), io::ErrorKind::InvalidInput);
    listen(&bound, Backlog::new(0).unwrap()).unwrap();
    // The socket as somebody else made it would wait.
    let listener = Listener::from_fd(bound).unwrap();
    assert!(listener.accept().unwrap().is_none());
    let mut waiting = Vec::new();
    let error = loop {
        match Socket::connect(&path) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
        assert!(waiting.len() < 16);
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(listener.accept().unwrap().is_some());
    Socket::connect(&path).unwrap();
    let long = dir.path().join("x".repeat(108));
    assert!(Socket::connect(&long).is_err() && Listener::bind(&long).is_err());
}
