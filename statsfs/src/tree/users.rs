//! What each user's processes brought that a tree does not forget when they are gone: groups and values,
//! whose numbers are in inode numbers, directories at the top level, as long as something is counted there,
//! and numbers; and the share of time that they have together.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Bucket, UsersShare};
use super::by_name::BY_NAME;
use super::dirs::{HOST_NAME, ROOT_DIR};
use super::kept::group_bytes;
use super::processes::Identity;
use super::{ProcessId, State, TreeError};
use crate::segment::layout::ROOT_ID;
use crate::value::GroupDescriptor;

/// Blocks of numbers that a user's processes may have at once, and one more after each interval: a block is
/// for 4096 sources, or fewer if their ids are far apart, and each process has its own. There are 2^28 blocks:
/// whoever wanted all of them would need two months.
const BLOCKS: u32 = 4096;
const BLOCK_INTERVAL: Duration = Duration::from_millis(20);

/// What one user's processes brought.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) groups: usize,
    pub(super) values: usize,
    pub(super) directories: usize,
    /// Bytes that are kept of all that, and of the blocks of numbers.
    kept: usize,
    blocks: Bucket,
    pub(super) share: UsersShare,
}

/// All users.
#[derive(Debug, Default)]
pub(super) struct Users {
    by_uid: HashMap<u32, Brought>,
    /// Bytes that are kept of what all brought, and of what nobody is known to have.
    kept: usize,
}

impl Users {
    /// What a user's processes brought, to add to it.
    pub(super) fn bring(&mut self, uid: u32) -> &mut Brought {
        self.by_uid.entry(uid).or_insert_with(|| Brought {
            groups: 0,
            values: 0,
            directories: 0,
            kept: 0,
            blocks: Bucket::new(Instant::now(), BLOCKS, BLOCK_INTERVAL),
            share: UsersShare::new(Instant::now()),
        })
    }

    /// Bytes that are kept of what a user brought, and of what all did.
    pub(super) fn kept(&self, uid: u32) -> (usize, usize) {
        (self.by_uid.get(&uid).map_or(0, |has| has.kept), self.kept)
    }

    /// So much more is kept, which this user brought.
    pub(super) fn keep(&mut self, by: Option<u32>, bytes: usize) {
        self.kept += bytes;
        self.is_whose(by, bytes);
    }

    /// So much that is kept, and was nobody's, is this user's.
    pub(super) fn is_whose(&mut self, by: Option<u32>, bytes: usize) {
        by.into_iter().for_each(|uid| self.bring(uid).kept += bytes);
    }

    /// So much is kept no more.
    pub(super) fn keep_no_more(&mut self, by: Option<u32>, bytes: usize) {
        self.kept -= bytes;
        by.into_iter().for_each(|uid| self.bring(uid).kept -= bytes);
    }

    /// One of a user's processes needs a block of numbers.
    pub(super) fn grant_block(&mut self, uid: u32) -> io::Result<()> {
        if self.bring(uid).blocks.take(Instant::now()) {
            Ok(())
        } else {
            Err(io::Error::other("the user's processes have had too many of late"))
        }
    }
}

impl State {
    /// Whether what a process brings is counted as its user's.
    pub(super) fn charges(&self, identity: Identity) -> bool {
        self.is_host && !identity.is_host
    }

    /// Whether a process's user may bring all that comes with these sources. Nothing has been taken over.
    pub(super) fn may_bring(&self, process: ProcessId, sources: &[u64]) -> Result<(), TreeError> {
        let member = &self.processes[process];
        let uid = member.identity.uid;
        if !self.charges(member.identity) {
            return Ok(());
        }
        let (has, limits) = (self.users.by_uid.get(&uid), &self.options.user_limits);
        let mut groups: Vec<&GroupDescriptor> = Vec::new();
        let mut seen = HashSet::new();
        let mut directories = BTreeSet::new();
        for record in sources.iter().filter_map(|id| member.source(*id)) {
            for group in &record.groups {
                let group = &group.group;
                let is_new = seen.insert(Arc::as_ptr(group))
                    && self.group_of(process, group).is_none()
                    && !groups.contains(&&**group);
                // Beyond the limit it does not matter by how much.
                if is_new && groups.len() <= limits.groups {
                    groups.push(group);
                }
            }
            let name = &*record.name;
            let is_shown = record.parent == ROOT_ID && !record.hidden && name != HOST_NAME;
            let reserved = name == BY_NAME && self.options.pid_prefix;
            if is_shown && !reserved && self.dirs[&ROOT_DIR].child(name).is_none() {
                directories.insert(name);
            }
        }
        if groups.is_empty() && directories.is_empty() {
            return Ok(());
        }
        let values: usize = groups.iter().map(|group| self.identities.new_in(group)).sum();
        let all = [
            ("groups of values", has.map_or(0, |has| has.groups) + groups.len(), limits.groups),
            ("different values", has.map_or(0, |has| has.values) + values, limits.values),
            (
                "directories at the top level",
                has.map_or(0, |has| has.directories) + directories.len(),
                limits.directories,
            ),
        ];
        match all.into_iter().find(|(_, n, limit)| n > limit) {
            Some((what, _, limit)) => Err(TreeError::Limit { what, limit, uid }),
            None => self.has_room(uid, groups.iter().map(|group| group_bytes(group)).sum()),
        }
    }
}
