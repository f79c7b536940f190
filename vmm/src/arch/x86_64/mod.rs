//! x86-64: the guest's address space, page tables, CPUID and registers.

pub mod cpuid;
pub mod layout;
pub mod paging;
pub mod regs;
