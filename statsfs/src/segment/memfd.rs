//! The sealed memfd under a segment: made by the writer, checked by the reader.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use thiserror::Error;

use super::layout::MIN_SEGMENT;
use super::region::Region;
use crate::limits::told;

const SEALS: [(libc::c_int, &str); 4] = [
    (libc::F_SEAL_SEAL, "SEAL"),
    (libc::F_SEAL_SHRINK, "SHRINK"),
    (libc::F_SEAL_GROW, "GROW"),
    (libc::F_SEAL_FUTURE_WRITE, "FUTURE_WRITE"),
];
/// From linux/magic.h.
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
/// From linux/memfd.h, since Linux 6.3.
const MFD_NOEXEC_SEAL: libc::c_uint = 8;

/// Why a segment could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// memfd_create(2) failed.
    #[error("cannot create a memfd for statistics: {}", told(.0))]
    Memfd(#[source] io::Error),
    /// A file of this process may not have the size of a segment (RLIMIT_FSIZE).
    #[error(
        "a statistics segment takes {len} bytes, and this process's files may have at most {limit}: raise \
         the limit (`ulimit -f`)"
    )]
    FileSize {
        /// The segment's size.
        len: usize,
        /// The limit.
        limit: u64,
    },
    /// ftruncate(2) failed.
    #[error("cannot give a statistics segment {1} bytes: {0}")]
    Size(#[source] io::Error, usize),
    /// mmap(2) failed.
    #[error("cannot map a statistics segment: {}", told(.0))]
    Map(#[source] io::Error),
    /// fcntl(F_ADD_SEALS) failed; `FUTURE_WRITE` needs Linux 5.1.
    #[error("cannot seal a statistics segment (needs Linux 5.1 or newer): {0}")]
    Seal(#[source] io::Error),
    /// The table of segments that fork must hide is full.
    #[error("this process has too many statistics segments")]
    TooMany,
}

/// Why a file is not accepted as a segment.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file has no seals at all: not a memfd.
    #[error("not a sealable file: {0}")]
    Unsealable(#[source] io::Error),
    /// A seal is missing.
    #[error("not sealed against {0}")]
    Seal(&'static str),
    /// fstat(2) or fstatfs(2) failed.
    #[error("cannot look at the file: {0}")]
    Stat(#[source] io::Error),
    /// The file is on hugetlbfs, whose pages are not ours to hold.
    #[error("its pages are huge")]
    Huge,
    /// Too small, too large, or no multiple of the page size.
    #[error("its size of {size} bytes is not a multiple of 4096 between {min} and {max}")]
    Size {
        /// The file's size.
        size: u64,
        /// The smallest accepted.
        min: usize,
        /// The largest accepted.
        max: usize,
    },
    /// The file has a hole, which reading would fill on our account.
    #[error("it has a hole at {0}")]
    Hole(u64),
    /// mmap(2) failed.
    #[error("cannot map it: {}", told(.0))]
    Map(#[source] io::Error),
}

impl FileError {
    /// Whether it is no fault of the file's: whoever looks at it is short of something, which may pass.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Stat(_) | Self::Map(_))
    }
}

/// Makes a memfd of `len` bytes (a multiple of the page size) with every page in place, maps it
/// writable and seals it.
pub(crate) fn create(name: &str, len: usize) -> Result<(OwnedFd, Region), CreateError> {
    let name = CString::new(format!("statsfs-{name}")).unwrap_or_default();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let open = |flags| {
        // SAFETY: the name is a C string that outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let fd = open(flags | MFD_NOEXEC_SEAL).or_else(|_| open(flags)).map_err(CreateError::Memfd)?;
    // Asked before, since ftruncate(2) would have SIGXFSZ end the process.
    if let Some(limit) = file_size_limit().filter(|limit| *limit < len as u64) {
        return Err(CreateError::FileSize { len, limit });
    }
    // SAFETY: plain system calls on a descriptor that we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) } < 0 {
        return Err(CreateError::Size(io::Error::last_os_error(), len));
    }
    let region = Region::map(fd.as_fd(), len, true).map_err(CreateError::Map)?;
    region.touch_every_page();
    let seals = SEALS.iter().fold(0, |all, (seal, _)| all | seal);
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(CreateError::Seal(io::Error::last_os_error()));
    }
    Ok((fd, region))
}

/// The largest size that a file of this process may get (RLIMIT_FSIZE), if that is limited.
fn file_size_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn sealed(fd: BorrowedFd<'_>) -> Result<libc::stat, FileError> {
    // SAFETY: F_GET_SEALS takes no pointer.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 {
        return Err(FileError::Unsealable(io::Error::last_os_error()));
    }
    for (seal, name) in SEALS {
        if seals & seal == 0 {
            return Err(FileError::Seal(name));
        }
    }
    // SAFETY: an all-zero stat is a valid value, which fstat overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live stat.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } < 0 {
        return Err(FileError::Stat(io::Error::last_os_error()));
    }
    Ok(stat)
}

/// Checks that a file is a sealed memfd, of acceptable size and without holes, and answers its size in bytes.
/// Nothing that could hang is done to an unknown descriptor before its seals are known; nor is what may hang closed
/// by who refuses it.
pub(crate) fn checked_size(fd: BorrowedFd<'_>, max: usize) -> Result<u64, FileError> {
    let stat = sealed(fd)?;
    // SAFETY: an all-zero statfs is a valid value, which fstatfs overwrites.
    let mut statfs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live statfs.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), &mut statfs) } < 0 {
        return Err(FileError::Stat(io::Error::last_os_error()));
    }
    if statfs.f_type as u32 == HUGETLBFS_MAGIC {
        return Err(FileError::Huge);
    }
    let size = stat.st_size as u64;
    if size < MIN_SEGMENT as u64 || size > max as u64 || !size.is_multiple_of(4096) {
        return Err(FileError::Size { size, min: MIN_SEGMENT, max });
    }
    // SAFETY: plain system call.
    let hole = unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_HOLE) };
    if hole < 0 {
        return Err(FileError::Stat(io::Error::last_os_error()));
    }
    if hole as u64 != size {
        return Err(FileError::Hole(hole as u64));
    }
    Ok(size)
}

/// Checks a file, and maps it read-only.
pub(crate) fn accept(fd: BorrowedFd<'_>, max: usize) -> Result<Region, FileError> {
    let size = checked_size(fd, max)?;
    Region::map(fd, size as usize, false).map_err(FileError::Map)
}
