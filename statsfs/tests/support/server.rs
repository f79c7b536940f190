//! A real server, the command itself, with everything in a directory of its own.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use statsfs::host::ask_status;
use statsfs::host::server::Status;
use tempfile::TempDir;

use super::support::holder::Holder;
use super::until;

/// A running server. Ended, and its mount taken away, when dropped.
pub struct Server {
    child: Child,
    directory: Arc<TempDir>,
    args: Vec<String>,
    holder: Option<Arc<Holder>>,
}

impl Server {
    /// Starts one.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with more arguments.
    pub fn with(args: &[&str]) -> Self {
        Self::made(args, None, None)
    }

    /// Starts one that says what it says to this.
    pub fn logging_to(log: OwnedFd) -> Self {
        Self::made(&[], Some(log), None)
    }

    /// Starts one of which descriptors are kept.
    pub fn kept() -> Self {
        Self::kept_with(&[])
    }

    /// Starts one with more arguments of which descriptors are kept.
    pub fn kept_with(args: &[&str]) -> Self {
        Self::made(args, None, Some(Arc::new(Holder::start())))
    }

    /// Starts one with more arguments of which so many descriptors are kept at most.
    pub fn kept_of(most: usize, args: &[&str]) -> Self {
        Self::made(args, None, Some(Arc::new(Holder::of(Some(most)))))
    }

    fn made(args: &[&str], log: Option<OwnedFd>, holder: Option<Arc<Holder>>) -> Self {
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::geteuid() }, 0, "the server mounts: `sudo -E cargo test`");
        let directory = tempfile::Builder::new().prefix("statsfs-test-").tempdir().unwrap();
        let directory = Arc::new(directory);
        // Other users come to the mount.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
        let log = log.map_or_else(|| log_in(directory.path()), Stdio::from);
        let child = spawn(directory.path(), &args, log, holder.as_deref());
        let server = Self { child, directory, args, holder };
        server.wait_served();
        server
    }

    /// Starts another one in the place of one that was told to end, whether or not its process has ended.
    pub fn beside(other: &Self) -> Self {
        let (directory, args) = (&other.directory, &other.args);
        let start = || spawn(directory.path(), args, log_in(directory.path()), None);
        let mut child = start();
        let socket = directory.path().join("socket");
        until("another server", || {
            // The one before may still have the state, for a moment.
            if !matches!(child.try_wait(), Ok(None)) {
                child = start();
            }
            ask_status(&socket, Duration::from_secs(60)).is_ok()
        });
        Self { child, directory: directory.clone(), args: args.clone(), holder: None }
    }

    /// Who keeps its descriptors.
    pub fn holder(&self) -> &Arc<Holder> {
        self.holder.as_ref().expect("somebody keeps its descriptors")
    }

    /// Starts it again after it was killed.
    pub fn start_again(&mut self) {
        self.begin_again();
        self.wait_served();
    }

    /// Starts it again after it was killed, with other arguments.
    pub fn start_again_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|arg| arg.to_string()).collect();
        self.start_again();
    }

    /// Starts it again, and does not wait for it.
    pub fn begin_again(&mut self) {
        let directory = self.directory.path();
        self.child = spawn(directory, &self.args, log_in(directory), self.holder.as_deref());
    }

    /// Waits until it can be asked something.
    pub fn wait_served(&self) {
        let is_served = || ask_status(&self.socket(), Duration::from_secs(60)).is_ok();
        until(&format!("a server:\n{}", self.log()), is_served);
    }

    /// Where its mount is.
    pub fn mount(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// A path in its mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mount().join(path)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What it says of itself.
    pub fn status(&self) -> Status {
        let text = ask_status(&self.socket(), Duration::from_secs(60)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> libc::pid_t {
        self.child.id() as libc::pid_t
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// How much of it is in memory.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse().unwrap()
    }

    /// What a file of the mount says.
    pub fn try_number(&self, path: &str) -> std::io::Result<u64> {
        let text = std::fs::read_to_string(self.path(path))?;
        Ok(text.trim().parse().unwrap_or_else(|_| panic!("{path}: {text:?}")))
    }

    /// What a file of the mount says that is there.
    pub fn number(&self, path: &str) -> u64 {
        self.try_number(path)
            .unwrap_or_else(|error| panic!("{path}: {error}; the server:\n{}", self.log()))
    }

    /// Kills it, and waits until it has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it, and does not wait: [`kill`](Self::kill) does.
    pub fn strike(&mut self) {
        self.child.kill().unwrap();
    }

    /// Ends it as systemd does.
    pub fn stop(&mut self) -> ExitStatus {
        self.tell_to_end();
        self.wait()
    }

    /// Tells it to end, as systemd does.
    pub fn tell_to_end(&self) {
        // SAFETY: a plain system call; the child has not been waited for, so the process id is its.
        assert_eq!(unsafe { libc::kill(self.pid(), libc::SIGTERM) }, 0);
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

fn log_in(directory: &Path) -> Stdio {
    File::options().create(true).append(true).open(directory.join("log")).unwrap().into()
}

fn spawn(directory: &Path, args: &[String], log: Stdio, holder: Option<&Holder>) -> Child {
    let program = env!("CARGO_BIN_EXE_statsfs");
    let mut command = match holder {
        // A shell tells it its process id, which systemd knows.
        Some(_) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"LISTEN_PID=$$ exec "$0" "$@""#, program]);
            shell
        }
        None => Command::new(program),
    };
    command.arg("serve");
    for name in ["mount", "socket", "state"] {
        command.arg(format!("--{name}")).arg(directory.join(name));
    }
    command.args(args).stderr(log);
    match holder {
        Some(holder) => holder.spawn(command),
        None => command.spawn().unwrap(),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        // One that was killed left it.
        let _ = nix::mount::umount2(&self.mount(), nix::mount::MntFlags::MNT_DETACH);
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", self.log());
        }
    }
}
