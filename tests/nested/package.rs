//! The Debian packages where systemd runs: dpkg installs them, updates, removes and purges them.

use std::fs;
use std::path::Path;

use tests::namespace;
use tests::nested::{DEBS, Init, Suite};
use tests::running::wait_until;

use super::systemd::unit::{MOUNT, SOCKET, STATE, UNIT, Unit, busy, device, run, seen, value};

/// A host in which neither the server nor the VMM is installed yet. Tests' guests are those of the VMM that is.
pub const SUITE: Suite = Suite {
    init: Init::Systemd,
    functions: &[(
        "package::it_is_installed_updated_removed_and_purged",
        it_is_installed_updated_removed_and_purged as fn(),
    )],
    // What is essential to Debian, nothing depends on.
    packages: &["dpkg", "systemd", "init-system-helpers", "perl-base", "libc-bin"],
    links: &[("nested/bin/statsfs", "/usr/bin/statsfs"), ("nested/bin/vmm", "/usr/bin/vmm")],
    debs: true,
    alone: true,
    ..Suite::EMPTY
};

/// What is there of it when it is removed.
const TRACES: [&str; 4] = [
    "/usr/bin/statsfs",
    "/usr/lib/systemd/system/statsfs.service",
    "/usr/lib/sysusers.d/statsfs.conf",
    "/usr/share/doc/statsfs",
];
/// As `systemctl enable` has it.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/statsfs.service";

fn is_there(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn dpkg(args: &[&str]) -> String {
    run("dpkg", args)
}

fn install() {
    let deb = |name: &str| format!("{DEBS}/{name}.deb");
    dpkg(&["--install", &deb("statsfs"), &deb("statsfs-vmm")]);
}

fn it_is_installed_updated_removed_and_purged() {
    assert!(!is_there("/usr/bin/statsfs") && !is_there(SOCKET));
    install();
    // Nobody starts it but the package.
    assert_eq!(run("systemctl", &["is-active", UNIT]).trim(), "active");
    assert_eq!(run("systemctl", &["is-enabled", UNIT]).trim(), "enabled");
    let unit = Unit::started();
    assert_eq!(unit.number("NRestarts"), 0);
    device();
    let groups = fs::read_to_string("/etc/group").unwrap();
    assert!(groups.lines().any(|line| line.starts_with("kvm:")), "{groups}");
    assert!(!is_there("/etc/systemd/system/timers.target.wants/statsfs-textfile.timer"));

    let guest = busy();
    seen(&guest);
    assert!(run("statsfs", &["ls", "kvm"]).contains(&guest.machine()));
    assert!(run("vmm", &["list"]).contains("running"));

    // The next version: another server, which has the guest as before, and what was counted.
    let server = unit.pid();
    let exits = value("kvm/user_exits").unwrap();
    install();
    assert_eq!(run("systemctl", &["is-active", UNIT]).trim(), "active");
    assert_ne!(unit.pid(), server);
    seen(&guest);
    wait_until("what was counted", || value("kvm/user_exits").filter(|now| *now >= exits));
    unit.assert_content();

    // The guest goes on.
    dpkg(&["--remove", "statsfs"]);
    assert!(namespace::mounted_at(Path::new(MOUNT)).is_empty());
    TRACES.iter().for_each(|path| assert!(!is_there(path), "{path}"));
    assert!(!is_there(SOCKET));
    assert!(!Path::new("/proc").join(server.to_string()).exists());
    let state = run("systemctl", &["show", UNIT, "--property", "ActiveState"]);
    assert_eq!(state.trim(), "ActiveState=inactive");
    dpkg(&["--purge", "statsfs"]);
    for path in [MOUNT, STATE, WANTS, "/etc/systemd/system/statsfs.service"] {
        assert!(!is_there(path), "{path}");
    }
    guest.signal(libc::SIGTERM);
    assert_eq!(guest.wait().code(), 143);
    dpkg(&["--purge", "statsfs-vmm"]);
    assert!(!is_there("/usr/bin/vmm"));
}
