//! The part of a PC's keyboard controller that guests need without a keyboard: the reset of the CPU.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::BusDevice;

/// Ports from the data port on; the command and status port is the last.
pub const PORTS: u64 = 5;
/// The data port.
pub const DATA: u64 = 0;
/// The command (written) and status (read) port.
pub const COMMAND: u64 = 4;

/// Commands 0xf0 to 0xff pulse output lines of the controller, those whose bits are 0 in the command. Line 0
/// is the CPU's reset.
const PULSE_MASK: u8 = 0xf0;
const PULSE: u8 = 0xf0;
const RESET_LINE: u8 = 1;

/// What an [`I8042`] reports.
pub trait I8042Events {
    /// The guest asked to be reset.
    fn reset(&self);
    /// The guest wrote a command, or data, that the controller does not know.
    fn ignored_write(&self);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl I8042Events for NoEvents {
    fn reset(&self) {}
    fn ignored_write(&self) {}
}

/// A keyboard controller that has nothing to say and always takes commands, of which it knows the pulse
/// of the reset line.
///
/// ```
/// use devices::i8042::{COMMAND, I8042, NoEvents};
/// use devices::BusDevice;
///
/// let (reset, resets) = std::sync::mpsc::channel();
/// let controller = I8042::new(NoEvents, move || reset.send(()).unwrap());
/// controller.write(COMMAND, &[0xfe]);
/// assert_eq!(resets.try_recv(), Ok(()));
/// ```
pub struct I8042<EV, F> {
    // Several vCPUs may write at once; the counters behind the events allow one writer.
    events: Mutex<EV>,
    reset: F,
}

impl<EV: I8042Events + Send, F: Fn() + Send + Sync> I8042<EV, F> {
    /// A controller that calls `reset` when the guest pulses the reset line.
    pub fn new(events: EV, reset: F) -> Self {
        Self { events: Mutex::new(events), reset }
    }
}

impl<EV: I8042Events + Send, F: Fn() + Send + Sync> BusDevice for I8042<EV, F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, port) in data.iter_mut().zip(offset..) {
            // Status 0: no output for the guest, and room for input.
            *byte = if matches!(port, DATA | COMMAND) { 0 } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Its ports are not adjacent: only the first byte of a wide access reaches one.
        let Some(&value) = data.first() else { return };
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == COMMAND && value & PULSE_MASK == PULSE && value & RESET_LINE == 0 {
            events.reset();
            drop(events);
            (self.reset)();
        } else {
            events.ignored_write();
        }
    }
}

impl<EV, F> fmt::Debug for I8042<EV, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        resets: usize,
        ignored: usize,
    }
    impl I8042Events for &Mutex<Log> {
        fn reset(&self) {
            self.lock().unwrap().resets += 1;
        }
        fn ignored_write(&self) {
            self.lock().unwrap().ignored += 1;
        }
    }

    #[test]
    fn a_pulse_of_line_0_resets_and_nothing_else_does() {
        let (log, resets) = (Mutex::default(), Mutex::new(0));
        let controller = I8042::new(&log, || *resets.lock().unwrap() += 1);
        for command in [0xfe, 0xf0, 0xfc] {
            controller.write(COMMAND, &[command]);
        }
        assert_eq!(*resets.lock().unwrap(), 3);
        // No line, another line, other commands, the command as data, at no port.
        for (port, value) in [
            (COMMAND, 0xff),
            (COMMAND, 0xfd),
            (COMMAND, 0xaa),
            (COMMAND, 0x20),
            (DATA, 0xfe),
            (2, 0xfe),
        ] {
            controller.write(port, &[value]);
        }
        assert_eq!(*resets.lock().unwrap(), 3);
        let log = log.lock().unwrap();
        assert_eq!((log.resets, log.ignored), (3, 6));
    }

    #[test]
    fn the_status_is_ready_for_commands() {
        let controller = I8042::new(NoEvents, || ());
        let mut data = [7; 2];
        controller.read(COMMAND, &mut data);
        assert_eq!(data, [0, 0xff]);
        controller.read(DATA, &mut data);
        assert_eq!(data, [0, 0xff]);
    }
}
