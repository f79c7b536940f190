//! Runs `vmm run` with everything in a private directory, and leaves nothing behind, whatever happens.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::guest::{Mode, Step, program};
use crate::host::Host;
use crate::running::{Ended, FILL, Running, Stderr, Stdout, wait_until};
use crate::{binary, namespace};

/// Fails with the line that fixes it if the machine lacks what the tests need.
///
/// # Panics
/// If it does.
pub fn require_host() {
    // SAFETY: no arguments and no effects.
    let uid = unsafe { libc::geteuid() };
    assert_eq!(
        uid, 0,
        "these tests mount and look into processes: run them as root, `sudo -E cargo test`"
    );
    for (device, fix) in [
        ("/dev/kvm", "load KVM, `modprobe kvm_intel` or `modprobe kvm_amd`"),
        ("/dev/fuse", "load FUSE, `modprobe fuse`"),
    ] {
        let opened = File::options().read(true).write(true).open(device);
        assert!(opened.is_ok(), "{device}: {}: {fix}", opened.unwrap_err());
    }
}

/// Has what the command starts end when the test does: one that is killed leaves nothing that runs, and no
/// mount.
pub fn end_with_test(command: &mut Command) {
    // SAFETY: the call is async-signal-safe, and takes no pointer.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// Has what the command starts take SIGHUP as usual: if the tests were started by nohup(1), the VMM would rightly ignore
/// it too.
pub fn hear_hangup(command: &mut Command) {
    // SAFETY: the call is async-signal-safe, takes no pointer and installs no code.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
}

/// A `vmm run` to be started.
#[derive(Debug)]
pub struct Vmm {
    directory: TempDir,
    command: Command,
    name: &'static str,
    cpus: u32,
    publishes: Publishes,
    blocked: bool,
    deaf: bool,
    stdin: Option<Stdio>,
    log: Option<File>,
    console: Option<File>,
    mount: PathBuf,
}

/// Where it publishes.
#[derive(Debug, PartialEq, Eq)]
enum Publishes {
    /// At its own mount.
    Mounted,
    /// To the server that listens here.
    At(PathBuf),
    /// To the server that it finds by itself.
    Found,
    Nowhere,
}

impl Vmm {
    /// Of a guest that does these steps, mounted, with the final statistics written.
    pub fn new(mode: Mode, steps: &[Step]) -> Self {
        let vmm = Self::of_program(&program(mode, steps));
        match mode {
            // The guest finds no device memory above 1 MiB otherwise.
            Mode::Real => vmm.args(["--entry", "real", "--memory", "1M"]),
            Mode::Long => vmm.args(["--entry", "long"]),
        }
    }

    /// Of a guest with this program, mounted, with the final statistics written.
    pub fn of_program(bytes: &[u8]) -> Self {
        let vmm = Self::of_nothing();
        let file = vmm.directory().join("guest.bin");
        std::fs::write(&file, bytes).expect("a program");
        vmm.args(["--flat".as_ref(), file.as_os_str()])
    }

    /// Of a guest with this kernel, mounted, with the final statistics written.
    pub fn of_kernel(bytes: &[u8]) -> Self {
        let vmm = Self::of_nothing();
        let file = vmm.directory().join("kernel");
        std::fs::write(&file, bytes).expect("a kernel");
        vmm.args(["--kernel".as_ref(), file.as_os_str()])
    }

    /// Of no guest yet, mounted, with the final statistics written.
    pub(crate) fn of_nothing() -> Self {
        require_host();
        let directory =
            tempfile::Builder::new().prefix("statsfs-test-").tempdir().expect("a place");
        let mut command = Command::new(binary::vmm());
        command.arg("run");
        command.arg("--stats-out").arg(directory.path().join("final"));
        command.env_remove("XDG_RUNTIME_DIR");
        let mount = directory.path().join("mount");
        Self {
            directory,
            command,
            name: "test",
            cpus: 1,
            publishes: Publishes::Mounted,
            blocked: false,
            deaf: false,
            stdin: None,
            log: None,
            console: None,
            mount,
        }
    }

    /// Called so, and not `test`.
    #[must_use]
    pub fn called(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// With this number of vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args.into_iter().map(Into::into));
        self
    }

    /// Not published.
    #[must_use]
    pub fn unmounted(mut self) -> Self {
        self.publishes = Publishes::Nowhere;
        self
    }

    /// Published to a host's server, and not mounted.
    #[must_use]
    pub fn published_to(mut self, host: &Host) -> Self {
        self.publishes = Publishes::At(host.socket());
        self
    }

    /// Published to the machine's server, where a VMM that is told nothing else looks for it.
    #[must_use]
    pub fn published(mut self) -> Self {
        self.publishes = Publishes::Found;
        self
    }

    /// With a console that takes nothing until it is released: a vCPU that sends a byte stays there.
    #[must_use]
    pub fn blocked_console(mut self) -> Self {
        self.blocked = true;
        self
    }

    /// With a console whose output nobody reads, nor ever will: a broken pipe.
    #[must_use]
    pub fn deaf_console(mut self) -> Self {
        self.deaf = true;
        self
    }

    /// With a console that goes to this file alone.
    #[must_use]
    pub fn console_to(mut self, file: File) -> Self {
        self.console = Some(file);
        self
    }

    /// Mounted here.
    #[must_use]
    pub fn mount_at(mut self, path: &Path) -> Self {
        self.mount = path.to_path_buf();
        self
    }

    /// Run by this user, who is then given the private directory.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        use std::os::unix::fs::chown;
        let directory = self.directory.path();
        let entries = std::fs::read_dir(directory).expect("it is ours").flatten();
        for path in entries.map(|entry| entry.path()).chain([directory.to_path_buf()]) {
            chown(&path, Some(uid), Some(uid)).expect("root may");
        }
        // The target directory may be closed to this user.
        let mut command = Command::new(binary::copy_vmm(directory));
        command.args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.uid(uid).gid(uid).current_dir("/");
        self.command = command;
        self
    }

    /// With this standard input instead of none.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// With what the console sends written to a file, too.
    #[must_use]
    pub fn log(mut self, file: File) -> Self {
        self.log = Some(file);
        self
    }

    /// With a change to the command, such as another user, or another view of the machine.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Behind everything else that wants to run.
    #[must_use]
    pub fn nice(self) -> Self {
        self.with(|vmm| {
            // SAFETY: the call is async-signal-safe, and takes no pointer.
            unsafe {
                vmm.pre_exec(|| {
                    libc::nice(10);
                    Ok(())
                });
            }
        })
    }

    /// The private directory, where the guest's program, the mount and the final statistics are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it, without waiting for anything.
    pub fn start(self) -> Running {
        let Self { directory, mut command, name, cpus, publishes, blocked, .. } = self;
        let Self { deaf, stdin, log, console, mount, .. } = self;
        match publishes {
            Publishes::Mounted => command.arg("--mount").arg(&mount),
            Publishes::At(socket) => command.arg("--socket").arg(socket),
            Publishes::Found => &mut command,
            Publishes::Nowhere => command.arg("--no-publish"),
        };
        command.args(["--name", name, "--cpus", &cpus.to_string()]);
        command.stdin(stdin.unwrap_or_else(Stdio::null)).stderr(Stdio::piped());
        let (reader, mut writer) = io::pipe().expect("a pipe");
        if blocked {
            fill(&mut writer);
        }
        let deaf = deaf || console.is_some();
        match console {
            Some(file) => command.stdout(file),
            None => command.stdout(writer),
        };
        let stdout = if deaf { Stdout::Deaf } else { Stdout::Held(reader, blocked) };
        end_with_test(&mut command);
        hear_hangup(&mut command);
        let mounts_before = namespace::mounted_at(&mount).len();
        let mut child = command.spawn().expect("the command was built");
        // With it go the write ends of the pipe that are ours.
        drop(command);
        let stderr = Stderr::read(child.stderr.take().expect("it is a pipe"));
        let mut running =
            Running { directory, child, name, stdout, stderr, log, mount, mounts_before };
        if !blocked && !deaf {
            running.release();
        }
        running
    }

    /// Starts it, and waits until it is mounted.
    ///
    /// # Panics
    /// If it ends before.
    pub fn start_mounted(self) -> Running {
        assert_eq!(self.publishes, Publishes::Mounted);
        let mut running = self.start();
        // To be read, not just looked at: the kernel remembers what a dead mount looked like.
        let exits = running.mount.join("kvm/user_exits");
        wait_until("the mount", || {
            if let Some(status) = running.child.try_wait().expect("it is a child") {
                // It may have been quick.
                assert!(status.success(), "{status}: {}", running.stderr.all());
                return Some(());
            }
            match std::fs::read(&exits) {
                Ok(_) => Some(()),
                // Another user's mount is closed to us.
                Err(error) => (error.kind() == io::ErrorKind::PermissionDenied).then_some(()),
            }
        });
        running
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

/// Makes a pipe as small as can be, and fills it.
fn fill(writer: &mut io::PipeWriter) {
    use std::os::fd::AsRawFd;
    // SAFETY: an open descriptor, and no pointer.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, FILL) };
    assert_eq!(size, FILL as i32, "F_SETPIPE_SZ: {}", io::Error::last_os_error());
    writer.write_all(&[0; FILL]).expect("there is just so much room");
}
