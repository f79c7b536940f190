//! The model of every process's sources, and the directories that show them.
//!
//! Each source is out of reach (not attached yet), live, or departed: in a subtree that was removed but
//! still counts in the parent of the topmost removed source. Bringing the model up to date is one pass
//! over the sources that the segments say were touched; every step keeps three things true: a visible
//! live source has a directory, every directory knows the groups of the sources in and below it, and
//! baselines are where their counts are.
//!
//! Of a process that is *detached* only the sources at the top level keep their place: all that it counted
//! is what departed from these. Its accounts and baselines stay as they are, so that nothing has to be
//! undone when it is there again.

use std::collections::{BTreeSet, HashMap};

use super::budget::heavy_share;
use super::by_name::Links;
use super::clashes::Clashes;
use super::clear::Baselines;
use super::dirs::{ROOT_DIR, root_dirs};
use super::files::{FileSets, Identities};
use super::groups::GroupSet;
use super::inode::DirId;
use super::kept::GRANT;
use super::ledger::Ledger;
use super::numbers::Numbers;
use super::processes::{Member, Processes};
use super::saved::Remembered;
use super::users::Users;
use super::{ProcessId, SourceKey, State, TreeError, TreeOptions};
use crate::repeats::Repeats;
use crate::segment::layout::ROOT_ID;
use crate::segment::process::SourceRecord;

/// New sources of a process that are taken over at a time, so that others can look in between.
pub(super) const ADOPT: usize = 1 << 10;

/// How a source takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is not attached to the root.
    Not,
    /// It is in the tree.
    Live,
    /// It counts in the `.departed` of this source of its process.
    Departed(u64),
}

/// One source.
#[derive(Debug)]
pub(crate) struct SourceModel {
    pub(crate) parent: u64,
    pub(crate) children: BTreeSet<u64>,
    pub(crate) reach: Reach,
    /// The directory that shows it.
    pub(crate) dir: Option<DirId>,
    /// Whether it has none because another's name is in the way, or that of one above is.
    pub(super) left_out: bool,
    /// The groups that it has values of, and those that it keeps totals or explicit aggregates of.
    pub(super) own: GroupSet,
    pub(super) totals: GroupSet,
    /// How many slots with cumulative values it has had: as long as it is live none goes.
    pub(crate) slots: usize,
}

impl SourceModel {
    /// One of which nothing is known yet. Boxed, since a table has room for twice as many as are in it.
    fn new() -> Box<Self> {
        Box::new(Self {
            parent: 0,
            children: BTreeSet::new(),
            reach: Reach::Not,
            dir: None,
            left_out: false,
            own: GroupSet::default(),
            totals: GroupSet::default(),
            slots: 0,
        })
    }
}

impl State {
    pub(crate) fn new(options: TreeOptions, is_host: bool) -> Self {
        let dirs = root_dirs(&options);
        Self {
            options,
            is_host,
            processes: Processes::default(),
            sources: HashMap::new(),
            dirs,
            numbers: Numbers::from(1),
            links: Links::default(),
            groups: Vec::new(),
            groups_by_name: HashMap::new(),
            users: Users::default(),
            heavy: heavy_share(),
            remembered: Remembered::default(),
            keeper: None,
            unkept: false,
            unkept_by: None,
            failing: false,
            no_room: Repeats::default(),
            identities: Identities::default(),
            file_sets: FileSets::default(),
            baselines: Baselines::default(),
            ledger: Ledger::default(),
            clashes: Clashes::default(),
            let_go: Repeats::default(),
            lost: Repeats::default(),
            gone: Vec::new(),
            refused: Vec::new(),
            refused_so_far: 0,
        }
    }

    /// Adds a process whose structure was read; its sources are still to be taken over, but for the first.
    pub(super) fn take_in(&mut self, mut member: Member, touched: &[u64]) -> Result<(), TreeError> {
        member.blocks = self.remembered.blocks_of(member.publisher());
        let by = self.charges(member.identity).then_some(member.identity.uid);
        self.users.is_whose(by, GRANT * member.blocks.len());
        let id = self.processes.insert(member);
        let mut root = SourceModel::new();
        (root.reach, root.dir) = (Reach::Live, Some(ROOT_DIR));
        self.sources.insert((id, ROOT_ID), root);
        if let Some(dir) = self.dirs.get_mut(&ROOT_DIR) {
            dir.members.push((id, ROOT_ID));
        }
        self.give_back((id, ROOT_ID));
        let taken = self.reconcile(id, touched).and_then(|()| {
            self.find_gone(id);
            self.adopt(id, ADOPT)
        });
        if let Err(error) = taken {
            self.let_go(id);
            return Err(error);
        }
        Ok(())
    }

    /// Lets go of a process: its sources disappear, counts and all.
    pub(super) fn let_go(&mut self, process: ProcessId) {
        let keys: Vec<_> = self.sources.keys().filter(|key| key.0 == process).copied().collect();
        for key in &keys {
            if key.1 != ROOT_ID {
                self.reach(*key, Reach::Not);
            }
        }
        for key in keys {
            self.baselines.forget(key);
            self.sources.remove(&key);
        }
        if let Some(root) = self.dirs.get_mut(&ROOT_DIR) {
            root.members.retain(|member| member.0 != process);
        }
        if let Some(member) = self.processes.remove(process) {
            let by = self.charges(member.identity).then_some(member.identity.uid);
            self.users.keep_no_more(by, GRANT * member.blocks.len());
            self.forget_absent(member.publisher());
        }
        self.readmit();
    }

    /// Takes a process's directories away, or puts them back; what it counted stays where it is.
    pub(super) fn set_detached(&mut self, process: ProcessId, detached: bool) {
        if self.processes[process].detached == detached {
            return;
        }
        let mut live = self.with_those_below(vec![(process, ROOT_ID)]);
        live.retain(|key| self.sources.get(key).is_some_and(|s| s.reach == Reach::Live));
        let (top, below): (Vec<_>, Vec<_>) = live
            .into_iter()
            .filter(|key| key.1 != ROOT_ID)
            .partition(|key| self.sources.get(key).is_some_and(|s| s.parent == ROOT_ID));
        if detached {
            below.iter().rev().for_each(|key| self.hide(*key));
        }
        for key in top {
            // In this order, so that no name is ever without a holder that has one.
            self.count_groups_as(key, true, detached);
            self.count_groups_as(key, false, !detached);
        }
        self.processes[process].detached = detached;
        if !detached {
            below.iter().for_each(|key| self.show(*key));
        }
        self.readmit();
    }

    /// Brings the model up to date with the sources that were touched; those that it does not know are
    /// pending then. What they count is counted nowhere yet, so it can wait; what is known can not: a count
    /// may have gone from one to the other.
    pub(super) fn reconcile(
        &mut self,
        process: ProcessId,
        touched: &[u64],
    ) -> Result<(), TreeError> {
        let known = |id: &u64| self.sources.contains_key(&(process, *id));
        let (known, new): (Vec<_>, Vec<_>) = touched.iter().copied().partition(known);
        let member = &mut self.processes[process];
        let (there, gone): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|id| member.source(*id).is_some());
        member.pending.extend(there);
        for id in &gone {
            member.pending.remove(id);
        }
        self.take_over(process, known)?;
        if !gone.is_empty() {
            self.are_gone(process, gone);
        }
        Ok(())
    }

    /// Takes over sources that are pending, at most so many.
    pub(super) fn adopt(&mut self, process: ProcessId, most: usize) -> Result<(), TreeError> {
        let pending = &mut self.processes[process].pending;
        let mut next = Vec::with_capacity(most.min(pending.len()));
        while next.len() < most
            && let Some(id) = pending.pop_first()
        {
            next.push(id);
        }
        self.take_over(process, next)
    }

    /// Takes over these sources.
    fn take_over(&mut self, process: ProcessId, mut touched: Vec<u64>) -> Result<(), TreeError> {
        if touched.is_empty() {
            return Ok(());
        }
        self.may_bring(process, &touched)?;
        self.processes[process].plan.take();
        touched.sort_unstable();
        touched.dedup();
        // What is gone makes room for names that come.
        let is_gone = |id: &u64| *id != ROOT_ID && self.processes[process].source(*id).is_none();
        let gone: Vec<_> = touched.iter().copied().filter(is_gone).collect();
        for &id in &gone {
            self.forget((process, id));
        }
        for &id in &touched {
            self.take_record((process, id));
        }
        // So does what left, whatever was created first.
        let (left, others): (Vec<_>, Vec<_>) = touched
            .iter()
            .partition(|id| self.processes[process].source(**id).is_some_and(|r| r.departed));
        for id in left.into_iter().chain(others) {
            self.settle((process, id));
        }
        // Those that were known but never in the tree have left what was cleared to those above.
        self.are_gone(process, gone);
        self.readmit();
        self.forget_directories();
        self.processes[process].lacks_room.take().map_or(Ok(()), Err)
    }

    /// Forgets a source whose record is gone.
    fn forget(&mut self, key: SourceKey) {
        let Some(source) = self.sources.get(&key) else { return };
        let parent = source.parent;
        if source.reach == Reach::Live {
            // It departed and was folded since we looked.
            self.reach(key, Reach::Departed(parent));
        }
        if let Reach::Departed(into) = self.sources[&key].reach {
            self.depart_baselines(key, into);
        }
        self.baselines.forget(key);
        self.sources.remove(&key);
        if let Some(parent) = self.sources.get_mut(&(key.0, parent)) {
            parent.children.remove(&key.1);
        }
    }

    /// Takes a source's record over: its parent and its groups.
    fn take_record(&mut self, key: SourceKey) {
        let (own, totals, parent, slots) = {
            let Some(record) = self.processes[key.0].source(key.1) else { return };
            let has = |counts: bool| {
                let groups = record.groups.iter().filter(move |g| {
                    if counts { !g.slots.is_empty() } else { g.accumulator.is_some() || g.explicit }
                });
                groups.map(|g| g.group.clone()).collect::<Vec<_>>()
            };
            (has(true), has(false), record.parent, counting_slots(record))
        };
        let own: GroupSet = own.iter().map(|g| self.group(key.0, g)).collect();
        let totals: GroupSet = totals.iter().map(|g| self.group(key.0, g)).collect();
        let is_new = !self.sources.contains_key(&key);
        let source = self.sources.entry(key).or_insert_with(SourceModel::new);
        source.slots = source.slots.max(slots);
        let old_parent = std::mem::replace(&mut source.parent, parent);
        if source.reach == Reach::Live {
            self.count_groups(key, false);
        }
        if let Some(source) = self.sources.get_mut(&key) {
            (source.own, source.totals) = (own, totals);
            if source.reach == Reach::Live {
                self.count_groups(key, true);
            }
            self.reserve(key);
        }
        if old_parent != parent
            && let Some(above) = self.sources.get_mut(&(key.0, parent))
        {
            above.children.insert(key.1);
        }
        if is_new {
            // Children that were taken over before their parent.
            let children: Vec<_> = self.processes[key.0].children(key.1).iter().copied().collect();
            for child in children {
                if self.sources.contains_key(&(key.0, child))
                    && let Some(source) = self.sources.get_mut(&key)
                {
                    source.children.insert(child);
                }
            }
        }
    }

    /// Gives a source, and what is below it, the reach that follows from its parent's.
    pub(super) fn settle(&mut self, key: SourceKey) {
        if key.1 == ROOT_ID {
            return;
        }
        let Some(source) = self.sources.get(&key) else { return };
        let parent = self.sources.get(&(key.0, source.parent)).map_or(Reach::Not, |p| p.reach);
        let departed = self.processes[key.0].source(key.1).is_some_and(|r| r.departed);
        let reach = match parent {
            Reach::Live if departed => Reach::Departed(source.parent),
            other => other,
        };
        self.reach(key, reach);
    }

    pub(super) fn reach(&mut self, key: SourceKey, reach: Reach) {
        let Some(source) = self.sources.get(&key) else { return };
        if source.reach == reach {
            return;
        }
        let children: Vec<_> = source.children.iter().map(|child| (key.0, *child)).collect();
        if source.reach == Reach::Live {
            // From the bottom up: a directory goes when nothing is in it.
            let below = if reach == Reach::Live { Reach::Not } else { reach };
            for child in &children {
                if self.sources.get(child).is_some_and(|c| c.reach == Reach::Live) {
                    self.reach(*child, below);
                }
            }
            self.leave(key, reach);
        } else if reach == Reach::Live {
            self.enter(key);
        } else {
            if matches!(reach, Reach::Departed(_)) {
                // They go on from here with the others.
                self.give_back(key);
            }
            if let Some(source) = self.sources.get_mut(&key) {
                source.reach = reach;
            }
            if let Reach::Departed(into) = reach {
                self.depart_baselines(key, into);
            }
            self.reserve(key);
        }
        for child in children {
            self.settle(child);
        }
    }

    /// A source becomes part of the tree.
    fn enter(&mut self, key: SourceKey) {
        if self.processes[key.0].source(key.1).is_none() {
            return;
        }
        if let Some(source) = self.sources.get_mut(&key) {
            source.reach = Reach::Live;
        }
        self.give_back(key);
        self.show(key);
        self.reserve(key);
    }

    /// A source leaves the tree.
    fn leave(&mut self, key: SourceKey, reach: Reach) {
        self.hide(key);
        let Some(source) = self.sources.get_mut(&key) else { return };
        source.reach = reach;
        if let Reach::Departed(into) = reach {
            self.depart_baselines(key, into);
        }
    }

    /// Sources and all below them; parents before children.
    pub(super) fn with_those_below(&self, mut all: Vec<SourceKey>) -> Vec<SourceKey> {
        let mut at = 0;
        while at < all.len() {
            let key = all[at];
            if let Some(source) = self.sources.get(&key) {
                all.extend(source.children.iter().map(|child| (key.0, *child)));
            }
            at += 1;
        }
        all
    }
}

/// How many slots with cumulative values a source has.
pub(super) fn counting_slots(record: &SourceRecord) -> usize {
    let groups = record.groups.iter().filter(|group| group.group.has_cumulative());
    groups.map(|group| group.slots.len()).sum()
}
