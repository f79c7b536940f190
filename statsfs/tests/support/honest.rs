//! Somebody honest, whom nobody may harm: counts all the time in a process of the server's, and reads that
//! all the time; and what the server takes meanwhile.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use statsfs::Registry;
use statsfs::host::{PublishOptions, PublishState, Publisher};

use super::server::Server;
use super::support::{PATIENCE, Work, below, until};

/// What there is of a process, from /proc.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    pub fds: usize,
    pub threads: usize,
    pub rss_kib: u64,
    /// Processor time used so far.
    pub cpu: Duration,
    /// Lines of the server's log.
    pub lines: usize,
}

impl Resources {
    pub fn of(server: &Server) -> Self {
        let proc = |what| format!("/proc/{}/{what}", server.pid());
        let entries = |what| std::fs::read_dir(proc(what)).unwrap().count();
        let status = std::fs::read_to_string(proc("status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            fds: entries("fd"),
            threads: entries("task"),
            rss_kib: rss.trim().split(' ').next().unwrap().parse().unwrap(),
            cpu: processor_time(server.pid()),
            lines: server.log().lines().count(),
        }
    }
}

/// The processor time that all threads of a process have used, those that have ended as well.
fn processor_time(pid: libc::pid_t) -> Duration {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the pointers are to a live number and a live timespec.
    unsafe {
        assert_eq!(libc::clock_getcpuclockid(pid, &mut clock), 0, "process {pid}");
        assert_eq!(libc::clock_gettime(clock, &mut time), 0, "process {pid}");
    }
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[derive(Debug, Default)]
struct Shared {
    /// What is about to be counted, and what was.
    intended: AtomicU64,
    counted: AtomicU64,
    reads: AtomicU64,
    worst_ns: AtomicU64,
    stop: AtomicBool,
    /// What was wrong first.
    wrong: Mutex<Option<String>>,
}

/// The process, and its reader. Both are threads of the test's that nobody waits for if it fails: the reader
/// may hang then.
pub struct Honest {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    publisher: Publisher,
}

/// Reads that must be right while something is done, and again after that.
const READS: u64 = 50;

impl Honest {
    /// Publishes, counts and reads from now on.
    pub fn start(server: &Server) -> Self {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("honest").unwrap();
        top.register().unwrap();
        let slot = below(&registry, &top, "one").add_values::<Work>().unwrap();
        let options = PublishOptions { socket: Some(server.socket()), ..Default::default() };
        let publisher = registry.publish(options).unwrap();
        let state = publisher.wait_tried(PATIENCE);
        assert!(matches!(state, PublishState::Published { .. }), "{state:?}\n{}", server.log());
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        let counting = thread::spawn(move || {
            while !its.stop.load(SeqCst) {
                its.intended.fetch_add(1, SeqCst);
                slot.update(|counters| counters.work_done.inc());
                its.counted.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_micros(100));
            }
        });
        // The total, for which the server looks at everybody, and its own.
        let own = format!("honest/{}-one/work_done", std::process::id());
        let files = ["honest/work_done", &own].map(|path| server.path(path));
        let its = shared.clone();
        let reading = thread::spawn(move || {
            let mut last = [0, 0];
            for n in (0..2).cycle().take_while(|_| !its.stop.load(SeqCst)) {
                let low = its.counted.load(SeqCst);
                let start = Instant::now();
                let text = std::fs::read_to_string(&files[n]);
                let took = start.elapsed().as_nanos() as u64;
                let high = its.intended.load(SeqCst);
                let number = text.as_ref().ok().and_then(|text| text.trim().parse::<u64>().ok());
                if !number.is_some_and(|n| low <= n && n <= high) || number < Some(last[n]) {
                    let file = files[n].display();
                    let wrong = format!("{file}: {text:?} instead of {low} to {high}");
                    its.wrong.lock().unwrap().get_or_insert(wrong);
                }
                last[n] = number.unwrap_or_default();
                its.worst_ns.fetch_max(took, SeqCst);
                its.reads.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let honest = Self { shared, threads: vec![counting, reading], publisher };
        honest.check("the beginning", server);
        honest
    }

    /// How often it was read so far.
    pub fn reads(&self) -> u64 {
        self.shared.reads.load(SeqCst)
    }

    /// That it is served: so many more reads come to an end, and all that were read so far are right.
    pub fn check(&self, what: &str, server: &Server) {
        let end = self.shared.reads.load(SeqCst) + READS;
        let is_served = || self.shared.reads.load(SeqCst) >= end;
        until(&format!("{what}: somebody honest is served"), is_served);
        let wrong = self.shared.wrong.lock().unwrap().take();
        assert!(wrong.is_none(), "{what}: {wrong:?}\n{}", server.log());
        let state = self.publisher.state();
        assert!(matches!(state, PublishState::Published { .. }), "{what}: {state:?}");
    }

    /// Has something done, while and after which somebody honest is served, and after which the server has
    /// not much more than before: `lines` in the log at most. Answers what it has then.
    pub fn during(
        &self,
        what: &str,
        server: &Server,
        lines: usize,
        harm: impl FnOnce(),
    ) -> (Resources, Resources) {
        let before = Resources::of(server);
        self.shared.worst_ns.store(0, SeqCst);
        let start = Instant::now();
        harm();
        self.check(what, server);
        let has_let_go = || Resources::of(server).fds <= before.fds;
        until(&format!("{what}: descriptors are closed"), has_let_go);
        let after = Resources::of(server);
        let worst = Duration::from_nanos(self.shared.worst_ns.load(SeqCst));
        println!(
            "{what}: {:?}, of which the server used {:?}; worst read {worst:?}; descriptors {} → {}, threads {} → {}, KiB {} → {}, lines {}",
            start.elapsed(),
            after.cpu - before.cpu,
            before.fds,
            after.fds,
            before.threads,
            after.threads,
            before.rss_kib,
            after.rss_kib,
            after.lines - before.lines,
        );
        assert!(after.threads <= before.threads + THREADS, "{what}: {before:?}, {after:?}");
        assert!(after.rss_kib <= before.rss_kib + KIB, "{what}: {before:?}, {after:?}");
        assert!(after.lines - before.lines <= lines, "{what}:\n{}", server.log());
        (before, after)
    }
}

/// Threads that may be idle for a while after what they were started for: those that close what may hang.
const THREADS: usize = 8;
/// Memory that the allocator may keep for what comes next.
const KIB: u64 = 64 << 10;

impl Drop for Honest {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        if !thread::panicking() {
            self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }
}
