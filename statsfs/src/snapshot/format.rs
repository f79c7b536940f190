//! The format of `.stats/snapshot`, version 1: every section, every record and what they mean.
//!
//! A snapshot is what one sweep found of a directory and all below it. It is made of words of 64 bits, little-endian,
//! so that cells are read where they are. Offsets count bytes from the start; a *pair* is two numbers of 32 bits in a word,
//! the low one first; a *text* is a pair of an offset in the texts and a length, UTF-8.
//!
//! # Header
//!
//! | word | |
//! |---|---|
//! | 0 | magic `STATSNAP` |
//! | 1 | pair: version, size of the header in bytes |
//! | 2 | length of all in bytes |
//! | 3 | when the sweep had ended: `CLOCK_REALTIME`, nanoseconds |
//! | 4 | the same, of `CLOCK_MONOTONIC` |
//! | 5 | text: path of the first directory from the root of the mount |
//! | 6, 7 … 24, 25 | of each of the sections below, in that order: where it begins, and how many records it has (bytes, of the texts) |
//!
//! Whoever reads version 1 takes a longer header, finds the sections where it says, and ignores what is between
//! them. Records of another size are another version.
//!
//! # Sections
//!
//! | section | words of a record | |
//! |---|---|---|
//! | directories | 9 | 0 number; 1 creation, nanoseconds since 1970, or 0 where sources of several processes meet; 2 pair: the directory that it is in (of the first, itself), the first directory that is neither it nor below it; 3 text: name; 4 pair: process, or 0; where in the name begins what its program calls it; 5 pair: kind; how many directories are in it, also of those that are left out; 6 pair: first label, number of labels; 7 pair: first cells, number; 8 pair: first part, number |
//! | labels | 2 | 0 text: key; 1 text: value |
//! | kinds | 1 | 0 pair: first file, number: what a directory of this kind shows |
//! | files | 2 | 0 text: name; 1 pair: value, and what of it: 0 the directory's own, 1 … 6 over all in and below it: sum, min, max, avg, count of zeros, of others; 8 a histogram |
//! | groups | 4 | 0 text: name; 1 text: help; 2 pair: first value, number; 3 words of its cells |
//! | values | 8 | 0 text: name; 1 text: help; 2 bytes: type, buckets, whether there is a sum, base unit, exponent (signed), semantics, aggregations, 0; 3 pair: identity, group; 4 text: family, or nothing; 5, 6 texts: label's key and value, or nothing; 7 text: names of states, a comma between each two, or nothing |
//! | cells | 3 | 0 pair: group, flags; 1 the first of the words that they are; 2 the first of those of their baseline, if flagged |
//! | parts | 2 | 0 pair: value, flags; 1 the first of the words that it is |
//! | words | 1 | cells, baselines and parts |
//! | texts | – | bytes, and zeros up to a multiple of 8 |
//!
//! Directories come each before those in it, and those in it come together. Types, units, semantics and
//! aggregations have the numbers that they have in a segment ([`segment::layout`](crate::segment::layout)): types `bool u8 u16 u32 u64 s8
//! s16 s32 s64 histogram`, units `none bytes seconds cycles`, semantics `cumulative floating peak`, each from 0 on. A group
//! of which there are no cells has no values of its own; a value that stands alone is of such a group, and known since a file
//! shows it.
//!
//! # What a file shows
//!
//! Values of one *identity* are one. A file of a directory's own (0, and a histogram that has no aggregations) is over the cells and parts
//! of this directory with the flag *own*; any other over all of this directory and those below it.
//!
//! * **Cells** are those of one source, by the group's values in their order; a histogram has its sum, if it has one,
//!   and its buckets. Signed ones are in two's complement of 64 bits. What they show of a cumulative value is what came since
//!   the baseline, modulo the width of the type, else they show what they are.
//! * Cells with the flag *departed* are what sources left here, what the files in `.departed` show: sums of 64 bits, so
//!   what they show is what came since the baseline, modulo 2^64. Only cumulative values are in there, the
//!   others are 0. They are in sums and in no other aggregate.
//! * **Parts** are what is not shown one by one: sources without a directory, directories that the reader
//!   may not enter, sources of several processes that are one directory. Of a histogram they are its words, added up; of any other value
//!   seven words: sum (modulo 2^64, with what departed), exact sum without that (128 bits, low half first), number of instances, number of those
//!   that are 0, least, greatest; what no file shows is 0 (the number of instances, too, where only sums are shown). They are raw; with the flag *cleared* the same number of words follow as they are shown.
//!
//! What is raw never goes backwards where it is cumulative, as long as no process is let go and cells do not wrap, whatever is cleared,
//! comes or goes: rates are differences of raw numbers.

/// `STATSNAP`, as a word.
pub const MAGIC: u64 = u64::from_le_bytes(*b"STATSNAP");
/// Version of the format.
pub const VERSION: u32 = 1;

/// Words of the header.
pub mod header {
    #![allow(missing_docs)]
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const LENGTH: usize = 2;
    pub const REALTIME: usize = 3;
    pub const MONOTONIC: usize = 4;
    pub const PATH: usize = 5;
    pub const SECTIONS: usize = 6;
    /// How many there are.
    pub const WORDS: usize = SECTIONS + 2 * super::section::SIZES.len();
}

/// Numbers of the sections.
pub mod section {
    #![allow(missing_docs)]
    pub const DIRECTORIES: usize = 0;
    pub const LABELS: usize = 1;
    pub const KINDS: usize = 2;
    pub const FILES: usize = 3;
    pub const GROUPS: usize = 4;
    pub const VALUES: usize = 5;
    pub const CELLS: usize = 6;
    pub const PARTS: usize = 7;
    pub const WORDS: usize = 8;
    pub const TEXTS: usize = 9;
    /// Bytes of a record in each.
    pub const SIZES: [usize; 10] = [72, 16, 8, 16, 32, 64, 24, 16, 8, 1];
}

/// Flags of cells and parts.
pub mod flag {
    /// Of the directory's own sources.
    pub const OWN: u32 = 1;
    /// Left by sources that are gone.
    pub const DEPARTED: u32 = 2;
    /// There is a baseline, or what is shown differs.
    pub const CLEARED: u32 = 4;
    /// All flags of this version.
    pub const ALL: u32 = OWN | DEPARTED | CLEARED;
}

// Words are read and written as they are in memory.
const _: () = assert!(cfg!(target_endian = "little"));
