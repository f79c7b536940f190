//! Every value that the VMM declares. Devices declare theirs in [`devices::stats`].
//!
//! Names begin with their group's prefix, since values are seen in every directory above their own. Only
//! the group `vcpu` owns its names. Nothing but the family of exit reasons is named `user_exit_*`, so
//! that `user_exits == Σ user_exit_*` can be checked by a glob.

use crate::exit::ExitReason;
use crate::vm::State;

/// Buckets of the histograms of time: the last one begins at 2^38 ns, more than four minutes.
pub const TIME_BUCKETS: usize = 40;

statsfs::stats! {
    /// One vCPU, as its exit loop saw it.
    pub consistent struct VcpuStats: "vcpu" {
        /// Times KVM_RUN returned to user space.
        pub user_exits: Counter,
        /// Times KVM_RUN returned because {}.
        pub user_exit: PerLabel<Counter, ExitReason> { family: "user_exits" },
        /// Time from KVM_RUN's return to its next call or the end of the loop, when it returned because {}.
        pub user_time: PerLabel<Counter<Nanoseconds>, ExitReason>,
        /// Time in KVM_RUN, the guest's and the kernel's.
        pub user_run_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Time from KVM_RUN's return to its next call or the end of the loop.
        pub user_handle_time: Histogram<Nanoseconds> { buckets: 40 },
        /// Time that handling reads of I/O ports took.
        pub user_handle_time_io_in: Histogram<Nanoseconds> {
            buckets: 40, family: "user_handle_time_by_reason", label: "reason=io_in",
        },
        /// Time that handling writes of I/O ports took.
        pub user_handle_time_io_out: Histogram<Nanoseconds> {
            buckets: 40, family: "user_handle_time_by_reason", label: "reason=io_out",
        },
        /// Time that handling reads of device memory took.
        pub user_handle_time_mmio_read: Histogram<Nanoseconds> {
            buckets: 40, family: "user_handle_time_by_reason", label: "reason=mmio_read",
        },
        /// Time that handling writes of device memory took.
        pub user_handle_time_mmio_write: Histogram<Nanoseconds> {
            buckets: 40, family: "user_handle_time_by_reason", label: "reason=mmio_write",
        },
        /// Time that handling halts took.
        pub user_handle_time_hlt: Histogram<Nanoseconds> {
            buckets: 40, family: "user_handle_time_by_reason", label: "reason=hlt",
        },
        /// Host thread that runs this vCPU.
        pub thread_id: Gauge<u32> { aggregate: none },
    }
}

statsfs::stats! {
    /// The thread of one vCPU, as the host's scheduler saw it: up to a second old while it runs, complete
    /// once it has ended.
    pub consistent struct SchedStats: "sched", prefix "sched_" {
        /// Time on a CPU, the guest's and the VMM's.
        pub sched_run_ns: Counter<Nanoseconds>,
        /// Time that the thread could have run and waited for a CPU: what the guest sees as stolen.
        pub sched_wait_ns: Counter<Nanoseconds>,
        /// Times that the thread came onto a CPU.
        pub sched_slices: Counter,
        /// Times that the thread left its CPU to wait for something.
        pub sched_voluntary_switches: Counter,
        /// Times that the CPU was taken from the thread.
        pub sched_involuntary_switches: Counter,
    }
}

statsfs::stats! {
    /// One device as one vCPU used it.
    pub struct VcpuDeviceStats: "vcpu_device", prefix "io_" {
        /// Reads of the device by this vCPU; each element of a string instruction is one.
        pub io_reads: Counter,
        /// Writes to the device by this vCPU; each element of a string instruction is one.
        pub io_writes: Counter,
        /// Bytes that this vCPU read from the device.
        pub io_read_bytes: Counter<Bytes>,
        /// Bytes that this vCPU wrote to the device.
        pub io_write_bytes: Counter<Bytes>,
        /// Time that this vCPU spent outside KVM_RUN for accesses to the device.
        pub io_time_ns: Counter<Nanoseconds>,
    }
}

statsfs::stats! {
    /// Accesses by one vCPU that no device claims.
    pub struct BusStats: "bus", prefix "bus_" {
        /// Reads of I/O ports that no device claims; they read as all ones.
        pub bus_unclaimed_io_reads: Counter,
        /// Writes to I/O ports that no device claims; they are dropped.
        pub bus_unclaimed_io_writes: Counter,
        /// Reads of memory that neither RAM nor a device claims; they read as all ones.
        pub bus_unclaimed_mmio_reads: Counter,
        /// Writes to memory that neither RAM nor a device claims; they are dropped.
        pub bus_unclaimed_mmio_writes: Counter,
    }
}

statsfs::stats! {
    /// One virtual machine.
    pub struct VmStats: "vm", prefix "vm_" {
        /// The guest's memory.
        pub vm_memory_bytes: Gauge<u64, Bytes>,
        /// The guest's vCPUs.
        pub vm_vcpus: Gauge<u32>,
        /// Where the machine is in its life: 0 created, 1 running, 2 paused (kept free: no machine can be
        /// paused yet), 3 stopped.
        pub vm_state: Gauge<u8> { states: State },
    }
}

statsfs::stats! {
    /// The start of a virtual machine.
    pub struct VmStartStats: "vm_start", prefix "vm_start_" {
        /// Time from the start of the VMM (in a demo, of the machine) to the guest's first instruction.
        pub vm_start_ns: Gauge<u64, Nanoseconds> { aggregate: max },
    }
}
