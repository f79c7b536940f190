//! Guests that run the stock kernel, on all devices; and what else can be asked of a VMM that boots kernels.

mod boot;
mod disk;
mod ends;
mod kernel_stats;
mod net;
mod refused;

use tests::flat::Flat;
use tests::linux::{DONE, INIT};
use tests::nested::Function;
use tests::running::Ended;
use tests::soak::rounds;
use tests::tracepoint::KvmReturns;

/// Lists functions by their names.
macro_rules! functions {
    ($($module:ident: $($function:ident)*;)*) => {
        &[$($((
            concat!("guests::", stringify!($module), "::", stringify!($function)),
            $module::$function as fn(),
        ),)*)*]
    };
}

/// All tests of this module.
pub const TESTS: &[Function] = functions! {
    boot:
        one_vcpu_comes_up
        four_vcpus_come_up
        an_elf_image_comes_up
        memory_above_the_gap_is_used
        random_bytes_come_from_the_host
        the_console_takes_input
        what_is_seen_meanwhile_is_what_happens;
    disk:
        a_file_system_is_read_and_written
        a_read_only_disk_is_not_written
        several_disks_are_told_apart;
    net:
        the_host_is_reached_and_counts_the_same
        without_a_peer_nothing_is_received;
    ends:
        power_off_and_resets_are_status_0
        a_panic_is_status_124
        a_signal_ends_it;
    kernel_stats:
        the_tree_says_what_debugfs_says;
    refused:
        kernels_and_ram_disks
        a_damaged_kernel_hangs_alone
        disks_and_interfaces
        too_little_memory;
};

/// How many vCPUs the guests have that use a device: four, on which its driver runs wherever it likes, and in longer
/// runs one as well.
fn cpu_counts() -> impl Iterator<Item = u32> {
    [4, 1].into_iter().take(if rounds(1) > 1 { 2 } else { 1 })
}

/// Asserts what is so of every guest that came up and ended by itself: the status, and that the final
/// statistics agree with what the console sent, and with what the kernel saw.
#[track_caller]
fn assert_ended(ended: Ended, kernel: &KvmReturns, status: i32) -> (Ended, Flat) {
    ended.line(INIT);
    let ended = ended.assert(status);
    let flat = ended.flat();
    let machine = flat.machine();
    assert_eq!(flat.get(&format!("{machine}/vm_state")), 3, "it ended");
    assert_eq!(flat.get("kvm/serial_tx_bytes"), ended.stdout.len() as u64);
    assert_eq!(flat.get("kvm/serial_tx_lost_bytes"), 0);
    assert_eq!(flat.get("kvm/virtio_queue_errors"), 0);
    assert_eq!(flat.get("kvm/virtio_bad_accesses"), 0);
    flat.assert_sums();
    kernel.assert_agrees(&flat);
    // Each vCPU's own accounts are of accesses that are in its exits.
    for vcpu in flat.vcpus(&machine) {
        flat.assert_balanced(&vcpu);
    }
    (ended, flat)
}

/// As [`assert_ended`], of one that powered off after its script.
#[track_caller]
fn assert_powered_off(ended: Ended, kernel: &KvmReturns) -> (Ended, Flat) {
    ended.line(DONE);
    let (ended, flat) = assert_ended(ended, kernel, 0);
    assert_eq!(ended.stderr, "");
    assert_eq!(flat.get("kvm/power_offs"), 1);
    (ended, flat)
}
