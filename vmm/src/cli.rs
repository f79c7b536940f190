//! The command line of `vmm`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use statsfs::manual;

use crate::accounting::Detail;
use crate::arch::x86_64::layout::MAX_VCPUS;
use crate::clock::Moment;
use crate::demo;
use crate::flat::{Entry, FlatProgram};
use crate::kernel::{Kernel, cmdline};
use crate::limits;
use crate::list::{self, ListArgs};
use crate::message::tell;
use crate::publish::{Publish, StatsOut};
use crate::run::{Outcome, RunError, run};
use crate::seccomp;
use crate::tree::check_name;
use crate::virtio::{DiskConfig, NetConfig, VirtioConfig};
use crate::vm::{Config, Guest, MAX_MEMORY, MIN_MEMORY, PAGE_SIZE};

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
  vmm run --kernel /boot/vmlinuz --initrd initrd.img --mount /run/stats
                                               boot Linux, its statistics below /run/stats
  vmm run --flat guest.bin --mount /run/stats  run a program without an operating system
  vmm list                                     the guests that run, and how busy they are

Exit status:
  0      what was asked for is done; a guest that runs Linux was powered off, or rebooted
  0-123  what a flat guest wrote to port 0xf4
  124    the guest crashed: Linux panicked, a flat guest had a triple fault
  125    the VMM failed, with a line that says why
  1      `vmm list` could not list them, with a line that says why
  129    SIGHUP
  130    SIGINT, or Ctrl-A x on the console
  131    SIGQUIT
  143    SIGTERM
  2      the command line is wrong";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest
    Run(Box<RunArgs>),
    /// Show live statistics of built-in guests
    Demo(DemoArgs),
    /// List the guests that run on this host
    List(ListArgs),
}

const RUN_HELP: &str = "\
Linux guests (--kernel): a bzImage (/boot/vmlinuz-*) or an ELF image (vmlinux)
for x86-64. Its console is the first serial port, on standard input and output;
where that is a terminal, Ctrl-A x ends the guest, and Ctrl-A Ctrl-A sends one
Ctrl-A. Disks, network interfaces and a source of random bytes are virtio-mmio
devices, described by ACPI: the guest needs the drivers virtio_mmio, virtio_blk
and virtio_net, of which many distributions make modules. The command line is
  console=ttyS0 panic=-1 reboot=panic_warm
without what --cmdline sets of these, and then what --cmdline says. `poweroff`
and `reboot` end the guest with status 0, a panic of the kernel with 124. It is
told by pvpanic, where the guest has that driver, or by the kind of reset that
reboot=panic_warm asks for (Linux 5.2 or newer). With neither, a panic is only a
reboot.

Flat guests (--flat): a flat binary is loaded at guest-physical 0x10000 and
entered there on every vCPU, with the vCPU's index in RDI (DI):
  real  16-bit real mode, CS:IP 1000:0000, DS and ES 1000, SS 0000
  long  64-bit mode, ring 0, the low 4 GiB mapped to themselves by page tables
        at 0x1000-0x6fff; no interrupt descriptors: an exception ends the guest
The stack of vCPU i ends at 0x10000 - i * 0x100. There is no interrupt
controller: a vCPU that halts goes on at once. COM1 (port 0x3f8) is standard
input and output. A byte from 0 to 123 written to port 0xf4 ends the guest with
that status.

Memory has a gap for devices from 3 to 4 GiB. Ports and addresses where nothing
is read as all ones.

Examples:
  vmm run --kernel /boot/vmlinuz-$(uname -r) --initrd /boot/initrd.img-$(uname -r)
  vmm run --kernel vmlinuz --initrd rescue.cpio --cpus 4 --memory 8G \\
      --cmdline 'quiet rdinit=/bin/sh' --name web1 --mount /run/stats
  vmm run --kernel vmlinuz --initrd initrd.img --cmdline root=/dev/vda1 \\
      --disk debian.img --disk data.img,ro --net tap=tap0
  vmm run --flat guest.bin --cpus 4 --memory 1G --name web1 --mount /run/stats
  vmm run --flat boot.img --entry real --no-publish --stats-out stats.txt

Exit status:
  0      the guest was powered off, or rebooted
  0-123  what a flat guest wrote to port 0xf4
  124    the guest crashed: Linux panicked, a flat guest had a triple fault
  125    the VMM failed, or the final statistics could not be written; a line says why
  129    SIGHUP
  130    SIGINT, or Ctrl-A x on the console
  131    SIGQUIT
  143    SIGTERM
  2      the command line is wrong";

/// Memory of a guest, unless said.
const DEFAULT_MEMORY_KERNEL: u64 = 512 << 20;
const DEFAULT_MEMORY_FLAT: u64 = 64 << 20;

/// Arguments of `vmm run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP, group = ArgGroup::new("guest").required(true))]
pub struct RunArgs {
    /// Linux kernel to boot: a bzImage or an ELF image
    #[arg(long, value_name = "FILE", group = "guest")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "flat")]
    pub initrd: Option<PathBuf>,
    /// What to add to the kernel's command line
    #[arg(long, value_name = "STRING", conflicts_with = "flat", allow_hyphen_values = true, value_parser = parse_cmdline)]
    pub cmdline: Option<String>,
    /// Disk of the guest: a file, read-only with ,ro after it; may be repeated, for /dev/vda and so on
    #[arg(long, value_name = "FILE[,ro]", conflicts_with = "flat")]
    pub disk: Vec<DiskConfig>,
    /// Network interface of the guest: a tap interface of the host; may be repeated
    #[arg(long, value_name = "tap=NAME[,mac=MAC]", conflicts_with = "flat")]
    pub net: Vec<NetConfig>,
    /// Program to run: a flat binary
    #[arg(long, value_name = "PROGRAM", group = "guest")]
    pub flat: Option<PathBuf>,
    /// Mode in which the program is entered [default: long]
    #[arg(long, value_enum, conflicts_with = "kernel")]
    pub entry: Option<Entry>,
    /// Number of vCPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_vcpus)]
    pub cpus: u32,
    /// Memory, in bytes or with K, M, G or T; whole pages, at least 1M [default: 512M for a kernel, 64M
    /// for a flat program]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// Name of the guest: its statistics are in `kvm/<pid>-<NAME>`
    #[arg(long, default_value = "vm", value_parser = parse_name)]
    pub name: String,
    /// Mount the statistics here while the guest runs
    #[arg(long, value_name = "DIR", conflicts_with = "no_publish")]
    pub mount: Option<PathBuf>,
    /// Publish the statistics to the host's server at this socket [default: what STATSFS_SOCKET says, or else
    /// /run/statsfs.sock]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["mount", "no_publish"])]
    pub socket: Option<PathBuf>,
    /// Let everybody look into the guest's directory, and not only its user and the readers' group
    #[arg(long, conflicts_with = "no_publish")]
    pub public: bool,
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

impl RunArgs {
    /// The files that the guest is made of, each with what it is.
    fn guest_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let named = [("kernel", &self.kernel), ("initrd", &self.initrd), ("program", &self.flat)];
        let named = named.into_iter().filter_map(|(what, path)| Some((what, path.as_deref()?)));
        named.chain(self.disk.iter().map(|disk| ("disk", disk.path.as_path())))
    }
}

const DEMO_HELP: &str = "\
The guests, demo0, demo1 and so on, make all kinds of exits at rates that rise
and fall. The table is read from the mounted statistics, which any other program
can read at the same time. Each number counts from when it was last cleared: if
one reason alone was, EXITS is no longer the sum of its parts. Without
--seconds 0, Ctrl-C ends it with status 130.

Examples:
  vmm demo
  vmm demo --seconds 0 --guests 1 --vcpus 4
  vmm demo --mount /tmp/stats --quiet

Exit status: 0 when the time is over, or with --seconds 0 after SIGINT; 125 if it failed, with a line that says why; 129,
130, 131 or 143 after SIGHUP, SIGINT, SIGQUIT or SIGTERM; 2 if asked wrongly.";

/// Arguments of `vmm demo`.
#[derive(Debug, Args)]
#[command(after_help = DEMO_HELP)]
pub struct DemoArgs {
    /// How long to run; 0: until Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = parse_seconds)]
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
    /// Mount the statistics here [default: the host's mount if there is a server, else /run/statsfs for root
    /// and $XDG_RUNTIME_DIR/statsfs for others]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Publish the statistics to the host's server at this socket, if there is one [default: what
    /// STATSFS_SOCKET says, or else /run/statsfs.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "mount")]
    pub socket: Option<PathBuf>,
    /// Let everybody look into the guests' directories, and not only their user and the readers' group
    #[arg(long)]
    pub public: bool,
}

/// Most guests of the demo.
const MAX_GUESTS: u32 = 64;

fn parse_seconds(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("the demo runs for whole seconds, at most {}", u32::MAX))
}

fn parse_guests(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if (1..=MAX_GUESTS).contains(&n) => Ok(n),
        _ => Err(format!("the demo has 1 to {MAX_GUESTS} guests")),
    }
}

/// Where the demo mounts its statistics unless told, if there is a place for that.
fn default_mount(is_root: bool, runtime_dir: Option<OsString>) -> Option<PathBuf> {
    if is_root {
        return Some(PathBuf::from("/run/statsfs"));
    }
    let runtime_dir = runtime_dir.filter(|dir| !dir.is_empty())?;
    Some(PathBuf::from(runtime_dir).join("statsfs"))
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

fn parse_cmdline(text: &str) -> Result<String, String> {
    // The kernel would take some of them for the end of a word, others for a part of it.
    if text.chars().any(char::is_control) {
        return Err("a command line is one line, without control characters".to_string());
    }
    Ok(text.to_string())
}

fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// Runs the command line. Every failure is one line on standard error.
pub fn main() -> ExitCode {
    let start = Moment::now();
    let result = match manual::parse::<Cli>().command {
        Command::Run(args) => run_command(*args, start),
        Command::Demo(args) => demo_command(args),
        Command::List(args) => return list::main(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            tell(limits::told(&error));
            ExitCode::from(STATUS_FAILED)
        }
    }
}

fn run_command(args: RunArgs, start: Moment) -> Result<u8, RunError> {
    if !args.no_seccomp {
        seccomp::enable()?;
    }
    let stats_out = args.stats_out.as_deref().map(StatsOut::create).transpose()?;
    if let Some(out) = &stats_out {
        out.check_overwrites(args.guest_files())?;
    }
    let guest = match (&args.kernel, &args.flat) {
        (Some(kernel), _) => {
            let cmdline = cmdline::with_defaults(args.cmdline.as_deref().unwrap_or_default());
            let kernel = Kernel::open(kernel, args.initrd.as_deref(), cmdline)?;
            kernel.doubt()?.into_iter().for_each(tell);
            let virtio = VirtioConfig { disks: args.disk, nets: args.net, rng: true };
            Guest::Kernel { kernel, virtio }
        }
        (None, Some(program)) => {
            Guest::Flat(FlatProgram::read(program, args.entry.unwrap_or_default())?)
        }
        (None, None) => unreachable!("one of them is required"),
    };
    let memory = args.memory.unwrap_or(match guest {
        Guest::Kernel { .. } => DEFAULT_MEMORY_KERNEL,
        Guest::Flat(_) => DEFAULT_MEMORY_FLAT,
    });
    let config = Config {
        name: args.name,
        memory,
        vcpus: args.cpus,
        guest,
        console: true,
        public: args.public,
        accounting: args.accounting,
    };
    let publish = match args.mount {
        Some(path) => Publish::Mount(path),
        None if args.no_publish => Publish::Nowhere,
        None => Publish::Host(args.socket),
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
        publish: match args.mount {
            Some(path) => demo::Place::Mount(path),
            None => demo::Place::HostOrMount(
                args.socket,
                default_mount(is_root, std::env::var_os("XDG_RUNTIME_DIR")),
            ),
        },
        public: args.public,
    };
    Ok(status(demo::run(&options)?))
}

/// The exit status for an outcome, after telling what is to be told.
fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Status(status) => status,
        Outcome::Crashed(what) => {
            tell(format_args!("the guest crashed: {what}"));
            STATUS_CRASHED
        }
        Outcome::Failed(what) => {
            tell(what);
            STATUS_FAILED
        }
        Outcome::TripleFault { vcpu } => {
            tell(format_args!("the guest reset itself (triple fault, vCPU {vcpu})"));
            0
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
    fn each_kind_of_guest_has_its_own_options() {
        let parse = |args: &str| {
            Cli::try_parse_from(["vmm", "run"].into_iter().chain(args.split_whitespace()))
                .map_err(|error| error.to_string())
        };
        for line in [
            "--kernel k",
            "--kernel k --initrd i --cmdline quiet --cpus 2 --memory 1G",
            "--kernel k --cmdline --",
            "--flat p --entry real",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for (line, part) in [
            ("--cpus 2", "--kernel <FILE>|--flat <PROGRAM>"),
            ("--kernel k --flat p", "cannot be used with"),
            ("--flat p --initrd i", "--kernel"),
            ("--flat p --cmdline quiet", "--kernel"),
            ("--kernel k --entry long", "--flat"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_command_line_is_one_line() {
        let parse =
            |text: &str| Cli::try_parse_from(["vmm", "run", "--kernel", "k", "--cmdline", text]);
        assert!(parse("quiet  root=/dev/vda init=/ü -- -x").is_ok());
        for text in ["quiet\nro", "a\tb", "\u{1b}[m", "ro\r", "a\0b"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("--cmdline") && error.contains("one line"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_demo_mounts_where_its_user_may() {
        let of = |root, dir: Option<&str>| default_mount(root, dir.map(OsString::from));
        assert_eq!(of(true, Some("/run/user/0")).unwrap(), PathBuf::from("/run/statsfs"));
        assert_eq!(of(false, Some("/run/user/7")).unwrap(), PathBuf::from("/run/user/7/statsfs"));
        for dir in [None, Some("")] {
            assert_eq!(of(false, dir), None);
        }
        assert!(RunError::NoMountPoint.to_string().contains("--mount"));
        assert!(parse_guests("65").unwrap_err().contains("1 to 64"));
    }
}
