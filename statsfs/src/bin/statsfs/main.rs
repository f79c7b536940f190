//! The command `statsfs`: the server of a host's statistics, what is said of it, and tools that look at a mount.

// Both panic where they can not write.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod common;
mod describe;
mod diff;
mod dump;
mod ls;
mod record;
mod recordings;
mod report;
mod serve;
mod status;
mod top;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use statsfs::manual;
use statsfs::tools::{plain, told};

const EXAMPLES: &str = "\
Examples:
  statsfs serve                                one mount for all processes of this host
  statsfs serve --mount /tmp/s --socket /tmp/s.sock --state /tmp/s.state
  statsfs status                               what is connected, and what was refused and why
  statsfs ls kvm                               the guests, their vCPUs and devices
  statsfs dump kvm --watch 1                   what was counted, and how much a second
  statsfs top                                  the guests of this host on a full screen
  statsfs describe user_exits                  what a value is
  statsfs diff before after                    what came between two saved snapshots
  statsfs record FILE --seconds 60             a look a second, in one file
  statsfs report FILE -o report.html           ... as a page with charts and tables

Exit status: 0; 1 if it could not be done, with a line that says why; 2 if asked wrongly.";

/// Statistics of a host's processes as a live file tree
#[derive(Debug, Parser)]
#[command(name = "statsfs", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one mount for all processes of this host
    Serve(Box<serve::Args>),
    /// Say what is connected to the server, and what was refused and why
    Status(status::Args),
    /// List what there is: guests, vCPUs, devices and other sources
    Ls(ls::Args),
    /// Show what was counted, once or again and again with rates
    Dump(dump::Args),
    /// Watch the guests on a full screen, or write tables and logs of them
    Top(Box<top::Args>),
    /// Say what a value means
    Describe(describe::Args),
    /// Show what came between two saved snapshots, or between the ends of a recording
    Diff(diff::Args),
    /// Record what is counted over some time
    Record(record::Args),
    /// Make a page of a recording, with charts and tables
    Report(report::Args),
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn Error>> = match manual::parse::<Cli>().command {
        Command::Serve(args) => serve::run(*args),
        Command::Status(args) => status::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Describe(args) => describe::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Report(args) => report::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(told(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Tells the user something, in one line and one write(2). One who can not be told finds the exit status all the
/// same.
fn tell(message: impl Display) {
    let line = format!("statsfs: {}\n", plain(&message.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}
