//! What the service is given, and what it leaves to others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::SERVICE;
use super::unit::{MOUNT, SOCKET, STATE, UNIT, Unit, busy, device, path, run, seen};

/// The number of a group, which systemd-sysusers has made.
fn group(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let fields = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields[0] == name);
    found.unwrap_or_else(|| panic!("no group {name}: {groups}"))[2].parse().unwrap()
}

pub fn the_service_is_there_after_boot() {
    let unit = Unit::started();
    let shown = unit.show(&[
        "ActiveState",
        "SubState",
        "Type",
        "NRestarts",
        "Result",
        "UnitFileState",
        "NFileDescriptorStore",
    ]);
    let expected = [
        ("ActiveState", "active"),
        ("SubState", "running"),
        ("Type", "notify"),
        ("NRestarts", "0"),
        ("Result", "success"),
        ("UnitFileState", "enabled"),
    ];
    for (name, value) in expected {
        assert_eq!(shown[name], value, "{name}: {}", unit.log());
    }
    assert_ne!(shown["NFileDescriptorStore"], "0", "the mount's devices are kept");
    run("systemd-analyze", &["verify", UNIT]);

    device();
    let kvm = group("kvm");
    for (path, group, mode) in [(MOUNT, kvm, 0o755), (SOCKET, kvm, 0o660), (STATE, 0, 0o700)] {
        let metadata = fs::symlink_metadata(path).unwrap();
        let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
        assert_eq!(found, (0, group, mode), "{path}");
    }
    assert!(run("statsfs", &["status"]).contains("/run/statsfs"));
    unit.assert_content();
}

/// The fields of a thread's status.
fn status(task: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(task.join("status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_string(), value.trim().to_string())).collect()
}

/// What the unit says of something.
fn granted(name: &str) -> &'static str {
    let mut lines = SERVICE.lines().filter_map(|line| line.split_once('='));
    let found = lines.find(|(is, _)| *is == name);
    found.unwrap_or_else(|| panic!("the unit does not say {name}")).1
}

/// A number of GiB as bytes.
fn bytes(text: &str) -> String {
    let gib = text.strip_suffix('G').and_then(|text| text.parse::<u64>().ok());
    (gib.unwrap_or_else(|| panic!("{text} is not in GiB")) << 30).to_string()
}

pub fn it_has_what_its_unit_grants_and_no_more() {
    let unit = Unit::started();
    // What systemd has understood.
    let names =
        ["OOMScoreAdjust", "CPUWeight", "TasksMax", "LimitNOFILE", "FileDescriptorStoreMax"];
    let (sizes, others) = (["MemoryHigh", "MemoryMax"], ["NoNewPrivileges", "DevicePolicy"]);
    let shown = unit.show(&[&names[..], &sizes, &others, &["CPUQuotaPerSecUSec"]].concat());
    names.iter().chain(&others).for_each(|name| assert_eq!(shown[*name], granted(name), "{name}"));
    sizes.iter().for_each(|name| assert_eq!(shown[*name], bytes(granted(name)), "{name}"));
    assert_eq!((granted("CPUQuota"), &*shown["CPUQuotaPerSecUSec"]), ("100%", "1s"));

    // What the kernel does about it.
    let group = unit.show(&["ControlGroup"]).remove("ControlGroup").unwrap();
    let group = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
    for (file, value) in [
        ("cpu.weight", granted("CPUWeight")),
        ("cpu.max", "100000 100000"),
        ("memory.high", &bytes(granted("MemoryHigh"))),
        ("memory.max", &bytes(granted("MemoryMax"))),
        ("pids.max", granted("TasksMax")),
    ] {
        let text =
            fs::read_to_string(group.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(text.trim_end(), value, "{file}");
    }
    let process = Path::new("/proc").join(unit.pid().to_string());
    let read = |file: &str| fs::read_to_string(process.join(file)).unwrap();
    assert_eq!(read("oom_score_adj").trim_end(), granted("OOMScoreAdjust"));
    let limits = read("limits");
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open.split_whitespace().nth(3), Some(granted("LimitNOFILE")), "{open}");

    // CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_PTRACE and CAP_SYS_ADMIN at most; without those to begin,
    // by now; and the threads that answer readers without those to end as well.
    const BOUND: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 19 | 1 << 21;
    const TO_END: u64 = 1 << 1 | 1 << 19 | 1 << 21;
    const TO_LOOK: u64 = 1 << 19;
    let mut effective = Vec::new();
    for task in fs::read_dir(process.join("task")).unwrap() {
        let status = status(&task.unwrap().path());
        let set = |name: &str| u64::from_str_radix(&status[name], 16).unwrap();
        assert_eq!(set("CapBnd"), BOUND, "{status:?}");
        assert_eq!(set("CapEff"), set("CapPrm"), "{status:?}");
        assert_eq!(set("CapInh") | set("CapAmb"), 0, "{status:?}");
        assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"), "{status:?}");
        effective.push((status["Name"].clone(), set("CapEff")));
    }
    let main = status(&process);
    assert_eq!(u64::from_str_radix(&main["CapEff"], 16), Ok(TO_END), "{effective:?}");
    assert!(effective.iter().all(|(_, set)| [TO_END, TO_LOOK].contains(set)), "{effective:?}");
    assert!(effective.iter().any(|(_, set)| *set == TO_LOOK), "{effective:?}");
}

/// Whether a command succeeds, of a user with these groups.
fn may(groups: &str, command: &[&str]) -> bool {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", groups]).args(command);
    setpriv.output().unwrap().status.success()
}

pub fn its_groups_members_publish_and_read() {
    let _unit = Unit::started();
    let guest = busy();
    seen(&guest);
    let member = format!("--groups={}", group("kvm"));
    let exits = path(&format!("{}/user_exits", guest.machine()));
    let exits = exits.to_str().unwrap();
    let total = path("kvm/user_exits");
    for groups in ["--clear-groups", &member] {
        let is_member = groups == member;
        assert_eq!(may(groups, &["cat", exits]), is_member, "{groups}");
        assert_eq!(may(groups, &["statsfs", "status"]), is_member, "{groups}");
        assert!(may(groups, &["cat", total.to_str().unwrap()]), "{groups}");
    }
    guest.kill_and_wait();
}
