//! bzImages: what kernels are commonly installed as. A header for the boot loader, and a program that
//! unpacks the kernel (`Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestAddress};

use super::{Format, Image, KernelError};
use crate::arch::x86_64::layout::{HIGH_MEMORY, MMIO_GAP};

/// Where the header begins, and where its magic number and jump instruction are.
const HEADER: usize = 0x1f1;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// The second byte of the jump over the header: its end, from [`MAGIC_AT`].
const JUMP_TARGET: usize = 0x201;

/// The first version of the protocol that tells whether there is a 64-bit entry.
const VERSION_64_BIT: u16 = 0x20c;
/// `loadflags`: the program is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is an entry for 64-bit mode.
const KERNEL_64: u16 = 1 << 0;
/// Where that entry is in the program.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// What a packed kernel begins with: gzip, bzip2, LZMA, XZ, LZO, LZ4, Zstandard, and an ELF file that is not
/// packed.
const PAYLOADS: [[u8; 2]; 9] = [
    [0x1f, 0x8b],
    [0x1f, 0x9e],
    [0x42, 0x5a],
    [0x5d, 0x00],
    [0xfd, 0x37],
    [0x89, 0x4c],
    [0x02, 0x21],
    [0x28, 0xb5],
    [0x7f, 0x45],
];

/// Whether a file that begins like this is a bzImage.
pub fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// Bytes of the image, without what may follow: what comes before the program, and the program.
pub fn size(header: &setup_header) -> u64 {
    setup_size(header) + system_size(header)
}

fn setup_size(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    (sectors + 1) * SECTOR
}

fn system_size(header: &setup_header) -> u64 {
    u64::from(header.syssize) * 16
}

/// Checks the header of a bzImage.
///
/// # Errors
/// [`KernelError`] says what is wrong with it.
pub fn check(path: &Path, file: &File, head: &[u8], size: u64) -> Result<Image, KernelError> {
    let corrupt = |what| KernelError::Corrupt { path: path.to_path_buf(), what };
    let truncated = |needed| KernelError::Truncated { path: path.to_path_buf(), size, needed };

    // The header ends where the jump goes; what follows is code, and not for the boot parameters.
    let end = MAGIC_AT + usize::from(head[JUMP_TARGET]);
    let bytes = head.get(HEADER..end).ok_or_else(|| truncated(end as u64))?;
    let mut header = setup_header::default();
    let length = bytes.len().min(size_of::<setup_header>());
    header.as_mut_slice()[..length].copy_from_slice(&bytes[..length]);

    let version = header.version;
    if version < VERSION_64_BIT {
        return Err(KernelError::OldProtocol { path: path.to_path_buf(), version });
    }
    if header.xloadflags & KERNEL_64 == 0 {
        let machine = "32-bit machines".to_string();
        return Err(KernelError::OtherMachine { path: path.to_path_buf(), machine });
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(corrupt("its header says that it is not to be loaded at 1 MiB or above"));
    }
    let (setup_size, system_size) = (setup_size(&header), system_size(&header));
    if self::size(&header) > size {
        return Err(truncated(self::size(&header)));
    }
    if system_size <= ENTRY_64 {
        return Err(corrupt("its header says that there is no program"));
    }
    let (payload, payload_size) = (header.payload_offset, header.payload_length);
    if u64::from(payload) + u64::from(payload_size) > system_size {
        return Err(corrupt("its header says that the packed kernel ends after the program"));
    }
    if payload_size != 0 {
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, setup_size + u64::from(payload)).map_err(|error| {
            KernelError::Read { what: "kernel", path: path.to_path_buf(), error }
        })?;
        if !PAYLOADS.contains(&magic) {
            return Err(corrupt("the packed kernel is not of any known format"));
        }
    }
    // Whatever follows the program in the file (a signature) is loaded too.
    let load = if header.relocatable_kernel != 0 {
        header.pref_address
    } else {
        u64::from(header.code32_start)
    };
    if !(HIGH_MEMORY.0..MMIO_GAP.0).contains(&load) {
        return Err(corrupt("its header says that it is to be loaded where no kernel can be"));
    }
    let end = load + (size - setup_size).max(u64::from(header.init_size));
    if end > MMIO_GAP.0 {
        return Err(KernelError::TooLarge { path: path.to_path_buf(), end });
    }
    header.code32_start = load as u32;
    Ok(Image {
        format: Format::BzImage,
        header,
        load: GuestAddress(load),
        entry: GuestAddress(load + ENTRY_64),
        end: GuestAddress(end),
    })
}
