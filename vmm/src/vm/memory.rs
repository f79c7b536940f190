//! The guest's memory.

use std::ptr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::error::{VmError, kvm};
use crate::arch::x86_64::layout;

/// Bytes of a large page. Only where an address and the guest-physical one agree modulo this can KVM map
/// the guest's memory by large pages, with which a guest starts markedly faster.
const LARGE_PAGE: usize = 2 << 20;

/// Maps memory, and gives it to the machine.
pub fn map(fd: &VmFd, size: u64) -> Result<GuestMemoryMmap, VmError> {
    let ranges: Vec<_> = layout::memory_ranges(size)
        .into_iter()
        .map(|(start, size)| (start, size as usize))
        .collect();
    // All are reserved before the first is open: it would take the others.
    let reserved: Vec<_> = ranges.iter().map(|(_, size)| Reservation::make(*size)).collect();
    let holes: Vec<_> = reserved.into_iter().flatten().map(Reservation::open).collect();
    let memory =
        GuestMemoryMmap::from_ranges(&ranges).map_err(|error| VmError::Memory { size, error })?;
    drop(holes);
    for (slot, region) in (0..).zip(memory.iter()) {
        let userspace_addr = region.as_ptr() as u64;
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr,
            flags: 0,
        };
        // SAFETY: the range is a mapping of ours that stays in place until the machine's file is
        // closed: `Machine` and `Vm` own both, and drop the files first.
        unsafe { fd.set_user_memory_region(region) }.map_err(kvm(format!(
            "{} bytes of guest memory (give less with --memory)",
            region.memory_size
        )))?;
    }
    Ok(memory)
}

/// Address space that nobody can use, large enough to have an [`AlignedHole`] in it.
struct Reservation {
    start: usize,
    /// Bytes that the hole is to have.
    size: usize,
}

impl Reservation {
    /// For a mapping of so many bytes, in whole pages.
    fn make(size: usize) -> Option<Self> {
        let room = size.checked_add(LARGE_PAGE).filter(|_| size >= LARGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody can access.
        let start = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        (start != libc::MAP_FAILED).then_some(Self { start: start as usize, size })
    }

    fn open(self) -> AlignedHole {
        let hole = self.start.next_multiple_of(LARGE_PAGE);
        let (hole_end, end) = (hole + self.size, self.start + self.size + LARGE_PAGE);
        // SAFETY: a part of the mapping that `make` made, which nobody uses.
        unsafe { libc::munmap(hole as *mut _, self.size) };
        AlignedHole { around: [(self.start, hole - self.start), (hole_end, end - hole_end)] }
    }
}

/// A hole in the address space that begins at a multiple of [`LARGE_PAGE`], for a mapping that follows. The
/// kernel puts a mapping into the highest hole that takes it, which most likely is this one. If not, nothing
/// is lost but speed. Kernels since 6.7 align large mappings by themselves.
struct AlignedHole {
    /// What is mapped around it, so that there is no larger hole: addresses and sizes.
    around: [(usize, usize); 2],
}

impl Drop for AlignedHole {
    fn drop(&mut self) {
        for (start, size) in self.around.into_iter().filter(|(_, size)| *size > 0) {
            // SAFETY: a rest of a reservation, used by nobody; nobody else unmaps it.
            unsafe { libc::munmap(start as *mut _, size) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_aligned_and_as_large_as_asked() {
        for size in [LARGE_PAGE, 3 * LARGE_PAGE + 0x5000] {
            let hole = Reservation::make(size).unwrap().open();
            let [(before, before_size), (after, after_size)] = hole.around;
            assert_eq!((before + before_size) % LARGE_PAGE, 0);
            assert_eq!(after - (before + before_size), size);
            assert_eq!(before_size + after_size, LARGE_PAGE);
        }
        assert!(Reservation::make(LARGE_PAGE - 1).is_none());
        assert!(Reservation::make(usize::MAX).is_none());
    }
}
