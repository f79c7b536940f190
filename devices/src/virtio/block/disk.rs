//! The file behind a block device.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys;
use crate::virtio::{Memory, Pieces};

/// Bytes of a sector, the unit of a disk's size and of all requests (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Why a file can not be a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It can not be opened.
    #[error("the disk {} can not be opened: {error}{}", .path.display(), hint(.error, *.read_only))]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether it was only to be read.
        read_only: bool,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is of a kind that has no size.
    #[error("the disk {} is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// Its size is not that of a disk.
    #[error(
        "the disk {} has {size} bytes, which is not a disk's size: make it a multiple of 512 with `truncate -s %512 FILE`, or `truncate -s 1G FILE` if it is to be a new one",
        .path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Another process uses it.
    #[error(
        "the disk {} is in use: only one guest can write to a disk, and only if no other reads it",
        .0.display()
    )]
    InUse(PathBuf),
    /// It can not be locked.
    #[error("the disk {} can not be locked: {error}", .path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// What to do about a file that can not be opened.
fn hint(error: &io::Error, read_only: bool) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if !read_only => {
            " for writing: add ,ro to only read it"
        }
        ErrorKind::NotFound => ": check the path, or make a new disk with `truncate -s 1G FILE`",
        _ => "",
    }
}

/// Which way bytes go between a disk and the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into the memory.
    Read,
    /// Onto the disk.
    Write,
}

/// A file whose bytes are those of a disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    /// Whether parts of it can be given back.
    can_discard: bool,
}

impl Disk {
    /// Opens a file, and locks it (flock(2)) as long as this lives: for this alone if it is to be written,
    /// else together with others that only read.
    ///
    /// # Errors
    /// [`DiskError`] says why it can not be a disk.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let cannot_open = |error| DiskError::Open { path: path.to_path_buf(), read_only, error };
        let kind = std::fs::metadata(path).map_err(cannot_open)?.file_type();
        // Opening a pipe would wait for its other end.
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path.to_path_buf()));
        }
        let mut file =
            OpenOptions::new().read(true).write(!read_only).open(path).map_err(cannot_open)?;
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => DiskError::InUse(path.to_path_buf()),
            TryLockError::Error(error) => DiskError::Lock { path: path.to_path_buf(), error },
        })?;
        // A block device's metadata has no size.
        let size = file.seek(SeekFrom::End(0)).map_err(cannot_open)?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(DiskError::Size { path: path.to_path_buf(), size });
        }
        // Nothing is there, and nothing is made there.
        let can_discard =
            !read_only && kind.is_file() && sys::punch_hole(&file, size, SECTOR).is_ok();
        Ok(Self { file, sectors: size / SECTOR, read_only, can_discard })
    }

    /// Its size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it can only be read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether parts of it can be given back to the file system.
    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// Where `sectors` from `sector` on begin, if all of them are on the disk.
    pub(super) fn offset(&self, sector: u64, sectors: u64) -> Option<u64> {
        let end = sector.checked_add(sectors)?;
        (end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Reads or writes at `offset` of the disk all of `len` bytes from `from` on of `pieces`.
    ///
    /// # Errors
    /// Where on the disk it failed, and what the host says.
    pub(super) fn transfer(
        &self,
        direction: Direction,
        memory: &Memory,
        pieces: &Pieces,
        from: usize,
        len: usize,
        offset: u64,
    ) -> Result<(), (u64, io::Error)> {
        let mut done = 0;
        // Once, unless it is more than one system call takes, or the file or its file system is at its end.
        while done < len {
            let slices = pieces.slices(memory, from + done, len - done);
            let at = offset + done as u64;
            let transferred = match direction {
                Direction::Read => sys::read_at(&self.file, slices, at),
                Direction::Write => sys::write_at(&self.file, slices, at),
            };
            done += match transferred {
                Ok(0) => return Err((at, ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(error) => return Err((at, error)),
            };
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives back the storage of a range, which then reads as zeroes.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        sys::punch_hole(&self.file, offset, len)
    }

    /// Sets a range to zero, and keeps its storage.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        match sys::zero_range(&self.file, offset, len) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let mut done = 0;
                while done < len {
                    let chunk = (len - done).min(ZEROES.len() as u64);
                    self.file.write_all_at(&ZEROES[..chunk as usize], offset + done)?;
                    done += chunk;
                }
                Ok(())
            }
            zeroed => zeroed,
        }
    }
}
