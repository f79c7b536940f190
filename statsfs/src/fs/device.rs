//! FUSE's device: one connection with the kernel, which it can have several descriptors of, and which lasts
//! as long as one of them is open, in whatever process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout};

/// `FUSE_DEV_IOC_CLONE` of linux/fuse.h: `_IOR(229, 0, uint32_t)`.
const CLONE: libc::c_ulong = 0x8004_e500;
/// `FUSE_NOTIFY_RESEND` of linux/fuse.h, since Linux 6.9.
const RESEND: i32 = 7;
/// `FUSE_NOTIFY_INC_EPOCH` of linux/fuse.h, since Linux 6.16.
const INC_EPOCH: i32 = 8;

/// Opens a device that is not connected yet.
pub(super) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Whether a file is FUSE's device, whatever it is called.
pub(super) fn is_device(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| {
        meta.file_type().is_char_device() && meta.rdev() == nix::sys::stat::makedev(10, 229)
    })
}

/// A further descriptor of a connection, with a queue of its own: it wakes the right one of several threads,
/// which matters when that is on another core.
pub(super) fn clone(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let new = open()?;
    let of = device.as_raw_fd().cast_unsigned();
    // SAFETY: the pointer is to a live number, which this request reads; it changes no memory.
    if unsafe { libc::ioctl(new.as_raw_fd(), CLONE as _, &raw const of) } == 0 {
        Ok(new.into())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a descriptor that somebody else owns stand for this device; what it stood for is closed.
pub(super) fn put_in_place_of(fd: BorrowedFd<'_>, device: OwnedFd) -> io::Result<()> {
    // SAFETY: both are open. The number stays its owner's, and is open all along.
    let result = unsafe { libc::dup3(device.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a descriptor that came from elsewhere is of the connection of the file system with this device
/// number (`major:minor`), and the connection is alive.
pub(super) fn is_connected_to(fd: BorrowedFd<'_>, superblock: &str) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // Before anything is asked of it: whatever else it is may hang.
    if !link.is_ok_and(|link| link.file_name() == Path::new("fuse").file_name()) {
        return false;
    }
    let Ok(file) = fd.try_clone_to_owned().map(File::from) else { return false };
    if !is_device(&file) || !connection(fd).is_none_or(|number| is_number_of(number, superblock)) {
        return false;
    }
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let polled = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && !fds[0].revents().is_some_and(|is| is.contains(PollFlags::POLLERR))
}

/// The connection's number, where the kernel tells it.
fn connection(fd: BorrowedFd<'_>) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    number.trim().parse().ok()
}

/// Whether a connection with this number is that of the file system with this device number: it is called
/// after the minor one, and the major one is 0.
fn is_number_of(number: u64, superblock: &str) -> bool {
    superblock.strip_prefix("0:").and_then(|minor| minor.parse().ok()) == Some(number)
}

/// Has the kernel send all requests again that were read and not answered, with bit 63 of their numbers set.
pub(super) fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    notify(device, RESEND)
}

/// Has the kernel look up every name again that it remembers, when it is next used.
pub(super) fn doubt_all_names(device: BorrowedFd<'_>) -> io::Result<()> {
    notify(device, INC_EPOCH)
}

/// Sends a notification that has nothing but a code.
fn notify(device: BorrowedFd<'_>, code: i32) -> io::Result<()> {
    // Length, code, and the number 0, which no request has.
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    File::from(device.try_clone_to_owned()?).write_all(&message)
}
