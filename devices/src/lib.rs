//! Emulated devices that count what they do.
//!
//! A device is a small struct behind the [`BusDevice`] interface, without knowledge of KVM or of the
//! bus that it sits on. It counts through an events type that is injected when it is made: the types
//! in [`stats`] count into statistics, and the `NoEvents` types count nothing.

#![deny(unsafe_code)] // but for the system calls in `sys`

pub mod acpi_power;
pub mod exit_port;
pub mod i8042;
pub mod pvpanic;
pub mod serial;
pub mod stats;
mod sys;
pub mod trigger;
pub mod virtio;

pub use acpi_power::AcpiPower;
pub use exit_port::ExitPort;
pub use i8042::I8042;
pub use pvpanic::Pvpanic;
pub use serial::SerialPort;

/// A device as a bus sees it: something that answers reads and takes writes at offsets.
///
/// Called from all vCPU threads at once; a device that has state protects it by itself, and should not
/// block for long: the vCPU waits.
pub trait BusDevice: Send + Sync {
    /// One read by the guest of `data.len()` bytes (1 to 8) at `offset` from the device's first
    /// address. The device fills `data` wholly. An access may reach past the device's last address.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// One write by the guest of `data` (1 to 8 bytes) at `offset` from the device's first address. An
    /// access may reach past the device's last address.
    fn write(&self, offset: u64, data: &[u8]);
}
