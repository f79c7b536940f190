//! The reader against the real writer.

use std::sync::Arc;

use super::{attach, cells, find};
use crate::segment::layout::ROOT_ID;
use crate::segment::process::{Process, Reading};
use crate::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};
use crate::{Registry, RegistryOptions, Source, SourceError};

fn group(consistent: bool) -> Arc<GroupDescriptor> {
    let mut group = GroupBuilder::new("work");
    if consistent {
        group = group.consistent();
    }
    group
        .value(Descriptor::new("jobs", ValueType::U64, Semantics::Cumulative))
        .value(Descriptor::new("depth", ValueType::S8, Semantics::Floating))
        .value(Descriptor::new(
            "job_time",
            ValueType::Histogram { buckets: 8, sum: true },
            Semantics::Cumulative,
        ))
        .value(Descriptor::new("small", ValueType::U16, Semantics::Cumulative))
        .build()
        .unwrap()
}

#[test]
fn what_is_written_is_read() {
    for consistent in [false, true] {
        let registry = Registry::new().unwrap();
        let top = registry.source("top").private().label("owner", "me").create().unwrap();
        top.register().unwrap();
        let child = registry.create_source("child").unwrap();
        top.add_subordinate(&child).unwrap();
        let slot = child.add_group(&group(consistent)).unwrap();
        slot.add(0, 5);
        slot.add(1, 3);
        slot.add(1, (-7i64) as u64);
        slot.record(2, 0);
        slot.record(2, 5);
        slot.add(3, 65_537);

        let process = attach(&registry);
        assert_eq!(process.segments_expected(), 1);
        let top = find(&process, "top").unwrap();
        assert!(top.private && !top.hidden && !top.departed);
        assert_eq!(top.labels, [("owner".to_owned(), "me".to_owned())]);
        assert_eq!(top.parent, ROOT_ID);
        assert!(top.groups[0].slots.is_empty() && top.groups[0].accumulator.is_some());
        let child = find(&process, "child").unwrap();
        assert_eq!((child.parent, child.groups.len()), (top.id, 1));
        assert_eq!(*process.children(top.id), [child.id].into());
        assert!(Arc::ptr_eq(&child.groups[0].group, &top.groups[0].group));
        assert_eq!(*child.groups[0].group, *group(consistent));
        let block = &child.groups[0].slots[0];
        let expected = [5, (-4i64) as u64, 5, 1, 0, 0, 1, 0, 0, 0, 0, 1];
        assert_eq!(cells(&process, block), expected);
        for (value, words) in [(0, 0..1), (1, 1..2), (2, 2..11), (3, 11..12)] {
            let mut out = vec![0; words.len()];
            assert_eq!(
                process.read_value(block, value, &mut out),
                Reading::Cells { retired: None, upto: 0 }
            );
            assert_eq!(out, expected[words]);
        }
    }
}

#[test]
fn a_refresh_names_what_changed() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let mut process = attach(&registry);
    let top_id = find(&process, "top").unwrap().id;
    assert!(!process.is_stale());
    let refresh = |process: &mut Process| {
        let mut touched = Vec::new();
        process.refresh(false, &mut touched).unwrap();
        touched
    };
    assert!(refresh(&mut process).is_empty());

    let child = registry.create_source("child").unwrap();
    assert!(process.is_stale());
    let touched = refresh(&mut process);
    let id = find(&process, "child").unwrap().id;
    assert_eq!(touched, [id]);
    assert_eq!(process.source(id).unwrap().parent, 0);

    top.add_subordinate(&child).unwrap();
    assert_eq!(refresh(&mut process), [id]);
    assert_eq!(process.source(id).unwrap().parent, top_id);

    let slot = child.add_group(&group(true)).unwrap();
    slot.add(0, 41);
    let touched = refresh(&mut process);
    assert_eq!(touched, [ROOT_ID, top_id, id], "accumulators are reserved above the group");

    top.remove_subordinate(&child).unwrap();
    assert_eq!(refresh(&mut process), [id]);
    let record = process.source(id).unwrap();
    assert!(record.departed);
    slot.add(0, 1);
    let block = record.groups[0].slots[0].clone();
    assert_eq!(cells(&process, &block)[0], 42);

    // Dropping the slot retires its block; a fold frees it.
    let folds = process.folds();
    drop((slot, child));
    registry.usage();
    assert!(process.folds() > folds);
    assert!(process.is_stale());
    assert_eq!(refresh(&mut process), [id]);
    assert!(process.source(id).is_none());
    assert_eq!(process.read(&block, &mut [0; 12]), Reading::Gone);
    let accumulator = process.source(top_id).unwrap().groups[0].accumulator.clone().unwrap();
    assert_eq!(cells(&process, &accumulator)[0], 42);
    assert!(process.children(top_id).is_empty());
}

#[test]
fn segments_come_one_by_one() {
    let options =
        RegistryOptions { segment_size: 16 << 10, max_segments: 64, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let mut process = attach(&registry);
    let mut slots = Vec::new();
    for n in 0..1000 {
        let source = registry.create_source(&format!("s{n}")).unwrap();
        source.register().unwrap();
        let slot = source.add_group(&group(n % 2 == 0)).unwrap();
        slot.add(0, n);
        slots.push(slot);
    }
    assert!(process.segments_expected() > 3);
    process.refresh(false, &mut Vec::new()).unwrap();
    let before = process.sources().count();
    assert!(before < 1000);
    let attached = process.segments().len();
    let mut missing: Vec<_> = registry.segments().unwrap().drain(attached..).collect();
    // In any order.
    missing.reverse();
    for fd in missing {
        process.add_segment(fd).unwrap();
    }
    assert!(process.is_stale());
    process.refresh(false, &mut Vec::new()).unwrap();
    assert_eq!(process.sources().count(), 1000);
    for n in 0..1000 {
        let source = find(&process, &format!("s{n}")).unwrap();
        assert_eq!(cells(&process, &source.groups[0].slots[0])[0], n);
    }
}

#[test]
fn what_has_left_is_not_too_deep_either() {
    let registry = Registry::new().unwrap();
    let chain = |top: &Source, levels: usize| {
        let mut at = top.clone();
        for level in 0..levels {
            let next = registry.create_source(&format!("level{level}")).unwrap();
            at.add_subordinate(&next).unwrap();
            at = next;
        }
        at
    };
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let deep = chain(&top, 30);
    // A tall tree leaves a source that is not attached yet; a slot keeps its records.
    let aside = registry.create_source("aside").unwrap();
    let root = registry.create_source("root").unwrap();
    aside.add_subordinate(&root).unwrap();
    let slot = chain(&root, 40).add_group(&group(false)).unwrap();
    aside.remove_subordinate(&root).unwrap();
    drop(root);
    let mut process = attach(&registry);
    assert!(matches!(deep.add_subordinate(&aside), Err(SourceError::TooDeep(_))));
    process.refresh(true, &mut Vec::new()).unwrap();
    // When it is gone, the source may go where it likes.
    drop(slot);
    registry.usage();
    deep.add_subordinate(&aside).unwrap();
    process.refresh(true, &mut Vec::new()).unwrap();
    assert!(find(&process, "aside").unwrap().parent > ROOT_ID);
}
