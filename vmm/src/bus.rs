//! The buses: which device answers at which port or address, and the counting of accesses.
//!
//! Buses do not change once vCPUs run, so that looking up takes no lock. A vCPU counts its accesses into
//! slots of its own.

use std::fmt;
use std::sync::Arc;

use devices::BusDevice;
use statsfs::Slot;
use thiserror::Error;

use crate::stats::{BusStats, VcpuDeviceStats};

/// Why a device could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or exceeds the address space.
    #[error(
        "device {name}: the range of {length:#x} addresses from {base:#x} is empty or too long"
    )]
    Range {
        /// The device.
        name: String,
        /// Its first address.
        base: u64,
        /// Its number of addresses.
        length: u64,
    },
    /// Another device is there.
    #[error("device {name} at {base:#x} overlaps device {other}")]
    Overlap {
        /// The device.
        name: String,
        /// Its first address.
        base: u64,
        /// The device that is there.
        other: String,
    },
}

/// One address space.
#[derive(Debug, Default)]
struct Bus {
    /// In order of addresses, without overlaps.
    ranges: Vec<Range>,
}

#[derive(Debug)]
struct Range {
    base: u64,
    last: u64,
    device: usize,
}

impl Bus {
    fn find(&self, address: u64) -> Option<(usize, u64)> {
        let next = self.ranges.partition_point(|range| range.base <= address);
        let range = &self.ranges[next.checked_sub(1)?];
        (address <= range.last).then(|| (range.device, address - range.base))
    }

    /// Where to insert a range, or the device that it overlaps.
    fn place(&self, base: u64, last: u64) -> Result<usize, usize> {
        let at = self.ranges.partition_point(|range| range.last < base);
        match self.ranges.get(at) {
            Some(range) if range.base <= last => Err(range.device),
            _ => Ok(at),
        }
    }
}

struct Device {
    name: String,
    device: Arc<dyn BusDevice>,
}

/// The devices of one machine, on its port and memory buses.
#[derive(Default)]
pub struct Devices {
    devices: Vec<Device>,
    ports: Bus,
    mmio: Bus,
}

/// The address space that a device sits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Memory.
    Mmio,
}

impl Devices {
    /// No devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device, called `name`, on a bus at `base` and the `length − 1` addresses after it.
    ///
    /// # Errors
    /// [`BusError`] if the range is no range, or taken.
    pub fn insert(
        &mut self,
        name: &str,
        space: Space,
        base: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let limit = if space == Space::Port { u64::from(u16::MAX) } else { u64::MAX };
        let last = length
            .checked_sub(1)
            .and_then(|rest| base.checked_add(rest))
            .filter(|last| *last <= limit)
            .ok_or_else(|| BusError::Range { name: name.to_string(), base, length })?;
        let index = self.devices.len();
        let bus = if space == Space::Port { &mut self.ports } else { &mut self.mmio };
        let at = bus.place(base, last).map_err(|other| BusError::Overlap {
            name: name.to_string(),
            base,
            other: self.devices[other].name.clone(),
        })?;
        bus.ranges.insert(at, Range { base, last, device: index });
        self.devices.push(Device { name: name.to_string(), device });
        Ok(())
    }

    /// The devices' names, in the order that [`VcpuIo`] has their slots.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(|device| device.name.as_str())
    }

    fn claimed(&self, bus: &Bus, address: u64) -> Option<(usize, u64, &dyn BusDevice)> {
        let (index, offset) = bus.find(address)?;
        Some((index, offset, &*self.devices[index].device))
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// One vCPU's way to the devices, counting on its own.
pub struct VcpuIo {
    devices: Arc<Devices>,
    /// By device.
    slots: Vec<Slot<VcpuDeviceStats>>,
    bus: Slot<BusStats>,
    /// The device that the exit being handled was for.
    touched: Option<usize>,
}

impl VcpuIo {
    /// A way to the devices that counts into these slots, one for each device in order.
    ///
    /// # Panics
    /// If there are not as many slots as devices.
    pub fn new(
        devices: Arc<Devices>,
        slots: Vec<Slot<VcpuDeviceStats>>,
        bus: Slot<BusStats>,
    ) -> Self {
        assert_eq!(slots.len(), devices.devices.len());
        Self { devices, slots, bus, touched: None }
    }

    /// The guest reads a port: once for each `size` bytes of `data`.
    pub fn port_read(&mut self, port: u16, size: usize, data: &mut [u8]) {
        let count = data.len().div_ceil(size) as u64;
        if let Some((index, offset, device)) =
            self.devices.claimed(&self.devices.ports, u64::from(port))
        {
            data.chunks_mut(size).for_each(|access| device.read(offset, access));
            self.slots[index].io_reads.add(count);
            self.slots[index].io_read_bytes.add(data.len() as u64);
            self.touched = Some(index);
        } else {
            data.fill(0xff);
            self.bus.bus_unclaimed_io_reads.add(count);
        }
    }

    /// The guest writes a port: once for each `size` bytes of `data`.
    pub fn port_write(&mut self, port: u16, size: usize, data: &[u8]) {
        let count = data.len().div_ceil(size) as u64;
        if let Some((index, offset, device)) =
            self.devices.claimed(&self.devices.ports, u64::from(port))
        {
            data.chunks(size).for_each(|access| device.write(offset, access));
            self.slots[index].io_writes.add(count);
            self.slots[index].io_write_bytes.add(data.len() as u64);
            self.touched = Some(index);
        } else {
            self.bus.bus_unclaimed_io_writes.add(count);
        }
    }

    /// The guest reads memory that is not RAM.
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        if let Some((index, offset, device)) = self.devices.claimed(&self.devices.mmio, address) {
            device.read(offset, data);
            self.slots[index].io_reads.inc();
            self.slots[index].io_read_bytes.add(data.len() as u64);
            self.touched = Some(index);
        } else {
            data.fill(0xff);
            self.bus.bus_unclaimed_mmio_reads.inc();
        }
    }

    /// The guest writes memory that is not RAM.
    pub fn mmio_write(&mut self, address: u64, data: &[u8]) {
        if let Some((index, offset, device)) = self.devices.claimed(&self.devices.mmio, address) {
            device.write(offset, data);
            self.slots[index].io_writes.inc();
            self.slots[index].io_write_bytes.add(data.len() as u64);
            self.touched = Some(index);
        } else {
            self.bus.bus_unclaimed_mmio_writes.inc();
        }
    }

    /// Handling the last exit took so long: charges it to the device that it was for.
    #[inline(always)]
    pub fn handled(&mut self, ns: u64) {
        if let Some(index) = self.touched.take() {
            self.slots[index].io_time_ns.add(ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Reads give the offset; writes are logged.
    #[derive(Default)]
    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn io(devices: Devices) -> VcpuIo {
        let slots = devices.names().map(|_| Slot::dummy()).collect();
        VcpuIo::new(Arc::new(devices), slots, Slot::dummy())
    }

    #[test]
    fn ranges_do_not_overlap_and_fit() {
        let mut devices = Devices::new();
        let echo = Arc::new(Echo::default());
        let mut insert = |name: &str, space, base, length| {
            devices.insert(name, space, base, length, echo.clone())
        };
        insert("b", Space::Port, 0x20, 0x10).unwrap();
        insert("a", Space::Port, 0x10, 0x10).unwrap();
        insert("c", Space::Port, 0xffff, 1).unwrap();
        insert("m", Space::Mmio, 0x20, 0x10).unwrap();
        insert("n", Space::Mmio, u64::MAX, 1).unwrap();
        for (base, length, other) in
            [(0x2f, 1, "b"), (0x1f, 2, "a"), (0, 0x11, "a"), (0, 0x1000, "a"), (0x20, 1, "b")]
        {
            let error = insert("x", Space::Port, base, length).unwrap_err();
            assert_eq!(
                error,
                BusError::Overlap { name: "x".into(), base, other: other.into() },
                "{base:#x}+{length:#x}"
            );
        }
        for (base, length) in [(0x30, 0), (0xfff0, 0x11), (0x1_0000, 1)] {
            let error = insert("x", Space::Port, base, length).unwrap_err();
            assert_eq!(error, BusError::Range { name: "x".into(), base, length });
        }
        assert!(matches!(insert("x", Space::Mmio, u64::MAX, 2), Err(BusError::Range { .. })));
        assert_eq!(devices.names().collect::<Vec<_>>(), ["b", "a", "c", "m", "n"]);
    }

    #[test]
    fn accesses_reach_their_device_at_the_right_offset_and_are_counted() {
        let (ports, memory) = (Arc::new(Echo::default()), Arc::new(Echo::default()));
        let mut devices = Devices::new();
        devices.insert("p", Space::Port, 0x3f8, 8, ports.clone()).unwrap();
        devices.insert("m", Space::Mmio, 0xd000_0000, 0x1000, memory.clone()).unwrap();
        let mut io = io(devices);

        let mut data = [0; 4];
        io.port_read(0x3fb, 2, &mut data);
        assert_eq!(data, [3; 4]);
        io.handled(100);
        io.port_write(0x3f8, 1, b"abc");
        io.handled(7);
        io.handled(1000); // nothing was touched: charged to nobody
        assert_eq!(
            *ports.0.lock().unwrap(),
            [(0, b"a".to_vec()), (0, b"b".to_vec()), (0, b"c".to_vec())]
        );
        io.mmio_read(0xd000_0fff, &mut data);
        assert_eq!(data, [0xff; 4]);
        io.mmio_write(0xd000_0010, &[9; 8]);
        assert_eq!(*memory.0.lock().unwrap(), [(0x10, vec![9; 8])]);

        let count = |slot: &Slot<VcpuDeviceStats>| {
            [
                slot.io_reads.get(),
                slot.io_read_bytes.get(),
                slot.io_writes.get(),
                slot.io_write_bytes.get(),
                slot.io_time_ns.get(),
            ]
        };
        assert_eq!(count(&io.slots[0]), [2, 4, 3, 3, 107]);
        assert_eq!(count(&io.slots[1]), [1, 4, 1, 8, 0]);
        assert_eq!(io.bus.bus_unclaimed_io_reads.get(), 0);
    }

    #[test]
    fn what_nobody_claims_reads_as_all_ones_and_is_counted() {
        let mut io = io(Devices::new());
        let mut data = [0; 6];
        io.port_read(0x80, 2, &mut data);
        assert_eq!(data, [0xff; 6]);
        io.port_write(0x80, 1, &[0; 5]);
        let mut data = [0; 8];
        io.mmio_read(0xc000_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
        io.mmio_write(0xc000_0000, &[0]);
        io.mmio_write(0xc000_0000, &[0]);
        assert_eq!(io.bus.bus_unclaimed_io_reads.get(), 3);
        assert_eq!(io.bus.bus_unclaimed_io_writes.get(), 5);
        assert_eq!(io.bus.bus_unclaimed_mmio_reads.get(), 1);
        assert_eq!(io.bus.bus_unclaimed_mmio_writes.get(), 2);
    }
}
