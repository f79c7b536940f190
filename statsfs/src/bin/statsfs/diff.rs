//! `statsfs diff`.

use std::error::Error;
use std::path::PathBuf;

use clap::error::ErrorKind;
use serde::Serialize;
use statsfs::snapshot::{Change, Changes, Snapshot, Value};
use statsfs::tools::{Columns, Side, in_unit, per_second, say, thousands};
use statsfs::value::Unit;

use crate::common::{EXIT_STATUS, shown_path};
use crate::recordings;

const HELP: &str = "\
A snapshot is a copy of a `.stats/snapshot`:
  cat /run/statsfs/.stats/snapshot > before
Of one recording (`statsfs record`) it is what came between its first and its last look.

Increases are those of what was counted, whatever was cleared in between. What counted in between and is gone is in the totals
of the directory that it was in.";

/// What to compare.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// The earlier snapshot, or a recording
    before: PathBuf,
    /// The later one, of the same directory [default: the end of the recording]
    after: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What came in between.
#[derive(Serialize)]
struct Differences {
    seconds: f64,
    /// Directories that are new.
    came: Vec<String>,
    /// Those that are no more.
    gone: Vec<String>,
    /// Values that changed: counts, whatever was cleared, and the counts of histograms.
    changes: Vec<Difference>,
}

#[derive(Serialize)]
struct Difference {
    path: String,
    name: String,
    /// Missing if it was not there.
    before: Option<i128>,
    after: i128,
    /// By how much a count grew.
    increase: Option<u64>,
    per_second: Option<f64>,
    #[serde(skip)]
    unit: Unit,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let (before, after) = match &args.after {
        Some(after) => (recordings::last(&args.before)?, recordings::last(after)?),
        None if recordings::is_one(&args.before) => recordings::ends(&args.before)?,
        None => {
            let file = args.before.display();
            let why = format!("{file} is no recording: a later snapshot is needed as well\n");
            clap::Error::raw(ErrorKind::MissingRequiredArgument, why).exit()
        }
    };
    let changes = Changes::between(&before, &after)?;
    let differences = differences(&changes, &after);
    let text =
        if args.json { serde_json::to_string(&differences)? + "\n" } else { text(&differences) };
    say(&text)?;
    Ok(())
}

fn differences(changes: &Changes<'_>, after: &Snapshot) -> Differences {
    let mut all = Vec::new();
    for dir in after.dirs() {
        for Change { value, earlier, increase } in changes.of(dir) {
            let before = earlier.as_ref().map(raw);
            let number = raw(&value);
            // One that is new and is 0 is no change: that it came is said.
            if number == before.unwrap_or(0) {
                continue;
            }
            let is_histogram = value.histogram().is_some();
            all.push(Difference {
                path: dir.path(),
                name: value.name().to_owned(),
                before,
                after: number,
                increase,
                per_second: increase.map(|increase| changes.per_second(increase)),
                unit: if is_histogram { Unit::NONE } else { value.descriptor().unit },
            });
        }
    }
    Differences {
        seconds: changes.time().as_secs_f64(),
        came: changes.came().map(|dir| dir.path()).collect(),
        gone: changes.gone().map(|dir| dir.path()).collect(),
        changes: all,
    }
}

/// A value, whatever was cleared; of a histogram, how many there are.
fn raw(value: &Value<'_>) -> i128 {
    let count = value.raw_histogram().map(|histogram| histogram.count().into());
    value.raw_number().or(count).unwrap_or(0)
}

/// For people.
fn text(differences: &Differences) -> String {
    let Differences { seconds, came, gone, changes } = differences;
    let mut text = format!("{seconds:.3} s between them\n");
    for (sign, dirs) in [('+', came), ('-', gone)] {
        dirs.iter().for_each(|path| text += &format!("{sign} {}\n", shown_path(path)));
    }
    for of_dir in changes.chunk_by(|one, other| one.path == other.path) {
        let mut columns = Columns::new([Side::Left, Side::Right, Side::Right, Side::Left]);
        for Difference { name, before, after, increase, per_second: rate, unit, .. } in of_dir {
            let number = |number: i128| match *unit {
                Unit::NONE => thousands(number),
                unit => in_unit(number, unit),
            };
            let from_to = match before {
                Some(before) => format!("{} -> {}", number(*before), number(*after)),
                None => format!("new: {}", number(*after)),
            };
            let grown = increase.map(|n| format!("+{}", number(n.into()))).unwrap_or_default();
            let rate = rate.map(|rate| per_second(rate, *unit)).unwrap_or_default();
            columns.row([name, &grown, &rate, &from_to]);
        }
        text += &format!("\n{}\n{}", shown_path(&of_dir[0].path), columns.text("  "));
    }
    if changes.is_empty() && came.is_empty() && gone.is_empty() {
        text += "Nothing changed.\n";
    }
    text
}
