//! What each user has of the room that a service manager has for segments: whoever has too many for it loses nobody
//! else's, and keeps what there is room for.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{Read, Write};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use clients::{A, B, Machine, PUBLISHERS, READERS, directory, publishing_user, small_registry};
use server::Server;
use statsfs::Slot;
use statsfs::host::server::ClientState;
use support::child::{self, Shared, Writer};
use support::{Work, below, until};

/// Of what is kept, the server's own has so much.
const OWN: usize = 16;

/// A server that other users may publish to, with room for so many segments.
fn with_room_for(segments: usize) -> Server {
    let (readers, publishers) = (READERS.to_string(), PUBLISHERS.to_string());
    let args = ["--readers", &readers, "--socket-group", &publishers];
    Server::kept_of(OWN + segments, &args)
}

/// The segments that are kept, those for which there is no room, and for how many there is: as the server says, and
/// as it is.
fn kept(server: &Server) -> [u64; 3] {
    let numbers = ["kept_segments", "unkept_segments", "kept_room"];
    let numbers = numbers.map(|name| server.number(&format!("statsfs/server_{name}")));
    let names = server.holder().names();
    let held = names.iter().filter(|name| name.starts_with("seg.")).count() as u64;
    if held == numbers[0] { numbers } else { [held, u64::MAX, u64::MAX] }
}

fn are_published(server: &Server, n: usize) -> bool {
    let clients = server.status().clients;
    clients.len() == n && clients.iter().all(|client| client.state == ClientState::Published)
}

/// What the server has said of what is not kept.
fn unkept_lines(server: &Server) -> Vec<String> {
    let log = server.log();
    let said = log.lines().filter(|line| line.contains("not all segments of a process are kept"));
    said.map(str::to_owned).collect()
}

/// Publishes, and counts.
#[test]
#[ignore = "a process that the others start"]
fn counting_process() {
    let (_, mut socket, to) = child::in_child::<AtomicU64>();
    let registry = small_registry();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let slot = below(&registry, &kvm, "vm").add_values::<Work>().unwrap();
    let options = statsfs::host::PublishOptions { socket: Some(to.into()), ..Default::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(support::PATIENCE);
    assert!(matches!(state, statsfs::host::PublishState::Published { .. }), "{state:?}");
    slot.update(|counters| counters.work_done.add(1000));
    socket.write_all(&[1]).unwrap();
    let _ = socket.read(&mut [0]);
}

#[test]
fn who_has_more_than_there_is_room_for_leaves_the_others_theirs() {
    const MACHINES: usize = 30;
    let (start, mut server) = (Instant::now(), with_room_for(16));
    let of_a: Vec<_> = publishing_user(A, || {
        let one = |n| Machine::published(&server, &format!("vm{n}"), false);
        (0..MACHINES).map(one).inspect(|machine| machine.count(1)).collect()
    });
    until("A has half", || kept(&server) == [8, MACHINES as u64 - 8, 16]);
    // Once in a while, however many they are.
    let said = unkept_lines(&server);
    assert!(said.len() as u64 <= 1 + start.elapsed().as_secs() / 10, "{said:#?}");
    let (uid, pid) = (format!("uid={A} "), format!("pid={} ", std::process::id()));
    assert!(!said.is_empty());
    for line in &said {
        assert!(line.contains("WARN") && line.contains(&uid) && line.contains(&pid), "{line}");
        assert!(line.contains("raise `FileDescriptorStoreMax=`"), "{line}");
    }

    let (memory, to) = (Shared::<AtomicU64>::new(), server.socket().display().to_string());
    let mut of_b = Writer::start_as(B, PUBLISHERS, "counting_process", &memory, &to);
    of_b.socket.read_exact(&mut [0]).unwrap();
    until("B's is kept", || kept(&server) == [9, MACHINES as u64 - 8, 16]);
    server.kill();
    of_b.signal(libc::SIGKILL);
    of_b.wait();
    server.start_again();
    assert_eq!(server.number("kvm/.departed/work_done"), 1000);
    let there = server.number("kvm/work_done");
    assert!((1008..=1000 + MACHINES as u64).contains(&there), "{there}");
    until("all of A's have come back", || are_published(&server, MACHINES));
    assert_eq!(server.number("kvm/work_done"), 1000 + MACHINES as u64);

    // What there was before is A's still, and the rest is for others.
    until("A has half", || kept(&server) == [8, MACHINES as u64 - 8, 16]);
    let one_more = publishing_user(A, || Machine::published(&server, "more", false));
    until("it is not kept", || kept(&server) == [8, MACHINES as u64 - 7, 16]);
    let of_b = publishing_user(B, || Machine::published(&server, "other", false));
    until("B's is", || kept(&server) == [9, MACHINES as u64 - 7, 16]);
    let (log, uid) = (server.log(), format!("uid={B} "));
    assert!(!log.lines().any(|line| line.contains(&uid) && line.contains("WARN")), "{log}");
    drop((one_more, of_b, of_a));
    until("nobody is there", || kept(&server) == [0, 0, 16]);
}

/// Has it make so many segments, with 1 counted in each of the machines in them: how many are new.
fn grow(machine: &Machine, segments: usize) -> Vec<Slot<Work>> {
    let mut slots = Vec::new();
    while machine.registry.usage().segments < segments {
        let more = below(&machine.registry, &machine.kvm, &format!("more{}", slots.len()));
        let slot = more.add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(1));
        slots.push(slot);
    }
    slots
}

#[test]
fn a_process_that_grows_beyond_the_room_for_it_is_kept_as_far_as_there_is_some() {
    let mut server = with_room_for(6);
    let (other, grows) = publishing_user(A, || {
        ["other", "grows"].map(|name| Machine::published(&server, name, false)).into()
    });
    grows.count(5);
    let slots = grow(&grows, 4);
    until("there is no room for one", || kept(&server) == [3, 2, 6]);
    drop(other);
    until("there is now", || kept(&server) == [3, 1, 6]);
    let total = 5 + slots.len() as u64;
    until("all is there", || server.number("kvm/work_done") == total);
    let path = server.path(&format!("{}/work_done", directory("grows")));
    server.kill();
    server.start_again();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "5\n", "it is there at once");
    until("it has come back", || are_published(&server, 1));
    until("all is there again", || server.number("kvm/work_done") == total);
    until("as much is kept as before", || kept(&server) == [3, 1, 6]);
}

/// As [`counting_process`], but with 4 segments, and 1 counted in each of the machines in them.
#[test]
#[ignore = "a process that the others start"]
fn large_process() {
    let (counted, mut socket, to) = child::in_child::<AtomicU64>();
    let registry = small_registry();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let mut slots = Vec::new();
    while registry.usage().segments < 4 {
        let more = below(&registry, &kvm, &format!("vm{}", slots.len()));
        let slot = more.add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(1));
        slots.push(slot);
    }
    counted.store(slots.len() as u64, std::sync::atomic::Ordering::SeqCst);
    let options = statsfs::host::PublishOptions { socket: Some(to.into()), ..Default::default() };
    let _publisher = registry.publish(options).unwrap();
    socket.write_all(&[1]).unwrap();
    let _ = socket.read(&mut [0]);
}

#[test]
fn of_a_process_that_dies_with_the_server_counts_what_was_kept_and_once() {
    let mut server = with_room_for(6);
    let (memory, to) = (Shared::<AtomicU64>::new(), server.socket().display().to_string());
    let mut writer = Writer::start_as(A, PUBLISHERS, "large_process", &memory, &to);
    writer.socket.read_exact(&mut [0]).unwrap();
    until("three are kept", || kept(&server) == [3, 1, 6]);
    let all = memory.value.load(std::sync::atomic::Ordering::SeqCst);
    until("all is there", || server.number("kvm/work_done") == all);
    server.kill();
    writer.signal(libc::SIGKILL);
    writer.wait();
    server.start_again();
    let there = server.number("kvm/work_done");
    assert!(0 < there && there < all, "{there} of {all}");
    assert_eq!(server.number("kvm/.departed/work_done"), there);
    let log = server.log();
    let said = log.lines().find(|line| line.contains("what it counted in the others is lost"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains(&format!("pid={} uid={A} have=3 made=4", writer.pid())), "{said}");
    until("nothing of it is kept", || kept(&server) == [0, 0, 6]);
    server.kill();
    server.start_again();
    assert_eq!(server.number("kvm/work_done"), there);
}
