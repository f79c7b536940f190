//! What one user takes of a tree's, or a server's, time by changing, clearing or connecting all the time: once it is
//! a share of it, that user is put off, for a while, and nobody else is.
//!
//! How much that is, the shares' own tests say. Here each is used up, by a thread that runs before all others: so
//! it is, however busy the machine is.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use clients::{A, B, Machine, as_user, directory, for_users, publishing_user};
use server::Server;
use statsfs::host::PublishState;
use statsfs::host::protocol::Socket;
use statsfs::tree::{Identity, Owner, Tree, TreeOptions};
use statsfs::{Registry, RegistryOptions, Slot, Source};
use support::{PATIENCE, StopAtEnd, Work, below, node, until};

/// Has a thread, or this one if it is 0, get the processors before all others.
fn favour(thread: libc::id_t) {
    // SAFETY: numbers only. A thread that has ended meanwhile needs nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, -20) };
}

/// As [`favour`], of a whole server and of this thread.
fn favour_server(server: &Server) {
    for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        favour(task.unwrap().file_name().into_string().unwrap().parse().unwrap());
    }
    favour(0);
}

/// Does something over and over until it says so. There is no pause, which `until` would make.
fn again_and_again(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
    }
}

// ---- a tree's ------------------------------------------------------------------------------------

/// A process of a user, as far as the tree can see, with some sources.
struct Changing {
    registry: Registry,
    top: Source,
    pid: u32,
    made: usize,
    /// What it made last, unless that was shown.
    waits: Option<Source>,
    _slots: Vec<Slot<Work>>,
}

impl Changing {
    fn join(tree: &Tree, uid: u32, pid: u32, sources: usize) -> Self {
        let options = RegistryOptions { segment_size: 1 << 20, ..RegistryOptions::default() };
        let registry = Registry::with_options(options).unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        let slots = (0..sources).map(|n| below(&registry, &top, &format!("has{n}")));
        let slots = slots.map(|source| source.add_values().unwrap()).collect();
        let identity = Identity { pid, uid, gid: uid, is_public: true, is_host: false };
        registry.join(tree, identity).unwrap();
        Self { registry, top, pid, made: 0, waits: None, _slots: slots }
    }

    /// Makes a source, unless the last one is not shown yet, looks whether it is shown, and removes it if it is.
    fn is_shown_what_it_makes(&mut self, tree: &Tree) -> bool {
        let source = self.waits.take().unwrap_or_else(|| {
            self.made += 1;
            below(&self.registry, &self.top, &format!("made{}", self.made))
        });
        let is_shown = self.shows(tree);
        if is_shown {
            source.revoke().unwrap();
        } else {
            self.waits = Some(source);
        }
        is_shown
    }

    /// Whether what it made last is shown.
    fn shows(&self, tree: &Tree) -> bool {
        node(tree, &format!("top/{}-made{}", self.pid, self.made)).is_ok()
    }
}

fn tree() -> Tree {
    let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
    Tree::host(TreeOptions { pid_prefix: true, ..options })
}

#[test]
fn a_process_that_changes_all_the_time_is_shown_later() {
    favour(0);
    let tree = &tree();
    let mut changing = Changing::join(tree, A, 1, 500);
    let (mut same_user, mut other) = (Changing::join(tree, A, 2, 1), Changing::join(tree, B, 3, 1));
    again_and_again("it is put off", || !changing.is_shown_what_it_makes(tree));
    assert!(same_user.is_shown_what_it_makes(tree), "it is one process's share");
    assert!(other.is_shown_what_it_makes(tree));
    until("it is shown in the end", || changing.shows(tree));
}

#[test]
fn processes_of_a_user_that_change_all_the_time_are_shown_later_and_no_other_users_are() {
    favour(0);
    let tree = &tree();
    let mut all: Vec<_> = (0..8).map(|pid| Changing::join(tree, A, 10 + pid, 2000)).collect();
    let (mut same_user, mut other) = (Changing::join(tree, A, 2, 1), Changing::join(tree, B, 3, 1));
    let mut n = 0_u32;
    again_and_again("one that changes hardly ever is put off", || {
        for changing in &mut all {
            changing.is_shown_what_it_makes(tree);
        }
        n += 1;
        n.is_multiple_of(32) && !same_user.is_shown_what_it_makes(tree)
    });
    assert!(other.is_shown_what_it_makes(tree));
    drop(all);
    until("it is shown in the end", || same_user.shows(tree));
}

// ---- a server's ----------------------------------------------------------------------------------

fn is_published(machine: &Machine) {
    let is_published = || matches!(machine.publisher.state(), PublishState::Published { .. });
    until("somebody has come", is_published);
}

/// A process of another user, which publishes and is shown, as ever.
fn somebody_comes(server: &Server, name: &str) {
    let machine = publishing_user(B, || Machine::new(server, name, true));
    // The queue of those who wait may be full of others, and then it tries again.
    is_published(&machine);
    machine.count(3);
    assert_eq!(server.number(&format!("{}/work_done", directory(name))), 3);
}

#[test]
fn whoever_clears_all_the_time_is_told_to_try_again() {
    let server = &for_users(&[]);
    // All of it is kept with each clear.
    let _machines: Vec<_> =
        (0..50).map(|n| Machine::published(server, &format!("m{n}"), true)).collect();
    let of = |uid, name| publishing_user(uid, || Machine::published(server, name, true));
    let machines = [of(A, "a"), of(B, "b")];
    machines.iter().for_each(|machine| machine.count(1));
    let files = ["a", "b"].map(|name| server.path(&format!("{}/work_done", directory(name))));
    let clear = |uid, n: usize| as_user(uid, uid, &[], || std::fs::write(&files[n], "0"));
    favour_server(server);
    as_user(A, A, &[], || {
        again_and_again("it is put off", || match std::fs::write(&files[0], "0") {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
                true
            }
        });
    });
    // Nobody else is, and nothing else of that user.
    machines.iter().for_each(|machine| machine.count(5));
    clear(B, 1).unwrap();
    assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), "0\n");
    std::fs::write(server.path("kvm/work_failed"), "0").unwrap();
    assert_eq!(as_user(A, A, &[], || std::fs::read_to_string(&files[0])).unwrap(), "5\n");
    until("it may clear again", || clear(A, 0).is_ok());
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), "0\n");
}

#[test]
fn whoever_connects_all_the_time_is_turned_away_and_nobody_else_is() {
    let server = &for_users(&[]);
    let stays = publishing_user(A, || Machine::published(server, "stays", true));
    favour_server(server);
    let busy = format!("user {A} keeps the server too busy");
    let refused = || server.status().refused;
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(stop);
        for _ in 0..2 {
            scope.spawn(|| {
                favour(0);
                publishing_user(A, || {
                    while !stop.load(SeqCst) {
                        let _ = Socket::connect(&server.socket());
                    }
                });
            });
        }
        until(&busy, || refused().iter().any(|refused| refused.text.contains(&busy)));
        (0..3).for_each(|n| somebody_comes(server, &format!("b{n}")));
        // What is there already stays.
        stays.count(7);
        assert_eq!(server.number(&format!("{}/work_done", directory("stays"))), 7);
    });
    assert!(refused().iter().all(|refused| refused.uid == A), "{:?}", refused());
    let again = publishing_user(A, || Machine::new(server, "again", true));
    is_published(&again);
}
