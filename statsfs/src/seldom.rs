//! Saying things once in a while: whoever can make a program complain must not fill its log by it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often a thing is said.
const INTERVAL: Duration = Duration::from_secs(10);
/// Things that are kept apart.
const KEPT_APART: usize = 1024;

#[derive(Debug)]
struct Said {
    at: Instant,
    unsaid: u64,
}

/// What was said of late.
#[derive(Debug)]
pub(crate) struct Seldom<K>(HashMap<K, Said>);

impl<K> Default for Seldom<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Whether to say a thing now: if so, how often it was not said since the last time.
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
    fn each_thing_is_said_once_in_a_while() {
        let mut seldom = Seldom::default();
        let now = Instant::now();
        let later = now + INTERVAL;
        assert_eq!(seldom.say((7, "a"), now), Some(0));
        assert_eq!(seldom.say((7, "a"), now), None);
        assert_eq!(seldom.say((7, "b"), now), Some(0));
        assert_eq!(seldom.say((8, "a"), now), Some(0));
        assert_eq!(seldom.say((7, "a"), later), Some(1));
        // However many things there are, they fill neither the log nor the memory.
        let said = (100..10_000).filter(|n| seldom.say((*n, "a"), later).is_some());
        assert!(said.count() <= KEPT_APART);
        assert!(seldom.0.len() <= KEPT_APART);
    }
}
