//! Every thread that the library starts calls the program's hook first.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use statsfs::fs::MountOptions;
use statsfs::{Embedded, Registry, RegistryOptions, ThreadKind, ThreadStart, stats};

stats! {
    /// What a thread of the program samples.
    pub struct Sampled: "sampled", prefix "sampled_" {
        /// Samples.
        sampled_times: Counter,
    }
}

/// The threads that called the hook, and as what.
type Called = Arc<Mutex<HashMap<u32, ThreadKind>>>;

/// The hook: each thread may call it once only.
fn hook(called: &Called) -> ThreadStart {
    let called = called.clone();
    ThreadStart::new(move |kind| {
        // SAFETY: no arguments and no effects.
        let id = unsafe { libc::gettid() } as u32;
        assert_eq!(called.lock().unwrap().insert(id, kind), None, "{kind:?} called it twice");
    })
}

/// This process's threads by number, with their names.
fn threads() -> HashMap<u32, String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap());
    let named = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, name.trim().to_string()))
    });
    named.collect()
}

#[test]
fn every_thread_calls_the_hook() {
    let called = Called::default();
    let options = RegistryOptions { thread_start: hook(&called), ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    assert!(called.lock().unwrap().is_empty(), "there is nothing to be done yet");
    // Before it is needed, and only once.
    registry.start_thread().unwrap();
    registry.start_thread().unwrap();
    let source = registry.create_source("top").unwrap();
    source.register().unwrap();
    source
        .add_callback::<Sampled>(Duration::from_secs(1), |slot| slot.sampled_times.inc())
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let options = MountOptions::new().threads(2).bulk(3, 16).thread_start(hook(&called));
    let mounted = Embedded::mount(&registry, dir.path(), options).unwrap();
    // Requests until both threads that answer them have answered one.
    let asked = || called.lock().unwrap().values().filter(|k| **k == ThreadKind::Request).count();
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while asked() < 2 {
                    assert!(Instant::now() < deadline, "one thread answers everything");
                    fs::read_to_string(dir.path().join("top/sampled_times")).unwrap();
                }
            });
        }
    });
    assert!(fs::read_to_string(dir.path().join(".stats/flat")).unwrap().contains("sampled_times"));

    let expected = [
        ("statsfs-keeper", ThreadKind::Keeper),
        ("statsfs-fuse-0", ThreadKind::Session),
        ("statsfs-fuse-1", ThreadKind::Session),
        ("fuser-0", ThreadKind::Request),
        ("fuser-0", ThreadKind::Request),
        ("statsfs-bulk-0", ThreadKind::Bulk),
        ("statsfs-bulk-1", ThreadKind::Bulk),
        ("statsfs-bulk-2", ThreadKind::Bulk),
        ("statsfs-small-0", ThreadKind::Bulk),
        ("statsfs-total-0", ThreadKind::Bulk),
        ("statsfs-inval", ThreadKind::Invalidation),
    ];
    while called.lock().unwrap().len() < expected.len() {
        assert!(Instant::now() < deadline, "{called:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut found: Vec<_> = threads()
        .into_iter()
        .filter(|(_, name)| name.starts_with("statsfs-") || name.starts_with("fuser-"))
        .map(|(id, name)| {
            let kind = called.lock().unwrap().get(&id).copied();
            (name.clone(), kind.unwrap_or_else(|| panic!("{name} did not call it")))
        })
        .collect();
    found.sort_by_key(|(name, _)| expected.iter().position(|(known, _)| known == name));
    let found: Vec<_> = found.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    assert_eq!(found, expected);
    mounted.unmount().unwrap();
}
