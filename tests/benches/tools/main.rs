//! What the tools take at one look a second, on a small and on a large host of simulated vCPUs, which count: processor time and
//! memory of `statsfs top`, beside `kvm_stat -d` on the same tree, of `statsfs record`, and of the server; and what a recording and
//! a report of it come to.
//!
//! `cargo bench -p tests --bench tools [-- --quick]`, as root; some minutes, and about 2 GB of memory and 1 of disk.

#[expect(dead_code, reason = "others measure more of them")]
#[path = "../../../statsfs/benches/benches/host/machines.rs"]
mod machines;
mod record;
mod taken;
mod top;
#[path = "../../../statsfs/benches/benches/common/values.rs"]
mod values;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use machines::{Machines, Size, VALUES, Vcpu};
use statsfs::Slot;
use statsfs::host::PublishOptions;
use tests::host::Host;
use tests::running::wait_until;
use values::Nth;

/// How often each vCPU has an exit for every other reason.
const TICK: Duration = Duration::from_millis(500);

fn main() {
    let is_quick = std::env::args().any(|arg| arg == "--quick");
    let seconds = if is_quick { 3 } else { 20 };
    let large = if is_quick { (50, 8) } else { (1000, 64) };
    for (machines, vcpus) in [(10, 8), large] {
        measure(Size { machines, vcpus }, Duration::from_secs(seconds));
    }
}

fn measure(size: Size, time: Duration) {
    println!("\n{} machines of {} vCPUs of {VALUES} values", size.machines, size.vcpus);
    let host = Host::start();
    let mut machines = Machines::new(0, size);
    let options = PublishOptions { socket: Some(host.socket()), ..PublishOptions::default() };
    let published = machines.registry.publish(options).expect("it can be tried");
    let exits = machines.exits();
    wait_until("all", || (host.value("kvm/user_exits") == Some(exits)).then_some(()));

    let ends = AtomicBool::new(false);
    let slots = std::mem::take(&mut machines.slots);
    std::thread::scope(|scope| {
        scope.spawn(|| count(slots, &ends));
        top::measure(&host, size.machines, time);
        record::measure(&host, time);
        ends.store(true, Ordering::Relaxed);
    });
    drop(published);
}

/// Counts, as much differently on each as its place says.
fn count(slots: Vec<Slot<Vcpu>>, ends: &AtomicBool) {
    for round in 0.. {
        for (n, slot) in slots.iter().enumerate() {
            if ends.load(Ordering::Relaxed) {
                return;
            }
            let each = (1 + n % 7) as u64;
            slot.update(|counters| {
                let reasons = (round % 2..VALUES - 1).step_by(2);
                counters.user_exits.add(each * reasons.len() as u64);
                reasons.for_each(|reason| counters.user_exit[Nth(reason)].add(each));
            });
        }
        std::thread::sleep(TICK);
    }
}
