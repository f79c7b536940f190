//! What is said of a directory that is looked into.

use std::collections::HashMap;

use statsfs::snapshot::{Change, Dir, DirIdentity, Value, What};
use statsfs::value::{BaseUnit, Unit};

use super::history::KEPT;
use super::row::{Rows, is_reason};
use super::{Pair, Row, Span, Wanted};

/// A directory that is looked into.
#[derive(Clone, Debug)]
pub struct Detail {
    pub what: What,
    pub row: Row,
    /// Exits a second, the newest last.
    pub history: Vec<f32>,
    /// Reasons of exits that there have been.
    pub reasons: Vec<Reason>,
    pub vcpus: Vec<Row>,
    pub devices: Vec<Device>,
    /// All values that it shows, if they were wanted.
    pub fields: Vec<Field>,
}

/// Exits of one reason.
#[derive(Clone, Debug)]
pub struct Reason {
    pub name: String,
    /// Since the zero, or as the file shows it.
    pub total: Option<u64>,
    /// A second.
    pub rate: Option<f64>,
    /// Which part of all exits of the span those of it are.
    pub part: Option<f64>,
    /// Nanoseconds in which they were handled, in the span.
    pub time: Option<u64>,
    /// Which part that is of the time in which any were handled.
    pub time_part: Option<f64>,
    /// Of handling one, in nanoseconds.
    pub mean: Option<u64>,
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    /// How many took how long; empty where that is not recorded for the reason.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// None if it is open.
    pub upper: Option<u64>,
    pub count: u64,
}

/// A device, or a device as one vCPU used it.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DirIdentity,
    pub path: String,
    pub name: String,
    /// What it was asked to do, a second: accesses by a vCPU, requests of a disk, packets.
    pub operations: Option<f64>,
    /// Bytes a second that the guest got, and that it gave away.
    pub to_guest: Option<f64>,
    pub from_guest: Option<f64>,
    pub interrupts: Option<f64>,
    pub errors: Option<f64>,
    /// Nanoseconds of each second that vCPUs spent on it.
    pub time: Option<f64>,
    /// Nanoseconds that a request took.
    pub p50: Option<u64>,
    pub p99: Option<u64>,
}

/// A value.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub help: String,
    pub unit: Unit,
    /// Of a count since the zero, or else what the file shows; of a histogram how many.
    pub number: Option<i128>,
    /// For people: a state by its name, a histogram with its percentiles.
    pub text: String,
    /// By how much a count grew in the interval.
    pub increase: Option<u64>,
    pub rate: Option<f64>,
    pub is_count: bool,
    /// Of a histogram: what was recorded, and in the interval its median and 99th percentile.
    pub recorded: Option<Unit>,
    pub percentiles: Option<[u64; 2]>,
}

/// What is said of a directory, of which the line may be known already.
pub(super) fn detail<'a>(
    rows: &mut Rows<'a, '_>,
    dir: Dir<'a>,
    known: Option<&Row>,
    wanted: &Wanted,
) -> Detail {
    let what = dir.what();
    let row = known.cloned().unwrap_or_else(|| rows.row(dir));
    let history = rows.history.of(dir.identity()).last(KEPT);
    let (mut vcpus, mut devices) = (Vec::new(), Vec::new());
    if what != What::Top {
        for child in dir.children() {
            match child.what() {
                What::Vcpu => vcpus.push(rows.row(child)),
                _ => devices.push(device(rows, child)),
            }
        }
    }
    let fields = if wanted.values { fields(rows.pair, dir, |_| true) } else { Vec::new() };
    Detail { what, row, history, reasons: reasons(rows, dir, wanted.span), vcpus, devices, fields }
}

/// Handling times of an exit, by reason, and of all.
const HANDLED: &str = "user_handle_time";
const TIMES: [&str; 2] = ["user_time_", "user_handle_time_"];

fn reasons<'a>(rows: &Rows<'a, '_>, dir: Dir<'a>, span: Span) -> Vec<Reason> {
    let wanted = |name: &str| {
        name == "user_exits"
            || name == HANDLED
            || name.starts_with("user_exit_")
            || TIMES.iter().any(|start| name.starts_with(start))
    };
    let changes = rows.pair.changes(dir, wanted);
    let totals = rows.pair.totals(dir, wanted);
    let totals: Option<HashMap<_, _>> =
        totals.map(|all| all.into_iter().map(|value| (value.name(), value)).collect());
    let total = |change: &Change<'a>| match &totals {
        Some(totals) => totals.get(change.value.name()).cloned(),
        None => Some(change.value.clone()),
    };
    let by_name: HashMap<_, _> =
        changes.iter().map(|change| (change.value.name(), change)).collect();
    // What it is in the span.
    let of = |name: &str| -> Option<Value<'a>> {
        let change = *by_name.get(name)?;
        if span == Span::Total { total(change) } else { change.grown() }
    };
    let count = |value: Option<Value<'_>>| value?.number().and_then(|n| u64::try_from(n).ok());
    let part = |of: u64, all: u64| if all == 0 { 0.0 } else { of as f64 / all as f64 };
    let all = count(of("user_exits"));
    let all_time = of(HANDLED).and_then(|value| value.histogram()?.sum());
    let seconds = rows.pair.seconds();
    let mut found = Vec::new();
    for change in &changes {
        let Some(name) = is_reason(&change.value) else { continue };
        let total = count(total(change));
        // There are dozens that never come.
        if change.value.raw_count() == Some(0) {
            continue;
        }
        let key = &change.value.name()["user_exit_".len()..];
        let exits = count(of(change.value.name()));
        let time = count(of(&format!("user_time_{key}")));
        let handled = of(&format!("{HANDLED}_{key}"));
        let handled = handled.as_ref().and_then(Value::histogram);
        let percentile = |n| handled.filter(|h| h.count() > 0).map(|h| h.percentile(n));
        found.push(Reason {
            name: name.to_owned(),
            total,
            rate: change.increase.zip(seconds).map(|(n, seconds)| n as f64 / seconds),
            part: exits.zip(all).map(|(exits, all)| part(exits, all)),
            time,
            time_part: time.zip(all_time).map(|(time, all)| part(time, all)),
            mean: time.zip(exits).and_then(|(time, exits)| time.checked_div(exits)),
            p50: percentile(50),
            p99: percentile(99),
            buckets: handled.map(|h| h.buckets().map(bucket).collect()).unwrap_or_default(),
        });
    }
    if let Some(value) = of(HANDLED)
        && let Some(handled) = value.histogram()
    {
        let of_any = |percent| Some(handled.percentile(percent)).filter(|_| handled.count() > 0);
        let change = by_name.get("user_exits");
        found.push(Reason {
            name: ALL.to_owned(),
            total: change.and_then(|change| count(total(change))),
            rate: change
                .and_then(|change| change.increase)
                .zip(seconds)
                .map(|(n, seconds)| n as f64 / seconds),
            part: all.map(|all| part(all, all)),
            time: all_time,
            time_part: all_time.map(|all| part(all, all)),
            mean: handled.mean().filter(|_| handled.count() > 0),
            p50: of_any(50),
            p99: of_any(99),
            buckets: handled.buckets().map(bucket).collect(),
        });
    }
    found
}

/// The name of what is over all reasons.
pub const ALL: &str = "(all)";

fn bucket((upper, count): (Option<u64>, u64)) -> Bucket {
    Bucket { upper, count }
}

/// What a device does, by the ends of its values' names.
fn device<'a>(rows: &Rows<'a, '_>, dir: Dir<'a>) -> Device {
    let changes = rows.pair.changes(dir, |_| true);
    let seconds = rows.pair.seconds();
    // What is aggregated in several ways is counted once, by its sum.
    let counts = || changes.iter().filter(|change| change.value.is_cumulative());
    let sum = |is: &dyn Fn(&str) -> bool| {
        let of: Vec<_> = counts()
            .filter(|change| change.value.histogram().is_none() && is(change.value.name()))
            .filter_map(|change| change.increase)
            .collect();
        let seconds = seconds.filter(|_| !of.is_empty())?;
        Some(of.iter().sum::<u64>() as f64 / seconds)
    };
    let ends = |ends: &'static [&'static str]| {
        move |name: &str| ends.iter().any(|end| name.ends_with(end))
    };
    let requests = counts().find(|change| {
        change.value.histogram().is_some() && change.value.name().ends_with("_request_time")
    });
    let requests = requests.and_then(Change::grown);
    let requests = requests.as_ref().and_then(Value::histogram).filter(|h| h.count() > 0);
    Device {
        id: dir.identity(),
        path: dir.path(),
        name: dir.bare_name().to_owned(),
        operations: sum(&ends(&[
            "_reads",
            "_writes",
            "_flushes",
            "_packets",
            "_requests",
            "_discards",
        ])),
        to_guest: sum(&ends(&["_read_bytes", "_rx_bytes", "rng_bytes"])),
        from_guest: sum(&ends(&["_write_bytes", "_tx_bytes"])),
        interrupts: sum(&ends(&["_interrupts"])),
        errors: sum(&ends(&["_errors", "_drops", "_bad_accesses"])),
        time: sum(&ends(&["io_time_ns"])),
        p50: requests.map(|h| h.percentile(50)),
        p99: requests.map(|h| h.percentile(99)),
    }
}

/// What those values of a directory are whose names are wanted.
pub fn fields<'a>(pair: Pair<'a>, dir: Dir<'a>, wanted: impl Fn(&str) -> bool) -> Vec<Field> {
    let changes = pair.changes(dir, &wanted);
    let totals = pair.totals(dir, &wanted);
    let mut totals: Option<HashMap<_, _>> =
        totals.map(|all| all.into_iter().map(|value| (value.name(), value)).collect());
    let seconds = pair.seconds();
    let field = |change: Change<'a>| {
        let name = change.value.name();
        let total = match &mut totals {
            Some(totals) => totals.remove(name),
            None => Some(change.value.clone()),
        };
        let is_histogram = change.value.histogram().is_some();
        let number = total.as_ref().and_then(|value| match value.histogram() {
            Some(histogram) => Some(histogram.count().into()),
            None => value.number(),
        });
        let of_interval = change.grown().filter(|_| is_histogram);
        let of_interval = of_interval.as_ref().and_then(Value::histogram);
        let percentiles = of_interval
            .filter(|histogram| histogram.count() > 0)
            .map(|histogram| [50, 99].map(|percent| histogram.percentile(percent)));
        let value = total.as_ref().unwrap_or(&change.value);
        let unit = change.value.descriptor().unit;
        Field {
            name: name.to_owned(),
            help: change.value.descriptor().help.to_string(),
            unit: if is_histogram { Unit { base: BaseUnit::None, exponent: 0 } } else { unit },
            number,
            text: value.to_string(),
            increase: change.increase,
            rate: change.increase.zip(seconds).map(|(n, seconds)| n as f64 / seconds),
            is_count: change.value.is_cumulative(),
            recorded: is_histogram.then_some(unit),
            percentiles,
        }
    };
    changes.into_iter().map(field).collect()
}
