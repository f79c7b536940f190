//! What was, of those that are shown: compact, and forgotten a while after they are gone.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use statsfs::snapshot::DirIdentity;

/// Rates that are kept of each: minutes, at one a second.
pub const KEPT: usize = 240;
/// Looks for which one is remembered that was not there, or not looked at.
const REMEMBERED: u64 = 120;
/// The scheduler's times are looked at once a second by those who publish them. If nothing changed for longer, nothing ran.
const SAMPLED: Duration = Duration::from_millis(2500);

/// What is remembered of all.
#[derive(Debug)]
pub struct History<K = DirIdentity> {
    looks: u64,
    of: HashMap<K, Past>,
}

impl<K> Default for History<K> {
    fn default() -> Self {
        Self { looks: 0, of: HashMap::new() }
    }
}

/// What is remembered of one.
#[derive(Debug, Default)]
pub struct Past {
    rates: VecDeque<f32>,
    sched: Sampled,
    seen: u64,
}

impl<K: Eq + Hash> History<K> {
    /// Begins a look: those that have not been there for long are forgotten.
    pub fn begin(&mut self) {
        self.looks += 1;
        let looks = self.looks;
        self.of.retain(|_, past| past.seen + REMEMBERED >= looks);
    }

    /// What is remembered of one that is there.
    pub fn of(&mut self, id: K) -> &mut Past {
        let past = self.of.entry(id).or_default();
        past.seen = self.looks;
        past
    }
}

impl Past {
    /// Adds how much came a second.
    pub fn push(&mut self, rate: f64) {
        if self.rates.len() == KEPT {
            self.rates.pop_front();
        }
        self.rates.push_back(rate as f32);
    }

    /// The last rates, the newest last.
    pub fn last(&self, most: usize) -> Vec<f32> {
        let skipped = self.rates.len().saturating_sub(most);
        self.rates.iter().skip(skipped).copied().collect()
    }

    /// Takes in the scheduler's times.
    pub fn sched(&mut self, at: Duration, run: u64, wait: u64) -> &Sampled {
        self.sched.push(at, run, wait);
        &self.sched
    }

    /// What is known of them since they were last taken in.
    pub fn known_sched(&self) -> Option<[f64; 2]> {
        self.sched.rates()
    }
}

/// Times that are sampled by somebody else, now and then: how much of each second they are is known from one change to another.
#[derive(Debug, Default)]
pub struct Sampled {
    /// What they are, and since when that is known.
    last: Option<(Duration, [u64; 2])>,
    /// When they were seen to change, in the last seconds, and to what.
    changes: VecDeque<(Duration, [u64; 2])>,
    rates: Option<[f64; 2]>,
}

/// Over how long a rate is, at least: somebody else's seconds are not as long as ours.
const OVER: Duration = Duration::from_millis(2500);

impl Sampled {
    fn push(&mut self, at: Duration, run: u64, wait: u64) {
        let now = [run, wait];
        match self.last {
            Some((since, last)) if last == now => {
                if at.saturating_sub(since) > SAMPLED {
                    // From here on it is known when it goes on.
                    self.changes = [(at, now)].into();
                    self.rates = Some([0.0; 2]);
                }
                return;
            }
            // For how long it had been so is not known.
            None => {
                self.last = Some((at, now));
                return;
            }
            Some(_) => self.last = Some((at, now)),
        }
        self.changes.push_back((at, now));
        while self.changes.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= OVER) {
            self.changes.pop_front();
        }
        if let Some((first, then)) = self.changes.front().filter(|(first, _)| *first < at) {
            let elapsed = (at - *first).as_nanos() as f64;
            let rate = |n: usize| now[n].saturating_sub(then[n]) as f64 / elapsed;
            self.rates = Some([rate(0), rate(1)]);
        }
    }

    /// Time on a processor, and time of waiting for one, in each time. None if it is not known yet.
    pub fn rates(&self) -> Option<[f64; 2]> {
        self.rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn sampled_times_are_known_from_change_to_change() {
        let mut sampled = Sampled::default();
        let second = 1_000_000_000;
        // Sampled each second, looked at each 400 ms: on for half, waiting for a quarter.
        for look in 0..50 {
            let samples = look * 400 / 1000;
            sampled.push(ms(look * 400), samples * second / 2, samples * second / 4);
            match sampled.rates() {
                None => assert!(look < 6, "known after two changes"),
                Some([run, wait]) => {
                    // A change is known as well as one looks.
                    assert!((0.35..=0.65).contains(&run), "{run} at {look}");
                    assert!((wait - run / 2.0).abs() < 1e-9);
                }
            }
        }
        // It sleeps.
        let last = 49 * 400 / 1000;
        for look in 0..10 {
            sampled.push(ms(20_000 + look * 400), last * second / 2, last * second / 4);
        }
        assert_eq!(sampled.rates(), Some([0.0, 0.0]));
    }

    #[test]
    fn rates_are_so_many_and_those_that_are_gone_are_forgotten() {
        let mut history = History::default();
        for look in 0..1000 {
            history.begin();
            history.of("stays").push(1.0);
            history.of(&*format!("{look}").leak()).push(1.0);
        }
        assert_eq!(history.of.len() as u64, 1 + REMEMBERED + 1);
        assert_eq!(history.of("stays").last(usize::MAX).len(), KEPT);
        let mut past = Past::default();
        (0..KEPT + 7).for_each(|n| past.push(n as f64));
        assert_eq!(past.last(2), [(KEPT + 5) as f32, (KEPT + 6) as f32]);
        assert_eq!(past.last(usize::MAX).len(), KEPT);
    }
}
