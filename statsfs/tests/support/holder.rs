//! What systemd does for a service that has descriptors to keep: takes them at a socket, each with a name, and
//! passes them to the service when that is started again.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tempfile::TempDir;

use super::until;

#[derive(Default)]
struct Inner {
    held: Vec<(String, OwnedFd)>,
    /// How much of it at most, unless that is as much as anybody likes.
    most: Option<usize>,
    /// How often it was asked whether all that was sent has been taken.
    settled: u64,
}

/// Keeps descriptors.
pub struct Holder {
    directory: TempDir,
    inner: Arc<Mutex<Inner>>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    pub fn start() -> Self {
        Self::of(None)
    }

    /// Starts one that holds so many at most.
    pub fn of(most: Option<usize>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let inner = Arc::new(Mutex::new(Inner { most, ..Inner::default() }));
        let its = inner.clone();
        let thread = std::thread::spawn(move || while take(&socket, &its) {});
        Self { directory, inner, thread: Some(thread) }
    }

    /// The names of what is held.
    pub fn names(&self) -> Vec<String> {
        self.settle();
        self.names_now()
    }

    /// The same, perhaps not of what was only just sent.
    pub fn names_now(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.inner.lock().unwrap().held.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Holds something more.
    pub fn hold(&self, name: &str, fd: OwnedFd) {
        self.inner.lock().unwrap().held.push((name.to_owned(), fd));
    }

    /// Renames what is held.
    pub fn rename(&self, rename: impl Fn(&str) -> String) {
        self.settle();
        for (name, _) in &mut self.inner.lock().unwrap().held {
            *name = rename(name);
        }
    }

    /// Starts a process that finds what is held, as sd_listen_fds(3) says, but for its own process id.
    pub fn spawn(&self, mut command: Command) -> Child {
        self.settle();
        let (names, fds): (Vec<_>, Vec<_>) = {
            let inner = self.inner.lock().unwrap();
            if let Some(most) = inner.most {
                command.env("FDSTORE", most.to_string());
            }
            inner.held.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap())).unzip()
        };
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        if !fds.is_empty() {
            let count = fds.len().to_string();
            command.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names.join(":"));
        }
        let first = 3;
        let end = first + fds.len() as RawFd;
        let mut moved: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: plain system calls between fork and exec, on memory that is there. First all are moved out of
        // the way of each other.
        unsafe {
            command.pre_exec(move || {
                for fd in &mut moved {
                    *fd = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, end);
                    if *fd < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for (to, fd) in (first..).zip(&moved) {
                    if libc::dup2(*fd, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    fn say(&self, what: &str) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(what.as_bytes(), self.directory.path().join("notify")).unwrap();
    }

    /// Waits until all that was sent so far was taken.
    fn settle(&self) {
        let before = self.inner.lock().unwrap().settled;
        self.say("BARRIER=1");
        until("what was sent", || self.inner.lock().unwrap().settled > before);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.say("END=1");
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Takes one message; false if it was the last.
fn take(socket: &UnixDatagram, inner: &Mutex<Inner>) -> bool {
    let mut text = [0; 4096];
    let mut buffer = nix::cmsg_space!([RawFd; 253]);
    let mut io = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut io, Some(&mut buffer), flags).unwrap();
    let (len, mut fds) = (message.bytes, Vec::new());
    for message in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(some) = message {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(some.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let text = std::str::from_utf8(&text[..len]).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    let mut inner = inner.lock().unwrap();
    if text.lines().any(|line| line == "FDSTORE=1") {
        for fd in fds {
            // The same file is held once, as systemd does.
            let is_full = inner.most.is_some_and(|most| inner.held.len() >= most);
            if !is_full && !inner.held.iter().any(|(_, held)| is_same(held, &fd)) {
                inner.held.push((name.to_owned(), fd));
            }
        }
    } else if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        inner.held.retain(|(held, _)| held != name);
    } else if text == "BARRIER=1" {
        inner.settled += 1;
    }
    text != "END=1"
}

/// Whether both stand for the same open file.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let this = std::process::id() as libc::pid_t;
    let (one, other) = (one.as_raw_fd() as libc::c_ulong, other.as_raw_fd() as libc::c_ulong);
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, this, this, KCMP_FILE, one, other) == 0 }
}
