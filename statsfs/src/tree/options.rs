//! What a tree is made with, and what it says of itself.

use std::io;

use thiserror::Error;

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
    /// These segments are in the tree already.
    #[error("the segments are in the tree already")]
    Joined(ProcessKey),
    /// The process is not in the tree, or not any more: it was folded, or let go.
    #[error("the process is not in the tree")]
    NoProcess,
    /// What a process left could not be kept, so the process stays in the tree.
    #[error("cannot keep what a process left: {0}")]
    Commit(#[source] io::Error),
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
}

impl TreeOptions {
    /// The defaults for this owner.
    pub fn new(owner: Owner) -> Self {
        Self { owner, pid_prefix: false, limits: Limits::default() }
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
