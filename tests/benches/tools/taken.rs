//! What a process takes.

use std::time::{Duration, Instant};

use tests::host::Host;

/// What a process has taken: processor time, and the most memory.
#[derive(Clone, Copy)]
pub struct Taken {
    pub time: Duration,
    pub peak_kib: u64,
}

impl Taken {
    /// None if it has ended, and its parent has been told.
    pub fn by(pid: u32) -> Option<Self> {
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

    pub fn peak_mib(&self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }
}

/// Says what a process and the server take in that time.
pub fn watch(what: &str, pid: u32, host: &Host, time: Duration) {
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
        after[0].peak_mib(),
        percent(1)
    );
}
