//! Who is at the other end of a socket: from the kernel, never from what it says of itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};
use thiserror::Error;

use super::sys;

/// Why it could not be said who is at the other end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The socket's peer has no credentials.
    #[error("cannot say who has connected: {0}")]
    Credentials(#[source] io::Error),
    /// It is in a process id namespace that this process does not see.
    #[error("who has connected has no process id here: it is in a foreign process id namespace")]
    Foreign,
    /// There could be no pidfd.
    #[error("cannot watch process {pid}: {source}")]
    Pidfd {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Its start time could not be read.
    #[error("cannot read when process {pid} began: {source}; /proc must show all processes")]
    Proc {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
}

/// The process that connected, or made the pair of sockets: as it was then.
#[derive(Debug)]
pub struct Peer {
    /// Its id in the namespace of this process.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// What it is recognised by, as long as it lasts: `None` if it was gone already, and waited for.
    pub life: Option<Life>,
}

/// What tells a process from all others, and when it ends.
#[derive(Debug)]
pub struct Life {
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// When it began, in clock ticks since boot (proc_pid_stat(5), field 22): with the process id it is this
    /// process and no other of this boot.
    pub start_time: u64,
}

impl Life {
    /// The process that has this id now, if there is one.
    ///
    /// # Errors
    /// [`PeerError`], if there is one but it can not be watched.
    pub fn of(pid: u32) -> Result<Option<Self>, PeerError> {
        match sys::pidfd_open(pid) {
            Ok(pidfd) => Self::with(pid, pidfd),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(source) => Err(PeerError::Pidfd { pid, source }),
        }
    }

    /// Of a process that had this id.
    fn with(pid: u32, pidfd: OwnedFd) -> Result<Option<Self>, PeerError> {
        let start_time = start_time(pid);
        // As long as it has not been waited for, no other has its process id: then the time was its.
        match sys::has_its_pid(pidfd.as_fd()) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(source) => return Err(PeerError::Pidfd { pid, source }),
        }
        let start_time = start_time.map_err(|source| PeerError::Proc { pid, source })?;
        Ok(Some(Self { pidfd, start_time }))
    }
}

/// What the kernel says of who is at the other end of `socket`.
fn credentials(socket: &impl AsFd) -> Result<UnixCredentials, PeerError> {
    getsockopt(socket, sockopt::PeerCredentials)
        .map_err(|error| PeerError::Credentials(error.into()))
}

/// The effective user at the other end of `socket`.
pub(super) fn user(socket: &impl AsFd) -> Result<u32, PeerError> {
    Ok(credentials(socket)?.uid())
}

impl Peer {
    /// Who is at the other end of `socket`.
    pub(super) fn of(socket: &impl AsFd) -> Result<Self, PeerError> {
        let credentials = credentials(socket)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(PeerError::Foreign);
        }
        let life = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Life::with(pid, pidfd)?,
            // It was waited for before the kernel kept pidfds of such processes.
            Err(Errno::ESRCH | Errno::EINVAL) => None,
            // Before Linux 6.5.
            Err(Errno::ENOPROTOOPT) => life_by_pid(pid, uid)?,
            Err(error) => return Err(PeerError::Pidfd { pid, source: error.into() }),
        };
        Ok(Self { pid, uid, gid, life })
    }
}

/// The process that has the peer's id, if it can be the peer.
///
/// Another process may have been given the id since the peer connected, which the kernel does not tell here.
/// One of another user is found out; one of the same user might as well have taken the peer over by
/// ptrace(2). A peer that has changed all its user ids since then is not recognised.
fn life_by_pid(pid: u32, uid: u32) -> Result<Option<Life>, PeerError> {
    let Some(life) = Life::of(pid)? else { return Ok(None) };
    let is_users = is_process_of(pid, uid).map_err(|source| PeerError::Proc { pid, source });
    match sys::has_its_pid(life.pidfd.as_fd()) {
        Ok(true) => Ok(is_users?.then_some(life)),
        Ok(false) => Ok(None),
        Err(source) => Err(PeerError::Pidfd { pid, source }),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not as proc(5) says"))
}

/// When the process that has this id began.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    start_time_in(&stat).ok_or_else(|| malformed("its `stat`"))
}

/// Field 22 of `/proc/PID/stat`. The second one is a name in which anything may be, parentheses included.
fn start_time_in(stat: &[u8]) -> Option<u64> {
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Whether one of the user ids of the process that has this id is `uid`.
fn is_process_of(pid: u32, uid: u32) -> io::Result<bool> {
    let status = std::fs::read(format!("/proc/{pid}/status"))?;
    let ids = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"));
    let ids = ids.and_then(|ids| std::str::from_utf8(ids).ok());
    let mut ids = ids.ok_or_else(|| malformed("its `status`"))?.split_ascii_whitespace();
    Ok(ids.any(|id| id.parse() == Ok(uid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_start_time_is_behind_any_name() {
        let stat = b"42 (a) 1 2 (b\xff) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2";
        assert_eq!(start_time_in(stat), Some(987_654));
        for len in 0..stat.len() {
            // A number that is cut off is another one, never a panic.
            start_time_in(&stat[..len]);
        }
    }

    #[test]
    fn a_process_is_the_same_until_it_was_waited_for() {
        let this = std::process::id();
        let life = Life::of(this).unwrap().unwrap();
        assert_eq!(life.start_time, start_time(this).unwrap());
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        let life = Life::of(pid).unwrap().unwrap();
        assert!(life.start_time >= start_time(this).unwrap());
        child.wait().unwrap();
        // Nobody has its id so soon, or another has: it is neither.
        assert!(!sys::has_its_pid(life.pidfd.as_fd()).unwrap());
        assert!(Life::with(pid, life.pidfd).unwrap().is_none());
    }

    #[test]
    fn without_a_pidfd_of_the_kernels_a_user_is_recognised() {
        // SAFETY: a plain system call.
        let uid = unsafe { libc::geteuid() };
        let this = std::process::id();
        assert!(life_by_pid(this, uid).unwrap().is_some());
        assert!(life_by_pid(this, uid + 1).unwrap().is_none());
    }
}
