//! Ways for a device to signal: an interrupt line, or a wake-up for an event loop.

use std::convert::Infallible;
use std::io;

pub use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

/// Signals through an eventfd: to an event loop, or to KVM where it is bound as an irqfd.
#[derive(Debug)]
pub struct EventFdTrigger(EventFd);

impl EventFdTrigger {
    /// Takes an eventfd to signal through.
    pub fn new(event: EventFd) -> Self {
        Self(event)
    }
}

impl Trigger for EventFdTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// An interrupt line that leads nowhere: for machines without an interrupt controller.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotConnected;

impl Trigger for NotConnected {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}
