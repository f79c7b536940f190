//! Guests that do exactly so many exits of each kind: the files, the final statistics and the kernel's own
//! tracepoint all say so, on one and on several vCPUs.

use std::collections::BTreeMap;

use tests::flat::Flat;
use tests::guest::{
    COM1, EXIT_PORT, Mode, NO_MEMORY, NO_MEMORY_REAL, NO_PORT, Op, Step, end, park, program,
};
use tests::running::{Ended, Running};
use tests::soak::rounds;
use tests::tracepoint::KvmReturns;
use tests::vmm::Vmm;

/// The kinds of exit that one access makes, and how often a vCPU makes them.
fn kinds(mode: Mode) -> Vec<(&'static str, Step)> {
    let n = rounds(300).min(30_000);
    let memory = if mode == Mode::Real { NO_MEMORY_REAL } else { NO_MEMORY };
    let mut kinds = vec![
        ("io_out", Step::new(Op::Out8, n + 1, NO_PORT)),
        ("io_out", Step::new(Op::Out16, n + 2, NO_PORT)),
        ("io_out", Step::new(Op::Out32, n + 3, NO_PORT)),
        ("io_in", Step::new(Op::In8, n + 4, NO_PORT)),
        ("io_in", Step::new(Op::In16, n + 5, NO_PORT)),
        ("io_in", Step::new(Op::In32, n + 6, NO_PORT)),
        ("io_in", Step::new(Op::In8, n + 7, EXIT_PORT)),
        ("mmio_read", Step::new(Op::Read8, n + 8, memory)),
        ("mmio_read", Step::new(Op::Read16, n + 9, memory)),
        ("mmio_read", Step::new(Op::Read32, n + 10, memory)),
        ("mmio_write", Step::new(Op::Write8, n + 11, memory)),
        ("mmio_write", Step::new(Op::Write16, n + 12, memory)),
        ("mmio_write", Step::new(Op::Write32, n + 13, memory)),
        ("hlt", Step::new(Op::Hlt, n + 14, 0)),
    ];
    if mode == Mode::Long {
        kinds.push(("mmio_read", Step::new(Op::Read64, n + 15, memory)));
        kinds.push(("mmio_write", Step::new(Op::Write64, n + 16, memory)));
    }
    // Each vCPU does another number of each.
    let kinds = kinds.into_iter().enumerate();
    kinds.map(|(i, (name, step))| (name, step.per_index(2 * i as u32 + 1))).collect()
}

/// What a vCPU's files say: only these reasons, so often each, and all of them together.
fn assert_exits(flat: &Flat, directory: &str, expected: &BTreeMap<&str, u64>) {
    assert_eq!(&flat.exits(directory), expected, "{directory}");
    assert_eq!(flat.get(&format!("{directory}/user_exits")), expected.values().sum::<u64>());
}

/// Waits until all vCPUs of a guest are parked, which is their last exit, and gives the values.
fn parked(running: &Running, exits: u64) -> Flat {
    running.wait_for_exits(exits);
    let flat = running.flat();
    assert_eq!(flat.counted(), running.flat().counted(), "nothing counts any more");
    flat
}

fn all_kinds(mode: Mode, cpus: u32, scale: impl Fn(Step) -> Step) {
    let kinds: Vec<_> = kinds(mode).into_iter().map(|(name, step)| (name, scale(step))).collect();
    let mut steps: Vec<_> = kinds.iter().map(|(_, step)| *step).collect();
    // No exit at all.
    steps.push(Step::new(Op::Cpuid, 50, 0));
    steps.extend([park(), end(7)]);
    let expected: Vec<BTreeMap<&str, u64>> = (0..cpus)
        .map(|index| {
            let mut exits = BTreeMap::from([("io_out", 1)]);
            for (name, step) in &kinds {
                *exits.entry(*name).or_default() += step.times(index);
            }
            exits
        })
        .collect();
    let mut sums = BTreeMap::new();
    for (name, n) in expected.iter().flatten() {
        *sums.entry(*name).or_default() += n;
    }
    let total: u64 = sums.values().sum();

    let kernel = KvmReturns::watch_all();
    let mut running = Vmm::new(mode, &steps).cpus(cpus).blocked_console().start_mounted();
    let machine = running.machine();
    let flat = parked(&running, total);
    assert_eq!(flat.vcpus(&machine).len(), cpus as usize);
    for (index, expected) in expected.iter().enumerate() {
        assert_exits(&flat, &format!("{machine}/vcpu{index}"), expected);
    }
    assert_exits(&flat, &machine, &sums);
    assert_exits(&flat, "kvm", &sums);
    flat.assert_sums();
    // Each file by itself says the same as the bulk form.
    for (reason, n) in &sums {
        for directory in ["kvm", &machine] {
            assert_eq!(running.value(&format!("{directory}/user_exit_{reason}")), *n);
        }
        let vcpu = format!("{machine}/vcpu{}/user_exit_{reason}", cpus - 1);
        assert_eq!(running.value(&vcpu), expected[cpus as usize - 1][reason]);
    }
    assert_devices(&flat, &machine, &kinds, cpus);
    // Nobody has been kicked yet, and the last exit's handling is not over.
    assert_eq!(kernel.failed(), 0);
    assert_eq!(flat.get("kvm/user_run_time/count"), total);
    assert_eq!(flat.get("kvm/user_handle_time/count"), total - u64::from(cpus));

    running.release();
    let ended = running.wait().assert(7);
    assert_eq!(ended.stdout, b".".repeat(cpus as usize));
    let last = ended.flat();
    // One more OUT, of vCPU 0 to the exit port, and the kicks that stopped the others.
    *sums.get_mut("io_out").unwrap() += 1;
    let intr = last.exits("kvm").get("intr").copied().unwrap_or(0);
    if intr > 0 {
        sums.insert("intr", intr);
    }
    assert_exits(&last, "kvm", &sums);
    last.assert_sums();
    assert_eq!(last.get("kvm/exit_requests"), 1);
    assert_eq!(last.get(&format!("{machine}/exit0/exit_status")), 7);
    assert_eq!(last.get("kvm/serial_tx_bytes"), u64::from(cpus));
    for histogram in ["user_run_time", "user_handle_time"] {
        assert_eq!(last.get(&format!("kvm/{histogram}/count")), last.get("kvm/user_exits"));
    }
    kernel.assert_agrees(&last);
}

/// What devices and buses were asked for: every access is on exactly one account.
fn assert_devices(flat: &Flat, machine: &str, kinds: &[(&str, Step)], cpus: u32) {
    let sum = |name: &str, device: bool, index: u32| -> u64 {
        let of = kinds
            .iter()
            .filter(|(kind, step)| *kind == name && (step.address() == EXIT_PORT) == device);
        of.map(|(_, step)| step.times(index)).sum()
    };
    for index in 0..cpus {
        let vcpu = format!("{machine}/vcpu{index}");
        for (value, expected) in [
            ("bus_unclaimed_io_writes", sum("io_out", false, index)),
            ("bus_unclaimed_io_reads", sum("io_in", false, index)),
            ("bus_unclaimed_mmio_reads", sum("mmio_read", false, index)),
            ("bus_unclaimed_mmio_writes", sum("mmio_write", false, index)),
            ("exit0/io_reads", sum("io_in", true, index)),
            ("exit0/io_read_bytes", sum("io_in", true, index)),
            ("exit0/io_writes", 0),
            ("serial0/io_reads", 0),
            ("serial0/io_writes", 0),
        ] {
            assert_eq!(flat.get(&format!("{vcpu}/{value}")), expected, "{vcpu}/{value}");
        }
        assert_ne!(flat.get(&format!("{vcpu}/thread_id")), 0);
    }
    assert_eq!(flat.get(&format!("{machine}/vm_vcpus")), u64::from(cpus));
    assert_eq!(flat.get(&format!("{machine}/vm_state")), 1, "it runs");
}

#[test]
fn each_kind_on_one_vcpu_in_long_mode() {
    all_kinds(Mode::Long, 1, |step| step);
}

#[test]
fn each_kind_on_one_vcpu_in_real_mode() {
    all_kinds(Mode::Real, 1, |step| step);
}

#[test]
fn each_kind_on_two_vcpus_in_real_mode() {
    all_kinds(Mode::Real, 2, |step| step);
}

#[test]
fn each_kind_on_eight_vcpus() {
    all_kinds(Mode::Long, 8, |step| step);
}

#[test]
fn each_kind_on_sixty_four_vcpus() {
    // So many threads on few CPUs are slow enough with fewer exits each.
    all_kinds(Mode::Long, 64, |step| Step::new(step.op(), 20, step.address()).per_index(1));
}

/// Each kind of exit alone, so that no two errors can make up for each other.
#[test]
fn each_kind_alone() {
    for mode in [Mode::Long, Mode::Real] {
        for (name, step) in kinds(mode) {
            let kernel = KvmReturns::watch_all();
            let ended = Vmm::new(mode, &[step, end(0)]).unmounted().run().assert(0);
            let flat = ended.flat();
            let mut expected = BTreeMap::from([("io_out", 1)]);
            *expected.entry(name).or_default() += step.times(0);
            assert_exits(&flat, "kvm", &expected);
            flat.assert_sums();
            kernel.assert_agrees(&flat);
            assert_eq!(kernel.failed(), 0, "one vCPU that ends itself is not kicked");
        }
    }
}

#[test]
fn an_access_across_pages_is_as_many_exits_as_kvm_makes_of_it() {
    let n = 100;
    let kernel = KvmReturns::watch_all();
    let steps =
        [Step::new(Op::Read64, n, NO_MEMORY + 0xffc), Step::new(Op::Write64, n, NO_MEMORY + 0xffc)];
    let ended = Vmm::new(Mode::Long, &[steps[0], steps[1], end(0)]).unmounted().run().assert(0);
    let flat = ended.flat();
    for kind in ["read", "write"] {
        let exits = flat.get(&format!("kvm/user_exit_mmio_{kind}"));
        assert!(exits >= n.into(), "{kind}: {exits}");
        assert_eq!(exits, flat.get(&format!("kvm/bus_unclaimed_mmio_{kind}s")));
    }
    kernel.assert_agrees(&flat);
}

#[test]
fn string_instructions_move_every_byte_in_as_many_exits_as_the_kernel_says() {
    let n = 333;
    for mode in [Mode::Long, Mode::Real] {
        for (out, op, size) in [
            (true, Op::Outs8, 1),
            (true, Op::Outs16, 2),
            (true, Op::Outs32, 4),
            (false, Op::Ins8, 1),
            (false, Op::Ins16, 2),
            (false, Op::Ins32, 4),
        ] {
            for port in [COM1, NO_PORT] {
                let kernel = KvmReturns::watch_all();
                let steps = [Step::new(op, n, port), end(0)];
                let ended = Vmm::new(mode, &steps).unmounted().run().assert(0);
                let flat = ended.flat();
                assert_strings(&ended, &flat, mode, (out, n.into(), size), port, &steps);
                kernel.assert_agrees(&flat);
                assert_eq!(kernel.failed(), 0);
            }
        }
    }
}

fn assert_strings(
    ended: &Ended,
    flat: &Flat,
    mode: Mode,
    (out, n, size): (bool, u64, u64),
    port: u32,
    steps: &[Step],
) {
    let what = format!("{mode:?} {out} {n} x {size} {port:#x}");
    let name = if out { "write" } else { "read" };
    let exits = flat.get(&format!("kvm/user_exit_io_{}", if out { "out" } else { "in" }));
    let exits = exits - u64::from(out);
    assert!((1..=n).contains(&exits), "{what}: {exits} exits");
    let unclaimed = flat.get(&format!("kvm/bus_unclaimed_io_{name}s"));
    // The machine's total is that of its vCPUs, who went to the exit port as well.
    let vcpu = format!("{}/vcpu0", flat.machine());
    let claimed = flat.get(&format!("{vcpu}/serial0/io_{name}s"));
    let bytes = flat.get(&format!("{vcpu}/serial0/io_{name}_bytes"));
    if port == NO_PORT {
        assert_eq!((unclaimed, claimed, bytes), (n, 0, 0), "{what}");
        assert!(ended.stdout.is_empty());
        return;
    }
    assert_eq!((unclaimed, claimed, bytes), (0, n, n * size), "{what}");
    let sent = flat.get("kvm/serial_tx_bytes");
    if out {
        // A wide access also writes the registers after the data, which can put the port into loop-back
        // mode; a narrow one is a byte sent.
        if size == 1 {
            assert_eq!(sent, n, "{what}");
            let mut memory = program(mode, steps);
            memory.resize(n as usize, 0);
            assert_eq!(ended.stdout, memory, "{what}");
        }
    } else {
        assert_eq!(sent, 0, "{what}");
        assert_eq!(flat.get("kvm/serial_rx_reads"), n, "{what}");
    }
}

#[test]
fn a_shutdown_is_one_exit_and_the_last() {
    for (mode, cpus) in [(Mode::Long, 1), (Mode::Real, 1), (Mode::Long, 4)] {
        let n = 50;
        let kernel = KvmReturns::watch_all();
        let steps = [Step::new(Op::Hlt, n, 0), Step::new(Op::Crash, 1, 0)];
        let ended = Vmm::new(mode, &steps).cpus(cpus).run().assert(124);
        ended.assert_says(&["crashed", "triple fault"]);
        let flat = ended.flat();
        let exits = flat.exits("kvm");
        if cpus == 1 {
            assert_eq!(exits, BTreeMap::from([("hlt", n.into()), ("shutdown", 1)]));
        } else {
            // The others may or may not come to it before they are stopped.
            assert!((1..=u64::from(cpus)).contains(&exits["shutdown"]), "{exits:?}");
        }
        flat.assert_sums();
        kernel.assert_agrees(&flat);
    }
}

#[test]
fn cpuid_is_no_exit() {
    let kernel = KvmReturns::watch_all();
    let steps = [Step::new(Op::Cpuid, 2000, 0), end(0)];
    let ended = Vmm::new(Mode::Long, &steps).unmounted().run().assert(0);
    assert_eq!(ended.flat().exits("kvm"), BTreeMap::from([("io_out", 1)]));
    kernel.assert_agrees(&ended.flat());
}
