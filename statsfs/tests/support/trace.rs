//! Following threads of another process by ptrace(2), to end the process at a certain point. All of it from one
//! thread.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::support::PATIENCE;

/// The threads of this name.
pub fn threads(pid: libc::pid_t, name: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let named = tasks.filter_map(|task| {
        let task = task.ok()?;
        let found = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (found.trim() == name).then(|| task.file_name().to_str()?.parse().ok())?
    });
    named.collect()
}

fn ptrace(request: libc::c_uint, thread: i32, data: usize) {
    // SAFETY: what `data` points to, where it does, is live and as large as the request says.
    let result = unsafe { libc::ptrace(request, thread, 0usize, data) };
    assert!(result >= 0, "tracing needs root: {}", io::Error::last_os_error());
}

/// A thread that is traced. It is to be [let run](Self::let_run); or its process is to be killed, and the thread
/// then to be [reaped](Self::reap).
pub struct Traced(i32);

impl Traced {
    /// Stops a thread, wherever it is.
    pub fn stop(thread: i32) -> Self {
        ptrace(libc::PTRACE_SEIZE, thread, libc::PTRACE_O_TRACESYSGOOD as usize);
        ptrace(libc::PTRACE_INTERRUPT, thread, 0);
        let traced = Self(thread);
        assert!(traced.waits(0), "it stops");
        traced
    }

    /// Waits for a stop; false if there is none yet, and it may not be waited for, or if it has ended.
    fn waits(&self, flags: libc::c_int) -> bool {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let waited = unsafe { libc::waitpid(self.0, &mut status, libc::__WALL | flags) };
        assert!(waited >= 0, "{}", io::Error::last_os_error());
        waited == self.0 && libc::WIFSTOPPED(status)
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: all zeroes is a valid value, to be overwritten.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, self.0, (&raw mut registers) as usize);
        registers
    }

    /// Lets it run to the beginning or the end of a system call.
    pub fn go_on(&self) {
        ptrace(libc::PTRACE_SYSCALL, self.0, 0);
    }

    /// Lets it run until it has begun `n` system calls, and no further; or until all is done: how many it
    /// has begun then.
    pub fn run_to_call(&self, n: usize, mut is_done: impl FnMut() -> bool) -> Option<usize> {
        let (mut begun, end) = (0, Instant::now() + PATIENCE);
        while Instant::now() < end {
            if self.waits(libc::WNOHANG) {
                // What is ENOSYS has not been answered yet.
                begun += usize::from(self.registers().rax as i64 == -i64::from(libc::ENOSYS));
                if begun == n {
                    return None;
                }
                self.go_on();
            } else if is_done() {
                return Some(begun);
            } else {
                thread::sleep(Duration::from_micros(50));
            }
        }
        panic!("it neither stops nor is it done");
    }

    /// Lets it run, and follows it no longer.
    pub fn let_run(self) {
        ptrace(libc::PTRACE_DETACH, self.0, 0);
    }

    /// Takes note of its end; its process has none before.
    pub fn reap(self) {
        // SAFETY: no pointer is passed.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
    }
}

/// Threads that stand still, one of which has just been given something by read(2).
pub struct Held(Vec<Traced>);

impl Held {
    /// Holds threads that wait for the same, one of which is then given something.
    pub fn after_read(threads: &[i32], give: impl FnOnce()) -> Self {
        let all: Vec<_> = threads.iter().map(|thread| Traced::stop(*thread)).collect();
        let first = &all[0];
        first.go_on();
        give();
        loop {
            assert!(first.waits(0), "it has ended");
            // At its end the answer is there, which at its beginning is ENOSYS.
            let registers = first.registers();
            if registers.orig_rax == libc::SYS_read as u64 && registers.rax as i64 > 0 {
                return Self(all);
            }
            first.go_on();
        }
    }

    /// Has the one that was given something go on until it is about to answer, and the others with what they like.
    pub fn about_to_answer(mut self) -> Traced {
        self.0.drain(1..).for_each(Traced::let_run);
        let first = self.0.remove(0);
        loop {
            first.go_on();
            assert!(first.waits(0), "it has ended");
            let registers = first.registers();
            let begins = registers.rax as i64 == -i64::from(libc::ENOSYS);
            let call = registers.orig_rax as i64;
            if begins && [libc::SYS_write, libc::SYS_writev].contains(&call) {
                return first;
            }
        }
    }

    /// Takes note of their ends, when their process was killed.
    pub fn have_ended(self) {
        self.0.into_iter().for_each(Traced::reap);
    }
}
