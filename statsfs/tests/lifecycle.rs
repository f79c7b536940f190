//! Sources, slots and callbacks that come and go in every order.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use statsfs::{Registry, Source, SourceError};
use support::{Random, Tick, Work, flat, number, try_number};

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `f` in another thread, which must end: what is tested here deadlocks where it fails.
fn ends<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    thread::spawn(move || send.send(f()));
    match receive.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => panic!("{what} does not end"),
        Err(RecvTimeoutError::Disconnected) => panic!("{what} panicked"),
    }
}

fn top(registry: &Registry) -> Source {
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    top
}

fn below(registry: &Registry, parent: &Source, name: &str) -> Source {
    let source = registry.create_source(name).unwrap();
    parent.add_subordinate(&source).unwrap();
    source
}

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
            thread::sleep(Duration::from_millis(round % 3));
            source.revoke().unwrap();
            assert!(matches!(source.revoke(), Err(SourceError::Removed)));
            // An update that was running ends in the segment; the next one does not begin there.
            let mut last = number(&tree, "top/work_done");
            let settled = loop {
                thread::sleep(Duration::from_millis(20));
                let now = number(&tree, "top/work_done");
                assert!(now >= last);
                if now == last {
                    break now;
                }
                last = now;
            };
            stop.store(true, SeqCst);
            settled
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

// ---- callbacks -----------------------------------------------------------------------------------

#[test]
fn callbacks_are_sampled_at_once_then_in_time_and_at_removal() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let source = below(&registry, &pool, "source");
    let level = Arc::new(AtomicU64::new(7));
    let calls = Arc::new(AtomicU64::new(0));
    let (l, c) = (level.clone(), calls.clone());
    source
        .add_callback::<Tick>(Duration::from_millis(5), move |slot| {
            c.fetch_add(1, SeqCst);
            let now = l.load(SeqCst);
            slot.tick_count.add(now - slot.tick_count.get());
        })
        .unwrap();
    until("a first sample", || number(&tree, "top/source/tick_count") == 7);
    level.store(9, SeqCst);
    until("a later sample", || number(&tree, "top/source/tick_count") == 9);
    until("many samples", || calls.load(SeqCst) > 5);
    // The last sample is taken at removal, whatever the interval.
    let lazy = below(&registry, &pool, "lazy");
    let rare = Arc::new(AtomicU64::new(0));
    let r = rare.clone();
    lazy.add_callback::<Tick>(Duration::MAX, move |slot| {
        slot.tick_count.add(100);
        r.fetch_add(1, SeqCst);
    })
    .unwrap();
    until("the first sample", || rare.load(SeqCst) == 1);
    pool.remove_subordinate(&lazy).unwrap();
    assert_eq!(rare.load(SeqCst), 2, "removal waits for the last sample");
    assert_eq!(number(&tree, "top/.departed/tick_count"), 200);
    level.store(11, SeqCst);
    source.revoke().unwrap();
    assert_eq!(number(&tree, "top/tick_count"), 211);
    // And none after.
    let before = calls.load(SeqCst);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(calls.load(SeqCst), before);
    until("their slots are dropped with them", || tree.usage().sources == 1);
}

#[test]
fn a_panicking_callback_harms_nobody_else() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let bad = below(&registry, &pool, "bad");
    let calls = Arc::new(AtomicU64::new(0));
    let c = calls.clone();
    bad.add_callback::<Tick>(Duration::from_millis(1), move |_| {
        c.fetch_add(1, SeqCst);
        panic!("this callback panics on purpose");
    })
    .unwrap();
    until("it is called", || calls.load(SeqCst) == 1);
    let good = below(&registry, &pool, "good");
    good.add_callback::<Tick>(Duration::from_millis(1), |slot| slot.tick_count.inc()).unwrap();
    until("the other is sampled", || number(&tree, "top/good/tick_count") > 3);
    assert_eq!(calls.load(SeqCst), 1, "it is not called again");
    pool.remove_subordinate(&bad).unwrap();
    // One that panics only at removal does not keep its source from leaving.
    let late = below(&registry, &pool, "late");
    let first = AtomicBool::new(true);
    late.add_callback::<Tick>(Duration::from_secs(3600), move |slot| {
        slot.tick_count.inc();
        assert!(first.swap(false, SeqCst), "this callback panics on purpose");
    })
    .unwrap();
    until("its first sample", || number(&tree, "top/late/tick_count") == 1);
    pool.remove_subordinate(&late).unwrap();
    assert!(try_number(&tree, "top/late/tick_count").is_err());
    // Folds still happen by themselves.
    pool.remove_subordinate(&good).unwrap();
    until("all is folded", || tree.usage().sources == 1);
}

#[test]
fn a_slow_callback_holds_up_only_samples() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let slow = below(&registry, &pool, "slow");
    let (enter, entered) = channel();
    let (leave, left) = channel::<()>();
    slow.add_callback::<Tick>(Duration::from_millis(1), move |slot| {
        let _ = enter.send(());
        let _ = left.recv();
        slot.tick_count.inc();
    })
    .unwrap();
    entered.recv_timeout(PATIENCE).unwrap();
    // It hangs in the registry's thread: everything else goes on.
    for n in 0..100 {
        let source = below(&registry, &pool, "source");
        let slot = source.add_values::<Work>().unwrap();
        slot.update(|c| c.work_done.inc());
        pool.remove_subordinate(&source).unwrap();
        drop(slot);
        assert_eq!(number(&tree, "top/work_done"), n + 1);
        thread::sleep(Duration::from_millis(1));
    }
    assert!(registry.usage().sources == 2);
    drop(leave);
    ends("removal", move || pool.remove_subordinate(&slow).unwrap());
    assert!(number(&tree, "top/tick_count") >= 2);
}

#[test]
fn callbacks_may_call_the_library() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    // One that makes and removes sources, and reads nothing.
    let busy = below(&registry, &pool, "busy");
    let (r, p) = (registry.clone(), pool.clone());
    busy.add_callback::<Tick>(Duration::from_millis(1), move |slot| {
        let source = r.create_source("by_callback").unwrap();
        source.add_values::<Work>().unwrap().update(|c| c.work_done.inc());
        p.add_subordinate(&source).unwrap();
        p.remove_subordinate(&source).unwrap();
        slot.tick_count.inc();
    })
    .unwrap();
    until("it works", || number(&tree, "top/busy/tick_count") > 3);
    // At any moment done is the same as ticks, or one ahead.
    let p = pool.clone();
    ends("removal", move || p.remove_subordinate(&busy).unwrap());
    assert_eq!(number(&tree, "top/work_done"), number(&tree, "top/tick_count"));
    // One that removes its own source.
    let before = number(&tree, "top/tick_count");
    let own = Arc::new(OnceLock::<Source>::new());
    let source = below(&registry, &pool, "own");
    let o = own.clone();
    let calls = Arc::new(AtomicU64::new(0));
    let c = calls.clone();
    source
        .add_callback::<Tick>(Duration::from_millis(1), move |slot| {
            let Some(own) = o.get() else { return };
            c.fetch_add(1, SeqCst);
            slot.tick_count.inc();
            own.revoke().unwrap();
            // Private memory now.
            slot.tick_count.add(1000);
        })
        .unwrap();
    own.set(source).unwrap();
    until("it is gone", || try_number(&tree, "top/own/tick_count").is_err());
    thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(SeqCst), 1);
    assert_eq!(number(&tree, "top/tick_count"), before + 1);
    // Two that remove each other's, while others do as well.
    for _ in 0..20 {
        let pair = [below(&registry, &pool, "left"), below(&registry, &pool, "right")];
        for n in 0..2 {
            let other = pair[1 - n].clone();
            // The first one may have removed the second source by now.
            let _ = pair[n].add_callback::<Tick>(Duration::from_millis(1), move |_| {
                let _ = other.revoke();
            });
        }
        let mine = pair[0].clone();
        ends("a removal by callbacks", move || drop(mine.revoke()));
        until("both are gone", || pair.iter().all(|s| s.add_values::<Work>().is_err()));
    }
    until("all is folded", || tree.usage().sources == 1);
}

#[test]
fn callbacks_end_with_their_registry() {
    let gone = Arc::new(());
    {
        let registry = Registry::new().unwrap();
        let source = top(&registry);
        let held = gone.clone();
        source
            .add_callback::<Tick>(Duration::from_millis(1), move |slot| {
                let _held = &held;
                slot.tick_count.inc();
            })
            .unwrap();
        // One that is attached to nothing goes with its last handle.
        let other = registry.create_source("other").unwrap();
        let held = gone.clone();
        other
            .add_callback::<Tick>(Duration::from_millis(1), move |slot| {
                let _held = &held;
                slot.tick_count.inc();
            })
            .unwrap();
        drop(other);
        until("one callback is left", || Arc::strong_count(&gone) == 2);
    }
    until("no callback is left", || Arc::strong_count(&gone) == 1);
}

#[test]
fn a_callback_that_comes_while_its_source_goes_goes_too() {
    let registry = Registry::new().unwrap();
    let pool = top(&registry);
    let tree = registry.tree().unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    for n in 0..200 {
        let source = below(&registry, &pool, "source");
        let child = registry.create_source("child").unwrap();
        thread::scope(|scope| {
            let (source, child, c) = (&source, &child, calls.clone());
            scope.spawn(move || {
                let sample = move |slot: &statsfs::Slot<Tick>| {
                    c.fetch_add(1, SeqCst);
                    slot.tick_count.inc();
                };
                let late = if n % 2 == 0 { source } else { child };
                if n % 2 == 1 && source.add_subordinate(child).is_err() {
                    return;
                }
                let _ = late.add_callback::<Tick>(Duration::from_millis(1), sample);
            });
            pool.remove_subordinate(source).unwrap();
        });
    }
    until("all is folded", || tree.usage().sources == 1);
    let before = calls.load(SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(SeqCst), before, "nothing is sampled any more");
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

        fn wait_changed(&self, seen: u64, timeout: Duration) -> u64 {
            self.0.wait_changed(seen, timeout)
        }
    }
    let options = statsfs::RegistryOptions { segment_size: 16 << 10, max_segments: 64 };
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
        done.store(true, SeqCst);
    });
    registry.usage();
    let left = number(&tree, "top/work_done");
    assert!(left < 1 << 62);
    let total = left + i128::from(cleared.load(SeqCst));
    assert_eq!(2 * total, number(&tree, "top/work_failed"), "nothing lost, nothing twice");
}
