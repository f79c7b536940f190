//! `systemctl stop`, `start` and `restart`.

use std::fs;
use std::path::Path;

use tests::namespace;
use tests::outside::Outside;
use tests::running::{Running, wait_until};

use super::unit::{MOUNT, SOCKET, UNIT, Unit, busy, device, run, seen, value};

/// Waits until the totals are those of this guest and of what has departed, of which there are so many exits.
fn wait_exact(guest: &Running, departed: u64) {
    seen(guest);
    assert_eq!(value("kvm/.departed/user_exits").unwrap_or(0), departed);
    let outside = Outside::attach(guest.pid()).unwrap();
    let counted = || outside.value("kvm/user_exits") + departed;
    let (before, shown, after) = (counted(), value("kvm/user_exits").unwrap(), counted());
    assert!(before <= shown && shown <= after, "{before} ≤ {shown} ≤ {after}");
}

/// Asserts that nothing is left of a server that was stopped.
fn assert_stopped(unit: &Unit) {
    let shown = unit.show(&["ActiveState", "Result", "NFileDescriptorStore", "ExecMainStatus"]);
    for (name, value) in [
        ("ActiveState", "inactive"),
        ("Result", "success"),
        ("NFileDescriptorStore", "0"),
        ("ExecMainStatus", "0"),
    ] {
        assert_eq!(shown[name], value, "{name}: {}", unit.log());
    }
    assert!(namespace::mounted_at(Path::new(MOUNT)).is_empty());
    assert!(fs::symlink_metadata(SOCKET).is_err());
    assert_eq!(fs::read_dir(MOUNT).unwrap().count(), 0, "the mount point is there, and empty");
}

pub fn a_stopped_server_leaves_nothing_and_the_next_one_knows_what_it_knew() {
    let unit = Unit::started();
    let mut departed = value("kvm/.departed/user_exits").unwrap_or(0);
    let mut leave = |guest: Running| {
        let outside = Outside::attach(guest.pid()).unwrap();
        guest.kill_and_wait();
        departed += outside.value("kvm/user_exits");
        wait_until("it is kept", || {
            (value("kvm/.departed/user_exits") == Some(departed)).then_some(departed)
        })
    };
    let (stays, before, after) = (busy(), busy(), busy());
    [&stays, &before, &after].into_iter().for_each(seen);
    let departed = leave(before);
    run("systemctl", &["stop", UNIT]);
    assert_stopped(&unit);
    run("systemctl", &["start", UNIT]);
    device();
    seen(&after);
    assert_eq!(value("kvm/.departed/user_exits"), Some(departed));

    let pid = unit.pid();
    run("systemctl", &["restart", UNIT]);
    assert_ne!(unit.pid(), pid);
    device();
    // That one was there before both.
    seen(&after);
    let departed = leave(after);
    wait_exact(&stays, departed);

    run("systemctl", &["stop", UNIT]);
    assert_stopped(&unit);
    // Nobody needs it.
    stays.signal(libc::SIGTERM);
    assert_eq!(stays.wait().code(), 143);
    run("systemctl", &["start", UNIT]);
    device();
}
