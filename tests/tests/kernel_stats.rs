//! What KVM itself counts: every value that its descriptors have is in the tree, in both deployments, and stays there
//! whatever ends.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use statsfs::Registry;
use statsfs::host::protocol::{Buffer, ClientMessage, Hello, Incoming, ServerMessage, Socket};
use statsfs::host::{PublishOptions, PublishState};
use tests::Random;
use tests::flat::Flat;
use tests::guest::{Mode, NO_MEMORY, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::kvm_stats::{KvmStats, compare, shown};
use tests::outside::Outside;
use tests::running::{PATIENCE, wait_until};
use tests::soak::rounds;
use tests::vmm::Vmm;

const VCPUS: u32 = 3;

/// A guest that has done something and stays, without an exit, until its console is taken.
fn parked() -> Vmm {
    let steps = [
        Step::new(Op::In8, 50, NO_PORT).per_index(7),
        Step::new(Op::Write32, 20, NO_MEMORY),
        Step::new(Op::Hlt, 5, 0),
        Step::new(Op::Cpuid, 9, 0),
        park(),
        end(0),
    ];
    Vmm::new(Mode::Long, &steps).cpus(VCPUS).args(["--memory", "2M"]).blocked_console()
}

fn wait_parked(flat: impl Fn() -> Option<Flat>, machine: &str) {
    // The last thing that each does.
    let path = |n: u32| format!("{machine}/vcpu{n}/user_exit_io_out");
    wait_until("all vCPUs are parked", || {
        let flat = flat()?;
        (0..VCPUS).all(|n| flat.find(&path(n)).is_some_and(|outs| outs > 0)).then_some(())
    });
    // What they did before is done, and KVM does nothing by itself.
    wait_until("nothing moves", || {
        let before = flat()?;
        thread::sleep(Duration::from_millis(50));
        let moves = |(path, value): (&str, u64)| {
            path.starts_with(machine) && path.contains("exit") && before.find(path) != Some(value)
        };
        (!flat()?.iter().any(moves)).then_some(())
    });
}

#[test]
fn every_value_of_the_kernels_is_a_file_that_says_the_same() {
    let mut running = parked().start_mounted();
    let machine = running.machine();
    wait_parked(|| Some(running.flat()), &machine);
    let stats = KvmStats::of(running.pid()).unwrap();
    assert_eq!(stats.len(), 1 + VCPUS as usize, "{:?}", stats.keys());
    let flat = running.flat();
    let (compared, counted) = compare(&flat, &machine, &[&machine, "kvm"], &stats);
    eprintln!("compared {compared} cells of {} descriptors, {counted} not zero", stats.len());
    assert!(counted > 10, "the guest has left no trace");
    // Each file says what all of them together say.
    let vcpu = format!("{machine}/vcpu1");
    for name in ["exits", "halt_exits", "halt_wait_hist/count"] {
        assert_eq!(running.value(&format!("{vcpu}/{name}")), flat.get(&format!("{vcpu}/{name}")));
    }
    let schema = std::fs::read_to_string(running.path(&format!("{vcpu}/.stats/schema"))).unwrap();
    assert!(schema.contains("\"halt_wait_ns\"") && schema.contains("\"kvm_vcpu\""), "{schema}");
    // The same is left in the end, of what only grows.
    let before = |name: &str| flat.get(&format!("kvm/{name}"));
    running.release();
    let ended = running.wait().assert(0);
    assert!(ended.flat().get("kvm/exits") >= before("exits"));
}

#[test]
fn a_host_shows_them_too_and_keeps_what_a_killed_machine_has_counted() {
    let host = Host::start();
    let running = parked().published_to(&host).start();
    let machine = running.machine();
    let flat = || host.machines().contains(&machine).then(|| host.flat());
    wait_parked(flat, &machine);
    let descriptors = 1 + u64::from(VCPUS);
    wait_until("the descriptors", || {
        (host.value("statsfs/server_descriptors") == Some(descriptors)).then_some(())
    });
    let stats = KvmStats::of(running.pid()).unwrap();
    let before = host.flat();
    compare(&before, &machine, &[&machine, "kvm"], &stats);
    assert_eq!(running.kill_and_wait(), Some(libc::SIGKILL));
    wait_until("it is folded", || {
        (host.value("statsfs/server_processes") == Some(1)).then_some(())
    });
    // What is left is all that only grows, and what its end has added: that took its memory away.
    let after = host.flat();
    let mut totals = BTreeMap::new();
    for value in stats.values().flat_map(KvmStats::now).filter(|value| value.grows()) {
        let counted = value.values.iter().sum::<u64>();
        totals.entry(value.name.clone()).or_insert((value, 0)).1 += counted;
    }
    // What nobody has counted leaves nothing.
    for (name, (value, total)) in totals.into_iter().filter(|(_, (_, total))| *total > 0) {
        assert_eq!(shown(&after, "kvm", &value).iter().sum::<u64>(), total, "{name}");
        let file = if value.is_histogram() { "/count" } else { "" };
        let departed = host.value(&format!("kvm/.departed/{name}{file}"));
        assert_eq!(departed, Some(total), "{name}");
        assert!(total >= shown(&before, "kvm", &value).iter().sum(), "{name}");
    }
    wait_until("they are closed", || {
        (host.value("statsfs/server_descriptors") == Some(0)).then_some(())
    });
}

#[test]
fn a_busy_machine_that_is_killed_leaves_what_the_kernel_counted_to_the_last() {
    let host = Host::start();
    let mut random = Random::new();
    let mut departed = BTreeMap::<&str, u64>::new();
    const NAMES: [&str; 3] = ["exits", "halt_exits", "insn_emulation"];
    for _ in 0..rounds(10) {
        let steps = [
            Step::new(Op::In8, 100, NO_PORT),
            Step::new(Op::Hlt, 1, 0),
            Step::new(Op::Again, 1, 0),
        ];
        let running = Vmm::new(Mode::Long, &steps)
            .cpus(2)
            .args(["--memory", "2M"])
            .published_to(&host)
            .start();
        let descriptors = 3;
        wait_until("the descriptors", || {
            (host.value("statsfs/server_descriptors") == Some(descriptors)).then_some(())
        });
        let machine = running.machine();
        wait_until("exits", || {
            host.value(&format!("{machine}/exits")).filter(|exits| *exits > 100)
        });
        // They stay readable, and keep nothing but KVM's own.
        let stats = KvmStats::of(running.pid()).unwrap();
        thread::sleep(Duration::from_micros(random.below(50_000)));
        assert_eq!(running.kill_and_wait(), Some(libc::SIGKILL));
        wait_until("it is folded", || {
            (host.value("statsfs/server_processes") == Some(1)).then_some(())
        });
        for name in NAMES {
            let vcpus = stats.iter().filter(|(id, _)| id.contains("/vcpu-"));
            *departed.entry(name).or_default() += vcpus.map(|(_, of)| of.get(name)).sum::<u64>();
            assert_eq!(
                host.value(&format!("kvm/.departed/{name}")),
                Some(departed[name]),
                "{name}"
            );
        }
        drop(stats);
        wait_until("they are closed", || {
            (host.value("statsfs/server_descriptors") == Some(0)).then_some(())
        });
    }
    assert!(departed["exits"] > 100);
}

#[test]
fn a_killed_server_takes_nothing_along() {
    let mut host = Host::start();
    let steps = [Step::new(Op::In8, 100, NO_PORT), Step::new(Op::Again, 1, 0)];
    let running = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).published_to(&host).start();
    let exits = format!("{}/exits", running.machine());
    let mut last = 0;
    for _ in 0..rounds(3) {
        wait_until("the descriptors", || {
            (host.value("statsfs/server_descriptors") == Some(2)).then_some(())
        });
        let seen = host.value(&exits).unwrap();
        assert!(seen >= last, "{seen} after {last}");
        last = seen;
        host.kill();
        // What it had shown is in the segment at once, whoever comes next.
        let outside = Outside::attach(running.pid()).unwrap();
        wait_until("the sample", || (outside.value(&exits) >= last).then_some(()));
        host.start_again();
        wait_until("the machine", || host.machines().contains(&running.machine()).then_some(()));
        let again = host.value(&exits).unwrap();
        assert!(again >= last, "{again} after {last}");
    }
    // One that ends while there is no server was sampled when that was lost, or when it ended.
    wait_until("the descriptors", || {
        (host.value("statsfs/server_descriptors") == Some(2)).then_some(())
    });
}

/// What a hand-made client is told, until the connection ends.
fn answers(socket: &Socket) -> Vec<String> {
    let (mut buffer, mut all) = (Buffer::default(), Vec::new());
    wait_until("the end", || {
        match socket.receive(&mut buffer, &mut Vec::new()) {
            Ok(Incoming::Message(ServerMessage::Refused { reason, .. })) => {
                all.push(reason.to_string())
            }
            Ok(Incoming::Message(_) | Incoming::Nothing) => {}
            Ok(Incoming::End) | Err(_) => return Some(()),
        }
        None
    });
    all
}

/// A client that has said hello.
fn client(host: &Host) -> (Socket, Registry) {
    let registry = Registry::new().unwrap();
    registry.create_source("top").unwrap().register().unwrap();
    let socket = Socket::connect(&host.socket()).unwrap();
    let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
    let segments = registry.segments().unwrap();
    socket.send(&ClientMessage::Hello(hello), &[segments[0].as_fd()]).unwrap();
    (socket, registry)
}

#[test]
fn false_statistics_are_refused_by_name_and_harm_nobody() {
    let host = Host::start();
    let running = parked().published_to(&host).start();
    let machine = running.machine();
    wait_parked(|| host.machines().contains(&machine).then(|| host.flat()), &machine);
    let before = host.flat();
    let (pipe, _writer) = io::pipe().unwrap();
    let named = host.beside("anon_inode:kvm-vm-stats");
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&named)
        .unwrap();
    let segment = Registry::new().unwrap().segments().unwrap().remove(0);
    let fds: [(OwnedFd, &str); 3] = [
        (pipe.into(), "pipe:["),
        (file.into(), "/anon_inode:kvm-vm-stats"),
        (segment, "memfd:statsfs-0"),
    ];
    for (fd, what) in &fds {
        let (socket, _registry) = client(&host);
        socket.send(&ClientMessage::Statistics { first: 1 }, &[fd.as_fd()]).unwrap();
        let told = answers(&socket);
        let [reason] = &told[..] else { panic!("{what}: {told:?}") };
        assert!(
            reason.contains("should be of KVM's statistics") && reason.contains(what),
            "{reason}"
        );
    }
    // Once, however often.
    let said = host.log().matches("should be of KVM's statistics").count();
    assert_eq!(said, 1, "{}", host.log());
    // And before anything else is said it has no place.
    let socket = Socket::connect(&host.socket()).unwrap();
    socket.send(&ClientMessage::Statistics { first: 1 }, &[fds[0].0.as_fd()]).unwrap();
    assert_eq!(answers(&socket), ["the message `statistics` has no place here"]);
    let exits = |flat: &Flat| flat.get("kvm/exits");
    assert_eq!(exits(&host.flat()), exits(&before));
}

#[test]
fn somebody_elses_statistics_are_not_used() {
    let host = Host::start();
    let running = parked().published_to(&host).start();
    let descriptors = 1 + u64::from(VCPUS);
    let in_use = |n: u64| {
        wait_until("the descriptors", || {
            (host.value("statsfs/server_descriptors") == Some(n)).then_some(())
        });
    };
    in_use(descriptors);
    // This process has got hold of one, and has a block that names it.
    let stats = KvmStats::of(running.pid()).unwrap();
    let registry = Registry::new().unwrap();
    let source = registry.create_source("thief").unwrap();
    source.register().unwrap();
    let (_, stolen) = stats.into_iter().next().unwrap();
    source.add_fd_group("kvm_vm", stolen.into_fd()).unwrap();
    let options =
        PublishOptions { socket: Some(host.socket()), public: true, ..Default::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(PATIENCE);
    assert!(matches!(state, PublishState::Published { .. }), "{state:?}");
    wait_until("it is left out", || {
        (host.value("statsfs/server_descriptors_left_out") == Some(1)).then_some(())
    });
    in_use(descriptors);
    assert!(host.log().contains(&format!("one is of kvm-{}", running.pid())), "{}", host.log());
    assert!(matches!(publisher.state(), PublishState::Published { .. }));
}

/// The statistics of a VM that the calling thread makes, and that goes with them.
fn statistics_of_a_new_vm() -> OwnedFd {
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let ask = |of: &dyn AsRawFd, request| {
        // SAFETY: both requests have no argument but a number, and make a descriptor.
        let fd = unsafe { libc::ioctl(of.as_raw_fd(), request, 0) };
        assert!(fd >= 0, "{request:#x}: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made it for this process.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    ask(&ask(&kvm, KVM_CREATE_VM), KVM_GET_STATS_FD)
}

#[test]
fn whichever_thread_has_made_a_vm_its_statistics_are_the_processs() {
    let host = Host::start();
    let registry = Registry::new().unwrap();
    let source = registry.create_source("machines").unwrap();
    source.register().unwrap();
    // The kernel says which thread it was. That one may be gone, if it was the first.
    let (fd, done) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let thread = thread::spawn(move || {
        fd.0.send(statistics_of_a_new_vm()).unwrap();
        let _ = done.1.recv();
    });
    source.add_fd_group("kvm_vm", fd.1.recv().unwrap()).unwrap();
    let options =
        PublishOptions { socket: Some(host.socket()), public: true, ..Default::default() };
    let publisher = registry.publish(options).unwrap();
    wait_until("its descriptor", || {
        (host.value("statsfs/server_descriptors") == Some(1)).then_some(())
    });
    drop(done.0);
    thread.join().unwrap();
    assert_eq!(host.value("machines/pages_4k"), Some(0));
    drop(publisher);
}

#[test]
fn what_no_block_has_is_closed_and_what_has_many_is_one() {
    let host = Host::start();
    let (socket, registry) = client(&host);
    let fd = statistics_of_a_new_vm();
    for first in 1..40 {
        socket.send(&ClientMessage::Statistics { first }, &[fd.as_fd()]).unwrap();
    }
    // What it is charged for it has until then.
    wait_until("they have come", || {
        let messages = host.value("statsfs/server_messages")?;
        (messages >= 40 && host.value("statsfs/server_descriptors") == Some(0)).then_some(())
    });
    assert_eq!(host.value("statsfs/server_descriptors_left_out"), Some(0), "{}", host.log());
    let open = || {
        let links = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().flatten();
        let is = |path: std::path::PathBuf| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("kvm-vm-stats"))
        };
        links.filter(|link| is(link.path())).count()
    };
    wait_until("they are closed", || (open() == 0).then_some(()));
    drop((socket, registry));
}

#[test]
fn beyond_the_limit_there_are_samples() {
    let host = Host::with(&["--max-descriptors", "2"]);
    let running = parked().published_to(&host).start();
    let machine = running.machine();
    wait_parked(|| host.machines().contains(&machine).then(|| host.flat()), &machine);
    let left_out = u64::from(VCPUS) - 1;
    wait_until("some are left out", || {
        (host.value("statsfs/server_descriptors_left_out") >= Some(left_out)).then_some(())
    });
    wait_until("the others", || {
        (host.value("statsfs/server_descriptors") == Some(2)).then_some(())
    });
    assert!(host.log().contains("the limit of 2 statistics descriptors"), "{}", host.log());
    // All the same the numbers are there, at the latest when the next sample was taken.
    let stats = KvmStats::of(running.pid()).unwrap();
    let vcpus = stats.iter().filter(|(id, _)| id.contains("/vcpu-"));
    let exits: u64 = vcpus.map(|(_, of)| of.get("exits")).sum();
    wait_until("all exits", || {
        (host.value(&format!("{machine}/exits")) == Some(exits)).then_some(())
    });
}

/// Has a kernel answer some calls of ioctl(2) with an error, or with 0.
fn without(command: &mut Command, request: u32, argument: Option<u32>, errno: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let unless = |k: u32, skip: u8| libc::sock_filter {
        jf: skip,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let give = |k: u32| statement(libc::BPF_RET | libc::BPF_K, k);
    // The number of the call, and the low halves of its second and third arguments.
    let mut program =
        vec![load(0), unless(libc::SYS_ioctl as u32, 5), load(24), unless(request, 3), load(32)];
    program.push(match argument {
        Some(argument) => unless(argument, 1),
        None => libc::sock_filter { jt: 0, jf: 0, ..unless(0, 0) },
    });
    program.extend([give(libc::SECCOMP_RET_ERRNO | errno), give(libc::SECCOMP_RET_ALLOW)]);
    // SAFETY: two system calls, of which the second reads the program, which is there.
    unsafe {
        command.pre_exec(move || {
            let filter =
                libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::syscall(libc::SYS_seccomp, mode, 0, &filter) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[test]
fn without_them_all_else_works_and_it_is_said_why() {
    const KVM_CHECK_EXTENSION: u32 = 0xae03;
    const KVM_GET_STATS_FD: u32 = 0xaece;
    const KVM_CAP_BINARY_STATS_FD: u32 = 203;
    let steps = [Step::new(Op::In8, 10, NO_PORT), end(0)];
    type Change = fn(&mut Command);
    let cases: [(&str, Change); 2] = [
        ("KVM has none (KVM_CAP_BINARY_STATS_FD, Linux 5.14)", |command| {
            without(command, KVM_CHECK_EXTENSION, Some(KVM_CAP_BINARY_STATS_FD), 0);
        }),
        ("KVM refuses them (KVM_GET_STATS_FD): Operation not permitted", |command| {
            without(command, KVM_GET_STATS_FD, None, libc::EPERM as u32);
        }),
    ];
    for (why, change) in cases {
        let ended =
            Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).with(change).run().assert(0);
        let flat = ended.flat();
        assert_eq!(flat.get(&format!("{}/user_exit_io_in", flat.machine())), 10);
        assert_eq!(flat.find("kvm/exits"), None);
        let told = ended.stderr.matches("KVM's own statistics are missing").count();
        assert_eq!(told, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
    // And nothing is said where they are.
    let ended = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).run().assert(0);
    assert!(!ended.stderr.contains("statistics"), "{}", ended.stderr);
    assert!(ended.flat().find("kvm/exits").is_some());
}
