//! Reading a snapshot of a mounted tree.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zerocopy::IntoBytes;

use super::format::{MAGIC, header};
use super::{Snapshot, SnapshotError, parse};

/// Why there is no snapshot of a directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is nothing.
    #[error("{} is not there: nothing is mounted there, or what it was of is gone", .0.display())]
    Missing(PathBuf),
    /// It is no directory of a mounted tree.
    #[error("{} is in no mounted statsfs tree: `statsfs serve` mounts one at /run/statsfs", .0.display())]
    NotMounted(PathBuf),
    /// It is a directory of one, but of no source: a histogram, or one of links.
    #[error("{} is in a statsfs tree, but no source's directory: name the one that it is in", .0.display())]
    NoSource(PathBuf),
    /// The user may not look into it.
    #[error("{} may not be read by this user: its owner, root and the readers' group (`statsfs serve --readers`) may", .0.display())]
    Denied(PathBuf),
    /// There is nobody to answer.
    #[error("{}: the server of this mount is gone: start it again", .0.display())]
    Dead(PathBuf),
    /// The server was started again meanwhile, or the directory's source has just gone.
    #[error("{}: the server is being started again, or what it was of is gone: try again", .0.display())]
    Restarted(PathBuf),
    /// There is more than there is room for.
    #[error("{}: the server has no room for all of it: see the limits for readers of `statsfs serve`, or read the directories below", .0.display())]
    TooLarge(PathBuf),
    /// It can not be read.
    #[error("{} can not be read", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// What was read is no snapshot.
    #[error("{}: what was read is no snapshot", path.display())]
    Invalid {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: SnapshotError,
    },
}

impl ReadError {
    /// What it means that reading a file in the `.stats` of a directory failed so.
    pub fn new(dir: &Path, error: io::Error) -> Self {
        let path = dir.to_owned();
        match error.raw_os_error() {
            Some(libc::ENOENT) if is_within(dir) => Self::NoSource(path),
            Some(libc::ENOENT) if dir.is_dir() => Self::NotMounted(path),
            Some(libc::ENOENT) => Self::Missing(path),
            Some(libc::ENOTDIR) => Self::NotMounted(path),
            Some(libc::EACCES | libc::EPERM) => Self::Denied(path),
            Some(libc::ENOTCONN | libc::ECONNABORTED) => Self::Dead(path),
            Some(libc::ESTALE | libc::ENODEV) => Self::Restarted(path),
            Some(libc::ENOMEM | libc::EFBIG) => Self::TooLarge(path),
            _ => Self::Io { path, error },
        }
    }
}

/// Whether a directory is somewhere in a mounted tree.
fn is_within(dir: &Path) -> bool {
    let Ok(real) = dir.canonicalize() else { return false };
    real.is_dir() && real.ancestors().skip(1).any(|above| above.join(".stats/snapshot").exists())
}

/// Longer than any that there is room for.
const MAX_LENGTH: u64 = 64 << 30;

pub(super) fn read(dir: &Path) -> Result<Snapshot, ReadError> {
    let read = read_words(&dir.join(".stats/snapshot"));
    let (words, len) = read.map_err(|error| ReadError::new(dir, error))?;
    parse::check(words, len).map_err(|error| ReadError::Invalid { path: dir.to_owned(), error })
}

pub(super) fn load(path: &Path) -> Result<Snapshot, ReadError> {
    let owned = || path.to_owned();
    let bytes = std::fs::read(path).map_err(|error| ReadError::Io { path: owned(), error })?;
    Snapshot::parse(&bytes).map_err(|error| ReadError::Invalid { path: owned(), error })
}

/// Reads a file of words, and answers its length. It says itself how long it is: the size of the file is not known before it is read.
fn read_words(path: &Path) -> io::Result<(Vec<u64>, u64)> {
    let mut file = File::open(path)?;
    // As much as one request can be.
    let mut words = vec![0u64; (1 << 20) / 8];
    let mut len = 0;
    loop {
        let bytes = words.as_mut_bytes();
        if len == bytes.len() {
            let said = words[header::LENGTH];
            let is_ours = words[header::MAGIC] == MAGIC && said <= MAX_LENGTH;
            // And one word, in which the end is found.
            let most = (said / 8) as usize + 1;
            if !is_ours || words.len() >= most {
                break;
            }
            // What it says is believed as it comes.
            words.resize(most.min(words.len().saturating_mul(4)), 0);
            continue;
        }
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    words.truncate(len.div_ceil(8));
    Ok((words, len as u64))
}
