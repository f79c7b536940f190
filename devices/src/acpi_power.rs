//! ACPI's sleep and reset registers, as a hardware-reduced machine has them: how a guest powers itself off
//! and resets itself.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::BusDevice;

/// Registers, one byte each.
pub const REGISTERS: u64 = 3;
/// The sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL: u64 = 0;
/// The sleep status register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_STATUS: u64 = 1;
/// The reset register (ACPI 6.5, 4.8.3.6).
pub const RESET: u64 = 2;
/// What is to be written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type that is power-off: what the object `\_S5` is to say.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Bits of the sleep control register: go to sleep, and how.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// What a guest asks of [`AcpiPower`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To be powered off.
    Off,
    /// To be reset.
    Reset,
}

/// What an [`AcpiPower`] reports.
pub trait AcpiPowerEvents {
    /// The guest asked for this.
    fn request(&self, request: Request);
    /// The guest wrote what means nothing here.
    fn ignored_write(&self);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl AcpiPowerEvents for NoEvents {
    fn request(&self, _request: Request) {}
    fn ignored_write(&self) {}
}

/// The registers. They read as 0: nothing sleeps here, so nothing has woken up.
///
/// ```
/// use devices::acpi_power::{AcpiPower, NoEvents, RESET, RESET_VALUE, Request};
/// use devices::BusDevice;
///
/// let (ask, asked) = std::sync::mpsc::channel();
/// let power = AcpiPower::new(NoEvents, move |request| ask.send(request).unwrap());
/// power.write(RESET, &[RESET_VALUE]);
/// assert_eq!(asked.try_recv(), Ok(Request::Reset));
/// ```
pub struct AcpiPower<EV, F> {
    // Several vCPUs may write at once; the counters behind the events allow one writer.
    events: Mutex<EV>,
    act: F,
}

impl<EV: AcpiPowerEvents + Send, F: Fn(Request) + Send + Sync> AcpiPower<EV, F> {
    /// Registers that call `act` with what the guest asks for.
    pub fn new(events: EV, act: F) -> Self {
        Self { events: Mutex::new(events), act }
    }

    fn write_register(&self, register: u64, value: u8) {
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        let request = match register {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF => {
                Request::Off
            }
            RESET if value == RESET_VALUE => Request::Reset,
            // Clears bits that are never set: what a kernel does on its way to sleep.
            SLEEP_STATUS => return,
            _ => {
                return self.events.lock().unwrap_or_else(PoisonError::into_inner).ignored_write();
            }
        };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).request(request);
        (self.act)(request);
    }
}

impl<EV: AcpiPowerEvents + Send, F: Fn(Request) + Send + Sync> BusDevice for AcpiPower<EV, F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(offset..) {
            *byte = if register < REGISTERS { 0 } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (&value, register) in data.iter().zip(offset..).filter(|(_, r)| *r < REGISTERS) {
            self.write_register(register, value);
        }
    }
}

impl<EV, F> fmt::Debug for AcpiPower<EV, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPower").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        requests: Vec<Request>,
        ignored: usize,
    }
    impl AcpiPowerEvents for &Mutex<Log> {
        fn request(&self, request: Request) {
            self.lock().unwrap().requests.push(request);
        }
        fn ignored_write(&self) {
            self.lock().unwrap().ignored += 1;
        }
    }

    #[test]
    fn only_the_published_values_do_something() {
        let (log, acted) = (Mutex::default(), Mutex::new(Vec::new()));
        let power = AcpiPower::new(&log, |request| acted.lock().unwrap().push(request));
        // What Linux does: clear the wake status, then sleep with type 5.
        power.write(SLEEP_STATUS, &[0x80]);
        power.write(SLEEP_CONTROL, &[0x34]);
        power.write(RESET, &[1]);
        assert_eq!(*acted.lock().unwrap(), [Request::Off, Request::Reset]);
        // Type without enable, enable with other types, other reset values.
        for (register, value) in
            [(SLEEP_CONTROL, 0x14), (SLEEP_CONTROL, 0x20), (SLEEP_CONTROL, 0x3c), (RESET, 0)]
        {
            power.write(register, &[value]);
        }
        // Past the registers there is nothing.
        power.write(REGISTERS, &[1]);
        assert_eq!(*acted.lock().unwrap(), [Request::Off, Request::Reset]);
        let log = log.lock().unwrap();
        assert_eq!((&log.requests, log.ignored), (&vec![Request::Off, Request::Reset], 4));
    }

    #[test]
    fn a_wide_access_is_a_series_of_byte_accesses() {
        let acted = Mutex::new(Vec::new());
        let power = AcpiPower::new(NoEvents, |request| acted.lock().unwrap().push(request));
        power.write(SLEEP_STATUS, &[0, RESET_VALUE, 1, 1]);
        assert_eq!(*acted.lock().unwrap(), [Request::Reset]);
        let mut data = [7; 4];
        power.read(SLEEP_STATUS, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }
}
