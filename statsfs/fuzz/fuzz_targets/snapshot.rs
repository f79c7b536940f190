//! Arbitrary bytes as a snapshot: of what is accepted everything can be had.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: magic, version and length are made to fit |
#![no_main]

use libfuzzer_sys::fuzz_target;
use statsfs::snapshot::Snapshot;
use statsfs::snapshot::format::{MAGIC, VERSION, header};

fuzz_target!(|input: &[u8]| {
    let Some((head, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if head & 1 != 0 {
        bytes.resize(rest.len().next_multiple_of(8).max(header::WORDS * 8), 0);
        let len = bytes.len() as u64;
        let version = u64::from(VERSION) | (header::WORDS as u64 * 8) << 32;
        for (at, word) in
            [(header::MAGIC, MAGIC), (header::VERSION, version), (header::LENGTH, len)]
        {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    let Ok(snapshot) = Snapshot::parse(&bytes) else { return };
    let _ = (snapshot.taken(), snapshot.monotonic(), snapshot.descriptors().count());
    for dir in snapshot.dirs() {
        let path = dir.path();
        let _ = (dir.bare_name(), dir.pid(), dir.identity(), dir.labels().count(), dir.depth());
        assert!(dir.children().all(|child| child.parent().is_some_and(|of| of.path() == path)));
        for value in dir.values() {
            let _ = (value.number(), value.raw_number(), value.increase_since(&value));
            if let Some(histogram) = value.histogram() {
                let _ = (histogram.mean(), histogram.percentile(99), histogram.buckets().count());
            }
            let _ = dir.departed(value.name());
        }
    }
});
