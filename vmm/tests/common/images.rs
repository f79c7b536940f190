//! Kernels for tests: a few instructions in the form of a bzImage or an ELF image.

// Each test uses some of them.
#![allow(dead_code)]

/// Where the images are loaded.
pub const LOAD: u64 = 0x20_0000;
/// Where the code is in the program of a bzImage, and in an ELF image's segment.
pub const ENTRY: u64 = 0x200;
/// Bytes before the program of a bzImage.
pub const SETUP_SIZE: usize = 1024;

/// Puts a number into the first bytes at an offset.
pub fn put(bytes: &mut [u8], at: usize, size: usize, value: u64) {
    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// A bzImage that is entered at this code.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut program = vec![0; ENTRY as usize];
    // What a kernel packed by gzip begins with.
    program[..2].copy_from_slice(&[0x1f, 0x8b]);
    program.extend_from_slice(code);
    // With four bytes of 0 at the end: no checksum.
    program.resize((program.len() + 4).next_multiple_of(16), 0);

    let mut image = vec![0; SETUP_SIZE];
    for (at, size, value) in [
        (0x1f1, 1, 1),                         // setup_sects
        (0x1f4, 4, program.len() as u64 / 16), // syssize
        (0x1fe, 2, 0xaa55),                    // boot_flag
        (0x200, 2, 0x6aeb),                    // jump
        (0x202, 4, 0x5372_6448),               // header: "HdrS"
        (0x206, 2, 0x20f),                     // version
        (0x211, 1, 1),                         // loadflags: LOADED_HIGH
        (0x214, 4, 0x10_0000),                 // code32_start
        (0x22c, 4, 0x7fff_ffff),               // initrd_addr_max
        (0x230, 4, 0x20_0000),                 // kernel_alignment
        (0x234, 1, 1),                         // relocatable_kernel
        (0x236, 2, 1),                         // xloadflags: XLF_KERNEL_64
        (0x238, 4, 2047),                      // cmdline_size
        (0x248, 4, 0),                         // payload_offset
        (0x24c, 4, 2),                         // payload_length
        (0x258, 8, LOAD),                      // pref_address
        (0x260, 4, 0x1_0000),                  // init_size
    ] {
        put(&mut image, at, size, value);
    }
    image.extend_from_slice(&program);
    image
}

/// An ELF image that is entered at this code.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 56;
    let mut image = vec![0; HEADERS];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let size = ENTRY + code.len() as u64;
    for (at, size, value) in [
        (16, 2, 2),              // e_type: executable
        (18, 2, 62),             // e_machine: x86-64
        (20, 4, 1),              // e_version
        (24, 8, LOAD + ENTRY),   // e_entry
        (32, 8, 64),             // e_phoff
        (52, 2, 64),             // e_ehsize
        (54, 2, 56),             // e_phentsize
        (56, 2, 1),              // e_phnum
        (64, 4, 1),              // p_type: to be loaded
        (68, 4, 7),              // p_flags
        (72, 8, HEADERS as u64), // p_offset
        (80, 8, LOAD),           // p_vaddr
        (88, 8, LOAD),           // p_paddr
        (96, 8, size),           // p_filesz
        (104, 8, 0x1_0000),      // p_memsz
        (112, 8, 0x1000),        // p_align
    ] {
        put(&mut image, at, size, value);
    }
    image.resize(HEADERS + ENTRY as usize, 0);
    image.extend_from_slice(code);
    image
}
