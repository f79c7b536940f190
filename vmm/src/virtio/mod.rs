//! The virtio devices of a machine, each with its registers on the memory bus, an interrupt, and a thread
//! that does its work.
//!
//! Neither a notification by the driver nor an interrupt passes through the exit loop: KVM turns the write
//! to the register into an event for the device's thread (KVM_IOEVENTFD), and that thread's event into an
//! interrupt (KVM_IRQFD).

mod config;
mod service;
mod told;

use std::sync::Arc;

use devices::virtio::block::{Block, Disk, DiskError};
use devices::virtio::entropy::{Entropy, EntropyError};
use devices::virtio::mmio::{QUEUE_NOTIFY, TransportError};
use devices::virtio::net::{Net, Tap, TapError};
use devices::virtio::stats::{BlockCounters, EntropyCounters, NetCounters, TransportCounters};
use devices::virtio::{Device, Memory, Transport};
use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::layout::{MAX_VIRTIO, MmioNode};
use crate::bus::{BusError, Devices, Space};
use crate::lifecycle::Lifecycle;
use crate::seccomp;
use crate::tree::{DeviceTree, MachineTree, TreeError};
pub use config::{
    DiskConfig, DiskConfigError, NetConfig, NetConfigError, VirtioConfig, default_mac,
};
pub use service::DeviceError;
use service::Service;
use told::Told;

/// Why a machine can not have the virtio devices that it is to have.
#[derive(Debug, Error)]
pub enum VirtioError {
    /// There are too many.
    #[error(
        "a guest has at most {MAX_VIRTIO} disks, network interfaces and such together, not {0}"
    )]
    TooMany(usize),
    /// A file can not be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A tap interface can not be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// There are no random bytes.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// A device can not be made.
    #[error("device {device} can not be made: {error}")]
    Transport {
        /// The device.
        device: String,
        /// Why.
        #[source]
        error: TransportError,
    },
    /// KVM refuses.
    #[error("KVM refuses {what} of device {device}: {error}")]
    Kvm {
        /// What it was asked for.
        what: &'static str,
        /// The device.
        device: String,
        /// Why.
        error: errno::Error,
    },
    /// The devices do not fit together.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The statistics can not be set up.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A device has nothing to run on.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The virtio devices of a machine. Their threads end when this is dropped.
pub struct VirtioDevices {
    nodes: Vec<MmioNode>,
    services: Vec<Service>,
}

/// Makes the devices, puts them on the memory bus, and connects them with KVM, which must have an interrupt
/// controller. They do nothing before they are [started](VirtioDevices::start).
///
/// # Errors
/// [`VirtioError`] says what can not be had.
pub fn attach(
    fd: &VmFd,
    memory: &Memory,
    devices: &mut Devices,
    tree: &MachineTree,
    config: &VirtioConfig,
    lifecycle: &Arc<Lifecycle>,
) -> Result<VirtioDevices, VirtioError> {
    let count = config.disks.len() + config.nets.len() + usize::from(config.rng);
    if count > MAX_VIRTIO {
        return Err(VirtioError::TooMany(count));
    }
    let mut machine = Attach {
        fd,
        memory,
        devices,
        lifecycle,
        count,
        made: VirtioDevices { nodes: Vec::new(), services: Vec::new() },
    };
    for (index, disk) in config.disks.iter().enumerate() {
        let name = format!("blk{index}");
        let tree = tree.device(&name)?;
        let counters = BlockCounters::new(tree.add_values()?);
        let events = Told::new(counters, &name, &disk.path);
        let disk = Disk::open(&disk.path, disk.read_only)?;
        machine.add(&name, seccomp::Device::Block, &tree, Block::new(disk, &name, events))?;
    }
    for (index, net) in config.nets.iter().enumerate() {
        let name = format!("net{index}");
        let tree = tree.device(&name)?;
        let counters = NetCounters::new(tree.add_values()?);
        let mac = net.mac.unwrap_or_else(|| default_mac(&net.tap));
        machine.add(
            &name,
            seccomp::Device::Net,
            &tree,
            Net::new(Tap::open(&net.tap)?, mac, counters),
        )?;
    }
    if config.rng {
        let tree = tree.device("rng0")?;
        let counters = EntropyCounters::new(tree.add_values()?);
        machine.add("rng0", seccomp::Device::Entropy, &tree, Entropy::new(counters)?)?;
    }
    Ok(machine.made)
}

/// A machine that gets devices.
struct Attach<'a> {
    fd: &'a VmFd,
    memory: &'a Memory,
    devices: &'a mut Devices,
    lifecycle: &'a Arc<Lifecycle>,
    /// How many it is to have.
    count: usize,
    made: VirtioDevices,
}

impl Attach<'_> {
    fn add(
        &mut self,
        name: &str,
        kind: seccomp::Device,
        tree: &DeviceTree,
        device: impl Device + 'static,
    ) -> Result<(), VirtioError> {
        let node =
            MmioNode::virtio(self.made.nodes.len()).ok_or(VirtioError::TooMany(self.count))?;
        let failed = |error| VirtioError::Transport { device: name.to_string(), error };
        let kvm = |what| move |error| VirtioError::Kvm { what, device: name.to_string(), error };

        let event = || EventFd::new(EFD_NONBLOCK).map_err(|error| failed(error.into()));
        let interrupt = event()?;
        self.fd.register_irqfd(&interrupt, node.gsi).map_err(kvm("the interrupt (KVM_IRQFD)"))?;
        let counters = || Ok::<_, TreeError>(TransportCounters::new(tree.add_values()?));
        let (transport, worker) =
            Transport::new(device, self.memory.clone(), interrupt, counters()?, counters()?)
                .map_err(failed)?;
        for (queue, notifier) in (0_u32..).zip(transport.notifiers()) {
            let register = IoEventAddress::Mmio(node.base + QUEUE_NOTIFY);
            self.fd
                .register_ioevent(notifier, &register, queue)
                .map_err(kvm("the notifications (KVM_IOEVENTFD)"))?;
        }
        self.devices.insert(name, Space::Mmio, node.base, node.size, Arc::new(transport))?;
        self.made.services.push(Service::new(name, kind, worker, self.lifecycle)?);
        self.made.nodes.push(node);
        Ok(())
    }
}

impl VirtioDevices {
    /// Where each device is, in the order that a guest should find them in.
    pub fn nodes(&self) -> impl Iterator<Item = MmioNode> {
        self.nodes.iter().copied()
    }

    /// Starts the devices, each on a thread that is called like it: `blk0`.
    ///
    /// # Errors
    /// [`VirtioError`] if a thread can not be had.
    pub fn start(&mut self) -> Result<(), VirtioError> {
        Ok(self.services.iter_mut().try_for_each(Service::start)?)
    }

    /// Stops the devices after the requests that they are at, and waits for their threads. What they have
    /// counted is final then.
    pub fn stop(&mut self) {
        // All at once, then one after the other.
        self.services.iter().for_each(Service::tell_to_stop);
        self.services.iter_mut().for_each(Service::stop);
    }
}

impl Drop for VirtioDevices {
    fn drop(&mut self) {
        self.stop();
    }
}
