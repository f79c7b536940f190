//! What is measured, and the tables.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tests::linux::{INIT, Initrd};
use tests::{namespace, tap};

use crate::side::{Guest, Run, SIDES, Side};

/// How often each is measured.
const ROUNDS: usize = 3;

/// Prints a row: what it is, the medians of both sides with the least and the most, and their ratio.
fn row(what: &str, unit: &str, digits: usize, mut values: [Vec<f64>; 2]) {
    let shown = values.each_mut().map(|values| {
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        let median = values[values.len() / 2];
        (median, format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"))
    });
    let ratio = shown[0].0 / shown[1].0;
    println!("{:44} {:>24} {:>24} {ratio:>7.2}", format!("{what}, {unit}"), shown[0].1, shown[1].1);
}

fn title(text: &str) {
    println!();
    println!("{text:44} {:>24} {:>24} {:>7}", "vmm", "QEMU microvm", "ratio");
}

/// Prints how often guests of either side hung while the values above were measured.
fn hung(failures: [usize; 2]) {
    let [vmm, microvm] = failures;
    println!("{:44} {vmm:>24} {microvm:>24}", "hung and measured again, guests");
}

/// An initial RAM file system, in a directory of its own.
pub(crate) fn initrd(script: &str) -> (TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("a place");
    let path = directory.path().join("initrd");
    Initrd::new(script).write_to(&path);
    (directory, path)
}

/// How often guests may hang before a measurement has failed.
const FAILURES: usize = 12;

/// Measures both sides in turns. In the emulated host guests of either side hang now and then (timers that never
/// come, it seems: QEMU's emulation of the time stamp counter and of SVM meet): that is shown,
/// measured again, and counted: how often it was so of each side comes with the values.
fn in_turns<const N: usize>(
    mut measure: impl FnMut(Side) -> [f64; N],
) -> ([[Vec<f64>; 2]; N], [usize; 2]) {
    let mut all = [const { [Vec::new(), Vec::new()] }; N];
    let mut failures = [0; 2];
    for round in 0..ROUNDS {
        for turn in 0..2 {
            // The first is another one in each round.
            let side = (round + turn) % 2;
            let values = loop {
                match catch_unwind(AssertUnwindSafe(|| measure(SIDES[side]))) {
                    Ok(values) => break values,
                    Err(panic) if failures.iter().sum::<usize>() == FAILURES => {
                        resume_unwind(panic)
                    }
                    Err(_) => failures[side] += 1,
                }
                println!("round {} of {ROUNDS}, {:?}: failed, again", round + 1, SIDES[side]);
            };
            println!("round {} of {ROUNDS}, {:?}: {values:.2?}", round + 1, SIDES[side]);
            for (all, value) in all.iter_mut().zip(values) {
                all[side].push(value);
            }
        }
    }
    (all, failures)
}

/// The kernel's record of when programs were executed and when guests' CPUs were entered.
struct Trace;

impl Trace {
    const AT: &str = "/sys/kernel/tracing";
    const EVENTS: [&str; 2] =
        ["events/kvm/kvm_entry/enable", "events/sched/sched_process_exec/enable"];

    fn write(file: &str, text: &str) {
        let path = Path::new(Self::AT).join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Starts afresh. The first of many is what is looked for, so later ones give way.
    fn start() -> Self {
        if !Path::new(Self::AT).join("trace").exists() {
            namespace::mount("tracefs", Path::new(Self::AT), "tracefs").expect("it can be mounted");
        }
        for (file, text) in [
            ("tracing_on", "0"),
            ("trace", ""),
            ("options/overwrite", "0"),
            ("trace_clock", "mono"),
        ] {
            Self::write(file, text);
        }
        Self::EVENTS.iter().for_each(|event| Self::write(event, "1"));
        Self::write("tracing_on", "1");
        Self
    }

    /// From the execution of a program to the first entry of a guest.
    fn to_first_entry(&self, executable: &str) -> Duration {
        Self::write("tracing_on", "0");
        let text = fs::read_to_string(Path::new(Self::AT).join("trace")).expect("it can be read");
        let moment = |event: &str, more: &str| {
            let line = text.lines().find(|line| line.contains(event) && line.contains(more));
            let before = line.and_then(|line| line.split(event).next());
            let word = before.and_then(|before| before.split_whitespace().next_back());
            let seconds = word.and_then(|word| word.trim_end_matches(':').parse::<f64>().ok());
            Duration::from_secs_f64(seconds.unwrap_or_else(|| panic!("no {event} in:\n{text}")))
        };
        let executed = moment("sched_process_exec:", &format!("filename={executable} "));
        moment("kvm_entry:", "") - executed
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        Self::EVENTS.iter().for_each(|event| Self::write(event, "0"));
    }
}

pub fn starting() {
    let (_directory, initrd) = initrd("");
    let guest = Guest::new(256, &initrd);
    let ([entry, uptime, init], failures) = in_turns(|side| {
        let trace = Trace::start();
        let mut run = side.start(&guest);
        let (uptime, init) = run.line(INIT);
        run.wait();
        let entry = trace.to_first_entry(side.executable());
        [entry.as_secs_f64() * 1e3, uptime.parse().expect("seconds"), init.as_secs_f64()]
    });
    title("Starting Linux (1 vCPU, 256 MiB)");
    row("exec to first guest instruction", "ms", 1, entry);
    row("guest's uptime at init", "s", 2, uptime);
    row("start to init", "s", 2, init);
    hung(failures);
}

pub fn memory() {
    let (_directory, initrd) = initrd("echo READY\nsleep 1000000");
    let guest = Guest::new(128, &initrd);
    let mut tables = [None, None];
    let ([overhead], failures) = in_turns(|side| {
        let mut run = side.start(&guest);
        run.line("READY");
        let memory = run.memory(&guest);
        let beside = memory.beside_guest().rss as f64 / 1024.0;
        tables[usize::from(side != Side::Vmm)] = Some(memory);
        [beside]
    });
    title("Memory beside the guest's (1 vCPU, 128 MiB)");
    row("Rss of all mappings but guest RAM", "MiB", 2, overhead);
    hung(failures);
    for (side, memory) in SIDES.iter().zip(tables) {
        let memory = memory.expect("both were measured");
        println!("\n{side:?}, the last\n{memory}");
    }
}

/// MiB that are moved each way.
const DISK: u64 = 64;
/// Sending is many times slower than receiving, with either side.
const SENT: u64 = 8;
const RECEIVED: u64 = 32;

/// Measures what a guest says that moving so many MiB took, by name.
fn speeds<const N: usize>(run: &mut Run, what: [(&str, u64); N]) -> [f64; N] {
    what.map(|(what, size)| {
        let (line, _) = run.line(&format!("TOOK {what} "));
        let (begin, end) = line.split_once(' ').expect("two moments");
        let second = |text: &str| text.parse::<f64>().expect("seconds");
        size as f64 / (second(end) - second(begin))
    })
}

/// What a guest's script says the time with.
const TOOK: &str = "up() { read up idle < /proc/uptime; }
        took() { echo TOOK $1 $begin $up; }";

pub fn disk() {
    let script = format!(
        "{TOOK}
        up; begin=$up; dd if=/dev/vda of=/dev/null bs=1M count={DISK} 2>/dev/null; up; took read
        up; begin=$up; dd if=/dev/zero of=/dev/vda bs=1M count={DISK} conv=fsync 2>/dev/null; up; took write"
    );
    let (directory, initrd) = initrd(&script);
    let disk = directory.path().join("disk");
    let guest = Guest { disk: Some(&disk), ..Guest::new(256, &initrd) };
    let ([read, write], failures) = in_turns(|side| {
        // All of it there, so that none is a hole.
        fs::write(&disk, vec![0x5a; (DISK as usize) << 20]).expect("room for a disk");
        let mut run = side.start(&guest);
        let speeds = speeds(&mut run, [("read", DISK), ("write", DISK)]);
        run.wait();
        speeds
    });
    title("Disk (1 vCPU, 256 MiB), as the guest sees it");
    row("read", "MiB/s", 1, read);
    row("write and flush", "MiB/s", 1, write);
    hung(failures);
}

/// Serves whoever connects to a port, one after the other, for as long as this process is there.
fn serve(port: u16, peer: impl Fn(TcpStream) -> io::Result<u64> + Send + 'static) {
    let listener = TcpListener::bind((tap::HOST, port)).expect("a port");
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Who goes away before its time is seen at the other end.
            let _ = stream.and_then(&peer);
        }
    });
}

pub fn net() {
    tap::set_up();
    let script = format!(
        "ip link set eth0 up
        ip address add {}/24 dev eth0
        {TOOK}
        up; begin=$up; dd if=/dev/zero bs=64k count={} 2>/dev/null | nc {} 5001; up; took send
        up; begin=$up; nc {} 5002 > /dev/null; up; took receive",
        tap::GUEST,
        SENT << 4,
        tap::HOST,
        tap::HOST
    );
    let (_directory, initrd) = initrd(&script);
    serve(5001, |mut peer| io::copy(&mut peer, &mut io::sink()));
    serve(5002, |mut peer| {
        io::copy(&mut File::open("/dev/zero").expect("it is there").take(RECEIVED << 20), &mut peer)
    });
    let guest = Guest { tap: Some(tap::NAME), ..Guest::new(256, &initrd) };
    let ([send, receive], failures) = in_turns(|side| {
        let mut run = side.start(&guest);
        let speeds = speeds(&mut run, [("send", SENT), ("receive", RECEIVED)]);
        run.wait();
        speeds
    });
    title("Network (1 vCPU, 256 MiB), as the guest sees it");
    row("TCP to the host", "MiB/s", 1, send);
    row("TCP from the host", "MiB/s", 1, receive);
    hung(failures);
}
