//! Writes the seeds of all targets anew, from what the library made: to be run when a format changes.
//!
//! ```text
//! cargo run --manifest-path statsfs/fuzz/Cargo.toml --bin seeds -- statsfs/fuzz/corpus
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use statsfs::host::protocol::{ClientMessage, Hello, MAX_MESSAGE, Message, ServerMessage};
use statsfs::host::state::{Left, Saved, SavedAccount, SavedDirectory,HostState, Process, State, Store};
use statsfs::segment::layout::{HEADER_SIZE, UNIT, header, kind};
use statsfs::value::{
    Aggregations, Descriptor, GroupBuilder, GroupDescriptor, Semantics, Unit, ValueType,
};
use statsfs::fs::{Caller, Nodes, ROOT};
use statsfs::snapshot::Snapshot;
use statsfs::snapshot::recording::{About, FRAME_HEADER, Writer};
use statsfs::{Registry, RegistryOptions};
use statsfs_fuzz::{SIZE, encode};

statsfs::stats! {
    /// Shown where there is none.
    struct Explicit: "explicit" {
        /// Things.
        explicit_things: Counter,
    }
}

fn groups() -> [Arc<GroupDescriptor>; 3] {
    let count = |name: &str, ty| Descriptor::new(name.to_owned(), ty, Semantics::Cumulative);
    let floating = |name: &str, ty| Descriptor::new(name.to_owned(), ty, Semantics::Floating);
    [
        GroupBuilder::new("plain").value(count("n", ValueType::U64)),
        GroupBuilder::new("latched")
            .prefix("x_")
            .help("Latched.")
            .consistent()
            .value(count("x_a", ValueType::U64).family("x_f").label("reason", "io_in"))
            .value(count("x_b", ValueType::U16))
            .value(floating("x_on", ValueType::Bool).aggregate(Aggregations::COUNT_NONZERO)),
        GroupBuilder::new("every")
            .value(
                count("h", ValueType::Histogram { buckets: 5, sum: true }).unit(Unit::NANOSECONDS),
            )
            .value(floating("s8", ValueType::S8))
            .value(floating("s64", ValueType::S64).unit(Unit::BYTES))
            .value(Descriptor::new("peak", ValueType::U32, Semantics::Peak))
            .value(floating("u8", ValueType::U8).aggregate(Aggregations::ALL).help("Help."))
            .value(floating("state", ValueType::U8).states(["off", "on"])),
    ]
    .map(|group| group.build().expect("a group of ours"))
}

fn content(registry: &Registry) -> Vec<u8> {
    let fd = registry.segments().expect("segments").swap_remove(0);
    let mut content = vec![0; SIZE];
    File::from(fd).read_exact_at(&mut content, 0).expect("a segment is as long as it was made");
    content
}

/// A descriptor of what the kernel counts: one value of each kind, with their cells.
fn counted() -> Vec<u8> {
    // Type, unit and base; exponent and number of cells; place; size of a bucket.
    let values: [(&str, [u32; 4]); 5] = [
        ("exits", [0, 1 << 16, 8, 0]),
        ("blocking", [1 | 4 << 4, 1 << 16, 0, 0]),
        ("longest", [2, 1 << 16, 16, 0]),
        ("chain", [3, 2 << 16, 24, 10]),
        ("wait_hist", [4 | 2 << 4, 3 << 16 | 0xfff7, 40, 0]),
    ];
    const NAME: usize = 16;
    let table = 24 + NAME;
    let data = table + values.len() * (16 + NAME);
    let header = [0, NAME, values.len(), 24, table, data].map(|word| word as u32);
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    let name = |name: &str| {
        let mut padded = [0; NAME];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        padded
    };
    bytes.extend(name("kvm-7/vcpu-0"));
    for (of, words) in values {
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(name(of));
    }
    bytes.extend((1..9u64).flat_map(u64::to_le_bytes));
    bytes
}

/// A message, as an input: how many descriptors come with it, and the datagram.
fn message<'a>(message: &impl Message<'a>, fds: usize) -> Vec<u8> {
    let mut bytes = [0; MAX_MESSAGE];
    let len = message.encode(fds, &mut bytes).expect("a message of ours");
    let mut input = vec![0x80 | fds as u8];
    input.extend_from_slice(&bytes[..len]);
    input
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello { publisher: 1 << 64 | 2, public: true, segments: 20 };
    let publishers = [
        (ClientMessage::Hello(hello), 16),
        (ClientMessage::Segments { first: 16 }, 4),
        (ClientMessage::Changed, 0),
        (ClientMessage::Goodbye, 0),
        (ClientMessage::Status, 0),
        (ClientMessage::Statistics { first: 3 }, 16),
    ];
    let servers = [
        ServerMessage::Welcome { pid: 4242, mount: Path::new("/") },
        ServerMessage::Refused { reason: "no", again: true },
        ServerMessage::Bye,
        ServerMessage::StatusPart { offset: 1, total: 4, part: b"ext" },
    ];
    let publishers = publishers.iter().map(|(what, fds)| (what.name(), message(what, *fds)));
    publishers.chain(servers.iter().map(|what| (what.name(), message(what, 0)))).collect()
}

/// A state with something in every table.
fn state() -> State {
    let groups = groups().to_vec();
    let words = |group: &Arc<GroupDescriptor>| vec![3; group.words()].into_boxed_slice();
    let account = SavedAccount { publisher: 1, source: 2, departed: true, group: 1 };
    let process =
        Process { publisher: 1, pid: 42, start_time: 7, uid: 1, gid: 2, public: true, segments: 1 };
    let (raw, cleared) = (words(&groups[2]), words(&groups[2]));
    let admitted = vec![5, 0];
    let tree = Saved {
        identities: [(0, (0, 0)), (5, (1, 2))].into(),
        next_block: 4,
        grants: [((1, 0), 1), ((1, 1), 2)].into(),
        directories: [("kvm".into(), SavedDirectory { number: 3 << 12, admitted })].into(),
        ledger: [(("kvm".into(), 2), Left { raw, cleared })].into(),
        baselines: [(account, words(&groups[1]))].into(),
        parents: [((1, 2), 3)].into(),
        groups: groups.clone(),
    };
    let host = HostState {
        processes: vec![process],
        folded: [9, 8].into(),
    };
    State { tree, host }
}

/// Files of states, as inputs: after one commit, and after two.
fn state_files() -> [Vec<u8>; 2] {
    let dir = std::env::temp_dir().join(format!("statsfs-seeds-{}", std::process::id()));
    let (mut store, _) = Store::open(&dir).expect("a new directory");
    let files = [State::default(), state()].map(|state| {
        store.commit(&state.tree, &state.host).expect("a state of ours");
        let mut input = vec![1];
        input.extend(std::fs::read(dir.join("state")).expect("what was committed"));
        // The checksums are made to fit this boot.
        for header in [1, 4097].map(|at| at + 16..at + 32) {
            if let Some(boot) = input.get_mut(header)
                && *boot != [0; 16]
            {
                boot.fill(0);
                boot[0] = 1;
            }
        }
        input
    });
    std::fs::remove_dir_all(dir).expect("a directory of ours");
    files
}

/// `.stats/snapshot` of the root, as an input, to somebody who may see everything or who owns nothing.
fn snapshot(registry: &Registry, uid: u32) -> Vec<u8> {
    let tree = registry.tree().expect("segments of ours");
    let find = |ino, name: &&str| tree.lookup(ino, name).expect("it is there").ino;
    let ino = [".stats", "snapshot"].iter().fold(ROOT, find);
    let mut input = vec![0];
    let caller = Caller { uid, gid: uid, pid: 0 };
    tree.render(ino, caller, usize::MAX, &mut input).expect("a snapshot");
    input
}

/// A recording of a snapshot, twice, with a gap in between, as an input; and the content of its first frame as another.
fn recordings(snapshot: &[u8]) -> [Vec<u8>; 2] {
    let snapshot = Snapshot::parse(snapshot).expect("a snapshot of ours");
    let mut all = vec![0];
    let mut writer = Writer::new(&mut all, &About::default()).expect("memory");
    let start = 1 + writer.written() as usize + FRAME_HEADER;
    writer.snapshot(&snapshot).expect("memory");
    let end = 1 + writer.written() as usize;
    writer.gap(snapshot.taken(), "nobody is there").expect("memory");
    writer.snapshot(&snapshot).expect("memory");
    writer.end(snapshot.taken()).expect("memory");
    let [a, b] = (snapshot.as_bytes().len() as u16).to_le_bytes();
    let mut content = vec![1, 1, 0, 0, a, b];
    content.extend_from_slice(&all[start..end]);
    [all, content]
}

fn main() {
    let root = PathBuf::from(std::env::args_os().nth(1).expect("the corpus directory"));
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    };
    let options = RegistryOptions { segment_size: SIZE, max_segments: 1, ..Default::default() };
    for (n, group) in groups().iter().enumerate() {
        let registry = Registry::with_options(options.clone()).expect("a registry");
        let top = registry.source("top").label("key", "value").create().expect("a source");
        top.register().expect("registered");
        let child = registry.source("child").private().create().expect("a source");
        top.add_subordinate(&child).expect("added");
        top.add_aggregates::<Explicit>().expect("aggregates");
        let slot = child.add_group(group).expect("a slot");
        let name = group.name();
        for (who, uid) in [("owner", 0), ("other", u32::MAX - 1)] {
            let path = root.join(format!("snapshot/{name}-{who}"));
            write(&path, &snapshot(&registry, uid));
            if (name, who) == ("every", "owner") {
                let [all, content] = recordings(&snapshot(&registry, uid)[1..]);
                write(&root.join("recording/all"), &all);
                write(&root.join("recording/content"), &content);
            }
        }
        let save = |stage: &str| {
            let content = content(&registry);
            let units = content[header::UNITS];
            write(&root.join(format!("segment/{name}-{stage}")), &encode(&content, units));
        };
        save("live");
        if n != 0 {
            let other = registry.source("other").hidden().create().expect("a source");
            top.add_subordinate(&other).expect("added");
            drop(other.add_group(group));
            top.remove_subordinate(&other).expect("removed");
        }
        top.remove_subordinate(&child).expect("removed");
        save("departed");
        drop(slot);
        save("retired");
        registry.usage();
        save("folded");
        write(&root.join(format!("snapshot/{name}-folded")), &snapshot(&registry, 0));
        let content = content(&registry);
        let mut at = HEADER_SIZE;
        while at < HEADER_SIZE + content[header::UNITS] as usize * UNIT {
            let is_group = content[at + 8] == kind::GROUP;
            let units = if is_group { content[at + 12].into() } else { 1 };
            if is_group {
                let path = root.join(format!("schema/{name}-{}", at / UNIT));
                write(&path, &content[at..at + units * UNIT]);
            }
            at += units * UNIT;
        }
    }
    write(&root.join("fd_group/counted"), &counted());
    for (name, input) in messages() {
        write(&root.join("protocol").join(name.replace(' ', "-")), &input);
    }
    for (name, state) in [("empty", State::default()), ("full", state())] {
        let mut input = vec![0];
        input.extend(state.encode().expect("a state of ours"));
        write(&root.join("state").join(name), &input);
    }
    for (name, input) in ["file-one", "file-two"].iter().zip(state_files()) {
        write(&root.join("state").join(name), &input);
    }
    // A valid header of the input's own.
    let registry = Registry::with_options(options).expect("a registry");
    let mut bytes = vec![0, 0, 0];
    bytes.extend_from_slice(&content(&registry)[..HEADER_SIZE / 8]);
    write(&root.join("segment/header"), &bytes);
}
