use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::fs::{Caller, Nodes, ROOT};
use crate::{Registry, stats};

stats! {
    /// A worker.
    struct Worker: "worker", prefix "worker_" {
        /// Things done.
        worker_things: Counter,
        /// How long they took.
        worker_time: Histogram<Nanoseconds> { buckets: 8 },
    }
}

/// A snapshot of a tree in which so much was done.
fn snapshot(things: u64) -> Snapshot {
    let registry = Registry::new().unwrap();
    let pool = registry.create_source("pool").unwrap();
    pool.register().unwrap();
    let slot = pool.add_values::<Worker>().unwrap();
    slot.worker_things.add(things);
    slot.worker_time.record(things);
    let tree = registry.tree().unwrap();
    let find = |ino, name: &&str| tree.lookup(ino, name).unwrap().ino;
    let ino = [".stats", "snapshot"].iter().fold(ROOT, find);
    let mut bytes = Vec::new();
    tree.render(ino, Caller { uid: 0, gid: 0, pid: 0 }, usize::MAX, &mut bytes).unwrap();
    Snapshot::parse(&bytes).unwrap()
}

fn about() -> About {
    About { host: "here".into(), interval_ns: 1_000_000_000, ..About::default() }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A recording, and where its frames end.
fn recording() -> (Vec<u8>, Vec<u64>) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &about()).unwrap();
    let mut ends = vec![writer.written()];
    for n in [7, 300] {
        writer.snapshot(&snapshot(n)).unwrap();
        ends.push(writer.written());
    }
    writer.gap(at(9), "nobody is there").unwrap();
    ends.push(writer.written());
    writer.snapshot(&snapshot(400)).unwrap();
    ends.push(writer.written());
    writer.end(at(11)).unwrap();
    ends.push(bytes.len() as u64);
    (bytes, ends)
}

/// All whole frames, and how it ended.
fn read(bytes: &[u8]) -> (Vec<Frame>, Result<bool, RecordingError>) {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    assert_eq!(*reader.about(), about());
    let mut frames = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, Ok(reader.has_ended())),
            Err(error) => return (frames, Err(error)),
        }
    }
}

#[test]
fn what_is_recorded_is_read_byte_by_byte() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &about()).unwrap();
    let all = [1, 2, 1 << 40].map(snapshot);
    all.iter().for_each(|snapshot| writer.snapshot(snapshot).unwrap());
    writer.end(at(1)).unwrap();
    let (frames, end) = read(&bytes);
    assert!(end.unwrap());
    assert_eq!(frames.len(), all.len());
    for (frame, written) in frames.iter().zip(&all) {
        let Content::Snapshot(read) = &frame.content else { panic!("{frame:?}") };
        assert_eq!(read.as_bytes(), written.as_bytes());
        assert_eq!(frame.time, written.taken());
    }
}

#[test]
fn cut_at_every_byte_it_is_read_up_to_its_last_whole_frame() {
    let (bytes, ends) = recording();
    for len in 0..=bytes.len() {
        let (frames, end) = read(&bytes[..len]);
        let whole = ends[1..].iter().filter(|end| **end <= len as u64).count();
        // The last is the end.
        assert_eq!(frames.len(), whole.min(4), "{len}");
        let last = ends.iter().rev().find(|end| **end <= len as u64);
        match (last, end) {
            (None, Err(RecordingError::Magic)) => assert!(len < 8),
            (None, Err(RecordingError::Header(_))) => assert!(len >= 8),
            (Some(last), Ok(ended)) => {
                assert_eq!(*last, len as u64);
                assert_eq!(ended, len == bytes.len());
            }
            (Some(last), Err(RecordingError::Cut(at))) => {
                assert_eq!(at, *last);
                assert!(at < len as u64);
            }
            (_, other) => panic!("{len}: {other:?}"),
        }
    }
    let (frames, _) = read(&bytes);
    let Content::Gap(why) = &frames[2].content else { panic!("{frames:?}") };
    assert_eq!((why.as_str(), frames[2].time), ("nobody is there", at(9)));
}

#[test]
fn every_byte_that_is_changed_is_found() {
    let (bytes, ends) = recording();
    let written: Vec<_> = read(&bytes).0.into_iter().map(content).collect();
    let mut harmless = 0;
    for n in ends[0] as usize..bytes.len() {
        for bit in [1, 0x80] {
            let mut bytes = bytes.clone();
            bytes[n] ^= bit;
            let (frames, end) = read(&bytes);
            let begin = *ends.iter().rev().find(|end| **end <= n as u64).unwrap();
            let before = ends.iter().filter(|end| **end < begin).count();
            let Err(error) = end else {
                // A bit that means nothing: in the tables of codes that are not used, or behind the last code.
                assert_eq!(frames.into_iter().map(content).collect::<Vec<_>>(), written);
                harmless += 1;
                continue;
            };
            assert_eq!(frames.len(), before, "byte {n}");
            let text = error.to_string();
            assert!(text.contains(&format!(" {begin}")), "byte {n}: {text}");
        }
    }
    assert!(harmless * 20 < bytes.len(), "{harmless} of {}", bytes.len());
}

fn content(frame: Frame) -> (SystemTime, Vec<u8>) {
    match frame.content {
        Content::Snapshot(snapshot) => (frame.time, snapshot.as_bytes().to_vec()),
        Content::Gap(why) => (frame.time, why.into_bytes()),
    }
}

/// The header of a frame, with its checksum.
fn header(kind: u32, stored: u64, len: u64) -> [u8; FRAME_HEADER] {
    let mut header = [0; FRAME_HEADER];
    header[..8].copy_from_slice(&FRAME_MAGIC);
    header[8..12].copy_from_slice(&kind.to_le_bytes());
    header[24..32].copy_from_slice(&stored.to_le_bytes());
    header[32..].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(&header);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
    header
}

#[test]
fn lengths_that_are_lies_take_no_memory() {
    let (bytes, ends) = recording();
    let whole = &bytes[..ends[1] as usize];
    for (kind, stored, len, part) in [
        (kind::SNAPSHOT, 10, u64::MAX, "longer than it can be"),
        (kind::SNAPSHOT, u64::MAX, u64::MAX, "ends in the middle"),
        (kind::SNAPSHOT, 1 << 62, 1 << 40, "ends in the middle"),
        (kind::GAP, 1 << 40, 4097, "longer than it can be"),
        (kind::END, 20, 1, "longer than it can be"),
        (9, 10, 10, "of a kind of which nothing is known"),
        (0, 10, 10, "of a kind of which nothing is known"),
    ] {
        let mut bytes = whole.to_vec();
        bytes.extend(header(kind, stored, len));
        bytes.extend([0x78, 0x01, 0x00, 0x00]);
        let (frames, end) = read(&bytes);
        assert_eq!(frames.len(), 1);
        let text = end.unwrap_err().to_string();
        assert!(text.contains(part) && text.contains(&ends[1].to_string()), "{text}");
    }
    let mut behind = bytes.clone();
    behind.extend(header(kind::END, 0, 0));
    let text = read(&behind).1.unwrap_err().to_string();
    assert!(text.contains("is behind the end"), "{text}");
    for (n, value, part) in [(8, 9, "version 9"), (14, 1, "longer than any"), (16, b'x', "JSON")] {
        let mut bytes = bytes.clone();
        bytes[n] = value;
        let text = read(&bytes).1.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_could_not_be_written_whole_is_not_counted() {
    /// Has room for so many bytes.
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.0);
            self.0 -= n;
            if n == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(n) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // The times in another one may take more room, or less.
    let one = snapshot(7);
    let mut writer = Writer::new(Vec::new(), &about()).unwrap();
    writer.snapshot(&one).unwrap();
    let end = writer.written();
    let mut writer = Writer::new(Full(end as usize + 100), &about()).unwrap();
    writer.snapshot(&one).unwrap();
    assert_eq!(writer.snapshot(&snapshot(300)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(writer.written(), end);
}

proptest! {
    #[test]
    fn anything_is_read_or_refused(
        content in prop::collection::vec(any::<u8>(), 0..300),
        kind in 0u32..5,
        stored in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
        len in any::<u16>(),
    ) {
        let (mut bytes, ends) = recording();
        bytes.truncate(ends[1] as usize);
        let stored = stored.unwrap_or(content.len() as u64);
        bytes.extend(header(kind, stored, len.into()));
        bytes.extend(content);
        let (frames, _) = read(&bytes);
        prop_assert!(!frames.is_empty());
    }
}
