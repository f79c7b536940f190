//! Many VMMs and one server: one mount with all guests, whose totals are exact whatever ends.

use std::thread;
use std::time::Duration;

use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::running::{Running, wait_until};
use tests::soak::rounds;
use tests::vmm::Vmm;
use tests::{Random, tracepoint};

/// What the final statistics of a VMM say of its guest.
fn user_exits(flat: &Flat) -> u64 {
    flat.get(&format!("{}/user_exits", flat.machine()))
}

#[test]
fn two_hundred_guests_are_in_one_mount_and_every_exit_is_in_the_totals() {
    // As many however long it soaks, and fewer where a machine is emulated.
    let guests = rounds(200).min(200);
    let host = Host::start();
    let kernel = tracepoint::KvmReturns::watch(&[]);
    // Each does another number of accesses, and stays until its console is taken.
    let mut running: Vec<Running> = (0..guests)
        .map(|n| {
            let steps = [Step::new(Op::In8, 10 + n, NO_PORT), park(), end(0)];
            Vmm::new(Mode::Long, &steps)
                .args(["--memory", "2M"])
                .published_to(&host)
                .blocked_console()
                .start()
        })
        .collect();
    wait_until("all guests", || (host.machines().len() == guests as usize).then_some(()));
    let reads: u64 = (0..guests).map(|n| u64::from(10 + n)).sum();
    wait_until("all accesses", || (host.value("kvm/user_exit_io_in") == Some(reads)).then_some(()));
    for (n, running) in running.iter().enumerate() {
        let path = format!("{}/user_exit_io_in", running.machine());
        assert_eq!(host.value(&path), Some(10 + n as u64), "{path}");
    }
    let by_name = std::fs::read_dir(host.mount().join("by-name")).unwrap().count();
    assert_eq!(by_name, guests as usize);
    // All from one sweep: what is said of all is what is said of each, together.
    let flat = host.flat();
    let each = running.iter().map(|one| flat.get(&format!("{}/user_exits", one.machine())));
    assert_eq!(each.sum::<u64>(), flat.get("kvm/user_exits"));

    running.iter_mut().for_each(Running::release);
    let mut finals = 0;
    for running in running {
        let ended = running.wait();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        finals += user_exits(&ended.flat());
    }
    // Each says goodbye before it ends, but does not wait for the answer for ever.
    wait_until("all have left", || {
        (host.value("kvm/.departed/user_exits") == Some(finals)).then_some(())
    });
    assert!(host.machines().is_empty());
    assert_eq!(host.value("kvm/user_exits"), Some(finals));
    assert_eq!(kernel.all(), finals, "the kernel counts the same");
}

#[test]
fn a_killed_vmm_leaves_what_it_counted_and_goes_at_once() {
    let host = &Host::start();
    let mut random = Random::new();
    let busy = || {
        let steps = [Step::new(Op::In8, u32::MAX, NO_PORT), end(0)];
        Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).published_to(host).start()
    };
    let (mut last, mut departed) = (0, 0);
    for _ in 0..rounds(10) {
        let running = [busy(), busy()];
        wait_until("both", || (host.machines().len() == 2).then_some(()));
        let machines = running.each_ref().map(Running::machine);
        for machine in &machines {
            wait_until("exits", || host.value(&format!("{machine}/user_exits")).filter(|n| *n > 0));
        }
        thread::sleep(Duration::from_micros(random.below(20_000)));
        for (running, machine) in running.into_iter().zip(&machines) {
            let outside = tests::outside::Outside::attach(running.pid()).unwrap();
            assert_eq!(running.kill_and_wait(), Some(libc::SIGKILL));
            wait_until("its directory is gone", || {
                (!host.mount().join(machine).exists()).then_some(())
            });
            departed += outside.flat().get("kvm/user_exits");
            let total = host.value("kvm/user_exits").unwrap();
            assert!(
                total >= last && total >= departed,
                "{total}, after {last}, {departed} departed"
            );
            last = total;
        }
        wait_until("both are folded", || {
            (host.value("statsfs/server_processes") == Some(1)).then_some(())
        });
        assert_eq!(host.value("kvm/.departed/user_exits"), Some(departed));
        assert_eq!(host.value("kvm/user_exits"), Some(departed));
    }
}

#[test]
fn a_vmm_neither_needs_its_server_nor_notices_its_end() {
    let mut host = Host::start();
    let steps = [Step::new(Op::In8, u32::MAX, NO_PORT), end(0)];
    let running = Vmm::new(Mode::Long, &steps).published_to(&host).start();
    let exits = format!("{}/user_exits", running.machine());
    wait_until("the guest", || host.value(&exits).filter(|n| *n > 0));
    let outside = tests::outside::Outside::attach(running.pid()).unwrap();
    let counted = || outside.flat().get("kvm/user_exits");
    for _ in 0..rounds(3) {
        host.kill();
        let before = counted();
        wait_until("it goes on", || (counted() > before + 100).then_some(()));
        host.start_again();
        let shown = wait_until("it is back", || host.value(&exits));
        assert!(shown >= before);
    }
    host.kill();
    running.signal(libc::SIGTERM);
    let ended = running.wait();
    assert_eq!(ended.code(), 143, "{}", ended.stderr);
    assert!(user_exits(&ended.flat()) > 0);
}
