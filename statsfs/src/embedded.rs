//! The embedded deployment: a process mounts its own tree.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::fs::{Mount, MountError, MountOptions};
use crate::registry::Registry;
use crate::tree::{Feed, Owner, Tree, TreeError};

/// A registry's own segments.
struct Own(Registry);

impl Feed for Own {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.segments()
    }

    fn wait_changed(&self, seen: u64, timeout: Duration) -> u64 {
        self.0.wait_changed(seen, timeout)
    }
}

/// Why a process could not mount its own tree.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// The tree could not be made.
    #[error("cannot read this process's own statistics: {0}")]
    Tree(#[from] TreeError),
    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A process's own tree, mounted by itself. Unmounted when dropped.
#[derive(Debug)]
pub struct Embedded {
    mount: Mount,
    tree: Arc<Tree>,
}

impl Registry {
    /// A tree of this registry, read through its own segments as any other process would.
    ///
    /// # Errors
    /// [`TreeError`] if the segments can not be mapped.
    pub fn tree(&self) -> Result<Tree, TreeError> {
        // SAFETY: plain system calls without arguments.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Tree::new(Own(self.clone()), Owner { uid, gid })
    }
}

impl Embedded {
    /// Mounts a registry's tree at `path`.
    ///
    /// # Errors
    /// [`EmbeddedError`] says what is missing, and what to do.
    pub fn mount(
        registry: &Registry,
        path: &Path,
        options: MountOptions,
    ) -> Result<Self, EmbeddedError> {
        let tree = Arc::new(registry.tree()?);
        let mount = Mount::new(tree.clone(), path, options)?;
        Ok(Self { mount, tree })
    }

    /// The tree that is mounted.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The mount.
    pub fn mounted(&self) -> &Mount {
        &self.mount
    }

    /// Unmounts.
    ///
    /// # Errors
    /// [`MountError`] if the mount is still there afterwards.
    pub fn unmount(self) -> Result<(), MountError> {
        self.mount.unmount()
    }
}
