//! What the page's charts are drawn from, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::columns::{Column, Line};
use super::frames::Read;
use super::part::{EXIT, HALTED, HANDLE, KVM, ON_CPU, Part, RUN, TIME, WAITED};
use super::series::Scope;
use crate::common::unix_seconds;

/// Reasons that have a colour of their own; the others are together.
const REASONS: usize = 7;

/// All of it. Numbers are those that came in each column.
#[derive(Serialize)]
pub struct Data<'a> {
    version: u32,
    /// What the parts are called.
    unit: &'static str,
    /// Seconds since 1970 of the first look.
    begin: f64,
    /// Seconds since then.
    start: Vec<f64>,
    end: Vec<f64>,
    /// Columns in which nothing was to be seen for a while.
    gaps: Vec<usize>,
    /// Names of the reasons.
    reasons: Vec<&'a str>,
    /// Exclusive upper ends of the buckets of time, in nanoseconds.
    bounds: &'a [Option<u64>],
    /// All together, each by itself, and the others.
    parts: Vec<PartData<'a>>,
}

#[derive(Serialize)]
struct PartData<'a> {
    name: String,
    path: &'a str,
    vcpus: u64,
    /// Columns that it was there in.
    from: usize,
    to: usize,
    /// Exits to user space, by reason.
    exits: Vec<Option<Vec<u64>>>,
    /// Nanoseconds that handling them took, by reason.
    time: Vec<Option<Vec<u64>>>,
    /// What KVM counts.
    kvm: BTreeMap<&'static str, Vec<u64>>,
    /// Nanoseconds of its vCPUs.
    cpu: BTreeMap<&'static str, Vec<u64>>,
    /// Exits that were handled in a time of each bucket.
    heat: BTreeMap<usize, Vec<u64>>,
    /// Of all times of handling, in nanoseconds.
    p50: Option<u64>,
    p99: Option<u64>,
}

/// What a part is called: by its name, with its process where that is needed to tell it apart.
pub fn called(read: &Read) -> Vec<String> {
    let series = &read.series;
    let unit = unit(series.scope);
    let all = match series.scope {
        Scope::Host => "All guests".to_owned(),
        Scope::Guest => format!("All of {}", series.whole.name),
        Scope::Vcpu => series.whole.path.clone(),
    };
    let is_twice = |part: &Part| series.parts.iter().filter(|of| of.name == part.name).count() > 1;
    let name = |part: &Part| match part.pid.filter(|_| is_twice(part)) {
        Some(pid) => format!("{} ({pid})", part.name),
        None => part.name.clone(),
    };
    let mut names = vec![all];
    names.extend(series.parts.iter().map(name));
    if series.rest.is_some() {
        let others = series.seen - series.parts.len();
        names.push(match others {
            0 => "Others".into(),
            others => format!("Others ({others} {unit}s)"),
        });
    }
    names
}

/// What the parts are.
pub fn unit(scope: Scope) -> &'static str {
    if scope == Scope::Host { "guest" } else { "vCPU" }
}

/// All together, each by itself, and the others.
pub fn parts(read: &Read) -> Vec<&Part> {
    let series = &read.series;
    [&series.whole].into_iter().chain(&series.parts).chain(&series.rest).collect()
}

impl<'a> Data<'a> {
    pub fn of(read: &'a Read) -> Self {
        let series = &read.series;
        let columns = &series.columns;
        let mut reasons: Vec<_> =
            series.whole.named(EXIT).map(|(name, line)| (line.sum(), name)).collect();
        reasons.sort_by(|a, b| b.cmp(a));
        let mut reasons: Vec<_> = reasons.into_iter().map(|(_, name)| name).collect();
        if reasons.len() > REASONS + 1 {
            reasons.truncate(REASONS);
            reasons.push("others");
        }
        let millis = |seconds: f64| (seconds * 1e3).round() / 1e3;
        let names = called(read);
        let data = parts(read).into_iter().zip(names);
        Self {
            version: 1,
            unit: unit(series.scope),
            begin: unix_seconds(read.begin),
            start: columns.iter().map(|column| millis(column.start)).collect(),
            end: columns.iter().map(|column| millis(column.end)).collect(),
            gaps: (0..columns.len()).filter(|n| columns[*n].gap).collect(),
            parts: data.map(|(part, name)| part_data(part, name, columns, &reasons)).collect(),
            bounds: &series.whole.bounds,
            reasons,
        }
    }
}

fn part_data<'a>(
    part: &'a Part,
    name: String,
    columns: &[Column],
    reasons: &[&str],
) -> PartData<'a> {
    let count = columns.len();
    let numbers =
        |line: &Line| Some(line).filter(|line| line.sum() > 0).map(|line| line.numbers(count));
    let by_reason = |prefix: &str| -> Vec<Option<Vec<u64>>> {
        let own = |reason: &&str| part.line(&format!("{prefix}{reason}")).and_then(numbers);
        let mut all: Vec<_> = reasons.iter().map(own).collect();
        if let (Some(others), Some(&"others")) = (all.last_mut(), reasons.last()) {
            let mut sum = Line::default();
            let rest = part.named(prefix).filter(|(name, _)| !reasons.contains(name));
            rest.for_each(|(_, line)| sum.join(line));
            *others = numbers(&sum);
        }
        all
    };
    let kvm = KVM.into_iter().filter_map(|name| Some((name, numbers(part.line(name)?)?)));
    let heat = part.heat.iter().enumerate();
    let percentile = |percent| Some(part.handled(None)?.histogram().percentile(percent));
    PartData {
        name,
        path: &part.path,
        vcpus: part.vcpus,
        from: part.from,
        to: part.to,
        exits: by_reason(EXIT),
        time: by_reason(TIME),
        kvm: kvm.collect(),
        cpu: cpu(part)
            .into_iter()
            .filter_map(|(name, line)| Some((name, numbers(&line)?)))
            .collect(),
        heat: heat.filter_map(|(n, line)| Some((n, numbers(line)?))).collect(),
        p50: percentile(50),
        p99: percentile(99),
    }
}

/// Where the vCPUs' time went: what is known of it.
pub fn cpu(part: &Part) -> [(&'static str, Line); 4] {
    let line = |name| part.line(name).cloned().unwrap_or_default();
    let (handling, halted, waited) = (line(HANDLE), line(HALTED), line(WAITED));
    let on_cpu = line(ON_CPU);
    // Without the scheduler's word: what of KVM_RUN was spent otherwise is not known but for halts.
    let guest =
        if on_cpu.sum() > 0 { on_cpu.without(&handling) } else { line(RUN).without(&halted) };
    [("guest", guest), ("handling", handling), ("waiting", waited), ("halted", halted)]
}
