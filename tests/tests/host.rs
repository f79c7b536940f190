//! Many VMMs and one server: one mount with all guests, whose totals are exact whatever ends.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use statsfs::host::SOCKET_VARIABLE;
use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::namespace::{mount, private};
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
    for _ in 0..rounds(15) {
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

/// A guest that does something and stays until its console is taken.
fn staying() -> Vmm {
    let steps = [Step::new(Op::In8, 10, NO_PORT), park(), end(0)];
    Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).blocked_console()
}

/// Waits until a guest is in this mount, or its VMM has ended.
fn wait_shown(host: &Host, running: &mut Running) {
    let exits = format!("{}/user_exit_io_in", running.machine());
    wait_until("the guest", || {
        assert!(!running.has_ended(), "it has ended");
        (host.value(&exits) == Some(10)).then_some(())
    });
}

#[test]
fn the_server_is_the_one_that_is_named_or_that_the_variable_names() {
    let (one, two) = (Host::start(), Host::start());
    let variable = |host: &Host| {
        let socket = host.socket();
        move |command: &mut Command| {
            command.env(SOCKET_VARIABLE, socket);
        }
    };
    let mut by_variable = staying().published().with(variable(&one)).start();
    wait_shown(&one, &mut by_variable);
    let mut named = staying().published_to(&two).with(variable(&one)).start();
    wait_shown(&two, &mut named);
    // Each is in one mount alone.
    assert_eq!(one.machines(), [by_variable.machine()]);
    assert_eq!(two.machines(), [named.machine()]);
    for mut running in [by_variable, named] {
        running.release();
        running.wait().assert(0);
    }
}

#[test]
fn an_empty_variable_names_no_server_and_the_hosts_own_is_taken() {
    let host = Host::start();
    private(|| {
        // Nothing of the machine's own is seen here, and the socket is where every program looks for it.
        let run = Path::new("/run");
        mount("statsfs-test", run, "tmpfs").expect("a tmpfs can be mounted");
        std::os::unix::fs::symlink(host.socket(), run.join("statsfs.sock")).expect("a new place");
        for empty in [true, false] {
            let change = |command: &mut Command| {
                if empty {
                    command.env(SOCKET_VARIABLE, "");
                } else {
                    command.env_remove(SOCKET_VARIABLE);
                }
            };
            let mut running = staying().published().with(change).start();
            wait_shown(&host, &mut running);
            running.release();
            running.wait().assert(0);
        }
    });
}

#[test]
fn a_public_guest_is_for_all_to_read_and_another_for_its_user_and_readers_alone() {
    /// Somebody who is in no group.
    const OTHER: u32 = 20_003;
    let host = Host::start();
    let read = |path: PathBuf| {
        let output = Command::new("cat").arg(&path).uid(OTHER).gid(OTHER).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { Ok(text) } else { Err(complaint) }
    };
    for public in [true, false] {
        let more = public.then_some("--public");
        let mut running = staying().args(more).published_to(&host).start();
        wait_shown(&host, &mut running);
        let (machine, mount) = (running.machine(), host.mount());
        let mode = mount.join(&machine).metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode, if public { 0o755 } else { 0o750 }, "public: {public}");
        for file in [format!("{machine}/vcpu0/user_exit_io_in"), format!("{machine}/.stats/flat")] {
            let text = read(mount.join(&file));
            match &text {
                Ok(_) => assert!(public, "{file}: {text:?}"),
                Err(why) => assert!(!public && why.contains("Permission denied"), "{file}: {why}"),
            }
        }
        // All totals are for all, and what else of it is in the bulk files is as open as it is.
        assert!(read(mount.join("kvm/user_exit_io_in")).is_ok());
        let all = read(mount.join(".stats/flat")).unwrap();
        assert_eq!(all.contains(&machine), public, "public: {public}");
        running.release();
        running.wait().assert(0);
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
