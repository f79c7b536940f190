//! Segments made word by word, as no honest writer would.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::segment::layout::{
    HEADER_SIZE, MAGIC, UNIT, VERSION, accumulator_copy, block_shape, head, header, kind, pair,
    role, unit_offset, word,
};
use crate::segment::process::Process;
use crate::segment::region::Region;
use crate::segment::{Limits, SegmentError, schema};
use crate::value::{Aggregations, Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};

pub(super) const ALL_SEALS: libc::c_int =
    libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE;

/// A memfd of `size` bytes, none of them touched.
pub(super) fn memfd(flags: libc::c_uint, size: u64) -> OwnedFd {
    let name = CString::new("crafted").unwrap();
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system call on a descriptor that we own.
    let result = unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) };
    assert_eq!(result, 0, "ftruncate: {}", std::io::Error::last_os_error());
    fd
}

pub(super) fn seal(fd: &OwnedFd, seals: libc::c_int) {
    // SAFETY: plain system call on a descriptor that we own.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    assert_eq!(result, 0, "F_ADD_SEALS: {}", std::io::Error::last_os_error());
}

/// A segment that stays writable for whoever made it.
pub(super) struct Crafted {
    pub(super) fd: OwnedFd,
    pub(super) region: Region,
}

pub(super) const SIZE: usize = 64 << 10;

impl Crafted {
    /// A segment with a valid header and nothing else.
    pub(super) fn empty(index: u64) -> Self {
        Self::sized(index, SIZE)
    }

    pub(super) fn sized(index: u64, size: usize) -> Self {
        let fd = memfd(libc::MFD_ALLOW_SEALING, size as u64);
        let region = Region::map(std::os::fd::AsFd::as_fd(&fd), size, true).unwrap();
        region.touch_every_page();
        seal(&fd, ALL_SEALS);
        let crafted = Self { fd, region };
        crafted.set(header::MAGIC, MAGIC);
        crafted.set(header::VERSION, pair(VERSION, HEADER_SIZE as u32));
        crafted.set(header::ID, 100 + index);
        crafted.set(header::PUBLISHER, 7);
        crafted.set(header::INDEX, index);
        crafted.set(header::SIZE, size as u64);
        crafted.set(header::SEGMENTS, 1);
        crafted
    }

    pub(super) fn set(&self, offset: usize, value: u64) {
        self.region.word(offset).store(value, Ordering::Relaxed);
    }

    pub(super) fn units(&self, units: u64) {
        self.set(header::UNITS, units);
    }

    /// A word of a unit.
    pub(super) fn put(&self, unit: u32, word: usize, value: u64) {
        self.set(unit_offset(unit) + word * 8, value);
    }

    /// A published record from its head on.
    pub(super) fn record(&self, unit: u32, words: &[u64]) {
        for (n, value) in words.iter().enumerate() {
            self.put(unit, 1 + n, *value);
        }
        self.put(unit, word::GENERATION, 2);
    }

    pub(super) fn text(&self, unit: u32, word: usize, text: &[u8]) {
        for (n, bytes) in text.chunks(8).enumerate() {
            let mut all = [0; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            self.put(unit, word + n, u64::from_le_bytes(all));
        }
    }

    pub(super) fn source(&self, unit: u32, id: u64, parent: u64, name: &str) {
        self.text(unit, word::NAME, name.as_bytes());
        self.record(unit, &[head(kind::SOURCE, 0, name.len() as u8, 0, 0), 0, id, parent, 1_000]);
    }

    pub(super) fn label(&self, unit: u32, source: u64, index: u8, key: &[u8], value: &[u8]) {
        self.text(unit, word::LABEL_KEY, key);
        self.text(unit, word::LABEL_VALUE, value);
        let head = head(kind::LABEL, index, key.len() as u8, value.len() as u8, 0);
        self.record(unit, &[head, 0, source]);
    }

    pub(super) fn group(&self, unit: u32, group: &GroupDescriptor) -> u32 {
        let words = schema::encode(group);
        self.record(unit, &words);
        words.len().div_ceil(UNIT / 8) as u32
    }

    pub(super) fn block(&self, unit: u32, role: u8, group: u32, source: u64, at: (usize, usize)) {
        let extent = pair(at.0 as u32, at.1 as u32);
        self.record(unit, &[head(kind::BLOCK, role, 0, 0, group), 0, extent, source]);
    }

    pub(super) fn attach(&self, limits: &Limits) -> Result<Process, SegmentError> {
        let mut process = Process::attach(vec![self.fd.try_clone().unwrap()], limits)?;
        process.refresh(false, &mut Vec::new())?;
        Ok(process)
    }
}

/// A group with a narrow value, so that its block has more than words.
pub(super) fn group() -> Arc<GroupDescriptor> {
    GroupBuilder::new("work")
        .consistent()
        .value(Descriptor::new("jobs", ValueType::U64, Semantics::Cumulative))
        .value(
            Descriptor::new("busy", ValueType::Bool, Semantics::Floating)
                .aggregate(Aggregations::COUNT_NONZERO),
        )
        .build()
        .unwrap()
}

pub(super) fn slot_len() -> usize {
    let group = group();
    block_shape(group.latched_size(), group.plain_size()).len
}

pub(super) fn accumulator_len() -> usize {
    2 * accumulator_copy(group().words())
}

/// Where the valid segment's records are.
pub(super) const GROUP: u32 = 0;
pub(super) const TOP: u32 = 2;
pub(super) const LABEL: u32 = 3;
pub(super) const CHILD: u32 = 4;
pub(super) const ACCUMULATOR: u32 = 5;
pub(super) const SLOT: u32 = 6;
pub(super) const AGGREGATE: u32 = 7;
/// Units that are free, of which the first few were used.
pub(super) const FREE: u32 = 8;
pub(super) const USED: u64 = 11;
pub(super) const TOP_ID: u64 = 10;
pub(super) const CHILD_ID: u64 = 11;
pub(super) const SLOT_AT: usize = SIZE - 128;
pub(super) const ACCUMULATOR_AT: usize = SIZE - 1024;

/// A segment with one of each record, all in order: the source *top* with a label and an accumulator,
/// below it *child* with a slot that has counted 42.
pub(super) fn valid() -> Crafted {
    let crafted = Crafted::empty(0);
    assert_eq!(crafted.group(GROUP, &group()), TOP);
    assert_eq!((slot_len(), accumulator_len()), (128, 256));
    crafted.source(TOP, TOP_ID, 1, "top");
    crafted.put(TOP, word::HEAD, head(kind::SOURCE, 0, 3, 1, 0));
    crafted.label(LABEL, TOP_ID, 0, b"owner", b"me");
    crafted.source(CHILD, CHILD_ID, TOP_ID, "child");
    let accumulator = (ACCUMULATOR_AT, accumulator_len());
    crafted.block(ACCUMULATOR, role::ACCUMULATOR, GROUP, TOP_ID, accumulator);
    crafted.block(SLOT, role::SLOT, GROUP, CHILD_ID, (SLOT_AT, slot_len()));
    crafted.block(AGGREGATE, role::AGGREGATE, GROUP, TOP_ID, (0, 0));
    for copy in [16, 24] {
        crafted.set(SLOT_AT + copy, 42);
    }
    crafted.units(USED);
    crafted
}
