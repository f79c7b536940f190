//! A virtual machine: its memory, vCPUs and devices, and its life.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use devices::stats::{ExitPortCounters, ExitPortStats, SerialCounters, SerialStats};
use devices::trigger::{EventFdTrigger, NotConnected};
use devices::{ExitPort, SerialPort, serial};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use statsfs::Slot;
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use crate::accounting::{Account, Counted, Detail, Off, Timed};
use crate::arch::x86_64::{cpuid, layout, regs};
use crate::bus::{BusError, Devices, Space, VcpuIo};
use crate::clock::{Clock, Moment};
use crate::console::{Com, Output};
use crate::flat::{FlatError, FlatProgram};
use crate::hypervisor::Hypervisor;
use crate::kick;
use crate::lifecycle::{Ending, Gate, Lifecycle, MAX_STATUS};
use crate::sched::VcpuSched;
use crate::seccomp::{Thread, confine};
use crate::stats::{VcpuStats, VmStartStats, VmStats};
use crate::tree::{KvmTree, MachineTree, TreeError};
use crate::vcpu::Vcpu;

/// The least memory: room for tables, stacks and a program.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The most memory: what x86-64 CPUs have long been able to address (46 bits), less the gap.
pub const MAX_MEMORY: u64 = (1 << 46) - (1 << 32);
/// Memory comes in pages of this size.
pub const PAGE_SIZE: u64 = 4096;

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name: as [`check_name`](crate::tree::check_name) has it.
    pub name: String,
    /// Bytes of memory: whole pages, [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: u64,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`](layout::MAX_VCPUS).
    pub vcpus: u32,
    /// What it runs.
    pub program: FlatProgram,
    /// Whether the serial console goes to standard output, or nowhere.
    pub console: bool,
    /// How much is accounted per exit.
    pub accounting: Detail,
}

/// The values of [`VmStats::vm_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It is being made.
    Made = 0,
    /// Its vCPUs run.
    Running = 1,
    /// Its vCPUs are being stopped.
    Stopping = 2,
    /// It has ended.
    Ended = 3,
}

/// Why a machine can not be made or started.
#[derive(Debug, Error)]
pub enum VmError {
    /// KVM refuses.
    #[error("KVM refuses {what}: {error}")]
    Kvm {
        /// What it was asked for.
        what: String,
        /// Why.
        error: errno::Error,
    },
    /// There is no memory.
    #[error("{size} bytes of guest memory can not be mapped: {error}: give less with --memory")]
    Memory {
        /// How much was wanted.
        size: u64,
        /// Why.
        error: vm_memory::mmap::FromRangesError,
    },
    /// The number of vCPUs is out of range.
    #[error("a guest has 1 to {max} vCPUs, not {0}", max = layout::MAX_VCPUS)]
    Vcpus(u32),
    /// The size of memory is out of range.
    #[error(
        "a guest has {MIN_MEMORY} to {MAX_MEMORY} bytes of memory in whole pages of 4096 bytes, not {0}"
    )]
    MemorySize(u64),
    /// A resource of the host is missing.
    #[error("{what} can not be had: {error}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The program can not be loaded.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// The devices do not fit together.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The statistics can not be set up.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn kvm(what: impl Into<String>) -> impl FnOnce(errno::Error) -> VmError {
    move |error| VmError::Kvm { what: what.into(), error }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |error| VmError::Host { what, error }
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
    _memory: GuestMemoryMmap,
    lifecycle: Arc<Lifecycle>,
    com1: Arc<Com>,
    com1_room: EventFd,
    slot: Slot<VmStats>,
    tree: MachineTree,
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
        let tree = tree.add_machine(&config.name)?;
        let slot = tree.add_values::<VmStats>()?;
        slot.vm_memory_bytes.set(config.memory);
        slot.vm_vcpus.set(config.vcpus);
        let mut start_slot = Some(tree.add_values::<VmStartStats>()?);

        let fd = hypervisor.kvm().create_vm().map_err(kvm("a machine (KVM_CREATE_VM)"))?;
        fd.set_tss_address(layout::KVM_TSS.0 as usize).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        let memory = map_memory(&fd, config.memory)?;
        let mode = config.program.load(&memory)?;

        let lifecycle = Arc::new(Lifecycle::new().map_err(host("an eventfd"))?);
        let (devices, com1, com1_room) = make_devices(config, &tree, &lifecycle)?;
        let devices = Arc::new(devices);

        let mut clock = None;
        let mut vcpus = Vec::new();
        for index in 0..config.vcpus {
            let slots = tree.add_vcpu(index, devices.names())?;
            let vcpu = fd
                .create_vcpu(index.into())
                .map_err(kvm(format!("vCPU {index} (KVM_CREATE_VCPU)")))?;
            vcpu.set_cpuid2(&cpuid::for_vcpu(hypervisor.cpuid(), index))
                .map_err(kvm(format!("the CPUID of vCPU {index} (KVM_SET_CPUID2)")))?;
            regs::set_up_flat(&vcpu, mode, index)
                .map_err(kvm(format!("the registers of vCPU {index}")))?;
            clock.get_or_insert_with(|| Clock::new(vcpu.get_tsc_khz().ok(), start));
            let io = VcpuIo::new(devices.clone(), slots.devices, slots.bus);
            let start = start_slot.take().map(|slot| (slot, start));
            let vcpu = Vcpu::new(index, vcpu, io, lifecycle.clone(), start)
                .map_err(host("a vCPU's run page"))?;
            vcpus.push((vcpu, slots.vcpu, slots.sched));
        }
        let clock = clock.unwrap_or_else(Clock::monotonic);
        let machine = Machine { _fd: fd, _memory: memory, lifecycle, com1, com1_room, slot, tree };
        machine.set_state(State::Made);
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
        let mut running = RunningVm { threads: Vec::new(), machine };
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

fn map_memory(fd: &VmFd, size: u64) -> Result<GuestMemoryMmap, VmError> {
    let ranges: Vec<_> = layout::memory_ranges(size)
        .into_iter()
        .map(|(start, size)| (start, size as usize))
        .collect();
    let memory =
        GuestMemoryMmap::from_ranges(&ranges).map_err(|error| VmError::Memory { size, error })?;
    for (slot, region) in (0..).zip(memory.iter()) {
        let userspace_addr = region.as_ptr() as u64;
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr,
            flags: 0,
        };
        // SAFETY: the range is a mapping of ours that stays in place until the machine's file is
        // closed: `Machine` and `Vm` own both, and drop the files first.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(kvm(format!("{} bytes of guest memory", region.memory_size)))?;
    }
    Ok(memory)
}

fn make_devices(
    config: &Config,
    tree: &MachineTree,
    lifecycle: &Arc<Lifecycle>,
) -> Result<(Devices, Arc<Com>, EventFd), VmError> {
    let event = || EventFd::new(libc::EFD_NONBLOCK).map_err(host("an eventfd"));
    let mut devices = Devices::new();

    let output = if config.console {
        Output::stdout(lifecycle.clone()).map_err(host("the standard output"))?
    } else {
        Output::Discard
    };
    let room = event()?;
    let trigger = EventFdTrigger::new(room.try_clone().map_err(host("an eventfd"))?);
    let counters = SerialCounters::new(tree.add_device::<SerialStats>("serial0")?);
    let com1: Arc<Com> = Arc::new(SerialPort::new(NotConnected, counters, output, trigger));
    devices.insert("serial0", Space::Port, layout::COM1, serial::REGISTERS, com1.clone())?;

    let counters = ExitPortCounters::new(tree.add_device::<ExitPortStats>("exit0")?);
    let ends = lifecycle.clone();
    let exit = ExitPort::new(counters, move |status| {
        ends.end(if status <= MAX_STATUS {
            Ending::Exited(status)
        } else {
            Ending::BadStatus(status)
        });
    });
    devices.insert("exit0", Space::Port, layout::EXIT_PORT, 1, Arc::new(exit))?;
    Ok((devices, com1, room))
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
    /// The name of the machine's source: `<pid>-<name>`.
    pub fn source_name(&self) -> &str {
        self.machine.tree.name()
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
        Ok((self.machine.com1.clone(), self.machine.com1_room.try_clone()?))
    }

    /// Stops the machine, if it has not ended by itself, and waits for its vCPUs' threads. Its
    /// statistics are final then, and stay in the tree until it is dropped.
    pub fn stop(&mut self) {
        self.machine.set_state(State::Stopping);
        self.machine.lifecycle.end(Ending::Stopped);
        self.machine.lifecycle.wait_for_threads(|| self.threads.iter().for_each(kick::kick));
        for thread in self.threads.drain(..) {
            // A panic has been noted as the machine's ending.
            let _ = thread.join();
        }
        self.machine.set_state(State::Ended);
    }

    /// How the machine ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.machine.lifecycle.ending()
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
