//! What the host's scheduler does with the threads of vCPUs: how long they ran, how long they waited for a
//! CPU, how often they were switched.
//!
//! The kernel keeps these numbers for every thread; the exit loop pays nothing for them. They are read from
//! two files below `/proc` that are held open: by the statistics' own thread at an interval, and by the vCPU's
//! thread itself as its last act, when nobody else could read them much longer. Each of the two has a slot
//! of its own, and what the last reading shows beyond the sampled ones goes into the second; so the sum is the
//! last reading.
//!
//! `schedstat` is there where the kernel has CONFIG_SCHED_INFO, as every kernel with KVM has; before Linux
//! 5.14 it may still say only zeroes, with schedstats off and the boot option `nodelayacct`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use statsfs::{Slot, Source, SourceError};

use crate::limits::told;
use crate::message::Missing;
use crate::stats::SchedStats;

/// How often the first vCPUs of a process are sampled.
const INTERVAL: Duration = Duration::from_secs(1);
/// As many more are sampled half as often, and so on: a reading takes some 10 to 40 microseconds, which is
/// to stay a small part of one CPU.
const AT_ONCE: usize = 256;

/// One reading of a thread's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Time on a CPU, in nanoseconds. Of a thread that runs now, up to the last tick.
    pub run_ns: u64,
    /// Time that it could have run and waited for a CPU, in nanoseconds.
    pub wait_ns: u64,
    /// Times that it came onto a CPU.
    pub slices: u64,
    /// Times that it left the CPU to wait for something.
    pub voluntary: u64,
    /// Times that the CPU was taken from it.
    pub involuntary: u64,
}

/// A thread's files, to be read by any thread of the process until it ends.
#[derive(Debug)]
pub struct ThreadFiles {
    schedstat: File,
    status: File,
    /// For the text of the files.
    buffer: Vec<u8>,
    last: Reading,
}

impl ThreadFiles {
    /// The calling thread's.
    ///
    /// # Errors
    /// Which file can not be opened, and why.
    pub fn of_this_thread() -> io::Result<Self> {
        let open = |name: &str| {
            let path = format!("/proc/thread-self/{name}");
            File::open(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {}", told(&error))))
        };
        let (schedstat, status) = (open("schedstat")?, open("status")?);
        Ok(Self { schedstat, status, buffer: vec![0; 4096], last: Reading::default() })
    }

    /// Reads the numbers now.
    ///
    /// # Errors
    /// ESRCH once the thread has ended; that a file is not what it should be.
    pub fn read(&mut self) -> io::Result<Reading> {
        let times = text(&self.schedstat, &mut self.buffer)?;
        let mut numbers = times.split_ascii_whitespace().map(str::parse);
        let mut number =
            || numbers.next().and_then(Result::ok).ok_or_else(|| not_as_known("schedstat"));
        let (run_ns, wait_ns, slices) = (number()?, number()?, number()?);
        let last = self.last;
        // Every switch away from the thread adds to its run time. So if that has not moved, neither have
        // the numbers of switches, which are far dearer to read.
        if (run_ns, wait_ns, slices) != (last.run_ns, last.wait_ns, last.slices) || slices == 0 {
            let status = text(&self.status, &mut self.buffer)?;
            let number = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|n| n.trim().parse().ok()).ok_or_else(|| not_as_known("status"))
            };
            let voluntary = number("voluntary_ctxt_switches:")?;
            let involuntary = number("nonvoluntary_ctxt_switches:")?;
            self.last = Reading { run_ns, wait_ns, slices, voluntary, involuntary };
        }
        Ok(self.last)
    }
}

fn not_as_known(name: &str) -> io::Error {
    io::Error::other(format!("/proc/thread-self/{name} is not as this program knows it"))
}

/// The whole text of a file below /proc, which such a file gives in one piece if there is room.
fn text<'a>(file: &File, buffer: &'a mut Vec<u8>) -> io::Result<&'a str> {
    loop {
        let n = file.read_at(buffer, 0)?;
        if n < buffer.len() {
            return std::str::from_utf8(&buffer[..n]).map_err(io::Error::other);
        }
        buffer.resize(2 * n, 0);
    }
}

/// Time that the calling thread was on a CPU: what `schedstat` has, up to this moment.
fn run_ns_now() -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    let got = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    (got == 0).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// What is to be told where the numbers of a vCPU are not there.
fn missing_because(error: &io::Error) -> String {
    let hint = if error.kind() == io::ErrorKind::NotFound { " (is /proc mounted?)" } else { "" };
    format!("the scheduler's statistics of vCPUs are missing, {error}{hint}")
}

/// The vCPUs of a process that are sampled.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// Held by every one of them.
    count: Arc<()>,
    readable: bool,
    missing: Arc<Missing>,
}

impl Sampled {
    /// None yet, nor ever if the kernel does not have the files.
    pub fn none() -> Self {
        let readable = ThreadFiles::of_this_thread().and_then(|mut files| files.read());
        let missing = Missing::default();
        let readable = readable.map_err(|error| missing.note(|| missing_because(&error))).is_ok();
        Self { count: Arc::default(), readable, missing: Arc::new(missing) }
    }

    /// Whether vCPUs are sampled.
    pub fn is_possible(&self) -> bool {
        self.readable
    }

    /// Says once why vCPUs are not sampled, if one of them is not.
    pub fn tell_what_is_missing(&self) {
        self.missing.tell();
    }

    /// How often the next one is sampled.
    fn interval(&self) -> Duration {
        INTERVAL * ((Arc::strong_count(&self.count) - 1) / AT_ONCE + 1) as u32
    }

    /// Adds the group to the source of one more vCPU, to be sampled from its thread's
    /// [start](VcpuSched::start) on. `None` where that is not possible.
    ///
    /// # Errors
    /// [`SourceError`] as when values are added.
    pub fn add(&self, source: &Source) -> Result<Option<VcpuSched>, SourceError> {
        if !self.readable {
            return Ok(None);
        }
        let interval = self.interval();
        let (shared, count) = (Arc::new(Shared::default()), self.count.clone());
        let last = source.add_values::<SchedStats>()?;
        let sampled = shared.clone();
        source.add_callback::<SchedStats>(interval, move |slot| {
            let _count = &count;
            sampled.sample(slot);
        })?;
        Ok(Some(VcpuSched { shared, last, missing: self.missing.clone() }))
    }
}

/// What the two readers share of a thread's numbers.
#[derive(Debug, Default)]
struct Shared(Mutex<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// While the thread is there.
    files: Option<ThreadFiles>,
    /// What the slots have together.
    counted: Reading,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, slot: &Slot<SchedStats>) {
        let mut progress = self.lock();
        // It fails when the thread was ended without its last act, by a panic in that.
        if let Some(Ok(reading)) = progress.files.as_mut().map(ThreadFiles::read) {
            progress.count(reading, slot);
        }
    }
}

impl Progress {
    /// Counts what a reading has beyond the last one.
    fn count(&mut self, reading: Reading, slot: &Slot<SchedStats>) {
        let counted = self.counted;
        slot.update(|cells| {
            cells.sched_run_ns.add(reading.run_ns.saturating_sub(counted.run_ns));
            cells.sched_wait_ns.add(reading.wait_ns.saturating_sub(counted.wait_ns));
            cells.sched_slices.add(reading.slices.saturating_sub(counted.slices));
            cells.sched_voluntary_switches.add(reading.voluntary.saturating_sub(counted.voluntary));
            cells
                .sched_involuntary_switches
                .add(reading.involuntary.saturating_sub(counted.involuntary));
        });
        self.counted = Reading {
            run_ns: reading.run_ns.max(counted.run_ns),
            wait_ns: reading.wait_ns.max(counted.wait_ns),
            slices: reading.slices.max(counted.slices),
            voluntary: reading.voluntary.max(counted.voluntary),
            involuntary: reading.involuntary.max(counted.involuntary),
        };
    }
}

/// The scheduler's statistics of one vCPU, whose thread is yet to start.
#[derive(Debug)]
pub struct VcpuSched {
    shared: Arc<Shared>,
    last: Slot<SchedStats>,
    missing: Arc<Missing>,
}

impl VcpuSched {
    /// Has the calling thread's numbers sampled from now on. The last reading is taken when what this
    /// returns is dropped, by this same thread.
    #[must_use]
    pub fn start(self) -> Watched {
        match ThreadFiles::of_this_thread() {
            Ok(files) => self.shared.lock().files = Some(files),
            // The first reason is enough.
            Err(error) => self.missing.note(|| missing_because(&error)),
        }
        Watched { sched: self, on_this_thread: std::marker::PhantomData }
    }
}

/// A vCPU's thread whose numbers are sampled.
#[derive(Debug)]
pub struct Watched {
    sched: VcpuSched,
    /// The last reading is of the thread that drops this.
    on_this_thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let VcpuSched { shared, last, .. } = &self.sched;
        let mut progress = shared.lock();
        let Some(mut files) = progress.files.take() else { return };
        if let Ok(mut reading) = files.read() {
            // Without this, what the thread ran since the last tick would be missing.
            if reading.slices > 0 {
                reading.run_ns = reading.run_ns.max(run_ns_now().unwrap_or(0));
            }
            progress.count(reading, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use statsfs::Registry;

    use super::*;

    /// A registry with a source `vcpu0` that is in the tree.
    fn vcpu() -> (Registry, Source) {
        let registry = Registry::new().unwrap();
        let source = registry.create_source("vcpu0").unwrap();
        source.register().unwrap();
        (registry, source)
    }

    /// What the tree shows of it.
    fn shown(registry: &Registry) -> Reading {
        let mut text = Vec::new();
        registry.tree().unwrap().flat(&mut text);
        let text = String::from_utf8(text).unwrap();
        let number = |name| {
            let prefix = format!("vcpu0/sched_{name} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
            line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
        };
        Reading {
            run_ns: number("run_ns"),
            wait_ns: number("wait_ns"),
            slices: number("slices"),
            voluntary: number("voluntary_switches"),
            involuntary: number("involuntary_switches"),
        }
    }

    fn now(files: &mut ThreadFiles) -> Reading {
        let reading = files.read().unwrap();
        Reading { run_ns: run_ns_now().unwrap(), ..reading }
    }

    /// Keeps the thread busy, with a few switches in between.
    fn work() {
        for _ in 0..3 {
            let end = run_ns_now().unwrap() + 2_000_000;
            while run_ns_now().unwrap() < end {}
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_last_reading_is_the_threads_own() {
        let (registry, source) = vcpu();
        let sched = Sampled::none().add(&source).unwrap().unwrap();
        assert_eq!(shown(&registry), Reading::default());
        let thread = std::thread::spawn(move || {
            let mut files = ThreadFiles::of_this_thread().unwrap();
            let watched = sched.start();
            work();
            let before = now(&mut files);
            drop(watched);
            (before, now(&mut files))
        });
        let (before, after) = thread.join().unwrap();
        let last = shown(&registry);
        assert!(before.voluntary >= 3 && before.run_ns >= 6_000_000, "{before:?}");
        for (name, of) in [
            ("run_ns", (|r| r.run_ns) as fn(&Reading) -> u64),
            ("wait_ns", |r| r.wait_ns),
            ("slices", |r| r.slices),
            ("voluntary", |r| r.voluntary),
            ("involuntary", |r| r.involuntary),
        ] {
            let (before, last, after) = (of(&before), of(&last), of(&after));
            assert!(before <= last && last <= after, "{name}: {before}, {last}, {after}");
        }
        // And stays what it is, when its source is about to go too.
        source.revoke().unwrap();
    }

    #[test]
    fn a_thread_at_rest_is_sampled_exactly() {
        let (registry, source) = vcpu();
        let sched = Sampled::none().add(&source).unwrap().unwrap();
        let (rest, rests) = channel();
        let (release, released) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let _watched = sched.start();
            work();
            rest.send(ThreadFiles::of_this_thread().unwrap()).unwrap();
            released.recv().unwrap();
        });
        let mut files = rests.recv().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = Reading::default();
        loop {
            let (shown, kernel) = (shown(&registry), files.read().unwrap());
            assert!(shown.run_ns >= before.run_ns && shown.slices >= before.slices);
            if shown == kernel && shown.slices > 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{shown:?}, but {kernel:?}");
            before = shown;
            std::thread::sleep(Duration::from_millis(10));
        }
        release.send(()).unwrap();
        thread.join().unwrap();
        assert!(shown(&registry).run_ns > before.run_ns);
        assert!(files.read().is_err(), "nobody else can read them any more");
    }

    #[test]
    fn an_idle_thread_is_read_at_the_lower_price() {
        let (rest, rests) = channel();
        let (release, released) = channel::<()>();
        let thread = std::thread::spawn(move || {
            rest.send(ThreadFiles::of_this_thread().unwrap()).unwrap();
            released.recv().unwrap();
        });
        let mut files = rests.recv().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let first = files.read().unwrap();
            // Whoever asks the second file fails; once the thread sleeps, nobody does.
            let status = std::mem::replace(&mut files.status, File::open("/dev/null").unwrap());
            if let Ok(second) = files.read() {
                assert_eq!(second, first);
                break;
            }
            assert!(Instant::now() < deadline, "the thread does not rest");
            files.status = status;
        }
        release.send(()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn more_vcpus_are_sampled_less_often() {
        let (registry, source) = vcpu();
        let sampled = Sampled::none();
        assert_eq!(sampled.interval(), INTERVAL);
        let held: Vec<_> = (0..AT_ONCE).map(|_| sampled.count.clone()).collect();
        assert_eq!(sampled.interval(), 2 * INTERVAL);
        drop(held);
        assert_eq!(sampled.interval(), INTERVAL);
        // A vCPU counts until its source leaves.
        let first = sampled.add(&source).unwrap();
        assert_eq!(Arc::strong_count(&sampled.count), 2);
        drop(first);
        assert_eq!(Arc::strong_count(&sampled.count), 2);
        source.revoke().unwrap();
        assert_eq!(Arc::strong_count(&sampled.count), 1);
        drop(registry);
    }

    #[test]
    fn a_long_text_is_read_as_a_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let long = "x".repeat(9999);
        file.write_all(long.as_bytes()).unwrap();
        let mut buffer = vec![0; 16];
        assert_eq!(text(&file, &mut buffer).unwrap(), long);
        file.write_all(b"\xff").unwrap();
        assert!(text(&file, &mut buffer).is_err());
    }
}
