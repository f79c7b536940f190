//! Aborting a FUSE connection whose mount is out of reach, through FUSE's control file system.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Where the control file system is, where it is.
const CONTROL: &str = "/sys/fs/fuse/connections";

/// The file that aborts one connection. Opened while the connection's number is certainly its own, and by a
/// process that may still open files; once the connection has gone it does nothing.
#[derive(Debug)]
pub(super) struct Abort(File);

impl Abort {
    /// Of the superblock with this device (`major:minor`). Needs root or, where the control file system is
    /// mounted, the user who mounted.
    pub(super) fn open(device: &str) -> io::Result<Self> {
        // A connection is called after the minor number; the major one of such devices is 0.
        let minor = device.strip_prefix("0:").ok_or(io::ErrorKind::InvalidInput)?;
        let open = |directory: &str| {
            File::options().write(true).open(format!("{directory}/{minor}/abort"))
        };
        let file = match open(CONTROL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let control = detached_control()?;
                open(&format!("/proc/self/fd/{}", control.as_raw_fd()))
            }
            result => result,
        };
        file.map(Self)
    }

    /// Ends the session, whatever it is waiting for.
    pub(super) fn now(&self) -> io::Result<()> {
        (&self.0).write_all(b"1")
    }
}

/// Mounts the control file system where nobody sees it.
fn detached_control() -> io::Result<OwnedFd> {
    const NAME: &CStr = c"fusectl";
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    // SAFETY: a C string that lives across the call; the result is a new descriptor or an error.
    let context =
        unsafe { new_fd(libc::syscall(libc::SYS_fsopen, NAME.as_ptr(), FSOPEN_CLOEXEC)) }?;
    let fd = context.as_raw_fd();
    let (none, zero) = (std::ptr::null::<u8>(), 0);
    // SAFETY: this command takes no key and no value.
    let created =
        unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, zero) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers only; the result is a new descriptor or an error.
    unsafe { new_fd(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, zero)) }
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
