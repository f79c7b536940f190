//! The memory-mapped transport: a device's registers (virtio 1.2, 4.2.2).

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::engine::{Engine, Shared, SharedEngine, with_engine};
use super::{Device, DeviceId, Memory, TransportEvents, Worker, feature};
use crate::BusDevice;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of this register layout.
const VERSION: u32 = 2;
/// Not of the numbers that are registered for PCI; drivers do not care.
const VENDOR: u32 = 0;
/// Where the device's configuration space begins.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// Where a driver notifies a queue, by writing its index in 32 bits.
pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Most descriptors of a queue (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// What the transport offers for every device.
const FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_INDIRECT_DESC)
    | feature(VIRTIO_RING_F_EVENT_IDX);

/// Why a device could not be made.
#[derive(Debug, Error)]
#[error("an eventfd can not be had: {0}")]
pub struct TransportError(#[from] io::Error);

/// A device's registers.
pub struct Transport {
    id: DeviceId,
    features: u64,
    config: Box<[u8]>,
    registers: Mutex<Registers>,
    shared: Arc<Shared>,
    engine: SharedEngine,
    notifiers: Arc<[EventFd]>,
}

/// What the driver has set up so far.
struct Registers {
    features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueState>,
    events: Box<dyn TransportEvents>,
}

/// An access that no driver makes.
struct Bad;

impl Transport {
    /// Makes a device of this kind, whose driver's buffers are in `memory` and whose interrupts are raised
    /// by writing to `line`: its registers, and its work.
    ///
    /// The vCPUs' threads report to one of the events, and the worker's to the other.
    ///
    /// # Errors
    /// [`TransportError`] if the process has no file descriptor left.
    ///
    /// # Panics
    /// If a queue's size is no power of two, or is above 32768.
    pub fn new(
        device: impl Device + 'static,
        memory: Memory,
        line: EventFd,
        vcpu_events: impl TransportEvents + 'static,
        worker_events: impl TransportEvents + 'static,
    ) -> Result<(Self, Worker), TransportError> {
        let sizes = device.queue_sizes();
        let is_size = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
        assert!(sizes.iter().all(is_size), "queues of {sizes:?} descriptors");
        let registers = Registers {
            features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| initial(*size)).collect(),
            events: Box::new(vcpu_events),
        };
        let notifiers: Vec<_> =
            sizes.iter().map(|_| EventFd::new(libc::EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        let notifiers: Arc<[EventFd]> = notifiers.into();
        let shared = Arc::new(Shared::new(line)?);
        let backend = device.backend().map(|(fd, queue)| (fd.as_raw_fd(), queue));
        let (id, features) = (device.id(), FEATURES | device.features());
        let config = device.config().into();
        let engine: SharedEngine =
            Arc::new(Mutex::new(Engine::new(memory, Box::new(worker_events), device)));
        let worker = Worker::new(shared.clone(), engine.clone(), notifiers.clone(), backend);
        let registers = Mutex::new(registers);
        Ok((Self { id, features, config, registers, shared, engine, notifiers }, worker))
    }

    /// The eventfds by which the driver notifies the queues, in their order. Writing 1 to one of them is
    /// what writing the queue's index to [`QUEUE_NOTIFY`] does.
    pub fn notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // A panic of another vCPU's thread leaves registers that are still registers.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    fn read_register(&self, offset: u64) -> Result<u32, Bad> {
        let offset = u32::try_from(offset).map_err(|_| Bad)?;
        Ok(match offset {
            // First those that are read at every interrupt; they take no lock.
            register::VIRTIO_MMIO_INTERRUPT_STATUS => {
                self.shared.interrupt_status.load(Ordering::SeqCst)
            }
            register::VIRTIO_MMIO_STATUS => self.status(),
            register::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.id as u32,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.features, self.registers().features_select).unwrap_or(0)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                // 0 says that there is no such queue.
                self.registers().selected().map_or(0, |(_, queue)| queue.max_size.into())
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                self.registers().selected().map_or(0, |(_, queue)| queue.ready.into())
            }
            // There is no shared memory: its length is −1.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => return Err(Bad),
        })
    }

    fn write_register(&self, offset: u64, value: u32) -> Result<(), Bad> {
        match u32::try_from(offset).map_err(|_| Bad)? {
            register::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared.interrupt_status.fetch_and(!value, Ordering::SeqCst);
                Ok(())
            }
            register::VIRTIO_MMIO_QUEUE_NOTIFY => {
                let notifier = self.notifiers.get(value as usize).ok_or(Bad)?;
                // It can only fail when so many are pending already that they can not be counted.
                let _ = notifier.write(1);
                Ok(())
            }
            register::VIRTIO_MMIO_STATUS if value == 0 => {
                self.reset();
                Ok(())
            }
            register::VIRTIO_MMIO_STATUS => self.write_status(value),
            register::VIRTIO_MMIO_SHM_SEL => Ok(()),
            offset => self.write_setting(offset, value),
        }
    }

    fn write_setting(&self, offset: u32, value: u32) -> Result<(), Bad> {
        let registers = &mut *self.registers();
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            register::VIRTIO_MMIO_QUEUE_SEL => registers.queue_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => {
                if self.status() & (DRIVER | FEATURES_OK) != DRIVER {
                    return Err(Bad);
                }
                let select = registers.driver_features_select;
                set_half(&mut registers.driver_features, select, value)?;
            }
            // A queue that is not ready may be told so at any time: Linux does, after a reset.
            register::VIRTIO_MMIO_QUEUE_READY if value == 0 => {
                let (index, queue) = registers.selected().ok_or(Bad)?;
                if queue.ready {
                    with_engine(&self.engine, &self.shared, |engine| engine.remove(index));
                    *queue = initial(queue.max_size);
                }
            }
            _ => {
                // Queues are set up between the agreement on features and their being ready.
                let features = registers.driver_features;
                let (index, queue) = registers.selected().ok_or(Bad)?;
                if self.status() & (FEATURES_OK | FAILED) != FEATURES_OK || queue.ready {
                    return Err(Bad);
                }
                match offset {
                    register::VIRTIO_MMIO_QUEUE_NUM => {
                        let size = u16::try_from(value).map_err(|_| Bad)?;
                        if !size.is_power_of_two() || size > queue.max_size {
                            return Err(Bad);
                        }
                        queue.size = size;
                    }
                    register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
                    register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
                    register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
                    register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                        set_high(&mut queue.avail_ring, value);
                    }
                    register::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
                    register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
                    register::VIRTIO_MMIO_QUEUE_READY => {
                        queue.event_idx_enabled = features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
                        self.make_ready(index, queue);
                    }
                    _ => return Err(Bad),
                }
            }
        }
        Ok(())
    }

    /// Hands a queue to the device, if it can be one.
    fn make_ready(&self, index: usize, state: &mut QueueState) {
        state.ready = true;
        with_engine(&self.engine, &self.shared, |engine| {
            // A ring at address 0 would be taken for one that was not set.
            let queue = Queue::try_from(*state).ok().filter(|queue| {
                queue.avail_ring() != 0 && queue.used_ring() != 0 && queue.is_valid(engine.memory())
            });
            match queue {
                Some(queue) => engine.insert(index, queue),
                None => {
                    state.ready = false;
                    engine.fail(&self.shared);
                }
            }
        });
    }

    fn write_status(&self, value: u32) -> Result<(), Bad> {
        const STEPS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let registers = self.registers();
        let current = self.status();
        // Bits are only ever added; the device's own is left alone.
        if value & !(STEPS | FAILED | NEEDS_RESET) != 0 || current & !value & !NEEDS_RESET != 0 {
            return Err(Bad);
        }
        let mut accepted = current;
        for (step, after) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
            (FAILED, 0),
        ] {
            if value & !accepted & step == 0 {
                continue;
            }
            let allowed = accepted & after == after
                && (step != FEATURES_OK || self.accepts(registers.driver_features));
            if !allowed {
                self.shared.status.fetch_or(accepted, Ordering::SeqCst);
                return Err(Bad);
            }
            accepted |= step;
        }
        if accepted & !current & DRIVER_OK != 0 {
            with_engine(&self.engine, &self.shared, |engine| {
                self.shared.status.fetch_or(accepted, Ordering::SeqCst);
                engine.start(registers.driver_features);
            });
        } else {
            self.shared.status.fetch_or(accepted, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether the device can do with these features.
    fn accepts(&self, features: u64) -> bool {
        features & !self.features == 0
            && features & feature(VIRTIO_F_VERSION_1) != 0
            && with_engine(&self.engine, &self.shared, |engine| engine.accepts(features))
    }

    /// Takes everything back. The device has finished the request that it was at, and starts no other.
    fn reset(&self) {
        let registers = &mut *self.registers();
        with_engine(&self.engine, &self.shared, |engine| {
            engine.reset();
            self.shared.interrupt_status.store(0, Ordering::SeqCst);
            self.shared.status.store(0, Ordering::SeqCst);
        });
        registers.features_select = 0;
        registers.driver_features_select = 0;
        registers.driver_features = 0;
        registers.queue_select = 0;
        for queue in &mut registers.queues {
            *queue = initial(queue.max_size);
        }
        registers.events.reset();
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Bad> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        let from = from.unwrap_or_default();
        let known = from.len().min(data.len());
        data[..known].copy_from_slice(&from[..known]);
        data[known..].fill(0);
        // A driver only reads fields, which lie wholly inside.
        if known == data.len() { Ok(()) } else { Err(Bad) }
    }

    fn note(&self, result: Result<(), Bad>) {
        if let Err(Bad) = result {
            self.registers().events.bad_access();
        }
    }
}

impl Registers {
    fn selected(&mut self) -> Option<(usize, &mut QueueState)> {
        let index = usize::try_from(self.queue_select).ok()?;
        Some((index, self.queues.get_mut(index)?))
    }
}

/// A queue of which nothing was set yet.
fn initial(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: false,
        size: max_size,
        ready: false,
        desc_table: 0,
        avail_ring: 0,
        used_ring: 0,
    }
}

/// Half `select` of the features, if there is such.
fn half(features: u64, select: u32) -> Option<u32> {
    match select {
        0 => Some(features as u32),
        1 => Some((features >> 32) as u32),
        _ => None,
    }
}

fn set_half(features: &mut u64, select: u32, value: u32) -> Result<(), Bad> {
    match select {
        0 => set_low(features, value),
        1 => set_high(features, value),
        // A driver that accepts none of those that there are not is right.
        _ if value == 0 => {}
        _ => return Err(Bad),
    }
    Ok(())
}

fn set_low(place: &mut u64, value: u32) {
    *place = *place & !0xffff_ffff | u64::from(value);
}

fn set_high(place: &mut u64, value: u32) {
    *place = *place & 0xffff_ffff | u64::from(value) << 32;
}

impl BusDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let read = self.read_config(offset, data);
            return self.note(read);
        }
        // virtio 1.2, 4.2.2.2: registers are 32 bits wide.
        let value = if data.len() == 4 { self.read_register(offset) } else { Err(Bad) };
        match value {
            Ok(value) => data.copy_from_slice(&value.to_le_bytes()),
            Err(Bad) => {
                data.fill(0);
                self.note(Err(Bad));
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // There is nothing in the configuration space of our devices that a driver may write.
        let written = match data.try_into() {
            Ok(value) if offset < CONFIG => self.write_register(offset, u32::from_le_bytes(value)),
            _ => Err(Bad),
        };
        self.note(written);
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("id", &self.id).finish_non_exhaustive()
    }
}
