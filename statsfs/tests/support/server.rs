//! A real server, the command itself, with everything in a directory of its own.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
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
    directory: TempDir,
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
        Self::held_by(None, args)
    }

    /// Starts one of which descriptors are kept.
    pub fn kept() -> Self {
        Self::held_by(Some(Arc::new(Holder::start())), &[])
    }

    fn held_by(holder: Option<Arc<Holder>>, args: &[&str]) -> Self {
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::geteuid() }, 0, "the server mounts: `sudo -E cargo test`");
        let directory = tempfile::Builder::new().prefix("statsfs-test-").tempdir().unwrap();
        // Other users come to the mount.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
        let child = spawn(directory.path(), &args, holder.as_deref());
        let server = Self { child, directory, args, holder };
        server.wait_served();
        server
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

    /// Starts it again, and does not wait for it.
    pub fn begin_again(&mut self) {
        self.child = spawn(self.directory.path(), &self.args, self.holder.as_deref());
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
        // SAFETY: a plain system call; the child has not been waited for, so the process id is its.
        assert_eq!(unsafe { libc::kill(self.pid(), libc::SIGTERM) }, 0);
        self.child.wait().unwrap()
    }
}

fn spawn(directory: &Path, args: &[String], holder: Option<&Holder>) -> Child {
    let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
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
