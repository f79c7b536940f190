//! `vmm run` with a kernel on a terminal: what is typed reaches the guest, and the terminal is found as it
//! was left, whatever ends the VMM.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

#[path = "common/images.rs"]
mod images;

const DEADLINE: Duration = Duration::from_secs(60);

/// A kernel that sends back what COM1 receives, and powers off after a `!`.
const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // 0: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xf7, // jz 0
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xee, // out dx, al
    0x3c, 0x21, // cmp al, '!'
    0x75, 0xed, // jne 0
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, // mov al, 0x34
    0xee, // out dx, al
    0xeb, 0xfe, // jmp itself
];
/// A kernel that does nothing.
const HANGS: &[u8] = &[0xeb, 0xfe];

/// A terminal, seen from its user's side.
struct Pty {
    user: File,
    terminal: OwnedFd,
    seen: Vec<u8>,
}

impl Pty {
    fn new() -> Self {
        let (mut user, mut terminal) = (0, 0);
        let null = std::ptr::null_mut::<u8>();
        // SAFETY: two places for descriptors; no name, mode or size.
        let made = unsafe {
            libc::openpty(&mut user, &mut terminal, null.cast(), null.cast(), null.cast())
        };
        assert_eq!(made, 0);
        // SAFETY: both are new and nobody else's.
        let (user, terminal) = unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(terminal)) };
        // SAFETY: no memory is involved.
        unsafe {
            libc::fcntl(user.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
            // Nobody else has the user's side: when this process ends, the terminal hangs up.
            for fd in [user.as_raw_fd(), terminal.as_raw_fd()] {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Self { user, terminal, seen: Vec::new() }
    }

    /// The mode: flags of input, output, control, and the local ones.
    fn mode(&self) -> [libc::tcflag_t; 4] {
        // SAFETY: all zeroes is a valid `termios` to be overwritten.
        let mut mode: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `mode` is valid for the call.
        assert_eq!(unsafe { libc::tcgetattr(self.terminal.as_raw_fd(), &mut mode) }, 0);
        [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
    }

    fn is_raw(&self) -> bool {
        let [.., local] = self.mode();
        local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// Starts a command on this terminal, in its foreground.
    fn spawn(&self, command: &mut Command) -> Child {
        let stdio = || Stdio::from(self.terminal.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                // A test that dies leaves nothing that runs.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        command.spawn().unwrap()
    }

    fn type_keys(&mut self, mut keys: &[u8]) {
        self.wait_until("room for keys", |pty| {
            while !keys.is_empty() {
                match pty.user.write(keys) {
                    Ok(n) => keys = &keys[n..],
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                        return false;
                    }
                }
            }
            true
        });
    }

    /// Waits for something; meanwhile reads what comes.
    fn wait_until(&mut self, what: &str, mut is_there: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !is_there(self) {
            let seen = String::from_utf8_lossy(&self.seen);
            assert!(Instant::now() < end, "{what} does not come; there was:\n{seen}");
            let mut bytes = [0; 4096];
            match self.user.read(&mut bytes) {
                Ok(n) if n > 0 => self.seen.extend_from_slice(&bytes[..n]),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |pty| String::from_utf8_lossy(&pty.seen).contains(text));
        self.seen.clear();
    }

    fn wait_raw(&mut self) {
        self.wait_until("raw mode", |pty| pty.is_raw());
    }

    fn wait_for_exit(&mut self, child: &mut Child) -> ExitStatus {
        let mut status = None;
        self.wait_until("the exit", |_| {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

fn kernel(code: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&images::bzimage(code)).unwrap();
    file
}

fn vmm(kernel: &NamedTempFile) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(["run", "--no-publish", "--memory", "4M", "--kernel"]).arg(kernel.path());
    command
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: no memory is involved; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

#[test]
fn every_key_but_the_escape_is_the_guests() {
    let (mut pty, kernel) = (Pty::new(), kernel(ECHO));
    let found = pty.mode();
    let mut child = pty.spawn(&mut vmm(&kernel));
    pty.wait_for("Ctrl-A x ends the guest");
    pty.wait_raw();
    // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-S, Ctrl-\ and return are keys like others. There is no echo but the
    // guest's.
    pty.type_keys(b"a\x03\x1a\x04\x13\x1c\rb");
    pty.wait_for("a\x03\x1a\x04\x13\x1c\rb");
    pty.type_keys(b"\x01\x01c\x01d");
    pty.wait_for("\x01c\x01d");
    pty.type_keys(b"\x01x");
    assert_eq!(pty.wait_for_exit(&mut child).code(), Some(130));
    assert_eq!(pty.mode(), found);
}

#[test]
fn a_guest_that_ends_leaves_the_terminal_as_it_was() {
    let (mut pty, kernel) = (Pty::new(), kernel(ECHO));
    let found = pty.mode();
    let mut child = pty.spawn(&mut vmm(&kernel));
    pty.wait_raw();
    pty.type_keys(b"bye!");
    assert_eq!(pty.wait_for_exit(&mut child).code(), Some(0));
    assert_eq!(pty.mode(), found);
}

#[test]
fn a_guest_that_does_not_read_can_be_ended() {
    let (mut pty, kernel) = (Pty::new(), kernel(HANGS));
    let mut child = pty.spawn(&mut vmm(&kernel));
    pty.wait_raw();
    // More than the UART and the terminal can hold.
    pty.type_keys(&[b'k'; 100_000]);
    pty.type_keys(b"\x01x");
    assert_eq!(pty.wait_for_exit(&mut child).code(), Some(130));
}

#[test]
fn keys_typed_before_the_start_count() {
    let (mut pty, kernel) = (Pty::new(), kernel(HANGS));
    pty.type_keys(b"\x01x");
    let mut child = pty.spawn(&mut vmm(&kernel));
    assert_eq!(pty.wait_for_exit(&mut child).code(), Some(130));
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    let kernel = kernel(HANGS);
    for (number, code) in [
        (libc::SIGTERM, Some(143)),
        (libc::SIGINT, Some(130)),
        (libc::SIGHUP, Some(129)),
        (libc::SIGQUIT, Some(131)),
        (libc::SIGABRT, None),
        (libc::SIGSEGV, None),
        (libc::SIGUSR1, None),
        (libc::SIGIO, None),
        (libc::SIGPWR, None),
        (libc::SIGSTKFLT, None),
        // Which a forbidden call would come with.
        (libc::SIGSYS, Some(159)),
    ] {
        let mut pty = Pty::new();
        let found = pty.mode();
        let mut child = pty.spawn(&mut vmm(&kernel));
        pty.wait_raw();
        signal(&child, number);
        let status = pty.wait_for_exit(&mut child);
        let seen = String::from_utf8_lossy(&pty.seen);
        assert_eq!(status.code(), code, "{status}: {seen}");
        if code.is_none() {
            assert_eq!(status.signal(), Some(number), "it dies of the signal");
        }
        assert_eq!(pty.mode(), found, "after signal {number}");
    }
}

#[test]
fn after_a_stop_the_terminal_is_the_guests_again() {
    let (mut pty, kernel) = (Pty::new(), kernel(ECHO));
    let mut child = pty.spawn(&mut vmm(&kernel));
    pty.wait_raw();
    signal(&child, libc::SIGSTOP);
    // As a shell does, whose job has stopped.
    // SAFETY: all zeroes is a valid `termios` to be overwritten.
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    let terminal = pty.terminal.as_raw_fd();
    // SAFETY: `mode` is valid for the call.
    assert_eq!(unsafe { libc::tcgetattr(terminal, &mut mode) }, 0);
    mode.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
    // SAFETY: an initialised mode.
    assert_eq!(unsafe { libc::tcsetattr(terminal, libc::TCSANOW, &mode) }, 0);
    assert!(!pty.is_raw());
    signal(&child, libc::SIGCONT);
    pty.wait_raw();
    pty.type_keys(b"hi!");
    pty.wait_for("hi!");
    assert_eq!(pty.wait_for_exit(&mut child).code(), Some(0));
}

#[test]
fn in_the_background_the_terminal_is_the_shells() {
    let (mut pty, kernel) = (Pty::new(), kernel(ECHO));
    let vmm = vmm(&kernel);
    let mut shell = Command::new("bash");
    // With job control, a job of its own in the background until a line is typed.
    shell.args(["-c", "set -m; \"$@\" & read -r; echo to the front; fg", "bash"]);
    shell.arg(vmm.get_program()).args(vmm.get_args());
    let mut shell = pty.spawn(&mut shell);
    pty.wait_for("Ctrl-A x ends the guest");
    assert!(!pty.is_raw());
    pty.type_keys(b"\n");
    pty.wait_for("to the front");
    pty.wait_raw();
    pty.type_keys(b"hi!");
    pty.wait_for("hi!");
    assert_eq!(pty.wait_for_exit(&mut shell).code(), Some(0));
}
