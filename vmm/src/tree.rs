//! The VMM's part of the statistics tree: which source has which values, and where it hangs.
//!
//! ```text
//! kvm/                      totals over all machines
//!   <pid>-<name>/           one machine; the tree puts the process id there
//!     serial0/ i8042/ …     its devices
//!     vcpu0/ …              its vCPUs
//!       serial0/ i8042/ …   the devices as this vCPU used them
//! ```

use std::sync::{Arc, Once};

use devices::stats::{
    AcpiPowerStats, ExitPortStats, I8042Stats, PvpanicStats, SerialInterruptStats, SerialStats,
};
use devices::virtio::stats::{BlockStats, EntropyStats, NetStats, VirtioStats};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use statsfs::segment::layout::{DEFAULT_SEGMENT, MAX_SEGMENT, MAX_SEGMENTS};
use statsfs::tree::{Owner, TreeOptions};
use statsfs::value::Group;
use statsfs::{Registry, RegistryError, RegistryOptions, Slot, Source, SourceError};
use thiserror::Error;

use crate::kernel_stats::{KernelStats, Of};
use crate::message::tell;
use crate::sched::{Sampled, VcpuSched};
use crate::seccomp::thread_start;
use crate::stats::{BusStats, SchedStats, VcpuDeviceStats, VcpuStats, VmStartStats, VmStats};

/// A registry with room for this many vCPUs, and the machines that they are in. Its thread runs.
///
/// # Errors
/// [`RegistryError`] if its first segment can not be made, or its thread can not be had.
pub fn registry_for(vcpus: u32) -> Result<Registry, RegistryError> {
    // A vCPU takes up to 8 KiB, and a machine no more than two of them beside; what is said of each value
    // takes some 50 KiB once. All of a segment's pages are there from the beginning: so one machine of one
    // vCPU is not given more than it needs.
    const EACH: usize = 3 * (8 << 10);
    const ONCE: usize = 88 << 10;
    let room = vcpus as usize * EACH;
    let segment_size = (room / MAX_SEGMENTS * 2)
        .max((ONCE + room).min(DEFAULT_SEGMENT))
        .next_multiple_of(4096)
        .min(MAX_SEGMENT);
    let registry = Registry::with_options(RegistryOptions {
        segment_size,
        max_segments: MAX_SEGMENTS,
        thread_start: thread_start(),
    })?;
    // It could not be started any more once this thread is confined.
    registry.start_thread()?;
    Ok(registry)
}

/// How the tree of a process with machines is shown: as part of a host's would be, machines by the process
/// id and their names, with links to them, and for the group that may look into single machines if the host
/// has it.
pub fn tree_options() -> TreeOptions {
    let this = Owner::this_process();
    tree_options_of(this.with_readers(READERS).unwrap_or(this))
}

/// As [`tree_options`], for this owner. Nothing is looked up, which a confined thread could not do.
pub fn tree_options_of(owner: Owner) -> TreeOptions {
    TreeOptions { pid_prefix: true, ..TreeOptions::new(owner) }
}

/// The group that may look into the directories of single guests.
const READERS: &str = "kvm";

/// Longest name of a machine: with `<pid>-` before it, it is a source's name of at most 63 bytes.
pub const MAX_NAME: usize = 52;

/// Why a name is no name for a machine.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error(
    "{0:?} is not a name for a guest: use 1 to {MAX_NAME} of A-Z a-z 0-9 _ . : -, not a dot first"
)]
pub struct NameError(String);

/// Checks the name of a machine.
///
/// # Errors
/// [`NameError`] says what a name is.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
    let fits = (1..=MAX_NAME).contains(&name.len());
    if fits && !name.starts_with('.') && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(NameError(name.to_string()))
    }
}

/// Why a source could not be made.
#[derive(Debug, Error)]
#[error("the statistics of {source_name} can not be set up: {error}")]
pub struct TreeError {
    /// The source.
    pub source_name: String,
    /// What is wrong.
    #[source]
    pub error: SourceError,
}

fn during(source_name: &str) -> impl FnOnce(SourceError) -> TreeError {
    move |error| TreeError { source_name: source_name.to_string(), error }
}

/// Statistics that are full must not take a guest down: whatever no longer fits is counted into memory
/// that nobody sees. Says so once.
fn unless_full<T>(result: Result<T, SourceError>) -> Result<Option<T>, SourceError> {
    static SAID: Once = Once::new();
    match result {
        Err(error @ SourceError::SegmentFull { .. }) => {
            SAID.call_once(|| {
                tell(format_args!("{error}; what does not fit is missing from the statistics"));
            });
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Adds a group of values to a source, if there is a source.
fn values<G: Group>(source: Option<&Source>, name: &str) -> Result<Slot<G>, TreeError> {
    let slot = match source {
        Some(source) => unless_full(source.add_values()).map_err(during(name))?,
        None => None,
    };
    Ok(slot.unwrap_or_else(Slot::dummy))
}

/// The top-level source `kvm`: the totals over all machines of a registry.
#[derive(Clone)]
pub struct KvmTree {
    registry: Registry,
    source: Source,
    sampled: Sampled,
    kernel: Arc<KernelStats>,
}

impl KvmTree {
    /// The name of the top-level source.
    pub const NAME: &str = "kvm";

    /// Registers the source `kvm`: once per registry.
    ///
    /// # Errors
    /// [`TreeError`] if it exists, or the registry is too small even for this.
    pub fn register(registry: &Registry) -> Result<Self, TreeError> {
        let sampled = Sampled::none();
        let build = || {
            let source = registry.create_source(Self::NAME)?;
            // Explicit, so that the totals exist (as 0) before the first machine and after the last.
            source.add_aggregates::<VcpuStats>()?;
            if sampled.is_possible() {
                source.add_aggregates::<SchedStats>()?;
            }
            source.add_aggregates::<VcpuDeviceStats>()?;
            source.add_aggregates::<BusStats>()?;
            source.add_aggregates::<VmStats>()?;
            source.add_aggregates::<VmStartStats>()?;
            source.add_aggregates::<SerialStats>()?;
            source.add_aggregates::<SerialInterruptStats>()?;
            source.add_aggregates::<I8042Stats>()?;
            source.add_aggregates::<PvpanicStats>()?;
            source.add_aggregates::<AcpiPowerStats>()?;
            source.add_aggregates::<ExitPortStats>()?;
            source.add_aggregates::<VirtioStats>()?;
            source.add_aggregates::<BlockStats>()?;
            source.add_aggregates::<NetStats>()?;
            source.add_aggregates::<EntropyStats>()?;
            source.register()?;
            Ok(source)
        };
        let source = build().map_err(during(Self::NAME))?;
        Ok(Self { registry: registry.clone(), source, sampled, kernel: Arc::default() })
    }

    /// Says once what the tree does not have on this host. To be called when nothing else has failed: the reason
    /// may be the same, and is said once then.
    pub fn tell_what_is_missing(&self) {
        self.sampled.tell_what_is_missing();
        self.kernel.tell();
    }

    /// Adds a machine of this process called `name`, whose directory is for all to read if it is `public`.
    ///
    /// # Errors
    /// [`TreeError`] if the process has a machine of this name.
    pub fn add_machine(&self, name: &str, public: bool) -> Result<MachineTree, TreeError> {
        // What one guest does is for its owner and the readers' group, unless told; the totals are for all.
        let build = || {
            let source = self.registry.source(name);
            let source = if public { source } else { source.private() }.create()?;
            self.source.add_subordinate(&source)?;
            Ok(source)
        };
        let source = unless_full(build()).map_err(during(name))?;
        Ok(MachineTree { kvm: self.clone(), name: name.to_string(), source })
    }

    /// Adds what KVM counts to a source, if there is one.
    fn add_kernel_values(
        &self,
        source: Option<&Source>,
        name: &str,
        add: impl FnOnce(&KernelStats, &Source) -> Result<(), SourceError>,
    ) -> Result<(), TreeError> {
        let Some(source) = source else { return Ok(()) };
        unless_full(add(&self.kernel, source)).map_err(during(name)).map(|_| ())
    }

    /// Adds a source to another, if there is another.
    fn subordinate(
        &self,
        parent: Option<&Source>,
        name: &str,
    ) -> Result<Option<Source>, TreeError> {
        let Some(parent) = parent else { return Ok(None) };
        let build = || {
            let source = self.registry.create_source(name)?;
            parent.add_subordinate(&source)?;
            Ok(source)
        };
        unless_full(build()).map_err(during(name))
    }
}

/// The source of one machine. It leaves the tree when this is dropped; what it counted stays in the
/// totals.
pub struct MachineTree {
    kvm: KvmTree,
    name: String,
    /// `None` if the statistics are full.
    source: Option<Source>,
}

/// The source of one device.
pub struct DeviceTree {
    name: String,
    /// `None` if the statistics are full.
    source: Option<Source>,
}

impl DeviceTree {
    /// Adds a group of values of the device, or another slot of one that was added: one for each thread
    /// that counts.
    ///
    /// # Errors
    /// [`TreeError`] if a name of them is taken.
    pub fn add_values<G: Group>(&self) -> Result<Slot<G>, TreeError> {
        values(self.source.as_ref(), &self.name)
    }
}

/// The values of one vCPU.
pub struct VcpuSlots {
    name: String,
    /// `None` if the statistics are full.
    source: Option<Source>,
    /// The exit loop's.
    pub vcpu: Slot<VcpuStats>,
    /// The accesses that no device claims.
    pub bus: Slot<BusStats>,
    /// Each device as this vCPU used it.
    pub devices: Vec<Slot<VcpuDeviceStats>>,
    /// What the scheduler does with its thread; `None` where that is not to be had, or not to be shown.
    pub sched: Option<VcpuSched>,
}

impl MachineTree {
    /// The name of the machine's directory, in this process's own tree and in a host's: `<pid>-<name>`.
    pub fn directory(&self) -> String {
        format!("{}-{}", std::process::id(), self.name)
    }

    /// Adds a group of values of the machine itself.
    ///
    /// # Errors
    /// [`TreeError`] if a name of them is taken.
    pub fn add_values<G: Group>(&self) -> Result<Slot<G>, TreeError> {
        values(self.source.as_ref(), &self.name)
    }

    /// Adds what KVM counts of the machine, whose file this is.
    ///
    /// # Errors
    /// [`TreeError`]: never, as long as there is room.
    pub fn add_kernel_values(&self, kvm: &Kvm, vm: &VmFd) -> Result<(), TreeError> {
        self.kvm.add_kernel_values(self.source.as_ref(), &self.name, |kernel, source| {
            kernel.add(kvm, Of::Vm, vm, source)
        })
    }

    /// Adds a device.
    ///
    /// # Errors
    /// [`TreeError`] if the name is taken.
    pub fn device(&self, name: &str) -> Result<DeviceTree, TreeError> {
        let source = self.kvm.subordinate(self.source.as_ref(), name)?;
        Ok(DeviceTree { name: name.to_string(), source })
    }

    /// Adds a device with a group of values.
    ///
    /// # Errors
    /// [`TreeError`] if the name is taken.
    pub fn add_device<G: Group>(&self, name: &str) -> Result<Slot<G>, TreeError> {
        self.device(name)?.add_values()
    }

    /// Adds vCPU `index`, which uses these devices.
    ///
    /// # Errors
    /// [`TreeError`] if there is one.
    pub fn add_vcpu<'a>(
        &self,
        index: u32,
        devices: impl Iterator<Item = &'a str>,
    ) -> Result<VcpuSlots, TreeError> {
        let name = format!("vcpu{index}");
        let source = self.kvm.subordinate(self.source.as_ref(), &name)?;
        let here = source.as_ref();
        let vcpu = values(here, &name)?;
        let bus = values(here, &name)?;
        let devices = devices
            .map(|device| values(self.kvm.subordinate(here, device)?.as_ref(), device))
            .collect::<Result<_, _>>()?;
        let sched = match here {
            Some(source) => unless_full(self.kvm.sampled.add(source)).map_err(during(&name))?,
            None => None,
        };
        Ok(VcpuSlots { name, source, vcpu, bus, devices, sched: sched.flatten() })
    }

    /// Adds what KVM counts of a vCPU of the machine, whose file this is and which has not run yet.
    ///
    /// # Errors
    /// [`TreeError`]: never, as long as there is room.
    pub fn add_vcpu_kernel_values(
        &self,
        kvm: &Kvm,
        slots: &VcpuSlots,
        vcpu: &VcpuFd,
    ) -> Result<(), TreeError> {
        self.kvm.add_kernel_values(slots.source.as_ref(), &slots.name, |kernel, source| {
            kernel.add(kvm, Of::Vcpu, vcpu, source)
        })
    }
}

impl Drop for MachineTree {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            // It can only fail if the source has left already.
            let _ = self.kvm.source.remove_subordinate(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use statsfs::segment::layout::UNIT;

    use super::*;

    #[test]
    fn names_are_those_of_sources() {
        for name in ["a", "web1", "A.b:c_d-e", "1", &"x".repeat(MAX_NAME)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".a", "a/b", "a b", "ä", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(check_name(name).unwrap_err().to_string().contains("A-Z"), "{name}");
        }
    }

    #[test]
    fn full_statistics_do_not_keep_a_machine_from_being_made() {
        let options =
            RegistryOptions { segment_size: 64 << 10, max_segments: 1, ..Default::default() };
        let registry = Registry::with_options(options).unwrap();
        let kvm = KvmTree::register(&registry).unwrap();
        let machine = kvm.add_machine("a", false).unwrap();
        let devices = || ["serial0", "exit0"].into_iter();
        let vcpus: Vec<_> = (0..64).map(|i| machine.add_vcpu(i, devices()).unwrap()).collect();
        for vcpu in &vcpus {
            assert_eq!(vcpu.devices.len(), 2);
            vcpu.vcpu.update(|cells| cells.user_exits.inc());
        }
        assert_eq!(registry.usage().segments, 1);
        // The next machine has nothing at all, and can be made all the same.
        let next = kvm.add_machine("b", false).unwrap();
        next.add_vcpu(0, devices()).unwrap();
        next.add_values::<VmStats>().unwrap();
    }

    #[test]
    fn a_name_that_is_taken_is_an_error() {
        let registry = Registry::new().unwrap();
        let kvm = KvmTree::register(&registry).unwrap();
        let machine = kvm.add_machine("a", false).unwrap();
        machine.add_vcpu(0, std::iter::empty()).unwrap();
        assert!(machine.add_vcpu(0, std::iter::empty()).is_err());
        let error = kvm.add_machine("a", false).err().unwrap().to_string();
        assert!(error.contains("\"a\"") && error.contains("already exists"), "{error}");
        assert!(KvmTree::register(&registry).is_err());
    }

    #[test]
    fn a_vcpu_takes_at_most_8_kib() {
        let registry = Registry::new().unwrap();
        let kvm = KvmTree::register(&registry).unwrap();
        let machine = kvm.add_machine("a", false).unwrap();
        let bytes = |i| {
            let slots = machine.add_vcpu(i, ["serial0", "exit0"].into_iter()).unwrap();
            let usage = registry.usage();
            (slots, usage.block_bytes + usage.units * UNIT)
        };
        // The first one brings the schema along.
        let (_first, before) = bytes(0);
        let (_second, after) = bytes(1);
        assert!(after - before <= 8 << 10, "{}", after - before);
    }

    #[test]
    fn a_machine_that_leaves_stays_counted_in_the_totals() {
        let registry = Registry::new().unwrap();
        let kvm = KvmTree::register(&registry).unwrap();
        let machine = kvm.add_machine("a", false).unwrap();
        let slots = machine.add_vcpu(0, ["serial0"].into_iter()).unwrap();
        slots.devices[0].io_reads.add(3);
        slots.bus.bus_unclaimed_io_reads.add(4);
        let flat = || {
            let mut out = Vec::new();
            registry.tree_of(tree_options()).unwrap().flat(&mut out);
            String::from_utf8(out).unwrap()
        };
        let path = format!("kvm/{}-a/vcpu0", std::process::id());
        let before = flat();
        for line in [
            "kvm/io_reads 3\n".to_string(),
            "kvm/bus_unclaimed_io_reads 4\n".to_string(),
            format!("{path}/serial0/io_reads 3\n"),
            format!("{path}/bus_unclaimed_io_reads 4\n"),
        ] {
            assert!(before.contains(&line), "{line:?} is not in:\n{before}");
        }
        drop((slots, machine));
        // At once, and again when the library has tidied up after the departure.
        let after = flat();
        assert!(after.contains("kvm/io_reads 3\n"), "{after}");
        assert!(!after.contains(&path), "{after}");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(flat(), after);
    }
}
