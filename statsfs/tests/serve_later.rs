//! What a server does behind everybody's back: what it takes over once it serves already, and what it still keeps
//! when it has been told to end. Each process counts once.

#[path = "support/publishing.rs"]
mod publishing;
#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/trace.rs"]
mod trace;

use std::fs::File;
use std::io::Write;

use publishing::Publishing;
use server::Server;
use statsfs::host::server::ClientState;
use statsfs::host::{PublishOptions, Publisher};
use statsfs::{Registry, Slot};
use support::child::Shared;
use support::ledger::{Ledger, Totals, add, held};
use support::{Work, below, rounds, seed, until};

#[test]
#[ignore = "a process that the others start"]
fn publishing_process() {
    publishing::process();
}

/// This process's own, which counts when it is told to.
fn published(server: &Server) -> (Slot<Work>, Publisher, Registry) {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("own").unwrap();
    top.register().unwrap();
    let slot = below(&registry, &top, "below").add_values::<Work>().unwrap();
    let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    until("it is published", || server.path("own/work_done").exists());
    (slot, publisher, registry)
}

#[test]
fn what_is_taken_over_once_the_server_serves_counts_once() {
    let memory = Shared::<Ledger>::new();
    // Nothing is taken over before.
    let mut server = Server::kept_with(&["--take-over-ms", "0"]);
    let (slot, _publisher, _registry) = published(&server);
    let start =
        |server: &Server, n: usize| Publishing::start(server, &memory, n, seed() + n as u64, false);
    let (mut sums, mut n) = (Totals::default(), 1);
    let stopped = start(&server, 0);
    let mut all: Vec<_> = Vec::new();
    for _ in 0..rounds(3) {
        while all.len() < 4 {
            all.push(start(&server, n));
            n += 1;
        }
        slot.update(|counters| counters.work_done.add(7));
        assert_eq!(server.number("own/work_done"), 7);
        std::fs::write(server.path("own/.stats/clear"), "0\n").unwrap();
        // One that does not come back by itself.
        stopped.writer.signal(libc::SIGSTOP);
        let log = server.log().len();
        server.kill();
        slot.update(|counters| counters.work_done.add(5));
        // Two that never come back.
        for mut one in all.drain(..2) {
            one.writer.signal(libc::SIGKILL);
            one.writer.wait();
            add(&mut sums, &held(&one.segments));
        }
        server.start_again();
        until("what was cleared stays so", || {
            let there = server.try_number("own/work_done").unwrap_or_default();
            assert!(there == 0 || there == 5, "{there}");
            there == 5
        });
        until("the one that is stopped is there", || server.path(&stopped.directory()).exists());
        let said = server.log()[log..].to_owned();
        let late = said.lines().find(|line| line.contains("there is more than can be taken in"));
        assert!(late.is_some_and(|line| line.contains("processes=6")), "{said}");
        stopped.writer.signal(libc::SIGCONT);
        until("all others have come back", || {
            let clients = server.status().clients;
            let is_here = |state: &ClientState| *state == ClientState::Published;
            clients.len() == all.len() + 2 && clients.iter().all(|client| is_here(&client.state))
        });
        assert_eq!(server.number("own/work_done"), 5);
        std::fs::write(server.path("own/.stats/clear"), "0\n").unwrap();
    }
    all.push(stopped);
    for mut one in all {
        one.writer.signal(libc::SIGKILL);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("all are folded", || server.status().clients.len() == 1);
    publishing::are_kept(&server, &sums, "in the end");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn who_has_left_when_the_server_is_told_to_end_is_kept() {
    let memory = Shared::<Ledger>::new();
    let mut server = Server::start();
    let mut all: Vec<_> =
        (0..4).map(|n| Publishing::start(&server, &memory, n, seed() + n as u64, false)).collect();
    until("they count", || {
        all.iter().all(|one| {
            let path = format!("{}/work_done", one.directory());
            server.try_number(&path).is_ok_and(|there| there > 10)
        })
    });
    let worker = trace::threads(server.pid(), "statsfs-worker");
    let [worker] = worker[..] else { panic!("one thread folds: {worker:?}") };
    // It gets to none of them before the server is told to end.
    let worker = trace::Traced::stop(worker);
    let mut sums = Totals::default();
    for (n, one) in all.iter_mut().enumerate() {
        if n % 2 == 0 {
            one.writer.signal(libc::SIGKILL);
        } else {
            one.writer.socket.write_all(&[1]).unwrap();
        }
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("they have left", || all.iter().all(|one| !server.path(&one.directory()).exists()));
    let open = File::open(server.path("kvm/work_done")).unwrap();
    server.tell_to_end();
    until("it ends", || server.log().contains("stopping"));
    worker.let_run();
    assert!(server.wait().success(), "{}", server.log());
    drop(open);
    server.start_again();
    publishing::are_kept(&server, &sums, "in the end");
}
