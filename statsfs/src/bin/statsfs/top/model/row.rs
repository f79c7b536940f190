//! A line about a guest, a vCPU, or all of them.

use std::collections::HashMap;

use statsfs::snapshot::{Change, Dir, DirIdentity, Value, What};

use super::shares::{Shares, Times};
use super::{History, Pair};

/// Rates of a line that are shown beside it.
const RECENT: usize = 24;

/// What is said of a guest, a vCPU, or all of them.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: DirIdentity,
    pub path: String,
    pub name: String,
    pub pid: Option<u32>,
    /// The thread on the host that runs a vCPU.
    pub thread: Option<i128>,
    pub state: Option<String>,
    pub vcpus: Option<i128>,
    pub memory: Option<i128>,
    /// Exits to user space a second. This, and all that follow, are none where they are not known.
    pub exits: Option<f64>,
    /// Exits that KVM counted a second, those that it handled itself included.
    pub kvm_exits: Option<f64>,
    /// Exits to user space since the zero, or as the file shows them.
    pub total: Option<u64>,
    pub shares: Option<Shares>,
    /// Nanoseconds that handling an exit took, of half of those in the interval at most.
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    pub io: Io,
    /// The reason of the most exits in the interval, and which part of them it is.
    pub reason: Option<(String, f64)>,
    /// Exits a second in the last intervals.
    pub recent: Vec<f32>,
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Io {
    pub read: Option<f64>,
    pub written: Option<f64>,
    pub received: Option<f64>,
    pub sent: Option<f64>,
}

impl Io {
    /// All together.
    pub fn all(&self) -> f64 {
        [self.read, self.written, self.received, self.sent].into_iter().flatten().sum()
    }
}

impl Row {
    /// Where nothing counts.
    pub fn nothing(dir: Dir<'_>) -> Self {
        Self {
            id: dir.identity(),
            path: dir.path(),
            name: dir.bare_name().to_owned(),
            pid: dir.pid(),
            thread: None,
            state: None,
            vcpus: None,
            memory: None,
            exits: None,
            kvm_exits: None,
            total: None,
            shares: None,
            p50: None,
            p99: None,
            io: Io::default(),
            reason: None,
            recent: Vec::new(),
        }
    }

    /// Whether nothing happened that is shown.
    pub fn is_idle(&self) -> bool {
        let none = |rate: Option<f64>| rate.is_none_or(|rate| rate == 0.0);
        none(self.exits) && none(self.kvm_exits) && self.io.all() == 0.0
    }
}

/// Names of what a line is made of, but for reasons.
const NAMES: [&str; 20] = [
    "user_exits",
    "user_handle_time",
    "user_run_time",
    "exits",
    "halt_wait_ns",
    "halt_poll_success_ns",
    "halt_poll_fail_ns",
    "sched_run_ns",
    "sched_wait_ns",
    "blk_read_bytes",
    "blk_write_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
    "vm_vcpus",
    "vm_memory_bytes",
    "vm_state",
    "thread_id",
    "rng_bytes",
    "serial_tx_bytes",
    "serial_rx_bytes",
];
/// What names of counts of exits begin with, by reason.
const EXIT: &str = "user_exit_";

/// Makes lines.
pub(super) struct Rows<'a, 'h> {
    pub pair: Pair<'a>,
    pub history: &'h mut History,
    /// Whether what they say is to be remembered.
    pub is_new: bool,
    /// See [`Wanted`](super::Wanted).
    pub is_last: bool,
}

impl<'a> Rows<'a, '_> {
    pub fn row(&mut self, dir: Dir<'a>) -> Row {
        let wanted = |name: &str| name.starts_with(EXIT) || NAMES.contains(&name);
        let changes = self.pair.changes(dir, wanted);
        let what = dir.what();
        let mut row = Row::nothing(dir);
        let of = Changed(changes.iter().map(|change| (change.value.name(), change)).collect());
        let seconds = self.pair.seconds();
        let rate = |name| Some(of.increase(name)? as f64 / seconds?);
        row.exits = rate("user_exits");
        row.kvm_exits = rate("exits");
        row.io = Io {
            read: rate("blk_read_bytes"),
            written: rate("blk_write_bytes"),
            received: rate("net_rx_bytes"),
            sent: rate("net_tx_bytes"),
        };
        row.vcpus = match what {
            What::Vcpu => Some(1),
            _ => of.number("vm_vcpus").or_else(|| count_vcpus(dir)),
        };
        row.memory = of.number("vm_memory_bytes");
        row.thread = of.number("thread_id");
        row.state = of.get("vm_state").and_then(|change| state(&change.value));
        row.total = match self.pair.zero {
            None => of.number("user_exits").and_then(|number| u64::try_from(number).ok()),
            Some(zero) => zero.value(dir, "user_exits").and_then(|change| change.increase),
        };
        let handled = of.get("user_handle_time").and_then(|change| change.grown());
        let handled = handled.as_ref().and_then(Value::histogram);
        if let Some(handled) = handled.filter(|handled| handled.count() > 0) {
            row.p50 = Some(handled.percentile(50));
            row.p99 = Some(handled.percentile(99));
        }
        row.reason = of.reason();

        let past = self.history.of(dir.identity());
        let known = [of.raw("sched_run_ns"), of.raw("sched_wait_ns")];
        let times = match known {
            [Some(run), Some(wait)] if self.is_new => {
                past.sched(self.pair.now.monotonic(), run, wait).rates()
            }
            [Some(_), Some(_)] => past.known_sched(),
            _ => None,
        };
        let in_interval = |name| Some(of.increase(name)? as f64 / 1e9 / seconds?);
        let times = match (times, in_interval("sched_run_ns"), in_interval("sched_wait_ns")) {
            (None, Some(run), Some(wait)) if self.is_last => Some([run, wait]),
            _ => times,
        };
        if let (Some(seconds), Some(vcpus)) = (seconds, row.vcpus) {
            let sum = |name| {
                let grown = of.get(name)?.grown()?;
                Some(grown.histogram()?.sum()? as f64 / 1e9)
            };
            let halts = ["halt_wait_ns", "halt_poll_success_ns", "halt_poll_fail_ns"];
            let halts: Vec<_> = halts.into_iter().filter_map(|name| of.increase(name)).collect();
            let halted = halts.iter().map(|ns| *ns as f64 / 1e9).sum();
            let is_sampled = known.iter().all(Option::is_some);
            // At the beginning it is not known yet, and nothing else says it.
            if !is_sampled || times.is_some() {
                row.shares = Shares::of(&Times {
                    all: seconds * vcpus as f64,
                    user: sum("user_handle_time").unwrap_or(0.0),
                    halted: Some(halted).filter(|_| !halts.is_empty()),
                    run: sum("user_run_time"),
                    sched: times.map(|times| times.map(|part| part * seconds)),
                });
            }
        }
        if let (true, Some(exits)) = (self.is_new, row.exits) {
            past.push(exits);
        }
        row.recent = past.last(RECENT);
        row
    }
}

/// How many vCPUs a guest has of which nothing else says it.
fn count_vcpus(guest: Dir<'_>) -> Option<i128> {
    if guest.what() != What::Guest {
        return None;
    }
    let count = guest.children().filter(|dir| dir.what() == What::Vcpu).count();
    Some(count as i128).filter(|count| *count > 0)
}

/// The state that a value shows.
fn state(value: &Value<'_>) -> Option<String> {
    let number = value.number()?;
    let name = value.descriptor().states.get(usize::try_from(number).ok()?);
    Some(name.map_or(number.to_string(), |name| name.to_string()))
}

/// Changes by name.
struct Changed<'c, 'a>(HashMap<&'a str, &'c Change<'a>>);

impl<'c, 'a> Changed<'c, 'a> {
    fn get(&self, name: &str) -> Option<&'c Change<'a>> {
        self.0.get(name).copied()
    }

    fn number(&self, name: &str) -> Option<i128> {
        self.get(name)?.value.number()
    }

    fn raw(&self, name: &str) -> Option<u64> {
        self.get(name)?.value.raw_count()
    }

    fn increase(&self, name: &str) -> Option<u64> {
        self.get(name)?.increase
    }

    fn reason(&self) -> Option<(String, f64)> {
        let reasons = self.0.values().filter(|change| is_reason(&change.value).is_some());
        let most = reasons.max_by_key(|change| (change.increase, change.value.name()))?;
        let (count, all) = (most.increase?, self.increase("user_exits")?);
        let part = count as f64 / all as f64;
        Some((is_reason(&most.value)?.to_owned(), part)).filter(|_| count > 0)
    }
}

/// The reason of exits, if a value counts those of one: its label, or what its name says.
pub(super) fn is_reason<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    let rest = value.name().strip_prefix(EXIT)?;
    if !value.is_cumulative() || value.histogram().is_some() {
        return None;
    }
    let label = value.descriptor().label.as_ref();
    Some(label.map_or(rest, |(_, reason)| reason.as_ref()))
}
