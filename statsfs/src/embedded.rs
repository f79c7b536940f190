//! The embedded deployment: a process mounts its own tree.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::fs::{Mount, MountError, MountOptions};
use crate::registry::Registry;
use crate::tree::{
    FdGroupsOf, Feed, Identity, Owner, ProcessKey, Tree, TreeError, TreeOptions, Waker,
};

/// A registry's own segments.
struct Own(Registry);

impl Feed for Own {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.segments()
    }

    fn fd_groups(&self) -> FdGroupsOf {
        FdGroupsOf(self.0.0.fd_groups.clone())
    }

    fn wake_by(&self, waker: Waker) {
        self.0.0.wake(waker);
    }
}

/// Why a process could not mount its own tree: printed with `{}`, one line that says what to do.
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
///
/// A process that a signal kills drops nothing. So a daemon should handle SIGINT and SIGTERM, and end by
/// returning from `main`. Of one that is killed all the same, an ordinary user's mount is taken away by a
/// helper process; root's stays, dead, until something is mounted there by this library, or `umount -l`.
#[derive(Debug)]
#[must_use = "the mount goes when this is dropped"]
pub struct Embedded {
    mount: Mount,
    tree: Arc<Tree>,
}

impl Owner {
    /// This process's own user and group.
    pub fn this_process() -> Self {
        // SAFETY: plain system calls without arguments.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Self { uid, gid }
    }

    /// The same with another group, the readers of private directories; `None` if the host's `/etc/group`
    /// has none of that name. A service that knows of more groups is not asked: the C library would load it
    /// into this process for good, with all that it needs.
    pub fn with_readers(self, group: &str) -> Option<Self> {
        let gid = group_id(&std::fs::read("/etc/group").ok()?, group)?;
        Some(Self { gid, ..self })
    }
}

/// The number of a group in the text of `/etc/group` (group(5)): `name:password:number:members`.
fn group_id(text: &[u8], group: &str) -> Option<u32> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.next()? == group.as_bytes();
        let number = std::str::from_utf8(fields.nth(1)?).ok()?;
        if found { number.parse().ok() } else { None }
    })
}

impl Registry {
    /// A tree of this registry, read through its own segments as any other process would, owned by this
    /// process's user and group.
    ///
    /// # Errors
    /// [`TreeError`] if the segments can not be mapped.
    pub fn tree(&self) -> Result<Tree, TreeError> {
        self.tree_of(Owner::this_process())
    }

    /// As [`tree`](Self::tree), with another owner or other options.
    ///
    /// # Errors
    /// [`TreeError`] if the segments can not be mapped.
    pub fn tree_of(&self, options: impl Into<TreeOptions>) -> Result<Tree, TreeError> {
        Tree::new(Own(self.clone()), options)
    }

    /// Joins a tree of many processes as this one, with nothing in between.
    ///
    /// # Errors
    /// As [`Tree::join`].
    pub fn join(&self, tree: &Tree, identity: Identity) -> Result<ProcessKey, TreeError> {
        tree.join(Own(self.clone()), identity)
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
        Self::mount_tree(registry.tree()?, path, options)
    }

    /// Mounts a tree at `path`.
    ///
    /// # Errors
    /// [`EmbeddedError`] says what is missing, and what to do.
    pub fn mount_tree(
        tree: Tree,
        path: &Path,
        options: MountOptions,
    ) -> Result<Self, EmbeddedError> {
        let tree = Arc::new(tree);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text =
            b"root:x:0:\nkvmx:x:1:\nbroken\nkvm\nkvm:x:many:\nkvm:x:104:a,b\n\xff:x:7:\nlast:*:9";
        for (group, id) in [("kvm", Some(104)), ("last", Some(9)), ("kv", None), ("a", None)] {
            assert_eq!(group_id(text, group), id, "{group}");
        }
        assert_eq!(group_id(b"", "kvm"), None);
        let owner = Owner { uid: 5, gid: 6 };
        let root = owner.with_readers("root").unwrap();
        assert_eq!((root.uid, root.gid), (5, 0));
        assert!(owner.with_readers("no such group").is_none());
    }
}
