//! What one process of many, and one user of many, may cost the others.
//!
//! A process that changes its structure all the time has the tree brought up to date at every look, and one
//! that does not let its cells settle has readers wait. On a host, where nobody is trusted, the first may
//! take a share of one processor's time, after a burst, and so may all processes of its user together; until
//! there is some of both again the tree shows its structure as it last was. Whoever has used up half of a
//! burst is *heavy*: all that are have a share together, of which one look takes no more than a piece, so that
//! nobody's request is behind much of it. And every wait in vain makes the next one shorter: then its values are shown as they are
//! found. An honest process that does need more has its readers wait; its counts stay right.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::share::Share;

/// One part in so many of a processor's time for a process, and how much of it in advance.
const PART: u32 = 5;
const BURST: Duration = Duration::from_secs(1);
/// The same for all processes of a user together: what a thousand honest ones need when they start at the
/// same time is there in advance, and however many there are, others get as much.
const USERS_PART: u32 = 2;
const USERS_BURST: Duration = Duration::from_secs(4);

/// The same for all that are heavy together: in advance what one look may take for them.
const HEAVY_PART: u32 = 2;
const HEAVY_BURST: Duration = Duration::from_millis(10);

/// What all that are heavy may cost together.
pub(super) fn heavy_share() -> Share {
    Share::new(Instant::now(), HEAVY_PART, HEAVY_BURST)
}

/// How long a process is waited for at first.
const PATIENCE: Duration = Duration::from_millis(500);
/// After so many waits in vain there are no more.
const HOPELESS: u32 = 8;
/// How long it takes until one of them is forgotten: whoever was only slow is waited for again.
const FORGIVEN: Duration = Duration::from_secs(10);

/// What all processes of a user may cost together.
#[derive(Clone, Debug)]
pub(super) struct UsersShare(Arc<Mutex<Share>>);

impl UsersShare {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Share::new(now, USERS_PART, USERS_BURST))))
    }

    fn lock(&self) -> MutexGuard<'_, Share> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One process's budget.
#[derive(Debug)]
pub(super) struct Budget {
    own: Share,
    users: UsersShare,
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
    /// Of one of the processes that share `users`.
    pub(super) fn new(now: Instant, users: UsersShare) -> Self {
        let in_vain = Mutex::new(InVain { times: 0, since: now });
        Self { own: Share::new(now, PART, BURST), users, in_vain }
    }

    fn in_vain(&self, now: Instant) -> MutexGuard<'_, InVain> {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.forgive(now);
        in_vain
    }

    /// It took so much of a processor's time.
    pub(super) fn spend(&mut self, now: Instant, cost: Duration) {
        self.own.spend(now, cost);
        self.users.lock().spend(now, cost);
    }

    /// Whether it has used up what it may have, or its user what all the user's processes may have.
    pub(super) fn is_spent(&self, now: Instant) -> bool {
        self.own.is_spent(now) || self.users.lock().is_spent(now)
    }

    /// How long it takes until neither it nor its user uses anything in advance any more.
    pub(super) fn debt(&self, now: Instant) -> Duration {
        self.own.debt(now).max(self.users.lock().debt(now))
    }

    /// Whether it, or its user, has used up half of what may be used in advance.
    pub(super) fn is_heavy(&self, now: Instant) -> bool {
        self.own.debt(now) > BURST / 2 || self.users.lock().debt(now) > USERS_BURST / 2
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_processes_of_a_user_get_no_more_than_a_few() {
        let start = Instant::now();
        let spent_by = |n: usize| {
            let users = UsersShare::new(start);
            let mut all: Vec<_> = (0..n).map(|_| Budget::new(start, users.clone())).collect();
            let cost = Duration::from_millis(1);
            let mut spent = Duration::ZERO;
            for ms in 0..10_000 {
                let now = start + Duration::from_millis(ms);
                for budget in &mut all {
                    while !budget.is_spent(now) {
                        budget.spend(now, cost);
                        spent += cost;
                    }
                }
            }
            spent
        };
        let time = Duration::from_secs(10);
        let near = |spent: Duration, all: Duration| spent.abs_diff(all) < all / 100;
        assert!(near(spent_by(1), (time + BURST) / PART));
        assert!(near(spent_by(2), 2 * (time + BURST) / PART));
        for n in [5, 100] {
            assert!(near(spent_by(n), (time + USERS_BURST) / USERS_PART), "{:?}", spent_by(n));
        }
    }

    #[test]
    fn waits_in_vain_get_shorter() {
        let start = Instant::now();
        let budget = Budget::new(start, UsersShare::new(start));
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
}
