//! What one process of many may cost the others.
//!
//! A process that changes its structure all the time has the tree brought up to date at every look, and one
//! that does not let its cells settle has readers wait. On a host, where nobody is trusted, the first may
//! take a share of one processor's time, after a burst; until it has that again the tree shows its structure
//! as it last was. And every wait in vain makes the next one shorter: then its values are shown as they are
//! found. An honest process that does need more has its readers wait; its counts stay right.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// One part in so many of the time.
const SHARE: u32 = 5;
/// How much of the time a process may have used up in advance.
const BURST: Duration = Duration::from_secs(1);

/// How long a process is waited for at first.
const PATIENCE: Duration = Duration::from_millis(500);
/// After so many waits in vain there are no more.
const HOPELESS: u32 = 8;

/// One process's budget.
#[derive(Debug)]
pub(super) struct Budget {
    /// When all that it cost will be its share of the time since.
    even: Instant,
    /// How often it was waited for in vain.
    in_vain: AtomicU32,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { even: now, in_vain: AtomicU32::new(0) }
    }

    /// It took so much of a processor's time.
    pub(super) fn spend(&mut self, now: Instant, cost: Duration) {
        self.even = self.even.max(now) + SHARE * cost;
    }

    /// Whether it has used up what it may have.
    pub(super) fn is_spent(&self, now: Instant) -> bool {
        self.even > now + BURST
    }

    /// How long to wait until its cells settle.
    pub(super) fn patience(&self) -> Duration {
        PATIENCE / (1 << self.in_vain.load(Ordering::Relaxed).min(HOPELESS))
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_hopeless(&self) -> bool {
        self.in_vain.load(Ordering::Relaxed) >= HOPELESS
    }

    /// The wait was in vain.
    pub(super) fn give_up(&self) {
        self.in_vain.fetch_add(1, Ordering::Relaxed);
    }
}

/// The processor time that this thread has used: whoever else uses the processor meanwhile is nothing that a
/// process could be charged with.
pub(super) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    if failed != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_a_share() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut spent = Duration::ZERO;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while !budget.is_spent(now) {
                let cost = Duration::from_millis(7);
                budget.spend(now, cost);
                spent += cost;
            }
        }
        let share = (Duration::from_secs(10) + BURST) / SHARE;
        let one = Duration::from_millis(7);
        assert!(spent >= share - one && spent <= share + one, "{spent:?}");
        // Who needs little never notices.
        let mut budget = Budget::new(start);
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            assert!(!budget.is_spent(now));
            budget.spend(now, Duration::from_micros(150));
        }
    }

    #[test]
    fn waits_in_vain_get_shorter() {
        let budget = Budget::new(Instant::now());
        let mut waited = Duration::ZERO;
        while !budget.is_hopeless() {
            waited += budget.patience();
            budget.give_up();
        }
        assert!(waited < 2 * PATIENCE, "{waited:?}");
    }

    #[test]
    fn time_of_a_thread_is_what_it_used() {
        let before = thread_time();
        while thread_time() == before {}
        assert!(thread_time() > before);
    }
}
