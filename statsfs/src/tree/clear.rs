//! Clears: what was counted up to now is not shown any more.
//!
//! Nothing is ever stored into a writer's cell: a count that the writer adds at that moment would undo
//! it. Instead the raw value becomes the baseline, which is subtracted from then on. Baselines belong to
//! the account that the counts are on, and move with them when a source departs; both happen under the
//! tree's lock, so what a clear took and what is left always add up to what was counted.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::Range;

use super::files::IdentityId;
use super::inode::DirId;
use super::model::counting_slots;
use super::saved::Occasion;
use super::sweep::{Account, Cells, Request, Sweep, Want};
use super::{GroupId, SourceKey, State, TreeError};
use crate::aggregate::since;
use crate::segment::process::Reading;
use crate::value::{Descriptor, GroupDescriptor, Semantics};

pub(super) type OfGroups = HashMap<GroupId, Box<[u64]>>;
/// The baselines that a clear replaced, by account.
pub(super) type Before = Vec<(Account, GroupId, Option<Box<[u64]>>)>;

/// What was cleared, by account: raw words in the order of the group's.
#[derive(Debug, Default)]
pub(crate) struct Baselines {
    live: HashMap<SourceKey, OfGroups>,
    departed: HashMap<SourceKey, OfGroups>,
    left: HashMap<DirId, OfGroups>,
}

/// What a clear took away, by the name of the file that showed it, summed over all that it cleared; of a
/// histogram `name/count` and, if it has one, `name/sum`.
///
/// All that clears took away and what is left is what was counted, to the last one. While somebody counts,
/// a histogram's sum and its count may be apart by what is just being recorded, which is two stores, so a
/// clear may take one and leave the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared(pub BTreeMap<String, u64>);

/// What to clear.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    /// One value in the directory's own sources.
    Own(IdentityId),
    /// One value in and below the directory, and what departed there.
    All(IdentityId),
    /// One value among what departed right below the directory.
    Departed(IdentityId),
    /// Everything in and below the directory, and what departed there.
    Subtree,
    /// Everything that departed right below the directory.
    DepartedSubtree,
}

impl Scope {
    /// What must be read for it.
    pub(crate) fn request(self, dir: DirId) -> Request {
        let want = match self {
            Self::Own(value) | Self::All(value) | Self::Departed(value) => Want::Value(value),
            Self::Subtree | Self::DepartedSubtree => Want::All,
        };
        Request { dir, below: !matches!(self, Self::Own(_)), want, process: None }
    }
}

impl Baselines {
    fn of(&self, account: Account) -> Option<&OfGroups> {
        match account {
            Account::Live(key) => self.live.get(&key),
            Account::Departed(key) => self.departed.get(&key),
            Account::Left(dir) => self.left.get(&dir),
        }
    }

    /// The baseline of an account's group.
    pub(crate) fn get(&self, account: Account, group: GroupId) -> Option<&[u64]> {
        self.of(account)?.get(&group).map(|words| &**words)
    }

    pub(super) fn entry(&mut self, account: Account, group: GroupId, len: usize) -> &mut [u64] {
        let of_groups = match account {
            Account::Live(key) => self.live.entry(key).or_default(),
            Account::Departed(key) => self.departed.entry(key).or_default(),
            Account::Left(dir) => self.left.entry(dir).or_default(),
        };
        of_groups.entry(group).or_insert_with(|| vec![0; len].into())
    }

    /// The counts of a source go over to what departed from `into`: so do their baselines.
    pub(crate) fn depart(&mut self, key: SourceKey, into: u64) {
        let moved = [self.live.remove(&key), self.departed.remove(&key)];
        for (group, words) in moved.into_iter().flatten().flatten() {
            let target = self.entry(Account::Departed((key.0, into)), group, words.len());
            for (target, word) in target.iter_mut().zip(words) {
                *target = target.wrapping_add(word);
            }
        }
    }

    /// Forgets a source that is gone.
    pub(crate) fn forget(&mut self, key: SourceKey) {
        self.live.remove(&key);
        self.departed.remove(&key);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let of_sources = self.live.values().chain(self.departed.values());
        of_sources.chain(self.left.values()).map(HashMap::len).sum()
    }

    /// Those of sources, and of what departed from them.
    pub(super) fn of_sources(&self) -> impl Iterator<Item = (SourceKey, bool, &OfGroups)> {
        let live = self.live.iter().map(|(key, groups)| (*key, false, groups));
        live.chain(self.departed.iter().map(|(key, groups)| (*key, true, groups)))
    }

    /// Puts back what a clear replaced.
    fn put_back(&mut self, before: Before) {
        for (account, group, words) in before {
            if let Some(words) = words {
                self.entry(account, group, words.len()).copy_from_slice(&words);
                continue;
            }
            match account {
                Account::Live(key) => remove(&mut self.live, key, group),
                Account::Departed(key) => remove(&mut self.departed, key, group),
                Account::Left(dir) => remove(&mut self.left, dir, group),
            }
        }
    }

    /// The groups of a live source that have baselines.
    pub(crate) fn live_groups(&self, key: SourceKey) -> impl Iterator<Item = (GroupId, &[u64])> {
        self.live.get(&key).into_iter().flatten().map(|(group, words)| (*group, &**words))
    }
}

fn remove<K: Eq + Hash>(all: &mut HashMap<K, OfGroups>, key: K, group: GroupId) {
    if let Some(groups) = all.get_mut(&key) {
        groups.remove(&group);
        if groups.is_empty() {
            all.remove(&key);
        }
    }
}

/// Where the words of a value are among its group's.
pub(crate) fn word_range(group: &GroupDescriptor, value: usize) -> Range<usize> {
    let start = group.values()[..value].iter().map(|v| v.ty.cells()).sum();
    start..start + group.values()[value].ty.cells()
}

/// A group's values, and where the words of each are.
pub(super) fn values_and_words(
    group: &GroupDescriptor,
) -> impl Iterator<Item = (&Descriptor, Range<usize>)> {
    let mut end = 0;
    group.values().iter().map(move |value| {
        let start = end;
        end += value.ty.cells();
        (value, start..end)
    })
}

/// The words of one value as they are shown: since its last clear, which left this baseline.
pub(super) fn shown<'a>(
    account: Account,
    value: &Descriptor,
    words: &'a [u64],
    baseline: Option<&[u64]>,
) -> Cow<'a, [u64]> {
    let Some(baseline) = baseline.filter(|_| value.semantics == Semantics::Cumulative) else {
        return Cow::Borrowed(words);
    };
    let shown = words.iter().zip(baseline).map(|(raw, baseline)| match account {
        Account::Live(_) => since(value.ty, *raw, *baseline),
        // A narrow cell that is still counted in and wraps leaves less than its baseline.
        Account::Departed(_) if value.ty.width() < 8 => {
            (raw.wrapping_sub(*baseline) as i64).max(0) as u64
        }
        Account::Departed(_) | Account::Left(_) => raw.wrapping_sub(*baseline),
    });
    Cow::Owned(shown.collect())
}

impl State {
    /// The counts of a source go over to what departed from `into`: so do their baselines.
    ///
    /// There they are 64-bit sums, so the baseline of narrow cells, which is modulo their width, becomes
    /// that from which the sum shows what the cells showed.
    pub(crate) fn depart_baselines(&mut self, key: SourceKey, into: u64) {
        let narrow = |d: &Descriptor| d.semantics == Semantics::Cumulative && d.ty.width() < 8;
        let groups: Vec<_> = self.baselines.live_groups(key).map(|(group, _)| group).collect();
        for group in groups {
            let descriptor = self.groups[group].clone();
            if !descriptor.values().iter().any(narrow) {
                continue;
            }
            let Some(raw) = self.raw_sums(key, &descriptor) else { continue };
            let baseline = self.baselines.entry(Account::Live(key), group, descriptor.words());
            for (value, d) in descriptor.values().iter().enumerate().filter(|(_, d)| narrow(d)) {
                let at = word_range(&descriptor, value).start;
                if baseline[at] == 0 {
                    continue;
                }
                let shown = since(d.ty, raw[at], baseline[at]);
                baseline[at] = raw[at].wrapping_sub(shown);
            }
        }
        self.baselines.depart(key, into);
    }

    /// A source's cells of a group, those of all slots added up in 64 bits, if all can still be read.
    fn raw_sums(&self, key: SourceKey, group: &GroupDescriptor) -> Option<Vec<u64>> {
        let process = &self.processes[key.0];
        let record = process.source(key.1)?;
        if counting_slots(record) < self.sources.get(&key)?.slots {
            return None;
        }
        let mut sums = vec![0u64; group.words()];
        let mut cells = sums.clone();
        for block in record.groups.iter().filter(|g| *g.group == *group).flat_map(|g| &g.slots) {
            match process.read(block, &mut cells) {
                Reading::Cells { retired, .. }
                    if !retired.is_some_and(|r| process.is_folded(r)) =>
                {
                    for (sum, cell) in sums.iter_mut().zip(&cells) {
                        *sum = sum.wrapping_add(*cell);
                    }
                }
                _ => return None,
            }
        }
        Some(sums)
    }

    /// The baseline of cells that a sweep read.
    pub(super) fn baseline(&self, cells: &Cells) -> Option<&[u64]> {
        self.baselines.get(cells.account, cells.group)
    }

    /// Clears, from a sweep of what the scope requests, and answers what that took away. Nothing is cleared
    /// if that could not be kept, or if there is no room for it.
    pub(crate) fn clear(
        &mut self,
        dir: DirId,
        scope: Scope,
        sweep: &Sweep,
        by_owner: bool,
    ) -> Result<Cleared, TreeError> {
        let members = self.dirs.get(&dir).map(|d| d.members.clone()).unwrap_or_default();
        let want = scope.request(dir).want;
        let (mut cleared, mut before) = (Cleared::default(), Before::new());
        for cells in &sweep.cells {
            let departs_in = self.departs_in(cells.account);
            let included = match scope {
                Scope::Own(_) => {
                    let key = cells.account.key();
                    departs_in.is_none()
                        && matches!(cells.account, Account::Live(_))
                        && key.is_some_and(|key| members.contains(&key))
                }
                Scope::Departed(_) | Scope::DepartedSubtree => departs_in == Some(dir),
                Scope::All(_) | Scope::Subtree => true,
            };
            if included {
                let old = self.baselines.get(cells.account, cells.group).map(Box::from);
                before.push((cells.account, cells.group, old));
                self.clear_cells(sweep, cells, want, &mut cleared);
            }
        }
        if self.keeper.is_some() {
            let kept = self.has_room_for_cleared(&before, by_owner).and_then(|()| {
                let saved = self.save();
                self.keep(&saved, Occasion::Cleared).map_err(TreeError::Commit)
            });
            if let Err(error) = kept {
                self.baselines.put_back(before);
                return Err(error);
            }
        }
        Ok(cleared)
    }

    fn clear_cells(&mut self, sweep: &Sweep, cells: &Cells, want: Want, cleared: &mut Cleared) {
        let group = self.groups[cells.group].clone();
        let words = sweep.words(cells);
        let wanted = match want {
            Want::All => None,
            Want::Value(identity) => match self.identities.value_of(cells.group, identity) {
                None => return,
                wanted => wanted,
            },
        };
        for (value, (descriptor, range)) in values_and_words(&group).enumerate() {
            if descriptor.semantics != Semantics::Cumulative {
                continue;
            }
            let raw = match wanted {
                None => &words[range.clone()],
                Some(wanted) if wanted == value => words,
                Some(_) => continue,
            };
            let before = self.baseline(cells).map(|baseline| &baseline[range.clone()]);
            let shown = shown(cells.account, descriptor, raw, before).into_owned();
            let baseline = self.baselines.entry(cells.account, cells.group, group.words());
            baseline[range].copy_from_slice(raw);
            let mut take = |name: String, taken: u64| {
                let total = cleared.0.entry(name).or_default();
                *total = total.wrapping_add(taken);
            };
            if descriptor.ty.is_histogram() {
                let buckets = crate::aggregate::Buckets::new(descriptor.ty, &shown);
                take(format!("{}/count", descriptor.name), buckets.count());
                let sum = buckets.sum();
                sum.into_iter().for_each(|sum| take(format!("{}/sum", descriptor.name), sum));
            } else {
                take(descriptor.name.to_string(), shown[0]);
            }
        }
    }
}
