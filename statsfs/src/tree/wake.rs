//! What wakes whoever waits for changes.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Somebody who waits for changes.
pub trait Wake: Send + Sync {
    /// Has it look now. Called often, and never waits.
    fn wake(&self);
}

#[derive(Debug, Default)]
struct Wakes {
    so_far: Mutex<u64>,
    condition: Condvar,
}

/// The tree's end.
#[derive(Debug, Default)]
pub(super) struct Sleeper(Arc<Wakes>);

/// Wakes the one that it is of, a tree for one, if it is still there.
#[derive(Clone)]
pub struct Waker(Weak<dyn Wake>);

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

impl Waker {
    /// A waker of `who`.
    pub fn of(who: &Arc<dyn Wake>) -> Self {
        Self(Arc::downgrade(who))
    }

    /// Has it look for changes now.
    pub fn wake(&self) {
        if let Some(who) = self.0.upgrade() {
            who.wake();
        }
    }

    /// Whether it is still there.
    pub fn is_of_use(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Wake for Wakes {
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
        let this: Arc<dyn Wake> = self.0.clone();
        Waker::of(&this)
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
