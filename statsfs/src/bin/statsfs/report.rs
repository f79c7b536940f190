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
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use statsfs::tools::say;

use crate::common::EXIT_STATUS;
use crate::tell;

const HELP: &str = "\
The page is one file that needs nothing else: it can be mailed, and put on any server. It is made of what `statsfs record` wrote,
also while that goes on. Rates are right whatever was cleared, came or went meanwhile. Of a recording of one guest the page has
its vCPUs in the guests' place.";

/// What is in the beginning of each page, whichever version made it.
const GENERATOR: &str = "<meta name=\"generator\" content=\"statsfs ";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// A recording
    file: PathBuf,
    /// Where to write the page; - is the standard output. A page that is there is written over, anything else is not
    #[arg(short, long, value_name = "PAGE", default_value = "report.html")]
    output: PathBuf,
    /// Write over whatever file is there
    #[arg(long)]
    force: bool,
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
    write(&args.output, &page, args.force)
}

/// Writes a page where nothing is that somebody else may want.
fn write(output: &Path, page: &str, force: bool) -> Result<(), Box<dyn Error>> {
    let found = fs::metadata(output);
    let is_new = found.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let has_content = found.is_ok_and(|found| found.is_file() && found.len() > 0);
    // One that can not be read is nothing that is known here.
    if has_content && !force && !is_page(output).unwrap_or(false) {
        let output = output.display();
        return Err(
            format!("{output} is there already, and no report: --force writes over it").into()
        );
    }
    fs::write(output, page).map_err(|error| {
        if is_new {
            // The half of a page is none. If it is not there either, all is said.
            let _ = fs::remove_file(output);
        }
        format!("{} can not be written: {error}", output.display()).into()
    })
}

/// Whether a file is a page that was made here.
fn is_page(file: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    File::open(file)?.take(1024).read_to_end(&mut begin)?;
    Ok(String::from_utf8_lossy(&begin).contains(GENERATOR))
}
