//! What can go wrong when mounting and unmounting.

use std::io;
use std::path::PathBuf;

use crate::limits::{told, way_out};

/// Why a file system could not be mounted or unmounted: one line that says what failed, on what, and
/// what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// There is no `/dev/fuse`, or no driver behind it.
    #[error("/dev/fuse is missing: load the kernel module with `modprobe fuse`")]
    NoDevice,
    /// What is called `/dev/fuse` is something else.
    #[error(
        "/dev/fuse is not the FUSE device: remove it and create it with `mknod /dev/fuse c 10 229`"
    )]
    NotTheDevice,
    /// `/dev/fuse` may be opened by root only; `fusermount3` opens it as the user, too.
    #[error(
        "/dev/fuse may not be opened ({source}): `chmod 666 /dev/fuse`, as udev does, or run as root"
    )]
    DeviceClosed {
        /// What opening it gave.
        source: io::Error,
    },
    /// `/dev/fuse` may not be opened, not even by root: a container's device rules.
    #[error("/dev/fuse may not be opened ({source}): allow this container the device `c 10:229`")]
    DeviceForbidden {
        /// What opening it gave.
        source: io::Error,
    },
    /// `/dev/fuse` can not be opened for another reason.
    #[error("/dev/fuse can not be opened: {source}: {}",
        way_out(.source).unwrap_or("see what the kernel says (`dmesg | grep -i fuse`)"))]
    Device {
        /// What opening it gave.
        source: io::Error,
    },
    /// root without the right to mount.
    #[error("not allowed to mount on {at}: mounting needs CAP_SYS_ADMIN", at = .path.display())]
    Forbidden {
        /// The mount point.
        path: PathBuf,
    },
    /// An ordinary user, and no `fusermount3`.
    #[error("fusermount3 is missing: install the package fuse3 (`apt-get install fuse3`)")]
    NoFusermount,
    /// `fusermount3` refused.
    #[error("fusermount3 could not mount on {at}: {message}", at = .path.display())]
    Fusermount {
        /// The mount point.
        path: PathBuf,
        /// What it said, in one line.
        message: String,
    },
    /// The process that is to unmount in the end, as an ordinary user, could not be started.
    #[error("nobody would be there to unmount {at}: /bin/sh can not be started: {}",
        told(.source), at = .path.display())]
    Keeper {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory that the mount point should be created in is missing.
    #[error("{at} can not be created, its parent is missing: `mkdir -p {parent}`",
        at = .path.display(), parent = .path.parent().unwrap_or(.path).display())]
    NoParent {
        /// The mount point.
        path: PathBuf,
    },
    /// The directory that the mount point should be created in takes no new ones, such as one of /proc.
    #[error("{at} can not be created, {parent} takes no new directories: choose another place",
        at = .path.display(), parent = .path.parent().unwrap_or(.path).display())]
    NoPlace {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point is below a dead FUSE mount.
    #[error("{at} is below {dead}, a dead mount of {kind} `{what}`: take that away with `umount -l {dead}`, or \
        choose another place", at = .path.display(), dead = .dead.display())]
    BelowDead {
        /// The mount point.
        path: PathBuf,
        /// Where the dead mount is.
        dead: PathBuf,
        /// Type of the file system there.
        kind: String,
        /// Its source.
        what: String,
    },
    /// The mount point is a symbolic link to a directory that is missing.
    #[error("{at} is a symbolic link to {to}, which is missing: create that directory, or remove the \
        link", at = .path.display(), to = .target.display())]
    Dangling {
        /// The mount point.
        path: PathBuf,
        /// Where the link leads.
        target: PathBuf,
    },
    /// The mount point could not be created.
    #[error("{at} can not be created: {source}; create it, or choose another place", at = .path.display())]
    Create {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount point, or what it is to be in, is not a directory.
    #[error("{at} is not a directory: choose another place", at = .path.display())]
    NotDirectory {
        /// What is none.
        path: PathBuf,
    },
    /// The mount point has entries, which the mount would hide.
    #[error("{at} is not empty: choose another place, or empty it", at = .path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{at} is in use: {kind} `{what}` is mounted there; choose another place",
        at = .path.display())]
    Foreign {
        /// The mount point.
        path: PathBuf,
        /// Type of the file system there.
        kind: String,
        /// Its source.
        what: String,
    },
    /// A dead FUSE mount of another kind is there: not ours to take away.
    #[error("{at} is a dead mount of {kind} `{what}`: take it away with `umount -l {at}`",
        at = .path.display())]
    ForeignDead {
        /// The mount point.
        path: PathBuf,
        /// Type of the file system there.
        kind: String,
        /// Its source.
        what: String,
    },
    /// A live statsfs is mounted there.
    #[error("{at} is in use: a live statsfs ({what}) is mounted there; choose another place, or end \
        it with `umount {at}`", at = .path.display())]
    InUse {
        /// The mount point.
        path: PathBuf,
        /// Its source: `statsfs-` and the process that serves it.
        what: String,
    },
    /// A statsfs that does not answer is mounted there.
    #[error("{at} is in use: a statsfs ({what}) is mounted there and does not answer; if its process \
        hangs, `umount -l {at}`", at = .path.display())]
    Silent {
        /// The mount point.
        path: PathBuf,
        /// Its source: `statsfs-` and the process that serves it.
        what: String,
    },
    /// A statsfs of another user, which we may not look at, is mounted there.
    #[error("{at} is in use: the private statsfs ({what}) of another user is mounted there; choose \
        another place, or as root `umount -l {at}`", at = .path.display())]
    OtherUser {
        /// The mount point.
        path: PathBuf,
        /// Its source: `statsfs-` and the process that serves it.
        what: String,
    },
    /// Another process is mounting there at this moment.
    #[error("another process is just mounting on {at}: choose another place", at = .path.display())]
    Racing {
        /// The mount point.
        path: PathBuf,
    },
    /// A dead statsfs could not be taken away.
    #[error("{at} is a dead statsfs ({what}) that can not be taken away ({message}): as root \
        `umount -l {at}`", at = .path.display())]
    Stale {
        /// The mount point.
        path: PathBuf,
        /// Its source.
        what: String,
        /// Why not.
        message: String,
    },
    /// The mount point could not be examined.
    #[error("{at} can not be examined: {source}: {}",
        way_out(.source).unwrap_or("choose another place"), at = .path.display())]
    Examine {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `/proc/self/mountinfo` or a neighbour could not be read.
    #[error("/proc can not be read ({source}): {}",
        way_out(.source).unwrap_or("mount it with `mount -t proc proc /proc`"))]
    Proc {
        /// Why.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("mounting on {at} failed: {}", told(.source), at = .path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel and the server did not come to terms, or a thread could not be started.
    #[error("{at} was mounted but can not be served: {}", told(.source), at = .path.display())]
    Serve {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount that was kept can not be carried on.
    #[error("the mount on {at} that was kept can not be carried on: {source}", at = .path.display())]
    CarryOn {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is mounted over our mount.
    #[error("{at} is covered by a mount of {kind} `{what}`: `umount {at}`, then unmount again",
        at = .path.display())]
    Covered {
        /// The mount point.
        path: PathBuf,
        /// Type of the file system on top.
        kind: String,
        /// Its source.
        what: String,
    },
    /// Unmounting failed.
    #[error("{at} can not be unmounted ({message}): as root `umount -l {at}`", at = .path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        message: String,
    },
}
