//! Descriptors that hang whoever closes them, sent to a real server: it goes on for others, and ends when it is told to.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/hanging.rs"]
mod hanging;
#[path = "support/honest.rs"]
mod honest;
#[path = "support/server.rs"]
mod server;
mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use clients::{
    A, B, Hostile, Machine, NONE, PUBLISHERS, become_user, encoded, for_users, publishing_user,
    send_raw,
};
use hanging::{Hanging, lingering};
use honest::{Honest, Resources};
use server::Server;
use statsfs::host::protocol::{ClientMessage, Hello, Socket};
use statsfs::host::server::RefusedFor;
use support::child::{self, Shared, Writer};
use support::{rounds, until};

#[test]
#[ignore = "a process that the others start"]
fn file_server() {
    hanging::serve();
}

/// Sends a file so many times, and holds the connections until it is told to end.
#[test]
#[ignore = "a process that the others start"]
fn sender() {
    let (sent, mut socket, mode) = child::in_child::<AtomicU64>();
    let [times, path, to] = mode.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    become_user(A, A, &[PUBLISHERS]);
    let file: OwnedFd = File::options().read(true).write(true).open(path).unwrap().into();
    let hello = ClientMessage::Hello(Hello { publisher: 7, public: true, segments: 1 });
    let mut connections = Vec::new();
    for n in 0..times.parse().unwrap() {
        let Ok(to) = Socket::connect(to.as_ref()) else { continue };
        // In its place, with a message that takes none, and in no message at all; and what is never received.
        let bytes = match n % 4 {
            0 => encoded(&hello, 1),
            1 => encoded(&ClientMessage::Changed, 0),
            2 => b"SFSP".to_vec(),
            _ => Vec::new(),
        };
        send_raw(&to, &bytes, std::slice::from_ref(&file));
        send_raw(&to, b"behind it", std::slice::from_ref(&file));
        if connections.len() < 16 {
            connections.push(to);
        }
        sent.fetch_add(1, SeqCst);
    }
    sent.fetch_add(1 << 32, SeqCst);
    let _ = socket.read(&mut [0]);
}

/// Has a process send what hangs, and waits until it has.
fn send(hanging: &Hanging, server: &Server, times: usize) -> Writer {
    let sent = Shared::<AtomicU64>::new();
    let (path, to) = (hanging.path(), server.socket());
    let mode = format!("{times} {} {}", path.display(), to.display());
    let sender = Writer::start("sender", &sent, &mode);
    until("it has sent all", || sent.value.load(SeqCst) >= 1 << 32);
    until("closings hang", || hanging.waiting() > 0);
    sender
}

#[test]
fn descriptors_that_hang_whoever_closes_them_hang_nobody_else() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let before = Resources::of(server);
    let mut hanging = Hanging::mount("file_server");
    let of_b = publishing_user(B, || Machine::published(server, "b", true));
    let times = rounds(200);
    let sender = send(&hanging, server, times);
    honest.check("closings hang", server);
    let kept = Resources::of(server).fds;
    // Many more connections, with nothing that could hang: nothing is kept of them.
    let reason = publishing_user(A, || {
        let reason = Hostile::connect(server).refusal();
        for _ in 0..rounds(1000) {
            let _ = Socket::connect(&server.socket());
        }
        reason
    });
    assert!(reason.contains(&format!("user {A}")) && reason.contains("closed"), "{reason}");
    honest.check("a flood beside what hangs", server);
    until("nothing is kept of the flood", || Resources::of(server).fds <= kept + 8);
    of_b.count(3);
    let file_of_b = format!("{}/work_done", clients::directory("b"));
    assert_eq!(server.number(&file_of_b), 3);
    let now = Resources::of(server);
    println!("{} hang; {before:?}, now {now:?}", hanging.waiting());
    assert!(now.threads <= before.threads + 8, "{now:?}");
    let refused = server.status().refused;
    assert!(refused.iter().any(|r| r.uid == A && r.reason == RefusedFor::Protocol), "{refused:?}");
    assert!(now.lines - before.lines < 8, "{}", server.log());

    drop(of_b);
    hanging.let_go();
    drop(sender);
    until("all is closed", || Resources::of(server).fds <= before.fds);
    // And the user is served again.
    let again = publishing_user(A, || Machine::published(server, "a", true));
    again.count(2);
    assert_eq!(server.number(&format!("{}/work_done", clients::directory("a"))), 2);
    honest.check("all is closed", server);
}

#[test]
fn sockets_that_linger_hang_nobody_else() {
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let before = Resources::of(server);
    let (mut theirs, mut kept) = (Vec::new(), Vec::new());
    publishing_user(A, || {
        for n in 0..rounds(20) {
            let Ok(socket) = Socket::connect(&server.socket()) else { continue };
            // The server's is the last to be closed; and some it never receives.
            let (ours, other) = lingering();
            theirs.push(other);
            let fds = [ours];
            let is_sent = if n % 2 == 0 {
                let hello = Hello { publisher: 7, public: true, segments: 1 };
                send_raw(&socket, &encoded(&ClientMessage::Hello(hello), 1), &fds)
            } else {
                send_raw(&socket, b"nothing", NONE);
                send_raw(&socket, b"behind it", &fds)
            };
            if !is_sent {
                // It would linger here.
                kept.push(fds);
            }
        }
    });
    honest.check("sockets linger", server);
    let now = Resources::of(server);
    println!("{before:?}, now {now:?}");
    assert!(now.threads <= before.threads + 8, "{now:?}");
    // Read, or closed, at the other end, they linger no more.
    drop((theirs, kept));
    until("all is closed", || Resources::of(server).fds <= before.fds);
    honest.check("all is closed", server);
}

#[test]
fn a_server_that_is_told_to_end_unmounts_whatever_hangs() {
    let mut server = for_users(&[]);
    let mut hanging = Hanging::mount("file_server");
    let sender = send(&hanging, &server, 16);
    // SAFETY: a plain system call; the child has not been waited for, so the process id is its.
    assert_eq!(unsafe { libc::kill(server.pid(), libc::SIGTERM) }, 0);
    let mount = server.mount();
    let is_mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(1) == mount.to_str())
    };
    until("it is unmounted", || !is_mounted());
    until("nobody listens", || !server.socket().exists());
    // Another one can take its place, though this one's process is still there.
    let mut next = Server::beside(&server);
    let machine = Machine::published(&next, "next", true);
    machine.count(1);
    assert_eq!(next.number("kvm/work_done"), 1);
    drop(machine);
    next.stop();
    hanging.let_go();
    drop(sender);
    server.stop();
}
