//! `statsfs record`, and `statsfs report` of what it made.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::host::Host;
use tests::record::{Recorder, frames, report};
use tests::vmm::end_with_test;

use crate::taken::{Taken, watch};

pub fn measure(host: &Host, time: Duration) {
    let file = host.beside("recording");
    let recorder = Recorder::start(&host.mount(), &file, &[]);
    watch("statsfs record", recorder.pid(), host, time);
    assert_eq!(recorder.end(libc::SIGINT), (Some(0), String::new()));

    let bytes = std::fs::metadata(&file).expect("it was written").len();
    // Among them a last one that says that it has ended; and one is nearly as long as another.
    let looks = frames(&file).len();
    println!("  ... {looks} looks of {:.1} KiB", bytes as f64 / looks as f64 / 1024.0);
    measure_report(&file, &host.beside("page"));
    std::fs::remove_file(&file).expect("it is ours");
}

fn measure_report(file: &Path, page: &Path) {
    let start = Instant::now();
    let mut command = report(file, &["-o", page.to_str().expect("UTF-8")]);
    command.stderr(Stdio::null());
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
