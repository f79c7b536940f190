//! Files that guests are made of, and that what is left of them goes to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a regular file: a device has no end, and a pipe may never have one.
///
/// # Errors
/// What open(2) says, or that it is another kind of file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Asked first, since opening a pipe waits for its writer.
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !kind.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(path)
}

/// Opens a file to be written from its beginning, as it is. It is made if it is missing.
///
/// # Errors
/// What open(2) says, or that it is a pipe that nobody reads: waiting for its reader could take for ever.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("nobody reads it: start its reader before"),
        _ => error,
    })?;
    // Its reader may take its time.
    // SAFETY: no pointers; the open file is this one's alone.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
