//! The library's example in README.md is this file's, which compiles and does what it says.

use std::path::Path;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// Calls `read` with the example's mount.
#[rustfmt::skip]
fn example(directory: &Path, read: impl FnOnce(&Path)) -> Result {
    // README begins
    use statsfs::{Embedded, Registry, fs::MountOptions, stats};

    stats! {
        /// What a worker does.
        pub consistent struct Worker: "worker", prefix "worker_" {
            /// Requests answered.
            worker_requests: Counter,
            /// Requests that failed.
            worker_failures: Counter,
            /// Time to answer one.
            worker_time: Histogram<Microseconds> { buckets: 24 },
        }
    }

    let registry = Registry::new()?;
    let pool = registry.create_source("pool0")?;
    pool.register()?;
    let slot = pool.add_values::<Worker>()?;              // one per thread: it can be sent, not shared
    std::thread::spawn(move || {
        slot.update(|c| { c.worker_requests.inc(); c.worker_failures.inc() }); // seen together or not at all
        slot.worker_time.record(17);
    });
    let mounted = Embedded::mount(&registry, directory, MountOptions::new())?;
    // README ends
    read(mounted.mounted().path());
    mounted.unmount()?;
    Ok(())
}

#[test]
fn the_example_counts() {
    let directory = tempfile::tempdir().unwrap();
    let read = |path: &Path| {
        // Its thread may still be about to.
        let value = |name: &str| {
            let text = std::fs::read_to_string(path.join("pool0").join(name)).unwrap();
            text.trim_end().parse::<u64>().unwrap()
        };
        while value("worker_time/count") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(value("worker_requests"), 1);
        assert_eq!(value("worker_failures"), 1);
        assert_eq!(value("worker_time/sum"), 17);
    };
    example(directory.path(), read).unwrap();
}

#[test]
fn it_is_what_the_readme_has() {
    let own = include_str!("readme.rs");
    let (_, own) = own.split_once("    // README begins\n").unwrap();
    let (own, _) = own.split_once("    // README ends\n").unwrap();
    let own: String = own
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let readme = include_str!("../../README.md");
    let blocks: Vec<_> =
        readme.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    // The place of a daemon, which no test touches.
    let own = own.replace("&registry, directory,", "&registry, \"/run/mydaemon\".as_ref(),");
    assert_eq!(blocks, [own]);
}
