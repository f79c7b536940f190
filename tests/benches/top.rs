//! What `statsfs top` takes, at one look a second: processor time and memory of itself and of the server, on a small and on a
//! large host of simulated vCPUs, and beside `kvm_stat -d` on the same tree.
//!
//! `cargo bench -p tests --bench top [-- --quick]`, as root; some minutes, and about 2 GB.

#[expect(dead_code, reason = "others measure more of them")]
#[path = "../../statsfs/benches/benches/host/machines.rs"]
mod machines;
#[path = "../../statsfs/benches/benches/common/values.rs"]
mod values;

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use machines::{Machines, Size, VALUES};
use statsfs::host::PublishOptions;
use tests::binary;
use tests::host::Host;
use tests::namespace::private;
use tests::running::wait_until;
use tests::screen::Screen;
use tests::tools;
use tests::vmm::end_with_test;

fn main() {
    let is_quick = std::env::args().any(|arg| arg == "--quick");
    let seconds = if is_quick { 3 } else { 20 };
    let large = if is_quick { (50, 8) } else { (1000, 64) };
    for (machines, vcpus) in [(10, 8), large] {
        measure(Size { machines, vcpus }, Duration::from_secs(seconds));
    }
}

/// What a process has taken: processor time, and the most memory.
#[derive(Clone, Copy)]
struct Taken {
    time: Duration,
    peak_kib: u64,
}

impl Taken {
    fn by(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        // SAFETY: no pointers.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let used = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let peak_kib = peak.trim().trim_end_matches(" kB").parse().ok()?;
        Some(Self { time: Duration::from_secs_f64(used / ticks), peak_kib })
    }
}

/// Says what a process and the server take in that time.
fn watch(what: &str, pid: u32, host: &Host, time: Duration) {
    let both = || [pid, host.pid()].map(|pid| Taken::by(pid).expect("it runs"));
    // What it does at first is no part of it.
    std::thread::sleep(Duration::from_secs(3));
    let (start, before) = (Instant::now(), both());
    std::thread::sleep(time);
    let (elapsed, after) = (start.elapsed().as_secs_f64(), both());
    let percent = |n: usize| (after[n].time - before[n].time).as_secs_f64() / elapsed * 100.0;
    println!(
        "  {what:36} {:6.1} % of a processor, {:7.1} MiB at most; the server {:6.1} %",
        percent(0),
        after[0].peak_kib as f64 / 1024.0,
        percent(1)
    );
}

fn measure(size: Size, time: Duration) {
    println!("\n{} machines of {} vCPUs of {VALUES} values", size.machines, size.vcpus);
    let host = Host::start();
    let machines = Machines::new(0, size);
    let options = PublishOptions { socket: Some(host.socket()), ..PublishOptions::default() };
    let published = machines.registry.publish(options).expect("it can be tried");
    let exits = machines.exits();
    wait_until("all", || (host.value("kvm/user_exits") == Some(exits)).then_some(()));

    for (what, keys) in
        [("statsfs top, its guests", &[][..]), ("... one guest's vCPUs", &["Enter"])]
    {
        let screen = Screen::new(160, 50);
        let pid = screen.beside("pid");
        let (program, mount) = (binary::statsfs().display(), host.mount());
        let exec = format!("exec {program} top --mount {}", mount.display());
        screen.run(&format!("sh -c 'echo $$ > {}; {exec}'", pid.display()));
        screen.wait_for(&format!("1/{}", size.machines));
        if !keys.is_empty() {
            screen.keys(keys);
            screen.wait_for("vcpu1");
        }
        let pid = std::fs::read_to_string(pid).expect("it was written");
        watch(what, pid.trim().parse().expect("a number"), &host, time);
    }
    // It looks at the files of all events of all machines, or of one.
    let (script, place) = (tools::kvm_stat(), tempfile::tempdir().expect("a place"));
    let kvm = host.mount().join("kvm");
    let own = std::process::id().to_string();
    private(|| {
        tools::show_kvm_stat(&kvm, place.path());
        let mut command = Command::new("python3");
        command.env("PYTHONUNBUFFERED", "1");
        command.arg(&script).args(["-d", "-i", "-l", "-s", "1", "-p", &own]);
        end_with_test(&mut command);
        let lines = host.beside("lines");
        let child = command.stdout(File::create(&lines).expect("a file")).spawn();
        let mut child = child.expect("`apt-get install -y python3`");
        watch("kvm_stat -d -i -l -s 1 -p", child.id(), &host, time);
        // Names of events are between the lines, at times.
        let text = std::fs::read_to_string(&lines).unwrap_or_default();
        let looks = text.lines().filter(|line| !line.contains("user_exits")).count();
        println!("  ... which were {looks} looks in all");
        let _ = child.kill();
        let _ = child.wait();
    });
    drop(published);
}
