//! The page's tables, which are there without scripts, too.

use statsfs::snapshot::Recorded;
use statsfs::tools::{in_unit, per_second, thousands};
use statsfs::value::Unit;

use super::columns::Line;
use super::data::{called, cpu, parts, unit};
use super::device::Io;
use super::frames::Read;
use super::html::{Key, Table};
use super::part::{EXIT, Part, TIME};
use super::series::Scope;

/// So many, as a share of all.
fn share(n: u64, all: u64) -> (Key, String) {
    if all == 0 {
        return (Key::Nothing, String::new());
    }
    let share = n as f64 / all as f64;
    (Key::Number(share), format!("{:.1} %", share * 100.0))
}

fn time(ns: Option<u64>) -> (Key, String) {
    match ns {
        Some(ns) => (Key::Count(ns), in_unit(ns.into(), Unit::NANOSECONDS)),
        None => (Key::Nothing, String::new()),
    }
}

fn rate(n: u64, seconds: f64, unit: Unit) -> (Key, String) {
    if seconds <= 0.0 {
        return (Key::Nothing, String::new());
    }
    let rate = n as f64 / seconds;
    (Key::Number(rate), per_second(rate, unit))
}

fn count(n: u64) -> (Key, String) {
    (Key::Count(n), thousands(n.into()))
}

fn percentiles(of: Option<&Recorded>) -> [Option<u64>; 2] {
    [50, 99].map(|percent| of.map(|recorded| recorded.histogram().percentile(percent)))
}

fn put(table: &mut Table, cells: impl IntoIterator<Item = (Key, String)>) {
    cells.into_iter().for_each(|(key, text)| _ = table.number(key, &text));
}

/// Its path and labels, as help.
fn about(part: &Part) -> String {
    let labels = part.labels.iter().map(|(key, value)| format!(" {key}={value}"));
    part.path.clone() + &labels.collect::<String>()
}

/// By guest and reason.
pub fn reasons(read: &Read) -> String {
    let (series, names) = (&read.series, called(read));
    let unit = unit(series.scope);
    let headings = [
        (unit, "Who"),
        ("reason", "Why KVM_RUN returned to user space"),
        ("#exits", "Times it did"),
        ("#exits/s", "... in a second of the time that it was there"),
        ("#share", "Of all exits of the recording"),
        ("#time", "Time that handling them took"),
        ("#time/s", "... in a second"),
        ("#mean", "Time that handling one took"),
        ("#p50", "Half took less than this, as buckets of a factor of two know it"),
        ("#p99", "99 of 100 took less than this"),
    ];
    let mut table =
        Table::new("reasons", &format!("Exits to user space, by {unit} and reason"), &headings);
    let all = series.whole.sum("user_exits");
    let is_alone = series.scope == Scope::Vcpu;
    let rows = parts(read).into_iter().zip(&names).enumerate().filter(|(n, _)| *n > 0 || is_alone);
    for (n, (part, name)) in rows {
        let seconds = part.seconds(&series.columns);
        let mut reasons: Vec<_> =
            part.named(EXIT).map(|(reason, line)| (line.sum(), reason)).collect();
        reasons.sort_by(|a, b| b.cmp(a));
        for (exits, reason) in reasons.into_iter().filter(|(exits, _)| *exits > 0) {
            let took = part.line(&format!("{TIME}{reason}")).map(Line::sum);
            let [p50, p99] = percentiles(part.handled(Some(reason)));
            table.row(n).text(name, &about(part)).text(reason, "");
            put(
                &mut table,
                [
                    count(exits),
                    rate(exits, seconds, Unit::NONE),
                    share(exits, all),
                    time(took),
                    took.map_or((Key::Nothing, String::new()), |took| {
                        rate(took, seconds, Unit::NANOSECONDS)
                    }),
                    time(took.map(|took| took / exits)),
                    time(p50),
                    time(p99),
                ],
            );
        }
    }
    let whole = &series.whole;
    let seconds = whole.seconds(&series.columns);
    let took = whole.named(TIME).map(|(_, line)| line.sum()).fold(0, u64::saturating_add);
    let [p50, p99] = percentiles(whole.handled(None));
    table.foot().text(&names[0], &whole.path).text("all", "");
    put(
        &mut table,
        [
            count(all),
            rate(all, seconds, Unit::NONE),
            share(all, all),
            time(Some(took)),
            rate(took, seconds, Unit::NANOSECONDS),
            time(took.checked_div(all)),
            time(p50),
            time(p99),
        ],
    );
    table.finish()
}

/// The guests, one a line.
pub fn overview(read: &Read) -> String {
    let (series, names) = (&read.series, called(read));
    let (columns, unit) = (&series.columns, unit(series.scope));
    let headings = [
        (unit, "Who"),
        ("#pid", "Its process"),
        ("#vCPUs", "Those that it has"),
        ("#memory", "The guest's"),
        ("#there", "For how long it was seen"),
        ("#exits/s", "To user space, in a second"),
        ("#KVM exits/s", "All that KVM counts, to user space or not"),
        ("#in guest", "CPUs that its vCPUs kept busy, but for handling exits"),
        ("#handling", "CPUs that handling exits kept busy, or waited"),
        ("#steal", "CPUs that it could have used, and waited for"),
        ("#p50", "Half of the exits were handled in less than this"),
        ("#p99", "99 of 100 were"),
    ];
    let mut table =
        Table::new("overview", &format!("{unit}s, those with the most exits first"), &headings);
    for (n, (part, name)) in parts(read).into_iter().zip(&names).enumerate() {
        let is_rest = n > series.parts.len();
        let seconds = part.seconds(columns);
        let [p50, p99] = percentiles(part.handled(None));
        let nothing = || (Key::Nothing, String::new());
        let known =
            |n: u64, cell: fn(u64) -> (Key, String)| if n == 0 { nothing() } else { cell(n) };
        let lines = cpu(part);
        let cpus = |n: usize| {
            let cpus = lines[n].1.sum() as f64 / 1e9 / seconds.max(1e-9);
            (Key::Number(cpus), format!("{cpus:.2}"))
        };
        table.row(n).text(name, &about(part));
        put(
            &mut table,
            [
                part.pid.map_or_else(nothing, |pid| (Key::Count(pid.into()), pid.to_string())),
                known(part.vcpus, count),
                known(part.memory, |n| (Key::Count(n), in_unit(n.into(), Unit::BYTES))),
                if is_rest { nothing() } else { (Key::Number(seconds), format!("{seconds:.1} s")) },
                rate(part.sum("user_exits"), seconds, Unit::NONE),
                rate(part.sum("exits"), seconds, Unit::NONE),
                cpus(0),
                cpus(1),
                cpus(2),
                time(p50),
                time(p99),
            ],
        );
    }
    table.finish()
}

/// What devices did; nothing if none did anything.
pub fn devices(read: &Read) -> String {
    let (series, names) = (&read.series, called(read));
    let headings = [
        ("guest", "Whose"),
        ("device", ""),
        ("#read", "Bytes that the guest read or received"),
        ("#read/s", ""),
        ("#reads/s", "Requests, packets, or bytes one by one"),
        ("#written", "Bytes that the guest wrote or sent"),
        ("#written/s", ""),
        ("#writes/s", ""),
        ("#notifications/s", "Times the driver notified a queue"),
        ("#interrupts/s", ""),
        ("#errors", "Requests that failed, and what was lost"),
        ("#p50", "Half of the requests took less than this"),
        ("#p99", "99 of 100 did"),
    ];
    let mut table = Table::new("devices", "Devices", &headings);
    for (n, (part, name)) in parts(read).into_iter().zip(&names).enumerate() {
        let seconds = part.seconds(&series.columns);
        for (device, did) in part.devices.iter().filter(|(_, device)| !device.is_idle()) {
            let cell = |io, cell: &dyn Fn(u64) -> (Key, String)| {
                did.count(io).map_or((Key::Nothing, String::new()), cell)
            };
            let bytes = |n: u64| (Key::Count(n), in_unit(n.into(), Unit::BYTES));
            let bytes_s = |n| rate(n, seconds, Unit::BYTES);
            let times_s = |n| rate(n, seconds, Unit::NONE);
            let took = did.time.as_ref().filter(|time| time.histogram().count() > 0);
            let [p50, p99] = percentiles(took);
            table.row(n).text(name, &about(part)).text(device, "");
            put(
                &mut table,
                [
                    cell(Io::ReadBytes, &bytes),
                    cell(Io::ReadBytes, &bytes_s),
                    cell(Io::Reads, &times_s),
                    cell(Io::WrittenBytes, &bytes),
                    cell(Io::WrittenBytes, &bytes_s),
                    cell(Io::Writes, &times_s),
                    cell(Io::Notifications, &times_s),
                    cell(Io::Interrupts, &times_s),
                    cell(Io::Errors, &count),
                    time(p50),
                    time(p99),
                ],
            );
        }
    }
    table.finish()
}
