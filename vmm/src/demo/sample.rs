//! What the demo shows, read from the mounted tree as any program would: by a thread that holds none of the
//! process's files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::seccomp::{Thread, confine};

/// After how long what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(50);

/// The exit reasons that the demo's guests lead to; all others are summed up.
pub const REASONS: [&str; 5] = ["io_in", "io_out", "mmio_read", "mmio_write", "hlt"];

/// One reading of one directory: a vCPU, a guest, or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// All exits.
    pub exits: u64,
    /// Exits by reason, in the order of [`REASONS`].
    pub by_reason: [u64; REASONS.len()],
    /// Mean time to handle an exit, in nanoseconds.
    pub mean_ns: u64,
    /// Time that 99 of 100 exits are handled in, in nanoseconds.
    pub p99_ns: u64,
}

impl Sample {
    /// Exits for other reasons.
    pub fn others(&self) -> u64 {
        self.exits.saturating_sub(self.by_reason.iter().sum())
    }

    /// Where the value of this file goes, if it is one of those shown.
    fn field(&mut self, file: &str) -> Option<&mut u64> {
        match file {
            "user_exits" => Some(&mut self.exits),
            "user_handle_time/mean" => Some(&mut self.mean_ns),
            "user_handle_time/p99" => Some(&mut self.p99_ns),
            _ => {
                let reason = file.strip_prefix("user_exit_")?;
                let at = REASONS.iter().position(|known| *known == reason)?;
                Some(&mut self.by_reason[at])
            }
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The guest, or `all`.
    pub guest: String,
    /// The vCPU, or `all`.
    pub vcpu: String,
    /// What was read.
    pub sample: Sample,
    /// Exits per second since the last reading.
    pub rate: f64,
}

/// What is known of a row between two readings.
struct Known {
    guest: String,
    vcpu: String,
    /// Exits at the last reading.
    exits: u64,
}

/// Reads a file, again and again, on a thread with files of its own.
///
/// A thread that waits for an answer of a FUSE file system waits for it even when it is killed, once a server
/// has taken its request. Here the server is this very process, which is killed too: its connection, and with
/// it the wait, ends when the last descriptor of it is closed. So whoever waits must not share those.
struct Reader {
    ask: Sender<()>,
    answers: Receiver<io::Result<String>>,
}

impl Reader {
    fn start(file: PathBuf) -> io::Result<Self> {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let ready = answer.clone();
        let run = move || {
            let started = let_go_of_files()
                .and_then(|()| confine(Thread::Reader).map_err(io::Error::other))
                .map(|()| String::new());
            if started.is_err() | ready.send(started).is_err() {
                return;
            }
            while asked.recv().is_ok() && answer.send(fs::read_to_string(&file)).is_ok() {}
        };
        // It ends with this.
        drop(thread::Builder::new().name("demo-reader".into()).spawn(run)?);
        let reader = Self { ask, answers };
        reader.answer()?;
        Ok(reader)
    }

    fn read(&self) -> io::Result<String> {
        // If it has ended, there is no answer.
        let _ = self.ask.send(());
        self.answer()
    }

    fn answer(&self) -> io::Result<String> {
        self.answers.recv().unwrap_or_else(|_| Err(io::Error::other("its reader has ended")))
    }
}

/// Gives the calling thread files of its own: the standard ones, and no others.
fn let_go_of_files() -> io::Result<()> {
    let first = libc::STDERR_FILENO + 1;
    // SAFETY: the descriptors stay as they are for all other threads, and this one owns none.
    let closed = unsafe {
        let all = libc::c_uint::MAX;
        libc::syscall(libc::SYS_close_range, first, all, libc::CLOSE_RANGE_UNSHARE)
    };
    if closed == 0 {
        return Ok(());
    }
    // Linux before 5.9. There are seldom so many.
    // SAFETY: as above.
    unsafe {
        if libc::unshare(libc::CLONE_FILES) < 0 {
            return Err(io::Error::last_os_error());
        }
        (first..1 << 16).for_each(|descriptor| _ = libc::close(descriptor));
    }
    Ok(())
}

/// Reads the values of all guests and vCPUs, and remembers the last reading for the rates.
pub struct Sampler {
    file: PathBuf,
    reader: Reader,
    rows: Vec<Known>,
    /// The row of each directory, by its path in the file.
    by_directory: HashMap<String, usize>,
    last: Instant,
}

/// The values of one file, and which row's they are.
fn parse(
    text: &str,
    by_directory: &HashMap<String, usize>,
    rows: usize,
) -> io::Result<Vec<Sample>> {
    let mut samples = vec![Sample::default(); rows];
    let mut found = vec![0; rows];
    for line in text.lines() {
        let Some((path, value)) = line.split_once(' ') else { continue };
        let Some(at) = path.find("/user_") else { continue };
        let (directory, file) = (&path[..at], &path[at + 1..]);
        let Some(&row) = by_directory.get(directory) else { continue };
        if let Some(field) = samples[row].field(file) {
            *field = value
                .parse()
                .map_err(|_| io::Error::other(format!("{path}: {value:?} is not a number")))?;
            found[row] += 1;
        }
    }
    match found.iter().position(|n| *n != REASONS.len() + 3) {
        None => Ok(samples),
        Some(row) => {
            let directory = by_directory.iter().find(|(_, at)| **at == row);
            let directory = directory.map_or("", |(directory, _)| directory);
            Err(io::Error::other(format!("{directory} is not in it as it should be")))
        }
    }
}

impl Sampler {
    /// A sampler of guests whose sources (`<pid>-<name>`) and names are given, below the mount at
    /// `mount`. If they are `alone` there, `kvm` is the total over them. It has a thread, so that it must be
    /// made before no more can be started.
    ///
    /// # Errors
    /// If the thread can not be had.
    pub fn new(
        mount: &Path,
        guests: &[(String, String)],
        vcpus: u32,
        alone: bool,
    ) -> io::Result<Self> {
        let mut rows = Vec::new();
        let mut by_directory = HashMap::new();
        let mut add = |guest: &str, vcpu: &str, directory: String| {
            by_directory.insert(directory, rows.len());
            rows.push(Known { guest: guest.to_string(), vcpu: vcpu.to_string(), exits: 0 });
        };
        for (source, name) in guests {
            for vcpu in 0..vcpus {
                add(name, &vcpu.to_string(), format!("kvm/{source}/vcpu{vcpu}"));
            }
            if vcpus > 1 {
                add(name, "all", format!("kvm/{source}"));
            }
        }
        if guests.len() > 1 && alone {
            add("all", "", "kvm".to_string());
        }
        // One file of one sweep, so that the rows agree with each other.
        let file = mount.join("kvm/.stats/flat");
        let reader = Reader::start(file.clone())?;
        Ok(Self { file, reader, rows, by_directory, last: Instant::now() })
    }

    /// As [`sample`](Self::sample), again and again for so long if it can not be read.
    ///
    /// # Errors
    /// As that.
    pub fn sample_within(&mut self, patience: Duration) -> io::Result<Vec<Row>> {
        let end = Instant::now() + patience;
        loop {
            match self.sample() {
                Err(_) if Instant::now() < end => thread::sleep(AGAIN),
                result => return result,
            }
        }
    }

    /// Reads everything now. Rates are since the last call.
    ///
    /// # Errors
    /// What reading says, or that something is not there.
    pub fn sample(&mut self) -> io::Result<Vec<Row>> {
        let now = Instant::now();
        let samples = self
            .reader
            .read()
            .and_then(|text| parse(&text, &self.by_directory, self.rows.len()))
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", self.file.display()))
            })?;
        let seconds = (now - self.last).as_secs_f64().max(1e-9);
        self.last = now;
        let row = |(known, sample): (&mut Known, Sample)| {
            let new = sample.exits.saturating_sub(known.exits);
            known.exits = sample.exits;
            Row {
                guest: known.guest.clone(),
                vcpu: known.vcpu.clone(),
                sample,
                rate: new as f64 / seconds,
            }
        };
        Ok(self.rows.iter_mut().zip(samples).map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of one directory.
    fn lines(directory: &str, exits: u64, parts: [u64; 5]) -> String {
        let mut text = format!("{directory}/user_exits {exits}\n{directory}/thread_id 7\n");
        for (reason, n) in REASONS.iter().zip(parts) {
            text += &format!("{directory}/user_exit_{reason} {n}\n");
        }
        text += &format!("{directory}/user_exit_shutdown 3\n{directory}/user_time_hlt 4\n");
        text += &format!("{directory}/user_handle_time/count {exits}\n");
        text += &format!("{directory}/user_handle_time/mean 1500\n");
        text + &format!("{directory}/user_handle_time/p99 4096\n")
    }

    fn sampler(mount: &Path) -> Sampler {
        let guests = [("7-demo0".into(), "demo0".into()), ("7-demo1".into(), "demo1".into())];
        Sampler::new(mount, &guests, 2, true).unwrap()
    }

    #[test]
    fn every_vcpu_every_guest_and_all_together_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kvm/.stats")).unwrap();
        let mut text = lines("kvm", 80, [4, 8, 12, 16, 20]);
        for guest in ["kvm/7-demo0", "kvm/7-demo1", "kvm/8-other"] {
            text += &lines(guest, 40, [2, 4, 6, 8, 10]);
            text += &lines(&format!("{guest}/vcpu0"), 20, [1, 2, 3, 4, 5]);
            text += &lines(&format!("{guest}/vcpu1"), 20, [1, 2, 3, 4, 5]);
        }
        fs::write(dir.path().join("kvm/.stats/flat"), &text).unwrap();
        let mut sampler = sampler(dir.path());
        let rows = sampler.sample().unwrap();
        let names: Vec<_> = rows.iter().map(|r| format!("{}/{}", r.guest, r.vcpu)).collect();
        assert_eq!(
            names,
            ["demo0/0", "demo0/1", "demo0/all", "demo1/0", "demo1/1", "demo1/all", "all/"]
        );
        assert_eq!((rows[0].sample.exits, rows[2].sample.exits), (20, 40));
        assert_eq!(rows[0].sample.others(), 5);
        assert_eq!(rows[6].sample.by_reason, [4, 8, 12, 16, 20]);
        assert_eq!((rows[0].sample.mean_ns, rows[0].sample.p99_ns), (1500, 4096));
        let again = sampler.sample().unwrap();
        assert_eq!(again[0].rate, 0.0, "nothing new");
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut sampler = sampler(dir.path());
        let error = sampler.sample().unwrap_err().to_string();
        assert!(error.contains(".stats/flat") && error.contains("No such file"), "{error}");
        fs::create_dir_all(dir.path().join("kvm/.stats")).unwrap();
        let file = dir.path().join("kvm/.stats/flat");
        fs::write(&file, lines("kvm", 1, [0; 5])).unwrap();
        let error = sampler.sample().unwrap_err().to_string();
        assert!(error.contains("kvm/7-demo0/vcpu0 is not"), "{error}");
        fs::write(&file, "kvm/user_exits x\n").unwrap();
        let error = sampler.sample().unwrap_err().to_string();
        assert!(error.contains("kvm/user_exits: \"x\" is not a number"), "{error}");
    }
}
