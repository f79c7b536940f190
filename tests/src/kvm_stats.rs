//! KVM's own statistics of another process, straight from the descriptors that it has of them, and what a tree shows of
//! them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::bulk::{KvmStatistic, KvmStatistics, LOG_HIST};
use crate::flat::Flat;

/// The room for names in the kernel's own (`KVM_STATS_NAME_SIZE`).
const NAME: usize = 48;

/// One descriptor.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// `kvm-<pid>` or `kvm-<pid>/vcpu-<n>`.
    pub id: String,
}

/// `KVM_STATS_TYPE_CUMULATIVE` and `KVM_STATS_TYPE_PEAK`, and `KVM_STATS_UNIT_BOOLEAN`, of the flags.
const CUMULATIVE: u32 = 0;
const PEAK: u32 = 2;
const BOOLEAN: u32 = 4 << 4;

impl KvmStatistic {
    /// Whether it is a logarithmic histogram.
    pub fn is_histogram(&self) -> bool {
        self.flags & 0xf == LOG_HIST
    }

    /// Whether it is a largest so far.
    pub fn is_peak(&self) -> bool {
        self.flags & 0xf == PEAK
    }

    /// Whether it only grows.
    pub fn grows(&self) -> bool {
        self.is_histogram() || self.flags & 0xf == CUMULATIVE
    }

    /// Its cells as a tree has them.
    fn cells(&self) -> Vec<u64> {
        let is_bool = self.flags & 0xf0 == BOOLEAN;
        self.values.iter().map(|cell| if is_bool { u64::from(*cell != 0) } else { *cell }).collect()
    }
}

impl KvmStats {
    /// All that a process has open, by their ids; it may go on without noticing, and end.
    ///
    /// # Errors
    /// If the process has gone, or this one may not look into it.
    ///
    /// # Panics
    /// If one is not in the format.
    pub fn of(pid: u32) -> io::Result<BTreeMap<String, Self>> {
        // SAFETY: no pointers.
        let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let Ok(link) = std::fs::read_link(&path) else { continue };
            let link = link.to_string_lossy().into_owned();
            if !link.starts_with("anon_inode:kvm-vm-stats")
                && !link.starts_with("anon_inode:kvm-vcpu-stats:")
            {
                continue;
            }
            let number: libc::c_int =
                path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
            // SAFETY: no pointers; the descriptor is open.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
            let file = File::from(owned(fd)?);
            let KvmStatistics { id, .. } = KvmStatistics::of(&file, NAME);
            all.insert(id.clone(), Self { file, id });
        }
        Ok(all)
    }

    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }

    /// Everything in it, now.
    ///
    /// # Panics
    /// If it is not in the format.
    pub fn now(&self) -> Vec<KvmStatistic> {
        KvmStatistics::of(&self.file, NAME).all
    }

    /// A value of one cell, now.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> u64 {
        let value = self.now().into_iter().find(|value| value.name == name);
        value.unwrap_or_else(|| panic!("{} has no {name}", self.id)).values[0]
    }
}

/// What a directory shows of a value of KVM's: its cells.
///
/// # Panics
/// If it does not show it.
pub fn shown(flat: &Flat, directory: &str, value: &KvmStatistic) -> Vec<u64> {
    let path = format!("{directory}/{}", value.name);
    if !value.is_histogram() {
        return vec![flat.get(&path)];
    }
    // Buckets are called by what they are below.
    let last = value.values.len() - 1;
    let edge = |n: usize| if n == last { "inf".to_string() } else { (1u64 << n).to_string() };
    let buckets = (0..=last).map(|n| flat.get(&format!("{path}/buckets/{}", edge(n))));
    let buckets: Vec<_> = buckets.collect();
    assert_eq!(flat.get(&format!("{path}/count")), buckets.iter().sum::<u64>(), "{path}");
    buckets
}

/// Compares a machine, and the totals in these directories over it and no other, with its descriptors; answers how many
/// cells these have, and how many are not 0.
///
/// # Panics
/// If something is not the same.
pub fn compare(
    flat: &Flat,
    machine: &str,
    totals: &[&str],
    stats: &BTreeMap<String, KvmStats>,
) -> (usize, usize) {
    let (mut compared, mut counted) = (0, 0);
    let mut sums: BTreeMap<String, (KvmStatistic, Vec<u64>)> = BTreeMap::new();
    for (id, stats) in stats {
        let directory = match id.split_once("/vcpu-") {
            Some((_, index)) => format!("{machine}/vcpu{index}"),
            None => machine.to_string(),
        };
        for value in stats.now() {
            let expected = value.cells();
            assert_eq!(shown(flat, &directory, &value), expected, "{directory}/{}", value.name);
            compared += expected.len();
            counted += expected.iter().filter(|cell| **cell > 0).count();
            let zeros = vec![0; expected.len()];
            let (value, sum) = sums.entry(value.name.clone()).or_insert((value, zeros));
            for (sum, cell) in sum.iter_mut().zip(expected) {
                *sum = if value.is_peak() { (*sum).max(cell) } else { *sum + cell };
            }
        }
    }
    for (value, sum) in sums.values() {
        for directory in totals {
            assert_eq!(shown(flat, directory, value), *sum, "{directory}/{}", value.name);
        }
    }
    (compared, counted)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
