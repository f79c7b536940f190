//! A driver that does anything: a list of commands, which random bytes can be read as. Whatever they are,
//! the device must come to rest, and work again after a reset.

use devices::BusDevice;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, DRIVER_OK, Guest, HIGH, HIGH_SIZE, MEMORY, Piece, Queue, into, out};

/// Size of the queues that commands are about.
pub const SIZE: u16 = 16;
/// Most commands that bytes are read as.
const MOST: usize = 200;

/// Registers that commands access.
const REGISTERS: [u32; 32] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70,
    0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc, 0x100, 0x108,
    0x13c,
];

/// One thing that a driver does.
#[derive(Clone, Debug)]
pub enum Command {
    /// Writes a register.
    Write { register: u8, value: u32 },
    /// Reads a register.
    Read { register: u8 },
    /// Accesses anything in any width.
    Access { offset: u16, len: u8, write: bool },
    /// Sets the device going as it should, with some of the features.
    Start { features: u32 },
    /// Writes a descriptor, into the queue's table or the one behind it.
    Describe { queue: u8, index: u8, indirect: bool, address: u8, len: u16, flags: u8, next: u8 },
    /// Makes a chain available.
    Offer { queue: u8, head: u8 },
    /// Sets the index of available chains.
    Index { queue: u8, index: u16 },
    /// Notifies a queue.
    Notify { queue: u8 },
    /// Writes to a buffer.
    Fill { buffer: u8, bytes: [u8; 16] },
    /// Writes anywhere where the rings are.
    Poke { offset: u16, value: u64 },
    /// Something comes from outside.
    Outside { len: u16 },
    /// The device does what there is to do.
    Serve,
    /// Resets the device.
    Reset,
}

/// Where pieces of memory are that commands describe. The last ones are not in memory, or not wholly.
fn address(number: u8) -> u64 {
    const ODD: [u64; 8] = [
        0,
        HIGH + HIGH_SIZE - 16,
        MEMORY - 16,
        0x1_0000,
        0x2_0000,
        0x4000_0000,
        u64::MAX - 15,
        u64::MAX,
    ];
    match number {
        0..=0xf7 => BUFFERS + u64::from(number) * 0x400,
        _ => ODD[usize::from(number - 0xf8)],
    }
}

/// The length of a piece: small ones as they are, and some large ones.
fn length(number: u16) -> u32 {
    match number {
        0..=0xfff0 => u32::from(number) % 0x3000,
        0xfff1..=0xfff7 => 1 << (number - 0xfff1 + 14),
        _ => u32::MAX << (number - 0xfff8),
    }
}

/// Reads bytes as commands.
pub fn decode(bytes: &[u8]) -> Vec<Command> {
    let mut bytes = bytes.iter().copied();
    let mut commands = Vec::new();
    while let (Some(kind), true) = (bytes.next(), commands.len() < MOST) {
        let mut byte = || bytes.next().unwrap_or(0);
        commands.push(match kind % 16 {
            0 => Command::Write {
                register: byte(),
                value: u32::from_le_bytes([(); 4].map(|()| byte())),
            },
            1 => Command::Write { register: byte(), value: byte().into() },
            2 => Command::Read { register: byte() },
            3 => Command::Access {
                offset: u16::from_le_bytes([byte(), byte()]),
                len: byte(),
                write: kind >= 128,
            },
            4 => Command::Start { features: u32::from_le_bytes([(); 4].map(|()| byte())) },
            5..=7 => Command::Describe {
                queue: kind >> 6 & 1,
                index: byte(),
                indirect: kind >= 128,
                address: byte(),
                len: u16::from_le_bytes([byte(), byte()]),
                flags: byte(),
                next: byte(),
            },
            8 => Command::Offer { queue: kind >> 6 & 1, head: byte() },
            9 => {
                Command::Index { queue: kind >> 6 & 1, index: u16::from_le_bytes([byte(), byte()]) }
            }
            10 => Command::Notify { queue: kind >> 6 & 3 },
            11 => Command::Fill { buffer: byte(), bytes: [(); 16].map(|()| byte()) },
            12 => Command::Poke {
                offset: u16::from_le_bytes([byte(), byte()]),
                value: u64::from_le_bytes([(); 8].map(|()| byte())),
            },
            13 => Command::Outside { len: u16::from_le_bytes([byte(), byte()]) },
            14 => Command::Serve,
            _ => Command::Reset,
        });
    }
    commands
}

/// Bytes that are read as these commands.
#[allow(dead_code, reason = "only the seeds of the fuzz targets are made so")]
pub fn encode(commands: &[Command]) -> Vec<u8> {
    let mut all = Vec::new();
    for command in commands {
        match *command {
            Command::Write { register, value } => {
                all.extend([0, register]);
                all.extend(value.to_le_bytes());
            }
            Command::Read { register } => all.extend([2, register]),
            Command::Access { offset, len, write } => {
                all.push(3 | u8::from(write) << 7);
                all.extend(offset.to_le_bytes());
                all.push(len);
            }
            Command::Start { features } => {
                all.push(4);
                all.extend(features.to_le_bytes());
            }
            Command::Describe { queue, index, indirect, address, len, flags, next } => {
                all.extend([5 | queue << 6 | u8::from(indirect) << 7, index, address]);
                all.extend(len.to_le_bytes());
                all.extend([flags, next]);
            }
            Command::Offer { queue, head } => all.extend([8 | queue << 6, head]),
            Command::Index { queue, index } => {
                all.push(9 | queue << 6);
                all.extend(index.to_le_bytes());
            }
            Command::Notify { queue } => all.push(10 | queue << 6),
            Command::Fill { buffer, bytes } => {
                all.extend([11, buffer]);
                all.extend(bytes);
            }
            Command::Poke { offset, value } => {
                all.push(12);
                all.extend(offset.to_le_bytes());
                all.extend(value.to_le_bytes());
            }
            Command::Outside { len } => {
                all.push(13);
                all.extend(len.to_le_bytes());
            }
            Command::Serve => all.push(14),
            Command::Reset => all.push(15),
        }
    }
    all
}

/// Does what the commands say to a device with `N` queues. `outside` makes something come from outside.
pub fn run<const N: usize>(guest: &Guest, commands: &[Command], outside: impl Fn(usize)) {
    // The places of the rings are always the same, whether they are set up or not.
    let mut queues: [Queue; N] =
        std::array::from_fn(|index| Queue::new(&guest.memory, index as u32, SIZE, false));
    for command in commands {
        match *command {
            Command::Write { register, value } => {
                guest.write(REGISTERS[usize::from(register) % REGISTERS.len()], value);
            }
            Command::Read { register } => {
                guest.read(REGISTERS[usize::from(register) % REGISTERS.len()]);
            }
            Command::Access { offset, len, write } => {
                let mut data = [0x55; 8];
                let data = &mut data[..usize::from(len % 8) + 1];
                if write {
                    guest.transport.write(offset.into(), data);
                } else {
                    guest.transport.read(offset.into(), data);
                }
            }
            Command::Start { features } => {
                let features = guest.try_negotiate(u64::from(features) | 1 << 32);
                let features = features.unwrap_or_else(|| guest.negotiate(1 << 32));
                queues = std::array::from_fn(|index| guest.queue(index as u32, SIZE, features));
                guest.add_status(DRIVER_OK);
            }
            Command::Describe { queue, index, indirect, address: at, len, flags, next } => {
                let queue = &queues[usize::from(queue) % N];
                let table = if indirect { queue.tables } else { queue.descriptors };
                // A table can also be described, by the address that it is at.
                let at = if flags & 4 != 0 && at >= 0x80 { queue.tables } else { address(at) };
                let piece = Piece(at, length(len), u16::from(flags % 8));
                queue.describe(table, u16::from(index) % 64, piece, next.into());
            }
            Command::Offer { queue, head } => {
                let queue = &mut queues[usize::from(queue) % N];
                queue.offer(head.into());
                queue.expose();
            }
            Command::Index { queue, index } => queues[usize::from(queue) % N].set_index(index),
            Command::Notify { queue } => guest.write(0x50, queue.into()),
            Command::Fill { buffer, bytes } => {
                guest.put(BUFFERS + u64::from(buffer) * 0x400, &bytes)
            }
            Command::Poke { offset, value } => {
                let at = GuestAddress(0x1_0000 + u64::from(offset) * 2);
                guest.memory.write_obj(value, at).unwrap();
            }
            Command::Outside { len } => outside(len.into()),
            Command::Serve => assert_rests(guest),
            Command::Reset => {
                guest.write(0x70, 0);
                assert_eq!((guest.status(), guest.read(0x60)), (0, 0));
            }
        }
    }
    assert_rests(guest);
}

/// The device comes to rest: it does not wake itself up for ever.
fn assert_rests(guest: &Guest) {
    assert!(guest.serve() < 100_000, "it never comes to rest");
}

/// After a reset a read of the first sector gives `sector`.
pub fn assert_reads(guest: &Guest, sector: impl FnOnce() -> Vec<u8>) {
    let [mut queue] = guest.start(1 << 32, SIZE);
    guest.put(BUFFERS, &[0; 16]);
    let pieces = [out(BUFFERS, 16), into(BUFFERS + 0x400, 512), into(BUFFERS + 0x800, 1)];
    assert_eq!(guest.submit(&mut queue, &pieces), 513);
    assert_eq!(guest.get(BUFFERS + 0x400, 512), sector());
    assert_eq!(guest.get(BUFFERS + 0x800, 1), [0]);
}

/// After a reset there are random bytes.
pub fn assert_gives_random_bytes(guest: &Guest) {
    let [mut queue] = guest.start(1 << 32, SIZE);
    assert_eq!(guest.submit(&mut queue, &[into(BUFFERS, 64)]), 64);
}

/// After a reset packets are sent to `outside`, and received from there.
pub fn assert_sends_and_receives(
    guest: &Guest,
    send: impl FnOnce(&[u8]),
    receive: impl FnOnce() -> Vec<u8>,
) {
    // What came before the first driver was ready is for it; what came before another one is not.
    guest.start::<2>(1 << 32, SIZE);
    guest.serve();
    let [mut rx, mut tx] = guest.start(1 << 32, SIZE);
    guest.put(BUFFERS, &[0x77; 80]);
    assert_eq!(guest.submit(&mut tx, &[out(BUFFERS, 80)]), 0);
    assert_eq!(receive(), [0x77; 80]);
    rx.add(&[into(BUFFERS, 2000)]);
    guest.notify(&rx);
    guest.serve();
    send(&[0x66; 100]);
    guest.serve();
    assert_eq!(rx.take(), [(0, 100)]);
    let mut expected = [0x66; 100];
    expected[10..12].copy_from_slice(&[1, 0]);
    assert_eq!(guest.get(BUFFERS, 100), expected);
}
