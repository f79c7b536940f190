//! `statsfs report`.
use std::error::Error;
use std::path::PathBuf;

/// What to show.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recording
    file: PathBuf,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let _ = args;
    Ok(())
}
