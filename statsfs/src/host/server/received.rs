//! The segments that a client sent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::tree::{Feed, Waker};

#[derive(Debug, Default)]
struct Inner {
    /// Whose the client says they are.
    publisher: u128,
    fds: Mutex<Vec<OwnedFd>>,
    waker: Mutex<Option<Waker>>,
}

/// What came from one client so far. The tree reads it; the server adds to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Received(Arc<Inner>);

impl Received {
    /// Nothing yet, of a client that says that it is this publisher.
    pub(super) fn of(publisher: u128) -> Self {
        Self(Arc::new(Inner { publisher, ..Inner::default() }))
    }

    /// Whose the client says the segments are; the tree finds out whether that is so.
    pub(super) fn publisher(&self) -> u128 {
        self.0.publisher
    }

    /// How many segments there are.
    pub(super) fn len(&self) -> usize {
        self.0.fds.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Adds segments, and has the tree look.
    pub(super) fn add(&self, fds: Vec<OwnedFd>) {
        self.0.fds.lock().unwrap_or_else(PoisonError::into_inner).extend(fds);
        self.wake();
    }

    /// Takes over what another connection of the same publisher brought beyond what came here.
    pub(super) fn take_over(&self, other: &Self) {
        let mut theirs =
            std::mem::take(&mut *other.0.fds.lock().unwrap_or_else(PoisonError::into_inner));
        let more = theirs.split_off(theirs.len().min(self.len()));
        self.add(more);
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
        let fds = self.0.fds.lock().unwrap_or_else(PoisonError::into_inner);
        fds.iter().map(OwnedFd::try_clone).collect()
    }

    fn publisher(&self) -> Option<u128> {
        Some(self.0.publisher)
    }

    fn wake_by(&self, waker: Waker) {
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }
}
