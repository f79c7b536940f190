//! A port by which a guest's kernel tells that it panics.
//!
//! QEMU's device of this name, as its `docs/specs/pvpanic` describes it: one byte, whose bits are kinds of
//! events. Reading tells which kinds there are, writing tells that they happen.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::BusDevice;

/// Ports.
pub const REGISTERS: u64 = 1;

/// The guest panics, and will not go on.
const PANICKED: u8 = 1 << 0;
/// The guest panics, and goes on with a kernel that it has loaded for this case.
const CRASH_LOADED: u8 = 1 << 1;

/// What a [`Pvpanic`] reports.
pub trait PvpanicEvents {
    /// The guest panics.
    fn panic(&self);
    /// The guest panics, and will be running another kernel.
    fn crash_load(&self);
    /// The guest wrote an event that there is not.
    fn ignored_write(&self);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl PvpanicEvents for NoEvents {
    fn panic(&self) {}
    fn crash_load(&self) {}
    fn ignored_write(&self) {}
}

/// The port.
///
/// ```
/// use devices::pvpanic::{NoEvents, Pvpanic};
/// use devices::BusDevice;
///
/// let (panic, panics) = std::sync::mpsc::channel();
/// let port = Pvpanic::new(NoEvents, move || panic.send(()).unwrap());
/// port.write(0, &[1]);
/// assert_eq!(panics.try_recv(), Ok(()));
/// ```
pub struct Pvpanic<EV, F> {
    // Several vCPUs may write at once; the counters behind the events allow one writer.
    events: Mutex<EV>,
    end: F,
}

impl<EV: PvpanicEvents + Send, F: Fn() + Send + Sync> Pvpanic<EV, F> {
    /// A port that calls `end` when the guest panics and will not go on.
    pub fn new(events: EV, end: F) -> Self {
        Self { events: Mutex::new(events), end }
    }
}

impl<EV: PvpanicEvents + Send, F: Fn() + Send + Sync> BusDevice for Pvpanic<EV, F> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(register) = data.first_mut() {
            *register = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&event) = data.first() else { return };
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if event & PANICKED != 0 {
            events.panic();
            drop(events);
            (self.end)();
        } else if event & CRASH_LOADED != 0 {
            events.crash_load();
        } else {
            events.ignored_write();
        }
    }
}

impl<EV, F> fmt::Debug for Pvpanic<EV, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pvpanic").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Vec<&'static str>);
    impl PvpanicEvents for &Mutex<Log> {
        fn panic(&self) {
            self.lock().unwrap().0.push("panic");
        }
        fn crash_load(&self) {
            self.lock().unwrap().0.push("crash");
        }
        fn ignored_write(&self) {
            self.lock().unwrap().0.push("ignored");
        }
    }

    #[test]
    fn a_panic_ends_unless_another_kernel_goes_on() {
        let (log, ends) = (Mutex::default(), Mutex::new(0));
        let port = Pvpanic::new(&log, || *ends.lock().unwrap() += 1);
        let mut data = [0; 2];
        port.read(0, &mut data);
        assert_eq!(data, [0b11, 0xff]);
        for event in [CRASH_LOADED, 0, 0x80] {
            port.write(0, &[event]);
        }
        assert_eq!(*ends.lock().unwrap(), 0);
        port.write(0, &[PANICKED]);
        assert_eq!(*ends.lock().unwrap(), 1);
        assert_eq!(log.lock().unwrap().0, ["crash", "ignored", "ignored", "panic"]);
    }
}
