//! `vmm run`: one guest in one process.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use statsfs::RegistryError;
use thiserror::Error;

use crate::clock::Moment;
use crate::console::Input;
use crate::flat::FlatError;
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::lifecycle::{Ending, Gate, Lifecycle, MAX_STATUS, OpenOnDrop};
use crate::limits::raise_open_files;
use crate::publish::{Mounted, PublishError, StatsOut};
use crate::seccomp::{self, ConfineError, Duties, EnableError, Thread};
use crate::signals::Signals;
use crate::tree::{KvmTree, TreeError, registry_for};
use crate::vm::{Config, RunningVm, Vm, VmError};

/// Where the statistics of a run go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// To a mount of our own.
    Mount(PathBuf),
    /// Nowhere, on purpose.
    Nowhere,
    /// Nowhere, since nothing was said.
    Unsaid,
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// KVM can not be used.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The program can not be read.
    #[error(transparent)]
    Flat(#[from] FlatError),
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
    let mounted = match publish {
        Publish::Mount(path) => Some(Mounted::new(&registry, path)?),
        Publish::Nowhere => None,
        Publish::Unsaid => {
            eprintln!(
                "vmm: the statistics are not published: say --mount DIR to see them, or --no-publish"
            );
            None
        }
    };
    let duties = Duties { mount: mounted.is_some(), stats_out: stats_out.is_some() };
    let gate = Arc::new(Gate::default());
    let ran = vm.start_behind(&gate).map_err(RunError::from).map(|mut vm| {
        let waited = wait(&vm, signals, &gate, duties);
        vm.stop();
        (vm, waited)
    });
    // Whatever went wrong, the final statistics are written and the mount goes, in this order: the
    // machine is in the tree as long as `ran` has it.
    let written = stats_out.map_or(Ok(()), |out| out.write(&registry, mounted.as_ref()));
    let unmounted = mounted.map_or(Ok(()), Mounted::unmount);
    let (vm, waited) = ran?;
    let signal = waited?;
    written?;
    unmounted?;
    Ok(outcome(&vm, signal))
}

/// How a machine ended that has been stopped, by this signal if not by itself.
pub fn outcome(vm: &RunningVm, signal: Option<u8>) -> Outcome {
    match vm.ending() {
        Some(Ending::Exited(status)) => Outcome::Status(*status),
        Some(Ending::BadStatus(status)) => Outcome::Crashed(format!(
            "it ended with status {status}, but a guest's status is at most {MAX_STATUS}"
        )),
        Some(Ending::Crashed(crash)) => Outcome::Crashed(crash.to_string()),
        Some(Ending::Failed(error)) => Outcome::Failed(error.to_string()),
        Some(Ending::Stopped) | None => match signal {
            Some(signal) => Outcome::Signal(signal),
            None => Outcome::Failed("the machine stopped without a reason: this is a bug".into()),
        },
    }
}

/// Opens the gate that the vCPUs wait at, and waits for the machine's end or a signal, feeding the machine's
/// console meanwhile.
fn wait(
    vm: &RunningVm,
    signals: Signals,
    gate: &Gate,
    duties: Duties,
) -> Result<Option<u8>, RunError> {
    // Whatever goes wrong: stopping the machine waits for that.
    let all_ready = OpenOnDrop(gate);
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new()?;
    let signals = Arc::new(Mutex::new(signals));
    events.add_subscriber(signals.clone());
    events.add_subscriber(Arc::new(Mutex::new(Ends(vm.lifecycle().clone()))));
    let (com1, room) =
        vm.com1().map_err(|error| RunError::Host { what: "the guest's console", error })?;
    events.add_subscriber(Arc::new(Mutex::new(Input::new(com1, room))));
    seccomp::confine(Thread::Main(duties))?;
    drop(all_ready);
    loop {
        events.run()?;
        let signal = signals.lock().unwrap_or_else(PoisonError::into_inner).received();
        if signal.is_some() || vm.lifecycle().is_stopping() {
            return Ok(signal);
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
