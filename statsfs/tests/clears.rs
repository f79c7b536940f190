//! Clears at random moments of a run: what each took away and what is left add up to what was counted,
//! for everything that can be accounted for, and nobody ever sees anything else.
//!
//! The accounting has no race: one thread makes all clears, so that what they took is known whenever no
//! clear runs; writers keep ledgers of what they intended to count and of what they did. At any such
//! time `counted before reading ≤ shown + taken ≤ intended after reading`, and at rest all are equal.

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use statsfs::fs::Nodes;
use statsfs::tree::Tree;
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{Registry, RegistryOptions, Slot, Source};
use support::churn::{Account, Churner, Exchange, total};
use support::{Random, StopAtEnd, Work, flat, list, node, number, rounds, try_number};

const THREADS: usize = 4;
const LEAVES: usize = 5;
/// Pools of sources that come and go, each accounted for.
const POOLS: [&str; 2] = ["top/a", "top/b"];

/// What clears took of one pool, or of everything.
#[derive(Default)]
struct Taken([AtomicU64; 4]);

const VALUES: [&str; 4] = ["work_done", "work_failed", "work_time/count", "work_time/sum"];
/// What is recorded in pools, and in the fixed leaves.
const TIMES: [u64; 2] = [3, 7];

impl Taken {
    fn get(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|n| self.0[n].load(SeqCst))
    }
}

struct Run {
    tree: Tree,
    /// By thread, then by pool; the last is for the fixed leaves.
    accounts: Vec<[Account; 3]>,
    /// By leaf: intended and counted.
    leaves: Vec<[AtomicU64; 2]>,
    /// Even while no clear runs.
    epoch: AtomicU64,
    pools: [Taken; 2],
    everything: Taken,
    by_leaf: Vec<AtomicU64>,
    stop: AtomicBool,
    checks: AtomicU64,
}

/// Where clears go.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    /// Into the pools and leaves.
    Pools,
    /// To the top as well: then only the whole can be accounted for.
    Top,
}

fn bounds(run: &Run, pool: Option<usize>, high: bool) -> [u64; 4] {
    let pools = pool.map_or(0..3, |pool| pool..pool + 1);
    let mut bounds = [0; 4];
    for pool in pools {
        let sum = |which: fn(&Account) -> &AtomicU64| {
            total(run.accounts.iter().map(|accounts| &accounts[pool]), which)
        };
        let (done, times) = if high {
            (sum(|a| &a.intended_done), sum(|a| &a.intended_times))
        } else {
            (sum(|a| &a.counted_done), sum(|a| &a.counted_times))
        };
        let of_pool = [done, 2 * done, times, TIMES[pool / 2] * times];
        bounds.iter_mut().zip(of_pool).for_each(|(bound, of_pool)| *bound += of_pool);
    }
    bounds
}

/// Reads totals over and over, each alone or all in one sweep, and checks them whenever no clear ran.
fn check_totals(run: &Run, reach: Reach, seed: u64) {
    let mut random = Random::new(seed);
    while !run.stop.load(SeqCst) {
        let epoch = run.epoch.load(SeqCst);
        let pool = (reach == Reach::Pools && random.one_in(2)).then(|| random.below(2) as usize);
        let value = random.below(4) as usize;
        let path = match pool {
            Some(pool) => format!("{}/{}", POOLS[pool], VALUES[value]),
            None => format!("top/{}", VALUES[value]),
        };
        let low = bounds(run, pool, false)[value];
        let shown = if random.one_in(3) {
            flat(&run.tree)[&path].parse::<u64>().unwrap()
        } else {
            number(&run.tree, &path) as u64
        };
        assert!(shown < 1 << 62, "{path} shows {shown}");
        let high = bounds(run, pool, true)[value];
        let taken = match pool {
            Some(pool) => run.pools[pool].get()[value],
            None => run.everything.get()[value],
        };
        if epoch.is_multiple_of(2) && run.epoch.load(SeqCst) == epoch {
            let there = shown + taken;
            assert!(
                low <= there && there <= high,
                "{path}: counted at least {low}, at most {high}; {shown} shown + {taken} taken"
            );
            run.checks.fetch_add(1, SeqCst);
        }
    }
}

/// Reads everything, clears or not: no value can be anywhere near where an underflow would put it.
fn check_everything(run: &Run) {
    while !run.stop.load(SeqCst) {
        for (path, value) in flat(&run.tree) {
            let value: i128 = value.parse().unwrap();
            assert!(value.abs() < 1 << 62, "{path} shows {value}");
        }
    }
}

/// The path of something to clear, and the pool or leaf that it is in.
enum Target {
    Top(String),
    Pool(usize, String),
    Leaf(usize, String),
}

fn target(run: &Run, random: &mut Random, reach: Reach) -> Target {
    let value = |random: &mut Random| match random.below(4) {
        3 => ".stats/clear",
        n => VALUES[n as usize],
    };
    match random.below(if reach == Reach::Top { 8 } else { 7 }) {
        7 if random.one_in(4) => Target::Top(format!("top/.departed/{}", value(random))),
        7 if random.one_in(4) => Target::Top(".stats/clear".to_owned()),
        7 => Target::Top(format!("top/{}", value(random))),
        0..2 => {
            let leaf = random.below(LEAVES as u64) as usize;
            Target::Leaf(leaf, format!("top/c/leaf{leaf}/{}", value(random)))
        }
        _ => {
            let pool = random.below(2) as usize;
            // Down to a random depth.
            let mut path = POOLS[pool].to_owned();
            while random.one_in(2) {
                let entries = node(&run.tree, &path).and_then(|dir| list(&run.tree, dir, 100));
                let below: Vec<_> = entries
                    .unwrap_or_default()
                    .into_iter()
                    .filter(|(name, _)| name.starts_with('t'))
                    .collect();
                if below.is_empty() {
                    break;
                }
                path = format!("{path}/{}", below[random.below(below.len() as u64) as usize].0);
            }
            if random.one_in(3) {
                path += "/.departed";
            }
            Target::Pool(pool, format!("{path}/{}", value(random)))
        }
    }
}

fn clear_at_random(run: &Run, reach: Reach, seed: u64, clears: usize) {
    let _stop = StopAtEnd(&run.stop);
    let mut random = Random::new(seed);
    let mut done = 0;
    while done < clears {
        thread::sleep(Duration::from_micros(random.below(2000)));
        let target = target(run, &mut random, reach);
        let (Target::Top(path) | Target::Pool(_, path) | Target::Leaf(_, path)) = &target;
        run.epoch.fetch_add(1, SeqCst);
        match run.tree.clear(path) {
            Ok(cleared) => {
                done += 1;
                for (n, name) in VALUES.iter().enumerate() {
                    let taken = cleared.0.get(*name).copied().unwrap_or(0);
                    assert!(taken < 1 << 62, "clearing {path} took {taken} of {name}");
                    run.everything.0[n].fetch_add(taken, SeqCst);
                    match target {
                        Target::Pool(pool, _) => {
                            run.pools[pool].0[n].fetch_add(taken, SeqCst);
                        }
                        Target::Leaf(leaf, _) if n == 0 => {
                            run.by_leaf[leaf].fetch_add(taken, SeqCst);
                        }
                        _ => {}
                    }
                }
            }
            // The source went away between the listing and the clear.
            Err(error) => assert!(
                [libc::ENOENT, libc::ESTALE, libc::ENODEV].contains(&error.0),
                "{path}: {error:?}"
            ),
        }
        run.epoch.fetch_add(1, SeqCst);
    }
}

fn writer(
    run: &Run,
    thread: usize,
    seed: u64,
    registry: &Registry,
    pools: &[Source],
    exchange: &Exchange,
    leaves: Vec<Slot<Work>>,
) {
    let accounts = &run.accounts[thread];
    let mut churner = Churner::new(thread, seed, registry, &pools[..2], &accounts[..2], exchange);
    let mut random = Random::new(seed ^ 77);
    while !run.stop.load(SeqCst) {
        churner.step();
        let leaf = random.below(LEAVES as u64) as usize;
        let account = &accounts[2];
        account.intended_done.fetch_add(1, SeqCst);
        account.intended_times.fetch_add(1, SeqCst);
        run.leaves[leaf][0].fetch_add(1, SeqCst);
        leaves[leaf].update(|c| {
            c.work_done.inc();
            c.work_failed.add(2);
        });
        leaves[leaf].work_time.record(TIMES[1]);
        account.counted_done.fetch_add(1, SeqCst);
        account.counted_times.fetch_add(1, SeqCst);
        run.leaves[leaf][1].fetch_add(1, SeqCst);
        if random.one_in(500) {
            thread::sleep(Duration::from_micros(200));
        }
    }
    churner.finish();
}

fn run(reach: Reach, clears: usize) {
    let seed = support::seed();
    let options =
        RegistryOptions { segment_size: 64 << 10, max_segments: 64, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let pools = ["a", "b", "c"].map(|name| {
        let pool = registry.create_source(name).unwrap();
        top.add_subordinate(&pool).unwrap();
        pool
    });
    let leaves: Vec<_> = (0..LEAVES)
        .map(|n| {
            let leaf = registry.create_source(&format!("leaf{n}")).unwrap();
            pools[2].add_subordinate(&leaf).unwrap();
            leaf
        })
        .collect();
    let run = Run {
        tree: registry.tree().unwrap(),
        accounts: (0..THREADS).map(|_| [const { Account::new() }; 3]).collect(),
        leaves: (0..LEAVES).map(|_| Default::default()).collect(),
        epoch: AtomicU64::new(0),
        pools: Default::default(),
        everything: Taken::default(),
        by_leaf: (0..LEAVES).map(|_| AtomicU64::new(0)).collect(),
        stop: AtomicBool::new(false),
        checks: AtomicU64::new(0),
    };
    let exchange = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let slots = leaves.iter().map(|leaf| leaf.add_values().unwrap()).collect();
            let (run, registry, pools, exchange) = (&run, &registry, &pools, &exchange);
            scope.spawn(move || {
                writer(run, thread, seed, registry, pools, exchange, slots);
            });
        }
        scope.spawn(|| check_totals(&run, reach, seed ^ 1));
        scope.spawn(|| check_totals(&run, reach, seed ^ 2));
        scope.spawn(|| check_everything(&run));
        clear_at_random(&run, reach, seed ^ 3, clears);
    });
    drop(exchange);
    assert!(run.checks.load(SeqCst) > 100, "there was time to look between clears");
    for fold in [false, true] {
        if fold {
            registry.usage();
        }
        let at_rest = |pool: Option<usize>, taken: &Taken| {
            let counted = bounds(&run, pool, false);
            assert_eq!(counted, bounds(&run, pool, true));
            for (n, file) in VALUES.iter().enumerate() {
                let path = pool.map_or("top", |pool| POOLS[pool]);
                let shown = number(&run.tree, &format!("{path}/{file}")) as u64;
                assert_eq!(shown + taken.get()[n], counted[n], "{path}/{file}, folded: {fold}");
            }
        };
        at_rest(None, &run.everything);
        if reach == Reach::Pools {
            at_rest(Some(0), &run.pools[0]);
            at_rest(Some(1), &run.pools[1]);
            let mut below = 0;
            for leaf in 0..LEAVES {
                let shown = number(&run.tree, &format!("top/c/leaf{leaf}/work_done")) as u64;
                let counted = run.leaves[leaf][1].load(SeqCst);
                assert_eq!(shown + run.by_leaf[leaf].load(SeqCst), counted);
                below += shown;
            }
            assert_eq!(number(&run.tree, "top/c/work_done") as u64, below);
            for pool in POOLS {
                for file in VALUES {
                    // Its own slots', which are dropped but not removed, and what departed.
                    let departed = number(&run.tree, &format!("{pool}/.departed/{file}"));
                    assert!(departed <= number(&run.tree, &format!("{pool}/{file}")));
                }
            }
        }
    }
    // The last clear takes all that is left, in one.
    let before = VALUES.map(|file| number(&run.tree, &format!("top/{file}")) as u64);
    let cleared = run.tree.clear(".stats/clear").unwrap();
    assert_eq!(VALUES.map(|name| cleared.0[name]), before);
    for (path, value) in flat(&run.tree) {
        let cumulative = path.contains("work_done")
            || path.contains("work_failed")
            || path.contains("work_time");
        assert!(!cumulative || value == "0", "{path} {value}");
    }
}

#[test]
fn what_clears_take_and_what_is_left_is_what_was_counted_below() {
    run(Reach::Pools, rounds(400));
}

#[test]
fn what_clears_take_and_what_is_left_is_what_was_counted_at_the_top() {
    run(Reach::Top, rounds(400));
}

#[test]
fn a_clear_by_writing_takes_the_same() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let slot = top.add_values::<Work>().unwrap();
    let tree = registry.tree().unwrap();
    for (text, ok) in [("0", true), (" 0x0\n", true), ("00", true), ("1", false), ("", false)] {
        slot.update(|c| c.work_done.add(3));
        let ino = node(&tree, "top/work_done").unwrap();
        let before = number(&tree, "top/work_done");
        let written = tree.write(ino, support::ROOT_CALLER, text.as_bytes());
        assert_eq!(written.is_ok(), ok, "{text:?}");
        assert_eq!(number(&tree, "top/work_done"), if ok { 0 } else { before }, "{text:?}");
    }
    assert!(try_number(&tree, "top/nothing").is_err());
}

#[test]
fn several_threads_clear_at_once() {
    let seed = support::seed();
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    drop(top.add_values::<Work>().unwrap());
    let pools = [top];
    let tree = registry.tree().unwrap();
    let accounts: Vec<_> = (0..2).map(|_| [const { Account::new() }; 1]).collect();
    let exchange: Exchange = Mutex::new(Vec::new());
    let (stop, taken) = (AtomicBool::new(false), Taken::default());
    thread::scope(|scope| {
        for (n, accounts) in accounts.iter().enumerate() {
            let (registry, pools, exchange, stop) = (&registry, &pools, &exchange, &stop);
            scope.spawn(move || {
                let mut churner = Churner::new(n, seed, registry, pools, accounts, exchange);
                while !stop.load(SeqCst) {
                    churner.step();
                }
                churner.finish();
            });
        }
        let clearers: Vec<_> = (0..3)
            .map(|n| {
                let (tree, taken) = (&tree, &taken);
                scope.spawn(move || {
                    let mut random = Random::new(seed ^ n);
                    for _ in 0..rounds(200) {
                        let path = match random.below(5) {
                            0 => "top/work_done",
                            1 => "top/.departed/work_done",
                            2 => "top/.departed/.stats/clear",
                            3 => "top/work_time/count",
                            _ => ".stats/clear",
                        };
                        let cleared = match tree.clear(path) {
                            Ok(cleared) => cleared,
                            // Nothing has departed yet.
                            Err(error) if error.0 == libc::ENOENT => continue,
                            Err(error) => panic!("{path}: {error:?}"),
                        };
                        for (n, name) in VALUES.iter().enumerate() {
                            let n_taken = cleared.0.get(*name).copied().unwrap_or(0);
                            assert!(n_taken < 1 << 62, "clearing {path} took {n_taken} of {name}");
                            taken.0[n].fetch_add(n_taken, SeqCst);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clearers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, SeqCst);
        ended.into_iter().for_each(|end| end.unwrap());
    });
    drop(exchange);
    let done = total(accounts.iter().flatten(), |a| &a.counted_done);
    let times = total(accounts.iter().flatten(), |a| &a.counted_times);
    for (n, counted) in [done, 2 * done, times, TIMES[0] * times].into_iter().enumerate() {
        let shown = number(&tree, &format!("top/{}", VALUES[n])) as u64;
        assert_eq!(shown + taken.get()[n], counted, "{}", VALUES[n]);
    }
}

#[test]
fn narrow_cells_wrap_after_a_clear_and_take_nothing_from_others() {
    let group = GroupBuilder::new("narrow")
        .value(Descriptor::new("byte", ValueType::U8, Semantics::Cumulative))
        .value(Descriptor::new("short", ValueType::U16, Semantics::Cumulative))
        .build()
        .unwrap();
    for slots in [1, 2] {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        let tree = registry.tree().unwrap();
        let add = |name: &str| {
            let source = registry.create_source(name).unwrap();
            top.add_subordinate(&source).unwrap();
            let slots: Vec<_> = (0..slots).map(|_| source.add_group(&group).unwrap()).collect();
            (source, slots)
        };
        // What another left must not be touched.
        let (other, of_other) = add("other");
        of_other[0].add(0, 200);
        top.remove_subordinate(&other).unwrap();
        drop(of_other);
        registry.usage();
        assert_eq!(number(&tree, "top/byte"), 200);
        let (source, of_source) = add("source");
        of_source.iter().for_each(|slot| slot.add(0, 250));
        // Modulo the width, whatever the number of slots.
        assert_eq!(number(&tree, "top/source/byte"), 250 * slots % 256);
        assert_eq!(tree.clear("top/source/byte").unwrap().0["byte"], 250 * slots as u64 % 256);
        assert_eq!(number(&tree, "top/source/byte"), 0);
        of_source.iter().for_each(|slot| slot.add(0, 10));
        assert_eq!(number(&tree, "top/source/byte"), 10 * slots, "{slots} slots wrapped");
        assert_eq!(number(&tree, "top/byte"), 200 + 10 * slots);
        top.remove_subordinate(&source).unwrap();
        assert_eq!(number(&tree, "top/byte"), 200 + 10 * slots, "what was shown stays");
        of_source.iter().for_each(|slot| slot.add(0, 7));
        assert_eq!(number(&tree, "top/.departed/byte"), 200 + 17 * slots);
        drop(of_source);
        registry.usage();
        assert_eq!(number(&tree, "top/byte"), 200 + 17 * slots);
        let taken = tree.clear("top/byte").unwrap().0["byte"];
        assert_eq!(taken, (200 + 17 * slots) as u64);
        assert_eq!(number(&tree, "top/byte"), 0);
    }
}
