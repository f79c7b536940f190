//! A daemon that is no VMM and publishes its statistics to the host's server, or mounts them itself.
//!
//! ```text
//! cargo run -p statsfs --example daemon                       # to the host's server: `statsfs serve`
//! cargo run -p statsfs --example daemon -- --mount /tmp/stats # without one
//! ```
//! It copies between two buffers until it gets a line or the end of its input, and counts what it does: see
//! `jobs/` in the mount.

use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use statsfs::fs::MountOptions;
use statsfs::host::{PublishOptions, PublishState};
use statsfs::{Embedded, Registry, Slot, Source, stats};

stats! {
    /// What a worker does.
    pub consistent struct Worker: "worker", prefix "worker_" {
        /// Jobs done.
        worker_jobs: Counter,
        /// Bytes copied.
        worker_bytes: Counter<Bytes>,
        /// Time that a job takes.
        worker_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Size of the job that it is doing.
        worker_size: Gauge<u32, Bytes> { aggregate: [sum, max] },
    }
}

/// Works until told to stop. What is counted costs no more than adding to a variable of one's own.
fn work(slot: &Slot<Worker>, stop: &AtomicBool) {
    let (from, mut to) = (vec![7_u8; 1 << 20], vec![0_u8; 1 << 20]);
    for size in (10..20).map(|n| 1 << n).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let start = Instant::now();
        slot.worker_size.set(size as u32);
        to[..size].copy_from_slice(&from[..size]);
        slot.update(|counters| {
            counters.worker_jobs.inc();
            counters.worker_bytes.add(size as u64);
        });
        slot.worker_time.record(start.elapsed().as_nanos() as u64);
        thread::sleep(Duration::from_millis(1));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let registry = Registry::global()?;
    let jobs = Source::create("jobs")?;
    jobs.register()?;
    let stop = AtomicBool::new(false);

    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (mut mounted, mut published) = (None, None);
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        [] => {
            let publisher = registry.publish(PublishOptions::default())?;
            match publisher.wait_tried(Duration::from_secs(2)) {
                PublishState::Published { pid, mount } => {
                    println!("see {}/jobs/{pid}-worker0", mount.display());
                }
                // It goes on trying, and works all the same.
                other => println!("not published now: {other:?}"),
            }
            published = Some(publisher);
        }
        ["--mount", dir] => {
            mounted = Some(Embedded::mount(registry, Path::new(dir), MountOptions::new())?);
            println!("see {dir}/jobs");
        }
        _ => return Err("usage: daemon [--mount DIR]".into()),
    }

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        for n in 0..2 {
            let worker = Source::create(&format!("worker{n}"))?;
            jobs.add_subordinate(&worker)?;
            let slot = worker.add_values::<Worker>()?;
            let stop = &stop;
            scope.spawn(move || work(&slot, stop));
        }
        println!("press Enter to end");
        let read = std::io::stdin().read(&mut [0; 64]);
        stop.store(true, Ordering::Relaxed);
        read.map(drop).map_err(Into::into)
    })?;
    // What was counted stays in the host's totals.
    drop(published);
    mounted.map_or(Ok(()), Embedded::unmount)?;
    Ok(())
}
