//! A block device (virtio 1.2, 5.2): a file as a disk.

mod disk;

use std::io;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_config,
};

use super::{Chain, Device, DeviceId, Memory, Progress, QueueError, Turn, feature};
use disk::Direction;
pub use disk::{Disk, DiskError, SECTOR};

/// Most requests in the queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes that a request begins with: its kind and its sector.
const HEADER: usize = 16;
/// Bytes of a range to be discarded or set to zero.
const RANGE: usize = 16;
/// Most sectors of a request to discard: 1 GiB.
const MAX_DISCARD: u32 = 1 << 21;
/// Most sectors of a request to set to zero: 64 MiB, which may have to be written.
const MAX_WRITE_ZEROES: u32 = 1 << 17;
/// Bytes of the configuration space: up to the fields for what is not offered.
const CONFIG: usize = std::mem::offset_of!(virtio_blk_config, unused1);
/// The driver hears of what is done so far once that took this long: of each request where the disk is
/// slow, and of many at once where it is fast.
const SIGNAL_AFTER: Duration = Duration::from_micros(100);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To make what was written durable.
    Flush,
    /// To give storage back.
    Discard,
    /// To set a range to zero.
    WriteZeroes,
    /// To tell the device's name.
    GetId,
    /// Something that the device does not know.
    Other,
}

impl Operation {
    fn of(kind: u32) -> Self {
        match kind {
            VIRTIO_BLK_T_IN => Self::Read,
            VIRTIO_BLK_T_OUT => Self::Write,
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            VIRTIO_BLK_T_GET_ID => Self::GetId,
            _ => Self::Other,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded, for this many bytes of the disk.
    Ok {
        /// Bytes read, written, discarded or set to zero.
        bytes: u64,
    },
    /// The file failed.
    IoError,
    /// It is past the end of the disk, not of whole sectors, or larger than allowed.
    Invalid,
    /// It would change a disk that can only be read.
    ReadOnly,
    /// The device does not do such.
    Unsupported,
}

impl Outcome {
    /// The status byte that the driver sees.
    fn status(self) -> u8 {
        let status = match self {
            Self::Ok { .. } => VIRTIO_BLK_S_OK,
            Self::IoError | Self::Invalid | Self::ReadOnly => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        status as u8
    }
}

/// What a [`Block`] reports.
pub trait BlockEvents: Send {
    /// So many requests are with the device.
    fn in_flight(&self, requests: u16);
    /// A request was answered, that long after it was taken off the queue.
    fn done(&self, operation: Operation, outcome: Outcome, time: Duration);
    /// The file failed at this byte of it, of a flush as a whole: its request is answered with
    /// [`Outcome::IoError`] next.
    fn host_error(&self, operation: Operation, offset: Option<u64>, error: &io::Error);
}

impl BlockEvents for super::NoEvents {
    fn in_flight(&self, _requests: u16) {}
    fn done(&self, _operation: Operation, _outcome: Outcome, _time: Duration) {}
    fn host_error(&self, _operation: Operation, _offset: Option<u64>, _error: &io::Error) {}
}

/// A block device.
pub struct Block<EV> {
    disk: Disk,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; CONFIG],
    /// The driver does not flush: what it writes has to be durable when it hears of it.
    write_through: bool,
    chain: Chain,
    events: EV,
}

impl<EV: BlockEvents> Block<EV> {
    /// A device with this disk. The driver may ask for its name, of which there are 20 bytes.
    pub fn new(disk: Disk, name: &str, events: EV) -> Self {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let config = config(&disk);
        Self { disk, id, config, write_through: false, chain: Chain::default(), events }
    }

    /// Does what a request asks for, and writes its status. Returns how many bytes of the driver's memory
    /// were written.
    fn answer(&self, memory: &Memory) -> Result<(Operation, Outcome, u32), QueueError> {
        let Chain { readable, writable, .. } = &self.chain;
        let mut header = [0; HEADER];
        if readable.read(memory, 0, &mut header) < HEADER {
            return Err(QueueError::Request("there is no header"));
        }
        let Some(data) = writable.len().checked_sub(1) else {
            return Err(QueueError::Request("there is no byte for the status"));
        };
        let [kind, _reserved, sector_low, sector_high] = words(header);
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        let operation = Operation::of(kind);
        // How many bytes of the memory before the status are what the driver asked for.
        let mut filled = 0;
        let outcome = match operation {
            Operation::Read => self.read(memory, sector, data).inspect(|_| filled = data),
            Operation::Write => self.write(memory, sector, readable.len() - HEADER),
            Operation::Flush => self.flush().map(|()| 0),
            Operation::Discard | Operation::WriteZeroes => {
                self.change_range(memory, operation == Operation::Discard)
            }
            Operation::GetId if data >= self.id.len() => {
                filled = writable.write(memory, 0, &self.id);
                Ok(0)
            }
            Operation::GetId => Err(Failure::Refused(Outcome::Invalid)),
            Operation::Other => Err(Failure::Refused(Outcome::Unsupported)),
        };
        let outcome = match outcome {
            Ok(bytes) => Outcome::Ok { bytes },
            Err(Failure::Refused(outcome)) => outcome,
            Err(Failure::Host { offset, error }) => {
                self.events.host_error(operation, offset, &error);
                Outcome::IoError
            }
        };
        // The driver is told how much was written from the beginning on, and the status is at the end.
        writable.zero(memory, filled, data - filled);
        writable.write(memory, data, &[outcome.status()]);
        // A chain's length was checked to fit.
        Ok((operation, outcome, writable.len() as u32))
    }

    /// The offset of whole sectors that are on the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let whole = len.is_multiple_of(SECTOR);
        let offset = self.disk.offset(sector, len / SECTOR).filter(|_| whole);
        offset.ok_or(Failure::Refused(Outcome::Invalid))
    }

    fn read(&self, memory: &Memory, sector: u64, len: usize) -> Result<u64, Failure> {
        let offset = self.offset(sector, len as u64)?;
        let pieces = &self.chain.writable;
        self.disk
            .transfer(Direction::Read, memory, pieces, 0, len, offset)
            .map_err(|(at, error)| Failure::Host { offset: Some(at), error })?;
        Ok(len as u64)
    }

    fn write(&self, memory: &Memory, sector: u64, len: usize) -> Result<u64, Failure> {
        self.check_writable()?;
        let offset = self.offset(sector, len as u64)?;
        let pieces = &self.chain.readable;
        self.disk
            .transfer(Direction::Write, memory, pieces, HEADER, len, offset)
            .map_err(|(at, error)| Failure::Host { offset: Some(at), error })?;
        self.write_through()?;
        Ok(len as u64)
    }

    fn change_range(&self, memory: &Memory, discard: bool) -> Result<u64, Failure> {
        self.check_writable()?;
        if !self.disk.can_discard() {
            return Err(Failure::Refused(Outcome::Unsupported));
        }
        let mut range = [0; RANGE];
        let readable = &self.chain.readable;
        // One range in a request: no more are offered.
        if readable.len() != HEADER + RANGE || readable.read(memory, HEADER, &mut range) != RANGE {
            return Err(Failure::Refused(Outcome::Invalid));
        }
        let [sector_low, sector_high, sectors, flags] = words(range);
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        let (most, known) = if discard {
            (MAX_DISCARD, 0)
        } else {
            (MAX_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
        };
        if flags & !known != 0 {
            return Err(Failure::Refused(Outcome::Unsupported));
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = self.offset(sector, len)?;
        if sectors > most {
            return Err(Failure::Refused(Outcome::Invalid));
        }
        if sectors > 0 {
            let changed = if discard || flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                self.disk.discard(offset, len)
            } else {
                self.disk.write_zeroes(offset, len)
            };
            changed.map_err(|error| Failure::Host { offset: Some(offset), error })?;
            self.write_through()?;
        }
        Ok(len)
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.disk.is_read_only() { Err(Failure::Refused(Outcome::ReadOnly)) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Failure> {
        self.disk.flush().map_err(|error| Failure::Host { offset: None, error })
    }

    fn write_through(&self) -> Result<(), Failure> {
        if self.write_through { self.flush() } else { Ok(()) }
    }
}

/// Why a request failed.
enum Failure {
    /// It is not to be done.
    Refused(Outcome),
    /// The file failed, at this byte of it.
    Host { offset: Option<u64>, error: io::Error },
}

/// Little-endian words of 32 bits.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| bytes[4 * i + j])))
}

/// The configuration space (virtio 1.2, 5.2.4).
fn config(disk: &Disk) -> [u8; CONFIG] {
    use std::mem::offset_of;
    let mut config = [0; CONFIG];
    let mut set = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    set(offset_of!(virtio_blk_config, capacity), &disk.sectors().to_le_bytes());
    // A request has two more descriptors, for its header and its status.
    let segments = u32::from(QUEUE_SIZE) - 2;
    set(offset_of!(virtio_blk_config, seg_max), &segments.to_le_bytes());
    set(offset_of!(virtio_blk_config, blk_size), &(SECTOR as u32).to_le_bytes());
    if disk.can_discard() {
        let one = &1_u32.to_le_bytes();
        set(offset_of!(virtio_blk_config, max_discard_sectors), &MAX_DISCARD.to_le_bytes());
        set(offset_of!(virtio_blk_config, max_discard_seg), one);
        // Smaller pieces are set to zero; nothing is gained by that, so it is better not to ask.
        let page = (4096 / SECTOR as u32).to_le_bytes();
        set(offset_of!(virtio_blk_config, discard_sector_alignment), &page);
        let most = MAX_WRITE_ZEROES.to_le_bytes();
        set(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &most);
        set(offset_of!(virtio_blk_config, max_write_zeroes_seg), one);
        set(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
    }
    config
}

impl<EV: BlockEvents> Device for Block<EV> {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn features(&self) -> u64 {
        let mut features = feature(VIRTIO_BLK_F_SEG_MAX)
            | feature(VIRTIO_BLK_F_BLK_SIZE)
            | feature(VIRTIO_BLK_F_FLUSH);
        if self.disk.is_read_only() {
            features |= feature(VIRTIO_BLK_F_RO);
        }
        if self.disk.can_discard() {
            features |= feature(VIRTIO_BLK_F_DISCARD) | feature(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.write_through = features & feature(VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn process(&mut self, turn: &mut Turn<'_>) -> Result<Progress, QueueError> {
        // One reading of the clock per request: the next is taken as soon as one is given back.
        let mut taken = Instant::now();
        let mut signalled = taken;
        while turn.next(&mut self.chain)? {
            let outstanding = turn.outstanding()?;
            self.events.in_flight(outstanding);
            let (operation, outcome, written) = self.answer(turn.memory())?;
            let now = Instant::now();
            // Before the driver can know of it, so that it never knows of more than is counted.
            self.events.done(operation, outcome, now - taken);
            self.events.in_flight(outstanding.saturating_sub(1));
            turn.give_back(self.chain.head, written)?;
            if now - signalled >= SIGNAL_AFTER {
                turn.signal()?;
                signalled = now;
            }
            taken = now;
        }
        Ok(Progress::Done)
    }

    fn queue_stopped(&mut self, _queue: usize) {
        self.events.in_flight(0);
    }
}
