//! What a mount tells whoever counts it. It knows nothing of how that is done, or whether.

use std::fmt;
use std::time::Duration;

use super::{Caller, Errno};
use crate::LabelSet;

/// What a request is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, LabelSet)]
#[labels(key = "operation")]
pub enum Operation {
    /// look a name up
    Lookup,
    /// show attributes
    Getattr,
    /// show where a link leads
    Readlink,
    /// open a file
    Open,
    /// read a value's file
    Read,
    /// read a bulk file or a total over many sources
    ReadBulk,
    /// write to a file
    Write,
    /// open a directory
    Opendir,
    /// list a directory, or a part of it
    Readdir,
    /// do something else
    Other,
}

/// What a mount has only so much of, for all users together and for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, LabelSet)]
#[labels(key = "limit")]
pub enum Limit {
    /// too many files are open
    OpenFiles,
    /// their user has too many files open
    UserOpenFiles,
    /// open files hold too many bytes
    OpenBytes,
    /// their user's open files hold too many bytes
    UserOpenBytes,
    /// too many bulk files and totals over many sources are being read at once
    BulkReads,
    /// their user reads too many bulk files and totals over many sources at once
    UserBulkReads,
}

impl Limit {
    /// What whoever meets it is told.
    pub fn errno(self) -> Errno {
        Errno(match self {
            Self::OpenFiles => libc::ENFILE,
            Self::UserOpenFiles => libc::EMFILE,
            Self::OpenBytes | Self::UserOpenBytes => libc::ENOMEM,
            Self::BulkReads | Self::UserBulkReads => libc::EAGAIN,
        })
    }

    fn is_of_user(self) -> bool {
        matches!(self, Self::UserOpenFiles | Self::UserOpenBytes | Self::UserBulkReads)
    }

    fn what(self) -> &'static str {
        match self {
            Self::OpenFiles | Self::UserOpenFiles => "open files",
            Self::OpenBytes | Self::UserOpenBytes => "bytes in open files",
            Self::BulkReads | Self::UserBulkReads => {
                "bulk files and totals over many sources being read at once"
            }
        }
    }
}

/// A limit that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Who asked for more.
    pub caller: Caller,
    /// Which limit.
    pub limit: Limit,
    /// How much it allows.
    pub most: usize,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { caller, limit, most } = self;
        if limit.is_of_user() {
            write!(f, "user {} has reached the limit of {most} {}", caller.uid, limit.what())
        } else {
            write!(f, "all users together have reached the limit of {most} {}", limit.what())
        }
    }
}

/// A request that is about to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// What it was to do.
    pub operation: Operation,
    /// Time since it was taken from the kernel, waiting for a worker included.
    pub took: Duration,
    /// Bytes that its reader gets.
    pub bytes: usize,
    /// Why it failed, if it did.
    pub error: Option<Errno>,
}

/// What happens in a mount. Every method is called by the thread on which it happens, of which there are
/// several, and holds it up: so it is to be short.
pub trait MountEvents: fmt::Debug + Send + Sync + 'static {
    /// A request is about to be answered: whoever has the answer finds it counted.
    fn answered(&self, _answered: Answered) {}

    /// The kernel has forgotten what it had looked up by so many requests: what it still knows of are those
    /// that succeeded, less all of these.
    fn forgotten(&self, _lookups: u64) {}

    /// A request is refused, since there is a limit.
    fn refused(&self, _exceeded: Exceeded) {}
}
