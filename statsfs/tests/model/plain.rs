//! The model: sources in ordinary memory.
//!
//! It knows nothing of blocks, accumulators, folds or accounts. It keeps each slot's cells, and what each
//! of them was when it was last cleared; what departed stays as it is, with the name of the source in
//! whose total it counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use statsfs::value::{Aggregations, Descriptor, GroupDescriptor, Semantics, ValueType};

use crate::groups::GROUPS;

use Semantics::{Cumulative, Peak};

const KINDS: [(Aggregations, &str); 6] = [
    (Aggregations::SUM, ""),
    (Aggregations::MIN, ".min"),
    (Aggregations::MAX, ".max"),
    (Aggregations::AVG, ".avg"),
    (Aggregations::COUNT_ZERO, ".zero"),
    (Aggregations::COUNT_NONZERO, ".nonzero"),
];

pub const ROOT: usize = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Life {
    Live,
    /// Counts in the total of what departed from this source, or of that from which it departed, ….
    Departed(usize),
    Gone,
}

/// One slot's cells, by value; raw, and as they were at the last clear.
#[derive(Clone, Debug)]
pub struct Cells {
    pub raw: Vec<Vec<u64>>,
    pub cleared: Vec<Vec<u64>>,
    pub in_use: bool,
}

#[derive(Clone, Debug)]
pub struct Src {
    pub name: String,
    pub hidden: bool,
    pub parent: Option<usize>,
    pub life: Life,
    pub groups: BTreeMap<usize, Vec<Cells>>,
    pub explicit: BTreeSet<usize>,
    /// Groups that something below has had, with anything cumulative.
    pub totals: BTreeSet<usize>,
    /// For narrow values of a departed source: what its 64-bit sum showed nothing of.
    pub offset: HashMap<(usize, usize), i64>,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub sources: Vec<Src>,
    /// A narrow cell wrapped between a clear and its departure, and may have been folded before the tree
    /// saw that: then what its totals show is known only modulo its width.
    pub uncertain: BTreeSet<String>,
    /// Whether the tree may see several changes at once.
    pub looks_seldom: bool,
}

/// What makes a value the same in two groups.
pub type Identity = (String, Descriptor);

pub fn identity(group: &GroupDescriptor, value: usize) -> Identity {
    let value = Descriptor { help: "".into(), ..group.values()[value].clone() };
    (group.name().to_owned(), value)
}

pub fn width_mask(ty: ValueType) -> u64 {
    if ty.width() == 8 { u64::MAX } else { (1 << (8 * ty.width())) - 1 }
}

pub fn is_narrow(value: &Descriptor) -> bool {
    value.ty.width() < 8
}

/// What a file is of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    Own,
    Aggregate(Aggregations),
    Histogram,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self::default();
        model.create("", false);
        model
    }

    pub fn create(&mut self, name: &str, hidden: bool) -> usize {
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

    pub fn is_live(&self, s: usize) -> bool {
        self.sources[s].life == Life::Live
    }

    pub fn children(&self, s: usize) -> impl Iterator<Item = usize> + '_ {
        (1..self.sources.len())
            .filter(move |c| self.is_live(*c) && self.sources[*c].parent == Some(s))
    }

    /// A live source and all live ones below it.
    pub fn subtree(&self, s: usize) -> Vec<usize> {
        let mut all = vec![s];
        let mut at = 0;
        while at < all.len() {
            let below: Vec<_> = self.children(all[at]).collect();
            all.extend(below);
            at += 1;
        }
        all
    }

    pub fn ancestors(&self, s: usize) -> Vec<usize> {
        std::iter::successors(self.sources[s].parent, |at| self.sources[*at].parent).collect()
    }

    /// In whose total a departed source counts.
    pub fn counts_in(&self, s: usize) -> Option<usize> {
        match self.sources[s].life {
            Life::Departed(into) => match self.sources[into].life {
                Life::Live => Some(into),
                _ => self.counts_in(into),
            },
            _ => None,
        }
    }

    /// Everything that goes on the account of what departed from `s`.
    pub fn departed_from(&self, s: usize) -> Vec<usize> {
        (1..self.sources.len()).filter(|d| self.counts_in(*d) == Some(s)).collect()
    }

    /// The directories and values that are visible in `s`, which is taken for visible itself.
    pub fn shown_children(&self, s: usize) -> Vec<usize> {
        let below = self
            .children(s)
            .flat_map(|c| if self.sources[c].hidden { self.shown_children(c) } else { vec![c] });
        below.collect()
    }

    pub fn identities(
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
    pub fn files(&self, s: usize) -> Vec<(String, Identity, Part)> {
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
    pub fn clash(&self) -> Option<String> {
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
    pub fn instance(&self, s: usize, identity_wanted: &Identity) -> Option<Vec<u64>> {
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

    pub fn find(&self, s: usize, wanted: &Identity) -> Option<(usize, usize)> {
        self.sources[s].groups.keys().find_map(|group| {
            let values = 0..GROUPS[*group].values().len();
            let value = values.into_iter().find(|v| identity(&GROUPS[*group], *v) == *wanted)?;
            Some((*group, value))
        })
    }

    /// What is shown of an identity on the account of what departed from `s`: 64-bit sums.
    pub fn departed(&self, s: usize, identity: &Identity) -> Vec<u64> {
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
    pub fn show(&self, s: usize, identity: &Identity, part: Part, out: &mut Vec<(String, String)>) {
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
    pub fn flat(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        self.flat_dir(ROOT, "", &mut all);
        all
    }

    pub fn flat_dir(&self, s: usize, prefix: &str, all: &mut BTreeMap<String, String>) {
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
    pub fn directories(&self) -> Vec<(usize, String)> {
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
    pub fn departed_files(&self, s: usize) -> Vec<(String, Identity)> {
        let all = self.identities(self.sources[s].totals.iter().copied());
        let all = all.into_values().filter(|named| named.len() == 1).flatten();
        all.filter(|i| i.1.semantics == Cumulative).map(|i| (i.1.name.to_string(), i)).collect()
    }

    // ---- changes ----

    pub fn reserve(&mut self, s: usize, groups: &BTreeSet<usize>) {
        let cumulative = groups.iter().filter(|g| GROUPS[**g].has_cumulative());
        self.sources[s].totals.extend(cumulative);
    }

    pub fn attach(&mut self, parent: usize, child: usize) {
        self.sources[child].parent = Some(parent);
        let below = self.subtree(child);
        let groups = below.iter().flat_map(|b| {
            let Src { groups, totals, .. } = &self.sources[*b];
            groups.keys().chain(totals).copied()
        });
        let groups = groups.collect();
        for above in self.ancestors(child) {
            self.reserve(above, &groups);
        }
    }

    pub fn add_group(&mut self, s: usize, group: usize) -> usize {
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

    /// `revoked`: all its slots are at once as if they were dropped.
    pub fn leave(&mut self, s: usize, revoked: bool) {
        let into = self.sources[s].parent;
        for member in self.subtree(s) {
            if into.is_some() {
                self.freeze_narrow(member, revoked);
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
    pub fn freeze_narrow(&mut self, s: usize, revoked: bool) {
        let groups: Vec<_> = self.sources[s].groups.keys().copied().collect();
        // Those may be folded before the tree sees that the source has left.
        let counting = self.sources[s].groups.iter().filter(|(g, _)| GROUPS[**g].has_cumulative());
        let idle = revoked || counting.flat_map(|(_, slots)| slots).any(|cells| !cells.in_use);
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
                if offset != base as i64 && (idle || self.looks_seldom) {
                    self.uncertain.insert(d.name.to_string());
                }
                self.sources[s].offset.insert((group, value), offset);
            }
        }
    }

    /// Clears the instances of an identity (or of all) in some sources, and what departed from others.
    pub fn clear(
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
                    let mut take = |cells: &[u64]| {
                        for (name, n) in taken_of(&identity.1, cells) {
                            let took = taken.entry(name).or_default();
                            *took = took.wrapping_add(n);
                        }
                    };
                    for s in live {
                        if let Some(cells) = self.instance(*s, &identity) {
                            take(&cells);
                            self.clear_cells(*s, &identity);
                        }
                    }
                    for s in departed {
                        let cells = self.departed(*s, &identity);
                        take(&cells);
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

    pub fn clear_cells(&mut self, s: usize, identity: &Identity) {
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

pub fn count_of(d: &Descriptor, cells: &[u64]) -> u64 {
    match d.ty {
        ValueType::Histogram { sum, .. } => {
            cells[usize::from(sum)..].iter().fold(0, |n, b| n.wrapping_add(*b))
        }
        _ => cells[0],
    }
}

/// What clearing these cells takes, by what it is called.
fn taken_of(d: &Descriptor, cells: &[u64]) -> Vec<(String, u64)> {
    match d.ty {
        ValueType::Histogram { sum, .. } => {
            let sum = sum.then(|| (format!("{}/sum", d.name), cells[0]));
            let count = (format!("{}/count", d.name), count_of(d, cells));
            sum.into_iter().chain([count]).collect()
        }
        _ => vec![(d.name.to_string(), count_of(d, cells))],
    }
}

pub fn show_histogram(cells: &[u64], sum: bool, out: &mut Vec<(String, String)>) {
    let buckets = &cells[usize::from(sum)..];
    let count: u64 = buckets.iter().fold(0, |n, b| n.wrapping_add(*b));
    let mut line = |field: &str, n: u64| out.push((format!("/{field}"), n.to_string()));
    line("count", count);
    if sum {
        line("sum", cells[0]);
        line("mean", cells[0].checked_div(count).unwrap_or(0));
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
