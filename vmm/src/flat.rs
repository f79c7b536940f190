//! Flat guests: a program without an operating system, loaded and entered at one address.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::arch::x86_64::layout::FLAT_LOAD;
use crate::arch::x86_64::paging;
use crate::arch::x86_64::regs::Mode;
use crate::files::open_regular;

/// The mode that a flat program is entered in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Entry {
    /// 16-bit real mode at 1000:0000
    Real,
    /// 64-bit long mode at 0x10000, the low 4 GiB mapped to themselves
    #[default]
    Long,
}

/// A flat program.
#[derive(Clone, Debug)]
pub struct FlatProgram {
    /// What it is called in messages.
    pub name: String,
    /// The program.
    pub bytes: Vec<u8>,
    /// How it is entered.
    pub entry: Entry,
}

/// Why a flat program can not be loaded.
#[derive(Debug, Error)]
pub enum FlatError {
    /// The file can not be read.
    #[error("the program {} can not be read: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is nothing in it.
    #[error("the program {0} is empty: give a flat binary, such as `objcopy -O binary` makes")]
    Empty(String),
    /// It is larger than the memory.
    #[error(
        "the program {name} ({size} bytes) does not fit into the guest's memory from {:#x} on: give more with --memory",
        FLAT_LOAD.0
    )]
    TooLarge {
        /// The program.
        name: String,
        /// Its size.
        size: usize,
    },
}

/// The largest program that is read: what fits below the gap.
const MAX_SIZE: u64 = 3 << 30;

impl FlatProgram {
    /// Reads a program from a file.
    ///
    /// # Errors
    /// [`FlatError::Read`] or [`FlatError::Empty`].
    pub fn read(path: &Path, entry: Entry) -> Result<Self, FlatError> {
        let mut bytes = Vec::new();
        let read = |bytes: &mut Vec<u8>| open_regular(path)?.take(MAX_SIZE).read_to_end(bytes);
        read(&mut bytes).map_err(|error| FlatError::Read { path: path.to_path_buf(), error })?;
        let name = path.display().to_string();
        if bytes.is_empty() {
            return Err(FlatError::Empty(name));
        }
        Ok(Self { name, bytes, entry })
    }

    /// Loads the program, and what its mode needs, into memory that is all zeroes. Returns the mode to
    /// enter it in.
    ///
    /// # Errors
    /// [`FlatError::TooLarge`].
    pub fn load(&self, memory: &GuestMemoryMmap) -> Result<Mode, FlatError> {
        let too_large = || FlatError::TooLarge { name: self.name.clone(), size: self.bytes.len() };
        let last = FLAT_LOAD.0 + (self.bytes.len() as u64).saturating_sub(1);
        if !memory.address_in_range(GuestAddress(last)) {
            return Err(too_large());
        }
        memory.write_slice(&self.bytes, FLAT_LOAD).map_err(|_| too_large())?;
        match self.entry {
            Entry::Real => Ok(Mode::Real),
            Entry::Long => paging::identity_map(memory).map(Mode::Long).map_err(|_| too_large()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(size: usize) -> FlatProgram {
        FlatProgram { name: "test".into(), bytes: vec![0x90; size], entry: Entry::Long }
    }

    #[test]
    fn a_program_fills_at_most_the_memory_above_its_address() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        assert_eq!(program(0xf_0000).load(&memory).unwrap(), Mode::Long(GuestAddress(0x1000)));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0xf_ffff)).unwrap(), 0x90);
        let error = program(0xf_0001).load(&memory).unwrap_err();
        assert!(error.to_string().contains("--memory"), "{error}");
    }

    #[test]
    fn an_empty_or_missing_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.bin");
        let error = FlatProgram::read(&path, Entry::Real).unwrap_err().to_string();
        assert!(error.contains("p.bin") && error.contains("No such file"), "{error}");
        std::fs::write(&path, b"").unwrap();
        let error = FlatProgram::read(&path, Entry::Real).unwrap_err().to_string();
        assert!(error.contains("p.bin") && error.contains("empty"), "{error}");
    }
}
