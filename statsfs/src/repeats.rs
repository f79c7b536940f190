//! What is said once in a while, however often somebody gives rise to it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often the same is said.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many are kept apart: of more at a time nothing is said.
const KEPT_APART: usize = 1024;

#[derive(Debug)]
struct Said {
    at: Instant,
    unsaid: u64,
}

/// When what was said last.
#[derive(Debug)]
pub(crate) struct Repeats<K>(HashMap<K, Said>);

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Repeats<K> {
    /// Whether this is to be said now, and then, how often it was not said since the last time.
    pub(crate) fn say(&mut self, what: K, now: Instant) -> Option<u64> {
        if self.0.len() >= KEPT_APART {
            self.0.retain(|_, said| now < said.at + INTERVAL);
        }
        let is_full = self.0.len() >= KEPT_APART;
        match self.0.get_mut(&what) {
            Some(said) if now < said.at + INTERVAL => {
                said.unsaid += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.unsaid))
            }
            None if is_full => None,
            None => {
                self.0.insert(what, Said { at: now, unsaid: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_in_a_while() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        let later = now + INTERVAL;
        assert_eq!(repeats.say((7, 'a'), now), Some(0));
        assert_eq!(repeats.say((7, 'a'), now), None);
        assert_eq!(repeats.say((7, 'b'), now), Some(0));
        assert_eq!(repeats.say((8, 'a'), now), Some(0));
        assert_eq!(repeats.say((7, 'a'), later), Some(1));
        // Whoever has many users does not fill the log either, or the memory.
        let said = (100..10_000).filter(|uid| repeats.say((*uid, 'a'), later).is_some());
        assert!(said.count() <= KEPT_APART);
        assert!(repeats.0.len() <= KEPT_APART);
    }
}
