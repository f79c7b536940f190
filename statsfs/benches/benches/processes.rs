//! What one request costs in a tree of 1000 processes, against a tree of one: each process's files must cost
//! what they cost alone. And what it costs to take them all in.
//!
//! `cargo bench -p statsfs-benches --bench processes [-- --quick --json]`

use std::time::Instant;

use statsfs::fs::{Caller, Ino, Nodes, ROOT};
use statsfs::tree::{Identity, Owner, Tree, TreeOptions};
use statsfs::{Registry, RegistryOptions, Slot, Source, stats};
use statsfs_benches::{Comparison, Options, escape, pin, timed};

stats! {
    /// What one guest counts.
    struct Guest: "guest" {
        /// Times that it did.
        guest_exits: Counter,
    }
}

/// A process with one guest.
struct Process {
    registry: Registry,
    _sources: [Source; 2],
    slot: Slot<Guest>,
}

fn process(n: u32) -> Process {
    let options =
        RegistryOptions { segment_size: 64 << 10, max_segments: 1, ..RegistryOptions::default() };
    let registry = Registry::with_options(options).expect("a segment");
    let kvm = registry.create_source("kvm").expect("a source");
    let guest = registry.create_source(&format!("guest{n}")).expect("a source");
    let slot = guest.add_values::<Guest>().expect("room for a slot");
    kvm.add_subordinate(&guest).expect("a free name");
    kvm.register().expect("a free name");
    Process { registry, _sources: [kvm, guest], slot }
}

fn host(processes: &[Process]) -> Tree {
    let owner = Owner::this_process();
    let tree = Tree::host(TreeOptions { pid_prefix: true, ..TreeOptions::new(owner) });
    for (n, process) in (1..).zip(processes) {
        let identity = Identity { pid: n, ..Identity::this_process() };
        process.registry.join(&tree, identity).expect("a process");
    }
    tree
}

fn find(tree: &Tree, path: &str) -> Ino {
    path.split('/').fold(ROOT, |ino, name| tree.lookup(ino, name).expect(path).ino)
}

/// What `cat` of a file is for the tree, once the kernel knows its path.
fn read(tree: &Tree, ino: Ino, out: &mut Vec<u8>) {
    let caller = Caller { uid: 0, gid: 0, pid: 1 };
    out.clear();
    tree.open(ino, caller, false).expect("a file");
    tree.render(ino, caller, usize::MAX, out).expect("a file");
    escape(&**out);
}

fn main() {
    let options = Options::from_args();
    pin(0);
    let many = if options.quick { 50 } else { 1000 };
    let processes: Vec<_> = (0..many).map(process).collect();
    processes.iter().for_each(|process| process.slot.guest_exits.add(3));
    let alone = host(&processes[..1]);
    let start = Instant::now();
    let tree = host(&processes);
    options.say(format_args!(
        "{many} processes joined, {:.0} µs each",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(many)
    ));
    let path = "kvm/1-guest0/guest_exits";
    let (of_one, of_many, total) =
        (find(&alone, path), find(&tree, path), find(&tree, "kvm/guest_exits"));
    let dir = find(&tree, "kvm/1-guest0");
    let (mut out, mut out_alone, mut out_total) = (Vec::new(), Vec::new(), Vec::new());
    let mut c = Comparison::new("One request among many processes");
    c.case("a value's file, in a tree of one process", |n| {
        timed(|| (0..n).for_each(|_| read(&alone, of_one, &mut out_alone)))
    });
    c.case("the same in a tree of many", |n| {
        timed(|| (0..n).for_each(|_| read(&tree, of_many, &mut out)))
    });
    c.case("attributes of its directory, in a tree of many", |n| {
        timed(|| (0..n).for_each(|_| escape(&tree.attr(dir).expect("a directory"))))
    });
    c.case("the total over all", |n| {
        timed(|| (0..n).for_each(|_| read(&tree, total, &mut out_total)))
    });
    c.run(options);
    assert_eq!((&*out, &*out_alone), (&b"3\n"[..], &b"3\n"[..]));
    assert_eq!(out_total, format!("{}\n", 3 * many).as_bytes());
}
