//! What was refused, to whom and why: in the log once in a while for each user, and for `statsfs status`.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::stats::RefusedFor;

/// Refusals that are remembered.
const REMEMBERED: usize = 64;
/// How often a user's refusals for one reason are in the log.
const INTERVAL: Duration = Duration::from_secs(10);
/// Users and reasons that are kept apart.
const KEPT_APART: usize = 1024;

/// A client that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Its process, as far as is known.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Why, in short.
    pub reason: RefusedFor,
    /// Why, as it was told.
    pub text: String,
}

#[derive(Debug)]
struct Logged {
    at: Instant,
    unsaid: u64,
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last: VecDeque<Refusal>,
    logged: HashMap<(u32, RefusedFor), Logged>,
}

impl Refusals {
    /// Remembers a refusal, and logs it unless the user's last one for that reason was just now.
    pub(super) fn add(&mut self, pid: u32, uid: u32, reason: RefusedFor, text: String) {
        self.say(pid, uid, reason, &text, Instant::now());
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        let at =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last.push_back(Refusal { at, pid, uid, reason, text });
    }

    fn say(&mut self, pid: u32, uid: u32, reason: RefusedFor, text: &str, now: Instant) -> bool {
        if self.logged.len() >= KEPT_APART {
            self.logged.retain(|_, logged| now < logged.at + INTERVAL);
        }
        let full = self.logged.len() >= KEPT_APART;
        let unsaid = match self.logged.get_mut(&(uid, reason)) {
            Some(logged) if now < logged.at + INTERVAL => {
                logged.unsaid += 1;
                return false;
            }
            Some(logged) => {
                logged.at = now;
                std::mem::take(&mut logged.unsaid)
            }
            None if full => return false,
            None => {
                self.logged.insert((uid, reason), Logged { at: now, unsaid: 0 });
                0
            }
        };
        if unsaid == 0 {
            tracing::warn!(pid, uid, "refused: {text}");
        } else {
            tracing::warn!(pid, uid, unsaid, "refused: {text}");
        }
        true
    }

    /// The last ones, the newest last.
    pub(super) fn last(&self) -> impl Iterator<Item = &Refusal> {
        self.last.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_refusals_are_said_once_in_a_while() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        let later = now + INTERVAL;
        assert!(refusals.say(1, 7, RefusedFor::Limit, "text", now));
        assert!(!refusals.say(2, 7, RefusedFor::Limit, "text", now));
        assert!(refusals.say(2, 7, RefusedFor::Silence, "text", now));
        assert!(refusals.say(3, 8, RefusedFor::Limit, "text", now));
        assert!(refusals.say(1, 7, RefusedFor::Limit, "text", later));
        // Whoever has many users does not fill the log either, or the memory.
        let said =
            (100..10_000).filter(|uid| refusals.say(1, *uid, RefusedFor::Limit, "text", later));
        assert!(said.count() <= KEPT_APART);
        assert!(refusals.logged.len() <= KEPT_APART);
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let mut refusals = Refusals::default();
        for pid in 0..1000 {
            refusals.add(pid, 7, RefusedFor::Limit, "text".into());
        }
        let pids: Vec<_> = refusals.last().map(|refusal| refusal.pid).collect();
        assert_eq!(pids, (1000 - REMEMBERED as u32..1000).collect::<Vec<_>>());
    }
}
