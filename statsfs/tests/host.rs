//! A tree of many processes: who joins, is detached, comes back, is folded; names, links and owners.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::process::CommandExt;
use std::sync::{Arc, Mutex};

use statsfs::fs::{Caller, Kind, Nodes, ROOT};
use statsfs::segment::Limits;
use statsfs::tree::{Identity, Left, Numbers, Owner, ProcessKey, Tree, TreeError, TreeOptions};
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{DynSlot, Registry, Slot, Source};
use support::{Work, below, flat, list, node, number, try_number};

const READERS: u32 = 500;

fn host() -> Tree {
    let options = TreeOptions::new(Owner { uid: 0, gid: READERS });
    Tree::host(TreeOptions { pid_prefix: true, ..options })
}

fn identity(pid: u32) -> Identity {
    Identity { pid, uid: 1000 + pid, gid: 2000 + pid, is_host: false }
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

fn keep(_: &[Left]) -> std::io::Result<()> {
    Ok(())
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

    let mut left = Vec::new();
    tree.fold(one.key, |all| {
        left = all.to_vec();
        Ok(())
    })
    .unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((&*left[0].directory, left[0].group.name(), left[0].raw[0]), ("kvm", "work", 113));
    assert_eq!(tree.left(), left);
    assert_eq!(number(&tree, "kvm/work_done"), 117);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 113);
    assert_eq!(flat(&tree)["kvm/work_done"], "117");
    // Nobody looks any more.
    slot.update(|c| c.work_done.add(100));
    assert_eq!(number(&tree, "kvm/work_done"), 117);
    assert!(matches!(tree.reattach(one.key), Err(TreeError::NoProcess)));
    assert!(matches!(tree.fold(one.key, keep), Err(TreeError::NoProcess)));

    tree.fold(two.key, keep).unwrap();
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
    let next = host();
    next.restore(&tree.left()).unwrap();
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
    tree.fold(guests[1].key, keep).unwrap();
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
    tree.fold(guests[0].key, keep).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 5);
    tree.fold(guests[2].key, keep).unwrap();
    assert_eq!(tree.clear("kvm/.stats/clear").unwrap().0["work_done"], 25);
    assert_eq!(number(&tree, "kvm/work_done"), 0);
    assert_eq!(number(&tree, "kvm/work_time/sum"), 0);
    let left: u64 = tree.left().iter().map(|left| left.raw[0]).sum();
    assert_eq!(left, 36, "raw sums are what was counted");
    assert_eq!(tree.left()[0].cleared[0], 36);
    guests[3].count(2);
    tree.fold(guests[3].key, keep).unwrap();
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
    tree.fold(key, keep).unwrap();
    assert_eq!(see(), (100, 100));
    assert_eq!(tree.clear("kvm/n8").unwrap().0["n8"], 100);
    assert_eq!(see(), (0, 100));
}

#[test]
fn a_fold_that_can_not_be_kept_changes_nothing() {
    let tree = host();
    let guest = Guest::join(&tree, 1, "web");
    guest.count(3);
    let error = tree.fold(guest.key, |_| Err(std::io::Error::other("the disk is full")));
    assert!(matches!(error, Err(TreeError::Commit(_))));
    assert_eq!((tree.usage().processes, tree.usage().detached, tree.usage().left), (1, 1, 0));
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 3);
    tree.reattach(guest.key).unwrap();
    assert_eq!(number(&tree, "kvm/1-web/work_done"), 3);
}

#[test]
fn nobody_joins_twice() {
    let tree = host();
    let guest = Guest::join(&tree, 1, "web");
    let again = guest.registry.join(&tree, identity(2));
    assert!(matches!(again, Err(TreeError::Joined(key)) if key == guest.key));
    tree.detach(guest.key).unwrap();
    assert!(matches!(guest.registry.join(&tree, identity(1)), Err(TreeError::Joined(_))));
    tree.fold(guest.key, keep).unwrap();
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
    tree.fold(one.key, keep).unwrap();
    tree.fold(two.key, keep).unwrap();
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
    tree.fold(key, keep).unwrap();
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
    tree.fold(first, keep).unwrap();
    assert_eq!(number(&tree, "kvm/n"), 5);
    tree.fold(second, keep).unwrap();
    assert_eq!(number(&tree, "kvm/n"), 5);
    assert_eq!(tree.left().len(), 2);
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
    tree.fold(key, keep).unwrap();
    assert_eq!(see(), [110, 111, 1000]);
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 110);
    let mut left: Vec<_> =
        tree.left().iter().map(|left| (left.directory.clone(), left.raw[0])).collect();
    left.sort();
    assert_eq!(left, [("".into(), 1000), ("kvm".into(), 110), ("net".into(), 111)]);
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
            tree.render(node(&tree, &bulk).unwrap(), caller, &mut text).unwrap();
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
    let kvm = node(&tree, "kvm").unwrap();
    let by_name = node(&tree, "by-name").unwrap();
    let gone = Mutex::new(Vec::new());
    let wait = || {
        let mut all = Vec::new();
        tree.wait_gone(std::time::Duration::from_millis(1), &mut all);
        gone.lock().unwrap().extend(all.into_iter().map(|gone| (gone.parent, gone.name)));
    };
    wait();
    tree.detach(guest.key).unwrap();
    wait();
    let gone = gone.into_inner().unwrap();
    assert!(gone.contains(&(kvm, "1-web".to_owned())), "{gone:?}");
    assert!(gone.contains(&(by_name, "web".to_owned())), "{gone:?}");
}

#[test]
fn a_process_beyond_its_limits_is_let_go_and_told_why() {
    let options = TreeOptions::new(Owner { uid: 0, gid: READERS });
    let limits = Limits { sources: 4, ..Limits::default() };
    let tree = Tree::host(TreeOptions { pid_prefix: true, limits, ..options });
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

/// Numbers that are kept, as far as there are any.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Granted>>);

#[derive(Default)]
struct Granted {
    last: u64,
    blocks: HashMap<(u128, u64), u64>,
    names: HashMap<String, u64>,
    exhausted: bool,
}

impl Granted {
    fn next(&mut self) -> std::io::Result<u64> {
        if self.exhausted {
            return Err(std::io::Error::other("the disk is full"));
        }
        self.last += 1;
        Ok(self.last)
    }
}

impl Numbers for Kept {
    fn block(&mut self, publisher: u128, high: u64) -> std::io::Result<u64> {
        let mut granted = self.0.lock().unwrap();
        if let Some(block) = granted.blocks.get(&(publisher, high)) {
            return Ok(*block);
        }
        let block = granted.next()?;
        granted.blocks.insert((publisher, high), block);
        Ok(block)
    }

    fn directory(&mut self, name: &str) -> std::io::Result<u64> {
        let mut granted = self.0.lock().unwrap();
        if let Some(number) = granted.names.get(name) {
            return Ok(*number);
        }
        let number = granted.next()? << 12;
        granted.names.insert(name.to_owned(), number);
        Ok(number)
    }
}

#[test]
fn numbers_that_are_kept_outlast_the_tree() {
    let kept = Kept::default();
    let options = TreeOptions::new(Owner { uid: 0, gid: READERS });
    let options = TreeOptions { pid_prefix: true, ..options };
    let tree = Tree::host_with(options.clone(), kept.clone());
    let guest = Guest::join(&tree, 1, "web");
    let inner = below(&guest.registry, &guest.guest, "inner");
    let _slot = inner.add_values::<Work>().unwrap();
    let paths = ["kvm", "kvm/work_done", "kvm/1-web", "kvm/1-web/inner/work_done", "by-name/web"];
    let numbers = |tree: &Tree| paths.map(|path| node(tree, path).unwrap());
    let before = numbers(&tree);
    tree.detach(guest.key).unwrap();
    tree.reattach(guest.key).unwrap();
    assert_eq!(numbers(&tree), before);
    drop(tree);
    let tree = Tree::host_with(options, kept.clone());
    // Whoever comes first this time.
    let other = Guest::join(&tree, 2, "other");
    guest.registry.join(&tree, identity(1)).unwrap();
    assert_eq!(numbers(&tree), before);
    assert!(!before.contains(&node(&tree, "kvm/2-other").unwrap()));
    // What can not have one is not shown, but counts.
    kept.0.lock().unwrap().exhausted = true;
    let third = Guest::join(&tree, 3, "third");
    third.count(7);
    assert_eq!(try_number(&tree, "kvm/3-third/work_done").unwrap_err().0, libc::ENOENT);
    assert_eq!(number(&tree, "kvm/work_done"), 7);
    other.count(1);
    assert_eq!(number(&tree, "kvm/2-other/work_done"), 1);
}
