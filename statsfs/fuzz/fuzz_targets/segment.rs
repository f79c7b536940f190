//! Arbitrary segments: the reader must refuse or read them, never panic, hang or read outside.
//!
//! The input patches a real segment, word by word, before it is attached and again while it is: so that
//! the fuzzer starts from what is nearly right. An input that begins with 0xff is the segment itself.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/common.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let mut image = common::image();
    if let [0xff, raw @ ..] = data {
        let len = raw.len().min(image.len());
        image[..len].copy_from_slice(&raw[..len]);
        let forged = common::Forged::new(&image);
        forged.read();
        return;
    }
    let patches: Vec<_> = data.chunks_exact(11).map(common::Patch::of).collect();
    let (before, after) = patches.split_at(patches.len() / 2);
    before.iter().for_each(|patch| patch.apply(&mut image));
    let forged = common::Forged::new(&image);
    forged.read_while(|| after.iter().for_each(|patch| forged.patch(patch)));
});
