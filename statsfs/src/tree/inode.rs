//! Inode numbers: computed from a directory's number and the place of the file in it, never reused.
//!
//! ```text
//! 63                24 23 22 21            5 4      0
//! |   directory        | area  |  identity   |  part  |
//! ```

use crate::fs::{Ino, ROOT};
use crate::value::Aggregations;

/// A directory's number: 1 is the root's; where the others come from is in `numbers`.
pub(crate) type DirId = u64;

/// The largest number that a directory can have.
pub(crate) const MAX_DIR: DirId = (1 << (64 - DIRECTORY)) - 1;

/// Most identities of values that a tree can tell apart.
pub(crate) const MAX_IDENTITIES: usize = (1 << 17) - 1;

/// What a number in the tree stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A source's directory.
    Dir(DirId),
    /// Its `.departed`.
    Departed(DirId),
    /// The `.stats` of a directory, or of its `.departed`.
    Stats(DirId, bool),
    /// A file in `.stats`.
    Bulk(DirId, bool, Bulk),
    /// A value's file or, for a histogram, its directory; in a directory or in its `.departed`.
    Value(DirId, bool, usize, Part),
    /// The link to a directory in `by-name`.
    Link(DirId),
}

/// A file in `.stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bulk {
    /// Every file of the subtree, `path value` a line.
    Flat,
    /// Takes a 0, which clears the subtree.
    Clear,
    /// What the files of the subtree are.
    Schema,
    /// Every file of the subtree, as JSON.
    Json,
    /// Every file of the subtree that does not show 0, for people.
    Summary,
    /// Families of values with labels, in Prometheus' text format: machines and their devices.
    Prometheus,
    /// The same with each vCPU.
    PrometheusFull,
    /// The first in the format of OpenMetrics.
    OpenMetrics,
    /// The same with each vCPU.
    OpenMetricsFull,
    /// Everything of the subtree, for programs: cells, raw and as they are shown, and what they are.
    Snapshot,
    /// What the directory's own files show, in the format of KVM's statistics.
    Binary,
}

impl Bulk {
    /// In the order of their numbers, which stay as they are.
    pub(crate) const ALL: [Self; 11] = [
        Self::Flat,
        Self::Clear,
        Self::Schema,
        Self::Json,
        Self::Summary,
        Self::Prometheus,
        Self::PrometheusFull,
        Self::OpenMetrics,
        Self::OpenMetricsFull,
        Self::Snapshot,
        Self::Binary,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Clear => "clear",
            Self::Schema => "schema",
            Self::Json => "json",
            Self::Summary => "summary",
            Self::Prometheus => "prometheus",
            Self::PrometheusFull => "prometheus-full",
            Self::OpenMetrics => "openmetrics",
            Self::OpenMetricsFull => "openmetrics-full",
            Self::Snapshot => "snapshot",
            Self::Binary => "binary",
        }
    }

    /// Whether it shows what was counted, and not only what there is.
    pub(crate) const fn is_counted(self) -> bool {
        !matches!(self, Self::Clear | Self::Schema)
    }
}

/// Which file of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The source's own value.
    Own,
    /// One kind of aggregate.
    Aggregate(Aggregations),
    /// A histogram's directory.
    Histogram,
    /// A file in it.
    Field(Field),
}

/// A file of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Number of values recorded; a 0 written here clears the histogram.
    Count,
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
    /// A percentile.
    Percentile(u8),
    /// The largest that there can be.
    Max,
    /// Every bucket: its exclusive upper bound, and its count.
    Buckets,
}

impl Field {
    pub(crate) const ALL: [Self; 8] = [
        Self::Count,
        Self::Sum,
        Self::Mean,
        Self::Percentile(50),
        Self::Percentile(90),
        Self::Percentile(99),
        Self::Max,
        Self::Buckets,
    ];

    /// All that a histogram has, with a sum or without.
    pub(crate) fn of(has_sum: bool) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |field| has_sum || field.without_sum())
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Percentile(50) => "p50",
            Self::Percentile(90) => "p90",
            Self::Percentile(_) => "p99",
            Self::Max => "max",
            Self::Buckets => "buckets",
        }
    }

    /// Whether a histogram without a sum has the file too.
    pub(crate) const fn without_sum(self) -> bool {
        !matches!(self, Self::Sum | Self::Mean)
    }
}

const OWN: u64 = 0;
const AGGREGATE: u64 = 1; // to 6, in the order of the bits
const HISTOGRAM: u64 = 8;
const FIELD: u64 = 16; // to 23
const PARTS: u32 = 5;
const AREA: u32 = 22;
const DIRECTORY: u32 = 24;

/// Area 0 holds a directory's values and itself, 1 its `.departed`, 2 both `.stats`, 3 the link to it.
const VALUES: u64 = 0;
const DEPARTED: u64 = 1;
const STATS: u64 = 2;
const LINK: u64 = 3;
/// In area 2: the `.stats` directory itself, and its files; that of `.departed` from 16 on.
const STATS_OF_DEPARTED: u64 = 16;

impl Part {
    fn code(self) -> u64 {
        match self {
            Self::Own => OWN,
            Self::Aggregate(kind) => AGGREGATE + u64::from(kind.bits().trailing_zeros()),
            Self::Histogram => HISTOGRAM,
            Self::Field(field) => {
                FIELD + Field::ALL.iter().position(|f| *f == field).unwrap_or(0) as u64
            }
        }
    }

    fn of(code: u64) -> Option<Self> {
        match code {
            OWN => Some(Self::Own),
            AGGREGATE..=6 => Aggregations::from_bits(1 << (code - AGGREGATE)).map(Self::Aggregate),
            HISTOGRAM => Some(Self::Histogram),
            FIELD..=23 => Some(Self::Field(Field::ALL[(code - FIELD) as usize])),
            _ => None,
        }
    }

    /// The place of a value's entry within its directory; at least 1.
    pub(crate) fn slot(self, identity: usize) -> u64 {
        ((identity as u64 + 1) << PARTS) | self.code()
    }
}

impl Node {
    /// The node's inode number.
    pub(crate) fn ino(self) -> Ino {
        let at = |dir: DirId, area: u64, slot: u64| dir << DIRECTORY | area << AREA | slot;
        match self {
            Self::Dir(1) => ROOT,
            Self::Dir(dir) => at(dir, VALUES, 0),
            Self::Departed(dir) => at(dir, DEPARTED, 0),
            Self::Link(dir) => at(dir, LINK, 0),
            Self::Stats(dir, departed) => {
                at(dir, STATS, if departed { STATS_OF_DEPARTED } else { 0 })
            }
            Self::Bulk(dir, departed, bulk) => {
                let first = if departed { STATS_OF_DEPARTED } else { 0 };
                at(dir, STATS, first + 1 + bulk as u64)
            }
            Self::Value(dir, departed, identity, part) => {
                let area = if departed { DEPARTED } else { VALUES };
                at(dir, area, part.slot(identity))
            }
        }
    }

    /// The node with this inode number, if any could have it.
    pub(crate) fn of(ino: Ino) -> Option<Self> {
        if ino == ROOT {
            return Some(Self::Dir(1));
        }
        let dir = ino >> DIRECTORY;
        let area = ino >> AREA & 3;
        let slot = ino & ((1 << AREA) - 1);
        match area {
            VALUES if slot == 0 => Some(Self::Dir(dir)),
            DEPARTED if slot == 0 => Some(Self::Departed(dir)),
            LINK => (slot == 0).then_some(Self::Link(dir)),
            VALUES | DEPARTED => {
                let identity = (slot >> PARTS).checked_sub(1)? as usize;
                let part = Part::of(slot & ((1 << PARTS) - 1))?;
                Some(Self::Value(dir, area == DEPARTED, identity, part))
            }
            STATS => {
                let departed = slot >= STATS_OF_DEPARTED;
                let slot = if departed { slot - STATS_OF_DEPARTED } else { slot };
                match slot.checked_sub(1) {
                    None => Some(Self::Stats(dir, departed)),
                    Some(n) => {
                        Some(Self::Bulk(dir, departed, *Bulk::ALL.get(usize::try_from(n).ok()?)?))
                    }
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_comes_back_from_its_number() {
        let mut nodes = Vec::new();
        for dir in [1, 2, 77, MAX_DIR] {
            nodes.push(Node::Dir(dir));
            nodes.push(Node::Link(dir));
            nodes.push(Node::Departed(dir));
            for departed in [false, true] {
                nodes.push(Node::Stats(dir, departed));
                nodes.extend(Bulk::ALL.map(|bulk| Node::Bulk(dir, departed, bulk)));
                for identity in [0, 1, MAX_IDENTITIES - 1] {
                    let mut parts = vec![Part::Own, Part::Histogram];
                    parts.extend(Field::ALL.map(Part::Field));
                    parts.extend(
                        (0..6).filter_map(|n| Aggregations::from_bits(1 << n)).map(Part::Aggregate),
                    );
                    nodes.extend(parts.iter().map(|p| Node::Value(dir, departed, identity, *p)));
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        for node in nodes {
            assert_eq!(Node::of(node.ino()), Some(node));
            assert!(seen.insert(node.ino()), "{node:?}");
        }
    }
}
