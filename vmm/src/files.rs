//! Files that guests are made of.

use std::fs::File;
use std::io;
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
