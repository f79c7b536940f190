//! How much of what a tree has kept is whose: whatever processes do, all of it fits, no user has so much of it that
//! the others have none, and what processes counted always has room.

mod support;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use statsfs::fs::{Caller, Errno, Nodes};
use statsfs::host::state::State;
use statsfs::tree::{
    Identity, Keeper, Occasion, Owner, ProcessKey, Saved, Tree, TreeError, TreeOptions, UserLimits,
};
use statsfs::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};
use statsfs::{DynSlot, Registry, Source};
use support::{below, node, number, try_number};

/// Users who publish; whoever owns the tree is none of them.
const A: u32 = 50;
const B: u32 = 51;

const VALUES: usize = 32;

fn group(name: &str, ty: ValueType) -> Arc<GroupDescriptor> {
    let value = |n| Descriptor::new(format!("{name}_n{n}"), ty, Semantics::Cumulative);
    let group =
        (0..VALUES).fold(GroupBuilder::new(name.to_owned()), |group, n| group.value(value(n)));
    group.build().unwrap()
}

/// What was kept last, of which there may be so many bytes.
#[derive(Clone)]
struct Kept {
    most: usize,
    saved: Arc<Mutex<Saved>>,
}

impl Keeper for Kept {
    fn keep(&mut self, saved: &Saved, _: Occasion) -> io::Result<()> {
        let bytes = encoded(saved);
        if bytes > self.most {
            return Err(io::Error::other(format!("{bytes} bytes are too many")));
        }
        *self.saved.lock().unwrap() = saved.clone();
        Ok(())
    }
}

fn encoded(saved: &Saved) -> usize {
    let state = State { tree: saved.clone(), ..State::default() };
    state.encode().unwrap().len()
}

impl Kept {
    fn of(kept_bytes: usize) -> Self {
        Self { most: kept_bytes, saved: Arc::default() }
    }

    fn saved(&self) -> Saved {
        self.saved.lock().unwrap().clone()
    }

    /// A tree that carries on with what was kept.
    fn tree(&self) -> Tree {
        let options = TreeOptions {
            pid_prefix: true,
            kept_bytes: self.most,
            // Bytes are in the way, nothing else.
            user_limits: UserLimits { groups: 1 << 20, values: 1 << 20, directories: 1 << 20 },
            ..TreeOptions::new(Owner { uid: 0, gid: 500 })
        };
        let tree = Tree::host_from(self.saved(), options).unwrap();
        tree.keep_by(self.clone()).unwrap();
        tree
    }
}

/// A process, and what it has.
struct Member {
    pid: u32,
    registry: Registry,
    top: Source,
    slots: Vec<DynSlot>,
    _sources: Vec<Source>,
}

impl Member {
    /// One with a directory at the top level.
    fn new(top: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let registry = Registry::new().unwrap();
        let top = registry.create_source(top).unwrap();
        top.register().unwrap();
        let pid = NEXT.fetch_add(1, SeqCst);
        Self { pid, registry, top, slots: Vec::new(), _sources: Vec::new() }
    }

    /// With a source of this name that counts as much as can be in all values of a group.
    fn counts(mut self, name: &str, group: &Arc<GroupDescriptor>) -> Self {
        let source = below(&self.registry, &self.top, name);
        self.slots.push(source.add_group(group).unwrap());
        self._sources.push(source);
        self.full()
    }

    /// The same in a source that is not shown: what it leaves is at the root.
    fn counts_at_the_root(mut self, group: &Arc<GroupDescriptor>) -> Self {
        let hidden = self.registry.source("hidden").hidden().create().unwrap();
        hidden.register().unwrap();
        self.slots.push(hidden.add_group(group).unwrap());
        self._sources.push(hidden);
        self.full()
    }

    fn full(self) -> Self {
        let slot = self.slots.last().unwrap();
        (0..VALUES).for_each(|value| slot.add(value, u64::MAX));
        self
    }

    fn join(&self, tree: &Tree, uid: u32) -> Result<ProcessKey, TreeError> {
        let identity = Identity { pid: self.pid, uid, gid: uid, is_public: true, is_host: false };
        self.registry.join(tree, identity)
    }
}

/// Clears as this user.
fn clear(tree: &Tree, uid: u32, path: &str) -> Result<(), Errno> {
    tree.write(node(tree, path).unwrap(), Caller { uid, gid: uid, pid: 0 }, b"0")
}

fn is_limited(error: &TreeError) -> bool {
    matches!(error, TreeError::Limit { .. } | TreeError::LimitOfAll { .. })
}

#[test]
fn whatever_users_bring_and_clear_all_of_it_fits() {
    const KEPT: usize = 2 << 20;
    for ty in [ValueType::U64, ValueType::U32] {
        let kept = Kept::of(KEPT);
        let tree = kept.tree();
        let (mut all, mut of_first, mut users) = (Vec::new(), 0, 0);
        // Each brings what it may, until one can not bring anything.
        for uid in 1000.. {
            let mut brought = 0;
            let error = loop {
                let name = format!("of{uid}n{brought}");
                let group = group(&name, ty);
                let member = Member::new(&name).counts("s", &group).counts_at_the_root(&group);
                match member.join(&tree, uid) {
                    Ok(key) => all.push((key, member)),
                    Err(error) => break error,
                }
                brought += 1;
            };
            assert!(is_limited(&error), "{error}");
            if users == 0 {
                let what = "bytes kept of groups and directories";
                let limit = KEPT / 16 * 3 / 2;
                let says = format!("user {uid} has more {what} than the limit of {limit}");
                assert_eq!(error.to_string(), says);
                of_first = brought;
            }
            users += 1;
            if brought == 0 {
                break;
            }
        }
        assert!(users > 10 && of_first < all.len(), "{users}, {of_first} of {}", all.len());
        // All that can be is kept of all of it.
        tree.clear(".stats/clear").unwrap();
        assert!(all.len() < tree.usage().baselines);
        for (key, _) in &all {
            tree.fold(*key).unwrap();
        }
        tree.clear(".stats/clear").unwrap();
        let saved = kept.saved();
        assert_eq!(saved.ledger.len(), 2 * all.len());
        let bytes = encoded(&saved);
        println!("{ty:?}: {} processes of {users} users, {bytes} bytes", all.len());
        // But for the directories that is all that was reckoned with, and nearly as much as that.
        let reckoned = KEPT / 16 * 3 + 80 * all.len();
        assert!(bytes < reckoned, "{bytes} of {reckoned}");
        // So also for a tree that carries on there is no more room, and what is there is no obstacle.
        drop(tree);
        let tree = kept.tree();
        let later = ["later", "later1", "later2"]
            .iter()
            .fold(Member::new("later"), |member, name| member.counts(name, &group(name, ty)));
        let error = later.join(&tree, 1).unwrap_err();
        assert!(matches!(error, TreeError::LimitOfAll { .. }), "{error}");
        let (_, member) = &all[0];
        let again = Member::new(member.top.name()).counts("s", &group(member.top.name(), ty));
        let key = again.join(&tree, 1).unwrap();
        tree.fold(key).unwrap();
    }
}

#[test]
fn a_user_who_brings_all_that_may_be_leaves_room_for_others() {
    let kept = Kept::of(512 << 10);
    let tree = kept.tree();
    let mut all = Vec::new();
    let shared = group("shared", ValueType::U64);
    // Directories by directories, of one group.
    let error = loop {
        let name = format!("a{}", all.len());
        let member = Member::new(&name).counts("s", &shared);
        match member.join(&tree, A) {
            Ok(key) => all.push((key, member)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TreeError::Limit { uid: A, .. }), "{error}");
    let directories = all.len();
    assert_eq!(tree.usage().processes, directories, "nothing came of the last one");
    assert_eq!(tree.usage().directories, 2 * directories + 1);
    // One that is there, and brings more, is let go; what others have there is not touched.
    let (key, grows) = &all[0];
    let more = below(&grows.registry, &grows.top, "more");
    let _slot = more.add_group(&group("more", ValueType::U64)).unwrap();
    assert_eq!(tree.usage().processes, directories - 1);
    let refused = tree.refused();
    assert_eq!((refused.len(), refused[0].process), (1, *key));
    assert!(matches!(refused[0].error, TreeError::Limit { uid: A, .. }));
    // What is there costs nothing.
    let again = Member::new("a1").counts("s", &shared).join(&tree, A).unwrap();
    // Others have room, also in these directories.
    let b = Member::new("a2").counts("s", &group("b", ValueType::U64));
    let key = b.join(&tree, B).unwrap();
    for key in all[1..].iter().map(|(key, _)| *key).chain([again, key]) {
        tree.fold(key).unwrap();
    }
    assert_eq!(number(&tree, "a1/shared_n0"), i128::from(u64::MAX - 1));
    assert_eq!(number(&tree, "a2/.departed/b_n0"), i128::from(u64::MAX));
}

#[test]
fn room_is_free_again_when_nothing_is_left_there() {
    let kept = Kept::of(128 << 10);
    let tree = kept.tree();
    let shared = group("shared", ValueType::U64);
    // More often than there is room for a directory's values, or for blocks of numbers, at once.
    for n in 0..400 {
        let member = Member::new(&format!("a{n}"));
        let source = below(&member.registry, &member.top, "s");
        let _slot = source.add_group(&shared).unwrap();
        let key = member.join(&tree, A).unwrap();
        let shown = format!("a{n}/{}-s/shared_n0", member.pid);
        assert_eq!(try_number(&tree, &shown), Ok(0), "{n}");
        tree.fold(key).unwrap();
    }
}

#[test]
fn who_clears_all_that_may_be_leaves_room_for_others() {
    let kept = Kept::of(128 << 10);
    let tree = kept.tree();
    let shared = group("shared", ValueType::U64);
    let many = |n: usize| {
        (0..n).fold(Member::new("kvm"), |member, n| member.counts(&format!("s{n}"), &shared))
    };
    let of = |member: &Member, n: usize, file: &str| format!("kvm/{}-s{n}/{file}", member.pid);
    let clear_one = |tree: &Tree, uid: u32, member: &Member, n: usize| {
        clear(tree, uid, &of(member, n, ".stats/clear"))
    };
    let clear_some = |tree: &Tree, uid: u32, member: &Member| {
        (0..member.slots.len()).take_while(|n| clear_one(tree, uid, member, *n).is_ok()).count()
    };
    let shows = |tree: &Tree, member: &Member, n: usize| {
        number(tree, &of(member, n, &format!("shared_n{}", VALUES - 1)))
    };
    let (a, b) = (many(150), many(1));
    a.join(&tree, A).unwrap();
    let b_key = b.join(&tree, B).unwrap();
    let cleared = clear_some(&tree, A, &a);
    assert!((1..a.slots.len()).contains(&cleared), "{cleared}");
    let before = kept.saved();
    assert_eq!(clear_one(&tree, A, &a, cleared), Err(Errno(libc::EDQUOT)));
    assert_eq!(shows(&tree, &a, cleared - 1), 0);
    assert_eq!(shows(&tree, &a, cleared), i128::from(u64::MAX));
    assert_eq!(kept.saved(), before, "nothing came of it");
    // What takes no more than before is no matter.
    assert_eq!(clear_one(&tree, A, &a, 0), Ok(()));
    // Others clear.
    assert_eq!(clear_one(&tree, B, &b, 0), Ok(()));
    assert_eq!(shows(&tree, &b, 0), 0);
    // Whoever owns the tree clears more than a user may, all of it at once.
    tree.clear("kvm/.stats/clear").unwrap();
    assert_eq!(number(&tree, "kvm/shared_n0"), 0);
    // But not all that there can be.
    let more = many(60);
    more.join(&tree, A + 7).unwrap();
    let total = number(&tree, "kvm/shared_n0");
    assert_eq!(clear(&tree, 0, "kvm/.stats/clear"), Err(Errno(libc::EDQUOT)));
    assert_eq!(number(&tree, "kvm/shared_n0"), total);
    // What was cleared stays so when it is left.
    tree.fold(b_key).unwrap();
    assert_eq!(number(&tree, "kvm/.departed/shared_n0"), 0);
    // Together users may have no more than that, but for those who have little.
    let cleared = clear_some(&tree, A + 7, &more);
    assert!((1..more.slots.len()).contains(&cleared), "{cleared}");
    let small = many(1);
    small.join(&tree, A + 8).unwrap();
    assert_eq!(clear_one(&tree, A + 8, &small, 0), Ok(()));
    let total = number(&tree, "kvm/shared_n0");
    drop(tree);
    // All the same where another tree carries on.
    let tree = kept.tree();
    assert_eq!(number(&tree, "kvm/.departed/shared_n0"), 0);
    more.join(&tree, A + 7).unwrap();
    assert_eq!(
        clear_some(&tree, A + 7, &more),
        cleared,
        "what was cleared of others takes its room"
    );
    a.join(&tree, A).unwrap();
    small.join(&tree, A + 8).unwrap();
    assert_eq!(number(&tree, "kvm/shared_n0"), total);
}

#[test]
fn what_was_cleared_of_narrow_cells_has_room_wherever_it_goes() {
    let kept = Kept::of(128 << 10);
    let tree = kept.tree();
    let group = group("narrow", ValueType::U32);
    let member = Member::new("kvm");
    let all: Vec<_> = (0..200)
        .map(|n| {
            let above = below(&member.registry, &member.top, &format!("above{n}"));
            let source = below(&member.registry, &above, "s");
            let slot = source.add_group(&group).unwrap();
            (0..VALUES).for_each(|value| slot.add(value, u64::from(u32::MAX)));
            (above, source, slot)
        })
        .collect();
    member.join(&tree, A).unwrap();
    let clear =
        |n: &usize| clear(&tree, A, &format!("kvm/{}-above{n}/s/.stats/clear", member.pid)).is_ok();
    let cleared = (0..all.len()).take_while(clear).count();
    assert!((1..all.len()).contains(&cleared), "{cleared}");
    // They wrap, and leave: in sums of 64 bits what was cleared is less than nothing.
    for (above, source, slot) in &all[..cleared] {
        (0..VALUES).for_each(|value| slot.add(value, 2));
        above.remove_subordinate(source).unwrap();
    }
    let shown = format!("kvm/{}-above0/.departed/narrow_n0", member.pid);
    assert_eq!(number(&tree, &shown), 2);
    let saved = tree.save();
    let bytes =
        encoded(&saved) - encoded(&Saved { baselines: Default::default(), ..saved.clone() });
    let half = kept.most / 16 * 11 / 2;
    assert!(bytes <= half, "{bytes} of {half}");
}
