//! Where the time of vCPUs went.

/// What is known of a time in which vCPUs could have run: all in vCPU-seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// How much there was: of each vCPU as much as passed.
    pub all: f64,
    /// In user space, handling exits; of those that are over.
    pub user: f64,
    /// Halted in the kernel, polling or asleep; of halts that are over. None if the kernel does not say.
    pub halted: Option<f64>,
    /// In KVM_RUN; of those that are over.
    pub run: Option<f64>,
    /// On a processor, and waiting for one. None if the scheduler's times are not known.
    pub sched: Option<[f64; 2]>,
}

/// Of each time that there was, which part was what: together 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Executing the guest, and what the kernel does for it.
    pub guest: f64,
    /// Handling exits in user space.
    pub user: f64,
    /// Halted or asleep.
    pub halt: f64,
    /// Able to run, and waiting for a processor. None if it is not known: then it is in the others.
    pub steal: Option<f64>,
}

impl Shares {
    /// None if there was no time, or nothing says whether a vCPU ran.
    ///
    /// Exits and halts are counted when they are over, and the scheduler's times as they pass. So a vCPU that has been
    /// running without an exit is in the guest since it is on a processor, one that has been halted is halted since it is on none.
    pub fn of(times: &Times) -> Option<Self> {
        let Times { all, user, halted, run, sched } = *times;
        if all <= 0.0 {
            return None;
        }
        // Who looks now and then may see more of it than there was.
        let sched = sched.map(|times| {
            let sum = times[0] + times[1];
            if sum > all { times.map(|time| time * all / sum) } else { times }
        });
        let mut left = all;
        let mut take = |time: f64| {
            let taken = time.clamp(0.0, left);
            left -= taken;
            taken / all
        };
        let on = match (sched, run) {
            (Some([on, _]), _) => on,
            (None, Some(run)) => run - halted.unwrap_or(0.0),
            (None, None) => return None,
        };
        let steal = sched.map(|[_, wait]| take(wait));
        let user = take(user);
        let rest = left - halted.unwrap_or(0.0);
        let mut take = |time: f64| {
            let taken = time.clamp(0.0, left);
            left -= taken;
            taken / all
        };
        let guest = take(on.min(rest));
        Some(Self { guest, user, halt: left / all, steal })
    }

    /// In guest, handled in user space, halted, stolen.
    pub fn parts(&self) -> [f64; 4] {
        [self.guest, self.user, self.halt, self.steal.unwrap_or(0.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_to_one_thing_each_and_all_of_it() {
        let of = |user, halted, run, sched| {
            let shares = Shares::of(&Times { all: 2.0, user, halted, run, sched }).unwrap();
            let parts = shares.parts();
            assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
            assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)), "{shares:?}");
            parts.map(|part| (part * 100.0).round())
        };
        // Spins, and exits never.
        assert_eq!(of(0.0, Some(0.0), Some(0.0), Some([2.0, 0.0])), [100.0, 0.0, 0.0, 0.0]);
        // Exits all the time, and handles them on a processor.
        assert_eq!(of(0.5, Some(0.0), Some(1.5), Some([2.0, 0.0])), [75.0, 25.0, 0.0, 0.0]);
        // Handles them asleep.
        assert_eq!(of(1.0, Some(0.0), Some(1.0), Some([1.0, 0.0])), [50.0, 50.0, 0.0, 0.0]);
        // Halted, in one halt that is not over, and in many that are.
        assert_eq!(of(0.0, Some(0.0), Some(0.0), Some([0.0, 0.0])), [0.0, 0.0, 100.0, 0.0]);
        assert_eq!(of(0.0, Some(1.9), Some(2.0), Some([0.1, 0.0])), [5.0, 0.0, 95.0, 0.0]);
        // Polls, which is on a processor, and no work.
        assert_eq!(of(0.0, Some(1.0), Some(2.0), Some([2.0, 0.0])), [50.0, 0.0, 50.0, 0.0]);
        // One processor for two.
        assert_eq!(of(0.0, Some(0.0), Some(2.0), Some([1.0, 1.0])), [50.0, 0.0, 0.0, 50.0]);
        // The scheduler says nothing.
        assert_eq!(of(0.2, Some(0.8), Some(1.8), None), [50.0, 10.0, 40.0, 0.0]);
        // What was long comes at once.
        assert_eq!(of(9.0, Some(9.0), Some(9.0), Some([9.0, 9.0])), [0.0, 50.0, 0.0, 50.0]);
        assert_eq!(of(0.0, Some(0.0), Some(2.0), Some([3.0, 1.0])), [75.0, 0.0, 0.0, 25.0]);
        let unknown = Times { all: 1.0, ..Times::default() };
        assert_eq!(Shares::of(&unknown), None);
        assert_eq!(Shares::of(&Times { run: Some(1.0), ..Times::default() }), None);
    }
}
