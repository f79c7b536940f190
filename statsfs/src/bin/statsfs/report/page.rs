//! The page: one file that needs nothing else.

use std::hash::{DefaultHasher, Hasher};
use std::time::SystemTime;

use statsfs::tools::in_unit;
use statsfs::value::Unit;
use time::UtcDateTime;

use super::data::{self, Data};
use super::frames::Read;
use super::html::{escape, fill, in_script};
use super::tables;
use crate::common::shown_path;

const TEMPLATE: &str = include_str!("page/report.html");
const STYLE: &str = include_str!("page/report.css");
const SCRIPT: &str = include_str!("page/report.js");

/// The whole page.
pub fn page(read: &Read) -> String {
    let json = serde_json::to_string(&Data::of(read)).unwrap_or_default();
    let nonce = nonce(&json);
    fill(TEMPLATE, |key| match key {
        "nonce" => nonce.clone(),
        "title" => escape(&title(read)),
        "facts" => facts(read),
        "notes" => notes(read),
        "options" => options(read),
        "unit" => data::unit(read.series.scope).into(),
        "style" => STYLE.into(),
        "overview" => tables::overview(read),
        "reasons" => tables::reasons(read),
        "devices" => tables::devices(read),
        "data" => in_script(&json),
        "script" => SCRIPT.into(),
        "program" => concat!("statsfs ", env!("CARGO_PKG_VERSION")).into(),
        _ => String::new(),
    })
}

/// What scripts must say to be run: who gives a guest or a host its name knows no times and counts of the recording.
fn nonce(json: &str) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(json.as_bytes());
    format!("{:016x}", hasher.finish())
}

fn title(read: &Read) -> String {
    let host = if read.about.host.is_empty() { "a host" } else { &read.about.host };
    match shown_path(&read.path) {
        "." | "kvm" => format!("Guests of {host}"),
        path => format!("{path} of {host}"),
    }
}

/// What it is of, in a list.
fn facts(read: &Read) -> String {
    let (about, series) = (&read.about, &read.series);
    let length = series.columns.last().map_or(0.0, |column| column.end);
    let interval = in_unit(about.interval_ns.into(), Unit::NANOSECONDS);
    let looks = match (about.interval_ns, read.looks) {
        (0, looks) => format!("{looks}"),
        (_, looks) => format!("{looks}, one every {interval}"),
    };
    let recorded = if about.dir.is_empty() { shown_path(&read.path) } else { &about.dir };
    let unit = data::unit(series.scope);
    let all = [
        ("host", about.host.clone()),
        ("kernel", about.kernel.clone()),
        ("recorded", recorded.to_owned()),
        ("from", utc(read.begin)),
        ("for", format!("{length:.1} s")),
        ("looks", looks),
        (if unit == "guest" { "guests" } else { "vCPUs" }, series.seen.to_string()),
        ("by", about.program.clone()),
    ];
    let told = all.iter().filter(|(_, text)| !text.is_empty());
    told.map(|(name, text)| format!("<div><dt>{name}</dt><dd>{}</dd></div>", escape(text)))
        .collect()
}

/// What is missing, in lines.
fn notes(read: &Read) -> String {
    let mut notes = Vec::new();
    if let Some(cut) = &read.cut {
        notes.push(format!("{cut}: the page has what is before that."));
    } else if read.is_open {
        notes.push(
            "The recording has no end: it went on when this page was made, or was killed.".into(),
        );
    }
    for gap in read.gaps.iter().take(20) {
        let (from, to, why) = (gap.from, gap.to, &gap.why);
        notes.push(if to > from {
            format!("Nothing was seen from {from:.1} to {to:.1} s: {why}")
        } else {
            format!("Nothing was seen from {from:.1} s on: {why}")
        });
    }
    if read.gaps.len() > 20 {
        notes.push(format!("... and {} more gaps.", read.gaps.len() - 20));
    }
    notes.iter().map(|note| format!("<p class=\"note\">{}</p>", escape(note))).collect()
}

fn options(read: &Read) -> String {
    let names = data::called(read);
    let option =
        |(n, name): (usize, &String)| format!("<option value=\"{n}\">{}</option>", escape(name));
    names.iter().enumerate().map(option).collect()
}

/// A time, as the clock of nobody has it in particular.
fn utc(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let known = i64::try_from(since).ok().and_then(|s| UtcDateTime::from_unix_timestamp(s).ok());
    // No clock is there; but a recording may say anything.
    let Some(at) = known else { return format!("{since} s after 1970") };
    let (hour, minute, second) = at.as_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", at.date())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (u64::MAX / 1_000_000_000, "2554-07-21 23:34:33 UTC"),
            (1 << 60, "1152921504606846976 s after 1970"),
        ] {
            assert_eq!(utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
