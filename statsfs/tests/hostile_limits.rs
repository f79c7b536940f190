//! A server that is short of something: whoever comes is told to try again, and does, nobody who is there loses
//! anything, and it goes on.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/honest.rs"]
mod honest;
#[path = "support/server.rs"]
mod server;
mod support;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clients::{
    A, B, Hostile, Machine, PUBLISHERS, as_user, directory, for_users, memfd, publishing_user,
};
use honest::Honest;
use server::Server;
use statsfs::host::PublishState;
use statsfs::host::protocol::{ClientMessage, Hello};
use statsfs::host::server::{ClientState, RefusedFor};
use statsfs::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};
use statsfs::{Registry, RegistryOptions};
use support::{below, rounds, until};

/// Gives the server another limit, as long as this is there.
struct Limited<'a> {
    server: &'a Server,
    what: libc::__rlimit_resource_t,
    before: libc::rlimit,
}

impl<'a> Limited<'a> {
    fn to(server: &'a Server, what: libc::__rlimit_resource_t, limit: u64) -> Self {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointers are to live limits, or null.
        let asked = unsafe { libc::prlimit(server.pid(), what, std::ptr::null(), &mut before) };
        assert_eq!(asked, 0);
        let limited = Self { server, what, before };
        limited.set(&libc::rlimit { rlim_cur: limit, ..before });
        limited
    }

    fn set(&self, limit: &libc::rlimit) {
        // SAFETY: as above.
        let set =
            unsafe { libc::prlimit(self.server.pid(), self.what, limit, std::ptr::null_mut()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        self.set(&self.before);
    }
}

fn address_space(server: &Server) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

fn is_to_try_again(machine: &Machine, why: &str) -> bool {
    matches!(machine.publisher.state(),
        PublishState::Refused { reason, again: true } if reason.contains(why))
}

fn is_published(machine: &Machine) -> bool {
    matches!(machine.publisher.state(), PublishState::Published { .. })
}

#[test]
fn without_room_for_a_mapping_a_process_comes_later() {
    let server = &Server::start();
    let honest = Honest::start(server);
    let large = || {
        let options = RegistryOptions { segment_size: 32 << 20, ..RegistryOptions::default() };
        Registry::with_options(options).unwrap()
    };
    let small = Machine::published(server, "small", true);
    small.count(5);
    let limit = Limited::to(server, libc::RLIMIT_AS, address_space(server) + (8 << 20));
    let comes = Machine::of(server, large(), "comes", true);
    comes.count(7);
    until("it is told so", || is_to_try_again(&comes, "cannot map"));
    honest.check("no room for a mapping", server);
    assert_eq!(server.number("kvm/work_done"), 5);
    let refused = server.status().refused;
    assert!(refused.iter().any(|r| r.reason == RefusedFor::Server), "{refused:?}");
    drop(limit);
    until("it comes by itself", || is_published(&comes));
    assert_eq!(server.number("kvm/work_done"), 12);
}

#[test]
fn who_has_all_that_it_may_comes_back_when_its_connection_is_lost() {
    let server = &for_users(&["--max-segments", "1", "--max-connections", "1"]);
    let registry = clients::small_registry();
    let slot = support::top(&registry).add_values::<support::Work>().unwrap();
    slot.update(|counters| counters.work_done.add(5));
    let segments = registry.segments().unwrap();
    let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
    let comes = || {
        let client = Hostile::connect(server);
        client.0.send(&ClientMessage::Hello(hello), &[segments[0].as_fd()]).unwrap();
        client
    };
    let of_a = || {
        let clients = server.status().clients.into_iter().filter(|client| client.uid == A);
        clients.collect::<Vec<_>>()
    };
    let is = |state| matches!(&of_a()[..], [client] if client.state == state);
    for _ in 0..3 {
        let client = publishing_user(A, comes);
        until("it is published", || is(ClientState::Published));
        let has = of_a()[0].has;
        assert_eq!((has.connections, has.segments), (1, 1));
        // What is new has no place.
        let other = publishing_user(A, || small_and_new(server));
        assert!(other.contains("the limit of 1 connections"), "{other}");
        drop(client);
        until("it is lost", || is(ClientState::Lost));
    }
    assert_eq!(server.number("top/work_done"), 5);
}

/// Publishes something new: what the server says to that.
fn small_and_new(server: &Server) -> String {
    let registry = clients::small_registry();
    support::top(&registry);
    let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
    let client = Hostile::connect(server);
    let segments = registry.segments().unwrap();
    let _ = client.0.send(&ClientMessage::Hello(hello), &[segments[0].as_fd()]);
    client.refusal()
}

#[test]
fn all_users_together_may_have_so_much() {
    let server = &for_users(&["--max-host-sources", "60"]);
    let honest = Honest::start(server);
    let machine = |user: u32, sources: usize| {
        publishing_user(user, || {
            let machine = Machine::new(server, &format!("of{user}"), true);
            let more = |n| below(&machine.registry, &machine.kvm, &format!("more{n}"));
            let more: Vec<_> = (0..sources).map(more).collect();
            (machine, more)
        })
    };
    let first = machine(A, 40);
    until("there is room for it", || is_published(&first.0));
    until("it is counted", || server.number("statsfs/server_sources") > 40);
    let second = machine(B, 50);
    let is_refused = || {
        let why = "all users together have reached the limit of 60 sources";
        server.status().refused.iter().any(|r| r.uid == B && r.text.starts_with(why))
    };
    until("there is none for it", is_refused);
    // Nobody else's is let go.
    assert!(is_published(&first.0));
    honest.check("no room for more", server);
    drop(second);
    // One that is too large by itself is not even taken in.
    let large = machine(B, 61);
    until("it is told so", || matches!(large.0.publisher.state(), PublishState::Refused { .. }));
}

#[test]
fn who_has_little_is_not_let_go_because_others_have_all() {
    let server = &for_users(&["--max-host-sources", "100"]);
    let honest = Honest::start(server);
    let more = |machine: &Machine, of: &str, n: usize| {
        let source = |n| below(&machine.registry, &machine.kvm, &format!("{of}{n}"));
        (0..n).map(source).collect::<Vec<_>>()
    };
    let [first, second] = [(A, 60), (B, 20)].map(|(user, n)| {
        publishing_user(user, || {
            let machine = Machine::published(server, &format!("of{user}"), true);
            let sources = more(&machine, &format!("more-of{user}-"), n);
            (machine, sources)
        })
    });
    first.0.count(3);
    until("they are counted", || server.number("statsfs/server_sources") > 80);
    // There is no room for all that this one is to have.
    let small = Machine::published(server, "small", true);
    let _more = more(&small, "more", 20);
    let why = format!("user {A} has most of them");
    let is_refused = |refused: Vec<statsfs::host::server::Refusal>| {
        refused.iter().any(|r| r.uid == A && r.text.contains(&why))
    };
    until("there is room again", || is_refused(server.status().refused));
    assert!(is_published(&small) && is_published(&second.0));
    assert!(server.path(&directory("more19")).exists());
    until("it is kept", || server.status().clients.iter().all(|client| client.uid != A));
    let new = Machine::published(server, "new", true);
    new.count(4);
    assert_eq!(server.number("kvm/work_done"), 7);
    honest.check("others had all", server);
}

#[test]
fn what_is_no_segment_is_not_held() {
    let server = &Server::start();
    // One that takes no memory, and of which more are to come.
    let sparse = memfd(libc::MFD_ALLOW_SEALING);
    nix::unistd::ftruncate(&sparse, 64 << 10).unwrap();
    clients::seal(&sparse, clients::SEALS);
    let hostile = Hostile::connect(server);
    hostile.hello(256, &[sparse.as_fd()]);
    let refusal = hostile.refusal();
    assert!(refusal.contains("it has a hole at 0"), "{refusal}");
}

/// What `resources/systemd/statsfs.service` reckons with: most that a source takes of the server's memory, and a byte
/// of a segment, whatever is in it.
const KIB_OF_A_SOURCE: u64 = 8;

#[test]
fn sources_take_no_more_memory_than_the_unit_reckons_with() {
    for (what, labels) in [("plain", 0), ("with long names, and all labels", 8)] {
        let server = &Server::start();
        let n = 4000 * rounds(1) as u64;
        let registry = Registry::with_options(RegistryOptions {
            segment_size: 1 << 20,
            ..RegistryOptions::default()
        })
        .unwrap();
        let top = support::top(&registry);
        let sources = (0..n).map(|n| {
            let name = if labels > 0 { format!("{n:0>63}") } else { format!("s{n}") };
            let label = |n: u32| (format!("{n:k>32}"), format!("{n:v>64}"));
            let source = (0..labels)
                .map(label)
                .fold(registry.source(&name), |source, (k, v)| source.label(&k, v));
            let source = source.create().unwrap();
            top.add_subordinate(&source).unwrap();
            let slot = source.add_values::<support::Work>().unwrap();
            (source, slot)
        });
        let sources: Vec<_> = sources.collect();
        let own = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let before = own();
        let publisher = registry.publish(clients::options(server, true)).unwrap();
        let last =
            format!("top/{}-{}/work_done", std::process::id(), sources[n as usize - 1].0.name());
        until("all is there", || server.path(&last).exists());
        let kib = own() - before;
        println!("{what}: {n} sources, {kib} KiB, {} bytes each", kib * 1024 / n);
        assert!(kib < n * KIB_OF_A_SOURCE, "{what}: {kib} KiB for {n} sources");
        drop(publisher);
    }
}

/// A group that takes much room, and has few records.
fn large_group() -> Arc<GroupDescriptor> {
    let group = (0..200).fold(GroupBuilder::new("fill"), |group, n| {
        let ty = ValueType::Histogram { buckets: 64, sum: true };
        group.value(Descriptor::new(format!("fill_{n}"), ty, Semantics::Cumulative))
    });
    group.build().unwrap()
}

#[test]
fn without_room_for_one_more_mapping_nothing_is_lost_that_is_there() {
    let server = &Server::start();
    let options = RegistryOptions { segment_size: 8 << 20, ..RegistryOptions::default() };
    let registry = Registry::with_options(options).unwrap();
    let machine = Machine::of(server, registry, "grows", true);
    until("it is in", || is_published(&machine));
    machine.count(5);
    assert_eq!(server.number("kvm/work_done"), 5);
    let limit = Limited::to(server, libc::RLIMIT_AS, address_space(server) + (4 << 20));
    let (group, mut slots) = (large_group(), Vec::new());
    while machine.registry.usage().segments < 2 {
        let source = below(&machine.registry, &machine.kvm, &format!("fill{}", slots.len()));
        slots.push(source.add_group(&group).unwrap());
    }
    until("it is said", || server.log().contains("cannot get all segments"));
    machine.count(5);
    assert_eq!(server.number(&format!("{}/work_done", directory("grows"))), 10);
    assert_eq!(server.number("kvm/work_done"), 10);
    assert!(is_published(&machine));
    drop(limit);
    let last = server.path(&directory(&format!("fill{}", slots.len() - 1)));
    until("all is there", || last.join("fill_199").exists());
    assert_eq!(server.number("kvm/work_done"), 10);
    assert!(is_published(&machine));
    assert_eq!(server.number("statsfs/server_refused_segment"), 0, "{}", server.log());
}

#[test]
fn without_room_for_descriptors_others_are_turned_away_and_come_later() {
    let server = &Server::start();
    let honest = Honest::start(server);
    let open = clients::open_files(server) as u64;
    let limit = Limited::to(server, libc::RLIMIT_NOFILE, open + 2);
    let comes = Machine::new(server, "comes", true);
    until("it is told so", || is_to_try_again(&comes, "too many files open"));
    let lines = server.log().lines().count();
    for _ in 0..rounds(300) {
        let _ = statsfs::host::protocol::Socket::connect(&server.socket());
    }
    honest.check("no room for descriptors", server);
    assert!(server.log().lines().count() < lines + 4, "{}", server.log());
    drop(limit);
    until("it comes by itself", || is_published(&comes));
}

#[test]
fn a_log_that_can_not_be_written_is_no_reason_to_end() {
    // Into a pipe that nobody reads any more, and into a file that is as large as it may be.
    let (read, write) = nix::unistd::pipe().unwrap();
    let servers = [Server::logging_to(write), Server::start()];
    drop(read);
    for server in servers {
        let honest = Honest::start(&server);
        let _limit = Limited::to(&server, libc::RLIMIT_FSIZE, 1);
        let hostile = Hostile::connect(&server);
        hostile.hello(1, &[memfd(0).as_fd()]);
        assert!(hostile.refusal().contains("segment"));
        honest.check("nothing can be said", &server);
        // Nor can anything be kept, which is said as well, in vain.
        let machine = Machine::published(&server, "new", true);
        machine.count(1);
        assert_eq!(server.number("kvm/work_done"), 1);
    }
}

// That whoever clears without an end is put off is shown in `shares`, however busy the machine is.
#[test]
fn clears_in_a_loop_keep_nobody_waiting() {
    // What is kept as a whole with each clear: the more there is, the longer it takes.
    let processes = rounds(100);
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let machines: Vec<_> =
        (0..processes).map(|n| Machine::published(server, &format!("m{n}"), true)).collect();
    for machine in &machines {
        machine.count(1);
    }
    std::fs::write(server.path("kvm/.stats/clear"), "0").unwrap();
    let own = as_user(A, A, &[PUBLISHERS], || Machine::published(server, "own", true));
    own.count(1);
    let own_file = server.path(&format!("{}/work_done", directory("own")));
    honest.during("clears in a loop", server, 8, || {
        let start = Instant::now();
        let (cleared, refused) = as_user(A, A, &[PUBLISHERS], || {
            let (mut cleared, mut refused) = (0, 0);
            while start.elapsed() < Duration::from_secs(3) * rounds(1) as u32 {
                match std::fs::write(&own_file, "0") {
                    Ok(()) => cleared += 1,
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
                        refused += 1;
                    }
                }
            }
            (cleared, refused)
        });
        let each = start.elapsed() / (cleared + refused);
        println!("{processes} processes: {cleared} clears, {each:?} each, {refused} put off");
        assert!(cleared > 0);
    });
    // Whoever is honest clears as ever.
    std::fs::write(server.path("kvm/work_done"), "0").unwrap();
}
