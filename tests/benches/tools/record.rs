//! `statsfs record`, and `statsfs report` of what it made.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::binary;
use tests::command::statsfs;
use tests::host::Host;
use tests::record::frames;
use tests::vmm::end_with_test;

use crate::taken::{Taken, watch};

pub fn measure(host: &Host, time: Duration) {
    let file = host.beside("recording");
    let mut command = statsfs(&host.mount(), &["record", file.to_str().expect("UTF-8"), "--force"]);
    end_with_test(&mut command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("it was built");
    watch("statsfs record", child.id(), host, time);
    let pid = child.id().to_string();
    let ended = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(ended.is_ok_and(|status| status.success()) && child.wait().is_ok(), "it ran");

    let bytes = std::fs::metadata(&file).expect("it was written").len();
    // Among them a last one that says that it has ended; and one is nearly as long as another.
    let looks = frames(&file).len();
    println!("  ... {looks} looks of {:.1} KiB", bytes as f64 / looks as f64 / 1024.0);
    report(&file, &host.beside("page"));
    std::fs::remove_file(&file).expect("it is ours");
}

fn report(file: &std::path::Path, page: &std::path::Path) {
    let start = Instant::now();
    let mut command = Command::new(binary::statsfs());
    command.arg("report").arg(file).arg("-o").arg(page).stderr(Stdio::null());
    end_with_test(&mut command);
    let mut child = command.spawn().expect("it was built");
    let mut taken = None;
    while child.try_wait().expect("a child").is_none() {
        taken = Taken::by(child.id()).or(taken);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (elapsed, memory) = (start.elapsed().as_secs_f64(), taken.map_or(0.0, |t| t.peak_mib()));
    let size = std::fs::metadata(page).expect("it was written").len() / 1024;
    println!(
        "  statsfs report of them               {elapsed:6.2} s, {memory:7.1} MiB at most; a page of {size} KiB"
    );
    std::fs::remove_file(page).expect("it is ours");
}
