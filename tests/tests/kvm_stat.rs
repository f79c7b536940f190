//! The kernel's own `kvm_stat`, unmodified, takes the directory `kvm` for KVM's in debugfs, and says what its files say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use statsfs::Registry;
use statsfs::host::PublishOptions;
use statsfs::value::{Aggregations, Descriptor, GroupBuilder, Semantics, ValueType};
use tests::guest::{Mode, NO_MEMORY, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::namespace::private;
use tests::running::{Running, wait_until};
use tests::tools;
use tests::vmm::Vmm;

/// What it leaves out of KVM's own.
const EXEMPT: [&str; 3] = ["halt_poll_fail_ns", "halt_poll_success_ns", "halt_wait_ns"];

/// Totals by event: what it says with these arguments, where a directory is in the place of KVM's.
fn kvm_stat(kvm: &Path, args: &[&str]) -> BTreeMap<String, i128> {
    let (script, place) = (tools::kvm_stat(), tempfile::tempdir().unwrap());
    let output = private(|| {
        tools::show_kvm_stat(kvm, place.path());
        Command::new("python3")
            .arg(&script)
            .args(args)
            .output()
            .expect("`apt-get install -y python3`")
    });
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "{args:?}: {}: {stderr}", output.status);
    let mut totals = BTreeMap::new();
    for line in stdout.lines() {
        let [name, total, _] = line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
        assert!(totals.insert(name.to_owned(), total.parse().unwrap()).is_none(), "{line}");
    }
    totals
}

/// The names of a directory, of what is a directory and of what is none.
fn names(directory: &Path) -> (Vec<String>, BTreeSet<String>) {
    let (mut directories, mut files) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            directories.push(name);
        } else {
            files.insert(name);
        }
    }
    (directories, files)
}

/// The sum of what the files of this name say in these directories, where there is one.
fn sum(kvm: &Path, machines: &[String], name: &str) -> i128 {
    let texts = machines.iter().filter_map(|dir| fs::read_to_string(kvm.join(dir).join(name)).ok());
    texts.map(|text| text.trim_end().parse::<i128>().unwrap()).sum()
}

/// Asserts that what it says is of these machines and what their files say.
fn assert_sums(kvm: &Path, machines: &[String], args: &[&str]) -> BTreeMap<String, i128> {
    let events: BTreeSet<_> =
        names(kvm).1.into_iter().filter(|name| !EXEMPT.contains(&name.as_str())).collect();
    let all = || events.iter().map(|name| sum(kvm, machines, name)).collect::<Vec<_>>();
    let before = all();
    let totals = kvm_stat(kvm, args);
    assert!(totals.keys().eq(&events), "{events:?}, but {totals:?}");
    let mut moved = Vec::new();
    for ((name, total), (before, after)) in totals.iter().zip(before.iter().zip(all())) {
        if *before == after {
            assert_eq!(*total, after, "{name}");
        } else {
            assert!(*before <= *total && *total <= after, "{name}: {before}, {total}, {after}");
            moved.push(name.as_str());
        }
    }
    // All guests are at rest, but their threads' times are looked at once in a while.
    assert!(moved.iter().all(|name| name.starts_with("sched_")), "{moved:?}");
    totals
}

/// Publishes a machine with values of all kinds of aggregates, of which one is negative.
fn publish_another(host: &Host) -> (Registry, impl Sized) {
    let kinds = [
        Aggregations::SUM,
        Aggregations::MIN,
        Aggregations::MAX,
        Aggregations::AVG,
        Aggregations::COUNT_ZERO,
        Aggregations::COUNT_NONZERO,
    ];
    let all = kinds.into_iter().fold(Aggregations::NONE, Aggregations::union);
    let level = Descriptor::new("other_level", ValueType::S64, Semantics::Floating).aggregate(all);
    let histogram = ValueType::Histogram { buckets: 8, sum: true };
    let sizes = Descriptor::new("other_sizes", histogram, Semantics::Cumulative);
    let group = GroupBuilder::new("other").value(level).value(sizes).build().unwrap();
    let registry = Registry::new().unwrap();
    let (kvm, machine) =
        (registry.create_source("kvm").unwrap(), registry.create_source("other").unwrap());
    kvm.register().unwrap();
    kvm.add_subordinate(&machine).unwrap();
    let slots = [-70_000, 30, 0].map(|level: i64| {
        let part = registry.create_source(&format!("part{}", level.unsigned_abs())).unwrap();
        machine.add_subordinate(&part).unwrap();
        let slot = part.add_group(&group).unwrap();
        slot.set(0, level as u64);
        slot.record(1, 5);
        slot
    });
    let options = PublishOptions { socket: Some(host.socket()), ..Default::default() };
    let publisher = registry.publish(options).unwrap();
    (registry, (publisher, slots, kvm, machine))
}

#[test]
fn it_shows_the_sums_of_what_the_live_machines_files_say() {
    let host = Host::start();
    let kvm = host.mount().join("kvm");
    let start = |n: u32| -> Running {
        let steps = [
            Step::new(Op::In8, n, NO_PORT).per_index(3),
            Step::new(Op::Write32, 2 * n, NO_MEMORY),
            park(),
            end(0),
        ];
        Vmm::new(Mode::Long, &steps).cpus(2).published_to(&host).blocked_console().start()
    };
    let guests = [start(1000), start(20)];
    let _other = publish_another(&host);
    for (guest, n) in guests.iter().zip([1000, 20]) {
        let exits = Some(2 * n + 3 + 4 * n + 2);
        let path = format!("{}/user_exits", guest.machine());
        wait_until("all exits", || (host.value(&path) == exits).then_some(()));
    }
    wait_until("the other machine", || host.value("kvm/other_level.max"));
    let machine = |guest: &Running| guest.machine()["kvm/".len()..].to_owned();
    let other = format!("{}-other", std::process::id());
    let [first, second] = guests.each_ref().map(machine);

    let machines = [first.clone(), second.clone(), other.clone()];
    let totals = assert_sums(&kvm, &machines, &["-d", "-i", "-1"]);
    let of_all = ["user_exits", "user_exit_io_in", "user_exit_mmio_write", "vm_vcpus"];
    assert_eq!(of_all.map(|name| totals[name]), [6 * 1020 + 10, 2 * 1020 + 6, 4 * 1020, 4]);
    // A file for each kind of aggregate is an event, and histograms are directories, which are none.
    assert_eq!(totals["other_level"], -69_970);
    let kinds = ["min", "max", "avg", "zero", "nonzero"];
    let kinds = kinds.map(|kind| totals[&format!("other_level.{kind}")]);
    assert_eq!(kinds, [-70_000, 30, -69_970 / 3, 1, 2]);
    assert!(kvm.join("other_sizes").is_dir() && !totals.contains_key("other_sizes"));

    // One machine alone, and one that is gone.
    let [pid, gone] = guests.each_ref().map(|guest| guest.pid().to_string());
    let totals = assert_sums(&kvm, &machines[..1], &["-d", "-i", "-1", "-p", &pid]);
    assert_eq!(totals["user_exits"], 6 * 1000 + 5);
    let [guest, gone_guest] = guests;
    gone_guest.kill_and_wait();
    wait_until("its end", || (!kvm.join(&second).exists()).then_some(()));
    let totals = assert_sums(&kvm, &[first, other], &["-d", "-i", "-1"]);
    assert_eq!(totals["user_exits"], 6 * 1000 + 5, "without {gone}");
    assert_eq!(host.value("kvm/user_exits"), Some(6 * 1020 + 10), "which the file has");
    guest.kill_and_wait();
}
