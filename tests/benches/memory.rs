//! What `vmm` has in memory beside its guest's, by kind of mapping: `cargo bench -p tests --bench memory`.
//!
//! The guest has one vCPU and 128 MiB, and does nothing: what is counted is not its own. Pages of files (the
//! program, libraries) are counted where they are mapped, as in Rss, although all processes have them together.

use tests::guest::{Mode, Op, Step};
use tests::memory::Memory;
use tests::running::wait_until;
use tests::vmm::Vmm;

const MIB: u32 = 128;
/// The budget, in KiB, with the tree mounted.
const BUDGET: u64 = 5 << 10;

fn measure(mounted: bool) -> Memory {
    let spin = [Step::new(Op::Spin, 1, 0)];
    let memory = format!("{MIB}M");
    let vmm = Vmm::new(Mode::Long, &spin).args(["--memory", &memory]);
    let running = if mounted { vmm.start_mounted() } else { vmm.unmounted().start() };
    if mounted {
        let thread = format!("{}/vcpu0/thread_id", running.machine());
        wait_until("the guest", || (running.value(&thread) > 0).then_some(()));
    } else {
        // Its last threads are those of its vCPUs.
        let threads = || tests::inject::threads(running.pid());
        wait_until("the guest", || threads().iter().any(|(_, name)| name == "vcpu0").then_some(()));
    }
    let memory = Memory::of(running.pid(), MIB);
    running.signal(libc::SIGTERM);
    running.wait().assert(143);
    memory
}

fn main() {
    println!("not published\n{}", measure(false));
    let mounted = measure(true);
    println!("mounted\n{mounted}");
    let used = mounted.beside_guest().rss;
    println!("{:.2} MiB of a budget of {} MiB", used as f64 / 1024.0, BUDGET >> 10);
}
