//! `statsfs report`: the frames of a recording become series of numbers, and these a page.

mod columns;
mod data;
mod device;
mod frames;
mod html;
mod page;
mod part;
mod series;
mod tables;

use std::error::Error;
use std::path::{Path, PathBuf};

use statsfs::tools::say;

use crate::common::EXIT_STATUS;
use crate::tell;

const HELP: &str = "\
The page is one file that needs nothing else: it can be mailed, and put on any server. It is made of what `statsfs record` wrote,
also while that goes on. Rates are right whatever was cleared, came or went meanwhile. Of a recording of one guest the page has
its vCPUs in the guests' place.";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// A recording
    file: PathBuf,
    /// Where to write the page; - is the standard output
    #[arg(short, long, value_name = "PAGE", default_value = "report.html")]
    output: PathBuf,
    /// How many guests have charts and rows of their own, those with the most exits; the others are together
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    guests: u16,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let read = frames::read(&args.file, args.guests.into())?;
    if let Some(cut) = &read.cut {
        tell(format_args!("{}: {cut}", args.file.display()));
    }
    let page = page::page(&read);
    if args.output == Path::new("-") {
        say(&page)?;
        return Ok(());
    }
    let output = args.output.display();
    std::fs::write(&args.output, page)
        .map_err(|error| format!("{output} can not be written: {error}").into())
}
