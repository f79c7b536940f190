//! Gives back what only starting needed, when all is made and the guest is about to run.
//!
//! Reading the command line, making the machine and mounting leave free pages in the heap; and they leave code
//! mapped that is not run again, more than half of the program and of its libraries, which counts as this
//! process's (Rss) though it is the page cache's. What is run again is mapped again, for a microsecond or two
//! for each 64 KiB.

use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
/// Of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is there, swapped out,
/// or a file's.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// Gives back free pages of the heap, and unmaps code. What can not be given back is kept.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it gives back only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return };
    for code in code() {
        // Whoever traces this process has pages of its own there, with breakpoints, which would be lost.
        if is_of_file(&pagemap, &code).is_ok_and(|is| is) {
            // SAFETY: it is mapped from a file, privately, and can not be written, and all pages that are there
            // are the file's: they come back from there as they were.
            unsafe { libc::madvise(code.start as *mut c_void, code.len(), libc::MADV_DONTNEED) };
        }
    }
}

/// The code of the program and its libraries, in whole pages.
fn code() -> Vec<Range<usize>> {
    unsafe extern "C" fn add(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: `found` is what was given to the call below, and nobody else has it; an object has a name and
        // so many headers.
        let (found, object, name, headers) = unsafe {
            let object = &*object;
            let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
            let name = CStr::from_ptr(object.dlpi_name);
            (&mut *found.cast::<Vec<Range<usize>>>(), object, name, headers)
        };
        // The program itself has no name. What the kernel has put there is no file.
        if !name.is_empty() && !name.to_bytes().starts_with(b"/") {
            return 0;
        }
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
            if header.p_flags & (libc::PF_X | libc::PF_W) == libc::PF_X {
                let start = (object.dlpi_addr + header.p_vaddr) as usize;
                let end = (start + header.p_memsz as usize).next_multiple_of(PAGE);
                found.push(start & !(PAGE - 1)..end);
            }
        }
        0
    }
    let mut found = Vec::new();
    // SAFETY: the function is called before this returns, with this vector.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut found).cast()) };
    found
}

/// Whether all pages that are mapped in a range are those of a file.
fn is_of_file(pagemap: &File, range: &Range<usize>) -> io::Result<bool> {
    let mut entries = vec![0; range.len() / PAGE * 8];
    pagemap.read_exact_at(&mut entries, (range.start / PAGE * 8) as u64)?;
    let (entries, _) = entries.as_chunks::<8>();
    Ok(entries
        .iter()
        .map(|entry| u64::from_ne_bytes(*entry))
        .all(|entry| entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & FILE != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_unmapped_and_runs_again() {
        let before = code();
        let here = code_is_unmapped_and_runs_again as fn() as usize;
        assert!(before.iter().any(|range| range.contains(&here)), "{here:#x} in {before:x?}");
        assert!(before.len() > 1, "the C library's too");
        for _ in 0..3 {
            give_back();
        }
        assert_eq!(code(), before);
    }

    #[test]
    fn pages_that_were_changed_are_told_from_a_files() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * PAGE as u64).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        use std::os::fd::AsRawFd;
        let (size, fd) = (3 * PAGE, file.as_raw_fd());
        // SAFETY: a new mapping, used within its bounds, and unmapped.
        unsafe {
            let start =
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_PRIVATE, fd, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let page = |n: usize| start.cast::<u8>().add(n * PAGE);
            let range = start as usize..start as usize + size;
            assert!(is_of_file(&pagemap, &range).unwrap(), "nothing is there yet");
            assert_eq!(page(0).read_volatile() + page(1).read_volatile(), 0);
            assert!(is_of_file(&pagemap, &range).unwrap());
            page(1).write_volatile(0xcc);
            assert!(!is_of_file(&pagemap, &range).unwrap(), "a page has become its own");
            libc::munmap(start, size);
        }
    }
}
