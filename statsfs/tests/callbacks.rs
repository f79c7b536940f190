//! Callback groups: sampled in time and at removal; slow, panicking ones, and those that call the library.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use statsfs::{Registry, Source};
use support::{PATIENCE, Tick, Work, below, ends, number, top, try_number, until};

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
