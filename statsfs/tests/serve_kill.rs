//! A real server and real processes that publish to it, are killed, and say goodbye, at random moments: what
//! their segments held stays in the totals, which never go backwards.
//!
//! Each process keeps a ledger in memory that outlives it, as in `host_kill`.

#[path = "support/publishing.rs"]
mod publishing;
#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use publishing::{AGAIN, AT_ONCE, LEAVE, Publishing};
use server::Server;
use statsfs::Registry;
use statsfs::host::PublishOptions;
use statsfs::host::server::ClientState::Published;
use support::child::Shared;
use support::ledger::{FILES, Ledger, MOST, TOPS, Totals, add, bound, held};
use support::{Random, StopAtEnd, Work, rounds, seed, until};

#[test]
#[ignore = "a process that the others start"]
fn publishing_process() {
    publishing::process();
}

/// What the readers know of.
struct Run<'a> {
    server: &'a Server,
    ledger: &'static Ledger,
    stop: AtomicBool,
    checks: AtomicU64,
}

impl Run<'_> {
    /// Reads one total over and over.
    fn read(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mut reader = support::ledger::Reader::default();
        while !self.stop.load(SeqCst) {
            reader.check(self.ledger, &mut random, |path| self.server.number(path));
            self.checks.fetch_add(1, SeqCst);
        }
    }
}

#[test]
fn processes_that_are_killed_or_leave_count_to_the_last() {
    let seed = seed();
    let mut random = Random::new(seed);
    let memory = Shared::<Ledger>::new();
    let server = &Server::start();
    let run = &Run {
        server,
        ledger: memory.value,
        stop: AtomicBool::new(false),
        checks: AtomicU64::new(0),
    };
    let mut sums = Totals::default();
    let (mut times, mut forked) = (Vec::new(), 0);
    let mut all = vec![Publishing::start(server, &memory, 0, seed, false)];
    let (mut started, mut killed, mut left, mut twice) = (1, 0, 0, 0);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&run.stop);
        for n in 0..2 {
            scope.spawn(move || run.read(seed + 1 + n));
        }
        while killed < rounds(30) {
            if all.len() < AT_ONCE && started < MOST && random.one_in(2) {
                let forks = random.one_in(4);
                forked += usize::from(forks);
                all.push(Publishing::start(server, &memory, started, seed + started as u64, forks));
                started += 1;
                continue;
            }
            if all.len() <= AT_ONCE / 2 {
                continue;
            }
            // Now and then one that lives connects once more, whether or not it is the next to go.
            if random.one_in(4) {
                let one = random.below(all.len() as u64) as usize;
                all[one].writer.socket.write_all(&[AGAIN]).unwrap();
                twice += 1;
            }
            thread::sleep(Duration::from_micros(random.below(20_000)));
            let mut one = all.swap_remove(random.below(all.len() as u64) as usize);
            if random.one_in(5) {
                one.writer.socket.write_all(&[LEAVE]).unwrap();
                left += 1;
            } else {
                one.writer.signal(libc::SIGKILL);
                killed += 1;
                times.push(one.gone(server));
            }
            one.writer.wait();
            add(&mut sums, &held(&one.segments));
        }
        // One at least is there for as long as that takes.
        let rejoined = || server.number("statsfs/server_rejoined");
        let before = rejoined();
        all[0].writer.socket.write_all(&[AGAIN]).unwrap();
        until("it has come once more", || rejoined() > before);
        until("readers have seen something", || run.checks.load(SeqCst) > 50);
    });
    for mut one in all {
        one.writer.signal(libc::SIGKILL);
        times.push(one.gone(server));
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("all are folded", || server.status().clients.is_empty());
    publishing::are_kept(server, &sums, "in the end");
    publishing::are_within(run.ledger, &sums);
    times.sort();
    println!(
        "{started} processes ({forked} with a child that held on to the socket), {killed} killed, {left} left, \
         {twice} told to connect once more; {} checks; a directory was gone {:?} (median), {:?} (at most) after the end of file",
        run.checks.load(SeqCst),
        times[times.len() / 2],
        times[times.len() - 1],
    );
    // The server's own account of it, and nothing else in its log.
    assert_eq!(server.number("statsfs/server_joined"), started as u64);
    assert_eq!(server.number("statsfs/server_folded"), started as u64);
    // Who was about to connect once more when it left, or was killed, is told that it is too late.
    let log = server.log();
    let is_late = |line: &str| {
        line.contains("and what it counted is being kept") || line.contains("was kept before")
    };
    let said = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    assert_eq!(said.filter(|line| !is_late(line)).collect::<Vec<_>>(), [""; 0]);
}

/// What a server shows that another one is to show as well: what departed, and which directory is which.
fn shown(server: &Server, all: &[Publishing]) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    // In `net`, sources of the live depart as well.
    let departed =
        FILES.iter().map(|file| server.try_number(&format!("kvm/.departed/{file}")).unwrap_or(0));
    let directories = all.iter().map(Publishing::directory).chain(TOPS.map(str::to_owned));
    let numbers = directories.map(|path| server.path(&path).metadata().unwrap().ino());
    departed.chain(numbers).collect()
}

#[test]
fn a_server_that_is_killed_is_followed_by_one_that_knows_what_it_knew() {
    let seed = seed();
    let mut random = Random::new(seed);
    let memory = Shared::<Ledger>::new();
    let mut server = Server::start();
    let ledger = memory.value;
    let mut sums = Totals::default();
    let mut all: Vec<Publishing> = Vec::new();
    let mut started = 0;
    let mut waits = Vec::new();
    // One that counts only when told, so that what was cleared of it can be seen.
    let quiet = Registry::new().unwrap();
    let (top, below) = (support::top(&quiet), quiet.create_source("below").unwrap());
    top.add_subordinate(&below).unwrap();
    let slot = below.add_values::<Work>().unwrap();
    let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
    let _publisher = quiet.publish(options).unwrap();
    let below = format!("top/{}-below", std::process::id());
    for round in 0..rounds(5) as u64 {
        until("the quiet one", || server.path(&below).exists());
        slot.update(|counters| counters.work_done.add(10));
        let (what, left) = [
            (format!("{below}/work_done"), 0),
            ("top/.stats/clear".to_owned(), 0),
            (format!("{below}/work_failed"), 10),
        ][round as usize % 3]
            .clone();
        let before = server.number("top/work_done");
        std::fs::write(server.path(&what), "0\n").unwrap();
        let left = if left == 0 { 0 } else { before };
        assert_eq!(server.number("top/work_done"), left);
        slot.update(|counters| counters.work_done.add(3));
        while all.len() < AT_ONCE {
            let (n, seed) = (started, seed + started as u64);
            all.push(Publishing::start(&server, &memory, n, seed, false));
            started += 1;
        }
        // Some have left, one way or the other.
        for _ in 0..2 {
            let mut one = all.swap_remove(random.below(all.len() as u64) as usize);
            if random.one_in(2) {
                one.writer.signal(libc::SIGKILL);
                one.gone(&server);
            } else {
                one.writer.socket.write_all(&[LEAVE]).unwrap();
            }
            one.writer.wait();
            add(&mut sums, &held(&one.segments));
        }
        until("they are folded", || server.status().clients.len() == all.len() + 1);
        let before = shown(&server, &all);
        thread::sleep(Duration::from_micros(random.below(50_000)));
        let counted = bound(ledger, 0, 0, false);
        server.kill();
        // Nobody stops counting, or even notices.
        let at_kill = bound(ledger, 0, 0, false);
        until("they go on counting", || bound(ledger, 0, 0, false) > at_kill + 100);
        server.start_again();
        let start = Instant::now();
        until("all have come back", || {
            let clients = server.status().clients;
            clients.len() == all.len() + 1 && clients.iter().all(|client| client.state == Published)
        });
        waits.push(start.elapsed());
        assert_eq!(shown(&server, &all), before, "what departed, and numbers of directories");
        assert_eq!(server.number("top/work_done"), left + 3, "what was cleared stays so");
        assert_eq!(server.number(&format!("{below}/work_done")), left + 3);
        let (low, there, high) =
            (bound(ledger, 0, 0, false), server.number("kvm/work_done"), bound(ledger, 0, 0, true));
        assert!(low <= there && there <= high, "{low} ≤ {there} ≤ {high}; {counted} before");
    }
    for mut one in all {
        one.writer.signal(libc::SIGKILL);
        one.gone(&server);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("all are folded", || server.status().clients.len() == 1);
    publishing::are_shown(&server, &sums, "in the end");
    println!("{started} processes, {} servers killed; all were back after {waits:?}", waits.len());
}

#[test]
fn what_a_process_counted_that_died_while_there_was_no_server_is_lost_and_it_is_said_whose() {
    let seed = seed();
    let mut random = Random::new(seed);
    let memory = Shared::<Ledger>::new();
    let mut server = Server::start();
    let mut sums = Totals::default();
    let (mut all, mut lost) = (Vec::<Publishing>::new(), Vec::new());
    let mut started = 0;
    let take = |all: &mut Vec<Publishing>, random: &mut Random| {
        all.swap_remove(random.below(all.len() as u64) as usize)
    };
    let pids = |server: &Server| {
        let clients = server.status().clients;
        clients.iter().map(|client| client.pid as libc::pid_t).collect::<BTreeSet<_>>()
    };
    for _ in 0..rounds(3) {
        while all.len() < AT_ONCE {
            all.push(Publishing::start(&server, &memory, started, seed + started as u64, false));
            started += 1;
        }
        let counts = |one: &Publishing| {
            server.try_number(&format!("{}/work_done", one.directory())).is_ok_and(|n| n > 0)
        };
        until("something is counted", || all.iter().all(counts));
        server.kill();
        for _ in 0..=random.below(2) {
            let mut one = take(&mut all, &mut random);
            one.writer.signal(libc::SIGKILL);
            one.writer.wait();
            lost.push(one.writer.pid());
        }
        server.start_again();
        let says_whose = |pid: &libc::pid_t| {
            let log = server.log();
            let is_it = |line: &&str| {
                line.contains("died while there was no server: what it counted is lost")
                    && line.split_whitespace().any(|word| word == format!("pid={pid}"))
            };
            log.lines().filter(|line| line.contains("WARN")).filter(is_it).count() == 1
        };
        until("it is said whose counts are lost", || lost.iter().all(says_whose));
        let live: BTreeSet<_> = all.iter().map(|one| one.writer.pid()).collect();
        until("the others are back", || {
            pids(&server) == live
                && server.status().clients.iter().all(|client| client.state == Published)
        });
        for pid in &lost {
            assert!(!server.path(&format!("kvm/{pid}-vm")).exists(), "{pid}");
        }
        // What dies under the eyes of the server is not lost.
        let mut one = take(&mut all, &mut random);
        one.writer.signal(libc::SIGKILL);
        one.gone(&server);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    for mut one in all {
        one.writer.signal(libc::SIGKILL);
        one.gone(&server);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("all are folded", || server.status().clients.is_empty());
    publishing::are_shown(&server, &sums, "without those that are lost");
    let warnings = server.log().lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(warnings, lost.len(), "{}", server.log());
    println!("{started} processes, of which {} were lost", lost.len());
}
