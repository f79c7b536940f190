//! One of the two that are compared: how it is started, and what can be seen of it from outside.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tests::binary;
use tests::linux::CMDLINE;
use tests::memory::Memory;
use tests::nested::LINUX;

/// How long a guest may say nothing. Many times what the longest of its measurements takes.
const PATIENCE_MS: i32 = 60_000;

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours, with its statistics mounted.
    Vmm,
    /// QEMU's smallest machine, from the executable that Debian builds for it.
    Microvm,
}

/// In the order of the tables' columns.
pub const SIDES: [Side; 2] = [Side::Vmm, Side::Microvm];

/// What a guest is given.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// MiB of memory.
    pub memory: u32,
    /// Number of its vCPUs.
    pub cpus: u32,
    /// Its initial RAM file system.
    pub initrd: &'a Path,
    /// Its disk.
    pub disk: Option<&'a Path>,
    /// Its tap interface.
    pub tap: Option<&'a str>,
    /// Where QEMU's monitor is to listen.
    pub monitor: Option<&'a Path>,
}

impl<'a> Guest<'a> {
    /// One of so many MiB and one vCPU that has nothing else.
    pub fn new(memory: u32, initrd: &'a Path) -> Self {
        Self { memory, cpus: 1, initrd, disk: None, tap: None, monitor: None }
    }
}

impl Side {
    /// The executable.
    pub fn executable(self) -> &'static str {
        match self {
            Self::Vmm => binary::vmm().to_str().expect("paths in the host are text"),
            Self::Microvm => "/usr/bin/qemu-system-x86_64-microvm",
        }
    }

    fn command(self, guest: &Guest<'_>, mount: &Path) -> Command {
        let mut command = Command::new(self.executable());
        match self {
            Self::Vmm => {
                command.args(["run", "--memory", &format!("{}M", guest.memory)]);
                command.args(["--cpus", &guest.cpus.to_string()]);
                command
                    .args(["--kernel", LINUX, "--cmdline", CMDLINE, "--initrd"])
                    .arg(guest.initrd);
                command.arg("--mount").arg(mount);
                if let Some(disk) = guest.disk {
                    command.arg("--disk").arg(disk);
                }
                if let Some(tap) = guest.tap {
                    command.arg("--net").arg(format!("tap={tap}"));
                }
            }
            Self::Microvm => {
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                // What makes it fastest: without a clock Linux looks for one for ten seconds.
                let machine = "microvm,rtc=on,pit=off,pic=off,x-option-roms=off";
                command.args(["-machine", machine, "-accel", "kvm", "-cpu", "host"]);
                command.args(["-m", &guest.memory.to_string(), "-serial", "stdio"]);
                // What the VMM puts before the user's own.
                let cmdline = format!("console=ttyS0 panic=-1 reboot=panic_warm {CMDLINE}");
                command.args(["-kernel", LINUX, "-append", &cmdline, "-initrd"]).arg(guest.initrd);
                command.args(["-device", "virtio-rng-device", "-smp", &guest.cpus.to_string()]);
                if let Some(monitor) = guest.monitor {
                    command
                        .arg("-qmp")
                        .arg(format!("unix:{},server=on,wait=off", monitor.display()));
                }
                if let Some(disk) = guest.disk {
                    let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
                    command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
                }
                if let Some(tap) = guest.tap {
                    let net = format!("tap,id=net,ifname={tap},script=no,downscript=no");
                    command.args(["-netdev", &net, "-device", "virtio-net-device,netdev=net"]);
                }
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Starts a guest.
    pub fn start(self, guest: &Guest<'_>) -> Run {
        let mount = tempfile::tempdir().expect("a place");
        let mut command = self.command(guest, mount.path());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let console = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Run { started, child, console, mount }
    }
}

/// A guest that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Run {
    started: Instant,
    child: Child,
    console: BufReader<ChildStdout>,
    mount: tempfile::TempDir,
}

impl Run {
    /// Waits for a line that begins with this, and returns the rest of it, and how long after the start it
    /// came.
    pub fn line(&mut self, text: &str) -> (String, Duration) {
        let mut all = Vec::new();
        loop {
            let mut line = Vec::new();
            self.wait_said(&all);
            let n = self.console.read_until(b'\n', &mut line).expect("a pipe can be read");
            assert!(n > 0, "it ended without {text:?}: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&line);
            if let Some(rest) = String::from_utf8_lossy(&line).strip_prefix(text) {
                return (rest.trim().to_string(), self.started.elapsed());
            }
        }
    }

    /// Waits until it says something. One that does not hangs: what can be known of it is shown.
    fn wait_said(&self, all: &[u8]) {
        if !self.console.buffer().is_empty() {
            return;
        }
        let fd = self.console.get_ref().as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one live pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE_MS) };
        if ready == 0 {
            let flat = std::fs::read_to_string(self.mount.path().join(".stats/flat"));
            let flat = flat.unwrap_or_default();
            let told: Vec<_> = flat.lines().filter(|line| !line.ends_with(" 0")).collect();
            let said = String::from_utf8_lossy(all);
            panic!(
                "it says nothing any more, after:\n{said}\nits statistics:\n{}",
                told.join("\n")
            );
        }
    }

    /// The physical memory that it uses.
    pub fn memory(&self, guest: &Guest<'_>) -> Memory {
        Memory::of(self.child.id(), guest.memory)
    }

    /// Waits for its end.
    pub fn wait(mut self) {
        std::io::copy(&mut self.console, &mut std::io::sink()).expect("a pipe can be read");
        let status = self.child.wait().expect("it is a child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // No effect if it has ended: the library knows. SIGTERM, so that nothing stays mounted.
        if let Ok(None) = self.child.try_wait() {
            // SAFETY: the child has not been waited for, so the id is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        }
        let _ = self.child.wait();
    }
}
