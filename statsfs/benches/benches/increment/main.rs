//! What counting costs: one increment against a plain `+= 1` and against the usual crates, on one
//! thread and on two; latched updates; histograms; and the compiled code itself.
//!
//! `cargo bench -p statsfs-benches --bench increment [-- --quick --json]`

mod listing;
mod rivals;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use statsfs::cell::bucket_of;
use statsfs::{LabelSet, Registry, Slot, Source, stats};
use statsfs_benches::{Comparison, Options, escape, pin, timed};

use listing::Listing;
use rivals::Rivals;

#[derive(Clone, Copy, LabelSet)]
#[labels(key = "reason")]
#[repr(u8)]
enum Reason {
    /// of port input
    IoIn,
    /// of port output
    IoOut,
    /// of an MMIO read
    MmioRead,
    /// of an MMIO write
    MmioWrite,
}

const REASONS: [Reason; 4] = [Reason::IoIn, Reason::IoOut, Reason::MmioRead, Reason::MmioWrite];

stats! {
    /// Counters that are not latched.
    struct Plain: "plain" {
        /// Exits.
        exits: Counter,
        /// Exits because {}.
        exit: PerLabel<Counter, Reason>,
        /// Time of handling.
        time: Histogram<Nanoseconds> { buckets: 40 },
    }

    /// The same, latched.
    consistent struct Latched: "latched" {
        /// Exits.
        latched_exits: Counter,
        /// Exits because {}.
        latched_exit: PerLabel<Counter, Reason>,
    }
}

// The functions whose code is listed. They keep their names, so that other tools find them too.

/// `+= 1` on an ordinary integer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_plain(counter: &mut u64) {
    *counter += 1;
}

/// One increment through a slot.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_counter(slot: &Slot<Plain>) {
    slot.exits.inc();
}

/// One increment of a counter chosen by its label.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_per_label(slot: &Slot<Plain>, reason: Reason) {
    slot.exit[reason].inc();
}

/// A latched update of two counters.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_update(slot: &Slot<Latched>, reason: Reason) {
    slot.update(|c| {
        c.latched_exits.inc();
        c.latched_exit[reason].inc();
    });
}

/// One value into a histogram.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_histogram(slot: &Slot<Plain>, value: u64) {
    slot.time.record(value);
}

/// What the others do.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_fetch_add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

// The loops that are timed. Each is a function of its own, so that its code can be checked: the two
// that are compared most closely must store once an iteration.

#[inline(never)]
fn plain_loop(counter: &mut u64, n: u64) {
    for _ in 0..n {
        *counter += 1;
        escape(counter);
    }
}

#[inline(never)]
fn counter_loop(slot: &Slot<Plain>, n: u64) {
    for _ in 0..n {
        slot.exits.inc();
        escape(&**slot);
    }
}

#[inline(never)]
fn fetch_add_loop(counter: &AtomicU64, n: u64) {
    for _ in 0..n {
        counter.fetch_add(1, Ordering::Relaxed);
        escape(counter);
    }
}

/// The reasons in turn.
#[inline(always)]
fn by_reason(n: u64, mut run: impl FnMut(Reason)) {
    for i in 0..n {
        run(REASONS[i as usize % REASONS.len()]);
    }
}

#[inline(never)]
fn plain_by_label_loop(counters: &mut [u64; REASONS.len()], n: u64) {
    by_reason(n, |reason| {
        counters[reason as usize] += 1;
        escape(counters);
    });
}

#[inline(never)]
fn by_label_loop(slot: &Slot<Plain>, n: u64) {
    by_reason(n, |reason| {
        slot.exit[reason].inc();
        escape(&**slot);
    });
}

#[inline(never)]
fn plain_pair_loop(counters: &mut [u64; 1 + REASONS.len()], n: u64) {
    by_reason(n, |reason| {
        counters[0] += 1;
        counters[1 + reason as usize] += 1;
        escape(counters);
    });
}

#[inline(never)]
fn pair_loop(slot: &Slot<Plain>, n: u64) {
    by_reason(n, |reason| {
        slot.exits.inc();
        slot.exit[reason].inc();
        escape(&**slot);
    });
}

#[inline(never)]
fn update_loop(slot: &Slot<Latched>, n: u64) {
    by_reason(n, |reason| {
        slot.update(|c| {
            c.latched_exits.inc();
            c.latched_exit[reason].inc();
        });
        escape(&**slot);
    });
}

/// A histogram as one would write it without sharing: the reference for `record`.
struct PlainHistogram {
    sum: u64,
    buckets: [u64; 40],
}

/// Values of all magnitudes, cheaply; the same for everybody.
#[inline(always)]
fn values(n: u64, mut run: impl FnMut(u64)) {
    let mut state = 1_u64;
    for _ in 0..n {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        run(state >> (state >> 59));
    }
}

#[inline(never)]
fn plain_histogram_loop(histogram: &mut PlainHistogram, n: u64) {
    values(n, |value| {
        histogram.buckets[bucket_of(value, 40)] += 1;
        histogram.sum = histogram.sum.wrapping_add(value);
        escape(histogram);
    });
}

#[inline(never)]
fn histogram_loop(slot: &Slot<Plain>, n: u64) {
    values(n, |value| {
        slot.time.record(value);
        escape(&**slot);
    });
}

/// Repeats something that the compiler cannot fold, because it is atomic or behind a call.
#[inline(always)]
fn repeat(n: u64, mut run: impl FnMut()) {
    for _ in 0..n {
        run();
    }
}

/// CPU time of that.
#[inline(always)]
fn timed_loop(n: u64, run: impl FnMut()) -> Duration {
    timed(|| repeat(n, run))
}

/// Attempts to have two threads run at the same time, on a machine where others run too.
const ATTEMPTS: usize = 20;

/// CPU time of `run`, and whether the thread ran all the while.
fn uninterrupted(run: impl FnOnce()) -> (Duration, bool) {
    let start = Instant::now();
    let time = timed(run);
    (time, time >= start.elapsed().mul_f64(0.95))
}

/// Runs both at the same time on two CPUs and answers the mean of their CPU times. Contention shows
/// only while both really run, so it is tried again when either was preempted.
fn both(mut here: impl FnMut(), mut there: impl FnMut() + Send) -> Duration {
    for attempt in 1.. {
        let ready = AtomicUsize::new(0);
        let meet = || {
            ready.fetch_add(1, Ordering::AcqRel);
            while ready.load(Ordering::Acquire) < 2 {
                std::hint::spin_loop();
            }
        };
        let ((here, alone_here), (there, alone_there)) = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                pin(1);
                meet();
                uninterrupted(&mut there)
            });
            meet();
            let here = uninterrupted(&mut here);
            (here, there.join().expect("no panic while counting"))
        });
        if alone_here && alone_there || attempt == ATTEMPTS {
            return (here + there) / 2;
        }
    }
    unreachable!("the last attempt returns")
}

/// Two counters of two threads, on cache lines (and prefetched pairs of them) of their own.
#[repr(align(128))]
#[derive(Default)]
struct Alone(u64);

fn one_thread(source: &Source, rivals: &Rivals, options: Options) {
    let slot = source.add_values::<Plain>().expect("room for a slot");
    let (mut counter, mut control, atomic) = (0, 0, AtomicU64::new(0));
    let local = rivals.prometheus.local();
    let mut array = Box::new([0; REASONS.len()]);
    let mut c = Comparison::new("One increment, one thread");
    c.case("plain u64 += 1", |n| timed(|| plain_loop(&mut counter, n)));
    c.case("the same again", |n| timed(|| plain_loop(&mut control, n)));
    c.note("what noise makes of 1.00");
    c.case("statsfs: slot.exits.inc()", |n| timed(|| counter_loop(&slot, n)));
    c.budget(1.1);
    c.case("plain array[reason] += 1", |n| timed(|| plain_by_label_loop(&mut array, n)));
    c.case("statsfs: slot.exit[reason].inc()", |n| timed(|| by_label_loop(&slot, n)));
    c.against("plain array[reason] += 1");
    c.case("AtomicU64::fetch_add", |n| timed(|| fetch_add_loop(&atomic, n)));
    c.case("prometheus: IntCounter", |n| timed_loop(n, || rivals.prometheus.inc()));
    c.case("prometheus: LocalIntCounter", |n| {
        timed_loop(n, || {
            local.inc();
            escape(&local);
        })
    });
    c.note("not seen by anybody until flushed");
    c.case("prometheus-client: Counter", |n| {
        timed_loop(n, || {
            rivals.client.inc();
        })
    });
    c.case("metrics: Counter kept", |n| timed_loop(n, || rivals.metrics.increment(1)));
    c.case("prometheus: with_label_values", |n| {
        timed_loop(n, || rivals.prometheus_family.with_label_values(&["io_in"]).inc())
    });
    c.case("prometheus-client: get_or_create", |n| {
        timed_loop(n, || {
            rivals.client_family.get_or_create(&rivals.client_labels).inc();
        })
    });
    c.case("metrics: counter!", |n| {
        timed_loop(n, || metrics::counter!("user_exit", "reason" => "io_in").increment(1))
    });
    c.run(options);
}

fn two_threads(source: &Source, rivals: &Rivals, options: Options) {
    let here = source.add_values::<Plain>().expect("room for a slot");
    let mut there = source.add_values::<Plain>().expect("room for a slot");
    let (mut own, mut other) = (Alone::default(), Alone::default());
    let atomic = AtomicU64::new(0);
    let mut c = Comparison::new("One increment of each of two threads at once");
    // One thread and two of the same thing, in turn: what the second costs the first.
    macro_rules! pair {
        ($name:literal, $alone:expr, $both:expr) => {
            c.case(concat!($name, ", one"), $alone);
            c.against(concat!($name, ", one"));
            c.case(concat!($name, ", two"), $both);
            c.against(concat!($name, ", one"));
        };
    }
    let own = std::cell::RefCell::new(&mut own);
    // What the machine makes of two threads that share nothing.
    pair!("plain u64 each", |n| timed(|| plain_loop(&mut own.borrow_mut().0, n)), |n| both(
        || plain_loop(&mut own.borrow_mut().0, n),
        || plain_loop(&mut other.0, n)
    ));
    c.case("statsfs: a slot each, two", |n| {
        let there = &mut there;
        both(|| counter_loop(&here, n), move || counter_loop(there, n))
    });
    c.against("plain u64 each, two");
    c.budget(1.1);
    pair!("AtomicU64::fetch_add, shared", |n| timed(|| fetch_add_loop(&atomic, n)), |n| both(
        || fetch_add_loop(&atomic, n),
        || fetch_add_loop(&atomic, n)
    ));
    macro_rules! rival {
        ($name:literal, $run:expr) => {
            pair!($name, |n| timed_loop(n, $run), |n| both(|| repeat(n, $run), || repeat(n, $run)));
        };
    }
    rival!("prometheus: IntCounter", || rivals.prometheus.inc());
    rival!("prometheus-client: Counter", || {
        rivals.client.inc();
    });
    rival!("metrics: Counter kept", || rivals.metrics.increment(1));
    c.run(options);
}

fn updates(source: &Source, options: Options) {
    let plain = source.add_values::<Plain>().expect("room for a slot");
    let latched = source.add_values::<Latched>().expect("room for a slot");
    let mut ints = Box::new([0; 1 + REASONS.len()]);
    let mut c = Comparison::new("Two counters: a total, and one by label");
    c.case("plain u64 += 1, twice", |n| timed(|| plain_pair_loop(&mut ints, n)));
    c.case("statsfs: not latched", |n| timed(|| pair_loop(&plain, n)));
    c.case("statsfs: latched update", |n| timed(|| update_loop(&latched, n)));
    c.against("statsfs: not latched");
    c.run(options);
}

fn histograms(source: &Source, options: Options) {
    let slot = source.add_values::<Plain>().expect("room for a slot");
    let mut own = Box::new(PlainHistogram { sum: 0, buckets: [0; 40] });
    let mut c = Comparison::new("One value into a histogram of 40 buckets");
    c.case("plain integers", |n| timed(|| plain_histogram_loop(&mut own, n)));
    c.case("statsfs: slot.time.record(ns)", |n| timed(|| histogram_loop(&slot, n)));
    c.run(options);
}

/// Prints the compiled code, and fails if it is not what is promised.
fn listings(options: Options) {
    let show = |title: &str, start: *const ()| {
        let code = Listing::of(start);
        options.say(format_args!(
            "\n{title}: {} instructions, {} stores, {} locked",
            code.len(),
            code.stores(),
            code.locked()
        ));
        for line in code.lines() {
            options.say(format_args!("    {line}"));
        }
        code
    };
    options.say("\nThe compiled code");
    show("plain u64 += 1", listed_plain as *const ());
    let ours = [
        show("slot.exits.inc()", listed_counter as *const ()),
        show("slot.exit[reason].inc()", listed_per_label as *const ()),
        show("slot.update(two counters)", listed_update as *const ()),
        show("slot.time.record(value)", listed_histogram as *const ()),
    ];
    show("AtomicU64::fetch_add", listed_fetch_add as *const ());
    if cfg!(debug_assertions) {
        options.say("\nNot checked: this is not optimised code.");
        return;
    }
    // These are facts about the code and not times: a failure here is a defect.
    for code in &ours {
        assert_eq!((code.locked(), code.calls()), (0, 0), "counting must not lock or call");
    }
    let stores = |code: &Listing| (code.stores(), code.locked());
    assert_eq!(stores(&ours[0]), (1, 0), "an increment is one store");
    assert_eq!(stores(&Listing::of(plain_loop as *const ())), (1, 0), "the reference was folded");
    assert_eq!(stores(&Listing::of(counter_loop as *const ())), (1, 0), "the timed loop differs");
}

fn main() {
    let options = Options::from_args();
    if pin(0) < 2 {
        options.say("one CPU only: the figures of two threads mean nothing");
    }
    listings(options);
    let registry = Registry::new().expect("a segment");
    let source = registry.create_source("bench").expect("a source");
    source.register().expect("a free name");
    let rivals = Rivals::new();
    one_thread(&source, &rivals, options);
    two_threads(&source, &rivals, options);
    updates(&source, options);
    histograms(&source, options);
}
