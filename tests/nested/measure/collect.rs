//! What it costs to collect everything that is counted of running guests: at once from our tree, file by file from it
//! and from KVM's debugfs, and from QEMU by its monitor (QMP's `query-stats`). The same guests run on both sides, and
//! do nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use statsfs::snapshot::Snapshot;
use tests::host::Host;
use tests::kvm_stats::KvmStats;
use tests::linux::Linux;
use tests::running::{PATIENCE, wait_until};

use crate::side::{Guest, Run, Side};

const GUESTS: usize = 3;
const VCPUS: u32 = 4;
/// How often each is measured.
const ROUNDS: usize = 15;

/// What a guest does: it comes up, and does nothing.
const IDLE: &str = "echo READY\nsleep 1000000";

/// One way to collect, and what one round of it has found.
struct Way<'a> {
    what: &'static str,
    collect: Box<dyn FnMut() -> usize + 'a>,
    times: Vec<Duration>,
    found: usize,
}

impl<'a> Way<'a> {
    fn new(what: &'static str, collect: impl FnMut() -> usize + 'a) -> Self {
        Self { what, collect: Box::new(collect), times: Vec::new(), found: 0 }
    }
}

/// Reads a file as a whole.
fn read(path: &Path, text: &mut Vec<u8>) {
    text.clear();
    let file = File::open(path).and_then(|mut file| file.read_to_end(text));
    file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Reads one number of each file.
fn read_all(paths: &[PathBuf], text: &mut Vec<u8>) -> usize {
    for path in paths {
        read(path, text);
        assert!(text.iter().any(u8::is_ascii_digit), "{} has no number", path.display());
    }
    paths.len()
}

/// The files of KVM's debugfs that have what our VMs and their vCPUs, all of a VM together, have counted.
fn debugfs(pids: &[u32], names: &[String]) -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/kernel/debug/kvm").expect("debugfs is open here").flatten();
    let is_ours = |name: &str| pids.iter().any(|pid| name.starts_with(&format!("{pid}-")));
    let ours = all
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_ours));
    ours.flat_map(|vm| names.iter().map(move |name| vm.join(name))).collect()
}

/// A QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Self {
        let stream = wait_until("QEMU's monitor", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut monitor = Self(BufReader::new(stream));
        monitor.line();
        monitor.ask(r#"{"execute": "qmp_capabilities"}"#);
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).expect("QEMU answers") > 0, "QEMU has gone");
        line
    }

    /// Asks, and returns the answer, as text.
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.0.get_mut(), "{command}").expect("QEMU reads");
        loop {
            let line = self.line();
            assert!(!line.starts_with(r#"{"error""#), "{command}: {line}");
            if line.starts_with(r#"{"return""#) {
                return line;
            }
        }
    }

    /// Asks for everything that is counted of all vCPUs, and returns how many values that is.
    fn stats(&mut self) -> usize {
        let all = self.ask(r#"{"execute": "query-stats", "arguments": {"target": "vcpu"}}"#);
        all.matches(r#""value":"#).count()
    }
}

fn qemu(initrd: &Path, monitor: &Path) -> Run {
    let guest = Guest { cpus: VCPUS, monitor: Some(monitor), ..Guest::new(128, initrd) };
    Side::Microvm.start(&guest)
}

pub fn collect() {
    let host = Host::start();
    let mut ours: Vec<_> = (0..GUESTS)
        .map(|_| {
            let guest = Linux::new(IDLE).with(|vmm| vmm.cpus(VCPUS).args(["--memory", "128M"]));
            guest.with(|vmm| vmm.published_to(&host)).build().start()
        })
        .collect();
    ours.iter_mut().for_each(|guest| {
        guest.wait_for_line("READY");
    });
    let (directory, initrd) = super::compare::initrd(IDLE);
    let sockets: Vec<_> = (0..GUESTS).map(|n| directory.path().join(format!("qmp{n}"))).collect();
    let mut theirs: Vec<_> = sockets.iter().map(|socket| qemu(&initrd, socket)).collect();
    theirs.iter_mut().for_each(|guest| {
        guest.line("READY");
    });
    let mut monitors: Vec<_> = sockets.iter().map(|socket| Monitor::connect(socket)).collect();
    let descriptors = (GUESTS as u64) * (1 + u64::from(VCPUS));
    wait_until("the descriptors", || {
        (host.value("statsfs/server_descriptors") == Some(descriptors)).then_some(())
    });

    let pids: Vec<_> = ours.iter().map(|guest| guest.pid()).collect();
    let stats = KvmStats::of(pids[0]).expect("it runs");
    let of_vcpu = stats.values().find(|of| of.id.ends_with("/vcpu-0")).expect("it has one").now();
    let names: Vec<_> = of_vcpu.iter().map(|value| value.name.clone()).collect();
    let plain: Vec<_> = of_vcpu.iter().filter(|value| value.values.len() == 1).collect();
    let in_debugfs = debugfs(&pids, &names);
    let in_files: Vec<_> = ours
        .iter()
        .flat_map(|guest| (0..VCPUS).map(move |n| format!("{}/vcpu{n}", guest.machine())))
        .flat_map(|vcpu| plain.iter().map(move |value| format!("{vcpu}/{}", value.name)))
        .map(|path| host.mount().join(path))
        .collect();
    let whole = host.mount().join("kvm/.stats/snapshot");
    let (mut text, mut text2, mut text3) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kept, kept_file) = (vec![0; 8 << 20], File::open(&whole).expect("it is there"));
    let mut ways = [
        Way::new("kvm/.stats/snapshot: all values of all guests", || {
            read(&whole, &mut text);
            let snapshot = Snapshot::parse(&text).expect("it is one");
            snapshot.dirs().map(|dir| dir.values().len()).sum()
        }),
        Way::new("... kept open, and not parsed", || {
            let n = kept_file.read_at(&mut kept, 0).expect("it can be read");
            n / 8
        }),
        Way::new("value files: KVM's plain values of each vCPU", || {
            read_all(&in_files, &mut text2)
        }),
        Way::new("debugfs: the same, of all vCPUs of a VM together", || {
            read_all(&in_debugfs, &mut text3)
        }),
        Way::new("QMP query-stats: KVM's values of each vCPU", || {
            monitors.iter_mut().map(Monitor::stats).sum()
        }),
    ];
    for round in 0..=ROUNDS {
        for way in &mut ways {
            let start = Instant::now();
            way.found = (way.collect)();
            // The first is not what the next ones are.
            if round > 0 {
                way.times.push(start.elapsed());
            }
        }
    }
    println!();
    println!(
        "{:52} {:>24} {:>8} {:>12} {:>7}",
        format!("Everything of {GUESTS} guests of {VCPUS} vCPUs"),
        "ms",
        "values",
        "us per value",
        "ratio"
    );
    let mut of_one = None;
    for way in &mut ways {
        way.times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (least, most) = (ms(way.times[0]), ms(way.times[way.times.len() - 1]));
        let median = ms(way.times[way.times.len() / 2]);
        let each = median * 1e3 / way.found as f64;
        let shown = format!("{median:.2} ({least:.2}-{most:.2})");
        let ratio = each / *of_one.get_or_insert(each);
        println!("{:52} {shown:>24} {:>8} {each:>12.2} {ratio:>7.1}", way.what, way.found);
    }
}
