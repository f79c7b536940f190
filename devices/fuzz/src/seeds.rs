//! Writes the seeds of all targets anew: to be run when the commands change.
//!
//! ```text
//! cargo run --manifest-path devices/fuzz/Cargo.toml --bin seeds -- devices/fuzz/corpus
//! ```

use std::path::{Path, PathBuf};

use devices_fuzz::garbage::Command::{self, *};
use devices_fuzz::garbage::encode;

/// Flags of a descriptor.
const NEXT: u8 = 1;
const WRITE: u8 = 2;
const TABLE: u8 = 4;

/// All features of the low half.
const ALL: u32 = u32::MAX;

fn describe(queue: u8, index: u8, address: u8, len: u16, flags: u8) -> Command {
    Describe { queue, index, indirect: false, address, len, flags, next: index + 1 }
}

fn in_table(index: u8, address: u8, len: u16, flags: u8) -> Command {
    Describe { queue: 0, index, indirect: true, address, len, flags, next: index + 1 }
}

/// Makes a chain available and lets the device have it.
fn submit(queue: u8, head: u8) -> [Command; 3] {
    [Offer { queue, head }, Notify { queue }, Serve]
}

/// A request of this kind for a block device, with so many bytes each way.
fn request(features: u32, kind: u8, sector: u8, out: u16, into: u16) -> Vec<Command> {
    let bytes = [kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0];
    // A range of eight sectors, for the requests that want one.
    let range = [4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let mut all = vec![
        Start { features },
        Fill { buffer: 0, bytes },
        Fill { buffer: 1, bytes: range },
        describe(0, 0, 0, 16, NEXT),
    ];
    let mut index = 1;
    for (len, flags, address) in [(out, NEXT, 1), (into, NEXT | WRITE, 2)] {
        if len > 0 {
            all.push(describe(0, index, address, len, flags));
            index += 1;
        }
    }
    all.push(describe(0, index, 3, 1, WRITE));
    all.extend(submit(0, 0));
    all
}

fn registers() -> Vec<Command> {
    let mut all: Vec<_> = (0..32).map(|register| Read { register }).collect();
    all.extend((0..32).map(|register| Write { register, value: 1 }));
    all.push(Start { features: ALL });
    all.extend((0..32).flat_map(|register| [Write { register, value: 0 }, Read { register }]));
    all.push(Access { offset: 0x100, len: 1, write: false });
    all.push(Access { offset: 0x60, len: 7, write: true });
    all
}

fn block() -> Vec<(&'static str, Vec<Command>)> {
    let indirect = [
        vec![
            Start { features: ALL },
            Fill { buffer: 0, bytes: [0; 16] },
            in_table(0, 0, 16, NEXT),
            in_table(1, 2, 1024, NEXT | WRITE),
            in_table(2, 3, 1, WRITE),
            describe(0, 5, 0xff, 48, TABLE),
        ],
        submit(0, 5).to_vec(),
    ]
    .concat();
    let broken = [
        vec![Start { features: 0 }, describe(0, 0, 0xff, 8, NEXT), Index { queue: 0, index: 99 }],
        vec![Notify { queue: 0 }, Serve, Reset],
        request(0, 0, 0, 0, 512),
    ]
    .concat();
    vec![
        ("read", request(ALL, 0, 3, 0, 512)),
        ("read-plain", request(0, 0, 3, 0, 1024)),
        ("write", request(ALL, 1, 5, 512, 0)),
        ("write-through", request(0, 1, 5, 512, 0)),
        ("flush", request(ALL, 4, 0, 0, 0)),
        ("name", request(ALL, 8, 0, 0, 20)),
        ("discard", request(ALL, 11, 0, 16, 0)),
        ("zeroes", request(ALL, 13, 0, 16, 0)),
        ("unknown", request(ALL, 99, 0, 4, 4)),
        ("past-the-end", request(ALL, 0, 200, 0, 512)),
        ("indirect", indirect),
        ("broken", broken),
        ("registers", registers()),
    ]
}

fn net() -> Vec<(&'static str, Vec<Command>)> {
    let buffers = |features, count: u8, len| {
        let mut all = vec![Start { features }];
        for index in 0..count {
            all.push(describe(0, index, index * 4, len, WRITE));
            all.push(Offer { queue: 0, head: index });
        }
        all.extend([Notify { queue: 0 }, Serve]);
        all
    };
    let then = |mut first: Vec<Command>, more: &[Command]| {
        first.extend_from_slice(more);
        first
    };
    let outside = [Outside { len: 60 }, Serve, Outside { len: 1500 }, Outside { len: 2000 }, Serve];
    let send = |pieces: &[Command]| {
        let mut all = vec![Start { features: ALL }];
        all.extend_from_slice(pieces);
        all.extend(submit(1, 0));
        all
    };
    vec![
        ("receive", then(buffers(0, 8, 1526), &outside)),
        ("receive-merged", then(buffers(ALL, 16, 300), &outside)),
        ("receive-too-little", then(buffers(ALL, 3, 100), &outside)),
        ("receive-anew", then(then(buffers(ALL, 2, 100), &outside), &buffers(ALL, 8, 1526))),
        ("send", send(&[describe(1, 0, 9, 80, 0)])),
        ("send-pieces", send(&[describe(1, 0, 9, 12, NEXT), describe(1, 1, 7, 1514, 0)])),
        ("send-nothing", send(&[describe(1, 0, 9, 5, 0)])),
        ("registers", registers()),
    ]
}

fn entropy() -> Vec<(&'static str, Vec<Command>)> {
    let one = |len| {
        let mut all = vec![Start { features: ALL }, describe(0, 0, 2, len, WRITE)];
        all.extend(submit(0, 0));
        all
    };
    vec![("some", one(64)), ("much", one(0xfff3)), ("registers", registers())]
}

fn main() {
    let corpus = PathBuf::from(std::env::args_os().nth(1).expect("the directory of the corpora"));
    let write = |target: &str, seeds: Vec<(&str, Vec<Command>)>| {
        let directory: &Path = &corpus.join(target);
        std::fs::create_dir_all(directory).expect("a directory");
        for (name, commands) in seeds {
            std::fs::write(directory.join(name), encode(&commands)).expect("a seed");
        }
    };
    write("block", block());
    write("net", net());
    write("entropy", entropy());
}
