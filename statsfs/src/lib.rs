//! Live statistics as a file tree, in the style of the `/sys/kernel/stats` of the statsfs RFC (Paolo
//! Bonzini, 2019), in user space.
//!
//! A program declares *values* with [`stats!`], puts them into *sources*, and counts: an increment is one
//! unlocked instruction on memory that nobody else writes. Whoever reads pays instead: every source is a
//! directory, every value a file, every directory also shows the totals of all that is below it, and a
//! file is made when it is read. A reader never stops, locks or slows a writer. Writing `0` to a file
//! clears what it shows.
//!
//! ```
//! use std::fs;
//! use statsfs::{Embedded, Registry, fs::MountOptions, stats};
//!
//! stats! {
//!     /// What a worker does.
//!     pub struct Worker: "worker", prefix "worker_" {
//!         /// Requests answered.
//!         worker_requests: Counter,
//!         /// Time to answer one.
//!         worker_time: Histogram<Microseconds> { buckets: 24 },
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two sources: a daemon, and below it its pool of workers.
//! let registry = Registry::new()?;
//! let daemon = registry.create_source("mydaemon")?;
//! let pool = registry.create_source("pool0")?;
//! daemon.add_subordinate(&pool)?;
//! daemon.register()?;
//!
//! // Two threads count in it, each in a slot of its own.
//! let threads: Vec<_> = (0..2)
//!     .map(|_| {
//!         let slot = pool.add_values::<Worker>().unwrap();
//!         std::thread::spawn(move || {
//!             for n in 0..1000 {
//!                 slot.worker_requests.inc();
//!                 slot.worker_time.record(n % 100);
//!             }
//!         })
//!     })
//!     .collect();
//!
//! // The tree is mounted, and anyone who may can read it.
//! let dir = tempfile::tempdir()?;
//! let mounted = Embedded::mount(&registry, dir.path(), MountOptions::new())?;
//! for thread in threads {
//!     thread.join().unwrap();
//! }
//! let read = |path: &str| fs::read_to_string(dir.path().join(path));
//! assert_eq!(read("mydaemon/pool0/worker_requests")?, "2000\n");
//! assert_eq!(read("mydaemon/worker_requests")?, "2000\n");
//! assert_eq!(read("mydaemon/pool0/worker_time/count")?, "2000\n");
//! fs::write(dir.path().join("mydaemon/pool0/worker_requests"), "0")?;
//! assert_eq!(read("mydaemon/worker_requests")?, "0\n");
//! mounted.unmount()?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! ```text
//! hot loop --> Slot (plain store) --> segment (memfd) --> tree (validate, aggregate) --> fs --> user
//! ```
//!
//! Writer and reader share only the segment, a sealed memfd whose format is [`segment::layout`]: a
//! process that mounts its own tree reads its own counters the way another process would. The reader
//! trusts nothing that a segment says.
//!
//! | module | what it is for |
//! |---|---|
//! | [`value`], [`cell`], [`stats!`] | values: descriptors, groups, cells, the declaration |
//! | [`Source`], [`Registry`], [`Slot`] | sources: making, filling and removing them; counting |
//! | [`segment`] | the shared-memory format: layout, writer, validating reader |
//! | [`tree`] | the merged view: directories, totals, clears |
//! | [`fs`], [`Embedded`] | the FUSE file system and its mount |
//! | [`host`] | one tree for all processes of a host |
//! | [`snapshot`] | reading all of a tree at once, in another process |
//! | [`tools`] | what commands that look at a mount have in common |
//! | `manual` | their manual pages and completions (feature `manual`) |
// The expansions of `stats!` name this crate; inside it they must find it too.
extern crate self as statsfs;

mod aggregate;
pub mod cell;
mod embedded;
mod error;
mod export;
mod fd_groups;
mod fork;
pub mod fs;
pub mod host;
pub mod limits;
#[cfg(feature = "manual")]
pub mod manual;
mod pages;
mod people;
mod registry;
mod repeats;
pub mod segment;
mod share;
mod slot;
pub mod snapshot;
mod source;
mod threads;
pub mod tools;
pub mod tree;
mod turns;
pub mod value;

pub use embedded::{Embedded, EmbeddedError};
pub use error::{RegistryError, SourceError};
pub use fd_groups::FdGroupError;
pub use registry::{Registry, RegistryOptions, Usage};
pub use slot::{DynSlot, Slot};
pub use source::{Source, SourceBuilder};
pub use threads::{ThreadKind, ThreadStart};

/// Makes an enum without fields a [set of label values](value::LabelSet), so that a family of values
/// can be declared over it and indexed by it.
///
/// The label's key is given by `#[labels(key = "…")]`; the label's values are the variants' names in
/// snake case (`IoIn` is `io_in`), or what `#[label("…")]` says. The doc comment of each variant is
/// required: it completes the help of the values declared over the set. The enum must be `Copy`, and
/// its variants have no numbers of their own.
///
/// ```
/// use statsfs::LabelSet;
///
/// #[derive(Clone, Copy, LabelSet)]
/// #[labels(key = "reason")]
/// pub enum ExitReason {
///     /// the guest read an I/O port
///     IoIn,
///     /// the guest halted
///     #[label("hlt")]
///     Halt,
/// }
///
/// use statsfs::value::LabelSet as _;
/// assert_eq!(ExitReason::KEY, "reason");
/// assert_eq!(ExitReason::NAMES, ["io_in", "hlt"]);
/// assert_eq!(ExitReason::Halt.index(), 1);
/// ```
pub use statsfs_macros::LabelSet;
/// Declares groups of values, each as a struct whose fields are cells.
///
/// Everything else follows from the declaration: the layout of the cells, their descriptors, the
/// handle through which a program counts, and the help. What can be wrong with it is a compile error.
///
/// ```
/// use statsfs::{LabelSet, stats, value::Group};
///
/// #[derive(Clone, Copy, LabelSet)]
/// #[labels(key = "op")]
/// pub enum Op {
///     /// read
///     Read,
///     /// written
///     Write,
/// }
///
/// stats! {
///     /// One block device.
///     pub consistent struct BlkStats: "blk", prefix "blk_" {
///         /// Requests completed.
///         blk_requests: Counter,
///         /// Bytes {} by the guest.
///         blk_bytes: PerLabel<Counter<Bytes>, Op>,
///         /// Time from a request's arrival to its completion.
///         blk_time: Histogram<Nanoseconds> { buckets: 40 },
///         /// Requests now in flight.
///         blk_inflight: Gauge<u32> { aggregate: [sum, max] },
///     }
/// }
///
/// let group = BlkStats::descriptor();
/// assert_eq!(group.name(), "blk");
/// assert_eq!(group.values()[2].name, "blk_bytes_write");
/// assert_eq!(group.values()[2].help, "Bytes written by the guest.");
/// ```
///
/// # The struct
/// `struct Name: "group"` or `struct Name: "group", prefix "group_"`, with any visibility and
/// attributes; any number of structs in one `stats!`. Every value's name begins with the prefix, which
/// is empty unless given. A doc comment, joined to one line of at most 255 bytes, is required on the
/// struct and on each field: it is the help.
///
/// In a `consistent struct` the counters are latched: a reader always sees them as they were after some
/// [`update`](Slot::update), never in the middle of one. They become the fields of a second struct,
/// `NameLatched`, which only `update` hands out; the other kinds of value are fields of `Name` itself.
///
/// # Fields
/// | type | what it is | operations |
/// |---|---|---|
/// | `Counter<T = u64, U = Things>` | only grows; unsigned | [`inc`, `add`](cell::Counter) |
/// | `Gauge<T = i64, U = Things>` | goes both ways | [`set`, `add`, `sub`](cell::Gauge) |
/// | `Peak<T = u64, U = Things>` | the largest seen | [`record`](cell::Peak) |
/// | `Flag` | a bool | [`set`](cell::Flag) |
/// | `Histogram<U = Things>` | log2 buckets and a sum | [`record`](cell::Histogram) |
/// | `PerLabel<X, L>` | one `X` for each label of `L` | [indexed by an `L`](cell::PerLabel) |
///
/// An integer type among the arguments is the width, any other is the unit, one of
/// [`Things`](cell::Things), [`Bytes`](cell::Bytes), [`Cycles`](cell::Cycles),
/// [`Seconds`](cell::Seconds), [`Milliseconds`](cell::Milliseconds),
/// [`Microseconds`](cell::Microseconds) and [`Nanoseconds`](cell::Nanoseconds). None of these names
/// needs to be imported.
///
/// The values of a `PerLabel` field are called `<field>_<label>`; they are a family, called like the
/// field unless the option says otherwise; `{}` in the help stands for the label's own help.
///
/// # Options
/// In braces after the type:
///
/// | option | meaning | default |
/// |---|---|---|
/// | `aggregate: none`, a kind, or `[kind, …]` | what ancestors show: `sum`, `min`, `max`, `avg`, `zero`, `nonzero` | `sum`; `max` for a peak |
/// | `family: "name"` | the family in label-based exports | the value's name |
/// | `label: "key=value"` | what tells the value apart within its family | |
/// | `mode: 0o600` | permission bits | 0644 where it can be cleared, else 0444 |
/// | `buckets: 40` | buckets of a histogram, 2 to 64 | 64 |
/// | `states: S` | a gauge is a state: its numbers are the indexes of the [`LabelSet`](value::LabelSet) `S`, whose names are shown in `.stats/schema` | |
pub use statsfs_macros::stats;
