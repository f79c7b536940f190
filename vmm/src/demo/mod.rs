//! `vmm demo`: built-in guests, their statistics mounted, and a live table read from the mount.

pub mod guest;
pub mod sample;
pub mod table;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use statsfs::Registry;
use statsfs::host::PublishState;

use self::sample::{Row, Sampler};
use self::table::{Display, render};
use crate::accounting::Detail;
use crate::clock::Moment;
use crate::hypervisor::Hypervisor;
use crate::lifecycle::{Ending, Gate, OpenOnDrop};
use crate::limits;
use crate::publish::{Mounted, Publish, Published};
use crate::run::{Ends, Outcome, RunError, outcome};
use crate::seccomp::{self, Duties, Thread};
use crate::signals::Signals;
use crate::tree::{KvmTree, registry_for};
use crate::vm::{Config, Guest, MIN_MEMORY, RunningVm, Vm};

/// How often the table is shown.
const REFRESH: Duration = Duration::from_secs(1);

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long it runs; `None` for ever.
    pub duration: Option<Duration>,
    /// Number of guests.
    pub guests: u32,
    /// Number of vCPUs of each.
    pub vcpus: u32,
    /// Whether to show only where the statistics are, and the totals at the end.
    pub quiet: bool,
    /// Where the statistics go.
    pub publish: Place,
    /// Whether everybody may look into the guests' directories.
    pub public: bool,
}

/// Where the demo's statistics go: it reads them from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a mount of our own.
    Mount(PathBuf),
    /// To the server at this socket if there is one, or else to a mount of our own, if there is a place for it.
    HostOrMount(Option<PathBuf>, Option<PathBuf>),
}

/// How long a server may take to answer until the demo mounts by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Publishes, and answers where that can be seen, and whether nobody else's guests are there.
fn publish(registry: &Registry, options: &Options) -> Result<(Published, PathBuf, bool), RunError> {
    let mount = match &options.publish {
        Place::Mount(mount) => mount,
        Place::HostOrMount(socket, mount) => {
            let host = Publish::Host(socket.clone());
            if let Published::Host(publisher) = Published::quietly(registry, &host, options.public)?
                && let PublishState::Published { mount, .. } = publisher.wait_tried(PATIENCE)
            {
                return Ok((Published::Host(publisher), mount, false));
            }
            mount.as_ref().ok_or(RunError::NoMountPoint)?
        }
    };
    let mounted = Mounted::new(registry, mount)?;
    let mount = mounted.path().to_path_buf();
    Ok((Published::Mounted(Box::new(mounted)), mount, true))
}

/// Runs the demo, until its time is over, a signal comes or a guest ends. Guests and mount are gone then.
///
/// # Errors
/// [`RunError`]; whatever was started is stopped again.
pub fn run(options: &Options) -> Result<Outcome, RunError> {
    limits::make_the_best();
    let signals = Signals::receive().map_err(RunError::Signals)?;
    let hypervisor = Hypervisor::open()?;
    let registry = registry_for(options.guests * options.vcpus)?;
    let tree = KvmTree::register(&registry)?;
    let made = (0..options.guests)
        .map(|i| {
            let config = Config {
                name: format!("demo{i}"),
                memory: MIN_MEMORY,
                vcpus: options.vcpus,
                guest: Guest::Flat(guest::program()),
                console: false,
                public: options.public,
                accounting: Detail::Full,
            };
            Ok((Vm::new(&hypervisor, &tree, &config, Moment::now())?, config.name))
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    let (published, mount, is_alone) = publish(&registry, options)?;
    // A server may be started again meanwhile, of which its publishers notice nothing.
    let patience = if is_alone { Duration::ZERO } else { PATIENCE };
    tree.tell_what_is_missing();
    let gate = Arc::new(Gate::default());
    let mut guests = Vec::new();
    let all_started = OpenOnDrop(&gate);
    for (vm, name) in made {
        guests.push((vm.start_behind(&gate)?, name));
    }
    let names: Vec<_> = guests.iter().map(|(vm, name)| (vm.directory(), name.clone())).collect();
    let mut sampler = Sampler::new(&mount, &names, options.vcpus, is_alone).map_err(reading)?;

    let started = Instant::now();
    let watched = introduce(options, &mount, &names)
        .map_err(output)
        .and_then(|()| watch(options, is_alone, &guests, signals, &mut sampler, all_started));
    // All are told before the first is waited for.
    guests.iter().for_each(|(vm, _)| vm.lifecycle().end(Ending::Stopped));
    guests.iter_mut().for_each(|(vm, _)| vm.stop());
    let elapsed = started.elapsed();
    // Read from the mount too, now that nothing counts any more.
    let totals = sampler.sample_within(patience);
    let ended = published.end();
    let signal = match watched {
        // Whoever read the table has seen enough.
        Err(RunError::Host { error, .. }) if error.kind() == io::ErrorKind::BrokenPipe => {
            ended?;
            return Ok(Outcome::Status(0));
        }
        watched => watched?,
    };
    ended?;
    tree.tell_what_is_missing();
    print_totals(totals.map_err(reading)?, elapsed, is_alone).map_err(output)?;

    let ended = guests.iter().map(|(vm, _)| outcome(vm, signal.or(Some(0))));
    let by_itself = ended.into_iter().find(|outcome| !matches!(outcome, Outcome::Signal(_)));
    Ok(match (by_itself, signal) {
        (Some(outcome), _) => outcome,
        // Without a duration this is how it is meant to end.
        (None, Some(signal)) if options.duration.is_none() && i32::from(signal) == libc::SIGINT => {
            Outcome::Status(0)
        }
        (None, Some(signal)) => Outcome::Signal(signal),
        (None, None) => Outcome::Status(0),
    })
}

fn output(error: io::Error) -> RunError {
    // Else it would look as if there were too many threads.
    let full = error.kind() == io::ErrorKind::WouldBlock;
    let error = if full { io::Error::other("it is full, and non-blocking") } else { error };
    RunError::Host { what: "the standard output can not be written", error }
}

fn reading(error: io::Error) -> RunError {
    RunError::Host { what: "the mounted statistics can not be read", error }
}

fn introduce(options: &Options, mount: &Path, names: &[(String, String)]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let dir = mount.display();
    writeln!(
        out,
        "{} guests of {} vCPUs; statistics are mounted at {dir}",
        options.guests, options.vcpus
    )?;
    if let (false, Some((first, _))) = (options.quiet, names.first()) {
        writeln!(out, "In another shell:")?;
        writeln!(out, "  ls {dir}/kvm/{first}")?;
        writeln!(out, "  cat {dir}/kvm/user_exits")?;
        writeln!(out, "  grep -r . {dir}/kvm/{first}/vcpu0")?;
        writeln!(out, "  echo 0 > {dir}/kvm/{first}/vcpu0/user_exit_io_out")?;
        writeln!(out)?;
    }
    out.flush()
}

/// Lets the guests run, and shows the table until the demo ends. Returns the signal that ended it. Where the mount is not
/// our own, there is no table as long as it can not be read.
fn watch(
    options: &Options,
    is_alone: bool,
    guests: &[(RunningVm, String)],
    signals: Signals,
    sampler: &mut Sampler,
    all_started: OpenOnDrop<'_>,
) -> Result<Option<u8>, RunError> {
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new()?;
    let signals = Arc::new(Mutex::new(signals));
    events.add_subscriber(signals.clone());
    for (vm, _) in guests {
        events.add_subscriber(Arc::new(Mutex::new(Ends(vm.lifecycle().clone()))));
    }
    let started = Instant::now();
    let end = options.duration.map(|duration| started + duration);
    let mut refresh = started + REFRESH;
    let mut display = Display::new();
    seccomp::confine(Thread::Main(Duties { mount: true, stats_out: false }))?;
    drop(all_started);
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(None);
        }
        if now >= refresh {
            if !options.quiet {
                match sampler.sample() {
                    Ok(rows) => display.show(&rows).map_err(output)?,
                    Err(error) if is_alone => return Err(reading(error)),
                    Err(_) => {}
                }
            }
            // In step, but without catching up on what was missed while the process was stopped.
            while refresh <= now {
                refresh += REFRESH;
            }
        }
        let next = end.map_or(refresh, |end| end.min(refresh));
        let wait = next.saturating_duration_since(Instant::now());
        // Rounded up, so that the loop does not spin through the last millisecond.
        events.run_with_timeout(wait.as_micros().div_ceil(1000) as i32)?;
        let signal = signals.lock().unwrap_or_else(PoisonError::into_inner).received();
        if signal.is_some() || guests.iter().any(|(vm, _)| vm.lifecycle().is_stopping()) {
            return Ok(signal);
        }
    }
}

fn print_totals(mut rows: Vec<Row>, elapsed: Duration, was_mounted: bool) -> io::Result<()> {
    for row in &mut rows {
        row.rate = row.sample.exits as f64 / elapsed.as_secs_f64().max(1e-9);
    }
    let mut out = io::stdout().lock();
    let now = if was_mounted {
        "statistics are no longer mounted"
    } else {
        "they stay in the host's totals"
    };
    let seconds = elapsed.as_secs_f64();
    writeln!(out, "Totals after {seconds:.1} s, each since its last clear; {now}")?;
    for line in render(&rows, Display::new().width_now()) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}
