//! How a machine ends, and who is told.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::{Crash, VcpuError};
use crate::virtio::DeviceError;

/// The highest status that a guest can end with; those above are the VMM's.
pub const MAX_STATUS: u8 = 123;

/// How a machine came to its end.
#[derive(Debug)]
pub enum Ending {
    /// The guest asked for it, with this status.
    Exited(u8),
    /// The guest asked for it, with a status above [`MAX_STATUS`].
    BadStatus(u8),
    /// The guest powered the machine off.
    PoweredOff,
    /// The guest reset the machine.
    Reset(Reset),
    /// The guest's kernel told that it panics.
    Panicked,
    /// The guest can not go on.
    Crashed(Crash),
    /// The VMM can not go on with a vCPU.
    Failed(VcpuError),
    /// The VMM can not go on with a device.
    DeviceFailed(DeviceError),
    /// It was stopped from outside.
    Stopped,
}

/// By what a guest reset its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The keyboard controller.
    I8042,
    /// ACPI's reset register.
    Acpi,
    /// A triple fault.
    TripleFault {
        /// The vCPU.
        vcpu: u32,
    },
}

/// Holds vCPUs' threads back until all of several machines are started, so that the first do not run
/// while the last are still being made.
#[derive(Debug, Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Lets everybody through, from now on.
    pub fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Waits until the gate is open.
    pub fn pass(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.opened.wait_while(open, |open| !*open);
        drop(passed.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Opens a gate when dropped, whatever the reason.
#[derive(Debug)]
pub struct OpenOnDrop<'a>(pub &'a Gate);

impl Drop for OpenOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What the threads of one machine share about its end. The first ending counts.
#[derive(Debug)]
pub struct Lifecycle {
    stopping: AtomicBool,
    ending: OnceLock<Ending>,
    event: EventFd,
    running: Mutex<usize>,
    one_ended: Condvar,
}

impl Lifecycle {
    /// The beginning.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stopping: AtomicBool::new(false),
            ending: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
            running: Mutex::new(0),
            one_ended: Condvar::new(),
        })
    }

    /// Ends the machine; only the first ending is kept. Its vCPUs stop when they next look, or are
    /// [kicked](crate::kick).
    pub fn end(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        self.stopping.store(true, Ordering::Release);
        // It can only fail when the counter is full, and then the event is there already.
        let _ = self.event.write(1);
    }

    /// Whether the machine is being ended.
    #[inline(always)]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// How the machine ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Takes how the machine ended, once nobody else shares this.
    pub fn take_ending(&mut self) -> Option<Ending> {
        self.ending.take()
    }

    /// Becomes readable when the machine ends, for an event loop.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Counts a vCPU's thread as running until the guard is dropped.
    pub fn thread(&self) -> RunningThread<'_> {
        *self.lock() += 1;
        RunningThread(self)
    }

    /// Waits until no vCPU's thread runs any more, calling `kick` now and every few milliseconds: a kick
    /// just before a blocking system call of a device is lost.
    pub fn wait_for_threads(&self, mut kick: impl FnMut()) {
        let mut running = self.lock();
        while *running > 0 {
            kick();
            let wait = self.one_ended.wait_timeout(running, Duration::from_millis(5));
            running = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU's thread that runs.
#[derive(Debug)]
pub struct RunningThread<'a>(&'a Lifecycle);

impl Drop for RunningThread<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.one_ended.notify_all();
    }
}

/// Ends a machine with `ending` if this is dropped by a panic, so that the other threads do not run on
/// without this one.
#[derive(Debug)]
pub struct EndOnPanic<'a, F: Fn() -> Ending> {
    /// The machine's.
    pub lifecycle: &'a Lifecycle,
    /// What came to its end.
    pub ending: F,
}

impl<F: Fn() -> Ending> Drop for EndOnPanic<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lifecycle.end((self.ending)());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_counts_and_is_announced() {
        let lifecycle = Lifecycle::new().unwrap();
        assert!(!lifecycle.is_stopping());
        assert!(lifecycle.event().read().is_err(), "nothing to read yet");
        lifecycle.end(Ending::Exited(3));
        lifecycle.end(Ending::Stopped);
        assert!(lifecycle.is_stopping());
        assert!(matches!(lifecycle.ending(), Some(Ending::Exited(3))));
        assert_eq!(lifecycle.event().read().unwrap(), 2);
    }

    #[test]
    fn waiting_kicks_until_all_threads_have_ended() {
        let lifecycle = Lifecycle::new().unwrap();
        let kicks = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let guard = lifecycle.thread();
                scope.spawn(|| {
                    let guard = guard;
                    // Needs more than one kick, as a thread does that was between two system calls.
                    while *kicks.lock().unwrap() < 3 {
                        std::thread::yield_now();
                    }
                    drop(guard);
                });
            }
            lifecycle.wait_for_threads(|| *kicks.lock().unwrap() += 1);
        });
        assert!(*kicks.lock().unwrap() >= 3);
        lifecycle.wait_for_threads(|| panic!("nobody is left"));
    }
}
