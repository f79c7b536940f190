//! One table to the standard output, and one after the other on a terminal that can do no more.

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossterm::terminal::size;
use statsfs::tools::{Columns, say};

use super::Args;
use super::app::Tab;
use super::grid::{self, Grid, Order};
use super::look::Looks;
use super::model::{KVM, Model, Pair, Row, Wanted, fields};
use crate::common::until_next;

/// Prints what came in one interval.
pub fn once(args: &Args, mut looks: Looks) -> Result<(), Box<dyn Error>> {
    looks.look()?;
    looks.model(&Wanted::default());
    sleep(args.interval);
    looks.look()?;
    say(&text(args, &mut looks, true, u16::MAX))?;
    Ok(())
}

/// Prints what came in each interval, until nobody reads it.
pub fn again_and_again(args: &Args, mut looks: Looks) -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    let mut missing = String::new();
    let mut wait = Duration::ZERO;
    loop {
        sleep(wait);
        match looks.look() {
            Ok(()) => missing.clear(),
            Err(why) if missing != why => {
                crate::tell(&why);
                missing = why;
            }
            Err(_) => {}
        }
        if missing.is_empty() {
            let is_first = looks.pair().is_none();
            // What there is no room for would be broken into lines that nobody can read.
            let width = size().map_or(u16::MAX, |(width, _)| width);
            let text = text(args, &mut looks, false, width);
            if !is_first && !say(&(text + "\n"))? {
                return Ok(());
            }
        }
        wait = until_next(begin.elapsed(), args.interval);
    }
}

/// What came in the last interval, in lines that are no wider than that.
fn text(args: &Args, looks: &mut Looks, is_last: bool, width: u16) -> String {
    let wanted = Wanted { is_last, ..Wanted::default() };
    let Some(model) = looks.model(&wanted) else { return String::new() };
    if args.fields.is_some() {
        return values(args, looks, width);
    }
    let mut grid = grid::rows(&meant(args, &model), false);
    grid.keep(None, args.skip_zero);
    grid.sort(Order { column: Tab::EXITS, is_reversed: false });
    if args.guests.is_all() {
        // Those that are gone and those that may not be looked into are in there.
        let all = Row { name: "(all)".into(), ..model.host.clone() };
        grid.lines.extend(grid::rows(&[all], false).lines);
    }
    let mut text = columns(&grid, width);
    if model.closed > 0 {
        text += &format!("{} more may not be looked into by this user\n", model.closed);
    }
    text
}

fn meant(args: &Args, model: &Model) -> Vec<Row> {
    model.guests.iter().filter(|row| args.guests.is_meant(row)).cloned().collect()
}

/// The values that are wanted, of all guests together or of each that is wanted.
fn values(args: &Args, looks: &Looks, width: u16) -> String {
    let Some((now, changes)) = looks.pair() else { return String::new() };
    let pair = Pair { now, changes: Some(&changes), zero: None };
    let is_wanted = |name: &str| args.fields.as_ref().is_none_or(|fields| fields.is_in(name));
    let mut text = String::new();
    for dir in args.dirs(now) {
        let fields = fields(pair, dir, is_wanted);
        let mut grid = grid::fields(&fields);
        grid.keep(None, args.skip_zero);
        grid.sort(Order { column: 2, is_reversed: false });
        if !args.guests.is_all() {
            text += &format!("{}\n", dir.path());
        }
        text += &columns(&grid, width);
    }
    if text.is_empty() {
        text = match now.dir(KVM) {
            None => "No guest runs.\n".into(),
            Some(_) => "No guest of these runs that this user may look into.\n".into(),
        };
    }
    text
}

fn columns(grid: &Grid, width: u16) -> String {
    let mut shown: Vec<_> = (0..grid.heads.len()).filter(|n| !grid.heads[*n].is_graph).collect();
    loop {
        let mut columns = Columns::new(shown.iter().map(|n| grid.heads[*n].side));
        columns.row(shown.iter().map(|n| grid.heads[*n].title));
        for line in &grid.lines {
            columns.row(shown.iter().map(|n| line.cells[*n].text.as_str()));
        }
        let text = columns.text("");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        match grid.first_to_go(&shown) {
            Some(most) if widest > width.into() => shown.retain(|n| *n != most),
            _ => return text,
        }
    }
}
