//! Where the statistics go: a mount of our own, a file at the end, or nowhere.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use statsfs::Registry;
use thiserror::Error;

/// Why the statistics can not be published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// They can not be mounted.
    #[error("the statistics can not be mounted at {}: {error}", .path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        error: String,
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

/// The tree, mounted. Dropping it unmounts it.
pub struct Mounted;

impl Mounted {
    /// Mounts the registry's tree at `path`.
    ///
    /// # Errors
    /// [`PublishError::Mount`].
    pub fn new(_registry: &Registry, path: &Path) -> Result<Self, PublishError> {
        Err(PublishError::Mount { path: path.to_path_buf(), error: "no reader yet".into() })
    }

    /// Where the tree is mounted.
    pub fn path(&self) -> &Path {
        Path::new("/")
    }

    /// Unmounts the tree.
    ///
    /// # Errors
    /// [`PublishError::Mount`].
    pub fn unmount(self) -> Result<(), PublishError> {
        Ok(())
    }
}

/// The file that the final statistics go to.
#[derive(Debug)]
pub struct StatsOut {
    path: PathBuf,
    file: File,
}

impl StatsOut {
    /// Makes the file: early, so that a bad path is known before the guest has run.
    ///
    /// # Errors
    /// [`PublishError::Create`].
    pub fn create(path: &Path) -> Result<Self, PublishError> {
        let path = path.to_path_buf();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(PublishError::Create { path, error }),
        }
    }

    /// Writes the registry's whole tree in `flat` form.
    ///
    /// # Errors
    /// [`PublishError::Write`].
    pub fn write(self, registry: &Registry) -> Result<(), PublishError> {
        let Self { path, file } = self;
        let mut out = BufWriter::new(file);
        write_flat(registry, &mut out)
            .and_then(|()| out.flush())
            .map_err(|error| PublishError::Write { path, error })
    }
}

/// Writes the registry's whole tree in `flat` form: lines of a path and a value.
///
/// # Errors
/// What writing says.
pub fn write_flat(_registry: &Registry, _out: &mut impl Write) -> io::Result<()> {
    Ok(())
}
