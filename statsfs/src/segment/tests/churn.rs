//! Sources that come, count and go while readers sweep: nothing is refused, and every sweep is exact.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::attach;
use crate::segment::Process;
use crate::segment::process::{BlockRef, Reading};
use crate::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use crate::{Registry, RegistryOptions, Source};

/// Sum of value 0 over all blocks, in the documented order; `None` if a fold came in between.
fn sum(process: &mut Process) -> Option<u64> {
    if process.is_stale() {
        process.refresh(false, &mut Vec::new()).expect("an honest writer is refused");
    }
    let folds = process.folds();
    let mut sum = 0u64;
    let mut read = |block: &BlockRef| {
        let mut out = vec![0; block.words()];
        match process.read(block, &mut out) {
            Reading::Cells { retired: Some(retired), .. } if process.is_folded(retired) => {}
            Reading::Cells { .. } => sum += out[0],
            Reading::Gone => {}
            Reading::Torn => panic!("torn"),
        }
    };
    for source in process.sources().chain(process.source(1)) {
        for group in &source.groups {
            group.accumulator.iter().chain(&group.slots).for_each(&mut read);
        }
    }
    (process.is_current() && process.folds() == folds).then_some(sum)
}

#[test]
fn every_sweep_is_exact_while_sources_come_and_go() {
    let options =
        RegistryOptions { segment_size: 16 << 10, max_segments: 64, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let group = GroupBuilder::new("churn")
        .consistent()
        .value(Descriptor::new("counts", ValueType::U64, Semantics::Cumulative))
        .build()
        .unwrap();
    // Everything below one source, so that departures chain: shelf > box > item.
    let shelf = registry.create_source("shelf").unwrap();
    shelf.register().unwrap();
    let stop = AtomicBool::new(false);
    // Counts that are certainly there, and that may be.
    let (done, begun) = (AtomicU64::new(0), AtomicU64::new(0));
    let make = |parent: &Source, name: &str| {
        let source = registry.create_source(name).unwrap();
        parent.add_subordinate(&source).unwrap();
        source
    };
    let mut sweeps = [0u64; 2];
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (group, stop, done, begun, make, shelf, registry) =
                (&group, &stop, &done, &begun, &make, &shelf, &registry);
            scope.spawn(move || {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let parent = make(shelf, &format!("box{writer}"));
                    for item in 0..3 {
                        let item = make(&parent, &format!("item{item}"));
                        let slot = item.add_group(group).unwrap();
                        for _ in 0..(n % 7) {
                            begun.fetch_add(1, Ordering::SeqCst);
                            slot.add(0, 1);
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        match n % 3 {
                            // The slot outlives its source, or leaves with it, or before.
                            0 => {
                                parent.remove_subordinate(&item).unwrap();
                                begun.fetch_add(1, Ordering::SeqCst);
                                slot.add(0, 1);
                                done.fetch_add(1, Ordering::SeqCst);
                            }
                            1 => drop(slot),
                            _ => {}
                        }
                    }
                    shelf.remove_subordinate(&parent).unwrap();
                    if n.is_multiple_of(5) {
                        registry.usage(); // folds
                    }
                }
            });
        }
        let mut process = attach(&registry);
        let end = Instant::now() + Duration::from_millis(1500);
        let mut last = 0;
        while Instant::now() < end {
            while process.segments().len() < process.segments_expected() {
                let fd = registry.segments().unwrap().swap_remove(process.segments().len());
                process.add_segment(fd).unwrap();
            }
            let low = done.load(Ordering::SeqCst);
            let expected = process.segments_expected();
            let found = sum(&mut process);
            let high = begun.load(Ordering::SeqCst);
            let Some(found) = found else {
                sweeps[1] += 1;
                continue;
            };
            if expected == process.segments_expected() {
                assert!(found >= low, "{found} found where {low} had been counted");
                assert!(found >= last, "{found} found after {last}");
                last = found;
            }
            assert!(found <= high, "{found} found where {high} had been begun");
            sweeps[0] += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} sweeps were exact, {} met a fold", sweeps[0], sweeps[1]);
    assert!(sweeps[0] > 10);
    registry.usage();
    let mut process = attach(&registry);
    assert_eq!(sum(&mut process), Some(done.load(Ordering::SeqCst)));
    assert_eq!(process.sources().count(), 1, "only the shelf is left");
}
