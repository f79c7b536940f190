//! What KVM counts: the tree says what debugfs says, and the descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::kvm_stats::{KvmStats, compare, shown};
use tests::linux::Linux;
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// The directory of a process's only VM in KVM's debugfs.
fn debugfs_of(pid: u32) -> PathBuf {
    let begin = format!("{pid}-");
    let mut all = fs::read_dir(DEBUGFS).expect("debugfs is open here").flatten();
    let of = all.find(|entry| entry.file_name().to_string_lossy().starts_with(&begin));
    of.unwrap_or_else(|| panic!("debugfs has no VM of process {pid}")).path()
}

fn number(path: &Path) -> u64 {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().parse().unwrap_or_else(|_| panic!("{} says {text:?}", path.display()))
}

/// Compares a machine that does nothing now with its descriptors and its debugfs; answers how many values were
/// compared with debugfs, and how many of them are not 0.
fn agree(host: &Host, running: &Running) -> (usize, usize) {
    let (machine, flat) = (running.machine(), host.flat());
    let stats = KvmStats::of(running.pid()).unwrap();
    compare(&flat, &machine, &[&machine], &stats);
    let directory = debugfs_of(running.pid());
    let all = stats.values().flat_map(KvmStats::now);
    let values: BTreeMap<_, _> = all.map(|value| (value.name.clone(), value)).collect();
    let mut counted = 0;
    for (name, value) in &values {
        // Of a histogram it has the first bucket. What its vCPUs have is the sum, also of what is a largest.
        let tree = shown(&flat, &machine, value)[0];
        let debugfs = number(&directory.join(name));
        assert_eq!(tree, debugfs, "{machine}/{name}");
        counted += usize::from(debugfs > 0);
    }
    (values.len(), counted)
}

/// Compares the totals with debugfs's over all VMs of the host, which are in this tree.
fn totals_agree(flat: &Flat, running: &Running) {
    for value in KvmStats::of(running.pid()).unwrap().values().flat_map(KvmStats::now) {
        // Debugfs adds up what is a largest.
        if !value.is_peak() {
            let total = number(&Path::new(DEBUGFS).join(&value.name));
            assert_eq!(shown(flat, "kvm", &value)[0], total, "kvm/{}", value.name);
        }
    }
}

fn wait_for(host: &Host, running: &Running, vcpus: u32) {
    wait_until("the descriptors", || {
        let machine = running.machine();
        let there = host.machines().contains(&machine);
        let all = (0..vcpus).all(|n| host.value(&format!("{machine}/vcpu{n}/exits")).is_some());
        (there && all).then_some(())
    });
}

pub fn the_tree_says_what_debugfs_says() {
    let host = Host::start();
    // One that has done something, and stays in its VMM.
    let steps = [
        Step::new(Op::In8, 500, NO_PORT).per_index(70),
        Step::new(Op::Hlt, 30, 0),
        Step::new(Op::Cpuid, 900, 0),
        park(),
        end(0),
    ];
    let flat = Vmm::new(Mode::Long, &steps).cpus(3).args(["--memory", "4M"]);
    let parked = flat.published_to(&host).blocked_console().start();
    wait_for(&host, &parked, 3);
    wait_until("it is parked", || {
        let outs = |n| host.value(&format!("{}/vcpu{n}/user_exit_io_out", parked.machine()));
        (0..3).all(|n| outs(n) > Some(0)).then_some(())
    });
    // And a kernel at work, which is stopped with its VMM.
    let script = "dd if=/dev/urandom of=/a bs=64k count=16 2>/dev/null
        echo READY; while :; do read up idle < /proc/uptime; done";
    let linux = Linux::new(script).with(|vmm| vmm.cpus(2).published_to(&host));
    let mut linux = linux.build().start();
    linux.wait_for_line("READY");
    wait_for(&host, &linux, 2);
    linux.signal(libc::SIGSTOP);
    wait_until("nothing moves", || {
        let exits = || {
            let stats = KvmStats::of(linux.pid()).unwrap();
            let all = stats.values().flat_map(KvmStats::now);
            all.map(|value| value.values).collect::<Vec<_>>()
        };
        let before = exits();
        thread::sleep(Duration::from_millis(200));
        (exits() == before).then_some(())
    });
    for running in [&parked, &linux] {
        let (compared, counted) = agree(&host, running);
        eprintln!(
            "{}: {compared} values are debugfs's, {counted} of them not 0",
            running.machine()
        );
        assert!(compared > 40 && counted > 5);
    }
    let before = host.flat();
    totals_agree(&before, &linux);

    // Whoever may can set them to 0 there: here they go on.
    let exits = format!("{}/exits", linux.machine());
    fs::write(debugfs_of(linux.pid()).join("exits"), "0").unwrap();
    let zeroed = KvmStats::of(linux.pid()).unwrap();
    assert!(zeroed.values().filter(|of| of.id.contains("vcpu")).all(|of| of.get("exits") == 0));
    assert_eq!(host.value(&exits), Some(before.get(&exits)));
    linux.signal(libc::SIGCONT);
    wait_until("it goes on", || host.value(&exits).filter(|now| *now > before.get(&exits)));
    let counted = |stats: &BTreeMap<String, KvmStats>| {
        stats.values().filter(|of| of.id.contains("vcpu")).map(|of| of.get("exits")).sum::<u64>()
    };
    linux.signal(libc::SIGSTOP);
    wait_until("nothing moves", || {
        let before = counted(&zeroed);
        thread::sleep(Duration::from_millis(200));
        (counted(&zeroed) == before).then_some(())
    });
    assert_eq!(host.value(&exits), Some(before.get(&exits) + counted(&zeroed)));
    // Its timers do not outlive all that in an emulated host.
    assert_eq!(linux.kill_and_wait(), Some(libc::SIGKILL));
    drop(parked);
}
