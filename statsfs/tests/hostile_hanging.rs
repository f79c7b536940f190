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
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// One test at a time: a child that another one starts meanwhile would close what hangs as well.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

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
fn send(hanging: &mut Hanging, server: &Server, times: usize) {
    let sent = Shared::<AtomicU64>::new();
    let (path, to) = (hanging.path(), server.socket());
    let mode = format!("{times} {} {}", path.display(), to.display());
    hanging.others.push(Writer::start("sender", &sent, &mode));
    until("it has sent all", || sent.value.load(SeqCst) >= 1 << 32);
    until("closings hang", || hanging.waiting() > 0);
}

fn signal(server: &Server, signal: libc::c_int) {
    // SAFETY: a plain system call; the child has not been waited for, so the process id is its.
    assert_eq!(unsafe { libc::kill(server.pid(), signal) }, 0);
}

#[test]
fn descriptors_that_hang_whoever_closes_them_hang_nobody_else() {
    let _alone = alone();
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let before = Resources::of(server);
    let mut hanging = Hanging::mount("file_server");
    let of_b = publishing_user(B, || Machine::published(server, "b", true));
    let times = rounds(200);
    send(&mut hanging, server, times);
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
    until("all is closed", || Resources::of(server).fds <= before.fds);
    // And the user is served again.
    let again = publishing_user(A, || Machine::published(server, "a", true));
    again.count(2);
    assert_eq!(server.number(&format!("{}/work_done", clients::directory("a"))), 2);
    honest.check("all is closed", server);
}

#[test]
fn sockets_that_linger_hang_nobody_else() {
    let _alone = alone();
    let server = &for_users(&[]);
    let honest = Honest::start(server);
    let before = Resources::of(server);
    let mut theirs = Vec::new();
    // The server is to be the last to close them, so it has to wait until they are closed here.
    signal(server, libc::SIGSTOP);
    publishing_user(A, || {
        for n in 0..rounds(20) {
            let socket = Socket::connect(&server.socket()).unwrap();
            let (ours, other) = lingering();
            theirs.push(other);
            let hello = Hello { publisher: 7, public: true, segments: 1 };
            // Some it never receives.
            if n % 2 == 0 {
                let hello = encoded(&ClientMessage::Hello(hello), 1);
                assert!(send_raw(&socket, &hello, &[ours]));
            } else {
                send_raw(&socket, b"nothing", NONE);
                assert!(send_raw(&socket, b"behind it", &[ours]));
            }
        }
    });
    signal(server, libc::SIGCONT);
    honest.check("sockets linger", server);
    let now = Resources::of(server);
    println!("{before:?}, now {now:?}");
    assert!(now.threads <= before.threads + 8, "{now:?}");
    // Read, or closed, at the other end, they linger no more.
    drop(theirs);
    until("all is closed", || Resources::of(server).fds <= before.fds);
    honest.check("all is closed", server);
}

#[test]
fn a_server_that_is_told_to_end_unmounts_whatever_hangs() {
    let _alone = alone();
    let mut server = for_users(&[]);
    let mut hanging = Hanging::mount("file_server");
    send(&mut hanging, &server, 16);
    // Some of what nobody has looked at is in connections that are accepted just before the end, some in such
    // as are not any more.
    signal(&server, libc::SIGSTOP);
    let mut others = Vec::new();
    let connections: Vec<_> = publishing_user(B, || {
        let connect = |n| {
            let socket = Socket::connect(&server.socket()).unwrap();
            if n % 50 == 0 {
                let (ours, other) = lingering();
                others.push(other);
                assert!(send_raw(&socket, b"SFSP", &[ours]));
            }
            socket
        };
        (0..=100).map(connect).collect()
    });
    signal(&server, libc::SIGTERM);
    signal(&server, libc::SIGCONT);
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
    drop((machine, connections, others));
    next.stop();
    hanging.let_go();
    server.stop();
}
