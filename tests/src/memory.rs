//! What a process that runs a guest has in physical memory, by kind of mapping.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The guest's memory.
    Guest,
    /// The program: its code, constants and variables.
    Program,
    /// Shared libraries.
    Libraries,
    /// The C library's heap.
    Heap,
    /// Allocations with mappings of their own, such as the buffers of those who answer FUSE requests.
    Large,
    /// Stacks of all threads.
    Stacks,
    /// Segments of statistics, to be written and to be read.
    Segments,
    /// The pages that vCPUs share with KVM.
    Vcpus,
    /// All else.
    Other,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Guest,
        Self::Program,
        Self::Libraries,
        Self::Heap,
        Self::Large,
        Self::Stacks,
        Self::Segments,
        Self::Vcpus,
        Self::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest memory",
            Self::Program => "program",
            Self::Libraries => "libraries",
            Self::Heap => "heap",
            Self::Large => "large allocations",
            Self::Stacks => "stacks",
            Self::Segments => "segments",
            Self::Vcpus => "vCPUs",
            Self::Other => "other",
        }
    }
}

/// One mapping, as proc_pid_smaps(5) has it; sizes in KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    permissions: String,
    name: String,
    rss: u64,
    private: u64,
    huge: u64,
    advised_against_huge: bool,
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::<Mapping>::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            let permissions = words.next().unwrap_or_default().to_string();
            // Behind offset, device and inode; it may have spaces in it.
            let name = words.skip(3).collect::<Vec<_>>().join(" ");
            mappings.push(Mapping { start, end, permissions, name, ..Default::default() });
            continue;
        }
        let Some(last) = mappings.last_mut() else { continue };
        let mut kib = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Rss:" => last.rss = kib(),
            "Private_Clean:" | "Private_Dirty:" => last.private += kib(),
            "AnonHugePages:" => last.huge = kib(),
            "VmFlags:" => last.advised_against_huge = words.any(|flag| flag == "nh"),
            _ => {}
        }
    }
    mappings
}

/// KiB of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// All of it.
    pub rss: u64,
    /// Of that, what no other process has, and nobody can have back but from this one.
    pub private: u64,
    /// Of that, in huge pages.
    pub huge: u64,
    /// KiB of mappings that huge pages fit into, and may be used for: without the advice not to.
    pub may_be_huge: u64,
}

/// What a process has in physical memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory(BTreeMap<Kind, Use>);

impl Memory {
    /// Of a process whose guest has this many MiB.
    ///
    /// # Panics
    /// If there is no such process, or no mapping that could be its guest's memory.
    pub fn of(pid: u32, guest: u32) -> Self {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
        Self::from_smaps(&smaps, &program, guest)
    }

    fn from_smaps(smaps: &str, program: &Path, guest: u32) -> Self {
        let mappings = parse(smaps);
        let guest_bytes = u64::from(guest) << 20;
        let mut memory = Self::default();
        let mut guard_ends = None;
        for mapping in &mappings {
            let Mapping { start, end, permissions, name, .. } = mapping;
            let size = end - start;
            let anonymous = name.is_empty();
            let kind = match name.as_str() {
                // Nothing else is nearly as large, and it may be joined with what is next to it.
                _ if anonymous && (guest_bytes..guest_bytes + (4 << 20)).contains(&size) => {
                    Kind::Guest
                }
                "[heap]" => Kind::Heap,
                "[stack]" => Kind::Stacks,
                // A thread's stack grows down to a page that nobody can access.
                _ if anonymous && guard_ends == Some(*start) => Kind::Stacks,
                _ if anonymous && mapping.advised_against_huge => Kind::Large,
                name if name.starts_with("/memfd:statsfs") => Kind::Segments,
                name if name.starts_with("anon_inode:kvm") => Kind::Vcpus,
                name if Path::new(name) == program => Kind::Program,
                name if name.starts_with('/') => Kind::Libraries,
                _ => Kind::Other,
            };
            guard_ends = (anonymous && permissions.starts_with("---")).then_some(*end);
            let sum = memory.0.entry(kind).or_default();
            sum.rss += mapping.rss;
            sum.private += mapping.private;
            sum.huge += mapping.huge;
            let fits = size >= 2 << 20 && !mapping.advised_against_huge;
            sum.may_be_huge += if fits { size >> 10 } else { 0 };
        }
        assert!(memory.0.contains_key(&Kind::Guest), "which is the guest's memory?\n{smaps}");
        memory
    }

    /// Of one kind.
    pub fn get(&self, kind: Kind) -> Use {
        self.0.get(&kind).copied().unwrap_or_default()
    }

    /// All but the guest's.
    pub fn beside_guest(&self) -> Use {
        let kinds = self.0.iter().filter(|(kind, _)| **kind != Kind::Guest);
        kinds.fold(Use::default(), |sum, (_, one)| Use {
            rss: sum.rss + one.rss,
            private: sum.private + one.private,
            huge: sum.huge + one.huge,
            may_be_huge: sum.may_be_huge + one.may_be_huge,
        })
    }
}

/// A table, a line for each kind.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:20} {:>8} {:>8} {:>8}", "KiB", "Rss", "private", "huge")?;
        let mut row = |name, Use { rss, private, huge, .. }| {
            writeln!(f, "{name:20} {rss:8} {private:8} {huge:8}")
        };
        Kind::ALL.into_iter().try_for_each(|kind| row(kind.name(), self.get(kind)))?;
        row("beside guest memory", self.beside_guest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d000000000-55d000010000 r-xp 00000000 fe:00 5 /usr/bin/a vmm
Rss:                  40 kB
Private_Clean:         8 kB
Private_Dirty:         4 kB
AnonHugePages:         0 kB
VmFlags: rd ex mr
55d000020000-55d000030000 rw-p 00000000 00:00 0 [heap]
Rss:                  16 kB
Private_Dirty:        16 kB
VmFlags: rd wr
7f0000000000-7f0000001000 ---p 00000000 00:00 0
Rss:                   0 kB
VmFlags: mr
7f0000001000-7f0000201000 rw-p 00000000 00:00 0
Rss:                  12 kB
VmFlags: rd wr nh
7f0000300000-7f0001300000 rw-p 00000000 00:00 0
Rss:                   8 kB
VmFlags: rd wr nh
7f0002000000-7f0004000000 rw-p 00000000 00:00 0
Rss:                4096 kB
AnonHugePages:      2048 kB
VmFlags: rd wr
7f0005000000-7f0005020000 r--s 00000000 00:01 7 /memfd:statsfs-0 (deleted)
Rss:                 100 kB
7f0005100000-7f0005103000 rw-s 00000000 00:0e 9 anon_inode:kvm-vcpu:0
Rss:                   4 kB
7f0005200000-7f0005203000 r-xp 00000000 fe:00 8 /lib/libc.so.6
Rss:                   7 kB
7f0005300000-7f0005303000 rw-p 00000000 00:00 0
Rss:                   1 kB
";

    #[test]
    fn every_mapping_is_of_its_kind() {
        let memory = Memory::from_smaps(SMAPS, Path::new("/usr/bin/a vmm"), 32);
        let rss = Kind::ALL.map(|kind| memory.get(kind).rss);
        assert_eq!(rss, [4096, 40, 7, 16, 8, 12, 100, 4, 1]);
        assert_eq!(memory.get(Kind::Program).private, 12);
        let beside = memory.beside_guest();
        assert_eq!((beside.rss, beside.private, beside.huge), (188, 28, 0));
        assert_eq!(memory.get(Kind::Guest).huge, 2048);
        let may_be_huge = |kind| memory.get(kind).may_be_huge;
        assert_eq!([Kind::Large, Kind::Heap, Kind::Guest].map(may_be_huge), [0, 0, 32 << 10]);
        let table = memory.to_string();
        assert_eq!(table.lines().count(), 11);
        assert!(table.ends_with("beside guest memory       188       28        0\n"), "{table}");
    }

    #[test]
    #[should_panic(expected = "which is the guest's memory")]
    fn a_guest_without_memory_is_noticed() {
        Memory::from_smaps(SMAPS, Path::new("/usr/bin/a vmm"), 64);
    }
}
