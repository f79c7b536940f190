//! What reading one value costs a user: open + read + close, and `pread` of a file kept open, against a
//! minimal FUSE file on the same crate, sysfs and tmpfs.
//!
//! `cargo bench -p statsfs-benches --bench fuse [-- --quick --json]`, as root, with `/dev/fuse`.

mod minimal;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use statsfs::fs::MountOptions;
use statsfs::{Embedded, Registry, stats};
use statsfs_benches::{Comparison, Options, pin};

stats! {
    /// Something to read.
    struct Values: "values" {
        /// A counter.
        count: Counter,
        /// A histogram.
        time: Histogram<Nanoseconds>,
    }
}

/// A file that sysfs renders: one decimal integer.
const SYSFS: &str = "/sys/kernel/uevent_seqnum";
/// Threads that serve, here and there.
const THREADS: usize = 2;

/// Wall time: the server's part is what matters, and it is in other threads.
fn wall(n: u64, mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        run();
    }
    start.elapsed()
}

fn open_read_close(path: &Path) {
    let mut buffer = [0; 64];
    let read = File::open(path).and_then(|mut file| file.read(&mut buffer));
    assert!(read.is_ok_and(|n| n > 1), "{}", path.display());
}

fn pread(file: &File) {
    let mut buffer = [0; 64];
    assert!(file.read_at(&mut buffer, 0).is_ok_and(|n| n > 1));
}

fn compare(title: [&'static str; 2], files: &[(&str, &PathBuf)], options: Options) {
    let mut c = Comparison::new(title[0]);
    for (name, path) in files {
        c.case(*name, |n| wall(n, || open_read_close(path)));
        if name.starts_with("statsfs") {
            c.budget(1.5);
        }
    }
    c.run(options);
    let mut c = Comparison::new(title[1]);
    for (name, path) in files {
        let file = File::open(path).expect("it was opened before");
        c.case(*name, move |n| wall(n, || pread(&file)));
    }
    c.run(options);
}

fn main() {
    let options = Options::from_args();
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("fuse: mounting needs root: run it with sudo");
        std::process::exit(1);
    }
    // The servers' threads inherit this CPU; the client moves away for the second pair of tables.
    let cpus = pin(0);
    let directory = tempfile::Builder::new().prefix("statsfs-bench-").tempdir().expect("/tmp");
    let [ours, other] = ["ours", "minimal"].map(|name| directory.path().join(name));
    for point in [&ours, &other] {
        std::fs::create_dir(point).expect("an empty directory takes another");
    }

    let registry = Registry::new().expect("a segment");
    let above = registry.create_source("above").expect("a source");
    let source = registry.create_source("source").expect("a source");
    let slot = source.add_values::<Values>().expect("room for a slot");
    above.add_subordinate(&source).expect("a free name");
    above.register().expect("a free name");
    slot.count.add(1_234_567);
    slot.time.record(1_234_567);
    let mount = Embedded::mount(&registry, &ours, MountOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let minimal = minimal::Mounted::new(&other, THREADS).expect("root may mount /dev/fuse");
    let mut tmpfs = tempfile::NamedTempFile::new_in("/dev/shm").expect("/dev/shm");
    tmpfs.write_all(b"1234567\n").expect("room in /dev/shm");

    let paths = [
        other.join(minimal::NAME),
        ours.join("above/source/count"),
        ours.join("above/source/time/p99"),
        ours.join("above/count"),
        SYSFS.into(),
        tmpfs.path().to_owned(),
    ];
    let names = [
        "minimal FUSE file",
        "statsfs: a counter",
        "statsfs: p99 of a histogram",
        "statsfs: an aggregate",
        "sysfs",
        "tmpfs",
    ];
    let files: Vec<_> = names.into_iter().zip(&paths).collect();
    compare(
        [
            "open + read + close, client and server on one CPU",
            "pread, client and server on one CPU",
        ],
        &files,
        options,
    );
    if cpus > 1 {
        pin(1);
        compare(
            [
                "open + read + close, client and server on two CPUs",
                "pread, client and server on two CPUs",
            ],
            &files,
            options,
        );
    } else {
        options.say("one CPU only: nothing to measure across CPUs");
    }
    drop(minimal);
    mount.unmount().unwrap_or_else(|error| panic!("{error}"));
}
