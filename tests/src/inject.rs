//! Makes a thread of another process call the kernel: what an attacker would do who has taken it over.

use std::io;

use crate::running::wait_until;

/// The threads of a process, by number, each with its name.
///
/// # Panics
/// If there is no such process.
pub fn threads(pid: u32) -> Vec<(i32, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    let named = tasks.filter_map(|task| {
        let task = task.ok()?;
        // One that has just ended has none.
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_string()))
    });
    named.collect()
}

/// The field of a thread's `status` in /proc, if the thread is there.
pub fn status(pid: u32, thread: i32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|value| value.trim().to_string())
}

fn ptrace(request: libc::c_uint, thread: i32, data: usize) -> io::Result<i64> {
    // SAFETY: what `data` points to, where it does, is live and as large as the request says.
    let result = unsafe { libc::ptrace(request, thread, 0usize, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A thread of another process that is traced by this one, and stands still. Goes on when dropped.
struct Stopped(i32);

impl Stopped {
    /// Stops a thread, wherever it is.
    fn new(thread: i32) -> Self {
        ptrace(libc::PTRACE_SEIZE, thread, libc::PTRACE_O_TRACESYSGOOD as usize)
            .expect("tracing needs root, `sudo -E cargo test`");
        ptrace(libc::PTRACE_INTERRUPT, thread, 0).expect("it is traced");
        let stopped = Self(thread);
        stopped.wait();
        stopped
    }

    /// Waits until it stands still again, and says why it does: the signal.
    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let waited = unsafe { libc::waitpid(self.0, &mut status, libc::__WALL) };
        assert_eq!(waited, self.0, "it stops: {}", io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "it ended: {status:#x}");
        libc::WSTOPSIG(status)
    }

    /// Lets it run to the beginning or the end of a system call.
    fn run_to_call(&self) {
        loop {
            ptrace(libc::PTRACE_SYSCALL, self.0, 0).expect("it is stopped");
            if self.wait() == libc::SIGTRAP | 0x80 {
                return;
            }
        }
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: all zeroes is a valid value, to be overwritten.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let at = (&raw mut registers) as usize;
        ptrace(libc::PTRACE_GETREGS, self.0, at).expect("it is stopped");
        registers
    }

    /// Has it make a system call next, whose answer it then takes for that of the one that it is in. False
    /// if it is in none.
    fn call(&self, number: i64, arguments: [u64; 3]) -> bool {
        let mut registers = self.registers();
        // A thread that is in a call stands behind the instruction that made it.
        registers.rip -= 2;
        if peek(self.0, registers.rip) != [0x0f, 0x05] {
            return false;
        }
        registers.rax = number as u64;
        // So that the kernel does not start the interrupted call again.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
        let at = (&raw mut registers) as usize;
        ptrace(libc::PTRACE_SETREGS, self.0, at).expect("it is stopped");
        true
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if ptrace(libc::PTRACE_DETACH, self.0, 0).is_ok() {
            return;
        }
        // It was killed. Its end must be taken note of, or its process has none; that of a process is for
        // whoever started it.
        let path = format!("/proc/{}/status", self.0);
        let leads = std::fs::read_to_string(path)
            .is_ok_and(|status| status.contains(&format!("\nTgid:\t{}\n", self.0)));
        if !leads {
            // SAFETY: no pointer is passed.
            unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        }
    }
}

/// Has a thread make a system call in the place of the one that it waits in.
///
/// # Panics
/// If the thread can not be traced, or never waits in a system call.
pub fn call(thread: i32, number: i64, arguments: [u64; 3]) {
    wait_until("a thread in a system call", || {
        Stopped::new(thread).call(number, arguments).then_some(())
    });
}

/// Has a thread make a system call as soon as the read(2) that it waits in has given it something, which
/// `others` who wait for the same do not get meanwhile.
///
/// # Panics
/// If one of the threads can not be traced.
pub fn call_after_read(thread: i32, others: &[i32], number: i64, arguments: [u64; 3]) {
    let held = hold_after_read(thread, others);
    assert!(held.thread.call(number, arguments), "it has just come out of one");
}

/// Threads that stand still until this is dropped.
pub struct Held {
    thread: Stopped,
    _others: Vec<Stopped>,
}

/// Holds a thread as soon as the read(2) that it waits in has given it something, and `others` who wait for
/// the same from now on.
///
/// # Panics
/// If one of the threads can not be traced.
pub fn hold_after_read(thread: i32, others: &[i32]) -> Held {
    let others: Vec<_> = others.iter().map(|other| Stopped::new(*other)).collect();
    let thread = Stopped::new(thread);
    wait_until("a read", || {
        thread.run_to_call();
        let registers = thread.registers();
        // At its end the answer is there, which at its beginning is ENOSYS.
        let read = registers.orig_rax == libc::SYS_read as u64 && registers.rax as i64 > 0;
        read.then_some(())
    });
    Held { thread, _others: others }
}

/// A thread that stands still until this is dropped.
#[must_use]
pub struct Still {
    _thread: Stopped,
}

/// Has a thread stand still wherever it is, while the others of its process run on.
///
/// # Panics
/// If the thread can not be traced.
pub fn hold(thread: i32) -> Still {
    Still { _thread: Stopped::new(thread) }
}

/// Two bytes of the thread's code.
fn peek(thread: i32, address: u64) -> [u8; 2] {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{thread}/mem")).expect("it is traced");
    let mut code = [0; 2];
    memory.read_exact_at(&mut code, address).expect("it is code");
    code
}
