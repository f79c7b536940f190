//! What clients of a real server send that is no segment and no message: whatever it is, they are refused with a
//! reason, others are served, and the server has nothing of it afterwards.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/honest.rs"]
mod honest;
#[path = "support/server.rs"]
mod server;
mod support;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use clients::{
    A, B, Hostile, NONE, SEALS, encoded, for_users, memfd, publishing_user, seal, sealed, send_raw,
};
use honest::Honest;
use statsfs::host::protocol::{ClientMessage, Hello, Socket};
use statsfs::host::server::{ClientState, RefusedFor};
use support::{Random, rounds, seed, until};

fn new_fd(fd: libc::c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and the caller's alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The statistics of a vCPU, which the kernel counts: `anon_inode:kvm-vcpu-stats:0`.
fn kvm_statistics() -> Option<OwnedFd> {
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
    const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").ok()?;
    // SAFETY: these take numbers, and make new descriptors.
    let ioctl = |fd: &dyn AsRawFd, request| unsafe { libc::ioctl(fd.as_raw_fd(), request, 0) };
    let vm = new_fd(ioctl(&kvm, KVM_CREATE_VM));
    let vcpu = new_fd(ioctl(&vm, KVM_CREATE_VCPU));
    Some(new_fd(ioctl(&vcpu, KVM_GET_STATS_FD)))
}

/// Descriptors of all kinds that are no segments.
fn no_segments() -> Vec<(String, OwnedFd)> {
    let mut all: Vec<(String, OwnedFd)> = Vec::new();
    let mut add = |what: &str, fd: OwnedFd| all.push((what.to_owned(), fd));
    let (read, write) = nix::unistd::pipe().unwrap();
    add("the reading end of a pipe", read);
    add("the writing end of a pipe", write);
    add("a socket", std::os::unix::net::UnixStream::pair().unwrap().0.into());
    add("a directory", File::open("/").unwrap().into());
    for path in ["/dev/zero", "/dev/null", "/proc/self/mem", "/sys/kernel/uevent_seqnum"] {
        add(path, File::open(path).unwrap().into());
    }
    add("a file", tempfile::tempfile().unwrap().into());
    // SAFETY: the path is a C string.
    add("a path", new_fd(unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_PATH) }));
    // SAFETY: plain system calls that make descriptors.
    unsafe {
        add("an epoll", new_fd(libc::epoll_create1(0)));
        add("an eventfd", new_fd(libc::eventfd(0, 0)));
        add("a timerfd", new_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)));
        let this = libc::getpid();
        add("a pidfd", new_fd(libc::syscall(libc::SYS_pidfd_open, this, 0) as libc::c_int));
    }
    match kvm_statistics() {
        Some(fd) => add("a vCPU's statistics", fd),
        None => eprintln!("without /dev/kvm, statistics of a vCPU are not tried"),
    }
    // All but one set of seals.
    let seals = [
        libc::F_SEAL_SHRINK,
        libc::F_SEAL_GROW,
        libc::F_SEAL_FUTURE_WRITE,
        libc::F_SEAL_WRITE,
        libc::F_SEAL_SEAL,
    ];
    for n in 0..1 << seals.len() {
        let of = |n: usize| (0..seals.len()).filter(move |bit| n >> bit & 1 == 1);
        let these = of(n).fold(0, |all, bit| all | seals[bit]);
        if these & SEALS == SEALS {
            continue;
        }
        let fd = memfd(libc::MFD_ALLOW_SEALING);
        File::from(fd.try_clone().unwrap()).write_all(&vec![0; 64 << 10]).unwrap();
        seal(&fd, these);
        add(&format!("a memfd with the seals {these:#x}"), fd);
    }
    add("a memfd that can not be sealed", memfd(0));
    // What the seals do not tell.
    let mut holes = File::from(memfd(libc::MFD_ALLOW_SEALING));
    holes.set_len(256 << 10).unwrap();
    holes.write_all(&[1; 4096]).unwrap();
    holes.seek(SeekFrom::Start(252 << 10)).unwrap();
    holes.write_all(&[1; 4096]).unwrap();
    let holes = OwnedFd::from(holes);
    seal(&holes, SEALS);
    add("a memfd with a hole", holes);
    add("a memfd that is too small", sealed(&[], 4096));
    add("a memfd of half a page more", sealed(&[], (256 << 10) + 2048));
    let huge = memfd(libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB);
    File::from(huge.try_clone().unwrap()).set_len(2 << 20).unwrap();
    seal(&huge, SEALS);
    add("a memfd of huge pages", huge);
    let large = memfd(libc::MFD_ALLOW_SEALING);
    File::from(large.try_clone().unwrap()).set_len(1 << 50).unwrap();
    seal(&large, SEALS);
    add("a memfd of a PiB", large);
    all
}

#[test]
fn whatever_is_no_segment_is_refused() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    // Warmed up: threads and memory that are there from the first refusal on.
    publishing_user(A, || Hostile::connect(server).hello(1, &[memfd(0).as_fd()]));
    // A line each 10 s for each reason.
    honest.during("descriptors of all kinds", server, 12, || {
        let all = no_segments();
        publishing_user(A, || {
            for (what, fd) in all {
                let hostile = Hostile::connect(server);
                hostile.hello(1, &[fd.as_fd()]);
                let reason = hostile.refusal();
                println!("{what}: {reason}");
                let says = reason.contains("segment") || reason.contains("bytes");
                assert!(says, "{what}: {reason:?}");
            }
        });
    });
    let named = format!("uid={A}");
    assert!(server.log().contains(&named), "{}", server.log());
}

#[test]
fn a_thousand_descriptors_are_counted_and_closed() {
    let server = &for_users(&["--max-segments", "64"]);
    let honest = Honest::start(server);
    let zeroes = sealed(&[], 16 << 10);
    let pipe = nix::unistd::pipe().unwrap().0;
    let many = |fd: &OwnedFd, n: usize| -> Vec<OwnedFd> {
        (0..n).map(|_| fd.try_clone().unwrap()).collect()
    };
    honest.during("a thousand descriptors", server, 8, || {
        publishing_user(A, || {
            for (what, fd) in [("memfds", &zeroes), ("pipes", &pipe)] {
                let fds = many(fd, 1000);
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                let hostile = Hostile::connect(server);
                hostile.hello(256, &borrowed[..16]);
                let mut first = 16;
                for fds in borrowed[16..].chunks(16) {
                    // Until it is refused, or whoever encodes it refuses to.
                    let message = ClientMessage::Segments { first };
                    if hostile.0.send(&message, fds).is_err() {
                        break;
                    }
                    first += fds.len() as u32;
                }
                let reason = hostile.refusal();
                println!("a thousand {what}: {reason}");
                assert!(reason.contains("segment"), "{reason}");
            }
            // More than a message may have.
            let fds = many(&zeroes, 253);
            for n in [17, 64, 253] {
                let hostile = Hostile::connect(server);
                let hello =
                    ClientMessage::Hello(Hello { publisher: 7, public: true, segments: 256 });
                send_raw(&hostile.0, &encoded(&hello, 1), &fds[..n]);
                let reason = hostile.refusal();
                assert!(reason.contains(&n.to_string()), "{n}: {reason}");
            }
            // Messages that take none.
            for message in [ClientMessage::Changed, ClientMessage::Goodbye, ClientMessage::Status] {
                let hostile = Hostile::connect(server);
                send_raw(&hostile.0, &encoded(&message, 0), &fds[..3]);
                let reason = hostile.refusal();
                assert!(reason.contains("descriptors"), "{message:?}: {reason}");
            }
        });
    });
    assert!(server.status().clients.iter().all(|client| client.uid == 0), "{:?}", server.status());
}

// ---- what is no message --------------------------------------------------------------------------

#[test]
fn silence_half_messages_and_floods_keep_nobody_waiting() {
    let seed = seed();
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let hello = Hello { publisher: 7, public: true, segments: 1 };
    let all = [
        encoded(&ClientMessage::Hello(hello), 1),
        encoded(&ClientMessage::Segments { first: 1 }, 1),
        encoded(&ClientMessage::Changed, 0),
        encoded(&ClientMessage::Goodbye, 0),
        encoded(&ClientMessage::Status, 0),
    ];
    let said = |socket: &Socket, bytes: &[u8]| {
        send_raw(socket, bytes, NONE);
    };
    honest.during("half messages and nonsense", server, 8, || {
        publishing_user(A, || {
            let mut random = Random::new(seed);
            for message in &all {
                for len in 0..message.len() {
                    said(&Hostile::connect(server).0, &message[..len]);
                }
            }
            for _ in 0..rounds(500) {
                let mut message = all[random.below(5) as usize].clone();
                for _ in 0..=random.below(4) {
                    let at = random.below(message.len() as u64) as usize;
                    message[at] = random.next() as u8;
                }
                message.resize(random.below(10_000) as usize, 7);
                let hostile = Hostile::connect(server);
                for _ in 0..random.below(8) {
                    said(&hostile.0, &message);
                }
            }
        });
    });
    honest.during("messages in any order", server, 8, || {
        publishing_user(A, || {
            let zeroes = sealed(&[], 16 << 10);
            let mut random = Random::new(seed);
            for _ in 0..rounds(300) {
                let hostile = Hostile::connect(server);
                for _ in 0..random.below(12) {
                    let n = random.below(5) as usize;
                    let fds = std::slice::from_ref(&zeroes);
                    send_raw(&hostile.0, &all[n], if n < 2 { fds } else { NONE });
                }
            }
        });
    });
    honest.during("floods of connections", server, 8, || {
        for user in [A, B] {
            publishing_user(user, || {
                for _ in 0..rounds(5000) {
                    let _ = Socket::connect(&server.socket());
                }
            });
        }
    });
    // Two users at a time, with all the connections that they may have, who say nothing.
    honest.during("silence", server, 8, || {
        let silent = [A, B].map(|user| {
            publishing_user(user, || {
                let connect = |_| Socket::connect(&server.socket()).ok();
                (0..3000).filter_map(connect).collect::<Vec<_>>()
            })
        });
        println!("{} and {} silent connections", silent[0].len(), silent[1].len());
        let is_over = || server.status().clients.iter().all(|client| client.uid == 0);
        until("they are parted with", is_over);
    });
    let limits = server.status().refused;
    assert!(limits.iter().any(|refusal| refusal.reason == RefusedFor::Silence), "{limits:?}");
}

#[test]
fn after_a_goodbye_nothing_is_heard() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    honest.during("more after a goodbye", server, 8, || {
        publishing_user(A, || {
            let zeroes = sealed(&[], 16 << 10);
            for n in 0..rounds(50) {
                let registry = clients::small_registry();
                let top = support::top(&registry);
                let slot = top.add_values::<support::Work>().unwrap();
                slot.update(|counters| counters.work_done.inc());
                let hostile = Hostile::connect(server);
                let segments = registry.segments().unwrap();
                let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
                let first = [segments[0].as_fd()];
                hostile.0.send(&ClientMessage::Hello(hello), &first).unwrap();
                if n % 2 == 0 {
                    until("it is in", || hostile.is_answered());
                }
                hostile.0.send(&ClientMessage::Goodbye, &[]).unwrap();
                for message in
                    [ClientMessage::Changed, ClientMessage::Goodbye, ClientMessage::Hello(hello)]
                {
                    let fds: &[BorrowedFd<'_>] =
                        if message.name() == "hello" { &[zeroes.as_fd()] } else { &[] };
                    let _ = hostile.0.send(&message, fds);
                }
                slot.update(|counters| counters.work_done.add(100));
            }
        });
        let is_over = || server.status().clients.iter().all(|client| client.uid == 0);
        until("they are folded", is_over);
    });
    // Each was counted once, whatever was counted after it had said that it would not.
    let counted = server.number("top/work_done");
    let (least, most) = (rounds(50) as u64, 101 * rounds(50) as u64);
    assert!((least..=most).contains(&counted), "{counted}");
    until("it stays so", || server.number("top/work_done") == counted);
    let clients = server.status().clients;
    assert!(clients.iter().all(|client| client.state == ClientState::Published), "{clients:?}");
}
