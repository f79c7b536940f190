//! Arbitrary bytes as a server's state: what is accepted is the same when it is written again.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: the rest is a whole file, of which the checksums are made to fit; else a payload |
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use statsfs::host::state::{State, fuzz_file};

static FILE: OnceLock<std::fs::File> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let Some((head, rest)) = input.split_first() else { return };
    if head & 1 != 0 {
        let file = FILE.get_or_init(|| statsfs_fuzz::plain_memfd("state").into());
        fuzz_file(rest.to_vec(), file);
    } else if let Ok(state) = State::decode(rest) {
        assert_eq!(state.encode().expect("it was accepted"), rest);
    }
});
