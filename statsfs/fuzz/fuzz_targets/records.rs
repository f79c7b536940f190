//! Records: valid headers, and units that hold what the input says, so that the validation of sources,
//! labels, blocks and groups is reached at once.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/common.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let mut image = common::image();
    common::fill_units(&mut image, data);
    let forged = common::Forged::new(&image);
    forged.read();
});
