//! Random sequences of everything that can be done to sources, against a model in ordinary memory: after
//! every step all files show what the model says, and every refusal is one that the model expects.
//!
//! The model knows nothing of blocks, accumulators, folds or accounts. It keeps each slot's cells, and
//! what each of them was when it was last cleared; what departed stays as it is, with the name of the
//! source in whose total it counts.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use statsfs::tree::Tree;
use statsfs::value::{
    Aggregations, Descriptor, Group, GroupBuilder, GroupDescriptor, Semantics, Unit, ValueType,
};
use statsfs::{DynSlot, Registry, RegistryOptions, Source, SourceError};
use support::{flat, list, node, rounds, try_number};

use Semantics::{Cumulative, Floating, Peak};

const KINDS: [(Aggregations, &str); 6] = [
    (Aggregations::SUM, ""),
    (Aggregations::MIN, ".min"),
    (Aggregations::MAX, ".max"),
    (Aggregations::AVG, ".avg"),
    (Aggregations::COUNT_ZERO, ".zero"),
    (Aggregations::COUNT_NONZERO, ".nonzero"),
];

/// Every type, kind and semantics; two versions of one group that share a value; groups with the same
/// value name that may not meet; one without anything cumulative.
static GROUPS: LazyLock<Vec<Arc<GroupDescriptor>>> = LazyLock::new(|| {
    let value = |name: &'static str, ty, semantics, aggregations| {
        Descriptor::new(name, ty, semantics).aggregate(aggregations)
    };
    let histogram = |buckets, sum| ValueType::Histogram { buckets, sum };
    let (sum, none, all) = (Aggregations::SUM, Aggregations::NONE, Aggregations::ALL);
    let (min, max) = (Aggregations::MIN, Aggregations::MAX);
    let groups = [
        GroupBuilder::new("alpha")
            .value(value("a", ValueType::U64, Cumulative, sum).help("The first version's."))
            .value(value("b", ValueType::S32, Floating, all))
            .value(value("c", ValueType::U8, Cumulative, sum))
            .value(value("h", histogram(4, true), Cumulative, sum).unit(Unit::NANOSECONDS)),
        GroupBuilder::new("alpha")
            .consistent()
            .value(value("d", ValueType::U32, Peak, max))
            .value(value("a", ValueType::U64, Cumulative, sum).help("The second version's.")),
        GroupBuilder::new("beta")
            .consistent()
            .value(value("e", ValueType::Bool, Floating, Aggregations::COUNT_NONZERO))
            .value(value("f", ValueType::U16, Floating, none))
            .value(value("k", ValueType::U64, Cumulative, sum | min | max))
            .value(value("p", ValueType::S8, Peak, max | min))
            .value(value("q", ValueType::U16, Cumulative, sum | Aggregations::AVG)),
        GroupBuilder::new("gamma").value(value("a", ValueType::U64, Cumulative, sum)),
        GroupBuilder::new("delta")
            .value(value("i", histogram(3, false), Cumulative, none))
            .value(value("m", ValueType::U64, Cumulative, min))
            .value(value("n", ValueType::U32, Cumulative, none))
            .value(value("x", histogram(64, true), Cumulative, sum)),
        GroupBuilder::new("epsilon")
            .value(value("s", ValueType::S64, Floating, sum | Aggregations::AVG))
            .value(value("t", ValueType::S8, Floating, min))
            .value(value("z", ValueType::S16, Floating, Aggregations::COUNT_ZERO)),
    ];
    let mut groups: Vec<_> = groups.into_iter().map(|group| group.build().unwrap()).collect();
    groups.push(Declared::descriptor().clone());
    groups
});

/// The number of `Declared` among the groups.
const DECLARED: usize = 6;

statsfs::stats! {
    /// Groups with explicit aggregates are declared ones.
    pub struct Declared: "zeta" {
        /// Has a name that others have too.
        a: Counter,
        /// Has aggregates but no sum.
        y: Gauge<i32> { aggregate: [min, max] },
    }
}

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

// ---- the model -----------------------------------------------------------------------------------

const ROOT: usize = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Live,
    /// Counts in the total of what departed from this source, or of that from which it departed, ….
    Departed(usize),
    Gone,
}

/// One slot's cells, by value; raw, and as they were at the last clear.
#[derive(Clone, Debug)]
struct Cells {
    raw: Vec<Vec<u64>>,
    cleared: Vec<Vec<u64>>,
    in_use: bool,
}

#[derive(Clone, Debug)]
struct Src {
    name: String,
    hidden: bool,
    parent: Option<usize>,
    life: Life,
    groups: BTreeMap<usize, Vec<Cells>>,
    explicit: BTreeSet<usize>,
    /// Groups that something below has had, with anything cumulative.
    totals: BTreeSet<usize>,
    /// For narrow values of a departed source: what its 64-bit sum showed nothing of.
    offset: HashMap<(usize, usize), i64>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    sources: Vec<Src>,
    /// A narrow cell wrapped between a clear and its departure, and may have been folded before the tree
    /// saw that: then what its totals show is known only modulo its width.
    uncertain: BTreeSet<String>,
}

/// What makes a value the same in two groups.
type Identity = (String, Descriptor);

fn identity(group: &GroupDescriptor, value: usize) -> Identity {
    let value = Descriptor { help: "".into(), ..group.values()[value].clone() };
    (group.name().to_owned(), value)
}

fn width_mask(ty: ValueType) -> u64 {
    if ty.width() == 8 { u64::MAX } else { (1 << (8 * ty.width())) - 1 }
}

fn is_narrow(value: &Descriptor) -> bool {
    value.ty.width() < 8
}

/// What a file is of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Own,
    Aggregate(Aggregations),
    Histogram,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        model.create("", false);
        model
    }

    fn create(&mut self, name: &str, hidden: bool) -> usize {
        self.sources.push(Src {
            name: name.to_owned(),
            hidden,
            parent: None,
            life: Life::Live,
            groups: BTreeMap::new(),
            explicit: BTreeSet::new(),
            totals: BTreeSet::new(),
            offset: HashMap::new(),
        });
        self.sources.len() - 1
    }

    fn is_live(&self, s: usize) -> bool {
        self.sources[s].life == Life::Live
    }

    fn children(&self, s: usize) -> impl Iterator<Item = usize> + '_ {
        (1..self.sources.len())
            .filter(move |c| self.is_live(*c) && self.sources[*c].parent == Some(s))
    }

    /// A live source and all live ones below it.
    fn subtree(&self, s: usize) -> Vec<usize> {
        let mut all = vec![s];
        let mut at = 0;
        while at < all.len() {
            let below: Vec<_> = self.children(all[at]).collect();
            all.extend(below);
            at += 1;
        }
        all
    }

    fn ancestors(&self, s: usize) -> Vec<usize> {
        std::iter::successors(self.sources[s].parent, |at| self.sources[*at].parent).collect()
    }

    /// In whose total a departed source counts.
    fn counts_in(&self, s: usize) -> Option<usize> {
        match self.sources[s].life {
            Life::Departed(into) => match self.sources[into].life {
                Life::Live => Some(into),
                _ => self.counts_in(into),
            },
            _ => None,
        }
    }

    /// Everything that goes on the account of what departed from `s`.
    fn departed_from(&self, s: usize) -> Vec<usize> {
        (1..self.sources.len()).filter(|d| self.counts_in(*d) == Some(s)).collect()
    }

    /// The directories and values that are visible in `s`, which is taken for visible itself.
    fn shown_children(&self, s: usize) -> Vec<usize> {
        let below = self
            .children(s)
            .flat_map(|c| if self.sources[c].hidden { self.shown_children(c) } else { vec![c] });
        below.collect()
    }

    fn identities(
        &self,
        groups: impl IntoIterator<Item = usize>,
    ) -> BTreeMap<String, Vec<Identity>> {
        let mut all: BTreeMap<String, Vec<Identity>> = BTreeMap::new();
        for group in groups {
            for value in 0..GROUPS[group].values().len() {
                let identity = identity(&GROUPS[group], value);
                let named = all.entry(identity.1.name.to_string()).or_default();
                if !named.contains(&identity) {
                    named.push(identity);
                }
            }
        }
        all
    }

    /// The files of a source's directory.
    fn files(&self, s: usize) -> Vec<(String, Identity, Part)> {
        if s == ROOT {
            return Vec::new();
        }
        let source = &self.sources[s];
        let own = self.identities(source.groups.keys().copied());
        let below = self.subtree(s).into_iter().skip(1);
        let below: Vec<_> = below.flat_map(|b| self.sources[b].groups.keys().copied()).collect();
        let below = self.identities(
            below.into_iter().chain(source.totals.iter().chain(&source.explicit).copied()),
        );
        let mut all = Vec::new();
        let names: BTreeSet<_> = own.keys().chain(below.keys()).cloned().collect();
        for name in names {
            let empty = Vec::new();
            let (own, below) =
                (own.get(&name).unwrap_or(&empty), below.get(&name).unwrap_or(&empty));
            let identities: Vec<_> =
                own.iter().chain(below.iter().filter(|i| !own.contains(i))).cloned().collect();
            for identity in identities {
                let (own, below) = (own.contains(&identity), below.contains(&identity));
                let kinds = identity.1.aggregations;
                if identity.1.ty.is_histogram() {
                    if own || !kinds.is_empty() {
                        all.push((name.clone(), identity, Part::Histogram));
                    }
                    continue;
                }
                if below {
                    for (kind, suffix) in KINDS {
                        if kinds.contains(kind) {
                            let suffix = if kinds.len() == 1 { "" } else { suffix };
                            let part = Part::Aggregate(kind);
                            all.push((format!("{name}{suffix}"), identity.clone(), part));
                        }
                    }
                }
                let plain_is_taken =
                    below && (kinds.len() == 1 || kinds.contains(Aggregations::SUM));
                if own && !plain_is_taken {
                    all.push((name.clone(), identity, Part::Own));
                }
            }
        }
        all
    }

    /// The first name that stands twice anywhere: in the directory of any live source, attached or not, as
    /// if it were visible.
    fn clash(&self) -> Option<String> {
        for s in 0..self.sources.len() {
            if !self.is_live(s) {
                continue;
            }
            let files = self.files(s).into_iter().map(|(name, ..)| name);
            let dirs = self.shown_children(s).into_iter().map(|c| self.sources[c].name.clone());
            let mut names = BTreeSet::new();
            if let Some(twice) = files.chain(dirs).find(|name| !names.insert(name.clone())) {
                return Some(twice);
            }
            // Two groups of one source never have one value.
            let mut own = BTreeSet::new();
            for group in self.sources[s].groups.keys() {
                for value in GROUPS[*group].values() {
                    if !own.insert(value.name.clone()) {
                        return Some(value.name.to_string());
                    }
                }
            }
        }
        None
    }

    // ---- values ----

    /// What a live source shows of an identity: its cells since the last clear, all slots combined.
    fn instance(&self, s: usize, identity_wanted: &Identity) -> Option<Vec<u64>> {
        let (group, value) = self.find(s, identity_wanted)?;
        let d = &identity_wanted.1;
        let mut shown: Option<Vec<u64>> = None;
        for cells in &self.sources[s].groups[&group] {
            let since = cells.raw[value].iter().zip(&cells.cleared[value]);
            let since: Vec<_> = since
                .map(|(raw, cleared)| match d.semantics {
                    Cumulative => raw.wrapping_sub(*cleared),
                    _ => *raw,
                })
                .collect();
            shown = Some(match shown {
                None => since,
                Some(shown) => shown
                    .into_iter()
                    .zip(since)
                    .map(|(a, b)| match (d.ty, d.semantics) {
                        (ValueType::Bool, _) => a | b,
                        (_, Peak) if d.ty.is_signed() => (a as i64).max(b as i64) as u64,
                        (_, Peak) => a.max(b),
                        _ => a.wrapping_add(b),
                    })
                    .collect(),
            });
        }
        Some(shown?.into_iter().map(|cell| d.ty.extend(cell & width_mask(d.ty))).collect())
    }

    fn find(&self, s: usize, wanted: &Identity) -> Option<(usize, usize)> {
        self.sources[s].groups.keys().find_map(|group| {
            let values = 0..GROUPS[*group].values().len();
            let value = values.into_iter().find(|v| identity(&GROUPS[*group], *v) == *wanted)?;
            Some((*group, value))
        })
    }

    /// What is shown of an identity on the account of what departed from `s`: 64-bit sums.
    fn departed(&self, s: usize, identity: &Identity) -> Vec<u64> {
        let d = &identity.1;
        let mut by_group: BTreeMap<usize, Vec<i128>> = BTreeMap::new();
        for from in self.departed_from(s) {
            let Some((group, value)) = self.find(from, identity) else { continue };
            let sums = by_group.entry(group).or_insert_with(|| vec![0; d.ty.cells()]);
            for cells in &self.sources[from].groups[&group] {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let raw = cells.raw[value][n];
                    *sum += i128::from(if is_narrow(d) {
                        raw
                    } else {
                        raw.wrapping_sub(cells.cleared[value][n])
                    });
                }
            }
            if is_narrow(d) {
                let offset = self.sources[from].offset.get(&(group, value)).copied().unwrap_or(0);
                sums[0] -= i128::from(offset);
            }
        }
        let mut total = vec![0u64; d.ty.cells()];
        for sums in by_group.into_values() {
            for (total, sum) in total.iter_mut().zip(sums) {
                // A narrow cell that wraps while it still counts takes more away than there is.
                let sum = if is_narrow(d) { sum.max(0) as u64 } else { sum as u64 };
                *total = total.wrapping_add(sum);
            }
        }
        total
    }

    /// What a part of a value shows in a directory: cells of a histogram, or one number as text.
    fn show(&self, s: usize, identity: &Identity, part: Part, out: &mut Vec<(String, String)>) {
        let d = &identity.1;
        let below = self.subtree(s);
        let own_only = part == Part::Own || d.ty.is_histogram() && d.aggregations.is_empty();
        let over = if own_only { vec![s] } else { below };
        let instances: Vec<_> = over.iter().filter_map(|b| self.instance(*b, identity)).collect();
        let mut cells = vec![0u64; d.ty.cells()];
        let departed = over
            .iter()
            .filter(|_| !own_only && d.semantics == Cumulative)
            .map(|b| self.departed(*b, identity));
        for from in instances.iter().cloned().chain(departed) {
            cells.iter_mut().zip(from).for_each(|(sum, n)| *sum = sum.wrapping_add(n));
        }
        if let ValueType::Histogram { sum, .. } = d.ty {
            show_histogram(&cells, sum, out);
            return;
        }
        let text = |bits: u64| {
            if d.ty.is_signed() { (bits as i64).to_string() } else { bits.to_string() }
        };
        let numbers: Vec<i128> = instances
            .iter()
            .map(|i| if d.ty.is_signed() { i128::from(i[0] as i64) } else { i128::from(i[0]) })
            .collect();
        let zero = numbers.iter().filter(|n| **n == 0).count();
        let shown = match part {
            Part::Own => text(instances.first().map_or(0, |i| i[0])),
            Part::Aggregate(kind) if kind == Aggregations::SUM => text(cells[0]),
            Part::Aggregate(kind) if kind == Aggregations::COUNT_ZERO => zero.to_string(),
            Part::Aggregate(kind) if kind == Aggregations::COUNT_NONZERO => {
                (numbers.len() - zero).to_string()
            }
            Part::Aggregate(kind) => {
                let number = if kind == Aggregations::MIN {
                    numbers.iter().min().copied()
                } else if kind == Aggregations::MAX {
                    numbers.iter().max().copied()
                } else {
                    numbers.iter().sum::<i128>().checked_div(numbers.len() as i128)
                };
                number.unwrap_or(0).to_string()
            }
            Part::Histogram => unreachable!("handled above"),
        };
        out.push((String::new(), shown));
    }

    /// Everything that a tree shows: `flat`.
    fn flat(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        self.flat_dir(ROOT, "", &mut all);
        all
    }

    fn flat_dir(&self, s: usize, prefix: &str, all: &mut BTreeMap<String, String>) {
        for (name, identity, part) in self.files(s) {
            let mut lines = Vec::new();
            self.show(s, &identity, part, &mut lines);
            for (field, value) in lines {
                assert!(all.insert(format!("{prefix}{name}{field}"), value).is_none());
            }
        }
        for child in self.shown_children(s) {
            let prefix = format!("{prefix}{}/", self.sources[child].name);
            self.flat_dir(child, &prefix, all);
        }
    }

    /// All visible sources with their paths, the root's empty.
    fn directories(&self) -> Vec<(usize, String)> {
        let mut all = vec![(ROOT, String::new())];
        let mut at = 0;
        while at < all.len() {
            let (s, path) = all[at].clone();
            for child in self.shown_children(s) {
                all.push((child, format!("{path}{}/", self.sources[child].name)));
            }
            at += 1;
        }
        all
    }

    /// What is in a directory's `.departed`. The root shows no values, so that names may meet there: then
    /// one of them has it.
    fn departed_files(&self, s: usize) -> Vec<(String, Identity)> {
        let all = self.identities(self.sources[s].totals.iter().copied());
        let all = all.into_values().filter(|named| named.len() == 1).flatten();
        all.filter(|i| i.1.semantics == Cumulative).map(|i| (i.1.name.to_string(), i)).collect()
    }

    // ---- changes ----

    fn reserve(&mut self, s: usize, groups: &BTreeSet<usize>) {
        let cumulative = groups.iter().filter(|g| GROUPS[**g].has_cumulative());
        self.sources[s].totals.extend(cumulative);
    }

    fn attach(&mut self, parent: usize, child: usize) {
        self.sources[child].parent = Some(parent);
        let below = self.subtree(child);
        let groups = below.iter().flat_map(|b| self.sources[*b].groups.keys().copied()).collect();
        for above in self.ancestors(child) {
            self.reserve(above, &groups);
        }
    }

    fn add_group(&mut self, s: usize, group: usize) -> usize {
        let new = !self.sources[s].groups.contains_key(&group);
        let zero: Vec<_> = GROUPS[group].values().iter().map(|v| vec![0; v.ty.cells()]).collect();
        let slots = self.sources[s].groups.entry(group).or_default();
        let at = slots.iter().position(|cells| !cells.in_use).unwrap_or(slots.len());
        if at == slots.len() {
            slots.push(Cells { raw: zero.clone(), cleared: zero, in_use: false });
        }
        slots[at].in_use = true;
        if new {
            for above in self.ancestors(s) {
                self.reserve(above, &BTreeSet::from([group]));
            }
        }
        at
    }

    fn leave(&mut self, s: usize) {
        let into = self.sources[s].parent;
        for member in self.subtree(s) {
            if into.is_some() {
                self.freeze_narrow(member);
            }
            self.sources[member].life = into.map_or(Life::Gone, Life::Departed);
        }
        if into.is_none() {
            // What departed inside it goes as well.
            for d in 1..self.sources.len() {
                if let Life::Departed(into) = self.sources[d].life
                    && self.sources[into].life == Life::Gone
                {
                    self.sources[d].life = Life::Gone;
                }
            }
        }
    }

    /// Narrow cells go over into 64-bit sums, which go on from what they showed.
    fn freeze_narrow(&mut self, s: usize) {
        let groups: Vec<_> = self.sources[s].groups.keys().copied().collect();
        for group in groups {
            for (value, d) in GROUPS[group].values().iter().enumerate() {
                if !is_narrow(d) || d.semantics != Cumulative {
                    continue;
                }
                let slots = &self.sources[s].groups[&group];
                let raw: u64 = slots.iter().map(|cells| cells.raw[value][0]).sum();
                let base: u64 = slots.iter().map(|cells| cells.cleared[value][0]).sum();
                let base = base & width_mask(d.ty);
                if base == 0 {
                    continue;
                }
                let shown = raw.wrapping_sub(base) & width_mask(d.ty);
                let offset = raw as i64 - shown as i64;
                if offset != base as i64 && slots.iter().any(|cells| !cells.in_use) {
                    self.uncertain.insert(d.name.to_string());
                }
                self.sources[s].offset.insert((group, value), offset);
            }
        }
    }

    /// Clears the instances of an identity (or of all) in some sources, and what departed from others.
    fn clear(
        &mut self,
        live: &[usize],
        departed: &[usize],
        wanted: Option<&Identity>,
    ) -> BTreeMap<String, u64> {
        let mut taken: BTreeMap<String, u64> = BTreeMap::new();
        let mut all = BTreeSet::new();
        for group in GROUPS.iter() {
            for value in 0..group.values().len() {
                let identity = identity(group, value);
                if wanted.is_none_or(|wanted| *wanted == identity)
                    && identity.1.semantics == Cumulative
                    && all.insert(format!("{identity:?}"))
                {
                    let took = taken.entry(identity.1.name.to_string()).or_default();
                    for s in live {
                        if let Some(cells) = self.instance(*s, &identity) {
                            *took = took.wrapping_add(count_of(&identity.1, &cells));
                            self.clear_cells(*s, &identity);
                        }
                    }
                    for s in departed {
                        let cells = self.departed(*s, &identity);
                        *took = took.wrapping_add(count_of(&identity.1, &cells));
                        for from in self.departed_from(*s) {
                            self.clear_cells(from, &identity);
                        }
                    }
                }
            }
        }
        taken.retain(|_, n| *n != 0);
        taken
    }

    fn clear_cells(&mut self, s: usize, identity: &Identity) {
        let Some((group, value)) = self.find(s, identity) else { return };
        let source = &mut self.sources[s];
        let slots = source.groups.get_mut(&group).unwrap();
        for cells in slots.iter_mut() {
            cells.cleared[value] = cells.raw[value].clone();
        }
        if source.life != Life::Live && is_narrow(&identity.1) {
            let raw: u64 = slots.iter().map(|cells| cells.raw[value][0]).sum();
            source.offset.insert((group, value), raw as i64);
        }
    }
}

fn count_of(d: &Descriptor, cells: &[u64]) -> u64 {
    match d.ty {
        ValueType::Histogram { sum, .. } => {
            cells[usize::from(sum)..].iter().fold(0, |n, b| n.wrapping_add(*b))
        }
        _ => cells[0],
    }
}

fn show_histogram(cells: &[u64], sum: bool, out: &mut Vec<(String, String)>) {
    let buckets = &cells[usize::from(sum)..];
    let count: u64 = buckets.iter().fold(0, |n, b| n.wrapping_add(*b));
    let mut line = |field: &str, n: u64| out.push((format!("/{field}"), n.to_string()));
    line("count", count);
    if sum {
        line("sum", cells[0]);
        line("mean", if count == 0 { 0 } else { cells[0] / count });
    }
    // Bounds of the values that a bucket holds; the open one's are both its lower.
    let bounds = |k: usize| {
        let lower = if k == 0 { 0 } else { 1u64 << (k - 1) };
        (lower, if k + 1 == buckets.len() { lower } else { (1 << k) - 1 })
    };
    for percent in [50u128, 90, 99] {
        let rank = (u128::from(count) * percent).div_ceil(100).max(1);
        let (mut before, mut shown) = (0u128, 0);
        for (k, n) in buckets.iter().enumerate() {
            let n = u128::from(*n);
            if count > 0 && before < rank && rank <= before + n {
                let (lower, upper) = bounds(k);
                shown = lower + (u128::from(upper - lower) * (rank - before) / n) as u64;
            }
            before += n;
        }
        line(&format!("p{percent}"), shown);
    }
    line("max", buckets.iter().rposition(|n| *n > 0).map_or(0, |k| bounds(k).1));
    for (k, n) in buckets.iter().enumerate() {
        let upper = if k + 1 == buckets.len() { "inf".to_owned() } else { (1u64 << k).to_string() };
        line(&format!("buckets/{upper}"), *n);
    }
}

// ---- both ----------------------------------------------------------------------------------------

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
        let options = RegistryOptions { segment_size: 64 << 10, max_segments: 64 };
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
        self.model.leave(s);
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
        let slots = self.model.sources[source].groups.get_mut(&group).unwrap();
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
                cells[0] = cells[0].wrapping_add(n) & width_mask(ty);
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
                    let expected = i128::from(count_of(&identity.1, &cells));
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
    fn a_tree_shows_what_a_model_says(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        for (n, op) in ops.iter().enumerate() {
            let step = world.step(op);
            let checked = step.and_then(|()| world.check(n % 7 == 0));
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
