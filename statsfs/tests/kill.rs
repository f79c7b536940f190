//! A writer in another process that is killed or stopped at any moment: from its segments every count
//! is found exactly once.
//!
//! The writer keeps a ledger in memory that outlives it: what it is about to count, and, after, that it
//! did. So the kill leaves no more open than the one count that each thread was making.

mod support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use statsfs::segment::process::{Process, Reading};
use statsfs::segment::{Limits, layout::ROOT_ID};
use statsfs::tree::Tree;
use statsfs::{Registry, RegistryOptions};
use support::child::{self, Shared, Writer};
use support::churn::{Account, Churner, Exchange, total};
use support::{Random, Work, flat, list, node, number, rounds};

const THREADS: usize = 3;
const POOLS: [&str; 2] = ["outer", "outer/inner"];

type Ledger = [[Account; 2]; THREADS];

#[test]
#[ignore = "the writer that the others start and kill"]
fn churning_writer() {
    let (ledger, socket, seed) = child::in_child::<Ledger>();
    let seed: u64 = seed.parse().unwrap();
    // All segments are there before they are handed over: the reader's way to later ones is not what
    // is tested here. When they are full, folds must make room.
    let options = RegistryOptions { segment_size: 48 << 10, max_segments: 8, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let mut many = Vec::new();
    while registry.usage().segments < 8 {
        many.push(registry.create_source(&format!("s{}", many.len())).unwrap());
    }
    drop(many);
    let outer = registry.create_source("outer").unwrap();
    outer.register().unwrap();
    let inner = registry.create_source("inner").unwrap();
    outer.add_subordinate(&inner).unwrap();
    let pools = [outer, inner];
    let churners: Vec<_> = pools.iter().map(|p| p.add_values::<Work>().unwrap()).collect();
    drop(churners);
    child::send_segments(&socket, &registry);
    let exchange: Exchange = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (n, accounts) in ledger.iter().enumerate() {
            let (registry, pools, exchange) = (&registry, &pools, &exchange);
            scope.spawn(move || {
                let mut churner = Churner::new(n, seed, registry, pools, accounts, exchange);
                loop {
                    churner.step();
                }
            });
        }
    });
}

fn bounds(ledger: &Ledger, pool: usize, high: bool) -> [u64; 4] {
    let sum = |which: fn(&Account) -> &AtomicU64| {
        total(ledger.iter().flat_map(|accounts| &accounts[pool..]), which)
    };
    let (done, times) = if high {
        (sum(|a| &a.intended_done), sum(|a| &a.intended_times))
    } else {
        (sum(|a| &a.counted_done), sum(|a| &a.counted_times))
    };
    [done, 2 * done, times, 3 * times]
}

const FILES: [&str; 4] = ["work_done", "work_failed", "work_time/count", "work_time/sum"];

/// Checks one total against the ledger; `taken` is what clears took of it.
fn check(ledger: &Ledger, pool: usize, file: usize, taken: u64, show: impl FnOnce(&str) -> u64) {
    let path = format!("{}/{}", POOLS[pool], FILES[file]);
    let low = bounds(ledger, pool, false)[file];
    let there = show(&path).wrapping_add(taken);
    let high = bounds(ledger, pool, true)[file];
    assert!(
        low <= there && there <= high,
        "{path}: counted at least {low}, at most {high}; there are {there}, {taken} of them cleared"
    );
}

/// The sums below `outer` straight from the segments, by the rules in `segment::process`.
fn raw_total(process: &Process) -> [u64; 4] {
    let mut sums = [0; 4];
    for source in process.sources() {
        // Whether it is attached to the root, by whatever way.
        let mut top = source;
        while top.parent > ROOT_ID {
            let Some(above) = process.source(top.parent) else { break };
            top = above;
        }
        if top.parent != ROOT_ID {
            continue;
        }
        for group in &source.groups {
            for block in group.slots.iter().chain(&group.accumulator) {
                let mut cells = vec![0; block.words()];
                match process.read(block, &mut cells) {
                    Reading::Cells { retired: Some(retired), .. } if process.is_folded(retired) => {
                    }
                    Reading::Cells { .. } => {
                        assert_eq!(cells[1], 2 * cells[0], "every block is consistent");
                        sums[0] += cells[0];
                        sums[1] += cells[1];
                        sums[2] += cells[3..11].iter().sum::<u64>();
                        sums[3] += cells[2];
                    }
                    Reading::Gone => {}
                    Reading::Torn => panic!("nobody writes"),
                }
            }
        }
    }
    sums
}

/// In every directory the counters that change together are together, and the total of each directory
/// is no less than what is below it.
fn check_consistent(all: &std::collections::BTreeMap<String, String>) {
    let mut below: HashMap<&str, u64> = HashMap::new();
    for (path, value) in all {
        let Some(dir) = path.strip_suffix("/work_done") else { continue };
        let done: u64 = value.parse().unwrap();
        let failed: u64 = all[&format!("{dir}/work_failed")].parse().unwrap();
        assert_eq!(failed, 2 * done, "{dir}");
        if let Some((above, _)) = dir.rsplit_once('/') {
            *below.entry(above).or_default() += done;
        }
    }
    for (dir, sum) in below {
        // Killed while it reserved accumulators, from the bottom up, a writer has counted nothing there.
        let done: u64 =
            all.get(&format!("{dir}/work_done")).map_or(0, |done| done.parse().unwrap());
        assert!(sum <= done, "{dir}: {sum} below, {done} in all");
    }
}

/// Kills a writer at a moment of chance, but not before it has made so many sources.
fn one_round(seed: u64, sources: u64) {
    let mut random = Random::new(seed);
    let ledger = Shared::<Ledger>::new();
    let mut writer = Writer::start("churning_writer", &ledger, &seed.to_string());
    let segments = writer.segments();
    let ledger = ledger.value;
    let tree = child::tree(&segments);
    let mut taken = [[0; 4]; 2];
    let clears = random.one_in(2);
    let end = Instant::now() + Duration::from_micros(1000 + random.below(40_000));
    let created = || total(ledger.iter().flatten(), |a| &a.created);
    let patience = Instant::now() + support::PATIENCE * 10;
    while Instant::now() < end || created() < sources {
        assert!(Instant::now() < patience, "{} of {sources} sources", created());
        if random.one_in(4) {
            let chunk = 1 + random.below(6) as usize;
            let entries = list(&tree, node(&tree, POOLS[0]).unwrap(), chunk).unwrap();
            assert!(entries.windows(2).all(|pair| pair[0].1 < pair[1].1), "cookies grow");
            let stayed = entries.iter().filter(|(name, _)| name == "inner").count();
            assert_eq!(stayed, 1, "{entries:?}");
        }
        let (pool, file) = (random.below(2) as usize, random.below(4) as usize);
        let by_flat = random.one_in(4);
        check(ledger, pool, file, taken[pool][file], |path| {
            if by_flat { flat(&tree)[path].parse().unwrap() } else { number(&tree, path) as u64 }
        });
        if clears && random.one_in(4) {
            // What is cleared in the outer pool is in part the inner one's: so one of both only.
            let cleared = tree.clear("outer/inner/.stats/clear").unwrap();
            for (n, name) in FILES.iter().enumerate() {
                let n_taken = cleared.0.get(*name).copied().unwrap_or(0);
                taken[0][n] += n_taken;
                taken[1][n] += n_taken;
            }
        }
    }
    writer.signal(libc::SIGKILL);
    writer.wait();

    // Through the tree that has seen it live, and through one that has not. The writer may have been
    // killed between a change and its announcement.
    tree.refresh();
    let fresh = child::tree(&segments);
    for (pool, taken) in taken.iter().enumerate() {
        for (file, taken) in taken.iter().enumerate() {
            check(ledger, pool, file, *taken, |path| number(&tree, path) as u64);
            check(ledger, pool, file, 0, |path| number(&fresh, path) as u64);
        }
        let open: u64 = bounds(ledger, pool, true)[2] - bounds(ledger, pool, false)[2];
        assert!(open < 1000, "the ledger leaves {open} counts open");
    }
    check_consistent(&flat(&fresh));
    if !clears {
        assert_eq!(flat(&tree), flat(&fresh));
    }
    let mut process =
        Process::attach(segments, &Limits::default()).expect("a killed writer is no liar");
    process.refresh(true, &mut Vec::new()).unwrap();
    let raw = raw_total(&process);
    for (file, raw) in raw.iter().enumerate() {
        check(ledger, 0, file, 0, |path| {
            assert_eq!(*raw, number(&fresh, path) as u64, "{path}");
            *raw
        });
    }
}

#[test]
fn a_killed_writer_leaves_every_count_once() {
    let seed = support::seed();
    for round in 0..rounds(100) as u64 {
        one_round(seed.wrapping_add(round * 1000), 0);
    }
}

#[test]
fn so_does_one_that_had_made_ten_thousand_sources() {
    let seed = support::seed();
    // Each is one with clears or without, by chance.
    for round in 0..2 {
        one_round(seed.wrapping_add(round), rounds(10_000) as u64);
    }
}

/// The writer that stops in the middle of an update: its mode says at which run of the closure, and how.
#[test]
#[ignore = "the writer that the others start and kill"]
fn stopping_writer() {
    let (counted, socket, mode) = child::in_child::<[AtomicU64; 1]>();
    let (run, signal) = mode.split_once(' ').unwrap();
    let (run, signal): (u64, libc::c_int) = (run.parse().unwrap(), signal.parse().unwrap());
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let slot = top.add_values::<Work>().unwrap();
    child::send_segments(&socket, &registry);
    let runs = AtomicU64::new(0);
    loop {
        slot.update(|c| {
            c.work_done.inc();
            if runs.fetch_add(1, SeqCst) == run {
                // To this very thread, so that it gets no further.
                // SAFETY: a plain system call.
                unsafe { libc::raise(signal) };
            }
            c.work_failed.add(2);
        });
        counted[0].fetch_add(1, SeqCst);
    }
}

fn check_group(tree: &Tree, counted: &AtomicU64) {
    let all = flat(tree);
    let get = |name: &str| all[&format!("top/{name}")].parse::<u64>().unwrap();
    let (done, counted) = (get("work_done"), counted.load(SeqCst));
    assert_eq!(get("work_failed"), 2 * done);
    assert!(done == counted || done == counted + 1, "{done} of {counted}");
    assert_eq!(number(tree, "top/work_done") as u64, done);
    assert_eq!(number(tree, "top/work_failed") as u64, 2 * done);
}

#[test]
fn a_writer_stopped_or_killed_inside_an_update_leaves_a_whole_group() {
    // The closure runs twice in each update, once for each copy.
    for run in [0, 1, 2000, 2001] {
        let memory = Shared::<[AtomicU64; 1]>::new();
        let mut writer =
            Writer::start("stopping_writer", &memory, &format!("{run} {}", libc::SIGSTOP));
        let tree = child::tree(&writer.segments());
        writer.wait_stopped();
        check_group(&tree, &memory.value[0]);
        assert_eq!(memory.value[0].load(SeqCst), run / 2);
        // A clear of what is half counted takes the half that is whole.
        let before = number(&tree, "top/work_done") as u64;
        let cleared = tree.clear("top/.stats/clear").unwrap();
        assert_eq!((cleared.0["work_done"], cleared.0["work_failed"]), (before, 2 * before));
        writer.signal(libc::SIGCONT);
        let end = Instant::now() + Duration::from_secs(60);
        while number(&tree, "top/work_done") < 1000 {
            assert!(Instant::now() < end, "it goes on");
        }
        writer.signal(libc::SIGSTOP);
        writer.wait_stopped();
        let after = number(&tree, "top/work_done") as u64 + before;
        let counted = memory.value[0].load(SeqCst);
        assert!(after == counted || after == counted + 1, "{after} of {counted}");
        writer.signal(libc::SIGKILL);
        writer.wait();

        let memory = Shared::<[AtomicU64; 1]>::new();
        let mut writer =
            Writer::start("stopping_writer", &memory, &format!("{run} {}", libc::SIGKILL));
        let segments = writer.segments();
        writer.wait();
        check_group(&child::tree(&segments), &memory.value[0]);
        assert_eq!(memory.value[0].load(SeqCst), run / 2);
    }
}
