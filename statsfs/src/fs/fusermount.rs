//! Mounting as an ordinary user, by the setuid program `fusermount3`; and the keeper, a process that
//! takes such a mount away when we end, however we end.
//!
//! `fusermount3` could be that keeper itself (`auto_unmount`), but up to version 3.16 it gives up when
//! root may not look at the mount, which is the rule without `allow_other`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut, PipeWriter, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::MountError;

const PROGRAM: &str = "fusermount3";

/// Mounts at `point` and returns the device.
pub(super) fn mount(point: &Path, options: &str) -> Result<OwnedFd, MountError> {
    let failed = |message: String| MountError::Fusermount { path: point.to_owned(), message };
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    let child = Command::new(PROGRAM)
        .args(["-o", options, "--"])
        .arg(point)
        // It sends the device through this descriptor: as its standard input it needs no care at exec.
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoFusermount,
            _ => failed(error.to_string()),
        })?;
    // Ends with an end of file when the program ends without sending anything.
    let device = receive_fd(&ours);
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match device {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(failed(last_line(&output.stderr))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Unmounts, lazily, what this user mounted at `point`. On failure: why, in one line.
pub(super) fn unmount(point: &Path) -> Result<(), String> {
    let output = Command::new(PROGRAM)
        .args(["-u", "-z", "--"])
        .arg(point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| format!("{PROGRAM}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(last_line(&output.stderr)) }
}

/// Whether `/etc/fuse.conf` lets ordinary users mount for others.
pub(super) fn allows_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or("it ended without a word");
    line.strip_prefix("fusermount3: ").unwrap_or(line).to_owned()
}

fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            result => break result?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let [fd, ..] = fds[..]
        {
            // SAFETY: the kernel has just made this descriptor for us (there is room for one only), and
            // nobody else knows it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(None)
}

/// `$1` mount point as in the mount table, `$2` source, `$3` mount point. Waits for the end of its
/// input, which is the end of the process that serves, and takes exactly that mount away if it is
/// still there and uncovered.
const KEEPER: &str = r#"
while read -r word; do :; done
top=
while read -r id parent device root point rest; do
    if [ "$point" = "$1" ]; then top=$rest; fi
done < /proc/self/mountinfo
case "$top" in
    *" - fuse.statsfs $2 "*) exec fusermount3 -u -z -- "$3" ;;
esac
"#;

/// What may come to us and our children, and must not end the keeper before it has unmounted.
const IGNORED: [libc::c_int; 5] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE];

/// Ignores signals; what is executed afterwards ignores them from its beginning. A shell's `trap` would come
/// later, on a busy machine much later.
fn ignore_signals() -> io::Result<()> {
    for signal in IGNORED {
        // SAFETY: no handler is installed, and the call is async-signal-safe.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The process that unmounts when we end.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    /// Closed by the kernel when we are killed.
    life: Option<PipeWriter>,
}

impl Keeper {
    /// To be started before the mount is made, so that there is no moment without it.
    pub(super) fn start(point: &Path, source: &str) -> io::Result<Self> {
        let (end_of_life, life) = io::pipe()?;
        let mut keeper = Command::new("/bin/sh");
        // SAFETY: between fork and exec it only makes system calls.
        unsafe { keeper.pre_exec(ignore_signals) };
        let child = keeper
            .args(["-c", KEEPER, "statsfs-keeper"])
            .arg(escape(point.as_os_str()))
            .arg(source)
            .arg(point)
            .stdin(end_of_life)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            // Not killed with us by a Ctrl-C on the terminal.
            .process_group(0)
            .spawn()?;
        Ok(Keeper { child, life: Some(life) })
    }

    /// The process id, for the log.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Keeper {
    /// Has it unmount what is still there, and waits for that. Nothing is started for it, so that a process
    /// may have forbidden itself to start others by now. On failure: why, in one line.
    pub(super) fn unmount(mut self) -> Result<(), String> {
        self.end();
        let mut said = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What can not be read was not said.
            let _ = stderr.read_to_end(&mut said);
        }
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) if status.code().is_none() => {
                Err(format!("the process that was to do it was killed: {status}"))
            }
            _ => Err(last_line(&said)),
        }
    }

    fn end(&mut self) {
        self.life = None;
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        tracing::warn!(pid = self.child.id(), "the keeper of the mount does not end: killing it");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.life.is_some() {
            self.end();
        }
    }
}

/// As the kernel writes a path in the mount table.
fn escape(path: &OsStr) -> OsString {
    let mut out = Vec::new();
    for &byte in path.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                out.extend_from_slice(format!("\\{byte:03o}").as_bytes())
            }
            _ => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_reason() {
        assert_eq!(last_line(b"a\nfusermount3: mount failed: x\n\n"), "mount failed: x");
        assert_eq!(last_line(b" \n"), "it ended without a word");
    }

    #[test]
    fn no_signal_but_a_kill_ends_a_keeper_before_its_time() {
        // Where nothing is mounted it has nothing to do, and succeeds.
        let mut keeper = Keeper::start(Path::new("/nowhere"), "statsfs-test").unwrap();
        for signal in IGNORED {
            // At once, before the shell has come to anything.
            // SAFETY: a child of ours that was not waited for.
            assert_eq!(unsafe { libc::kill(keeper.pid() as libc::pid_t, signal) }, 0);
        }
        assert!(keeper.child.try_wait().unwrap().is_none(), "it waits for our end");
        assert_eq!(keeper.unmount(), Ok(()));
    }

    #[test]
    fn escapes_as_the_kernel_does() {
        assert_eq!(escape(OsStr::new("/a b\\c\td")), OsStr::new("/a\\040b\\134c\\011d"));
    }
}
