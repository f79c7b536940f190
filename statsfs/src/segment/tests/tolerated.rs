//! What a segment may do without being refused, and what a reader then makes of it.

use std::time::{Duration, Instant};

use super::crafted::*;
use super::{cells, find};
use crate::segment::Limits;
use crate::segment::layout::{
    CUT, ROOT_ID, accumulator_copy, head, header, kind, pair, role, unit_limit, unit_offset, word,
};
use crate::segment::process::{Place, Process, Reading, Retired};

fn attach(segment: &Crafted) -> Process {
    segment.attach(&Limits::default()).unwrap()
}

fn refresh(process: &mut Process) -> Vec<u64> {
    let mut touched = Vec::new();
    process.refresh(true, &mut touched).unwrap();
    touched
}

#[test]
fn a_record_that_is_being_written_for_ever_is_not_there() {
    let segment = valid();
    segment.put(CHILD, word::GENERATION, 3);
    let start = Instant::now();
    let mut process = attach(&segment);
    assert!(find(&process, "child").is_none());
    let top = find(&process, "top").unwrap();
    assert_eq!(top.labels, [("owner".to_owned(), "me".to_owned())], "the others are not lost");
    assert!(top.groups[0].explicit && top.groups[0].accumulator.is_some());
    // It is nobody's business how often one looks.
    for _ in 0..100 {
        assert!(refresh(&mut process).is_empty());
    }
    assert!(start.elapsed() < Duration::from_secs(60), "somebody waited");
    // When it is published after all, it is there, with what was there before.
    segment.put(CHILD, word::GENERATION, 4);
    assert_eq!(refresh(&mut process), [CHILD_ID]);
    let child = find(&process, "child").unwrap();
    assert_eq!(cells(&process, &child.groups[0].slots[0]), [42, 0]);
}

#[test]
fn a_latch_that_is_odd_for_ever_has_a_whole_copy() {
    let segment = valid();
    segment.set(SLOT_AT + 16, 999); // half of an update
    segment.set(SLOT_AT, 7);
    let process = attach(&segment);
    let child = find(&process, "child").unwrap();
    assert_eq!(cells(&process, &child.groups[0].slots[0]), [42, 0]);
}

#[test]
fn a_bool_is_zero_or_not() {
    let segment = valid();
    let process = attach(&segment);
    let block = find(&process, "child").unwrap().groups[0].slots[0].clone();
    for (raw, shown) in [(0, 0), (1, 1), (2, 1), (0x80, 1), (0xff, 1), (0xffff_ff00, 0)] {
        segment.set(SLOT_AT + 32, raw);
        assert_eq!(cells(&process, &block), [42, shown]);
        let mut out = [77; 2];
        process.read_value(&block, 1, &mut out);
        assert_eq!(out, [shown, 77]);
    }
}

#[test]
fn a_hostile_selector_selects_one_of_two() {
    let segment = valid();
    let stride = accumulator_copy(group().words());
    for (copy, value) in [(0, 5), (1, 6)] {
        segment.set(ACCUMULATOR_AT + copy * stride, 100 + value);
        segment.set(ACCUMULATOR_AT + copy * stride + 8, value);
    }
    let mut process = attach(&segment);
    for (selector, expected) in [(0, 5), (1, 6), (2, 5), (u64::MAX, 6), (1 << 63, 5)] {
        segment.put(ACCUMULATOR, word::SELECTOR, selector);
        refresh(&mut process);
        let block = find(&process, "top").unwrap().groups[0].accumulator.clone().unwrap();
        let mut out = [0; 2];
        let reading = process.read(&block, &mut out);
        assert_eq!(reading, Reading::Cells { retired: None, upto: 100 + expected });
        assert_eq!(out, [expected, 0]);
        assert_eq!(process.read_value(&block, 0, &mut out), reading);
        assert_eq!(out[0], expected);
    }
}

#[test]
fn a_block_is_folded_only_where_its_target_says_so() {
    let segment = valid();
    segment.set(ACCUMULATOR_AT, 50);
    let mut process = attach(&segment);
    let block = find(&process, "child").unwrap().groups[0].slots[0].clone();
    assert_eq!(block.place(), Place { segment: 0, unit: SLOT });
    let accumulator = pair(ACCUMULATOR, 0);
    let cases = [
        (0, accumulator, false),
        (1, accumulator, true),
        (1, accumulator | CUT, true),
        (51, accumulator | CUT, false),
        (50, accumulator, true),
        (51, accumulator, false),
        (u64::MAX, accumulator, false),
        // No accumulators: a slot, a source, a group, nothing, another segment.
        (1, pair(SLOT, 0), false),
        (1, pair(TOP, 0), false),
        (1, pair(GROUP, 0), false),
        (1, pair(FREE, 0), false),
        (1, pair(u32::MAX, 0), false),
        (1, pair(ACCUMULATOR, 1), false),
        (1, pair(ACCUMULATOR, u32::MAX), false),
        (1, u64::MAX, false),
    ];
    for (number, target, folded) in cases {
        segment.put(SLOT, word::TARGET, target);
        segment.put(SLOT, word::RETIRE, number);
        let Reading::Cells { retired, .. } = process.read(&block, &mut [0; 2]) else {
            panic!("not read");
        };
        let cut = target & CUT != 0;
        let target = target & !CUT;
        let place = Place { segment: (target >> 32) as u32, unit: target as u32 };
        assert_eq!(retired, (number != 0).then_some(Retired { number, target: place, cut }));
        assert_eq!(retired.is_some_and(|r| process.is_folded(r)), folded, "{number} {target:#x}");
    }
    // An accumulator that is freed is no target any more, nor one that was not read yet.
    segment.put(ACCUMULATOR, word::GENERATION, 3);
    refresh(&mut process);
    let retired =
        Retired { number: 1, target: Place { segment: 0, unit: ACCUMULATOR }, cut: false };
    assert!(!process.is_folded(retired));
}

#[test]
fn what_is_selected_stays_selected_until_the_next_refresh() {
    let segment = valid();
    let stride = accumulator_copy(group().words());
    segment.set(ACCUMULATOR_AT + 8, 1);
    segment.set(ACCUMULATOR_AT + stride, 9);
    segment.set(ACCUMULATOR_AT + stride + 8, 43);
    let mut process = attach(&segment);
    let block = find(&process, "top").unwrap().groups[0].accumulator.clone().unwrap();
    segment.put(SLOT, word::TARGET, pair(ACCUMULATOR, 0));
    segment.put(SLOT, word::RETIRE, 9);
    segment.put(ACCUMULATOR, word::SELECTOR, 1); // the commit; folds not yet
    assert_eq!(cells(&process, &block)[0], 1);
    let retired = Retired { number: 9, target: block.place(), cut: false };
    assert!(!process.is_folded(retired), "not in the copy that is read");
    segment.set(header::FOLDS, 1);
    assert!(process.is_stale());
    process.refresh(false, &mut Vec::new()).unwrap();
    assert_eq!(cells(&process, &block)[0], 43);
    assert!(process.is_folded(retired));
}

#[test]
fn gone_is_gone() {
    let segment = valid();
    let mut process = attach(&segment);
    let slot = find(&process, "child").unwrap().groups[0].slots[0].clone();
    let accumulator = find(&process, "top").unwrap().groups[0].accumulator.clone().unwrap();
    for (unit, block) in [(SLOT, &slot), (ACCUMULATOR, &accumulator)] {
        for generation in [0, 3, 4, u64::MAX] {
            segment.put(unit, word::GENERATION, generation);
            assert_eq!(process.read(block, &mut [0; 2]), Reading::Gone);
            assert_eq!(process.read_value(block, 0, &mut [0; 2]), Reading::Gone);
        }
    }
    assert_eq!(refresh(&mut process), [TOP_ID, CHILD_ID]);
    assert_eq!(process.read(&accumulator, &mut [0; 2]), Reading::Gone);
    assert!(find(&process, "child").unwrap().groups.is_empty());
}

#[test]
fn records_may_come_in_any_order() {
    // A child, its block, and a label before the sources that they name.
    let segment = Crafted::empty(0);
    let first = segment.group(0, &group());
    segment.source(first, 12, 11, "grandchild");
    segment.block(first + 1, role::SLOT, 0, 11, (SLOT_AT, slot_len()));
    segment.label(first + 2, 11, 0, b"key", b"value");
    segment.label(first + 3, 11, 1, b"left", b"out");
    segment.units(u64::from(first) + 5);
    let mut process = attach(&segment);
    assert_eq!(process.sources().count(), 1);
    assert!(process.source(11).is_none());
    assert_eq!(*process.children(11), [12].into());
    segment.source(first + 4, 11, 1, "child");
    let at = unit_offset(first + 4) + word::HEAD * 8;
    segment.set(at, head(kind::SOURCE, 0, 5, 1, 0));
    assert_eq!(refresh(&mut process), [11]);
    let child = process.source(11).unwrap();
    assert_eq!(child.groups[0].slots.len(), 1);
    assert_eq!(child.labels, [("key".to_owned(), "value".to_owned())], "it says it has one label");
}

#[test]
fn the_root_keeps_what_departed() {
    let segment = valid();
    let accumulator = (ACCUMULATOR_AT - 256, accumulator_len());
    segment.block(FREE, role::ACCUMULATOR, GROUP, ROOT_ID, accumulator);
    segment.set(ACCUMULATOR_AT - 256 + 8, 17);
    let process = attach(&segment);
    let root = process.source(ROOT_ID).unwrap();
    assert_eq!(cells(&process, root.groups[0].accumulator.as_ref().unwrap()), [17, 0]);
    assert!(process.sources().all(|source| source.id != ROOT_ID));
    assert_eq!(*process.children(ROOT_ID), [TOP_ID].into());
}

#[test]
fn a_full_segment_is_read_in_full() {
    let segment = Crafted::empty(0);
    let units = unit_limit(SIZE);
    for unit in 0..units {
        segment.source(unit, 10 + u64::from(unit), 1, &format!("s{unit}"));
    }
    segment.units(units.into());
    assert_eq!(attach(&segment).sources().count(), units as usize);
}

#[test]
fn names_that_meet_in_passing_are_no_reason_to_refuse() {
    // As if the scan had met the old source before it left and the new one after it came: what stood in
    // the way is gone when the reader looks again.
    let segment = std::sync::Arc::new(valid());
    segment.source(FREE, 12, TOP_ID, "child");
    segment.put(FREE, word::GENERATION, 1);
    let other = segment.clone();
    let writer = std::thread::spawn(move || {
        // The reader may look at any moment of this; it must see one of the two, or neither.
        for round in 0..200_000u64 {
            let (leaving, coming) = if round % 2 == 0 { (FREE, CHILD) } else { (CHILD, FREE) };
            let id = 20 + round;
            other.put(leaving, word::GENERATION, 2 * round + 3);
            other.put(coming, word::GENERATION, 2 * round + 3);
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            other.put(coming, word::STATE, 0);
            other.put(coming, word::ID, id);
            other.put(coming, word::PARENT, TOP_ID);
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            other.put(coming, word::GENERATION, 2 * round + 4);
        }
    });
    let mut process = attach(&segment);
    let mut seen = 0;
    while !writer.is_finished() {
        process.refresh(true, &mut Vec::new()).unwrap();
        let children = process.sources().filter(|s| s.name == "child").count();
        assert!(children <= 1);
        seen += children;
    }
    writer.join().unwrap();
    assert!(seen > 0);
}
