//! What the host's scheduler did with the vCPUs' threads: the files say what the kernel's own do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::namespace::{mount, unshare_mounts};
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

const NAMES: [&str; 5] = [
    "sched_run_ns",
    "sched_wait_ns",
    "sched_slices",
    "sched_voluntary_switches",
    "sched_involuntary_switches",
];

/// What a directory shows.
fn shown(flat: &Flat, directory: &str) -> [u64; 5] {
    NAMES.map(|name| flat.get(&format!("{directory}/{name}")))
}

/// What /proc says of a thread.
fn kernels(pid: u32, thread: u64) -> [u64; 5] {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/task/{thread}/{file}");
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (schedstat, status) = (read("schedstat"), read("status"));
    let times: Vec<u64> = schedstat.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields[name].trim().parse().unwrap();
    let switches = (field("voluntary_ctxt_switches"), field("nonvoluntary_ctxt_switches"));
    [times[0], times[1], times[2], switches.0, switches.1]
}

/// The vCPUs' directories with their threads.
fn vcpus(running: &Running, cpus: u32) -> Vec<(String, u64)> {
    let vcpu = |index| {
        let directory = format!("{}/vcpu{index}", running.machine());
        let thread = wait_until("a thread", || {
            Some(running.value(&format!("{directory}/thread_id"))).filter(|id| *id > 0)
        });
        (directory, thread)
    };
    (0..cpus).map(vcpu).collect()
}

#[test]
fn a_vcpu_at_rest_shows_what_proc_says() {
    let cpus = 3;
    let steps = [Step::new(Op::Out8, 200, NO_PORT).per_index(300), park(), end(0)];
    let running = Vmm::new(Mode::Long, &steps).cpus(cpus).blocked_console().start_mounted();
    let vcpus = vcpus(&running, cpus);
    let all = || vcpus.iter().map(|(_, thread)| kernels(running.pid(), *thread));
    let flat = wait_until("the last sample", || {
        let (before, flat) = (Vec::from_iter(all()), running.flat());
        // All of them rest, and have been sampled since they do.
        let same = vcpus.iter().zip(&before).all(|((dir, _), kernel)| shown(&flat, dir) == *kernel);
        (same && before == Vec::from_iter(all())).then_some(flat)
    });
    flat.assert_sums_of("sched_");
    for (directory, _) in &vcpus {
        let [run_ns, _, slices, voluntary, _] = shown(&flat, directory);
        assert!(run_ns > 0 && slices > 0 && voluntary > 0, "{directory}: it waits for its console");
    }
    // The rest of their lives comes on top, and it all stays.
    let last = running.wait().assert(0).flat();
    last.assert_sums_of("sched_");
    for directory in vcpus.iter().map(|(directory, _)| directory.as_str()).chain(["kvm"]) {
        let (then, now) = (shown(&flat, directory), shown(&last, directory));
        assert!(
            now.iter().zip(&then).all(|(now, then)| now >= then),
            "{directory}: {then:?}, {now:?}"
        );
        assert!(now[0] > then[0], "{directory}: it ran on");
    }
}

#[test]
fn a_busy_guest_runs_no_longer_than_time_passes() {
    let cpus = 2;
    let started = Instant::now();
    let running = Vmm::new(Mode::Long, &[Step::new(Op::Spin, 1, 0)]).cpus(cpus).start_mounted();
    let vcpus = vcpus(&running, cpus);
    let mut before = vec![[0; 5]; vcpus.len()];
    let enough = Duration::from_millis(50).as_nanos() as u64;
    wait_until("some work", || {
        let flat = running.flat();
        let passed = started.elapsed().as_nanos() as u64;
        let now: Vec<_> = vcpus.iter().map(|(directory, _)| shown(&flat, directory)).collect();
        for (before, now) in before.iter().zip(&now) {
            assert!(
                before.iter().zip(now).all(|(before, now)| before <= now),
                "{before:?}, {now:?}"
            );
            // Two clocks, of which one may be corrected.
            assert!(now[0] + now[1] <= passed + passed / 50, "{now:?} in {passed} ns");
        }
        before = now;
        before.iter().all(|now| now[0] >= enough).then_some(())
    });
    running.signal(libc::SIGTERM);
    let last = running.wait().assert(143).flat();
    let passed = started.elapsed().as_nanos() as u64;
    for ((directory, _), before) in vcpus.iter().zip(&before) {
        let now = shown(&last, directory);
        assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "{before:?}, {now:?}");
        assert!(now[0] + now[1] <= passed + passed / 50, "{now:?} in {passed} ns");
    }
}

#[test]
fn a_guest_that_ends_before_it_is_ever_sampled_has_its_times() {
    let ended = Vmm::new(Mode::Long, &[end(0)]).unmounted().run().assert(0);
    let flat = ended.flat();
    let [run_ns, _, slices, ..] = shown(&flat, "kvm");
    assert!(run_ns > 0 && slices > 0, "{run_ns} ns in {slices} slices");
}

#[test]
fn without_proc_they_are_missing_and_one_line_says_so() {
    use std::os::unix::process::CommandExt;
    let vmm = Vmm::new(Mode::Long, &[end(6)]).unmounted();
    let ended = vmm
        .with(|command| {
            let hide = || {
                unshare_mounts()?;
                mount("none", "/proc".as_ref(), "tmpfs")
            };
            // SAFETY: the child has one thread, which calls the kernel and allocates a few strings; the
            // allocator is usable after a fork.
            unsafe { command.pre_exec(hide) };
        })
        .run()
        .assert(6);
    ended.assert_says(&["scheduler", "/proc/thread-self/schedstat", "No such file"]);
    let flat = ended.flat();
    assert_eq!(flat.get("kvm/user_exits"), 1);
    assert_eq!(flat.iter().find(|(path, _)| path.contains("sched_")), None);
}
