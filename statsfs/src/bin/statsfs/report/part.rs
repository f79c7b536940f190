//! What was counted of a guest, a vCPU, or all of them together.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use statsfs::snapshot::{Change, Changes, Dir, Recorded, What};

use super::columns::{Column, Line};
use super::device::Device;

/// Values that stand for what comes of the names.
pub const EXIT: &str = "user_exit_";
pub const TIME: &str = "user_time_";
pub const HANDLE: &str = "user_handle_time";
const HANDLE_OF: &str = "user_handle_time_";
/// What KVM counts that is shown.
pub const KVM: [&str; 8] = [
    "exits",
    "halt_exits",
    "io_exits",
    "mmio_exits",
    "irq_exits",
    "irq_injections",
    "hypercalls",
    "signal_exits",
];
/// Times.
pub const RUN: &str = "user_run_time";
pub const ON_CPU: &str = "sched_run_ns";
pub const WAITED: &str = "sched_wait_ns";
pub const HALTED: &str = "halt_wait_ns";
/// What is sampled.
const SAMPLED: [&str; 2] = [ON_CPU, WAITED];
/// How old what is sampled may be, in seconds: a second while a vCPU runs, two of one of very many, and some more.
const AGE: f64 = 2.2;

fn is_counted(name: &str) -> bool {
    KVM.contains(&name)
        || matches!(name, "user_exits" | ON_CPU | WAITED | HALTED)
        || name.starts_with(EXIT)
        || name.starts_with(TIME)
}

/// A directory, over the recording.
#[derive(Debug, Default)]
pub struct Part {
    pub path: String,
    pub name: String,
    pub pid: Option<u32>,
    pub labels: Vec<(String, String)>,
    pub vcpus: u64,
    pub memory: u64,
    /// The columns that it was there in: the first, and the one behind the last.
    pub from: usize,
    pub to: usize,
    /// How much came of what is counted, by name; of histograms of time how much time.
    pub lines: BTreeMap<Rc<str>, Line>,
    /// How many exits were handled in a time of each bucket.
    pub heat: Vec<Line>,
    /// The upper ends of these.
    pub bounds: Vec<Option<u64>>,
    /// How long handling took, over all and by reason.
    pub handled: BTreeMap<Rc<str>, Recorded>,
    pub devices: BTreeMap<String, Device>,
}

/// Names that are many times the same.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, Rc<str>>);

impl Names {
    fn of(&mut self, name: &str) -> Rc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new: Rc<str> = name.into();
        self.0.insert(name.to_owned(), new.clone());
        new
    }
}

impl Part {
    pub fn new(dir: Dir<'_>, column: usize) -> Self {
        let labels = dir.labels().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let name = if dir.bare_name().is_empty() { "all" } else { dir.bare_name() };
        Self {
            path: dir.path(),
            name: name.to_owned(),
            pid: dir.pid(),
            labels: labels.collect(),
            from: column,
            ..Self::default()
        }
    }

    /// Adds what came in this column.
    pub fn add<'s>(
        &mut self,
        changes: &Changes<'s>,
        dir: Dir<'s>,
        column: usize,
        names: &mut Names,
    ) {
        self.to = column + 1;
        for change in since(changes, dir) {
            let name = change.value.name();
            match name {
                "vm_vcpus" => self.vcpus = self.vcpus.max(number(change.value.number())),
                "vm_memory_bytes" => self.memory = self.memory.max(number(change.value.number())),
                _ => {}
            }
            // What is 0 all the time takes no room.
            let Some(increase) = change.increase.filter(|increase| *increase > 0) else { continue };
            if is_counted(name) {
                self.lines.entry(names.of(name)).or_default().add(column, increase);
                continue;
            }
            let is_handle = name == HANDLE;
            if !is_handle && name != RUN && !name.starts_with(HANDLE_OF) {
                continue;
            }
            let Some(recorded) = change.recorded() else { continue };
            let histogram = recorded.histogram();
            if is_handle || name == RUN {
                let time = histogram.sum().unwrap_or(0);
                self.lines.entry(names.of(name)).or_default().add(column, time);
            }
            if is_handle {
                self.add_heat(&recorded, column);
            }
            if name != RUN {
                match self.handled.get_mut(name) {
                    Some(handled) => _ = handled.add(&recorded),
                    None => _ = self.handled.insert(names.of(name), recorded),
                }
            }
        }
    }

    fn add_heat(&mut self, recorded: &Recorded, column: usize) {
        let buckets: Vec<_> = recorded.histogram().buckets().collect();
        if self.bounds.is_empty() {
            self.bounds = buckets.iter().map(|(upper, _)| *upper).collect();
            self.heat = vec![Line::default(); buckets.len()];
        }
        for (line, (_, count)) in self.heat.iter_mut().zip(buckets) {
            line.add(column, count);
        }
    }

    pub fn add_devices<'s>(&mut self, changes: &Changes<'s>, dir: Dir<'s>) {
        for device in dir.children().filter(|dir| dir.what() == What::Device) {
            let changes = since(changes, device);
            if let Some(known) = self.devices.get_mut(device.name()) {
                changes.iter().for_each(|change| known.add(change));
            } else {
                let mut new = Device::default();
                changes.iter().for_each(|change| new.add(change));
                self.devices.insert(device.name().to_owned(), new);
            }
        }
    }

    pub fn line(&self, name: &str) -> Option<&Line> {
        self.lines.get(name)
    }

    pub fn sum(&self, name: &str) -> u64 {
        self.line(name).map_or(0, Line::sum)
    }

    /// Names of lines that begin so, without that.
    pub fn named<'p>(&'p self, prefix: &'p str) -> impl Iterator<Item = (&'p str, &'p Line)> {
        self.lines.iter().filter_map(move |(name, line)| Some((name.strip_prefix(prefix)?, line)))
    }

    /// How long exits for this reason were handled, if that was measured; over all, without one.
    pub fn handled(&self, reason: Option<&str>) -> Option<&Recorded> {
        match reason {
            None => self.handled.get(HANDLE),
            Some(reason) => self.handled.get(&*format!("{HANDLE_OF}{reason}")),
        }
    }

    /// How much it did, for who comes first.
    pub fn weight(&self) -> u64 {
        self.sum("user_exits").max(self.sum("exits"))
    }

    /// For how long it was there.
    pub fn seconds(&self, columns: &[Column]) -> f64 {
        let there = columns.get(self.from..self.to.min(columns.len())).unwrap_or_default();
        there.iter().map(Column::seconds).sum()
    }

    pub fn halve(&mut self) {
        self.lines.values_mut().chain(&mut self.heat).for_each(Line::halve);
        (self.from, self.to) = (self.from / 2, self.to.div_ceil(2));
    }

    /// Has what is sampled come when it did, and not when it was found.
    pub fn spread(&mut self, columns: &[Column]) {
        for name in SAMPLED {
            if let Some(line) = self.lines.get_mut(name) {
                *line = line.spread(columns, AGE);
            }
        }
    }

    /// Takes what is sampled from the parts that it is the sum of.
    pub fn sum_sampled<'p>(&mut self, parts: impl Iterator<Item = &'p Part> + Clone) {
        for name in SAMPLED {
            if let Some(line) = self.lines.get_mut(name) {
                *line = Line::default();
                parts.clone().filter_map(|part| part.line(name)).for_each(|part| line.join(part));
            }
        }
    }

    /// What of it is not in others, of which it is the sum. Of times only the lines are known.
    pub fn without(&self, others: &[&Part]) -> Self {
        let mut rest = Self { to: self.to, bounds: self.bounds.clone(), ..Self::default() };
        for (name, line) in &self.lines {
            let mut known = Line::default();
            others.iter().filter_map(|part| part.line(name)).for_each(|line| known.join(line));
            rest.lines.insert(name.clone(), line.without(&known));
        }
        for (n, line) in self.heat.iter().enumerate() {
            let mut known = Line::default();
            others.iter().filter_map(|part| part.heat.get(n)).for_each(|line| known.join(line));
            rest.heat.push(line.without(&known));
        }
        rest
    }
}

/// What came in a directory. One that is new has all that it counted: that is in the totals now, and was not before.
fn since<'s>(changes: &Changes<'s>, dir: Dir<'s>) -> Vec<Change<'s>> {
    let mut all = changes.of(dir);
    if changes.earlier(dir).is_none() {
        all.iter_mut().for_each(|change| change.increase = change.value.raw_count());
    }
    all
}

fn number(number: Option<i128>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}
