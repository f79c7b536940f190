//! A port that ends the guest: the byte written is the guest's exit status.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::BusDevice;

/// What an [`ExitPort`] reports.
pub trait ExitPortEvents {
    /// The guest asked to be ended with this status.
    fn request(&self, status: u8);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl ExitPortEvents for NoEvents {
    fn request(&self, _status: u8) {}
}

/// One port. Writing a byte (the first of a wider access) ends the guest with that status; reading
/// gives all ones.
///
/// ```
/// use std::sync::atomic::{AtomicU8, Ordering};
/// use devices::{BusDevice, ExitPort, exit_port::NoEvents};
///
/// static STATUS: AtomicU8 = AtomicU8::new(0);
/// let port = ExitPort::new(NoEvents, |status| STATUS.store(status, Ordering::Relaxed));
/// port.write(0, &[7]);
/// assert_eq!(STATUS.load(Ordering::Relaxed), 7);
/// ```
pub struct ExitPort<EV, F> {
    // Several vCPUs may write at once; the counters behind the events allow one writer.
    events: Mutex<EV>,
    end: F,
}

impl<EV: ExitPortEvents + Send, F: Fn(u8) + Send + Sync> ExitPort<EV, F> {
    /// A port that calls `end` with the status that the guest writes.
    pub fn new(events: EV, end: F) -> Self {
        Self { events: Mutex::new(events), end }
    }
}

impl<EV: ExitPortEvents + Send, F: Fn(u8) + Send + Sync> BusDevice for ExitPort<EV, F> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&status) = data.first() {
            self.events.lock().unwrap_or_else(PoisonError::into_inner).request(status);
            (self.end)(status);
        }
    }
}

impl<EV, F> fmt::Debug for ExitPort<EV, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitPort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Log<'a>(&'a Mutex<Vec<u8>>);
    impl ExitPortEvents for Log<'_> {
        fn request(&self, status: u8) {
            self.0.lock().unwrap().push(status);
        }
    }

    #[test]
    fn every_write_is_a_request_and_reads_are_all_ones() {
        let (counted, ended) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let port = ExitPort::new(Log(&counted), |status| ended.lock().unwrap().push(status));
        let mut data = [0; 4];
        port.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert!(ended.lock().unwrap().is_empty());

        port.write(0, &[3]);
        port.write(0, &[4, 5, 6, 7]);
        assert_eq!(*counted.lock().unwrap(), [3, 4]);
        assert_eq!(*ended.lock().unwrap(), [3, 4]);
    }
}
