//! Linux guests: a kernel (bzImage or ELF), perhaps an initial RAM disk, and a command line.
//!
//! Nothing in the files is trusted. What is needed of a kernel's header is copied once and checked
//! (`bzimage`, `elf`), against the file's size first and against the guest's memory when it is loaded;
//! only then does `linux-loader` copy the image's parts to where they belong.

mod bzimage;
mod checksum;
pub mod cmdline;
mod elf;
mod error;

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::{self, KernelLoader, bootparam::setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub use error::KernelError;

use crate::arch::x86_64::layout::{CMDLINE, CMDLINE_END, HIGH_MEMORY};
use crate::arch::x86_64::{boot_params, paging, regs};
use crate::files::open_regular;

/// What is looked at of a file to find out what it is.
const HEAD: usize = 4096;
const PAGE: u64 = 4096;

/// A kernel, opened and found to be one, with what it is started with.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    image: Box<Image>,
    initrd: Option<Initrd>,
    cmdline: String,
}

/// An initial RAM disk.
#[derive(Debug)]
struct Initrd {
    path: PathBuf,
    file: File,
    size: u32,
}

/// A kernel's image in the file.
#[derive(Debug, PartialEq)]
struct Image {
    format: Format,
    /// What the boot parameters begin with.
    header: setup_header,
    /// Where it is loaded.
    load: GuestAddress,
    /// Where it is entered, in 64-bit mode.
    entry: GuestAddress,
    /// End of the memory that it needs to unpack itself and start.
    end: GuestAddress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BzImage,
    Elf,
}

/// How a kernel that is loaded is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub address: GuestAddress,
    /// The page tables to enter it with.
    pub page_tables: GuestAddress,
}

impl Kernel {
    /// Opens a kernel and its RAM disk, and checks all that can be checked without the guest's memory.
    /// `cmdline` is the whole command line (see [`cmdline`]).
    ///
    /// # Errors
    /// [`KernelError`] says what is wrong with which file.
    pub fn open(path: &Path, initrd: Option<&Path>, cmdline: String) -> Result<Self, KernelError> {
        let read = |error| KernelError::Read { what: "kernel", path: path.to_path_buf(), error };
        let file = open_regular(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let head = read_head(&file).map_err(read)?;
        let image = Box::new(Image::find(path, &file, &head, size)?);

        let most =
            (image.header.cmdline_size as usize).min((CMDLINE_END.0 - CMDLINE.0 - 1) as usize);
        if cmdline.len() > most {
            return Err(KernelError::CmdlineTooLong { length: cmdline.len(), most });
        }
        let initrd = initrd.map(Initrd::open).transpose()?;
        Ok(Self { path: path.to_path_buf(), file, image, initrd, cmdline })
    }

    /// What is to be said of the kernel, though it is not refused: a bzImage whose checksum is wrong. All of it is
    /// read for that.
    ///
    /// # Errors
    /// [`KernelError`] if it can not be read.
    pub fn doubt(&self) -> Result<Option<String>, KernelError> {
        if self.image.format != Format::BzImage {
            return Ok(None);
        }
        let path = &self.path;
        let size = bzimage::size(&self.image.header);
        let is_right = checksum::is_right(&self.file, size).map_err(|error| KernelError::Read {
            what: "kernel",
            path: path.clone(),
            error,
        })?;
        Ok((is_right == Some(false)).then(|| {
            format!(
                "the kernel {} has a wrong checksum: if it is damaged, it may hang without a word",
                path.display()
            )
        }))
    }

    /// The command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Loads the kernel, its RAM disk and command line, and what it needs to start, into memory that is all
    /// zeroes.
    ///
    /// # Errors
    /// [`KernelError`] says what does not fit, or can not be read.
    pub fn load(&self, memory: &GuestMemoryMmap) -> Result<Entry, KernelError> {
        let low_end = low_memory_end(memory);
        let Image { format, header, load, entry, end } = *self.image;
        if end > low_end {
            return Err(self.too_small(low_end, end.0));
        }
        let initrd = match &self.initrd {
            Some(initrd) => Some((self.place_initrd(initrd, low_end)?, initrd.size)),
            None => None,
        };

        // Reads go by the file's position, which nobody else uses.
        let mut file = &self.file;
        let loaded = match format {
            Format::BzImage => {
                loader::BzImage::load(memory, Some(load), &mut file, Some(HIGH_MEMORY))
            }
            // An offset of 0, so that the loader does not look for other entries in the image's notes.
            Format::Elf => {
                loader::Elf::load(memory, Some(GuestAddress(0)), &mut file, Some(HIGH_MEMORY))
            }
        };
        loaded.map_err(|error| KernelError::Load { path: self.path.clone(), error })?;
        if let (Some(initrd), Some((address, size))) = (&self.initrd, initrd) {
            let mut file = &initrd.file;
            file.rewind().map_err(|error| initrd.unreadable(error))?;
            memory
                .read_exact_volatile_from(address, &mut file, size as usize)
                .map_err(|error| KernelError::Initrd { path: initrd.path.clone(), error })?;
        }
        // The byte after it is 0, as all memory is.
        memory.write_slice(self.cmdline.as_bytes(), CMDLINE)?;
        boot_params::write(memory, header, initrd)?;
        regs::write_boot_tables(memory)?;
        let page_tables = paging::identity_map(memory)?;
        Ok(Entry { address: entry, page_tables })
    }

    /// As high as the kernel allows, so that it is out of the way.
    fn place_initrd(
        &self,
        initrd: &Initrd,
        low_end: GuestAddress,
    ) -> Result<GuestAddress, KernelError> {
        let kernel_end = self.image.end.0.next_multiple_of(PAGE);
        let size = u64::from(initrd.size);
        let limit = u64::from(self.image.header.initrd_addr_max).saturating_add(1);
        match low_end.0.min(limit).checked_sub(size).map(|start| start & !(PAGE - 1)) {
            Some(start) if start >= kernel_end => Ok(GuestAddress(start)),
            _ if kernel_end + size > limit => Err(KernelError::InitrdTooLarge {
                path: initrd.path.clone(),
                size,
                room: limit.saturating_sub(kernel_end),
            }),
            _ => Err(self.too_small(low_end, kernel_end + size.next_multiple_of(PAGE))),
        }
    }

    fn too_small(&self, low_end: GuestAddress, needed: u64) -> KernelError {
        KernelError::MemoryTooSmall {
            path: self.path.clone(),
            with_initrd: if self.initrd.is_some() { " with its RAM disk" } else { "" },
            needed: needed.div_ceil(1 << 20),
            memory: low_end.0 >> 20,
        }
    }
}

impl Initrd {
    fn unreadable(&self, error: std::io::Error) -> KernelError {
        KernelError::Read { what: "RAM disk", path: self.path.clone(), error }
    }

    fn open(path: &Path) -> Result<Self, KernelError> {
        let read = |error| KernelError::Read { what: "RAM disk", path: path.to_path_buf(), error };
        let file = open_regular(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        if size == 0 {
            return Err(KernelError::InitrdEmpty(path.to_path_buf()));
        }
        // Whatever memory there is below the gap, it is less.
        let size = u32::try_from(size).map_err(|_| KernelError::InitrdTooLarge {
            path: path.to_path_buf(),
            size,
            room: u64::from(u32::MAX),
        })?;
        Ok(Self { path: path.to_path_buf(), file, size })
    }
}

impl Image {
    /// Finds out what the file with this beginning is.
    fn find(path: &Path, file: &File, head: &[u8], size: u64) -> Result<Self, KernelError> {
        if head.is_empty() {
            return Err(KernelError::Empty(path.to_path_buf()));
        }
        if elf::is_elf(head) {
            elf::check(path, file, head, size)
        } else if bzimage::is_bzimage(head) {
            bzimage::check(path, file, head, size)
        } else {
            Err(KernelError::NotAKernel(path.to_path_buf()))
        }
    }
}

/// The first bytes of a file, all of them if it is shorter than [`HEAD`].
fn read_head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut length = 0;
    while length < HEAD {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(length);
    Ok(head)
}

/// End of the memory that begins at 0.
fn low_memory_end(memory: &GuestMemoryMmap) -> GuestAddress {
    use vm_memory::GuestMemoryRegion;
    let low = memory.find_region(GuestAddress(0));
    GuestAddress(low.map_or(0, |region| region.len()))
}

#[cfg(test)]
mod tests;
