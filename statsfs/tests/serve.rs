//! A real server, and what clients of all kinds get of it: which limits there are, and that nobody is harmed by
//! those who break all rules.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use clients::{
    A, B, Hostile, Machine, PUBLISHERS, SEALS, as_user, directory, memfd, open_files, options,
    resident_kib, seal, sealed,
};
use server::Server;
use statsfs::host::protocol::{ClientMessage, Hello, Socket};
use statsfs::host::server::{ClientState, RefusedFor};
use statsfs::host::{PublishOptions, PublishState};
use statsfs::{Registry, RegistryOptions, Slot};
use support::{PATIENCE, Work, below, until};

#[test]
fn what_is_published_is_there_until_it_goes() {
    let server = Server::start();
    let one = Machine::published(&server, "one", false);
    one.count(3);
    assert_eq!(server.number(&format!("{}/work_done", directory("one"))), 3);
    assert_eq!(server.number("kvm/work_done"), 3);
    assert_eq!(
        std::fs::read_link(server.path("by-name/one")).unwrap(),
        Path::new("..").join(directory("one"))
    );
    // What comes later is there as well, also if it needs another segment.
    let mut slots: Vec<Slot<Work>> = Vec::new();
    for n in 0..300 {
        let source = below(&one.registry, &one.kvm, &format!("more{n}"));
        slots.push(source.add_values().unwrap());
    }
    assert!(one.registry.usage().segments > 1);
    slots[299].update(|counters| counters.work_done.add(4));
    let last = format!("{}/work_done", directory("more299"));
    until("the last one", || server.try_number(&last).is_ok());
    assert_eq!(server.number(&last), 4);
    // Another registry of the same process: the same name is taken, what it counts is in the totals.
    let two = Machine::published(&server, "one", false);
    two.count(10);
    assert_eq!(server.number("kvm/work_done"), 17);
    assert_eq!(server.number(&format!("{}/work_done", directory("one"))), 3);
    let status = server.status();
    assert_eq!(status.clients.len(), 2);
    assert!(status.clients.iter().all(|client| client.state == ClientState::Published));
    let has_all = || server.status().clients.iter().any(|client| client.has.sources == 302);
    until("they are counted", has_all);

    drop(two.publisher);
    // On a slow machine the goodbye is not waited for.
    until("what it counted stays", || {
        server.try_number("kvm/.departed/work_done").is_ok_and(|departed| departed == 10)
    });
    assert_eq!(server.number("kvm/work_done"), 17);
    drop(one.publisher);
    until("it has gone, too", || server.status().clients.is_empty());
    assert_eq!(server.number("kvm/.departed/work_done"), 17);
    // The kernel is told behind that.
    until("its directory is gone", || !server.path(&directory("one")).exists());
}

#[test]
fn without_a_server_nothing_waits_and_later_it_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new().unwrap();
    let kvm = support::top(&registry);
    let slot = kvm.add_values::<Work>().unwrap();
    let socket = directory.path().join("socket");
    let options = PublishOptions { socket: Some(socket.clone()), ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(PATIENCE);
    assert!(matches!(state, PublishState::Unreachable(_)), "{state:?}");
    slot.update(|counters| counters.work_done.add(5));
    let server = Server::start();
    std::os::unix::fs::symlink(server.socket(), &socket).unwrap();
    until("it is found", || matches!(publisher.state(), PublishState::Published { .. }));
    assert_eq!(server.number("top/work_done"), 5);
}

#[test]
fn every_limit_is_one_users_and_named_in_the_refusal() {
    let refusals = [
        (["--max-connections", "1"], "connections"),
        (["--max-segments", "1"], "segments"),
        (["--max-mib", "0"], "bytes"),
        (["--max-sources", "3"], "sources"),
    ];
    for (limit, what) in refusals {
        let group = PUBLISHERS.to_string();
        let mut args = vec!["--socket-group", &group];
        args.extend(limit);
        let server = &Server::with(&args);
        let (first, second) = as_user(A, A, &[PUBLISHERS], || {
            let machines = (Machine::new(server, "one", true), Machine::new(server, "two", true));
            machines.0.publisher.wait_tried(PATIENCE);
            machines.1.publisher.wait_tried(PATIENCE);
            machines
        });
        let is_refused = |machine: &Machine| {
            let state = machine.publisher.state();
            matches!(&state, PublishState::Refused { reason, .. }
                if reason.contains(what) && reason.contains(limit[1]) && reason.contains(&A.to_string()))
        };
        if what == "sources" {
            // Found out when they are counted: whoever has more than fits.
            for n in 0..3 {
                below(&first.registry, &first.kvm, &format!("more{n}"));
            }
        }
        until(&format!("a refusal for {what}"), || is_refused(&first) || is_refused(&second));
        let refused = server.status().refused;
        assert!(refused.iter().any(|r| r.reason == RefusedFor::Limit && r.text.contains(what)));
        assert!(server.log().contains(what), "{}", server.log());
        if what != "bytes" {
            // It is not another user's limit.
            let other = as_user(B, B, &[PUBLISHERS], || Machine::published(server, "other", true));
            other.count(7);
            assert_eq!(server.number(&format!("{}/work_done", directory("other"))), 7);
        }
    }
}

// ---- who breaks the rules ------------------------------------------------------------------------

#[test]
fn what_breaks_the_rules_is_refused_with_a_reason_and_harms_nobody() {
    let server = &Server::start();
    let honest = Machine::published(server, "honest", true);
    let honest_file = format!("{}/work_done", directory("honest"));
    let mut counted = 0;
    let mut check_honest = || {
        honest.count(1);
        counted += 1;
        assert_eq!(server.number(&honest_file), counted, "the server:\n{}", server.log());
    };
    let open_before = open_files(server);

    let pipe = nix::unistd::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let hugetlb = memfd(libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB);
    seal(&hugetlb, SEALS & !libc::F_SEAL_FUTURE_WRITE);
    let unsealed = memfd(libc::MFD_ALLOW_SEALING);
    let half_sealed = memfd(libc::MFD_ALLOW_SEALING);
    seal(&half_sealed, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let empty = memfd(libc::MFD_ALLOW_SEALING);
    seal(&empty, SEALS);
    let zeroes = sealed(&[], 256 << 10);
    let nonsense = sealed(b"STATSFS1 and then nothing that makes sense", 256 << 10);
    let bad: [(&str, &OwnedFd, &str); 8] = [
        ("a pipe", &pipe.0, "not"),
        ("a file", &file.into(), ""),
        ("huge pages", &hugetlb, ""),
        ("a memfd without seals", &unsealed, "seal"),
        ("a memfd without all seals", &half_sealed, "seal"),
        ("an empty memfd", &empty, "size"),
        ("zeroes", &zeroes, ""),
        ("nonsense", &nonsense, ""),
    ];
    for (what, fd, why) in bad {
        let hostile = Hostile::connect(server);
        hostile.hello(1, &[fd.as_fd()]);
        let reason = hostile.refusal();
        println!("{what}: {reason}");
        assert!(reason.contains("segment") && reason.contains(why), "{what}: {reason}");
        check_honest();
    }

    // Messages that are none, out of turn, or that came with what they must not.
    type Say<'a> = (&'a str, &'a dyn Fn(&Socket), &'a str);
    let raw = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |socket: &Socket| {
            nix::sys::socket::send(
                socket.as_fd().as_raw_fd(),
                &bytes,
                nix::sys::socket::MsgFlags::empty(),
            )
            .unwrap();
        }
    };
    let many: Vec<_> = (0..253).map(|_| pipe.0.as_fd().try_clone_to_owned().unwrap()).collect();
    let says: [Say<'_>; 8] = [
        ("one byte", &raw(b"S"), "header"),
        ("half a header", &raw(b"SFSP\x01\x00"), "header"),
        ("another magic", &raw(&[7; 16]), "SFSP"),
        ("10,000 bytes", &raw(&[0; 10_000]), ""),
        ("changed before hello", &|s| s.send(&ClientMessage::Changed, &[]).unwrap(), "no place"),
        ("goodbye before hello", &|s| s.send(&ClientMessage::Goodbye, &[]).unwrap(), "no place"),
        (
            "segments before hello",
            &|s| s.send(&ClientMessage::Segments { first: 1 }, &[zeroes.as_fd()]).unwrap(),
            "no place",
        ),
        (
            "253 descriptors",
            &|s| {
                let fds: Vec<_> = many.iter().map(AsRawFd::as_raw_fd).collect();
                let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
                nix::sys::socket::sendmsg::<()>(
                    s.as_fd().as_raw_fd(),
                    &[std::io::IoSlice::new(b"SFSP")],
                    &rights,
                    nix::sys::socket::MsgFlags::empty(),
                    None,
                )
                .unwrap();
            },
            "",
        ),
    ];
    for (what, say, why) in says {
        let hostile = Hostile::connect(server);
        say(&hostile.0);
        let reason = hostile.refusal();
        println!("{what}: {reason}");
        assert!(!reason.is_empty() && reason.contains(why), "{what}: {reason}");
        check_honest();
    }

    // Somebody else's segments.
    let hostile = Hostile::connect(server);
    let theirs = honest.registry.segments().unwrap();
    let hello = Hello { publisher: honest.registry.publisher(), public: true, segments: 1 };
    // This very process, so that it counts as having come back; another one must not.
    let socket = server.socket();
    let reason = in_another_process(|| {
        let another = Hostile(Socket::connect(&socket).unwrap());
        another.0.send(&ClientMessage::Hello(hello), &[theirs[0].as_fd()]).unwrap();
        another.refusal()
    });
    assert!(reason.contains(&format!("published by process {}", std::process::id())), "{reason}");
    check_honest();

    // Silence, of many at once, and a hello that is never completed.
    let silent: Vec<_> = (0..500).map(|_| Hostile::connect(server)).collect();
    hostile.hello(3, &[zeroes.as_fd()]);
    check_honest();
    assert!(silent[0].refusal().contains("5 s"));
    assert!(hostile.refusal().contains("5 s"));
    for one in &silent {
        one.refusal();
    }
    check_honest();
    // A flood: thousands that come and go.
    for _ in 0..support::rounds(3000) {
        let _ = Socket::connect(&server.socket());
    }
    check_honest();

    until("nothing of all that is left", || open_files(server) <= open_before);
    let status = server.status();
    assert_eq!(status.clients.len(), 1);
    assert!(status.refused.len() <= 64);
    // Each kind once in ten seconds, whoever and however often.
    let lines = server.log().lines().filter(|line| line.contains("WARN")).count();
    assert!(lines < 40, "{lines} warnings:\n{}", server.log());
    println!("{} KiB resident", resident_kib(server));
    let refused: u64 = ["protocol", "silence", "limit", "segment", "twice", "identity", "server"]
        .map(|reason| server.number(&format!("statsfs/server_refused_{reason}")))
        .iter()
        .sum();
    assert!(refused >= 500 + 8 + 8 + 2, "{refused}");
}

/// Runs `f` in a forked child, and gives what it says.
fn in_another_process(f: impl FnOnce() -> String) -> String {
    use std::io::{Read, Write};
    let (read, write) = nix::unistd::pipe().unwrap();
    // SAFETY: the child runs `f`, which connects, sends, receives and allocates, and _exit(2); glibc's malloc
    // can be used after fork(2).
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        let said = said.unwrap_or_else(|_| "it panicked".to_owned());
        let _ = std::fs::File::from(write).write_all(said.as_bytes());
        // SAFETY: a plain system call.
        unsafe { libc::_exit(0) };
    }
    drop(write);
    let mut said = String::new();
    std::fs::File::from(read).read_to_string(&mut said).unwrap();
    // SAFETY: a plain system call; the pointer may be null.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
    said
}

#[test]
fn a_registry_may_be_anybodys_but_only_one_publishes_it() {
    let server = &Server::start();
    let small = RegistryOptions { segment_size: 16 << 10, ..RegistryOptions::default() };
    let registry = Registry::with_options(small).unwrap();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let slot = kvm.add_values::<Work>().unwrap();
    let publisher = registry.publish(options(server, true)).unwrap();
    assert!(matches!(publisher.wait_tried(PATIENCE), PublishState::Published { .. }));
    slot.update(|counters| counters.work_done.add(3));
    assert!(matches!(
        registry.publish(options(server, true)),
        Err(statsfs::host::PublishError::Twice)
    ));
    // The same process once more: as after a lost connection, the new one takes over, and loses it again to
    // the publisher, which connects once more.
    let again = Hostile::connect(server);
    let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
    let segments = registry.segments().unwrap();
    again.0.send(&ClientMessage::Hello(hello), &[segments[0].as_fd()]).unwrap();
    until("it has been taken over", || server.number("statsfs/server_rejoined") == 2);
    until("it is back", || matches!(publisher.state(), PublishState::Published { .. }));
    assert_eq!(server.number("kvm/work_done"), 3);
    // What is new is sent over the new connection.
    let more: Vec<Slot<Work>> =
        (0..200).map(|n| below(&registry, &kvm, &format!("s{n}")).add_values().unwrap()).collect();
    assert!(registry.usage().segments > 2);
    more[199].update(|counters| counters.work_done.add(4));
    until("the last one", || server.number("kvm/work_done") == 7);
    drop(publisher);
    until("it is over", || server.status().clients.is_empty());
    assert_eq!(server.number("kvm/.departed/work_done"), 7);
    // What was folded can not come again: it would be counted twice.
    let third = registry.publish(options(server, true)).unwrap();
    let state = third.wait_tried(Duration::from_secs(60));
    assert!(matches!(&state, PublishState::Refused { again: false, .. }), "{state:?}");
    assert_eq!(server.number("kvm/work_done"), 7);
}

#[test]
fn coming_back_frees_nothing() {
    let server = &Server::with(&["--max-segments", "4"]);
    let small = RegistryOptions { segment_size: 16 << 10, ..RegistryOptions::default() };
    let registry = Registry::with_options(small).unwrap();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let mut slots = Vec::new();
    while registry.usage().segments < 3 {
        let source = below(&registry, &kvm, &format!("s{}", slots.len()));
        slots.push(source.add_values::<Work>().unwrap());
    }
    slots[0].update(|counters| counters.work_done.add(5));
    let segments = registry.segments().unwrap();
    let connect = |n: usize| {
        let client = Hostile::connect(server);
        let hello = Hello { publisher: registry.publisher(), public: true, segments: n as u32 };
        let fds: Vec<_> = segments[..n].iter().map(AsFd::as_fd).collect();
        client.0.send(&ClientMessage::Hello(hello), &fds).unwrap();
        client
    };
    let first = connect(3);
    until("it is in", || server.try_number("kvm/work_done").is_ok_and(|done| done == 5));
    // It comes back with one of its three.
    let second = connect(1);
    until("it is taken over", || server.number("statsfs/server_rejoined") == 1);
    drop(first);
    assert_eq!(server.status().clients[0].has.segments, 3);
    assert_eq!(server.number("kvm/work_done"), 5);
    // So there is room for one, and for no other.
    let one = Machine::published(server, "one", true);
    let two = Machine::new(server, "two", true);
    let state = two.publisher.wait_tried(PATIENCE);
    let is_refused = |state: &PublishState| matches!(state, PublishState::Refused { reason, again: true } if reason.contains("segments"));
    assert!(is_refused(&state), "{state:?}");

    // Whoever grows beyond the limit is told, but goes on to be counted.
    one.count(1);
    let mut more = Vec::new();
    while one.registry.usage().segments < 2 {
        let source = below(&one.registry, &one.kvm, &format!("more{}", more.len()));
        more.push(source.add_values::<Work>().unwrap());
    }
    until("it is refused", || is_refused(&one.publisher.state()));
    one.count(10);
    assert_eq!(server.number("kvm/work_done"), 16);
    drop((second, two));
}

#[test]
fn a_server_gives_up_the_rights_that_it_does_not_need_any_more() {
    let server = Server::start();
    // It has been read, and somebody has come and gone.
    drop(Machine::published(&server, "one", true).publisher);
    let (look, to_end) = (1u64 << 19, 1u64 << 21 | 1 << 1);
    let mut seen = BTreeSet::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        let name = field("Name:").to_owned();
        let may = if name == "statsfs" || name == "statsfs-close" { look | to_end } else { look };
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
            let has = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(has & !may, 0, "{name} has {set} {has:x}");
        }
        seen.insert(name);
    }
    for name in ["statsfs", "statsfs-worker", "statsfs-fuse-0", "fuser-0", "statsfs-inval"] {
        assert!(seen.contains(name), "{name} is not among {seen:?}");
    }
}
