//! Every thread of a running `vmm` may make only the system calls that it needs.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tests::guest::{COM1, Mode, Op, Step, end};
use tests::inject::{call, call_after_read, hold_after_read, status, threads};
use tests::namespace::{mounted_at, unmount};
use tests::running::{PATIENCE, Running, wait_until};
use tests::vmm::{Vmm, end_with_test};

/// The threads of a `vmm` with two vCPUs and a mount, by name: two are called `fuser-0`.
const THREADS: [&str; 12] = [
    "vmm",
    "vcpu0",
    "vcpu1",
    "statsfs-keeper",
    "statsfs-fuse-0",
    "statsfs-fuse-1",
    "statsfs-inval",
    "statsfs-bulk-0",
    "statsfs-bulk-1",
    "statsfs-small-0",
    "statsfs-total-0",
    "fuser-0",
];

/// A guest that runs.
fn start(args: &[&str]) -> Running {
    let spin = [Step::new(Op::Spin, 1, 0)];
    let running = Vmm::new(Mode::Long, &spin).cpus(2).args(args).start_mounted();
    // Each vCPU's says who it is just before its guest runs.
    for vcpu in ["vcpu0", "vcpu1"] {
        let thread = format!("{}/{vcpu}/thread_id", running.machine());
        wait_until("the guest", || (running.value(&thread) > 0).then_some(()));
    }
    running
}

/// The threads that run code of the VMM's. The kernel may add some of its own, which recover large pages.
fn own_threads(running: &Running) -> Vec<(i32, String)> {
    threads(running.pid()).into_iter().filter(|(_, name)| !name.starts_with("kvm-")).collect()
}

/// The thread of this name.
fn thread(running: &Running, name: &str) -> i32 {
    wait_until(name, || {
        let threads = own_threads(running);
        threads.into_iter().find(|(_, found)| found == name).map(|(thread, _)| thread)
    })
}

/// What all threads say of themselves in one field.
fn all(running: &Running, field: &str) -> BTreeSet<String> {
    own_threads(running)
        .iter()
        .filter_map(|(thread, _)| status(running.pid(), *thread, field))
        .collect()
}

#[test]
fn all_threads_have_a_filter_and_can_gain_no_rights() {
    let running = start(&[]);
    // 2 is SECCOMP_MODE_FILTER. On a busy machine a thread may not have come to it yet, nor to its name.
    wait_until("policies", || {
        let names: BTreeSet<_> = own_threads(&running).into_iter().map(|(_, name)| name).collect();
        let confined = all(&running, "Seccomp") == ["2".to_string()].into();
        (confined && names == THREADS.map(String::from).into()).then_some(())
    });
    assert_eq!(all(&running, "NoNewPrivs"), ["1".to_string()].into());
    running.signal(libc::SIGTERM);
    running.wait().assert(143);
}

#[test]
fn without_policies_no_thread_has_one() {
    let running = start(&["--no-seccomp"]);
    assert_eq!(all(&running, "Seccomp"), ["0".to_string()].into());
    assert_eq!(all(&running, "NoNewPrivs"), ["0".to_string()].into());
    running.signal(libc::SIGTERM);
    running.wait().assert(143);
}

#[test]
fn a_thread_that_was_taken_over_takes_the_vmm_with_it() {
    for name in THREADS {
        let running = start(&[]);
        let thread = thread(&running, name);
        // A raw socket.
        let (domain, kind) = (libc::AF_PACKET as u64, libc::SOCK_RAW as u64);
        call(thread, libc::SYS_socket, [domain, kind, 0]);
        let ended = running.wait();
        assert_eq!(ended.code(), 125, "{name}: {}", ended.stderr);
        let name = if name == "vmm" { "main" } else { name };
        let forbidden = format!("the thread {name} made a system call that its policy forbids");
        ended.assert_says(&[&forbidden, "socket (number 41, arguments 0x11 0x3 0x0"]);
        // Nothing is tidied up, or written, by a process that is not its own master.
        assert_eq!(ended.stats.as_deref(), Some(""));
        assert_eq!(mounted_at(&ended.mount), ["fuse.statsfs"]);
    }
}

/// What a demo is stopped by that waits for its own answer.
fn stop_while_it_waits(stop: impl FnOnce(&mut Child, i32, i32)) -> (ExitStatus, String) {
    let place = tempfile::tempdir().unwrap();
    let mount = place.path().join("stats");
    let mut demo = Command::new(tests::binary::vmm());
    demo.args(["demo", "--seconds", "0", "--guests", "1", "--vcpus", "1", "--mount"]).arg(&mount);
    demo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    end_with_test(&mut demo);
    let mut demo = demo.spawn().unwrap();
    let find = |name: &str, n: usize| {
        wait_until(name, || {
            let all = threads(demo.id()).into_iter().filter(|(_, found)| found == name);
            let all: Vec<_> = all.map(|(thread, _)| thread).collect();
            (all.len() == n).then_some(all)
        })
    };
    let [one, other] = find("fuser-0", 2).try_into().unwrap();
    find("demo-reader", 1);
    stop(&mut demo, one, other);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = demo.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            // Not even a kill ends it.
            let mount = CString::new(mount.to_str().unwrap()).unwrap();
            // SAFETY: a C string that lives across the call.
            unsafe { libc::umount2(mount.as_ptr(), libc::MNT_FORCE) };
            demo.kill().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut stderr = String::new();
    demo.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    unmount(&mount).unwrap();
    (status, stderr)
}

// A demo reads its own mount once a second: what it waits for is answered by nobody once it ends.

#[test]
fn a_demo_that_waits_for_its_own_answer_ends_too() {
    let (status, stderr) = stop_while_it_waits(|_, one, other| {
        call_after_read(one, &[other], libc::SYS_socket, [0, 0, 0]);
    });
    assert_eq!(status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("the thread fuser-0 made a system call"), "{stderr}");
}

#[test]
fn a_demo_that_waits_for_its_own_answer_can_be_killed() {
    let (status, stderr) = stop_while_it_waits(|demo, one, other| {
        let _held = hold_after_read(one, &[other]);
        demo.kill().unwrap();
    });
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{stderr}");
}

#[test]
fn nobody_can_start_another_program() {
    for name in ["vcpu0", "vmm", "fuser-0"] {
        let running = start(&[]);
        let thread = thread(&running, name);
        // Of all calls the one that would end all policies but for their inheritance.
        call(thread, libc::SYS_execve, [0, 0, 0]);
        let ended = running.wait();
        assert_eq!(ended.code(), 125, "{name}: {}", ended.stderr);
        ended.assert_says(&["forbids: execve (number 59"]);
    }
}

#[test]
fn policies_change_nothing_for_a_guest() {
    let steps = [
        Step::new(Op::Out8, 40, COM1),
        Step::new(Op::Hlt, 3, 0),
        Step::new(Op::Read32, 5, tests::guest::NO_MEMORY),
        end(21),
    ];
    let crash = [Step::new(Op::Crash, 1, 0)];
    let counts = |steps: &[Step], status, args: &[&str]| {
        let ended = Vmm::new(Mode::Long, steps).args(args).run().assert(status);
        let flat = ended.flat();
        let exits: Vec<_> =
            flat.exits("kvm").into_iter().map(|(k, n)| (k.to_string(), n)).collect();
        (exits, ended.stdout.clone(), ended.stderr.clone())
    };
    for (steps, status) in [(&steps[..], 21), (&crash, 124)] {
        assert_eq!(counts(steps, status, &[]), counts(steps, status, &["--no-seccomp"]));
    }
}
