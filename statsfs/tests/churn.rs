//! Ten thousand sources that come and go by several threads, nested and hidden ones among them, some with
//! slots still counting in other threads, under readers and listings.

#[path = "support/heap.rs"]
mod heap;
mod support;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use heap::IN_USE;
use statsfs::fs::MountOptions;
use statsfs::tree::{Snapshot, Tree};
use statsfs::{Embedded, Registry, RegistryOptions, Source};
use support::churn::{Account, Churner, Exchange, total};
use support::{Random, StopAtEnd, Work, flat, list, node, number, rounds, try_number};

/// One test at a time: the heap is the process's.
static ALONE: Mutex<()> = Mutex::new(());

const THREADS: usize = 4;
const STAYING: usize = 12;

struct Run {
    registry: Registry,
    pools: [Source; 2],
    accounts: Vec<[Account; 2]>,
    stop: AtomicBool,
    created: AtomicU64,
}

impl Run {
    /// Two pools, the second within the first; with sources that stay, some of them in a hidden one.
    fn new(segment_size: usize, max_segments: usize) -> Self {
        let options = RegistryOptions { segment_size, max_segments, ..Default::default() };
        let registry = Registry::with_options(options).unwrap();
        let outer = registry.create_source("outer").unwrap();
        outer.register().unwrap();
        let inner = registry.create_source("inner").unwrap();
        outer.add_subordinate(&inner).unwrap();
        let hidden = registry.source("behind").hidden().create().unwrap();
        outer.add_subordinate(&hidden).unwrap();
        for n in 0..STAYING {
            let source = registry.create_source(&format!("stays{n}")).unwrap();
            let parent = [&outer, &inner, &hidden][n % 3];
            parent.add_subordinate(&source).unwrap();
        }
        // Their files are there from now on.
        for pool in [&outer, &inner] {
            drop(pool.add_values::<Work>().unwrap());
        }
        Self {
            registry,
            pools: [outer, inner],
            accounts: (0..THREADS).map(|_| [const { Account::new() }; 2]).collect(),
            stop: AtomicBool::new(false),
            created: AtomicU64::new(0),
        }
    }

    /// What is counted for a pool, and in the one within it.
    fn counted(&self, pool: usize, which: impl Fn(&Account) -> &AtomicU64) -> u64 {
        total(self.accounts.iter().flat_map(|accounts| &accounts[pool..]), which)
    }

    /// Creates this many sources, while `meanwhile` runs.
    fn churn(&self, seed: u64, sources: u64, meanwhile: impl FnOnce(&AtomicBool)) {
        self.stop.store(false, SeqCst);
        let exchange: Exchange = Mutex::new(Vec::new());
        let before = self.created.load(SeqCst);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .map(|n| {
                    let exchange = &exchange;
                    scope.spawn(move || {
                        let accounts = &self.accounts[n];
                        let mut churner =
                            Churner::new(n, seed, &self.registry, &self.pools, accounts, exchange);
                        while churner.created < sources / THREADS as u64 {
                            churner.step();
                        }
                        self.created.fetch_add(churner.finish(), SeqCst);
                    })
                })
                .collect();
            let stop = &self.stop;
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                writers.into_iter().for_each(|writer| writer.join().unwrap());
            });
            meanwhile(stop);
        });
        assert!(self.created.load(SeqCst) >= before + sources - THREADS as u64);
    }

    /// Checks one total, of a pool of chance or of this one.
    fn check_total(
        &self,
        show: impl FnOnce(&str) -> u64,
        random: &mut Random,
        pool: Option<usize>,
    ) -> u64 {
        let pool = pool.unwrap_or(random.below(2) as usize);
        let path = format!("{}work_done", ["outer/", "outer/inner/"][pool]);
        let low = self.counted(pool, |a| &a.counted_done);
        let shown = show(&path);
        let high = self.counted(pool, |a| &a.intended_done);
        assert!(low <= shown && shown <= high, "{path} shows {shown}, not {low} to {high}");
        shown
    }

    /// Every count is there once, and every directory adds up.
    fn check_at_rest(&self, tree: &Tree) {
        for fold in [false, true] {
            if fold {
                self.registry.usage();
            }
            for (pool, path) in ["outer", "outer/inner"].into_iter().enumerate() {
                let done = self.counted(pool, |a| &a.counted_done);
                assert_eq!(done, self.counted(pool, |a| &a.intended_done));
                let times = self.counted(pool, |a| &a.counted_times);
                for (file, counted) in [
                    ("work_done", done),
                    ("work_failed", 2 * done),
                    ("work_time/count", times),
                    ("work_time/sum", 3 * times),
                ] {
                    let shown = number(tree, &format!("{path}/{file}")) as u64;
                    assert_eq!(shown, counted, "{path}/{file}, folded: {fold}");
                }
                // A directory is what it has itself, what is in it, and what has left it.
                let own = total(self.accounts.iter().map(|a| &a[pool]), |a| &a.own_done);
                let shown = |dir: &str| try_number(tree, &format!("{dir}/work_done")).ok();
                let entries = list(tree, node(tree, path).unwrap(), 100).unwrap();
                let children =
                    entries.iter().filter_map(|(name, _)| shown(&format!("{path}/{name}")));
                let (children, departed) =
                    (children.sum::<i128>() as u64, shown(&format!("{path}/.departed")));
                let departed = departed.expect("much has left") as u64;
                assert!(own > 0 && departed > 0 && (children > 0 || pool == 1), "{path}");
                assert_eq!(done, own + children + departed, "{path}, folded: {fold}");
            }
            let all = sum(tree, &mut Snapshot::default());
            assert_eq!(all, self.counted(0, |a| &a.counted_done), "folded: {fold}");
        }
    }
}

/// Reads totals in every way, and checks each.
fn read(run: &Run, tree: &Tree, stop: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    let mut last = HashMap::new();
    let mut snapshot = Snapshot::default();
    while !stop.load(SeqCst) {
        let way = random.below(4);
        let mut at = String::new();
        let shown = run.check_total(
            |path| {
                path.clone_into(&mut at);
                match way {
                    0 => flat(tree)[path].parse().unwrap(),
                    1 => {
                        // Of everything, so for the outer pool.
                        "outer/work_done".clone_into(&mut at);
                        sum(tree, &mut snapshot)
                    }
                    _ => number(tree, path) as u64,
                }
            },
            &mut random,
            (way == 1).then_some(0),
        );
        let last = last.entry(at).or_insert(0);
        assert!(shown >= *last, "the total fell from {last} to {shown}");
        *last = shown;
    }
}

/// The sum of `work_done` over all cells.
fn sum(tree: &Tree, snapshot: &mut Snapshot) -> u64 {
    tree.snapshot(snapshot);
    snapshot.cells().map(|(group, cells)| if group.name() == "work" { cells[0] } else { 0 }).sum()
}

/// Makes one tree after the other: each meets a structure that changes while it is first read.
fn attach(run: &Run, stop: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    while !stop.load(SeqCst) {
        run.check_total(
            |path| number(&run.registry.tree().unwrap(), path) as u64,
            &mut random,
            None,
        );
    }
}

/// Lists directories in pieces while entries come and go.
fn check_listings(tree: &Tree, stop: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    while !stop.load(SeqCst) {
        let (path, stays) =
            if random.one_in(2) { ("outer", [0, 2]) } else { ("outer/inner", [1, 1]) };
        let dir = node(tree, path).unwrap();
        let chunk = 1 + random.below(6) as usize;
        let entries = list(tree, dir, chunk).unwrap();
        assert!(entries.windows(2).all(|pair| pair[0].1 < pair[1].1), "cookies grow");
        let stayed = entries.iter().filter(|(name, _)| name.starts_with("stays")).count();
        let expected = (0..STAYING).filter(|n| stays.contains(&(n % 3))).count();
        let names: HashSet<_> = entries.iter().map(|(name, _)| name).collect();
        let named = names.iter().filter(|name| name.starts_with("stays")).count();
        assert_eq!((stayed, named), (expected, expected), "{path}: {entries:?}");
        for file in ["work_done", "work_failed", "work_time", "work_queue", "work_queue.min"] {
            let n = entries.iter().filter(|(name, _)| name == file).count();
            assert!(n <= 1, "{path}: {file} {n} times in {entries:?}");
            assert!(n == 1 || file == "work_queue.min", "{path}: no {file} in {entries:?}");
        }
    }
}

#[test]
fn ten_thousand_sources_come_and_go() {
    let _alone = ALONE.lock();
    let seed = support::seed();
    let run = Run::new(32 << 10, 64);
    let tree = run.registry.tree().unwrap();
    let rest = || {
        run.registry.usage();
        flat(&tree);
        let usage = run.registry.usage();
        (usage.sources, usage.units, usage.block_bytes, tree.usage(), IN_USE.load(SeqCst))
    };
    let round = |seed: u64, sources: usize| {
        run.churn(seed, rounds(sources) as u64, |stop| {
            thread::scope(|scope| {
                scope.spawn(|| read(&run, &tree, stop, seed ^ 1));
                scope.spawn(|| attach(&run, stop, seed ^ 2));
                check_listings(&tree, stop, seed ^ 3);
            });
        });
        run.check_at_rest(&tree);
        rest()
    };
    let mut before = round(seed, 10_000);
    // A table keeps the room that it once needed, so the heap may still grow, in some rounds much. But what is
    // lost with sources is lost in each round, be it a byte.
    let mut grew = Vec::new();
    for n in 1..=10 {
        let after = round(seed ^ n, 3000);
        let (segments, tree) = ((before.0, before.1, before.2), before.3);
        assert_eq!(segments, (after.0, after.1, after.2), "the segments' memory");
        assert_eq!(tree, after.3, "the tree's nodes");
        grew.push(after.4 as i64 - before.4 as i64);
        before = after;
    }
    let much = rounds(3000) as i64 / 3;
    let growing = grew[5..].iter().filter(|grew| **grew >= much).count();
    assert!(growing < 4, "the heap grows and grows: {grew:?}");
}

#[test]
fn readers_come_through_though_memory_is_short() {
    let _alone = ALONE.lock();
    let seed = support::seed();
    // So little that many sources and slots find no room, and whatever goes is folded at once.
    let run = Run::new(16 << 10, 2);
    let tree = run.registry.tree().unwrap();
    run.churn(seed, rounds(3000) as u64, |stop| {
        thread::scope(|scope| {
            scope.spawn(|| read(&run, &tree, stop, seed ^ 1));
            scope.spawn(|| read(&run, &tree, stop, seed ^ 2));
            check_listings(&tree, stop, seed ^ 3);
        });
    });
    run.check_at_rest(&tree);
    assert_eq!(tree.usage().sources, STAYING + 3);
}

#[test]
fn a_mount_serves_while_sources_come_and_go() {
    let _alone = ALONE.lock();
    let seed = support::seed();
    let run = Run::new(32 << 10, 64);
    let dir = tempfile::tempdir().unwrap();
    let mounted = Embedded::mount(&run.registry, dir.path(), MountOptions::new()).unwrap();
    let root = dir.path();
    run.churn(seed, rounds(3000) as u64, |stop| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(seed ^ 1);
                while !stop.load(SeqCst) {
                    run.check_total(
                        |path| {
                            let text = std::fs::read_to_string(root.join(path)).unwrap();
                            text.trim().parse().unwrap()
                        },
                        &mut random,
                        None,
                    );
                }
            });
            while !stop.load(SeqCst) {
                let mut names = Vec::new();
                for entry in std::fs::read_dir(root.join("outer")).unwrap() {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    if name.starts_with('t') {
                        // It may have gone meanwhile, but nothing else can be wrong with it.
                        match std::fs::read_to_string(
                            root.join("outer").join(&name).join("work_done"),
                        ) {
                            Ok(text) => {
                                assert!(text.trim().parse::<u64>().is_ok(), "{name}: {text}")
                            }
                            Err(error) => {
                                let error = error.raw_os_error().unwrap_or(0);
                                let gone = [libc::ENOENT, libc::ENODEV, libc::ESTALE];
                                assert!(gone.contains(&error), "{name}: {error}");
                            }
                        }
                    }
                    names.push(name);
                }
                for n in (0..STAYING).filter(|n| n % 3 != 1) {
                    let stays = format!("stays{n}");
                    let times = names.iter().filter(|name| **name == stays).count();
                    assert_eq!(times, 1, "{stays} in {names:?}");
                }
            }
        });
    });
    run.check_at_rest(mounted.tree());
    let text = std::fs::read_to_string(root.join("outer/work_done")).unwrap();
    assert_eq!(text.trim().parse::<u64>().unwrap(), run.counted(0, |a| &a.counted_done));
    // What the kernel remembers of the tree is what is there.
    let left: Vec<_> = std::fs::read_dir(root.join("outer"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('t'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    mounted.unmount().unwrap();
}
