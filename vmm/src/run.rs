//! `vmm run`: one guest in one process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use statsfs::RegistryError;
use thiserror::Error;

use crate::clock::Moment;
use crate::console::Input;
use crate::flat::FlatError;
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::kernel::KernelError;
use crate::lifecycle::{Ending, Gate, Lifecycle, MAX_STATUS, OpenOnDrop, Reset};
use crate::limits::raise_open_files;
use crate::publish::{Publish, PublishError, Published, StatsOut};
use crate::seccomp::{self, ConfineError, Duties, EnableError, Thread};
use crate::signals::Signals;
use crate::terminal::{self, Terminal};
use crate::tree::{KvmTree, TreeError, registry_for};
use crate::trim;
use crate::vm::{Config, Guest, RunningVm, Vm, VmError};

/// Why a command failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// KVM can not be used.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The program can not be read.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// The kernel can not be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The machine can not be made.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The statistics can not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The statistics can not be set up.
    #[error("the statistics can not be set up: {0}")]
    Registry(#[from] RegistryError),
    /// The statistics' tree can not be set up.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Nobody said where to mount.
    #[error(
        "XDG_RUNTIME_DIR is not set, so there is no place to mount: say where with --mount DIR"
    )]
    NoMountPoint,
    /// Forbidden system calls can not be caught.
    #[error(transparent)]
    Seccomp(#[from] EnableError),
    /// The main thread can not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Signals can not be received.
    #[error("signals can not be received: {0}")]
    Signals(#[source] io::Error),
    /// Something of the host is missing.
    #[error("{what}: {error}")]
    Host {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(#[from] event_manager::Error),
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended with this status, at most [`MAX_STATUS`].
    Status(u8),
    /// The guest crashed.
    Crashed(String),
    /// The VMM could not go on.
    Failed(String),
    /// The guest reset itself by a triple fault of this vCPU: what a kernel does that has no better way, and
    /// what becomes of one that does not even get to its own exception handlers.
    TripleFault {
        /// The vCPU.
        vcpu: u32,
    },
    /// A signal ended it.
    Signal(u8),
}

/// Makes and runs one machine, until it ends or a signal comes. Its threads and its mount are gone then,
/// and its final statistics are written.
///
/// # Errors
/// [`RunError`]; whatever was started is stopped again.
pub fn run(
    config: &Config,
    publish: &Publish,
    stats_out: Option<StatsOut>,
    start: Moment,
) -> Result<Outcome, RunError> {
    raise_open_files();
    let signals = Signals::receive().map_err(RunError::Signals)?;
    let hypervisor = Hypervisor::open()?;
    let registry = registry_for(config.vcpus)?;
    let tree = KvmTree::register(&registry)?;
    let vm = Vm::new(&hypervisor, &tree, config, start)?;
    let published = Published::new(&registry, publish, config.public)?;
    let terminal = match config.guest {
        Guest::Kernel { .. } => console_terminal()?,
        // A flat guest has no use for keys: they stay the user's.
        Guest::Flat(_) => None,
    };
    let duties = Duties { mount: published.mounted().is_some(), stats_out: stats_out.is_some() };
    let gate = Arc::new(Gate::default());
    let ran = vm.start_behind(&gate).map_err(RunError::from).map(|mut vm| {
        let waited = wait(&vm, signals, terminal, &gate, duties);
        vm.stop();
        if let Some(lost) = vm.lost_output() {
            eprintln!("vmm: {lost}");
        }
        (vm, waited)
    });
    // Whatever went wrong, the final statistics are written and the mount goes, in this order: the
    // machine is in the tree as long as `ran` has it.
    let written = stats_out.map_or(Ok(()), |out| out.write(&registry, published.mounted()));
    let ended = published.end();
    let (vm, waited) = ran?;
    let signal = waited?;
    written?;
    ended?;
    Ok(outcome(&vm, signal))
}

const PANICKED: &str = "its kernel panicked";

/// How a machine ended that has been stopped, by this signal if not by itself.
pub fn outcome(vm: &RunningVm, signal: Option<u8>) -> Outcome {
    match vm.ending() {
        Some(Ending::Exited(status)) => Outcome::Status(*status),
        Some(Ending::BadStatus(status)) => Outcome::Crashed(format!(
            "it ended with status {status}, but a guest's status is at most {MAX_STATUS}"
        )),
        Some(Ending::PoweredOff) => Outcome::Status(0),
        Some(Ending::Panicked) => Outcome::Crashed(PANICKED.into()),
        Some(Ending::Reset(_)) if vm.has_panicked() => Outcome::Crashed(PANICKED.into()),
        Some(Ending::Reset(Reset::TripleFault { vcpu })) => Outcome::TripleFault { vcpu: *vcpu },
        Some(Ending::Reset(Reset::I8042 | Reset::Acpi)) => Outcome::Status(0),
        Some(Ending::Crashed(crash)) => Outcome::Crashed(crash.to_string()),
        Some(Ending::Failed(error)) => Outcome::Failed(error.to_string()),
        Some(Ending::DeviceFailed(error)) => Outcome::Failed(error.to_string()),
        Some(Ending::Stopped) | None => match signal {
            Some(signal) => Outcome::Signal(signal),
            None => Outcome::Failed("the machine stopped without a reason: this is a bug".into()),
        },
    }
}

const TERMINAL: fn(io::Error) -> RunError =
    |error| RunError::Host { what: "the terminal can not be made the guest's console", error };

/// The terminal on standard input, if that is one, raw.
fn console_terminal() -> Result<Option<Terminal>, RunError> {
    let Some(terminal) = Terminal::of_stdin() else { return Ok(None) };
    eprintln!("vmm: this terminal is the guest's console: Ctrl-A x ends the guest");
    seccomp::before_the_end(terminal::restore);
    terminal.make_raw().map_err(TERMINAL)?;
    Ok(Some(terminal))
}

/// Opens the gate that the vCPUs wait at, and waits for the machine's end or a signal, feeding the machine's
/// console meanwhile. A user at the `terminal` can end the machine as with SIGINT.
fn wait(
    vm: &RunningVm,
    signals: Signals,
    terminal: Option<Terminal>,
    gate: &Gate,
    duties: Duties,
) -> Result<Option<u8>, RunError> {
    // Whatever goes wrong: stopping the machine waits for that.
    let all_ready = OpenOnDrop(gate);
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new()?;
    let signals = Arc::new(Mutex::new(signals));
    events.add_subscriber(signals.clone());
    events.add_subscriber(Arc::new(Mutex::new(Ends(vm.lifecycle().clone()))));
    let console = |error| RunError::Host { what: "the guest's console", error };
    let (com1, room) = vm.com1().map_err(console)?;
    let input = Input::new(com1, room.try_clone().map_err(console)?, terminal.is_some());
    let input = Arc::new(Mutex::new(input));
    events.add_subscriber(input.clone());
    trim::give_back();
    seccomp::confine(Thread::Main(duties))?;
    drop(all_ready);
    loop {
        // Nothing tells that a VMM in the background has come to the foreground.
        let in_background = terminal.as_ref().is_some_and(|terminal| !terminal.is_raw());
        events.run_with_timeout(if in_background { 500 } else { -1 })?;
        let mut signals = signals.lock().unwrap_or_else(PoisonError::into_inner);
        let signal = signals.received();
        if signal.is_some() || vm.lifecycle().is_stopping() {
            return Ok(signal);
        }
        if input.lock().unwrap_or_else(PoisonError::into_inner).wants_to_quit() {
            return Ok(Some(libc::SIGINT as u8));
        }
        if let Some(terminal) = &terminal
            && (signals.take_continued() || in_background)
        {
            // After a stop, the shell's mode is in force.
            terminal.make_raw().map_err(TERMINAL)?;
            if terminal.is_raw() {
                // There may be input now that could not be read before.
                let _ = room.write(1);
            }
        }
    }
}

/// Wakes the event loop when a machine ends.
pub struct Ends(pub Arc<Lifecycle>);

impl MutEventSubscriber for Ends {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Only the wake-up matters.
        let _ = self.0.event().read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(self.0.event(), EventSet::IN)).expect("an eventfd can be waited for");
    }
}
