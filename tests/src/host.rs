//! A host's server, `statsfs serve`, with everything in a directory of its own.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use statsfs::host::ask_status;
use tempfile::TempDir;

use crate::binary;
use crate::flat::Flat;
use crate::running::{Running, wait_until};

/// A running server. Ended, and its mount taken away, when dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    directory: TempDir,
    args: Vec<String>,
}

impl Host {
    /// Starts one.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with more arguments.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn with(args: &[&str]) -> Self {
        crate::vmm::require_host();
        let directory =
            tempfile::Builder::new().prefix("statsfs-test-").tempdir().expect("a place");
        // Other users come to the mount.
        let open = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("it is ours");
        let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
        let child = spawn(directory.path(), &args);
        let host = Self { child, directory, args };
        host.wait_served();
        host
    }

    /// Starts it again after it was killed.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start_again(&mut self) {
        self.child = spawn(self.directory.path(), &self.args);
        self.wait_served();
    }

    fn wait_served(&self) {
        wait_until("the server", || ask_status(&self.socket(), Duration::from_secs(60)).ok());
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it is mounted.
    pub fn mount(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// A file or directory of somebody else beside its own.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The address at which it serves metrics, if it was told to.
    ///
    /// # Panics
    /// If it does not say one.
    pub fn metrics(&self) -> String {
        let log = self.log();
        let said = log.lines().find_map(|line| line.split_once("metrics="));
        said.unwrap_or_else(|| panic!("no metrics are served: {log}")).1.trim().to_owned()
    }

    /// What a file of its mount says, if it can be read.
    pub fn value(&self, path: &str) -> Option<u64> {
        value(&self.mount(), path)
    }

    /// All values, from one sweep.
    pub fn flat(&self) -> Flat {
        Flat::read(&self.mount().join(".stats/flat"))
    }

    /// The directories of machines.
    pub fn machines(&self) -> Vec<String> {
        machines(&self.mount())
    }

    /// Lets a guest end that waits, and waits until it has left the tree.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn finish(&self, mut guest: Running) {
        let machine = self.mount().join(guest.machine());
        guest.release();
        assert_eq!(guest.wait().code(), 0);
        wait_until("it has left", || (!machine.exists()).then_some(()));
    }

    /// Kills it.
    ///
    /// # Panics
    /// If it has ended by itself.
    pub fn kill(&mut self) {
        assert!(matches!(self.child.try_wait(), Ok(None)), "it has ended: {}", self.log());
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is a child");
    }
}

/// What a file of a host's mount says, if it can be read.
pub fn value(mount: &Path, path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(mount.join(path)).ok()?;
    text.trim_end().parse().ok()
}

/// The directories of machines in a host's mount.
pub fn machines(mount: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(mount.join("kvm")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_machine =
        |name: &String| name.split_once('-').is_some_and(|(pid, _)| pid.parse::<u32>().is_ok());
    names.filter(is_machine).map(|name| format!("kvm/{name}")).collect()
}

fn spawn(directory: &Path, args: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(directory.join("log"));
    let mut command = Command::new(binary::statsfs());
    command.arg("serve").args(args);
    for name in ["mount", "socket", "state"] {
        command.arg(format!("--{name}")).arg(directory.join(name));
    }
    command.stderr(log.expect("a log")).spawn().expect("the command was built")
}

impl Drop for Host {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: no pointers; the child has not been waited for, so the process id is its.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
            let _ = self.child.wait();
        }
        // One that was killed left it.
        let _ = crate::namespace::unmount(&self.mount());
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", self.log());
        }
    }
}
