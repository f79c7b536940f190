//! The service, as systemd shows it, and its guests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::nested::KEPT;
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;
use tests::{host, namespace};

pub const UNIT: &str = "statsfs.service";
pub const MOUNT: &str = "/run/statsfs";
pub const SOCKET: &str = "/run/statsfs.sock";
pub const STATE: &str = "/run/statsfs.state";

/// Runs a command, and returns what it says.
#[track_caller]
pub fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{command} {args:?}: {}: {stdout}{stderr}", output.status);
    stdout
}

/// The service. What it has said is kept when this is dropped.
pub struct Unit(());

impl Unit {
    /// Waits until it serves, which it does after every boot.
    pub fn started() -> Self {
        run("systemctl", &["start", UNIT]);
        Self(())
    }

    /// Asks systemd for properties of it.
    #[track_caller]
    pub fn show(&self, names: &[&str]) -> BTreeMap<String, String> {
        let names = names.join(",");
        let text = run("systemctl", &["show", UNIT, "--property", &names]);
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// Asks for one that is a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let text = self.show(&[name]).remove(name).unwrap();
        text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}"))
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.number("MainPID") as u32
    }

    /// All that it has said since the host was booted.
    pub fn log(&self) -> String {
        run("journalctl", &["--sync"]);
        run("journalctl", &["--unit", UNIT, "--output", "cat", "--no-pager"])
    }

    /// Asserts that it has complained of nothing.
    #[track_caller]
    pub fn assert_content(&self) {
        let log = self.log();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let journal = Command::new("journalctl").args(["--boot", "--no-pager"]).output();
        if let (Ok(journal), Some(directory)) = (journal, std::env::var_os(KEPT)) {
            let _ = fs::write(Path::new(&directory).join("journal"), journal.stdout);
        }
    }
}

/// A path in the mount.
pub fn path(below: &str) -> PathBuf {
    Path::new(MOUNT).join(below)
}

/// What a file of the mount says, if it can be read.
pub fn value(path: &str) -> Option<u64> {
    host::value(Path::new(MOUNT), path)
}

/// The mount's device number.
pub fn device() -> u64 {
    assert_eq!(namespace::mounted_at(Path::new(MOUNT)), ["fuse.statsfs"]);
    fs::metadata(MOUNT).unwrap().dev()
}

/// A guest that makes exits all the time.
pub fn busy() -> Running {
    guest(&[Step::new(Op::In8, u32::MAX, NO_PORT)]).start()
}

/// A guest that makes some exits, and ends once its console is released.
pub fn parked() -> Running {
    guest(&[Step::new(Op::In8, 500, NO_PORT), park(), end(0)]).blocked_console().start()
}

fn guest(steps: &[Step]) -> Vmm {
    // An emulated CPU has not much left for systemd otherwise.
    Vmm::new(Mode::Long, steps).args(["--memory", "2M"]).published().nice()
}

/// Waits until a guest can be seen, and has made exits.
pub fn seen(guest: &Running) {
    let exits = format!("{}/user_exits", guest.machine());
    wait_until("a guest", || value(&exits).filter(|n| *n > 0));
}
