//! What happens when a thread makes a system call that its policy forbids: one line, and the end.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::names;
use crate::cli::{STATUS_FAILED, STATUS_SIGNAL};

/// From asm-generic/siginfo.h.
const SYS_SECCOMP: libc::c_int = 1;

/// What to call before the process ends.
static LAST_ACT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has `act` called before the process ends because of a forbidden system call: once, by the thread that
/// made it, inside a signal handler. It may only do what is safe there, with system calls that every policy
/// allows: write(2), and those that give the terminal back as it was.
pub fn before_the_end(act: fn()) {
    LAST_ACT.store(act as *mut (), Ordering::Release);
}

/// Installs the handler of SIGSYS, and lets the signal through to it.
pub(super) fn install_handler() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction =
        on_sigsys as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the set is live, and the handler is what the flags say.
    let installed = unsafe {
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut())
    };
    if installed < 0 {
        return Err(io::Error::last_os_error());
    }
    // Blocked, it would end the process all the same, but without a word.
    // SAFETY: an initialised set; the old one is not asked for.
    let error = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// The name of this thread, by calls that every policy allows.
fn thread_name(buffer: &mut [u8; 16]) -> &[u8] {
    // SAFETY: both take no arguments, and have no effects.
    if unsafe { libc::gettid() == libc::getpid() } {
        return b"main";
    }
    // SAFETY: the kernel writes at most 16 bytes, the last of them zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) };
    let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(0);
    &buffer[..length]
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler that was installed with SA_SIGINFO both.
    let (code, registers) = unsafe {
        let context = context.cast::<libc::ucontext_t>();
        ((*info).si_code, (*context).uc_mcontext.gregs)
    };
    let last_act = || {
        let act = LAST_ACT.load(Ordering::Acquire);
        if !act.is_null() {
            // SAFETY: it was stored by `before_the_end`, from a function of this type.
            let act = unsafe { std::mem::transmute::<*mut (), fn()>(act) };
            act();
        }
    };
    if code != SYS_SECCOMP {
        // Somebody sent it.
        last_act();
        // SAFETY: it does not return, and runs nothing of ours.
        unsafe { libc::_exit((STATUS_SIGNAL + libc::SIGSYS as u8).into()) };
    }
    let argument = |register: libc::c_int| registers[register as usize] as u64;
    let arguments = [
        argument(libc::REG_RDI),
        argument(libc::REG_RSI),
        argument(libc::REG_RDX),
        argument(libc::REG_R10),
        argument(libc::REG_R8),
        argument(libc::REG_R9),
    ];
    let mut name = [0; 16];
    let call = registers[libc::REG_RAX as usize];
    let line = Line::forbidden(thread_name(&mut name), call, arguments);
    last_act();
    let text = line.text();
    // SAFETY: the text is live.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: it does not return, and runs nothing of ours.
    unsafe { libc::_exit(STATUS_FAILED.into()) };
}

/// A line that is put together without allocating. What does not fit is left out.
struct Line {
    bytes: [u8; 384],
    length: usize,
}

impl Line {
    fn forbidden(thread: &[u8], call: i64, arguments: [u64; 6]) -> Self {
        let mut line = Self { bytes: [0; 384], length: 0 };
        line.push(b"vmm: the thread ");
        line.push(thread);
        line.push(b" made a system call that its policy forbids: ");
        line.push(names::of(call).unwrap_or("unknown").as_bytes());
        line.push(b" (number ");
        line.push_number(call as u64, 10);
        line.push(b", arguments");
        for argument in arguments {
            line.push(b" 0x");
            line.push_number(argument, 16);
        }
        line.push(b"): this is a bug in the VMM, or an attack by its guest; --no-seccomp lifts all policies\n");
        line
    }

    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes[self.length..].iter_mut().zip(bytes) {
            *to = *from;
            self.length += 1;
        }
    }

    fn push_number(&mut self, mut number: u64, base: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                return self.push(&digits[at..]);
            }
        }
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_thread_call_and_arguments() {
        let text = |thread: &[u8], call, arguments| {
            String::from_utf8(Line::forbidden(thread, call, arguments).text().to_vec()).unwrap()
        };
        let line = text(b"vcpu12", libc::SYS_ioctl, [3, 0x5401, 0, 0, 10, 16]);
        assert!(line.starts_with("vmm: the thread vcpu12 made a system call that its policy forbids: ioctl (number 16, arguments 0x3 0x5401 0x0 0x0 0xa 0x10): "), "{line}");
        assert!(line.ends_with("\n") && line.lines().count() == 1, "{line}");
        assert!(text(b"", 400, [0; 6]).contains(": unknown (number 400,"));
        // The longest line fits.
        let longest = text(&[b'x'; 15], i64::MIN, [u64::MAX; 6]);
        assert!(longest.contains("--no-seccomp") && longest.ends_with('\n'), "{longest}");
    }
}
