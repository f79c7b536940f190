//! What the targets share: a real segment to start from, and forged ones made of it.

#![allow(dead_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use statsfs::segment::layout::{HEADER_SIZE, UNIT, header, unit_limit};
use statsfs::tree::{Feed, Owner, Tree};
use statsfs::{Registry, RegistryOptions, stats};

/// Small, so that an input reaches all of it.
const SIZE: usize = 32 << 10;

stats! {
    /// Some of every kind.
    consistent struct Group: "group" {
        /// Latched.
        done: Counter,
        /// Narrow.
        narrow: Counter<u16>,
        /// In buckets.
        time: Histogram<Nanoseconds> { buckets: 6 },
        /// Up and down.
        level: Gauge<i8> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Highest.
        peak: Peak<u32>,
        /// On or off.
        on: Flag,
    }
}

/// The bytes of a segment that a real writer made: sources in three levels, a label, a hidden one,
/// departed ones that are folded and that are not.
pub fn image() -> Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(make_image).clone()
}

fn make_image() -> Vec<u8> {
    let options = RegistryOptions { segment_size: SIZE, max_segments: 1, ..Default::default() };
    let registry = Registry::with_options(options).expect("a segment");
    let top = registry.source("top").label("key", "value").create().expect("room");
    top.register().expect("a free name");
    let hidden = registry.source("hidden").hidden().create().expect("room");
    top.add_subordinate(&hidden).expect("a free name");
    let mut slots = Vec::new();
    for n in 0..4 {
        let source = registry.create_source(&format!("s{n}")).expect("room");
        hidden.add_subordinate(&source).expect("a free name");
        let slot = source.add_values::<Group>().expect("room");
        slot.update(|c| c.done.add(n));
        slot.time.record(n * 3);
        if n == 1 {
            hidden.remove_subordinate(&source).expect("it is there");
        }
        if n == 2 {
            drop(slot);
            hidden.remove_subordinate(&source).expect("it is there");
            registry.usage();
        } else {
            slots.push(slot);
        }
    }
    let fd = registry.segments().expect("descriptors").remove(0);
    let mut bytes = vec![0; SIZE];
    // SAFETY: the buffer is as long as stated.
    let n = unsafe { libc::pread(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), SIZE, 0) };
    assert_eq!(n, SIZE as isize);
    bytes
}

/// Fills the units of an image, published, with `data`.
pub fn fill_units(image: &mut [u8], data: &[u8]) {
    let units = data.len().div_ceil(UNIT - 8).min(unit_limit(image.len() / 2) as usize);
    for (n, chunk) in data.chunks(UNIT - 8).take(units).enumerate() {
        let unit = &mut image[HEADER_SIZE + n * UNIT..][..UNIT];
        unit[..8].copy_from_slice(&2u64.to_le_bytes());
        unit[8..8 + chunk.len()].copy_from_slice(chunk);
    }
    image[header::UNITS..][..8].copy_from_slice(&(units as u64).to_le_bytes());
}

/// A word at some place: 2 bytes say where, 1 how, 8 what.
pub struct Patch {
    at: usize,
    how: u8,
    value: u64,
}

impl Patch {
    pub fn of(bytes: &[u8]) -> Self {
        let at = usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) * 8 % SIZE;
        let value = u64::from_le_bytes(bytes[3..11].try_into().expect("11 bytes"));
        Self { at, how: bytes[2], value }
    }

    fn of_old(&self, old: u64) -> u64 {
        match self.how % 4 {
            0 => self.value,
            1 => old.wrapping_add(self.value as u8 as i8 as u64),
            2 => old ^ 1 << (self.value % 64),
            _ => old & !0xffff | self.value & 0xffff,
        }
    }

    pub fn apply(&self, image: &mut [u8]) {
        let word: &mut [u8; 8] = (&mut image[self.at..][..8]).try_into().expect("8 bytes");
        *word = self.of_old(u64::from_le_bytes(*word)).to_le_bytes();
    }
}

/// A sealed memfd of these bytes, which stays mapped writable.
pub struct Forged {
    fd: OwnedFd,
    base: *mut u8,
}

struct Fds(OwnedFd);

impl Feed for Fds {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.0.try_clone()?])
    }

    fn wait_changed(&self, seen: u64, _timeout: Duration) -> u64 {
        seen
    }
}

impl Forged {
    pub fn new(image: &[u8]) -> Self {
        // SAFETY: plain system calls; the mapping is as long as the file, and filled within its length.
        unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            let fd = libc::memfd_create(c"forged".as_ptr(), flags);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            assert_eq!(libc::ftruncate(fd.as_raw_fd(), image.len() as i64), 0);
            let base = libc::mmap(
                std::ptr::null_mut(),
                image.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            let base = base.cast::<u8>();
            std::ptr::copy_nonoverlapping(image.as_ptr(), base, image.len());
            let seals = libc::F_SEAL_SEAL
                | libc::F_SEAL_SHRINK
                | libc::F_SEAL_GROW
                | libc::F_SEAL_FUTURE_WRITE;
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
            Self { fd, base }
        }
    }

    pub fn patch(&self, patch: &Patch) {
        // SAFETY: the word is inside the mapping and aligned; all access it as an atomic.
        let word = unsafe { &*self.base.add(patch.at).cast::<AtomicU64>() };
        word.store(patch.of_old(word.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    pub fn read(&self) {
        self.read_while(|| {});
    }

    /// Reads everything, lets `change` happen, and reads everything again.
    pub fn read_while(&self, change: impl FnOnce()) {
        let fds = Fds(self.fd.as_fd().try_clone_to_owned().expect("a descriptor"));
        let tree = Tree::new(fds, Owner { uid: 0, gid: 0 });
        change();
        let Ok(tree) = tree else { return };
        let mut out = Vec::new();
        tree.flat(&mut out);
        out.clear();
        let _ = tree.clear(".stats/clear");
        tree.flat(&mut out);
    }
}

impl Drop for Forged {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it is left.
        unsafe { libc::munmap(self.base.cast(), SIZE) };
    }
}
