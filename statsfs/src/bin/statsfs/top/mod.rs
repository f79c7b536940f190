//! `statsfs top`.
//!
//! One way: looks at the mount ([`look`]) become plain data ([`model`]), that becomes rows and columns ([`grid`]), and those
//! are drawn ([`view`]) or written ([`batch`], [`log`]). What is typed ([`input`]) changes what is looked at and shown ([`app`]).

mod app;
mod batch;
mod grid;
mod input;
mod log;
mod look;
mod model;
mod screen;
mod select;
mod term;
mod view;

use std::error::Error;
use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::time::Duration;

use statsfs::snapshot::{Dir, Snapshot, What};

use self::app::App;
use self::look::Looks;
use self::model::{KVM, Row};
use self::select::{Guests, Pattern};
use crate::common::{EXIT_STATUS, Place, parse_seconds};

const HELP: &str = "\
On the screen ? shows the keys. It needs a terminal; on one that can do nothing (TERM=dumb) tables follow each other. Nothing is
coloured if NO_COLOR is set.

The log has a line for all guests together (kvm, unless some are chosen) and for each guest, in each interval: rates and shares,
or with --fields by how much counts grew, what other values were, and of histograms how many and their percentiles. Its
first line says what is in which column, and so does a new one when that changes. After SIGHUP it is opened anew.

Of each vCPU's time, GUEST% is in the guest, USER% handling exits in user space, HALT% halted or asleep, and STEAL% waiting for a
processor. Exits and times are those that came in the interval, whatever was cleared; what guests counted that are gone is in
the totals.";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// How many seconds there are between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// One table to the standard output, of one interval
    #[arg(short = '1', long, conflicts_with = "log")]
    once: bool,
    /// A log to this file instead, as CSV (`-`: the standard output)
    #[arg(short, long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// With -1 or --log: the values whose names this regular expression is found in
    #[arg(short, long, value_name = "REGEX")]
    fields: Option<Pattern>,
    #[command(flatten)]
    guests: Guests,
    /// Only where something happened
    #[arg(short = 'z', long)]
    skip_zero: bool,
    #[command(flatten)]
    place: Place,
}

impl Args {
    /// The directories that are meant: that of all guests, or of each that is chosen.
    fn dirs<'a>(&self, now: &'a Snapshot) -> Vec<Dir<'a>> {
        let kvm = now.dir(KVM);
        let host = kvm.filter(|_| self.guests.is_all());
        let machines = kvm.into_iter().flat_map(Dir::children);
        let is_meant =
            |dir: &Dir<'_>| dir.what() == What::Guest && self.guests.is_meant(&Row::nothing(*dir));
        let each = self.log.is_some() || !self.guests.is_all();
        host.into_iter().chain(machines.filter(|dir| each && is_meant(dir))).collect()
    }
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mount = args.place.dir(None)?;
    let mut looks = Looks::new(mount.clone());
    if let Some(path) = &args.log {
        return log::run(args, path, looks);
    }
    if args.once {
        return batch::once(args, looks);
    }
    if !stdout().is_terminal() {
        return Err(
            "the standard output is no terminal: -1 writes one table, and --log a log".into()
        );
    }
    if std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb") {
        return batch::again_and_again(args, looks);
    }
    if args.fields.is_some() {
        return Err("--fields is for -1 and --log: on the screen / chooses values".into());
    }
    // What is missing is said before the screen is taken.
    looks.look()?;
    drop(looks);
    screen::run(App::new(mount, args.interval, args.guests.clone(), args.skip_zero))
}
