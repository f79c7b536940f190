//! Directories: which source is shown in which, under what name, and which groups of values they know.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use super::by_name::BY_NAME;
use super::clashes::Why;
use super::files::{Descriptions, Files, Identities, IdentityId};
use super::groups::GroupCounts;
use super::inode::{DirId, Node};
use super::kept::GRANT;
use super::numbers::PLACE_BITS;
use super::processes::Identity;
use super::sweep::Account;
use super::{GroupId, Owner, SourceKey, State, TreeOptions};
use crate::segment::layout::ROOT_ID;
use crate::segment::process::SourceRecord;

/// The root's directory.
pub(crate) const ROOT_DIR: DirId = 1;
/// The directory of links.
pub(crate) const BY_NAME_DIR: DirId = 2;
/// The name of a host's own statistics at the top level.
pub(super) const HOST_NAME: &str = "statsfs";

/// One directory: a visible source, or the sources of one name at the top level of several processes.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) parent: DirId,
    pub(crate) name: Arc<str>,
    /// The labels of its source, if it has any.
    pub(crate) labels: Option<Arc<[(String, String)]>>,
    pub(crate) members: Vec<SourceKey>,
    pub(crate) children: BTreeSet<DirId>,
    by_name: HashMap<Arc<str>, DirId>,
    pub(crate) created_ns: u64,
    pub(crate) private: bool,
    pub(crate) owner: Owner,
    /// Sources in this directory, and below it, that have each group. What is left of processes that are
    /// gone counts as one below.
    pub(crate) own: GroupCounts,
    pub(crate) below: GroupCounts,
    /// At the top level, where several processes meet: when each identity came, and how many of the
    /// groups above have it. Within one process no name has two identities.
    pub(crate) admitted: HashMap<IdentityId, (u64, usize)>,
    next_admission: u64,
    files: OnceLock<Arc<Files>>,
    /// The values that the last files left out.
    left_out: Vec<(Box<str>, IdentityId)>,
    /// At the top level: the user whose process brought the name, if that counts.
    brought_by: Option<u32>,
    /// At the top level: the groups of which something may be left here, for which there is room, and the user
    /// whose processes brought that, if it counts.
    pub(super) reserved: HashMap<GroupId, Option<u32>>,
}

impl Dir {
    fn new(parent: DirId, name: &str, created_ns: u64, owner: Owner) -> Self {
        Self {
            parent,
            name: name.into(),
            labels: None,
            members: Vec::new(),
            children: BTreeSet::new(),
            by_name: HashMap::new(),
            created_ns,
            private: false,
            owner,
            own: GroupCounts::default(),
            below: GroupCounts::default(),
            admitted: HashMap::new(),
            next_admission: 0,
            files: OnceLock::new(),
            left_out: Vec::new(),
            brought_by: None,
            reserved: HashMap::new(),
        }
    }

    /// The identities that were admitted, in that order.
    pub(super) fn admitted(&self) -> Vec<IdentityId> {
        let mut all: Vec<_> = self.admitted.iter().map(|(id, (when, _))| (*when, *id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Has identities that were admitted when the directory was there before come in that order.
    fn admit_in_order(&mut self, identities: &[IdentityId]) {
        self.admitted = (0..).zip(identities).map(|(when, id)| (*id, (when, 0))).collect();
        self.next_admission = identities.len() as u64;
    }

    /// Counts a group in or out, of the directory's own or of those below. Answers whether it appeared or
    /// disappeared.
    fn count(&mut self, own: bool, group: GroupId, add: bool, identities: &Identities) -> bool {
        let groups = if own { &mut self.own } else { &mut self.below };
        let changed = groups.count(group, add);
        if changed && self.parent == ROOT_DIR {
            for identity in identities.of(group).iter().flatten() {
                if add {
                    let next = self.next_admission;
                    self.next_admission += 1;
                    self.admitted.entry(*identity).or_insert((next, 0)).1 += 1;
                } else if let Some((_, groups)) = self.admitted.get_mut(identity) {
                    *groups = groups.saturating_sub(1);
                    if *groups == 0 {
                        self.admitted.remove(identity);
                    }
                }
            }
        }
        changed
    }

    /// A subordinate came or went: where several processes meet, a value of its name goes or comes.
    fn forget_files_called(&mut self, name: &str) {
        let has = |files: &Arc<Files>| {
            files.get(name).is_some()
                || files.left_out.iter().any(|(left_out, _)| **left_out == *name)
        };
        if self.files.get().is_some_and(has) {
            self.forget_files();
        }
    }

    /// Has the files computed anew.
    fn forget_files(&mut self) -> Option<Arc<Files>> {
        let files = self.files.take()?;
        self.left_out.clone_from(&files.left_out);
        Some(files)
    }

    /// The subordinate directory of this name.
    pub(crate) fn child(&self, name: &str) -> Option<DirId> {
        self.by_name.get(name).copied()
    }
}

/// The directories that a tree has of its own.
pub(super) fn root_dirs(options: &TreeOptions) -> HashMap<DirId, Box<Dir>> {
    let now = crate::segment::arena::now_ns();
    let mut dirs = HashMap::new();
    let mut root = Dir::new(ROOT_DIR, "", now, options.owner);
    if options.pid_prefix {
        root.children.insert(BY_NAME_DIR);
        root.by_name.insert(BY_NAME.into(), BY_NAME_DIR);
        let by_name = Dir::new(ROOT_DIR, BY_NAME, now, options.owner);
        dirs.insert(BY_NAME_DIR, Box::new(by_name));
    }
    dirs.insert(ROOT_DIR, Box::new(root));
    dirs
}

impl State {
    /// The files of a directory, computed when first asked for after its groups changed.
    pub(crate) fn files(&self, dir: DirId) -> Option<&Files> {
        let directory = self.dirs.get(&dir)?;
        Some(self.files_of(dir, directory))
    }

    /// The same, shared with directories of the same kind.
    pub(super) fn files_of<'a>(&'a self, id: DirId, dir: &'a Dir) -> &'a Arc<Files> {
        dir.files.get_or_init(|| {
            let files = self.files_anew(dir);
            let is_new = |of: &&_| !dir.left_out.contains(*of);
            for (name, identity) in files.left_out.iter().filter(is_new) {
                let of = self.last_with(dir, *identity);
                self.clashes.report(of, "value", name, &self.path(id), Why::Taken);
            }
            files
        })
    }

    /// By what the files of a directory are described.
    pub(super) fn descriptions(&self, dir: &Dir) -> Descriptions<'_> {
        let is_shared = self.is_host && dir.parent == ROOT_DIR;
        Descriptions { identities: &self.identities, groups: &self.groups, is_shared }
    }

    fn files_anew(&self, dir: &Dir) -> Arc<Files> {
        let by = self.descriptions(dir);
        if dir.parent != ROOT_DIR {
            let files = self.file_sets.of(by, dir);
            if dir.by_name.keys().all(|name| files.get(name).is_none()) {
                return files;
            }
        }
        Arc::new(Files::new(by, dir, |name| dir.child(name).is_some()))
    }

    /// Who came last of those that have a value in or below a directory: whoever is left out came late.
    fn last_with(&self, directory: &Dir, value: IdentityId) -> Option<Identity> {
        let mut members = directory.members.iter().rev().map(|key| &self.processes[key.0]);
        let its = members.find(|member| {
            member.groups().any(|group| self.identities.value_of(group, value).is_some())
        });
        its.map(|member| member.identity)
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

    /// Whether what is on an account counts as what departed: it is shown in sums only.
    pub(super) fn is_departed(&self, account: Account) -> bool {
        match account {
            Account::Live(key) => self.processes[key.0].detached,
            Account::Departed(_) | Account::Left(_) => true,
        }
    }

    /// In which directory an account is shown, and whether as that of a source that has it.
    pub(super) fn shown_as(&self, account: Account) -> Option<(DirId, bool)> {
        match account {
            Account::Left(dir) => Some((dir, false)),
            Account::Live(key) | Account::Departed(key) => match self.sources.get(&key)?.dir {
                Some(dir) => Some((dir, true)),
                None => Some((self.shown_in(key)?, false)),
            },
        }
    }

    /// In which directory's `.departed` an account is.
    pub(super) fn departs_in(&self, account: Account) -> Option<DirId> {
        match account {
            Account::Left(dir) => Some(dir),
            Account::Live(key) | Account::Departed(key) if self.processes[key.0].detached => {
                self.shown_in(key)
            }
            Account::Departed(key) => self.sources.get(&key)?.dir,
            Account::Live(_) => None,
        }
    }

    /// The groups of which something departed in a directory.
    pub(super) fn departed_groups(&self, dir: DirId) -> BTreeSet<GroupId> {
        let mut all: BTreeSet<_> = self.ledger.groups(dir).collect();
        let members = self.dirs.get(&dir).into_iter().flat_map(|dir| &dir.members);
        for key in members {
            let process = &self.processes[key.0];
            if process.detached
                && let Some(source) = self.sources.get(key)
            {
                all.extend(source.own.iter().chain(source.totals.iter()));
            }
            let groups = process.source(key.1).into_iter().flat_map(|record| &record.groups);
            let accumulated = groups.filter(|group| group.accumulator.is_some());
            all.extend(accumulated.filter_map(|group| self.group_of(key.0, &group.group)));
        }
        all
    }

    /// Gives a source that is part of the tree its directory, if it is to have one.
    pub(super) fn show(&mut self, key: SourceKey) {
        let process = &self.processes[key.0];
        let Some(record) = process.source(key.1) else { return };
        let SourceRecord { name, created_ns, private, hidden, labels, .. } = record;
        let (name, created_ns, private, hidden) = (name.clone(), *created_ns, *private, *hidden);
        let labels = (!labels.is_empty()).then(|| Arc::from(&**labels));
        let parent = self.sources[&key].parent;
        let is_top = parent == ROOT_ID;
        // A directory that several processes share can not be hidden by one of them, and what is below it
        // must not come between them.
        let must_show = is_top && self.is_host;
        let dir = if hidden && must_show {
            let of = self.processes[key.0].identity;
            self.clashes.report(Some(of), "source", &name, "", Why::Hidden);
            None
        } else if hidden || (process.detached && !is_top) {
            None
        } else {
            self.directory(key, parent, &name, created_ns, private)
        };
        if let Some(dir) = dir.filter(|_| !is_top).and_then(|dir| self.dirs.get_mut(&dir)) {
            // Those at the top are of several processes.
            dir.labels = labels;
        }
        let has_none = if hidden { must_show } else { is_top || !self.processes[key.0].detached };
        if let Some(source) = self.sources.get_mut(&key) {
            source.dir = dir;
            source.left_out = dir.is_none() && has_none;
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
        let identity = self.processes[key.0].identity;
        let id = if parent == ROOT_ID {
            let reserved = (name == BY_NAME && self.options.pid_prefix)
                || (name == HOST_NAME && self.is_host && !identity.is_host);
            if reserved {
                self.clashes.report(Some(identity), "source", name, "", Why::Reserved);
                return None;
            }
            let by = self.charges(identity).then_some(identity.uid);
            match self.top_level(name, created_ns, by) {
                Ok(dir) => dir,
                Err(error) => {
                    tracing::debug!(%error, name, "no number for a directory yet");
                    self.processes[key.0].await_number(key.1);
                    return None;
                }
            }
        } else {
            let prefix = self.dirs[&above].parent == ROOT_DIR
                && above != ROOT_DIR
                && self.options.pid_prefix
                && !identity.is_host;
            let called = if prefix { format!("{}-{name}", identity.pid) } else { name.to_owned() };
            if !self.is_free(above, &called) {
                self.clashes.wait(key, above, &called);
                let path = self.path(above);
                self.clashes.report(Some(identity), "source", &called, &path, Why::Taken);
                return None;
            }
            let id = match self.number(key) {
                Ok(id) => id,
                Err(error) => {
                    tracing::debug!(%error, name, "no number for a directory yet");
                    self.processes[key.0].await_number(key.1);
                    return None;
                }
            };
            // Once below the shared directories is enough: what is below that is reached through it.
            let private = private || (!identity.is_public && self.dirs[&above].parent == ROOT_DIR);
            let gid = if private || self.is_private(above) {
                self.options.owner.gid
            } else {
                identity.gid
            };
            let mut dir = Dir::new(above, &called, created_ns, Owner { uid: identity.uid, gid });
            dir.private = private;
            self.insert_dir(id, dir);
            if prefix && !self.links.add(name, identity.pid, id) {
                self.clashes.report(Some(identity), "link", name, BY_NAME, Why::Taken);
            }
            id
        };
        let dir = self.dirs.get_mut(&id)?;
        dir.members.push(key);
        // On a host what is at the top is for all.
        if parent == ROOT_ID && dir.members.len() == 1 {
            dir.private = private && !self.is_host;
        }
        Some(id)
    }

    /// Whether a directory, or one above it, is private.
    fn is_private(&self, mut dir: DirId) -> bool {
        while let Some(directory) = self.dirs.get(&dir) {
            if directory.private {
                return true;
            }
            if dir == ROOT_DIR {
                break;
            }
            dir = directory.parent;
        }
        false
    }

    /// The number of a source's directory.
    fn number(&mut self, (process, id): SourceKey) -> std::io::Result<DirId> {
        let high = id >> PLACE_BITS;
        let identity = self.processes[process].identity;
        let block = match self.processes[process].blocks.get(&high) {
            Some(block) => *block,
            None => {
                let by = self.charges(identity).then_some(identity.uid);
                if let Some(uid) = by {
                    self.has_room(uid, GRANT).map_err(std::io::Error::other)?;
                    self.users.grant_block(uid)?;
                }
                let block = self.numbers.block()?;
                self.users.keep(by, GRANT);
                self.processes[process].blocks.insert(high, block);
                self.granted_to(process);
                block
            }
        };
        Ok(block << PLACE_BITS | id & ((1 << PLACE_BITS) - 1))
    }

    /// The directory of this name at the top level, which is made if there is none, and counted as this
    /// user's then.
    pub(super) fn top_level(
        &mut self,
        name: &str,
        created_ns: u64,
        by: Option<u32>,
    ) -> std::io::Result<DirId> {
        if let Some(existing) = self.dirs[&ROOT_DIR].child(name) {
            return Ok(existing);
        }
        let mut dir = Dir::new(ROOT_DIR, name, created_ns, self.options.owner);
        let id = match self.remembered.directory(name) {
            Some(before) => {
                dir.admit_in_order(&before.admitted);
                before.number
            }
            None => self.numbers.directory()?,
        };
        self.unkept = true;
        dir.brought_by = by;
        if let Some(uid) = by {
            self.users.bring(uid).directories += 1;
        }
        self.insert_dir(id, dir);
        Ok(id)
    }

    fn insert_dir(&mut self, id: DirId, dir: Dir) {
        if let Some(above) = self.dirs.get_mut(&dir.parent) {
            above.children.insert(id);
            above.by_name.insert(dir.name.clone(), id);
            above.forget_files_called(&dir.name);
        }
        self.dirs.insert(id, Box::new(dir));
    }

    /// Takes a source's directory away.
    pub(super) fn hide(&mut self, key: SourceKey) {
        self.count_groups(key, false);
        let Some(source) = self.sources.get_mut(&key) else { return };
        let dir = source.dir.take();
        if std::mem::take(&mut source.left_out) {
            self.clashes.wait_no_more(key);
            self.processes[key.0].await_no_number(key.1);
        }
        let Some(id) = dir else { return };
        let Some(dir) = self.dirs.get_mut(&id) else { return };
        dir.members.retain(|member| *member != key);
        if !dir.members.is_empty() || id == ROOT_DIR || self.ledger.has(id) {
            // If one is left, what that has does not meet.
            self.clashes.free_values(id);
            return;
        }
        let Some(dir) = self.dirs.remove(&id) else { return };
        if let Some(above) = self.dirs.get_mut(&dir.parent) {
            above.children.remove(&id);
            above.by_name.remove(&dir.name);
            above.forget_files_called(&dir.name);
        }
        self.clashes.free(dir.parent, &dir.name);
        if let Some(uid) = dir.brought_by {
            self.users.bring(uid).directories -= 1;
        }
        self.free_reserved(dir.reserved);
        self.gone.push(Node::Dir(id).ino());
        if self.links.remove(id).is_some() {
            self.gone.push(Node::Link(id).ino());
        }
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
    pub(super) fn count_groups(&mut self, key: SourceKey, add: bool) {
        self.count_groups_as(key, add, self.processes[key.0].detached);
    }

    /// As [`count_groups`](Self::count_groups), as of a process that is detached or of one that is not.
    pub(super) fn count_groups_as(&mut self, key: SourceKey, add: bool, detached: bool) {
        let Some(source) = self.sources.get(&key) else { return };
        let (own, totals) = (source.own.clone(), source.totals.clone());
        let itself = source.dir.is_some();
        let Some(shown_in) = self.shown_in(key) else { return };
        if detached {
            // It is all there is, and shows what it counted and what departed from it.
            if itself {
                let all: Vec<_> = own.union(&totals).iter().map(|group| (false, group)).collect();
                self.count_in(shown_in, &all, add);
            }
            return;
        }
        let mut at = shown_in;
        while at != ROOT_DIR {
            let own_dir = itself && at == shown_in;
            let mut all: Vec<_> = own.iter().map(|group| (own_dir, group)).collect();
            if own_dir {
                // Of what departed, the sources above have totals of their own; explicit aggregates are
                // shown where they were asked for, which for a hidden source is nowhere.
                all.extend(totals.iter().map(|group| (false, group)));
            }
            if !self.count_in(at, &all, add) {
                return;
            }
            at = self.dirs[&at].parent;
        }
    }

    /// Counts groups in or out of one directory: of its own, or of those below. False if it is not there.
    fn count_in(&mut self, at: DirId, groups: &[(bool, GroupId)], add: bool) -> bool {
        let Some(dir) = self.dirs.get_mut(&at) else { return false };
        let mut changed = false;
        for (own, group) in groups {
            changed |= dir.count(*own, *group, add, &self.identities);
        }
        if changed && !add && dir.parent == ROOT_DIR {
            self.clashes.free_values(at);
        }
        if changed
            && let Some(files) = dir.forget_files()
            && !add
        {
            let nodes = files.iter().map(|file| Node::Value(at, false, file.identity, file.part));
            self.gone.extend(nodes.map(Node::ino));
        }
        true
    }

    /// Counts in a group of which something is left below a directory.
    pub(super) fn count_group_left(&mut self, dir: DirId, group: GroupId) {
        if dir != ROOT_DIR {
            self.count_in(dir, &[(false, group)], true);
        }
    }
}
