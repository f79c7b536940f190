//! The host, from outside: a virtual machine of QEMU's that emulates the processor with its virtualization
//! in software, so that it runs on any machine.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::Message;
use crate::packages::Kernel;

/// What a host that runs is never silent for: it says that it is alive several times meanwhile. A busy
/// machine has some time to spare in it.
const SILENCE: Duration = Duration::from_secs(60);

/// Memory, in MiB. It is taken from this machine only as far as it is used.
const MEMORY: u32 = 4096;

/// The host's CPUs, with a guest program's on top: one. With two, QEMU's emulation of SVM loses memory of its
/// own: guests saw triple faults and the host's kernel the ends of its stacks overwritten (with 7.2 and 10.0,
/// kernel 6.1, within minutes on one machine and never on another). With one, none of it.
const CPUS: u32 = 1;

/// The host's processor. Without CMPXCHG16B, after which the emulation of QEMU 7.2 has another register's bits in the
/// flags now and then: Linux allocates memory with it, and crashed when an interrupt returned to such flags.
const PROCESSOR: &str = "EPYC,+svm,+npt,-sha-ni,-cx16";

/// The kernel's command line. Mitigations are for real processors. Clocks are those of the machine outside,
/// and right: but an emulated CPU that waits for a real one looks to the kernel as if they were not, and
/// the host was seen to stall after it had given up the time stamp counter.
const COMMAND_LINE: &str =
    "console=ttyS0 reboot=t panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable quiet";

/// A running host. Dropping it ends it.
#[derive(Debug)]
pub struct Host {
    qemu: Child,
    messages: Receiver<Message>,
    console: PathBuf,
    directory: PathBuf,
    started: Instant,
}

impl Host {
    /// Starts it, with this initial RAM file system. In the directory are its console, `console`, and what
    /// QEMU says, `qemu`.
    ///
    /// # Errors
    /// If QEMU can not be started.
    pub fn boot(kernel: &Kernel, image: &Path, directory: &Path) -> Result<Self> {
        let create = |name: &str| {
            let path = directory.join(name);
            File::create(&path).with_context(|| format!("{} can not be made", path.display()))
        };
        // The name of a socket may not be long, and a target directory's may be.
        let place = tempfile::tempdir().context("a temporary directory can not be made")?;
        let socket = place.path().join("report");
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "pc", "-accel", "tcg,thread=multi"])
            .args(["-cpu", PROCESSOR])
            .args(["-m", &MEMORY.to_string(), "-smp", &CPUS.to_string()])
            .args(["-append", COMMAND_LINE, "-kernel"])
            .arg(kernel.image())
            .arg("-initrd")
            .arg(image)
            .args(["-serial", "stdio", "-serial", "chardev:report", "-chardev"])
            .arg(format!("socket,id=report,path={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(create("console")?)
            .stderr(create("qemu")?);
        // SAFETY: the call is async-signal-safe, and takes no pointer.
        unsafe {
            qemu.pre_exec(|| {
                // Whatever ends this process ends the host.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let started = Instant::now();
        let (sender, messages) = channel();
        let mut host = Self {
            qemu: qemu.spawn().context("qemu-system-x86_64 can not be started")?,
            messages,
            console: directory.join("console"),
            directory: directory.to_path_buf(),
            started,
        };
        let stream = host.accept(&listener)?;
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            // What is no message ends it as the host's end does: whoever waits is told so.
            while let Ok(Some(message)) = Message::receive(&mut stream) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        Ok(host)
    }

    /// QEMU's end of the socket.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("QEMU can not be listened to"),
            }
            if let Some(status) = self.qemu.try_wait()? {
                let said = fs::read_to_string(self.directory.join("qemu")).unwrap_or_default();
                bail!("QEMU ended, {status}: {}", said.trim());
            }
            if self.started.elapsed() > SILENCE {
                bail!("QEMU does not start within {SILENCE:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Since when it runs.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits for its next message, whatever it is.
    ///
    /// # Errors
    /// If it ends or is silent for too long, with the last lines of its console.
    pub fn message(&mut self) -> Result<Message> {
        let problem = match self.messages.recv_timeout(SILENCE) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Timeout) => format!("said nothing for {SILENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => match self.qemu.wait() {
                Ok(status) => format!("ended, {status}"),
                Err(error) => format!("ended: {error}"),
            },
        };
        bail!("the host {problem}; its console ends with:\n{}", tail(&self.console, 30))
    }

    /// Waits for its end, after it has said that it is done.
    ///
    /// # Errors
    /// If it does not end.
    pub fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + SILENCE;
        while self.qemu.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the host does not power off:\n{}", tail(&self.console, 30));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // No effect if it has ended: the library knows.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The last lines of a file.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    const ENOUGH: u64 = 16 << 10;
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes)
    };
    let text = match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{}: {error}", path.display()),
    };
    let all: Vec<_> = text.lines().map(str::trim_end).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
