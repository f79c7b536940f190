//! Performance Co-Pilot's `pmdakvm` takes the mount for debugfs, and its metrics are what the files in `kvm` say. It is driven by
//! PCP's own `dbpmda`, which asks it what `pmcd` would.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use statsfs::Registry;
use statsfs::host::PublishOptions;
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use tempfile::TempDir;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::running::wait_until;
use tests::tools;
use tests::vmm::Vmm;

/// pmdakvm, as PCP has it but for the lines of its configuration that say where to look.
struct Pcp(TempDir);

impl Pcp {
    fn looking_at(mount: &Path) -> Self {
        let (root, place) = (tools::pcp(), tempfile::tempdir().unwrap());
        // The target directory may be closed to other users. Libraries may be installed, and PCP's configuration.
        let paths = ["usr/bin/dbpmda", "usr/lib/pcp/pmdas/kvm/pmdakvm", "usr/lib/pcp/bin/pmcpp"];
        let libraries = fs::read_dir(root.join("usr/lib")).unwrap().map(|it| it.unwrap().path());
        let libraries = libraries.filter(|path| path.to_string_lossy().contains(".so"));
        let conf = root.join("etc/pcp.conf");
        let conf = if conf.exists() { conf } else { "/etc/pcp.conf".into() };
        let all = paths.iter().map(|path| root.join(path)).chain(libraries).chain([conf]);
        let copied = Command::new("cp").args(all).arg(place.path()).status();
        assert!(copied.is_ok_and(|status| status.success()));
        let kvm = place.path().join("pmdas/kvm");
        fs::create_dir_all(&kvm).unwrap();
        let kvm_conf = fs::read_to_string(root.join("etc/pcp/kvm/kvm.conf")).unwrap();
        let debugfs = "debugfs=/sys/kernel/debug\n";
        assert!(kvm_conf.contains(debugfs), "{kvm_conf}");
        // Whether this kernel is locked down is nothing to us.
        let new = format!("debugfs={}\nlockdown=/dev/null\n", mount.display());
        fs::write(kvm.join("kvm.conf"), kvm_conf.replace(debugfs, &new)).unwrap();
        fs::write(place.path().join("names"), "root {\n kvm 95:*:*\n}\n").unwrap();
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o777)).unwrap();
        Self(place)
    }

    /// What dbpmda says to these lines.
    fn say(&self, uid: u32, lines: &str) -> String {
        let place = self.0.path();
        let mut dbpmda = Command::new(place.join("dbpmda"));
        dbpmda.args(["-i", "-n", "names"]).current_dir(place).uid(uid).gid(uid);
        dbpmda.env("LD_LIBRARY_PATH", place).env("PCP_CONF", place.join("pcp.conf"));
        dbpmda.env("PCP_PMDAS_DIR", place.join("pmdas")).env("PCP_BINADM_DIR", place);
        dbpmda.env("PCP_TMPFILE_DIR", place).env("PCP_TMP_DIR", place);
        dbpmda.stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = place.join(format!("log-{uid}"));
        dbpmda.stderr(fs::File::create(&log).unwrap());
        let mut child = dbpmda.spawn().unwrap();
        let open = format!("open pipe {0}/pmdakvm -d 95 -l {0}/kvm-{uid}.log\n", place.display());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all((open + lines).as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let log = fs::read_to_string(&log).unwrap();
        assert!(output.status.success() && !log.contains("rror"), "{log}\n{said}");
        said
    }

    /// The metrics that there are of what debugfs has.
    fn names(&self) -> Vec<String> {
        let said = self.say(0, "traverse kvm\n");
        let names = said.lines().filter_map(|line| line.trim().strip_prefix("kvm."));
        names.filter(|name| !name.starts_with("trace.")).map(str::to_owned).collect()
    }

    /// What it says that these metrics are, to a user.
    fn values(&self, uid: u32, names: &[String]) -> BTreeMap<String, u64> {
        let metrics: Vec<_> = names.iter().map(|name| format!("kvm.{name}")).collect();
        let said = self.say(uid, &format!("fetch {}\n", metrics.join(" ")));
        let values = said.lines().filter_map(|line| line.trim().strip_prefix("value "));
        let values: Vec<u64> = values.map(|value| value.parse().unwrap()).collect();
        assert_eq!(values.len(), names.len(), "{said}");
        names.iter().cloned().zip(values).collect()
    }
}

#[test]
fn its_metrics_are_what_the_files_say_also_to_who_may_see_totals_only() {
    let host = Host::start();
    let pcp = Pcp::looking_at(&host.mount());
    let names = pcp.names();
    assert!(names.len() > 40 && names.iter().any(|name| name == "halt_exits"), "{names:?}");
    // Machines with all that it knows of: no kernel has all of these names.
    let value = |group: GroupBuilder, name: &String| {
        let semantics = match name.as_str() {
            "largepages" | "guest_mode" => Semantics::Floating,
            _ => Semantics::Cumulative,
        };
        group.value(Descriptor::new(name.clone(), ValueType::U64, semantics))
    };
    let group = names.iter().fold(GroupBuilder::new("kernel"), value).build().unwrap();
    let registry = Registry::new().unwrap();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        let machine = registry.create_source(name).unwrap();
        kvm.add_subordinate(&machine).unwrap();
        (machine.add_group(&group).unwrap(), machine)
    });
    for n in 0..names.len() {
        a.0.add(n, 1000 + n as u64);
        b.0.add(n, (n as u64) << 40);
    }
    let options = PublishOptions { socket: Some(host.socket()), ..Default::default() };
    let _publisher = registry.publish(options).unwrap();
    wait_until("both", || (host.machines().len() == 2).then_some(()));
    let files = || -> BTreeMap<String, u64> {
        let value = |name: &String| host.value(&format!("kvm/{name}")).unwrap();
        names.iter().map(|name| (name.clone(), value(name))).collect()
    };
    let sums = (0..names.len() as u64).map(|n| 1000 + n + (n << 40));
    let all = files();
    assert_eq!(all, names.iter().cloned().zip(sums).collect());
    // The directories of machines are closed to others, which does not end its search.
    for uid in [0, 65534] {
        assert_eq!(pcp.values(uid, &names), all, "user {uid}");
    }
    // Totals keep what a machine counted that has gone; of what it had there is less; and what is cleared is 0.
    kvm.remove_subordinate(&b.1).unwrap();
    drop(b);
    wait_until("its end", || (host.machines().len() == 1).then_some(()));
    fs::write(host.mount().join("kvm/exits"), "0").unwrap();
    let of =
        |values: &BTreeMap<String, u64>| ["exits", "irq_exits", "guest_mode"].map(|n| values[n]);
    let (before, values) = (of(&all), pcp.values(0, &names));
    assert_eq!(values, files());
    let [_, irq_exits, guest_mode] = before;
    assert_eq!(of(&values), [0, irq_exits, guest_mode & 0xffff]);
}

#[test]
fn what_the_kernel_counts_of_guests_is_in_its_metrics() {
    let host = Host::start();
    let pcp = Pcp::looking_at(&host.mount());
    let names = pcp.names();
    let start = |reads| {
        let steps = [Step::new(Op::In8, reads, NO_PORT), park(), end(0)];
        Vmm::new(Mode::Long, &steps).published_to(&host).blocked_console().start()
    };
    let guests = [start(300), start(40)];
    wait_until("both", || (host.value("kvm/user_exit_io_in") == Some(340)).then_some(()));
    let file = |name: &String| host.value(&format!("kvm/{name}"));
    let files = || names.iter().map(|name| (name.clone(), file(name).unwrap_or(0))).collect();
    let before: BTreeMap<String, u64> = files();
    assert_eq!(pcp.values(0, &names), before);
    assert_eq!(files(), before, "they are at rest");
    let there = names.iter().filter(|name| file(name).is_some()).count();
    assert!(there > 20 && before["exits"] >= 340, "{there}: {before:?}");
    for guest in guests {
        guest.kill_and_wait();
    }
}
