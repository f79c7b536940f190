//! The model of every process's sources, and the directories that show them.
//!
//! Each source is out of reach (not attached yet), live, or departed: in a subtree that was removed but
//! still counts in the parent of the topmost removed source. Bringing the model up to date is one pass
//! over the sources that the segments say were touched; every step keeps three things true: a visible
//! live source has a directory, every directory knows the groups of the sources in and below it, and
//! baselines are where their counts are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::OnceLock;

use super::clashes::Clashes;
use super::clear::Baselines;
use super::files::{Files, Identities, IdentityId};
use super::inode::{DirId, Node};
use super::{GroupId, ProcessId, SourceKey, State, TreeError};
use crate::fs::Gone;
use crate::segment::layout::ROOT_ID;
use crate::segment::process::{Process, SourceRecord};

/// The root's directory.
pub(crate) const ROOT_DIR: DirId = 1;

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
    own: BTreeSet<GroupId>,
    totals: BTreeSet<GroupId>,
    /// How many slots with cumulative values it has had: as long as it is live none goes.
    pub(crate) slots: usize,
}

/// One directory: a visible source, or the sources of one name at the top level of several processes.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) parent: DirId,
    pub(crate) name: Box<str>,
    pub(crate) members: Vec<SourceKey>,
    pub(crate) children: BTreeSet<DirId>,
    by_name: HashMap<Box<str>, DirId>,
    pub(crate) created_ns: u64,
    pub(crate) private: bool,
    /// Sources in this directory, and below it, that have each group.
    pub(crate) own: BTreeMap<GroupId, usize>,
    pub(crate) below: BTreeMap<GroupId, usize>,
    /// At the top level, where several processes meet: when each identity came, and how many of the
    /// groups above have it. Within one process no name has two identities.
    pub(crate) admitted: HashMap<IdentityId, (u64, usize)>,
    next_admission: u64,
    files: OnceLock<Files>,
    /// The values that the last files left out.
    left_out: Vec<Box<str>>,
}

impl Dir {
    fn new(parent: DirId, name: &str, created_ns: u64) -> Self {
        Self {
            parent,
            name: name.into(),
            members: Vec::new(),
            children: BTreeSet::new(),
            by_name: HashMap::new(),
            created_ns,
            private: false,
            own: BTreeMap::new(),
            below: BTreeMap::new(),
            admitted: HashMap::new(),
            next_admission: 0,
            files: OnceLock::new(),
            left_out: Vec::new(),
        }
    }

    /// Counts a group in or out, of the directory's own or of those below. Answers whether it appeared or
    /// disappeared.
    fn count(&mut self, own: bool, group: GroupId, add: bool, identities: &Identities) -> bool {
        let groups = if own { &mut self.own } else { &mut self.below };
        let changed = count(groups, group, add);
        if changed && self.parent == ROOT_DIR {
            for identity in identities.of(group).iter().flatten() {
                if add {
                    let next = self.next_admission;
                    self.next_admission += 1;
                    self.admitted.entry(*identity).or_insert((next, 0)).1 += 1;
                } else if let Some((_, groups)) = self.admitted.get_mut(identity) {
                    *groups -= 1;
                    if *groups == 0 {
                        self.admitted.remove(identity);
                    }
                }
            }
        }
        changed
    }

    /// A subordinate came or went: where several processes meet, a value of its name goes or comes.
    fn forget_files_of_many(&mut self) {
        if self.members.len() > 1 {
            self.forget_files();
        }
    }

    /// Has the files computed anew.
    fn forget_files(&mut self) -> Option<Files> {
        let mut files = self.files.take()?;
        self.left_out = std::mem::take(&mut files.left_out);
        Some(files)
    }

    /// The subordinate directory of this name.
    pub(crate) fn child(&self, name: &str) -> Option<DirId> {
        self.by_name.get(name).copied()
    }
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            processes: Vec::new(),
            sources: HashMap::new(),
            dirs: HashMap::from([(
                ROOT_DIR,
                Dir::new(ROOT_DIR, "", crate::segment::arena::now_ns()),
            )]),
            next_dir: ROOT_DIR + 1,
            groups: Vec::new(),
            identities: Identities::default(),
            baselines: Baselines::default(),
            clashes: Clashes::default(),
            gone: Vec::new(),
            refused: HashSet::new(),
            incomplete: HashSet::new(),
            whole: OnceLock::new(),
        }
    }

    /// Adds a process.
    pub(super) fn take_in(&mut self, mut process: Process) -> Result<(), TreeError> {
        let mut touched = Vec::new();
        process.refresh(true, &mut touched)?;
        let id = self.processes.len();
        self.processes.push(process);
        let root = SourceModel {
            parent: 0,
            children: BTreeSet::new(),
            reach: Reach::Live,
            dir: Some(ROOT_DIR),
            left_out: false,
            own: BTreeSet::new(),
            totals: BTreeSet::new(),
            slots: 0,
        };
        self.sources.insert((id, ROOT_ID), root);
        if let Some(dir) = self.dirs.get_mut(&ROOT_DIR) {
            dir.members.push((id, ROOT_ID));
        }
        self.reconcile(id, &touched);
        Ok(())
    }

    /// Lets go of a process that is refused: its sources disappear, counts and all.
    pub(super) fn let_go(&mut self, process: ProcessId) {
        self.whole.take();
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
        self.refused.insert(process);
        self.readmit();
    }

    /// The files of a directory, computed when first asked for after its groups changed.
    pub(crate) fn files(&self, dir: DirId) -> Option<&Files> {
        let directory = self.dirs.get(&dir)?;
        Some(directory.files.get_or_init(|| {
            let files = Files::new(&self.identities, directory);
            for name in files.left_out.iter().filter(|name| !directory.left_out.contains(name)) {
                self.clashes.report("value", name, &self.path(dir));
            }
            files
        }))
    }

    /// A directory's path from the root of the mount, without a leading slash.
    pub(crate) fn path(&self, dir: DirId) -> String {
        let mut names = Vec::new();
        let mut at = dir;
        while at != ROOT_DIR {
            let Some(dir) = self.dirs.get(&at) else { break };
            names.push(&*dir.name);
            at = dir.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// Brings the model up to date with the sources that were touched.
    pub(super) fn reconcile(&mut self, process: ProcessId, touched: &[u64]) {
        if touched.is_empty() {
            return;
        }
        self.whole.take();
        let mut touched = touched.to_vec();
        touched.sort_unstable();
        touched.dedup();
        // What is gone makes room for names that come.
        for &id in &touched {
            if id != ROOT_ID && self.processes[process].source(id).is_none() {
                self.forget((process, id));
            }
        }
        for &id in &touched {
            self.take_record((process, id));
        }
        // So does what left, whatever was created first.
        let (left, others): (Vec<_>, Vec<_>) = touched
            .into_iter()
            .partition(|id| self.processes[process].source(*id).is_some_and(|r| r.departed));
        for id in left.into_iter().chain(others) {
            self.settle((process, id));
        }
        self.readmit();
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
        let own: BTreeSet<_> = own.iter().map(|g| self.group(g)).collect();
        let totals: BTreeSet<_> = totals.iter().map(|g| self.group(g)).collect();
        let is_new = !self.sources.contains_key(&key);
        let source = self.sources.entry(key).or_insert_with(|| SourceModel {
            parent: 0,
            children: BTreeSet::new(),
            reach: Reach::Not,
            dir: None,
            left_out: false,
            own: BTreeSet::new(),
            totals: BTreeSet::new(),
            slots: 0,
        });
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
        } else if let Some(source) = self.sources.get_mut(&key) {
            source.reach = reach;
            if let Reach::Departed(into) = reach {
                self.depart_baselines(key, into);
            }
        }
        for child in children {
            self.settle(child);
        }
    }

    /// A source becomes part of the tree.
    fn enter(&mut self, key: SourceKey) {
        let Some(record) = self.processes[key.0].source(key.1) else { return };
        let SourceRecord { name, created_ns, private, hidden, .. } = record;
        let (name, created_ns, private, hidden) = (name.clone(), *created_ns, *private, *hidden);
        let parent = self.sources[&key].parent;
        let dir =
            if hidden { None } else { self.directory(key, parent, &name, created_ns, private) };
        if let Some(source) = self.sources.get_mut(&key) {
            source.reach = Reach::Live;
            source.dir = dir;
            source.left_out = dir.is_none() && !hidden;
        }
        self.count_groups(key, true);
    }

    /// The directory for a source that appears: a new one, or at the top level the one of that name. None
    /// if another has the name, or if a source above was left out for such a reason.
    fn directory(
        &mut self,
        key: SourceKey,
        parent: u64,
        name: &str,
        created_ns: u64,
        private: bool,
    ) -> Option<DirId> {
        let above = self.shown_in((key.0, parent))?;
        if self.is_below_left_out((key.0, parent)) {
            return None;
        }
        if parent == ROOT_ID
            && let Some(existing) = self.dirs[&above].child(name)
        {
            let dir = self.dirs.get_mut(&existing)?;
            dir.members.push(key);
            return Some(existing);
        }
        if !self.is_free(above, name) {
            self.clashes.wait(key, above, name);
            self.clashes.report("source", name, &self.path(above));
            return None;
        }
        let id = self.next_dir;
        self.next_dir += 1;
        let mut dir = Dir::new(above, name, created_ns);
        dir.members.push(key);
        dir.private = private;
        self.dirs.insert(id, dir);
        let above = self.dirs.get_mut(&above)?;
        above.children.insert(id);
        above.by_name.insert(name.into(), id);
        above.forget_files_of_many();
        Some(id)
    }

    /// A source leaves the tree.
    fn leave(&mut self, key: SourceKey, reach: Reach) {
        self.count_groups(key, false);
        let Some(source) = self.sources.get_mut(&key) else { return };
        source.reach = reach;
        let dir = source.dir.take();
        if std::mem::take(&mut source.left_out) {
            self.clashes.wait_no_more(key);
        }
        if let Reach::Departed(into) = reach {
            self.depart_baselines(key, into);
        }
        let Some(id) = dir else { return };
        let Some(dir) = self.dirs.get_mut(&id) else { return };
        dir.members.retain(|member| *member != key);
        if !dir.members.is_empty() || id == ROOT_DIR {
            return;
        }
        let Some(dir) = self.dirs.remove(&id) else { return };
        if let Some(above) = self.dirs.get_mut(&dir.parent) {
            above.children.remove(&id);
            above.by_name.remove(&dir.name);
            above.forget_files_of_many();
        }
        self.gone.push(Gone { parent: Node::Dir(dir.parent).ino(), name: dir.name.into() });
    }

    /// The directory in which a source's subordinates appear: its own, or the nearest above.
    pub(super) fn shown_in(&self, key: SourceKey) -> Option<DirId> {
        let mut at = self.sources.get(&key)?;
        loop {
            if let Some(dir) = at.dir {
                return Some(dir);
            }
            at = self.sources.get(&(key.0, at.parent))?;
        }
    }

    /// Counts a live source's groups in or out of its directory and those above, but for the root,
    /// which is no source and shows no values.
    fn count_groups(&mut self, key: SourceKey, add: bool) {
        let Some(source) = self.sources.get(&key) else { return };
        let (own, totals) = (source.own.clone(), source.totals.clone());
        let Some(shown_in) = self.shown_in(key) else { return };
        let itself = source.dir.is_some();
        let mut at = shown_in;
        while at != ROOT_DIR {
            let Some(dir) = self.dirs.get_mut(&at) else { return };
            let mut changed = false;
            let own_dir = itself && at == shown_in;
            for group in &own {
                changed |= dir.count(own_dir, *group, add, &self.identities);
            }
            if own_dir {
                // Of what departed, the sources above have totals of their own; explicit aggregates are
                // shown where they were asked for, which for a hidden source is nowhere.
                for group in &totals {
                    changed |= dir.count(false, *group, add, &self.identities);
                }
            }
            if changed
                && let Some(files) = dir.forget_files()
                && !add
            {
                let parent = Node::Dir(at).ino();
                let names = files.names().map(|name| Gone { parent, name: name.to_owned() });
                self.gone.extend(names);
            }
            at = self.dirs[&at].parent;
        }
    }

    /// The sources in and below a directory, those that departed from there included; parents before
    /// children.
    pub(crate) fn sources_of(&self, dir: DirId) -> Vec<SourceKey> {
        let mut all: Vec<SourceKey> = match self.dirs.get(&dir) {
            Some(dir) => dir.members.clone(),
            None => return Vec::new(),
        };
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

/// Counts in or out; whether the group appeared or disappeared.
fn count(groups: &mut BTreeMap<GroupId, usize>, group: GroupId, add: bool) -> bool {
    if add {
        let n = groups.entry(group).or_default();
        *n += 1;
        return *n == 1;
    }
    match groups.get_mut(&group) {
        Some(n) if *n > 1 => {
            *n -= 1;
            false
        }
        Some(_) => groups.remove(&group).is_some(),
        None => false,
    }
}
