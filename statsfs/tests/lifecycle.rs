//! Sources and slots that come and go in every order.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use statsfs::{Registry, SourceError};
use support::{Random, StopAtEnd, Tick, Work, below, flat, number, top, try_number, until};

#[test]
fn a_departed_leaf_counts_until_it_is_folded_and_after() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let leaf = below(&registry, &pool, "leaf");
    let slot = leaf.add_values::<Work>().unwrap();
    slot.update(|c| c.work_done.add(1000));
    assert_eq!(number(&tree, "top/work_done"), 1000);
    registry.usage();
    pool.remove_subordinate(&leaf).unwrap();
    drop(slot);
    assert_eq!(number(&tree, "top/work_done"), 1000);
    registry.usage();
    assert_eq!(number(&tree, "top/work_done"), 1000);
}

#[test]
fn departures_fold_by_themselves() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    for n in 1..=20 {
        let leaf = below(&registry, &pool, "leaf");
        let slot = leaf.add_values::<Work>().unwrap();
        slot.update(|c| c.work_done.inc());
        pool.remove_subordinate(&leaf).unwrap();
        drop(slot);
        assert_eq!(number(&tree, "top/work_done"), n);
    }
    until("all is folded", || tree.usage().sources == 1);
    assert_eq!(number(&tree, "top/.departed/work_done"), 20);
}

#[test]
fn handles_are_dropped_in_every_order() {
    // A top, a middle, a leaf, two slots, and the registry: in each of the 720 orders.
    let mut order = [0, 1, 2, 3, 4, 5];
    let mut orders = Vec::new();
    permute(&mut order, 0, &mut |order| orders.push(*order));
    assert_eq!(orders.len(), 720);
    for (n, order) in orders.iter().enumerate() {
        let registry = Registry::new().unwrap();
        let anchor = top(&registry);
        let tree = registry.tree().unwrap();
        let attached = n % 2 == 0;
        let sources = ["upper", "middle", "leaf"].map(|name| registry.create_source(name).unwrap());
        sources[1].add_subordinate(&sources[2]).unwrap();
        sources[0].add_subordinate(&sources[1]).unwrap();
        let slots = [1, 2].map(|n: usize| sources[n].add_values::<Work>().unwrap());
        if attached {
            anchor.add_subordinate(&sources[0]).unwrap();
        }
        slots.iter().for_each(|slot| slot.update(|c| c.work_done.inc()));
        let mut sources = sources.map(Some);
        let mut slots = slots.map(Some);
        let mut registry = Some(registry);
        for &what in order {
            match what {
                0..3 => sources[what] = None,
                3 | 4 => slots[what - 3] = None,
                _ => registry = None,
            }
            for slot in slots.iter().flatten() {
                slot.update(|c| c.work_failed.inc());
            }
            if attached {
                assert_eq!(number(&tree, "top/upper/middle/work_done"), 2, "{order:?}");
                assert_eq!(number(&tree, "top/upper/middle/leaf/work_done"), 1, "{order:?}");
            } else {
                assert!(try_number(&tree, "top/upper/middle/work_done").is_err(), "{order:?}");
            }
        }
        drop(registry);
        let _ = anchor.name();
        if !attached {
            until("what was never attached is gone", || tree.usage().sources == 1);
        }
    }
}

fn permute(order: &mut [usize; 6], from: usize, each: &mut dyn FnMut(&[usize; 6])) {
    if from == order.len() {
        each(order);
        return;
    }
    for n in from..order.len() {
        order.swap(from, n);
        permute(order, from + 1, each);
        order.swap(from, n);
    }
}

#[test]
fn an_unattached_subtree_leaves_nothing_behind() {
    let registry = Registry::new().unwrap();
    let anchor = top(&registry);
    let tree = registry.tree().unwrap();
    let before = registry.usage();
    for n in 0..50 {
        let upper = registry.source("upper").hidden().label("n", n.to_string()).create().unwrap();
        let middle = below(&registry, &upper, "middle");
        let leaf = below(&registry, &middle, "leaf");
        let slots = [&upper, &middle, &leaf].map(|source| source.add_values::<Work>().unwrap());
        slots.iter().for_each(|slot| slot.update(|c| c.work_done.inc()));
        // With parts that departed inside it, folded or not, with slots that still count.
        let early = slots[2].work_queue.get();
        middle.remove_subordinate(&leaf).unwrap();
        if n % 2 == 0 {
            registry.usage();
        }
        if n % 3 == 0 {
            upper.remove_subordinate(&middle).unwrap();
        }
        drop(upper);
        assert!(matches!(leaf.add_values::<Work>(), Err(SourceError::Removed)));
        assert!(matches!(anchor.add_subordinate(&middle), Err(SourceError::Removed)));
        slots.iter().for_each(|slot| slot.update(|c| c.work_done.inc()));
        assert_eq!(slots[2].work_queue.get(), early);
        drop(slots);
        drop((leaf, middle));
        assert_eq!(registry.usage(), before);
    }
    flat(&tree);
    assert_eq!(tree.usage().sources, 1);
}

#[test]
fn slots_outlive_their_registry() {
    let (slot, tree) = {
        let registry = Registry::new().unwrap();
        let slot = top(&registry).add_values::<Work>().unwrap();
        (slot, registry.segments().unwrap())
    };
    let tree = support::child::tree(&tree);
    slot.update(|c| c.work_done.add(3));
    assert_eq!(number(&tree, "top/work_done"), 3);
    drop(slot);
    assert_eq!(number(&tree, "top/work_done"), 3);
}

#[test]
fn two_registries_have_nothing_in_common() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let (in_one, in_two) = (top(&one), top(&two));
    let (a, b) = (in_one.add_values::<Work>().unwrap(), in_two.add_values::<Work>().unwrap());
    a.update(|c| c.work_done.add(1));
    b.update(|c| c.work_done.add(2));
    assert_eq!(number(&one.tree().unwrap(), "top/work_done"), 1);
    assert_eq!(number(&two.tree().unwrap(), "top/work_done"), 2);
    let child = one.create_source("child").unwrap();
    assert!(matches!(in_two.add_subordinate(&child), Err(SourceError::OtherRegistry)));
    assert!(matches!(in_two.remove_subordinate(&child), Err(SourceError::OtherRegistry)));
}

#[test]
fn a_slots_block_goes_to_the_next_slot() {
    let registry = Registry::new().unwrap();
    let source = top(&registry);
    let tree = registry.tree().unwrap();
    let first = source.add_values::<Work>().unwrap();
    first.update(|c| c.work_done.add(5));
    let usage = registry.usage();
    for n in 0..100 {
        let slot = source.add_values::<Work>().unwrap();
        slot.update(|c| c.work_done.inc());
        assert_eq!(number(&tree, "top/work_done"), 6 + n);
    }
    let after = registry.usage();
    assert!(after.units == usage.units + 1, "one more block in all: {usage:?}, {after:?}");
}

#[test]
fn revoked_slots_count_nowhere_and_their_counts_stay() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let stop = AtomicBool::new(false);
    // Four threads count in a source that is revoked under them.
    for round in 0..20 {
        stop.store(false, SeqCst);
        let before = try_number(&tree, "top/work_done").unwrap_or(0);
        let source = below(&registry, &pool, "source");
        let inner = below(&registry, &source, "inner");
        let barrier = Barrier::new(5);
        let counted = AtomicU64::new(0);
        let at_revocation = thread::scope(|scope| {
            for n in 0..4 {
                let slot = [&source, &inner][n % 2].add_values::<Work>().unwrap();
                let (stop, barrier, counted) = (&stop, &barrier, &counted);
                scope.spawn(move || {
                    barrier.wait();
                    let mut n = 0;
                    while !stop.load(SeqCst) {
                        slot.update(|c| {
                            c.work_done.inc();
                            c.work_failed.add(2);
                        });
                        slot.work_time.record(1);
                        n += 1;
                    }
                    counted.fetch_add(n, SeqCst);
                });
            }
            barrier.wait();
            let _stop = StopAtEnd(&stop);
            thread::sleep(Duration::from_millis(round % 3));
            source.revoke().unwrap();
            assert!(matches!(source.revoke(), Err(SourceError::Removed)));
            // An update that was running ends in the segment; the next one does not begin there.
            let mut last = number(&tree, "top/work_done");
            loop {
                thread::sleep(Duration::from_millis(20));
                let now = number(&tree, "top/work_done");
                assert!(now >= last);
                if now == last {
                    break now;
                }
                last = now;
            }
        });
        assert!(at_revocation - before <= i128::from(counted.load(SeqCst)));
        assert!(try_number(&tree, "top/source/work_done").is_err());
        registry.usage();
        // A thread may have been held up inside its last update.
        let after = number(&tree, "top/work_done");
        assert!(at_revocation <= after && after <= at_revocation + 4, "{at_revocation}, {after}");
        assert_eq!(number(&tree, "top/work_failed"), 2 * after);
    }
    until("all is folded", || tree.usage().sources == 1);
}

// ---- many threads --------------------------------------------------------------------------------

#[test]
fn threads_that_fight_for_the_same_sources_never_break_them() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let seed = support::seed();
    let usage = registry.usage();
    let shared: Vec<_> = (0..64)
        .map(|n| (registry.create_source(&format!("s{}", n % 8)).unwrap(), AtomicU64::new(0)))
        .collect();
    thread::scope(|scope| {
        for thread in 0..4 {
            let (shared, pool) = (&shared, &pool);
            scope.spawn(move || {
                let mut random = Random::new(seed + thread);
                let mut slots = Vec::new();
                for _ in 0..3000 {
                    let (source, _) = &shared[random.below(64) as usize];
                    let (other, _) = &shared[random.below(64) as usize];
                    // Anything may be refused, nothing may break.
                    match random.below(8) {
                        0 => drop(pool.add_subordinate(source)),
                        1 | 2 => drop(source.add_subordinate(other)),
                        3 if random.one_in(10) => drop(source.revoke()),
                        4 if random.one_in(10) => drop(pool.remove_subordinate(source)),
                        5 if random.one_in(10) => drop(source.remove_subordinate(other)),
                        6 => slots.extend(source.add_values::<Work>().ok()),
                        7 if !slots.is_empty() => {
                            slots.swap_remove(random.below(slots.len() as u64) as usize);
                        }
                        _ => {}
                    }
                    if let Some(slot) = slots.last() {
                        slot.update(|c| c.work_done.inc());
                    }
                }
            });
        }
        for _ in 0..100 {
            flat(&tree);
        }
    });
    drop(shared);
    flat(&tree);
    for child in tree_names(&tree) {
        assert!(child.starts_with('s'), "{child}");
    }
    pool.revoke().unwrap();
    drop(pool);
    let after = registry.usage();
    assert_eq!((after.sources, after.units), (0, 1), "{usage:?}, {after:?}");
    flat(&tree);
    assert_eq!(tree.usage().sources, 0);
}

fn tree_names(tree: &statsfs::tree::Tree) -> Vec<String> {
    let dir = support::node(tree, "top").unwrap();
    let entries = support::list(tree, dir, 7).unwrap();
    let is_file = |name: &str| name.starts_with("work_");
    entries.into_iter().map(|(name, _)| name).filter(|name| !is_file(name)).collect()
}

#[test]
fn what_departed_from_a_source_before_it_was_attached_counts_above() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let upper = registry.create_source("upper").unwrap();
    let leaf = below(&registry, &upper, "leaf");
    let slot = leaf.add_values::<Tick>().unwrap();
    slot.tick_count.add(3);
    upper.remove_subordinate(&leaf).unwrap();
    drop(slot);
    registry.usage();
    pool.add_subordinate(&upper).unwrap();
    assert_eq!(number(&tree, "top/tick_count"), 3);
    assert_eq!(number(&tree, "top/upper/.departed/tick_count"), 3);
    let named = registry.create_source("tick_count").unwrap();
    assert!(matches!(pool.add_subordinate(&named), Err(SourceError::AlreadyExists { .. })));
    pool.remove_subordinate(&upper).unwrap();
    registry.usage();
    assert_eq!(number(&tree, "top/.departed/tick_count"), 3);
}

#[test]
fn a_name_passes_on_while_nobody_looks() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    // In both orders of creation, directly, at the top level, and within hidden sources.
    let sources: Vec<_> = (0..4)
        .map(|n| {
            let source = registry.create_source("same").unwrap();
            source.add_values::<Tick>().unwrap().tick_count.add(n + 1);
            source
        })
        .collect();
    let mut last_ino = None;
    for n in [2, 0, 3, 1] {
        pool.add_subordinate(&sources[n]).unwrap();
        assert_eq!(number(&tree, "top/same/tick_count"), n as i128 + 1);
        let ino = support::node(&tree, "top/same").unwrap();
        assert_ne!(last_ino.replace(ino), Some(ino), "a number is never used again");
        pool.remove_subordinate(&sources[n]).unwrap();
    }
    assert!(try_number(&tree, "top/same/tick_count").is_err());
    let sources: Vec<_> = (0..4)
        .map(|n| {
            let builder = registry.source("top2");
            let source = if n % 2 == 0 { builder } else { builder.private() }.create().unwrap();
            source.add_values::<Tick>().unwrap().tick_count.add(n + 1);
            source
        })
        .collect();
    for n in [2, 0, 3, 1] {
        sources[n].register().unwrap();
        assert_eq!(number(&tree, "top2/tick_count"), n as i128 + 1);
        use statsfs::fs::Nodes;
        let ino = support::node(&tree, "top2").unwrap();
        assert_ne!(last_ino.replace(ino), Some(ino), "a number is never used again");
        let mode = tree.attr(ino).unwrap().mode;
        assert_eq!(mode, if n % 2 == 0 { 0o755 } else { 0o750 });
        sources[n].revoke().unwrap();
    }
    let hidden: Vec<_> = (0..4)
        .map(|n| {
            let hidden = registry.source("hidden").hidden().create().unwrap();
            let source = below(&registry, &hidden, "same");
            source.add_values::<Tick>().unwrap().tick_count.add(n + 1);
            hidden
        })
        .collect();
    for n in [2, 0, 3, 1] {
        pool.add_subordinate(&hidden[n]).unwrap();
        assert_eq!(number(&tree, "top/same/tick_count"), n as i128 + 1);
        pool.remove_subordinate(&hidden[n]).unwrap();
    }
    assert_eq!(number(&tree, "top/tick_count"), 20);
}

#[test]
fn an_update_that_panics_leaves_a_whole_group() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let registry = Registry::new().unwrap();
    let slot = top(&registry).add_values::<Work>().unwrap();
    let tree = registry.tree().unwrap();
    let mut done = 0;
    // At the first and at the second run of the closure, that is in either copy, and in a row.
    for panics_at in [0, 1, 0, 0, 1, 1] {
        let runs = AtomicU64::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            slot.update(|c| {
                c.work_done.inc();
                assert_ne!(runs.fetch_add(1, SeqCst), panics_at, "this closure panics on purpose");
                c.work_failed.add(2);
            });
        }));
        outcome.unwrap_err();
        // Undone or completed.
        let now = number(&tree, "top/work_done");
        assert!(now == done || now == done + 1, "{done}, {now}");
        assert_eq!(number(&tree, "top/work_failed"), 2 * now);
        slot.update(|c| {
            c.work_done.inc();
            c.work_failed.add(2);
        });
        done = now + 1;
        assert_eq!(number(&tree, "top/work_done"), done);
        assert_eq!(number(&tree, "top/work_failed"), 2 * done);
    }
}

#[test]
fn segments_that_cannot_be_had_now_are_had_later() {
    use statsfs::tree::{Feed, Owner, Tree};
    struct Flaky(Registry, Arc<AtomicBool>);
    impl Feed for Flaky {
        fn segments(&self) -> std::io::Result<Vec<std::os::fd::OwnedFd>> {
            if self.1.load(SeqCst) {
                return Err(std::io::Error::from_raw_os_error(libc::EMFILE));
            }
            self.0.segments()
        }
    }
    let options =
        statsfs::RegistryOptions { segment_size: 16 << 10, max_segments: 64, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let pool = top(&registry);
    let fails = Arc::new(AtomicBool::new(false));
    let feed = Flaky(registry.clone(), fails.clone());
    let tree = Tree::new(feed, Owner { uid: 0, gid: 0 }).unwrap();
    let mut slots = Vec::new();
    let mut grow = |n: usize| {
        for _ in 0..n {
            let source = below(&registry, &pool, &format!("s{}", slots.len()));
            let slot = source.add_values::<Tick>().unwrap();
            slot.tick_count.inc();
            slots.push(slot);
        }
    };
    grow(10);
    assert_eq!(number(&tree, "top/tick_count"), 10);
    fails.store(true, SeqCst);
    grow(300);
    assert!(registry.usage().segments > 2);
    assert_eq!(number(&tree, "top/s0/tick_count"), 1, "what can be had is shown");
    assert!(number(&tree, "top/tick_count") >= 10);
    fails.store(false, SeqCst);
    assert_eq!(number(&tree, "top/tick_count"), 310);
    assert_eq!(number(&tree, "top/s309/tick_count"), 1);
}

#[test]
fn revoking_slots_that_count_takes_nothing_back() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    drop(pool.add_values::<Work>().unwrap());
    let tree = registry.tree().unwrap();
    let (done, cleared) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (tree, done, cleared) = (&tree, &done, &cleared);
        scope.spawn(move || {
            while !done.load(SeqCst) {
                let taken = tree.clear("top/work_done").unwrap().0["work_done"];
                assert!(taken < 1 << 62, "took {taken}");
                cleared.fetch_add(taken, SeqCst);
            }
        });
        let _stop = StopAtEnd(done);
        let mut least = 0;
        for _ in 0..support::rounds(300) {
            let source = below(&registry, &pool, "source");
            let slot = source.add_values::<Work>().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = stop.clone();
            let writer = thread::spawn(move || {
                let mut n = 0;
                while !stopped.load(SeqCst) {
                    slot.update(|c| {
                        c.work_done.inc();
                        c.work_failed.add(2);
                    });
                    n += 1;
                }
                n
            });
            until("it counts", || number(tree, "top/work_failed") > least);
            source.revoke().unwrap();
            // What was once shown or taken stays so.
            let failed = number(tree, "top/work_failed");
            assert!(failed >= least && failed < 1 << 62, "{least}, then {failed}");
            least = failed;
            stop.store(true, SeqCst);
            let counted: i128 = writer.join().unwrap();
            assert!(counted > 0);
        }
    });
    registry.usage();
    let left = number(&tree, "top/work_done");
    assert!(left < 1 << 62);
    let total = left + i128::from(cleared.load(SeqCst));
    assert_eq!(2 * total, number(&tree, "top/work_failed"), "nothing lost, nothing twice");
}
