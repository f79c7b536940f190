//! `statsfs dump`.

use std::error::Error;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use statsfs::snapshot::{Change, Changes, Dir, ReadError, Snapshot, Value};
use statsfs::tools::{Columns, Side, per_second, say};
use statsfs::value::{BaseUnit, Unit};

use crate::common::{
    EXIT_STATUS, Place, is_saved, parse_seconds, shown_path, unix_seconds, until_next,
};

const HELP: &str = "\
Formats:
  table       for people: what is not 0, in units that they think in
  json        one line, as `.stats/json` has it; with --watch a line each time, of
              `time` (seconds since 1970), `seconds` (since the last), `values`
              and `per_second`
  csv         a line for each number, histograms as their count, sum, mean,
              percentiles and max; with --watch each line begins with the time
              and ends with the rate
  prometheus  as `.stats/prometheus` has it

Rates are right whatever is cleared, comes or goes: what sources counted that are gone is in the totals above them. Where a
source was there before, but not to be seen, its first rate is missing.";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// A directory of the mount, a saved snapshot or a recording, of which it is the end [default: the whole mount]
    path: Option<PathBuf>,
    /// How to show it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Also what is 0, in the table
    #[arg(long)]
    all: bool,
    /// Again every so many seconds, until Ctrl-C, with how much came a second
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    watch: Option<Duration>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Csv,
    Prometheus,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let path = args.path.as_deref();
    let saved = path.filter(|path| is_saved(path));
    if let (Some(path), true) = (saved, args.watch.is_some()) {
        return Err(format!("{} is a saved snapshot: nothing in it changes", path.display()).into());
    }
    if args.format == Format::Prometheus {
        if args.watch.is_some() {
            return Err(
                "Prometheus makes its rates itself: --watch is for the other formats".into()
            );
        }
        if let Some(path) = saved {
            let path = path.display();
            return Err(format!("{path} is a saved snapshot: only a mount has prometheus").into());
        }
        let dir = args.place.dir(path)?;
        let text = std::fs::read_to_string(dir.join(".stats/prometheus"));
        say(&text.map_err(|error| ReadError::new(&dir, error))?)?;
        return Ok(());
    }
    let mut last: Option<Snapshot> = None;
    let begin = Instant::now();
    loop {
        let now = args.place.look(path)?;
        // What is called so may be another directory than the last time.
        let changes = last.as_ref().and_then(|last| Changes::between(last, &now).ok());
        let look = Look { snapshot: &now, changes: changes.as_ref(), args };
        let text = match args.format {
            Format::Json => look.json()?,
            Format::Csv => look.csv(last.is_none()),
            Format::Table | Format::Prometheus => look.table(last.is_none()),
        };
        let is_read = say(&text)?;
        let Some(interval) = args.watch.filter(|_| is_read) else { return Ok(()) };
        last = Some(now);
        sleep(until_next(begin.elapsed(), interval));
    }
}

/// What was found, and what came since the last time.
struct Look<'a> {
    snapshot: &'a Snapshot,
    changes: Option<&'a Changes<'a>>,
    args: &'a Args,
}

impl<'a> Look<'a> {
    /// What a directory shows, with how much of each came a second.
    fn values(&self, dir: Dir<'a>) -> Vec<(Value<'a>, Option<f64>)> {
        let Some(changes) = self.changes else {
            return dir.values().into_iter().map(|value| (value, None)).collect();
        };
        let rate = |change: Change<'a>| {
            let rate = change.increase.map(|increase| changes.per_second(increase));
            (change.value, rate)
        };
        changes.of(dir).into_iter().map(rate).collect()
    }

    fn table(&self, is_first: bool) -> String {
        let mut paragraphs = Vec::new();
        if let Some(changes) = self.changes {
            paragraphs.push(format!("=== {:.2} s later\n", changes.time().as_secs_f64()));
        } else if !is_first {
            paragraphs.push("=== another one of that name\n".into());
        }
        for dir in self.snapshot.dirs() {
            let values = self.values(dir);
            let count = values.len();
            let mut columns = match self.changes {
                Some(_) => Columns::new([Side::Left, Side::Right, Side::Left]),
                None => Columns::new([Side::Left, Side::Left]),
            };
            for (value, rate) in values {
                if value.is_zero() && !self.args.all && rate.is_none_or(|rate| rate == 0.0) {
                    continue;
                }
                let shown = value.to_string();
                match self.changes {
                    None => columns.row([value.name(), &shown]),
                    Some(_) => {
                        let unit = if value.histogram().is_some() {
                            Unit::NONE
                        } else {
                            value.descriptor().unit
                        };
                        let rate = rate.map(|rate| per_second(rate, unit)).unwrap_or_default();
                        columns.row([value.name(), &rate, &shown]);
                    }
                }
            }
            if count == 0 {
                continue;
            }
            let mut text = shown_path(&dir.path()).to_owned() + "\n" + &columns.text("  ");
            let zeros = count - columns.len();
            if zeros > 0 {
                text += &format!("  ({zeros} more are 0)\n");
            }
            paragraphs.push(text);
        }
        if self.args.watch.is_some() {
            paragraphs.push(String::new());
        }
        paragraphs.join("\n")
    }

    fn csv(&self, is_first: bool) -> String {
        let watched = self.args.watch.is_some();
        let mut text = String::new();
        if is_first {
            text += if watched {
                "time,path,name,value,unit,exponent,per_second\n"
            } else {
                "path,name,value,unit,exponent\n"
            };
        }
        let time = unix_seconds(self.snapshot.taken());
        for dir in self.snapshot.dirs() {
            let path = dir.path();
            for (value, rate) in self.values(dir) {
                let Unit { base, exponent } = value.descriptor().unit;
                for (name, number) in value.numbers() {
                    // Nothing in a path or a name is to be quoted.
                    if watched {
                        text += &format!("{time:.3},");
                    }
                    let is_count = name.ends_with("/count");
                    let (base, exponent) =
                        if is_count { (BaseUnit::None, 0) } else { (base, exponent) };
                    text += &format!("{path},{name},{number},{},{exponent}", base.name());
                    if watched {
                        let rate = rate.filter(|_| is_count || value.histogram().is_none());
                        text += &rate.map_or(",".into(), |rate| format!(",{rate}"));
                    }
                    text.push('\n');
                }
            }
        }
        text
    }

    fn json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: f64,
            seconds: Option<f64>,
            values: Dir<'a>,
            per_second: Option<Rates<'a>>,
        }
        let root = self.snapshot.root();
        let text = if self.args.watch.is_none() {
            serde_json::to_string(&root)?
        } else {
            serde_json::to_string(&Line {
                time: unix_seconds(self.snapshot.taken()),
                seconds: self.changes.map(|changes| changes.time().as_secs_f64()),
                values: root,
                per_second: self.changes.map(|changes| Rates { changes, dir: root }),
            })?
        };
        Ok(text + "\n")
    }
}

/// How much of each value came a second, in objects that are in each other as the directories are.
struct Rates<'a> {
    changes: &'a Changes<'a>,
    dir: Dir<'a>,
}

impl Serialize for Rates<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { changes, dir } = *self;
        let mut object = to.serialize_map(None)?;
        for Change { value, increase, .. } in changes.of(dir) {
            if let Some(increase) = increase {
                object.serialize_entry(value.name(), &changes.per_second(increase))?;
            }
        }
        for dir in dir.children() {
            object.serialize_entry(dir.name(), &Rates { changes, dir })?;
        }
        object.end()
    }
}
