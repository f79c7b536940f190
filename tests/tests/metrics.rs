//! Exports by label: Prometheus' own tools take them without a word, and they say what the files say.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use statsfs::Registry;
use statsfs::host::PublishOptions;
use statsfs::value::{BaseUnit, Descriptor, GroupBuilder, Semantics, Unit, ValueType};
use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::http::ask;
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

/// What a command that is given a text says on both of its outputs, and its status.
fn said(command: &mut Command, text: &str, package: &str) -> (i32, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: `apt-get install -y {package}`"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // One that ends early says why.
        scope.spawn(move || stdin.write_all(text.as_bytes()));
        child.wait_with_output().unwrap()
    });
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    (output.status.code().expect("it ends by itself"), out + &err)
}

fn promtool(text: &str) -> (i32, String) {
    said(Command::new("promtool").args(["check", "metrics"]), text, "prometheus")
}

fn bulk(running: &Running, directory: &str, name: &str) -> String {
    let path = running.mount().join(directory).join(".stats").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Samples by name and labels, of text that a strict reader of OpenMetrics takes.
struct Samples(BTreeMap<(String, String), f64>);

impl Samples {
    fn of(text: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics.py");
        // Debian's own, which has what its packages bring.
        let (status, lines) = said(Command::new("/usr/bin/python3").arg(script), text, "python3");
        assert_eq!(status, 0, "{lines}");
        let mut all = BTreeMap::new();
        for line in lines.lines() {
            let [_, _, name, labels, number] =
                line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            let key = (name.to_owned(), labels.to_owned());
            assert!(all.insert(key, number.parse().unwrap()).is_none(), "{line} comes twice");
        }
        Self(all)
    }

    /// A number, in steps of the unit's power.
    fn get(&self, name: &str, labels: &str, steps: f64) -> u64 {
        let number = self.0.get(&(name.to_owned(), labels.to_owned()));
        let number = number.unwrap_or_else(|| panic!("there is no {name} with {labels:?}"));
        (number * steps).round() as u64
    }

    /// The labels with which there is a name.
    fn labels(&self, name: &str) -> Vec<&str> {
        let all = self.0.keys().filter(|(of, _)| of == name);
        all.map(|(_, labels)| labels.as_str()).collect()
    }
}

/// What a directory's files say is what the samples say that have these labels.
fn agree(samples: &Samples, prefix: &str, labels: &str, flat: &Flat, directory: &str) -> usize {
    let label = |more: &str| {
        let mut all: Vec<_> = labels.split(',').chain([more]).filter(|l| !l.is_empty()).collect();
        all.sort_unstable();
        all.join(",")
    };
    let get = |file: &str| flat.get(&format!("{directory}/{file}"));
    let mut compared = 0;
    let reasons = samples.labels(&format!("{prefix}user_exits_total"));
    let reasons =
        reasons.iter().filter_map(|labels| labels.split(',').find(|l| l.starts_with("reason=")));
    let reasons: std::collections::BTreeSet<_> =
        reasons.map(|label| &label["reason=".len()..]).collect();
    assert!(reasons.len() > 40, "{reasons:?}");
    for reason in reasons {
        let labels = label(&format!("reason={reason}"));
        let exits = samples.get(&format!("{prefix}user_exits_total"), &labels, 1.0);
        assert_eq!(exits, get(&format!("user_exit_{reason}")), "{prefix} {labels}");
        let time = samples.get(&format!("{prefix}user_seconds_total"), &labels, 1e9);
        assert_eq!(time, get(&format!("user_time_{reason}")), "{prefix} {labels}");
        compared += 2;
    }
    for (family, file) in [("user_handle", "user_handle_time"), ("user_run", "user_run_time")] {
        let name = |suffix: &str| format!("{prefix}{family}_seconds_{suffix}");
        assert_eq!(samples.get(&name("count"), &label(""), 1.0), get(&format!("{file}/count")));
        assert_eq!(samples.get(&name("sum"), &label(""), 1e9), get(&format!("{file}/sum")));
        let mut so_far = 0;
        // Buckets begin and end at powers of two.
        for (n, path) in (0..).zip((0..39).map(|n| format!("{file}/buckets/{}", 1u64 << n))) {
            so_far += get(&path);
            let bounds = samples.labels(&name("bucket"));
            let bound = ((1u64 << n) - 1) as f64 * 1e-9;
            let is_it = |labels: &&&str| {
                let le = labels.split(',').find_map(|label| label.strip_prefix("le=")).unwrap();
                let others: Vec<_> = labels.split(',').filter(|l| !l.starts_with("le=")).collect();
                let le: f64 = le.trim_start_matches('+').to_lowercase().parse().unwrap();
                others.join(",") == label("") && (le - bound).abs() <= bound * 1e-12
            };
            let labels = bounds
                .iter()
                .find(is_it)
                .unwrap_or_else(|| panic!("no bucket {bound}: {bounds:?}"));
            assert_eq!(samples.get(&name("bucket"), labels, 1.0), so_far, "{labels}");
            compared += 1;
        }
        compared += 2;
    }
    compared
}

#[test]
fn prometheus_tools_take_all_of_it_and_it_says_what_the_files_say() {
    let n = 50;
    let steps = [
        Step::new(Op::Out8, n, NO_PORT).per_index(3),
        Step::new(Op::In8, n + 1, NO_PORT),
        park(),
        end(0),
    ];
    let mut running = Vmm::new(Mode::Real, &steps).cpus(2).blocked_console().start_mounted();
    let machine = running.machine();
    let name = machine.strip_prefix("kvm/").unwrap().to_owned();
    let (_, name) = name.split_once('-').unwrap_or(("", &name));
    let exits = 2 * (2 * n + 1 + 1) + 3;
    running.wait_for_exits(exits.into());
    let flat = running.flat();
    for file in ["prometheus", "prometheus-full"] {
        for directory in ["", &machine, &format!("{machine}/vcpu0"), "kvm"] {
            let text = bulk(&running, directory, file);
            assert_eq!(promtool(&text), (0, String::new()), "{directory}/{file}");
        }
    }
    let machine_labels = format!("pid={},vm={name}", running.pid());
    let all = Samples::of(&bulk(&running, "", "openmetrics"));
    let full = Samples::of(&bulk(&running, "", "openmetrics-full"));
    let of_machine = agree(&all, "kvm_", &machine_labels, &flat, &machine);
    let of_host = agree(&all, "kvm_host_", "", &flat, "kvm");
    assert_eq!(of_machine, of_host);
    for vcpu in 0..2 {
        let labels = format!("{machine_labels},vcpu={vcpu}");
        agree(&full, "kvm_", &labels, &flat, &format!("{machine}/vcpu{vcpu}"));
    }
    // A device's are told apart by its name, and nothing is there twice.
    let serial = format!("device=serial0,{machine_labels}");
    let bytes = flat.get(&format!("{machine}/serial0/serial_tx_bytes"));
    for samples in [&all, &full] {
        assert_eq!(samples.get("kvm_serial_tx_bytes_total", &serial, 1.0), bytes);
        assert_eq!(samples.labels("kvm_serial_tx_bytes_total").len(), 1);
        assert_eq!(samples.get("kvm_vms", "", 1.0), 1);
        assert_eq!(samples.get("kvm_vm_info", &machine_labels, 1.0), 1);
        let state = format!("pid={},state=running,vm={name}", running.pid());
        assert_eq!(samples.get("kvm_vm_state", &state, 1.0), 1);
    }
    let reason = format!("pid={},reason=io_in,vm={name}", running.pid());
    assert_eq!(
        all.labels("kvm_user_exits_total").iter().filter(|l| l.contains("vcpu=")).count(),
        0
    );
    let exits_in = all.get("kvm_user_exits_total", &reason, 1.0);
    assert_eq!(exits_in, 2 * u64::from(n + 1));
    assert_eq!(all.get("statsfs_export_left_out", "what=vcpu", 1.0), 2);
    assert_eq!(full.get("statsfs_export_left_out", "what=vcpu", 1.0), 0);
    // Nothing of ours is in another's way, nor what the kernel has that begins as totals do.
    assert!(!all.labels("kvm_exported_host_state_reload_total").is_empty());
    assert_eq!(full.get("statsfs_export_left_out", "what=value", 1.0), 0);
    // A clear is no reset.
    std::fs::write(running.path("kvm/.stats/clear"), "0").unwrap();
    assert_eq!(running.value(&format!("{machine}/user_exit_io_in")), 0);
    let after = Samples::of(&bulk(&running, &machine, "openmetrics"));
    assert_eq!(after.get("kvm_user_exits_total", &reason, 1.0), exits_in);
    running.release();
    running.wait().assert(0);
}

/// A value of another type, unit and semantics for each of these.
fn value(name: &'static str, ty: ValueType, semantics: Semantics) -> Descriptor {
    Descriptor::new(name, ty, semantics).help("Says \\ and \" .")
}

#[test]
fn what_anybody_publishes_breaks_nobodys_metrics() {
    let host = Host::start();
    let counter = |name| value(name, ValueType::U64, Semantics::Cumulative);
    let gauge = |name| value(name, ValueType::U64, Semantics::Floating);
    let histogram =
        |name, sum| value(name, ValueType::Histogram { buckets: 4, sum }, Semantics::Cumulative);
    let values = [
        // Names that others have already, or whose samples have.
        counter("a"),
        gauge("a_total"),
        histogram("b", true),
        gauge("b_count"),
        histogram("c", false),
        counter("vm"),
        counter("vms"),
        counter("host_user_exits"),
        counter("departed_user_exits"),
        gauge("up_milliseconds"),
        counter("d_ns").unit(Unit::NANOSECONDS),
        counter("d_time").unit(Unit::NANOSECONDS),
        gauge("e").unit(Unit { base: BaseUnit::Bytes, exponent: 3 }),
        // Labels that are others', or are none.
        counter("f").label("vm", "other"),
        counter("f1").family("f").label("le", "x\",vm=\"other"),
        counter("g").label("k", "\\\u{e9}"),
    ];
    let group = values.into_iter().fold(GroupBuilder::new("hostile"), GroupBuilder::value);
    let group = group.build().unwrap();
    let registry = Registry::new().unwrap();
    let mut slots = Vec::new();
    let tops = ["kvm", "kvm_user", "kvm-host", "kvm_host", "3com", "x"].map(|name| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        let below = registry.create_source(&format!("of-{name}")).unwrap();
        top.add_subordinate(&below).unwrap();
        slots.push(top.add_group(&group).unwrap());
        slots.push(below.add_group(&group).unwrap());
        (top, below)
    });
    slots.iter().for_each(|slot| slot.add(0, 7));
    // Another kind of value under a name that a machine's has.
    let exits = GroupBuilder::new("exits").value(counter("exits_total").family("exits")).build();
    slots.push(tops[1].1.add_group(&exits.unwrap()).unwrap());
    let options =
        PublishOptions { socket: Some(host.socket()), public: true, ..Default::default() };
    let _publisher = registry.publish(options).unwrap();
    let running = {
        let steps = [Step::new(Op::In8, 5, NO_PORT), park(), end(0)];
        Vmm::new(Mode::Real, &steps)
            .args(["--public"])
            .published_to(&host)
            .blocked_console()
            .start()
    };
    wait_until("all of it", || {
        let there = host.value("kvm/user_exit_io_in") == Some(5) && host.value("x/a") == Some(14);
        there.then_some(())
    });
    for (directory, full) in [("", ""), ("", "-full"), ("kvm", ""), ("x", "-full")] {
        let read = |name: &str| {
            let path = host.mount().join(directory).join(".stats").join(format!("{name}{full}"));
            std::fs::read_to_string(path).unwrap()
        };
        let prometheus = read("prometheus");
        // It may find names ugly (status 3), but has to take them.
        let (status, lint) = promtool(&prometheus);
        assert!([0, 3].contains(&status) && !lint.contains("error while linting"), "{lint}");
        let samples = Samples::of(&read("openmetrics"));
        if directory != "x" {
            // What a machine counts is there, and only there.
            let exits = samples.labels("kvm_user_exits_total");
            assert!(exits.iter().all(|labels| labels.contains(&format!("pid={}", running.pid()))));
            let reads = exits.iter().filter(|labels| labels.contains("reason=io_in"));
            let reads: Vec<_> =
                reads.map(|labels| samples.get("kvm_user_exits_total", labels, 1.0)).collect();
            assert_eq!(reads, [5], "{exits:?}");
            assert_eq!(samples.get("kvm_host_user_exits_total", "reason=io_in", 1.0), 5);
        }
        assert!(samples.get("statsfs_export_left_out", "what=value", 1.0) > 0);
    }
    running.kill_and_wait();
}

/// A server that shows these metrics of each vCPU, and a guest of two that has stopped counting.
fn showing(names: &str) -> (Host, Running) {
    let host =
        Host::with(&["--listen", "127.0.0.1:0", "--include-private", "--vcpu-metrics", names]);
    let steps = [Step::new(Op::In8, 50, NO_PORT).per_index(3), park(), end(0)];
    let vmm = Vmm::new(Mode::Real, &steps).cpus(2).published_to(&host).blocked_console();
    let running = vmm.start();
    wait_until("the guest", || {
        (host.value("kvm/user_exits") == Some(2 * 50 + 3 + 2)).then_some(())
    });
    (host, running)
}

#[test]
fn metrics_that_are_asked_for_are_of_each_vcpu_and_others_of_machines() {
    let names = "kvm_user_exits,kvm_user_run_seconds_bucket,kvm_thread*,kvm_not_there";
    let (host, running) = showing(names);
    let machine = format!("pid={},vm=test", running.pid());
    let read = |file: &str| {
        Samples::of(&std::fs::read_to_string(host.mount().join(".stats").join(file)).unwrap())
    };
    let url = format!("http://{}/metrics", host.metrics());
    let served = Samples::of(&ask(&url, "application/openmetrics-text").text);
    let (file, full) = (read("openmetrics"), read("openmetrics-full"));
    for samples in [&served, &file] {
        let of = |name: &str| -> Vec<(&str, f64)> {
            let all = samples.0.iter().filter(|((of, _), _)| of == name);
            all.map(|((_, labels), number)| (labels.as_str(), *number)).collect()
        };
        let each = |name: &str| -> Vec<(&str, f64)> {
            let all = full.0.iter().filter(|((of, _), _)| of == name);
            all.map(|((_, labels), number)| (labels.as_str(), *number)).collect()
        };
        // As where all is of each vCPU.
        for name in ["kvm_user_exits_total", "kvm_user_run_seconds_count", "kvm_thread_id"] {
            let of = of(name);
            assert!(of.iter().all(|(labels, _)| labels.contains("vcpu=")), "{name}: {of:?}");
            assert!(of.len() > 1 && of == each(name), "{name}: {of:?}");
        }
        let reads = |vcpu: u64| {
            let labels = format!("pid={},reason=io_in,vcpu={vcpu},vm=test", running.pid());
            samples.get("kvm_user_exits_total", &labels, 1.0)
        };
        assert_eq!([reads(0), reads(1)], [50, 53]);
        // As where nothing is: the sum.
        let handled = samples.get("kvm_user_handle_seconds_count", &machine, 1.0);
        let file = format!("{}/user_handle_time/count", running.machine());
        assert_eq!(Some(handled), host.value(&file));
        let vcpus = samples.0.keys().filter(|(_, labels)| labels.contains("vcpu="));
        let vcpus: std::collections::BTreeSet<_> = vcpus.map(|(name, _)| name.as_str()).collect();
        let asked = ["kvm_user_exits_", "kvm_user_run_seconds_", "kvm_thread_"];
        assert!(vcpus.iter().all(|name| asked.iter().any(|of| name.starts_with(of))), "{vcpus:?}");
        // Totals over all machines are there all the same, and what is added up is said.
        assert_eq!(samples.get("kvm_host_user_exits_total", "reason=io_in", 1.0), 103);
        assert_eq!(samples.get("statsfs_export_left_out", "what=vcpu", 1.0), 2);
    }
    running.kill_and_wait();
}

#[test]
fn with_all_metrics_of_each_vcpu_nothing_is_left_out() {
    let (host, running) = showing("*");
    let read =
        |file: &str| std::fs::read_to_string(host.mount().join(".stats").join(file)).unwrap();
    let series = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let (file, full) = (read("prometheus"), read("prometheus-full"));
    assert_eq!(series(&file), series(&full));
    assert!(file.contains("\nstatsfs_export_left_out{what=\"vcpu\"} 0\n"), "{file}");
    running.kill_and_wait();
}

#[test]
fn what_can_not_be_a_metric_of_vcpus_is_wrong_usage() {
    for (names, why) in [
        ("kvm-exits", "`kvm-exits` can not be a metric's name"),
        ("kvm_user_exits,", "a metric's name is missing"),
        ("kvm_user_exits,user_exits", "`user_exits` is no metric of vCPUs"),
        ("kvm_host_user_exits", "`kvm_host_user_exits` is of all machines together"),
    ] {
        let mut serve = Command::new(tests::binary::statsfs());
        // It ends before it looks there.
        serve.args(["serve", "--mount", "/proc/none", "--vcpu-metrics", names]);
        let (status, said) = said(&mut serve, "", "");
        assert_eq!(status, 2, "{said}");
        assert!(said.contains(why), "{said}");
    }
}
