//! What a `vmm` has in memory beside its guest's.

use tests::guest::{Mode, Op, Step};
use tests::memory::{Kind, Memory};
use tests::running::wait_until;
use tests::vmm::Vmm;

const MIB: u32 = 128;

/// KiB that no file is behind, by kind: what a machine has to find for each guest. Of large allocations there
/// are the buffers of the threads that answer requests, of which only the beginning is used.
const MOST: [(Kind, u64); 4] =
    [(Kind::Heap, 1536), (Kind::Large, 256), (Kind::Stacks, 512), (Kind::Segments, 512)];

#[test]
fn a_guest_costs_little_beside_its_memory_and_no_huge_page_is_wasted() {
    let spin = [Step::new(Op::Spin, 1, 0)];
    let memory = format!("{MIB}M");
    let running = Vmm::new(Mode::Long, &spin).args(["--memory", &memory]).start_mounted();
    let thread = format!("{}/vcpu0/thread_id", running.machine());
    wait_until("the guest", || (running.value(&thread) > 0).then_some(()));
    // By many requests, so that all threads that answer them have come to it.
    for _ in 0..100 {
        assert!(running.value("kvm/vm_vcpus") == 1);
    }
    let memory = Memory::of(running.pid(), MIB);
    for (kind, most) in MOST {
        let used = memory.get(kind);
        assert!(used.rss > 0 && used.rss <= most, "{kind:?}: at most {most} KiB\n{memory}");
        // Wherever one fits, the advice is to have none.
        assert_eq!((used.huge, used.may_be_huge), (0, 0), "{kind:?}\n{memory}");
    }
    running.signal(libc::SIGTERM);
    running.wait().assert(143);
}
