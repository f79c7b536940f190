//! What is open, and how much memory the renderings of open files may take: all together, and each user's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::events::Limit;
use super::{Caller, Ino};

/// How much of something there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// For all users together.
    pub(super) all: usize,
    /// For each of those who are not exempt.
    pub(super) user: usize,
}

impl Most {
    /// What part is not for those who have much, and what part is not much. A few users may have as much as all may
    /// together, and others are to get what they need meanwhile.
    const LEFT: usize = 8;
    const LITTLE: usize = 64;

    /// How much of it is left for those who have little.
    fn left(&self) -> usize {
        self.all / Self::LEFT
    }

    /// How much a user may have of what is left for those who have little.
    fn little(&self, is_exempt: bool) -> usize {
        if is_exempt { usize::MAX } else { self.all / Self::LITTLE }
    }

    /// How many there may be for a user who has `own` to have another one.
    pub(super) fn for_one_more(&self, own: usize, is_exempt: bool) -> usize {
        if own < self.little(is_exempt) { self.all } else { self.all - self.left() }
    }
}

/// A user, and what is theirs as long as they have something open.
#[derive(Debug)]
pub(super) struct User {
    /// Limits for each user are not theirs: root, and who serves the mount.
    pub(super) is_exempt: bool,
    /// Changed under the lock of the table.
    files: AtomicUsize,
    bytes: AtomicUsize,
}

/// Bytes of what is short: a value, or a histogram's buckets.
const SHORT: usize = 4096;

/// The memory that renderings may take.
#[derive(Debug)]
pub(super) struct Budget {
    most: Most,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: Most) -> Arc<Self> {
        Arc::new(Budget { most, used: AtomicUsize::new(0) })
    }

    /// How many bytes more a user may have now, and what says so. What is short is not worth asking: it is
    /// charged when it is there.
    pub(super) fn room(&self, user: &User) -> (usize, Limit) {
        let left = |most: usize, used: &AtomicUsize| most.saturating_sub(used.load(Relaxed));
        let most = self.most_long();
        let little =
            left(most, &self.used).min(left(self.most.little(user.is_exempt), &user.bytes));
        let much = left(most - self.most.left(), &self.used);
        let all = (little.max(much).max(SHORT), Limit::OpenBytes);
        let own = (left(self.most.user, &user.bytes).max(SHORT), Limit::UserOpenBytes);
        if user.is_exempt || all.0 <= own.0 { all } else { own }
    }

    fn take(&self, user: &User, bytes: usize) -> Result<(), Limit> {
        let most = if user.is_exempt { usize::MAX } else { self.most.user };
        let own = add(&user.bytes, bytes, most).ok_or(Limit::UserOpenBytes)?;
        let most = if bytes <= SHORT {
            self.most.all
        } else if own <= self.most.little(user.is_exempt) {
            self.most_long()
        } else {
            self.most_long() - self.most.left()
        };
        let taken = add(&self.used, bytes, most).map(drop);
        taken.ok_or_else(|| {
            user.bytes.fetch_sub(bytes, Relaxed);
            Limit::OpenBytes
        })
    }

    /// What is long leaves room for values, which all must be able to read.
    fn most_long(&self) -> usize {
        self.most.all - self.most.all / 8
    }

    fn give_back(&self, user: &User, bytes: usize) {
        user.bytes.fetch_sub(bytes, Relaxed);
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// Adds, unless that makes more than `most`: how much it is then.
fn add(used: &AtomicUsize, more: usize, most: usize) -> Option<usize> {
    let take = |used: usize| used.checked_add(more).filter(|total| *total <= most);
    used.fetch_update(Relaxed, Relaxed, take).ok().map(|used| used + more)
}

/// A file's content as it was at one moment. Gives its share of the budget back when the last reader
/// lets go of it.
#[derive(Debug)]
pub(super) struct Rendering {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
    user: Arc<User>,
}

impl Rendering {
    /// Charges `bytes` to a user.
    ///
    /// # Errors
    /// The limit that they would exceed.
    pub(super) fn new(
        budget: &Arc<Budget>,
        user: &Arc<User>,
        mut bytes: Vec<u8>,
    ) -> Result<Arc<Self>, Limit> {
        bytes.shrink_to_fit();
        let charged = bytes.capacity();
        budget.take(user, charged)?;
        let (budget, user) = (Arc::clone(budget), Arc::clone(user));
        Ok(Arc::new(Rendering { bytes, charged, budget, user }))
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
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
        self.budget.give_back(&self.user, self.charged);
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// Which.
    pub(super) ino: Ino,
    /// Whether what it shows depends on who opened it.
    pub(super) is_openers: bool,
    /// Who opened it. What is rendered later is for them, whoever the descriptor was passed to.
    pub(super) caller: Caller,
    /// What they have.
    pub(super) user: Arc<User>,
    /// Whether a server before this one opened it, so that what that made of it is lost.
    pub(super) is_taken_over: bool,
    rendering: Mutex<Option<Arc<Rendering>>>,
}

impl OpenFile {
    fn new(
        ino: Ino,
        is_openers: bool,
        caller: Caller,
        user: Arc<User>,
        is_taken_over: bool,
    ) -> Arc<Self> {
        let rendering = Mutex::default();
        Arc::new(Self { ino, is_openers, caller, user, is_taken_over, rendering })
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
    most: Most,
    /// Who serves them.
    owner: u32,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    files: HashMap<u64, Arc<OpenFile>>,
    /// Of those who have any.
    users: HashMap<u32, Arc<User>>,
}

impl Table {
    /// A user, who may have nothing open yet.
    fn user(&self, uid: u32, owner: u32) -> Arc<User> {
        self.users.get(&uid).cloned().unwrap_or_else(|| {
            let is_exempt = [0, owner].contains(&uid);
            Arc::new(User { is_exempt, files: AtomicUsize::new(0), bytes: AtomicUsize::new(0) })
        })
    }

    fn add(&mut self, handle: u64, file: Arc<OpenFile>) {
        if file.user.files.fetch_add(1, Relaxed) == 0 {
            self.users.insert(file.caller.uid, Arc::clone(&file.user));
        }
        self.files.insert(handle, file);
    }

    fn remove(&mut self, handle: u64) -> Option<Arc<OpenFile>> {
        let file = self.files.remove(&handle)?;
        if file.user.files.fetch_sub(1, Relaxed) == 1 {
            self.users.remove(&file.caller.uid);
        }
        Some(file)
    }
}

impl OpenFiles {
    /// None yet.
    pub(super) fn new(most: Most, owner: u32) -> Self {
        // Nanoseconds since boot: nobody opens as many files as there are, so that whoever came before has
        // handles below these.
        let first = since_boot();
        OpenFiles { first, next: AtomicU64::new(first), most, owner, table: Mutex::default() }
    }

    /// Whether a handle is of a server before this one.
    pub(super) fn is_older(&self, handle: u64) -> bool {
        handle < self.first
    }

    /// Takes over what a server before this one had open. Beyond a limit it is served all the same, since it
    /// was let in before, and forgotten.
    pub(super) fn take_over(
        &self,
        handle: u64,
        ino: Ino,
        is_openers: bool,
        caller: Caller,
    ) -> Arc<OpenFile> {
        let mut table = self.table();
        if let Some(file) = table.files.get(&handle) {
            return Arc::clone(file);
        }
        let user = table.user(caller.uid, self.owner);
        let file = OpenFile::new(ino, is_openers, caller, user, true);
        let is_room = file.user.is_exempt || file.user.files.load(Relaxed) < self.most.user;
        if is_room && table.files.len() < self.most.all {
            table.add(handle, Arc::clone(&file));
        }
        file
    }

    /// A new handle.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub(super) fn open(&self, ino: Ino, is_openers: bool, caller: Caller) -> Result<u64, Limit> {
        let mut table = self.table();
        let user = table.user(caller.uid, self.owner);
        let own = user.files.load(Relaxed);
        if own >= self.most.user && !user.is_exempt {
            return Err(Limit::UserOpenFiles);
        }
        if table.files.len() >= self.most.for_one_more(own, user.is_exempt) {
            return Err(Limit::OpenFiles);
        }
        let handle = self.next.fetch_add(1, Relaxed);
        table.add(handle, OpenFile::new(ino, is_openers, caller, user, false));
        Ok(handle)
    }

    /// The open file with this handle.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.table().files.get(&handle).cloned()
    }

    /// Forgets a handle.
    pub(super) fn close(&self, handle: u64) {
        let file = self.table().remove(handle);
        // Its rendering may be large: freed outside the lock.
        drop(file);
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.table().files.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
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

    const SERVES: u32 = 5;

    fn by(uid: u32) -> Caller {
        Caller { uid, gid: 0, pid: 1 }
    }

    fn user_of(files: &OpenFiles, uid: u32) -> Arc<User> {
        files.get(files.open(7, false, by(uid)).unwrap()).unwrap().user.clone()
    }

    #[test]
    fn a_rendering_is_charged_while_anyone_holds_it() {
        let files = OpenFiles::new(Most { all: 10, user: 10 }, SERVES);
        let user = user_of(&files, 0);
        let budget = Budget::new(Most { all: 100, user: 0 });
        let first = Rendering::new(&budget, &user, vec![1; 60]).unwrap();
        assert_eq!(Rendering::new(&budget, &user, vec![2; 60]).err(), Some(Limit::OpenBytes));
        let reader = Arc::clone(&first);
        drop(first);
        assert_eq!(Rendering::new(&budget, &user, vec![2; 60]).err(), Some(Limit::OpenBytes));
        drop(reader);
        assert!(Rendering::new(&budget, &user, vec![2; 100]).is_ok());
    }

    #[test]
    fn one_users_renderings_leave_room_for_others() {
        let files = OpenFiles::new(Most { all: 10, user: 10 }, SERVES);
        let (a, b, root) = (user_of(&files, 7), user_of(&files, 8), user_of(&files, 0));
        let budget = Budget::new(Most { all: 100, user: 40 });
        let first = Rendering::new(&budget, &a, vec![1; 30]).unwrap();
        assert_eq!(Rendering::new(&budget, &a, vec![1; 11]).err(), Some(Limit::UserOpenBytes));
        // It is the user's, whichever file it is in.
        assert!(Arc::ptr_eq(&user_of(&files, 7), &a));
        let second = Rendering::new(&budget, &b, vec![1; 40]).unwrap();
        assert_eq!(Rendering::new(&budget, &root, vec![1; 31]).err(), Some(Limit::OpenBytes));
        let third = Rendering::new(&budget, &root, vec![1; 30]).unwrap();
        // Whose own limit would allow it meets that of all, and nothing of it is charged.
        assert_eq!(Rendering::new(&budget, &a, vec![1; 10]).err(), Some(Limit::OpenBytes));
        drop((first, second, third));
        assert!(Rendering::new(&budget, &a, vec![1; 40]).is_ok());
        assert_eq!((budget.used.load(Relaxed), a.bytes.load(Relaxed)), (0, 0));
    }

    #[test]
    fn those_who_have_much_leave_room_for_those_who_have_little() {
        let files = OpenFiles::new(Most { all: 10, user: 10 }, SERVES);
        let [a, b, c, root] = [7, 8, 9, 0].map(|uid| user_of(&files, uid));
        const ALL: usize = 64 << 20;
        let budget = Budget::new(Most { all: ALL, user: ALL / 2 });
        let long = |user, bytes| Rendering::new(&budget, user, vec![1; bytes]);
        let _first = long(&a, ALL / 2).unwrap();
        // In small pieces, it is as much.
        let piece = ALL / 128;
        let mut pieces: Vec<_> = std::iter::from_fn(|| long(&b, piece).ok()).collect();
        assert_eq!(pieces.len() * piece, ALL / 4);
        assert_eq!(budget.room(&b), (SHORT, Limit::OpenBytes));
        assert_eq!(budget.room(&c), (ALL / 64, Limit::OpenBytes));
        assert_eq!(long(&c, ALL / 64 + 1).err(), Some(Limit::OpenBytes));
        pieces.push(long(&c, ALL / 64).unwrap());
        assert_eq!(budget.room(&c), (SHORT, Limit::OpenBytes));
        assert_eq!(long(&c, SHORT + 1).err(), Some(Limit::OpenBytes));
        let left = ALL / 8 - ALL / 64;
        assert_eq!(budget.room(&root), (left, Limit::OpenBytes));
        pieces.push(long(&root, left).unwrap());
        assert_eq!(long(&root, SHORT + 1).err(), Some(Limit::OpenBytes));
        pieces.push(long(&b, SHORT).unwrap());
    }

    #[test]
    fn those_who_have_many_files_leave_some_for_those_who_have_few() {
        let files = OpenFiles::new(Most { all: 128, user: 64 }, SERVES);
        let all_of =
            |uid| std::iter::from_fn(|| files.open(7, false, by(uid)).ok()).take(128).count();
        assert_eq!([7, 8, 9, 0].map(all_of), [64, 48, 2, 14]);
        assert_eq!(files.open(7, false, by(10)), Err(Limit::OpenFiles));
    }

    #[test]
    fn pieces_end_at_the_end() {
        let files = OpenFiles::new(Most { all: 10, user: 10 }, SERVES);
        let budget = Budget::new(Most { all: 100, user: 100 });
        let rendering = Rendering::new(&budget, &user_of(&files, 7), b"12345\n".to_vec()).unwrap();
        assert_eq!(rendering.piece(0, 4096), b"12345\n");
        assert_eq!(rendering.piece(2, 2), b"34");
        assert_eq!(rendering.piece(5, 1), b"\n");
        assert_eq!(rendering.piece(6, 10), b"");
        assert_eq!(rendering.piece(u64::MAX, u32::MAX), b"");
    }

    #[test]
    fn handles_are_limited_and_never_reused() {
        let files = OpenFiles::new(Most { all: 2, user: 1 }, SERVES);
        let open = |uid| files.open(7, false, by(uid));
        let (a, b) = (open(0).unwrap(), open(0).unwrap());
        assert_eq!(open(0), Err(Limit::OpenFiles));
        assert_eq!(open(7), Err(Limit::OpenFiles));
        files.close(a);
        let c = files.open(8, true, by(7)).unwrap();
        assert!(c != a && c != b);
        assert!(files.get(a).is_none());
        assert_eq!((files.get(c).unwrap().ino, files.get(c).unwrap().is_openers), (8, true));
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn each_user_has_handles_of_their_own() {
        let files = OpenFiles::new(Most { all: 100, user: 2 }, SERVES);
        let open = |uid| files.open(7, false, by(uid));
        let (a, b) = (open(7).unwrap(), open(7).unwrap());
        assert_eq!(open(7), Err(Limit::UserOpenFiles));
        for uid in [8, 8, 0, 0, 0, SERVES, SERVES, SERVES] {
            open(uid).unwrap();
        }
        files.close(a);
        // Closing twice gives nothing back.
        files.close(a);
        open(7).unwrap();
        assert_eq!(open(7), Err(Limit::UserOpenFiles));
        files.close(b);
        assert_eq!(files.table().users.len(), 4);
        // Whoever has nothing open is forgotten.
        let handles: Vec<_> = files.table().files.keys().copied().collect();
        handles.into_iter().for_each(|handle| files.close(handle));
        assert!(files.table().users.is_empty());
        // And so is who was refused.
        let none = OpenFiles::new(Most { all: 0, user: 0 }, SERVES);
        assert_eq!(none.open(7, false, by(7)), Err(Limit::UserOpenFiles));
        assert!(none.table().users.is_empty());
    }

    #[test]
    fn handles_of_an_earlier_server_are_none_of_a_later_one() {
        let open = |files: &OpenFiles, ino| files.open(ino, false, by(7)).unwrap();
        let earlier = OpenFiles::new(Most { all: 10, user: 10 }, SERVES);
        let old = open(&earlier, 7);
        // A server takes longer to begin than its clock to go on.
        while since_boot() <= old {}
        let files = OpenFiles::new(Most { all: 2, user: 2 }, SERVES);
        assert!(files.is_older(old) && !earlier.is_older(old));
        let new = open(&files, 8);
        assert!(new != old && !files.is_older(new));
        let taken = files.take_over(old, 7, false, by(7));
        assert!(Arc::ptr_eq(&taken, &files.get(old).unwrap()), "it is open from now on");
        assert!(Arc::ptr_eq(&taken, &files.take_over(old, 7, false, by(7))), "once");
        assert_eq!(files.open(9, false, by(7)), Err(Limit::UserOpenFiles), "it is the user's");
        // One for which there is no room is served, and forgotten.
        assert_eq!(files.take_over(old - 1, 9, false, by(7)).ino, 9);
        assert!(files.get(old - 1).is_none());
        files.close(old);
        assert_eq!(files.len(), 1);
    }
}
