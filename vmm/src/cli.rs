//! The command line of `vmm`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::accounting::Detail;
use crate::arch::x86_64::layout::MAX_VCPUS;
use crate::clock::Moment;
use crate::demo;
use crate::flat::{Entry, FlatProgram};
use crate::publish::StatsOut;
use crate::run::{Outcome, Publish, RunError, run};
use crate::seccomp;
use crate::tree::check_name;
use crate::vm::{Config, MAX_MEMORY, MIN_MEMORY, PAGE_SIZE};

/// Status when the guest crashed.
pub const STATUS_CRASHED: u8 = 124;
/// Status when the VMM failed.
pub const STATUS_FAILED: u8 = 125;
/// What a signal's number is added to for the status.
pub const STATUS_SIGNAL: u8 = 128;

/// A virtual machine monitor whose every exit is counted.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  vmm demo                                     see live statistics of two built-in guests
  vmm run --flat guest.bin --mount /run/stats  run a program, its statistics below /run/stats
  vmm run --flat boot.img --entry real --no-publish --stats-out stats.txt

Exit status:
  0-123  what the guest wrote to port 0xf4
  124    the guest crashed
  125    the VMM failed
  130    SIGINT (129 SIGHUP, 143 SIGTERM)
  2      the command line is wrong";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest
    Run(RunArgs),
    /// Show live statistics of built-in guests
    Demo(DemoArgs),
}

const RUN_HELP: &str = "\
A flat guest is loaded at guest-physical 0x10000 and entered there on every
vCPU, with the vCPU's index in RDI (DI):
  real  16-bit real mode, CS:IP 1000:0000, DS and ES 1000, SS 0000
  long  64-bit mode, ring 0, the low 4 GiB mapped to themselves by page tables
        at 0x1000-0x6fff; no interrupt descriptors: an exception ends the guest
The stack of vCPU i ends at 0x10000 - i * 0x100. Memory has a gap for devices
from 3 to 4 GiB. There is no interrupt controller: a vCPU that halts goes on at
once. COM1 (port 0x3f8) is standard input and output. A byte from 0 to 123
written to port 0xf4 ends the guest with that status. Ports and addresses where
nothing is read as all ones.

Examples:
  vmm run --flat guest.bin --mount /run/stats
  vmm run --flat guest.bin --cpus 4 --memory 1G --name web1 --mount /run/stats
  vmm run --flat boot.img --entry real --no-publish --stats-out stats.txt";

/// Arguments of `vmm run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub struct RunArgs {
    /// Program to run: a flat binary
    #[arg(long, value_name = "PROGRAM")]
    pub flat: PathBuf,
    /// Mode in which the program is entered
    #[arg(long, value_enum, default_value_t)]
    pub entry: Entry,
    /// Number of vCPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_vcpus)]
    pub cpus: u32,
    /// Memory, in bytes or with K, M, G or T; whole pages, at least 1M
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_memory)]
    pub memory: u64,
    /// Name of the guest: its statistics are in `kvm/<pid>-<NAME>`
    #[arg(long, default_value = "vm", value_parser = parse_name)]
    pub name: String,
    /// Mount the statistics here while the guest runs
    #[arg(long, value_name = "DIR", conflicts_with = "no_publish")]
    pub mount: Option<PathBuf>,
    /// Do not publish the statistics while the guest runs
    #[arg(long)]
    pub no_publish: bool,
    /// Write the final statistics to this file, whatever ends the guest
    #[arg(long, value_name = "FILE")]
    pub stats_out: Option<PathBuf>,
    /// Let the VMM's threads make any system call, and not only those that they need
    #[arg(long)]
    pub no_seccomp: bool,
    /// How much to account per exit; less only serves to measure what accounting costs
    #[arg(long, value_enum, default_value_t, hide = true)]
    pub accounting: Detail,
}

const DEMO_HELP: &str = "\
The guests, demo0, demo1 and so on, make all kinds of exits at rates that rise
and fall. The table is read from the mounted statistics, which any other program
can read at the same time. Without --seconds 0, Ctrl-C ends it with status 130.

Examples:
  vmm demo
  vmm demo --seconds 0 --guests 1 --vcpus 4
  vmm demo --mount /tmp/stats --quiet";

/// Arguments of `vmm demo`.
#[derive(Debug, Args)]
#[command(after_help = DEMO_HELP)]
pub struct DemoArgs {
    /// How long to run; 0: until Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seconds: u32,
    /// Number of guests, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse_guests)]
    pub guests: u32,
    /// Number of vCPUs of each guest, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse_vcpus)]
    pub vcpus: u32,
    /// Show only where the statistics are, and the totals at the end
    #[arg(long)]
    pub quiet: bool,
    /// Let the VMM's threads make any system call, and not only those that they need
    #[arg(long)]
    pub no_seccomp: bool,
    /// Mount the statistics here [default: /run/statsfs for root, else $XDG_RUNTIME_DIR/statsfs]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
}

/// Most guests of the demo.
const MAX_GUESTS: u32 = 64;

fn parse_guests(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if (1..=MAX_GUESTS).contains(&n) => Ok(n),
        _ => Err(format!("the demo has 1 to {MAX_GUESTS} guests")),
    }
}

/// Where the demo mounts its statistics unless told.
fn default_mount(is_root: bool, runtime_dir: Option<OsString>) -> Result<PathBuf, RunError> {
    if is_root {
        return Ok(PathBuf::from("/run/statsfs"));
    }
    match runtime_dir {
        Some(dir) if !dir.is_empty() => Ok(PathBuf::from(dir).join("statsfs")),
        _ => Err(RunError::NoMountPoint),
    }
}

/// Parses a number of vCPUs.
///
/// # Errors
/// A message that says which numbers there are.
pub fn parse_vcpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if (1..=MAX_VCPUS).contains(&n) => Ok(n),
        _ => Err(format!("a guest has 1 to {MAX_VCPUS} vCPUs")),
    }
}

/// Parses a size of memory.
///
/// # Errors
/// A message that says which sizes there are.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    // `parse` alone would take a plus sign.
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
    let size = number.flatten().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| {
        "a size is a number with K, M, G, T or nothing after it: 64M, 1G".to_string()
    })?;
    if size < MIN_MEMORY {
        return Err(format!("a guest has at least {}M of memory", MIN_MEMORY >> 20));
    }
    if size > MAX_MEMORY {
        return Err(format!("a guest has at most {}G of memory", MAX_MEMORY >> 30));
    }
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(format!("memory comes in whole pages of {PAGE_SIZE} bytes"));
    }
    Ok(size)
}

fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// Runs the command line. Every failure is one line on standard error.
pub fn main() -> ExitCode {
    let start = Moment::now();
    let result = match Cli::parse().command {
        Command::Run(args) => run_command(args, start),
        Command::Demo(args) => demo_command(args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::from(STATUS_FAILED)
        }
    }
}

fn run_command(args: RunArgs, start: Moment) -> Result<u8, RunError> {
    if !args.no_seccomp {
        seccomp::enable()?;
    }
    let stats_out = args.stats_out.as_deref().map(StatsOut::create).transpose()?;
    let config = Config {
        name: args.name,
        memory: args.memory,
        vcpus: args.cpus,
        program: FlatProgram::read(&args.flat, args.entry)?,
        console: true,
        accounting: args.accounting,
    };
    let publish = match args.mount {
        Some(path) => Publish::Mount(path),
        None if args.no_publish => Publish::Nowhere,
        None => Publish::Unsaid,
    };
    Ok(status(run(&config, &publish, stats_out, start)?))
}

fn demo_command(args: DemoArgs) -> Result<u8, RunError> {
    if !args.no_seccomp {
        seccomp::enable()?;
    }
    // SAFETY: no arguments and no effects.
    let is_root = unsafe { libc::geteuid() } == 0;
    let options = demo::Options {
        duration: (args.seconds > 0).then(|| Duration::from_secs(args.seconds.into())),
        guests: args.guests,
        vcpus: args.vcpus,
        quiet: args.quiet,
        mount: match args.mount {
            Some(path) => path,
            None => default_mount(is_root, std::env::var_os("XDG_RUNTIME_DIR"))?,
        },
    };
    Ok(status(demo::run(&options)?))
}

/// The exit status for an outcome, after telling what is to be told.
fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Status(status) => status,
        Outcome::Crashed(what) => {
            eprintln!("vmm: the guest crashed: {what}");
            STATUS_CRASHED
        }
        Outcome::Failed(what) => {
            eprintln!("vmm: {what}");
            STATUS_FAILED
        }
        Outcome::Signal(signal) => STATUS_SIGNAL.saturating_add(signal),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_is_a_number_with_a_unit() {
        for (text, size) in [
            ("1M", 1 << 20),
            ("64m", 64 << 20),
            ("1G", 1 << 30),
            ("4096K", 4 << 20),
            ("2T", 2 << 40),
            ("1052672", 1052672),
        ] {
            assert_eq!(parse_memory(text), Ok(size), "{text}");
        }
        for (text, part) in [
            ("", "64M"),
            ("M", "64M"),
            ("+1M", "64M"),
            ("-1M", "64M"),
            ("1.5G", "64M"),
            ("1MB", "64M"),
            ("99999999999999999999", "64M"),
            ("18014398509481984K", "64M"),
            ("0", "at least 1M"),
            ("1023K", "at least 1M"),
            ("64T", "at most"),
            ("1048577", "pages"),
        ] {
            let error = parse_memory(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_limit_of_vcpus_is_named() {
        assert_eq!(parse_vcpus("64"), Ok(64));
        for text in ["0", "65", "-1", "x", ""] {
            assert!(parse_vcpus(text).unwrap_err().contains("1 to 64"), "{text}");
        }
    }

    #[test]
    fn mounting_and_not_publishing_exclude_each_other() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["vmm", "run"], args].concat());
        assert!(parse(&["--flat", "p"]).is_ok());
        assert!(parse(&["--flat", "p", "--mount", "m"]).is_ok());
        assert!(parse(&["--flat", "p", "--mount", "m", "--no-publish"]).is_err());
        assert!(parse(&["--flat", "p", "--name", "a/b"]).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn the_demo_mounts_where_its_user_may() {
        let of = |root, dir: Option<&str>| default_mount(root, dir.map(OsString::from));
        assert_eq!(of(true, Some("/run/user/0")).unwrap(), PathBuf::from("/run/statsfs"));
        assert_eq!(of(false, Some("/run/user/7")).unwrap(), PathBuf::from("/run/user/7/statsfs"));
        for dir in [None, Some("")] {
            assert!(of(false, dir).unwrap_err().to_string().contains("--mount"));
        }
        assert!(parse_guests("65").unwrap_err().contains("1 to 64"));
    }
}
