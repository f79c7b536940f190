//! Which system calls each kind of thread may make: tables, each group of calls with its reason.
//!
//! Calls of glibc and of musl are side by side. A call whose arguments make a difference is allowed only with
//! the arguments that are needed; what is behind a pointer, such as a path, no filter can see.

use libc::*;
use statsfs::ThreadKind;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, ioctl_expr};

use super::filter::{Rule, any, bits, clear, ioctl, is, set, when};
use super::{Device, Duties, Thread};
use crate::terminal::FATAL;

/// From linux/kvm.h.
const KVMIO: c_uint = 0xae;
/// KVM_RUN: `_IO(KVMIO, 0x80)`.
pub(super) const KVM_RUN: Ioctl = ioctl_expr(_IOC_NONE, KVMIO, 0x80, 0) as Ioctl;
/// KVM_GET_REGS: `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: Ioctl =
    ioctl_expr(_IOC_READ, KVMIO, 0x81, size_of::<kvm_bindings::kvm_regs>() as c_uint) as Ioctl;
/// KVM_GET_SREGS: `_IOR(KVMIO, 0x83, struct kvm_sregs)`.
const KVM_GET_SREGS: Ioctl =
    ioctl_expr(_IOC_READ, KVMIO, 0x83, size_of::<kvm_bindings::kvm_sregs>() as c_uint) as Ioctl;
/// From linux/futex.h: the operation without its flags.
const FUTEX_CMD: c_int = !(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
/// From asm-generic/mman-common.h, since Linux 6.13.
const MADV_GUARD_INSTALL: c_int = 102;
/// What tells a mere look at a file from all else that open(2) can do. (musl's O_ACCMODE has O_PATH in it.)
const NOT_READING: c_int =
    O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & !O_DIRECTORY);
/// What musl adds to all flags of open(2), and what the kernel takes for granted: O_LARGEFILE of
/// asm-generic/fcntl.h.
const LARGE_FILE: c_int = 0o100_000;

/// What a thread may do.
pub(super) fn of(thread: Thread) -> Vec<Rule> {
    let mut rules = every_thread();
    match thread {
        Thread::Main(duties) => rules.extend(main_thread(duties)),
        Thread::Vcpu => rules.extend(vcpu()),
        Thread::Device(device) => rules.extend(self::device(device)),
        Thread::Statsfs(kind) => rules.extend(statsfs(kind)),
        Thread::Reader => rules.extend(reading_files()),
    }
    rules
}

/// Whether this process mounts and unmounts by itself. Not to be asked by a thread that is confined.
fn is_root() -> bool {
    // SAFETY: no arguments and no effects.
    unsafe { geteuid() == 0 }
}

/// What the language's and the C library's runtime need on any thread.
fn every_thread() -> Vec<Rule> {
    // SAFETY: no arguments and no effects.
    let own_pid = unsafe { getpid() };
    let mut rules = vec![
        // The allocator. No memory can be made executable.
        any(SYS_brk),
        when(SYS_mmap, [clear(2, PROT_EXEC), set(3, MAP_ANONYMOUS)]),
        when(SYS_mprotect, [clear(2, PROT_EXEC)]),
        any(SYS_mremap),
        any(SYS_munmap),
        when(SYS_madvise, [is(2, MADV_DONTNEED)]),
        when(SYS_madvise, [is(2, MADV_FREE)]),
        when(SYS_madvise, [is(2, MADV_HUGEPAGE)]),
        when(SYS_madvise, [is(2, MADV_NOHUGEPAGE)]),
        when(SYS_prctl, [is(0, PR_SET_VMA), is(1, PR_SET_VMA_ANON_NAME as c_int)]),
        // Locks, condition variables, joining: to wait and to wake, without the operations that only
        // priority inheritance and requeueing need.
        when(SYS_futex, [bits(1, FUTEX_CMD, FUTEX_WAIT)]),
        when(SYS_futex, [bits(1, FUTEX_CMD, FUTEX_WAKE)]),
        when(SYS_futex, [bits(1, FUTEX_CMD, FUTEX_WAIT_BITSET)]),
        any(SYS_sched_yield),
        // Time: a system call where the kernel offers no vDSO, as on some hypervisors.
        any(SYS_clock_gettime),
        any(SYS_clock_nanosleep),
        any(SYS_nanosleep),
        any(SYS_restart_syscall),
        // Seeds of hash tables.
        any(SYS_getrandom),
        // Messages, and the last line of a forbidden call; giving the terminal back before that, or before a
        // fatal signal, on whichever thread that comes to. glibc looks what has become of it.
        any(SYS_write),
        ioctl(TCSETS),
        ioctl(TCGETS),
        // The same from glibc 2.42 on.
        ioctl(TCSETS2),
        ioctl(TCGETS2),
        ioctl(TIOCGPGRP),
        any(SYS_getpgrp),
        // Files that go with the last who held them; in debug builds std looks first whether they are open.
        any(SYS_close),
        when(SYS_fcntl, [is(1, F_GETFD)]),
        // Signals: returning from a handler, and dying by abort(3) or by what a fatal
        // signal's handler makes of it (below).
        any(SYS_rt_sigreturn),
        any(SYS_rt_sigprocmask),
        any(SYS_sigaltstack),
        // Whose they are, and which thread it was.
        any(SYS_getpid),
        any(SYS_gettid),
        when(SYS_prctl, [is(0, PR_GET_NAME)]),
        // The end of the thread, and of the process.
        any(SYS_exit),
        any(SYS_exit_group),
    ];
    for signal in FATAL {
        rules.push(when(SYS_rt_sigaction, [is(0, signal)]));
        rules.push(when(SYS_tgkill, [is(0, own_pid), is(2, signal)]));
        if cfg!(target_env = "musl") {
            // Its raise(3).
            rules.push(when(SYS_tkill, [is(1, signal)]));
        }
    }
    rules
}

/// A vCPU: its guest, and the devices that handle accesses on this thread.
fn vcpu() -> Vec<Rule> {
    vec![
        ioctl(KVM_RUN),
        // Where the guest was when it crashed.
        ioctl(KVM_GET_REGS),
        ioctl(KVM_GET_SREGS),
        // The console, when somebody made it non-blocking.
        any(SYS_poll),
        // The last reading of the scheduler's statistics.
        any(SYS_pread64),
    ]
}

/// The thread of a device. Its files are open.
fn device(device: Device) -> Vec<Rule> {
    let mut rules = vec![
        // Notifications by the driver.
        any(SYS_epoll_wait),
        any(SYS_epoll_pwait),
        any(SYS_read),
    ];
    match device {
        Device::Block => rules.extend([
            // Straight from and to guest memory.
            any(SYS_preadv),
            any(SYS_pwritev),
            any(SYS_fdatasync),
            // Discarding and zeroing, and zeroing where the file system can not.
            any(SYS_fallocate),
            any(SYS_pwrite64),
        ]),
        Device::Net => rules.extend([
            // Frames.
            any(SYS_readv),
            any(SYS_writev),
            // What the driver has negotiated.
            ioctl(TUNSETOFFLOAD),
        ]),
        Device::Entropy => rules.extend([
            // The host's random bytes.
            any(SYS_readv),
        ]),
    }
    rules
}

/// The event loop, and what is left to do at the end.
fn main_thread(duties: Duties) -> Vec<Rule> {
    // SAFETY: no arguments and no effects.
    let own_pid = unsafe { getpid() };
    let kick = SIGRTMIN();
    let mut rules = vec![
        // Events, and the console's input, which is waited for only while there is room for it.
        any(SYS_epoll_wait),
        any(SYS_epoll_pwait),
        any(SYS_epoll_ctl),
        any(SYS_poll),
        any(SYS_read),
        // How wide the terminal is.
        ioctl(TIOCGWINSZ),
        // Stopping the vCPUs.
        when(SYS_tgkill, [is(0, own_pid), is(2, kick)]),
        // The last samples of what is sampled.
        any(SYS_pread64),
    ];
    if cfg!(target_env = "musl") {
        rules.push(when(SYS_tkill, [is(1, kick)]));
    }
    if duties.mount || duties.stats_out {
        rules.extend(tree());
    }
    if duties.mount {
        rules.extend(reading_files());
        rules.extend([
            // Finding out whether what is mounted is still ours; the mount point goes, too.
            any(SYS_readlink),
            any(SYS_rmdir),
        ]);
        if is_root() {
            rules.push(when(SYS_umount2, [is(1, MNT_DETACH | MNT_FORCE)]));
        } else {
            // A process of its own unmounts: it is waited for, and killed if it hangs.
            rules.extend([any(SYS_wait4), when(SYS_kill, [is(1, SIGKILL)])]);
        }
    }
    if duties.stats_out {
        rules.extend([
            // Whose they are, as the tree says.
            any(SYS_geteuid),
            any(SYS_getegid),
            // A new file beside the old one, which then takes its place; or the old one, cut to nothing.
            any(SYS_fchmod),
            any(SYS_ftruncate),
            any(SYS_rename),
            any(SYS_unlink),
        ]);
        rules.extend(opening(!LARGE_FILE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC));
    }
    rules
}

/// The threads of the statistics.
fn statsfs(kind: ThreadKind) -> Vec<Rule> {
    match kind {
        // Samples are read from files that are open.
        ThreadKind::Keeper => vec![any(SYS_pread64)],
        ThreadKind::Session => {
            let mut rules = requests();
            rules.extend([
                // Starting the thread that answers requests. What clone3(2) is to make is behind a pointer. Its
                // stack's guard is made by mprotect(2), or by newer C libraries in another way.
                any(SYS_clone3),
                when(SYS_madvise, [is(2, MADV_GUARD_INSTALL)]),
                when(SYS_clone, [set(0, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND)]),
                any(SYS_set_robust_list),
                any(SYS_rseq),
                any(SYS_sched_getaffinity),
                when(SYS_prctl, [is(0, PR_SET_NAME)]),
                // Its own policy.
                when(SYS_prctl, [is(0, PR_SET_NO_NEW_PRIVS), is(1, 1)]),
                when(SYS_seccomp, [is(0, SECCOMP_SET_MODE_FILTER as c_int), is(1, 0)]),
            ]);
            rules
        }
        ThreadKind::Request => requests(),
        ThreadKind::Invalidation => {
            let mut rules = tree();
            rules.push(any(SYS_writev));
            rules
        }
        ThreadKind::Bulk => {
            let mut rules = tree();
            rules.extend(reading_files());
            rules.push(any(SYS_writev));
            rules
        }
        ThreadKind::Publish => vec![
            // The host's server, now and whenever there is one again.
            when(SYS_socket, [is(0, AF_UNIX), set(1, SOCK_SEQPACKET)]),
            any(SYS_connect),
            any(SYS_sendmsg),
            any(SYS_recvmsg),
            // Changes, and what the server says.
            any(SYS_poll),
            any(SYS_ppoll),
            any(SYS_read),
            // The segments that are sent.
            when(SYS_fcntl, [is(1, F_DUPFD_CLOEXEC)]),
        ],
        // A kind that came later: what every thread needs must do until it has a policy.
        _ => Vec::new(),
    }
}

/// Answering requests of the kernel for what is in the tree.
fn requests() -> Vec<Rule> {
    let mut rules = tree();
    rules.extend([any(SYS_read), any(SYS_writev)]);
    rules
}

/// Reading the statistics' segments: those that came since the last look are checked and mapped.
fn tree() -> Vec<Rule> {
    let mut rules = metadata();
    rules.extend([
        any(SYS_pread64),
        when(SYS_fcntl, [is(1, F_DUPFD_CLOEXEC)]),
        when(SYS_fcntl, [is(1, F_GET_SEALS)]),
        any(SYS_fstatfs),
        any(SYS_lseek),
        when(SYS_mmap, [is(2, PROT_READ), is(3, MAP_SHARED)]),
    ]);
    rules
}

/// What kind of file it is.
fn metadata() -> Vec<Rule> {
    vec![any(SYS_fstat), any(SYS_newfstatat), any(SYS_statx)]
}

/// Reading files as a whole, and holding a place without reading it (O_PATH).
fn reading_files() -> Vec<Rule> {
    let mut rules = metadata();
    rules.extend(opening(NOT_READING, 0));
    rules.extend([any(SYS_read), any(SYS_lseek)]);
    rules
}

/// Opening a file with flags that are these, as far as `mask` has them.
fn opening(mask: c_int, flags: c_int) -> [Rule; 3] {
    [
        when(SYS_openat, [bits(2, mask, flags)]),
        when(SYS_open, [bits(1, mask, flags)]),
        // musl does so after opening.
        when(SYS_fcntl, [is(1, F_SETFD), is(2, FD_CLOEXEC)]),
    ]
}
