//! The library's examples in README.md are this file's, which compile and do what they say.

use std::path::Path;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// Looks at a mount twice.
#[rustfmt::skip]
fn rates(mount: &Path) -> Result {
    // README begins
    use statsfs::snapshot::Snapshot;

    let before = Snapshot::read(mount)?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let after = Snapshot::read(mount)?;
    let seconds = (after.monotonic() - before.monotonic()).as_secs_f64();
    let known: std::collections::HashMap<_, _> = before.dirs().map(|dir| (dir.identity(), dir)).collect();
    for dir in after.dirs() {
        let Some(earlier) = known.get(&dir.identity()) else { continue };   // the same one, not one of its name
        if let (Some(new), Some(old)) = (dir.value("user_exits"), earlier.value("user_exits")) {
            // Right whatever was cleared, came or went in between.
            println!("{} {:.0} exits/s", dir.path(), new.increase_since(&old).unwrap_or(0) as f64 / seconds);
        }
    }
    println!("{:?}", after.number("kvm/user_handle_time/p99"));
    // README ends
    assert!(seconds >= 1.0 && known.len() == after.dirs().len());
    assert_eq!(after.number("pool0/worker_requests"), Some(1));
    Ok(())
}

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
        rates(path).unwrap();
    };
    example(directory.path(), read).unwrap();
}

#[test]
fn it_is_what_the_readme_has() {
    let own = include_str!("readme.rs");
    let own = own.split("    // README begins\n").skip(1).take(2).map(|rest| {
        let (own, _) = rest.split_once("    // README ends\n").unwrap();
        let lines = own.lines().map(|line| line.strip_prefix("    ").unwrap_or(line));
        lines.map(|line| line.to_owned() + "\n").collect::<String>()
    });
    // The places of a host and of a daemon, which no test touches.
    let own: Vec<_> = own
        .map(|own| own.replace("Snapshot::read(mount)", "Snapshot::read(\"/run/statsfs\")"))
        .map(|own| own.replace("&registry, directory,", "&registry, \"/run/mydaemon\".as_ref(),"))
        .collect();
    let readme = include_str!("../../README.md");
    let blocks: Vec<_> =
        readme.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks, own);
}
