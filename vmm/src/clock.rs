//! The clock of the exit loop: ticks as cheap as they come, and their conversion to nanoseconds.
//!
//! The time stamp counter is read with one instruction, without entering the kernel, where it runs at
//! one constant rate on all CPUs. KVM knows the rate. Elsewhere ticks are the nanoseconds of the
//! monotonic clock.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::time::{Duration, Instant};

/// A clock's reading.
pub type Ticks = u64;

/// The shortest time to measure the counter's rate against: the monotonic clock is read to ~0.1 µs, so
/// that 2 ms give a rate that is off by 0.01 % at most.
const CALIBRATION: Duration = Duration::from_millis(2);

/// Ticks within which both clocks are read if nothing intervenes: a microsecond or so.
const TIGHT: Ticks = 3000;
/// How often to try for that.
const TRIES: usize = 16;

/// The clock of the exit loop.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The time stamp counter, and how its ticks become nanoseconds.
    Tsc(Scale),
    /// The monotonic clock, from an arbitrary origin.
    Monotonic { origin: Instant },
}

/// Nanoseconds per tick, as a fraction of 2^`shift`: `factor` / 2^64. So the conversion is the high half
/// of one product, which is where the processor leaves it.
#[derive(Clone, Copy, Debug)]
struct Scale {
    factor: u64,
    shift: u32,
}

/// One moment on the time stamp counter and the monotonic clock, to measure one against the other.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    ticks: Ticks,
    time: Instant,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        // A preemption between the two readings would spoil the rate: the tightest of a few tries, which
        // is usually the first.
        let read = || {
            let before = rdtsc();
            let time = Instant::now();
            let spread = rdtsc().saturating_sub(before);
            (spread, Self { ticks: before + spread / 2, time })
        };
        let mut best = read();
        for _ in 0..TRIES {
            if best.0 <= TIGHT {
                break;
            }
            let next = read();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }

    /// The monotonic clock's part.
    pub fn time(&self) -> Instant {
        self.time
    }
}

impl Clock {
    /// The best clock of this machine. `tsc_khz` is the counter's rate where it is known; where it is
    /// not, the rate is measured since `start`, waiting only if that was a moment ago.
    pub fn new(tsc_khz: Option<u32>, start: Moment) -> Self {
        if !tsc_is_invariant() {
            return Self::monotonic();
        }
        match tsc_khz {
            Some(khz) if khz > 0 => Self(Kind::Tsc(Scale::new(1_000_000, u64::from(khz)))),
            _ => Self::measured(start),
        }
    }

    /// The monotonic clock.
    pub fn monotonic() -> Self {
        Self(Kind::Monotonic { origin: Instant::now() })
    }

    fn measured(start: Moment) -> Self {
        let now = loop {
            let now = Moment::now();
            if now.time - start.time >= CALIBRATION {
                break now;
            }
            std::hint::spin_loop();
        };
        let ticks = now.ticks.saturating_sub(start.ticks);
        let ns = (now.time - start.time).as_nanos() as u64;
        if ticks == 0 {
            return Self::monotonic();
        }
        Self(Kind::Tsc(Scale::new(ns, ticks)))
    }

    /// The clock's reading now.
    #[inline(always)]
    pub fn now(&self) -> Ticks {
        match self.0 {
            Kind::Tsc(_) => rdtsc(),
            Kind::Monotonic { origin } => ns_since(origin),
        }
    }

    /// Nanoseconds from one reading to a later one; 0 if the clock went backwards, as it may by a few
    /// ticks between CPUs.
    #[inline(always)]
    pub fn ns_between(&self, earlier: Ticks, later: Ticks) -> u64 {
        let ticks = later.saturating_sub(earlier);
        match self.0 {
            Kind::Tsc(scale) => scale.ns(ticks),
            Kind::Monotonic { .. } => ticks,
        }
    }
}

/// Out of line: it would only be in the way of the fast path where that is inlined.
#[cold]
fn ns_since(origin: Instant) -> Ticks {
    origin.elapsed().as_nanos() as u64
}

impl Scale {
    /// `ns` nanoseconds in `ticks` ticks, which is more than 0.
    fn new(ns: u64, ticks: u64) -> Self {
        // The least power of two above their ratio; 1 where a tick is shorter than a nanosecond.
        let shift = if ns < ticks { 0 } else { (ns / ticks).ilog2() + 1 };
        let factor = ((u128::from(ns) << (64 - shift)) / u128::from(ticks)) as u64;
        Self { factor, shift }
    }

    #[inline(always)]
    fn ns(self, ticks: Ticks) -> u64 {
        ((u128::from(ticks << self.shift) * u128::from(self.factor)) >> 64) as u64
    }
}

#[inline(always)]
fn rdtsc() -> Ticks {
    // SAFETY: every x86-64 CPU has the instruction, and it touches nothing but registers.
    unsafe { _rdtsc() }
}

/// Whether the counter runs at one rate in all power states (CPUID 0x80000007, EDX bit 8).
fn tsc_is_invariant() -> bool {
    const POWER: u32 = 0x8000_0007;
    __cpuid(0x8000_0000).eax >= POWER && __cpuid(POWER).edx & (1 << 8) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(clock: Clock) {
        // The counter's reading lies between two readings of the reference on each side, so that a
        // preemption here can only widen the bounds, never fail the test.
        let outer = Instant::now();
        let a = clock.now();
        let inner = Instant::now();
        std::thread::sleep(Duration::from_millis(30));
        let least = inner.elapsed();
        let b = clock.now();
        let most = outer.elapsed();
        let ns = clock.ns_between(a, b) as f64;
        assert!(ns >= least.as_nanos() as f64 * 0.995, "{ns} {least:?}");
        assert!(ns <= most.as_nanos() as f64 * 1.005, "{ns} {most:?}");
    }

    #[test]
    fn a_measured_clock_agrees_with_the_monotonic_clock() {
        check(Clock::new(None, Moment::now()));
    }

    #[test]
    fn the_clock_with_the_rate_from_kvm_agrees_with_the_monotonic_clock() {
        let kvm =
            kvm_ioctls::Kvm::new().expect("these tests need /dev/kvm: load kvm_intel or kvm_amd");
        let khz = kvm.create_vm().unwrap().create_vcpu(0).unwrap().get_tsc_khz().ok();
        check(Clock::new(khz, Moment::now()));
    }

    #[test]
    fn the_monotonic_clock_is_in_nanoseconds() {
        check(Clock::monotonic());
    }

    #[test]
    fn a_clock_that_goes_backwards_gives_zero() {
        assert_eq!(Clock::new(Some(1_000_000), Moment::now()).ns_between(10, 9), 0);
    }

    #[test]
    fn conversion_neither_overflows_nor_loses_precision() {
        let slow = Clock(Kind::Tsc(Scale::new(1_000_000, 1))); // 1 kHz
        assert_eq!(slow.ns_between(0, 1 << 40), (1 << 40) * 1_000_000);
        let fast = Clock(Kind::Tsc(Scale::new(1_000_000, 5_000_000))); // 5 GHz
        let year = 365 * 86_400 * 5_000_000_000u64;
        let ns = fast.ns_between(0, year);
        assert!(ns.abs_diff(365 * 86_400 * 1_000_000_000) < 1_000_000_000 / 10, "{ns}");
    }
}
