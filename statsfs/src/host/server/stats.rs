//! The server's own statistics: `statsfs` in its tree, counted with the library as anybody's are.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

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

/// The server's registry and its slot.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) registry: Registry,
    _source: Source,
    slot: Slot<ServerStats>,
}

impl Own {
    pub(super) fn new() -> Result<Self, StatsError> {
        let registry = Registry::new()?;
        let source = registry.create_source(NAME)?;
        source.register()?;
        let slot = source.add_values()?;
        Ok(Self { registry, _source: source, slot })
    }
}

impl Deref for Own {
    type Target = ServerStats;

    fn deref(&self) -> &ServerStats {
        &self.slot
    }
}
