//! What the tests of the core share: reading a tree, a group of every kind, random numbers, and a
//! writer in another process.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

#[path = "../../../tests/src/stop.rs"]
mod stop;

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use statsfs::fs::{Caller, Errno, Ino, Nodes, ROOT};
use statsfs::tree::Tree;
use statsfs::{LabelSet, Registry, Source, stats};

pub use self::stop::StopAtEnd;

stats! {
    /// What a worker counts.
    pub consistent struct Work: "work", prefix "work_" {
        /// Things done.
        work_done: Counter,
        /// Things that failed.
        work_failed: Counter,
        /// Time per thing.
        work_time: Histogram<Nanoseconds> { buckets: 8 },
        /// Things in the queue.
        work_queue: Gauge<i32> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Longest queue.
        work_queue_peak: Peak<u32>,
        /// Whether it runs.
        work_running: Flag { aggregate: nonzero },
    }
}

/// What something is at.
#[derive(Clone, Copy, LabelSet)]
#[labels(key = "phase")]
#[allow(dead_code, reason = "all that is wanted of it is its names")]
pub enum Phase {
    /// it begins
    Begun,
    /// it has ended
    #[label("over")]
    Ended,
}

stats! {
    /// A plain counter and nothing else.
    pub struct Tick: "tick", prefix "tick_" {
        /// Ticks.
        tick_count: Counter,
    }
}

/// Anybody.
pub const ROOT_CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// The whole tree: path and value.
pub fn flat(tree: &Tree) -> BTreeMap<String, String> {
    let mut out = Vec::new();
    tree.flat(&mut out);
    let text = String::from_utf8(out).unwrap();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let (path, value) = line.split_once(' ').unwrap();
        assert!(all.insert(path.to_owned(), value.to_owned()).is_none(), "{path} is there twice");
    }
    all
}

/// The number of the node at a path.
pub fn node(tree: &Tree, path: &str) -> Result<Ino, Errno> {
    let mut ino = ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ino = tree.lookup(ino, name)?.ino;
    }
    Ok(ino)
}

/// What a file shows.
pub fn try_number(tree: &Tree, path: &str) -> Result<i128, Errno> {
    let ino = node(tree, path)?;
    let mut out = Vec::new();
    tree.render(ino, ROOT_CALLER, usize::MAX, &mut out)?;
    Ok(std::str::from_utf8(&out).unwrap().trim().parse().unwrap())
}

/// What a file that is there shows.
pub fn number(tree: &Tree, path: &str) -> i128 {
    try_number(tree, path).unwrap_or_else(|error| panic!("{path}: {error:?}"))
}

/// A directory's entries, fetched in pieces of `chunk` as readdir(2) does, each name with its cookie.
pub fn list(tree: &Tree, dir: Ino, chunk: usize) -> Result<Vec<(String, u64)>, Errno> {
    let mut all: Vec<(String, u64)> = Vec::new();
    loop {
        let after = all.last().map_or(0, |(_, cookie)| *cookie);
        let mut n = 0;
        tree.list(dir, after, &mut |entry| {
            all.push((entry.name.to_owned(), entry.cookie));
            n += 1;
            n < chunk
        })?;
        if n < chunk {
            return Ok(all);
        }
    }
}

/// How long anything may take that is waited for: it is over in no time unless it never is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has the kernel forget the names that it remembers and nobody uses, as it does when it needs room.
pub fn forget_names() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
}

/// Runs `f` in another thread, which must end: what is tested here deadlocks where it fails.
pub fn ends<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    thread::spawn(move || send.send(f()));
    match receive.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => panic!("{what} does not end"),
        Err(RecvTimeoutError::Disconnected) => panic!("{what} panicked"),
    }
}

/// A registered source.
pub fn top(registry: &Registry) -> Source {
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    top
}

/// A source below another.
pub fn below(registry: &Registry, parent: &Source, name: &str) -> Source {
    let source = registry.create_source(name).unwrap();
    parent.add_subordinate(&source).unwrap();
    source
}

/// A small fast generator (xorshift64*), so that a failing run can be run again.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A seed for this run, printed so that a failure can be repeated with `STATSFS_SEED`.
pub fn seed() -> u64 {
    let seed = std::env::var("STATSFS_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
            as u64
    });
    eprintln!("STATSFS_SEED={seed}");
    seed
}

#[path = "../../../tests/src/soak.rs"]
mod soak;

/// How many times to do what is done `n` times unless `STATSFS_SOAK` says otherwise.
pub fn rounds(n: usize) -> usize {
    soak::rounds(n as u32) as usize
}

pub mod child;
pub mod churn;
pub mod holder;
pub mod ledger;
