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
