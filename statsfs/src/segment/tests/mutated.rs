//! A valid segment whose words change under the reader in any way: it is read or refused, in bounded
//! time, and never anything else.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::crafted::*;
use crate::segment::layout::{HEADER_SIZE, UNIT, header};
use crate::segment::process::Process;
use crate::segment::{Limits, SegmentError};

/// Reads everything there is, in both ways.
fn read_all(process: &Process) {
    process.segments_expected();
    process.folds();
    process.is_stale();
    for source in process.sources().chain(process.source(1)) {
        process.children(source.id);
        for group in &source.groups {
            for block in group.slots.iter().chain(&group.accumulator) {
                let mut out = vec![0; block.words()];
                process.read(block, &mut out);
                for value in 0..group.group.values().len() {
                    process.read_value(block, value, &mut out);
                }
            }
        }
    }
}

/// A word that may well mean something.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..16u64,
        (0..16u64).prop_map(|n| u64::MAX - n),
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (any::<u32>(), 0..4u64).prop_map(|(high, low)| u64::from(high) << 32 | low),
        (0..5u64, 0..8u64, 0..70u64, 0..12u64, 0..12u64).prop_map(|(kind, a, b, c, d)| kind
            | a << 8
            | b << 16
            | c << 24
            | d << 32),
        (0..SIZE as u64 / 128, 0..5u64).prop_map(|(at, len)| at * 128 | len * 128 << 32),
    ]
}

/// Words where the records are, in the header, and anywhere.
fn offsets() -> impl Strategy<Value = usize> {
    let units = HEADER_SIZE / 8..(HEADER_SIZE + (USED as usize + 4) * UNIT) / 8;
    prop_oneof![
        8 => units,
        1 => header::UNITS / 8..=header::SEGMENTS / 8,
        1 => 0..SIZE / 8,
    ]
    .prop_map(|word| word * 8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_change_is_read_or_refused(
        changes in proptest::collection::vec((offsets(), words(), any::<bool>()), 1..40),
    ) {
        let start = Instant::now();
        let segment = valid();
        let mut process = Some(segment.attach(&Limits::default()).unwrap());
        for (offset, word, published) in changes {
            segment.set(offset, word);
            if published && offset >= HEADER_SIZE {
                // With a generation that makes the reader look at it.
                let unit = offset / UNIT * UNIT;
                let generation =
                    segment.region.word(unit).load(std::sync::atomic::Ordering::Relaxed);
                segment.set(unit, (generation | 1).wrapping_add(1));
            }
            let result: Result<(), SegmentError> = match &mut process {
                Some(process) => process.refresh(true, &mut Vec::new()),
                None => segment.attach(&Limits::default()).map(|new| process = Some(new)),
            };
            match result {
                Ok(()) => process.iter().for_each(read_all),
                Err(error) => {
                    prop_assert_eq!(error.to_string().lines().count(), 1);
                    process = None;
                }
            }
        }
        prop_assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_writer_that_never_rests_stops_nobody() {
    // Generations, latches, the selector and counters of the header in constant change.
    let segment = valid();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                for unit in [TOP, LABEL, CHILD, ACCUMULATOR, SLOT, AGGREGATE] {
                    segment.put(unit, 0, n);
                }
                segment.set(SLOT_AT, n);
                segment.put(ACCUMULATOR, crate::segment::layout::word::SELECTOR, n);
                segment.set(header::CHANGES, n);
                segment.set(header::FOLDS, n);
            }
        });
        let mut process = segment.attach(&Limits::default()).unwrap();
        let start = Instant::now();
        let mut rounds = 0;
        while rounds < 2000 && start.elapsed() < Duration::from_secs(20) {
            process.refresh(false, &mut Vec::new()).unwrap();
            read_all(&process);
            rounds += 1;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(rounds, 2000, "the reader was held up");
    });
}
