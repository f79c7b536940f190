//! A tree of real processes that join, count, are killed or leave, are detached, come back and are folded,
//! at random moments, under readers and clears, and a server that is killed now and then, also in the middle
//! of keeping something: totals are exact, and never go backwards.
//!
//! Each process keeps a ledger in memory that outlives it: what it is about to count, and, after, that it
//! did. One thread makes all clears, so what they took is known whenever no clear runs; at any such time
//! `counted before reading ≤ shown + taken ≤ intended after reading`.

mod support;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use statsfs::segment::{Limits, SegmentReader};
use statsfs::tree::{
    Identity, Keeper, Occasion, Owner, ProcessKey, Saved, Tree, TreeError, TreeOptions,
};
use statsfs::{Registry, RegistryOptions};
use support::child::{self, Fixed, Shared, Writer};
use support::churn::{Churner, Exchange};
use support::ledger::{FILES, Ledger, MOST, TOPS, Totals, add, bound, held};
use support::{Random, flat, number, rounds, seed, try_number, until};

/// Processes at a time.
const AT_ONCE: usize = 20;

#[test]
#[ignore = "a process that the other starts"]
fn counting_process() {
    let (ledger, mut socket, mode) = child::in_child::<Ledger>();
    let (at, seed) = mode.split_once(' ').unwrap();
    let (at, seed): (usize, u64) = (at.parse().unwrap(), seed.parse().unwrap());
    let options = RegistryOptions { segment_size: 64 << 10, max_segments: 1, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let [kvm, net] = TOPS.map(|name| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        top
    });
    let vm = registry.source("vm").private().create().unwrap();
    kvm.add_subordinate(&vm).unwrap();
    let pools = [vm, net];
    let exchange: Exchange = Mutex::new(Vec::new());
    let mut churner = Churner::new(0, seed, &registry, &pools, &ledger[at], &exchange);
    child::send_segments(&socket, &registry);
    // Nothing is counted before somebody looks.
    socket.read_exact(&mut [0]).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut n = 0u64;
    // Twenty of them must leave time for readers.
    while !n.is_multiple_of(32) || socket.read_exact(&mut [0]).is_err() {
        churner.step();
        n += 1;
        if n.is_multiple_of(32) {
            thread::sleep(Duration::from_millis(5));
        }
    }
    // It leaves without tidying up.
    std::process::exit(0);
}

/// What a server keeps. Killed before it has, nothing happened; and whenever else it is killed, what was kept
/// last is what happened.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    saved: Saved,
    folded: HashSet<u128>,
    /// What would be kept next, is not.
    dies: bool,
}

impl Keeper for Kept {
    fn keep(&mut self, saved: &Saved, occasion: Occasion) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.dies {
            return Err(io::Error::other("the server is dead"));
        }
        inner.saved = saved.clone();
        if let Occasion::Folded(publisher) = occasion {
            inner.folded.insert(publisher);
        }
        Ok(())
    }
}

struct Run {
    tree: Mutex<Arc<Tree>>,
    kept: Kept,
    ledger: &'static Ledger,
    /// Even while no clear runs.
    epoch: AtomicU64,
    taken: [[AtomicU64; 3]; 2],
    stop: AtomicBool,
    checks: AtomicU64,
}

impl Run {
    /// Reads one total over and over, by itself or all in one sweep.
    fn read(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mut last = [[0; 3]; 2];
        while !self.stop.load(SeqCst) {
            let (top, file) = (random.below(2) as usize, random.below(3) as usize);
            let path = format!("{}/{}", TOPS[top], FILES[file]);
            let epoch = self.epoch.load(SeqCst);
            let low = bound(self.ledger, top, file, false);
            let tree = self.tree();
            let shown = if random.one_in(4) {
                flat(&tree).get(&path).map_or(0, |shown| shown.parse().unwrap())
            } else {
                try_number(&tree, &path).map_or(0, |shown| shown as u64)
            };
            let high = bound(self.ledger, top, file, true);
            let there = shown + self.taken[top][file].load(SeqCst);
            if epoch.is_multiple_of(2) && self.epoch.load(SeqCst) == epoch {
                assert!(
                    low <= there && there <= high,
                    "{path}: counted at least {low}, at most {high}; there are {there}"
                );
                let last = &mut last[top][file];
                assert!(*last <= there, "{path} went back from {last} to {there}");
                *last = there;
                self.checks.fetch_add(1, SeqCst);
            }
        }
    }

    fn tree(&self) -> Arc<Tree> {
        self.tree.lock().unwrap().clone()
    }

    /// The server is killed, if it was not yet, and another one begins with what was kept.
    fn restart(&self, all: &mut [Running]) {
        // Nobody may say what is missing while some are not back yet.
        self.epoch.fetch_add(1, SeqCst);
        let (saved, folded) = {
            let mut inner = self.kept.0.lock().unwrap();
            inner.dies = false;
            (inner.saved.clone(), inner.folded.clone())
        };
        let tree = Tree::host_from(saved, options()).unwrap();
        tree.keep_by(self.kept.clone()).unwrap();
        for running in all {
            assert!(!folded.contains(&running.publisher));
            running.key = join(&tree, &running.writer, &running.segments);
            if running.detached {
                tree.detach(running.key).unwrap();
            }
        }
        *self.tree.lock().unwrap() = Arc::new(tree);
        self.epoch.fetch_add(1, SeqCst);
    }

    /// Clears. Answers false if the server died of it.
    fn clear(&self, path: &str) -> bool {
        self.epoch.fetch_add(1, SeqCst);
        let mut lives = true;
        match self.tree().clear(path) {
            Ok(cleared) => {
                let top = TOPS.iter().position(|top| path.starts_with(top)).unwrap();
                for (file, name) in FILES.iter().enumerate() {
                    let taken = cleared.0.get(*name).copied().unwrap_or(0);
                    assert!(taken < 1 << 62, "clearing {path} took {taken} of {name}");
                    self.taken[top][file].fetch_add(taken, SeqCst);
                }
            }
            Err(error) if error.0 == libc::EIO => lives = false,
            // It has left.
            Err(error) => assert!([libc::ENOENT, libc::ESTALE].contains(&error.0), "{error:?}"),
        }
        self.epoch.fetch_add(1, SeqCst);
        lives
    }
}

struct Running {
    writer: Writer,
    segments: Vec<OwnedFd>,
    publisher: u128,
    key: ProcessKey,
    detached: bool,
}

fn join(tree: &Tree, writer: &Writer, segments: &[OwnedFd]) -> ProcessKey {
    let pid = writer.pid() as u32;
    let identity = Identity { pid, uid: pid, gid: pid, is_public: true, is_host: false };
    let fds = segments.iter().map(|fd| fd.try_clone().unwrap()).collect();
    tree.join(Fixed(fds), identity).unwrap()
}

fn options() -> TreeOptions {
    TreeOptions { pid_prefix: true, ..TreeOptions::new(Owner { uid: 0, gid: 0 }) }
}

impl Running {
    fn start(run: &Run, memory: &Shared<Ledger>, n: usize, seed: u64) -> Self {
        let mut writer = Writer::start("counting_process", memory, &format!("{n} {seed}"));
        let segments = writer.segments();
        let publisher =
            SegmentReader::attach(segments[0].as_fd(), &Limits::default()).unwrap().publisher();
        let key = join(&run.tree(), &writer, &segments);
        writer.socket.write_all(&[1]).unwrap();
        Self { writer, segments, publisher, key, detached: false }
    }
}

#[test]
fn processes_that_come_and_go_and_are_killed_count_to_the_last() {
    let seed = seed();
    let mut random = Random::new(seed);
    let memory = Shared::<Ledger>::new();
    let run = Run {
        tree: Mutex::new(Arc::new(Tree::host(options()))),
        kept: Kept::default(),
        ledger: memory.value,
        epoch: AtomicU64::new(0),
        taken: Default::default(),
        stop: AtomicBool::new(false),
        checks: AtomicU64::new(0),
    };
    run.restart(&mut []);
    let run = &run;
    let mut sums = Totals::default();
    let mut fold = |running: &mut Running| {
        running.writer.wait();
        add(&mut sums, &held(&running.segments));
        run.tree().fold(running.key).unwrap();
    };
    let mut all: Vec<Running> = Vec::new();
    // The first makes the directories that readers look at.
    all.push(Running::start(run, &memory, 0, seed));
    let (mut started, mut killed, mut restarted) = (1, 0, 0);
    thread::scope(|scope| {
        for n in 0..2 {
            scope.spawn(move || run.read(seed + 1 + n));
        }
        for _ in 0..rounds(200) {
            thread::sleep(Duration::from_micros(random.below(5000)));
            let at = random.below(all.len().max(1) as u64) as usize;
            match random.below(17) {
                0..5 if all.len() < AT_ONCE && started < MOST => {
                    all.push(Running::start(run, &memory, started, seed + started as u64));
                    started += 1;
                }
                5..8 if all.len() > AT_ONCE / 2 => {
                    all[at].writer.signal(libc::SIGKILL);
                    killed += 1;
                    if random.one_in(2) {
                        run.tree().detach(all[at].key).unwrap();
                        all[at].detached = true;
                    }
                    if random.one_in(4) {
                        all[at].writer.wait();
                        run.kept.0.lock().unwrap().dies = true;
                        let fold = run.tree().fold(all[at].key);
                        assert!(matches!(fold, Err(TreeError::Commit(_))), "{fold:?}");
                        run.restart(&mut all);
                        restarted += 1;
                    }
                    fold(&mut all.swap_remove(at));
                }
                8 if all.len() > AT_ONCE / 2 => {
                    let mut running = all.swap_remove(at);
                    running.writer.socket.write_all(&[1]).unwrap();
                    fold(&mut running);
                }
                9..12 if !all.is_empty() => {
                    let running = &mut all[at];
                    running.detached = !running.detached;
                    if running.detached {
                        run.tree().detach(running.key).unwrap();
                    } else {
                        run.tree().reattach(running.key).unwrap();
                    }
                }
                12..16 if !all.is_empty() => {
                    let machine = format!("kvm/{}-vm", all[at].writer.pid());
                    let file = FILES[random.below(3) as usize];
                    let clear = match random.below(7) {
                        0 => format!("kvm/{file}"),
                        1 => "net/.stats/clear".to_owned(),
                        2 => format!("kvm/.departed/{file}"),
                        3 => "kvm/.departed/.stats/clear".to_owned(),
                        4 => "kvm/.stats/clear".to_owned(),
                        5 => format!("{machine}/{file}"),
                        _ => format!("{machine}/.stats/clear"),
                    };
                    // A histogram is cleared by its count, which is its name here.
                    let dies = random.one_in(8);
                    run.kept.0.lock().unwrap().dies = dies;
                    if !run.clear(&clear) || dies {
                        run.restart(&mut all);
                        restarted += 1;
                    }
                }
                16 => {
                    run.restart(&mut all);
                    restarted += 1;
                }
                _ => {}
            }
        }
        until("readers have seen something", || run.checks.load(SeqCst) > 50);
        run.stop.store(true, SeqCst);
    });
    run.restart(&mut all);
    while let Some(mut running) = all.pop() {
        running.writer.signal(libc::SIGKILL);
        fold(&mut running);
    }
    run.restart(&mut []);
    let tree = run.tree();
    for (top, name) in TOPS.iter().enumerate() {
        for (file, file_name) in FILES.iter().enumerate() {
            let path = format!("{name}/{file_name}");
            let shown = number(&tree, &path) as u64;
            let there = shown + run.taken[top][file].load(SeqCst);
            assert_eq!(there, sums[top][file], "{path}: what segments held, and what is there");
            assert_eq!(number(&tree, &format!("{name}/.departed/{file_name}")) as u64, shown);
            let (low, high) =
                (bound(run.ledger, top, file, false), bound(run.ledger, top, file, true));
            assert!(low <= there && there <= high, "{low} ≤ {there} ≤ {high}");
        }
    }
    // Nothing is left of any of them but sums.
    let usage = tree.usage();
    assert_eq!((usage.processes, usage.detached, usage.sources, usage.refused), (0, 0, 0, 0));
    assert_eq!((usage.directories, usage.left, usage.groups), (3, 2, 1));
    assert!(usage.baselines <= 2, "{usage:?}");
    assert_eq!(usage.left_out, 0);
    println!("{started} processes, {killed} of them killed, {restarted} servers, {:?}", run.checks);
    assert!(started > AT_ONCE && killed > 0 && restarted > 0);
}
