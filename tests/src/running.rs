//! A `vmm` that runs, and one that has ended.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::flat::Flat;
use crate::namespace;

/// Longer than anything takes on a busy or emulated machine: what is not there by then does not come.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `done` says so.
///
/// # Panics
/// If it does not, within [`PATIENCE`].
pub fn wait_until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = done() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// One page: what the smallest pipe holds.
pub(crate) const FILL: usize = 4096;

/// Where the standard output of a `vmm` goes.
#[derive(Debug)]
pub(crate) enum Stdout {
    /// Not read yet; whether it was filled.
    Held(io::PipeReader, bool),
    Read(Arc<Mutex<Vec<u8>>>, JoinHandle<()>),
    /// Closed from the beginning, or moved elsewhere.
    Deaf,
}

/// What a `vmm` says on standard error.
#[derive(Debug)]
pub(crate) struct Stderr {
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Stderr {
    /// Reads it to its end.
    pub(crate) fn read(stderr: ChildStderr) -> Self {
        let said = Arc::new(Mutex::new(String::new()));
        let text = said.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = line.expect("a pipe can be read");
                let line = String::from_utf8(line).expect("messages are text");
                text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
            }
        });
        Self { said, reader: Some(reader) }
    }

    /// So far.
    pub(crate) fn so_far(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end.
    pub(crate) fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it is text");
        }
        self.so_far()
    }
}

/// A `vmm` that was started. Dropping it kills it and takes its mount away.
#[derive(Debug)]
pub struct Running {
    pub(crate) directory: TempDir,
    pub(crate) child: Child,
    pub(crate) name: &'static str,
    pub(crate) stdout: Stdout,
    pub(crate) stderr: Stderr,
    /// A file that gets what the console sends, too.
    pub(crate) log: Option<File>,
    pub(crate) mount: PathBuf,
    /// What was mounted there before, and is not ours to take away.
    pub(crate) mounts_before: usize,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its mount point.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The machine's directory, from the mount's root.
    pub fn machine(&self) -> String {
        format!("kvm/{}-{}", self.pid(), self.name)
    }

    /// A path in the mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// The private directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All values, through the mount, from one sweep.
    pub fn flat(&self) -> Flat {
        Flat::read(&self.path(".stats/flat"))
    }

    /// One file's number, through the mount.
    pub fn value(&self, path: &str) -> u64 {
        let path = self.path(path);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            // If it has ended, it may say why in a moment.
            thread::sleep(Duration::from_millis(200));
            panic!("{}: {error}; the VMM says: {:?}", path.display(), self.stderr.so_far())
        });
        text.strip_suffix('\n')
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{} says {text:?}", path.display()))
    }

    /// Waits until the machine has made so many exits, in all.
    pub fn wait_for_exits(&self, exits: u64) {
        let path = format!("{}/user_exits", self.machine());
        wait_until("exits", || (self.value(&path) >= exits).then_some(()));
    }

    /// Lets the console take what is sent, from now on.
    pub fn release(&mut self) {
        let Stdout::Held(reader, filled) = std::mem::replace(&mut self.stdout, Stdout::Deaf) else {
            panic!("the console has been released");
        };
        let mut log = self.log.take();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let bytes = sent.clone();
        let thread = thread::spawn(move || {
            let mut reader = reader;
            let mut buffer = [0; FILL];
            if filled {
                reader.read_exact(&mut buffer).expect("it was filled");
            }
            loop {
                let n = reader.read(&mut buffer).expect("a pipe can be read");
                if n == 0 {
                    break;
                }
                if let Some(log) = &mut log {
                    log.write_all(&buffer[..n]).expect("a file can be written");
                }
                bytes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..n]);
            }
        });
        self.stdout = Stdout::Read(sent, thread);
    }

    /// What the guest has sent to the console so far.
    ///
    /// # Panics
    /// If the console is not read.
    pub fn console(&self) -> Vec<u8> {
        let Stdout::Read(sent, _) = &self.stdout else { panic!("the console is not read") };
        sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the guest has sent this text, at the beginning of a line, and returns the rest of that
    /// line.
    ///
    /// # Panics
    /// If it does not, within [`PATIENCE`], or ends before.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.has_ended();
            let console = self.console();
            if let Some(line) = line_after(&console, text) {
                return line;
            }
            let late = Instant::now() > deadline;
            let why = if ended { "the VMM has ended" } else { "not in time" };
            let console = String::from_utf8_lossy(&console);
            assert!(!ended && !late, "{text:?} is not sent, {why}; the console:\n{console}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the id is still its own.
        let sent = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "kill: {}", io::Error::last_os_error());
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is a child").is_some()
    }

    /// Kills it, unless something else does, and waits for its end. Returns the signal that ended it.
    pub fn kill_and_wait(mut self) -> Option<i32> {
        let _ = self.child.kill();
        self.child.wait().expect("it is a child").signal()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    pub fn wait(mut self) -> Ended {
        if matches!(self.stdout, Stdout::Held(..)) {
            self.release();
        }
        let started = Instant::now();
        let status = wait_until("the end of the VMM", || self.child.try_wait().expect("a child"));
        let took = started.elapsed();
        let stdout = match std::mem::replace(&mut self.stdout, Stdout::Deaf) {
            Stdout::Read(sent, thread) => {
                thread.join().expect("it could be read");
                std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner))
            }
            _ => Vec::new(),
        };
        let stderr = self.stderr.all();
        let mounts = namespace::mounted_at(&self.mount);
        let stats = std::fs::read_to_string(self.directory().join("final")).ok();
        Ended {
            status,
            took,
            stdout,
            stderr,
            stats,
            mounts,
            mount: self.mount.clone(),
            running: self,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // No effect if it has ended: the library knows.
        let _ = self.child.kill();
        let _ = self.child.wait();
        while namespace::mounted_at(&self.mount).len() > self.mounts_before {
            if namespace::unmount(&self.mount).is_err() {
                break;
            }
        }
    }
}

/// The rest of the first whole line that begins with a text.
fn line_after(console: &[u8], text: &str) -> Option<String> {
    let console = String::from_utf8_lossy(console);
    let mut lines = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.find_map(|line| Some(line.strip_prefix(text)?.trim().to_string()))
}

/// A `vmm` that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// How long it took from when it was waited for.
    pub took: Duration,
    /// What the guest sent to the console.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
    /// The final statistics, if they were written.
    pub stats: Option<String>,
    /// What was still mounted at its end.
    pub mounts: Vec<String>,
    /// Where it was mounted.
    pub mount: PathBuf,
    running: Running,
}

impl Ended {
    /// The exit status.
    ///
    /// # Panics
    /// If a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| {
            panic!("signal {:?} ended it: {}", self.status.signal(), self.stderr)
        })
    }

    /// The final statistics.
    ///
    /// # Panics
    /// If they were not written.
    pub fn flat(&self) -> Flat {
        let text = self.stats.as_deref();
        Flat::parse(text.unwrap_or_else(|| panic!("no statistics were written: {}", self.stderr)))
    }

    /// Asserts that it ended with this status, and left nothing behind.
    ///
    /// # Panics
    /// If it did not, or did.
    #[track_caller]
    pub fn assert(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}: {}", self.status, self.stderr);
        self.assert_clean();
        self
    }

    /// Asserts that it left neither a mount nor a mount point.
    ///
    /// # Panics
    /// If it did.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.mounts, [""; 0], "the mount is gone");
        assert!(!self.mount.exists(), "the mount point, which it made, is gone");
    }

    /// Asserts that its only message is one line which contains all of these.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_says(&self, parts: &[&str]) {
        let line = self.stderr.strip_suffix('\n').unwrap_or(&self.stderr);
        assert!(!line.contains('\n'), "one line: {line}");
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in: {line}");
        }
    }

    /// The rest of the first line on the console that begins with this text.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn line(&self, text: &str) -> String {
        line_after(&self.stdout, text).unwrap_or_else(|| {
            let console = String::from_utf8_lossy(&self.stdout);
            panic!("no line begins with {text:?}; {}; the console:\n{console}", self.stderr)
        })
    }

    /// The private directory, which is still there.
    pub fn directory(&self) -> &Path {
        self.running.directory()
    }
}
