//! While a guest runs at full speed, everything that is read through the mount is consistent; and clears
//! at any moment lose nothing and invent nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::Random;
use tests::flat::Flat;
use tests::guest::{EXIT_PORT, Mode, NO_MEMORY, NO_PORT, Op, Step, end, park};
use tests::inject::hold;
use tests::outside::Outside;
use tests::running::Running;
use tests::soak::rounds;
use tests::tracepoint::{HLT, KvmReturns};
use tests::vmm::Vmm;

/// A guest that makes all kinds of exits, in turns, for ever.
fn busy() -> Vec<Step> {
    vec![
        Step::new(Op::Out8, 5, NO_PORT),
        Step::new(Op::In32, 4, NO_PORT),
        Step::new(Op::In8, 1, EXIT_PORT),
        Step::new(Op::Hlt, 1, 0).per_index(1),
        Step::new(Op::Read64, 3, NO_MEMORY),
        Step::new(Op::Write16, 2, NO_MEMORY),
        Step::new(Op::Outs16, 7, NO_PORT),
        Step::new(Op::Cpuid, 1, 0),
        Step::new(Op::Again, 1, 0),
    ]
}

const CPUS: u32 = 4;

fn start_busy() -> Running {
    let running = Vmm::new(Mode::Long, &busy()).cpus(CPUS).start_mounted();
    running.wait_for_exits(1000);
    running
}

/// Ends what runs for ever, and compares with the kernel, if nothing was cleared.
fn stop(running: Running, kernel: Option<&KvmReturns>) -> Flat {
    running.signal(libc::SIGTERM);
    let flat = running.wait().assert(143).flat();
    if let Some(kernel) = kernel {
        flat.assert_sums();
        kernel.assert_agrees(&flat);
    }
    flat
}

/// Whether a value is one that only grows.
fn only_grows(path: &str) -> bool {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (_, above) = above.rsplit_once('/').unwrap_or(("", above));
    let counters = ["user_exit", "user_time_", "bus_", "io_", "serial_", "exit_requests"];
    counters.iter().any(|prefix| name.starts_with(prefix))
        || (above.starts_with("user_") && (name == "count" || name == "sum"))
        || above == "buckets"
}

/// Every directory with an exit loop's values is balanced: vCPUs, machine and `kvm`, as far as they are
/// there.
fn assert_all_balanced(flat: &Flat) -> usize {
    let directories: Vec<_> =
        flat.iter().filter_map(|(path, _)| path.strip_suffix("/user_exits")).collect();
    directories.iter().for_each(|directory| flat.assert_balanced(directory));
    directories.len()
}

/// Reads a `.stats/flat` again and again until told to stop, with `check` of each and the one before.
/// Counts how many there were.
fn sweep(
    path: &Path,
    done: &AtomicBool,
    sweeps: &AtomicU64,
    mut check: impl FnMut(&Flat, Option<&Flat>),
) {
    let mut before = None;
    while !done.load(Ordering::Relaxed) {
        let flat = Flat::read(path);
        check(&flat, before.as_ref());
        before = Some(flat);
        sweeps.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn every_flat_is_consistent_and_totals_never_go_back() {
    let kernel = KvmReturns::watch_all();
    let running = start_busy();
    let machine = running.machine();
    let places: [(PathBuf, usize); 4] = [
        (running.path(".stats/flat"), CPUS as usize + 2),
        (running.path("kvm/.stats/flat"), CPUS as usize + 2),
        (running.path(&format!("{machine}/.stats/flat")), CPUS as usize + 1),
        (running.path(&format!("{machine}/vcpu2/.stats/flat")), 1),
    ];
    let done = AtomicBool::new(false);
    let growing = AtomicU64::new(0);
    let sweeps = [const { AtomicU64::new(0) }; 4];
    thread::scope(|scope| {
        let readers: Vec<_> = places
            .iter()
            .zip(&sweeps)
            .map(|((path, directories), sweeps)| {
                let (done, growing) = (&done, &growing);
                scope.spawn(move || {
                    sweep(path, done, sweeps, |flat, before| {
                        assert_eq!(assert_all_balanced(flat), *directories, "{}", path.display());
                        let Some(before) = before else { return };
                        assert_eq!(flat.len(), before.len(), "no value comes or goes");
                        for (path, value) in flat.iter().filter(|(path, _)| only_grows(path)) {
                            let earlier = before.get(path);
                            assert!(value >= earlier, "{path} went from {earlier} to {value}");
                            growing.fetch_add(u64::from(value > earlier), Ordering::Relaxed);
                        }
                    })
                })
            })
            .collect();
        let time = Duration::from_millis(rounds(6000).into());
        let started = Instant::now();
        let enough = |started: Instant| {
            let slowest = sweeps.iter().map(|sweeps| sweeps.load(Ordering::Relaxed)).min();
            started.elapsed() >= time && slowest >= Some(10)
        };
        // A reader that fails is known at once.
        while !enough(started) && !readers.iter().any(|reader| reader.is_finished()) {
            thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("the reader found nothing wrong");
        }
    });
    // The guest was not stopped by being looked at.
    assert!(growing.load(Ordering::Relaxed) > 1000);
    stop(running, Some(&kernel));
}

fn clear(path: &Path) {
    std::fs::write(path, "0\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Clears one of these places, at random moments, while two readers check every flat.
fn clear_at_random(
    rounds: u32,
    running: &Running,
    places: &[String],
    check: impl Fn(&Flat) + Sync,
) {
    let mut random = Random::new();
    let done = AtomicBool::new(false);
    let flat = running.path(".stats/flat");
    let sweeps = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        let readers: Vec<_> = sweeps
            .iter()
            .map(|sweeps| scope.spawn(|| sweep(&flat, &done, sweeps, |flat, _| check(flat))))
            .collect();
        for _ in 0..rounds {
            thread::sleep(Duration::from_micros(random.below(8000)));
            clear(&running.path(&places[random.below(places.len() as u64) as usize]));
            if readers.iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        for (reader, sweeps) in readers.into_iter().zip(&sweeps) {
            reader.join().expect("the reader found nothing wrong");
            assert!(sweeps.load(Ordering::Relaxed) > 0, "nothing was read");
        }
    });
}

/// What one clear after the other has taken, as it must be: the value at the moment of the clear, which is not
/// before `from` and not after `to`, less what was taken before.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    from: u64,
    to: u64,
    clears: u32,
}

impl Taken {
    /// Checks what a file shows, with what was really counted just before and just after it was read.
    #[track_caller]
    fn check(&self, path: &str, low: u64, shown: u64, high: u64) {
        let (least, most) = (low.saturating_sub(self.to), high - self.from);
        assert!((least..=most).contains(&shown), "{path} shows {shown}: {low} to {high}, {self:?}");
    }
}

#[test]
fn a_thousand_clears_take_what_was_counted_until_then_and_nothing_else() {
    let kernel = KvmReturns::watch_all();
    let cpus = 2;
    let running = Vmm::new(Mode::Long, &busy()).cpus(cpus).start_mounted();
    running.wait_for_exits(1000);
    let machine = running.machine();
    // What was counted is asked of the segments, where no clear changes anything.
    let outside = Outside::attach(running.pid()).unwrap();
    let theirs = outside.flat().machine();
    let values = ["user_exits", "user_exit_io_out", "user_exit_hlt", "user_exit_intr"];
    let is_of = |leaf: &str, value: &str| leaf.ends_with(&format!("/{value}"));
    let leaves: Vec<_> =
        (0..cpus).flat_map(|index| values.map(|value| format!("vcpu{index}/{value}"))).collect();
    let mut taken = vec![Taken::default(); leaves.len()];
    let counted = |leaf: &str| outside.value(&format!("{theirs}/{leaf}"));
    let mut random = Random::new();
    for _ in 0..rounds(1000) {
        thread::sleep(Duration::from_micros(random.below(2000)));
        // One value of one vCPU, of all of them by their total, or all of a vCPU's.
        let (vcpu, value) = (random.below(cpus.into()), values[random.below(4) as usize]);
        let (file, beginning, end) = match random.below(3) {
            0 => (format!("vcpu{vcpu}/{value}"), format!("vcpu{vcpu}/"), value),
            1 => (value.to_string(), String::new(), value),
            _ => (format!("vcpu{vcpu}/.stats/clear"), format!("vcpu{vcpu}/"), ""),
        };
        let cleared =
            |leaf: &str| leaf.starts_with(&beginning) && (end.is_empty() || is_of(leaf, end));
        let met: Vec<_> = (0..leaves.len()).filter(|n| cleared(&leaves[*n])).collect();
        let before: Vec<_> = met.iter().map(|n| counted(&leaves[*n])).collect();
        clear(&running.path(&format!("{machine}/{file}")));
        for (n, from) in met.into_iter().zip(before) {
            let to = counted(&leaves[n]);
            taken[n] = Taken { from, to, clears: taken[n].clears + 1 };
        }
        let n = random.below(leaves.len() as u64) as usize;
        let low = counted(&leaves[n]);
        let shown = running.value(&format!("{machine}/{}", leaves[n]));
        taken[n].check(&leaves[n], low, shown, counted(&leaves[n]));
    }
    // While the vCPUs stand still, in the middle of whatever they do, it is known exactly what the clears have
    // taken: what was counted, less what shows.
    let threads = (0..cpus).map(|n| running.value(&format!("{machine}/vcpu{n}/thread_id")) as i32);
    let still: Vec<_> = threads.map(hold).collect();
    let took: Vec<_> = (leaves.iter().zip(&taken))
        .map(|(leaf, taken)| {
            assert!(taken.clears > 0, "{leaf}");
            let counted = counted(leaf);
            let shown = running.value(&format!("{machine}/{leaf}"));
            taken.check(leaf, counted, shown, counted);
            counted - shown
        })
        .collect();
    drop(still);
    // So that with what came after it is what happened, neither more nor less.
    running.signal(libc::SIGTERM);
    let shown = running.wait().assert(143).flat();
    for (value, truth) in [
        ("user_exits", kernel.all()),
        ("user_exit_hlt", kernel.with_reason(HLT)),
        ("user_exit_intr", kernel.interrupted()),
    ] {
        let mut sum = 0;
        for (leaf, took) in leaves.iter().zip(&took).filter(|(leaf, _)| is_of(leaf, value)) {
            sum += took + shown.get(&format!("{machine}/{leaf}"));
        }
        assert_eq!(sum, truth, "{value}: what clears took, and what was left");
    }
    // Every total is the sum of what its leaves show.
    for value in values {
        let leaves = leaves.iter().filter(|leaf| is_of(leaf, value));
        let sum: u64 = leaves.map(|leaf| shown.get(&format!("{machine}/{leaf}"))).sum();
        let totals = [format!("{machine}/{value}"), format!("kvm/{value}")];
        assert_eq!(totals.map(|total| shown.get(&total)), [sum; 2], "{value}");
    }
}

/// No value of the exit loop is more than what really happened, which is known after it was read.
fn assert_within_truth(flat: &Flat, kernel: &KvmReturns) {
    let truth = kernel.all();
    for (path, value) in flat.iter().filter(|(path, _)| only_grows(path)) {
        // Of times and bytes there is no truth to compare with; but below 0 is near 2^64.
        let counts_exits =
            path.rsplit('/').next().is_some_and(|name| name.starts_with("user_exit"))
                || path.ends_with("/count")
                || path.contains("/buckets/");
        let limit = if counts_exits { truth } else { u64::MAX / 2 };
        assert!(value <= limit, "{path} says {value}, of {limit}");
    }
}

#[test]
fn clears_of_subtrees_keep_every_flat_consistent() {
    let kernel = KvmReturns::watch(&[]);
    let running = start_busy();
    let machine = running.machine();
    let mut places = vec![".stats/clear".to_string(), "kvm/.stats/clear".to_string()];
    places.push(format!("{machine}/.stats/clear"));
    places.extend((0..CPUS).map(|index| format!("{machine}/vcpu{index}/.stats/clear")));
    clear_at_random(rounds(300), &running, &places, |flat| {
        assert_eq!(assert_all_balanced(flat), CPUS as usize + 2);
        assert_within_truth(flat, &kernel);
    });
    let flat = stop(running, None);
    flat.assert_sums();
    assert_within_truth(&flat, &kernel);
    assert!(flat.get("kvm/user_exits") < kernel.all(), "something was cleared");
}

#[test]
fn clears_of_single_values_never_show_more_than_the_truth() {
    let kernel = KvmReturns::watch(&[]);
    let running = start_busy();
    let machine = running.machine();
    let mut places = Vec::new();
    for directory in ["kvm", &machine, &format!("{machine}/vcpu0"), &format!("{machine}/vcpu3")] {
        for value in [
            "user_exits",
            "user_exit_io_out",
            "user_exit_hlt",
            "user_time_hlt",
            "user_run_time/count",
        ] {
            places.push(format!("{directory}/{value}"));
        }
    }
    places.push(format!("{machine}/vcpu1/.stats/clear"));
    places.push("kvm/bus_unclaimed_io_reads".to_string());
    clear_at_random(rounds(300), &running, &places, |flat| {
        assert_within_truth(flat, &kernel);
    });
    // Whatever had been cleared before, this makes all of one moment.
    clear(&running.path("kvm/.stats/clear"));
    let flat = running.flat();
    assert_eq!(assert_all_balanced(&flat), CPUS as usize + 2);
    assert_within_truth(&flat, &kernel);
    stop(running, None).assert_sums();
}

#[test]
fn what_a_clear_took_and_what_came_after_is_exact() {
    let (before, after) = (700, 300);
    let steps = [
        Step::new(Op::Hlt, before, 0).per_index(10),
        Step::new(Op::In8, before, NO_PORT),
        park(),
        Step::new(Op::Hlt, after, 0).per_index(1),
        end(0),
    ];
    let cpus = 3;
    let hlts: Vec<_> = (0..cpus).map(|index| steps[0].times(index)).collect();
    let all_hlts: u64 = hlts.iter().sum();
    let each = u64::from(before) + 1;
    let mut running = Vmm::new(Mode::Long, &steps).cpus(cpus).blocked_console().start_mounted();
    let machine = running.machine();
    let total = all_hlts + each * u64::from(cpus);
    running.wait_for_exits(total);

    // A leaf: it reads 0, and what it had is gone from the sums.
    clear(&running.path(&format!("{machine}/vcpu1/user_exit_hlt")));
    let flat = running.flat();
    assert_eq!(flat.get(&format!("{machine}/vcpu1/user_exit_hlt")), 0);
    assert_eq!(flat.get(&format!("{machine}/vcpu2/user_exit_hlt")), hlts[2]);
    assert_eq!(flat.get(&format!("{machine}/user_exit_hlt")), hlts[0] + hlts[2]);
    assert_eq!(flat.get("kvm/user_exit_hlt"), hlts[0] + hlts[2]);
    assert_eq!(flat.get("kvm/user_exits"), total, "nothing else is cleared");

    // An aggregate: everything below it.
    clear(&running.path(&format!("{machine}/user_exit_io_in")));
    let flat = running.flat();
    for directory in ["kvm", &machine, &format!("{machine}/vcpu0"), &format!("{machine}/vcpu2")] {
        assert_eq!(flat.get(&format!("{directory}/user_exit_io_in")), 0, "{directory}");
    }
    assert_eq!(flat.get("kvm/user_exit_io_out"), u64::from(cpus));

    // A subtree: all that only grows, and nothing else.
    let thread = flat.get(&format!("{machine}/vcpu0/thread_id"));
    clear(&running.path(&format!("{machine}/vcpu0/.stats/clear")));
    let flat = running.flat();
    for (path, value) in flat.iter() {
        if path.starts_with(&format!("{machine}/vcpu0/")) && only_grows(path) {
            assert_eq!(value, 0, "{path}");
        }
    }
    assert_eq!(flat.get(&format!("{machine}/vcpu0/thread_id")), thread);
    assert_eq!(flat.get("kvm/user_exits"), total - hlts[0] - each);
    assert_eq!(flat.get("kvm/user_exit_hlt"), hlts[2]);
    assert_eq!(flat.get(&format!("{machine}/vm_memory_bytes")), 64 << 20);

    clear(&running.path(".stats/clear"));
    let flat = running.flat();
    assert_eq!(flat.get("kvm/user_exits"), 0);
    assert_eq!(flat.exits("kvm").len(), 0);

    // From here on it counts as if nothing had been before. vCPU 0 makes the others stop, which may be
    // before they are done.
    running.release();
    let last = running.wait().assert(0).flat();
    assert_eq!(last.get(&format!("{machine}/vcpu0/user_exit_hlt")), u64::from(after));
    assert_eq!(last.get(&format!("{machine}/vcpu0/user_exits")), u64::from(after) + 1);
    for index in 1..cpus {
        let hlts = last.get(&format!("{machine}/vcpu{index}/user_exit_hlt"));
        assert!(hlts <= u64::from(after + index), "{hlts}");
    }
    last.assert_sums();
}
