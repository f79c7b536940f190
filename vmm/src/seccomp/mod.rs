//! Which system calls the VMM's threads may make (seccomp(2)): a policy for each kind of thread.
//!
//! A guest that breaks out into the VMM finds itself on a thread that can hardly do anything: that of a vCPU
//! runs the guest, writes and ends, but opens, maps and starts nothing. Policies are per thread, and
//! [`confine`] installs one at the thread's beginning, after which it is there for good; the main thread gets
//! its own when all others are started, just before the guest runs. All threads of the process have one.
//!
//! A forbidden call ends the process: with one line on standard error that names the thread and the call, and
//! with the status of a VMM that failed. Nothing is tidied up then: a mount by root stays as a dead one, which
//! the next to mount there takes away.
//!
//! | module | |
//! |---|---|
//! | `policy` | the tables: what each kind of thread may do, and why |
//! | `filter` | from a table to a program for the kernel |
//! | `violation` | what happens at a forbidden call |
//!
//! A thread inherits the policy of the one that starts it, and can only narrow it, and so does a process. So
//! whoever starts threads or processes must do so before it is confined, but for the statistics' session
//! thread, whose policy has room for that.
//!
//! What a thread comes to need is told by the line that names the call. It goes into the table with its
//! reason, as narrow as can be, and into `tests/seccomp.rs`, which tries out all calls on all tables.
//!
//! On kernels before 5.16 a filter also turns speculative store bypass off for its thread and so for the
//! guest, which then runs more slowly, unless the host is booted with `spec_store_bypass_disable=prctl`.

mod filter;
mod names;
mod policy;
mod violation;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use statsfs::{ThreadKind, ThreadStart};
use thiserror::Error;

use crate::message::tell;

pub use self::violation::before_the_end;

/// The kinds of thread that have a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The main thread, from when all is started: its event loop, and what it has left to do.
    Main(Duties),
    /// Runs a vCPU.
    Vcpu,
    /// Does the work of a device.
    Device(Device),
    /// One of the statistics' own.
    Statsfs(ThreadKind),
    /// Reads the mounted statistics, for the demo.
    Reader,
}

/// What the main thread has left to do when the machine has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duties {
    /// To take its mount away.
    pub mount: bool,
    /// To write the final statistics to a file.
    pub stats_out: bool,
}

/// The kinds of device that have a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Block,
    /// A network interface.
    Net,
    /// A source of random bytes.
    Entropy,
}

/// Why policies can not be enforced.
#[derive(Debug, Error)]
pub enum EnableError {
    /// The kernel has no seccomp, or is not to use it here.
    #[error(
        "system calls can not be filtered: {0}: use a kernel with CONFIG_SECCOMP_FILTER, or --no-seccomp"
    )]
    Unsupported(#[source] io::Error),
    /// There is no handler for forbidden calls.
    #[error("no handler can be installed for forbidden system calls (SIGSYS): {0}")]
    Handler(#[source] io::Error),
}

/// Why a thread can not be confined.
#[derive(Debug, Error)]
#[error(
    "the system calls of the thread {thread} can not be filtered: {error}; --no-seccomp does without"
)]
pub struct ConfineError {
    /// The thread's name.
    thread: String,
    /// Why.
    #[source]
    error: seccompiler::Error,
}

/// Whether threads are to be confined.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Has all threads of this process confined that say what they are, from now on. To be called before any
/// is started.
///
/// # Errors
/// [`EnableError`]: the kernel can not do that.
pub fn enable() -> Result<(), EnableError> {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the call reads one integer, which is live.
    let available = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    if available < 0 {
        return Err(EnableError::Unsupported(io::Error::last_os_error()));
    }
    violation::install_handler().map_err(EnableError::Handler)?;
    one_heap();
    no_backtraces();
    std::panic::set_hook(Box::new(tell_panic));
    ENABLED.store(true, Ordering::Release);
    Ok(())
}

/// Has glibc's allocator use one heap for all threads. With one for each, it looks into files of /proc and
/// /sys when a thread first allocates, or frees much; a confined thread can not open them. (musl's has
/// one.)
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers. If it fails, allocating is as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has nothing read the program's own files to show from where it was called, as RUST_BACKTRACE asks for: a
/// confined thread can not, and what was to be told (that there is no memory, for one) would look like an
/// attack.
fn no_backtraces() {
    // SAFETY: no other thread is there yet that could look at the environment.
    unsafe { std::env::remove_var("RUST_BACKTRACE") };
}

/// Says in one line that a thread panicked, and how to learn from where.
fn tell_panic(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let thread = std::thread::current();
    tell(format_args!(
        "the thread {} panicked at {}: {} (--no-seccomp and RUST_BACKTRACE=1 show from where)",
        thread.name().unwrap_or("without a name"),
        info.location().map_or("an unknown place".to_string(), ToString::to_string),
        message.unwrap_or("without a message"),
    ));
}

/// Confines the calling thread to its policy, for ever, if policies are [enabled](enable).
///
/// # Errors
/// [`ConfineError`]; the thread must not go on then.
pub fn confine(thread: Thread) -> Result<(), ConfineError> {
    if !ENABLED.load(Ordering::Acquire) {
        return Ok(());
    }
    install(thread).map_err(|error| ConfineError {
        thread: std::thread::current().name().unwrap_or("without a name").to_string(),
        error,
    })
}

fn install(thread: Thread) -> Result<(), seccompiler::Error> {
    let first = (thread == Thread::Vcpu).then_some(policy::KVM_RUN);
    seccompiler::apply_filter(&filter::compile(&policy::of(thread), first)?)
}

/// What the statistics' threads call first: it confines them. If it can not, the process ends, since nobody
/// else could keep the thread from going on.
pub fn thread_start() -> ThreadStart {
    ThreadStart::new(|kind| {
        if let Err(error) = confine(Thread::Statsfs(kind)) {
            crate::terminal::restore();
            tell(error);
            std::process::exit(crate::cli::STATUS_FAILED.into());
        }
    })
}
