//! How much of what is [kept](super::Keeper) is whose: so that all of it fits, whatever processes do, and no user
//! has so much of it that there is none for the others.
//!
//! Bytes are reckoned as the server's payload has them (`host::state`), at most. There are two pools, and no user
//! has more than half of either. All together have three quarters of it; what is beyond that is for those who have
//! little, a 64th, so it takes two users to have those quarters, and 16 more until there is nothing. Whoever owns
//! the tree may have all that users share.
//!
//! * What is *brought* is there for long: records of groups; the blocks of numbers that a process has; and what it
//!   may leave one day. That is reserved when a group comes to a directory at the top level, as if every count were
//!   as long as can be, so that a fold always has room: what a process counted is never lost for want of it. What
//!   is reserved already, by whomever, costs nothing. A process that brings more than there is room for is refused.
//! * What was *cleared* is there as long as its process. It is of the user whose sources these are, whoever clears;
//!   a clear for which there is no room is refused, and nothing is cleared.
//!
//! What an earlier tree left is nobody's, but takes its room: baselines until their process is back, and for good
//! what it knew of groups and directories.

use std::collections::{BTreeMap, HashMap};

use super::clear::{Before, OfGroups};
use super::inode::DirId;
use super::model::Reach;
use super::{GroupId, SourceKey, State, TreeError};
use crate::segment::layout::ROOT_ID;
use crate::segment::schema;
use crate::value::{Descriptor, GroupDescriptor, Semantics};

/// A word that is not 0: that no zeros come before it, and a number of 64 bits in pieces of 7.
const WORD: usize = 1 + NUMBER;
const NUMBER: usize = 10;
/// What a word is reckoned with at least, though zeros take next to nothing: it is in memory as well. The number of
/// words that can be kept follows from that.
pub(crate) const LEAST_WORD: usize = 2;
/// A value's identity in its table; and in that of a directory at the top level, where it was admitted.
const IDENTITY: usize = 9;
const ADMITTED: usize = 3;
/// An entry of the ledger without its words: the longest name of a directory, and a group.
const LEFT: usize = 68;
/// A baseline without its words: publisher, source, account and group; and its source's parent.
const BASELINE: usize = 31 + 36;
/// A block of numbers: publisher, the upper bits of its sources' ids, and the block.
pub(super) const GRANT: usize = 31;

/// What all users share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    what: &'static str,
    bytes: usize,
}

impl Pool {
    /// What is brought, 3 parts of 16: a host's processes, that have some ten groups in one directory, bring less
    /// than 1 MiB.
    pub(super) fn brought(kept_bytes: usize) -> Self {
        Self { what: "bytes kept of groups and directories", bytes: kept_bytes / 16 * 3 }
    }

    /// What was cleared, 11 parts of 16. The other two are for what other limits are on: [what is
    /// left](super::TreeOptions::KEPT_BYTES).
    fn cleared(kept_bytes: usize) -> Self {
        Self { what: "bytes kept of what was cleared", bytes: kept_bytes / 16 * 11 }
    }

    /// Whether there is room, with which a user would have so much, and all together so much.
    pub(super) fn has_room(
        self,
        uid: u32,
        is_owner: bool,
        has: usize,
        all: usize,
    ) -> Result<(), TreeError> {
        let Self { what, bytes } = self;
        let shared = bytes / 4 * 3;
        let limit = if is_owner { shared } else { bytes / 2 };
        if has > limit {
            return Err(TreeError::Limit { what, limit, uid });
        }
        let limit = if has > bytes / 64 { shared } else { bytes };
        if all > limit { Err(TreeError::LimitOfAll { what, limit }) } else { Ok(()) }
    }
}

/// What is kept of a group itself, and of what may be left of it at the root, where that is which was never below a
/// directory.
pub(super) fn group_bytes(group: &GroupDescriptor) -> usize {
    let record = 3 + size_of_val(&*schema::encode(group));
    record + IDENTITY * group.values().len() + left_bytes(group)
}

/// What is kept of a group below a directory when all that can be is left there, and was cleared.
pub(super) fn left_bytes(group: &GroupDescriptor) -> usize {
    let words = group.values().iter().map(|value| {
        let counts = value.semantics == Semantics::Cumulative;
        2 * value.ty.cells() * if counts { WORD } else { LEAST_WORD }
    });
    LEFT + ADMITTED * group.values().len() + words.sum::<usize>()
}

/// Whether the baselines of a group may take more when its source departs: narrow ones become sums of 64 bits.
fn widens(group: &GroupDescriptor) -> bool {
    let is_narrow = |d: &Descriptor| d.semantics == Semantics::Cumulative && d.ty.width() < 8;
    group.values().iter().any(is_narrow)
}

/// What is kept of a baseline.
fn baseline_bytes(words: &[u64], widens: bool) -> usize {
    let words = words.iter().map(|word| match word {
        0 => LEAST_WORD,
        _ if widens => WORD,
        word => 1 + (u64::BITS - word.leading_zeros()).div_ceil(7) as usize,
    });
    BASELINE + words.sum::<usize>()
}

impl State {
    pub(super) fn is_owner(&self, uid: u32) -> bool {
        uid == self.options.owner.uid
    }

    /// Whether a user may bring so many bytes more.
    pub(super) fn has_room(&self, uid: u32, bytes: usize) -> Result<(), TreeError> {
        let (has, all) = self.users.kept(uid);
        let pool = Pool::brought(self.options.kept_bytes);
        pool.has_room(uid, self.is_owner(uid), has + bytes, all + bytes)
    }

    /// The directory at the top level that a source is in or below, if that has one.
    fn top_of(&self, (process, mut id): SourceKey) -> Option<DirId> {
        loop {
            let source = self.sources.get(&(process, id))?;
            if source.parent == ROOT_ID {
                return source.dir;
            }
            id = source.parent;
        }
    }

    /// A source counts in the tree, or has other groups: has room reserved for what it may leave. If there is none
    /// its process is to be [let go](super::processes::Member::lacks_room).
    pub(super) fn reserve(&mut self, key: SourceKey) {
        let Some(source) = self.sources.get(&key) else { return };
        if key.1 == ROOT_ID || source.reach == Reach::Not {
            return;
        }
        // Without a directory it is left at the root, for which there is room with the group.
        let Some(dir) = self.top_of(key).and_then(|id| self.dirs.get(&id)) else { return };
        let new = source.own.iter().chain(source.totals.iter());
        let mut new: Vec<GroupId> = new
            .filter(|group| !dir.reserved.contains_key(group))
            .filter(|group| self.groups[*group].has_cumulative())
            .collect();
        if new.is_empty() {
            return;
        }
        new.sort_unstable();
        new.dedup();
        let Some(id) = self.top_of(key) else { return };
        let identity = self.processes[key.0].identity;
        let by = self.charges(identity).then_some(identity.uid);
        for group in new {
            let bytes = left_bytes(&self.groups[group]);
            if let Some(uid) = by
                && let Err(error) = self.has_room(uid, bytes)
            {
                self.processes[key.0].lacks_room = Some(error);
                return;
            }
            self.reserve_in(id, group, by);
        }
    }

    /// Reserves room for what may be left of a group below a directory, which is brought by this user.
    pub(super) fn reserve_in(&mut self, dir: DirId, group: GroupId, by: Option<u32>) {
        let bytes = left_bytes(&self.groups[group]);
        if let Some(dir) = self.dirs.get_mut(&dir)
            && !dir.reserved.contains_key(&group)
        {
            dir.reserved.insert(group, by);
            self.users.keep(by, bytes);
        }
    }

    /// A directory has gone: what was reserved for it is free.
    pub(super) fn free_reserved(&mut self, reserved: HashMap<GroupId, Option<u32>>) {
        for (group, by) in reserved {
            self.users.keep_no_more(by, left_bytes(&self.groups[group]));
        }
    }

    /// Whether there is room for what a clear has just put in the place of these baselines.
    pub(super) fn has_room_for_cleared(
        &self,
        before: &Before,
        by_owner: bool,
    ) -> Result<(), TreeError> {
        let widens: Vec<_> = self.groups.iter().map(|group| widens(group)).collect();
        let mut grown = BTreeMap::<u32, isize>::new();
        for (account, group, old) in before {
            let Some((process, _)) = account.key() else { continue };
            let bytes = |words: &[u64]| baseline_bytes(words, widens[*group]) as isize;
            let new = self.baselines.get(*account, *group).map_or(0, bytes);
            let old = old.as_deref().map_or(0, bytes);
            *grown.entry(self.processes[process].identity.uid).or_default() += new - old;
        }
        grown.retain(|_, grown| *grown > 0);
        if grown.is_empty() {
            return Ok(());
        }
        let (of_users, all) = self.cleared_bytes(&widens);
        let pool = Pool::cleared(self.options.kept_bytes);
        grown.into_keys().try_for_each(|uid| {
            let has = of_users.get(&uid).copied().unwrap_or_default();
            pool.has_room(uid, by_owner, has, all)
        })
    }

    /// What is kept of what was cleared, by user whose it is, and of all.
    fn cleared_bytes(&self, widens: &[bool]) -> (HashMap<u32, usize>, usize) {
        let (mut of_users, mut all) = (HashMap::<u32, usize>::new(), 0);
        let mut add = |uid: Option<u32>, bytes| {
            all += bytes;
            uid.into_iter().for_each(|uid| *of_users.entry(uid).or_default() += bytes);
        };
        let bytes = |groups: &OfGroups| -> usize {
            groups.iter().map(|(group, words)| baseline_bytes(words, widens[*group])).sum()
        };
        for (key, _, groups) in self.baselines.of_sources() {
            add(Some(self.processes[key.0].identity.uid), bytes(groups));
        }
        for (publisher, baselines) in self.remembered.baselines() {
            let process = self.processes.of_publisher(publisher);
            let process = process.and_then(|key| self.processes.get(self.processes.id(key)?));
            let uid = process.map(|process| process.identity.uid);
            for (group, words) in baselines {
                add(uid, baseline_bytes(words, widens[group]));
            }
        }
        (of_users, all)
    }
}
