//! Random sequences of everything that can be done to sources, against a [model](plain) in ordinary memory:
//! after every step all files show what the model says, and every refusal is one that the model expects.

mod groups;
mod plain;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use statsfs::tree::Tree;
use statsfs::value::{Aggregations, Semantics, ValueType};
use statsfs::{DynSlot, Registry, RegistryOptions, Source, SourceError};

use groups::{DECLARED, Declared, GROUPS};
use plain::{Model, Part, ROOT, is_narrow, shown_by, width_mask};
use support::{flat, list, node, rounds, try_number};

use Semantics::{Cumulative, Floating, Peak};

/// Two that clash with values, one with an aggregate's suffix.
const NAMES: [&str; 6] = ["s0", "s1", "s2", "a", "k.min", "h"];

#[derive(Clone, Debug)]
enum Op {
    Create { name: usize, hidden: bool },
    Add { parent: usize, child: usize },
    Register { source: usize },
    Remove { parent: usize, child: usize },
    RemoveRightly { child: usize },
    Revoke { source: usize },
    AddGroup { source: usize, group: usize },
    AddAggregates { source: usize },
    Count { slot: usize, value: usize, n: u64 },
    DropSlot { slot: usize },
    DropHandle { source: usize },
    Clear { at: usize },
    Fold,
}

fn op() -> impl Strategy<Value = Op> {
    let any = 0..1000usize;
    let number = prop_oneof![
        4 => 0..300u64,
        1 => Just(u64::MAX),
        1 => Just(i64::MIN as u64),
        1 => Just(i64::MAX as u64),
        1 => proptest::num::u64::ANY,
    ];
    prop_oneof![
        3 => (any.clone(), prop::bool::weighted(0.3))
            .prop_map(|(name, hidden)| Op::Create { name, hidden }),
        4 => (any.clone(), any.clone()).prop_map(|(parent, child)| Op::Add { parent, child }),
        2 => any.clone().prop_map(|source| Op::Register { source }),
        1 => (any.clone(), any.clone()).prop_map(|(parent, child)| Op::Remove { parent, child }),
        2 => any.clone().prop_map(|child| Op::RemoveRightly { child }),
        1 => any.clone().prop_map(|source| Op::Revoke { source }),
        6 => (any.clone(), any.clone()).prop_map(|(source, group)| Op::AddGroup { source, group }),
        1 => any.clone().prop_map(|source| Op::AddAggregates { source }),
        14 => (any.clone(), any.clone(), number)
            .prop_map(|(slot, value, n)| Op::Count { slot, value, n }),
        3 => any.clone().prop_map(|slot| Op::DropSlot { slot }),
        1 => any.clone().prop_map(|source| Op::DropHandle { source }),
        4 => any.prop_map(|at| Op::Clear { at }),
        2 => Just(Op::Fold),
    ]
}

struct Slot {
    slot: DynSlot,
    source: usize,
    group: usize,
    at: usize,
    revoked: bool,
}

struct World {
    registry: Registry,
    tree: Tree,
    model: Model,
    handles: Vec<Option<Source>>,
    slots: Vec<Slot>,
}

type Outcome = Result<(), TestCaseError>;

impl World {
    fn new() -> Self {
        let options =
            RegistryOptions { segment_size: 64 << 10, max_segments: 64, ..Default::default() };
        let registry = Registry::with_options(options).unwrap();
        let tree = registry.tree().unwrap();
        Self { registry, tree, model: Model::new(), handles: vec![None], slots: Vec::new() }
    }

    /// A source whose handle is held.
    fn pick(&self, n: usize) -> Option<usize> {
        let held: Vec<_> = (1..self.handles.len()).filter(|s| self.handles[*s].is_some()).collect();
        (!held.is_empty()).then(|| held[n % held.len()])
    }

    fn handle(&self, s: usize) -> &Source {
        self.handles[s].as_ref().unwrap()
    }

    /// Checks a refusal, or that there was none; `clash` is what would stand twice if it were done.
    fn agree(
        result: &Result<(), SourceError>,
        refusal: Option<&str>,
        clash: Option<String>,
    ) -> Result<bool, TestCaseError> {
        let is = match result {
            Ok(()) => "nothing",
            Err(SourceError::AlreadyExists { .. }) => "exists",
            Err(SourceError::HasParent { .. }) => "has a parent",
            Err(SourceError::Cycle(_)) => "cycle",
            Err(SourceError::NotSubordinate { .. }) => "not subordinate",
            Err(SourceError::Removed) => "removed",
            Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        let should = refusal.unwrap_or(if clash.is_some() { "exists" } else { "nothing" });
        prop_assert_eq!(is, should, "{:?}, {:?}", result, clash);
        Ok(result.is_ok())
    }

    fn attach(&mut self, parent: usize, child: usize) -> Outcome {
        let handle = self.handle(child).clone();
        let result = match parent {
            ROOT => handle.register(),
            parent => self.handle(parent).add_subordinate(&handle),
        };
        let model = &self.model;
        let refusal = if !model.is_live(parent) || !model.is_live(child) {
            Some("removed")
        } else if model.sources[child].parent == Some(parent) {
            Some("exists")
        } else if model.sources[child].parent.is_some() {
            Some("has a parent")
        } else if parent == child || model.ancestors(parent).contains(&child) {
            Some("cycle")
        } else {
            None
        };
        let mut after = model.clone();
        let clash = refusal.is_none().then(|| {
            after.attach(parent, child);
            after.clash()
        });
        if Self::agree(&result, refusal, clash.flatten())? {
            self.model = after;
        }
        Ok(())
    }

    fn leave(&mut self, s: usize, revoke: bool) {
        if revoke {
            let members = self.model.subtree(s);
            for slot in &mut self.slots {
                slot.revoked |= members.contains(&slot.source);
            }
        }
        self.model.leave(s, revoke);
    }

    fn step(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Create { name, hidden } => {
                let name = NAMES[name % NAMES.len()];
                let builder = self.registry.source(name);
                let builder = if hidden { builder.hidden() } else { builder };
                self.handles.push(Some(builder.create().unwrap()));
                self.model.create(name, hidden);
            }
            Op::Add { parent, child } => {
                if let (Some(parent), Some(child)) = (self.pick(parent), self.pick(child)) {
                    self.attach(parent, child)?;
                }
            }
            Op::Register { source } => {
                if let Some(source) = self.pick(source) {
                    self.attach(ROOT, source)?;
                }
            }
            Op::Remove { parent, child } => {
                if let (Some(parent), Some(child)) = (self.pick(parent), self.pick(child)) {
                    self.remove(parent, child)?;
                }
            }
            Op::RemoveRightly { child } => {
                if let Some(child) = self.pick(child)
                    && let Some(parent) = self.model.sources[child].parent
                    && parent != ROOT
                    && self.handles[parent].is_some()
                {
                    self.remove(parent, child)?;
                }
            }
            Op::Revoke { source } => {
                if let Some(source) = self.pick(source) {
                    let result = self.handle(source).revoke();
                    let refusal = (!self.model.is_live(source)).then_some("removed");
                    if Self::agree(&result, refusal, None)? {
                        self.leave(source, true);
                    }
                }
            }
            Op::AddGroup { source, group } => {
                if let Some(source) = self.pick(source) {
                    self.add_group(source, group % GROUPS.len())?;
                }
            }
            Op::AddAggregates { source } => {
                if let Some(source) = self.pick(source) {
                    let result = self.handle(source).add_aggregates::<Declared>();
                    let refusal = (!self.model.is_live(source)).then_some("removed");
                    let mut after = self.model.clone();
                    after.sources[source].explicit.insert(DECLARED);
                    let clash = refusal.is_none().then(|| after.clash()).flatten();
                    if Self::agree(&result, refusal, clash)? {
                        self.model = after;
                    }
                }
            }
            Op::Count { slot, value, n } => self.count(slot, value, n),
            Op::DropSlot { slot } => {
                if !self.slots.is_empty() {
                    let slot = self.slots.swap_remove(slot % self.slots.len());
                    let groups = &mut self.model.sources[slot.source].groups;
                    groups.get_mut(&slot.group).unwrap()[slot.at].in_use = false;
                }
            }
            Op::DropHandle { source } => {
                if let Some(source) = self.pick(source) {
                    self.handles[source] = None;
                    if self.model.is_live(source) && self.model.sources[source].parent.is_none() {
                        self.leave(source, false);
                    }
                }
            }
            Op::Clear { at } => self.clear(at)?,
            Op::Fold => drop(self.registry.usage()),
        }
        Ok(())
    }

    fn remove(&mut self, parent: usize, child: usize) -> Outcome {
        let result = self.handle(parent).remove_subordinate(self.handle(child));
        let refusal = if !self.model.is_live(child) {
            Some("removed")
        } else if self.model.sources[child].parent != Some(parent) {
            Some("not subordinate")
        } else {
            None
        };
        if Self::agree(&result, refusal, None)? {
            self.leave(child, false);
        }
        Ok(())
    }

    fn add_group(&mut self, source: usize, group: usize) -> Outcome {
        let result = self.handle(source).add_group(&GROUPS[group]);
        let refusal = (!self.model.is_live(source)).then_some("removed");
        let mut after = self.model.clone();
        let mut at = 0;
        let clash = refusal.is_none().then(|| {
            at = after.add_group(source, group);
            after.clash()
        });
        let (result, slot) = match result {
            Ok(slot) => (Ok(()), Some(slot)),
            Err(error) => (Err(error), None),
        };
        if Self::agree(&result, refusal, clash.flatten())? {
            self.model = after;
            let slot = slot.unwrap();
            self.slots.push(Slot { slot, source, group, at, revoked: false });
        }
        Ok(())
    }

    fn count(&mut self, slot: usize, value: usize, n: u64) {
        if self.slots.is_empty() {
            return;
        }
        let at = slot % self.slots.len();
        let Slot { ref slot, source, group, at, revoked } = self.slots[at];
        let value = value % GROUPS[group].values().len();
        let d = &GROUPS[group].values()[value];
        let mut scrap = Vec::new();
        let mut wrapped = false;
        let slots = self.model.sources[source].groups.get_mut(&group).unwrap();
        let several = slots.len() > 1;
        let cells = if revoked {
            scrap.resize(d.ty.cells(), 0);
            &mut scrap
        } else {
            &mut slots[at].raw[value]
        };
        match (d.ty, d.semantics) {
            (ValueType::Histogram { buckets, sum }, _) => {
                slot.record(value, n);
                // 0 for 0, k for 2^(k-1) and above, the last for all above.
                let k = (0..buckets as usize).rev().find(|k| *k == 0 || n >= 1 << (k - 1)).unwrap();
                cells[usize::from(sum) + k] += 1;
                if sum {
                    cells[0] = cells[0].wrapping_add(n);
                }
            }
            (ty, Cumulative) => {
                slot.add(value, n);
                let before = cells[0];
                cells[0] = cells[0].wrapping_add(n) & width_mask(ty);
                wrapped = is_narrow(d) && (cells[0] < before || several);
            }
            (ty, Floating) => {
                slot.set(value, n);
                cells[0] = ty.extend(n);
            }
            (ty, Peak) => {
                slot.set(value, n);
                let n = ty.extend(n);
                let higher = if ty.is_signed() { n as i64 > cells[0] as i64 } else { n > cells[0] };
                if higher {
                    cells[0] = n;
                }
            }
        }
        // A departed cell: what it was when the tree first saw that decides what it shows.
        if wrapped && self.model.looks_seldom && !self.model.is_live(source) {
            self.model.uncertain.insert(d.name.to_string());
        }
    }

    fn clear(&mut self, at: usize) -> Outcome {
        let dirs = self.model.directories();
        let (s, path) = dirs[at % dirs.len()].clone();
        let choice = at / dirs.len();
        let below = self.model.subtree(s);
        let whole = |dir: &str| format!("{path}{dir}.stats/clear");
        let files = self.model.files(s);
        let departed = self.model.departed_files(s);
        let pick = choice % (files.len() + departed.len() + 2);
        let (path, live, from, wanted, allowed) = if pick == 0 {
            (whole(""), below.clone(), below, None, true)
        } else if pick == 1 {
            (whole(".departed/"), vec![], vec![s], None, true)
        } else if pick < 2 + files.len() {
            let (name, identity, part) = files[pick - 2].clone();
            let (count, d) = (if part == Part::Histogram { "/count" } else { "" }, &identity.1);
            let own = part == Part::Own || d.aggregations.is_empty();
            let allowed = d.semantics == Cumulative
                && (part != Part::Aggregate(Aggregations::MIN)
                    && part != Part::Aggregate(Aggregations::MAX)
                    && part != Part::Aggregate(Aggregations::AVG));
            let path = format!("{path}{name}{count}");
            if own {
                (path, vec![s], vec![], Some(identity), allowed)
            } else {
                (path, below.clone(), below, Some(identity), allowed)
            }
        } else {
            let (name, identity) = departed[pick - 2 - files.len()].clone();
            let count = if identity.1.ty.is_histogram() { "/count" } else { "" };
            (format!("{path}.departed/{name}{count}"), vec![], vec![s], Some(identity), true)
        };
        match self.tree.clear(&path) {
            Ok(mut cleared) => {
                prop_assert!(allowed, "{} could be cleared", path);
                let mut taken = self.model.clear(&live, &from, wanted.as_ref());
                cleared.0.retain(|_, n| *n != 0);
                for name in &self.model.uncertain {
                    taken.remove(name);
                    cleared.0.remove(name);
                }
                prop_assert_eq!(cleared.0, taken, "clearing {}", path);
            }
            Err(error) => {
                prop_assert!(!allowed, "{} could not be cleared: {:?}", path, error);
                prop_assert_eq!(error.0, libc::EACCES);
            }
        }
        Ok(())
    }

    /// All that the tree shows is what the model says.
    fn check(&self, thoroughly: bool) -> Outcome {
        let mut shown = flat(&self.tree);
        let mut expected = self.model.flat();
        if thoroughly {
            for (path, value) in &shown {
                if !path.contains("/buckets/") {
                    let number = try_number(&self.tree, path);
                    prop_assert_eq!(number.map(|n| n.to_string()), Ok(value.clone()), "{}", path);
                }
            }
            for (s, path) in self.model.directories() {
                let dir = node(&self.tree, &path).unwrap();
                let names: BTreeSet<_> =
                    list(&self.tree, dir, 3).unwrap().into_iter().map(|(name, _)| name).collect();
                let files = self.model.files(s).into_iter().map(|(name, ..)| name);
                let dirs = self.model.shown_children(s);
                let dirs = dirs.into_iter().map(|c| self.model.sources[c].name.clone());
                prop_assert_eq!(names, files.chain(dirs).collect::<BTreeSet<_>>(), "in {}", path);
                for (name, identity) in self.model.departed_files(s) {
                    if self.model.uncertain.contains(&name) {
                        continue;
                    }
                    let count = if identity.1.ty.is_histogram() { "/count" } else { "" };
                    let path = format!("{path}.departed/{name}{count}");
                    let cells = self.model.departed(s, &identity);
                    let expected = i128::from(shown_by(&identity.1, &cells)[0].1);
                    prop_assert_eq!(try_number(&self.tree, &path), Ok(expected), "{}", path);
                }
            }
        }
        let is_certain = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or("");
            !self.model.uncertain.contains(name.split('.').next().unwrap_or(""))
        };
        shown.retain(|path, _| is_certain(path));
        expected.retain(|path, _| is_certain(path));
        for (path, value) in &expected {
            prop_assert_eq!(Some(value), shown.get(path), "{}", path);
        }
        prop_assert_eq!(shown.len(), expected.len(), "{:?}", shown);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(250) as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_tree_shows_what_a_model_says(
        ops in prop::collection::vec(op(), 1..80),
        // Looks at every step, or seldom, so that the tree meets many changes at once.
        every in prop_oneof![Just(1), 2..20usize],
    ) {
        let mut world = World::new();
        world.model.looks_seldom = every > 1;
        for (n, op) in ops.iter().enumerate() {
            let step = world.step(op);
            let look = n % every == 0 || n + 1 == ops.len();
            let checked = step.and_then(|()| if look { world.check(n % 7 == 0) } else { Ok(()) });
            if let Err(error) = checked {
                let done = &ops[..=n];
                return Err(TestCaseError::fail(format!("after {done:?}: {error}")));
            }
        }
        // Folding changes nothing that is shown, and a tree that has not seen it happen says the same,
        // but for what was cleared.
        world.registry.usage();
        world.check(true)?;
        world.tree = world.registry.tree().unwrap();
        for source in &mut world.model.sources {
            source.offset.clear();
            for cells in source.groups.values_mut().flatten() {
                cells.cleared.iter_mut().flatten().for_each(|cell| *cell = 0);
            }
        }
        world.model.uncertain.clear();
        world.check(true)?;
        // Everything can go, in any order.
        world.slots.truncate(world.slots.len() / 2);
        world.handles.clear();
        world.slots.clear();
    }
}
