//! What one process of many may cost the others.
//!
//! A process that changes its structure all the time has the tree brought up to date at every look, and one
//! that does not let its cells settle has readers wait. On a host, where nobody is trusted, the first may
//! take a share of one processor's time, after a burst; until it has that again the tree shows its structure
//! as it last was. And every wait in vain makes the next one shorter: then its values are shown as they are
//! found. An honest process that does need more has its readers wait; its counts stay right.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One part in so many of the time.
const SHARE: u32 = 5;
/// How much of the time a process may have used up in advance.
const BURST: Duration = Duration::from_secs(1);

/// How long a process is waited for at first.
const PATIENCE: Duration = Duration::from_millis(500);
/// After so many waits in vain there are no more.
const HOPELESS: u32 = 8;
/// How long it takes until one of them is forgotten: whoever was only slow is waited for again.
const FORGIVEN: Duration = Duration::from_secs(10);

/// One process's budget.
#[derive(Debug)]
pub(super) struct Budget {
    /// When all that it cost will be its share of the time since.
    even: Instant,
    in_vain: Mutex<InVain>,
}

/// Waits in vain.
#[derive(Debug)]
struct InVain {
    /// How many are not forgotten.
    times: u32,
    /// Since when the next is being forgotten.
    since: Instant,
}

impl InVain {
    fn forgive(&mut self, now: Instant) {
        while self.times > 0 && now.duration_since(self.since) >= FORGIVEN {
            self.times -= 1;
            self.since += FORGIVEN;
        }
    }
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { even: now, in_vain: Mutex::new(InVain { times: 0, since: now }) }
    }

    fn in_vain(&self, now: Instant) -> MutexGuard<'_, InVain> {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.forgive(now);
        in_vain
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
    pub(super) fn patience(&self, now: Instant) -> Duration {
        PATIENCE / (1 << self.in_vain(now).times)
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_hopeless(&self, now: Instant) -> bool {
        self.in_vain(now).times >= HOPELESS
    }

    /// The wait was in vain.
    pub(super) fn give_up(&self, now: Instant) {
        let mut in_vain = self.in_vain(now);
        if in_vain.times == 0 {
            in_vain.since = now;
        }
        in_vain.times = (in_vain.times + 1).min(HOPELESS);
    }
}

/// So many at once, and one more after each interval.
#[derive(Debug)]
pub(super) struct Bucket {
    /// When it is full again.
    full: Instant,
    interval: Duration,
    most: u32,
}

impl Bucket {
    pub(super) fn new(now: Instant, most: u32, interval: Duration) -> Self {
        Self { full: now, interval, most }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + self.interval;
        let is_there = full <= now + self.interval * self.most;
        if is_there {
            self.full = full;
        }
        is_there
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
        let start = Instant::now();
        let budget = Budget::new(start);
        let mut waited = Duration::ZERO;
        while !budget.is_hopeless(start) {
            waited += budget.patience(start);
            budget.give_up(start);
        }
        assert!(waited < 2 * PATIENCE, "{waited:?}");
        // However often it was, one is forgotten at a time.
        budget.give_up(start);
        assert!(budget.is_hopeless(start + FORGIVEN - Duration::from_nanos(1)));
        assert_eq!(budget.patience(start + FORGIVEN), PATIENCE / (1 << (HOPELESS - 1)));
        assert_eq!(budget.patience(start + FORGIVEN * HOPELESS), PATIENCE);
        assert_eq!(budget.patience(start + FORGIVEN * 100), PATIENCE);
    }

    #[test]
    fn a_bucket_is_never_more_than_full() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = Bucket::new(start, 5, second);
        let mut take = |at: Duration| (0..100).filter(|_| bucket.take(start + at)).count();
        assert_eq!(take(Duration::ZERO), 5);
        assert_eq!(take(second - Duration::from_nanos(1)), 0);
        assert_eq!(take(second), 1);
        assert_eq!(take(3 * second), 2);
        assert_eq!(take(1000 * second), 5);
    }

    #[test]
    fn time_of_a_thread_is_what_it_used() {
        let before = thread_time();
        while thread_time() == before {}
        assert!(thread_time() > before);
    }
}
