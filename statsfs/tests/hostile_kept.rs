//! A user who has as much kept by a server as may be: what is too much is refused by name, and nobody else notices,
//! nor the server that carries on.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::sync::Arc;

use clients::{A, B, Machine, PUBLISHERS, READERS, directory, options, publishing_user};
use server::Server;
use statsfs::host::PublishState;
use statsfs::host::server::RefusedFor;
use statsfs::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};
use statsfs::{DynSlot, Registry, RegistryOptions, Source};
use support::{PATIENCE, below, until};

const VALUES: usize = 200;

fn large_group() -> Arc<GroupDescriptor> {
    let value = |n| Descriptor::new(format!("fill_{n}"), ValueType::U64, Semantics::Cumulative);
    let group = (0..VALUES).fold(GroupBuilder::new("fill"), |group, n| group.value(value(n)));
    group.build().unwrap()
}

/// Values of a source that take as much as can be wherever they are kept.
fn fill(source: &Source, group: &Arc<GroupDescriptor>) -> DynSlot {
    let slot = source.add_group(group).unwrap();
    (0..VALUES).for_each(|value| slot.add(value, u64::MAX));
    slot
}

fn registry() -> Registry {
    let options = RegistryOptions { segment_size: 1 << 20, ..RegistryOptions::default() };
    Registry::with_options(options).unwrap()
}

#[test]
fn a_user_who_has_all_kept_that_may_be_is_in_nobodys_way() {
    let (readers, publishers) = (READERS.to_string(), PUBLISHERS.to_string());
    let groups = ["--readers", &readers, "--socket-group", &publishers];
    let mut server = Server::kept_with(&[&groups[..], &["--max-kept-mib", "1"]].concat());
    let machine =
        |user: u32, name: &str| publishing_user(user, || Machine::published(&server, name, true));
    let clear =
        |user: u32, path: &str| publishing_user(user, || std::fs::write(server.path(path), "0"));
    let b = machine(B, "b");
    b.count(5);

    // What was cleared, and is kept as long as its process is there.
    let group = large_group();
    let a = publishing_user(A, || Machine::of(&server, registry(), "a", true));
    let subtree = |name: &str| {
        let top = below(&a.registry, &a.kvm, name);
        let all = (0..100).map(|n| below(&a.registry, &top, &format!("s{n}")));
        let all: Vec<_> = all.map(|source| (fill(&source, &group), source)).collect();
        (top, all)
    };
    let _subtrees = ["most", "more"].map(subtree);
    let last = format!("{}/s99/fill_{}", directory("more"), VALUES - 1);
    until("all is there", || server.path(&last).exists());
    clear(A, &format!("{}/.stats/clear", directory("most"))).unwrap();
    let error = clear(A, &format!("{}/.stats/clear", directory("more"))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
    assert_eq!(server.number(&last), u64::MAX);
    let log = server.log();
    let says = |what: &str| format!("user {A} has more bytes kept of {what} than the limit of ");
    assert!(log.contains(&says("what was cleared")), "{log}");

    // What processes leave, and is kept for good.
    let mut left = 0;
    let refused = loop {
        let state = publishing_user(A, || {
            let registry = registry();
            let top = registry.create_source(&format!("fill{left}")).unwrap();
            top.register().unwrap();
            let _slot = fill(&top, &group);
            let publisher = registry.publish(options(&server, true)).unwrap();
            publisher.wait_tried(PATIENCE)
        });
        match state {
            PublishState::Published { .. } => left += 1,
            refused => break refused,
        }
    };
    let says = says("groups and directories");
    assert!(
        matches!(&refused, PublishState::Refused { reason, again: false } if reason.starts_with(&says)),
        "{refused:?}"
    );
    assert!(left > 1);
    let of_a = server.status().refused;
    let is_named = |reason, text: &str| reason == RefusedFor::Limit && text.starts_with(&says);
    assert!(of_a.iter().any(|r| r.uid == A && is_named(r.reason, &r.text)), "{of_a:?}");
    for n in 0..left {
        let path = format!("fill{n}/.departed/fill_0");
        until("it is kept", || server.try_number(&path).is_ok());
        assert_eq!(server.number(&path), u64::MAX, "{path}");
    }

    // Others come, get directories, clear, and leave.
    clear(B, &format!("{}/work_done", directory("b"))).unwrap();
    b.count(3);
    let new = machine(B, "new");
    let top = new.registry.create_source("of-b").unwrap();
    top.register().unwrap();
    let own = GroupBuilder::new("own")
        .value(Descriptor::new("own_n", ValueType::U64, Semantics::Cumulative))
        .build()
        .unwrap();
    let slot = top.add_group(&own).unwrap();
    slot.add(0, 7);
    new.count(11);
    until("it has a directory", || server.path("of-b/own_n").exists());
    std::fs::write(server.path("of-b/own_n"), "0").unwrap();
    slot.add(0, 2);
    let is_there = server.path(&directory("new"));
    assert!(is_there.exists());
    publishing_user(B, || drop((new, slot, top)));
    until("it has left", || !is_there.exists());
    let totals = |server: &Server| {
        let of_b = format!("{}/work_done", directory("b"));
        ["kvm/work_done", &of_b, "kvm/.departed/work_done", "of-b/own_n"]
            .map(|path| server.number(path))
    };
    assert_eq!(totals(&server), [14, 3, 11, 2]);
    assert!(!server.log().contains("cannot keep"), "{}", server.log());

    server.kill();
    server.start_again();
    assert_eq!(totals(&server), [14, 3, 11, 2]);
    assert_eq!(server.number(&last), u64::MAX);
    assert_eq!(server.number(&format!("{}/s0/fill_0", directory("most"))), 0);
    b.count(1);
    until("it counts on", || totals(&server) == [15, 4, 11, 2]);
}
