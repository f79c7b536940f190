//! Why a publisher's segments are refused: one variant for each reason.

use thiserror::Error;

use super::memfd::FileError;
use super::schema::SchemaError;

/// Why a segment, or a publisher's segments together, are refused. A refusal is final: what was read
/// before it may be used no longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The file itself is not acceptable.
    #[error("the file is not acceptable as a segment: {0}")]
    File(#[from] FileError),
    /// It does not begin with the magic number.
    #[error("the segment does not begin with STATSFS1")]
    Magic,
    /// The format's version is another.
    #[error("the segment has format version {0}; this reader knows version 1")]
    Version(u32),
    /// The header has another size than this version's.
    #[error("the segment's header has {0} bytes instead of 4096")]
    HeaderSize(u32),
    /// An id of the header is all zero.
    #[error("the segment's {0} id is zero")]
    ZeroId(&'static str),
    /// The index among the publisher's segments is out of range.
    #[error("the segment's index {0} is not below 256")]
    Index(u64),
    /// The header's size is not the file's.
    #[error("the segment's header says {header} bytes, the file has {file}")]
    SizeWord {
        /// What the header says.
        header: u64,
        /// The file's size.
        file: u64,
    },
    /// More units are in use than there is room for.
    #[error("the segment says that {units} units are in use; it has room for {limit}")]
    Units {
        /// What the header says.
        units: u64,
        /// Room.
        limit: u32,
    },
    /// The number of units in use has shrunk.
    #[error("the segment's number of units in use fell from {0} to {1}")]
    UnitsFell(u32, u64),
    /// A record is of an unknown kind.
    #[error("unit {unit} holds a record of unknown kind {kind}")]
    Kind {
        /// The unit.
        unit: u32,
        /// The kind.
        kind: u8,
    },
    /// A source has flags of no meaning.
    #[error("the source in unit {unit} has unknown flags {flags:#x}")]
    Flags {
        /// The unit.
        unit: u32,
        /// All its flags.
        flags: u8,
    },
    /// A source's name is too long or has characters that it may not have.
    #[error("the source in unit {0} has no acceptable name")]
    SourceName(u32),
    /// A source says that it has more labels than it may.
    #[error("the source in unit {unit} says it has {labels} labels; at most 8 are allowed")]
    LabelCount {
        /// The unit.
        unit: u32,
        /// What it says.
        labels: u8,
    },
    /// A source's or label's or block's source id is 0, or the root's where that can not be.
    #[error("the record in unit {unit} names source {id}, which no record can")]
    SourceId {
        /// The unit.
        unit: u32,
        /// The id.
        id: u64,
    },
    /// A source's state has no meaning, or went back.
    #[error("the source in unit {unit} is in state {state}, which can not be")]
    State {
        /// The unit.
        unit: u32,
        /// The state.
        state: u64,
    },
    /// A source's parent changed after it was attached.
    #[error("the source in unit {unit} moved from parent {from} to {to}")]
    Moved {
        /// The unit.
        unit: u32,
        /// First parent.
        from: u64,
        /// Second parent.
        to: u64,
    },
    /// A label's place among its source's is out of range.
    #[error("the label in unit {unit} is number {index}; at most 8 are allowed")]
    LabelIndex {
        /// The unit.
        unit: u32,
        /// Its place.
        index: u8,
    },
    /// A label's key or value is too long, empty, not UTF-8, or has characters that it may not have.
    #[error("the label in unit {0} is not an acceptable key and value")]
    LabelText(u32),
    /// A block has a role of no meaning.
    #[error("the block in unit {unit} has unknown role {role}")]
    Role {
        /// The unit.
        unit: u32,
        /// The role.
        role: u8,
    },
    /// A block lies outside the segment's blocks, or unaligned.
    #[error(
        "the block in unit {unit} at {offset} with {len} bytes is outside the segment's blocks"
    )]
    Extent {
        /// The unit.
        unit: u32,
        /// Offset of its memory.
        offset: u32,
        /// Length of its memory.
        len: u32,
    },
    /// The units in use have grown over a block.
    #[error("the block in unit {0} is overlapped by units in use")]
    UnitsOverBlock(u32),
    /// A block's length is not what its group needs.
    #[error("the block in unit {unit} has {len} bytes instead of the {expected} of its group")]
    Length {
        /// The unit.
        unit: u32,
        /// Its length.
        len: u32,
        /// What its role and group need.
        expected: usize,
    },
    /// Two blocks share memory.
    #[error("the blocks in units {0} and {1} overlap")]
    Overlap(u32, u32),
    /// A block's group is not a group of the same segment.
    #[error("the block in unit {unit} is of a group in unit {group}, where there is none")]
    NoGroup {
        /// The unit.
        unit: u32,
        /// Where the group should be.
        group: u32,
    },
    /// A group's record has more units than there are, or than a group can have.
    #[error("the group in unit {unit} takes {units} units, which can not be")]
    GroupUnits {
        /// The unit.
        unit: u32,
        /// What it says.
        units: u32,
    },
    /// A group's record lies over another record.
    #[error("the group in unit {unit} overlaps the record in unit {other}")]
    GroupOverlap {
        /// The unit.
        unit: u32,
        /// The other record's unit.
        other: u32,
    },
    /// A group was freed or replaced.
    #[error("the group in unit {0} changed after it was published")]
    GroupChanged(u32),
    /// A group's description is not acceptable.
    #[error("the group in unit {unit} is not acceptable: {error}")]
    Group {
        /// The unit.
        unit: u32,
        /// What is wrong.
        #[source]
        error: SchemaError,
    },
    /// There is no segment with index 0.
    #[error("the publisher's first segment is missing")]
    NoFirst,
    /// Two segments of one publisher have the same index.
    #[error("two segments of the publisher have the index {0}")]
    DuplicateIndex(u32),
    /// A segment belongs to another publisher.
    #[error("segment {0} is another publisher's")]
    Publisher(u32),
    /// More segments than the limits allow.
    #[error("more than {0} segments of one publisher")]
    TooManySegments(usize),
    /// More bytes than the limits allow.
    #[error("the segments of one publisher have {bytes} bytes; at most {limit} are allowed")]
    TooManyBytes {
        /// Bytes of all segments, with the one that is too much.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More sources than the limits allow.
    #[error("more than {0} sources of one publisher")]
    TooManySources(usize),
    /// The records of the groups that there were have more bytes than the limits allow.
    #[error(
        "the groups of one publisher have more than {0} bytes; use fewer groups, or shorter descriptions"
    )]
    TooManyGroupBytes(usize),
    /// Two sources have the same id.
    #[error("two sources have the id {0}")]
    DuplicateId(u64),
    /// Two live visible subordinates of one source have the same name.
    #[error("source {parent} has two subordinates named {name:?}")]
    DuplicateName {
        /// The parent.
        parent: u64,
        /// The name.
        name: String,
    },
    /// A source has the same label twice.
    #[error("source {0} has the same label twice")]
    DuplicateLabel(u64),
    /// A source has two values of the same name.
    #[error("source {source_id} has two values named {name:?}")]
    DuplicateValue {
        /// The source.
        source_id: u64,
        /// The value's name.
        name: String,
    },
    /// A source has two accumulators of the same group.
    #[error("source {source_id} has two accumulators of the group {group:?}")]
    DuplicateAccumulator {
        /// The source.
        source_id: u64,
        /// The group's name.
        group: String,
    },
    /// A source is its own ancestor.
    #[error("source {0} is its own ancestor")]
    Cycle(u64),
    /// Sources lie too deep.
    #[error("source {0} is more than 64 levels deep")]
    Depth(u64),
}

impl SegmentError {
    /// Whether it is no fault of the segment's: whoever reads it is short of something, which may pass.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::File(error) if error.may_pass())
    }
}
