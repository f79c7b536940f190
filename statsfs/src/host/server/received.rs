//! What a client sent: segments, and descriptors of what the kernel counts for it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::stat::fstat;

use super::clients::Who;
use super::closer::Closer;
use super::fd_store::FdStore;
use super::inherited::segments_name;
use super::limits::Amounts;
use crate::fd_groups::FdGroups;
use crate::tree::{FdGroupsOf, Feed, Waker};

/// Which file a segment is, and how large: sealed, it stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
    bytes: u64,
}

impl File {
    /// Of a memfd, of which all this is known to the kernel. `None` if it does not say.
    fn of(fd: &OwnedFd) -> Option<Self> {
        let stat = fstat(fd).ok()?;
        Some(Self { device: stat.st_dev, inode: stat.st_ino, bytes: stat.st_size as u64 })
    }
}

/// What segments take, but for those that are there already at the same place: `first` is the place of the first.
fn beyond(files: &[Option<File>], first: usize, there: &[Option<File>]) -> Amounts {
    let mut amounts = Amounts::default();
    for (n, file) in (first..).zip(files) {
        let is_there = file.is_some() && there.get(n) == Some(file);
        if !is_there {
            amounts.segments += 1;
            amounts.bytes += file.map_or(0, |file| file.bytes);
        }
    }
    amounts
}

#[derive(Debug, Default)]
struct Segments {
    all: Vec<OwnedFd>,
    /// What each of them is, and what they take.
    files: Vec<Option<File>>,
    amounts: Amounts,
    /// Where they are kept, and whose they are, as long as it is known that they are the publisher's.
    store: Option<(Arc<FdStore>, Who)>,
}

impl Segments {
    fn add(&mut self, fds: Vec<OwnedFd>) {
        let files: Vec<_> = fds.iter().map(File::of).collect();
        self.amounts = self.amounts.plus(&beyond(&files, self.files.len(), &[]));
        self.files.extend(files);
        self.all.extend(fds);
    }

    fn take(&mut self) -> Vec<OwnedFd> {
        (self.files, self.amounts) = Default::default();
        std::mem::take(&mut self.all)
    }

    fn keep(&self, publisher: u128) {
        if let Some((store, who)) = &self.store {
            store.keep(&segments_name(publisher), who, &self.all);
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Whose the client says they are.
    publisher: u128,
    segments: Mutex<Segments>,
    fd_groups: Arc<FdGroups>,
    /// Who closes those, and as whose.
    closer: Closer,
    uid: u32,
    waker: Mutex<Option<Waker>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closer.close(self.uid, self.fd_groups.take_gone(true));
    }
}

impl Inner {
    fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came from one client so far. The tree reads it; the server adds to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Received(Arc<Inner>);

impl Received {
    /// Nothing yet, of a client that says that it is this publisher.
    pub(super) fn of(publisher: u128, uid: u32, closer: Closer) -> Self {
        Self::with(publisher, Segments::default(), uid, closer)
    }

    /// What the store has kept of this publisher, a process of theirs.
    pub(super) fn kept(
        publisher: u128,
        all: Vec<OwnedFd>,
        store: Arc<FdStore>,
        who: Who,
        closer: Closer,
    ) -> Self {
        let mut segments = Segments { store: Some((store, who)), ..Segments::default() };
        segments.add(all);
        Self::with(publisher, segments, who.uid, closer)
    }

    fn with(publisher: u128, segments: Segments, uid: u32, closer: Closer) -> Self {
        let (segments, waker) = (Mutex::new(segments), Mutex::default());
        let fd_groups = Arc::new(FdGroups::received());
        Self(Arc::new(Inner { publisher, segments, fd_groups, closer, uid, waker }))
    }

    /// Has them kept for the next server, and those that are still to come, of this process.
    pub(super) fn keep_in(&self, store: &Arc<FdStore>, who: Who) {
        let mut segments = self.0.segments();
        segments.store = Some((store.clone(), who));
        segments.keep(self.0.publisher);
    }

    /// Has those kept for which there was no room before.
    pub(super) fn keep_rest(&self) {
        self.0.segments().keep(self.0.publisher);
    }

    /// Nothing that is still to come is kept.
    pub(super) fn keep_no_more(&self) {
        self.0.segments().store = None;
    }

    /// Whose the client says the segments are; the tree finds out whether that is so.
    pub(super) fn publisher(&self) -> u128 {
        self.0.publisher
    }

    /// How many segments there are.
    pub(super) fn len(&self) -> usize {
        self.0.segments().all.len()
    }

    /// What that takes.
    pub(super) fn amounts(&self) -> Amounts {
        let descriptors = self.0.fd_groups.len() as u64;
        Amounts { descriptors, ..self.0.segments().amounts }
    }

    /// The descriptors of what the kernel counts.
    pub(super) fn fd_groups(&self) -> &FdGroups {
        &self.0.fd_groups
    }

    /// Closes those of them whose sources have gone.
    pub(super) fn close_gone(&self) {
        self.0.closer.close(self.0.uid, self.0.fd_groups.take_gone(false));
    }

    /// What they take, and `more` that are to be added, but for those that another connection of the same publisher
    /// brought as well.
    pub(super) fn amounts_beyond(&self, more: &[OwnedFd], other: Option<&Self>) -> Amounts {
        let more: Vec<_> = more.iter().map(File::of).collect();
        let descriptors = self.0.fd_groups.len() as u64;
        let own = self.0.segments();
        let segments = match other {
            None => own.amounts.plus(&beyond(&more, own.files.len(), &[])),
            Some(other) => {
                let there = &other.0.segments().files;
                beyond(&own.files, 0, there).plus(&beyond(&more, own.files.len(), there))
            }
        };
        Amounts { descriptors, ..segments }
    }

    /// Adds segments, and has the tree look.
    pub(super) fn add(&self, fds: Vec<OwnedFd>) {
        let mut segments = self.0.segments();
        segments.add(fds);
        // Before anything that is counted there can be seen.
        segments.keep(self.0.publisher);
        drop(segments);
        self.wake();
    }

    /// Takes over what another connection of the same publisher brought beyond what came here.
    pub(super) fn take_over(&self, other: &Self) {
        let mut theirs = other.0.segments().take();
        let more = theirs.split_off(theirs.len().min(self.len()));
        self.add(more);
        self.0.fd_groups.take_over(&other.0.fd_groups);
    }

    /// Takes the segments out, which are nobody else's.
    pub(super) fn take(&self) -> Vec<OwnedFd> {
        self.0.segments().take()
    }

    /// Has the tree look.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }
}

impl Feed for Received {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.segments().all.iter().map(OwnedFd::try_clone).collect()
    }

    fn publisher(&self) -> Option<u128> {
        Some(self.0.publisher)
    }

    fn fd_groups(&self) -> FdGroupsOf {
        FdGroupsOf(self.0.fd_groups.clone())
    }

    fn wake_by(&self, waker: Waker) {
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }
}
