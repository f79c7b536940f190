//! A VMM that is stopped or killed at any moment leaves statistics that are whole: they are read through
//! its segments, by another process, as a host's server would.

use std::thread;
use std::time::Duration;

use tests::Random;
use tests::flat::Flat;
use tests::guest::{Mode, NO_MEMORY, NO_PORT, Op, Step};
use tests::outside::Outside;
use tests::running::{Running, wait_until};
use tests::soak::rounds;
use tests::tracepoint::KvmReturns;
use tests::vmm::Vmm;

const CPUS: u32 = 4;

/// A guest that never ends, read from outside.
fn start() -> (Running, Outside) {
    let steps = [
        Step::new(Op::Out8, 3, NO_PORT),
        Step::new(Op::Read32, 2, NO_MEMORY),
        Step::new(Op::Hlt, 1, 0).per_index(1),
        Step::new(Op::Again, 1, 0),
    ];
    let mut running = Vmm::new(Mode::Long, &steps).cpus(CPUS).unmounted().start();
    let outside = wait_until("a running guest's segments", || {
        assert!(!running.has_ended());
        let outside = Outside::attach(running.pid()).ok()?;
        let exits = outside.flat().find("kvm/user_exits")?;
        (exits > 0).then_some(outside)
    });
    (running, outside)
}

fn assert_whole(flat: &Flat, running: &Running) {
    let machine = running.machine();
    let vcpus = flat.vcpus(&machine);
    assert_eq!(vcpus.len(), CPUS as usize);
    for directory in vcpus.iter().chain([&machine, &"kvm".to_string()]) {
        flat.assert_balanced(directory);
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state is what follows the name, which is in parentheses.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn a_stopped_process_leaves_consistent_groups() {
    let kernel = KvmReturns::watch(&[]);
    let (running, outside) = start();
    let mut random = Random::new();
    let mut before = 0;
    for _ in 0..rounds(50) {
        thread::sleep(Duration::from_micros(random.below(5000)));
        running.signal(libc::SIGSTOP);
        // While threads are still on their way, too.
        assert_whole(&outside.flat(), &running);
        wait_until("the stop", || is_stopped(running.pid()).then_some(()));
        let flat = outside.flat();
        assert_whole(&flat, &running);
        assert_eq!(flat, outside.flat(), "nothing counts");
        let exits = flat.get("kvm/user_exits");
        assert!(exits >= before, "{before} to {exits}");
        before = exits;
        running.signal(libc::SIGCONT);
    }
    assert!(before > 0);
    running.signal(libc::SIGTERM);
    let last = running.wait().assert(143).flat();
    // From outside it is the same to the last exit.
    let exits = last.get("kvm/user_exits");
    assert_eq!((outside.flat().get("kvm/user_exits"), kernel.all()), (exits, exits));
}

#[test]
fn a_killed_process_leaves_every_count_it_made() {
    let mut random = Random::new();
    for round in 0..rounds(50) {
        let kernel = KvmReturns::watch(&[]);
        let (running, outside) = start();
        thread::sleep(Duration::from_micros(random.below(20_000)));
        let seen = outside.flat();
        running.signal(libc::SIGKILL);
        // While it dies, too.
        assert_whole(&outside.flat(), &running);
        let machine = running.machine();
        let killed = running.kill_and_wait();
        assert_eq!(killed, Some(libc::SIGKILL));
        let flat = outside.flat();
        for directory in flat.vcpus(&machine).iter().chain([&machine, &"kvm".to_string()]) {
            flat.assert_balanced(directory);
            let name = format!("{directory}/user_exits");
            assert!(flat.get(&name) >= seen.get(&name), "{name}");
        }
        flat.assert_sums_of("user_exit");
        assert_eq!(flat, outside.flat(), "the last values stay");
        // Each vCPU was at most one return of KVM_RUN behind in counting, besides the one that it never
        // came back from.
        let (counted, returned) = (flat.get("kvm/user_exits"), kernel.all());
        assert!(
            counted <= returned && returned <= counted + 2 * u64::from(CPUS),
            "round {round}: {counted} counted, {returned} returns"
        );
    }
}
