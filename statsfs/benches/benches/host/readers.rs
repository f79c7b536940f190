//! Those who read: what many of them do at once, and what a walk finds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What `cat` does.
pub fn cat(path: &Path) {
    let mut buffer = [0; 64];
    let read = File::open(path).and_then(|mut file| file.read(&mut buffer));
    assert!(read.is_ok_and(|n| n > 1), "{}", path.display());
}

/// Reads a large file to its end, and answers its length.
pub fn read_all(path: &Path, buffer: &mut [u8]) -> std::io::Result<usize> {
    let (mut file, mut all) = (File::open(path)?, 0);
    loop {
        match file.read(buffer)? {
            0 => return Ok(all),
            n => all += n,
        }
    }
}

/// The entries of a directory, without `.` and `..`.
pub fn list(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    entries.inspect(|entry| assert!(entry.is_ok())).count()
}

/// Wall time of `n` entries of a directory, by whole listings of it.
pub fn time_entries(path: &Path, n: u64) -> Duration {
    let (start, mut done) = (Instant::now(), 0);
    while done < n {
        done += list(path) as u64;
    }
    start.elapsed().mul_f64(n as f64 / done as f64)
}

/// Walks through directories, all at once, a `find` for each; answers how many entries there were, and how long
/// it took.
pub fn find(directories: &[Vec<PathBuf>]) -> (usize, Duration) {
    let start = Instant::now();
    let walk = |directories: &Vec<PathBuf>| {
        let mut find = Command::new("find");
        find.args(directories).args(["-printf", "."]).stdout(Stdio::piped());
        find.spawn().unwrap_or_else(|error| panic!("find: {error}"))
    };
    let walks: Vec<_> = directories.iter().map(walk).collect();
    let count = |mut walk: std::process::Child| {
        let mut output = walk.stdout.take().expect("it is piped");
        let counting = std::thread::spawn(move || {
            let (mut buffer, mut all) = ([0; 1 << 14], 0);
            loop {
                match output.read(&mut buffer).expect("a pipe") {
                    0 => return all,
                    n => all += n,
                }
            }
        });
        (walk, counting)
    };
    let counts: Vec<_> = walks.into_iter().map(count).collect();
    let mut all = 0;
    for (mut walk, counting) in counts {
        all += counting.join().expect("it counts");
        assert!(walk.wait().is_ok_and(|status| status.success()), "find has failed");
    }
    (all, start.elapsed())
}

/// Some who read files one after the other, all at once.
pub struct Crowd {
    readers: Vec<(Sender<u64>, JoinHandle<()>)>,
    done: Receiver<()>,
}

impl Crowd {
    /// So many, of the same files, each beginning at another.
    pub fn new(readers: usize, files: &[PathBuf]) -> Self {
        let (send, done) = channel();
        let reader = |n: usize| {
            let (files, done) = (files.to_vec(), send.clone());
            let (go, told) = channel::<u64>();
            let thread = std::thread::spawn(move || {
                let mut next = files.iter().cycle().skip(n * files.len() / readers);
                for n in told {
                    (0..n).filter_map(|_| next.next()).for_each(|file| cat(file));
                    let _ = done.send(());
                }
            });
            (go, thread)
        };
        Self { readers: (0..readers).map(reader).collect(), done }
    }

    /// Wall time until they have read so many files together.
    pub fn read(&self, n: u64) -> Duration {
        let (start, all) = (Instant::now(), self.readers.len() as u64);
        for (go, _) in &self.readers {
            go.send(n.div_ceil(all)).expect("it reads");
        }
        self.readers.iter().for_each(|_| self.done.recv().expect("it reads"));
        start.elapsed().mul_f64(n as f64 / (n.div_ceil(all) * all) as f64)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (go, thread) in self.readers.drain(..) {
            drop(go);
            let _ = thread.join();
        }
    }
}

/// What `run` answers while somebody on the first CPU reads a file again and again; and counts how often.
pub fn while_reading<T>(path: &Path, times: &AtomicU64, run: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (first, has_read) = channel();
        let stop = &stop;
        scope.spawn(move || {
            statsfs_benches::pin(0);
            let mut buffer = vec![0; 1 << 20];
            while !stop.load(Ordering::Relaxed) {
                assert!(read_all(path, &mut buffer).is_ok_and(|n| n > 1), "{}", path.display());
                times.fetch_add(1, Ordering::Relaxed);
                let _ = first.send(());
            }
        });
        has_read.recv().expect("it reads");
        let answer = run();
        stop.store(true, Ordering::Relaxed);
        answer
    })
}
