//! How long others wait for who reads a whole host: 1000 machines of 64 vCPUs of 100 values, of ten processes in
//! one tree. Somebody reads all of it again and again; somebody else looks names up, and takes a small process
//! away and puts it back, which needs the tree for itself.
//!
//! `cargo bench -p statsfs-benches --bench waiting [-- --quick --json]`; takes about 700 MB.

#[allow(dead_code, reason = "the other benchmark needs more of it")]
#[path = "host/machines.rs"]
mod machines;
#[path = "common/values.rs"]
mod values;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use statsfs::Registry;
use statsfs::fs::{Caller, Ino, Nodes, ROOT};
use statsfs::tree::{Feed, Identity, Owner, ProcessKey, Tree, TreeOptions};
use statsfs_benches::{Fact, Options};

use machines::{Machines, Size};

const PROCESSES: usize = 10;

/// A registry's segments, as a client's come to a server.
struct Segments(Vec<OwnedFd>);

impl Feed for Segments {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.iter().map(OwnedFd::try_clone).collect()
    }
}

fn join(tree: &Tree, registry: &Registry, pid: u32) -> ProcessKey {
    let segments = Segments(registry.segments().expect("segments"));
    let identity = Identity { pid, ..Identity::this_process() };
    tree.join(segments, identity).expect("segments of ours")
}

fn main() {
    let options = Options::from_args();
    let size = if options.quick {
        Size { machines: 2, vcpus: 8 }
    } else {
        Size { machines: 1000 / PROCESSES, vcpus: 64 }
    };
    let mut tree_options = TreeOptions::new(Owner { uid: 0, gid: 0 });
    tree_options.pid_prefix = true;
    let tree = Tree::host(tree_options);
    let all: Vec<_> = (0..PROCESSES).map(|n| Machines::new(n * size.machines, size)).collect();
    for (pid, machines) in (1000..).zip(&all) {
        join(&tree, &machines.registry, pid);
    }
    let small = Machines::new(0, Size { machines: 1, vcpus: 1 });
    let key = join(&tree, &small.registry, 1);
    let exits = all.iter().map(Machines::exits).sum::<u64>() + small.exits();
    // Those with thousands of sources are taken over in pieces.
    let total = node(&tree, "kvm/user_exits");
    while render(&tree, total, &mut Vec::new()) != exits.to_string().len() + 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    options.say(format_args!(
        "{} machines of {} vCPUs of {} values",
        PROCESSES * size.machines,
        size.vcpus,
        machines::VALUES
    ));
    let times = if options.quick { 5 } else { 200 };
    for (title, path) in [
        ("Nobody reads", None),
        ("kvm/user_exits is read all the time", Some("kvm/user_exits")),
        ("kvm/.stats/flat is", Some("kvm/.stats/flat")),
        ("kvm/.stats/schema is", Some("kvm/.stats/schema")),
    ] {
        let path = path.map(|path| {
            (
                path,
                path.split('/')
                    .try_fold(ROOT, |ino, name| tree.lookup(ino, name).ok().map(|attr| attr.ino)),
            )
        });
        if let Some((path, None)) = path {
            options.say(format_args!("\nno {path}"));
            continue;
        }
        let read = path.and_then(|(_, ino)| ino);
        measure(&tree, key, read, title, times, options);
    }
}

fn node(tree: &Tree, path: &str) -> Ino {
    let lookup = |ino, name| tree.lookup(ino, name).map(|attr| attr.ino);
    path.split('/').try_fold(ROOT, lookup).unwrap_or_else(|error| panic!("{path}: {error:?}"))
}

fn render(tree: &Tree, ino: Ino, out: &mut Vec<u8>) -> usize {
    out.clear();
    let caller = Caller { uid: 0, gid: 0, pid: 0 };
    tree.render(ino, caller, usize::MAX, out).expect("it can be read");
    out.len()
}

/// Times of those who do not want much, while somebody reads.
fn measure(
    tree: &Tree,
    small: ProcessKey,
    read: Option<Ino>,
    title: &str,
    times: usize,
    options: Options,
) {
    let (stop, reads) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let (mut lookups, mut changes) = (Vec::new(), Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        let (first, has_read) = channel();
        scope.spawn(move || {
            let mut text = Vec::new();
            while let Some(read) = read.filter(|_| !stop.load(Ordering::Relaxed)) {
                render(tree, read, &mut text);
                reads.fetch_add(1, Ordering::Relaxed);
                let _ = first.send(());
            }
        });
        if read.is_some() {
            has_read.recv().expect("it reads");
        }
        let took = |what: &mut dyn FnMut()| {
            let start = Instant::now();
            what();
            start.elapsed().as_secs_f64() * 1e3
        };
        for _ in 0..times {
            lookups.push(took(&mut || {
                node(tree, "kvm/user_exits");
            }));
            changes.push(took(&mut || tree.detach(small).expect("it is there")));
            std::thread::sleep(Duration::from_millis(7));
            changes.push(took(&mut || tree.reattach(small).expect("it is there")));
            std::thread::sleep(Duration::from_millis(7));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut facts = vec![
        Fact { name: "a look-up".into(), values: lookups, unit: "ms" },
        Fact { name: "a process goes, or comes".into(), values: changes, unit: "ms" },
    ];
    let reads = reads.load(Ordering::Relaxed);
    if reads > 0 {
        let each = start.elapsed().as_secs_f64() * 1e3 / reads as f64;
        facts.push(Fact::once("one read", each, "ms"));
    }
    options.facts(title, &facts);
}
