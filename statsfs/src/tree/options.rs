//! What a tree is made with, and what it says of itself.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::events::TreeEvents;
use super::names::MetricName;
use super::processes::{Identity, ProcessKey};
use crate::segment::{Limits, SegmentError};

/// Why a tree could not take a process in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The segments could not be had.
    #[error("cannot get the segments: {0}")]
    Feed(#[source] io::Error),
    /// A segment was refused.
    #[error("the segment is refused: {0}")]
    Segment(#[from] SegmentError),
    /// The segments are not those of the publisher that they were said to be of.
    #[error("the segments are not of the publisher that they were said to be of")]
    Publisher,
    /// These segments are in the tree already.
    #[error("the segments are in the tree already")]
    Joined(ProcessKey),
    /// The process is not in the tree, or not any more: it was folded, or let go.
    #[error("the process is not in the tree")]
    NoProcess,
    /// What a process left could not be kept, so the process stays in the tree.
    #[error("cannot keep what a process left: {0}")]
    Commit(#[source] io::Error),
    /// What an earlier tree left can not be what one left.
    #[error("what was kept of an earlier tree is not right: {0}")]
    Saved(String),
    /// A process, or a user's processes together, have more than they may.
    #[error("user {uid} has more {what} than the limit of {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// The user.
        uid: u32,
    },
    /// All users' processes together have more than they may.
    #[error("all users together have more {what} than the limit of {limit}")]
    LimitOfAll {
        /// Of what.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// A directory could not have a number.
    #[error("no number for the directory {directory}: {error}")]
    Number {
        /// Its name.
        directory: String,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl TreeError {
    /// Whether the process may be taken in another time: whoever reads it is short of something now.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Feed(_) | Self::LimitOfAll { .. } | Self::Number { .. } => true,
            Self::Segment(error) => error.may_pass(),
            _ => false,
        }
    }
}

/// How a tree shows its processes.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Who owns the root and the directories at the top level; its group are the readers, for whom private
    /// directories are.
    pub owner: Owner,
    /// Whether the directories right below those at the top level are called `<pid>-<name>`, with links to
    /// them in `by-name`. Not unless set.
    pub pid_prefix: bool,
    /// What is accepted of one process.
    pub limits: Limits,
    /// What is accepted of one user's processes together, in a tree of many processes.
    pub user_limits: UserLimits,
    /// Most bytes that one read of a bulk file may take beside its text, for what is read and where that is shown;
    /// 256 MiB unless set, which is the whole of a host of a thousand machines with 64 vCPUs twice. One that would
    /// take more is refused before it is read.
    pub bulk_bytes: usize,
    /// Most bytes that are [kept](super::Keeper) of all that processes brought and of all that was cleared, as the
    /// server's state has them; [`KEPT_BYTES`](Self::KEPT_BYTES) unless set. No user has more than half of that, and
    /// only those who have little have more than three quarters together: who brings more is refused, and a clear
    /// that would take more is `EDQUOT`.
    pub kept_bytes: usize,
    /// Metrics that `.stats/prometheus` and `.stats/openmetrics` have of each vCPU. None unless set.
    pub vcpu_metrics: Vec<MetricName>,
    /// Who is told what happens in the tree. Nobody unless set, and then it costs nothing.
    pub events: Option<Arc<dyn TreeEvents>>,
}

/// What one user's processes may bring that a tree does not forget when they are gone. Whoever was first
/// brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserLimits {
    /// Most different groups of values; 1024 unless set.
    pub groups: usize,
    /// Most different values in these; 2048 unless set: there are numbers for as many of 64 users.
    pub values: usize,
    /// Most directories at the top level; 64 unless set. One is forgotten when nothing was counted in it.
    pub directories: usize,
}

impl Default for UserLimits {
    fn default() -> Self {
        Self { groups: 1 << 10, values: 1 << 11, directories: 64 }
    }
}

impl TreeOptions {
    /// [`bulk_bytes`](Self::bulk_bytes) unless set.
    pub const BULK_BYTES: usize = 256 << 20;

    /// [`kept_bytes`](Self::kept_bytes) unless set. Eleven parts of 16, 176 MiB, are for what was cleared.
    ///
    /// * 1000 machines × 64 vCPUs × 100 values are 64,000 sources and 6.4 million words: 75 MB if every value is as
    ///   large as can be, some 50 MB if they are times and counts of a week. The owner, who clears a host as a whole,
    ///   may have 138 MB of it, the user whose sources they are 92 MB.
    /// * The same number of `vmm`'s vCPUs have some 350 words each, of which most are buckets that are 0: 75 MB.
    ///
    /// Three parts, 48 MiB, are for what is brought. The last two, 32 MiB, are for what is limited otherwise, of all
    /// users together by the limits of the server and the kernel: parents of 2^19 sources take 19 MB, the directories
    /// of a thousand users 5, the processes of as many segments as can be mapped 3, and identities of values 1.
    pub const KEPT_BYTES: usize = 256 << 20;

    /// The defaults for this owner.
    pub fn new(owner: Owner) -> Self {
        let (limits, user_limits) = (Limits::default(), UserLimits::default());
        Self {
            owner,
            pid_prefix: false,
            limits,
            user_limits,
            bulk_bytes: Self::BULK_BYTES,
            kept_bytes: Self::KEPT_BYTES,
            vcpu_metrics: Vec::new(),
            events: None,
        }
    }
}

impl From<Owner> for TreeOptions {
    fn from(owner: Owner) -> Self {
        Self::new(owner)
    }
}

/// A process that was let go, and why.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub process: ProcessKey,
    /// Who it was.
    pub identity: Identity,
    /// What was wrong with it.
    pub error: TreeError,
}

/// Who owns what the tree shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Owner of every node.
    pub uid: u32,
    /// Group of every node: the readers' group, which private directories are open to.
    pub gid: u32,
}

/// What a tree keeps: everything returns to where it was when sources have come and gone, but for the
/// baselines of the directories that they were in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeUsage {
    /// Processes, detached ones included.
    pub processes: usize,
    /// Processes that are detached.
    pub detached: usize,
    /// Processes that were let go so far.
    pub refused: u64,
    /// Sums of what processes left that are gone: one for each group of each top-level directory.
    pub left: usize,
    /// Groups of values that the tree has met, each once.
    pub groups: usize,
    /// Sources that have a record, attached or not, departed ones that are not folded yet included.
    pub sources: usize,
    /// Directories of sources, the root included.
    pub directories: usize,
    /// Baselines that clears left, one for each group of each source, or of what departed from one.
    pub baselines: usize,
    /// Sources and values that are not shown in a directory that several processes share, since another
    /// has their name there. What they count is in the totals.
    pub left_out: usize,
    /// How often something was left out so far.
    pub clashes: u64,
}
