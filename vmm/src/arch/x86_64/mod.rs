//! x86-64: the guest's address space, what the firmware of a PC would leave behind for a kernel, CPUID and
//! registers.

pub mod acpi;
pub mod boot_params;
pub mod cpuid;
pub mod interrupts;
pub mod layout;
pub mod msrs;
pub mod paging;
pub mod regs;
