//! What `stats!` and `#[derive(LabelSet)]` expand to, used as a program uses it.
// The expansions must be usable where unsafe code is forbidden: their safety is the macro's affair.
#![forbid(unsafe_code)]

use std::mem::{align_of, offset_of, size_of};

use statsfs::value::{
    Aggregations, Area, Consistent, Descriptor, Group, GroupDescriptor, LabelSet as _, NoCells,
    Place, Semantics, Unit, ValueType,
};
use statsfs::{LabelSet, stats};

/// Why a guest stopped.
#[derive(Clone, Copy, LabelSet)]
#[labels(key = "reason")]
pub enum ExitReason {
    /// the guest read
    /// an I/O port
    IoIn,
    /// the guest wrote an I/O port
    IoOut,
    /// the guest halted
    #[label("hlt")]
    Halt,
}

stats! {
    /// One vCPU, as its
    /// exit loop saw it.
    pub consistent struct VcpuStats: "vcpu" {
        /// Times KVM_RUN returned to user space.
        user_exits: Counter,
        /// Times KVM_RUN returned because {}.
        user_exit: PerLabel<Counter, ExitReason> { family: "user_exits" },
        /// Time from KVM_RUN's return to the next KVM_RUN.
        user_handle_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Host thread that runs this vCPU.
        thread_id: Gauge<u32> { aggregate: none },
        /// Bytes moved by string instructions.
        string_bytes: Counter<u32, Bytes> { mode: 0o600 },
    }

    /// A block device.
    pub(crate) struct BlkStats: "blk", prefix "blk_" {
        /// Requests now in flight.
        blk_inflight: Gauge<i16> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Most requests in flight.
        blk_inflight_peak: Peak<u16>,
        /// Whether the device is ready.
        blk_ready: Flag { aggregate: [zero, nonzero] },
        /// Bytes read.
        blk_read_bytes: Counter<Bytes> { family: "blk_bytes", label: "op=read" },
        /// Size of requests.
        blk_request_size: Histogram<Bytes> { aggregate: none },
        /// Time of exits because {}; measured.
        blk_time: PerLabel<Histogram<Microseconds>, ExitReason> { buckets: 2 },
        /// Whether {} ever.
        blk_seen: PerLabel<Flag, ExitReason>,
        /// Highest when {}.
        blk_high: PerLabel<Peak<i8, Cycles>, ExitReason> { aggregate: max },
        /// Why the last exit was.
        blk_last: Gauge<u8> { states: ExitReason },
        /// Why the last one was when {}.
        blk_lasts: PerLabel<Gauge<u8>, ExitReason> { aggregate: nonzero, states: ExitReason },
    }

    /// A latched copy that is narrower than a word.
    consistent struct Narrow: "narrow" {
        /// One.
        byte: Counter<u8>,
    }

    /// Counters only: the single-copy part is empty.
    consistent struct OnlyCounters: "only" {
        /// One.
        one: Counter<u8>,
        /// Two.
        pub(crate) two: Counter<u64, Milliseconds>,
    }
}

fn value<'a>(group: &'a GroupDescriptor, name: &str) -> (&'a Descriptor, Place) {
    let at = group.values().iter().position(|v| v.name == name).expect(name);
    (&group.values()[at], group.places()[at])
}

fn names(group: &GroupDescriptor) -> Vec<&str> {
    group.values().iter().map(|v| &*v.name).collect()
}

#[test]
fn group_is_described() {
    let group = VcpuStats::descriptor();
    assert_eq!(group.name(), "vcpu");
    assert_eq!(group.prefix(), "");
    assert_eq!(group.help(), "One vCPU, as its exit loop saw it.");
    assert!(group.is_consistent());
    assert_eq!(
        names(group),
        [
            "user_exits",
            "user_exit_io_in",
            "user_exit_io_out",
            "user_exit_hlt",
            "user_handle_time",
            "thread_id",
            "string_bytes"
        ]
    );
    let blk = BlkStats::descriptor();
    assert_eq!((blk.name(), blk.prefix()), ("blk", "blk_"));
    assert!(!blk.is_consistent());
    assert!(
        std::sync::Arc::ptr_eq(group, VcpuStats::descriptor()),
        "one description for the life of the program"
    );
}

#[test]
fn scalar_values_have_the_defaults_of_their_semantics() {
    let group = VcpuStats::descriptor();
    assert_eq!(
        *value(group, "user_exits").0,
        Descriptor::new("user_exits", ValueType::U64, Semantics::Cumulative)
            .help("Times KVM_RUN returned to user space.")
    );
    assert_eq!(
        *value(group, "thread_id").0,
        Descriptor::new("thread_id", ValueType::U32, Semantics::Floating)
            .help("Host thread that runs this vCPU.")
            .aggregate(Aggregations::NONE)
    );
    assert_eq!(
        *value(group, "string_bytes").0,
        Descriptor::new("string_bytes", ValueType::U32, Semantics::Cumulative)
            .help("Bytes moved by string instructions.")
            .unit(Unit::BYTES)
            .mode(0o600)
    );
    assert_eq!(
        *value(group, "user_handle_time").0,
        Descriptor::new(
            "user_handle_time",
            ValueType::Histogram { buckets: 40, sum: true },
            Semantics::Cumulative
        )
        .help("Time from KVM_RUN's return to the next KVM_RUN.")
        .unit(Unit::NANOSECONDS)
    );

    let blk = BlkStats::descriptor();
    let inflight = value(blk, "blk_inflight").0;
    assert_eq!(
        (inflight.ty, inflight.semantics, inflight.aggregations, inflight.mode),
        (ValueType::S16, Semantics::Floating, Aggregations::ALL, 0o444)
    );
    let peak = value(blk, "blk_inflight_peak").0;
    assert_eq!(
        (peak.ty, peak.semantics, peak.aggregations, peak.mode),
        (ValueType::U16, Semantics::Peak, Aggregations::MAX, 0o444)
    );
    let ready = value(blk, "blk_ready").0;
    assert_eq!((ready.ty, ready.semantics), (ValueType::Bool, Semantics::Floating));
    assert_eq!(ready.aggregations, Aggregations::COUNT_ZERO | Aggregations::COUNT_NONZERO);
    let read = value(blk, "blk_read_bytes").0;
    assert_eq!((read.ty, read.unit), (ValueType::U64, Unit::BYTES));
    assert_eq!(read.family.as_deref(), Some("blk_bytes"));
    assert_eq!(read.label, Some(("op".into(), "read".into())));
    let size = value(blk, "blk_request_size").0;
    assert_eq!(size.ty, ValueType::Histogram { buckets: 64, sum: true });
    assert!(size.aggregations.is_empty());
    let two = value(OnlyCounters::descriptor(), "two").0;
    assert_eq!((two.ty, two.unit), (ValueType::U64, Unit::MILLISECONDS));
}

#[test]
fn values_over_labels_are_one_each() {
    assert_eq!(ExitReason::KEY, "reason");
    assert_eq!(ExitReason::NAMES, ["io_in", "io_out", "hlt"]);
    assert_eq!(
        ExitReason::HELP,
        ["the guest read an I/O port", "the guest wrote an I/O port", "the guest halted"]
    );
    assert_eq!(
        [ExitReason::IoIn, ExitReason::IoOut, ExitReason::Halt].map(|r| r.index()),
        [0, 1, 2]
    );

    let group = VcpuStats::descriptor();
    assert_eq!(
        *value(group, "user_exit_io_out").0,
        Descriptor::new("user_exit_io_out", ValueType::U64, Semantics::Cumulative)
            .help("Times KVM_RUN returned because the guest wrote an I/O port.")
            .family("user_exits")
            .label("reason", "io_out")
    );
    let blk = BlkStats::descriptor();
    assert_eq!(
        *value(blk, "blk_time_hlt").0,
        Descriptor::new(
            "blk_time_hlt",
            ValueType::Histogram { buckets: 2, sum: true },
            Semantics::Cumulative
        )
        .help("Time of exits because the guest halted; measured.")
        .unit(Unit::MICROSECONDS)
        .family("blk_time")
        .label("reason", "hlt")
    );
    assert_eq!(
        *value(blk, "blk_high_io_in").0,
        Descriptor::new("blk_high_io_in", ValueType::S8, Semantics::Peak)
            .help("Highest when the guest read an I/O port.")
            .unit(Unit::CYCLES)
            .family("blk_high")
            .label("reason", "io_in")
    );
    assert_eq!(value(blk, "blk_seen_io_in").0.ty, ValueType::Bool);
    let last = value(blk, "blk_last").0;
    assert_eq!(last.states, ExitReason::NAMES);
    assert!(last.aggregations.is_empty());
    let last = value(blk, "blk_lasts_hlt").0;
    assert_eq!(last.states, ExitReason::NAMES);
    assert_eq!(last.aggregations, Aggregations::COUNT_NONZERO);
}

#[test]
fn places_are_those_of_the_fields() {
    let group = VcpuStats::descriptor();
    let latched = |offset: usize| Place { area: Area::Latched, offset: offset as u32 };
    let plain = |offset: usize| Place { area: Area::Plain, offset: offset as u32 };
    assert_eq!(value(group, "user_exits").1, latched(offset_of!(VcpuStatsLatched, user_exits)));
    let family = offset_of!(VcpuStatsLatched, user_exit);
    assert_eq!(value(group, "user_exit_io_in").1, latched(family));
    assert_eq!(value(group, "user_exit_hlt").1, latched(family + 2 * 8));
    assert_eq!(value(group, "string_bytes").1, latched(offset_of!(VcpuStatsLatched, string_bytes)));
    assert_eq!(value(group, "user_handle_time").1, plain(offset_of!(VcpuStats, user_handle_time)));
    assert_eq!(value(group, "thread_id").1, plain(offset_of!(VcpuStats, thread_id)));
    assert_eq!(group.latched_size(), size_of::<VcpuStatsLatched>());
    assert_eq!(group.plain_size(), size_of::<VcpuStats>());
    // 5 counters: 4 of 8 bytes and one of 4, rounded up; a histogram of 41 cells and a u32.
    assert_eq!((group.latched_size(), group.plain_size()), (40, 336));

    let blk = BlkStats::descriptor();
    let family = offset_of!(BlkStats, blk_time);
    assert_eq!(value(blk, "blk_time_io_in").1, plain(family));
    assert_eq!(value(blk, "blk_time_hlt").1, plain(family + 2 * 3 * 8));
    let family = offset_of!(BlkStats, blk_seen);
    assert_eq!(value(blk, "blk_seen_io_out").1, plain(family + 1));
}

#[test]
fn empty_parts_work() {
    let group = OnlyCounters::descriptor();
    assert_eq!((group.plain_size(), group.latched_size()), (0, 16));
    assert_eq!(size_of::<OnlyCounters>(), 0);
    assert_eq!(align_of::<OnlyCounters>(), 1);
    assert!(group.places().iter().all(|p| p.area == Area::Latched));
    assert_eq!(BlkStats::descriptor().latched_size(), 0);
}

/// The second latched copy follows the first, and what is behind it is aligned like the block.
#[test]
fn latched_copies_are_whole_words() {
    let group = Narrow::descriptor();
    assert_eq!((group.latched_size(), group.plain_size()), (8, 0));
    assert_eq!(size_of::<NarrowLatched>(), 8);
}

#[test]
fn types_are_as_declared() {
    fn consistent<G: Consistent<Latched = L>, L>() {}
    fn ordinary<G: Group<Latched = NoCells>>() {}
    consistent::<VcpuStats, VcpuStatsLatched>();
    consistent::<OnlyCounters, OnlyCountersLatched>();
    ordinary::<BlkStats>();
    // Fields have the cells' types and the struct's visibility, and labels index families.
    fn _uses(
        plain: &VcpuStats,
        latched: &VcpuStatsLatched,
        blk: &BlkStats,
        only: &OnlyCountersLatched,
    ) {
        plain.user_handle_time.record(5);
        plain.thread_id.set(7_u32);
        latched.user_exits.inc();
        latched.user_exit[ExitReason::Halt].inc();
        latched.string_bytes.add(3_u32);
        blk.blk_time[ExitReason::IoIn].record(1);
        blk.blk_high[ExitReason::IoIn].record(-1_i8);
        blk.blk_seen[ExitReason::IoIn].set(true);
        only.one.add(1_u8);
        only.two.add(1_u64);
    }
}

mod elsewhere {
    //! A module that imports nothing.
    ::statsfs::stats! {
        /// In a module.
        #[cfg(all())]
        #[allow(dead_code)]
        pub(super) consistent struct Inner: "inner" {
            /// Some {}.
            pub some: PerLabel<Counter, super::ExitReason>,
        }

        /// Left out: all of its parts.
        #[cfg(any())]
        pub consistent struct Absent: "absent" {
            /// Some.
            some: Counter<u64>,
        }
    }
}

#[test]
fn declarations_work_anywhere() {
    assert_eq!(names(elsewhere::Inner::descriptor()), ["some_io_in", "some_io_out", "some_hlt"]);
    stats! {
        /// In a function, with types of the same names in scope.
        struct Local: "local" {
            /// A.
            a: Counter,
        }
    }
    #[allow(dead_code)]
    struct Counter;
    #[allow(dead_code)]
    struct Vec;
    assert_eq!(names(Local::descriptor()), ["a"]);
}
