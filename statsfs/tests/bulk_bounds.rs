//! What the reader of a bulk file can make the server need: about as much as there is room for, however deep and
//! wide the tree is, and whatever its sources are called.

#[path = "support/heap.rs"]
mod heap;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};

use heap::{IN_USE, MOST};
use statsfs::fs::{Caller, Errno, Nodes, ROOT};
use statsfs::tree::{Exposition, Tree};
use statsfs::value::{Aggregations, Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{DynSlot, Registry, RegistryOptions, Source};

/// One test at a time: the heap is the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BULK: [&str; 5] = ["flat", "json", "summary", "schema", "snapshot"];

/// Reads a bulk file of everything, of which there is room for `most` bytes. Also how much more than before was
/// allocated meanwhile.
fn read(tree: &Tree, bulk: &str, most: usize) -> (Result<(), Errno>, Vec<u8>, usize) {
    let ino = [".stats", bulk].iter().fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    let mut out = Vec::new();
    let before = IN_USE.load(SeqCst);
    MOST.store(before, SeqCst);
    let result = tree.render(ino, Caller { uid: 0, gid: 0, pid: 0 }, most, &mut out);
    (result, out, MOST.load(SeqCst) - before)
}

fn registry() -> Registry {
    let options = RegistryOptions { segment_size: 16 << 20, max_segments: 2, ..Default::default() };
    Registry::with_options(options).unwrap()
}

/// `n` sources with long names, each in the one before, the first at the top.
fn chain(registry: &Registry, n: usize) -> Vec<Source> {
    let name = "d".repeat(50);
    let all: Vec<_> = (0..n).map(|_| registry.create_source(&name).unwrap()).collect();
    all[0].register().unwrap();
    all.windows(2).for_each(|pair| pair[0].add_subordinate(&pair[1]).unwrap());
    all
}

/// Slots of so many groups of so many values.
fn fill(source: &Source, groups: usize, values: usize, ty: ValueType) -> Vec<DynSlot> {
    let group = |n: usize| {
        let value = |v| {
            let name = format!("g{n}_v{v}");
            Descriptor::new(name, ty, Semantics::Cumulative).aggregate(Aggregations::SUM)
        };
        let group = GroupBuilder::new(format!("group{n}"));
        (0..values).fold(group, |group, v| group.value(value(v))).build().unwrap()
    };
    (0..groups).map(|n| source.add_group(&group(n)).unwrap()).collect()
}

#[test]
fn totals_take_the_memory_of_one_directory_however_deep_it_is() {
    let _alone = alone();
    let registry = registry();
    let sources = chain(&registry, 40);
    let _slots = fill(sources.last().unwrap(), 16, 1024, ValueType::U64);
    let tree = registry.tree().unwrap();
    // Files and directories are there from now on.
    read(&tree, "schema", usize::MAX).0.unwrap();
    for bulk in BULK {
        let (result, _, memory) = read(&tree, bulk, 16 << 10);
        assert_eq!(result, Err(Errno(libc::EFBIG)), "{bulk}");
        // Each source keeps sums of what departs, which are read as well: 5 MB.
        assert!(memory < 24 << 20, "{bulk} took {memory} B");
    }
    // All of them show 0.
    let (result, text, memory) = read(&tree, "summary", 1 << 20);
    assert_eq!(result, Ok(()));
    assert!(text.len() < 200_000 && memory < 24 << 20, "{memory} B");
}

#[test]
fn one_long_directory_stops_where_there_is_no_room() {
    let _alone = alone();
    let registry = registry();
    let sources = chain(&registry, 8);
    let ty = ValueType::Histogram { buckets: 64, sum: true };
    let slots = fill(sources.last().unwrap(), 8, 16, ty);
    slots.iter().for_each(|slot| (0..16).for_each(|value| slot.record(value, 1 << 20)));
    let tree = registry.tree().unwrap();
    for bulk in BULK {
        let (result, all, _) = read(&tree, bulk, usize::MAX);
        assert_eq!(result, Ok(()));
        assert_eq!(read(&tree, bulk, all.len()).0, Ok(()), "{bulk}");
        assert_eq!(read(&tree, bulk, all.len() - 1).0, Err(Errno(libc::EFBIG)), "{bulk}");
        // A histogram has less than 72 lines.
        let value = if bulk == "flat" { 72 * (8 * 51 + 60) } else { 4096 };
        let most = 5000;
        let (result, part, _) = read(&tree, bulk, most);
        assert!(all.len() > 3 * (most + value), "{bulk} has {} B", all.len());
        assert_eq!(result, Err(Errno(libc::EFBIG)), "{bulk}");
        assert!(part.len() < most + value, "{bulk} wrote {} B", part.len());
    }
}

#[test]
fn paths_and_labels_are_written_and_not_gathered() {
    let _alone = alone();
    let registry = registry();
    let above = chain(&registry, 60);
    let group = GroupBuilder::new("g");
    let value = Descriptor::new("n", ValueType::U64, Semantics::Cumulative);
    let group = group.value(value).build().unwrap();
    let leaf = |n| {
        let source = registry.source(&format!("leaf{n}")).label("k", "v").create().unwrap();
        above.last().unwrap().add_subordinate(&source).unwrap();
        let slot = source.add_group(&group).unwrap();
        (source, slot)
    };
    let _leaves: Vec<_> = (0..2000).map(leaf).collect();
    let tree = registry.tree().unwrap();
    let (result, all, _) = read(&tree, "schema", usize::MAX);
    assert_eq!(result, Ok(()));
    assert!(all.len() > 12_000_000, "{} B", all.len());
    let (result, part, memory) = read(&tree, "schema", 64 << 10);
    assert_eq!(result, Err(Errno(libc::EFBIG)));
    assert!(part.len() <= 64 << 10 && memory < 4 << 20, "{memory} B");
}

#[test]
fn metrics_that_do_not_fit_are_without_series_of_who_has_most() {
    let _alone = alone();
    let registry = registry();
    let top = registry.create_source("kvm").unwrap();
    top.register().unwrap();
    let value =
        Descriptor::new("n", ValueType::Histogram { buckets: 8, sum: true }, Semantics::Cumulative);
    let group = GroupBuilder::new("g").value(value.aggregate(Aggregations::SUM)).build().unwrap();
    let machine = |name: &str, devices| {
        let machine = registry.source(name).label("k", "v").create().unwrap();
        top.add_subordinate(&machine).unwrap();
        let device = |n| {
            let device = registry.create_source(&format!("device{n}")).unwrap();
            machine.add_subordinate(&device).unwrap();
            let slot = device.add_group(&group).unwrap();
            slot.record(0, n);
            (device, slot)
        };
        (machine.clone(), (0..devices).map(device).collect::<Vec<_>>())
    };
    let machines = [("small", 1), ("middle", 10), ("large", 500)];
    let _all = machines.map(|(name, devices)| machine(name, devices));
    let tree = registry.tree().unwrap();
    for format in [Exposition::Prometheus, Exposition::OpenMetrics] {
        let expose = |most| {
            let mut out = Vec::new();
            let before = IN_USE.load(SeqCst);
            MOST.store(before, SeqCst);
            let result = tree.expose(format, true, most, &mut out);
            let memory = MOST.load(SeqCst) - before;
            result.map(|left_out| (left_out, String::from_utf8(out).unwrap(), memory))
        };
        let (left_out, all, _) = expose(usize::MAX).unwrap();
        assert_eq!(left_out, 0);
        let mut seen = Vec::new();
        let mut most = all.len();
        while let Ok((left_out, text, memory)) = expose(most) {
            assert!(text.len() <= most, "{} B of {most}", text.len());
            // Its own, and the text as it grows.
            assert!(memory < (1 << 20) + 4 * most, "{memory} B for {most}");
            if text.contains("{what=\"total\"} 1\n") {
                assert!(!text.contains("vm=\"large\""), "{text}");
                break;
            }
            let shown = machines.map(|(name, devices)| {
                let label = format!("vm=\"{name}\"");
                let is_of = |line: &&str| line.contains(&label);
                // Each with nine lines and a count and a sum, and that of the machine's labels.
                let lines = text.lines().filter(is_of).count();
                assert!(
                    [0, devices as usize * 10 + 1].contains(&lines),
                    "{lines} of {name}: {text}"
                );
                lines > 0
            });
            assert_eq!(shown.iter().filter(|is| !**is).count(), left_out);
            let said = format!("\nstatsfs_export_left_out{{what=\"source\"}} {left_out}\n");
            assert!(text.contains(&said), "{text}");
            let total = text.lines().find(|line| line.starts_with("kvm_host_n_count"));
            assert_eq!(total, Some("kvm_host_n_count 511"));
            assert!(text.contains("\nkvm_vms 3\n"));
            seen.push(shown);
            most -= 1 + most / 10;
        }
        // Not even the total fits.
        assert!(most > 500, "{most}");
        seen.dedup();
        let [all, but_large, small] = [[true; 3], [true, true, false], [true, false, false]];
        assert!(seen.starts_with(&[all, but_large, small]), "{seen:?}");
    }
}

#[test]
fn totals_of_others_push_those_of_machines_out_of_no_metrics() {
    let _alone = alone();
    let registry = registry();
    let value = Descriptor::new("n", ValueType::U64, Semantics::Cumulative);
    let group = GroupBuilder::new("g").value(value.aggregate(Aggregations::SUM)).build().unwrap();
    let [kvm, machine] = ["kvm", "small"].map(|name| registry.create_source(name).unwrap());
    kvm.register().unwrap();
    kvm.add_subordinate(&machine).unwrap();
    let slot = machine.add_group(&group).unwrap();
    slot.add(0, 7);
    let other = |n| {
        let [top, below] = [format!("other{n}"), "below".into()]
            .map(|name| registry.create_source(&name).unwrap());
        top.register().unwrap();
        top.add_subordinate(&below).unwrap();
        let histograms = fill(&below, 2, 32, ValueType::Histogram { buckets: 64, sum: true });
        (top, below, histograms)
    };
    let others: Vec<_> = (0..10).map(other).collect();
    let tree = registry.tree().unwrap();
    let expose = |most| {
        let mut out = Vec::new();
        let left_out = tree.expose(Exposition::Prometheus, true, most, &mut out);
        (left_out, String::from_utf8(out).unwrap())
    };
    let check = |departed: usize| {
        let (left_out, all) = expose(usize::MAX);
        assert_eq!(left_out, Ok(0));
        assert!(all.len() > 10 * 64 * 1000, "{} B", all.len());
        let mut before = 0;
        for most in [all.len() - 1, all.len() / 2, all.len() / 10, all.len() / 100] {
            let (left_out, text) = expose(most);
            assert!(text.len() <= most, "{} B of {most}", text.len());
            let left_out = left_out.unwrap();
            assert!((before.max(1)..=20).contains(&left_out), "{left_out} of {departed} departed");
            let of_machine =
                format!("kvm_n_total{{vm=\"small\",pid=\"{}\"}} 7", std::process::id());
            for line in [&*of_machine, "kvm_host_n_total 7", "kvm_vms 1"] {
                assert!(text.lines().any(|of| of == line), "no {line} in {text}");
            }
            before = left_out;
        }
        // Nothing but machines is left.
        assert_eq!(before, 20 - departed);
    };
    check(0);
    // Those that are gone are in totals, which are nobody's.
    for (top, below, _) in &others {
        top.remove_subordinate(below).unwrap();
    }
    check(10);
}

#[test]
fn totals_of_machines_push_nothing_but_totals_out_of_metrics() {
    let _alone = alone();
    let registry = registry();
    let value = Descriptor::new("n", ValueType::U64, Semantics::Cumulative);
    let group = GroupBuilder::new("g").value(value.aggregate(Aggregations::SUM)).build().unwrap();
    let [kvm, small, large] =
        ["kvm", "small", "large"].map(|name| registry.create_source(name).unwrap());
    kvm.register().unwrap();
    kvm.add_subordinate(&small).unwrap();
    kvm.add_subordinate(&large).unwrap();
    let slot = small.add_group(&group).unwrap();
    slot.add(0, 7);
    let histograms = fill(&large, 8, 32, ValueType::Histogram { buckets: 64, sum: true });
    let tree = registry.tree().unwrap();
    let check = || {
        let expose = |most| {
            let mut out = Vec::new();
            let left_out = tree.expose(Exposition::Prometheus, true, most, &mut out);
            (left_out, String::from_utf8(out).unwrap())
        };
        let (left_out, all) = expose(usize::MAX);
        assert_eq!(left_out, Ok(0));
        assert!(all.len() > 8 * 32 * 1000, "{} B", all.len());
        let mut totals = all.len();
        for most in [all.len() - 1, all.len() / 2, all.len() / 4] {
            let (left_out, text) = expose(most);
            assert!(text.len() <= most, "{} B of {most}", text.len());
            assert!(left_out.unwrap() > 0);
            let of_machine =
                format!("kvm_n_total{{vm=\"small\",pid=\"{}\"}} 7", std::process::id());
            for line in [&*of_machine, "kvm_host_n_total 7"] {
                assert!(text.lines().any(|of| of == line), "no {line} in {text}");
            }
            let sums = |text: &str| {
                text.lines().filter(|line| line.starts_with("# TYPE kvm_host_")).count()
            };
            let left_out = format!(
                "\nstatsfs_export_left_out{{what=\"total\"}} {}\n",
                sums(&all) - sums(&text)
            );
            assert!(text.contains(&left_out), "not {left_out}");
            assert!(sums(&text) <= totals);
            totals = sums(&text);
        }
        assert!(totals <= 8 * 32 / 2, "{totals} totals");
    };
    check();
    // What departed is there in totals only.
    kvm.remove_subordinate(&large).unwrap();
    drop(histograms);
    check();
}
