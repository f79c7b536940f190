//! A region of shared memory, seen as atomic words. The only place that turns mapped memory into
//! references.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A mapping of a whole segment, shared with other processes.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping is memory that stays valid until `drop`, whichever thread uses or drops it.
unsafe impl Send for Region {}
// SAFETY: all access through a shared `Region` is by atomics.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of a file that can not shrink: a memfd of ours, or one whose seals were
    /// checked.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, writable })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of `offset`, for the typed view of a slot's block.
    pub(crate) fn address(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len);
        // SAFETY: the offset is inside the mapping.
        unsafe { self.base.add(offset) }
    }

    #[inline]
    fn check(&self, offset: usize, width: usize, count: usize) {
        let end = count.checked_mul(width).and_then(|n| n.checked_add(offset));
        assert!(
            offset.is_multiple_of(width) && end.is_some_and(|end| end <= self.len),
            "{count} cells of {width} bytes at {offset} are outside a segment of {} bytes",
            self.len
        );
    }

    /// The word at `offset`.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8, 1);
        // SAFETY: the word is aligned and inside the mapping, which outlives the reference; every
        // process accesses it atomically, and on a read-only mapping we only load it Relaxed.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// `count` words from `offset` on.
    #[inline]
    pub(crate) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.check(offset, 8, count);
        // SAFETY: as for `word`, for every word of the slice.
        unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast::<AtomicU64>(), count)
        }
    }

    /// Loads (Relaxed) the cell of `width` bytes at `offset`, zero-extended.
    #[inline]
    pub(crate) fn cell(&self, offset: usize, width: usize) -> u64 {
        self.check(offset, width, 1);
        // SAFETY: as for `word`; the width is a power of two at most 8 and the cell aligned to it.
        unsafe {
            let at = self.base.as_ptr().add(offset);
            match width {
                1 => (*at.cast::<AtomicU8>()).load(Ordering::Relaxed).into(),
                2 => (*at.cast::<AtomicU16>()).load(Ordering::Relaxed).into(),
                4 => (*at.cast::<AtomicU32>()).load(Ordering::Relaxed).into(),
                _ => (*at.cast::<AtomicU64>()).load(Ordering::Relaxed),
            }
        }
    }

    /// Stores a whole page's first word, which makes the kernel allocate the page.
    pub(crate) fn touch_every_page(&self) {
        assert!(self.writable);
        for offset in (0..self.len).step_by(4096) {
            self.word(offset).store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives the region.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
