//! The timer that has statistics written for node_exporter.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use statsfs::snapshot::Snapshot;
use tests::running::wait_until;

use super::unit::{MOUNT, UNIT, Unit, parked, run, value};

const TIMER: &str = "statsfs-textfile.timer";
/// Where Debian's node_exporter looks.
const DIRECTORY: &str = "/var/lib/prometheus/node-exporter";

pub fn the_timer_has_it_written_again_and_again_and_removed_when_there_is_no_server() {
    let unit = Unit::started();
    fs::create_dir_all(DIRECTORY).unwrap();
    let prom = Path::new(DIRECTORY).join("statsfs.prom");
    let guest = parked();
    let reads = format!("{}/user_exit_io_in", guest.machine());
    wait_until("its exits", || value(&reads).filter(|n| *n == 500));
    // Whatever was cleared, as by other tests before this one, is none in metrics.
    let snapshot = Snapshot::read(MOUNT).unwrap();
    let reads = snapshot.dir("kvm").and_then(|kvm| kvm.value("user_exit_io_in")?.raw_number());
    let reads = reads.expect("it is counted");
    assert!(reads >= 500);
    run("systemctl", &["start", TIMER]);
    let line = format!("\nkvm_host_user_exits_total{{reason=\"io_in\"}} {reads}\n");
    wait_until("the file", || fs::read_to_string(&prom).ok().filter(|text| text.contains(&line)));
    let first = fs::metadata(&prom).unwrap();
    assert_eq!((first.mode() & 0o7777, first.uid()), (0o644, 0));
    // Another one in its place each time, as who reads it keeps the one that was opened.
    let second = wait_until("the next one", || {
        fs::metadata(&prom).ok().filter(|next| next.mtime_nsec() != first.mtime_nsec())
    });
    assert_ne!(first.ino(), second.ino());
    guest.kill_and_wait();
    run("systemctl", &["stop", UNIT]);
    wait_until("no file", || (fs::read_dir(DIRECTORY).unwrap().count() == 0).then_some(()));
    run("systemctl", &["stop", TIMER]);
    drop(unit);
}
