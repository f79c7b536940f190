//! Every lie that a segment can tell is refused with its own reason.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::crafted::*;
use crate::segment::layout::{
    DEFAULT_SEGMENT, HEADER_SIZE, MIN_SEGMENT, flag, head, header, kind, pair, role, unit_limit,
    unit_offset, word,
};
use crate::segment::process::Process;
use crate::segment::{FileError, Limits, SegmentError, SegmentReader};
use crate::value::{Descriptor, GroupBuilder, Semantics, ValueType};

fn file_error(fd: impl AsFd, limits: &Limits) -> FileError {
    match SegmentReader::attach(fd.as_fd(), limits) {
        Err(SegmentError::File(error)) => error,
        other => panic!("the file is not refused for itself: {other:?}"),
    }
}

#[test]
fn what_is_no_memfd_is_refused_unseen() {
    let limits = Limits::default();
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(matches!(file_error(&pipe, &limits), FileError::Unsealable(_)));
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(file_error(&socket, &limits), FileError::Unsealable(_)));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(file_error(&null, &limits), FileError::Unsealable(_)));
    let proc = std::fs::File::open("/proc/self/status").unwrap();
    assert!(matches!(file_error(&proc, &limits), FileError::Unsealable(_)));
    // An ordinary file, and one on a tmpfs, where asking for seals succeeds.
    for dir in ["/var/tmp", "/dev/shm"] {
        let file = tempfile::tempfile_in(dir).unwrap();
        file.set_len(SIZE as u64).unwrap();
        let error = file_error(&file, &limits);
        assert!(matches!(error, FileError::Unsealable(_) | FileError::Seal("SHRINK")), "{error}");
    }
}

#[test]
fn every_seal_is_needed() {
    let seals = [
        (libc::F_SEAL_SEAL, "SEAL"),
        (libc::F_SEAL_SHRINK, "SHRINK"),
        (libc::F_SEAL_GROW, "GROW"),
        (libc::F_SEAL_FUTURE_WRITE, "FUTURE_WRITE"),
    ];
    let limits = Limits::default();
    for (missing, expected) in seals {
        let fd = memfd(libc::MFD_ALLOW_SEALING, SIZE as u64);
        seal(&fd, ALL_SEALS & !missing);
        assert!(matches!(file_error(&fd, &limits), FileError::Seal(name) if name == expected));
    }
    let fd = memfd(libc::MFD_ALLOW_SEALING, SIZE as u64);
    assert!(matches!(file_error(&fd, &limits), FileError::Seal("SEAL")));
    // Not even sealable.
    let fd = memfd(0, SIZE as u64);
    assert!(matches!(file_error(&fd, &limits), FileError::Seal("SHRINK")));
}

#[test]
fn more_seals_than_needed_are_fine() {
    let fd = valid().fd;
    let fd = {
        // The mapping is gone: now even F_SEAL_WRITE can be had, but not on what is sealed already.
        let copy = memfd(libc::MFD_ALLOW_SEALING, SIZE as u64);
        let mut from = std::fs::File::from(fd);
        let mut to = std::fs::File::from(copy);
        std::io::copy(&mut from, &mut to).unwrap();
        OwnedFd::from(to)
    };
    seal(&fd, ALL_SEALS | libc::F_SEAL_WRITE);
    SegmentReader::attach(fd.as_fd(), &Limits::default()).unwrap();
}

/// Writes a byte into each of the pages.
fn fill(fd: &OwnedFd, pages: impl IntoIterator<Item = usize>) {
    for page in pages {
        // SAFETY: the byte outlives the call.
        let n = unsafe {
            libc::pwrite(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, (page * 4096) as libc::off_t)
        };
        assert_eq!(n, 1);
    }
}

#[test]
fn holes_are_refused() {
    let pages = SIZE / 4096;
    for hole in [0, 1, pages - 1] {
        let fd = memfd(libc::MFD_ALLOW_SEALING, SIZE as u64);
        fill(&fd, (0..pages).filter(|page| *page != hole));
        seal(&fd, ALL_SEALS);
        let error = file_error(&fd, &Limits::default());
        assert!(matches!(error, FileError::Hole(at) if at == hole as u64 * 4096), "{error}");
    }
}

#[test]
fn blocks_past_the_end_hide_no_hole() {
    let pages = SIZE / 4096;
    let fd = memfd(libc::MFD_ALLOW_SEALING, SIZE as u64);
    fill(&fd, (0..pages).filter(|page| page % 2 == 0));
    // SAFETY: plain system call.
    let result = unsafe {
        libc::fallocate(
            fd.as_raw_fd(),
            libc::FALLOC_FL_KEEP_SIZE,
            SIZE as libc::off_t,
            SIZE as libc::off_t,
        )
    };
    assert_eq!(result, 0, "fallocate: {}", std::io::Error::last_os_error());
    seal(&fd, ALL_SEALS);
    // SAFETY: an all-zero stat is a valid value, and the pointer is to it.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(fd.as_raw_fd(), &mut stat), 0);
        stat
    };
    assert!(stat.st_blocks * 512 >= SIZE as i64, "the trick needs blocks past the end");
    assert!(matches!(file_error(&fd, &Limits::default()), FileError::Hole(4096)));
}

#[test]
fn sizes_are_bounded() {
    let limits = Limits { segment_size: DEFAULT_SEGMENT, ..Limits::default() };
    let min = MIN_SEGMENT as u64;
    for size in
        [0, 1, 4096, min - 4096, min + 1, min + 2048, DEFAULT_SEGMENT as u64 + 4096, 1 << 40]
    {
        let fd = memfd(libc::MFD_ALLOW_SEALING, size);
        seal(&fd, ALL_SEALS);
        let error = file_error(&fd, &limits);
        assert!(matches!(error, FileError::Size { size: s, .. } if s == size), "{size}: {error}");
    }
}

#[test]
fn huge_pages_are_refused() {
    // The file can be made and sealed even where no huge pages are reserved.
    let fd = memfd(libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB, 2 << 20);
    seal(&fd, ALL_SEALS);
    assert!(matches!(file_error(&fd, &Limits::default()), FileError::Huge));
}

#[test]
fn the_valid_segment_is_accepted() {
    valid().attach(&Limits::default()).unwrap();
}

/// One lie: what is changed in the valid segment, and the reason that must be given.
type Lie = (&'static str, fn(&Crafted));

#[test]
fn a_lie_in_the_header_is_refused() {
    let lies: &[Lie] = &[
        ("does not begin with STATSFS1", |c| c.set(header::MAGIC, 0)),
        ("format version 2", |c| c.set(header::VERSION, pair(2, HEADER_SIZE as u32))),
        ("header has 8192 bytes", |c| c.set(header::VERSION, pair(1, 8192))),
        ("own id is zero", |c| c.set(header::ID, 0)),
        ("publisher's id is zero", |c| c.set(header::PUBLISHER, 0)),
        ("index 256 is not below 256", |c| c.set(header::INDEX, 256)),
        ("header says 65537 bytes", |c| c.set(header::SIZE, SIZE as u64 + 1)),
        ("header says 16384 bytes", |c| c.set(header::SIZE, MIN_SEGMENT as u64)),
        ("481 units are in use", |c| c.units(u64::from(unit_limit(SIZE)) + 1)),
        ("units are in use", |c| c.units(u64::MAX)),
        ("first segment is missing", |c| c.set(header::INDEX, 3)),
    ];
    check(lies);
}

#[test]
fn a_lie_in_a_source_is_refused() {
    let lies: &[Lie] = &[
        ("unknown kind 9", |c| c.put(CHILD, word::HEAD, head(9, 0, 5, 0, 0))),
        ("unknown kind 0", |c| c.record(FREE, &[0])),
        ("unknown flags 0x84", |c| {
            c.put(CHILD, word::HEAD, head(kind::SOURCE, 0x84, 5, 0, 0));
        }),
        ("no acceptable name", |c| c.put(CHILD, word::HEAD, head(kind::SOURCE, 0, 0, 0, 0))),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, ".hidden")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, "..")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, "a/b")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, "a\0b")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, "a\nb")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, "ä")),
        ("no acceptable name", |c| c.source(CHILD, CHILD_ID, 0, &"x".repeat(64))),
        ("no acceptable name", |c| c.put(CHILD, word::HEAD, head(kind::SOURCE, 0, 255, 0, 0))),
        ("says it has 9 labels", |c| c.put(TOP, word::HEAD, head(kind::SOURCE, 0, 3, 9, 0))),
        ("unit 4 names source 0", |c| c.put(CHILD, word::ID, 0)),
        ("unit 4 names source 1,", |c| c.put(CHILD, word::ID, 1)),
        ("in state 2,", |c| c.put(CHILD, word::STATE, 2)),
        ("two sources have the id 10", |c| c.source(FREE, TOP_ID, 0, "other")),
        ("two subordinates named \"child\"", |c| c.source(FREE, 12, TOP_ID, "child")),
        ("two subordinates named \"top\"", |c| c.source(FREE, 12, 1, "top")),
        ("is its own ancestor", |c| c.put(TOP, word::PARENT, TOP_ID)),
        ("is its own ancestor", |c| c.put(TOP, word::PARENT, CHILD_ID)),
        ("is its own ancestor", |c| {
            c.source(FREE, 12, CHILD_ID, "grandchild");
            c.put(TOP, word::PARENT, 12);
        }),
    ];
    check(lies);
}

#[test]
fn a_lie_in_a_label_is_refused() {
    let lies: &[Lie] = &[
        ("is number 8;", |c| c.label(LABEL, TOP_ID, 8, b"owner", b"me")),
        ("names source 0,", |c| c.label(LABEL, 0, 0, b"owner", b"me")),
        ("names source 1,", |c| c.label(LABEL, 1, 0, b"owner", b"me")),
        ("not an acceptable key", |c| c.label(LABEL, TOP_ID, 0, b"", b"me")),
        ("not an acceptable key", |c| c.label(LABEL, TOP_ID, 0, b"Owner", b"me")),
        ("not an acceptable key", |c| c.label(LABEL, TOP_ID, 0, b"o=", b"me")),
        ("not an acceptable key", |c| c.label(LABEL, TOP_ID, 0, b"owner", b"\xff\xfe")),
        ("not an acceptable key", |c| c.label(LABEL, TOP_ID, 0, b"owner", b"a\nb")),
        ("not an acceptable key", |c| c.put(LABEL, word::HEAD, head(kind::LABEL, 0, 33, 2, 0))),
        ("not an acceptable key", |c| c.put(LABEL, word::HEAD, head(kind::LABEL, 0, 5, 65, 0))),
        ("not an acceptable key", |c| {
            c.put(LABEL, word::HEAD, head(kind::LABEL, 0, 255, 255, 0));
        }),
        ("source 10 has the same label twice", |c| c.label(FREE, TOP_ID, 0, b"other", b"me")),
        ("source 10 has the same label twice", |c| {
            c.put(TOP, word::HEAD, head(kind::SOURCE, 0, 3, 2, 0));
            c.label(FREE, TOP_ID, 1, b"owner", b"you");
        }),
    ];
    check(lies);
}

#[test]
fn a_lie_in_a_block_is_refused() {
    let lies: &[Lie] = &[
        ("unknown role 3", |c| c.put(SLOT, word::HEAD, head(kind::BLOCK, 3, 0, 0, GROUP))),
        ("names source 0,", |c| c.put(SLOT, word::BLOCK_SOURCE, 0)),
        ("names source 1,", |c| c.put(SLOT, word::BLOCK_SOURCE, 1)),
        ("outside the segment's blocks", |c| c.put(SLOT, word::EXTENT, pair(0, 128))),
        ("outside the segment's blocks", |c| {
            c.put(SLOT, word::EXTENT, pair(unit_offset(SLOT) as u32, 128));
        }),
        ("outside the segment's blocks", |c| c.put(SLOT, word::EXTENT, pair(SIZE as u32, 128))),
        ("outside the segment's blocks", |c| {
            c.put(SLOT, word::EXTENT, pair(SIZE as u32 - 128, 256));
        }),
        ("outside the segment's blocks", |c| c.put(SLOT, word::EXTENT, pair(u32::MAX - 127, 128))),
        ("outside the segment's blocks", |c| {
            c.put(SLOT, word::EXTENT, pair(SLOT_AT as u32, u32::MAX));
        }),
        ("outside the segment's blocks", |c| {
            c.put(SLOT, word::EXTENT, pair(SLOT_AT as u32 - 64, 128));
        }),
        ("outside the segment's blocks", |c| c.put(AGGREGATE, word::EXTENT, pair(128, 0))),
        ("0 bytes instead of the 128", |c| c.put(SLOT, word::EXTENT, pair(SLOT_AT as u32, 0))),
        ("256 bytes instead of the 128", |c| {
            c.put(SLOT, word::EXTENT, pair(SLOT_AT as u32 - 128, 256));
        }),
        ("128 bytes instead of the 256", |c| {
            c.put(ACCUMULATOR, word::EXTENT, pair(ACCUMULATOR_AT as u32, 128));
        }),
        ("of a group in unit 4, where there is none", |c| {
            c.put(SLOT, word::HEAD, head(kind::BLOCK, role::SLOT, 0, 0, CHILD));
        }),
        ("of a group in unit 1, where there is none", |c| {
            c.put(SLOT, word::HEAD, head(kind::BLOCK, role::SLOT, 0, 0, GROUP + 1));
        }),
        ("of a group in unit 4294967295, where there is none", |c| {
            c.put(SLOT, word::HEAD, head(kind::BLOCK, role::SLOT, 0, 0, u32::MAX));
        }),
        ("overlap", |c| c.block(FREE, role::SLOT, GROUP, CHILD_ID, (SLOT_AT, 128))),
        ("overlap", |c| {
            c.block(FREE, role::ACCUMULATOR, GROUP, CHILD_ID, (SLOT_AT - 128, 256));
        }),
        ("overlap", |c| {
            c.block(FREE, role::SLOT, GROUP, CHILD_ID, (ACCUMULATOR_AT + 128, 128));
        }),
        ("two accumulators of the group \"work\"", |c| {
            c.block(FREE, role::ACCUMULATOR, GROUP, TOP_ID, (ACCUMULATOR_AT - 256, 256));
        }),
        ("two values named \"jobs\"", |c| {
            let other = GroupBuilder::new("other")
                .value(Descriptor::new("jobs", ValueType::U32, Semantics::Cumulative))
                .build()
                .unwrap();
            let units = c.group(USED as u32, &other);
            c.units(USED + u64::from(units));
            c.block(FREE, role::SLOT, USED as u32, CHILD_ID, (ACCUMULATOR_AT - 128, 128));
        }),
    ];
    check(lies);
}

#[test]
fn a_lie_in_a_group_is_refused() {
    let put =
        |units: u32| move |c: &Crafted| c.put(GROUP, word::HEAD, head(kind::GROUP, 0, 0, 0, units));
    for (units, expected) in [
        (0, "takes 0 units"),
        (u32::MAX, "takes 4294967295 units"),
        (USED as u32 + 1, "takes 12 units"),
        (1, "shorter than it says"),
    ] {
        let segment = valid();
        put(units)(&segment);
        let error = segment.attach(&Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{units} units: {error}");
    }
    let lies: &[Lie] = &[
        ("not acceptable: a value's count or size has no meaning", |c| {
            c.put(GROUP, word::GROUP_COUNTS, pair(u32::MAX, 8));
        }),
        ("not acceptable: a value's count or size has no meaning", |c| {
            c.put(GROUP, word::GROUP_COUNTS, pair(2, u32::MAX));
        }),
        ("shorter than it says", |c| c.put(GROUP, word::GROUP_COUNTS, pair(1024, 8))),
        ("shorter than it says", |c| c.put(GROUP, word::GROUP_SIZES, pair(8, u32::MAX))),
        ("not acceptable: name", |c| c.put(GROUP, word::GROUP_COUNTS, pair(0, 8))),
        ("not a multiple of 8", |c| c.put(GROUP, word::GROUP_COUNTS, pair(2, 12))),
        ("together longer than their pool", |c| c.put(GROUP, word::GROUP_LENGTHS, u64::MAX)),
        ("outside its pool", |c| c.put(GROUP, word::GROUP_BODY + 2, pair(0, u32::MAX))),
        ("is not [a-z]", |c| c.put(GROUP, word::GROUP_LENGTHS, 0)),
        ("unaligned, outside the block, or overlap", |c| {
            c.put(GROUP, word::GROUP_COUNTS, pair(2, 0));
        }),
        ("a value's type has no meaning", |c| c.put(GROUP, word::GROUP_BODY, 200)),
    ];
    check(lies);
}

#[test]
fn a_group_keeps_its_units() {
    // A record in the middle of a group is part of it; one that was there before is not.
    let segment = valid();
    let process = segment.attach(&Limits::default());
    let mut process = process.unwrap();
    segment.put(GROUP, word::GENERATION, 4);
    let error = process.refresh(true, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SegmentError::GroupChanged(GROUP)), "{error}");

    let segment = valid();
    let mut process = segment.attach(&Limits::default()).unwrap();
    segment.source(GROUP + 1, CHILD_ID, 0, "child");
    process.refresh(true, &mut Vec::new()).unwrap();

    let segment = valid();
    segment.source(FREE + 1, 12, 0, "other");
    let mut process = segment.attach(&Limits::default()).unwrap();
    segment.group(FREE, &group());
    let error = process.refresh(true, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SegmentError::GroupOverlap { unit: FREE, other } if other == FREE + 1));
}

/// Each lie is refused with its reason, at once or when it comes later.
fn check(lies: &[Lie]) {
    for (expected, lie) in lies {
        let segment = valid();
        lie(&segment);
        let error = segment.attach(&Limits::default()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "instead of {expected:?}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn what_may_not_change_may_not_change() {
    let lies: &[Lie] = &[
        ("in state 0,", |c| c.put(CHILD, word::STATE, 0)),
        ("in state 7,", |c| c.put(CHILD, word::STATE, 7)),
        ("moved from parent 10 to 1", |c| c.put(CHILD, word::PARENT, 1)),
        ("moved from parent 10 to 0", |c| c.put(CHILD, word::PARENT, 0)),
        ("fell from 11 to 10", |c| c.units(USED - 1)),
        ("is overlapped by units in use", |c| {
            c.units(u64::from(unit_limit(ACCUMULATOR_AT) + 1));
        }),
    ];
    for (expected, lie) in lies {
        let segment = valid();
        segment.put(CHILD, word::STATE, 1);
        let mut process = segment.attach(&Limits::default()).unwrap();
        lie(&segment);
        let error = process.refresh(true, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "instead of {expected:?}: {error}");
    }
}

#[test]
fn segments_must_go_together() {
    let limits = Limits { segments: 2, ..Limits::default() };
    let fds = |segments: &[&Crafted]| -> Vec<OwnedFd> {
        segments.iter().map(|s| s.fd.try_clone().unwrap()).collect()
    };
    let (first, second) = (valid(), Crafted::empty(1));
    let attach = |segments: &[&Crafted]| Process::attach(fds(segments), &limits);
    attach(&[&second, &first]).unwrap();
    assert!(matches!(attach(&[]).unwrap_err(), SegmentError::NoFirst));
    assert!(matches!(attach(&[&second]).unwrap_err(), SegmentError::NoFirst));
    assert!(matches!(attach(&[&first, &first]).unwrap_err(), SegmentError::DuplicateIndex(0)));
    let third = Crafted::empty(2);
    let error = attach(&[&first, &second, &third]).unwrap_err();
    assert!(matches!(error, SegmentError::TooManySegments(2)));
    let limits = Limits { bytes: 2 * SIZE - 1, ..Limits::default() };
    let error = Process::attach(fds(&[&first, &second]), &limits).unwrap_err();
    assert!(matches!(error, SegmentError::TooManyBytes { limit, .. } if limit == 2 * SIZE - 1));
    let limits = Limits { bytes: 2 * SIZE, ..Limits::default() };
    Process::attach(fds(&[&first, &second]), &limits).unwrap();
    let stranger = Crafted::empty(1);
    stranger.set(header::PUBLISHER + 8, 1);
    assert!(matches!(attach(&[&first, &stranger]).unwrap_err(), SegmentError::Publisher(1)));

    // Ids and names are one space over all segments, and so are parents.
    let refusal = |lie: fn(&Crafted)| {
        let (first, second) = (valid(), Crafted::empty(1));
        lie(&second);
        second.units(4);
        let mut process = Process::attach(fds(&[&first, &second]), &limits).unwrap();
        process.refresh(false, &mut Vec::new()).unwrap_err()
    };
    let error = refusal(|c| c.source(0, TOP_ID, 0, "other"));
    assert!(matches!(error, SegmentError::DuplicateId(TOP_ID)), "{error}");
    let error = refusal(|c| c.source(0, 12, 1, "top"));
    assert!(matches!(error, SegmentError::DuplicateName { parent: 1, .. }), "{error}");
    let error = refusal(|c| {
        c.source(0, 12, 13, "x");
        c.source(1, 13, 12, "y");
    });
    assert!(matches!(error, SegmentError::Cycle(_)), "{error}");
    // A group of another segment is none of this one.
    let error = refusal(|c| {
        c.source(0, 12, 0, "x");
        c.block(1, role::SLOT, 0, 12, (SLOT_AT, slot_len()));
    });
    assert!(matches!(error, SegmentError::NoGroup { unit: 1, group: 0 }), "{error}");
}

#[test]
fn groups_are_limited_whether_a_source_has_them_or_not() {
    let attach = |group_bytes| valid().attach(&Limits { group_bytes, ..Limits::default() });
    let bytes = 8 * crate::segment::schema::encode(&group()).len();
    let error = attach(bytes - 1).unwrap_err();
    assert!(matches!(error, SegmentError::TooManyGroupBytes(_)), "{error}");
    attach(bytes).unwrap();
}

#[test]
fn sources_are_limited() {
    let limits = Limits { sources: 2, ..Limits::default() };
    let segment = valid();
    let mut process = segment.attach(&limits).unwrap();
    segment.source(FREE, 12, 0, "third");
    let error = process.refresh(true, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SegmentError::TooManySources(2)), "{error}");
}

#[test]
fn depth_is_limited_however_the_tree_is_built() {
    // 64 levels are fine.
    let chain = |n: u64, downwards: bool| {
        let segment = Crafted::sized(0, DEFAULT_SEGMENT);
        segment.units(n);
        let mut process = segment.attach(&Limits::default()).unwrap();
        for step in 0..n {
            let level = if downwards { step } else { n - 1 - step };
            let parent = if level == 0 { 1 } else { 10 + level - 1 };
            segment.source(level as u32, 10 + level, parent, "s");
            process.refresh(true, &mut Vec::new())?;
        }
        Ok(process.sources().count() as u64)
    };
    for downwards in [false, true] {
        assert_eq!(chain(64, downwards).unwrap(), 64);
        let error = chain(65, downwards).unwrap_err();
        assert!(matches!(error, SegmentError::Depth(_)), "{error}");
    }
    // A tree of allowed height that is attached too low.
    let segment = Crafted::sized(0, DEFAULT_SEGMENT);
    segment.units(80);
    for level in 0..40 {
        segment.source(
            level,
            10 + u64::from(level),
            if level == 0 { 1 } else { 9 + u64::from(level) },
            "s",
        );
        let parent = if level == 0 { 0 } else { 109 + u64::from(level) };
        segment.source(40 + level, 110 + u64::from(level), parent, "t");
    }
    let mut process = segment.attach(&Limits::default()).unwrap();
    segment.put(40, word::PARENT, 49);
    let error = process.refresh(true, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SegmentError::Depth(134)), "{error}");
}

#[test]
fn a_name_may_be_twice_where_it_is_not_shown_twice() {
    let segment = valid();
    // Hidden, departed, elsewhere, attached to nothing.
    segment.source(FREE, 12, TOP_ID, "child");
    segment.put(FREE, word::HEAD, head(kind::SOURCE, flag::HIDDEN, 5, 0, 0));
    segment.source(FREE + 1, 13, TOP_ID, "child");
    segment.put(FREE + 1, word::STATE, 1);
    segment.source(FREE + 2, 14, CHILD_ID, "child");
    segment.source(USED as u32, 15, 0, "child");
    segment.units(USED + 1);
    let process = segment.attach(&Limits::default()).unwrap();
    assert_eq!(process.sources().count(), 6);
}
