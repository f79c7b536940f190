//! The server's own statistics: `statsfs` in its tree, counted with the library as anybody's are.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use crate::fs::{Limit, Operation};
use crate::{LabelSet, Registry, RegistryError, Slot, Source, SourceError, stats};

/// Why a client was refused, or parted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, LabelSet, Serialize, Deserialize)]
#[labels(key = "reason")]
#[serde(rename_all = "snake_case")]
pub enum RefusedFor {
    /// it broke the protocol
    Protocol,
    /// it said nothing, or not enough, for too long
    Silence,
    /// its user had as much as is allowed
    Limit,
    /// a segment was not what it must be
    Segment,
    /// its segments were somebody else's, or published before
    Twice,
    /// who it is could not be found out
    Identity,
    /// the server itself could not
    Server,
}

stats! {
    /// The server that a host's processes publish to.
    pub struct ServerStats: "server", prefix "server_" {
        /// Clients that are connected now.
        pub server_clients: Gauge<u32>,
        /// Processes that are in the tree now, those whose connection is lost included.
        pub server_processes: Gauge<u32>,
        /// Processes that are in the tree now and whose connection is lost.
        pub server_detached: Gauge<u32>,
        /// Segments that are in the tree now.
        pub server_segments: Gauge<u32>,
        /// Bytes of the segments that are in the tree now.
        pub server_segment_bytes: Gauge<u64, Bytes>,
        /// Sources that are in the tree now.
        pub server_sources: Gauge<u64>,
        /// Descriptors of what the kernel counts for the processes that are in the tree now.
        pub server_descriptors: Gauge<u32>,
        /// Such descriptors that came and are not used: no room, or somebody else's.
        pub server_descriptors_left_out: Counter,
        /// Connections that were accepted.
        pub server_connections: Counter,
        /// Messages that came from clients.
        pub server_messages: Counter,
        /// Clients that were refused or parted with because {}.
        pub server_refused: PerLabel<Counter, RefusedFor>,
        /// Processes that joined.
        pub server_joined: Counter,
        /// Processes that came back after their connection was lost.
        pub server_rejoined: Counter,
        /// Processes whose connection was lost, or that died.
        pub server_lost: Counter,
        /// Processes that left, dead or with a goodbye: what they counted went to what is kept.
        pub server_folded: Counter,
        /// Time from the end of a process's connection, or its death, to when its directories were gone.
        pub server_lost_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Time that taking a process in took.
        pub server_join_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Time that folding a process took.
        pub server_fold_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Sources and values that are not shown now, since another process has their names.
        pub server_left_out: Gauge<u32>,
        /// Segments that the service manager keeps now for the next server.
        pub server_kept_segments: Gauge<u32>,
        /// Segments that it has no room for now.
        pub server_unkept_segments: Gauge<u32>,
        /// Segments that it has room for, of all users together; 0 if it keeps nothing.
        pub server_kept_room: Gauge<u32>,
    }
}

stats! {
    /// The mount. What is answered is counted before it is: whoever has an answer finds it counted.
    pub struct MountStats: "mount", prefix "mount_" {
        /// Requests to {}.
        pub mount_requests: PerLabel<Counter, Operation>,
        /// Requests to {} that were answered with an error.
        pub mount_errors: PerLabel<Counter, Operation>,
        /// Time from when a request to {} was taken from the kernel until its answer was there.
        pub mount_time: PerLabel<Histogram<Nanoseconds>, Operation> { buckets: 40 },
        /// Bytes that were read of other values' files.
        pub mount_read_bytes: Counter<Bytes>,
        /// Bytes that were read of bulk files and of totals over many sources.
        pub mount_read_bulk_bytes: Counter<Bytes>,
        /// Names that the kernel had looked up and has forgotten: the others that were found it knows.
        pub mount_forgotten: Counter,
        /// Requests that were refused because {}.
        pub mount_refused: PerLabel<Counter, Limit>,
    }

    /// The tree.
    pub struct TreeStats: "tree", prefix "tree_" {
        /// Sweeps: cells of one value, or of all in and below a directory, that were read together.
        pub tree_sweeps: Counter,
        /// Time that a sweep took.
        pub tree_sweep_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Blocks that were read in sweeps, one for each slot of each group.
        pub tree_sweep_blocks: Counter,
        /// Cells that were read in sweeps.
        pub tree_sweep_cells: Counter,
        /// Sweeps that were made again, since the structure had changed meanwhile.
        pub tree_retries: Counter,
        /// Blocks that a writer changed faster than their cells could be read together.
        pub tree_torn: Counter,
        /// How often a writer was not waited for any more: what was found is shown, or nothing is cleared.
        pub tree_gave_up: Counter,
        /// Clears.
        pub tree_clears: Counter,
    }

    /// What outlasts the server.
    pub struct StateStats: "state", prefix "state_" {
        /// Commits: each keeps all that is to outlast the server.
        pub state_commits: Counter,
        /// Commits that failed.
        pub state_failures: Counter,
        /// Time that a commit took, failed or not.
        pub state_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Bytes of all that was committed.
        pub state_bytes: Counter<Bytes>,
    }
}

/// The name of the server's own directory.
pub(super) const NAME: &str = "statsfs";

/// Why the server can not count.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No segment.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No room in it.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The server's registry, and the slots of what counts as long as the server is there.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) registry: Registry,
    /// What the threads of the mount count.
    pub(super) counts: Arc<Counts>,
    source: Source,
    slot: Slot<ServerStats>,
}

impl Own {
    pub(super) fn new() -> Result<Self, StatsError> {
        let registry = Registry::new()?;
        let source = registry.create_source(NAME)?;
        source.register()?;
        let slot = source.add_values()?;
        let counts = Arc::new(Counts::new(&source)?);
        Ok(Self { registry, counts, source, slot })
    }

    /// A slot for whoever keeps what outlasts the server.
    pub(super) fn of_state(&self) -> Result<Slot<StateStats>, StatsError> {
        Ok(self.source.add_values()?)
    }
}

impl Deref for Own {
    type Target = ServerStats;

    fn deref(&self) -> &ServerStats {
        &self.slot
    }
}
