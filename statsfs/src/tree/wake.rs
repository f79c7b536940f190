//! What wakes whoever waits for changes in a tree.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

#[derive(Debug, Default)]
struct Wakes {
    so_far: Mutex<u64>,
    condition: Condvar,
}

/// The tree's end.
#[derive(Debug, Default)]
pub(super) struct Sleeper(Arc<Wakes>);

/// Wakes the tree that it is of, if it is still there.
#[derive(Clone, Debug)]
pub struct Waker(Weak<Wakes>);

impl Waker {
    /// Has the tree look for changes now.
    pub fn wake(&self) {
        if let Some(wakes) = self.0.upgrade() {
            wakes.wake();
        }
    }

    /// Whether the tree is still there.
    pub fn is_of_use(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Wakes {
    fn wake(&self) {
        *self.so_far.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.condition.notify_all();
    }
}

impl Sleeper {
    pub(super) fn wake(&self) {
        self.0.wake();
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::downgrade(&self.0))
    }

    /// Waits until there were more wakes than `seen`, at most for `timeout`; answers how many there were.
    pub(super) fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let so_far = self.0.so_far.lock().unwrap_or_else(PoisonError::into_inner);
        let (so_far, _) = self
            .0
            .condition
            .wait_timeout_while(so_far, timeout, |so_far| *so_far == seen)
            .unwrap_or_else(PoisonError::into_inner);
        *so_far
    }
}
