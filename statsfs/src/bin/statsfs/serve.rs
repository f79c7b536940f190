//! `statsfs serve`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Group;
use statsfs::fs::MountOptions;
use statsfs::host::server::{Amounts, FdStore, HostLimits, MetricsAddress, ServeOptions, Server};
use statsfs::host::state::MAX_PAYLOAD;
use statsfs::host::{DEFAULT_MOUNT, DEFAULT_SOCKET, DEFAULT_STATE};
use statsfs::tree::{MetricName, Owner, TreeOptions};
use tracing_subscriber::EnvFilter;

use crate::common::outlive_file_size;

const HELP: &str = "\
Whoever may connect to the socket may publish: root, the server's user, and the members of the socket's group.
What a process publishes is in a directory of its own, which only its user and the readers' group may look into.
Totals are for all to see.

A limit that a user, or that all users together, have reached is named in the refusal, in the log and in `statsfs status`. What one user may
have open in the mount, root may exceed.

What is logged, to standard error, is what RUST_LOG says: error, warn, info (unless set), debug or trace.

Exit status: 0 when it was told to end (SIGTERM, SIGINT, SIGHUP, SIGQUIT); 1 if it could not serve, with a line that says why; 2 if
asked wrongly.";

/// How to serve.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Where to mount
    #[arg(long, value_name = "DIR", default_value = DEFAULT_MOUNT)]
    mount: PathBuf,
    /// The socket that processes publish to
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Where to keep what must outlast the server
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    state: PathBuf,
    /// Whose members may publish [default: kvm, if there is such a group]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Whose members may look into everybody's directories [default: kvm, if there is such a group]
    #[arg(long, value_name = "GROUP")]
    readers: Option<String>,
    /// Serve /metrics for Prometheus over HTTP at ADDRESS:PORT or unix:PATH; whoever can connect may read it
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<MetricsAddress>,
    /// Have these metrics include those of private directories
    #[arg(long, requires = "listen")]
    include_private: bool,
    /// Metrics that are shown of each vCPU, and not only of each machine, there and in `.stats/prometheus` and
    /// `.stats/openmetrics`: names with commas between, as kvm_user_exits; one that ends in `*` is all that begin so
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    vcpu_metrics: Vec<MetricName>,
    /// Connections that one user may have
    #[arg(long, value_name = "N", default_value_t = Amounts::DEFAULT.connections)]
    max_connections: u64,
    /// Segments that one user may have
    #[arg(long, value_name = "N", default_value_t = Amounts::DEFAULT.segments)]
    max_segments: u64,
    /// MiB of segments that one user may have
    #[arg(long, value_name = "MIB", default_value_t = Amounts::DEFAULT.bytes >> 20)]
    max_mib: u64,
    /// Sources that one user may have
    #[arg(long, value_name = "N", default_value_t = Amounts::DEFAULT.sources)]
    max_sources: u64,
    /// Descriptors of what the kernel counts, one for each VM and vCPU, that one user may have; what is beyond is
    /// sampled by its process, once a second
    #[arg(long, value_name = "N", default_value_t = Amounts::DEFAULT.descriptors)]
    max_descriptors: u64,
    /// MiB of segments that all users together may have
    #[arg(long, value_name = "MIB", default_value_t = HostLimits::DEFAULT.bytes >> 20)]
    max_host_mib: u64,
    /// Sources that all users together may have: a source takes some 3 KiB of the server's memory
    #[arg(long, value_name = "N", default_value_t = HostLimits::DEFAULT.sources)]
    max_host_sources: u64,
    /// Milliseconds of a processor's time in which an earlier server's processes are taken over before anybody is
    /// answered; the rest comes after that, and totals are too small until then
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    take_over_ms: u64,
    /// Files of the mount that may be open at once
    #[arg(long, value_name = "N", default_value_t = 1 << 16)]
    max_open_files: usize,
    /// MiB of text that open files may hold; the whole tree of a thousand machines of 64 vCPUs has some 300
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    max_open_mib: usize,
    /// Files of the mount that one user may have open
    #[arg(long, value_name = "N", default_value_t = 1 << 14)]
    max_user_open_files: usize,
    /// MiB of text that one user's open files may hold: by default the whole tree of such a host, once
    #[arg(long, value_name = "MIB", default_value_t = 320)]
    max_user_open_mib: usize,
    /// Bulk files, and totals over many sources, that one user may read at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_user_bulk_reads: usize,
    /// MiB of the server's memory that one read of a bulk file may take, beside its text
    #[arg(long, value_name = "MIB", default_value_t = TreeOptions::BULK_BYTES >> 20)]
    max_bulk_mib: usize,
    /// MiB that may be kept, for the server that follows, of what all users' processes bring and of what is cleared,
    /// 256 at most; that takes up to eleven times as much of the server's memory
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = MAX_KEPT_MIB,
        value_parser = clap::value_parser!(u64).range(1..=MAX_KEPT_MIB),
    )]
    max_kept_mib: u64,
}

/// Most that can be kept.
const MAX_KEPT_MIB: u64 = (MAX_PAYLOAD >> 20) as u64;

/// The group of those who use virtual machines, on most distributions.
const DEFAULT_GROUP: &str = "kvm";

/// The number of a group that was asked for, or else of the usual one.
fn group(name: Option<&str>) -> Result<Option<u32>, Box<dyn Error>> {
    if let Some(number) = name.and_then(|name| name.parse().ok()) {
        return Ok(Some(number));
    }
    let found = Group::from_name(name.unwrap_or(DEFAULT_GROUP))?;
    match (found, name) {
        (Some(group), _) => Ok(Some(group.gid.as_raw())),
        (None, None) => Ok(None),
        (None, Some(name)) => {
            Err(format!("there is no group `{name}`: `groupadd --system {name}`").into())
        }
    }
}

pub fn run(args: Args) -> Result<(), Box<dyn Error>> {
    log();
    outlive_file_size();
    // Each client is a socket, a pidfd and its segments.
    raise_open_files();
    // Before any thread is there, so that all leave them to the descriptor.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;

    let (store, inherited) = FdStore::of_this_process();
    let this = Owner::this_process();
    let options = ServeOptions {
        mount: args.mount,
        socket: args.socket,
        state: args.state,
        socket_group: group(args.socket_group.as_deref())?,
        owner: Owner { gid: group(args.readers.as_deref())?.unwrap_or(this.gid), ..this },
        limits: Amounts {
            connections: args.max_connections,
            segments: args.max_segments,
            bytes: args.max_mib.saturating_mul(1 << 20),
            sources: args.max_sources,
            descriptors: args.max_descriptors,
        },
        host_limits: HostLimits {
            bytes: args.max_host_mib.saturating_mul(1 << 20),
            sources: args.max_host_sources,
        },
        bulk_bytes: args.max_bulk_mib.saturating_mul(1 << 20),
        metrics: args.listen,
        vcpu_metrics: args.vcpu_metrics,
        includes_private: args.include_private,
        kept_bytes: (args.max_kept_mib << 20) as usize,
        take_over_first: Duration::from_millis(args.take_over_ms),
        mount_options: MountOptions::new()
            .max_open_files(args.max_open_files)
            .max_open_bytes(args.max_open_mib << 20)
            .max_user_open_files(args.max_user_open_files)
            .max_user_open_bytes(args.max_user_open_mib << 20)
            .max_user_bulk_reads(args.max_user_bulk_reads),
        gives_up_rights: true,
        ..ServeOptions::default()
    };
    let mut server = Server::start_again(options, store, inherited)?;
    tracing::info!(
        mount = %server.mount().path().display(),
        socket = %server.options().socket.display(),
        "serving"
    );
    if let Some(metrics) = server.metrics() {
        tracing::info!(%metrics, "serving metrics");
    }
    // Without systemd nobody is told.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    server.run(&ended)?;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    Ok(())
}

/// To stderr: without times and colours where it goes to the journal, which has its own.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A log that can not be written, to a pipe or on a disk that is full, is no reason to end: the subscriber
    // would say that there too, and panic.
    let log = log.with_target(false).with_ansi(is_terminal).log_internal_errors(false);
    if is_terminal { log.init() } else { log.without_time().init() }
}

fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
