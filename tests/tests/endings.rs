//! How a guest and its VMM end: the exit status says which way it was, the final statistics are always
//! written, and mount and threads are gone.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, echo, end, park};
use tests::kvm_run;
use tests::namespace::mounted_at;
use tests::running::{Ended, wait_until};
use tests::vmm::Vmm;

/// The machine has ended, and each vCPU's loop was closed: every return of KVM_RUN has been handled.
fn assert_closed(flat: &Flat) {
    assert_eq!(flat.get(&format!("{}/vm_state", flat.machine())), 3, "it ended");
    flat.assert_sums();
    // The threads have ended, so that nothing is sampled any more either.
    flat.assert_sums_of("sched_");
    assert!(flat.get("kvm/sched_slices") > 0);
    assert_eq!(flat.get("kvm/user_handle_time/count"), flat.get("kvm/user_exits"));
}

#[test]
fn the_guests_status_is_the_exit_status() {
    for status in [0, 1, 7, 122, 123] {
        for (mode, cpus) in [(Mode::Long, 1), (Mode::Real, 1), (Mode::Long, 3)] {
            let ended = Vmm::new(mode, &[end(status)]).cpus(cpus).run().assert(status.into());
            assert_eq!(ended.stderr, "");
            let flat = ended.flat();
            assert_closed(&flat);
            assert_eq!(
                flat.get(&format!("{}/exit0/exit_status", flat.machine())),
                u64::from(status)
            );
        }
    }
}

#[test]
fn a_status_that_means_something_else_is_a_crash() {
    for status in [124, 125, 130, 255] {
        let ended = Vmm::new(Mode::Long, &[end(status)]).run().assert(124);
        ended.assert_says(&["crashed", &format!("status {status}"), "at most 123"]);
        assert_closed(&ended.flat());
    }
}

#[test]
fn a_guest_that_crashes_is_told_with_its_place() {
    let ended = Vmm::new(Mode::Long, &[Step::new(Op::Crash, 1, 0)]).run().assert(124);
    ended.assert_says(&["crashed", "vCPU 0", "triple fault"]);
    // Processors of AMD forget the place.
    let amd = std::path::Path::new("/sys/module/kvm_amd").exists();
    assert_eq!(ended.stderr.contains("RIP 0x1"), !amd, "{}", ended.stderr);
    assert_eq!(ended.flat().get("kvm/user_exit_shutdown"), 1);
    assert_closed(&ended.flat());

    // Where there is no memory there is no code either: mov eax, 0xd0000000; jmp rax.
    let ended = Vmm::of_program(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]).run().assert(124);
    ended.assert_says(&["crashed", "vCPU 0", "KVM_EXIT_INTERNAL_ERROR", "RIP 0xd0000000"]);
    assert_eq!(ended.flat().get("kvm/user_exit_internal_error"), 1);
    assert_closed(&ended.flat());
}

#[test]
fn a_kvm_run_that_fails_fails_the_vmm() {
    for cpus in [1, 4] {
        let vmm = Vmm::new(Mode::Long, &[end(5)]).cpus(cpus);
        // As for memory that cannot be had, for one.
        let ended = vmm.with(kvm_run::fail(libc::EFAULT)).run().assert(125);
        ended.assert_says(&["vCPU", "KVM_RUN", "Bad address"]);
        let flat = ended.flat();
        assert_closed(&flat);
        let errors = flat.get("kvm/user_exit_error");
        assert!(errors > 0 && errors == flat.get("kvm/user_exits"), "{errors}");
    }
}

#[test]
fn a_return_of_kvm_run_that_is_the_guests_end_is_a_crash() {
    // KVM_EXIT_UNKNOWN, and KVM_EXIT_FAIL_ENTRY with the reason that Intel's CPUs have for it.
    let exits = [
        (0, 0, "unknown", "unexpected exit from the guest (unknown)"),
        (9, 0x8000_0021, "fail_entry", "KVM_EXIT_FAIL_ENTRY, reason 0x80000021"),
    ];
    for (reason, detail, name, said) in exits {
        let vmm = Vmm::new(Mode::Long, &[end(5)]).with(kvm_run::leave_to_the_test);
        let running = vmm.start();
        kvm_run::answer(running.pid(), reason, detail);
        let ended = running.wait().assert(124);
        ended.assert_says(&["crashed", "vCPU 0", said]);
        let flat = ended.flat();
        let vcpu = flat.vcpus(&flat.machine()).remove(0);
        assert_eq!(flat.exits(&vcpu), [(name, 1)].into());
        assert_eq!(flat.get(&format!("{vcpu}/user_exit_{name}")), 1);
        assert_closed(&flat);
    }
}

/// Longer than stopping takes, on a machine that is busy with other tests too.
const PROMPTLY: Duration = Duration::from_secs(10);

fn assert_stopped(ended: &Ended) {
    assert!(ended.took < PROMPTLY, "{:?}", ended.took);
    assert_eq!(ended.stderr, "");
    assert_closed(&ended.flat());
}

#[test]
fn a_signal_stops_every_guest_promptly() {
    let never_exits = [Step::new(Op::Spin, 1, 0)];
    let always_exits = [Step::new(Op::Out8, 1000, NO_PORT), Step::new(Op::Again, 1, 0)];
    let halts = [Step::new(Op::Hlt, 1000, 0), Step::new(Op::Again, 1, 0)];
    let signals =
        [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129), (libc::SIGQUIT, 131)];
    for (signal, status) in signals {
        for (steps, cpus) in [(&never_exits[..], 8), (&always_exits, 3), (&halts, 1)] {
            let running = Vmm::new(Mode::Long, steps).cpus(cpus).start_mounted();
            // So that there is something to stop.
            let started = format!("{}/vcpu{}/thread_id", running.machine(), cpus - 1);
            wait_until("a thread", || (running.value(&started) > 0).then_some(()));
            running.signal(signal);
            assert_stopped(&running.wait().assert(status));
        }
    }
}

#[test]
fn a_signal_stops_guests_whose_console_is_stuck() {
    let cpus = 3;
    let running = Vmm::new(Mode::Long, &[park()]).cpus(cpus).blocked_console().start_mounted();
    running.wait_for_exits(cpus.into());
    running.signal(libc::SIGTERM);
    let stopped = wait_until("the end", {
        let mut running = Some(running);
        move || {
            running.as_mut().is_some_and(|running| running.has_ended()).then(|| running.take())?
        }
    });
    // Only now is its output taken.
    let ended = stopped.wait().assert(143);
    assert_eq!(ended.stdout, b"");
    let flat = ended.flat();
    assert_closed(&flat);
    assert_eq!(flat.get("kvm/serial_tx_lost_bytes"), u64::from(cpus));
    assert_eq!(flat.get("kvm/serial_tx_bytes"), 0);
}

#[test]
fn output_that_nobody_takes_is_lost_and_counted() {
    let n = 200;
    let steps = [Step::new(Op::Out8, n, 0x3f8), end(5)];
    let ended = Vmm::new(Mode::Long, &steps).deaf_console().run().assert(5);
    let flat = ended.flat();
    assert_eq!(flat.get("kvm/serial_tx_lost_bytes"), u64::from(n));
    assert_eq!(flat.get("kvm/serial_tx_bytes"), 0);
    assert_eq!(flat.get("kvm/user_exit_io_out"), u64::from(n) + 1);
    assert_closed(&flat);
}

/// As text that a guest sends back, with an end.
fn text(length: usize) -> Vec<u8> {
    let mut text: Vec<_> = (0..length - 1).map(|i| b'a' + (i % 26) as u8).collect();
    text.push(b'!');
    text
}

fn assert_echoed(ended: Ended, text: &[u8]) {
    let ended = ended.assert(0);
    assert_eq!(ended.stdout, text);
    let (flat, n) = (ended.flat(), text.len() as u64);
    assert_eq!(flat.get("kvm/serial_rx_bytes"), n);
    assert_eq!(flat.get("kvm/serial_rx_reads"), n);
    assert_eq!(flat.get("kvm/serial_tx_bytes"), n);
    assert_eq!(flat.get("kvm/serial_rx_lost_bytes"), 0);
    assert_closed(&flat);
}

#[test]
fn input_from_a_file_a_pipe_or_nowhere_reaches_the_guest() {
    let sent = text(3000);
    let vmm = Vmm::of_program(&echo());
    let path = vmm.directory().join("input");
    std::fs::write(&path, &sent).unwrap();
    assert_echoed(vmm.stdin(File::open(&path).unwrap()).run(), &sent);

    // In pieces, the first of them later than the guest's first look, and none lost.
    let (reader, mut writer) = io::pipe().unwrap();
    let running = Vmm::of_program(&echo()).stdin(reader).start_mounted();
    running.wait_for_exits(20);
    for piece in sent.chunks(700) {
        writer.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_echoed(running.wait(), &sent);

    // /dev/null has ended before it began: the guest asks for ever.
    let running = Vmm::of_program(&echo()).start_mounted();
    running.wait_for_exits(200);
    running.signal(libc::SIGINT);
    let ended = running.wait().assert(130);
    assert_eq!(ended.flat().get("kvm/serial_rx_bytes"), 0);
}

#[test]
fn a_killed_vmm_leaves_a_dead_mount_that_the_next_one_replaces() {
    let spin = [Step::new(Op::Spin, 1, 0)];
    let place = tempfile::tempdir().unwrap();
    let mount = place.path().join("stats");
    // More than once, so that nothing piles up.
    for _ in 0..3 {
        let first = Vmm::new(Mode::Long, &spin).mount_at(&mount).start_mounted();
        let (machine, started) = (first.machine(), first.value("kvm/vm_vcpus"));
        assert_eq!(started, 1);
        first.signal(libc::SIGKILL);
        let first = first.wait();
        assert_eq!(first.mounts, ["fuse.statsfs"], "it could not take its mount away");
        let error = std::fs::read_dir(&mount).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));

        let second = Vmm::new(Mode::Long, &spin).mount_at(&mount).start_mounted();
        assert_eq!(second.value("kvm/vm_vcpus"), 1);
        assert_eq!(mounted_at(&mount), ["fuse.statsfs"]);
        assert!(!second.path(&machine).exists(), "nothing is left of the first");
        second.signal(libc::SIGTERM);
        let second = second.wait();
        assert_eq!(second.code(), 143);
        assert_eq!(second.mounts, [""; 0]);
        // It was there before the second one came.
        assert!(std::fs::read_dir(&mount).unwrap().next().is_none());
        drop(first);
    }
}

#[test]
fn a_mount_point_that_was_there_stays() {
    let place = tempfile::tempdir().unwrap();
    let ended = Vmm::new(Mode::Long, &[end(0)]).mount_at(place.path()).run();
    assert_eq!((ended.code(), ended.mounts.len()), (0, 0));
    assert!(place.path().is_dir());
}

#[test]
fn without_a_word_about_publishing_it_says_so_once() {
    // As `unmounted`, but without saying so.
    let vmm = Vmm::new(Mode::Long, &[end(3)]);
    let program = vmm.directory().join("guest.bin");
    let output = std::process::Command::new(tests::binary::vmm())
        .args(["run", "--flat"])
        .arg(program)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("not published") && stderr.contains("--mount"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
}
