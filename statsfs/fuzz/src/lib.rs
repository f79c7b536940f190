//! How an input of the `segment` target becomes a segment.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: the header is valid; else it is the input's, too |
//! | 1 | number of units in use, if the header is valid |
//! | 2 | number of changes under the reader |
//! | 3… | each change: word of the segment (16 bits), value (64 bits) |
//! | … | content, from the first unit on, or from the start; what is behind it is zero |

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use statsfs::segment::layout::{HEADER_SIZE, MAGIC, VERSION, header, pair};

/// Size of the segments that are made of inputs.
pub const SIZE: usize = 16 << 10;

/// A change under the reader: offset and value of a word.
pub type Change = (u64, u64);

/// The content of a segment, and the changes to make to it.
pub fn decode(input: &[u8]) -> (Vec<u8>, Vec<Change>) {
    let (head, rest) = input.split_at(input.len().min(3));
    let byte = |n: usize| head.get(n).copied().unwrap_or(0);
    let mut changes = Vec::new();
    let mut rest = rest;
    for _ in 0..byte(2) % 32 {
        let Some((change, more)) = rest.split_first_chunk::<10>() else { break };
        rest = more;
        let word = u16::from_le_bytes([change[0], change[1]]);
        let mut value = [0; 8];
        value.copy_from_slice(&change[2..]);
        changes.push((u64::from(word) * 8 % SIZE as u64, u64::from_le_bytes(value)));
    }
    let mut content = vec![0; SIZE];
    let is_valid = byte(0) & 1 != 0;
    let start = if is_valid { HEADER_SIZE } else { 0 };
    let len = rest.len().min(SIZE - start);
    content[start..start + len].copy_from_slice(&rest[..len]);
    if is_valid {
        for (at, value) in [
            (header::MAGIC, MAGIC),
            (header::VERSION, pair(VERSION, HEADER_SIZE as u32)),
            (header::ID, 1),
            (header::PUBLISHER, 2),
            (header::SIZE, SIZE as u64),
            (header::UNITS, byte(1).into()),
            (header::SEGMENTS, 1),
        ] {
            content[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    (content, changes)
}

/// The input that becomes a segment with this content (header included) and no changes.
pub fn encode(content: &[u8], units: u8) -> Vec<u8> {
    let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut input = vec![1, units, 0];
    input.extend_from_slice(&content[HEADER_SIZE..used.max(HEADER_SIZE)]);
    input
}

/// An empty memfd that may be sealed.
pub fn plain_memfd(name: &str) -> OwnedFd {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name is a C string.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and ours alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A memfd with this content. With `F_SEAL_FUTURE_WRITE` only a mapping can change it, so changes are
/// made through one.
pub struct Memfd {
    /// Sealed.
    pub fd: OwnedFd,
    map: *mut u8,
}

impl Memfd {
    /// Makes, fills, maps and seals it.
    pub fn new(content: &[u8]) -> Self {
        let mut file = File::from(plain_memfd("fuzz"));
        file.write_all(content).unwrap();
        assert_eq!(file.read_at(&mut [0], content.len() as u64).unwrap(), 0);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        let seals =
            libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE;
        // SAFETY: plain system call.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        Self { fd: file.into(), map: map.cast() }
    }

    /// Changes a word.
    pub fn set(&self, (at, value): Change) {
        assert!(at % 8 == 0 && at < SIZE as u64);
        // SAFETY: the word is inside the mapping and aligned; everybody accesses it as an atomic.
        unsafe {
            let word = self.map.add(at as usize).cast::<std::sync::atomic::AtomicU64>();
            (*word).store(value, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl Drop for Memfd {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it.
        unsafe { libc::munmap(self.map.cast(), SIZE) };
    }
}
