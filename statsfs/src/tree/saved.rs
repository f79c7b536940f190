//! What of a tree outlasts it: plain data, to be kept where a later tree finds it.
//!
//! A tree that has a [`Keeper`] has it keep this, in one step, before anybody sees what is new in it: what a
//! fold does to the ledger, what a clear does to baselines, which numbers directories and values have. Killed
//! at any time, what was kept last is what was seen, or what was about to be.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::clear::OfGroups;
use super::dirs::{BY_NAME_DIR, ROOT_DIR};
use super::inode::DirId;
use super::kept::{GRANT, group_bytes};
use super::model::Reach;
use super::numbers::{MAX_BLOCKS, Numbers, PLACE_BITS};
use super::sweep::Account;
use super::{GroupId, ProcessId, SourceKey, State, Tree, TreeError, TreeOptions};
use crate::segment::layout::{ROOT_ID, is_source_name};
use crate::share::thread_time;
use crate::value::GroupDescriptor;

/// What of a tree outlasts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The groups that the tree has met, by its numbers for them.
    pub groups: Vec<Arc<GroupDescriptor>>,
    /// What the numbers of values' identities stand for: a group, and the place of a value in it. They are
    /// numbered in the order in which the groups have them.
    pub identities: BTreeMap<usize, (usize, usize)>,
    /// The first block of directory numbers that was not granted, to anybody.
    pub next_block: u64,
    /// The blocks of publishers: by publisher's id, and the upper bits of their sources' ids.
    pub grants: BTreeMap<(u128, u64), u64>,
    /// The directories at the top level, by name.
    pub directories: BTreeMap<String, SavedDirectory>,
    /// What processes left that were folded: by top-level directory (empty: the root), and group.
    pub ledger: BTreeMap<(String, usize), Left>,
    /// What was cleared of accounts of processes that were not folded: words of their groups.
    pub baselines: BTreeMap<SavedAccount, Box<[u64]>>,
    /// The parents of the sources in `baselines`, and theirs, by publisher's and source's id: if a source is
    /// gone when its process is back, they say where its counts are. What is at the top level has none.
    pub parents: BTreeMap<(u128, u64), u64>,
}

/// A directory at the top level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedDirectory {
    /// Its number.
    pub number: u64,
    /// The identities of values that were admitted, in that order: whoever came first holds a name.
    pub admitted: Vec<usize>,
}

/// What processes left below a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Raw sums, whatever was cleared, of the cells of all cumulative values, in the order of the group's
    /// values; of other values 0.
    pub raw: Box<[u64]>,
    /// How much of that was cleared.
    pub cleared: Box<[u64]>,
}

/// Where something of a process is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SavedAccount {
    /// The publisher's id.
    pub publisher: u128,
    /// The source's id; 1 is the root's.
    pub source: u64,
    /// Whether it is what departed from the source.
    pub departed: bool,
    /// The group.
    pub group: usize,
}

impl Default for Saved {
    /// Of a tree in which nothing was yet.
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            identities: BTreeMap::new(),
            next_block: 1,
            grants: BTreeMap::new(),
            directories: BTreeMap::new(),
            ledger: BTreeMap::new(),
            baselines: BTreeMap::new(),
            parents: BTreeMap::new(),
        }
    }
}

/// Why a tree has something kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Numbers were granted to a directory or to values. If it can not be kept, they are shown all the same,
    /// and it is tried again: a later tree may have others for them, but none for two.
    Granted,
    /// Something was cleared. If it can not be kept, nothing is.
    Cleared,
    /// The process with this publisher's id is gone, and what it left is in the ledger. If it can not be
    /// kept, the process stays.
    Folded(u128),
    /// Somebody [asked](Tree::keep) for it.
    Asked,
}

/// Keeps what of a tree outlasts it.
pub trait Keeper: Send + Sync + 'static {
    /// Keeps this instead of what was kept before, in one step. Everybody else is kept out of the tree
    /// meanwhile, so whoever does this must not look into it.
    ///
    /// # Errors
    /// If it could not be kept; what was kept before is then kept still.
    fn keep(&mut self, saved: &Saved, occasion: Occasion) -> io::Result<()>;
}

/// What is known of a publisher that has not come back yet, or not with all that it had.
#[derive(Debug, Default)]
pub(super) struct Absent {
    blocks: HashMap<u64, u64>,
    parents: HashMap<u64, u64>,
    baselines: BTreeMap<(u64, bool, GroupId), Box<[u64]>>,
    /// Sources that are gone, of which there are baselines: by the one above that has what they counted, and is
    /// not in the tree yet.
    gone: BTreeMap<u64, BTreeSet<u64>>,
}

impl Absent {
    /// The sources that it has baselines of.
    fn sources(&self) -> BTreeSet<u64> {
        self.baselines.keys().map(|(source, ..)| *source).collect()
    }

    /// A source and those above it, from the top down, without the root.
    fn above(&self, mut id: u64) -> Vec<u64> {
        let mut all = Vec::new();
        while id != ROOT_ID && !all.contains(&id) {
            all.push(id);
            id = self.parents.get(&id).copied().unwrap_or(ROOT_ID);
        }
        all.reverse();
        all
    }
}

/// What a tree knew that is not there yet.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    absent: HashMap<u128, Absent>,
    /// Directories at the top level.
    directories: BTreeMap<String, SavedDirectory>,
}

impl Remembered {
    /// A publisher is back: the blocks of numbers that it had. Its baselines are given back with its sources.
    pub(super) fn blocks_of(&mut self, publisher: u128) -> HashMap<u64, u64> {
        self.absent
            .get_mut(&publisher)
            .map(|absent| std::mem::take(&mut absent.blocks))
            .unwrap_or_default()
    }

    /// What was cleared of publishers that is still to be given back: words of groups.
    pub(super) fn baselines(
        &self,
    ) -> impl Iterator<Item = (u128, impl Iterator<Item = (GroupId, &[u64])>)> {
        self.absent.iter().map(|(publisher, absent)| {
            let words = absent.baselines.iter().map(|((.., group), words)| (*group, &**words));
            (*publisher, words)
        })
    }

    /// A directory is back.
    pub(super) fn directory(&mut self, name: &str) -> Option<SavedDirectory> {
        self.directories.remove(name)
    }
}

fn wrong(what: String) -> TreeError {
    TreeError::Saved(what)
}

impl Tree {
    /// A tree of a host's processes that carries on where another one stopped. Of the processes that that
    /// one had, each gets back what was kept of it when it [joins](Self::join); until then what was cleared
    /// of its counts is remembered, unless it is [forgotten](Self::forget).
    ///
    /// # Errors
    /// [`TreeError::Saved`] if the parts do not go together.
    pub fn host_from(saved: Saved, options: TreeOptions) -> Result<Self, TreeError> {
        let tree = Self::host(options);
        tree.lock().carry_on(saved)?;
        Ok(tree)
    }

    /// Has what outlasts the tree kept from now on, and at once.
    ///
    /// # Errors
    /// If it could not be kept.
    pub fn keep_by(&self, keeper: impl Keeper) -> io::Result<()> {
        let mut state = self.lock();
        state.numbers.grant_only_kept();
        state.keeper = Some(Box::new(keeper));
        let saved = state.save();
        state.keep(&saved, Occasion::Asked)
    }

    /// Has what outlasts the tree kept now, with what the keeper adds to it.
    ///
    /// # Errors
    /// If it could not be kept.
    pub fn keep(&self) -> io::Result<()> {
        let mut state = self.lock();
        let saved = state.save();
        state.keep(&saved, Occasion::Asked)
    }

    /// What outlasts the tree.
    pub fn save(&self) -> Saved {
        self.lock_to_read().save()
    }

    /// Whether something was cleared of a publisher that has not come back yet.
    #[cfg(feature = "server")]
    pub(crate) fn has_cleared(&self, publisher: u128) -> bool {
        let state = self.lock_to_read();
        let absent = state.remembered.absent.get(&publisher);
        absent.is_some_and(|absent| !absent.baselines.is_empty())
    }

    /// Forgets what is remembered of a publisher that will not come back.
    pub fn forget(&self, publisher: u128) {
        let mut state = self.lock();
        state.forget_absent(publisher);
        state.forget_directories();
    }
}

impl State {
    /// Has something kept.
    pub(super) fn keep(&mut self, saved: &Saved, occasion: Occasion) -> io::Result<()> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        keeper.keep(saved, occasion)?;
        self.numbers.are_kept(saved.next_block);
        self.unkept = false;
        Ok(())
    }

    /// Something was granted to a process that is to be kept.
    pub(super) fn granted_to(&mut self, process: ProcessId) {
        self.unkept = true;
        self.unkept_by = Some(self.processes[process].key);
    }

    /// Something is to be kept before anybody sees what comes.
    pub(super) fn must_keep(&mut self) {
        self.unkept = true;
    }

    /// Whether something was granted that is to be kept, and was not yet.
    pub(super) fn has_unkept(&self) -> bool {
        self.unkept && self.keeper.is_some()
    }

    /// Has kept what was granted, if something was. Whoever it was granted to pays for that.
    pub(super) fn keep_grants(&mut self) {
        if !self.has_unkept() {
            return;
        }
        let start = thread_time();
        let saved = self.save();
        let kept = self.keep(&saved, Occasion::Granted);
        if let Some(process) = self.unkept_by.take() {
            self.charge(process, start);
        }
        match kept {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "cannot keep the numbers of directories; trying on");
                }
            }
        }
    }

    /// What outlasts the tree.
    pub(super) fn save(&self) -> Saved {
        self.save_but(None)
    }

    /// Has kept that a process is gone and left this.
    pub(super) fn keep_folded(
        &mut self,
        process: ProcessId,
        left: &BTreeMap<(DirId, GroupId), Left>,
    ) -> io::Result<()> {
        if self.keeper.is_none() {
            return Ok(());
        }
        let mut saved = self.save_but(Some(process));
        for ((dir, group), left) in left {
            let sums = saved.ledger.entry((self.top_name(*dir), *group)).or_insert_with(|| {
                let none = || vec![0; left.raw.len()].into();
                Left { raw: none(), cleared: none() }
            });
            sums.add(left);
        }
        self.keep(&saved, Occasion::Folded(self.processes[process].publisher()))
    }

    fn save_but(&self, gone: Option<ProcessId>) -> Saved {
        let mut saved = Saved {
            groups: self.groups.clone(),
            identities: self.identities.places(),
            next_block: self.numbers.to_keep(),
            directories: self.remembered.directories.clone(),
            ..Saved::default()
        };
        for &number in self.dirs[&ROOT_DIR].children.iter().filter(|dir| **dir != BY_NAME_DIR) {
            let Some(dir) = self.dirs.get(&number) else { continue };
            let admitted = dir.admitted();
            saved.directories.insert(dir.name.to_string(), SavedDirectory { number, admitted });
        }
        for (dir, group, sums) in self.ledger.all() {
            let baseline = self.baselines.get(Account::Left(dir), group);
            let cleared = baseline.map_or_else(|| vec![0; sums.len()].into(), Box::from);
            saved.ledger.insert((self.top_name(dir), group), Left { raw: sums.into(), cleared });
        }
        let gone_publisher = gone.map(|gone| self.processes[gone].publisher());
        let absent = self.remembered.absent.iter();
        for (publisher, absent) in absent.filter(|(of, _)| Some(**of) != gone_publisher) {
            let blocks = absent.blocks.iter().map(|(high, block)| ((*publisher, *high), *block));
            saved.grants.extend(blocks);
            let parents = absent.parents.iter().map(|(id, parent)| ((*publisher, *id), *parent));
            saved.parents.extend(parents);
            for (&(source, departed, group), words) in &absent.baselines {
                let account = SavedAccount { publisher: *publisher, source, departed, group };
                saved.baselines.insert(account, words.clone());
            }
        }
        for (_, member) in self.processes.iter().filter(|(id, _)| Some(*id) != gone) {
            let publisher = member.publisher();
            let blocks = member.blocks.iter().map(|(high, block)| ((publisher, *high), *block));
            saved.grants.extend(blocks);
        }
        for (key, departed, groups) in self.baselines.of_sources() {
            if Some(key.0) != gone {
                self.save_baselines(key, departed, groups, &mut saved);
            }
        }
        saved
    }

    fn save_baselines(&self, key: SourceKey, departed: bool, groups: &OfGroups, to: &mut Saved) {
        let publisher = self.processes[key.0].publisher();
        for (&group, words) in groups {
            let account = SavedAccount { publisher, source: key.1, departed, group };
            to.baselines.insert(account, words.clone());
        }
        let mut id = key.1;
        while id != ROOT_ID {
            let Some(source) = self.sources.get(&(key.0, id)) else { break };
            if source.parent == ROOT_ID || source.parent == 0 {
                break;
            }
            if to.parents.insert((publisher, id), source.parent).is_some() {
                break;
            }
            id = source.parent;
        }
    }

    /// The name of a directory at the top level; empty for the root.
    fn top_name(&self, dir: DirId) -> String {
        self.dirs.get(&dir).map_or_else(String::new, |dir| dir.name.to_string())
    }

    /// Takes over what an earlier tree left.
    fn carry_on(&mut self, saved: Saved) -> Result<(), TreeError> {
        self.check_numbers(&saved)?;
        for group in &saved.groups {
            if self.group_id(group).is_some() {
                return Err(wrong(format!("the group {} is there twice", group.name())));
            }
            self.users.keep(None, group_bytes(group));
            self.add_group(group);
        }
        if self.identities.places() != saved.identities {
            return Err(wrong("the numbers of values do not follow from the groups".into()));
        }
        self.numbers = Numbers::from(saved.next_block);
        let Saved { grants, directories, ledger, baselines, parents, .. } = saved;
        let admitted = |dir: &SavedDirectory| {
            dir.admitted.iter().all(|identity| self.identities.get(*identity).is_some())
        };
        if let Some((name, _)) = directories.iter().find(|(_, dir)| !admitted(dir)) {
            return Err(wrong(format!("the directory {name} has a value that there is not")));
        }
        self.remembered.directories = directories;
        self.users.keep(None, GRANT * grants.len());
        for ((publisher, high), block) in grants {
            self.remembered.absent.entry(publisher).or_default().blocks.insert(high, block);
        }
        for ((publisher, source), parent) in parents {
            self.remembered.absent.entry(publisher).or_default().parents.insert(source, parent);
        }
        for (account, words) in baselines {
            let SavedAccount { publisher, source, departed, group } = account;
            self.check_words(group, &words)?;
            let absent = self.remembered.absent.entry(publisher).or_default();
            absent.baselines.insert((source, departed, group), words);
        }
        for ((name, group), left) in ledger {
            self.check_words(group, &left.raw)?;
            self.check_words(group, &left.cleared)?;
            let dir = if name.is_empty() {
                ROOT_DIR
            } else if is_source_name(name.as_bytes()) {
                let number = |error| TreeError::Number { directory: name.clone(), error };
                self.top_level(&name, crate::segment::arena::now_ns(), None).map_err(number)?
            } else {
                return Err(wrong(format!("{name:?} is not a name")));
            };
            self.leave_in(dir, group, &left);
        }
        self.forget_directories();
        Ok(())
    }

    /// A publisher is gone for good, or what it had is of no use.
    pub(super) fn forget_absent(&mut self, publisher: u128) {
        if let Some(absent) = self.remembered.absent.remove(&publisher) {
            self.users.keep_no_more(None, GRANT * absent.blocks.len());
        }
    }

    /// Once all are back, with all that they have, directories that are not will not be.
    pub(super) fn forget_directories(&mut self) {
        let Remembered { absent, directories } = &mut self.remembered;
        if !directories.is_empty()
            && absent.is_empty()
            && self.processes.iter().all(|(_, member)| member.pending.is_empty())
        {
            directories.clear();
        }
    }

    /// Whether no number was granted twice, or was not granted.
    fn check_numbers(&self, saved: &Saved) -> Result<(), TreeError> {
        if !(1..=MAX_BLOCKS).contains(&saved.next_block) {
            return Err(wrong(format!("there is no block {} of numbers", saved.next_block)));
        }
        let granted = |block: u64| (1..saved.next_block).contains(&block);
        let mut blocks = HashSet::new();
        if let Some(block) = saved.grants.values().find(|b| !granted(**b) || !blocks.insert(**b)) {
            return Err(wrong(format!("block {block} of numbers is granted twice, or not at all")));
        }
        let mut numbers = HashSet::new();
        for (name, directory) in &saved.directories {
            let block = directory.number >> PLACE_BITS;
            let is_own = granted(block) && !blocks.contains(&block);
            if !is_own || !numbers.insert(directory.number) || !is_source_name(name.as_bytes()) {
                return Err(wrong(format!("the directory {name:?} has another's number, or name")));
            }
        }
        Ok(())
    }

    fn check_words(&self, group: GroupId, words: &[u64]) -> Result<(), TreeError> {
        match self.groups.get(group) {
            Some(descriptor) if descriptor.words() == words.len() => Ok(()),
            _ => Err(wrong(format!("{} words of group {group}", words.len()))),
        }
    }

    /// A source has come into the tree: gives its process the baselines that it had of it, and of those that are
    /// gone and whose counts it has. Until then nothing of them is shown, cleared or not, and nobody knows whose
    /// they will be: it may go before that one comes which is above it.
    pub(super) fn give_back(&mut self, (process, id): SourceKey) {
        self.with_absent(process, |state, absent| {
            state.give_back_of(process, id, id, absent);
            for gone in absent.gone.remove(&id).unwrap_or_default() {
                state.give_back_of(process, gone, id, absent);
            }
        });
    }

    /// Does something with what is still to be given back to a process, and remembers what is left of it.
    fn with_absent(&mut self, process: ProcessId, give: impl FnOnce(&mut Self, &mut Absent)) {
        let publisher = self.processes[process].publisher();
        let Some(mut absent) = self.remembered.absent.remove(&publisher) else { return };
        give(self, &mut absent);
        if !absent.baselines.is_empty() {
            self.remembered.absent.insert(publisher, absent);
        }
    }

    /// Gives back the baselines of a source, whose counts are now those of `holder`, which is in the tree.
    fn give_back_of(&mut self, process: ProcessId, source: u64, holder: u64, absent: &mut Absent) {
        let own = (source, false, 0)..=(source, true, GroupId::MAX);
        let keys: Vec<_> = absent.baselines.range(own).map(|(key, _)| *key).collect();
        for key in keys {
            let (_, departed, group) = key;
            let Some(words) = absent.baselines.remove(&key) else { continue };
            let key = (process, holder);
            let account = match self.sources.get(&key).map(|holder| holder.reach) {
                Some(Reach::Departed(into)) => Account::Departed((process, into)),
                _ if departed || holder != source => Account::Departed(key),
                _ => Account::Live(key),
            };
            let baseline = self.baselines.entry(account, group, words.len());
            for (sum, word) in baseline.iter_mut().zip(&words) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }

    /// Whether a process that is back has a source, taken over or not.
    fn has_record(&self, process: ProcessId, id: u64) -> bool {
        id == ROOT_ID || self.processes[process].source(id).is_some()
    }

    /// A process's sources that it had baselines of may be gone: then these go where the counts went, to those
    /// above. As long as not all of its segments are there nobody knows what is gone.
    pub(super) fn find_gone(&mut self, process: ProcessId) {
        let publisher = self.processes[process].publisher();
        let absent = self.remembered.absent.get(&publisher);
        let sources = absent.map(Absent::sources).unwrap_or_default();
        let gone = sources.into_iter().filter(|id| !self.has_record(process, *id));
        self.are_gone(process, gone.collect());
    }

    /// These sources of a process are gone. What it had cleared of those that had not come into the tree goes to
    /// those above.
    pub(super) fn are_gone(&mut self, process: ProcessId, mut gone: Vec<u64>) {
        if gone.is_empty() || self.processes[process].incomplete {
            return;
        }
        self.with_absent(process, |state, absent| {
            // With those whose counts were theirs.
            let with: Vec<_> =
                gone.iter().filter_map(|id| absent.gone.remove(id)).flatten().collect();
            gone.extend(with);
            for id in gone {
                let above = absent.above(id);
                let mut above = above.into_iter().rev();
                let home = above.find(|id| state.has_record(process, *id)).unwrap_or(ROOT_ID);
                let home_of = state.sources.get(&(process, home));
                if home_of.is_some_and(|home| home.reach != Reach::Not) {
                    state.give_back_of(process, id, home, absent);
                } else {
                    absent.gone.entry(home).or_default().insert(id);
                }
            }
        });
    }
}

impl Left {
    /// Adds what somebody else left.
    pub(super) fn add(&mut self, other: &Self) {
        for (sums, words) in [(&mut self.raw, &other.raw), (&mut self.cleared, &other.cleared)] {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
}
