//! What was, of those that are shown: compact, and forgotten a while after they are gone.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use statsfs::snapshot::DirIdentity;

/// Rates that are kept of each: minutes, at one a second.
pub const KEPT: usize = 240;
/// Looks for which one is remembered that was not there, or not looked at.
const REMEMBERED: u64 = 120;
/// The scheduler's times are looked at once a second by those who publish them. If nothing changed for longer, nothing ran.
const SAMPLED: Duration = Duration::from_millis(2500);

/// What is remembered of all.
#[derive(Debug, Default)]
pub struct History {
    looks: u64,
    of: HashMap<DirIdentity, Past>,
}

/// What is remembered of one.
#[derive(Debug, Default)]
pub struct Past {
    rates: VecDeque<f32>,
    sched: Sampled,
    seen: u64,
}

impl History {
    /// Begins a look: those that have not been there for long are forgotten.
    pub fn begin(&mut self) {
        self.looks += 1;
        let looks = self.looks;
        self.of.retain(|_, past| past.seen + REMEMBERED >= looks);
    }

    /// What is remembered of one that is there.
    pub fn of(&mut self, id: DirIdentity) -> &mut Past {
        let past = self.of.entry(id).or_default();
        past.seen = self.looks;
        past
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.of.len()
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
    last: Option<(Duration, [u64; 2])>,
    changed: Option<Duration>,
    rates: Option<[f64; 2]>,
}

impl Sampled {
    fn push(&mut self, at: Duration, run: u64, wait: u64) {
        let now = [run, wait];
        let Some((since, last)) = self.last else {
            self.last = Some((at, now));
            return;
        };
        let elapsed = at.saturating_sub(since);
        if now == last {
            if elapsed > SAMPLED {
                self.rates = Some([0.0; 2]);
            }
            return;
        }
        // Until the first change it is not known for how long it has been so.
        if self.changed.is_some() && !elapsed.is_zero() {
            let rate = |n: usize| now[n].saturating_sub(last[n]) as f64 / elapsed.as_nanos() as f64;
            self.rates = Some([rate(0), rate(1)]);
        }
        self.changed = Some(at);
        self.last = Some((at, now));
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
        let mut past = Past::default();
        (0..KEPT + 7).for_each(|n| past.push(n as f64));
        assert_eq!(past.last(2), [(KEPT + 5) as f32, (KEPT + 6) as f32]);
        assert_eq!(past.last(usize::MAX).len(), KEPT);
    }
}
