//! What the demo shows, read from the mounted tree as any program would.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// Reads a directory of the tree.
    ///
    /// # Errors
    /// What reading says, or that a file is not a number.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut by_reason = [0; REASONS.len()];
        for (value, reason) in by_reason.iter_mut().zip(REASONS) {
            *value = number(&directory.join(format!("user_exit_{reason}")))?;
        }
        Ok(Self {
            by_reason,
            // After the parts, so that the rest is never negative.
            exits: number(&directory.join("user_exits"))?,
            mean_ns: number(&directory.join("user_handle_time/mean"))?,
            p99_ns: number(&directory.join("user_handle_time/p99"))?,
        })
    }

    /// Exits for other reasons.
    pub fn others(&self) -> u64 {
        self.exits.saturating_sub(self.by_reason.iter().sum())
    }
}

fn number(path: &Path) -> io::Result<u64> {
    let named = |what: String| format!("{}: {what}", path.display());
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), named(error.to_string())))?;
    text.trim_end()
        .parse()
        .map_err(|_| io::Error::other(named(format!("{:?} is not a number", text.trim_end()))))
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

/// Reads the directories of all guests and vCPUs, and remembers the last reading for the rates.
pub struct Sampler {
    /// In the order of the rows: the names, the directory, the exits at the last reading.
    rows: Vec<(String, String, PathBuf, u64)>,
    last: Instant,
}

impl Sampler {
    /// A sampler of guests whose sources (`<pid>-<name>`) and names are given, below the mount at
    /// `mount`.
    pub fn new(mount: &Path, guests: &[(String, String)], vcpus: u32) -> Self {
        let kvm = mount.join("kvm");
        let mut rows = Vec::new();
        for (source, name) in guests {
            let directory = kvm.join(source);
            for vcpu in 0..vcpus {
                rows.push((
                    name.clone(),
                    vcpu.to_string(),
                    directory.join(format!("vcpu{vcpu}")),
                    0,
                ));
            }
            if vcpus > 1 {
                rows.push((name.clone(), "all".to_string(), directory, 0));
            }
        }
        if guests.len() > 1 {
            rows.push(("all".to_string(), String::new(), kvm, 0));
        }
        Self { rows, last: Instant::now() }
    }

    /// Reads everything now. Rates are since the last call.
    ///
    /// # Errors
    /// What reading says.
    pub fn sample(&mut self) -> io::Result<Vec<Row>> {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64().max(1e-9);
        self.last = now;
        self.rows
            .iter_mut()
            .map(|(guest, vcpu, directory, last)| {
                let sample = Sample::read(directory)?;
                let new = sample.exits.saturating_sub(*last);
                *last = sample.exits;
                Ok(Row {
                    guest: guest.clone(),
                    vcpu: vcpu.clone(),
                    sample,
                    rate: new as f64 / seconds,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, exits: u64, parts: [u64; 5]) {
        fs::create_dir_all(directory.join("user_handle_time")).unwrap();
        let file = |name: &str, n: u64| fs::write(directory.join(name), format!("{n}\n")).unwrap();
        file("user_exits", exits);
        for (reason, n) in REASONS.iter().zip(parts) {
            file(&format!("user_exit_{reason}"), n);
        }
        file("user_handle_time/mean", 1500);
        file("user_handle_time/p99", 4096);
    }

    #[test]
    fn every_vcpu_every_guest_and_all_together_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let kvm = dir.path().join("kvm");
        for guest in ["7-demo0", "7-demo1"] {
            for vcpu in ["vcpu0", "vcpu1"] {
                write(&kvm.join(guest).join(vcpu), 20, [1, 2, 3, 4, 5]);
            }
            write(&kvm.join(guest), 40, [2, 4, 6, 8, 10]);
        }
        write(&kvm, 80, [4, 8, 12, 16, 20]);
        let guests = [("7-demo0".into(), "demo0".into()), ("7-demo1".into(), "demo1".into())];
        let mut sampler = Sampler::new(dir.path(), &guests, 2);
        let rows = sampler.sample().unwrap();
        let names: Vec<_> = rows.iter().map(|r| format!("{}/{}", r.guest, r.vcpu)).collect();
        assert_eq!(
            names,
            ["demo0/0", "demo0/1", "demo0/all", "demo1/0", "demo1/1", "demo1/all", "all/"]
        );
        assert_eq!(rows[0].sample.exits, 20);
        assert_eq!(rows[0].sample.others(), 5);
        assert_eq!(rows[6].sample.by_reason, [4, 8, 12, 16, 20]);
        assert_eq!((rows[0].sample.mean_ns, rows[0].sample.p99_ns), (1500, 4096));
        let again = sampler.sample().unwrap();
        assert_eq!(again[0].rate, 0.0, "nothing new");
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Sample::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("user_exit_io_in"), "{error}");
        write(dir.path(), 1, [0; 5]);
        fs::write(dir.path().join("user_exits"), "x\n").unwrap();
        let error = Sample::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("user_exits") && error.contains("\"x\""), "{error}");
    }
}
