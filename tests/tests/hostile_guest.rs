//! A guest that writes nonsense to its virtio devices, one that only notifies them, and one that waits for their
//! interrupts, on real KVM.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use tests::flat::Flat;
use tests::guest::{LAST_GSI, NOTIFICATIONS, SET_UP, virtio_kernel};
use tests::soak::rounds;
use tests::tap;
use tests::tracepoint::{KvmInterrupts, KvmReturns};
use tests::vmm::Vmm;

/// Runs the kernel with two disks and an interface, to its power-off.
fn run(passes: u32, requests: u32) -> Flat {
    tap::set_up();
    let kernel = KvmReturns::watch_all();
    let mut vmm = Vmm::of_kernel(&virtio_kernel(passes, requests)).unmounted();
    for name in ["a", "b"] {
        let disk = vmm.directory().join(name);
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        vmm = vmm.args(["--disk".as_ref(), disk.as_os_str()]);
    }
    let ended = vmm.args(["--net", &format!("tap={}", tap::NAME)]).run().assert(0);
    ended.assert_clean();
    let flat = ended.flat();
    flat.assert_sums();
    kernel.assert_agrees(&flat);
    flat
}

#[test]
fn nonsense_in_registers_and_queues_is_counted_and_harms_nobody() {
    let passes = rounds(20);
    let flat = run(passes, 0);
    let machine = flat.machine();
    // A pass makes some hundred, by what it happens to write.
    let least = u64::from(passes) * 50;
    for device in ["blk0", "blk1", "net0", "rng0"] {
        let get = |name: &str| flat.get(&format!("{machine}/{device}/{name}"));
        assert!(get("virtio_bad_accesses") > least, "{device}: {}", get("virtio_bad_accesses"));
        assert!(get("virtio_queue_errors") >= 1, "{device}: {}", get("virtio_queue_errors"));
    }
    println!("{} accesses refused", flat.get("kvm/virtio_bad_accesses"));
}

#[test]
fn notifications_are_no_exits() {
    let flat = run(0, 0);
    let machine = flat.machine();
    assert_eq!(flat.get(&format!("{machine}/rng0/virtio_notifications")), NOTIFICATIONS);
    assert_eq!(flat.exits("kvm"), BTreeMap::from([("mmio_write", SET_UP), ("io_out", 1)]));
    assert_eq!(flat.get(&format!("{machine}/vcpu0/rng0/io_writes")), SET_UP);
}

#[test]
fn interrupts_come_from_the_devices_and_not_from_the_vmms_threads() {
    let interrupts = KvmInterrupts::watch(LAST_GSI);
    let requests = rounds(500);
    let flat = run(0, requests);
    // The guest had one for each request, or would still wait.
    let requests = u64::from(requests);
    let machine = flat.machine();
    let get = |name: &str| flat.get(&format!("{machine}/{name}"));
    assert_eq!(get("rng0/virtio_interrupts"), requests);
    assert_eq!(get("rng0/rng_requests"), requests);
    // KVM raised the line, and in no call of the VMM's (KVM_IRQ_LINE): it takes what the device's eventfd says
    // (KVM_IRQFD).
    assert!(interrupts.of_line() >= requests, "{interrupts:?}");
    assert_eq!(interrupts.by_threads(), 0);
    // Nor did the vCPU go to the VMM and back for them, but for the handler's two accesses to the device.
    let writes = SET_UP + requests;
    let expected = [("mmio_write", writes), ("mmio_read", requests), ("io_out", 1)];
    assert_eq!(flat.exits("kvm"), BTreeMap::from(expected));
}

/// Shows that the counters would find a thread of the VMM's that raised a line by itself.
#[test]
fn a_line_that_a_thread_raises_is_told_apart() {
    // From linux/kvm.h.
    const KVM_CREATE_VM: libc::Ioctl = 0xae01;
    const KVM_CREATE_IRQCHIP: libc::Ioctl = 0xae60;
    const KVM_IRQ_LINE: libc::Ioctl = 0x4008_ae61_u32 as libc::Ioctl;
    let interrupts = KvmInterrupts::watch(LAST_GSI);
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    // SAFETY: the first takes a number and makes a descriptor, which is nobody else's, or fails; the second takes
    // nothing; the third takes two numbers of 32 bits, the line and its level.
    let (chip, raised) = unsafe {
        let vm = libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0);
        assert!(vm >= 0, "{}", std::io::Error::last_os_error());
        let vm = File::from_raw_fd(vm);
        let line = [LAST_GSI, 1];
        (
            libc::ioctl(vm.as_raw_fd(), KVM_CREATE_IRQCHIP, 0),
            libc::ioctl(vm.as_raw_fd(), KVM_IRQ_LINE, line.as_ptr()),
        )
    };
    assert_eq!((chip, raised), (0, 0), "{}", std::io::Error::last_os_error());
    assert_eq!(interrupts.by_threads(), 1);
    assert!(interrupts.of_line() >= 1);
}
