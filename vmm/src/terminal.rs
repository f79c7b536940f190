//! The terminal on standard input, raw while it is a guest's console: every key is the guest's. Whatever
//! ends the VMM, SIGKILL excepted, leaves the terminal as it was found.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

const STDIN: libc::c_int = libc::STDIN_FILENO;

/// How the terminal was found.
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// Whether it is raw now.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// The terminal on standard input. Dropping this leaves it as it was found.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// The terminal on standard input, if that is one.
    pub fn of_stdin() -> Option<Self> {
        // SAFETY: all zeroes is a valid `termios` to be overwritten.
        let mut found: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `found` is valid for the call.
        if unsafe { libc::tcgetattr(STDIN, &mut found) } != 0 {
            return None;
        }
        FOUND.get_or_init(|| found);
        Some(Self(()))
    }

    /// Whether it was made raw, as far as we know.
    pub fn is_raw(&self) -> bool {
        IS_RAW.load(Ordering::SeqCst)
    }

    /// Makes the terminal raw, or raw again, if it is ours: not if the VMM runs in the background.
    ///
    /// # Errors
    /// What tcsetattr(3) or sigaction(2) says.
    pub fn make_raw(&self) -> io::Result<()> {
        // Also if it is not ours yet: later this thread may be confined.
        restore_at_fatal_signals()?;
        let Some(mut mode) = FOUND.get().copied().filter(|_| is_ours()) else {
            IS_RAW.store(false, Ordering::SeqCst);
            return Ok(());
        };
        // As cfmakeraw(3), but newlines in the output stay whole: the VMM writes messages too.
        mode.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        mode.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        mode.c_cflag = mode.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        mode.c_cc[libc::VMIN] = 1;
        mode.c_cc[libc::VTIME] = 0;
        // First, so that it is restored by whatever comes between.
        IS_RAW.store(true, Ordering::SeqCst);
        // SAFETY: an initialised mode.
        if unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, &mode) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Leaves the terminal as it was found, if it is raw. May be called from signal handlers.
pub fn restore() {
    if !IS_RAW.swap(false, Ordering::SeqCst) {
        return;
    }
    if let Some(found) = FOUND.get().filter(|_| is_ours()) {
        // SAFETY: an initialised mode.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, found) };
    }
}

/// Whether the VMM runs in the terminal's foreground. In the background the terminal is its shell's, and
/// changing it would stop the VMM. Of one that does not control the VMM's session there is no background.
fn is_ours() -> bool {
    // SAFETY: no memory is involved in either.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(STDIN), libc::getpgrp()) };
    foreground == own || (foreground < 0 && errno() == libc::ENOTTY)
}

/// What the last call of the C library that failed says, without what may not be called from handlers.
fn errno() -> libc::c_int {
    // SAFETY: the address of this thread's own, always valid.
    unsafe { *libc::__errno_location() }
}

/// The signals that end a process, and are not received as events (see [`signals`](crate::signals)).
pub(crate) const FATAL: [libc::c_int; 16] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// What was to be done at the signals of [`FATAL`], in order.
static BEFORE: OnceLock<Vec<libc::sigaction>> = OnceLock::new();

/// Makes fatal signals restore the terminal before they do what they did before.
fn restore_at_fatal_signals() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let mut before = Vec::with_capacity(FATAL.len());
    for signal in FATAL {
        // SAFETY: all zeroes is a valid `sigaction` to be overwritten.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: nothing is installed, and `action` is valid for the call.
        if unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) } != 0 {
            return Err(io::Error::last_os_error());
        }
        before.push(action);
    }
    let before = BEFORE.get_or_init(|| before);
    for (signal, old) in FATAL.into_iter().zip(before) {
        if old.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        // SAFETY: all zeroes is a valid `sigaction`: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fatal_signal as *const () as usize;
        // On the stack for signals, since it may be the stack that has overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler is a function of the kind that the flags say, and calls nothing that may
        // not be called from handlers.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fatal_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _: *mut libc::c_void,
) {
    restore();
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO.
    if unsafe { (*info).si_code } <= 0 {
        // It was sent. Rust's own handlers would take it for a fault that comes again.
        // SAFETY: the default installs no code, and no memory is involved.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    // A fault comes again when its instruction is tried again, and is then handled as it would have been.
    let at = FATAL.iter().position(|fatal| *fatal == signal);
    if let (Some(at), Some(before)) = (at, BEFORE.get()) {
        // SAFETY: what is installed is what was.
        unsafe { libc::sigaction(signal, &before[at], std::ptr::null_mut()) };
    }
}
