//! A whole host at once: its bulk files against opening, reading and closing each value's file, and against a bare sweep of the
//! same cells; and what a snapshot costs before it goes through FUSE.
//!
//! `cargo bench -p statsfs-benches --bench bulk [-- --quick --json]`, as root, with `/dev/fuse`; takes about a GB.

#[path = "host/machines.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod machines;
#[path = "common/values.rs"]
mod values;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use machines::{Machines, Size, VALUES, VcpuLatched};
use statsfs::Embedded;
use statsfs::fs::{Caller, MountOptions, Nodes, ROOT};
use statsfs::snapshot::Snapshot;
use statsfs::tree::Tree;
use statsfs_benches::{Comparison, Fact, Options, escape, pin, timed};

/// Anybody who may see everything.
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Most value files of which a walk is measured; of more it is a sample.
const WALKED: usize = 8000;

/// Wall time: the server's part is what matters, and it is in other threads.
fn wall(n: u64, mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..n).for_each(|_| run());
    start.elapsed()
}

fn copy_all(cells: &[&VcpuLatched], copy: &mut Vec<u64>) {
    copy.clear();
    for cells in cells {
        copy.push(cells.user_exits.get());
        copy.extend(cells.user_exit.iter().map(|cell| cell.get()));
    }
    escape(&**copy);
}

/// What `cat` of a large file is, into memory that is used again.
fn read_all(path: &Path, buffer: &mut [u8]) -> usize {
    let (mut file, mut all) = (File::open(path).expect("it is there"), 0);
    loop {
        match file.read(buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            0 => return all,
            n => all += n,
        }
    }
}

/// What is read of a file that is in the tree, without FUSE.
fn render(tree: &Tree, path: &[&str]) -> Vec<u8> {
    let find = |ino, name: &&str| tree.lookup(ino, name).expect("it is there").ino;
    let ino = path.iter().fold(ROOT, find);
    // As the file system begins with it.
    let mut out = Vec::with_capacity(24);
    tree.render(ino, CALLER, usize::MAX, &mut out).expect("there is room");
    out
}

/// The files of some of the vCPUs' values, spread over all machines.
fn value_files(mount: &Path, size: Size) -> Vec<PathBuf> {
    let vcpus = size.machines * size.vcpus;
    let step = vcpus.div_ceil(WALKED / VALUES);
    let mut all = Vec::new();
    for n in (0..vcpus).step_by(step) {
        let (machine, vcpu) = (n / size.vcpus, n % size.vcpus);
        let dir = mount.join(format!("kvm/guest{machine}/vcpu{vcpu}"));
        let names = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        all.extend(names.map(|entry| entry.expect("an entry").path()));
    }
    all
}

fn measure(size: Size, options: Options) {
    let machines = Machines::new(0, size);
    let cells = machines.cells();
    let values = size.values();
    let mut copy: Vec<u64> = Vec::with_capacity(values);
    let place = tempfile::Builder::new().prefix("statsfs-bench-").tempdir().expect("/tmp");
    let mount = place.path().join("mount");
    let room = MountOptions::new().max_open_bytes(2 << 30);
    let mounted = Embedded::mount(&machines.registry, &mount, room).expect("a mount");
    let tree = machines.registry.tree().expect("a registry's own segments");
    let title = if size.machines > 10 { "large" } else { "small" };
    options.say(format_args!(
        "\n{title}: {} machines of {} vCPUs of {VALUES} values in one process: {values} values",
        size.machines, size.vcpus
    ));
    let text = |name: &str| mount.join(".stats").join(name);
    let mut buffer = vec![0; 1 << 20];
    let lens =
        ["snapshot", "flat", "prometheus-full"].map(|name| read_all(&text(name), &mut buffer));

    let bytes = render(&tree, &[".stats", "snapshot"]);
    // Without FUSE: what it takes to make a snapshot.
    let mut swept = statsfs::tree::Snapshot::default();
    let mut c = Comparison::new(match title {
        "large" => "A snapshot of a large host, made",
        _ => "A snapshot of a small host, made",
    });
    c.rounds(21);
    c.case("bare sweep: copy the same cells", |n| {
        timed(|| (0..n).for_each(|_| copy_all(&cells, &mut copy)))
    });
    c.case("bare sweep into new memory", |n| {
        timed(|| (0..n).for_each(|_| copy_all(&cells, &mut Vec::with_capacity(values))))
    });
    c.case("all cells of the tree into a buffer", |n| {
        timed(|| (0..n).for_each(|_| tree.snapshot(&mut swept)))
    });
    c.case("the file's content", |n| {
        timed(|| (0..n).for_each(|_| escape(&*render(&tree, &[".stats", "snapshot"]))))
    });
    c.case("checked by the library's reader", |n| {
        timed(|| (0..n).for_each(|_| escape(&Snapshot::parse(&bytes).expect("ours"))))
    });
    c.run(options);
    drop(swept);

    // A reader with a processor of its own, the server on the other, if there are two.
    let files = value_files(&mount, size);
    let walk = || {
        let mut buffer = [0; 64];
        for path in &files {
            let read = File::open(path).and_then(|mut file| file.read(&mut buffer));
            assert!(read.is_ok_and(|n| n > 1), "{}", path.display());
        }
    };
    let mut c = Comparison::new(match title {
        "large" => "A large host at once",
        _ => "A small host at once",
    });
    c.rounds(7);
    c.case("bare sweep: copy the same cells", |n| wall(n, || copy_all(&cells, &mut copy)));
    c.case("walk: open + read + close of value files", |n| wall(n, walk));
    for name in ["snapshot", "flat", "prometheus", "prometheus-full"] {
        let path = text(name);
        let mut buffer = vec![0; 1 << 20];
        c.case(name, move |n| wall(n, || escape(&read_all(&path, &mut buffer))));
    }
    c.case("the library's Snapshot::read", |n| {
        wall(n, || escape(&Snapshot::read(&mount).expect("it is mounted")))
    });
    let figures = c.run(options);
    let each = |at: usize, of: usize| figures[at].nanoseconds / of as f64;
    let walked = each(1, files.len());
    let note = if files.len() < values { " (of a sample: reckoned for all)" } else { "" };
    let mut facts = vec![
        Fact::once("bare sweep, a value", each(0, values), "ns"),
        Fact::once(format!("walk, a value{note}"), walked, "ns"),
        Fact::once(format!("walk of all{note}"), walked * values as f64 / 1e9, "s"),
    ];
    for (at, name) in
        ["snapshot", "flat", "prometheus", "prometheus-full", "Snapshot::read"].iter().enumerate()
    {
        facts.push(Fact::once(format!("{name}, a value"), each(2 + at, values), "ns"));
        let times = walked / each(2 + at, values);
        facts.push(Fact::once("... which a walk takes this many times", times, "×"));
        let times = each(2 + at, values) / each(0, values);
        facts.push(Fact::once("... and which is this many bare sweeps", times, "×"));
    }
    for (name, len) in ["snapshot", "flat", "prometheus-full"].iter().zip(lens) {
        facts.push(Fact::once(format!("{name}, a value"), len as f64 / values as f64, "bytes"));
    }
    options.facts(
        if title == "large" { "Each value of a large host" } else { "Each value of a small host" },
        &facts,
    );
    // It is what was counted.
    let snapshot = Snapshot::read(&mount).expect("it is mounted");
    assert_eq!(snapshot.number("kvm/user_exits"), Some(machines.exits().into()));
    mounted.unmount().expect("nobody uses it");
}

fn main() {
    let options = Options::from_args();
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("bulk: mounting needs root: run it with sudo");
        std::process::exit(1);
    }
    let sizes = match options.quick {
        true => [Size { machines: 2, vcpus: 2 }, Size { machines: 20, vcpus: 4 }],
        false => [Size { machines: 10, vcpus: 8 }, Size { machines: 1000, vcpus: 64 }],
    };
    let cpus = pin(0);
    options.say(format_args!("{cpus} processors; reader and server share them as they like"));
    statsfs_benches::pin_process(std::process::id(), None);
    for size in sizes {
        measure(size, options);
    }
}
