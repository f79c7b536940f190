//! Images as they should be, and as they should not.

use linux_loader::loader::bootparam::boot_params;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::arch::x86_64::layout::{ZERO_PAGE, memory_ranges};
use crate::images::{ENTRY, LOAD, SETUP_SIZE, bzimage, elf, put};

const MIB: u64 = 1 << 20;
const CODE: &[u8] = b"this is code";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, kernel: &[u8], initrd: Option<&[u8]>) -> Result<Kernel, KernelError> {
        let kernel = self.write("vmlinuz", kernel);
        let initrd = initrd.map(|bytes| self.write("initrd", bytes));
        Kernel::open(&kernel, initrd.as_deref(), "console=ttyS0 quiet".into())
    }
}

fn memory(size: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> =
        memory_ranges(size).into_iter().map(|(at, size)| (at, size as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn bytes(memory: &GuestMemoryMmap, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn everything_is_where_the_kernel_is_told_that_it_is() {
    let files = Files::new();
    let initrd: Vec<u8> = (0..5000u32).map(|i| i as u8 | 1).collect();
    for (image, has_own_header) in [(bzimage(CODE), true), (elf(CODE), false)] {
        let kernel = files.open(&image, Some(&initrd)).unwrap();
        // As often as one likes.
        kernel.load(&memory(8 * MIB)).unwrap();
        let memory = memory(8 * MIB);
        let entry = kernel.load(&memory).unwrap();
        assert_eq!(entry.address.0, LOAD + ENTRY);
        assert_eq!(bytes(&memory, entry.address.0, CODE.len()), CODE);

        let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
        assert_eq!({ params.hdr.header }, 0x5372_6448);
        assert_eq!({ params.hdr.boot_flag }, 0xaa55);
        assert_eq!({ params.hdr.type_of_loader }, 0xff);
        assert_eq!({ params.hdr.init_size }, if has_own_header { 0x1_0000 } else { 0 });
        let cmdline = { params.hdr.cmd_line_ptr };
        assert_eq!(bytes(&memory, cmdline.into(), 20), b"console=ttyS0 quiet\0");
        // At the top of memory.
        let at = { params.hdr.ramdisk_image };
        assert_eq!((at, { params.hdr.ramdisk_size }), (0x7f_e000, 5000));
        assert_eq!(bytes(&memory, at.into(), 5000), initrd);
        assert_ne!(entry.page_tables.0, 0);
    }
}

#[test]
fn a_ram_disk_lies_below_the_address_that_the_kernel_allows() {
    let files = Files::new();
    let mut image = bzimage(CODE);
    put(&mut image, 0x22c, 4, 0x3f_ffff);
    let memory = memory(8 * MIB);
    files.open(&image, Some(&[7; 4097])).unwrap().load(&memory).unwrap();
    let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
    assert_eq!({ params.hdr.ramdisk_image }, 0x3f_e000);
    assert_eq!(bytes(&memory, 0x3f_f000, 2), [7, 0]);
}

#[test]
fn the_header_ends_where_its_jump_goes() {
    let files = Files::new();
    let mut image = bzimage(CODE);
    // An older header, and code behind it.
    put(&mut image, 0x200, 2, 0x62eb);
    put(&mut image, 0x264, 4, 0xdead_beef);
    let memory = memory(8 * MIB);
    files.open(&image, None).unwrap().load(&memory).unwrap();
    let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
    assert_eq!({ params.hdr.init_size }, 0x1_0000);
    assert_eq!({ params.hdr.handover_offset }, 0);
}

#[test]
fn a_signature_after_the_program_is_no_harm() {
    let files = Files::new();
    let mut image = bzimage(CODE);
    image.extend_from_slice(&[0x55; 3000]);
    assert!(files.open(&image, None).unwrap().load(&memory(8 * MIB)).is_ok());
}

/// What is said of an image that is changed at these places.
fn error(image: &[u8], changes: &[(usize, usize, u64)]) -> String {
    let mut image = image.to_vec();
    for (at, size, value) in changes {
        put(&mut image, *at, *size, *value);
    }
    let error = Files::new().open(&image, None).expect_err(&format!("{changes:x?}"));
    let text = error.to_string();
    assert!(text.contains("vmlinuz"), "{text}");
    text
}

#[test]
fn what_is_wrong_with_a_bzimage_is_named() {
    let image = bzimage(CODE);
    for (changes, part) in [
        (&[(0x206, 2, 0x20b)][..], "protocol 2.11"),
        (&[(0x236, 2, 0)], "for 32-bit machines"),
        (&[(0x211, 1, 0)], "not to be loaded at 1 MiB"),
        (&[(0x1f4, 4, 0x100)], "truncated: it has 1552 bytes, but should have at least 5120"),
        (&[(0x1f4, 4, 0xffff_ffff)], "truncated"),
        (&[(0x1f1, 1, 64)], "truncated"),
        (&[(0x1f4, 4, 0)], "there is no program"),
        (&[(0x248, 4, 0xffff_ffff)], "packed kernel ends after the program"),
        (&[(0x24c, 4, 0xffff_ffff)], "packed kernel ends after the program"),
        (&[(SETUP_SIZE, 2, 0)], "not of any known format"),
        (&[(0x258, 8, 0x1000)], "where no kernel can be"),
        (&[(0x258, 8, u64::MAX)], "where no kernel can be"),
        (&[(0x234, 1, 0), (0x214, 4, 0)], "where no kernel can be"),
        (&[(0x260, 4, 0xffff_ffff)], "below 3 GiB"),
        (&[(0x200, 2, 0)], "protocol 0.00"),
    ] {
        let text = error(&image, changes);
        assert!(text.contains(part), "{text}");
    }
    for (size, part) in [
        (0, "is empty"),
        (0x205, "is not a kernel"),
        (0x210, "truncated"),
        (SETUP_SIZE + 512, "truncated"),
        (image.len() - 1, "truncated"),
    ] {
        let text = error(&image[..size], &[]);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_is_wrong_with_an_elf_image_is_named() {
    let image = elf(CODE);
    for (changes, part) in [
        (&[(5, 1, 2)][..], "big-endian"),
        (&[(4, 1, 1)], "32-bit"),
        (&[(18, 2, 3)], "32-bit"),
        (&[(18, 2, 183)], "ELF number 183"),
        (&[(16, 2, 1)], "not an executable"),
        (&[(54, 2, 32)], "program headers are not where"),
        (&[(32, 8, 0)], "program headers are not where"),
        (&[(32, 8, u64::MAX)], "program headers are nowhere"),
        (&[(32, 8, 1 << 40)], "truncated"),
        (&[(56, 2, 0)], "no program headers"),
        (&[(56, 2, 0xffff)], "no program headers, or too many"),
        (&[(64, 4, 4)], "nothing to be loaded"),
        (&[(96, 8, 0x2_0000)], "larger in the file"),
        (&[(104, 8, 0)], "larger in the file"),
        (&[(72, 8, u64::MAX)], "nowhere in the file"),
        (&[(72, 8, 0x1000)], "truncated"),
        (&[(88, 8, u64::MAX)], "nowhere in memory"),
        (&[(88, 8, 0x1000)], "is not a kernel"),
        (&[(88, 8, 0xc000_0000), (24, 8, 0xc000_0000)], "below 3 GiB"),
        (&[(104, 8, 1 << 40)], "below 3 GiB"),
        (&[(24, 8, 0x1000)], "entry is in no segment"),
        (&[(24, 8, LOAD + 0x1_0000)], "entry is in no segment"),
    ] {
        let text = error(&image, changes);
        assert!(text.contains(part), "{text}");
    }
    for size in [4, 63, 64, 119, 120, image.len() - 1] {
        let text = error(&image[..size], &[]);
        assert!(text.contains("truncated"), "{size}: {text}");
    }
}

#[test]
fn other_files_are_not_kernels() {
    for other in [&b"#!/bin/sh\nexit 0\n"[..], &[0; 8192], &[0x1f, 0x8b, 8, 0]] {
        assert!(error(other, &[]).contains("is not a kernel: give a bzImage"));
    }
    let program = std::env::current_exe().unwrap();
    let text = Kernel::open(&program, None, String::new()).unwrap_err().to_string();
    assert!(text.contains("is not a kernel"), "{text}");

    let files = Files::new();
    let open = |path: &Path| Kernel::open(path, None, String::new()).unwrap_err().to_string();
    assert!(open(&files.0.path().join("none")).contains("No such file"));
    assert!(open(files.0.path()).contains("is a directory"));
    assert!(open(Path::new("/dev/zero")).contains("not a regular file"));
}

#[test]
fn what_is_wrong_with_a_ram_disk_is_named() {
    let files = Files::new();
    let kernel = files.write("vmlinuz", &bzimage(CODE));
    let open = |path: &Path| Kernel::open(&kernel, Some(path), String::new());
    let error = |path: &Path| open(path).unwrap_err().to_string();
    let text = error(&files.0.path().join("none"));
    assert!(text.contains("RAM disk") && text.contains("No such file"), "{text}");
    assert!(error(&files.write("initrd", b"")).contains("initrd is empty"));
    assert!(error(Path::new("/dev/null")).contains("not a regular file"));

    let file = File::create(files.0.path().join("large")).unwrap();
    file.set_len(1 << 33).unwrap();
    assert!(error(&files.0.path().join("large")).contains("it has 8589934592 bytes"));
    // Larger than what the kernel can take, whatever memory there is; and than this memory.
    let memory = memory(8 * MIB);
    file.set_len(0x7fff_ffff).unwrap();
    let kernel = open(&files.0.path().join("large")).unwrap();
    let text = kernel.load(&memory).unwrap_err().to_string();
    assert!(text.contains("and the kernel can take 2145320960"), "{text}");
    file.set_len(6 * MIB).unwrap();
    let kernel = open(&files.0.path().join("large")).unwrap();
    let text = kernel.load(&memory).unwrap_err().to_string();
    assert!(text.contains("with its RAM disk needs 9 MiB") && text.contains("--memory"), "{text}");
    // It was larger when it was opened.
    file.set_len(MIB).unwrap();
    let kernel = open(&files.0.path().join("large")).unwrap();
    file.set_len(MIB - 1).unwrap();
    let text = kernel.load(&memory).unwrap_err().to_string();
    assert!(text.contains("RAM disk") && text.contains("can not be loaded"), "{text}");
}

#[test]
fn too_little_memory_is_told_with_how_much_is_needed() {
    let files = Files::new();
    for image in [bzimage(CODE), elf(CODE)] {
        let kernel = files.open(&image, None).unwrap();
        let text = kernel.load(&memory(2 * MIB)).unwrap_err().to_string();
        assert!(text.contains("needs 3 MiB of memory to start, but there are 2"), "{text}");
        kernel.load(&memory(3 * MIB)).unwrap();
    }
}

#[test]
fn a_command_line_is_as_long_as_the_kernel_allows() {
    let files = Files::new();
    let mut image = bzimage(CODE);
    let open = |path: &Path, length| Kernel::open(path, None, "x".repeat(length));
    for (allowed, most) in [(2047, 2047), (100, 100), (0xffff_ffff, 65535)] {
        put(&mut image, 0x238, 4, allowed);
        let path = files.write("vmlinuz", &image);
        open(&path, most).unwrap().load(&memory(8 * MIB)).unwrap();
        let text = open(&path, most + 1).unwrap_err().to_string();
        assert!(text.contains(&format!("at most {most}")) && text.contains("--cmdline"), "{text}");
    }
    let path = files.write("vmlinux", &elf(CODE));
    assert!(open(&path, 2047).is_ok() && open(&path, 2048).is_err());
}

#[test]
fn a_kernel_that_is_cut_after_it_was_opened_is_an_error() {
    let files = Files::new();
    for image in [bzimage(CODE), elf(CODE)] {
        let kernel = files.open(&image, None).unwrap();
        File::options().write(true).open(&kernel.path).unwrap().set_len(300).unwrap();
        let text = kernel.load(&memory(8 * MIB)).unwrap_err().to_string();
        assert!(text.contains("can not be loaded"), "{text}");
    }
}

proptest! {
    /// Whatever the file is, it is refused, or what is loaded and entered is in memory.
    #[test]
    fn no_image_does_harm(
        is_elf: bool,
        changes in prop::collection::vec((0..0x280_usize, 1..9_usize, any::<u64>(), 0..64_u32), 1..8),
        cut in prop::option::of(0..2000_usize),
        mib in 1..10_u64,
    ) {
        let mut image = if is_elf { elf(CODE) } else { bzimage(CODE) };
        for (at, size, value, shift) in changes {
            if let Some(end) = image.len().checked_sub(size) {
                put(&mut image, at.min(end), size, value >> shift);
            }
        }
        image.truncate(cut.unwrap_or(image.len()));
        let memory = memory(mib * MIB);
        let files = Files::new();
        let Ok(kernel) = files.open(&image, Some(b"initrd")) else { return Ok(()) };
        let Image { load, entry, end, .. } = *kernel.image;
        prop_assert!(HIGH_MEMORY <= load && load <= entry && entry < end);
        if let Ok(loaded) = kernel.load(&memory) {
            prop_assert_eq!(loaded.address, entry);
            prop_assert!(end.0 <= mib * MIB);
            let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
            let initrd = u64::from(params.hdr.ramdisk_image);
            prop_assert!(initrd >= end.0 && initrd + 6 <= mib * MIB);
        }
    }
}
