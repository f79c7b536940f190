//! A virtual machine: its memory, vCPUs and devices, and its life.

mod error;
mod hardware;
mod memory;
mod vcpus;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VmFd;
use statsfs::{LabelSet, Slot};
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

pub use error::VmError;
use error::{host, kvm};
use hardware::{Board, Com1, Hardware};

use crate::accounting::{Account, Counted, Detail, Off, Timed};
use crate::arch::x86_64::layout;
use crate::bus::VcpuIo;
use crate::clock::{Clock, Moment};
use crate::console::Com;
use crate::flat::FlatProgram;
use crate::hypervisor::Hypervisor;
use crate::kernel::{self, Kernel};
use crate::kick;
use crate::lifecycle::{Ending, Gate, Lifecycle};
use crate::sched::VcpuSched;
use crate::seccomp::{Thread, confine};
use crate::stats::{VcpuStats, VmStartStats, VmStats};
use crate::tree::{KvmTree, MachineTree};
use crate::vcpu::{OnShutdown, Vcpu};
use crate::virtio::{VirtioConfig, VirtioDevices};

/// The least memory: room for tables, stacks and a program.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The most memory: what is above the gap is one slot, and KVM's have less than 2^31 pages
/// (KVM_MEM_MAX_NR_PAGES).
pub const MAX_MEMORY: u64 = 8 << 40;
/// Memory comes in pages of this size.
pub const PAGE_SIZE: u64 = 4096;

/// What a machine is to be.
#[derive(Debug)]
pub struct Config {
    /// Its name: as [`check_name`](crate::tree::check_name) has it.
    pub name: String,
    /// Bytes of memory: whole pages, [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: u64,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`](layout::MAX_VCPUS).
    pub vcpus: u32,
    /// What it runs.
    pub guest: Guest,
    /// Whether the serial console goes to standard output, or nowhere.
    pub console: bool,
    /// Whether everybody may look into its statistics' directory, and not only its user and the readers' group.
    pub public: bool,
    /// How much is accounted per exit.
    pub accounting: Detail,
}

/// What a machine runs.
#[derive(Debug)]
pub enum Guest {
    /// A program without an operating system, on a machine without interrupt controllers.
    Flat(FlatProgram),
    /// Linux, on a machine that is enough of a PC for it.
    Kernel {
        /// The kernel.
        kernel: Kernel,
        /// What the machine has beside a PC's devices.
        virtio: VirtioConfig,
    },
}

/// The values of [`VmStats::vm_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, LabelSet)]
#[labels(key = "state")]
#[repr(u8)]
pub enum State {
    /// It is made, and has not run yet.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are paused; no machine can be paused yet.
    Paused,
    /// Its vCPUs have stopped for good.
    Stopped,
}

/// A machine that is ready to be started.
pub struct Vm {
    // In the order in which they must go: the vCPUs' files before the memory that their guest uses.
    vcpus: Vec<(Vcpu, Slot<VcpuStats>, Option<VcpuSched>)>,
    machine: Machine,
    clock: Clock,
    accounting: Detail,
}

/// What stays of a machine while its vCPUs run on their threads.
struct Machine {
    _fd: VmFd,
    memory: GuestMemoryMmap,
    lifecycle: Arc<Lifecycle>,
    com1: Com1,
    virtio: Option<VirtioDevices>,
    /// Whether the guest's kernel tells by the way it resets the machine whether it has panicked.
    tells_panics: bool,
    slot: Slot<VmStats>,
    tree: MachineTree,
}

impl Guest {
    /// What it means when a vCPU shuts down.
    fn on_shutdown(&self) -> OnShutdown {
        match self {
            Self::Flat(_) => OnShutdown::Crash,
            // What shuts a PC's CPU down makes its chipset reset it.
            Self::Kernel { .. } => OnShutdown::Reset,
        }
    }
}

impl Machine {
    fn set_state(&self, state: State) {
        self.slot.vm_state.set(state as u8);
    }
}

impl Vm {
    /// Makes a machine. Its start-up time is counted from `start`.
    ///
    /// # Errors
    /// [`VmError`] says what can not be had.
    pub fn new(
        hypervisor: &Hypervisor,
        tree: &KvmTree,
        config: &Config,
        start: Moment,
    ) -> Result<Self, VmError> {
        if !(1..=layout::MAX_VCPUS).contains(&config.vcpus) {
            return Err(VmError::Vcpus(config.vcpus));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&config.memory)
            || !config.memory.is_multiple_of(PAGE_SIZE)
        {
            return Err(VmError::MemorySize(config.memory));
        }
        let tree = tree.add_machine(&config.name, config.public)?;
        let slot = tree.add_values::<VmStats>()?;
        slot.vm_memory_bytes.set(config.memory);
        slot.vm_vcpus.set(config.vcpus);
        let mut start_slot = Some(tree.add_values::<VmStartStats>()?);

        let fd = hypervisor.kvm().create_vm().map_err(kvm("a machine (KVM_CREATE_VM)"))?;
        tree.add_kernel_values(hypervisor.kvm(), &fd)?;
        fd.set_tss_address(layout::KVM_TSS.0 as usize).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        let lifecycle = Arc::new(Lifecycle::new().map_err(host("an eventfd"))?);
        let memory = memory::map(&fd, config.memory)?;
        let board =
            Board { hypervisor, fd: &fd, memory: &memory, tree: &tree, lifecycle: &lifecycle };
        let Hardware { devices, com1, virtio, start: start_state } = match &config.guest {
            Guest::Flat(program) => board.make_flat(program, config.console)?,
            Guest::Kernel { kernel, virtio } => {
                board.make_kernel(kernel, virtio, config.vcpus, config.console)?
            }
        };
        let devices = Arc::new(devices);

        let mut clock = None;
        let mut vcpus = Vec::new();
        for index in 0..config.vcpus {
            let slots = tree.add_vcpu(index, devices.names())?;
            let vcpu = vcpus::make(&fd, hypervisor, start_state, index)?;
            tree.add_vcpu_kernel_values(hypervisor.kvm(), &slots, &vcpu)?;
            clock.get_or_insert_with(|| Clock::new(vcpu.get_tsc_khz().ok(), start));
            let io = VcpuIo::new(devices.clone(), slots.devices, slots.bus);
            let start = start_slot.take().map(|slot| (slot, start));
            let on_shutdown = config.guest.on_shutdown();
            let vcpu = Vcpu::new(index, vcpu, io, lifecycle.clone(), on_shutdown, start)
                .map_err(host("a vCPU's run page"))?;
            vcpus.push((vcpu, slots.vcpu, slots.sched));
        }
        let clock = clock.unwrap_or_else(Clock::monotonic);
        let tells_panics = match &config.guest {
            Guest::Flat(_) => false,
            Guest::Kernel { kernel, .. } => kernel::cmdline::tells_panics(kernel.cmdline()),
        };
        let machine =
            Machine { _fd: fd, memory, lifecycle, com1, virtio, tells_panics, slot, tree };
        machine.set_state(State::Created);
        Ok(Self { vcpus, machine, clock, accounting: config.accounting })
    }

    /// Starts the machine: each vCPU on a thread of its own.
    ///
    /// # Errors
    /// [`VmError`] if a thread can not be had; the machine is then stopped again.
    pub fn start(self) -> Result<RunningVm, VmError> {
        let gate = Arc::new(Gate::default());
        gate.open();
        self.start_behind(&gate)
    }

    /// As [`start`](Self::start), but the vCPUs wait for `gate` to be opened. Stopping the machine waits
    /// for that too.
    ///
    /// # Errors
    /// [`VmError`] if a thread can not be had; the machine is then stopped again.
    pub fn start_behind(self, gate: &Arc<Gate>) -> Result<RunningVm, VmError> {
        kick::install_handler().map_err(host("a signal handler"))?;
        let Self { vcpus, machine, clock, accounting } = self;
        machine.set_state(State::Running);
        // Stops again what is started, should something fail.
        let mut running = RunningVm { threads: Vec::new(), machine };
        running.machine.virtio.as_mut().map_or(Ok(()), VirtioDevices::start)?;
        for (vcpu, slot, sched) in vcpus {
            let (lifecycle, gate) = (running.machine.lifecycle.clone(), gate.clone());
            let thread = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index()))
                .spawn(move || {
                    let _running = lifecycle.thread();
                    let _watched = sched.map(VcpuSched::start);
                    if let Err(error) = confine(Thread::Vcpu) {
                        return lifecycle.end(Ending::Failed(error.into()));
                    }
                    gate.pass();
                    run_vcpu(vcpu, slot, clock, accounting);
                })
                .map_err(host("a vCPU's thread"))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

fn run_vcpu(vcpu: Vcpu, slot: Slot<VcpuStats>, clock: Clock, accounting: Detail) {
    // Whoever started us may have blocked it.
    let _ = unblock_signal(SIGRTMIN());
    // SAFETY: no arguments and no effects.
    slot.thread_id.set(unsafe { libc::gettid() } as u32);
    fn run(vcpu: Vcpu, mut account: impl Account) {
        vcpu.run(&mut account);
    }
    match accounting {
        Detail::Full => run(vcpu, Timed::new(slot, clock)),
        Detail::Counts => run(vcpu, Counted::new(slot)),
        Detail::Off => run(vcpu, Off),
    }
}

/// A machine whose vCPUs run. Dropping it stops it.
pub struct RunningVm {
    threads: Vec<JoinHandle<()>>,
    machine: Machine,
}

impl RunningVm {
    /// The name of the machine's directory in the statistics: `<pid>-<name>`.
    pub fn directory(&self) -> String {
        self.machine.tree.directory()
    }

    /// What tells of the machine's end.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.machine.lifecycle
    }

    /// The machine's serial port, and the event that says that there is room for input.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn com1(&self) -> io::Result<(Arc<Com>, EventFd)> {
        let Com1 { port, room, .. } = &self.machine.com1;
        Ok((port.clone(), room.try_clone()?))
    }

    /// Stops the machine, if it has not ended by itself, and waits for the threads of its vCPUs and devices.
    /// Its statistics are final then, and stay in the tree until it is dropped.
    pub fn stop(&mut self) {
        self.machine.lifecycle.end(Ending::Stopped);
        self.machine.lifecycle.wait_for_threads(|| self.threads.iter().for_each(kick::kick));
        for thread in self.threads.drain(..) {
            // A panic has been noted as the machine's ending.
            let _ = thread.join();
        }
        // The requests that they are at are still done.
        if let Some(virtio) = &mut self.machine.virtio {
            virtio.stop();
        }
        self.machine.set_state(State::Stopped);
    }

    /// What its console lost so far, to be said to the user; `None` if nothing.
    pub fn lost_output(&self) -> Option<String> {
        self.machine.com1.lost.message()
    }

    /// How the machine ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.machine.lifecycle.ending()
    }
}

impl RunningVm {
    /// Whether a kernel that has reset the machine did so because it panicked, as far as it tells. Looked
    /// for when the machine has [stopped](Self::stop).
    pub fn has_panicked(&self) -> bool {
        let flag = || self.machine.memory.read_obj::<u16>(layout::RESET_FLAG).ok();
        self.machine.tells_panics && flag() == Some(layout::WARM_RESET)
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
