//! Guests in every format: at rest all say what the files say, under load each read is consistent, and the kernel's own test of
//! binary statistics would find nothing wrong with ours.

use std::collections::BTreeMap;
use std::path::Path;

use statsfs::snapshot::Snapshot;
use tests::bulk::{KvmStatistics, Numbers, agree, agree_by_script, of_json, of_snapshot, walk};
use tests::flat::Flat;
use tests::guest::{EXIT_PORT, Mode, NO_MEMORY, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::running::{Running, wait_until};
use tests::soak::rounds;
use tests::vmm::Vmm;

/// A guest that makes exits of several kinds in turns, for ever.
fn busy(cpus: u32) -> Vmm {
    let steps = [
        Step::new(Op::Out8, 5, NO_PORT),
        Step::new(Op::In8, 1, EXIT_PORT),
        Step::new(Op::Hlt, 1, 0).per_index(1),
        Step::new(Op::Read64, 3, NO_MEMORY),
        Step::new(Op::Again, 1, 0),
    ];
    Vmm::new(Mode::Long, &steps).cpus(cpus)
}

/// One that counts, and then waits until its console is taken.
fn waiting(host: &Host, n: u32) -> Running {
    let steps = [
        Step::new(Op::Out8, n, NO_PORT).per_index(3),
        Step::new(Op::In8, n + 1, NO_PORT),
        park(),
        end(0),
    ];
    let vmm = Vmm::new(Mode::Long, &steps).cpus(2).args(["--memory", "2M"]);
    let running = vmm.published_to(host).blocked_console().start();
    // The last is that of the access to the console.
    let exits = u64::from(2 * (2 * n + 1 + 1) + 3);
    wait_until("it waits", || {
        let path = format!("{}/user_exits", running.machine());
        (host.value(&path) == Some(exits)).then_some(())
    });
    running
}

/// The samples of a family in a text for Prometheus, by their labels.
fn samples(text: &str, family: &str) -> BTreeMap<String, i128> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix('{'));
    let samples = lines.map(|line| line.split_once("} ").unwrap());
    samples.map(|(labels, number)| (labels.to_owned(), number.parse().unwrap())).collect()
}

#[test]
fn at_rest_all_formats_say_what_the_files_say() {
    let host = Host::start();
    // One that is gone, and others that are there.
    let mut gone = waiting(&host, 7);
    gone.release();
    assert_eq!(gone.wait().code(), 0);
    let running = [waiting(&host, 20), waiting(&host, 31)];
    wait_until("it has left", || host.value("kvm/.departed/user_exits").filter(|n| *n > 0));
    let mount = host.mount();
    // The server counts what it is asked, and what is sampled goes on.
    let is_still = |path: &str| {
        !path.starts_with("statsfs/") && !path.rsplit('/').any(|name| name.starts_with("sched_"))
    };
    let check = || {
        let all = agree(&mount, "", is_still);
        assert!(all.len() > 3000, "{}", all.len());
        assert!(all.contains_key(&format!("{}/vcpu1/user_handle_time/p99", running[0].machine())));
        let kvm = agree(&mount, "kvm", is_still);
        agree_by_script(&mount.join("kvm/.stats/snapshot"), &kvm, is_still);
        for running in &running {
            agree(&mount, &running.machine(), is_still);
            agree(&mount, &format!("{}/vcpu1", running.machine()), is_still);
        }
        all
    };
    check();
    for path in [
        "kvm/user_exit_io_in".to_owned(),
        format!("{}/user_handle_time/count", running[0].machine()),
        format!("{}/vcpu0/.stats/clear", running[1].machine()),
    ] {
        std::fs::write(mount.join(&path), "0").unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let all = check();
    assert_eq!(all["kvm/user_exit_io_in"], 0);
    // Exports for Prometheus know of no clears: what they say is what is raw.
    let snapshot = Snapshot::read(&mount).unwrap();
    let raw = |dir: &str, name: &str| {
        let value = snapshot.dir(dir).unwrap().value(name);
        value.unwrap_or_else(|| panic!("{dir}/{name}")).raw_number().unwrap()
    };
    assert!(raw("kvm", "user_exit_io_in") > 0);
    for file in ["prometheus", "openmetrics"] {
        let text = std::fs::read_to_string(mount.join(".stats").join(file)).unwrap();
        let reason = |labels: &str| {
            let (_, name) = labels.rsplit_once("reason=\"").unwrap();
            format!("user_exit_{}", name.trim_end_matches('"'))
        };
        let of_host = samples(&text, "kvm_host_user_exits_total");
        assert!(of_host.len() > 40, "{of_host:?}");
        for (labels, number) in of_host {
            assert_eq!(raw("kvm", &reason(&labels)), number, "{labels} in {file}");
        }
        let each = samples(&text, "kvm_user_exits_total");
        for running in &running {
            let pid = format!("pid=\"{}\"", running.pid());
            let own: Vec<_> = each.iter().filter(|(labels, _)| labels.contains(&pid)).collect();
            assert!(own.len() > 40);
            for (labels, number) in own {
                let machine = running.machine();
                assert_eq!(raw(&machine, &reason(labels)), *number, "{labels} in {file}");
            }
        }
    }
}

/// Whether in each directory the exits are those by reason, and how many directories there are.
fn balanced(all: &Numbers, what: &str) -> usize {
    let mut count = 0;
    for (path, total) in all {
        let Some(dir) = path.strip_suffix("/user_exits") else { continue };
        let prefix = format!("{dir}/user_exit_");
        let reasons = all.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        assert_eq!(reasons.map(|(_, n)| n).sum::<i128>(), *total, "{dir} in {what}");
        count += 1;
    }
    count
}

#[test]
fn under_load_every_read_of_every_format_is_consistent() {
    const CPUS: u32 = 3;
    let running = busy(CPUS).start_mounted();
    running.wait_for_exits(1000);
    let stats = running.path(".stats");
    let dirs = CPUS as usize + 2;
    let read = |name: &str| std::fs::read(stats.join(name)).unwrap();
    let mut last = None;
    for _ in 0..rounds(25) {
        let snapshot = Snapshot::read(running.mount()).unwrap();
        assert_eq!(balanced(&of_snapshot(&snapshot), "snapshot"), dirs);
        let flat = Flat::parse(&String::from_utf8(read("flat")).unwrap());
        let numbers = flat.iter().map(|(path, n)| (path.to_owned(), i128::from(n))).collect();
        assert_eq!(balanced(&numbers, "flat"), dirs);
        let mut json = Numbers::new();
        of_json("", &serde_json::from_slice(&read("json")).unwrap(), &mut json);
        assert_eq!(balanced(&json, "json"), dirs);
        // And what is counted meanwhile is a rate.
        let exits = |snapshot: &Snapshot| {
            snapshot.dir("kvm").unwrap().value("user_exits").unwrap().raw_number()
        };
        assert!(last < exits(&snapshot), "it goes on");
        last = exits(&snapshot);
    }
    running.signal(libc::SIGTERM);
    running.wait().assert(143);
}

#[test]
fn the_kernels_test_of_binary_statistics_passes_everywhere() {
    let host = Host::start();
    let running = [busy(2), busy(1)].map(|vmm| vmm.published_to(&host).start());
    let machines = running.each_ref().map(|running| {
        wait_until("exits", || {
            host.value(&format!("{}/user_exits", running.machine())).filter(|n| *n > 100)
        });
        running.machine()
    });
    let (_, dirs) = walk(&host.mount(), "");
    let read = |dir: &str| KvmStatistics::read(&host.mount().join(dir).join(".stats/binary"));
    let mut values = 0;
    for dir in &dirs {
        values += read(dir).all.len();
        let departed = KvmStatistics::read(&host.mount().join(dir).join(".departed/.stats/binary"));
        assert!(departed.id.ends_with("/.departed"), "{}", departed.id);
    }
    assert!(dirs.len() > 10 && values > 1000, "{dirs:?}: {values}");
    assert_eq!(read("").id, "kvm-statsfs");
    assert_eq!(read("").all.len(), 0, "the root shows no values");
    let of_vcpu = read(&format!("{}/vcpu0", machines[0]));
    assert_eq!(of_vcpu.id, format!("kvm-statsfs/{}/vcpu0", machines[0]));
    let handled = of_vcpu.all.iter().find(|one| one.name == "user_handle_time").unwrap();
    assert_eq!((handled.flags, handled.exponent, handled.values.len()), (4 | 2 << 4, -9, 40));
    for running in running {
        running.signal(libc::SIGTERM);
        running.wait().assert(143);
    }
    assert!(Path::new(&host.mount()).exists());
}
