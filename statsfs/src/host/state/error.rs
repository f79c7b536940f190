//! Why a state is not accepted, and why it could not be read or kept.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::segment::SchemaError;

/// What is wrong with a state.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// It was written by another version of the server.
    #[error("it has version {0} of the format; this server knows version 1")]
    Version(u32),
    /// Neither half is whole.
    #[error("it is damaged: neither half of it is whole")]
    Damaged,
    /// It ends before its time.
    #[error("it is shorter than it says")]
    Truncated,
    /// Something follows its end.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// It has too many of something.
    #[error("it has more {0} than {1}")]
    TooLarge(&'static str, usize),
    /// A number is not in its shortest form, or too large.
    #[error("a number in the table of {0} is too large, or not written as it must be")]
    Encoding(&'static str),
    /// A table is not in its order, or has something twice.
    #[error("the table of {0} is not in ascending order")]
    Order(&'static str),
    /// Something is there twice.
    #[error("the table of {table} has twice: {what}")]
    Twice {
        /// Which table.
        table: &'static str,
        /// What.
        what: String,
    },
    /// An id that can not be 0 is.
    #[error("the table of {0} has an id that is zero")]
    Zero(&'static str),
    /// A group's description is not acceptable.
    #[error("group {group} is not acceptable: {error}")]
    Group {
        /// Its number.
        group: usize,
        /// What is wrong.
        #[source]
        error: SchemaError,
    },
    /// A group's description is not written as it must be.
    #[error("the record of group {0} is not as the library writes it")]
    Record(usize),
    /// There is no such group.
    #[error("the table of {table} names group {group}, which there is not")]
    NoGroup {
        /// Which table.
        table: &'static str,
        /// What it says.
        group: usize,
    },
    /// There is no such value.
    #[error("the table of identities names value {value} of group {group}, which there is not")]
    NoValue {
        /// The group.
        group: usize,
        /// What it says.
        value: usize,
    },
    /// There is no such identity.
    #[error("a directory has admitted identity {0}, which there is not")]
    NoIdentity(usize),
    /// There are not as many words as the group has.
    #[error("the table of {table} has {words} words of group {group}, which has {of_group}")]
    Words {
        /// Which table.
        table: &'static str,
        /// The group.
        group: usize,
        /// How many there are.
        words: usize,
        /// How many there must be.
        of_group: usize,
    },
    /// A name can not be a directory's.
    #[error("{0:?} is not the name of a directory at the top level")]
    Name(String),
    /// A source can not have this parent.
    #[error("the table of parents says that source {source_id} is below source {parent}")]
    Parent {
        /// The source.
        source_id: u64,
        /// What it says.
        parent: u64,
    },
    /// A process can not be as it says.
    #[error("process {0} has an impossible id or number of segments")]
    Process(u32),
    /// A directory's number, or a block of them, was not granted, or to another.
    #[error("{0} is not a number, or block of numbers, that can have been granted")]
    Number(u64),
}

/// Why a directory could not be used to keep a state in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It could not be created.
    #[error("{at} can not be created: {source}; create it with `install -d -m 700`, or choose another place",
        at = .path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be opened.
    #[error("{at} can not be opened: {source}; it must be a directory, not a symbolic link",
        at = .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is another user's.
    #[error("{at} belongs to user {uid}: `chown` it, or choose another place", at = .path.display())]
    Foreign {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Others may do with it what they like.
    #[error("{at} has mode {mode:04o}, so others could change it: `chmod go-rwx {at}`",
        at = .path.display())]
    Mode {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file in it is none.
    #[error("{at} is not a regular file: remove it", at = .path.display())]
    NotFile {
        /// The file.
        path: PathBuf,
    },
    /// Another server uses it.
    #[error("{at} is in use by another server: end that, or choose another place",
        at = .path.display())]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The file in it could not be opened, locked or read.
    #[error("{at} can not be read: {source}", at = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no telling which boot this is.
    #[error("cannot read /proc/sys/kernel/random/boot_id: {0}")]
    Boot(#[source] io::Error),
}

/// Why a state could not be kept. What was kept before is still there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommitError {
    /// No reader would accept it.
    #[error("the state can not be kept: {0}")]
    State(#[from] StateError),
    /// It could not be written.
    #[error("cannot write {at}: {source}", at = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
