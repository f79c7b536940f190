//! What the clients of one user may take of the thread that has the sockets.
//!
//! Whoever connects, asks, breaks the rules and comes back as fast as can be has that thread busy, and everybody
//! else waits. So each user has a share of its time. Once it is used up, the user's connections wait, and new
//! ones are turned away, until there is some again; deaths are seen to at once whoever died.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::worker::ClientId;
use crate::share::Share;

/// One part in so many of the thread's time, and how much of it in advance: the clients of a thousand honest
/// processes that start, or end, at the same time never wait.
const PART: u32 = 3;
const BURST: Duration = Duration::from_secs(6);
/// Users that are remembered, until there are too many.
const REMEMBERED: usize = 1024;

/// All users' shares, and who waits.
#[derive(Debug, Default)]
pub(super) struct Turns {
    shares: HashMap<u32, Share>,
    waiting: Vec<ClientId>,
}

impl Turns {
    /// Something was done for a user, or because of one.
    pub(super) fn charge(&mut self, uid: u32, cost: Duration) {
        let now = Instant::now();
        if self.shares.len() >= REMEMBERED {
            self.shares.retain(|_, share| !share.is_untouched(now));
        }
        let share = self.shares.entry(uid).or_insert_with(|| Share::new(now, PART, BURST));
        // Turning somebody away costs something too, but must not keep the user away for ever longer.
        if !share.is_spent(now) {
            share.spend(now, cost);
        }
    }

    /// Whether nothing is to be done for a user now.
    pub(super) fn must_wait(&self, uid: u32) -> bool {
        self.shares.get(&uid).is_some_and(|share| share.is_spent(Instant::now()))
    }

    /// A client has something to say, and must wait.
    pub(super) fn put_off(&mut self, client: ClientId) {
        self.waiting.push(client);
    }

    /// Those that were put off. Whoever must still wait is to be put off again.
    pub(super) fn waiting(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.waiting)
    }
}

/// What somebody is told who must wait.
pub(super) fn busy(uid: u32) -> String {
    format!("user {uid} keeps the server too busy: it takes nothing more from that user for now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_keeps_the_server_busy_waits_and_nobody_else() {
        let mut turns = Turns::default();
        let cost = Duration::from_millis(100);
        let times = (0..1000).take_while(|_| {
            let waits = turns.must_wait(7);
            turns.charge(7, cost);
            !waits
        });
        let used = cost * times.count() as u32;
        assert!(used >= BURST / PART && used < BURST, "{used:?}");
        assert!(turns.must_wait(7) && !turns.must_wait(8));
        // Being turned away does not make it longer.
        let share = &turns.shares[&7];
        assert!(!share.is_spent(Instant::now() + 2 * PART * cost));
        turns.put_off(1);
        assert_eq!((turns.waiting(), turns.waiting()), (vec![1], vec![]));
        // However many users come, those who used nothing of late are forgotten.
        (0..10_000).for_each(|uid| turns.charge(uid, Duration::ZERO));
        assert!(turns.shares.len() <= REMEMBERED + 1, "{}", turns.shares.len());
    }
}
