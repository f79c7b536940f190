//! Arbitrary bytes as a segment, and changed under the reader: it is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use statsfs::segment::{Limits, Process};
use statsfs_fuzz::{Memfd, decode};

fn read_all(process: &Process) {
    process.segments_expected();
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
    process.is_current();
}

fuzz_target!(|input: &[u8]| {
    let (content, changes) = decode(input);
    let memfd = Memfd::new(&content);
    let fd = memfd.fd.try_clone().unwrap();
    let Ok(mut process) = Process::attach(vec![fd], &Limits::default()) else { return };
    if process.refresh(false, &mut Vec::new()).is_err() {
        return;
    }
    read_all(&process);
    for change in changes {
        memfd.set(change);
        read_all(&process);
        if process.refresh(true, &mut Vec::new()).is_err() {
            return;
        }
        read_all(&process);
    }
});
