//! The accounting of exits: what the exit loop does around every call of KVM_RUN.
//!
//! It costs two readings of the time stamp counter and a few plain stores into the vCPU's own slot: no
//! allocation, lock, system call or locked instruction. One latched update per return of KVM_RUN counts
//! the return, its reason, and the time that handling the *previous* return took, so that what is
//! counted together is also seen together.

use statsfs::Slot;

use crate::clock::{Clock, Ticks};
use crate::exit::ExitReason;
use crate::stats::VcpuStats;

/// How much is accounted per exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Detail {
    /// Nothing: to measure what accounting costs.
    Off,
    /// Counts only.
    Counts,
    /// Counts and times.
    #[default]
    Full,
}

/// What the exit loop calls around every KVM_RUN: `enter`, KVM_RUN, `exit`, and so on, then `close`.
///
/// ```
/// use statsfs::Slot;
/// use vmm::accounting::{Account, Timed};
/// use vmm::{clock::Clock, exit::ExitReason};
///
/// let mut account = Timed::new(Slot::dummy(), Clock::monotonic());
/// for reason in [ExitReason::IoOut, ExitReason::Hlt] {
///     account.enter(); // the handling of the last exit ends here
///     // … KVM_RUN …
///     account.exit(reason);
/// }
/// account.close();
/// ```
pub trait Account {
    /// KVM_RUN is about to be called. Returns the nanoseconds since its last return, 0 at first.
    fn enter(&mut self) -> u64;
    /// KVM_RUN has returned.
    fn exit(&mut self, reason: ExitReason);
    /// KVM_RUN will not be called again. Returns the nanoseconds since its last return.
    fn close(&mut self) -> u64;
}

/// Accounts counts and times.
pub struct Timed {
    slot: Slot<VcpuStats>,
    clock: Clock,
    entered: Ticks,
    exited: Ticks,
    /// Nanoseconds between `exited` and `entered`: how long handling the last exit took.
    handled: u64,
    /// The last exit's reason.
    last: Option<ExitReason>,
}

impl Timed {
    /// Accounts into `slot`, timed by `clock`.
    pub fn new(slot: Slot<VcpuStats>, clock: Clock) -> Self {
        let now = clock.now();
        Self { slot, clock, entered: now, exited: now, handled: 0, last: None }
    }

    #[inline(always)]
    fn record_handled(&self, reason: ExitReason) {
        let ns = self.handled;
        self.slot.user_handle_time.record(ns);
        match reason {
            ExitReason::IoIn => self.slot.user_handle_time_io_in.record(ns),
            ExitReason::IoOut => self.slot.user_handle_time_io_out.record(ns),
            ExitReason::MmioRead => self.slot.user_handle_time_mmio_read.record(ns),
            ExitReason::MmioWrite => self.slot.user_handle_time_mmio_write.record(ns),
            ExitReason::Hlt => self.slot.user_handle_time_hlt.record(ns),
            _ => {}
        }
    }
}

impl Account for Timed {
    #[inline(always)]
    fn enter(&mut self) -> u64 {
        self.entered = self.clock.now();
        if self.last.is_some() {
            self.handled = self.clock.ns_between(self.exited, self.entered);
        }
        self.handled
    }

    #[inline(always)]
    fn exit(&mut self, reason: ExitReason) {
        self.exited = self.clock.now();
        let ran = self.clock.ns_between(self.entered, self.exited);
        if let Some(last) = self.last {
            let handled = self.handled;
            self.slot.update(|cells| {
                cells.user_exits.inc();
                cells.user_exit[reason].inc();
                cells.user_time[last].add(handled);
            });
            self.record_handled(last);
        } else {
            self.slot.update(|cells| {
                cells.user_exits.inc();
                cells.user_exit[reason].inc();
            });
        }
        self.slot.user_run_time.record(ran);
        self.last = Some(reason);
    }

    fn close(&mut self) -> u64 {
        let Some(last) = self.last.take() else { return 0 };
        let handled = self.clock.ns_between(self.exited, self.clock.now());
        self.handled = handled;
        self.slot.update(|cells| cells.user_time[last].add(handled));
        self.record_handled(last);
        self.handled = 0;
        handled
    }
}

/// Accounts counts only.
pub struct Counted {
    slot: Slot<VcpuStats>,
}

impl Counted {
    /// Accounts into `slot`.
    pub fn new(slot: Slot<VcpuStats>) -> Self {
        Self { slot }
    }
}

impl Account for Counted {
    #[inline(always)]
    fn enter(&mut self) -> u64 {
        0
    }

    #[inline(always)]
    fn exit(&mut self, reason: ExitReason) {
        self.slot.update(|cells| {
            cells.user_exits.inc();
            cells.user_exit[reason].inc();
        });
    }

    fn close(&mut self) -> u64 {
        0
    }
}

/// Accounts nothing.
#[derive(Clone, Copy, Debug)]
pub struct Off;

impl Account for Off {
    #[inline(always)]
    fn enter(&mut self) -> u64 {
        0
    }

    #[inline(always)]
    fn exit(&mut self, _reason: ExitReason) {}

    fn close(&mut self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use statsfs::value::LabelSet;

    use super::*;
    use crate::stats::VcpuStatsLatched;

    /// The value of a latched cell.
    fn get(slot: &Slot<VcpuStats>, cell: impl Fn(&VcpuStatsLatched) -> u64) -> u64 {
        let seen = Cell::new(0);
        slot.update(|cells| seen.set(cell(cells)));
        seen.get()
    }

    fn timed() -> Timed {
        Timed::new(Slot::dummy(), Clock::monotonic())
    }

    /// Every reason, as many times as its place says, in an order that changes.
    fn mixed() -> Vec<usize> {
        let mut order: Vec<_> =
            (0..ExitReason::NAMES.len()).flat_map(|i| std::iter::repeat_n(i, i + 1)).collect();
        // A fixed shuffle: reproducible, and no reason stays next to itself for long.
        for i in (1..order.len()).rev() {
            order.swap(i, i * 7919 % (i + 1));
        }
        order
    }

    fn reason(index: usize) -> ExitReason {
        (0..60).map(ExitReason::of_number).chain(SPLIT).find(|r| r.index() == index).unwrap()
    }

    const SPLIT: [ExitReason; 6] = [
        ExitReason::IoIn,
        ExitReason::IoOut,
        ExitReason::MmioRead,
        ExitReason::MmioWrite,
        ExitReason::Again,
        ExitReason::Error,
    ];

    #[test]
    fn every_exit_is_counted_once_under_its_reason() {
        let mut account = timed();
        let order = mixed();
        for (n, &i) in order.iter().enumerate() {
            account.enter();
            account.exit(reason(i));
            let (total, sum) = (
                get(&account.slot, |c| c.user_exits.get()),
                get(&account.slot, |c| c.user_exit.iter().map(|c| c.get()).sum()),
            );
            assert_eq!((total, sum), (n as u64 + 1, n as u64 + 1));
        }
        account.close();
        for i in 0..ExitReason::NAMES.len() {
            let counted = get(&account.slot, |c| c.user_exit[reason(i)].get());
            assert_eq!(counted, i as u64 + 1, "{}", reason(i).name());
        }
        let n = order.len() as u64;
        let slot = &account.slot;
        assert_eq!(slot.user_run_time.count(), n);
        assert_eq!(slot.user_handle_time.count(), n);
        for (histogram, reason) in [
            (&slot.user_handle_time_io_in, ExitReason::IoIn),
            (&slot.user_handle_time_io_out, ExitReason::IoOut),
            (&slot.user_handle_time_mmio_read, ExitReason::MmioRead),
            (&slot.user_handle_time_mmio_write, ExitReason::MmioWrite),
            (&slot.user_handle_time_hlt, ExitReason::Hlt),
        ] {
            assert_eq!(histogram.count(), get(slot, |c| c.user_exit[reason].get()));
            assert_eq!(histogram.sum(), get(slot, |c| c.user_time[reason].get()));
        }
        let times = get(slot, |c| c.user_time.iter().map(|c| c.get()).sum());
        assert_eq!(slot.user_handle_time.sum(), times);
    }

    #[test]
    fn time_goes_to_running_or_to_the_reason_being_handled() {
        let mut account = timed();
        let spend = |least| {
            let begin = std::time::Instant::now();
            while begin.elapsed().as_nanos() < least {}
        };
        let begin = std::time::Instant::now();
        assert_eq!(account.enter(), 0, "nothing has been handled yet");
        spend(4_000_000);
        account.exit(ExitReason::IoOut);
        spend(2_000_000);
        let handled_out = account.enter();
        account.exit(ExitReason::Hlt);
        spend(1_000_000);
        let handled_hlt = account.close();
        let all = begin.elapsed().as_nanos() as u64;

        let slot = &account.slot;
        assert!(handled_out >= 2_000_000 && handled_hlt >= 1_000_000);
        assert_eq!(get(slot, |c| c.user_time[ExitReason::IoOut].get()), handled_out);
        assert_eq!(get(slot, |c| c.user_time[ExitReason::Hlt].get()), handled_hlt);
        assert_eq!(slot.user_handle_time.sum(), handled_out + handled_hlt);
        let ran = slot.user_run_time.sum();
        assert!(ran >= 4_000_000);
        assert!(ran + handled_out + handled_hlt <= all, "no time is counted twice");
    }

    #[test]
    fn closing_counts_the_last_handling_and_nothing_else() {
        let mut account = timed();
        assert_eq!(account.close(), 0, "no exit, nothing to close");
        assert_eq!(account.slot.user_handle_time.count(), 0);
        account.enter();
        account.exit(ExitReason::Shutdown);
        assert_eq!(account.slot.user_handle_time.count(), 0, "it is still being handled");
        account.close();
        assert_eq!(account.slot.user_handle_time.count(), 1);
        assert_eq!(get(&account.slot, |c| c.user_exits.get()), 1);
        account.close();
        assert_eq!(account.slot.user_handle_time.count(), 1, "closed once");
    }

    #[test]
    fn counts_alone_are_the_same_counts() {
        let mut account = Counted::new(Slot::dummy());
        for i in mixed() {
            account.enter();
            account.exit(reason(i));
        }
        account.close();
        let slot = &account.slot;
        for i in 0..ExitReason::NAMES.len() {
            assert_eq!(get(slot, |c| c.user_exit[reason(i)].get()), i as u64 + 1);
        }
        assert_eq!(get(slot, |c| c.user_exits.get()), mixed().len() as u64);
        assert_eq!(slot.user_run_time.count(), 0);
    }
}
