//! SIGKILL of the server: systemd keeps the mount's devices and the segments, and starts the next one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use tests::Random;
use tests::outside::Outside;
use tests::running::wait_until;
use tests::soak::rounds;

use super::unit::{Unit, busy, device, parked, path, run, seen, value};

/// How often: each way to leave around that time at least once.
const ROUNDS: u32 = 4;

/// Values of a process, and of the host, that only ever grow.
const CUMULATIVE: [&str; 4] =
    ["user_exits", "user_exit_io_in", "user_time_io_in", "user_run_time/count"];

/// Sums of what has left.
#[derive(Default)]
struct Departed(BTreeMap<&'static str, u64>);

impl Departed {
    fn add(&mut self, value: impl Fn(&str) -> u64) {
        for name in CUMULATIVE {
            *self.0.entry(name).or_default() += value(&format!("kvm/{name}"));
        }
    }

    /// Waits until just this is shown.
    fn wait(&self) {
        for (name, sum) in &self.0 {
            let path = format!("kvm/.departed/{name}");
            let what = format!("{path} is {sum}");
            wait_until(&what, || (value(&path) == Some(*sum)).then_some(()));
        }
    }
}

/// What readers do until they are told to stop. Any error is one too many.
struct Readers {
    stop: AtomicBool,
    reads: AtomicU64,
}

impl Readers {
    fn each(&self, mut read: impl FnMut() -> u64) {
        let mut last = 0;
        while !self.stop.load(SeqCst) {
            let now = read();
            assert!(now >= last, "{now} after {last}");
            last = now;
            self.reads.fetch_add(1, SeqCst);
            // An emulated CPU does not get to much else.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Of a file that stays open.
    fn keep_open(&self, file: &File) {
        self.each(|| {
            let mut text = [0; 32];
            let n = file.read_at(&mut text, 0).expect("an open value file is read");
            std::str::from_utf8(&text[..n]).unwrap().trim_end().parse().unwrap()
        });
    }

    /// Of a file that is opened each time, and of the directory where it is.
    fn open_anew(&self, below: &str) {
        let (file, directory) = (path(below), path("kvm"));
        self.each(|| {
            let entries = fs::read_dir(&directory).expect("the directory is listed");
            entries.for_each(|entry| _ = entry.expect("an entry is read"));
            fs::read_to_string(&file).expect("a value file is read").trim_end().parse().unwrap()
        });
    }

    fn wait_for_more(&self) {
        let before = self.reads.load(SeqCst);
        wait_until("readers go on", || (self.reads.load(SeqCst) > before + 10).then_some(()));
    }
}

/// Tells readers to stop, also when something fails.
struct Stop<'a>(&'a Readers);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

fn kill(pid: u32) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
}

pub fn nobody_notices_that_the_server_was_killed() {
    let unit = Unit::started();
    let mut random = Random::new();
    let before = device();
    let restarts = unit.number("NRestarts");
    let stays = busy();
    seen(&stays);
    let exits = format!("{}/user_exits", stays.machine());
    // What was cleared is a baseline of the server's.
    let cleared = format!("{}/user_exit_hlt", stays.machine());
    fs::write(path(&cleared), "0\n").unwrap();
    let inode = |below: &str| fs::metadata(path(below)).unwrap().ino();
    let number = inode(&stays.machine());
    let open = [&*exits, "kvm/user_exits"].map(|below| File::open(path(below)).unwrap());
    let mut departed = Departed::default();
    departed.add(|below| value(&below.replacen('/', "/.departed/", 1)).unwrap_or(0));
    let readers = &Readers { stop: AtomicBool::new(false), reads: AtomicU64::new(0) };

    thread::scope(|scope| {
        let _stop = Stop(readers);
        for file in &open {
            scope.spawn(|| readers.keep_open(file));
        }
        for below in [&*exits, "kvm/user_exits"] {
            scope.spawn(|| readers.open_anew(below));
        }
        for round in 0..u64::from(rounds(ROUNDS).max(ROUNDS)) {
            let mut leaves = if round % 3 == 2 { parked() } else { busy() };
            seen(&leaves);
            let outside = Outside::attach(leaves.pid()).unwrap();
            readers.wait_for_more();
            if round == 3 {
                // As after an update of systemd.
                run("systemctl", &["daemon-reexec"]);
            }
            let pid = unit.pid();
            thread::sleep(Duration::from_micros(random.below(50_000)));
            // One leaves around the same time.
            match round % 3 {
                0 => {
                    kill(pid);
                    assert_eq!(leaves.kill_and_wait(), Some(libc::SIGKILL));
                }
                1 => {
                    assert_eq!(leaves.kill_and_wait(), Some(libc::SIGKILL));
                    kill(pid);
                }
                _ => {
                    kill(pid);
                    leaves.release();
                    leaves.wait().assert(0);
                }
            }
            departed.add(|below| outside.value(below));
            wait_until("the next server", || {
                let shown = unit.show(&["MainPID", "ActiveState"]);
                let is_next =
                    shown["MainPID"] != pid.to_string() && shown["ActiveState"] == "active";
                is_next.then_some(())
            });
            assert_eq!(unit.number("NRestarts"), restarts + round + 1);
            assert_eq!(device(), before, "it is the same mount");
            assert_eq!(inode(&stays.machine()), number, "it is the same directory");
            assert_eq!(value(&cleared), Some(0));
            departed.wait();
            readers.wait_for_more();
        }
    });
    // It says what it has counted when it ends.
    stays.signal(libc::SIGTERM);
    let ended = stays.wait();
    let last = ended.flat();
    departed.add(|below| last.get(below));
    departed.wait();
    for (name, sum) in &departed.0 {
        assert_eq!(value(&format!("kvm/{name}")), Some(*sum), "{name}");
    }
    unit.assert_content();
}
