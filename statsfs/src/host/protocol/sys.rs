//! The system calls for which there is no safe wrapper that loses nothing.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Most descriptors that the kernel passes in one message: `SCM_MAX_FD` of include/net/scm.h.
pub(super) const SCM_MAX_FD: usize = 253;
/// From include/linux/socket.h, since Linux 6.5.
const SCM_PIDFD: libc::c_int = 4;

/// Words of control messages: as many descriptors as can come at all, and what else a socket that somebody
/// else made may be set up to deliver. What found no room the kernel would close on our thread, and the
/// closing of a descriptor can take as long as whoever sent it likes.
pub(super) const CONTROL_WORDS: usize = (control_space(SCM_MAX_FD) + 256) / 8;

/// Words of a control message with credentials, and nothing else.
const CREDENTIALS_WORDS: usize = {
    // SAFETY: a computation.
    let space = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as libc::c_uint) };
    space as usize / 8
};

const fn control_space(fds: usize) -> usize {
    // SAFETY: a computation.
    unsafe { libc::CMSG_SPACE((fds * size_of::<RawFd>()) as libc::c_uint) as usize }
}

/// What came.
pub(super) struct Received {
    /// Bytes of the datagram that found room.
    pub(super) len: usize,
    /// Whether more bytes did not.
    pub(super) is_cut: bool,
    /// Whether control messages, descriptors among them, were lost.
    pub(super) has_lost_fds: bool,
}

/// Receives a datagram without waiting. Every descriptor that came with it is added to `fds`, whatever else
/// is wrong with it.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    control: &mut [u64; CONTROL_WORDS],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes two buffers that are ours alone and live across the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in the header and the control messages that it describes.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: not null, so there is a whole header of a control message there, which is aligned as the
    // buffer is.
    while let Some(header) = unsafe { at.as_ref() } {
        let is_fds = matches!(header.cmsg_type, libc::SCM_RIGHTS | SCM_PIDFD);
        if header.cmsg_level == libc::SOL_SOCKET && is_fds {
            // SAFETY: a computation.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = header.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            // SAFETY: where the data of this control message begins.
            let data = unsafe { libc::CMSG_DATA(at) }.cast::<RawFd>();
            for n in 0..count {
                // SAFETY: the kernel has written as many as its length says; they need not be aligned.
                let fd = unsafe { data.add(n).read_unaligned() };
                if fd < 0 {
                    // That is how the kernel says that there could be no pidfd.
                    continue;
                }
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                // A pidfd is not sent by the other side, and closed at no risk.
                if header.cmsg_type == libc::SCM_RIGHTS {
                    fds.push(fd);
                }
            }
        }
        // SAFETY: both are what the kernel has filled in.
        at = unsafe { libc::CMSG_NXTHDR(&message, at) };
    }
    Ok(Received {
        len: len as usize,
        is_cut: message.msg_flags & libc::MSG_TRUNC != 0,
        has_lost_fds: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// What there was to be thrown away.
pub(super) enum Discarded {
    /// A message, which is gone.
    Message,
    /// Nothing: the connection is shut down, and empty.
    Nothing,
    /// A message with descriptors, which is still there.
    HasFds,
}

/// Throws the next message away that waits on a socket which was shut down, unless descriptors came with it: the
/// kernel would close them on this thread.
pub(super) fn discard(socket: BorrowedFd<'_>) -> io::Result<Discarded> {
    // An empty message is told from none by the credentials that come with each now, and with nothing else.
    setsockopt(&socket, sockopt::PassCred, &true)?;
    let mut control = [0u64; CREDENTIALS_WORDS];
    // SAFETY: an all-zero msghdr is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the header describes no bytes, and a buffer that is ours alone and lives across the call. In that
    // there is room for credentials and for no descriptor, so none is made.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Ok(Discarded::HasFds);
    }
    if message.msg_controllen == 0 {
        return Ok(Discarded::Nothing);
    }
    // SAFETY: no bytes are asked for, and the pointer to none may be null.
    let len =
        unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
    if len < 0 { Err(io::Error::last_os_error()) } else { Ok(Discarded::Message) }
}

/// # Safety
/// `result` is what a system call has just returned that makes a descriptor.
unsafe fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made it for us, as the caller says.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptors that a service manager has passed to this process, by name; to be asked once. See
/// sd_listen_fds(3).
#[cfg(feature = "server")]
pub(in crate::host) fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    let passed = passed();
    let all = sd_notify::listen_fds_with_names(true).inspect_err(|_| {
        for fd in (FIRST_PASSED..).take(passed) {
            // SAFETY: a plain system call. The environment has said that it is this process's, and nobody is told
            // of it.
            unsafe { libc::close(fd) };
        }
    })?;
    // SAFETY: the environment, which is changed by that, says that they are this process's, and nobody else
    // asks; nothing else of this process has been given these numbers since it was executed with them open.
    Ok(all.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}

/// The first descriptor that a service manager passes: `SD_LISTEN_FDS_START`.
#[cfg(feature = "server")]
const FIRST_PASSED: RawFd = 3;

/// How many descriptors the environment says that this process was passed.
#[cfg(feature = "server")]
fn passed() -> usize {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| is_ours).map_or(0, |n| n as usize)
}

/// Has this thread give up all capabilities but those of a set, as far as it has them: capset(2).
#[cfg(feature = "server")]
pub(in crate::host) fn set_capabilities(these: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    // The version and this thread; effective, permitted and inheritable ones, the lower 32 of each and the upper.
    let mut header = [VERSION, 0];
    let mut sets = [0u32; 6];
    // SAFETY: the pointers are to a live header and sets as this version has them.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for (at, set) in sets.iter_mut().enumerate() {
        let half = if at < 3 { these } else { these >> 32 };
        *set &= half as u32;
    }
    // Nobody inherits any.
    (sets[2], sets[5]) = (0, 0);
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next connection, if there is one: accept4(2).
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let none = std::ptr::null_mut::<u8>();
    // SAFETY: the address of the other side is not asked for; the result is a new descriptor or an error.
    unsafe { new_fd(libc::accept4(listener.as_raw_fd(), none.cast(), none.cast(), flags).into()) }
}

/// A pidfd of the process with this id: pidfd_open(2), since Linux 5.3.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the result is a new descriptor or an error.
    unsafe { new_fd(libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0)) }
}

/// Whether a process still has its process id: it was not waited for yet.
pub(super) fn has_its_pid(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let none = std::ptr::null::<libc::siginfo_t>();
    let fd = libc::c_long::from(pidfd.as_raw_fd());
    // SAFETY: signal 0 is only a question, and no information goes with it.
    if unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, 0, none, 0) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Ok(false),
        Some(libc::EPERM) => Ok(true),
        _ => Err(error),
    }
}
