//! The tools `statsfs dump`, `ls`, `describe`, `diff` and `vmm list`, as they are typed: what they say of guests whose counts
//! are known, what they say when something is missing, and what they say of what comes and goes meanwhile.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;
use statsfs::fs::MountOptions;
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{Embedded, Registry};
use tests::binary;
use tests::command::{Watch, complains, json, said, statsfs, tool};
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::namespace::{mount, private};
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

/// Somebody who is in no group.
const OTHER: u32 = 20_004;

/// Writes that each vCPU of each guest makes.
const WRITES: u32 = 700;
/// vCPUs that each has.
const CPUS: u32 = 2;

/// A guest whose vCPUs make so many reads, and then wait until its console is taken.
fn waiting(host: &Host, reads: u32, args: &[&str]) -> Running {
    let steps =
        [Step::new(Op::Out8, WRITES, NO_PORT), Step::new(Op::In8, reads, NO_PORT), park(), end(0)];
    let vmm = Vmm::new(Mode::Long, &steps).cpus(CPUS).args(["--memory", "2M"]).args(args);
    let running = vmm.published_to(host).blocked_console().start();
    let path = format!("{}/bus_unclaimed_io_reads", running.machine());
    let all = u64::from(CPUS * reads);
    wait_until("it waits", || (host.value(&path) == Some(all)).then_some(()));
    running
}

/// Whether a value stays as it is while nothing runs.
fn is_still(name: &str) -> bool {
    !name.starts_with("sched_")
}

/// A number in a JSON.
#[track_caller]
fn at(json: &Json, path: &str) -> f64 {
    let found = json.pointer(path).unwrap_or_else(|| panic!("no {path}"));
    found.as_f64().unwrap_or_else(|| panic!("{path} is {found}"))
}

#[test]
fn dump_has_what_the_files_have_in_every_format() {
    let host = Host::start();
    let running = waiting(&host, 40, &[]);
    let (mount, machine) = (host.mount(), running.machine());
    // One value was cleared, so what is shown is not what is raw.
    std::fs::write(mount.join(&machine).join("vcpu1/user_exit_io_in"), "0").unwrap();
    let file = |path: &str| std::fs::read_to_string(mount.join(path)).unwrap();
    let dump = |args: &[&str]| said(statsfs(&mount, &[&["dump"], args].concat()));

    let strip = |text: &str| {
        let mut json: Json = serde_json::from_str(text).unwrap();
        fn strip(json: &mut Json) {
            let Json::Object(object) = json else { return };
            object.retain(|name, _| is_still(name));
            object.values_mut().for_each(strip);
        }
        strip(&mut json);
        json
    };
    for dir in [machine.as_str(), "kvm", "by-name/test"] {
        let ours = dump(&[dir, "--format", "json"]);
        let files = file(&format!("{dir}/.stats/json"));
        assert_eq!(strip(&ours), strip(&files), "{dir}");
    }
    let families = |text: String| {
        let lines = text.lines().filter(|line| !line.contains("sched_")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let prometheus = families(dump(&["--format", "prometheus", "kvm"]));
    assert_eq!(prometheus, families(file("kvm/.stats/prometheus")));
    assert!(prometheus.len() > 100);

    let csv = dump(&["--format", "csv", "kvm"]);
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("path,name,value,unit,exponent"));
    let mut count = 0;
    for line in lines.filter(|line| !line.contains(",sched_")) {
        let cells: Vec<_> = line.split(',').collect();
        let [path, name, value, ..] = cells[..] else { panic!("{line}") };
        assert_eq!(file(&format!("{path}/{name}")).trim_end(), value, "{line}");
        count += 1;
    }
    assert!(count > 1000, "{count}");
    let unit = |name: &str| {
        let start = format!("{machine},{name},");
        let line = csv.lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
        line.splitn(4, ',').nth(3).unwrap().to_owned()
    };
    assert_eq!(unit("vm_memory_bytes"), "bytes,0");
    assert_eq!(unit("user_run_time/p99"), "seconds,-9");
    assert_eq!(unit("user_run_time/count"), "none,0");

    let table = dump(&[&machine]);
    let row = |table: &str, dir: &str, name: &str| {
        let mut lines = table.lines().skip_while(|line| *line != dir);
        let row = lines.find(|line| line.split_whitespace().next() == Some(name));
        row.map(|row| row.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
    };
    let of_machine = |name: &str| row(&table, &machine, name);
    assert_eq!(of_machine("bus_unclaimed_io_writes"), Some("1,400".into()));
    assert_eq!(of_machine("user_exit_io_in"), Some("40".into()), "80, of which 40 were cleared");
    assert_eq!(of_machine("vm_memory_bytes"), Some("2 MiB".into()));
    assert_eq!(of_machine("vm_state"), Some("running (1)".into()));
    let histogram = of_machine("user_run_time").unwrap();
    for part in ["1,48", " times:", "mean ", "p50 ", "p99 "] {
        assert!(histogram.contains(part), "{part} in {histogram}");
    }
    assert!(!table.contains("user_exit_nmi ") && table.contains(" more are 0)"), "{table}");
    let all = dump(&["--all", &machine]);
    assert_eq!(row(&all, &machine, "user_exit_nmi"), Some("0".into()));
    assert!(!all.contains(" more are 0)"));

    // What was saved is shown as well, and by an absolute path no mount is looked for.
    let saved = save(&host, &machine, "saved");
    let saved = saved.to_str().unwrap();
    assert_eq!(
        strip(&dump(&[saved, "--format", "json"])),
        strip(&dump(&[&machine, "--format", "json"]))
    );
    let absolute = mount.join(&machine);
    let absolute = dump(&[absolute.to_str().unwrap(), "--format", "json"]);
    assert_eq!(strip(&absolute), strip(&dump(&[saved, "--format", "json"])));
    host.finish(running);
}

/// Saves a snapshot as people do.
fn save(host: &Host, dir: &str, name: &str) -> PathBuf {
    let path = host.beside(name);
    let file = std::fs::File::create(&path).unwrap();
    let snapshot = host.mount().join(dir).join(".stats/snapshot");
    assert!(Command::new("cat").arg(snapshot).stdout(file).status().unwrap().success());
    path
}

#[test]
fn diff_has_exactly_what_came_between_two_snapshots() {
    let host = Host::start();
    let (stays, ends) = (waiting(&host, 10, &[]), waiting(&host, 11, &[]));
    let names = [&stays, &ends].map(Running::machine);
    let before = save(&host, "", "before");
    // One is all between the two, one comes and stays, one goes; and all is cleared once.
    host.finish(waiting(&host, 100, &[]));
    std::fs::write(host.mount().join("kvm/.stats/clear"), "0").unwrap();
    let comes = waiting(&host, 1000, &[]);
    host.finish(ends);
    let after = save(&host, "", "after");
    let [before, after] = [&before, &after].map(|path| path.to_str().unwrap());
    let diff = |args: &[&str]| {
        let mut command = Command::new(binary::statsfs());
        command.arg("diff").args(args);
        command
    };

    let found = json(diff(&[before, after, "--json"]));
    let list = |key: &str| -> Vec<&str> {
        found[key].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect()
    };
    let new = comes.machine();
    assert!(list("came").iter().all(|path| path.starts_with(&new)), "{:?}", list("came"));
    assert!(list("came").contains(&format!("{new}/vcpu1").as_str()));
    assert!(list("gone").iter().all(|path| path.starts_with(&names[1])), "{:?}", list("gone"));
    assert!(list("gone").contains(&names[1].as_str()));

    let changes = found["changes"].as_array().unwrap();
    let change = |path: &str, name: &str| {
        changes.iter().find(|change| change["path"] == path && change["name"] == name)
    };
    let seconds = at(&found, "/seconds");
    assert!(seconds > 0.0);
    for (path, before, increase) in
        [("kvm", Some(2 * 21), 2 * 1100), (new.as_str(), None, 2 * 1000)]
    {
        let found = change(path, "bus_unclaimed_io_reads").unwrap();
        assert_eq!(found["increase"], increase, "{path}");
        assert_eq!(found["before"].as_i64(), before, "{path}");
        assert_eq!(found["after"], before.unwrap_or(0) + increase, "{path}");
        let rate = at(found, "/per_second");
        assert!((rate * seconds - increase as f64).abs() < 1e-6, "{rate} {seconds}");
    }
    assert_eq!(change("kvm", "bus_unclaimed_io_writes").unwrap()["increase"], 2 * 2 * WRITES);
    // Two in, one out, of a gauge.
    let vcpus = change("kvm", "vm_vcpus");
    assert!(vcpus.is_none(), "as many as before: {vcpus:?}");
    assert!(change(&names[0], "user_exits").is_none(), "it did nothing");

    let text = said(diff(&[before, after]));
    assert!(text.contains(&format!("\n+ {new}\n")), "{text}");
    assert!(text.contains(&format!("\n- {}\n", names[1])), "{text}");
    let row = text.lines().find(|line| line.contains("bus_unclaimed_io_reads")).unwrap();
    assert!(row.contains("+2,200") && row.ends_with("42 -> 2,242"), "{row}");
    let same = said(diff(&[after, after]));
    assert!(same.contains("Nothing changed."), "{same}");

    let of_kvm = save(&host, "kvm", "kvm");
    for (args, part) in [
        ([after, before], "exchange them"),
        ([before, of_kvm.to_str().unwrap()], "different directories"),
        ([before, "/etc/passwd"], "no snapshot"),
        ([before, "/nowhere"], "/nowhere"),
    ] {
        let line = complains(diff(&args), 1);
        assert!(line.contains(part), "{part} in {line}");
    }
    host.finish(comes);
    host.finish(stays);
}

#[test]
fn watched_rates_add_up_to_what_was_counted_whatever_comes_goes_and_is_cleared() {
    let host = Host::start();
    let stays = waiting(&host, 10, &[]);
    let args = ["dump", "kvm", "--watch", "0.05", "--format", "json"];
    let mut watch = Watch::start(statsfs(&host.mount(), &args));
    let first: Json = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(at(&first, "/values/bus_unclaimed_io_reads"), 20.0);
    assert!(first["seconds"].is_null() && first["per_second"].is_null());
    let csv = ["dump", "kvm", "--watch", "0.05", "--format", "csv"];
    let mut csv = Watch::start(statsfs(&host.mount(), &csv));
    assert_eq!(csv.line(), "time,path,name,value,unit,exponent,per_second\n");
    // As many as are in the totals once all are gone.
    let mut reads = 0;
    let mut add = |n: u32| {
        host.finish(waiting(&host, n, &[]));
        reads += CPUS * n;
    };
    add(50);
    std::fs::write(host.mount().join("kvm/.stats/clear"), "0").unwrap();
    add(7);
    let comes = waiting(&host, 300, &[]);
    reads += CPUS * 300;
    const SINCE: f64 = 2.0 * 307.0;
    let (mut sum, mut of_new, mut shown) = (0.0, 0.0, 0.0);
    let of = format!("/per_second/{}-test/bus_unclaimed_io_reads", comes.pid());
    // The end is known by what is shown, since the clear.
    while shown != SINCE {
        let line: Json = serde_json::from_str(&watch.line()).unwrap();
        let seconds = at(&line, "/seconds");
        sum += at(&line, "/per_second/bus_unclaimed_io_reads") * seconds;
        of_new += line.pointer(&of).map_or(0.0, |rate| rate.as_f64().unwrap() * seconds);
        shown = at(&line, "/values/bus_unclaimed_io_reads");
        assert!(seconds > 0.0);
    }
    assert!((sum - f64::from(reads)).abs() < 0.01, "{sum}, not {reads}");
    // It came while it was watched, so all of it is in its rates.
    assert!((of_new - 600.0).abs() < 0.01, "{of_new}");

    // The same numbers as CSV, where each line says its time.
    let (mut sum, mut last, mut shown) = (0.0, None, 0.0);
    while shown != SINCE {
        let line = csv.line();
        let cells: Vec<_> = line.trim_end().split(',').collect();
        let [time, path, name, number, "none" | "bytes" | "seconds" | "cycles", _, rate] =
            cells[..]
        else {
            panic!("{line}")
        };
        if (path, name) == ("kvm", "bus_unclaimed_io_reads") {
            let time: f64 = time.parse().unwrap();
            if let (Ok(rate), Some(last)) = (rate.parse::<f64>(), last) {
                sum += rate * (time - last);
            }
            last = Some(time);
            shown = number.parse().unwrap();
        }
    }
    // Times are in milliseconds there.
    assert!((sum - f64::from(reads)).abs() < 0.1 * f64::from(reads), "{sum}, not {reads}");

    // Whoever reads no more is no error.
    assert_eq!(watch.end(), (Some(0), String::new()));
    assert_eq!(csv.end(), (Some(0), String::new()));
    host.finish(comes);
    host.finish(stays);
}

#[test]
fn a_guest_that_ends_while_it_is_watched_is_said_to_be_gone() {
    let host = Host::start();
    let running = waiting(&host, 10, &[]);
    let machine = running.machine();
    let mut watch = Watch::start(statsfs(&host.mount(), &["dump", &machine, "--watch", "0.05"]));
    assert_eq!(watch.line().trim_end(), machine);
    while !watch.line().ends_with(" s later\n") {}
    host.finish(running);
    let rest = watch.rest();
    let row = rest.lines().find(|line| line.contains("bus_unclaimed_io_writes")).unwrap();
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["0/s", "1,400"]);
    let (status, complaint) = watch.end();
    assert_eq!(status, Some(1));
    assert!(complaint.contains(&machine) && complaint.contains("gone"), "{complaint}");
    assert_eq!(complaint.matches('\n').count(), 1, "{complaint}");
}

#[test]
fn list_and_ls_say_what_runs_and_what_is_closed_to_their_user() {
    let host = Host::start();
    let (public, private) = (waiting(&host, 10, &["--public"]), waiting(&host, 20, &[]));
    let steps = [Step::new(Op::In8, u32::MAX, NO_PORT), end(0)];
    let busy = Vmm::new(Mode::Long, &steps).args(["--memory", "3M"]).published_to(&host).start();
    let exits = format!("{}/user_exits", busy.machine());
    wait_until("exits", || host.value(&exits).filter(|n| *n > 0));
    let mount = host.mount();

    let before = host.value(&exits).unwrap();
    let list = json(tool(binary::vmm(), &mount, &["list", "--json", "--interval", "0.2"]));
    let most = (host.value(&exits).unwrap() - before) as f64;
    assert_eq!(list["closed"], 0);
    let guests = list["guests"].as_array().unwrap();
    assert_eq!(guests.len(), 3);
    for (running, vcpus, memory) in [(&public, 2, 2), (&private, 2, 2), (&busy, 1, 3)] {
        let guest = guests.iter().find(|guest| guest["pid"] == running.pid()).unwrap();
        assert_eq!(guest["name"], "test");
        assert_eq!(guest["state"], "running");
        assert_eq!(guest["vcpus"], vcpus);
        assert_eq!(guest["memory_bytes"], memory << 20);
        let rate = at(guest, "/exits_per_second");
        if vcpus == 2 {
            assert_eq!(rate, 0.0, "it waits");
        } else {
            assert!(rate > 0.0 && rate * 0.2 <= most, "{rate} a second, {most} in all");
        }
    }
    let text = said(tool(binary::vmm(), &mount, &["list", "--interval", "0.05"]));
    let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "PID", "STATE", "VCPUS", "MEMORY", "EXITS"]);
    let pid = public.pid().to_string();
    assert!(words.contains(&vec!["test", &pid, "running", "2", "2", "MiB", "0/s"]), "{text}");

    let ls = json(statsfs(&mount, &["ls", "--json"]));
    let of = |path: &str| {
        let mut all = ls.as_array().unwrap().iter();
        all.find(|dir| dir["path"] == path).unwrap_or_else(|| panic!("no {path}"))
    };
    let machine = private.machine();
    let guest = of(&machine);
    assert_eq!((&guest["what"], &guest["name"]), (&"guest".into(), &"test".into()));
    assert_eq!(guest["pid"], private.pid());
    for (path, what) in [
        ("kvm".to_owned(), "top"),
        (format!("{machine}/vcpu1"), "vcpu"),
        (format!("{machine}/vcpu1/serial0"), "device"),
        (format!("{machine}/serial0"), "device"),
    ] {
        assert_eq!(of(&path)["what"], what, "{path}");
    }
    let text = said(statsfs(&mount, &["ls", &machine]));
    assert!(
        text.lines().all(|line| line.starts_with("PATH") || line.starts_with(&machine)),
        "{text}"
    );

    // Somebody else sees what is public, and how many more there are.
    let [vmm, statsfs_copy] = [binary::vmm(), binary::statsfs()]
        .map(|command| binary::copy(command, host.beside("").as_path()));
    let as_other = |program: &Path, args: &[&str]| {
        let mut command = tool(program, &mount, args);
        command.uid(OTHER).gid(OTHER).current_dir("/");
        command
    };
    let list = json(as_other(&vmm, &["list", "--json", "--interval", "0.05"]));
    assert_eq!(list["closed"], 2);
    assert_eq!(list["guests"].as_array().unwrap().len(), 1);
    assert_eq!(list["guests"][0]["pid"], public.pid());
    let text = said(as_other(&vmm, &["list", "--interval", "0.05"]));
    assert!(text.contains("There are 2 more guests that this user may not look into."), "{text}");
    let text = said(as_other(&statsfs_copy, &["ls", "kvm"]));
    assert!(text.contains("2 more in kvm may not be looked into by this user"), "{text}");
    assert!(text.contains(&public.machine()) && !text.contains(&machine), "{text}");
    let line = complains(as_other(&statsfs_copy, &["dump", &machine]), 1);
    assert!(line.contains("may not be read by this user"), "{line}");
    // All the same the totals are theirs.
    let dump = said(as_other(&statsfs_copy, &["dump", "kvm", "--format", "csv"]));
    assert!(dump.contains("kvm,bus_unclaimed_io_writes,2800,"), "{dump}");

    busy.signal(libc::SIGTERM);
    assert_eq!(busy.wait().code(), 143);
    host.finish(public);
    host.finish(private);
    let list = said(tool(binary::vmm(), &mount, &["list", "--interval", "0.05"]));
    assert_eq!(list, "No guest runs.\n");
}

#[test]
fn describe_says_what_values_are_and_which_are_meant() {
    let host = Host::start();
    let running = waiting(&host, 10, &[]);
    let mount = host.mount();
    let schema = std::fs::read_to_string(mount.join(".stats/schema")).unwrap();
    let schema: Json = serde_json::from_str(&schema).unwrap();
    for value in schema["values"].as_array().unwrap().iter().step_by(23) {
        let name = value["name"].as_str().unwrap();
        let found = json(statsfs(&mount, &["describe", name, "--json"]));
        let found = found.as_array().unwrap().iter();
        let same = |of: &Json| value.as_object().unwrap().iter().all(|(key, it)| of[key] == *it);
        assert_eq!(found.clone().filter(|found| same(found)).count(), 1, "{name}: {found:?}");
    }
    for (name, parts) in [
        (
            "user_exit_io_in",
            &[
                "Times KVM_RUN returned because",
                "cumulative",
                "user_exits",
                "reason=io_in",
                "sum over all",
                "1 guest, 1 top, 2 vcpu",
            ][..],
        ),
        ("user_exits.max", &["user_exits: Times KVM_RUN returned to user space."]),
        ("kvm/user_handle_time", &["nanoseconds", "40, powers of two, and a sum"]),
        ("vm_state", &["1 running", "3 stopped", "instant", "none: it is seen", "1 guest"]),
    ] {
        let text = said(statsfs(&mount, &["describe", name]));
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    for (name, part) in [
        ("user_exit_mimo_read", "user_exit_mmio_read"),
        ("exit_io_in", "user_exit_io_in"),
        ("zzz", "statsfs dump --all"),
    ] {
        let line = complains(statsfs(&mount, &["describe", name]), 1);
        assert!(line.contains(name) && line.contains(part), "{line}");
    }
    host.finish(running);
}

#[test]
fn what_is_missing_is_said() {
    let mut host = Host::start();
    let mount = host.mount();
    let nowhere = host.beside("nowhere");
    let program = binary::vmm();
    for (command, part) in [
        (statsfs(&nowhere, &["dump"]), "nowhere is not there"),
        (statsfs(&nowhere, &["ls"]), "nowhere is not there"),
        (statsfs(&nowhere, &["describe", "user_exits"]), "nowhere is not there"),
        (tool(program, &nowhere, &["list"]), "nowhere is not there"),
        (statsfs(Path::new("/etc"), &["dump"]), "/etc is in no mounted statsfs tree"),
        (statsfs(&mount, &["dump", "kvm/1-nobody"]), "kvm/1-nobody is not there"),
        (statsfs(&mount, &["ls", "statsfs/server_processes"]), "is a file, and no directory"),
        (statsfs(&mount, &["dump", "by-name"]), "but no source's directory"),
        (statsfs(&mount, &["ls", "statsfs/mount_time_read"]), "but no source's directory"),
    ] {
        let line = complains(command, 1);
        assert!(line.contains(part), "{part} in {line}");
    }
    for args in
        [&["dump", "--watch", "0"][..], &["dump", "--format", "xml"], &["describe"], &["diff", "a"]]
    {
        let output = Command::new(binary::statsfs()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    // Where nobody says where it is, it is looked for.
    private(|| {
        mount_tmpfs(Path::new("/run"));
        let find = |home: &Path| {
            let mut command = Command::new(binary::statsfs());
            command.args(["dump", "--format", "json"]).env("XDG_RUNTIME_DIR", home);
            command
        };
        let home = Path::new("/run/user");
        let line = complains(find(home), 1);
        for part in ["/run/statsfs or /run/user/statsfs", "--mount", "statsfs serve"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        std::fs::create_dir(home).unwrap();
        std::os::unix::fs::symlink(&mount, home.join("statsfs")).unwrap();
        assert!(json(find(home))["statsfs"]["server_processes"].is_number());
    });
    host.kill();
    for command in [statsfs(&mount, &["dump"]), tool(program, &mount, &["list"])] {
        let line = complains(command, 1);
        assert!(line.contains("the server of this mount is gone"), "{line}");
    }
}

#[test]
fn what_is_published_commands_no_terminal() {
    const EVIL: &str = "a\u{202e}b\u{2066}c\u{2069}d\u{200f}";
    const SHOWN: &str = "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}";
    let registry = Registry::new().unwrap();
    let value = Descriptor::new("evil_value", ValueType::U64, Semantics::Cumulative).help(EVIL);
    let group = GroupBuilder::new("evil").value(value).build().unwrap();
    let top = registry.create_source("top").unwrap();
    let source = registry.source("evil").label("note", EVIL).create().unwrap();
    let _slot = source.add_group(&group).unwrap();
    top.add_subordinate(&source).unwrap();
    top.register().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    let mounted = Embedded::mount(&registry, &mount, MountOptions::new()).unwrap();
    for (args, shows) in
        [(&["ls"][..], true), (&["describe", "evil_value"], true), (&["dump", "--all"], false)]
    {
        let text = said(statsfs(&mount, args));
        assert!(!text.contains(EVIL), "{args:?}: {text:?}");
        assert_eq!(text.contains(SHOWN), shows, "{args:?}: {text:?}");
    }
    let nowhere = dir.path().join("no\u{1b}[31m\nwhere");
    let line = complains(statsfs(&nowhere, &["ls"]), 1);
    assert!(line.contains("no\u{fffd}[31m\u{fffd}where"), "{line:?}");
    mounted.unmount().unwrap();
}

fn mount_tmpfs(at: &Path) {
    mount("statsfs-test", at, "tmpfs").expect("a tmpfs can be mounted");
}
