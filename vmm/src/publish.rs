//! Where the statistics go: a mount of our own, a file at the end, or nowhere.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use statsfs::fs::{MountError, MountOptions};
use statsfs::host::{self, OnChange, PublishOptions, PublishState, Publisher};
use statsfs::tree::Owner;
use statsfs::{Embedded, EmbeddedError, Registry};
use thiserror::Error;

use crate::files::open_to_write;
use crate::message::tell;
use crate::seccomp::thread_start;
use crate::tree::{tree_options, tree_options_of};

/// Why the statistics can not be published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// They can not be mounted.
    #[error("the statistics can not be mounted at {}: {error}", .path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        error: Box<EmbeddedError>,
    },
    /// They can not be published to the host's server.
    #[error("the statistics can not be published: {0}")]
    Host(#[source] host::PublishError),
    /// They can not be unmounted.
    #[error("the statistics can not be unmounted from {}: {error}", .path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        error: MountError,
    },
    /// The file for the final statistics can not be made.
    #[error("the file {} for the final statistics can not be made: {error}", .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The file for the final statistics is needed for something else.
    #[error("the final statistics would overwrite the guest's {what}, {}: give another file with --stats-out", .path.display())]
    Overwrites {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The final statistics can not be written.
    #[error("the final statistics can not be written to {}: {error}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Where the statistics of a run go while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// To a mount of our own.
    Mount(PathBuf),
    /// To the host's server, whenever there is one: at this socket, or where [`PublishOptions`] says.
    Host(Option<PathBuf>),
    /// Nowhere.
    Nowhere,
}

/// Where the statistics go, as long as this is there.
#[derive(Debug)]
pub enum Published {
    /// To a mount of our own.
    Mounted(Box<Mounted>),
    /// To the host's server.
    Host(Publisher),
    /// Nowhere.
    Nowhere,
}

/// How long the end waits for a server that has not answered yet.
const PATIENCE: Duration = Duration::from_secs(1);

impl Published {
    /// Publishes the registry's tree. Nothing waits for the host's server, and that there is none is told,
    /// and no error.
    ///
    /// # Errors
    /// [`PublishError`]: no mount, or no thread that publishes.
    pub fn new(registry: &Registry, publish: &Publish, public: bool) -> Result<Self, PublishError> {
        Self::with(registry, publish, public, OnChange::new(tell_state))
    }

    /// As [`new`](Self::new), without telling.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn quietly(
        registry: &Registry,
        publish: &Publish,
        public: bool,
    ) -> Result<Self, PublishError> {
        Self::with(registry, publish, public, OnChange::default())
    }

    fn with(
        registry: &Registry,
        publish: &Publish,
        public: bool,
        on_change: OnChange,
    ) -> Result<Self, PublishError> {
        match publish {
            Publish::Mount(path) => {
                Mounted::new(registry, path).map(|mounted| Self::Mounted(Box::new(mounted)))
            }
            Publish::Host(socket) => {
                let (socket, thread_start) = (socket.clone(), thread_start());
                let options = PublishOptions { socket, public, thread_start, on_change };
                registry.publish(options).map(Self::Host).map_err(PublishError::Host)
            }
            Publish::Nowhere => Ok(Self::Nowhere),
        }
    }

    /// The mount of our own.
    pub fn mounted(&self) -> Option<&Mounted> {
        match self {
            Self::Mounted(mounted) => Some(mounted),
            Self::Host(_) | Self::Nowhere => None,
        }
    }

    /// Unmounts, or says goodbye to the host's server: what was counted stays in its totals.
    ///
    /// # Errors
    /// [`PublishError::Unmount`].
    pub fn end(self) -> Result<(), PublishError> {
        match self {
            Self::Mounted(mounted) => mounted.unmount(),
            Self::Host(publisher) => {
                // A guest that ends at once is counted as well, or it is said that it is not.
                publisher.wait_tried(PATIENCE);
                Ok(())
            }
            Self::Nowhere => Ok(()),
        }
    }
}

/// Says what has become of publishing to the host's server: once that there is none, since it is tried again
/// all the time, and whatever is not as usual.
fn tell_state(state: &PublishState) {
    static SAID: Once = Once::new();
    match state {
        PublishState::Unreachable(reason) => SAID.call_once(|| {
            tell(format_args!(
                "the statistics are not published: {reason}; see `statsfs serve`, or say --mount DIR to see \
                them, or --no-publish"
            ));
        }),
        PublishState::Refused { reason, .. } => {
            tell(format_args!(
                "the statistics are not published, the server refuses them: {reason}"
            ));
        }
        PublishState::Published { .. } => SAID.call_once(|| ()),
        PublishState::Trying => {}
    }
}

/// As much text as the bulk files have of the largest demo, several times.
const MAX_OPEN_BYTES: usize = 512 << 20;

fn mount_options() -> MountOptions {
    MountOptions::new().thread_start(thread_start()).max_open_bytes(MAX_OPEN_BYTES)
}

/// A registry's tree, mounted. Dropping it unmounts it.
#[derive(Debug)]
pub struct Mounted(Embedded);

impl Mounted {
    /// Mounts the registry's tree at `path`.
    ///
    /// # Errors
    /// [`PublishError::Mount`].
    pub fn new(registry: &Registry, path: &Path) -> Result<Self, PublishError> {
        let tree = registry.tree_of(tree_options()).map_err(EmbeddedError::from);
        tree.and_then(|tree| Embedded::mount_tree(tree, path, mount_options())).map(Self).map_err(
            |error| PublishError::Mount { path: path.to_path_buf(), error: Box::new(error) },
        )
    }

    /// Where the tree is mounted.
    pub fn path(&self) -> &Path {
        self.0.mounted().path()
    }

    /// Unmounts the tree.
    ///
    /// # Errors
    /// [`PublishError::Unmount`].
    pub fn unmount(self) -> Result<(), PublishError> {
        let path = self.path().to_path_buf();
        self.0.unmount().map_err(|error| PublishError::Unmount { path, error })
    }
}

/// The file that the final statistics go to. If it is dropped without having been written, the file is
/// as it was before: gone, if it was made for this.
#[derive(Debug)]
pub struct StatsOut {
    path: PathBuf,
    file: File,
    /// If it is a regular file: the file itself, where the path is a link to it, and its permissions.
    regular: Option<(PathBuf, Permissions)>,
    unwritten: bool,
    made: bool,
}

impl StatsOut {
    /// Makes or opens the file: early, so that a bad path is known before the guest has run.
    ///
    /// # Errors
    /// [`PublishError::Create`].
    pub fn create(path: &Path) -> Result<Self, PublishError> {
        let path = path.to_path_buf();
        let new = File::options().write(true).create_new(true).open(&path);
        let opened = match new {
            Ok(file) => Ok((file, true)),
            // Not truncated before there is something to be written.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                open_to_write(&path).map(|file| (file, false))
            }
            Err(error) => Err(error),
        };
        let create = |(file, made)| {
            let mut out = Self { path: path.clone(), file, regular: None, unwritten: true, made };
            let metadata = out.file.metadata()?;
            if metadata.is_file() {
                out.regular = Some((std::fs::canonicalize(&path)?, metadata.permissions()));
            }
            Ok(out)
        };
        opened.and_then(create).map_err(|error| PublishError::Create { path: path.clone(), error })
    }

    /// Checks that it is none of the files that the guest is made of, which come with what they are.
    ///
    /// # Errors
    /// [`PublishError::Overwrites`].
    pub fn check_overwrites<'a>(
        &self,
        files: impl IntoIterator<Item = (&'static str, &'a Path)>,
    ) -> Result<(), PublishError> {
        // What is no file is not overwritten.
        let Ok(own) = self.file.metadata() else { return Ok(()) };
        if !own.is_file() && !own.file_type().is_block_device() {
            return Ok(());
        }
        for (what, path) in files {
            let is_own = |file: Metadata| (file.dev(), file.ino()) == (own.dev(), own.ino());
            // By whatever name: links are followed.
            if std::fs::metadata(path).is_ok_and(is_own) {
                return Err(PublishError::Overwrites { what, path: path.to_path_buf() });
            }
        }
        Ok(())
    }

    /// Puts `text` into the file, whole or not at all where that can be had.
    fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some((path, permissions)) = &self.regular {
            let mut beside = path.clone().into_os_string();
            beside.push(format!(".{}", std::process::id()));
            if let Ok(mut file) = File::options().write(true).create_new(true).open(&beside) {
                let written = file
                    .write_all(text)
                    .and_then(|()| file.set_permissions(permissions.clone()))
                    .and_then(|()| std::fs::rename(&beside, path));
                if written.is_err() {
                    let _ = std::fs::remove_file(&beside);
                }
                self.unwritten = written.is_err();
                return written;
            }
            // Nothing can be made in its directory.
            self.file.set_len(0)?;
        }
        self.unwritten = false;
        self.file.write_all(text)
    }

    /// Writes the registry's whole tree in `flat` form, as its mount shows it if it has one: without
    /// what was cleared there.
    ///
    /// # Errors
    /// [`PublishError::Write`].
    pub fn write(
        mut self,
        registry: &Registry,
        mounted: Option<&Mounted>,
    ) -> Result<(), PublishError> {
        let mut text = Vec::new();
        let rendered = match mounted {
            Some(mounted) => {
                mounted.0.tree().flat(&mut text);
                Ok(())
            }
            None => {
                // Whoever writes the file sees everything, whosever it is.
                let tree = registry.tree_of(tree_options_of(Owner::this_process()));
                tree.map(|tree| tree.flat(&mut text)).map_err(io::Error::other)
            }
        };
        rendered
            .and_then(|()| self.replace(&text))
            .map_err(|error| PublishError::Write { path: self.path.clone(), error })
    }
}

impl Drop for StatsOut {
    fn drop(&mut self) {
        if self.made && self.unwritten {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
