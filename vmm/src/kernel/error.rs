//! Why a kernel can not be started.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// What to do about a file that can not be read.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::PermissionDenied => ": let this user read it",
        io::ErrorKind::IsADirectory => ": give a file in it",
        _ => "",
    }
}

/// Why a kernel can not be opened or loaded.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A file can not be read.
    #[error("the {what} {} can not be read: {error}{}", .path.display(), hint(.error))]
    Read {
        /// What it is to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is nothing in the kernel's file.
    #[error(
        "the kernel {} is empty: give a bzImage (such as /boot/vmlinuz-*) or an uncompressed ELF image (vmlinux)",
        .0.display()
    )]
    Empty(PathBuf),
    /// It is something else.
    #[error(
        "{} is not a kernel: give a bzImage (such as /boot/vmlinuz-*) or an uncompressed ELF image (vmlinux)",
        .0.display()
    )]
    NotAKernel(PathBuf),
    /// It is for another kind of machine.
    #[error("the kernel {} is for {machine}: give one for x86-64", .path.display())]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// What it is for.
        machine: String,
    },
    /// Its boot protocol is too old to enter it in 64-bit mode.
    #[error(
        "the kernel {} has boot protocol {}.{:02}: 2.12 or newer (Linux 3.8 or newer) is needed",
        .path.display(), .version >> 8, .version & 0xff
    )]
    OldProtocol {
        /// The file.
        path: PathBuf,
        /// Its protocol: major and minor version, a byte each.
        version: u16,
    },
    /// A part of it is missing.
    #[error(
        "the kernel {} is truncated: it has {size} bytes, but should have at least {needed}",
        .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The file's size.
        size: u64,
        /// The size that its header tells of.
        needed: u64,
    },
    /// It contradicts itself.
    #[error("the kernel {} is corrupt: {what}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// It does not fit below the gap in any memory.
    #[error(
        "the kernel {} is too large: it needs memory up to {end:#x}, but must lie below 3 GiB",
        .path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Where the memory ends that it needs.
        end: u64,
    },
    /// The guest has too little memory for it.
    #[error(
        "the kernel {}{with_initrd} needs {needed} MiB of memory to start, but there are {memory}: give more with --memory",
        .path.display()
    )]
    MemoryTooSmall {
        /// The file.
        path: PathBuf,
        /// Whether the RAM disk is counted as well.
        with_initrd: &'static str,
        /// MiB that are needed at least.
        needed: u64,
        /// MiB that there are.
        memory: u64,
    },
    /// There is nothing in the RAM disk's file.
    #[error(
        "the RAM disk {} is empty: make it anew, or leave --initrd out",
        .0.display()
    )]
    InitrdEmpty(PathBuf),
    /// The RAM disk fits into no memory.
    #[error(
        "the RAM disk {} is too large: it has {size} bytes, and the kernel can take {room}: make it smaller, or put what is in it on a --disk",
        .path.display()
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The size that there is room for.
        room: u64,
    },
    /// The command line is too long.
    #[error(
        "the kernel's command line has {length} bytes, but this kernel takes at most {most}: shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The length that the kernel takes.
        most: usize,
    },
    /// The kernel could be read at first, but not now.
    #[error("the kernel {} can not be loaded: {error}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: linux_loader::loader::Error,
    },
    /// The RAM disk could be opened, but not read.
    #[error("the RAM disk {} can not be loaded: {error}", .path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: GuestMemoryError,
    },
    /// What a kernel is started with does not fit into the guest's memory.
    #[error("the guest's memory can not be prepared for a kernel: {0}")]
    Memory(#[from] GuestMemoryError),
}
