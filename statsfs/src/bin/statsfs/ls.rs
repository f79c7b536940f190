//! `statsfs ls`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use serde::Serialize;
use statsfs::snapshot::{Dir, What};
use statsfs::tools::{Columns, Side, say};

use crate::common::{EXIT_STATUS, Place, shown_path};

/// What to list.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// A directory of the mount, a saved snapshot or a recording, of which it is the end [default: the whole mount]
    path: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// A source.
#[derive(Serialize)]
struct Listed<'a> {
    path: String,
    /// What it is of.
    what: &'static str,
    /// What its program calls it.
    name: &'a str,
    /// The process whose it is.
    pid: Option<u32>,
    labels: BTreeMap<&'a str, &'a str>,
    /// How many directories in it may not be looked into.
    closed: usize,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let snapshot = args.place.look(args.path.as_deref())?;
    let is_source = |dir: &Dir<'_>| dir.what() != What::Links;
    let all: Vec<_> = snapshot.dirs().filter(is_source).map(listed).collect();
    if args.json {
        say(&(serde_json::to_string(&all)? + "\n"))?;
        return Ok(());
    }
    let mut columns = Columns::new([Side::Left, Side::Left, Side::Right, Side::Left, Side::Left]);
    columns.row(["PATH", "WHAT", "PID", "NAME", "LABELS"]);
    // What is asked for has a line of its own unless it is the mount, which there always is.
    for dir in all.iter().filter(|dir| !dir.path.is_empty()) {
        let pid = dir.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let labels: Vec<_> =
            dir.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        columns.row([&dir.path, dir.what, &pid, dir.name, &labels.join(",")]);
    }
    let mut text = if columns.len() > 1 { columns.text("") } else { String::new() };
    for dir in all.iter().filter(|dir| dir.closed > 0) {
        let path = shown_path(&dir.path);
        text += &format!("{} more in {path} may not be looked into by this user\n", dir.closed);
    }
    if text.is_empty() {
        text = "Nobody publishes.\n".into();
    }
    say(&text)?;
    Ok(())
}

fn listed(dir: Dir<'_>) -> Listed<'_> {
    Listed {
        path: dir.path(),
        what: dir.what().name(),
        name: dir.bare_name(),
        pid: dir.pid(),
        labels: dir.labels().collect(),
        closed: dir.child_count() - dir.children().count().min(dir.child_count()),
    }
}
