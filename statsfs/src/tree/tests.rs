//! Several processes in one tree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::dirs::ROOT_DIR;
use super::inode::Bulk;
use super::sweep::{Request, Sweep};
use super::{Access, Identity, Owner, Subtree, Tree, TreeOptions, View};
use crate::export;
use crate::fs::{Caller, Effort, Errno, Nodes, ROOT};
use crate::share::Share;
use crate::value::{
    Aggregations, Descriptor, GroupBuilder, GroupDescriptor, Semantics, Unit, ValueType,
};
use crate::{DynSlot, Registry, Source};

/// A tree of several processes, in the order in which they come.
fn tree(registries: &[&Registry]) -> Tree {
    let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
    let tree = Tree::with(options, false);
    for registry in registries {
        registry.join(&tree, Identity::this_process()).unwrap();
    }
    tree
}

fn flat(tree: &Tree) -> BTreeMap<String, String> {
    let mut out = Vec::new();
    tree.flat(&mut out);
    let text = String::from_utf8(out).unwrap();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let (path, value) = line.split_once(' ').unwrap();
        assert!(all.insert(path.to_owned(), value.to_owned()).is_none(), "{path} twice");
    }
    all
}

pub(crate) fn number(tree: &Tree, path: &str) -> u64 {
    let ino = path.split('/').fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    let mut out = Vec::new();
    tree.render(ino, Caller { uid: 0, gid: 0, pid: 0 }, usize::MAX, &mut out).unwrap();
    std::str::from_utf8(&out).unwrap().trim().parse().unwrap()
}

fn names(tree: &Tree, dir: &str) -> Vec<String> {
    let ino = tree.lookup(ROOT, dir).unwrap().ino;
    let mut names = Vec::new();
    tree.list(ino, 0, &mut |entry| {
        names.push(entry.name.to_owned());
        true
    })
    .unwrap();
    names
}

fn counter(name: &'static str, ty: ValueType) -> Descriptor {
    Descriptor::new(name, ty, Semantics::Cumulative)
}

fn group(name: &'static str, values: &[Descriptor]) -> Arc<GroupDescriptor> {
    let group = values.iter().fold(GroupBuilder::new(name), |group, v| group.value(v.clone()));
    group.build().unwrap()
}

/// A source `name` below the top-level source `top`, with a slot of a group.
fn publish(top: &Source, registry: &Registry, name: &str, of: &Arc<GroupDescriptor>) -> DynSlot {
    let source = registry.create_source(name).unwrap();
    top.add_subordinate(&source).unwrap();
    source.add_group(of).unwrap()
}

fn top(registry: &Registry) -> Source {
    let top = registry.create_source("kvm").unwrap();
    top.register().unwrap();
    top
}

#[test]
fn top_level_sources_of_one_name_are_one_directory() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    // Two versions of a program: they share a value, though the rest of the group differs.
    let old = group(
        "vm",
        &[counter("exits", ValueType::U64).help("Old."), counter("io", ValueType::U64)],
    );
    let new = group("vm", &[counter("mmio", ValueType::U64), counter("exits", ValueType::U64)]);
    let in_one = publish(&tops[0], &one, "a", &old);
    let in_two = publish(&tops[1], &two, "b", &new);
    let tree = tree(&[&one, &two]);
    in_one.add(0, 1);
    in_one.add(1, 10);
    in_two.add(1, 100);
    in_two.add(0, 1000);
    let expected = [
        ("kvm/a/exits", "1"),
        ("kvm/a/io", "10"),
        ("kvm/b/exits", "100"),
        ("kvm/b/mmio", "1000"),
        ("kvm/exits", "101"),
        ("kvm/io", "10"),
        ("kvm/mmio", "1000"),
    ];
    let expected = expected.map(|(path, value)| (path.to_owned(), value.to_owned()));
    assert_eq!(flat(&tree), BTreeMap::from(expected));
    // What departs in one process is in the total of all.
    let extra = one.create_source("extra").unwrap();
    tops[0].add_subordinate(&extra).unwrap();
    extra.add_group(&old).unwrap().add(0, 5);
    tops[0].remove_subordinate(&extra).unwrap();
    one.usage();
    assert_eq!(number(&tree, "kvm/.departed/exits"), 5);
    assert_eq!(number(&tree, "kvm/exits"), 106);
    // A clear reaches all of them.
    assert_eq!(tree.clear("kvm/exits").unwrap().0["exits"], 106);
    in_two.add(1, 3);
    assert_eq!((number(&tree, "kvm/exits"), number(&tree, "kvm/b/exits")), (3, 3));
    assert_eq!(tree.clear("kvm/.stats/clear").unwrap().0["io"], 10);
    // The directory stays as long as one of them is there.
    tops[0].revoke().unwrap();
    in_two.add(1, 4);
    assert_eq!(number(&tree, "kvm/exits"), 4);
    assert!(tree.lookup(ROOT, "kvm").is_ok());
    assert!(!names(&tree, "kvm").contains(&"a".to_owned()));
    tops[1].revoke().unwrap();
    assert_eq!(tree.lookup(ROOT, "kvm").unwrap_err().0, libc::ENOENT);
    // And a new one may come.
    let again = top(&one);
    publish(&again, &one, "c", &new).add(1, 9);
    assert_eq!(number(&tree, "kvm/exits"), 9);
}

#[test]
fn whoever_comes_first_holds_a_name() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let events = group("vm", &[counter("n", ValueType::U64)]);
    let bytes = group("vm", &[counter("n", ValueType::U64).unit(Unit::BYTES)]);
    // The tree meets the identity of `events` elsewhere first: that gives it no right to the name here.
    let other = one.create_source("other").unwrap();
    other.register().unwrap();
    let elsewhere = publish(&other, &one, "x", &events);
    elsewhere.add(0, 7);
    let tree = tree(&[&one, &two]);
    assert_eq!(number(&tree, "other/n"), 7);
    let second = publish(&tops[1], &two, "b", &bytes);
    second.add(0, 20);
    assert_eq!(number(&tree, "kvm/n"), 20);
    let first = publish(&tops[0], &one, "a", &events);
    first.add(0, 3);
    let all = flat(&tree);
    assert_eq!(all["kvm/n"], "20", "it is held by whoever came first");
    assert_eq!((&*all["kvm/a/n"], &*all["kvm/b/n"]), ("3", "20"));
    // As long as any instance or departed total is there.
    second.add(0, 1);
    let b = two.create_source("b2").unwrap();
    tops[1].add_subordinate(&b).unwrap();
    drop(second);
    two.usage();
    assert_eq!(number(&tree, "kvm/n"), 21);
    tops[1].revoke().unwrap();
    two.usage();
    assert_eq!(number(&tree, "kvm/n"), 3, "then the next one has it");
    // Clearing what is shown clears nothing else.
    let again = top(&two);
    let third = publish(&again, &two, "c", &bytes);
    third.add(0, 50);
    assert_eq!(tree.clear("kvm/n").unwrap().0["n"], 3);
    assert_eq!(number(&tree, "kvm/c/n"), 50);
}

#[test]
fn nobody_says_how_the_files_of_others_are() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let value = || counter("n", ValueType::U64);
    let strangers = group("vm", &[value().mode(0o666).help("A stranger's.")]);
    let mine = group("vm", &[value().help("Mine.")]);
    let in_one = publish(&tops[0], &one, "a", &strangers);
    publish(&tops[0], &one, "gone", &strangers).add(0, 1);
    let in_two = publish(&tops[1], &two, "b", &mine);
    let tree = Tree::host(TreeOptions::new(Owner::this_process()));
    for registry in [&one, &two] {
        registry.join(&tree, Identity::this_process()).unwrap();
    }
    in_one.add(0, 3);
    in_two.add(0, 20);
    assert_eq!(number(&tree, "kvm/n"), 24, "it is one value");
    let mode = |path: &str| {
        let names = path.split('/');
        names.fold((ROOT, 0), |(ino, _), name| {
            let attr = tree.lookup(ino, name).unwrap();
            (attr.ino, attr.mode)
        })
    };
    for (path, expected) in
        [("kvm/n", 0o644), ("kvm/a/n", 0o666), ("kvm/b/n", 0o644), ("kvm/.departed/n", 0o644)]
    {
        assert_eq!(mode(path).1, expected, "{path}: {:o}", mode(path).1);
    }
    let mut schema = Vec::new();
    let (ino, _) = mode("kvm/b/.stats/schema");
    tree.render(ino, Caller { uid: 0, gid: 0, pid: 0 }, usize::MAX, &mut schema).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema).unwrap();
    assert_eq!(schema["values"][0]["help"], "Mine.");
}

#[test]
fn a_subordinate_and_a_value_of_two_processes_do_not_share_a_name() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let slot = publish(&tops[0], &one, "a", &group("vm", &[counter("n", ValueType::U64)]));
    slot.add(0, 1);
    let tree = tree(&[&one, &two]);
    assert_eq!(number(&tree, "kvm/n"), 1);
    let named = two.create_source("n").unwrap();
    tops[1].add_subordinate(&named).unwrap();
    let below = publish(&named, &two, "below", &group("other", &[counter("m", ValueType::U64)]));
    below.add(0, 7);
    // Whoever came first has the name; the other is not there, nor is what is below it, but it counts.
    let is_one = |names: Vec<String>, others: &[&str]| {
        let mut names: Vec<_> =
            names.into_iter().filter(|name| !others.contains(&&**name)).collect();
        names.sort();
        assert_eq!(names, ["n"]);
    };
    is_one(names(&tree, "kvm"), &["a", "m"]);
    assert_eq!((number(&tree, "kvm/n"), number(&tree, "kvm/m")), (1, 7));
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (2, 1));
    flat(&tree);
    assert_eq!(tree.usage().clashes, 1, "counted once");
    // Until the name is free.
    tops[0].revoke().unwrap();
    one.usage();
    is_one(names(&tree, "kvm"), &["m"]);
    assert_eq!(number(&tree, "kvm/n/below/m"), 7);
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (0, 1));
    // And the other way round.
    let again = top(&one);
    let slot = publish(&again, &one, "a", &group("vm", &[counter("n", ValueType::U64)]));
    slot.add(0, 2);
    is_one(names(&tree, "kvm"), &["a", "m"]);
    assert_eq!(number(&tree, "kvm/n/m"), 7);
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (1, 2));
    tops[1].remove_subordinate(&named).unwrap();
    assert_eq!((number(&tree, "kvm/n"), number(&tree, "kvm/m")), (2, 7));
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (0, 2));
}

#[test]
fn subordinates_of_one_name_are_one_processs_and_both_count() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let tree = tree(&[&one, &two]);
    let a = publish(&tops[0], &one, "same", &of);
    a.add(0, 1);
    assert_eq!(number(&tree, "kvm/same/n"), 1);
    let b = publish(&tops[1], &two, "same", &of);
    b.add(0, 10);
    assert_eq!(number(&tree, "kvm/same/n"), 1);
    assert_eq!(number(&tree, "kvm/n"), 11);
    assert_eq!(flat(&tree)["kvm/n"], "11");
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (1, 1));
    // A clear of all takes that along, too, and a baseline survives that it appears.
    assert_eq!(tree.clear("kvm/n").unwrap().0["n"], 11);
    b.add(0, 5);
    tops[0].revoke().unwrap();
    assert_eq!(number(&tree, "kvm/same/n"), 5);
    assert_eq!(number(&tree, "kvm/n"), 5);
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (0, 1));
}

#[test]
fn a_hidden_source_brings_no_name_that_another_process_has() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let a = publish(&tops[0], &one, "same", &of);
    a.add(0, 1);
    let tree = tree(&[&one, &two]);
    assert_eq!(number(&tree, "kvm/same/n"), 1);
    let hidden = two.source("hidden").hidden().create().unwrap();
    tops[1].add_subordinate(&hidden).unwrap();
    let b = publish(&hidden, &two, "same", &of);
    let c = publish(&hidden, &two, "other", &of);
    b.add(0, 10);
    c.add(0, 100);
    assert_eq!((number(&tree, "kvm/same/n"), number(&tree, "kvm/other/n")), (1, 100));
    assert_eq!(number(&tree, "kvm/n"), 111);
    assert_eq!((tree.usage().left_out, tree.usage().clashes), (1, 1));
    tops[1].remove_subordinate(&hidden).unwrap();
    assert_eq!(number(&tree, "kvm/n"), 111);
    assert_eq!(tree.usage().left_out, 0);
    // At the top level as well.
    let hidden = two.source("hidden").hidden().create().unwrap();
    hidden.register().unwrap();
    publish(&hidden, &two, "kvm2", &of).add(0, 3);
    publish(&hidden, &two, "other", &of).add(0, 4);
    assert_eq!((number(&tree, "kvm2/n"), number(&tree, "other/n")), (3, 4));
    assert_eq!(tree.usage().left_out, 0);
}

#[test]
fn a_process_that_is_let_go_takes_nothing_else_along() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let a = publish(&tops[0], &one, "a", &of);
    let b = publish(&tops[1], &two, "b", &of);
    let tree = tree(&[&one, &two]);
    a.add(0, 1);
    b.add(0, 10);
    assert_eq!(number(&tree, "kvm/n"), 11);
    tree.clear("kvm/a/n").unwrap();
    let before = tree.usage();
    tree.write().let_go(0);
    let after = tree.usage();
    assert_eq!((before.processes, after.processes), (2, 1));
    assert_eq!((before.sources, after.sources), (4, 2));
    assert_eq!((before.baselines, after.baselines), (1, 0));
    assert_eq!(
        flat(&tree),
        BTreeMap::from([
            ("kvm/b/n".to_owned(), "10".to_owned()),
            ("kvm/n".to_owned(), "10".to_owned()),
        ])
    );
    // Its writer goes on, and nobody looks.
    publish(&tops[0], &one, "more", &of).add(0, 5);
    assert_eq!(number(&tree, "kvm/n"), 10);
    assert!(tree.read().dirs.contains_key(&ROOT_DIR));
}
#[test]
fn a_writer_killed_while_it_cuts_a_slot_off_is_not_waited_for_for_ever() {
    use crate::segment::layout::{CUT, pair};
    use crate::segment::protocol;
    let registry = Registry::new().unwrap();
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let slot = publish(&top(&registry), &registry, "a", &of);
    slot.add(0, 3);
    let tree = tree(&[&registry]);
    assert_eq!(number(&tree, "kvm/n"), 3);
    // As a revocation begins that is never ended.
    {
        let state = registry.0.lock();
        let a = state.nodes.iter().find(|(_, node)| &*node.name == "a").unwrap();
        let block = a.1.groups.values().flatten().next().unwrap().block;
        let above =
            state.nodes[&a.1.parent.unwrap()].accumulators.values().next().unwrap().block.place;
        let region = state.arenas[0].region();
        let target = pair(above.unit, above.segment as u32) | CUT;
        protocol::retire(region, block.place.unit, target, 1);
        protocol::cut(region);
    }
    let waits = |tree: &Tree| {
        let mut sweep = Sweep::default();
        tree.read().sweep(Request::WHOLE, &mut sweep);
        sweep.outdated
    };
    assert!(waits(&tree));
    // What its slot counted is counted.
    slot.add(0, 4);
    assert_eq!(number(&tree, "kvm/n"), 7);
    assert!(!waits(&tree), "it is waited for once");
    assert_eq!(tree.clear("kvm/n").unwrap().0["n"], 7);
    assert_eq!(number(&tree, "kvm/n"), 0);
}

/// Sources that are revoked one by one, in the middle of whatever is read: no sweep is ever finished before
/// a fold overtakes it. What their slots count after that is counted nowhere.
fn in_a_storm<T>(of: &Arc<GroupDescriptor>, every: usize, look: impl FnOnce(&Tree, u64) -> T) -> T {
    const SOURCES: u64 = 600;
    let options =
        crate::RegistryOptions { segment_size: 1 << 20, max_segments: 1, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let pools = [top(&registry), registry.create_source("pool").unwrap()];
    pools[0].add_subordinate(&pools[1]).unwrap();
    let mut counted = 0;
    let mut sources: Vec<_> = (0..SOURCES)
        .map(|n| {
            let source = registry.create_source(&format!("s{n}")).unwrap();
            pools[n as usize % 2].add_subordinate(&source).unwrap();
            let slots = [0, 1].map(|_| source.add_group(of).unwrap());
            slots.iter().for_each(|slot| slot.add(0, n + 1));
            counted += 2 * (n + 1);
            (source, slots)
        })
        .collect();
    let tree = tree(&[&registry]);
    let (mut looks, mut revoked) = (0, Vec::new());
    let writer = move || {
        looks += 1;
        if looks % every == 0
            && let Some((source, slots)) = sources.pop()
        {
            source.revoke().unwrap();
            slots.iter().for_each(|slot| slot.add(0, 1_000_000));
            revoked.push(slots);
        }
    };
    crate::segment::process::meanwhile::with(writer, || look(&tree, counted))
}

#[test]
fn sweeps_that_are_always_overtaken_count_everything_once() {
    let of = group("vm", &[counter("n", ValueType::U64)]);
    // Several in a sweep, about one, and one in two or three.
    for every in [50, 500, 1000, 3000] {
        in_a_storm(&of, every, |tree, counted| {
            for _ in 0..20 {
                assert_eq!(number(tree, "kvm/n"), counted);
                let all = flat(tree);
                assert_eq!(all["kvm/n"], counted.to_string());
                let below: u64 = all
                    .iter()
                    .filter(|(path, _)| path.starts_with("kvm/s"))
                    .map(|(_, value)| value.parse::<u64>().unwrap())
                    .sum();
                assert!(below <= counted - all["kvm/pool/n"].parse::<u64>().unwrap());
                let mut snapshot = super::Snapshot::default();
                tree.snapshot(&mut snapshot);
                assert_eq!(snapshot.cells().map(|(_, cells)| cells[0]).sum::<u64>(), counted);
            }
        });
        in_a_storm(&of, every, |tree, counted| {
            let mut taken = 0;
            for path in ["kvm/pool/n", "kvm/s0/n", "kvm/.departed/n", "kvm/pool/.stats/clear"] {
                taken += tree.clear(path).unwrap().0["n"];
                assert_eq!(number(tree, "kvm/n"), counted - taken);
                let all = flat(tree);
                for (path, value) in &all {
                    assert!(value.parse::<u64>().unwrap() <= counted, "{path} shows {value}");
                }
                assert_eq!(all["kvm/n"], (counted - taken).to_string());
            }
            taken += tree.clear(".stats/clear").unwrap().0["n"];
            assert_eq!((taken, number(tree, "kvm/n")), (counted, 0));
        });
    }
}

/// A writer of which nothing ever stays as it is: every record is another one at each look, and all that
/// says so moves.
fn storm(registry: &Registry, stop: &std::sync::atomic::AtomicBool) {
    use crate::segment::layout::{header, unit_offset, word};
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};
    let state = registry.0.lock();
    let region = state.arenas[0].region();
    let units = region.word(header::UNITS).load(Relaxed) as u32;
    let generation = |unit| region.word(unit_offset(unit) + word::GENERATION * 8);
    // Those of groups stay: if they did not, that would be the end of it.
    let is_group = |unit| {
        let (kind, ..) =
            crate::segment::layout::split_head(region.word(unit_offset(unit) + 8).load(Relaxed));
        kind == crate::segment::layout::kind::GROUP
    };
    let storming: Vec<_> = (0..units).rev().take_while(|unit| !is_group(*unit)).collect();
    let storming = &storming[..storming.len() / 2];
    assert!(storming.len() > 10);
    while !stop.load(SeqCst) {
        for unit in storming {
            if generation(*unit).load(Relaxed).is_multiple_of(2) {
                generation(*unit).fetch_add(2, SeqCst);
            }
        }
        region.word(header::CHANGES).fetch_add(1, SeqCst);
        region.word(header::FOLDS).fetch_add(1, SeqCst);
    }
}

#[test]
fn others_stay_right_while_one_storms() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
    let listener = Arc::new(super::events::tests::Listener::default());
    let events = Some(listener.clone() as Arc<dyn super::TreeEvents>);
    let tree = Tree::host(TreeOptions { pid_prefix: true, events, ..options });
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let (hostile, honest) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&hostile), top(&honest)];
    let _slots: Vec<_> =
        (0..200).map(|n| publish(&tops[0], &hostile, &format!("s{n}"), &of)).collect();
    let slot = publish(&tops[1], &honest, "vm", &of);
    let identity = |pid| Identity { pid, uid: pid, gid: pid, is_public: true, is_host: false };
    let bad = hostile.join(&tree, identity(1)).unwrap();
    let good = honest.join(&tree, identity(2)).unwrap();
    let stop = AtomicBool::new(false);
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| storm(&hostile, &stop));
        let mut counted = 0;
        for round in 0..25 {
            for _ in 0..20 {
                slot.add(0, 1);
                counted += 1;
                assert_eq!(number(&tree, "kvm/2-vm/n"), counted);
            }
            let all = flat(&tree);
            assert_eq!(all["kvm/2-vm/n"], counted.to_string());
            assert!(number(&tree, "kvm/n") >= counted);
            if round == 3 {
                let more = publish(&tops[1], &honest, "more", &of);
                more.add(0, 9);
                assert_eq!(number(&tree, "kvm/2-more/n"), 9);
            }
        }
        tree.fold(good).unwrap();
        assert!(number(&tree, "kvm/.departed/n") >= counted + 9);
        // It can be taken away, too, whatever it does.
        let _ = tree.detach(bad);
        assert!(number(&tree, "kvm/n") >= counted + 9);
    });
    let told = listener.told();
    let again = told.sweeps.iter().filter(|swept| swept.outdated).count();
    println!("{} sweeps, {again} in vain; given up {} times", told.sweeps.len(), told.gave_up);
    assert!(again > 0);
}

#[test]
fn nobody_is_behind_what_heavy_processes_want() {
    let registries: Vec<_> = (0..4).map(|_| Registry::new().unwrap()).collect();
    let tops: Vec<_> = registries.iter().map(top).collect();
    let owner = Owner { uid: 0, gid: 0 };
    let tree = Tree::host(TreeOptions { pid_prefix: true, ..TreeOptions::new(owner) });
    // Three processes of one user, and one of another.
    let join = |(n, registry): (usize, &Registry)| {
        let (pid, uid) = (n as u32, 7 + n as u32 / 3);
        let identity = Identity { pid, uid, gid: uid, is_public: true, is_host: false };
        registry.join(&tree, identity).unwrap()
    };
    let keys: Vec<_> = registries.iter().enumerate().map(join).collect();
    drop(tree.read());
    let of = group("g", &[counter("n", ValueType::U64)]);
    let pairs = tops.iter().zip(&registries);
    let _slots: Vec<_> = pairs.map(|(top, registry)| publish(top, registry, "a", &of)).collect();
    let stale = || {
        let state = tree.lock_to_read();
        let ids = keys.iter().map(|key| state.processes.id(*key).unwrap());
        ids.map(|id| state.processes[id].is_stale()).collect::<Vec<_>>()
    };
    assert_eq!(stale(), [true; 4]);
    {
        // The first user's have nearly used up what they may in advance, and all that are heavy what these may.
        let mut state = tree.lock();
        let (now, first) = (Instant::now(), state.processes.id(keys[0]).unwrap());
        let budget = state.processes[first].budget.as_mut().unwrap();
        budget.spend(now, Duration::from_millis(1900));
        assert!(!state.processes[first + 1].has_spent_its_budget());
        state.heavy.spend(now, Duration::from_secs(1000));
    }
    drop(tree.read());
    assert_eq!(stale(), [true, true, true, false]);
    assert_eq!(names(&tree, "kvm").iter().filter(|name| name.ends_with("-a")).count(), 1);
    // It is gone on with when there is time for it.
    tree.lock().heavy = Share::new(Instant::now(), 1, Duration::from_secs(1));
    drop(tree.read());
    assert_eq!(stale(), [true, false, false, false]);
}

#[test]
fn others_can_look_while_many_sources_come() {
    const SOURCES: usize = 3 * super::model::ADOPT;
    let options =
        crate::RegistryOptions { segment_size: 8 << 20, max_segments: 1, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let top = top(&registry);
    let all: Vec<_> = (0..SOURCES)
        .map(|n| {
            let source = registry.create_source(&format!("s{n}")).unwrap();
            top.add_subordinate(&source).unwrap();
            source
        })
        .collect();
    let tree = Tree::host(TreeOptions::new(Owner::this_process()));
    let identity = Identity::this_process();
    registry.join(&tree, identity).unwrap();
    let known = || tree.lock_to_read().sources.len();
    let mut before = 0;
    while known() < SOURCES + 2 {
        assert!(known() > before && known() <= before + super::model::ADOPT + 1);
        before = known();
        tree.lock().refresh(|_| false);
    }
    // What is known and goes does so at once, however much that is.
    all.iter().for_each(|source| top.remove_subordinate(source).unwrap());
    tree.lock().refresh(|_| false);
    assert!(
        tree.lock_to_read()
            .sources
            .iter()
            .all(|(key, source)| { key.1 <= 2 || source.reach != super::model::Reach::Live })
    );
}

#[test]
fn who_reads_all_the_time_keeps_no_change_waiting() {
    let registry = Registry::new().unwrap();
    let _top = top(&registry);
    let tree = tree(&[]);
    let key = registry.join(&tree, Identity::this_process()).unwrap();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // As one that reads a large total does, and asks for it again at once.
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let state = tree.lock_to_read();
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(2) {}
                reads.fetch_add(1, SeqCst);
                drop(state);
            }
        });
        while reads.load(SeqCst) < 10 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = reads.load(SeqCst);
        for _ in 0..20 {
            tree.detach(key).unwrap();
            tree.reattach(key).unwrap();
        }
        stop.store(true, SeqCst);
        // Each waits for the one that is being done, and a few if the thread has to wait for a processor.
        let reads = reads.load(SeqCst) - before;
        assert!(reads < 1000, "{reads} reads came before 40 changes");
    });
}

#[test]
fn directories_of_a_kind_have_their_files_in_common() {
    let registry = Registry::new().unwrap();
    let kvm = top(&registry);
    let (of, other) = (
        group("vm", &[counter("n", ValueType::U64)]),
        group("vcpu", &[counter("m", ValueType::U64)]),
    );
    let _slots: Vec<_> =
        ["a", "b"].into_iter().map(|name| publish(&kvm, &registry, name, &of)).collect();
    let _other = publish(&kvm, &registry, "c", &other);
    let tree = tree(&[&registry]);
    let state = tree.read();
    let files = |name: &str| {
        let kvm = state.dirs[&ROOT_DIR].child("kvm").unwrap();
        state.files(state.dirs[&kvm].child(name).unwrap()).unwrap()
    };
    assert!(std::ptr::eq(files("a"), files("b")));
    assert!(!std::ptr::eq(files("a"), files("c")));
    assert_eq!(files("c").iter().map(|file| &*file.name).collect::<Vec<_>>(), ["m"]);
}

#[test]
fn a_bulk_file_that_is_too_long_stops_where_there_is_no_room() {
    let registry = Registry::new().unwrap();
    let kvm = top(&registry);
    let of = group("vm", &[counter("n", ValueType::U64)]);
    let names: Vec<_> = (0..100).map(|n| format!("vm{n}")).collect();
    let _slots: Vec<_> = names.iter().map(|name| publish(&kvm, &registry, name, &of)).collect();
    let tree = tree(&[&registry]);
    let flat =
        [".stats", "flat"].iter().fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    let render = |most| {
        let mut out = Vec::new();
        let result = tree.render(flat, Caller { uid: 0, gid: 0, pid: 0 }, most, &mut out);
        (result, out)
    };
    let (result, all) = render(usize::MAX);
    assert!(result.is_ok() && all.len() > 1000);
    assert_eq!(render(all.len()), (Ok(()), all.clone()));
    let (result, part) = render(500);
    assert_eq!(result, Err(Errno(libc::EFBIG)));
    assert!(part.len() > 500 && part.len() < 550, "{}: it stops in time", part.len());
    assert_eq!(render(all.len() - 1).0, Err(Errno(libc::EFBIG)));
}

#[test]
fn what_would_take_too_much_to_be_read_at_once_is_not_begun() {
    let registry = Registry::new().unwrap();
    let kvm = top(&registry);
    let of = group("vm", &[counter("n", ValueType::U64).aggregate(Aggregations::SUM)]);
    let names: Vec<_> = (0..100).map(|n| format!("vm{n}")).collect();
    let slots: Vec<_> = names.iter().map(|name| publish(&kvm, &registry, name, &of)).collect();
    slots.iter().for_each(|slot| slot.add(0, 1));
    let render = |bulk_bytes, path: &str| {
        let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
        let tree = Tree::with(TreeOptions { bulk_bytes, ..options }, false);
        registry.join(&tree, Identity::this_process()).unwrap();
        assert_eq!(number(&tree, "kvm/n"), 100, "what is one number is read whatever it takes");
        let ino = path.split('/').fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
        let mut out = Vec::new();
        tree.render(ino, Caller { uid: 0, gid: 0, pid: 0 }, usize::MAX, &mut out)
    };
    for bulk in Bulk::ALL.into_iter().filter(|bulk| *bulk != Bulk::Clear) {
        let of_all = format!(".stats/{}", bulk.name());
        assert_eq!(render(4096, &of_all), Err(Errno(libc::EFBIG)), "{of_all}");
        assert_eq!(render(4096, &format!("kvm/vm7/{of_all}")), Ok(()));
        assert_eq!(render(1 << 20, &of_all), Ok(()));
    }
}

#[test]
fn how_to_read_a_process_is_kept_until_its_own_structure_changes() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let of = group("vm", &[counter("n", ValueType::U64)]);
    publish(&tops[0], &one, "a", &of).add(0, 1);
    publish(&tops[1], &two, "b", &of).add(0, 10);
    let tree = tree(&[&one, &two]);
    let kept = || [0, 1].map(|process| tree.read().processes[process].plan.get().is_some());
    assert_eq!((number(&tree, "kvm/a/n"), kept()), (1, [false, false]));
    assert_eq!((number(&tree, "kvm/n"), kept()), (11, [true, true]));
    publish(&tops[1], &two, "c", &of).add(0, 100);
    assert_eq!(kept(), [true, false]);
    assert_eq!((number(&tree, "kvm/n"), kept()), (111, [true, true]));
}

#[test]
fn what_looks_at_many_sources_takes_much_and_nothing_else() {
    let registry = Registry::new().unwrap();
    let kvm = top(&registry);
    let of = group("vm", &[counter("n", ValueType::U64).aggregate(Aggregations::SUM)]);
    let own = group(
        "vmm",
        &[Descriptor::new("own", ValueType::U64, Semantics::Floating)
            .aggregate(Aggregations::NONE)],
    );
    let _own = kvm.add_group(&own).unwrap();
    let (mut slots, mut others, mut machines) = (Vec::new(), Vec::new(), Vec::new());
    for (name, sources) in [("few", 20), ("many", 600)] {
        let machine = registry.create_source(name).unwrap();
        kvm.add_subordinate(&machine).unwrap();
        for n in 0..sources {
            slots.push(publish(&machine, &registry, &format!("vcpu{n}"), &of));
        }
    }
    // What has no values is gone through as well; so is what has departed, as long as somebody holds its slots,
    // and every slot of one that has many.
    for name in ["empty", "departed", "slots"] {
        let machine = registry.create_source(name).unwrap();
        kvm.add_subordinate(&machine).unwrap();
        slots.push(publish(&machine, &registry, "vcpu", &of));
        for n in 0..600 {
            let source = registry.create_source(&format!("source{n}")).unwrap();
            match name {
                "slots" => slots.push(machine.add_group(&of).unwrap()),
                _ => machine.add_subordinate(&source).unwrap(),
            }
            if name == "departed" {
                slots.push(source.add_group(&of).unwrap());
                machine.remove_subordinate(&source).unwrap();
            }
            others.push(source);
        }
        machines.push(machine);
    }
    let tree = tree(&[&registry]);
    let ino =
        |path: &str| path.split('/').fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    use Effort::{Little, Much, Some};
    for (path, effort) in [
        ("kvm/n", Much),
        ("kvm/own", Little),
        ("kvm/many/n", Much),
        ("kvm/few/n", Little),
        ("kvm/empty/n", Much),
        ("kvm/departed/n", Much),
        ("kvm/slots/n", Much),
        ("kvm/many/vcpu7/n", Little),
        ("kvm/empty/vcpu/n", Little),
        ("kvm/few/.stats/flat", Some),
        ("kvm/few/.stats/schema", Some),
        ("kvm/many/.stats/flat", Much),
        ("kvm/many/vcpu7/.stats/flat", Some),
        ("kvm/.stats/flat", Much),
        (".stats/flat", Much),
    ] {
        assert_eq!(tree.effort(ino(path)), effort, "{path}");
        // What takes much for another reason can be carried on with by the next server.
        assert_eq!(tree.depends_on_opener(ino(path)), path.contains(".stats"), "{path}");
    }
}

#[test]
fn what_is_shown_at_once_needs_no_tree_and_can_be_used_again() {
    let (one, two) = (Registry::new().unwrap(), Registry::new().unwrap());
    let tops = [top(&one), top(&two)];
    let of = group("vm", &[counter("n", ValueType::U64), counter("m", ValueType::U8)]);
    let slots: Vec<_> =
        (0..9).map(|n| publish(&tops[0], &one, &format!("source{n}"), &of)).collect();
    (0..).zip(&slots).for_each(|(n, slot)| slot.add(0, n));
    publish(&tops[1], &two, "other", &of).add(1, 3);
    let (first, second) = (tree(&[&one, &two]), tree(&[&two]));
    first.clear("kvm/source7/n").unwrap();
    let flats = [&first, &second, &first].map(|tree| {
        let mut out = Vec::new();
        tree.flat(&mut out);
        (tree, out)
    });
    let mut subtree = Subtree::default();
    for (tree, expected) in &flats {
        tree.take(View::WHOLE, true, &Access::all(), None, &mut subtree).unwrap();
        let mut out = Vec::new();
        export::write(Bulk::Flat, &subtree, &[], usize::MAX, &mut out).unwrap();
        assert_eq!(String::from_utf8(out), String::from_utf8(expected.clone()));
    }
    let expected = flats[2].1.clone();
    drop((first, second, slots, tops, one, two));
    let mut out = Vec::new();
    export::write(Bulk::Flat, &subtree, &[], usize::MAX, &mut out).unwrap();
    assert_eq!(out, expected);
    assert!(out.windows(20).any(|part| part.starts_with(b"kvm/n 29\n")), "36 and a clear of 7");
}
