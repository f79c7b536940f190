//! Clients of a real server: honest ones, of any user, and such as say what they like.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use statsfs::host::protocol::{
    Buffer, ClientMessage, Hello, Incoming, Message, ServerMessage, Socket,
};
use statsfs::host::{PublishOptions, PublishState, Publisher};
use statsfs::{Registry, RegistryOptions, Slot, Source};

use super::server::Server;
use super::support::{PATIENCE, Work, below};

/// Users of the tests' own.
pub const A: u32 = 20_001;
pub const B: u32 = 20_002;
pub const READERS: u32 = 20_500;
pub const PUBLISHERS: u32 = 20_501;

/// A server that other users may publish to.
pub fn for_users(more: &[&str]) -> Server {
    let (readers, publishers) = (READERS.to_string(), PUBLISHERS.to_string());
    let mut args = vec!["--readers", &readers, "--socket-group", &publishers];
    args.extend(more);
    Server::with(&args)
}

/// A registry of small segments.
pub fn small_registry() -> Registry {
    let small = RegistryOptions { segment_size: 64 << 10, ..RegistryOptions::default() };
    Registry::with_options(small).unwrap()
}

/// A registry that publishes one machine, and counts in it.
pub struct Machine {
    pub registry: Registry,
    pub kvm: Source,
    pub slot: Slot<Work>,
    pub publisher: Publisher,
}

pub fn options(server: &Server, public: bool) -> PublishOptions {
    PublishOptions { socket: Some(server.socket()), public, ..PublishOptions::default() }
}

impl Machine {
    pub fn new(server: &Server, name: &str, public: bool) -> Self {
        Self::of(server, small_registry(), name, public)
    }

    pub fn of(server: &Server, registry: Registry, name: &str, public: bool) -> Self {
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let machine = below(&registry, &kvm, name);
        let slot = machine.add_values().unwrap();
        let publisher = registry.publish(options(server, public)).unwrap();
        Self { registry, kvm, slot, publisher }
    }

    pub fn published(server: &Server, name: &str, public: bool) -> Self {
        let machine = Self::new(server, name, public);
        let state = machine.publisher.wait_tried(PATIENCE);
        assert!(matches!(state, PublishState::Published { .. }), "{state:?}\n{}", server.log());
        machine
    }

    pub fn count(&self, n: u64) {
        self.slot.update(|counters| counters.work_done.add(n));
    }
}

pub fn directory(name: &str) -> String {
    format!("kvm/{}-{name}", std::process::id())
}

/// Runs `f` on a thread of another user. Processes and threads that it starts are that user's.
pub fn as_user<T: Send>(uid: u32, gid: u32, groups: &[u32], f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid, gid, groups);
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// This thread, and what it starts, is another user's from now on.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    // SAFETY: the raw calls change the credentials of this thread alone; the list is as long as it says.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
    }
}

/// A user who may publish.
pub fn publishing_user<T: Send>(uid: u32, f: impl FnOnce() -> T + Send) -> T {
    as_user(uid, uid, &[PUBLISHERS], f)
}

pub fn encoded(message: &ClientMessage, fds: usize) -> Vec<u8> {
    let mut bytes = [0; statsfs::host::protocol::MAX_MESSAGE];
    let len = message.encode(fds, &mut bytes).unwrap();
    bytes[..len].to_vec()
}

/// Sends what no socket of the library's would. Whether there was room for it, and somebody to receive it.
pub fn send_raw(socket: &Socket, bytes: &[u8], fds: &[impl AsFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).is_ok()
}

/// No descriptors.
pub const NONE: &[OwnedFd] = &[];

/// A client that says what it likes.
pub struct Hostile(pub Socket);

impl Hostile {
    pub fn connect(server: &Server) -> Self {
        Self(Socket::connect(&server.socket()).unwrap())
    }

    pub fn hello(&self, segments: u32, fds: &[BorrowedFd<'_>]) {
        let hello = Hello { publisher: 7, public: true, segments };
        self.0.send(&ClientMessage::Hello(hello), fds).unwrap();
    }

    /// Whether the server has said something by now, or closed the connection.
    pub fn is_answered(&self) -> bool {
        let mut buffer = Buffer::default();
        let said = self.0.receive::<ServerMessage>(&mut buffer, &mut Vec::new());
        !matches!(said, Ok(Incoming::Nothing))
    }

    /// Waits for what the server says, and that it closes the connection then.
    pub fn refusal(&self) -> String {
        let (mut buffer, mut fds, end) = (Buffer::default(), Vec::new(), Instant::now() + PATIENCE);
        let mut reason = None;
        loop {
            assert!(Instant::now() < end, "the server neither refuses nor closes: {reason:?}");
            match self.0.receive(&mut buffer, &mut fds) {
                Ok(Incoming::Message(ServerMessage::Refused { reason: text, .. })) => {
                    reason = Some(text.to_owned());
                }
                Ok(Incoming::End) => return reason.unwrap_or_default(),
                Ok(Incoming::Nothing) => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::from(100u8)).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

pub fn memfd(flags: libc::c_uint) -> OwnedFd {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    unsafe {
        let fd = libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC | flags);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

pub fn seal(fd: &OwnedFd, seals: libc::c_int) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
}

pub const SEALS: libc::c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

/// Sealed memory with these bytes in the beginning.
pub fn sealed(bytes: &[u8], len: u64) -> OwnedFd {
    use std::io::Write;
    let file = std::fs::File::from(memfd(libc::MFD_ALLOW_SEALING));
    file.set_len(len).unwrap();
    (&file).write_all(bytes).unwrap();
    // No holes: they are refused for themselves.
    (&file).write_all(&vec![0; len as usize - bytes.len()]).unwrap();
    let fd = OwnedFd::from(file);
    seal(&fd, SEALS);
    fd
}

/// What is open in the server.
pub fn open_files(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

pub fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}
