//! A serial port: the UART 16550A of `vm-superio` on a bus, with flow control for its input.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use vm_superio::Serial;
use vm_superio::serial::SerialEvents;

use crate::BusDevice;
use crate::trigger::Trigger;

/// Registers of the port, one byte each at consecutive addresses.
pub const REGISTERS: u64 = 8;

/// What a [`SerialPort`] reports, beyond what the UART itself reports through [`SerialEvents`].
pub trait SerialPortEvents: SerialEvents {
    /// This many bytes of input were put into the receive FIFO.
    fn rx_bytes(&self, n: usize);
    /// This many bytes of input found the UART in loop-back mode, its line cut, and are lost.
    fn rx_lost_bytes(&self, n: usize);
}

impl SerialPortEvents for vm_superio::serial::NoEvents {
    fn rx_bytes(&self, _n: usize) {}
    fn rx_lost_bytes(&self, _n: usize) {}
}

/// A serial port with an interrupt line `I`, events `EV`, an output `W`, and a trigger `R` that says
/// when there is room for input again.
///
/// The supplier of input never waits for the guest: while a vCPU uses the port, which may take as long
/// as its output does not take a byte, there is no room.
///
/// ```
/// use devices::{BusDevice, SerialPort, trigger::NotConnected};
/// use vm_superio::serial::NoEvents;
///
/// let port = SerialPort::new(NotConnected, NoEvents, Vec::new(), NotConnected);
/// port.write(0, b"a"); // transmit
/// assert_eq!(port.receive(b"xyz"), 3);
/// let mut data = [0];
/// port.read(0, &mut data);
/// assert_eq!(&data, b"x");
/// ```
pub struct SerialPort<I: Trigger, EV: SerialEvents, W: Write, R: Trigger> {
    uart: Mutex<Uart<I, EV, W>>,
    room: R,
    /// The supplier of input found the port in use, and waits until it no longer is.
    input_waits_for_port: AtomicBool,
}

struct Uart<I: Trigger, EV: SerialEvents, W: Write> {
    serial: Serial<I, EV, W>,
    /// The supplier of input found the FIFO full and waits for room.
    input_waits: bool,
}

impl<I: Trigger, EV: SerialPortEvents, W: Write, R: Trigger> SerialPort<I, EV, W, R> {
    /// A port in its reset state.
    pub fn new(interrupt: I, events: EV, output: W, room: R) -> Self {
        let serial = Serial::with_events(interrupt, events, output);
        let uart = Mutex::new(Uart { serial, input_waits: false });
        Self { uart, room, input_waits_for_port: AtomicBool::new(false) }
    }

    /// Bytes of input that the receive FIFO can take now. When that is none, the port remembers that
    /// input waits, and fires the `room` trigger as soon as the guest has read some, or has finished
    /// using the port.
    pub fn input_room(&self) -> usize {
        let Some(mut uart) = self.lock_for_input() else { return 0 };
        let room = uart.serial.fifo_capacity();
        uart.input_waits = room == 0;
        room
    }

    /// Offers input to the guest. Returns how much of it is dealt with, which is at most the
    /// [room](Self::input_room), and less if that has become less: the rest is to be offered again. In
    /// loop-back mode, where the line is cut, input is lost.
    pub fn receive(&self, input: &[u8]) -> usize {
        let Some(mut uart) = self.lock_for_input() else { return 0 };
        let room = uart.serial.fifo_capacity().min(input.len());
        let input = &input[..room];
        if input.is_empty() {
            return 0;
        }
        // An interrupt that fails to be raised leaves the bytes in the FIFO, where a guest that polls
        // finds them: they were received.
        match uart.serial.enqueue_raw_bytes(input) {
            Ok(0) => uart.serial.events().rx_lost_bytes(room),
            Ok(_) | Err(_) => uart.serial.events().rx_bytes(room),
        }
        room
    }

    fn lock(&self) -> MutexGuard<'_, Uart<I, EV, W>> {
        // A panic of another vCPU's thread leaves registers that are still registers.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port, unless it is in use; if it is, the `room` trigger is fired when it no longer is.
    fn lock_for_input(&self) -> Option<MutexGuard<'_, Uart<I, EV, W>>> {
        let attempt = || match self.uart.try_lock() {
            Ok(uart) => Some(uart),
            Err(TryLockError::Poisoned(uart)) => Some(uart.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        attempt().or_else(|| {
            self.input_waits_for_port.store(true, Ordering::Relaxed);
            // Whoever uses the port looks at the flag after giving it back. So either it sees the flag, or
            // it has given the port back by now. The fence, and the one in `used`, order the two writes
            // before the two reads.
            fence(Ordering::SeqCst);
            attempt()
        })
    }

    /// A vCPU has finished using the port.
    fn used(&self, uart: MutexGuard<'_, Uart<I, EV, W>>) {
        drop(uart);
        fence(Ordering::SeqCst);
        if self.input_waits_for_port.load(Ordering::Relaxed)
            && self.input_waits_for_port.swap(false, Ordering::Relaxed)
        {
            // Nothing to be done if it fails: the event loop it would wake is gone.
            let _ = self.room.trigger();
        }
    }
}

impl<I, EV, W, R> BusDevice for SerialPort<I, EV, W, R>
where
    I: Trigger + Send,
    EV: SerialPortEvents + Send,
    W: Write + Send,
    R: Trigger + Send + Sync,
{
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.lock();
        // As on the ISA bus, a wide access is a series of byte accesses.
        for (byte, register) in data.iter_mut().zip(offset..) {
            *byte = if register < REGISTERS { uart.serial.read(register as u8) } else { 0xff };
        }
        if uart.input_waits && uart.serial.fifo_capacity() > 0 {
            uart.input_waits = false;
            // As in `used`.
            let _ = self.room.trigger();
        }
        self.used(uart);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.lock();
        for (&byte, register) in data.iter().zip(offset..) {
            if register < REGISTERS {
                // A guest can not be told that its output is lost; the events count it.
                let _ = uart.serial.write(register as u8, byte);
            }
        }
        self.used(uart);
    }
}

impl<I: Trigger, EV: SerialEvents, W: Write, R: Trigger> fmt::Debug for SerialPort<I, EV, W, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;
    use crate::trigger::NotConnected;

    #[derive(Default)]
    struct Counts {
        tx: Cell<usize>,
        tx_lost: Cell<usize>,
        rx: Cell<usize>,
        rx_lost: Cell<usize>,
        reads: Cell<usize>,
        drained: Cell<usize>,
    }
    struct Events(Arc<Mutex<Counts>>);
    impl Events {
        fn bump(&self, cell: impl Fn(&Counts) -> &Cell<usize>, n: usize) {
            let counts = self.0.lock().unwrap();
            let cell = cell(&counts);
            cell.set(cell.get() + n);
        }
    }
    impl SerialEvents for Events {
        fn buffer_read(&self) {
            self.bump(|c| &c.reads, 1);
        }
        fn out_byte(&self) {
            self.bump(|c| &c.tx, 1);
        }
        fn tx_lost_byte(&self) {
            self.bump(|c| &c.tx_lost, 1);
        }
        fn in_buffer_empty(&self) {
            self.bump(|c| &c.drained, 1);
        }
    }
    impl SerialPortEvents for Events {
        fn rx_bytes(&self, n: usize) {
            self.bump(|c| &c.rx, n);
        }
        fn rx_lost_bytes(&self, n: usize) {
            self.bump(|c| &c.rx_lost, n);
        }
    }

    #[derive(Default)]
    struct Fired(AtomicUsize);
    impl Trigger for &Fired {
        type E = ();
        fn trigger(&self) -> Result<(), ()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(port: &dyn BusDevice, register: u64) -> u8 {
        let mut data = [0];
        port.read(register, &mut data);
        data[0]
    }

    #[test]
    fn bytes_sent_lost_received_and_read_are_each_reported() {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let port = SerialPort::new(NotConnected, Events(counts.clone()), Vec::new(), NotConnected);
        port.write(0, b"a");
        assert_eq!(port.receive(b"xy"), 2);
        assert_eq!(read(&port, 5) & 1, 1, "data ready");
        assert_eq!([read(&port, 0), read(&port, 0), read(&port, 0)], [b'x', b'y', 0]);
        assert_eq!(read(&port, 5) & 1, 0, "no data");
        // Loop-back: input from outside is lost, and the guest is not charged for sending.
        port.write(4, &[0x10]);
        assert_eq!(port.receive(b"zzz"), 3);
        port.write(0, b"b");
        let c = counts.lock().unwrap();
        assert_eq!((c.tx.get(), c.rx.get(), c.rx_lost.get(), c.reads.get()), (1, 2, 3, 3));
        // The empty FIFO is reported by the read that takes the last byte and by reads of nothing.
        assert_eq!(c.drained.get(), 2);
    }

    #[test]
    fn output_that_fails_is_reported_as_lost() {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let port = SerialPort::new(NotConnected, Events(counts.clone()), Broken, NotConnected);
        port.write(0, b"a");
        let c = counts.lock().unwrap();
        assert_eq!((c.tx.get(), c.tx_lost.get()), (0, 1));
    }

    #[test]
    fn a_wide_access_is_a_series_of_byte_accesses() {
        let port =
            SerialPort::new(NotConnected, vm_superio::serial::NoEvents, Vec::new(), NotConnected);
        // Scratch register 7 and one byte past the port.
        port.write(7, &[0x5a, 0x11]);
        let mut data = [0; 4];
        port.read(7, &mut data);
        assert_eq!(data, [0x5a, 0xff, 0xff, 0xff]);
    }

    /// Takes a byte only after it was told to; says when it has been given one.
    struct Stuck(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn input_does_not_wait_for_output_that_is_stuck() {
        let fired = Fired::default();
        let ((is_stuck, stuck), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        let output = Stuck(is_stuck, may_go);
        let port = SerialPort::new(NotConnected, vm_superio::serial::NoEvents, output, &fired);
        thread::scope(|scope| {
            let vcpu = scope.spawn(|| port.write(0, b"a"));
            stuck.recv().unwrap();
            assert_eq!((port.input_room(), port.receive(b"x")), (0, 0));
            assert_eq!(fired.0.load(Ordering::Relaxed), 0, "it is still in use");
            go.send(()).unwrap();
            vcpu.join().unwrap();
        });
        assert_eq!(fired.0.load(Ordering::Relaxed), 1, "now there is room");
        assert_eq!((port.receive(b"x"), read(&port, 0)), (1, b'x'));
        assert_eq!(fired.0.load(Ordering::Relaxed), 1, "nobody waits any more");
    }

    #[test]
    fn a_full_fifo_asks_for_input_once_when_there_is_room() {
        let fired = Fired::default();
        let port = SerialPort::new(NotConnected, vm_superio::serial::NoEvents, Vec::new(), &fired);
        let room = port.input_room();
        assert!(room > 0);
        assert_eq!(port.receive(&vec![1; room + 10]), room);
        read(&port, 0);
        assert_eq!(fired.0.load(Ordering::Relaxed), 0, "nobody waits");
        assert_eq!(port.receive(&[1]), 1);
        assert_eq!(port.receive(&[1]), 0);
        assert_eq!(port.input_room(), 0);
        read(&port, 5);
        assert_eq!(fired.0.load(Ordering::Relaxed), 0, "still full");
        read(&port, 0);
        read(&port, 0);
        assert_eq!(fired.0.load(Ordering::Relaxed), 1);
    }
}
