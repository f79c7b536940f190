//! The core end to end, in one process: registry, segments, reader, tree. No mount.

mod support;

use statsfs::tree::Tree;
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{Registry, RegistryOptions, SourceError, stats};
use support::{flat, number};

stats! {
    /// A worker.
    pub consistent struct Work: "work", prefix "work_" {
        /// Things done.
        work_done: Counter,
        /// Things that failed.
        work_failed: Counter,
        /// Time per thing.
        work_time: Histogram<Nanoseconds> { buckets: 8 },
        /// Things in the queue.
        work_queue: Gauge<i32> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Longest queue.
        work_queue_peak: Peak<u32>,
        /// Whether it runs.
        work_running: Flag { aggregate: nonzero },
        /// Its thread.
        work_thread: Gauge<u32> { aggregate: none },
    }
}

#[test]
fn values_are_seen_where_they_are_and_summed_above() {
    let registry = Registry::new().unwrap();
    let pool = registry.create_source("pool").unwrap();
    pool.register().unwrap();
    let tree = registry.tree().unwrap();
    let workers: Vec<_> = (0..3)
        .map(|n| {
            let source = registry.create_source(&format!("worker{n}")).unwrap();
            let slot = source.add_values::<Work>().unwrap();
            pool.add_subordinate(&source).unwrap();
            slot.work_queue.set(n - 1);
            slot.work_queue_peak.record(10 + n as u32);
            slot.work_running.set(n > 0);
            slot.work_thread.set(n as u32);
            slot.work_time.record(3);
            for _ in 0..10 * (n + 1) {
                slot.update(|c| {
                    c.work_done.inc();
                    c.work_failed.add(2);
                });
            }
            (source, slot)
        })
        .collect();
    let all = flat(&tree);
    let get = |path: &str| all.get(path).map(String::as_str);
    assert_eq!(get("pool/worker1/work_done"), Some("20"));
    assert_eq!(get("pool/work_done"), Some("60"));
    assert_eq!(get("work_done"), None, "the root is no source");
    assert_eq!(get("pool/work_failed"), Some("120"));
    assert_eq!(get("pool/worker0/work_queue"), Some("-1"));
    assert_eq!(get("pool/worker0/work_queue.min"), None);
    assert_eq!(get("pool/work_queue"), Some("0"));
    assert_eq!(get("pool/work_queue.min"), Some("-1"));
    assert_eq!(get("pool/work_queue.max"), Some("1"));
    assert_eq!(get("pool/work_queue.zero"), Some("1"));
    assert_eq!(get("pool/work_queue.nonzero"), Some("2"));
    assert_eq!(get("pool/work_queue_peak"), Some("12"));
    assert_eq!(get("pool/work_running"), Some("2"));
    assert_eq!(get("pool/worker0/work_running"), Some("0"));
    assert_eq!(get("pool/worker2/work_thread"), Some("2"));
    assert_eq!(get("pool/work_thread"), None);
    assert_eq!(get("pool/work_time/count"), Some("3"));
    assert_eq!(get("pool/work_time/sum"), Some("9"));
    assert_eq!(get("pool/work_time/buckets/4"), Some("3"));
    assert_eq!(get("pool/work_time/buckets/inf"), Some("0"));
    // Every line is what its file says.
    for (path, value) in &all {
        if !path.contains("/buckets/") {
            assert_eq!(number(&tree, path), value.parse::<i128>().unwrap(), "{path}");
        }
    }
    drop(workers);
}

#[test]
fn what_leaves_stays_in_the_total() {
    let registry = Registry::new().unwrap();
    let pool = registry.create_source("pool").unwrap();
    pool.register().unwrap();
    let tree = registry.tree().unwrap();
    let mut expected = 0;
    let mut usage = None;
    for round in 0..100 {
        let source = registry.create_source("worker").unwrap();
        pool.add_subordinate(&source).unwrap();
        let inner = registry.create_source("inner").unwrap();
        source.add_subordinate(&inner).unwrap();
        let slot = source.add_values::<Work>().unwrap();
        let other = inner.add_values::<Work>().unwrap();
        slot.update(|c| c.work_done.add(round));
        other.update(|c| c.work_done.add(1000));
        expected += i128::from(round) + 1000;
        assert_eq!(number(&tree, "pool/work_done"), expected);
        if round % 3 == 0 {
            source.remove_subordinate(&inner).unwrap();
            assert_eq!(number(&tree, "pool/worker/.departed/work_done"), 1000);
            assert_eq!(number(&tree, "pool/work_done"), expected);
        }
        pool.remove_subordinate(&source).unwrap();
        assert_eq!(number(&tree, "pool/work_done"), expected);
        slot.update(|c| c.work_done.inc());
        expected += 1;
        assert_eq!(number(&tree, "pool/work_done"), expected, "a slot that is left still counts");
        drop(slot);
        if round % 2 == 0 {
            registry.usage();
        }
        assert_eq!(number(&tree, "pool/work_done"), expected);
        drop(other);
        assert_eq!(number(&tree, "pool/.departed/work_done"), expected);
        let now = registry.usage();
        assert_eq!(*usage.get_or_insert(now), now, "everything returns to where it was");
        assert!(matches!(pool.add_subordinate(&source), Err(SourceError::Removed)));
    }
}

#[test]
fn a_clear_takes_what_was_counted_and_nothing_else() {
    let registry = Registry::new().unwrap();
    let pool = registry.create_source("pool").unwrap();
    pool.register().unwrap();
    let tree = registry.tree().unwrap();
    let source = registry.create_source("worker").unwrap();
    pool.add_subordinate(&source).unwrap();
    let slot = source.add_values::<Work>().unwrap();
    slot.update(|c| c.work_done.add(7));
    assert_eq!(tree.clear("pool/worker/work_done").unwrap().0["work_done"], 7);
    assert_eq!(number(&tree, "pool/work_done"), 0);
    slot.update(|c| c.work_done.add(5));
    assert_eq!(number(&tree, "pool/work_done"), 5);
    pool.remove_subordinate(&source).unwrap();
    assert_eq!(number(&tree, "pool/work_done"), 5);
    drop(slot);
    registry.usage();
    assert_eq!(number(&tree, "pool/work_done"), 5);
    assert_eq!(tree.clear(".stats/clear").unwrap().0["work_done"], 5);
    assert_eq!(number(&tree, "pool/work_done"), 0);
    assert_eq!(tree.clear("pool/work_queue").unwrap_err().0, libc::EACCES);
}

#[test]
fn a_name_never_stands_twice() {
    let group = |group: &'static str, value: &'static str| {
        GroupBuilder::new(group)
            .value(Descriptor::new(value, ValueType::U64, Semantics::Cumulative))
            .build()
            .unwrap()
    };
    let registry = Registry::new().unwrap();
    let a = registry.create_source("a").unwrap();
    let b = registry.create_source("b").unwrap();
    let c = registry.create_source("count").unwrap();
    a.add_group(&group("one", "count")).unwrap();
    assert!(matches!(a.add_group(&group("two", "count")), Err(SourceError::AlreadyExists { .. })));
    assert!(matches!(a.add_subordinate(&c), Err(SourceError::AlreadyExists { .. })));
    b.add_group(&group("two", "count")).unwrap();
    assert!(matches!(a.add_subordinate(&b), Err(SourceError::AlreadyExists { .. })));
    let again = registry.create_source("a").unwrap();
    a.register().unwrap();
    assert!(matches!(again.register(), Err(SourceError::AlreadyExists { .. })));
    assert!(matches!(
        a.add_subordinate(&a),
        Err(SourceError::HasParent { .. } | SourceError::Cycle(_))
    ));
}

#[test]
fn hidden_sources_count_and_their_subordinates_move_up() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let hidden = registry.source("hidden").hidden().create().unwrap();
    let leaf = registry.create_source("leaf").unwrap();
    hidden.add_subordinate(&leaf).unwrap();
    top.add_subordinate(&hidden).unwrap();
    let h = hidden.add_values::<Work>().unwrap();
    let l = leaf.add_values::<Work>().unwrap();
    h.update(|c| c.work_done.add(1));
    l.update(|c| c.work_done.add(10));
    let tree = registry.tree().unwrap();
    let all = flat(&tree);
    assert_eq!(all["top/work_done"], "11");
    assert_eq!(all["top/leaf/work_done"], "10");
    assert!(!all.keys().any(|path| path.contains("hidden")));
    let twin = registry.create_source("leaf").unwrap();
    assert!(matches!(top.add_subordinate(&twin), Err(SourceError::AlreadyExists { .. })));
    hidden.remove_subordinate(&leaf).unwrap();
    top.add_subordinate(&twin).unwrap();
    assert_eq!(flat(&tree)["top/work_done"], "11");
}

#[test]
fn full_segments_grow_to_their_limit_and_then_say_so() {
    let options = RegistryOptions { segment_size: 64 << 10, max_segments: 3, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let tree = registry.tree().unwrap();
    let mut slots = Vec::new();
    let error = loop {
        let source = registry
            .create_source(&format!("s{}", slots.len()))
            .unwrap_or_else(|_| panic!("the limit should hit values first"));
        if let Err(error) = top.add_subordinate(&source) {
            break error;
        }
        match source.add_values::<Work>() {
            Ok(slot) => slots.push(slot),
            Err(error) => break error,
        }
        assert!(slots.len() < 10_000);
    };
    let SourceError::SegmentFull { segments: 3, limit: 3, .. } = error else { panic!("{error}") };
    for slot in &slots {
        slot.update(|c| c.work_done.inc());
    }
    assert_eq!(number(&tree, "top/work_done"), slots.len() as i128);
    let _dummy = top.add_values_or_dummy::<Work>();
    // Removal needs no memory.
    assert!(slots.len() > 100);
    let before = number(&tree, "top/work_done");
    top.revoke().unwrap();
    for slot in &slots {
        slot.update(|c| c.work_done.inc());
    }
    assert_eq!(number(&tree, ".departed/work_done"), before);
    drop(slots);
    registry.usage();
    assert_eq!(number(&tree, ".departed/work_done"), before);
}

/// `work_done` of a directory, and of all those below it: each is the sum of its children and of what
/// departed from it. Only leaves count here.
fn check_sums(tree: &Tree, dir: &str) -> i128 {
    use statsfs::fs::{Kind, Nodes, ROOT};
    let ino = dir.split('/').fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    let mut children = Vec::new();
    tree.list(ino, 0, &mut |entry| {
        if entry.kind == Kind::Directory && !entry.name.starts_with("work_") {
            children.push(entry.name.to_owned());
        }
        true
    })
    .unwrap();
    let total = number(tree, &format!("{dir}/work_done"));
    if !children.is_empty() || dir.matches('/').count() < 2 {
        let below: i128 =
            children.iter().map(|name| check_sums(tree, &format!("{dir}/{name}"))).sum();
        let departed = number(tree, &format!("{dir}/.departed/work_done"));
        assert_eq!(total, below + departed, "{dir}");
    }
    total
}

#[test]
fn at_rest_a_parent_is_its_children_and_what_departed() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let tree = registry.tree().unwrap();
    let mut state = 1u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % n
    };
    let mut middles = Vec::new();
    let mut slots = Vec::new();
    let mut counted = 0;
    for n in 0..600 {
        if middles.len() < 4 {
            let middle = registry.create_source(&format!("middle{n}")).unwrap();
            top.add_subordinate(&middle).unwrap();
            middles.push((middle, Vec::new()));
        }
        let at = below(middles.len() as u64) as usize;
        let (middle, leaves) = &mut middles[at];
        match below(8) {
            0..3 => {
                let leaf = registry.create_source(&format!("leaf{n}")).unwrap();
                middle.add_subordinate(&leaf).unwrap();
                slots.push(leaf.add_values::<Work>().unwrap());
                slots.push(leaf.add_values::<Work>().unwrap());
                leaves.push(leaf);
            }
            3 if !leaves.is_empty() => {
                let leaf = leaves.swap_remove(below(leaves.len() as u64) as usize);
                middle.remove_subordinate(&leaf).unwrap();
            }
            4 if below(4) == 0 => {
                let (middle, _) = middles.swap_remove(at);
                top.remove_subordinate(&middle).unwrap();
            }
            5 if !slots.is_empty() => {
                drop(slots.swap_remove(below(slots.len() as u64) as usize));
            }
            6 if below(3) == 0 => {
                registry.usage();
            }
            _ => {}
        }
        for slot in &slots {
            let n = below(3);
            slot.update(|c| c.work_done.add(n));
            counted += i128::from(n);
        }
        if n > 20 {
            // A middle that never had a leaf has no such file.
            for (middle, leaves) in &mut middles {
                if leaves.is_empty() {
                    let leaf = registry.create_source(&format!("first{n}")).unwrap();
                    middle.add_subordinate(&leaf).unwrap();
                    slots.push(leaf.add_values::<Work>().unwrap());
                    leaves.push(leaf);
                }
            }
            assert_eq!(check_sums(&tree, "top"), counted);
        }
    }
}
