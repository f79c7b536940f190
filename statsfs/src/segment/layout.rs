//! The segment format, version 1: every offset, every record, every invariant and memory order.
//!
//! A segment is a sealed memfd that one process writes and others read. All numbers are little-endian;
//! everything dynamic is a naturally aligned 64-bit word (cells may be narrower). Offsets count bytes
//! from the start of the segment.
//!
//! ```text
//! 0          header                 one page
//! 4096       units, 128 bytes each  growing up: sources, labels, blocks' records, groups
//!            free
//!            blocks                 growing down from the end, 128-byte aligned: the cells
//! size
//! ```
//!
//! # Header
//!
//! | offset | word | changes |
//! |---|---|---|
//! | 0 | magic `STATSFS1` | never |
//! | 8 | version (low 32 bits), header size (high 32 bits) | never |
//! | 16, 24 | the segment's random id | never |
//! | 32, 40 | the publisher's random id, the same in all its segments | never |
//! | 48 | index of this segment among the publisher's, from 0 | never |
//! | 56 | size of the segment in bytes | never |
//! | 64 | creation, nanoseconds since 1970 | never |
//! | 72 | process id as the writer sees it; informational | never |
//! | 128 | units in use: those above were never published | grows; Release |
//! | 136 | changes: bumped after every change of structure in any segment; only segment 0's counts | grows; Release |
//! | 144 | folds: bumped between the commit of a fold and the reuse of anything folded, and before a cut; only segment 0's counts | grows; Release |
//! | 152 | number of segments of this publisher; only segment 0's counts | grows; Release |
//!
//! # Units
//!
//! Word 0 of every unit is its *generation*: 0 or odd while the unit is free or being written, even
//! while it holds a record. It only grows. Word 1 is the head: kind in bits 0–7, then three bytes
//! *a*, *b*, *c* and 32 bits *d*. Words marked *dynamic* change while the record is published.
//!
//! | kind | a | b | c | d | words |
//! |---|---|---|---|---|---|
//! | 1 source | flags | name length | labels | – | 2 state *(dynamic: 0 live, 1 departed)*, 3 id, 4 parent's id *(dynamic: 0 until attached)*, 5 creation ns, 8–15 name |
//! | 2 label | index | key length | value length | – | 3 source's id, 4–7 key, 8–15 value |
//! | 3 block | role | – | – | unit of its group | 2 retire number *(dynamic: 0 until retired)*, 3 offset (low 32) and length (high 32) of its memory, 4 source's id, 5 fold target *(dynamic)*: unit (bits 0–31) and segment (bits 32–62) of an accumulator, bit 63 set if the block is cut, 6 selector *(dynamic, accumulators)*: 0 or 1, 7 number (32 bits) of the descriptor from which its cells are sampled, 0 if none |
//! | 4 group | – | – | – | units that it takes | 2 values (low 32), size of a latched copy (high 32), 3 size of the plain cells (low 32), string bytes (high 32), 4 lengths of name (bits 0–7), prefix (8–15), help (16–31); from byte 64 the value records, then the strings. Never freed |
//!
//! A value record is 32 bytes: type, buckets, has-sum, base unit, exponent (signed), semantics,
//! aggregations, area (one byte each), mode (16 bits), lengths of name, family, label key, label value,
//! help, names of states (one byte each), offset of the cells in their area (32 bits), offset of its strings
//! in the pool (32 bits), 8 bytes 0. The names of states have a comma between each two; there are none if
//! their length is 0, as in what writers leave that do not know of them, and readers that do not know of
//! them find everything else where it is. The pool begins with the group's name, prefix and help.
//! It is at least as long as all strings together.
//!
//! # Blocks
//!
//! Role 0, a slot's cells: word 0 is the latch's sequence, word 1 is 0; from byte 16 latched copy 0,
//! latched copy 1 (nothing if the group is not consistent), plain cells. Role 1, an accumulator: two
//! copies, 128-byte aligned, each the word *upto* and one word per cell of the group. Role 2, an
//! explicit aggregate: no memory (offset and length 0).
//!
//! # Descriptors
//!
//! What the kernel counts is read from a descriptor (see `fd_groups`), by a number that is the publisher's own and never
//! used again. The writer samples it into the block's plain cells; a reader that has the descriptor of that number
//! reads it after the cells, as long as the block is not retired: then the cells are the last sample.
//!
//! # Protocol
//!
//! * **Publication**: the fields of a free unit are written while its generation is odd, after a
//!   release fence, and published by the store (Release) of the next even generation. A reader copies
//!   the unit between two loads of the generation; it takes the copy if both are the same even number.
//!   A writer killed in between leaves an odd generation: a record that never was. So readers never
//!   wait for a writer.
//! * A record of several units takes fresh ones only, and *units in use* is raised over them after it was
//!   published: what is in all but its first unit would look like units of their own. A unit's
//!   generation begins at 0, whatever was in its place before.
//! * **Attaching** is one store of the parent's id, **departure** one store of the state (both
//!   Release); a whole subtree comes and goes at once.
//! * **Latch**: see `segment/latch.rs`.
//! * **Retirement**: a block in a departed subtree whose slot was dropped is written by nobody any more.
//!   Its fold target is stored, then (Release) the publisher's next retire number.
//! * **Fold**: the accumulator's other copy is written: the selected copy plus the final cells of every
//!   retired block that targets it, and as *upto* the highest retire number so far. The store (Release)
//!   of the selector is the commit. Then *folds* is bumped, then (after a release fence) the blocks are
//!   freed. A block counts unless its retire number is neither 0 nor above its target's selected *upto*.
//!   Killed at any instant, every count is there once.
//!   An accumulator that departs with its source is such a block too, once nothing more is to be folded
//!   into it. *folds* must be bumped between two folds of which the second takes the first one's result:
//!   else a sweep that read the first accumulator before and the second after would count twice.
//! * **Cut**: when a source is revoked, blocks are folded whose slots still count. They are retired with
//!   the bit that says so; then *folds* is bumped, and only then, after a full fence, the fold looks at
//!   them. What is counted after that look is lost, so nobody may show it: a sweep that finds a cut block
//!   which is not folded yet starts again, but not for ever, since a killed writer leaves it so; then its
//!   cells are final. A sweep that found the block before it was retired ends with a full fence: either
//!   that comes before the fold's, and the fold sees at least what the sweep saw, or *folds* is seen
//!   bumped.
//! * **Reading**: load *folds*; load the selector of each accumulator once, with the *upto* of that copy;
//!   read cells of accumulators from those copies only, and blocks with their retire numbers: one that is
//!   neither 0 nor above the *upto* that was loaded of its target is in there already. Load *folds* again
//!   after a full fence; if it moved, start again, or settle. Whoever sees a block freed or reused, or a
//!   copy overwritten that was selected before, also sees *folds* bumped. A block must not be held against
//!   a later *upto*: the commit may lie in between.
//! * **Settling** needs no rest between folds. Read the cells of the slots. Then copy the accumulators, each
//!   until its selector and *upto* are the same after as before (the *upto* of an accumulator grows with
//!   every fold), and after a full fence look at every block once more. One that is still published is
//!   judged by its retire number as above: if that says that it is not folded, it is in no copy. One that is
//!   not published any more is in some accumulator, but perhaps not yet in the copy of it: so once more
//!   without it, from the copying on. Counts only move upwards, so what has left a block or an accumulator
//!   is found above. There are no more rounds than blocks, and few where blocks are freed less often than a
//!   round takes.
//! * A slot's thread counts with plain stores, which nobody can synchronise with. Between the freeing of a
//!   block and its reuse there is a full fence. So a reader that has seen the first counts of a next slot in
//!   it, and then passes the full fence at its sweep's end, sees the freeing, and *folds* bumped before.
//! * Readers load cells Relaxed and order by fences: an acquire *load* of read-only memory is undefined
//!   in Rust.

/// `STATSFS1`, as a little-endian word.
pub const MAGIC: u64 = u64::from_le_bytes(*b"STATSFS1");
/// Version of the format.
pub const VERSION: u32 = 1;
/// Size of the header.
pub const HEADER_SIZE: usize = 4096;
/// Size and alignment of a unit; alignment of blocks. Two cache lines, since processors prefetch pairs.
pub const UNIT: usize = 128;
/// Words in a unit.
pub const UNIT_WORDS: usize = UNIT / 8;
/// Smallest segment.
pub const MIN_SEGMENT: usize = 16 << 10;
/// Default size of a segment.
pub const DEFAULT_SEGMENT: usize = 256 << 10;
/// Largest segment that a reader accepts unless told otherwise.
pub const MAX_SEGMENT: usize = 64 << 20;
/// Most segments of one publisher.
pub const MAX_SEGMENTS: usize = 256;

/// Header words, as offsets in bytes.
pub mod header {
    #![allow(missing_docs)]
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const ID: usize = 16;
    pub const PUBLISHER: usize = 32;
    pub const INDEX: usize = 48;
    pub const SIZE: usize = 56;
    pub const CREATED: usize = 64;
    pub const PID: usize = 72;
    pub const UNITS: usize = 128;
    pub const CHANGES: usize = 136;
    pub const FOLDS: usize = 144;
    pub const SEGMENTS: usize = 152;
}

/// Kinds of record.
pub mod kind {
    #![allow(missing_docs)]
    pub const SOURCE: u8 = 1;
    pub const LABEL: u8 = 2;
    pub const BLOCK: u8 = 3;
    pub const GROUP: u8 = 4;
}

/// Words of a unit.
pub mod word {
    #![allow(missing_docs)]
    pub const GENERATION: usize = 0;
    pub const HEAD: usize = 1;
    // Source.
    pub const STATE: usize = 2;
    pub const ID: usize = 3;
    pub const PARENT: usize = 4;
    pub const CREATED: usize = 5;
    pub const NAME: usize = 8;
    // Label.
    pub const LABEL_SOURCE: usize = 3;
    pub const LABEL_KEY: usize = 4;
    pub const LABEL_VALUE: usize = 8;
    // Block.
    pub const RETIRE: usize = 2;
    pub const EXTENT: usize = 3;
    pub const BLOCK_SOURCE: usize = 4;
    pub const TARGET: usize = 5;
    pub const SELECTOR: usize = 6;
    pub const FD_GROUP: usize = 7;
    // Group.
    pub const GROUP_COUNTS: usize = 2;
    pub const GROUP_SIZES: usize = 3;
    pub const GROUP_LENGTHS: usize = 4;
    pub const GROUP_BODY: usize = 8;
}

/// Source states.
pub mod state {
    #![allow(missing_docs)]
    pub const LIVE: u64 = 0;
    pub const DEPARTED: u64 = 1;
}

/// Source flags.
pub mod flag {
    /// The source has no directory; it counts in the aggregates of its ancestors.
    pub const HIDDEN: u8 = 1;
    /// The directory is for the owner and the readers' group only.
    pub const PRIVATE: u8 = 2;
    /// All flags of this version.
    pub const ALL: u8 = HIDDEN | PRIVATE;
}

/// Block roles.
pub mod role {
    /// The cells of one slot.
    pub const SLOT: u8 = 0;
    /// What departed sources left in their parent, for one group.
    pub const ACCUMULATOR: u8 = 1;
    /// A directory that shows the group's aggregates even while nothing is below it.
    pub const AGGREGATE: u8 = 2;
}

/// The id of the root, which has no record: the parent of the top-level sources. Other ids are
/// above it and never reused.
pub const ROOT_ID: u64 = 1;
/// Longest source name in bytes.
pub const MAX_SOURCE_NAME: usize = 63;
/// Most labels of a source.
pub const MAX_LABELS: usize = 8;
/// Deepest level of a source below the root.
pub const MAX_DEPTH: usize = 64;

/// Size of a value record of a group.
pub const VALUE_RECORD: usize = 32;
/// Offset of the latch's sequence in a slot's block.
pub const BLOCK_SEQUENCE: usize = 0;
/// Offset of the first cells in a slot's block.
pub const BLOCK_HEADER: usize = 16;

/// In the target word of a retired block: its slot counts on, in vain.
pub const CUT: u64 = 1 << 63;

/// The head word of a unit.
pub const fn head(kind: u8, a: u8, b: u8, c: u8, d: u32) -> u64 {
    kind as u64 | (a as u64) << 8 | (b as u64) << 16 | (c as u64) << 24 | (d as u64) << 32
}

/// Splits a head word into kind, a, b, c, d.
pub const fn split_head(head: u64) -> (u8, u8, u8, u8, u32) {
    (head as u8, (head >> 8) as u8, (head >> 16) as u8, (head >> 24) as u8, (head >> 32) as u32)
}

/// Two 32-bit halves in a word.
pub const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The low and high halves of a word.
pub const fn split_pair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Whether a unit with this generation holds a record.
pub const fn is_published(generation: u64) -> bool {
    generation != 0 && generation.is_multiple_of(2)
}

/// Offset of a unit.
pub const fn unit_offset(unit: u32) -> usize {
    HEADER_SIZE + unit as usize * UNIT
}

/// Most units that a segment of this size has room for.
pub const fn unit_limit(size: usize) -> u32 {
    ((size - HEADER_SIZE) / UNIT) as u32
}

/// Whether `name` may name a source: 1 to 63 bytes of `[A-Za-z0-9_.:-]`, not beginning with a dot.
pub fn is_source_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_SOURCE_NAME
        && name[0] != b'.'
        && name.iter().all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(b))
}

/// Where the parts of a slot's block are, for a group with these sizes of a latched copy and of the
/// plain cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Offset of latched copy 1; copy 0 is at [`BLOCK_HEADER`].
    pub copy1: usize,
    /// Offset of the plain cells.
    pub plain: usize,
    /// Length of the block.
    pub len: usize,
}

/// The shape of a slot's block.
pub const fn block_shape(latched: usize, plain: usize) -> BlockShape {
    let copy1 = BLOCK_HEADER + latched;
    let start = copy1 + latched;
    BlockShape { copy1, plain: start, len: (start + plain).next_multiple_of(UNIT) }
}

/// Length of one copy of an accumulator for a group with this many cells.
pub const fn accumulator_copy(words: usize) -> usize {
    ((1 + words) * 8).next_multiple_of(UNIT)
}
