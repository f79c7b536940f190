//! The socket that processes publish to.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::options::ServeError;
use crate::host::protocol::{self, Listener};

/// A listening socket, whose name goes with it.
#[derive(Debug)]
pub(super) struct Listening {
    listener: Listener,
    name: Name,
}

/// A socket's name, which goes with this.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    /// Device and inode number: what has this name later may be another's.
    identity: (u64, u64),
}

/// What is where a socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    /// A socket of whatever type that nobody listens at any more.
    LeftOver,
    /// Somebody listens, or is too busy to answer.
    Served,
    /// No socket.
    Other,
}

impl There {
    pub(super) fn at(path: &Path) -> Self {
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => Self::Other,
            Ok(_) => match protocol::Socket::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Self::LeftOver,
                _ => Self::Served,
            },
            Err(_) => Self::Nothing,
        }
    }
}

impl Listening {
    /// Listens at `path`, where a socket that nobody listens at is replaced.
    ///
    /// # Errors
    /// [`ServeError`]: somebody listens there, it is no socket, or what the kernel says.
    pub(super) fn at(path: &Path, group: Option<u32>) -> Result<Self, ServeError> {
        match There::at(path) {
            There::Other => return Err(ServeError::NotASocket(path.to_path_buf())),
            There::Served => return Err(ServeError::Served(path.to_path_buf())),
            There::LeftOver | There::Nothing => {}
        }
        Self::replace(path, group)
            .map_err(|source| ServeError::Listen { path: path.to_path_buf(), source })
    }

    /// Nobody meets a socket that is not open to those who may use it yet: it gets its name last.
    fn replace(path: &Path, group: Option<u32>) -> io::Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = Listener::bind(&beside)?;
        let named = || {
            let mode = if group.is_some() { 0o660 } else { 0o600 };
            std::os::unix::fs::chown(&beside, None, group)?;
            std::fs::set_permissions(&beside, Permissions::from_mode(mode))?;
            let identity = identity(&beside)?;
            std::fs::rename(&beside, path)?;
            Ok(identity)
        };
        let identity = named().inspect_err(|_: &io::Error| {
            let _ = std::fs::remove_file(&beside);
        })?;
        Ok(Self { listener, name: Name { path: path.to_path_buf(), identity } })
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Removes the name: nobody else connects.
    pub(super) fn forget_name(&self) {
        self.name.forget();
    }
}

impl Name {
    /// That of a socket that has just been bound.
    ///
    /// # Errors
    /// What the kernel says of it.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), identity: identity(path)? })
    }

    /// Removes it, if it still is this one's.
    fn forget(&self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.forget();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}
