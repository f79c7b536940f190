//! KVM's own statistics of another process, straight from the descriptors that it has of them: as strictly as the
//! kernel's own test of their format (`kvm_binary_stats_test` in Linux' selftests) asks for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::flat::Flat;

/// Everything in one descriptor.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// `kvm-<pid>` or `kvm-<pid>/vcpu-<n>`.
    pub id: String,
    values: Vec<Value>,
    data: u64,
}

/// What one value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name.
    pub name: String,
    /// What kind of value it is.
    pub kind: Kind,
    /// `KVM_STATS_UNIT_*`, from 0.
    pub unit: u32,
    /// The power of the unit.
    pub exponent: i16,
    /// How many cells it has.
    pub cells: usize,
    offset: u64,
}

/// `KVM_STATS_TYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Cumulative,
    /// It goes both ways.
    Instant,
    /// The largest so far.
    Peak,
    /// Buckets of one size.
    Linear,
    /// Buckets of powers of two.
    Log,
}

impl KvmStats {
    /// Reads one, and checks all that there is to be checked.
    ///
    /// # Panics
    /// If it is not in the format.
    pub fn read(file: File) -> Self {
        let bytes = |len: usize, at: u64| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).expect("it can be read");
            bytes
        };
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("there are four"))
        };
        let header = bytes(24, 0);
        let [flags, name_size, count, id_at, table_at, data_at] =
            [0, 4, 8, 12, 16, 20].map(|at| word(&header, at));
        assert_eq!(flags, 0, "flags of the header");
        assert!(name_size > 0 && count > 0);
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).expect("it is terminated");
            assert!(end > 0, "a name is empty");
            std::str::from_utf8(&bytes[..end]).expect("names are text").to_string()
        };
        let id = text(&bytes(name_size as usize, id_at.into()));
        assert!(id.starts_with("kvm"), "the id is {id:?}");
        let size = 16 + name_size;
        assert!(id_at >= 24 && table_at >= 24 && data_at >= 24, "something is in the header");
        assert!(
            id_at + name_size <= table_at || id_at >= table_at + size * count,
            "id and descriptors overlap"
        );
        assert!(id_at + name_size <= data_at, "id and data overlap, or are in another order");
        assert!(table_at + size * count <= data_at, "descriptors and data overlap");
        let table = bytes((size * count) as usize, table_at.into());
        let mut end = 0;
        let mut values: Vec<Value> = Vec::new();
        for entry in table.chunks_exact(size as usize) {
            let (flags, sizes) = (word(entry, 0), word(entry, 4));
            let (kind, unit, base) = (flags & 0xf, flags >> 4 & 0xf, flags >> 8 & 0xf);
            let (exponent, cells) = (sizes as u16 as i16, (sizes >> 16) as usize);
            let (offset, bucket) = (word(entry, 8), word(entry, 12));
            let name = text(&entry[16..]);
            let kind = match kind {
                0 => Kind::Cumulative,
                1 => Kind::Instant,
                2 => Kind::Peak,
                3 => Kind::Linear,
                4 => Kind::Log,
                _ => panic!("{name} is of type {kind}"),
            };
            assert!(unit <= 4 && base <= 1 && flags >> 12 == 0, "{name}: flags {flags:#x}");
            match unit {
                2 => assert!(exponent <= 0, "{name}: seconds with exponent {exponent}"),
                4 => assert_eq!(exponent, 0, "{name}: a truth value with an exponent"),
                _ => assert!(exponent >= 0, "{name}: exponent {exponent}"),
            }
            assert!(cells > 0, "{name} has no cells");
            assert_eq!(bucket != 0, kind == Kind::Linear, "{name}: buckets of {bucket}");
            assert!(offset % 8 == 0, "{name} is not aligned");
            assert!(values.iter().all(|other| other.name != name), "{name} is there twice");
            end = end.max(offset as usize + cells * 8);
            values.push(Value { name, kind, unit, exponent, cells, offset: offset.into() });
        }
        let total: usize = values.iter().map(|value| value.cells * 8).sum();
        assert_eq!(end, total, "cells overlap, or there are gaps");
        let mut places: Vec<_> =
            values.iter().map(|v| (v.offset, v.offset + v.cells as u64 * 8)).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 == pair[1].0), "cells overlap");
        Self { file, id, values, data: data_at.into() }
    }

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
            let stats = Self::read(File::from(owned(fd)?));
            all.insert(stats.id.clone(), stats);
        }
        Ok(all)
    }

    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }

    /// What values there are.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The cells of a value, now.
    ///
    /// # Panics
    /// If they can not be read.
    pub fn cells(&self, value: &Value) -> Vec<u64> {
        let mut bytes = vec![0; value.cells * 8];
        self.file.read_exact_at(&mut bytes, self.data + value.offset).expect("it can be read");
        let words = bytes.chunks_exact(8).map(|word| word.try_into().expect("there are eight"));
        words.map(u64::from_le_bytes).collect()
    }

    /// A value of one cell, now.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> u64 {
        let value = self.values.iter().find(|value| value.name == name);
        self.cells(value.unwrap_or_else(|| panic!("{} has no {name}", self.id)))[0]
    }
}

/// What a directory shows of a value of KVM's: its cells.
///
/// # Panics
/// If it does not show it.
pub fn shown(flat: &Flat, directory: &str, value: &Value) -> Vec<u64> {
    let path = format!("{directory}/{}", value.name);
    if value.kind != Kind::Log {
        return vec![flat.get(&path)];
    }
    // Buckets are called by what they are below.
    let edge = |n: usize| format!("{path}/buckets/{}", 1u64 << n);
    let last = format!("{path}/buckets/inf");
    let count = value.cells;
    let buckets: Vec<_> =
        (0..count).map(|n| flat.get(&if n + 1 < count { edge(n) } else { last.clone() })).collect();
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
    let mut sums: BTreeMap<&str, (&Value, Vec<u64>)> = BTreeMap::new();
    for (id, stats) in stats {
        let directory = match id.split_once("/vcpu-") {
            Some((_, index)) => format!("{machine}/vcpu{index}"),
            None => machine.to_string(),
        };
        for value in stats.values() {
            let cells = stats.cells(value);
            let expected = if value.unit == 4 { vec![u64::from(cells[0] != 0)] } else { cells };
            assert_eq!(shown(flat, &directory, value), expected, "{directory}/{}", value.name);
            compared += expected.len();
            counted += expected.iter().filter(|cell| **cell > 0).count();
            let (_, sum) =
                sums.entry(&value.name).or_insert_with(|| (value, vec![0; expected.len()]));
            for (sum, cell) in sum.iter_mut().zip(expected) {
                *sum = if value.kind == Kind::Peak { (*sum).max(cell) } else { *sum + cell };
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
