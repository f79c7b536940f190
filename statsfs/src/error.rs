//! What can go wrong with registries and sources.

use std::io;

use thiserror::Error;

use crate::fd_groups::FdGroupError;
use crate::limits::told;
use crate::segment::CreateError;

/// Why a registry could not be made, or could not get another segment.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// getrandom(2) failed.
    #[error("cannot get random bytes for a segment's id: {0}")]
    Random(#[source] io::Error),
    /// The segment size is out of range.
    #[error("a segment has 16 KiB to 64 MiB in whole pages of 4096 bytes, not {0} bytes")]
    SegmentSize(usize),
    /// The limit of segments is out of range.
    #[error("a registry has 1 to 256 segments, not {0}")]
    MaxSegments(usize),
    /// The segment's memory could not be had.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The registry's thread could not be started.
    #[error("cannot start the thread that samples statistics: {}", told(.0))]
    Thread(#[source] io::Error),
}

/// Why an operation on a source failed. Nothing has changed then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The name is not a source's.
    #[error(
        "{0:?} cannot name a source: 1 to 63 bytes of [A-Za-z0-9_.:-] that do not begin with a dot"
    )]
    Name(String),
    /// Too many labels.
    #[error("a source has at most 8 labels, not {0}")]
    Labels(usize),
    /// A label is not acceptable or stands twice.
    #[error(
        "label {0:?}={1:?} is not acceptable: a key [a-z][a-z0-9_]* of at most 32 bytes, once, and a \
         value of at most 64 bytes"
    )]
    Label(String, String),
    /// The name would stand twice in one directory.
    #[error("{name:?} already exists in source {directory:?}, or above it")]
    AlreadyExists {
        /// The name.
        name: String,
        /// The source in whose directory it stands.
        directory: String,
    },
    /// The source has another parent.
    #[error("source {name:?} is subordinate to {parent:?} already")]
    HasParent {
        /// The source.
        name: String,
        /// Its parent.
        parent: String,
    },
    /// The source would be below itself.
    #[error("source {0:?} cannot be below itself")]
    Cycle(String),
    /// The tree would be too deep.
    #[error("sources nest at most {0} deep")]
    TooDeep(usize),
    /// The source to remove is no subordinate of this one.
    #[error("source {name:?} is not subordinate to {parent:?}")]
    NotSubordinate {
        /// The source.
        name: String,
        /// Its supposed parent.
        parent: String,
    },
    /// The source was removed, or was below one that was; that is final.
    #[error("the source was removed")]
    Removed,
    /// The two sources are of different registries.
    #[error("the sources belong to different registries")]
    OtherRegistry,
    /// All segments are full.
    #[error(
        "the statistics segments are full: {segments} of at most {limit} segments of {size} bytes are \
         in use; raise RegistryOptions::max_segments or segment_size"
    )]
    SegmentFull {
        /// Segments in use.
        segments: usize,
        /// The limit.
        limit: usize,
        /// The size of a segment.
        size: usize,
    },
    /// A descriptor has no values that could be shown.
    #[error(transparent)]
    FdGroup(#[from] FdGroupError),
    /// A segment or the registry could not be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// This process was forked from the one that made the registry.
    #[error("a forked child cannot change its parent's sources")]
    Forked,
}
