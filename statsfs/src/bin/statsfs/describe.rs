//! `statsfs describe`.

use std::collections::BTreeMap;
use std::error::Error;

use serde::Serialize;
use serde_json::Value as Json;
use statsfs::snapshot::Snapshot;
use statsfs::tools::{Columns, Side, describe, plain, say};
use statsfs::value::Descriptor;

use crate::common::{EXIT_STATUS, Place};

/// What to describe.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// The name of a value, also of one kind of aggregate (`name.max`), or the path of its file
    name: String,
    /// As JSON: what `.stats/schema` says, and where it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// A value as it was declared, of which there are several if programs do not agree.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    value: Json,
    /// How many directories of each kind show it.
    r#in: BTreeMap<&'static str, usize>,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let snapshot = args.place.look(None)?;
    let name = args.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // As it was declared; the rest says which kind of aggregate.
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let mut found: Vec<(&str, &Descriptor)> = Vec::new();
    for (group, value) in snapshot.descriptors().filter(|(_, value)| value.name == name) {
        if !found.contains(&(group, value)) {
            found.push((group, value));
        }
    }
    if found.is_empty() {
        return Err(unknown(&snapshot, name).into());
    }
    let mut all = Vec::new();
    for (group, value) in found {
        let value_of = serde_json::to_value(describe(group, value))?;
        all.push(Described { value: value_of, r#in: places(&snapshot, value) });
    }
    let text = if args.json {
        serde_json::to_string(&all)? + "\n"
    } else {
        all.iter().map(text).collect::<Vec<_>>().join("\n")
    };
    say(&text)?;
    Ok(())
}

/// How many directories of each kind show a value.
fn places(snapshot: &Snapshot, value: &Descriptor) -> BTreeMap<&'static str, usize> {
    let mut places = BTreeMap::new();
    for dir in snapshot.dirs() {
        if dir.values().iter().any(|shown| shown.descriptor() == value) {
            *places.entry(dir.what().name()).or_default() += 1;
        }
    }
    places
}

/// That there is no such value, and which ones may be meant.
fn unknown(snapshot: &Snapshot, name: &str) -> String {
    let likeness = |other: &str| {
        let contains = !name.is_empty() && (other.contains(name) || name.contains(other));
        strsim::jaro_winkler(name, other) + if contains { 1.0 } else { 0.0 }
    };
    let mut near: Vec<_> = snapshot
        .descriptors()
        .map(|(_, value)| (likeness(&value.name), &*value.name))
        .filter(|(likeness, _)| *likeness > 0.85)
        .collect();
    near.sort_by(|(one, a), (other, b)| other.total_cmp(one).then(a.cmp(b)));
    near.dedup();
    let near: Vec<_> = near.into_iter().take(5).map(|(_, name)| name).collect();
    match near[..] {
        [] => format!("no value is called {name:?}: `statsfs dump --all` has all that there are"),
        _ => format!("no value is called {name:?}: is it {}?", near.join(", ")),
    }
}

/// For people.
fn text(described: &Described) -> String {
    let Described { value, r#in } = described;
    let word = |key: &str| value[key].as_str().unwrap_or_default();
    let mut columns = Columns::new([Side::Left, Side::Left]);
    columns.row(["group", word("group")]);
    columns.row(["type", word("type")]);
    let exponent = value["exponent"].as_i64().unwrap_or(0);
    columns.row(["unit", &unit(word("unit"), exponent)]);
    let semantics = match word("semantics") {
        "cumulative" => "cumulative: only grows, but for clears",
        "instant" => "instant: goes both ways",
        "peak" => "peak: the largest so far",
        other => other,
    };
    columns.row(["semantics", semantics]);
    let list = |key: &str| -> Vec<&str> {
        value[key].as_array().into_iter().flatten().filter_map(Json::as_str).collect()
    };
    let kinds = list("aggregations");
    let kinds = if kinds.is_empty() {
        "none: it is seen in its own directory alone".to_owned()
    } else {
        format!("{} over all that is below, in every directory above", kinds.join(", "))
    };
    columns.row(["aggregation", &kinds]);
    if let Some(family) = value["family"].as_str() {
        columns.row(["family", family]);
    }
    for (key, label) in value["label"].as_object().into_iter().flatten() {
        let label = label.as_str().unwrap_or_default();
        columns.row(["label", &format!("{key}={label}")]);
    }
    for (n, state) in list("states").into_iter().enumerate() {
        columns.row([if n == 0 { "states" } else { "" }, &format!("{n} {state}")]);
    }
    if let Some(bounds) = value["buckets"]["upper_bounds"].as_array() {
        let sum = value["buckets"]["sum"] == Json::Bool(true);
        let sum = if sum { "and a sum" } else { "without a sum" };
        columns.row(["buckets", &format!("{}, powers of two, {sum}", bounds.len() + 1)]);
    }
    let places: Vec<_> = r#in.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let places = if places.is_empty() { "none".to_owned() } else { places.join(", ") };
    columns.row(["shown by", &places]);
    format!("{}: {}\n{}", word("name"), plain(word("help")), columns.text("  "))
}

/// A unit in words.
fn unit(base: &str, exponent: i64) -> String {
    match (base, exponent) {
        ("seconds", -9) => "nanoseconds".into(),
        ("seconds", -6) => "microseconds".into(),
        ("seconds", -3) => "milliseconds".into(),
        (base, 0) => base.into(),
        ("none", exponent) => format!("10^{exponent}"),
        (base, exponent) => format!("10^{exponent} {base}"),
    }
}
