//! What processes left that are gone: their counts by top-level directory and group.
//!
//! The ledger is an account like the others. A process goes over to it in one step under the tree's lock,
//! so no reader ever sees a count in both, or in none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::clear::{shown, values_and_words, word_range};
use super::dirs::ROOT_DIR;
use super::inode::DirId;
use super::saved::Left;
use super::sweep::{Account, Request, Sweep, Want};
use super::{GroupId, ProcessId, State};
use crate::value::Semantics;

/// Raw sums by directory, that of a top-level source or the root's, and by group.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<DirId, BTreeMap<GroupId, Box<[u64]>>>);

impl Ledger {
    /// Whether something is left below a directory.
    pub(super) fn has(&self, dir: DirId) -> bool {
        self.0.contains_key(&dir)
    }

    /// The groups of what is left below a directory.
    pub(super) fn groups(&self, dir: DirId) -> impl Iterator<Item = GroupId> {
        self.0.get(&dir).into_iter().flat_map(|groups| groups.keys().copied())
    }

    /// All sums.
    pub(super) fn all(&self) -> impl Iterator<Item = (DirId, GroupId, &[u64])> {
        self.below(ROOT_DIR)
    }

    /// The sums below a directory.
    fn below(&self, dir: DirId) -> impl Iterator<Item = (DirId, GroupId, &[u64])> {
        let all = if dir == ROOT_DIR { self.0.range(..) } else { self.0.range(dir..=dir) };
        all.flat_map(|(dir, groups)| groups.iter().map(|(group, sums)| (*dir, *group, &**sums)))
    }

    /// How many sums there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

fn add(sums: &mut [u64], words: &[u64]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = sum.wrapping_add(*word);
    }
}

impl State {
    /// Appends to a sweep what is left below the directories that are asked for.
    pub(super) fn sweep_ledger(&self, request: Request, out: &mut Sweep) {
        if !request.below || request.process.is_some() {
            return;
        }
        for (dir, group, sums) in self.ledger.below(request.dir) {
            match request.want {
                Want::All => out.push(Account::Left(dir), group, sums),
                Want::Value(identity) => {
                    if let Some(value) = self.identities.value_of(group, identity) {
                        let range = word_range(&self.groups[group], value);
                        out.push(Account::Left(dir), group, &sums[range]);
                    }
                }
            }
        }
    }

    /// What a detached process, of which the sweep is, leaves, by directory.
    pub(super) fn left_by(&self, sweep: &Sweep) -> BTreeMap<(DirId, GroupId), Left> {
        let mut all: BTreeMap<(DirId, GroupId), Left> = BTreeMap::new();
        for cells in &sweep.cells {
            // Where there is room for it, as for all that was brought.
            let has_room = |dir: &DirId| {
                self.dirs.get(dir).is_some_and(|dir| dir.reserved.contains_key(&cells.group))
            };
            let dir = self.departs_in(cells.account).filter(has_room).unwrap_or(ROOT_DIR);
            let (group, words) = (&self.groups[cells.group], sweep.words(cells));
            let (mut raw, mut cleared) = (vec![0; words.len()], vec![0; words.len()]);
            let baseline = self.baseline(cells);
            for (value, range) in values_and_words(group) {
                if value.semantics != Semantics::Cumulative {
                    continue;
                }
                let before = baseline.map(|baseline| &baseline[range.clone()]);
                let shown = shown(cells.account, value, &words[range.clone()], before);
                for (at, shown) in range.zip(&*shown) {
                    // Whatever the width of its cells was, it shows what it showed.
                    (raw[at], cleared[at]) = (words[at], words[at].wrapping_sub(*shown));
                }
            }
            if raw.iter().all(|word| *word == 0) {
                continue;
            }
            let left = Left { raw: raw.into(), cleared: cleared.into() };
            match all.entry((dir, cells.group)) {
                Entry::Vacant(entry) => {
                    entry.insert(left);
                }
                Entry::Occupied(mut entry) => entry.get_mut().add(&left),
            }
        }
        all
    }

    /// Puts a process's counts into the ledger and lets go of the process.
    pub(super) fn fold(&mut self, process: ProcessId, left: BTreeMap<(DirId, GroupId), Left>) {
        for ((dir, group), left) in left {
            self.leave_in(dir, group, &left);
        }
        self.let_go(process);
    }

    /// Adds to what is left below a directory.
    pub(super) fn leave_in(&mut self, dir: DirId, group: GroupId, left: &Left) {
        if dir != ROOT_DIR {
            // That of an earlier tree.
            self.reserve_in(dir, group, None);
        }
        let groups = self.ledger.0.entry(dir).or_default();
        if let Some(sums) = groups.get_mut(&group) {
            add(sums, &left.raw);
        } else {
            groups.insert(group, left.raw.clone());
            self.count_group_left(dir, group);
        }
        if left.cleared.iter().any(|word| *word != 0) {
            let baseline = self.baselines.entry(Account::Left(dir), group, left.cleared.len());
            add(baseline, &left.cleared);
        }
    }
}
