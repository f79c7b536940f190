//! What accounting for one exit costs: the exit loop's own functions on synthetic exits, with counts
//! only and with time, alone and while a reader on the other CPU sweeps the same segment without pause.
//!
//! `cargo bench -p vmm --bench accounting [-- --quick --json]`

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use statsfs::{Registry, Slot};
use statsfs_benches::{Comparison, Options, escape, pin, timed};
use vmm::accounting::{Account, Counted, Off, Timed};
use vmm::clock::{Clock, Moment};
use vmm::exit::ExitReason;
use vmm::stats::VcpuStats;

/// Exits as a busy guest makes them, in no order that a branch predictor could learn.
fn exits() -> Vec<ExitReason> {
    use ExitReason::{Hlt, Intr, IoIn, IoOut, MmioRead, MmioWrite};
    let mix = [IoOut, IoOut, IoOut, IoIn, IoIn, MmioWrite, MmioWrite, MmioRead, Hlt, Intr];
    let mut state = 1_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        mix[(state >> 33) as usize % mix.len()]
    };
    (0..4096).map(|_| next()).collect()
}

/// The exit loop without KVM and devices: what is left is the accounting.
#[inline(never)]
fn exit_loop<A: Account>(account: &mut A, exits: &[ExitReason], n: u64) {
    let mut next = exits.iter().cycle();
    for _ in 0..n {
        account.enter();
        // KVM_RUN would be here: nothing survives in registers.
        escape(account);
        if let Some(reason) = next.next() {
            account.exit(*reason);
        }
        escape(account);
    }
}

/// Reads the clock twice an exit, and does nothing else.
#[inline(never)]
fn clock_loop(clock: &Clock, exits: &[ExitReason], n: u64) {
    let mut next = exits.iter().cycle();
    for _ in 0..n {
        escape(&clock.now());
        escape(&next.next());
        escape(&clock.now());
    }
}

fn slot(registry: &Registry, name: &str) -> Slot<VcpuStats> {
    let source = registry.create_source(name).expect("a source");
    source.register().expect("a free name");
    source.add_values().expect("room for a slot")
}

/// On cache lines of its own: what the two CPUs write beside their work must not meet.
#[repr(align(128))]
struct Apart<T>(T);

/// Sweeps a registry on the second CPU, while it is told to.
struct Sweeper {
    on: AtomicBool,
    end: AtomicBool,
    sweeps: AtomicU64,
}

impl Sweeper {
    fn run(&self, registry: &Registry) {
        pin(1);
        let tree = registry.tree().expect("a registry's own segments");
        let mut buffer = Vec::new();
        while !self.end.load(Ordering::Relaxed) {
            if self.on.load(Ordering::Relaxed) {
                buffer.clear();
                tree.flat(&mut buffer);
                self.sweeps.fetch_add(1, Ordering::Relaxed);
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Times `run` while the sweeper is certainly sweeping.
    fn during(&self, run: impl FnOnce()) -> Duration {
        let before = self.sweeps.load(Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
        while self.sweeps.load(Ordering::Relaxed) == before {
            std::hint::spin_loop();
        }
        let time = timed(run);
        self.on.store(false, Ordering::Relaxed);
        time
    }
}

fn main() {
    let options = Options::from_args();
    let cpus = pin(0);
    let clock = Clock::new(None, Moment::now());
    let registry = Registry::new().expect("a segment");
    let exits = exits();
    let sweeper = Apart(Sweeper {
        on: AtomicBool::new(false),
        end: AtomicBool::new(false),
        sweeps: AtomicU64::new(0),
    });
    let sweeper = &sweeper.0;

    // How often each accountant was used, to compare with what it counted.
    let (mut timed_exits, mut counted_exits) = (0, 0);
    let timed_account = Apart(RefCell::new(Timed::new(slot(&registry, "timed"), clock)));
    let counted_account = Apart(RefCell::new(Counted::new(slot(&registry, "counted"))));
    std::thread::scope(|scope| {
        scope.spawn(|| sweeper.run(&registry));
        let (timed_exits, counted_exits) =
            (Cell::from_mut(&mut timed_exits), Cell::from_mut(&mut counted_exits));
        let with_time = |n| {
            timed_exits.set(timed_exits.get() + n);
            exit_loop(&mut *timed_account.0.borrow_mut(), &exits, n);
        };
        let counts = |n| {
            counted_exits.set(counted_exits.get() + n);
            exit_loop(&mut *counted_account.0.borrow_mut(), &exits, n);
        };
        let mut c = Comparison::new("Accounting for one exit");
        c.case("the loop alone", |n| timed(|| exit_loop(&mut Off, &exits, n)));
        c.case("two readings of the clock", |n| timed(|| clock_loop(&clock, &exits, n)));
        c.case("counts", |n| timed(|| counts(n)));
        c.budget_extra(5.0);
        c.case("counts and times", |n| timed(|| with_time(n)));
        c.against("two readings of the clock");
        c.budget_extra(10.0);
        if cpus > 1 {
            c.case("counts, swept by a reader", |n| sweeper.during(|| counts(n)));
            c.against("counts");
            c.budget(1.05);
            c.case("counts and times, swept by a reader", |n| sweeper.during(|| with_time(n)));
            c.against("counts and times");
            c.budget(1.05);
        }
        c.run(options);
        sweeper.end.store(true, Ordering::Relaxed);
    });

    // The reader took nothing away.
    let mut flat = Vec::new();
    registry.tree().expect("a registry's own segments").flat(&mut flat);
    let flat = String::from_utf8(flat).expect("text");
    for (path, expected) in
        [("timed/user_exits", timed_exits), ("counted/user_exits", counted_exits)]
    {
        let line = flat.lines().find_map(|line| line.strip_prefix(path)?.trim().parse().ok());
        assert_eq!(line, Some(expected), "{path}");
    }
    options.say(format_args!(
        "  {} sweeps meanwhile; every one of {} exits is in the tree",
        sweeper.sweeps.load(Ordering::Relaxed),
        timed_exits + counted_exits
    ));
    if cpus < 2 {
        options.say("  one CPU only: not measured with a reader");
    }
}
