use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::value::{Descriptor, GroupBuilder, Semantics, ValueType};

/// A file in the format, with single values of these names.
fn file(names: &[&str]) -> File {
    let file = tempfile::tempfile().unwrap();
    let put = |at: usize, words: &[u32]| {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, at as u64).unwrap();
    };
    let count = names.len() as u32;
    put(0, &[0, 16, count, 24, 40, 40 + 32 * count]);
    file.write_all_at(b"kvm-7\0", 24).unwrap();
    for (n, name) in names.iter().enumerate() {
        put(40 + 32 * n, &[0, 1 << 16, n as u32 * 8, 0]);
        file.write_all_at(name.as_bytes(), (40 + 32 * n + 16) as u64).unwrap();
    }
    let data = 40 + 32 * names.len();
    put(data, &vec![0; names.len() * 2]);
    file
}

fn opened(file: &File) -> Opened {
    Opened::new(file.try_clone().unwrap().into()).unwrap()
}

/// The first value of so many.
fn set(file: &File, values: usize, n: u64) {
    file.write_all_at(&n.to_le_bytes(), (40 + 32 * values) as u64).unwrap();
}

fn group(values: &[(&'static str, ValueType)]) -> Arc<GroupDescriptor> {
    let group = GroupBuilder::new("kernel");
    let values = values.iter().map(|(name, ty)| {
        let semantics = if ty.is_signed() || *ty == ValueType::Bool {
            Semantics::Floating
        } else {
            Semantics::Cumulative
        };
        Descriptor::new(*name, *ty, semantics)
    });
    values.fold(group, GroupBuilder::value).build().unwrap()
}

fn read(groups: &FdGroups, number: u32, group: &Arc<GroupDescriptor>, cells: &[u64]) -> Vec<u64> {
    let (mut cells, maps) = (cells.to_vec(), Maps::default());
    groups.read(number, &maps, group, 0..cells.len(), &mut cells);
    cells
}

#[test]
fn a_counter_never_falls_whoever_has_read_it() {
    let mut counts = Counts { last: vec![0; 1].into(), lost: None };
    // Reads this now, was sampled as that, and shows this.
    for (now, sampled, shown) in [
        (5, 0, 5),
        (7, 5, 7),
        (1, 5, 8),
        (4, 5, 11),
        // Somebody else has seen more before it fell.
        (5, 30, 30),
        (6, 30, 31),
        (0, 31, 31),
        (0, 37, 37),
        (2, u64::MAX, u64::MAX),
    ] {
        assert_eq!(counts.grow(0, now, sampled), shown, "{now}, sampled as {sampled}");
    }
    let mut untouched = Counts { last: vec![0; 2].into(), lost: None };
    untouched.grow(1, 9, 9);
    assert!(untouched.lost.is_none(), "none has fallen");
}

#[test]
fn what_was_cleared_shows_nothing_where_only_an_older_sample_is_left() {
    let file = file(&["a"]);
    let registry = crate::Registry::new().unwrap();
    let vm = registry.create_source("vm").unwrap();
    vm.register().unwrap();
    let tree = registry.tree().unwrap();
    set(&file, 1, 50);
    vm.add_fd_group("kernel", file.try_clone().unwrap().into()).unwrap();
    let shown = || {
        let mut text = Vec::new();
        tree.flat(&mut text);
        String::from_utf8(text).unwrap()
    };
    assert_eq!(shown(), "vm/a 50\n");
    let groups = &registry.0.fd_groups;
    let without = |look: &mut dyn FnMut()| {
        // As for a server that has not got it again yet.
        let before = std::mem::take(&mut *groups.all_to_change());
        look();
        *groups.all_to_change() = before;
    };
    let is_sampled = |n: &str| {
        let mut is = false;
        without(&mut || is = shown() == n);
        is
    };
    while !is_sampled("vm/a 50\n") {}
    // Before the next sample, which is a second away at most: then all that is tried again.
    let next = (1..20).find(|n| {
        let counted = n << 40;
        set(&file, 1, counted);
        let before = tree.clear("vm/a").unwrap();
        assert!(before.0["a"] > 0 && shown() == "vm/a 0\n");
        let mut was_older = true;
        without(&mut || {
            assert_eq!(shown(), "vm/a 0\n");
            // What was cleared already is not cleared away once more, to be there again.
            was_older = tree.clear("vm/a").unwrap().0["a"] == 0;
        });
        set(&file, 1, counted + 3);
        assert_eq!(shown(), "vm/a 3\n");
        was_older
    });
    assert!(next.is_some());
    vm.revoke().unwrap();
    assert_eq!(shown(), "");
}

#[test]
fn what_somebody_else_says_a_value_is_gets_no_number_that_it_can_not_have() {
    let file = file(&["a", "b"]);
    set(&file, 2, u64::MAX);
    let groups = FdGroups::default();
    groups.insert(3, opened(&file));
    let told = group(&[("a", ValueType::U64), ("c", ValueType::U64)]);
    assert_eq!(read(&groups, 3, &told, &[1, 2]), [u64::MAX, 2]);
    for (ty, shown) in [
        (ValueType::U8, 1),
        (ValueType::U32, 1),
        (ValueType::S64, 1),
        (ValueType::Bool, 1),
        (ValueType::U64, u64::MAX),
    ] {
        assert_eq!(read(&groups, 3, &group(&[("a", ty)]), &[1]), [shown], "{ty:?}");
    }
    let histogram = group(&[("a", ValueType::Histogram { buckets: 2, sum: false })]);
    assert_eq!(read(&groups, 3, &histogram, &[1, 1]), [1, 1]);
    // None of this number.
    assert_eq!(read(&groups, 4, &told, &[1, 2]), [1, 2]);
}

#[cfg(feature = "server")]
#[test]
fn what_has_no_block_any_more_is_taken_out_but_for_what_has_just_come() {
    let file = file(&["a"]);
    let groups = FdGroups::received();
    for number in 1..5 {
        groups.insert(number, opened(&file));
    }
    let came = groups.came();
    groups.insert(5, opened(&file));
    groups.keep_only(came, &BTreeSet::from([2, 4]));
    let there = |groups: &FdGroups| {
        let (_, all) = groups.list_unless(u64::MAX).unwrap();
        all.into_iter().map(|(number, _)| number).collect::<Vec<_>>()
    };
    assert_eq!(there(&groups), [2, 4, 5]);
    // They are there until somebody closes them.
    assert_eq!((groups.len(), groups.take_gone(false).len(), groups.len()), (5, 2, 3));
    // Whatever came with another connection comes as if it were new.
    let others = FdGroups::received();
    others.insert(5, opened(&file));
    others.insert(6, opened(&file));
    let came = groups.came();
    groups.take_over(&others);
    // But for what is there already.
    assert_eq!((there(&groups), others.len()), (vec![2, 4, 5, 6], 0));
    groups.keep_only(came, &BTreeSet::new());
    assert_eq!(there(&groups), [6]);
    assert_eq!(groups.take_gone(true).len(), 5);
    // The writer takes its own out itself.
    let own = FdGroups::default();
    own.insert(1, opened(&file));
    own.keep_only(u64::MAX, &BTreeSet::new());
    assert_eq!(own.len(), 1);
    assert!(own.remove(1).is_some());
}
