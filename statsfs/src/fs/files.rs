//! What is open, and how much memory the renderings of open files may take together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Caller, Ino};

/// The memory that renderings may take.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Budget { limit, used: AtomicUsize::new(0) })
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes allowed.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |used: usize| used.checked_add(bytes).filter(|total| *total <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

/// A file's content as it was at one moment. Gives its share of the budget back when the last reader
/// lets go of it.
#[derive(Debug)]
pub(super) struct Rendering {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
}

impl Rendering {
    /// Charges `bytes` to the budget; `None` if that is used up.
    pub(super) fn new(budget: &Arc<Budget>, mut bytes: Vec<u8>) -> Option<Arc<Self>> {
        bytes.shrink_to_fit();
        let charged = bytes.capacity();
        budget
            .take(charged)
            .then(|| Arc::new(Rendering { bytes, charged, budget: Arc::clone(budget) }))
    }

    /// The piece that a read of `size` bytes at `offset` gives; empty at the end.
    pub(super) fn piece(&self, offset: u64, size: u32) -> &[u8] {
        let start = usize::try_from(offset).map_or(self.bytes.len(), |o| o.min(self.bytes.len()));
        let rest = &self.bytes[start..];
        &rest[..rest.len().min(size as usize)]
    }
}

impl Drop for Rendering {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.charged, Relaxed);
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// Which.
    pub(super) ino: Ino,
    /// Who opened it. What is rendered later is for them, whoever the descriptor was passed to.
    pub(super) caller: Caller,
    /// Whether a server before this one opened it, so that what that made of it is lost.
    pub(super) is_taken_over: bool,
    rendering: Mutex<Option<Arc<Rendering>>>,
}

impl OpenFile {
    fn new(ino: Ino, caller: Caller, is_taken_over: bool) -> Arc<Self> {
        Arc::new(Self { ino, caller, is_taken_over, rendering: Mutex::default() })
    }

    /// What the last read at the beginning made.
    pub(super) fn rendering(&self) -> Option<Arc<Rendering>> {
        self.slot().clone()
    }

    /// Replaces it.
    pub(super) fn set_rendering(&self, rendering: Option<Arc<Rendering>>) {
        let old = std::mem::replace(&mut *self.slot(), rendering);
        // Freed outside the lock.
        drop(old);
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Rendering>>> {
        self.rendering.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// All open files by handle. Handles are never reused, also not by a server that takes a mount over: a late
/// request can not reach another file.
#[derive(Debug)]
pub(super) struct OpenFiles {
    first: u64,
    next: AtomicU64,
    limit: usize,
    table: Mutex<HashMap<u64, Arc<OpenFile>>>,
}

impl OpenFiles {
    pub(super) fn new(limit: usize) -> Self {
        // Nanoseconds since boot: nobody opens as many files as there are, so that whoever came before has
        // handles below these.
        let first = since_boot();
        OpenFiles { first, next: AtomicU64::new(first), limit, table: Mutex::default() }
    }

    /// Whether a handle is of a server before this one.
    pub(super) fn is_older(&self, handle: u64) -> bool {
        handle < self.first
    }

    /// Takes over what a server before this one had open.
    pub(super) fn take_over(&self, handle: u64, ino: Ino, caller: Caller) -> Arc<OpenFile> {
        let mut table = self.table();
        if table.len() >= self.limit && !table.contains_key(&handle) {
            return OpenFile::new(ino, caller, true);
        }
        table.entry(handle).or_insert_with(|| OpenFile::new(ino, caller, true)).clone()
    }

    /// A new handle; `None` if too many are open.
    pub(super) fn open(&self, ino: Ino, caller: Caller) -> Option<u64> {
        let mut table = self.table();
        if table.len() >= self.limit {
            return None;
        }
        let handle = self.next.fetch_add(1, Relaxed);
        table.insert(handle, OpenFile::new(ino, caller, false));
        Some(handle)
    }

    /// The open file with this handle.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.table().get(&handle).cloned()
    }

    /// Forgets a handle.
    pub(super) fn close(&self, handle: u64) {
        let file = self.table().remove(&handle);
        // Its rendering may be large: freed outside the lock.
        drop(file);
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.table().len()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenFile>>> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Nanoseconds since boot, of a clock that never goes backwards.
fn since_boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    // It can not fail, and 1 is at least no handle of nobody.
    if failed != 0 {
        return 1;
    }
    1 + time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT_CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

    #[test]
    fn a_rendering_is_charged_while_anyone_holds_it() {
        let budget = Budget::new(100);
        let first = Rendering::new(&budget, vec![1; 60]).unwrap();
        assert!(Rendering::new(&budget, vec![2; 60]).is_none());
        assert_eq!(budget.used(), 60);
        let reader = Arc::clone(&first);
        drop(first);
        assert_eq!(budget.used(), 60);
        drop(reader);
        assert_eq!(budget.used(), 0);
        assert!(Rendering::new(&budget, vec![2; 100]).is_some());
    }

    #[test]
    fn pieces_end_at_the_end() {
        let budget = Budget::new(100);
        let rendering = Rendering::new(&budget, b"12345\n".to_vec()).unwrap();
        assert_eq!(rendering.piece(0, 4096), b"12345\n");
        assert_eq!(rendering.piece(2, 2), b"34");
        assert_eq!(rendering.piece(5, 1), b"\n");
        assert_eq!(rendering.piece(6, 10), b"");
        assert_eq!(rendering.piece(u64::MAX, u32::MAX), b"");
    }

    #[test]
    fn handles_are_limited_and_never_reused() {
        let files = OpenFiles::new(2);
        let (a, b) = (files.open(7, ROOT_CALLER).unwrap(), files.open(7, ROOT_CALLER).unwrap());
        assert!(files.open(7, ROOT_CALLER).is_none());
        files.close(a);
        let c = files.open(8, ROOT_CALLER).unwrap();
        assert!(c != a && c != b);
        assert!(files.get(a).is_none());
        assert_eq!(files.get(c).unwrap().ino, 8);
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn handles_of_an_earlier_server_are_none_of_a_later_one() {
        let earlier = OpenFiles::new(10);
        let old = earlier.open(7, ROOT_CALLER).unwrap();
        // A server takes longer to begin than its clock to go on.
        while since_boot() <= old {}
        let files = OpenFiles::new(2);
        assert!(files.is_older(old) && !earlier.is_older(old));
        let new = files.open(8, ROOT_CALLER).unwrap();
        assert!(new != old && !files.is_older(new));
        let taken = files.take_over(old, 7, ROOT_CALLER);
        assert!(Arc::ptr_eq(&taken, &files.get(old).unwrap()), "it is open from now on");
        assert!(Arc::ptr_eq(&taken, &files.take_over(old, 7, ROOT_CALLER)), "once");
        // One for which there is no room is served, and forgotten.
        assert_eq!(files.take_over(old - 1, 9, ROOT_CALLER).ino, 9);
        assert!(files.get(old - 1).is_none());
        files.close(old);
        assert_eq!(files.len(), 1);
    }
}
