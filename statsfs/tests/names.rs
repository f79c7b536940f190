//! Names, few and used again and again, for sources, hidden ones among them, and for values: whatever a
//! registry admits, in its tree nothing is left out and nothing stands twice.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use statsfs::tree::Tree;
use statsfs::value::{
    Aggregations, Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType,
};
use statsfs::{DynSlot, Registry, Source, SourceError};
use support::{Random, list, node, rounds};

const NAMES: [&str; 5] = ["a", "b", "n", "n.min", "n.max"];

fn group(name: &'static str, values: &[(&'static str, Aggregations)]) -> Arc<GroupDescriptor> {
    let group = values.iter().fold(GroupBuilder::new(name), |group, (name, kinds)| {
        let value = Descriptor::new(*name, ValueType::S32, Semantics::Floating);
        group.value(value.aggregate(*kinds))
    });
    group.build().unwrap()
}

fn groups() -> Vec<Arc<GroupDescriptor>> {
    let (sum, none) = (Aggregations::SUM, Aggregations::NONE);
    vec![
        group("one", &[("a", sum)]),
        group("two", &[("n", Aggregations::MIN | Aggregations::MAX)]),
        group("three", &[("n", sum), ("b", none)]),
        group("four", &[("n", Aggregations::MAX)]),
        group("five", &[("a", sum | Aggregations::MIN)]),
    ]
}

/// What there is, by the rules: the parent of each source, and whether it is hidden.
#[derive(Default)]
struct Model {
    sources: Vec<Option<(Source, bool, Option<usize>)>>,
    slots: Vec<DynSlot>,
}

impl Model {
    /// Whether it hangs at the top level, whatever is in between.
    fn is_attached(&self, mut at: usize, top: usize) -> bool {
        loop {
            match self.sources[at] {
                _ if at == top => return true,
                Some((_, _, Some(above))) => at = above,
                _ => return false,
            }
        }
    }

    /// The path of a visible source that is attached, from below the top.
    fn path(&self, mut at: usize) -> Vec<String> {
        let mut path = Vec::new();
        while let Some((source, hidden, above)) = &self.sources[at] {
            if !hidden {
                path.push(source.name().to_owned());
            }
            match above {
                Some(above) => at = *above,
                None => break,
            }
        }
        path.reverse();
        path
    }
}

/// Every directory's names, each of which must be there once.
fn directories(tree: &Tree, path: &str, all: &mut BTreeMap<String, BTreeSet<String>>) {
    let entries = list(tree, node(tree, path).unwrap(), 1000).unwrap();
    let mut names = BTreeSet::new();
    for (name, _) in entries {
        assert!(names.insert(name.clone()), "{name} is in {path} twice");
    }
    for name in &names {
        let below = format!("{path}/{name}");
        if list(tree, node(tree, &below).unwrap(), 1).is_ok() {
            directories(tree, &below, all);
        }
    }
    all.insert(path.to_owned(), names);
}

fn one_round(seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let registry = Registry::new().unwrap();
    let tree = registry.tree().unwrap();
    let groups = groups();
    let mut model = Model::default();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    model.sources.push(Some((top, false, None)));
    let (mut admitted, mut refused) = (0, 0);
    let mut outcome = |result: Result<(), SourceError>| match result {
        Ok(()) => {
            admitted += 1;
            true
        }
        Err(SourceError::AlreadyExists { .. }) => {
            refused += 1;
            false
        }
        Err(SourceError::HasParent { .. } | SourceError::Cycle(_)) => false,
        Err(error) => panic!("{error}"),
    };
    for _ in 0..150 {
        let there: Vec<_> =
            (0..model.sources.len()).filter(|n| model.sources[*n].is_some()).collect();
        let pick = |random: &mut Random| there[random.below(there.len() as u64) as usize];
        let at = pick(&mut random);
        let (source, _, parent) = model.sources[at].as_ref().unwrap();
        match random.below(10) {
            0..3 => {
                let hidden = random.one_in(3);
                let name = NAMES[random.below(NAMES.len() as u64) as usize];
                let builder = registry.source(name);
                let builder = if hidden { builder.hidden() } else { builder };
                model.sources.push(Some((builder.create().unwrap(), hidden, None)));
            }
            3..6 => {
                let child = pick(&mut random);
                let below = &model.sources[child].as_ref().unwrap().0;
                if child > 0 && outcome(source.add_subordinate(below)) {
                    model.sources[child].as_mut().unwrap().2 = Some(at);
                }
            }
            6..8 => {
                let group = &groups[random.below(groups.len() as u64) as usize];
                let mut slot = None;
                outcome(source.add_group(group).map(|added| slot = Some(added)));
                model.slots.extend(slot.filter(|_| random.one_in(2)));
            }
            8 => {
                if let Some(above) = *parent {
                    let above = &model.sources[above].as_ref().unwrap().0;
                    above.remove_subordinate(source).unwrap();
                    let gone: Vec<_> =
                        there.iter().filter(|n| model.is_attached(**n, at)).copied().collect();
                    gone.into_iter().for_each(|n| model.sources[n] = None);
                }
            }
            _ => drop(registry.usage()),
        }
        let mut shown = BTreeMap::new();
        directories(&tree, "top", &mut shown);
        for n in (1..model.sources.len()).filter(|n| model.sources[*n].is_some()) {
            let (_, hidden, _) = model.sources[n].as_ref().unwrap();
            if !hidden && model.is_attached(n, 0) {
                let path = model.path(n).join("/");
                assert!(shown.contains_key(&path), "{path} is left out");
            }
        }
        let usage = tree.usage();
        assert_eq!((usage.left_out, usage.clashes), (0, 0));
    }
    (admitted, refused)
}

#[test]
fn what_a_registry_admits_is_there_once() {
    let seed = support::seed();
    let all = rounds(60) as u64;
    let (mut admitted, mut refused) = (0, 0);
    for round in 0..all {
        let (more, less) = one_round(seed.wrapping_add(round));
        (admitted, refused) = (admitted + more, refused + less);
    }
    // In some rounds few are refused.
    assert!(admitted > 10 * all && refused > 3 * all, "{admitted} admitted, {refused} refused");
}
