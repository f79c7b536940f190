//! Sources that come and are revoked faster than the tree can be read: every count is still there once in
//! everything that is shown, and what clears take is exactly what they do not leave.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use statsfs::tree::{Snapshot, Tree};
use statsfs::{Registry, RegistryOptions, Slot, Source, SourceError};
use support::churn::{Account, total};
use support::{Random, StopAtEnd, Work, below, flat, number, rounds, top};

/// Sources that stay, so many that folds overtake each look at them.
const STAYING: usize = 1000;
const THREADS: usize = 2;

struct Storm {
    registry: Registry,
    pools: [Source; 2],
    tree: Tree,
    /// Of the threads, the last for what stays.
    accounts: [Account; THREADS + 1],
    taken: AtomicU64,
    stop: AtomicBool,
}

fn count(slot: &Slot<Work>) -> bool {
    slot.update(|c| {
        c.work_done.inc();
        c.work_failed.add(2);
    });
    slot.work_time.record(3);
    true
}

impl Storm {
    /// Runs `look` in the storm; `full`: with so little memory that every new source must wait for the fold
    /// of an old one.
    fn run(full: bool, look: impl FnOnce(&Self)) {
        let mut options = RegistryOptions::default();
        if full {
            (options.segment_size, options.max_segments) = (1 << 20, 1);
        }
        let registry = Registry::with_options(options).unwrap();
        let outer = top(&registry);
        let inner = below(&registry, &outer, "inner");
        let pools = [outer, inner];
        let staying: Vec<Slot<Work>> = (0..STAYING)
            .map(|n| below(&registry, &pools[n % 2], &format!("s{n}")).add_values().unwrap())
            .collect();
        let mut filling = Vec::new();
        if full {
            while let Ok(made) = Self::make(&registry, &pools[0], &format!("f{}", filling.len())) {
                filling.push(made);
            }
        }
        for (source, _) in filling.drain(filling.len().saturating_sub(6)..) {
            source.revoke().unwrap();
        }
        let storm = Self {
            tree: registry.tree().unwrap(),
            registry,
            pools,
            accounts: [const { Account::new() }; THREADS + 1],
            taken: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            for n in 0..THREADS {
                let (stop, account) = (&storm.stop, &storm.accounts[n]);
                let (registry, pool) = (&storm.registry, &storm.pools[n % 2]);
                scope.spawn(move || Self::blow(registry, pool, stop, account, n));
            }
            let (stop, of_staying) = (&storm.stop, &storm.accounts[THREADS]);
            scope.spawn(move || {
                for slot in staying.iter().cycle().take_while(|_| !stop.load(SeqCst)) {
                    of_staying.add(1, 1, || count(slot));
                }
            });
            let _stop = StopAtEnd(&storm.stop);
            look(&storm);
        });
        let counted = storm.low();
        assert_eq!(counted, storm.high());
        let left = number(&storm.tree, "top/work_done") as u64;
        assert_eq!(left + storm.taken.load(SeqCst), counted, "at rest");
    }

    /// A source with two slots, or nothing.
    fn make(
        registry: &Registry,
        pool: &Source,
        name: &str,
    ) -> Result<(Source, [Slot<Work>; 2]), SourceError> {
        let source = registry.create_source(name)?;
        let slots = [source.add_values()?, source.add_values()?];
        pool.add_subordinate(&source)?;
        Ok((source, slots))
    }

    /// Makes sources, counts in them, and revokes or removes them.
    fn blow(registry: &Registry, pool: &Source, stop: &AtomicBool, account: &Account, n: usize) {
        let mut round = 0;
        while !stop.load(SeqCst) {
            round += 1;
            let (source, slots) = match Self::make(registry, pool, &format!("t{n}")) {
                Ok(made) => made,
                Err(SourceError::SegmentFull { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            account.add(2, 2, || slots.iter().all(count));
            if round % 8 > 0 {
                source.revoke().unwrap();
            } else {
                pool.remove_subordinate(&source).unwrap();
            }
        }
    }

    fn low(&self) -> u64 {
        total(&self.accounts, |a| &a.counted_done)
    }

    fn high(&self) -> u64 {
        total(&self.accounts, |a| &a.intended_done)
    }
}

fn read_in_a_storm(full: bool) {
    Storm::run(full, |storm| {
        let mut snapshot = Snapshot::default();
        let mut last = 0;
        for n in 0..rounds(18) {
            let low = storm.low();
            let (done, failed, times) = match n % 3 {
                0 => {
                    let all = flat(&storm.tree);
                    let get = |path: &str| all[path].parse::<u64>().unwrap();
                    let (done, failed) = (get("top/work_done"), get("top/work_failed"));
                    // What is below is no more than that, and what departed is the rest.
                    let below: u64 = all
                        .iter()
                        .filter(|(path, _)| path.ends_with("/work_done") && path.contains("/s"))
                        .map(|(_, value)| value.parse::<u64>().unwrap())
                        .sum();
                    assert!(below <= done, "{below} in what stays, {done} in all");
                    assert!(get("top/inner/work_done") <= done);
                    (done, failed, get("top/work_time/count"))
                }
                1 => {
                    storm.tree.snapshot(&mut snapshot);
                    let mut sums = [0; 3];
                    for (_, cells) in snapshot.cells().filter(|(group, _)| group.name() == "work") {
                        sums[0] += cells[0];
                        sums[1] += cells[1];
                        sums[2] += cells[3..11].iter().sum::<u64>();
                    }
                    sums.into()
                }
                _ => {
                    let done = number(&storm.tree, "top/work_done") as u64;
                    (done, 2 * done, done)
                }
            };
            let high = storm.high();
            assert!(low <= done && done <= high, "{low} to {high} were counted, {done} are shown");
            assert_eq!(failed, 2 * done, "each update is there as a whole");
            assert!(low <= times && times <= high, "{low} to {high} recorded, {times} are shown");
            assert!(last <= done, "{last}, then {done}");
            last = done;
        }
    });
}

#[test]
fn readers_in_a_storm_of_revocations_count_everything_once() {
    read_in_a_storm(false);
}

#[test]
fn readers_in_a_storm_count_everything_once_though_memory_is_at_its_limit() {
    read_in_a_storm(true);
}

#[test]
fn clears_in_a_storm_of_revocations_take_what_they_do_not_leave() {
    let seed = support::seed();
    Storm::run(false, |storm| {
        let mut random = Random::new(seed);
        for _ in 0..rounds(12) {
            let path = match random.below(6) {
                0 => "top/.stats/clear",
                1 => "top/inner/.stats/clear",
                2 => "top/inner/work_done",
                3 => "top/.departed/work_done",
                4 => "top/inner/s1/work_done",
                _ => "top/work_done",
            };
            let taken = storm.tree.clear(path).unwrap().0["work_done"];
            assert!(taken < 1 << 62, "clearing {path} took {taken}");
            let all = storm.taken.fetch_add(taken, SeqCst) + taken;
            let low = storm.low();
            let there = number(&storm.tree, "top/work_done") as u64 + all;
            let high = storm.high();
            assert!(low <= there && there <= high, "{low} to {high} were counted, not {there}");
            for (path, value) in flat(&storm.tree) {
                let value: i128 = value.parse().unwrap();
                assert!(value.abs() < 1 << 62, "{path} shows {value}");
            }
        }
    });
}
