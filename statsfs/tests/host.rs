//! A tree of many processes: who joins, is detached, comes back, is folded; names, links and owners.

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use statsfs::fs::{Caller, Kind, Nodes, ROOT};
use statsfs::segment::Limits;
use statsfs::tree::{Identity, Owner, ProcessKey, Tree, TreeError, TreeOptions, UserLimits};
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{DynSlot, Registry, Slot, Source};
use support::{Work, below, flat, list, node, number, try_number};

const READERS: u32 = 500;

fn host_options() -> TreeOptions {
    TreeOptions { pid_prefix: true, ..TreeOptions::new(Owner { uid: 0, gid: READERS }) }
}

fn host() -> Tree {
    Tree::host(host_options())
}

fn identity(pid: u32) -> Identity {
    Identity { pid, uid: 1000 + pid, gid: 2000 + pid, is_public: true, is_host: false }
}

/// A process with one guest in `kvm`, as far as the tree can see.
struct Guest {
    registry: Registry,
    kvm: Source,
    guest: Source,
    slot: Slot<Work>,
    key: ProcessKey,
}

impl Guest {
    fn join(tree: &Tree, pid: u32, name: &str) -> Self {
        let registry = Registry::new().unwrap();
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let guest = registry.source(name).private().create().unwrap();
        kvm.add_subordinate(&guest).unwrap();
        let slot = guest.add_values().unwrap();
        let key = registry.join(tree, identity(pid)).unwrap();
        Self { registry, kvm, guest, slot, key }
    }

    fn count(&self, n: u64) {
        self.slot.update(|c| {
            c.work_done.add(n);
            c.work_failed.add(2 * n);
        });
        self.slot.work_time.record(n);
        self.slot.work_queue.set(5);
    }
}

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let all = list(tree, node(tree, path).unwrap(), 100).unwrap();
    all.into_iter().map(|(name, _)| name).collect()
}

fn directories(tree: &Tree, path: &str) -> Vec<String> {
    let mut names = names(tree, path);
    names.retain(|name| !name.starts_with("work_") && !name.starts_with('n'));
    names
}

fn link(tree: &Tree, name: &str) -> Option<String> {
    let node = node(tree, &format!("by-name/{name}")).ok()?;
    assert_eq!(tree.attr(node).unwrap().kind, Kind::Symlink);
    Some(tree.readlink(node).unwrap())
}

#[test]
fn processes_come_and_go_and_every_count_stays() {
    let tree = host();
    assert_eq!(names(&tree, ""), ["by-name"]);
    let empty = tree.usage();
    let one = Guest::join(&tree, 1, "web");
    let two = Guest::join(&tree, 2, "db");
    one.count(3);
    two.count(4);
    assert_eq!(number(&tree, "kvm/work_done"), 7);
    assert_eq!(number(&tree, "kvm/1-web/work_done"), 3);
    assert_eq!(number(&tree, "kvm/work_queue"), 10);

    tree.detach(one.key).unwrap();
    assert_eq!(directories(&tree, "kvm"), ["2-db"]);
    assert_eq!(try_number(&tree, "kvm/1-web/work_done").unwrap_err().0, libc::ENOENT);
    assert_eq!(number(&tree, "kvm/work_done"), 7);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 3);
    assert_eq!(number(&tree, "kvm/.departed/work_time/count"), 1);
    assert_eq!(number(&tree, "kvm/work_queue"), 5, "what goes both ways leaves at once");
    // It is still counting.
    one.count(10);
    assert_eq!(number(&tree, "kvm/work_done"), 17);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 13);
    let all = flat(&tree);
    assert_eq!((&*all["kvm/work_done"], &*all["kvm/2-db/work_done"]), ("17", "4"));
    assert!(!all.keys().any(|path| path.contains("1-web")));

    // Even new sources, and it may leave some.
    let more = below(&one.registry, &one.kvm, "more");
    let slot = more.add_values::<Work>().unwrap();
    slot.update(|c| c.work_done.add(100));
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 113);
    one.kvm.remove_subordinate(&one.guest).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 113);
    tree.reattach(one.key).unwrap();
    assert_eq!(directories(&tree, "kvm").len(), 2);
    assert_eq!(number(&tree, "kvm/1-more/work_done"), 100);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 13);
    assert_eq!(number(&tree, "kvm/work_done"), 117);

    tree.fold(one.key).unwrap();
    let saved = tree.save();
    let left: Vec<_> = saved.ledger.iter().collect();
    assert_eq!(left.len(), 1);
    let ((directory, group), left) = left[0];
    assert_eq!((&**directory, saved.groups[*group].name(), left.raw[0]), ("kvm", "work", 113));
    assert_eq!(number(&tree, "kvm/work_done"), 117);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 113);
    assert_eq!(flat(&tree)["kvm/work_done"], "117");
    // Nobody looks any more.
    slot.update(|c| c.work_done.add(100));
    assert_eq!(number(&tree, "kvm/work_done"), 117);
    assert!(matches!(tree.reattach(one.key), Err(TreeError::NoProcess)));
    assert!(matches!(tree.fold(one.key), Err(TreeError::NoProcess)));

    tree.fold(two.key).unwrap();
    assert_eq!(number(&tree, "kvm/work_done"), 117);
    assert_eq!(number(&tree, "kvm/work_failed"), 34);
    assert_eq!(number(&tree, "kvm/work_time/count"), 3);
    assert_eq!(names(&tree, ""), ["by-name", "kvm"]);
    let after = tree.usage();
    assert_eq!((after.left, after.groups), (1, 1));
    assert_eq!(
        (after.processes, after.sources, after.directories, after.baselines),
        (empty.processes, empty.sources, empty.directories + 1, 0)
    );

    // What the next tree gets is what it shows.
    let next = Tree::host_from(tree.save(), host_options()).unwrap();
    assert_eq!(next.save(), tree.save());
    assert_eq!(flat(&next), flat(&tree));
    assert_eq!(number(&next, "kvm/.departed/work_done"), 117);
}

#[test]
fn clears_reach_whatever_is_counted_wherever_it_is() {
    let tree = host();
    let guests: Vec<_> = (1..=4).map(|pid| Guest::join(&tree, pid, "vm")).collect();
    guests.iter().for_each(|guest| guest.count(10));
    // A baseline goes along to where its count goes, and comes back.
    assert_eq!(tree.clear("kvm/1-vm/work_done").unwrap().0["work_done"], 10);
    guests[0].count(1);
    tree.detach(guests[0].key).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 1);
    assert_eq!(number(&tree, "kvm/work_done"), 31);
    tree.reattach(guests[0].key).unwrap();
    assert_eq!(number(&tree, "kvm/1-vm/work_done"), 1);
    tree.detach(guests[0].key).unwrap();
    tree.fold(guests[1].key).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 11);
    // Both what is detached and what is folded, and nothing else.
    assert_eq!(tree.clear("kvm/.departed/work_done").unwrap().0["work_done"], 11);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 0);
    assert_eq!(number(&tree, "kvm/work_done"), 20);
    assert_eq!(number(&tree, "kvm/work_failed"), 82);
    guests[0].count(5);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 5);
    tree.reattach(guests[0].key).unwrap();
    assert_eq!(number(&tree, "kvm/1-vm/work_done"), 5);
    tree.fold(guests[0].key).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 5);
    tree.fold(guests[2].key).unwrap();
    assert_eq!(tree.clear("kvm/.stats/clear").unwrap().0["work_done"], 25);
    assert_eq!(number(&tree, "kvm/work_done"), 0);
    assert_eq!(number(&tree, "kvm/work_time/sum"), 0);
    let saved = tree.save();
    let left = saved.ledger.values().next().unwrap();
    assert_eq!(left.raw[0], 36, "raw sums are what was counted");
    assert_eq!(left.cleared[0], 36);
    guests[3].count(2);
    tree.fold(guests[3].key).unwrap();
    assert_eq!(number(&tree, "kvm/work_done"), 2);
    assert_eq!(tree.clear(".stats/clear").unwrap().0["work_done"], 2);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 0);
}

#[test]
fn narrow_counters_show_what_they_showed() {
    let of = GroupBuilder::new("narrow")
        .value(Descriptor::new("n8", ValueType::U8, Semantics::Cumulative))
        .value(Descriptor::new("n32", ValueType::U32, Semantics::Cumulative))
        .build()
        .unwrap();
    let tree = host();
    let registry = Registry::new().unwrap();
    let top = registry.create_source("kvm").unwrap();
    top.register().unwrap();
    let source = below(&registry, &top, "vm");
    let slots: [DynSlot; 2] = [0, 1].map(|_| source.add_group(&of).unwrap());
    let key = registry.join(&tree, identity(7)).unwrap();
    let see = || (number(&tree, "kvm/n8"), number(&tree, "kvm/n32"));
    let count = |n: u64| slots.iter().for_each(|slot| [0, 1].iter().for_each(|v| slot.add(*v, n)));
    count(100);
    assert_eq!(see(), (200, 200));
    tree.clear("kvm/7-vm/.stats/clear").unwrap();
    count(50);
    assert_eq!(see(), (100, 100));
    tree.detach(key).unwrap();
    assert_eq!(see(), (100, 100));
    assert_eq!(number(&tree, "kvm/.departed/n8"), 100);
    tree.reattach(key).unwrap();
    assert_eq!(see(), (100, 100));
    tree.fold(key).unwrap();
    assert_eq!(see(), (100, 100));
    assert_eq!(tree.clear("kvm/n8").unwrap().0["n8"], 100);
    assert_eq!(see(), (0, 100));
}

#[test]
fn nobody_joins_twice() {
    let tree = host();
    let guest = Guest::join(&tree, 1, "web");
    let again = guest.registry.join(&tree, identity(2));
    assert!(matches!(again, Err(TreeError::Joined(key)) if key == guest.key));
    tree.detach(guest.key).unwrap();
    assert!(matches!(guest.registry.join(&tree, identity(1)), Err(TreeError::Joined(_))));
    tree.fold(guest.key).unwrap();
    guest.registry.join(&tree, identity(1)).unwrap();
}

#[test]
fn links_by_name() {
    let tree = host();
    let one = Guest::join(&tree, 11, "web");
    assert_eq!(link(&tree, "web").as_deref(), Some("../kvm/11-web"));
    let two = Guest::join(&tree, 12, "web");
    assert_eq!(link(&tree, "web-12").as_deref(), Some("../kvm/12-web"));
    assert_eq!(names(&tree, "by-name"), ["web", "web-12"]);
    assert_eq!(list(&tree, node(&tree, "by-name").unwrap(), 1).unwrap().len(), 2);
    // Only what is right below the top has one.
    below(&one.registry, &one.guest, "inner");
    assert_eq!(names(&tree, "kvm/11-web").last().unwrap(), "inner");
    assert_eq!(names(&tree, "by-name").len(), 2);
    let old = node(&tree, "by-name/web").unwrap();
    tree.detach(one.key).unwrap();
    assert_eq!(names(&tree, "by-name"), ["web-12"]);
    assert_eq!(tree.readlink(old).unwrap_err().0, libc::ESTALE);
    // A name stays what it is; whoever comes next has the shorter one.
    tree.reattach(one.key).unwrap();
    assert_eq!(node(&tree, "by-name/web").unwrap(), old, "the same directory has the same number");
    tree.fold(one.key).unwrap();
    tree.fold(two.key).unwrap();
    assert!(names(&tree, "by-name").is_empty());
    assert_eq!(node(&tree, "by-name/.stats").unwrap_err().0, libc::ENOENT);
}

#[test]
fn reserved_names_are_left_out_and_the_hosts_own_is_not() {
    let tree = host();
    let registry = Registry::new().unwrap();
    for name in ["statsfs", "by-name"] {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        below(&registry, &top, "x").add_values::<Work>().unwrap().update(|c| c.work_done.inc());
    }
    // Nor can what is hidden bring something to the top.
    let hidden = registry.source("hidden").hidden().create().unwrap();
    hidden.register().unwrap();
    below(&registry, &hidden, "kvm").add_values::<Work>().unwrap();
    let key = registry.join(&tree, identity(5)).unwrap();
    assert_eq!(names(&tree, ""), ["by-name"]);
    assert_eq!((tree.usage().clashes, tree.usage().left_out), (3, 6));
    assert!(flat(&tree).is_empty());

    let own = Registry::new().unwrap();
    let top = own.create_source("statsfs").unwrap();
    top.register().unwrap();
    let requests = below(&own, &top, "requests");
    requests.add_values::<Work>().unwrap().update(|c| c.work_done.add(9));
    own.join(&tree, Identity { is_host: true, ..identity(1) }).unwrap();
    assert_eq!(number(&tree, "statsfs/requests/work_done"), 9);
    assert_eq!(number(&tree, "statsfs/work_done"), 9);
    tree.fold(key).unwrap();
    assert_eq!((tree.usage().clashes, tree.usage().left_out), (3, 0));
    assert_eq!(number(&tree, "statsfs/work_done"), 9);
    assert_eq!(number(&tree, ".departed/work_done"), 2, "nothing is lost");
}

#[test]
fn other_identities_of_a_name_are_left_out_and_come_when_it_is_free() {
    let tree = host();
    let of = |group: &'static str| {
        let value = Descriptor::new("n", ValueType::U64, Semantics::Cumulative);
        GroupBuilder::new(group).value(value).build().unwrap()
    };
    let join = |pid: u32, group: &'static str, n: u64| {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("kvm").unwrap();
        top.register().unwrap();
        let slot = below(&registry, &top, "vm").add_group(&of(group)).unwrap();
        slot.add(0, n);
        (registry.join(&tree, identity(pid)).unwrap(), registry, slot)
    };
    let (first, ..) = join(1, "one", 5);
    let (second, ..) = join(2, "two", 70);
    assert_eq!((number(&tree, "kvm/n"), number(&tree, "kvm/2-vm/n")), (5, 70));
    assert_eq!((tree.usage().clashes, tree.usage().left_out), (1, 1));
    // What is left keeps the name.
    tree.fold(first).unwrap();
    assert_eq!(number(&tree, "kvm/n"), 5);
    tree.fold(second).unwrap();
    assert_eq!(number(&tree, "kvm/n"), 5);
    assert_eq!(tree.save().ledger.len(), 2);
}

#[test]
fn two_top_level_names_do_not_mix() {
    let tree = host();
    let registry = Registry::new().unwrap();
    let slots = ["kvm", "net"].map(|name| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        let own = top.add_values::<Work>().unwrap();
        (below(&registry, &top, "x").add_values::<Work>().unwrap(), own, top)
    });
    for (n, (slot, own, _)) in slots.iter().enumerate() {
        slot.update(|c| c.work_done.add(10 + n as u64));
        own.update(|c| c.work_done.add(100));
    }
    let gone = registry.create_source("gone").unwrap();
    gone.register().unwrap();
    gone.add_values::<Work>().unwrap().update(|c| c.work_done.add(1000));
    let key = registry.join(&tree, identity(3)).unwrap();
    gone.revoke().unwrap();
    let see = || {
        let paths = ["kvm/work_done", "net/work_done", ".departed/work_done"];
        paths.map(|path| number(&tree, path))
    };
    assert_eq!(see(), [110, 111, 1000]);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 0);
    tree.detach(key).unwrap();
    assert_eq!(see(), [110, 111, 1000]);
    assert_eq!(number(&tree, "net/.departed/work_done"), 111);
    tree.fold(key).unwrap();
    assert_eq!(see(), [110, 111, 1000]);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 110);
    let saved = tree.save();
    let left: Vec<_> =
        saved.ledger.iter().map(|((directory, _), left)| (&**directory, left.raw[0])).collect();
    assert_eq!(left, [("", 1000), ("kvm", 110), ("net", 111)]);
    assert_eq!(tree.clear("net/.stats/clear").unwrap().0["work_done"], 111);
    assert_eq!(see(), [110, 0, 1000]);
    assert_eq!(tree.clear(".stats/clear").unwrap().0["work_done"], 1110);
    assert_eq!(see(), [0, 0, 0]);
}

/// Whether the rules of `default_permissions` let a caller read what is at a path.
fn may_read(tree: &Tree, path: &str, uid: u32, gids: &[u32]) -> bool {
    let mut ino = ROOT;
    let lets = |ino, bit: u16| {
        let attr = tree.attr(ino).unwrap();
        let class = match () {
            () if attr.uid == uid => 6,
            () if gids.contains(&attr.gid) => 3,
            () => 0,
        };
        uid == 0 || attr.mode >> class & bit != 0
    };
    for name in path.split('/') {
        if !lets(ino, 1) {
            return false;
        }
        ino = tree.lookup(ino, name).unwrap().ino;
    }
    lets(ino, 4)
}

#[test]
fn who_may_not_read_reads_nothing_not_even_in_bulk() {
    let tree = host();
    let guests = [Guest::join(&tree, 1, "web"), Guest::join(&tree, 2, "db")];
    let public = Registry::new().unwrap();
    let top = public.create_source("kvm").unwrap();
    top.register().unwrap();
    let open = below(&public, &top, "open");
    let _slot = open.add_values::<Work>().unwrap();
    // What is private further down is so for its owner, too.
    let inner = public.source("inner").private().create().unwrap();
    open.add_subordinate(&inner).unwrap();
    let _inner = inner.add_values::<Work>().unwrap();
    public.join(&tree, identity(3)).unwrap();
    guests.iter().for_each(|guest| guest.count(1));

    let attr = |path: &str| tree.attr(node(&tree, path).unwrap()).unwrap();
    let owner = |path: &str| (attr(path).uid, attr(path).gid, attr(path).mode);
    assert_eq!(owner("kvm"), (0, READERS, 0o755));
    assert_eq!(owner("kvm/work_done"), (0, READERS, 0o644));
    assert_eq!(owner("kvm/1-web"), (1001, READERS, 0o750));
    assert_eq!(owner("kvm/1-web/.stats"), (1001, READERS, 0o750));
    assert_eq!(owner("kvm/1-web/.stats/clear"), (1001, READERS, 0o200));
    assert_eq!(owner("kvm/2-db/work_done"), (1002, READERS, 0o644));
    assert_eq!(owner("kvm/3-open"), (1003, 2003, 0o755));
    assert_eq!(owner("kvm/3-open/inner"), (1003, READERS, 0o750));
    assert_eq!(owner("by-name").2, 0o755);

    // A process that is in the readers' group only by a supplementary group, of another user.
    let mut member = std::process::Command::new("sleep");
    // SAFETY: these calls are async-signal-safe, and the list outlives them.
    unsafe {
        member.arg("60").pre_exec(|| {
            let groups = [7, READERS];
            if libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setgid(1050) == 0
                && libc::setuid(1050) == 0
            {
                return Ok(());
            }
            Err(std::io::Error::last_os_error())
        });
    }
    let mut member = member.spawn().expect("these tests run as root");
    let callers = [
        (Caller { uid: 0, gid: 0, pid: 1 }, vec![0]),
        (Caller { uid: 1001, gid: 2001, pid: 0 }, vec![2001]),
        (Caller { uid: 1002, gid: 2002, pid: 0 }, vec![2002]),
        (Caller { uid: 1040, gid: READERS, pid: 0 }, vec![READERS]),
        (Caller { uid: 1050, gid: 1050, pid: member.id() }, vec![1050, 7, READERS]),
        // The same process id, but somebody else: whoever opened the file is gone.
        (Caller { uid: 1060, gid: 1050, pid: member.id() }, vec![1050]),
        (Caller { uid: 1070, gid: 1070, pid: 0 }, vec![1070]),
    ];
    let all: BTreeSet<String> = flat(&tree).into_keys().collect();
    let mut seen = Vec::new();
    for (caller, gids) in callers {
        for dir in ["", "kvm/", "kvm/1-web/", "kvm/2-db/", "kvm/3-open/", "kvm/3-open/inner/"] {
            let bulk = format!("{dir}.stats/flat");
            if !may_read(&tree, &bulk, caller.uid, &gids) {
                continue;
            }
            let mut text = Vec::new();
            tree.render(node(&tree, &bulk).unwrap(), caller, usize::MAX, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let shown: BTreeSet<_> =
                text.lines().map(|line| line.split_once(' ').unwrap().0.to_owned()).collect();
            let file = |path: &String| path.split("/buckets/").next().unwrap().to_owned();
            let allowed: BTreeSet<_> = all
                .iter()
                .filter(|path| path.starts_with(dir))
                .filter(|path| may_read(&tree, &file(path), caller.uid, &gids))
                .cloned()
                .collect();
            assert_eq!(shown, allowed, "{caller:?} in {bulk}");
            if dir.is_empty() {
                seen.push(shown.len());
            }
        }
    }
    member.kill().unwrap();
    member.wait().unwrap();
    let whole = all.len();
    assert_eq!((seen[0], seen[3], seen[4]), (whole, whole, whole), "root, readers, readers");
    assert!(seen[6] < seen[1] && seen[1] == seen[2] && seen[1] < whole, "{seen:?}");
    assert_eq!(seen[5], seen[6]);
}

#[test]
fn whoever_waits_is_told_what_is_gone() {
    let tree = host();
    let guest = Guest::join(&tree, 1, "web");
    let (directory, link) =
        (node(&tree, "kvm/1-web").unwrap(), node(&tree, "by-name/web").unwrap());
    let gone = Mutex::new(Vec::new());
    let wait = || {
        let mut all = Vec::new();
        tree.wait_gone(std::time::Duration::from_millis(1), &mut all);
        gone.lock().unwrap().extend(all);
    };
    wait();
    tree.detach(guest.key).unwrap();
    wait();
    let gone = gone.into_inner().unwrap();
    assert!(gone.contains(&directory) && gone.contains(&link), "{gone:?}");
}

#[test]
fn a_process_beyond_its_limits_is_let_go_and_told_why() {
    let limits = Limits { sources: 4, ..Limits::default() };
    let tree = Tree::host(TreeOptions { limits, ..host_options() });
    let modest = Guest::join(&tree, 1, "modest");
    let greedy = Guest::join(&tree, 2, "greedy");
    modest.count(1);
    greedy.count(10);
    assert_eq!(number(&tree, "kvm/work_done"), 11);
    tree.clear("kvm/2-greedy/work_done").unwrap();
    for n in 0..3 {
        below(&greedy.registry, &greedy.kvm, &format!("more{n}"));
    }
    assert_eq!(number(&tree, "kvm/work_done"), 1);
    assert_eq!(directories(&tree, "kvm"), ["1-modest"]);
    let refused = tree.refused();
    assert_eq!((refused.len(), refused[0].process, refused[0].identity.pid), (1, greedy.key, 2));
    assert!(refused[0].error.to_string().contains("more than 4 sources"), "{:?}", refused[0].error);
    let usage = tree.usage();
    assert_eq!((usage.processes, usage.refused, usage.sources, usage.baselines), (1, 1, 2, 0));
    assert!(tree.refused().is_empty());
    assert!(matches!(tree.detach(greedy.key), Err(TreeError::NoProcess)));
    // Nor does it get in like this.
    let again = greedy.registry.join(&tree, identity(2));
    assert!(matches!(again, Err(TreeError::Segment(_))), "{again:?}");
}

#[test]
fn what_a_user_may_bring_has_limits_that_a_refusal_names() {
    let of = |group: String, values: usize| {
        let value =
            |n| Descriptor::new(format!("{group}_n{n}"), ValueType::U64, Semantics::Cumulative);
        let group = GroupBuilder::new(group.clone());
        (0..values).fold(group, |group, n| group.value(value(n))).build().unwrap()
    };
    // A process with one top-level directory per name, and a group in the first.
    let join = |tree: &Tree, pid: u32, uid: u32, names: &[&str], groups: &[(&str, usize)]| {
        let registry = Registry::new().unwrap();
        let tops: Vec<_> = names.iter().map(|name| registry.create_source(name).unwrap()).collect();
        tops.iter().for_each(|top| top.register().unwrap());
        let slots: Vec<_> = groups
            .iter()
            .map(|(group, values)| tops[0].add_group(&of((*group).to_owned(), *values)).unwrap())
            .collect();
        slots.iter().for_each(|slot| slot.add(0, 1));
        let key = registry.join(tree, Identity { uid, ..identity(pid) });
        (key, registry, slots, tops)
    };
    let user_limits = UserLimits { groups: 2, values: 5, directories: 3 };
    let tree = Tree::host(TreeOptions { user_limits, ..host_options() });
    let refused = |key: Result<ProcessKey, TreeError>, says: &str| {
        let error = key.unwrap_err();
        assert!(matches!(error, TreeError::Limit { .. }), "{error:?}");
        assert_eq!(error.to_string(), says);
    };
    let (first, ..) = join(&tree, 1, 50, &["a", "b"], &[("g", 2)]);
    let first = first.unwrap();
    let (key, ..) = join(&tree, 2, 50, &["a", "c", "d"], &[]);
    refused(key, "user 50 has more directories at the top level than the limit of 3");
    let (key, ..) = join(&tree, 2, 50, &["a"], &[("h", 4)]);
    refused(key, "user 50 has more different values than the limit of 5");
    let (key, ..) = join(&tree, 2, 50, &["a"], &[("h", 1), ("i", 1)]);
    refused(key, "user 50 has more groups of values than the limit of 2");
    assert_eq!((tree.usage().processes, tree.usage().groups), (1, 1), "nothing came of these");
    assert_eq!(names(&tree, ""), ["by-name", "a", "b"]);
    // What is there costs nobody anything, nor do others' limits.
    let (key, ..) = join(&tree, 3, 50, &["a", "b"], &[("g", 2)]);
    key.unwrap();
    let (other, ..) = join(&tree, 4, 51, &["c", "d", "e"], &[("h", 4), ("g", 2)]);
    other.unwrap();
    let (key, ..) = join(&tree, 5, 50, &["c", "d", "e", "f"], &[("h", 4)]);
    key.unwrap();
    // One that is there and brings more is let go.
    let (key, registry, ..) = join(&tree, 6, 50, &["a"], &[]);
    let key = key.unwrap();
    assert_eq!(tree.usage().processes, 5);
    registry.create_source("z").unwrap().register().unwrap();
    assert_eq!(tree.usage().processes, 4);
    assert!(flat(&tree).contains_key("a/g_n0"));
    let refused = tree.refused();
    assert_eq!((refused.len(), refused[0].process), (1, key));
    assert!(matches!(refused[0].error, TreeError::Limit { limit: 3, uid: 50, .. }));
    // A directory in which nothing was counted is forgotten, and may be brought again.
    tree.fold(first).unwrap();
    assert!(names(&tree, "").contains(&"b".to_owned()), "another has it");
}

#[test]
fn what_comes_is_taken_over_bit_by_bit_and_nothing_is_lost() {
    const SOURCES: u64 = 5000;
    let tree = host();
    let registry = Registry::with_options(statsfs::RegistryOptions {
        segment_size: 4 << 20,
        ..Default::default()
    })
    .unwrap();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let mut all: Vec<_> = (0..SOURCES).map(|n| below(&registry, &kvm, &format!("s{n}"))).collect();
    let count = |source: &Source| {
        let slot = source.add_values::<Work>().unwrap();
        slot.update(|c| c.work_done.add(1));
        slot
    };
    let mut slots: Vec<_> = all.iter().map(count).collect();
    let key = registry.join(&tree, identity(1)).unwrap();
    assert_eq!(number(&tree, "kvm/work_done"), SOURCES as i128);
    assert_eq!(tree.usage().sources as u64, SOURCES + 1);
    // Nobody looks while they come and go, so some are gone before they were ever taken over.
    for n in 0..3000 {
        let source = below(&registry, &kvm, &format!("t{n}"));
        slots.push(count(&source));
        all.push(source);
    }
    for source in all.drain(..).step_by(2) {
        kvm.remove_subordinate(&source).unwrap();
    }
    // Not at once, where this process has used up its share of a slow machine.
    support::until("all are taken over", || number(&tree, "kvm/work_done") == 8000);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 4000);
    // A clear takes what has been taken over by then, and leaves the rest.
    for n in 0..3000 {
        slots.push(count(&below(&registry, &kvm, &format!("u{n}"))));
    }
    let taken = i128::from(tree.clear("kvm/work_done").unwrap().0["work_done"]);
    assert!((8000..=11_000).contains(&taken), "{taken}");
    support::until("the rest", || number(&tree, "kvm/work_done") + taken == 11_000);
    for n in 0..3000 {
        slots.push(count(&below(&registry, &kvm, &format!("v{n}"))));
    }
    tree.fold(key).unwrap();
    assert_eq!(number(&tree, "kvm/work_done") + taken, 14_000);
    assert_eq!(tree.save().ledger.values().next().unwrap().raw[0], 14_000);
    let usage = tree.usage();
    assert_eq!((usage.sources, usage.processes, usage.directories), (0, 0, 2));
}

/// Segments that come later than what is said of them.
struct Late(Registry, Arc<AtomicUsize>);

impl statsfs::tree::Feed for Late {
    fn segments(&self) -> std::io::Result<Vec<std::os::fd::OwnedFd>> {
        let mut all = self.0.segments()?;
        all.truncate(self.1.load(SeqCst));
        Ok(all)
    }
}

#[test]
fn a_segment_may_come_later_than_what_is_said_of_it() {
    let tree = host();
    let small = statsfs::RegistryOptions { segment_size: 16 << 10, ..Default::default() };
    let registry = Registry::with_options(small).unwrap();
    let kvm = support::top(&registry);
    let sent = Arc::new(AtomicUsize::new(1));
    tree.join(Late(registry.clone(), sent.clone()), identity(1)).unwrap();
    let mut slots = Vec::new();
    for n in 0..200_u64 {
        let slot = below(&registry, &kvm, &format!("s{n}")).add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(1));
        slots.push(slot);
        // Somebody looks, and sees that there is one that was not sent yet.
        let seen = number(&tree, "top/work_done");
        assert!(seen <= n as i128 + 1);
    }
    let segments = registry.usage().segments;
    assert!(segments > 2, "{segments}");
    for now in 2..=segments {
        sent.store(now, SeqCst);
        number(&tree, "top/work_done");
    }
    assert_eq!(number(&tree, "top/work_done"), 200);
}
