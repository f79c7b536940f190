//! A name that goes while the kernel is being told of it.

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/trace.rs"]
mod trace;

use std::fs::File;
use std::thread;
use std::time::Duration;

use server::Server;
use statsfs::Registry;
use statsfs::host::PublishOptions;
use support::{Work, below, until};
use trace::Held;

/// The kernel takes an answer in whenever whoever asked is scheduled, and may know by then that what it says is gone.
#[test]
fn what_has_gone_when_the_kernel_hears_of_it_is_not_there_for_long() {
    let server = &Server::start();
    let registry = Registry::new().unwrap();
    let top = support::top(&registry);
    let _known = below(&registry, &top, "known");
    let slot = below(&registry, &top, "goes").add_values::<Work>().unwrap();
    // What this counted keeps the directory above.
    slot.update(|counters| counters.work_done.inc());
    let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    let [known, goes] =
        &["known", "goes"].map(|name| server.path(&format!("top/{}-{name}", std::process::id())));
    // Nobody asks for the other one before, and of what leads there the kernel has asked for all.
    until("they are there", || known.exists());
    thread::sleep(Duration::from_millis(100));
    assert!(known.exists());
    // Newer kernels doubt what they hear after they have let go of any node: this one stays.
    let _open = File::open(known).unwrap();
    let threads = trace::threads(server.pid(), "fuser-0");
    assert_eq!(threads.len(), 2, "{threads:?}");
    thread::scope(|scope| {
        let mut asks = None;
        let held = Held::after_read(&threads, || {
            asks = Some(scope.spawn(|| goes.exists()));
        });
        let answers = held.about_to_answer();
        // It goes, and the kernel is told so of all that it knows.
        drop(publisher);
        until("the one that it knows is gone", || !known.exists());
        thread::sleep(Duration::from_millis(100));
        answers.let_run();
        assert!(asks.unwrap().join().unwrap(), "it was there when it was asked for");
    });
    until("it is gone", || !goes.exists());
}
