//! What of a tree of many processes outlasts it: after each step a tree that begins with what was kept last
//! shows what the one before showed, and what could not be kept did not happen.

mod support;

use std::io;
use std::sync::{Arc, Mutex};

use statsfs::tree::{
    Identity, Keeper, Occasion, Owner, ProcessKey, Saved, SavedAccount, SavedDirectory, Tree,
    TreeError, TreeOptions,
};
use statsfs::value::{Descriptor, GroupBuilder, Semantics, ValueType};
use statsfs::{Registry, RegistryOptions, Slot, Source};
use support::{Work, below, flat, node, number, try_number, until};

fn options() -> TreeOptions {
    TreeOptions { pid_prefix: true, ..TreeOptions::new(Owner { uid: 0, gid: 500 }) }
}

fn identity(pid: u32) -> Identity {
    Identity { pid, uid: 1000 + pid, gid: 2000 + pid, is_public: true, is_host: false }
}

/// What was kept last, of what, and whether there is room for more.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    saved: Saved,
    occasions: Vec<Occasion>,
    is_full: bool,
}

impl Keeper for Kept {
    fn keep(&mut self, saved: &Saved, occasion: Occasion) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.is_full {
            return Err(io::Error::other("no space left"));
        }
        inner.saved = saved.clone();
        inner.occasions.push(occasion);
        Ok(())
    }
}

impl Kept {
    fn host(&self) -> Tree {
        let tree = Tree::host_from(self.saved(), options()).unwrap();
        tree.keep_by(self.clone()).unwrap();
        tree
    }

    fn saved(&self) -> Saved {
        self.0.lock().unwrap().saved.clone()
    }

    fn occasions(&self) -> Vec<Occasion> {
        std::mem::take(&mut self.0.lock().unwrap().occasions)
    }

    fn is_full(&self, is_full: bool) {
        self.0.lock().unwrap().is_full = is_full;
    }
}

struct Guest {
    registry: Registry,
    vm: Source,
    slot: Slot<Work>,
    pid: u32,
}

impl Guest {
    fn new(pid: u32) -> Self {
        let registry = Registry::new().unwrap();
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let vm = registry.source("vm").private().create().unwrap();
        kvm.add_subordinate(&vm).unwrap();
        let slot = vm.add_values().unwrap();
        Self { registry, vm, slot, pid }
    }

    fn join(&self, tree: &Tree) -> ProcessKey {
        self.registry.join(tree, identity(self.pid)).unwrap()
    }

    fn count(&self, n: u64) {
        count(&self.slot, n);
    }
}

fn count(slot: &Slot<Work>, n: u64) {
    slot.update(|c| c.work_done.add(n));
    slot.work_time.record(n);
}

#[test]
fn a_tree_carries_on_where_another_stopped() {
    let kept = Kept::default();
    let guests: Vec<_> = (1..=3).map(Guest::new).collect();
    let inner = below(&guests[0].registry, &guests[0].vm, "inner");
    let inner_slot = inner.add_values::<Work>().unwrap();
    let paths = ["kvm", "kvm/work_done", "kvm/1-vm", "kvm/1-vm/inner/work_done", "by-name/vm"];
    type Step<'a> = &'a dyn Fn(&Tree, &[ProcessKey]);
    let steps: [Step<'_>; 7] = [
        &|_, _| guests.iter().for_each(|guest| guest.count(10)),
        &|tree, _| assert_eq!(tree.clear("kvm/1-vm/work_done").unwrap().0["work_done"], 10),
        &|_, _| count(&inner_slot, 5),
        &|tree, _| assert_eq!(tree.clear("kvm/work_done").unwrap().0["work_done"], 25),
        &|_, _| guests.iter().for_each(|guest| guest.count(3)),
        &|tree, keys| tree.fold(keys[2]).unwrap(),
        &|tree, _| assert_eq!(tree.clear("kvm/.departed/.stats/clear").unwrap().0["work_done"], 3),
    ];
    let mut tree = kept.host();
    let join = |tree: &Tree, n: usize| guests[..n].iter().map(|g| g.join(tree)).collect::<Vec<_>>();
    let mut keys = join(&tree, 3);
    let numbers = |tree: &Tree| paths.map(|path| node(tree, path).unwrap());
    let before = numbers(&tree);
    for (n, step) in steps.iter().enumerate() {
        step(&tree, &keys);
        let shown = flat(&tree);
        let saved = tree.save();
        assert_eq!(saved, kept.saved(), "step {n}: what is there is what was kept");
        drop(tree);
        tree = kept.host();
        let Saved { next_block, .. } = tree.save();
        assert!(next_block >= saved.next_block);
        let again = Saved { next_block: saved.next_block, ..tree.save() };
        assert_eq!(again, saved, "step {n}: nobody is back yet, and nothing is forgotten");
        keys = join(&tree, if n < 5 { 3 } else { 2 });
        assert_eq!(flat(&tree), shown, "step {n}");
        assert_eq!(numbers(&tree), before, "step {n}");
    }
    assert_eq!(number(&tree, "kvm/work_done"), 6);
    assert_eq!(number(&tree, "kvm/.departed/work_time/count"), 0);
    let usage = tree.usage();
    assert_eq!((usage.processes, usage.left, usage.groups, usage.directories), (2, 1, 1, 5));
    // Who does not come back is forgotten when the server says so.
    drop(tree);
    let tree = kept.host();
    let publisher = *tree.save().grants.keys().map(|(publisher, _)| publisher).next().unwrap();
    tree.forget(publisher);
    let saved = tree.save();
    assert!(saved.grants.keys().all(|grant| grant.0 != publisher));
    assert!(saved.baselines.keys().all(|account| account.publisher != publisher));
    assert!(saved.parents.keys().all(|source| source.0 != publisher));
    assert_eq!(saved.grants.len(), 1);
}

/// The last that comes back finds its directories as well, whatever else it has.
#[test]
fn directories_at_the_top_keep_their_numbers() {
    let kept = Kept::default();
    let tree = kept.host();
    let options = RegistryOptions { segment_size: 4 << 20, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let kvm = registry.create_source("kvm").unwrap();
    kvm.register().unwrap();
    let _many: Vec<_> = (0..3000).map(|n| below(&registry, &kvm, &format!("s{n}"))).collect();
    // Far behind what is taken over at first.
    let last = registry.create_source("last").unwrap();
    last.register().unwrap();
    let slot = last.add_values::<Work>().unwrap();
    count(&slot, 1);
    registry.join(&tree, identity(1)).unwrap();
    let see = |tree: &Tree| ["kvm", "last", "kvm/1-s2999"].map(|path| node(tree, path).unwrap());
    let before = see(&tree);
    drop(tree);
    let tree = kept.host();
    let stranger = Registry::new().unwrap();
    stranger.create_source("other").unwrap().register().unwrap();
    stranger.join(&tree, identity(2)).unwrap();
    registry.join(&tree, identity(1)).unwrap();
    assert_eq!(see(&tree), before);
    // What nobody has any more, and in which nothing was counted, is forgotten.
    drop(tree);
    let tree = kept.host();
    assert!(tree.save().directories.contains_key("other"));
    let publishers: Vec<_> = tree.save().grants.keys().map(|(publisher, _)| *publisher).collect();
    publishers.into_iter().for_each(|publisher| tree.forget(publisher));
    assert!(tree.save().directories.is_empty());
}

/// A baseline is of counts, which may have gone elsewhere while nobody looked.
#[test]
fn baselines_find_their_counts_wherever_these_have_gone() {
    for folded in [false, true] {
        let kept = Kept::default();
        let tree = kept.host();
        let guest = Guest::new(1);
        let [a, b, c] = ["a", "b", "c"].map(|name| below(&guest.registry, &guest.vm, name));
        let [a_in, b_in] = [&a, &b].map(|source| below(&guest.registry, source, "in"));
        let slots = [&a, &b, &c, &a_in, &b_in].map(|s| s.add_values::<Work>().unwrap());
        guest.join(&tree);
        slots.iter().for_each(|slot| count(slot, 100));
        // Something departed before, too, and was cleared there.
        let gone = below(&guest.registry, &b, "gone");
        count(&gone.add_values().unwrap(), 100);
        b.remove_subordinate(&gone).unwrap();
        assert_eq!(tree.clear("kvm/1-vm/.stats/clear").unwrap().0["work_done"], 600);
        slots.iter().for_each(|slot| count(slot, 1));
        drop(tree);
        // All of `a` leaves, then what is in `b`, then `b`; `c` stays.
        guest.vm.remove_subordinate(&a).unwrap();
        b.remove_subordinate(&b_in).unwrap();
        guest.vm.remove_subordinate(&b).unwrap();
        slots.iter().for_each(|slot| count(slot, 1));
        let mut slots = slots.map(Some);
        if folded {
            // Their slots are gone as well, so they are folded, and their records with them.
            for n in [0, 1, 3, 4] {
                slots[n] = None;
            }
            drop((a, b, a_in, b_in, gone));
            until("all is folded", || guest.registry.usage().sources == 3);
        }
        let tree = kept.host();
        guest.join(&tree);
        assert_eq!(number(&tree, "kvm/work_done"), 10, "folded: {folded}");
        assert_eq!(number(&tree, "kvm/1-vm/.departed/work_done"), 8);
        assert_eq!(number(&tree, "kvm/1-vm/c/work_done"), 2);
        assert_eq!(number(&tree, "kvm/work_time/count"), 10);
        assert_eq!(tree.clear("kvm/work_done").unwrap().0["work_done"], 10);
        let kept_now = kept.saved();
        assert!(kept_now.parents.values().all(|parent| *parent > 1));
        drop(tree);
        guest.count(7);
        let tree = kept.host();
        guest.join(&tree);
        assert_eq!(number(&tree, "kvm/work_done"), 7, "folded: {folded}");
        drop(slots);
    }
}

#[test]
fn what_can_not_be_kept_does_not_happen() {
    let kept = Kept::default();
    let tree = kept.host();
    let guest = Guest::new(1);
    let key = guest.join(&tree);
    guest.count(3);
    assert_eq!(kept.occasions(), [Occasion::Asked, Occasion::Granted]);
    let before = kept.saved();
    kept.is_full(true);
    for path in ["kvm/work_done", "kvm/1-vm/.stats/clear", ".stats/clear"] {
        assert_eq!(tree.clear(path).unwrap_err().0, libc::EIO);
        assert_eq!(number(&tree, "kvm/work_done"), 3);
        assert_eq!(tree.usage().baselines, 0);
    }
    assert!(matches!(tree.fold(key), Err(TreeError::Commit(_))));
    assert_eq!((tree.usage().processes, tree.usage().detached, tree.usage().left), (1, 1, 0));
    assert_eq!(number(&tree, "kvm/.departed/work_done"), 3);
    tree.reattach(key).unwrap();
    assert_eq!(number(&tree, "kvm/1-vm/work_done"), 3);
    assert!(tree.keep().is_err());
    assert_eq!(tree.save(), before);
    kept.is_full(false);
    assert_eq!(tree.clear("kvm/work_done").unwrap().0["work_done"], 3);
    guest.count(2);
    kept.is_full(true);
    // A baseline that was there is there again.
    assert!(tree.clear("kvm/work_done").is_err());
    assert_eq!(number(&tree, "kvm/work_done"), 2);
    kept.is_full(false);
    tree.fold(key).unwrap();
    tree.keep().unwrap();
    let occasions = kept.occasions();
    assert!(matches!(occasions[..], [Occasion::Cleared, Occasion::Folded(_), Occasion::Asked]));
    let left = kept.saved().ledger.into_values().next().unwrap();
    assert_eq!((left.raw[0], left.cleared[0]), (5, 3));
}

#[test]
fn numbers_that_can_not_be_kept_are_not_used_up() {
    let kept = Kept::default();
    let tree = kept.host();
    kept.is_full(true);
    // There are some in advance.
    let guests: Vec<_> = (1..=300).map(Guest::new).collect();
    let keys: Vec<_> = guests.iter().map(|guest| guest.join(&tree)).collect();
    guests.iter().for_each(|guest| guest.count(1));
    assert_eq!(number(&tree, "kvm/work_done"), 300, "what has no directory counts all the same");
    let number_of = |pid: u32| try_number(&tree, &format!("kvm/{pid}-vm/work_done"));
    assert_eq!(number_of(1).unwrap(), 1);
    assert_eq!(number_of(300).unwrap_err().0, libc::ENOENT);
    let shown = (1..=300).filter(|pid| number_of(*pid).is_ok()).count();
    assert_eq!(tree.usage().left_out, 300 - shown);
    // One of those that wait is gone, and none of them is folded into something else.
    kept.is_full(false);
    tree.fold(keys[299]).unwrap();
    until("there are numbers", || (1..300).all(|pid| number_of(pid).is_ok()));
    assert_eq!(tree.usage().left_out, 0);
    assert_eq!(number(&tree, "kvm/work_done"), 300);
    let last = node(&tree, "kvm/299-vm").unwrap();
    let all: std::collections::HashSet<_> =
        (1..300).map(|pid| node(&tree, &format!("kvm/{pid}-vm")).unwrap()).collect();
    assert_eq!(all.len(), 299);
    drop(tree);
    let tree = kept.host();
    // Whoever comes first this time.
    let new = Guest::new(777);
    new.join(&tree);
    guests[298].join(&tree);
    assert_eq!(node(&tree, "kvm/299-vm").unwrap(), last);
    assert!(!all.contains(&node(&tree, "kvm/777-vm").unwrap()));
}

/// Whoever came first holds a name, also when it comes back last.
#[test]
fn names_are_held_by_who_held_them() {
    let of = |group: &'static str| {
        let value = Descriptor::new("n", ValueType::U64, Semantics::Cumulative);
        GroupBuilder::new(group).value(value).build().unwrap()
    };
    let make = |pid: u32, group: &'static str, n: u64| {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("kvm").unwrap();
        top.register().unwrap();
        let slot = below(&registry, &top, "vm").add_group(&of(group)).unwrap();
        slot.add(0, n);
        (registry, identity(pid), slot)
    };
    let all = [make(1, "one", 5), make(2, "two", 70)];
    let kept = Kept::default();
    let tree = kept.host();
    all.iter().for_each(|(registry, identity, _)| {
        registry.join(&tree, *identity).unwrap();
    });
    assert_eq!(number(&tree, "kvm/n"), 5);
    let before = node(&tree, "kvm/n").unwrap();
    drop(tree);
    let tree = kept.host();
    all.iter().rev().for_each(|(registry, identity, _)| {
        registry.join(&tree, *identity).unwrap();
    });
    assert_eq!((number(&tree, "kvm/n"), node(&tree, "kvm/n").unwrap()), (5, before));
    assert_eq!(number(&tree, "kvm/2-vm/n"), 70);
}

#[test]
fn what_can_not_have_been_kept_is_refused() {
    let kept = Kept::default();
    let tree = kept.host();
    let guests = [Guest::new(1), Guest::new(2), Guest::new(3)];
    let keys: Vec<_> = guests.iter().map(|guest| guest.join(&tree)).collect();
    guests.iter().for_each(|guest| guest.count(1));
    tree.fold(keys[2]).unwrap();
    tree.clear("kvm/work_done").unwrap();
    let good = kept.saved();
    assert!(Tree::host_from(good.clone(), options()).is_ok());
    let blocks: Vec<_> = good.grants.keys().copied().collect();
    let bad: [&dyn Fn(&mut Saved); 13] = [
        &|saved| saved.next_block = 0,
        &|saved| saved.next_block = 2,
        &|saved| saved.next_block = u64::MAX,
        &|saved| *saved.grants.get_mut(&blocks[0]).unwrap() = saved.grants[&blocks[1]],
        &|saved| *saved.grants.get_mut(&blocks[0]).unwrap() = 0,
        &|saved| saved.directories.get_mut("kvm").unwrap().number = saved.grants[&blocks[0]] << 12,
        &|saved| saved.directories.get_mut("kvm").unwrap().number = 1,
        &|saved| saved.directories.get_mut("kvm").unwrap().admitted.push(1 << 16),
        &|saved| drop(saved.directories.insert("a/b".into(), SavedDirectory::default())),
        &|saved| saved.groups.push(saved.groups[0].clone()),
        &|saved| saved.groups.clear(),
        &|saved| saved.ledger.values_mut().for_each(|left| left.raw = Box::from([1])),
        &|saved| {
            let account = SavedAccount { publisher: 1, source: 2, departed: false, group: 9 };
            saved.baselines.insert(account, Box::from([1]));
        },
    ];
    for (n, spoil) in bad.iter().enumerate() {
        let mut saved = good.clone();
        spoil(&mut saved);
        let error = Tree::host_from(saved, options()).unwrap_err();
        assert!(matches!(error, TreeError::Saved(_)), "{n}: {error:?}");
    }
}
