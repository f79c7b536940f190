//! Guests that do what a table of steps says: see `guests/exits64.s` and `exits16.s`. And one that sends
//! back what it receives: `guests/echo64.s`. And a kernel that uses and abuses virtio devices:
//! `guests/virtio64.s`. And one that reads its disk all the time: `guests/disk64.s`.

std::arch::global_asm!(include_str!("../guests/exits16.s"));
std::arch::global_asm!(include_str!("../guests/exits64.s"));
std::arch::global_asm!(include_str!("../guests/echo64.s"));
std::arch::global_asm!(include_str!("../guests/virtio64.s"));
std::arch::global_asm!(include_str!("../guests/disk64.s"));

unsafe extern "C" {
    static tests_guest_exits16_start: u8;
    static tests_guest_exits16_end: u8;
    static tests_guest_exits64_start: u8;
    static tests_guest_exits64_end: u8;
    static tests_guest_echo64_start: u8;
    static tests_guest_echo64_end: u8;
    static tests_guest_virtio64_start: u8;
    static tests_guest_virtio64_end: u8;
    static tests_guest_disk64_start: u8;
    static tests_guest_disk64_end: u8;
}

/// The mode that a guest is entered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode.
    Real,
    /// 64-bit long mode.
    Long,
}

/// A port where nothing is: the one that PCs show their power-on test's progress at.
pub const NO_PORT: u32 = 0x80;
/// The first serial port's data register.
pub const COM1: u32 = 0x3f8;
/// The port that ends the guest when it is written; it reads as all ones.
pub const EXIT_PORT: u32 = 0xf4;
/// An address in the gap where nothing is.
pub const NO_MEMORY: u32 = 0xd000_0000;
/// An offset from FFFF:0000 where nothing is, if the guest has 1 MiB of memory.
pub const NO_MEMORY_REAL: u32 = 0x100;

/// What to do, in the order of the jump tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// OUT of a byte.
    Out8,
    /// OUT of two bytes.
    Out16,
    /// OUT of four bytes.
    Out32,
    /// IN of a byte.
    In8,
    /// IN of two bytes.
    In16,
    /// IN of four bytes.
    In32,
    /// One `rep outsb` of so many elements; what is sent is the program.
    Outs8,
    /// One `rep outsw`.
    Outs16,
    /// One `rep outsd`.
    Outs32,
    /// One `rep insb` of so many elements.
    Ins8,
    /// One `rep insw`.
    Ins16,
    /// One `rep insd`.
    Ins32,
    /// Read of a byte of memory.
    Read8,
    /// Read of two bytes.
    Read16,
    /// Read of four bytes.
    Read32,
    /// Read of eight bytes (in real mode: crashes).
    Read64,
    /// Write of a byte of memory.
    Write8,
    /// Write of two bytes.
    Write16,
    /// Write of four bytes.
    Write32,
    /// Write of eight bytes (in real mode: crashes).
    Write64,
    /// HLT.
    Hlt,
    /// CPUID.
    Cpuid,
    /// vCPU 0 ends the guest, with the address as status; the others spin.
    End,
    /// Crash: triple fault.
    Crash,
    /// Run for ever without an exit.
    Spin,
    /// Go back to the first step.
    Again,
}

/// A step of the table.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    op: Op,
    count: u32,
    per_index: u32,
    address: u32,
}

impl Step {
    /// Does `op` with `address`, `count` times.
    pub fn new(op: Op, count: u32, address: u32) -> Self {
        Self { op, count, per_index: 0, address }
    }

    /// And `more` times more for each vCPU before this one.
    #[must_use]
    pub fn per_index(mut self, more: u32) -> Self {
        self.per_index = more;
        self
    }

    /// How often vCPU `index` does it.
    pub fn times(&self, index: u32) -> u64 {
        u64::from(self.count) + u64::from(self.per_index) * u64::from(index)
    }

    /// What it does.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Where it does that.
    pub fn address(&self) -> u32 {
        self.address
    }
}

/// Every vCPU sends a byte to COM1. If the console is [blocked](crate::vmm::Vmm::blocked_console), the
/// vCPU stays there, without an exit or any other trace, until it is released. Others that want something
/// of COM1 wait as well.
pub fn park() -> Step {
    Step::new(Op::Out8, 1, COM1)
}

/// vCPU 0 ends the guest with a status; the others spin until then.
pub fn end(status: u8) -> Step {
    Step::new(Op::End, 1, status.into())
}

/// The bytes of a guest program that does these steps; after the last one it spins.
pub fn program(mode: Mode, steps: &[Step]) -> Vec<u8> {
    let (start, end) = match mode {
        Mode::Real => (&raw const tests_guest_exits16_start, &raw const tests_guest_exits16_end),
        Mode::Long => (&raw const tests_guest_exits64_start, &raw const tests_guest_exits64_end),
    };
    let mut bytes = between(start, end);
    for step in steps.iter().chain([&Step::new(Op::Spin, 1, 0)]) {
        assert!(mode == Mode::Long || step.count <= u16::MAX.into(), "real mode counts in 16 bits");
        bytes.extend_from_slice(&(step.op as u16).to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        for word in [step.count, step.per_index, step.address] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// The bytes of a guest, for long mode, that sends back what COM1 receives and ends after a `!`.
pub fn echo() -> Vec<u8> {
    between(&raw const tests_guest_echo64_start, &raw const tests_guest_echo64_end)
}

/// Where a kernel of ours is loaded and entered.
const KERNEL: u64 = 1 << 20;

/// An ELF kernel that writes nonsense to the registers of four virtio devices, so many `passes`, makes the
/// last of them ready, notifies it [`NOTIFICATIONS`] times, has so many `requests`, each of which waits for its
/// interrupt, and powers off.
pub fn virtio_kernel(passes: u32, requests: u32) -> Vec<u8> {
    let mut code =
        between(&raw const tests_guest_virtio64_start, &raw const tests_guest_virtio64_end);
    code.extend(passes.to_le_bytes());
    code.extend(requests.to_le_bytes());
    elf(&code)
}

/// An ELF kernel that reads the first 4 KiB of its first disk, one request after the other, until it is killed. After each it
/// writes to a port where nothing is.
pub fn disk_kernel() -> Vec<u8> {
    elf(&between(&raw const tests_guest_disk64_start, &raw const tests_guest_disk64_end))
}

/// A kernel of this code.
fn elf(code: &[u8]) -> Vec<u8> {
    let size = code.len() as u64;
    // One segment, right behind the headers of 64 and 56 bytes: an executable for x86-64.
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0];
    elf.extend(1_u32.to_le_bytes());
    [KERNEL, 64, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    [64_u16, 56, 1, 0, 0, 0].iter().for_each(|half| elf.extend(half.to_le_bytes()));
    [1_u32, 7].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [120, KERNEL, KERNEL, size, size, 8].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}

/// How often the last of the devices is notified.
pub const NOTIFICATIONS: u64 = 1000;
/// How many writes of its registers make it ready.
pub const SET_UP: u64 = 12;
/// Its interrupt line.
pub const LAST_GSI: u32 = 8;

/// What is between two labels of a guest.
fn between(start: *const u8, end: *const u8) -> Vec<u8> {
    // SAFETY: both are labels around one piece of this program's read-only data.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }.to_vec()
}
