//! Processes that write what they like into the segments that a real server reads, at full speed, change their
//! structure all the time, and take others' names: the server reads or refuses them, in a bounded part of its time,
//! and whoever is honest is shown as if they were not there.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/honest.rs"]
mod honest;
#[path = "support/server.rs"]
mod server;
mod support;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clients::{A, B, Hostile, PUBLISHERS, SEALS, for_users, memfd, seal, small_registry};
use honest::{Honest, Resources};
use server::Server;
use statsfs::host::protocol::{ClientMessage, Hello, Socket};
use statsfs::host::{PublishOptions, PublishState};
use statsfs::segment::layout::{HEADER_SIZE, UNIT, UNIT_WORDS, header, word};
use statsfs::{Registry, Slot, Source, stats};
use support::child::{self, Shared, Writer};
use support::{PATIENCE, Random, StopAtEnd, Work, below, rounds, seed, until};

/// What hostile processes say of what they have done.
struct Done {
    rounds: AtomicU64,
    refused: AtomicU64,
}

// ---- what they do --------------------------------------------------------------------------------

/// A copy of a segment that can still be written to, whoever has it.
struct Copy {
    fd: OwnedFd,
    words: &'static [AtomicU64],
}

impl Copy {
    fn of(segment: &OwnedFd) -> Self {
        use std::os::unix::fs::FileExt;
        let from = std::fs::File::from(segment.try_clone().unwrap());
        let mut bytes = vec![0; from.metadata().unwrap().len() as usize];
        from.read_exact_at(&mut bytes, 0).unwrap();
        let fd = memfd(libc::MFD_ALLOW_SEALING);
        std::fs::File::from(fd.try_clone().unwrap()).write_all_at(&bytes, 0).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice, never unmapped, of words that everybody
        // accesses atomically; the file has as many bytes, and can not shrink once it is sealed.
        let words = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                bytes.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            std::slice::from_raw_parts(at.cast::<AtomicU64>(), bytes.len() / 8)
        };
        seal(&fd, SEALS);
        Self { fd, words }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.words[offset / 8]
    }

    fn change(&self) {
        self.word(header::CHANGES).fetch_add(1, Relaxed);
    }

    /// Writes something somewhere: mostly what may well mean something where it does.
    fn scribble(&self, random: &mut Random, original: &[u64]) {
        let units = self.word(header::UNITS).load(Relaxed).clamp(1, 64) + 2;
        let unit = |random: &mut Random| HEADER_SIZE + random.below(units) as usize * UNIT;
        let value = match random.below(6) {
            0 => random.below(16),
            1 => u64::MAX - random.below(16),
            2 => (random.below(self.words.len() as u64 / 16) * 128) | (random.below(5) << 39),
            3 => original[random.below(original.len() as u64) as usize],
            4 => 1 << random.below(64),
            _ => random.next(),
        };
        match random.below(16) {
            0 => self.word(header::UNITS).store(value % 100_000, Relaxed),
            1 => self.word(header::SEGMENTS).store(value % 300, Relaxed),
            2 => drop(self.word(header::FOLDS).fetch_add(1, Relaxed)),
            3 => self.word(header::MAGIC + random.below(16) as usize * 8).store(value, Relaxed),
            4 => {
                let at = random.below(self.words.len() as u64) as usize;
                self.words[at].store(value, Relaxed);
            }
            5..10 => {
                let at = unit(random) + random.below(UNIT_WORDS as u64) as usize * 8;
                self.word(at).store(value, Relaxed);
            }
            10..12 => {
                let at = unit(random) + random.below(UNIT_WORDS as u64) as usize * 8;
                self.word(at).fetch_xor(1 << random.below(64), Relaxed);
            }
            12 => {
                let (from, to) = (unit(random), unit(random));
                for n in (8..UNIT).step_by(8) {
                    self.word(to + n).store(self.word(from + n).load(Relaxed), Relaxed);
                }
            }
            13 => drop(self.word(unit(random) + word::GENERATION * 8).fetch_add(2, Relaxed)),
            14 => drop(self.word(unit(random) + word::GENERATION * 8).fetch_add(1, Relaxed)),
            _ => self.restore(original),
        }
        self.change();
    }

    /// All as it was.
    fn restore(&self, original: &[u64]) {
        self.words.iter().zip(original).for_each(|(word, was)| word.store(*was, Relaxed));
    }
}

/// A registry with some of everything, and slots that count in it.
fn registry(top: &str, sources: usize) -> (Registry, Vec<Slot<Work>>) {
    let registry = small_registry();
    let top = registry.source(top).label("kind", "hostile").create().unwrap();
    top.register().unwrap();
    let mut slots = vec![top.add_values().unwrap()];
    for n in 0..sources {
        let source = below(&registry, &top, &format!("s{n}"));
        let inner = below(&registry, &source, "inner");
        slots.push(source.add_values().unwrap());
        slots.push(inner.add_values().unwrap());
        if n % 4 == 3 {
            source.revoke().unwrap();
        }
    }
    (registry, slots)
}

/// Publishes copies of a registry's segments.
fn publish_copies(registry: &Registry, to: &Path) -> (Vec<Copy>, Hostile) {
    let copies: Vec<_> = registry.segments().unwrap().iter().map(Copy::of).collect();
    let hostile = Hostile(Socket::connect(to).unwrap());
    let hello =
        Hello { publisher: registry.publisher(), public: true, segments: copies.len() as u32 };
    let fds: Vec<_> = copies.iter().map(|copy| copy.fd.as_fd()).collect();
    let _ = hostile.0.send(&ClientMessage::Hello(hello), &fds);
    (copies, hostile)
}

/// Publishes one segment after the other, and writes into each at full speed, from two threads, until it is
/// refused or enough.
fn scribble(to: &Path, seed: u64, done: &Done, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    while !stop.load(Relaxed) {
        let (registry, _slots) = registry("mess", random.below(12) as usize);
        let (copies, hostile) = publish_copies(&registry, to);
        let copy = &copies[0];
        let original: Vec<_> = copy.words.iter().map(|word| word.load(Relaxed)).collect();
        if !random.one_in(4) {
            until("it is in, or refused", || hostile.is_answered());
        }
        let end = Instant::now() + Duration::from_millis(50 + random.below(300));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut random = Random::new(random.next());
                let (original, is_over) = (&original, &is_over);
                scope.spawn(move || {
                    while !is_over.load(Relaxed) {
                        copy.scribble(&mut random, original);
                    }
                });
            }
            let _stop = StopAtEnd(&is_over);
            while Instant::now() < end && hostile.0.send(&ClientMessage::Changed, &[]).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        if hostile.0.send(&ClientMessage::Goodbye, &[]).is_err() {
            done.refused.fetch_add(1, Relaxed);
        }
        done.rounds.fetch_add(1, Relaxed);
    }
}

/// Says that something has changed, all the time, and nothing has; or that something was folded.
fn bump(to: &Path, seed: u64, done: &Done, stop: &AtomicBool) {
    let (registry, _slots) = registry("bump", 100);
    let (copies, hostile) = publish_copies(&registry, to);
    until("it is in", || hostile.is_answered());
    let word = if seed.is_multiple_of(2) { header::CHANGES } else { header::FOLDS };
    while !stop.load(Relaxed) {
        copies[0].word(word).fetch_add(1, Relaxed);
        done.rounds.fetch_add(1, Relaxed);
    }
}

/// Makes sources and removes them, all the time.
fn storm(to: &Path, seed: u64, done: &Done, stop: &AtomicBool) {
    let (registry, _slots) = registry("storm", 100);
    let options = PublishOptions { socket: Some(to.into()), ..Default::default() };
    let publisher = registry.publish(options).unwrap();
    publisher.wait_tried(PATIENCE);
    let top = registry.create_source("blown").unwrap();
    top.register().unwrap();
    for n in (seed..).take_while(|_| !stop.load(Relaxed)) {
        let source = below(&registry, &top, &format!("s{n}"));
        if let Ok(slot) = source.add_values::<Work>() {
            slot.update(|counters| counters.work_done.inc());
        }
        source.revoke().unwrap();
        done.rounds.fetch_add(1, Relaxed);
    }
    drop(publisher);
}

/// Comes and goes, with a goodbye or without, as fast as it can.
fn rejoin(to: &Path, seed: u64, done: &Done, stop: &AtomicBool) {
    let (registry, _slots) = registry("rejoin", 100);
    for n in (seed..).take_while(|_| !stop.load(Relaxed)) {
        let again = (n % 8 > 0).then(small_registry);
        let registry = again.as_ref().unwrap_or(&registry);
        if again.is_some() {
            support::top(registry).add_values::<Work>().unwrap();
        }
        let segments = registry.segments().unwrap();
        let fds: Vec<_> = segments.iter().map(AsFd::as_fd).collect();
        let hello =
            Hello { publisher: registry.publisher(), public: true, segments: fds.len() as u32 };
        let Ok(socket) = Socket::connect(to) else { continue };
        let hostile = Hostile(socket);
        let _ = hostile.0.send(&ClientMessage::Hello(hello), &fds);
        if n % 4 > 0 {
            until("it is in, or refused", || hostile.is_answered());
        }
        if n % 2 > 0 && n % 8 > 0 {
            let _ = hostile.0.send(&ClientMessage::Goodbye, &[]);
        }
        done.rounds.fetch_add(1, Relaxed);
    }
}

/// Asks for the status, all the time, and reads the answers.
fn ask(to: &Path, _: u64, done: &Done, stop: &AtomicBool) {
    let mut sockets: Vec<_> = (0..64).filter_map(|_| Socket::connect(to).ok()).collect();
    let mut buffer = statsfs::host::protocol::Buffer::default();
    while !stop.load(Relaxed) {
        for socket in &mut sockets {
            use statsfs::host::protocol::{Incoming, ServerMessage};
            let _ = socket.send(&ClientMessage::Status, &[]);
            loop {
                match socket.receive::<ServerMessage>(&mut buffer, &mut Vec::new()) {
                    Ok(Incoming::Message(_)) => drop(done.rounds.fetch_add(1, Relaxed)),
                    Ok(Incoming::Nothing) => break,
                    _ => {
                        // It had too long to introduce itself.
                        let Ok(next) = Socket::connect(to) else { break };
                        *socket = next;
                        break;
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "a process that the others start"]
fn hostile_process() {
    let (done, mut socket, mode) = child::in_child::<Done>();
    let [what, uid, seed, to] = mode.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
    let (uid, seed): (u32, u64) = (uid.parse().unwrap(), seed.parse().unwrap());
    let to = PathBuf::from(to);
    let what = match what {
        "scribble" => scribble,
        "bump" => bump,
        "storm" => storm,
        "rejoin" => rejoin,
        "ask" => ask,
        other => panic!("{other}"),
    };
    clients::become_user(uid, uid, &[PUBLISHERS]);
    // So many are not to take the processors from the server: what they cost it is what is tried.
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a live parameter.
    assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &none) }, 0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = StopAtEnd(&stop);
            let _ = socket.read(&mut [0]);
        });
        let _stop = StopAtEnd(&stop);
        what(&to, seed, done, &stop);
    });
    std::process::exit(0);
}

/// So many processes of users that do this.
struct Hostiles {
    writers: Vec<Writer>,
    done: Shared<Done>,
}

impl Hostiles {
    fn start(server: &Server, what: &str, users: &[u32], n: u64, seed: u64) -> Self {
        let done = Shared::new();
        let writers = (0..n).zip(users.iter().cycle()).map(|(n, uid)| {
            let seed = (seed >> 8) + n;
            let mode = format!("{what} {uid} {seed} {}", server.socket().display());
            Writer::start("hostile_process", &done, &mode)
        });
        Self { writers: writers.collect(), done }
    }

    /// Waits until each has done so much, on average.
    fn wait(&self, rounds: u64) {
        let all = rounds * self.writers.len() as u64;
        until("they do what they do", || self.done.value.rounds.load(Relaxed) >= all);
    }

    fn stop(mut self) {
        for writer in &mut self.writers {
            let _ = writer.socket.shutdown(std::net::Shutdown::Both);
        }
        for writer in &mut self.writers {
            writer.wait();
        }
    }
}

/// Everything of some users is gone.
fn are_gone(server: &Server) {
    until("all that is hostile is gone", || {
        server.status().clients.iter().all(|client| client.uid == 0)
    });
}

// ---- what comes of it ----------------------------------------------------------------------------

#[test]
fn structure_that_is_written_to_while_it_is_read_harms_nobody() {
    let seed = seed();
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    // Lines: segments refused, protocol, let go, left out.
    honest.during("scribbling processes", server, 40, || {
        let hostiles = Hostiles::start(server, "scribble", &[A, B], 2, seed);
        hostiles.wait(rounds(8) as u64);
        // Whoever looks at everything, and at what they have, in the meantime.
        for _ in 0..rounds(5) {
            let _ = std::fs::read(server.path(".stats/flat"));
            let _ = std::fs::read(server.path("mess/.stats/flat"));
            let _ = std::fs::read_dir(server.path("mess")).map(Iterator::count);
            let _ = std::fs::read_dir(server.path("by-name")).map(Iterator::count);
            thread::sleep(Duration::from_millis(20));
        }
        let done = hostiles.done.value;
        let (all, refused) = (done.rounds.load(Relaxed), done.refused.load(Relaxed));
        println!("{all} segments written to, {refused} refused while they were");
        assert!(refused > 0);
        hostiles.stop();
        are_gone(server);
    });
    assert!(server.log().contains(&format!("uid={A}")), "{}", server.log());
}

#[test]
fn many_that_are_let_go_at_once_are_forgotten_at_once() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let n = 40;
    let of_a = clients::as_user(A, A, &[PUBLISHERS], || {
        let publish = |_| {
            let (registry, _slots) = registry("mess", 0);
            let (copies, hostile) = publish_copies(&registry, &server.socket());
            until("it is in", || hostile.is_answered());
            (copies, hostile)
        };
        (0..n).map(publish).collect::<Vec<_>>()
    });
    let commits = || server.number("statsfs/state_commits");
    let before = commits();
    // They are all seen by the same look.
    // SAFETY: plain system calls; the child has not been waited for, so the process id is its.
    let signal = |signal| assert_eq!(unsafe { libc::kill(server.pid(), signal) }, 0);
    signal(libc::SIGSTOP);
    for (copies, _) in &of_a {
        copies[0].word(HEADER_SIZE + word::HEAD * 8).store(u64::MAX, Relaxed);
        copies[0].word(HEADER_SIZE + word::GENERATION * 8).fetch_add(2, Relaxed);
        copies[0].change();
    }
    signal(libc::SIGCONT);
    are_gone(server);
    honest.check("they are let go", server);
    let commits = commits() - before;
    assert!(commits < n / 2, "{commits} commits");
    assert_eq!(server.number("statsfs/server_refused_segment"), n);
}

/// A part of the server's time.
fn share(before: &Resources, after: &Resources, during: Duration) -> f64 {
    (after.cpu - before.cpu).as_secs_f64() / during.as_secs_f64()
}

/// What looking at a process that changes all the time may cost of a processor's time, and at all of them together:
/// one part in so many, and of how much time in advance.
const ONE: (u32, Duration) = (5, Duration::from_secs(1));
const ALL: (u32, Duration) = (2, Duration::from_millis(10));

#[test]
fn changes_all_the_time_take_a_share_of_the_servers_time() {
    let seed = seed();
    for (what, n) in [("bump", 1), ("bump", 20), ("storm", 1), ("storm", 20)] {
        let server = &for_users(&[]);
        let honest = Honest::start(server);
        let name = format!("{n} processes of one user: {what}");
        // What those who read somebody honest cost, when there is nobody else.
        let (before, reads) = (Resources::of(server), honest.reads());
        until("it is read", || honest.reads() >= reads + 500);
        let a_read = (Resources::of(server).cpu - before.cpu) / (honest.reads() - reads) as u32;
        honest.during(&name, server, 20, || {
            let (before, reads) = (Resources::of(server), honest.reads());
            let start = Instant::now();
            let hostiles = Hostiles::start(server, what, &[A], n, seed);
            hostiles.wait(rounds(20) as u64);
            // So long that what may be used in advance is.
            let window = Duration::from_secs(6) * rounds(1) as u32;
            honest.check(&name, server);
            thread::sleep(window.saturating_sub(start.elapsed()));
            let after = Resources::of(server);
            let (took, reads) = (start.elapsed(), (honest.reads() - reads) as u32);
            let (part, in_advance) = if n == 1 { ONE } else { ALL };
            // What follows from a look, such as telling the kernel of what is gone, is not all charged, and costs more
            // where others have the caches: as much again.
            let allowed = (took + in_advance) * 2 / part + reads * a_read;
            println!(
                "{name}: {:.2} processors, of {:.2} that they and {reads} reads of {a_read:?} each may take",
                share(&before, &after, took),
                allowed.as_secs_f64() / took.as_secs_f64(),
            );
            let used = after.cpu - before.cpu;
            assert!(used < allowed, "{name}: {used:?} in {took:?}, and not {allowed:?}");
            hostiles.stop();
            are_gone(server);
        });
    }
}

#[test]
fn whoever_comes_and_goes_or_asks_all_the_time_keeps_nobody_waiting() {
    let seed = seed();
    for what in ["rejoin", "ask"] {
        let server = &for_users(&[]);
        let honest = Honest::start(server);
        honest.during(what, server, 20, || {
            let before = Resources::of(server);
            let start = Instant::now();
            let hostiles = Hostiles::start(server, what, &[A], 4, seed);
            hostiles.wait(rounds(50) as u64);
            // Another user comes, is shown, and leaves.
            for n in 0..rounds(3) {
                let name = format!("b{n}");
                let b = clients::as_user(B, B, &[PUBLISHERS], || {
                    clients::Machine::published(server, &name, true)
                });
                b.count(3);
                let file = format!("{}/work_done", clients::directory(&name));
                assert_eq!(server.number(&file), 3);
            }
            honest.check(what, server);
            let after = Resources::of(server);
            let done = hostiles.done.value.rounds.load(Relaxed);
            println!(
                "{what}: {done} times; {:.2} processors",
                share(&before, &after, start.elapsed())
            );
            hostiles.stop();
            are_gone(server);
        });
    }
}

// ---- names and identities ------------------------------------------------------------------------

stats! {
    /// As `Work`, but for what its values are.
    pub struct Other: "work", prefix "work_" {
        /// Another unit.
        work_done: Counter<u64, Bytes>,
        /// Another type.
        work_failed: Counter<u16>,
        /// Other buckets.
        work_time: Histogram<Nanoseconds> { buckets: 12 },
        /// Another kind.
        work_queue: Counter,
    }
}

stats! {
    /// The names of others' sources, as values.
    pub struct Names: "names" {
        /// A source that will come.
        one: Counter,
        /// Another group's value.
        work_done: Counter,
    }
}

fn published(server: &Server, uid: u32, f: impl FnOnce(&Registry) -> Source + Send) -> Squatter {
    clients::as_user(uid, uid, &[PUBLISHERS], || {
        let registry = small_registry();
        let source = f(&registry);
        let options = PublishOptions {
            socket: Some(server.socket()),
            public: true,
            ..PublishOptions::default()
        };
        let publisher = registry.publish(options).unwrap();
        let state = publisher.wait_tried(PATIENCE);
        assert!(matches!(state, PublishState::Published { .. }), "{state:?}");
        Squatter { _registry: registry, _source: source, _publisher: publisher }
    })
}

struct Squatter {
    _registry: Registry,
    _source: Source,
    _publisher: statsfs::host::Publisher,
}

#[test]
fn names_are_whose_who_came_first_and_others_are_said_once() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let left_out = || server.number("statsfs/server_left_out");
    let top = |registry: &Registry, name: &str| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        top
    };
    honest.during("names that others have", server, 12, || {
        let mut squatters = Vec::new();
        for n in 0..rounds(10) {
            // The same name, and values that are other ones: what came first holds.
            squatters.push(published(server, A, |registry| {
                let honest = top(registry, "honest");
                let source = below(registry, &honest, &format!("other{n}"));
                source.add_values::<Other>().unwrap().work_failed.add(7);
                honest
            }));
            // A value named as the directory of another process, and one that would be its file.
            squatters.push(published(server, A, |registry| {
                let honest = top(registry, "honest");
                honest.add_values::<Names>().unwrap().one.add(7);
                honest
            }));
            for name in ["statsfs", "by-name"] {
                squatters.push(published(server, A, |registry| {
                    let reserved = top(registry, name);
                    let source = below(registry, &reserved, "one");
                    source.add_values::<Work>().unwrap().update(|c| c.work_done.add(7));
                    reserved
                }));
            }
            squatters.push(published(server, A, |registry| {
                let hidden = registry.source("honest").hidden().create().unwrap();
                hidden.register().unwrap();
                hidden.add_values::<Work>().unwrap().update(|c| c.work_done.add(7));
                hidden
            }));
        }
        until("they are left out", || left_out() >= 5);
        honest.check("names that others have", server);
        // Nobody else's is among the server's own, or the links.
        assert!(server.number("statsfs/server_clients") > 10);
        assert!(!server.path("statsfs/work_done").exists());
        let links: Vec<_> = std::fs::read_dir(server.path("by-name"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(links.iter().filter(|name| *name == "one").count(), 1, "{links:?}");
        let one = std::fs::read_link(server.path("by-name/one")).unwrap();
        assert_eq!(one, Path::new("../honest").join(format!("{}-one", std::process::id())));
        drop(squatters);
        are_gone(server);
    });
    let log = server.log();
    assert!(log.contains("is left out") && log.contains(&format!("uid={A}")), "{log}");
}

#[test]
fn names_that_no_source_may_have_are_refused() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    honest.during("names that none may have", server, 12, || {
        clients::as_user(A, A, &[PUBLISHERS], || {
            for name in
                [".stats", ".departed", "..", ".", "a/b", "a\nb", "ä", "", "a\0b", "-\u{1b}[2J"]
            {
                let registry = small_registry();
                let source = registry.create_source("victim__").unwrap();
                source.register().unwrap();
                let copy = Copy::of(&registry.segments().unwrap()[0]);
                rename(&copy, b"victim__", name);
                let hostile = Hostile(Socket::connect(&server.socket()).unwrap());
                let hello = Hello { publisher: registry.publisher(), public: true, segments: 1 };
                hostile.0.send(&ClientMessage::Hello(hello), &[copy.fd.as_fd()]).unwrap();
                let reason = hostile.refusal();
                assert!(reason.contains("no acceptable name"), "{name:?}: {reason}");
            }
        });
    });
}

/// Gives the source of this name another.
fn rename(copy: &Copy, from: &[u8; 8], to: &str) {
    let from = u64::from_le_bytes(*from);
    let mut unit = HEADER_SIZE;
    while copy.word(unit + word::NAME * 8).load(Relaxed) != from {
        unit += UNIT;
    }
    let mut bytes = [0; 8];
    bytes[..to.len().min(8)].copy_from_slice(&to.as_bytes()[..to.len().min(8)]);
    copy.word(unit + word::NAME * 8).store(u64::from_le_bytes(bytes), Relaxed);
    let head = copy.word(unit + word::HEAD * 8);
    let length = (to.len().min(8) as u64) << 16;
    head.store(head.load(Relaxed) & !0xff_0000 | length, Relaxed);
}
