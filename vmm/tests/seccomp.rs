//! Policies in the kernel: what each kind of thread may and may not call, tried out call by call; and what
//! becomes of a process one of whose threads calls what it may not.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::*;
use statsfs::ThreadKind;
use vmm::seccomp::{Device, Duties, Thread, before_the_end, confine, enable};

const POLICIES: [(&str, Thread); 15] = [
    ("main", Thread::Main(Duties { mount: false, stats_out: false })),
    ("main+mount", Thread::Main(Duties { mount: true, stats_out: false })),
    ("main+out", Thread::Main(Duties { mount: false, stats_out: true })),
    ("main+both", Thread::Main(Duties { mount: true, stats_out: true })),
    ("vcpu", Thread::Vcpu),
    ("block", Thread::Device(Device::Block)),
    ("net", Thread::Device(Device::Net)),
    ("entropy", Thread::Device(Device::Entropy)),
    ("keeper", Thread::Statsfs(ThreadKind::Keeper)),
    ("session", Thread::Statsfs(ThreadKind::Session)),
    ("request", Thread::Statsfs(ThreadKind::Request)),
    ("bulk", Thread::Statsfs(ThreadKind::Bulk)),
    ("invalidation", Thread::Statsfs(ThreadKind::Invalidation)),
    ("publish", Thread::Statsfs(ThreadKind::Publish)),
    ("demo", Thread::Reader),
];

/// A call with arguments that do no harm where it is allowed, and the policies that allow it.
struct Probe(c_long, [i64; 6], &'static [&'static str]);

const ALL: &[&str] = &[""];
const NONE: &[&str] = &[];
const MAIN: &[&str] = &["main"];
const EVENTS: &[&str] = &["main", "block", "net", "entropy"];
/// Those who read the segments.
const TREE: &[&str] =
    &["main+mount", "main+out", "main+both", "session", "request", "bulk", "invalidation"];
/// Those who look what kind of file it is.
const METADATA: &[&str] =
    &["main+mount", "main+out", "main+both", "session", "request", "bulk", "inval", "demo"];
const READS: &[&str] =
    &["main", "block", "net", "entropy", "session", "request", "bulk", "publish", "demo"];
/// Those who send descriptors of the segments, or map them.
const SEGMENTS: &[&str] =
    &["main+mount", "main+out", "main+both", "session", "request", "bulk", "inval", "publish"];
const FILES: &[&str] = &["main+mount", "main+both", "bulk", "demo"];
const MOUNT: &[&str] = &["main+mount", "main+both"];
const OUT: &[&str] = &["main+out", "main+both"];
/// Those who may open something.
const OPENS: &[&str] = &["main+mount", "main+out", "main+both", "bulk", "demo"];

impl Probe {
    /// An entry of the list is the beginning of a policy's name.
    fn allowed(&self, policy: &str) -> bool {
        self.2.iter().any(|allowed| policy.starts_with(allowed))
    }
}

/// What is tried out, by root or by an ordinary user.
fn probes(is_root: bool) -> Vec<Probe> {
    // SAFETY: no arguments and no effects.
    let pid = i64::from(unsafe { getpid() });
    let (by_root, by_user) = if is_root { (MOUNT, NONE) } else { (NONE, MOUNT) };
    let p = |call, args: &[i64], allowed| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Probe(call, all, allowed)
    };
    let (read, write, exec) = (i64::from(PROT_READ), i64::from(PROT_WRITE), i64::from(PROT_EXEC));
    let (anonymous, shared) = (i64::from(MAP_PRIVATE | MAP_ANONYMOUS), i64::from(MAP_SHARED));
    let kick = i64::from(SIGRTMIN());
    let cloexec = i64::from(O_CLOEXEC);
    let new_file = i64::from(O_WRONLY | O_CREAT | O_EXCL) | cloexec;
    let thread = i64::from(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD);
    vec![
        p(SYS_brk, &[0], ALL),
        p(SYS_mmap, &[0, 0, read | write, anonymous, -1], ALL),
        p(SYS_mmap, &[0, 0, read | exec, anonymous, -1], NONE),
        p(SYS_mmap, &[0, 0, read, shared, -1], TREE),
        p(SYS_mmap, &[0, 0, read | write, shared, -1], NONE),
        p(SYS_mmap, &[0, 0, read, i64::from(MAP_PRIVATE), -1], NONE),
        p(SYS_mprotect, &[0, 0, read | write], ALL),
        p(SYS_mprotect, &[0, 0, exec], NONE),
        p(SYS_mremap, &[0, 0, 0], ALL),
        p(SYS_munmap, &[0, 0], ALL),
        p(SYS_madvise, &[0, 0, MADV_DONTNEED.into()], ALL),
        p(SYS_madvise, &[0, 0, MADV_FREE.into()], ALL),
        p(SYS_madvise, &[0, 0, MADV_HUGEPAGE.into()], ALL),
        p(SYS_madvise, &[0, 0, MADV_NOHUGEPAGE.into()], ALL),
        p(SYS_madvise, &[0, 0, 102], &["session"]),
        p(SYS_madvise, &[0, 0, MADV_HWPOISON.into()], NONE),
        p(SYS_prctl, &[PR_SET_VMA.into(), PR_SET_VMA_ANON_NAME as i64], ALL),
        p(SYS_futex, &[0, (FUTEX_WAIT | FUTEX_PRIVATE_FLAG).into()], ALL),
        p(SYS_futex, &[0, FUTEX_WAKE.into()], ALL),
        p(SYS_futex, &[0, (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME).into()], ALL),
        p(SYS_futex, &[0, FUTEX_LOCK_PI.into()], NONE),
        p(SYS_futex, &[0, (FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG).into()], NONE),
        p(SYS_sched_yield, &[], ALL),
        p(SYS_clock_gettime, &[], ALL),
        p(SYS_clock_nanosleep, &[], ALL),
        p(SYS_nanosleep, &[], ALL),
        p(SYS_restart_syscall, &[], ALL),
        p(SYS_getrandom, &[], ALL),
        p(SYS_write, &[-1], ALL),
        p(SYS_close, &[-1], ALL),
        // From the highest to the lowest is nothing.
        p(SYS_close_range, &[9, 8], NONE),
        p(SYS_dup3, &[-1, -1, cloexec], NONE),
        p(SYS_fcntl, &[-1, F_GETFD.into()], ALL),
        p(SYS_fcntl, &[-1, F_GET_SEALS.into()], TREE),
        p(SYS_fcntl, &[-1, F_DUPFD_CLOEXEC.into()], SEGMENTS),
        p(SYS_fcntl, &[-1, F_SETFL.into()], NONE),
        p(SYS_fcntl, &[-1, F_SETFD.into(), FD_CLOEXEC.into()], OPENS),
        p(SYS_fcntl, &[-1, F_SETFD.into(), 0], NONE),
        p(SYS_rt_sigprocmask, &[0, 0, 0, 8], ALL),
        p(SYS_sigaltstack, &[], ALL),
        p(SYS_rt_sigaction, &[SIGSEGV.into(), 0, 0, 8], ALL),
        p(SYS_rt_sigaction, &[SIGBUS.into(), 0, 0, 8], ALL),
        p(SYS_rt_sigaction, &[SIGABRT.into(), 0, 0, 8], ALL),
        p(SYS_rt_sigaction, &[SIGUSR1.into(), 0, 0, 8], ALL),
        p(SYS_rt_sigaction, &[SIGSYS.into(), 0, 0, 8], NONE),
        p(SYS_rt_sigaction, &[SIGTERM.into(), 0, 0, 8], NONE),
        // There is no thread 0.
        p(SYS_tgkill, &[pid, 0, SIGABRT.into()], ALL),
        p(SYS_tgkill, &[pid, 0, SIGILL.into()], ALL),
        p(SYS_tgkill, &[pid, 0, kick], MAIN),
        p(SYS_tgkill, &[1, 0, SIGABRT.into()], NONE),
        p(SYS_tgkill, &[pid, 0, SIGKILL.into()], NONE),
        p(SYS_getpid, &[], ALL),
        p(SYS_gettid, &[], ALL),
        p(SYS_ioctl, &[-1, TCSETS as i64], ALL),
        p(SYS_ioctl, &[-1, TIOCGPGRP as i64], ALL),
        p(SYS_getpgrp, &[], ALL),
        p(SYS_ioctl, &[-1, TCGETS as i64], ALL),
        p(SYS_ioctl, &[-1, TCSETS2 as i64], ALL),
        p(SYS_ioctl, &[-1, TCGETS2 as i64], ALL),
        p(SYS_ioctl, &[-1, TIOCGWINSZ as i64], MAIN),
        p(SYS_ioctl, &[-1, TIOCSTI as i64], NONE),
        // KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS, and what else KVM has: KVM_CREATE_VM, KVM_SET_REGS,
        // KVM_SET_USER_MEMORY_REGION.
        p(SYS_ioctl, &[-1, 0xae80], &["vcpu"]),
        p(SYS_ioctl, &[-1, 0x8090_ae81], &["vcpu"]),
        p(SYS_ioctl, &[-1, 0x8138_ae83], &["vcpu"]),
        p(SYS_ioctl, &[-1, 0xae01], NONE),
        p(SYS_ioctl, &[-1, 0x4090_ae82], NONE),
        p(SYS_ioctl, &[-1, 0x4020_ae46], NONE),
        // FUSE_DEV_IOC_CLONE, TUNSETOFFLOAD, TUNSETIFF.
        p(SYS_ioctl, &[-1, 0x8004_e500], NONE),
        p(SYS_ioctl, &[-1, 0x4004_54d0], &["net"]),
        p(SYS_ioctl, &[-1, 0x4004_54ca], NONE),
        p(SYS_poll, &[], &["main", "vcpu", "publish"]),
        p(SYS_ppoll, &[1, 1], &["publish"]),
        p(SYS_socket, &[AF_UNIX.into(), i64::from(SOCK_SEQPACKET | SOCK_CLOEXEC), 9], &["publish"]),
        p(SYS_socket, &[AF_UNIX.into(), i64::from(SOCK_STREAM | SOCK_CLOEXEC)], NONE),
        p(SYS_socket, &[AF_INET.into(), i64::from(SOCK_SEQPACKET | SOCK_CLOEXEC)], NONE),
        p(SYS_socket, &[AF_PACKET.into(), SOCK_RAW.into()], NONE),
        p(SYS_connect, &[-1], &["publish"]),
        p(SYS_sendmsg, &[-1], &["publish"]),
        p(SYS_recvmsg, &[-1], &["publish"]),
        p(SYS_epoll_wait, &[-1], EVENTS),
        p(SYS_epoll_pwait, &[-1], EVENTS),
        p(SYS_epoll_ctl, &[-1], MAIN),
        p(SYS_read, &[-1], READS),
        p(SYS_readv, &[-1], &["net", "entropy"]),
        p(SYS_writev, &[-1], &["net", "session", "request", "bulk", "invalidation"]),
        p(SYS_pread64, &[-1], &["main", "vcpu", "keeper", "session", "request", "bulk", "inval"]),
        p(SYS_preadv, &[-1], &["block"]),
        p(SYS_pwrite64, &[-1], &["block"]),
        p(SYS_pwritev, &[-1], &["block"]),
        p(SYS_fdatasync, &[-1], &["block"]),
        p(SYS_fallocate, &[-1], &["block"]),
        p(SYS_fstat, &[-1], METADATA),
        p(SYS_fstatfs, &[-1], TREE),
        p(SYS_newfstatat, &[-1], METADATA),
        p(SYS_statx, &[-1], METADATA),
        p(SYS_lseek, &[-1], METADATA),
        p(SYS_openat, &[-1, 0, cloexec], FILES),
        p(SYS_open, &[0, cloexec], FILES),
        p(SYS_openat, &[-1, 0, i64::from(O_PATH | O_DIRECTORY) | cloexec], FILES),
        p(SYS_openat, &[-1, 0, i64::from(O_RDWR) | cloexec], NONE),
        p(SYS_open, &[0, i64::from(O_RDWR) | cloexec], NONE),
        p(SYS_openat, &[-1, 0, i64::from(O_RDWR | O_TRUNC) | cloexec], NONE),
        p(SYS_openat, &[-1, 0, new_file], OUT),
        p(SYS_open, &[0, new_file], OUT),
        p(SYS_openat, &[-1, 0, new_file & !i64::from(O_EXCL)], NONE),
        p(SYS_openat, &[-1, 0, i64::from(O_WRONLY) | cloexec], NONE),
        p(SYS_openat, &[-1, 0, i64::from(O_CREAT) | cloexec], NONE),
        p(SYS_openat, &[-1, 0, i64::from(O_TRUNC) | cloexec], NONE),
        p(SYS_openat, &[-1, 0, i64::from(O_TMPFILE) | cloexec], NONE),
        p(SYS_fchmod, &[-1], OUT),
        p(SYS_ftruncate, &[-1], OUT),
        p(SYS_rename, &[], OUT),
        p(SYS_unlink, &[], OUT),
        p(SYS_geteuid, &[], OUT),
        p(SYS_getegid, &[], OUT),
        p(SYS_readlink, &[], MOUNT),
        p(SYS_rmdir, &[], MOUNT),
        p(SYS_umount2, &[0, (MNT_DETACH | MNT_FORCE).into()], by_root),
        p(SYS_umount2, &[0, MNT_DETACH.into()], NONE),
        p(SYS_umount2, &[0, 0], NONE),
        p(SYS_wait4, &[i64::MAX], by_user),
        // A process that can not be.
        p(SYS_kill, &[i64::from(i32::MAX), SIGKILL.into()], by_user),
        p(SYS_kill, &[i64::from(i32::MAX), SIGTERM.into()], NONE),
        p(SYS_clone3, &[], &["session"]),
        p(SYS_clone, &[SIGCHLD.into()], NONE),
        // Without a stack of its own, and so refused by the kernel: CLONE_SETTLS with an address that can
        // not be.
        p(SYS_clone, &[thread | i64::from(CLONE_SETTLS), 0, 0, 0, i64::MIN], &["session"]),
        p(SYS_set_robust_list, &[], &["session"]),
        p(SYS_rseq, &[], &["session"]),
        p(SYS_sched_getaffinity, &[-1], &["session"]),
        p(SYS_prctl, &[PR_GET_NAME.into()], ALL),
        p(SYS_prctl, &[PR_SET_NAME.into()], &["session"]),
        p(SYS_prctl, &[PR_SET_NO_NEW_PRIVS.into(), 1], &["session"]),
        p(SYS_prctl, &[PR_SET_DUMPABLE.into(), 1], NONE),
        p(SYS_seccomp, &[SECCOMP_SET_MODE_FILTER.into(), 0, 0], &["session"]),
        p(SYS_seccomp, &[SECCOMP_SET_MODE_STRICT.into()], NONE),
    ]
}

/// Those that are allowed everywhere and can not be tried out: they do not come back.
const NO_RETURN: [c_long; 3] = [SYS_rt_sigreturn, SYS_exit, SYS_exit_group];
/// The last number that Linux has, and some that it will have.
const LAST: c_long = 480;
/// The calls `uretprobe` and `uprobe`: newer kernels ask no filter about them, and end who makes them.
const NOT_FILTERED: [c_long; 2] = [335, 336];

/// All calls that are not probed.
fn others(probes: &[Probe]) -> Vec<c_long> {
    let probed = probes.iter().map(|probe| probe.0);
    let known: BTreeSet<_> = probed.chain(NO_RETURN).chain(NOT_FILTERED).collect();
    (0..=LAST).filter(|call| !known.contains(call)).collect()
}

static FORBIDDEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    FORBIDDEN.store(true, Ordering::SeqCst);
    // SAFETY: the kernel gives the context; what it says here becomes the call's result.
    unsafe {
        (*context.cast::<ucontext_t>()).uc_mcontext.gregs[REG_RAX as usize] = -i64::from(ENOSYS);
    }
}

/// Whether the policy of this thread lets the call through.
fn is_let_through(call: c_long, args: &[i64; 6]) -> bool {
    FORBIDDEN.store(false, Ordering::SeqCst);
    let [a, b, c, d, e, f] = *args;
    // SAFETY: the arguments do no harm where the call is allowed (see `Probe`), and elsewhere it is not
    // made.
    unsafe { syscall(call, a, b, c, d, e, f) };
    !FORBIDDEN.load(Ordering::SeqCst)
}

const POLICY: &str = "VMM_TEST_POLICY";
const DEED: &str = "VMM_TEST_DEED";

/// What `variable` says, if this process is a child of a test.
fn told(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

/// Not a test: what the children of the first test run. Says `y` for every call that is let through, `n` for
/// every other: the probes, then all other numbers.
#[test]
#[ignore = "run by the other tests"]
fn child_tries_all_calls() {
    let Some(policy) = told(POLICY) else { return };
    let (_, thread) = POLICIES.into_iter().find(|(name, _)| *name == policy).unwrap();
    // SAFETY: no arguments and no effects.
    let probes = probes(unsafe { geteuid() } == 0);
    let others = others(&probes);
    let mut answers = Vec::with_capacity(1 << 10);
    enable().unwrap();
    // SAFETY: all zeroes is a valid `sigaction`, and the handler is what the flags say.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = note as extern "C" fn(_, _, _) as usize;
        action.sa_flags = SA_SIGINFO;
        assert_eq!(sigaction(SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    confine(thread).unwrap();
    let mut answer = |let_through| answers.push(if let_through { b'y' } else { b'n' });
    for Probe(call, args, _) in &probes {
        answer(is_let_through(*call, args));
    }
    for call in others {
        answer(is_let_through(call, &[0; 6]));
    }
    // SAFETY: the answers are live; _exit(2) does not return.
    unsafe {
        write(STDOUT_FILENO, answers.as_ptr().cast(), answers.len());
        _exit(0);
    }
}

/// Runs one of the children.
fn child(name: &str, variable: &str, value: &str) -> Output {
    run(&mut Command::new(std::env::current_exe().unwrap()), name, variable, value)
}

fn run(command: &mut Command, name: &str, variable: &str, value: &str) -> Output {
    child_of(command, name, variable, value).output().unwrap()
}

fn child_of<'a>(
    command: &'a mut Command,
    name: &str,
    variable: &str,
    value: &str,
) -> &'a mut Command {
    command
        .args(["--ignored", "--exact", name, "--nocapture", "--test-threads=1"])
        .env(variable, value)
        // What that asks for must not keep a panic from being told.
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
}

#[test]
fn every_policy_allows_what_it_should_and_nothing_else() {
    // SAFETY: no arguments and no effects.
    let is_root = unsafe { geteuid() } == 0;
    let own = std::env::current_exe().unwrap();
    assert_policies(is_root, || Command::new(&own));
    if is_root {
        // The target directory may be closed to others.
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("test");
        let copied = Command::new("cp").arg(&own).arg(&copy).status();
        assert!(copied.unwrap().success());
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        assert_policies(false, || {
            let mut command = Command::new(&copy);
            command.uid(65534).gid(65534).current_dir("/");
            command
        });
    }
}

fn assert_policies(is_root: bool, command: impl Fn() -> Command) {
    let probes = probes(is_root);
    for (policy, _) in POLICIES {
        let output = run(&mut command(), "child_tries_all_calls", POLICY, policy);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{policy}: {}: {stderr}", output.status);
        // After what the test harness says at its start.
        let said = String::from_utf8(output.stdout).unwrap();
        let answers = said.lines().last().unwrap();
        let answers = answers.rsplit_once(' ').map_or(answers, |(_, answers)| answers);
        let others = others(&probes);
        assert_eq!(answers.len(), probes.len() + others.len(), "{policy}: {said}");
        let (probed, rest) = answers.split_at(probes.len());
        for (probe, answer) in probes.iter().zip(probed.chars()) {
            let Probe(call, args, _) = probe;
            assert_eq!(answer == 'y', probe.allowed(policy), "{policy}: call {call} {args:x?}");
        }
        let wrong: Vec<_> =
            others.iter().zip(rest.chars()).filter(|(_, answer)| *answer != 'n').collect();
        assert!(wrong.is_empty(), "{policy}: should be forbidden: {wrong:?}");
    }
}

/// Not a test: what the children of the other tests run, each on a thread that is called `vcpu7` and confined
/// like one.
#[test]
#[ignore = "run by the other tests"]
fn child_does_a_deed() {
    let Some(deed) = told(DEED) else { return };
    if deed == "unconfined" {
        // SAFETY: a call with numbers only, which the kernel refuses.
        assert_eq!(unsafe { socket(-1, 0, 0) }, -1);
        confine(Thread::Vcpu).expect("nothing is done unless policies are enabled");
        // SAFETY: as above.
        assert_eq!(unsafe { socket(-1, 0, 0) }, -1);
        std::process::exit(77);
    }
    enable().unwrap();
    if deed == "last act" {
        before_the_end(|| {
            let text = b"the last act\n";
            // SAFETY: the text is live.
            unsafe { write(STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        });
    }
    let run = move || {
        confine(Thread::Vcpu).unwrap();
        do_deed(&deed);
    };
    let thread = std::thread::Builder::new().name("vcpu7".into()).spawn(run).unwrap();
    // A thread that panics is no harm to the others.
    let status = if thread.join().is_ok() { 0 } else { 66 };
    std::process::exit(status);
}

fn do_deed(deed: &str) {
    match deed {
        "socket" | "last act" => {
            // SAFETY: a call with numbers only.
            unsafe { socket(AF_INET, SOCK_STREAM, 0) };
        }
        "ioctl" => {
            // SAFETY: the byte is live.
            unsafe { ioctl(0, TIOCSTI, c"x".as_ptr()) };
        }
        "mmap" => {
            // SAFETY: a mapping of its own.
            unsafe {
                let flags = MAP_PRIVATE | MAP_ANONYMOUS;
                mmap(std::ptr::null_mut(), 4096, PROT_WRITE | PROT_EXEC, flags, -1, 0);
            }
        }
        "thread" => drop(std::thread::spawn(|| {})),
        "panic" => panic!("this panic is part of the test"),
        "double panic" => {
            struct Again;
            impl Drop for Again {
                fn drop(&mut self) {
                    panic!("and this one too");
                }
            }
            let _again = Again;
            panic!("this panic is part of the test");
        }
        "abort" => std::process::abort(),
        "no memory" => {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; 12345]>());
        }
        "fault" => {
            // SAFETY: it is not: that is what is tested. There is nothing at this address.
            unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
        }
        "overflow" => {
            #[allow(unconditional_recursion)]
            fn deeper(n: u64) -> u64 {
                std::hint::black_box(deeper(std::hint::black_box(n + 1)) + 1)
            }
            deeper(0);
        }
        "allocate" => {
            // Much and little, again and again, and given back: with one heap for each thread glibc
            // would look into /proc before it shrinks one.
            for round in 0..4u8 {
                let pieces: Vec<_> = (0..64).map(|_| vec![round; 100_000]).collect();
                assert_eq!(std::hint::black_box(&pieces).len(), 64);
            }
        }
        "32 bits" => {
            // SAFETY: getpid(2) of i386 takes nothing.
            unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
        }
        _ => unreachable!("{deed}"),
    }
}

/// As [`done`], with a standard error that can not be written.
fn done_unheard(deed: &str) -> (Option<i32>, Option<i32>) {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = child_of(&mut command, "child_does_a_deed", DEED, deed)
        .stdout(Stdio::null())
        .stderr(full)
        .status()
        .unwrap();
    (status.code(), status.signal())
}

/// The status, the signal and the messages of a child that did this.
fn done(deed: &str) -> (Option<i32>, Option<i32>, String) {
    let output = child("child_does_a_deed", DEED, deed);
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), output.status.signal(), stderr)
}

#[test]
fn a_forbidden_call_ends_the_process_with_a_line_that_names_it() {
    for (deed, call) in [
        ("socket", "socket (number 41, arguments 0x2 0x1 0x0"),
        ("ioctl", "ioctl (number 16, arguments 0x0 0x5412"),
        ("mmap", "mmap (number 9, arguments 0x0 0x1000 0x6 0x22 "),
    ] {
        let (status, _, stderr) = done(deed);
        assert_eq!(status, Some(125), "{deed}: {stderr}");
        let line = stderr.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n'), "{line}");
        let start = "vmm: the thread vcpu7 made a system call that its policy forbids: ";
        assert!(line.starts_with(&format!("{start}{call}")), "{line}");
        assert!(line.ends_with("--no-seccomp lifts all policies"), "{line}");
    }
    // Before the line, so that a terminal shows it as it should.
    let (status, _, stderr) = done("last act");
    assert_eq!(status, Some(125));
    assert!(stderr.starts_with("the last act\nvmm: the thread vcpu7"), "{stderr}");
}

#[test]
fn what_can_not_be_said_ends_it_all_the_same() {
    // glibc blocks all signals while it makes a thread.
    let (_, signal, _) = done("thread");
    assert_eq!(signal, Some(SIGSYS));
    // Numbers of another architecture would be other calls.
    assert_eq!(done("32 bits").1, Some(SIGSYS));
}

#[test]
fn other_ends_are_what_they_would_be() {
    let (status, _, stderr) = done("panic");
    assert_eq!(status, Some(66), "{stderr}");
    let line = "vmm: the thread vcpu7 panicked at vmm/tests/seccomp.rs:";
    assert!(stderr.starts_with(line) && stderr.contains("this panic is part of"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");

    // Nor is it more than a panic if nobody can be told.
    assert_eq!(done_unheard("panic"), (Some(66), None));

    let (_, signal, stderr) = done("double panic");
    assert_eq!(signal, Some(SIGABRT), "{stderr}");
    assert!(stderr.contains("this panic is part") && stderr.contains("and this one"), "{stderr}");

    assert_eq!(done("abort").1, Some(SIGABRT));
    let (_, signal, stderr) = done("no memory");
    assert_eq!(signal, Some(SIGABRT), "{stderr}");
    assert!(stderr.starts_with("memory allocation of 12345 bytes failed"), "{stderr}");
    assert_eq!(done("fault").1, Some(SIGSEGV));
    let (_, signal, stderr) = done("overflow");
    assert_eq!(signal, Some(SIGABRT), "{stderr}");
    assert!(stderr.contains("vcpu7") && stderr.contains("overflowed its stack"), "{stderr}");
    assert_eq!(done("allocate"), (Some(0), None, String::new()));
    assert_eq!(done("unconfined").0, Some(77));
}

/// Makes seccomp(2) something that this process's kernel does not know, but for what is left of this
/// function.
fn forget_seccomp() -> io::Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
    let rules = [(SYS_seccomp, Vec::new())].into();
    let (otherwise, action) = (SeccompAction::Allow, SeccompAction::Errno(ENOSYS as u32));
    let filter = SeccompFilter::new(rules, otherwise, action, TargetArch::x86_64);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

#[test]
fn a_kernel_without_seccomp_is_told_in_a_line_with_the_way_out() {
    let mut program = tempfile::NamedTempFile::new().unwrap();
    // mov al, 9; out 0xf4, al
    program.write_all(&[0xb0, 9, 0xe6, 0xf4]).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["run", "--no-publish", "--flat"]).arg(program.path()).args(args);
        // SAFETY: the child has one thread, which allocates a little and calls the kernel; the allocator is
        // usable after a fork.
        unsafe { command.pre_exec(forget_seccomp) };
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, stderr) = run(&[]);
    assert_eq!(status, Some(125), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in ["vmm: ", "can not be filtered", "CONFIG_SECCOMP_FILTER", "--no-seccomp"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert_eq!(run(&["--no-seccomp"]), (Some(9), String::new()));
}
