//! The processes of a tree: who they are, where their segments come from, and whether they are there.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::{Deref, DerefMut, Index, IndexMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::sweep::Plan;
use super::wake::Waker;
use super::{GroupId, Owner, ProcessId, TreeError};
use crate::fd_groups::FdGroups;
use crate::segment::Process;
use crate::value::GroupDescriptor;

/// How long a source waits that could not have a number for its directory, until it is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Where a process's segments come from.
pub trait Feed: Send + Sync + 'static {
    /// Descriptors of all segments so far, in order.
    ///
    /// # Errors
    /// Whatever keeps them from being had.
    fn segments(&self) -> io::Result<Vec<OwnedFd>>;

    /// The publisher whose segments they must be, if that is known beforehand.
    fn publisher(&self) -> Option<u128> {
        None
    }

    /// What the kernel counts for it is read from these.
    #[doc(hidden)]
    fn fd_groups(&self) -> FdGroupsOf {
        FdGroupsOf::default()
    }

    /// Takes what wakes the tree, to be used when something may have changed. A tree whose feeds do not
    /// looks by itself every 100 ms.
    fn wake_by(&self, _waker: Waker) {}
}

/// The descriptors that a feed has beside its segments.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct FdGroupsOf(pub(crate) Arc<FdGroups>);

/// Who a process is: from the kernel, never from what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Process id, which is shown before the names of its sources where a tree does that.
    pub pid: u32,
    /// User, who owns the directories of its sources.
    pub uid: u32,
    /// Group, to which its public directories belong.
    pub gid: u32,
    /// Whether everybody may look into its directories, as far as its sources are not private themselves;
    /// in a tree of one process they may.
    pub is_public: bool,
    /// Whether it is the host's own statistics: these have the name `statsfs` at the top, and no
    /// process id before their names.
    pub is_host: bool,
}

impl Identity {
    /// This process.
    pub fn this_process() -> Self {
        let Owner { uid, gid } = Owner::this_process();
        Self { pid: std::process::id(), uid, gid, is_public: true, is_host: false }
    }
}

/// A process in a tree: unique, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey(pub(super) u64);

/// What a process has in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Segments.
    pub segments: u64,
    /// Bytes of the segments.
    pub bytes: u64,
    /// Sources.
    pub sources: u64,
}

/// A process in the tree.
pub(crate) struct Member {
    pub(super) key: ProcessKey,
    pub(super) identity: Identity,
    pub(super) feed: Box<dyn Feed>,
    process: Process,
    /// Whether nobody knows whether it is still there: it has no directories, but its totals count.
    pub(super) detached: bool,
    /// Whether some of its segments could not be had.
    pub(super) incomplete: bool,
    /// The blocks of directory numbers that it has: by the upper bits of sources' ids.
    pub(super) blocks: HashMap<u64, u64>,
    /// New sources that are still to be taken over.
    pub(super) pending: BTreeSet<u64>,
    /// Sources that wait for a number, and until when.
    unnumbered: BTreeSet<u64>,
    retry: Option<Instant>,
    /// The tree's numbers for its groups, by where they are in memory, which they are as long as they are
    /// here.
    groups: HashMap<usize, (Arc<GroupDescriptor>, GroupId)>,
    /// Why it is to be let go: there is no room for what it may leave.
    pub(super) lacks_room: Option<TreeError>,
    /// What it may cost; `None` in a tree of its own.
    pub(super) budget: Option<Budget>,
    /// How to read all of its cells, until its structure changes.
    pub(super) plan: OnceLock<Plan>,
}

impl Member {
    pub(super) fn new(
        key: ProcessKey,
        identity: Identity,
        feed: Box<dyn Feed>,
        process: Process,
        budget: Option<Budget>,
    ) -> Self {
        // More may have come while it was taken in.
        let incomplete = process.segments().len() < process.segments_expected();
        Self {
            key,
            identity,
            feed,
            process,
            detached: false,
            incomplete,
            blocks: HashMap::new(),
            pending: BTreeSet::new(),
            unnumbered: BTreeSet::new(),
            retry: None,
            groups: HashMap::new(),
            lacks_room: None,
            budget,
            plan: OnceLock::new(),
        }
    }

    /// The tree's number for a group of this process, if it was [noted](Self::note_group).
    pub(super) fn group(&self, group: &Arc<GroupDescriptor>) -> Option<GroupId> {
        self.groups.get(&Arc::as_ptr(group).addr()).map(|(_, id)| *id)
    }

    /// The tree's numbers for its groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.values().map(|(_, id)| *id)
    }

    pub(super) fn note_group(&mut self, group: &Arc<GroupDescriptor>, id: GroupId) {
        self.groups.insert(Arc::as_ptr(group).addr(), (group.clone(), id));
    }

    /// A source waits for a number.
    pub(super) fn await_number(&mut self, source: u64) {
        self.unnumbered.insert(source);
        self.retry = Some(Instant::now() + RETRY);
    }

    /// A source does not wait for a number any more.
    pub(super) fn await_no_number(&mut self, source: u64) {
        self.unnumbered.remove(&source);
    }

    /// The sources that waited long enough for a number, at most so many.
    pub(super) fn unnumbered(&mut self, most: usize) -> Vec<u64> {
        if !self.may_have_numbers() {
            return Vec::new();
        }
        self.retry = None;
        self.unnumbered.iter().copied().take(most).collect()
    }

    /// Whether a source does not wait for a number.
    pub(super) fn is_numbered(&self, source: u64) -> bool {
        !self.unnumbered.contains(&source)
    }

    fn may_have_numbers(&self) -> bool {
        !self.unnumbered.is_empty() && self.retry.is_none_or(|retry| retry <= Instant::now())
    }

    /// Whether there is something to take in, now.
    pub(super) fn needs_refresh(&self) -> bool {
        let something = self.incomplete
            || !self.pending.is_empty()
            || self.process.is_stale()
            || self.may_have_numbers();
        something && !self.has_spent_its_budget()
    }

    /// Whether there are sources left that are to be taken over now.
    pub(super) fn has_more(&self) -> bool {
        !self.pending.is_empty() && !self.has_spent_its_budget()
    }

    /// Whether it has to wait until something is taken in.
    pub(super) fn has_spent_its_budget(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_spent(Instant::now()))
    }

    /// How much more it has cost than its share: who has cost least is seen to first.
    pub(super) fn debt(&self, now: Instant) -> Duration {
        self.budget.as_ref().map(|budget| budget.debt(now)).unwrap_or_default()
    }

    /// Whether it is among those that have a share together.
    pub(super) fn is_heavy(&self, now: Instant) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_heavy(now))
    }

    /// The segments, and where they come from.
    pub(super) fn parts(&mut self) -> (&mut Process, &dyn Feed) {
        (&mut self.process, &*self.feed)
    }
}

impl Deref for Member {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Member {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// All processes, by numbers that are used again when one has gone: then nothing of it is left.
#[derive(Default)]
pub(crate) struct Processes {
    all: Vec<Option<Member>>,
    by_key: HashMap<ProcessKey, ProcessId>,
    by_publisher: HashMap<u128, ProcessKey>,
    so_far: u64,
}

impl Processes {
    /// A key for a process that comes.
    pub(super) fn next_key(&mut self) -> ProcessKey {
        self.so_far += 1;
        ProcessKey(self.so_far)
    }

    pub(super) fn insert(&mut self, member: Member) -> ProcessId {
        let free = self.all.iter().position(Option::is_none);
        let id = free.unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.by_key.insert(member.key, id);
        self.by_publisher.insert(member.publisher(), member.key);
        self.all[id] = Some(member);
        id
    }

    pub(super) fn remove(&mut self, id: ProcessId) -> Option<Member> {
        let member = self.all.get_mut(id)?.take()?;
        self.by_key.remove(&member.key);
        self.by_publisher.remove(&member.publisher());
        while self.all.last().is_some_and(Option::is_none) {
            self.all.pop();
        }
        Some(member)
    }

    pub(super) fn id(&self, key: ProcessKey) -> Option<ProcessId> {
        self.by_key.get(&key).copied()
    }

    /// The process whose segments have this publisher's id.
    pub(super) fn of_publisher(&self, publisher: u128) -> Option<ProcessKey> {
        self.by_publisher.get(&publisher).copied()
    }

    pub(super) fn get(&self, id: ProcessId) -> Option<&Member> {
        self.all.get(id)?.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProcessId, &Member)> {
        self.all.iter().enumerate().filter_map(|(id, member)| Some((id, member.as_ref()?)))
    }
}

impl Index<ProcessId> for Processes {
    type Output = Member;

    fn index(&self, id: ProcessId) -> &Member {
        self.all[id].as_ref().expect("what is of a process goes with it")
    }
}

impl IndexMut<ProcessId> for Processes {
    fn index_mut(&mut self, id: ProcessId) -> &mut Member {
        self.all[id].as_mut().expect("what is of a process goes with it")
    }
}
