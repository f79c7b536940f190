//! Answers of KVM_RUN in KVM's place, for those that no guest can bring about on every host.

use std::fs::File;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

const KVM_RUN: u32 = 0xae80;
/// Where in `struct kvm_run` (linux/kvm.h) the reason of an exit is, and what more there is to each.
const EXIT_REASON: u64 = 8;
const EXIT_DETAIL: u64 = 32;
/// Under this number the VMM has its filter's listener, without knowing.
const LISTENER: i32 = 300;

/// Installs a filter of system calls that has `action` for KVM_RUN.
fn filter(action: u32, flags: libc::c_ulong) -> io::Result<i32> {
    // Offsets in `seccomp_data`: the system call's number, and the low half of its second argument.
    const NUMBER: u32 = 0;
    const REQUEST: u32 = 24;
    let load = |k| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let skip_unless = |k, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf,
        k,
    };
    let answer =
        |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let mut filter = [
        load(NUMBER),
        skip_unless(libc::SYS_ioctl as u32, 3),
        load(REQUEST),
        skip_unless(KVM_RUN, 1),
        answer(action),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its filter live until the call returns, which copies them.
    succeeded(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) })
}

/// The answer of a system call.
fn succeeded(answer: libc::c_long) -> io::Result<i32> {
    if answer < 0 { Err(Error::last_os_error()) } else { Ok(answer as i32) }
}

/// A change to a command: its KVM_RUN fails with this error.
pub fn fail(errno: i32) -> impl FnOnce(&mut Command) {
    move |command| {
        let action = libc::SECCOMP_RET_ERRNO | errno as u32;
        // SAFETY: it makes one system call, and allocates nothing.
        unsafe { command.pre_exec(move || filter(action, 0).map(drop)) };
    }
}

/// A change to a command: its KVM_RUN waits for an [`answer`].
pub fn leave_to_the_test(command: &mut Command) {
    let listen = || {
        let listener =
            filter(libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: takes no pointers. The other one is closed when the command is executed.
        succeeded(unsafe { libc::dup2(listener, LISTENER) }.into()).map(drop)
    };
    // SAFETY: it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(listen) };
}

/// Waits until a process that was [left to the test](leave_to_the_test) calls KVM_RUN, and has that return an
/// exit with this reason, and this number about it.
///
/// # Panics
/// If there is no such process.
pub fn answer(pid: u32, reason: u32, detail: u64) {
    let listener = listener(pid).expect("this needs root, `sudo -E cargo test`");
    // SAFETY: all zeroes is what it has to be.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes to `call`, which is as large as it takes this to be.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), receive, &raw mut call) };
    assert_eq!(received, 0, "it calls KVM_RUN: {}", Error::last_os_error());

    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let page = maps.lines().find(|line| line.ends_with("anon_inode:kvm-vcpu:0"));
    let start = page.and_then(|page| page.split('-').next()).expect("it has mapped it");
    let start = u64::from_str_radix(start, 16).expect("an address");
    let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).expect("we may");
    memory.write_all_at(&reason.to_le_bytes(), start + EXIT_REASON).expect("it is mapped");
    memory.write_all_at(&detail.to_le_bytes(), start + EXIT_DETAIL).expect("it is mapped");

    let answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
    let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads `answer`.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), send, &raw const answer) };
    assert_eq!(sent, 0, "it waits: {}", Error::last_os_error());
}

/// A process's listener.
fn listener(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let process = succeeded(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: it is new and nobody else's.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    let process = process.as_raw_fd();
    // SAFETY: takes no pointers.
    let file = succeeded(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, LISTENER, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}
