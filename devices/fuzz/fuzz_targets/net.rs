//! Arbitrary bytes as what a driver does to a network interface: it
//! comes to rest, and works again after a reset.
#![no_main]

use devices_fuzz::{garbage, made};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| made::net(&garbage::decode(input)));
