//! The command `statsfs`: the server of a host's statistics, and what is said of it.

// Both panic where they can not write.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod serve;
mod status;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  statsfs serve                                one mount for all processes of this host
  statsfs serve --mount /tmp/s --socket /tmp/s.sock --state /tmp/s.state
  statsfs status                               what is connected, and what was refused and why

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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Status(args) => status::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(error);
            ExitCode::FAILURE
        }
    }
}

/// Tells the user something, in one line and one write(2). One who can not be told finds the exit status all the
/// same.
fn tell(message: impl Display) {
    let line = format!("statsfs: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
