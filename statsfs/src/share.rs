//! A share of one processor's time for each of those whom nobody trusts.

use std::time::{Duration, Instant};

/// A share of one processor's time, some of which may be used up in advance.
#[derive(Debug)]
pub(crate) struct Share {
    /// When all that was spent will be the share of the time since.
    even: Instant,
    /// One part in so many.
    part: u32,
    /// How much time's share may be used up in advance.
    burst: Duration,
}

impl Share {
    /// One part in `part`, from now on.
    pub(crate) fn new(now: Instant, part: u32, burst: Duration) -> Self {
        Self { even: now, part, burst }
    }

    /// So much of a processor's time was used.
    pub(crate) fn spend(&mut self, now: Instant, cost: Duration) {
        self.even = self.even.max(now) + self.part * cost;
    }

    /// How long it takes until nothing is used in advance any more.
    pub(crate) fn debt(&self, now: Instant) -> Duration {
        self.even.saturating_duration_since(now)
    }

    /// Whether all that may be used was.
    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        self.even > now + self.burst
    }

    /// Whether nothing was used of late: it is as if it were new.
    pub(crate) fn is_untouched(&self, now: Instant) -> bool {
        self.even <= now
    }
}

/// The processor time that this thread has used: whoever else uses the processor meanwhile is nothing that
/// anybody could be charged with.
pub(crate) fn thread_time() -> Duration {
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
        const PART: u32 = 5;
        const BURST: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let mut share = Share::new(start, PART, BURST);
        let mut spent = Duration::ZERO;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while !share.is_spent(now) {
                let cost = Duration::from_millis(7);
                share.spend(now, cost);
                spent += cost;
            }
        }
        let all = (Duration::from_secs(10) + BURST) / PART;
        let one = Duration::from_millis(7);
        assert!(spent >= all - one && spent <= all + one, "{spent:?}");
        assert!(!share.is_untouched(start + Duration::from_secs(10)));
        assert!(share.is_untouched(start + Duration::from_secs(12)));
        // Who needs little never notices.
        let mut share = Share::new(start, PART, BURST);
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            assert!(!share.is_spent(now));
            share.spend(now, Duration::from_micros(150));
        }
    }

    #[test]
    fn time_of_a_thread_is_what_it_used() {
        let before = thread_time();
        while thread_time() == before {}
        assert!(thread_time() > before);
    }
}
