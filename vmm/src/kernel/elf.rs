//! ELF images of kernels (`vmlinux`): what a kernel's build leaves before it is packed.
//!
//! Numbers and layouts are those of the System V ABI's object files, and `elf(5)`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use super::{Format, Image, KernelError};
use crate::arch::x86_64::layout::{HIGH_MEMORY, MMIO_GAP};

const MAGIC: &[u8] = b"\x7fELF";
/// Bytes of the identification: class, and order of bytes.
const CLASS: usize = 4;
const CLASS_64: u8 = 2;
const DATA: usize = 5;
const DATA_LITTLE_ENDIAN: u8 = 1;
/// Sizes of the file's header and of a program header.
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// Types of files: executable, and executable at any address.
const TYPES: [u16; 2] = [2, 3];
/// The machine.
const X86_64: u16 = 62;
const I386: u16 = 3;
/// The type of a program header that is to be loaded.
const LOAD: u32 = 1;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// What a bzImage's header would say (`Documentation/arch/x86/boot.rst`): an ELF image comes without, and the
/// kernel wants one.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const VERSION: u16 = 0x20f;
/// The longest command line of x86 kernels, and the highest address of a RAM disk.
const CMDLINE_SIZE: u32 = 2047;
const INITRD_ADDR_MAX: u32 = 0x7fff_ffff;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// Whether a file that begins like this is an ELF file.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Checks the headers of an ELF image.
///
/// # Errors
/// [`KernelError`] says what is wrong with them.
pub fn check(path: &Path, file: &File, head: &[u8], size: u64) -> Result<Image, KernelError> {
    let corrupt = |what| KernelError::Corrupt { path: path.to_path_buf(), what };
    let truncated = |needed| KernelError::Truncated { path: path.to_path_buf(), size, needed };
    let other = |machine: String| KernelError::OtherMachine { path: path.to_path_buf(), machine };

    let header = head.get(..HEADER_SIZE).ok_or_else(|| truncated(HEADER_SIZE as u64))?;
    let machine = u16_at(header, 18);
    if header[DATA] != DATA_LITTLE_ENDIAN {
        return Err(other("a big-endian machine".to_string()));
    }
    if header[CLASS] != CLASS_64 || machine == I386 {
        return Err(other("32-bit machines".to_string()));
    }
    if machine != X86_64 {
        return Err(other(format!("a machine with ELF number {machine}")));
    }
    if !TYPES.contains(&u16_at(header, 16)) {
        return Err(corrupt("it is not an executable"));
    }
    let (entry, headers_at) = (u64_at(header, 24), u64_at(header, 32));
    let count = u16_at(header, 56);
    if usize::from(u16_at(header, 54)) != PROGRAM_HEADER_SIZE || headers_at < HEADER_SIZE as u64 {
        return Err(corrupt("its program headers are not where they can be"));
    }
    if !(1..=MAX_PROGRAM_HEADERS).contains(&count) {
        return Err(corrupt("it has no program headers, or too many"));
    }
    let length = PROGRAM_HEADER_SIZE * usize::from(count);
    let headers_end = headers_at.checked_add(length as u64);
    let headers_end = headers_end.ok_or_else(|| corrupt("its program headers are nowhere"))?;
    if headers_end > size {
        return Err(truncated(headers_end));
    }
    let mut headers = vec![0; length];
    file.read_exact_at(&mut headers, headers_at).map_err(|error| KernelError::Read {
        what: "kernel",
        path: path.to_path_buf(),
        error,
    })?;

    let (mut start, mut end, mut has_entry) = (u64::MAX, 0, false);
    for header in headers.chunks_exact(PROGRAM_HEADER_SIZE) {
        let (offset, address) = (u64_at(header, 8), u64_at(header, 24));
        let (in_file, in_memory) = (u64_at(header, 32), u64_at(header, 40));
        if u32_at(header, 0) != LOAD || (in_file, in_memory) == (0, 0) {
            continue;
        }
        if in_file > in_memory {
            return Err(corrupt("a segment is larger in the file than in memory"));
        }
        let file_end = offset.checked_add(in_file);
        let file_end = file_end.ok_or_else(|| corrupt("a segment is nowhere in the file"))?;
        if in_file > 0 && file_end > size {
            return Err(truncated(file_end));
        }
        let segment_end = address.checked_add(in_memory);
        let segment_end = segment_end.ok_or_else(|| corrupt("a segment is nowhere in memory"))?;
        has_entry |= (address..segment_end).contains(&entry);
        (start, end) = (start.min(address), end.max(segment_end));
    }
    if end == 0 {
        return Err(corrupt("there is nothing to be loaded"));
    }
    if start < HIGH_MEMORY.0 {
        // Such as a program of the host's.
        return Err(KernelError::NotAKernel(path.to_path_buf()));
    }
    if end > MMIO_GAP.0 {
        return Err(KernelError::TooLarge { path: path.to_path_buf(), end });
    }
    if !has_entry {
        return Err(corrupt("its entry is in no segment"));
    }
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION,
        kernel_alignment: KERNEL_ALIGNMENT,
        cmdline_size: CMDLINE_SIZE,
        initrd_addr_max: INITRD_ADDR_MAX,
        ..Default::default()
    };
    Ok(Image {
        format: Format::Elf,
        header,
        load: GuestAddress(start),
        entry: GuestAddress(entry),
        end: GuestAddress(end),
    })
}
