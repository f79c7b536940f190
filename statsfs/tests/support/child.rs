//! A writer in another process: the test binary itself, started again to run one ignored test, with a
//! socket to hand over its segments and memory that outlives it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use statsfs::Registry;
use statsfs::tree::{Feed, Owner, Tree};

const SOCKET: &str = "STATSFS_TEST_SOCKET";
const MEMORY: &str = "STATSFS_TEST_MEMORY";

/// Memory shared with the child, as a `T` that consists of atomics.
pub struct Shared<T: 'static> {
    fd: OwnedFd,
    pub value: &'static T,
}

fn map<T>(fd: RawFd) -> &'static T {
    // SAFETY: a new mapping at an address of the kernel's choice, never unmapped; it is zeroed or what
    // the other process stored, and `T` consists of atomics, for which all bytes are valid.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        &*at.cast::<T>()
    }
}

fn inherit(fd: RawFd) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
}

impl<T> Shared<T> {
    pub fn new() -> Self {
        // SAFETY: the name is a C string; the descriptor is new and ours.
        let fd = unsafe {
            let fd = libc::memfd_create(c"ledger".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            assert_eq!(libc::ftruncate(fd, size_of::<T>() as libc::off_t), 0);
            OwnedFd::from_raw_fd(fd)
        };
        let value = map(fd.as_raw_fd());
        Self { fd, value }
    }
}

/// A running writer. Killed when dropped.
pub struct Writer {
    child: Child,
    pub socket: UnixStream,
}

impl Writer {
    /// Starts the ignored test of this name as a writer.
    pub fn start<T>(test: &str, memory: &Shared<T>, mode: &str) -> Self {
        Self::started(test, memory, mode, None)
    }

    /// The same as a user, who is in one more group. Not by a thread that is that user's: what it has started
    /// ends with it.
    pub fn start_as<T>(user: u32, group: u32, test: &str, memory: &Shared<T>, mode: &str) -> Self {
        Self::started(test, memory, mode, Some((user, group)))
    }

    fn started<T>(test: &str, memory: &Shared<T>, mode: &str, user: Option<(u32, u32)>) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        inherit(theirs.as_raw_fd());
        inherit(memory.fd.as_raw_fd());
        let mut command = Command::new(std::env::current_exe().unwrap());
        if let Some((user, group)) = user {
            // SAFETY: plain system calls, of which the first reads one live number.
            unsafe {
                command.pre_exec(move || {
                    let is_user = libc::setgroups(1, &group) == 0
                        && libc::setgid(user) == 0
                        && libc::setuid(user) == 0;
                    if is_user { Ok(()) } else { Err(std::io::Error::last_os_error()) }
                });
            }
        }
        let child = command
            .args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"])
            .env(SOCKET, theirs.as_raw_fd().to_string())
            .env(MEMORY, memory.fd.as_raw_fd().to_string())
            .env("STATSFS_TEST_MODE", mode)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { child, socket }
    }

    pub fn pid(&self) -> libc::pid_t {
        self.child.id() as libc::pid_t
    }

    /// Receives the segments.
    pub fn segments(&self) -> Vec<OwnedFd> {
        let mut byte = [0];
        let mut buffer = nix::cmsg_space!([RawFd; 64]);
        let mut io = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            // With a timeout it is not begun again by itself.
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut io, Some(&mut buffer), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                message => break message.unwrap(),
            }
        };
        assert_eq!(message.bytes, 1, "the writer ended before it had segments");
        message
            .cmsgs()
            .unwrap()
            .flat_map(|message| match message {
                ControlMessageOwned::ScmRights(fds) => fds,
                other => panic!("{other:?}"),
            })
            // SAFETY: the kernel has just made these descriptors for us.
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
            .collect()
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain system call; the child is not reaped before `wait`, so the pid is its.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Waits until the child has stopped.
    pub fn wait_stopped(&self) {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let pid = unsafe { libc::waitpid(self.pid(), &mut status, libc::WUNTRACED) };
        assert_eq!(pid, self.pid());
        assert!(libc::WIFSTOPPED(status), "the writer ended: {:?}", ExitStatus::from_raw(status));
    }

    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: the shared memory, the socket and the mode.
pub fn in_child<T>() -> (&'static T, UnixStream, String) {
    let number = |name| -> RawFd {
        let value = std::env::var(name).expect("this is no test but the writer of others");
        value.parse().unwrap()
    };
    // SAFETY: the parent made this descriptor for us, and nobody else here uses it.
    let socket = unsafe { UnixStream::from_raw_fd(number(SOCKET)) };
    // If the parent dies, so do we.
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    (map(number(MEMORY)), socket, std::env::var("STATSFS_TEST_MODE").unwrap())
}

/// In the child: hands its segments over.
pub fn send_segments(socket: &UnixStream, registry: &Registry) {
    let fds = registry.segments().unwrap();
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let message = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[1])], &message, MsgFlags::empty(), None)
        .unwrap();
}

/// Segments that someone handed over.
pub struct Fixed(pub Vec<OwnedFd>);

impl Feed for Fixed {
    fn segments(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.0.iter().map(OwnedFd::try_clone).collect()
    }
}

/// A tree of segments that were handed over.
pub fn tree(segments: &[OwnedFd]) -> Tree {
    let fds = segments.iter().map(|fd| fd.try_clone().unwrap()).collect();
    Tree::new(Fixed(fds), Owner { uid: 0, gid: 0 }).unwrap()
}
