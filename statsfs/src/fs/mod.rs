//! The FUSE file system: inodes, rendering on demand, permissions, mount and unmount.
//!
//! The file system knows nothing of statistics: it serves whatever implements [`Nodes`], whose inode
//! numbers are computed and never reused, and whose contents are generated when they are read.
//!
//! From the kernel to the nodes: `transport` (the only module that knows the FUSE crate) calls
//! `server` (what each operation means, which errors it gives), which asks the [`Nodes`] and keeps
//! only what is open (`files`) and tells of it (`events`). What may take long is rendered by `workers`, so
//! that a handler never waits.
//! [`Mount`] puts all that on a directory, and takes it away again. A mount whose process is killed can be
//! carried on by another, if somebody `kept` its devices.
//!
//! # What a user of the tree sees
//! * A file's size is 0, as in proc, and its content is made when it is read from its beginning. A
//!   reader may keep a file open and `pread` it at offset 0 again and again; other offsets go on in
//!   what the last read at 0 made.
//! * Reading an open file whose source has gone gives `ENODEV`; its path gives `ENOENT`.
//! * A write is one piece of at most 32 bytes at the file's beginning, or with `O_APPEND`; else
//!   `EINVAL`. Truncating to 0, which `echo 0 > file` does first, succeeds and changes nothing;
//!   truncating to another size is `EINVAL`.
//! * Nothing can be created, removed, renamed, linked, or given other attributes: `EPERM`.

mod abort;
mod device;
mod error;
mod events;
mod files;
mod fusermount;
mod kept;
mod mount;
mod mountpoint;
mod options;
mod server;
mod transport;
mod workers;

pub use error::MountError;
pub use events::{Answered, Exceeded, Limit, MountEvents, Operation};
pub use kept::KeptMount;
pub use mount::Mount;
pub use options::MountOptions;

/// An inode number: computed by the [`Nodes`], never reused, 1 for the root.
pub type Ino = u64;

/// The root's inode number.
pub const ROOT: Ino = 1;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file whose size is unknown until it is rendered: shown with size 0, as in proc.
    Text,
    /// A symbolic link.
    Symlink,
}

/// What `stat` shows of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count: for a directory 2 and its subdirectories, or 1 where they are not counted.
    pub nlink: u32,
    /// Creation time, nanoseconds since 1970; shown as all three times.
    pub created_ns: u64,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where to go on after this entry: grows along the listing, means the same entry in every
    /// listing, is never reused. At least 3 (1 and 2 are `.` and `..`).
    pub cookie: u64,
    /// Inode number.
    pub ino: Ino,
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: &'a str,
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Process id, 0 if it has none in our pid namespace.
    pub pid: u32,
}

/// What rendering a file takes, so that nothing that is quick waits behind what is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Less than it takes to have another thread do it: it holds up other requests.
    Little,
    /// A worker renders it, and the reader alone waits.
    Some,
    /// Perhaps seconds: other workers render such files.
    Much,
}

/// An error number for the caller, such as `libc::ENOENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The tree that a file system serves. Called from several threads; never blocks for long.
pub trait Nodes: Send + Sync + 'static {
    /// The entry `name` of a directory.
    ///
    /// # Errors
    /// `ENOENT` if there is none, `ESTALE` if the directory is gone, `ENOTDIR`.
    fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Errno>;

    /// A node's attributes.
    ///
    /// # Errors
    /// `ESTALE` if it is gone.
    fn attr(&self, ino: Ino) -> Result<Attr, Errno>;

    /// Calls `push` for the entries of a directory whose cookies are greater than `after`, in order of
    /// cookies, until it returns false. `.` and `..` are not among them.
    ///
    /// # Errors
    /// `ESTALE` if it is gone, `ENOTDIR`.
    fn list(
        &self,
        dir: Ino,
        after: u64,
        push: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno>;

    /// Whether the file may be opened like this (permission bits are the kernel's to check).
    ///
    /// # Errors
    /// `EACCES` for writing to what can not be cleared, for root too; `ESTALE` if it is gone.
    fn open(&self, ino: Ino, caller: Caller, write: bool) -> Result<(), Errno>;

    /// Appends a file's content, as of now, to `out`. There is room for `most` bytes: one that is long stops not
    /// far beyond, and so never takes all memory.
    ///
    /// # Errors
    /// `ENODEV` if its source is gone, `EFBIG` if it is longer.
    fn render(&self, ino: Ino, caller: Caller, most: usize, out: &mut Vec<u8>)
    -> Result<(), Errno>;

    /// Takes what was written to a file at its beginning, in one piece.
    ///
    /// # Errors
    /// `EINVAL` for all but a zero, `ENODEV` if its source is gone.
    fn write(&self, ino: Ino, caller: Caller, data: &[u8]) -> Result<(), Errno>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `ESTALE` if it is gone, `EINVAL` if it is none.
    fn readlink(&self, ino: Ino) -> Result<String, Errno>;

    /// Waits, at most for `timeout`, until nodes have gone, and appends their inode numbers to `gone`, so that
    /// the kernel asks for them before it uses what it remembers. Of what is below a directory that has gone
    /// nothing need be said.
    fn wait_gone(&self, timeout: std::time::Duration, gone: &mut Vec<Ino>);

    /// Makes a running [`wait_gone`](Self::wait_gone) return early, if it can: a mount is ending. Without
    /// it the end of a mount takes up to the time that `wait_gone` was told to wait (250 ms).
    fn interrupt_wait(&self) {}

    /// What rendering this file takes now. Asked before each rendering, so it has to be quick.
    fn effort(&self, _ino: Ino) -> Effort {
        Effort::Little
    }

    /// Where else than at its beginning a read makes this file's content anew, of which this is what was made
    /// last: those who read what is there again and again do not read the beginning each time.
    fn renewed_at(&self, _ino: Ino, _content: &[u8]) -> Option<u64> {
        None
    }

    /// Whether what this file shows depends on who opened it, and not on it alone: then nobody can carry on
    /// with it who does not know who that was.
    fn depends_on_opener(&self, _ino: Ino) -> bool {
        false
    }

    /// The directory that a directory is in, shown as the inode number of `..` in listings.
    fn parent(&self, _dir: Ino) -> Ino {
        ROOT
    }
}
