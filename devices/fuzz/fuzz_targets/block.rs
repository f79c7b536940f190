//! Arbitrary bytes as what a driver does to a block device, which can be written if their number is even: it
//! comes to rest, and works again after a reset.
#![no_main]

use devices_fuzz::{garbage, made};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| made::block(&garbage::decode(input), input.len() % 2 != 0));
