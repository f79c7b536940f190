//! One mount for a whole host, through the real server: 1000 machines of 64 vCPUs of 100 values, by a few
//! processes. What it takes to take them all in, in time and memory; what their readers pay; and what those who
//! count pay for being read.
//!
//! `cargo bench -p statsfs-benches --bench host [-- --quick --json]`, as root, with `/dev/fuse`; some minutes, and
//! about 3 GB.

mod machines;
mod process;
mod readers;
#[path = "../common/values.rs"]
mod values;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statsfs::Slot;
use statsfs::host::PublishOptions;
use statsfs::tree::Snapshot;
use statsfs_benches::{Comparison, Fact, Options, escape, pin, pin_process, quartiles, timed};

use machines::{Machines, Size, Timing, VALUES, Vcpu};
use process::{Host, Memory, Publisher};
use readers::{Crowd, cat, find, list, read_all, time_entries, while_reading};
use values::Nth;

const MIB: f64 = (1 << 20) as f64;

fn main() {
    if process::run_as_other() {
        return;
    }
    let options = Options::from_args();
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("host: mounting needs root: run it with sudo");
        std::process::exit(1);
    }
    let size = if options.quick {
        Size { machines: 50, vcpus: 8 }
    } else {
        Size { machines: 1000, vcpus: 64 }
    };
    options.say(format_args!(
        "{} machines of {} vCPUs of {VALUES} values: {} sources, {:.1} million values",
        size.machines,
        size.vcpus,
        size.sources(),
        size.values() as f64 / 1e6
    ));
    connect(size, options);
    serve(size, options);
    outlive(size, options);
}

/// Wall time of `n` runs.
fn wall(n: u64, mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..n).for_each(|_| run());
    start.elapsed()
}

/// What a server's coming to know all machines takes.
#[derive(Default)]
struct Connected {
    seconds: Vec<f64>,
    processor: Vec<f64>,
    own: Vec<f64>,
    shared: Vec<f64>,
    shared_pss: Vec<f64>,
    folded: Vec<f64>,
    after: Vec<f64>,
}

/// Taking all machines in, of one process and of ten.
fn connect(size: Size, options: Options) {
    let rounds = if options.quick { 2 } else { 3 };
    let (mut one, mut ten, mut bytes) = (Connected::default(), Connected::default(), 0);
    for _ in 0..rounds {
        for (processes, to) in [(1, &mut one), (10, &mut ten)] {
            let host = Host::start(2);
            let mut publishers = Publisher::start_all(&host, size, processes);
            let exits = publishers.iter().map(|publisher| publisher.exits).sum();
            bytes = publishers.iter().map(|publisher| publisher.bytes).sum();
            let (before, time) = (host.memory(), host.time());
            let start = Instant::now();
            publishers.iter_mut().for_each(Publisher::publish);
            host.wait_counted(exits);
            to.seconds.push(start.elapsed().as_secs_f64());
            to.processor.push((host.time() - time).as_secs_f64());
            let Memory { own, shared, shared_pss } = host.memory();
            to.own.push((own - before.own) as f64);
            to.shared.push(shared as f64);
            to.shared_pss.push(shared_pss as f64);
            let start = Instant::now();
            drop(publishers);
            host.wait_left();
            to.folded.push(start.elapsed().as_secs_f64());
            to.after.push(host.memory().own.saturating_sub(before.own) as f64);
            assert_eq!(host.number("kvm/user_exits"), Some(exits), "all that they counted");
        }
    }
    let fact = |name: &str, values: &[f64], by: f64, unit| Fact {
        name: name.into(),
        values: values.iter().map(|value| value / by).collect(),
        unit,
    };
    for (title, of) in [("Taken in from one process", &one), ("Taken in from ten", &ten)] {
        let (sources, values) = (size.sources() as f64, size.values() as f64);
        let facts = [
            fact("until all is counted", &of.seconds, 1.0, "s"),
            fact("... processor time of the server", &of.processor, 1.0, "s"),
            fact("... for a source", &of.processor, sources / 1e6, "µs"),
            fact("the server's own memory for it", &of.own, MIB, "MiB"),
            fact("... for a source", &of.own, sources, "bytes"),
            fact("... for a value", &of.own, values, "bytes"),
            Fact::once("segments, which are their processes'", bytes as f64 / MIB, "MiB"),
            Fact::once("... for a value", bytes as f64 / values, "bytes"),
            fact("... of which the server has mapped in", &of.shared, MIB, "MiB"),
            fact("... of which its proportional share", &of.shared_pss, MIB, "MiB"),
            fact("after their ends, until all is kept", &of.folded, 1.0, "s"),
            fact("... and the server's own memory is still larger by", &of.after, MIB, "MiB"),
        ];
        options.facts(title, &facts);
    }
    let ratios = |a: &[f64], b: &[f64]| quartiles(a.iter().zip(b).map(|(a, b)| a / b).collect());
    let [low, middle, high] = ratios(&ten.processor, &one.processor);
    options.say(format_args!(
        "  ten processes against one, processor time: {middle:.2} ({low:.2}–{high:.2})"
    ));
}

/// What readers pay, and who is read.
fn serve(size: Size, options: Options) {
    // The servers on the first CPU, those who read and count on the second, as long as nothing else is said.
    let cpus = pin(1);
    let machines = Machines::new(0, size);
    let timing = machines.vcpus[0].add_values::<Timing>().expect("room for a slot");
    let host = Host::start(2);
    pin_process(host.pid(), Some(0));
    let publish = |host: &Host, machines: &Machines| {
        let options = PublishOptions { socket: Some(host.socket()), ..PublishOptions::default() };
        machines.registry.publish(options).expect("it can be tried")
    };
    let published = publish(&host, &machines);
    host.wait_counted(machines.exits());
    let before = host.memory();

    read(&host, &machines, size, options);
    if cpus > 1 {
        count(&host, &machines, &timing, options);
    } else {
        options.say("one CPU only: nothing to measure about those who count");
    }
    pin_process(host.pid(), None);
    pin_process(std::process::id(), None);
    walk(&host, size, options);
    clients(&host, size, options);

    let grown = host.memory().own as f64 - before.own as f64;
    let facts = [
        Fact::once("after all this, the server's own memory has grown by", grown / MIB, "MiB"),
        Fact::once("... for a source", grown / size.sources() as f64, "bytes"),
    ];
    options.facts("Memory of what was read", &facts);
    drop(published);
}

/// A total over all, and all at once.
fn read(host: &Host, machines: &Machines, size: Size, options: Options) {
    let cells = machines.cells();
    let sweep = |n: u64| {
        timed(|| {
            for _ in 0..n {
                let exits = |sum: u64, cells: &&_| sum.wrapping_add(exits_of(cells));
                escape(&cells.iter().fold(0, exits));
            }
        })
    };
    let (total, of_one) = (host.path("kvm/user_exits"), value_file(host, 0, 0));
    let mut c = Comparison::new("A total over all vCPUs");
    c.case("bare sweep: load and add the same cells", sweep);
    c.case("cat kvm/user_exits", |n| wall(n, || cat(&total)));
    c.case("cat of one vCPU's user_exits", |n| wall(n, || cat(&of_one)));
    c.run(options);

    let tree = machines.registry.tree().expect("a registry's own segments");
    let mut snapshot = Snapshot::default();
    let mut copy: Vec<u64> = Vec::with_capacity(size.values());
    let mut c = Comparison::new("All values of all vCPUs");
    c.rounds(21);
    c.case("bare sweep: copy the same cells", |n| {
        timed(|| (0..n).for_each(|_| copy_all(&cells, &mut copy)))
    });
    c.case("snapshot in the process", |n| {
        timed(|| {
            for _ in 0..n {
                tree.snapshot(&mut snapshot);
                escape(&snapshot);
            }
        })
    });
    c.budget(3.0);
    c.run(options);
    drop((tree, snapshot));

    let mut buffer = vec![0; 1 << 20];
    let (flat, flat_of_one) = (host.path("kvm/.stats/flat"), flat_of(host, 0));
    let all = read_all(&flat, &mut buffer).unwrap_or_else(|e| panic!("{}: {e}", flat.display()));
    let peak = host.memory();
    let mut buffer_of_one = vec![0; 1 << 20];
    let mut c = Comparison::new("All values as text");
    c.rounds(5);
    c.case("bare sweep: copy the same cells", |n| {
        timed(|| (0..n).for_each(|_| copy_all(&cells, &mut copy)))
    });
    c.case("cat kvm/.stats/flat", |n| wall(n, || escape(&read_all(&flat, &mut buffer))));
    c.case("cat .stats/flat of one machine", |n| {
        wall(n, || escape(&read_all(&flat_of_one, &mut buffer_of_one)))
    });
    let figures = c.run(options);
    let nanoseconds = |at: usize, values: usize| figures[at].nanoseconds / values as f64;
    let of_machine = size.vcpus * VALUES;
    let facts = [
        Fact::once("bare sweep, a value", nanoseconds(0, size.values()), "ns"),
        Fact::once("kvm/.stats/flat, a value", nanoseconds(1, size.values()), "ns"),
        Fact::once("... of one machine, a value", nanoseconds(2, of_machine), "ns"),
        Fact::once("kvm/.stats/flat", all as f64 / MIB, "MiB"),
        Fact::once("... after which the server's own memory is", peak.own as f64 / MIB, "MiB"),
    ];
    options.facts("All values as text, each", &facts);
}

fn exits_of(cells: &machines::VcpuLatched) -> u64 {
    cells.user_exits.get()
}

fn copy_all(cells: &[&machines::VcpuLatched], copy: &mut Vec<u64>) {
    copy.clear();
    for cells in cells {
        copy.push(cells.user_exits.get());
        copy.extend(cells.user_exit.iter().map(|cell| cell.get()));
    }
    escape(&**copy);
}

fn machine_dir(host: &Host, machine: usize) -> PathBuf {
    host.path(&format!("kvm/{}-guest{machine}", std::process::id()))
}

fn value_file(host: &Host, machine: usize, vcpu: usize) -> PathBuf {
    machine_dir(host, machine).join(format!("vcpu{vcpu}/user_exits"))
}

fn flat_of(host: &Host, machine: usize) -> PathBuf {
    machine_dir(host, machine).join(".stats/flat")
}

/// What counts as a vCPU's loop does, so many exits, and answers what that took.
fn counting<'a>(slot: &'a Slot<Vcpu>, timing: &'a Slot<Timing>) -> impl Fn(u64) -> Duration + 'a {
    move |n| {
        timed(|| {
            for exit in 0..n {
                slot.update(|counters| {
                    counters.user_exits.inc();
                    counters.user_exit[Nth(exit as usize % 8)].inc();
                });
                timing.user_handle_time.record(exit & 0xffff);
                escape(slot);
            }
        })
    }
}

/// Nanoseconds of an exit, counted for as long as `goes_on` says, which is asked now and then.
fn of_an_exit(exits: &impl Fn(u64) -> Duration, mut goes_on: impl FnMut() -> bool) -> f64 {
    const AT_ONCE: u64 = 100_000;
    let (mut time, mut counted) = (Duration::ZERO, 0);
    loop {
        time += exits(AT_ONCE);
        counted += AT_ONCE;
        if !goes_on() {
            return time.as_secs_f64() * 1e9 / counted as f64;
        }
    }
}

/// Nanoseconds of an exit while nothing else happens.
fn of_some_exits(exits: &impl Fn(u64) -> Duration) -> f64 {
    let mut times = 0..100;
    of_an_exit(exits, || times.next().is_some())
}

/// What is paid for being read, by a vCPU's loop.
fn count(host: &Host, machines: &Machines, timing: &Slot<Timing>, options: Options) {
    pin(1);
    let exits = counting(&machines.slots[0], timing);
    let (total, flat) = (host.path("kvm/user_exits"), flat_of(host, 0));
    let (totals, flats) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut c = Comparison::new("Counting an exit, server and its readers on the other CPU");
    c.case("nobody reads", &exits);
    c.case("kvm/user_exits is read all the time", |n| while_reading(&total, &totals, || exits(n)));
    c.budget(1.05);
    c.case("its machine's .stats/flat is", |n| while_reading(&flat, &flats, || exits(n)));
    c.budget(1.05);
    c.run(options);
    options.say(format_args!(
        "  read {} and {} times meanwhile",
        totals.load(Ordering::Relaxed),
        flats.load(Ordering::Relaxed)
    ));
    // A read of all takes long: some of it is no measure of the rest, so it is a whole one each time.
    let (all, reads) = (host.path("kvm/.stats/flat"), AtomicU64::new(0));
    let ratio = |_| {
        let alone = of_some_exits(&exits);
        let read = while_reading(&all, &reads, || {
            let before = reads.load(Ordering::Relaxed);
            of_an_exit(&exits, || reads.load(Ordering::Relaxed) == before)
        });
        read / alone
    };
    let name = "kvm/.stats/flat of all is read all the time, against nobody reads".into();
    let values = (0..if options.quick { 2 } else { 7 }).map(ratio).collect();
    options.facts("Counting an exit meanwhile", &[Fact { name, values, unit: "×" }]);
}

/// What those who count notice of a server that is killed and started again: nothing.
fn outlive(size: Size, options: Options) {
    if pin(0) < 2 {
        return;
    }
    let small = Size { machines: size.machines.div_ceil(10), ..size };
    let (mut host, machines) = (Host::start(2), Machines::new(0, small));
    let timing = machines.vcpus[0].add_values::<Timing>().expect("room for a slot");
    let to = PublishOptions { socket: Some(host.socket()), ..PublishOptions::default() };
    let published = machines.registry.publish(to).expect("it can be tried");
    let exits = counting(&machines.slots[0], &timing);
    let (mut there, mut killed, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if options.quick { 2 } else { 21 } {
        host.wait_published();
        pin(1);
        let with = of_some_exits(&exits);
        host.kill();
        let without = of_some_exits(&exits);
        let is_back = AtomicBool::new(false);
        let starting = std::thread::scope(|scope| {
            scope.spawn(|| {
                // As is the server, which it starts.
                pin(0);
                host.start_again();
                host.wait_published();
                is_back.store(true, Ordering::Relaxed);
            });
            of_an_exit(&exits, || !is_back.load(Ordering::Relaxed))
        });
        there.push(with);
        killed.push(without / with);
        again.push(starting / with);
    }
    let fact = |name: &str, values, unit| Fact { name: name.into(), values, unit };
    let facts = [
        fact("while there is a server", there, "ns"),
        fact("... while it is killed, against that", killed, "×"),
        fact("... from its being started again until it has all, likewise", again, "×"),
    ];
    options.facts("Counting an exit, server on the other CPU", &facts);
    drop(published);
}

/// Listings and walks.
fn walk(host: &Host, size: Size, options: Options) {
    let (kvm, machine) = (host.path("kvm"), machine_dir(host, 0));
    let vcpu = machine.join("vcpu0");
    let entries = [&kvm, &machine, &vcpu].map(|path| list(path));
    let other = tempfile::tempdir_in("/dev/shm").expect("/dev/shm");
    for n in 0..entries[0] {
        std::fs::write(other.path().join(format!("{n}-guest{n}")), "").expect("room in /dev/shm");
    }
    let mut c = Comparison::new("Listing, an entry");
    c.case(format!("tmpfs: {} entries", entries[0]), |n| time_entries(other.path(), n));
    for (name, path, entries) in [
        ("kvm/", &kvm, entries[0]),
        ("a machine's", &machine, entries[1]),
        ("a vCPU's", &vcpu, entries[2]),
    ] {
        c.case(format!("{name}: {entries} entries"), |n| time_entries(path, n));
    }
    c.run(options);

    let dirs: Vec<_> = (0..size.machines).map(|machine| machine_dir(host, machine)).collect();
    let (cold, half) = dirs.split_at(size.machines / 2);
    let (warm, first) = (cold, find(&[cold.to_vec()]));
    let quarters = |dirs: &[PathBuf]| {
        dirs.chunks(dirs.len().div_ceil(4)).map(<[_]>::to_vec).collect::<Vec<_>>()
    };
    let many = find(&quarters(half));
    let again = find(&[warm.to_vec()]);
    let many_again = find(&quarters(warm));
    let each = |(entries, time): (usize, Duration)| time.as_secs_f64() * 1e6 / entries as f64;
    let facts = [
        Fact::once("entries of half of the machines", first.0 as f64, ""),
        Fact::once("one find", first.1.as_secs_f64(), "s"),
        Fact::once("... an entry", each(first), "µs"),
        Fact::once("... of those that the kernel knows by now", each(again), "µs"),
        Fact::once("four at once, of the other half, an entry", each(many), "µs"),
        Fact::once("... of those that the kernel knows by now", each(many_again), "µs"),
    ];
    options.facts("Walking with find", &facts);
}

/// One client and many, of a server with one thread for requests and with two.
fn clients(host: &Host, size: Size, options: Options) {
    let small = Size { machines: size.machines.div_ceil(10), ..size };
    let (other, machines) = (Host::start(1), Machines::new(0, small));
    let to = PublishOptions { socket: Some(other.socket()), ..PublishOptions::default() };
    let published = machines.registry.publish(to).expect("it can be tried");
    other.wait_counted(machines.exits());
    let files = |host| {
        let of = |n| value_file(host, n % small.machines, n % size.vcpus);
        (0..256).map(of).collect::<Vec<_>>()
    };
    let crowd = |readers, host| Crowd::new(readers, &files(host));
    let crowds = [crowd(1, host), crowd(4, host), crowd(1, &other), crowd(4, &other)];
    let names = [
        "two threads serve, one client",
        "two threads serve, four clients",
        "one thread serves, one client",
        "one thread serves, four clients",
    ];
    let mut c = Comparison::new("Value files: open + read + close");
    for (name, crowd) in names.into_iter().zip(&crowds) {
        c.case(name, |n| crowd.read(n));
    }
    c.run(options);
    drop(published);
}
