//! Arbitrary bytes as a group's record: what is accepted is the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let words: Vec<u64> = input
        .chunks(8)
        .map(|bytes| {
            let mut all = [0; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(all)
        })
        .collect();
    statsfs::segment::fuzz_schema(&words);
});
