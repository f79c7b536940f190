//! The merged view of many processes' segments: directories, lookup, totals, clears.
//!
//! A tree holds any number of processes that come and go: a process [joins](Tree::join), is
//! [detached](Tree::detach) when nobody knows whether it is still there, and [attached
//! again](Tree::reattach) or, once it is known to be gone, [folded](Tree::fold) into what the tree keeps of
//! those that left. A program that mounts its own statistics is the case of one process that never leaves.
//!
//! # What holds
//! * Top-level sources of one name are one directory, which belongs to the tree's [owner](TreeOptions);
//!   what is below belongs to its process's user.
//! * Totals of cumulative values do not go backwards except by a clear, whatever processes come, go, are
//!   killed or folded: what one counted is, in one step, in the total and in the `.departed` of its top-level
//!   directory. That directory stays as long as anything is left there.
//! * A process that is [let go](Tree::refused) takes its counts along: nothing that it says can be relied on.
//! * When a process has been folded, nothing is kept of it but sums by directory and group.
//!
//! # How it works
//! Per process there is a model of its sources (`model`), shown in directories (`dirs`). `sweep` reads
//! cells, `clear` keeps the baselines, `ledger` what processes left, `files` knows which files a directory
//! has, `kept` how much room what is kept takes, `render` writes them, `nodes` serves them to the file system, `by_name` links to them; `events`
//! tells whoever counts what is done. A `subtree` is what one sweep found of one, which is all that
//! `export` needs; `totals` are what its files show. The tree is
//! brought up to date when someone looks, by comparing the segments' change counters; nothing else runs.

mod access;
mod budget;
pub(crate) mod by_name;
mod clashes;
mod clear;
mod dirs;
mod events;
pub(crate) mod files;
mod groups;
pub(crate) mod inode;
pub(crate) mod kept;
mod ledger;
mod membership;
mod model;
pub(crate) mod names;
pub(crate) mod nodes;
pub(crate) mod numbers;
mod options;
mod processes;
pub(crate) mod render;
mod saved;
pub(crate) mod series;
mod settle;
pub(crate) mod subtree;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod totals;
mod users;
mod wake;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::export::Full;
use crate::fs::{Errno, Ino};
use crate::repeats::Repeats;
use crate::segment::layout::ROOT_ID;
use crate::share::{Share, thread_time};
use crate::value::GroupDescriptor;

use self::access::Access;
use self::by_name::Links;
use self::clashes::Clashes;
pub use self::clear::Cleared;
use self::clear::{Baselines, Scope};
use self::dirs::{BY_NAME_DIR, Dir};
pub use self::events::{Swept, TreeEvents};
use self::files::{FileSets, Identities};
use self::inode::DirId;
use self::kept::group_bytes;
use self::ledger::Ledger;
use self::membership::Look;
use self::model::SourceModel;
pub use self::names::{MetricName, MetricNameError};
pub use self::nodes::Exposition;
use self::numbers::Numbers;
pub use self::options::{Owner, Refused, TreeError, TreeOptions, TreeUsage, UserLimits};
#[doc(hidden)]
pub use self::processes::FdGroupsOf;
use self::processes::Processes;
pub use self::processes::{Feed, Identity, ProcessKey, ProcessUsage};
use self::saved::Remembered;
pub use self::saved::{Keeper, Left, Occasion, Saved, SavedAccount, SavedDirectory};
use self::subtree::{Subtree, View};
use self::sweep::{Request, Room, Sweep};
use self::users::Users;
use self::wake::Sleeper;
pub use self::wake::{Wake, Waker};

/// Nodes that the kernel must doubt are collected up to about this number.
const MAX_GONE: usize = 1 << 16;

/// A process's place in the tree.
pub(crate) type ProcessId = usize;
/// The tree's number for a group, the same for the equal groups of all processes.
pub(crate) type GroupId = usize;
/// A source of a process.
pub(crate) type SourceKey = (ProcessId, u64);

/// The tree; shared by the threads of the file system.
pub struct Tree {
    /// Fair: whoever reads all the time, on however many threads, keeps no change waiting for more than what they
    /// are reading now. The standard library's lock gives no such promise, and here a change had waited for ever.
    state: RwLock<State>,
    options: TreeOptions,
    sleeper: Sleeper,
    refused: Mutex<Vec<Refused>>,
    gone: Mutex<Vec<Ino>>,
    /// Whether somebody ever waited for `gone`.
    awaited: AtomicBool,
    seen: Mutex<u64>,
    /// By user, what clears may take, where there are many users.
    clears: Option<Mutex<HashMap<u32, Share>>>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("options", &self.options).finish_non_exhaustive()
    }
}

pub(crate) struct State {
    options: TreeOptions,
    /// Whether any number of processes that nobody trusts are in it.
    is_host: bool,
    processes: Processes,
    sources: HashMap<SourceKey, Box<SourceModel>>,
    dirs: HashMap<DirId, Box<Dir>>,
    numbers: Numbers,
    links: Links,
    groups: Vec<Arc<GroupDescriptor>>,
    groups_by_name: HashMap<String, Vec<GroupId>>,
    users: Users,
    /// What processes that are heavy may cost together.
    heavy: Share,
    /// What an earlier tree knew that is not there yet.
    remembered: Remembered,
    keeper: Option<Box<dyn Keeper>>,
    /// Whether something was granted that was not kept yet, to whom last, and whether it could not be.
    unkept: bool,
    unkept_by: Option<ProcessKey>,
    failing: bool,
    /// Users for whose sources a clear had no room.
    no_room: Repeats<u32>,
    identities: Identities,
    file_sets: FileSets,
    baselines: Baselines,
    ledger: Ledger,
    clashes: Clashes,
    /// Users whose processes were let go, and users whose processes left without all of their segments.
    let_go: Repeats<u32>,
    lost: Repeats<u32>,
    /// Nodes that the kernel must doubt, collected by a refresh.
    gone: Vec<Ino>,
    /// Processes that were let go, collected by a refresh, and how many there were so far.
    refused: Vec<Refused>,
    refused_so_far: u64,
}

/// All cells of a tree, read in one sweep. Use one again and again: that saves its memory.
#[derive(Debug, Default)]
pub struct Snapshot {
    sweep: Sweep,
    groups: Vec<Arc<GroupDescriptor>>,
}

impl Snapshot {
    /// The raw cells, whatever was cleared, by source and group: in the order of the group's values, a
    /// histogram as its sum, if it has one, and its buckets. What departed sources left comes as cells
    /// of its own.
    pub fn cells(&self) -> impl Iterator<Item = (&Arc<GroupDescriptor>, &[u64])> {
        self.sweep.cells.iter().map(|cells| (&self.groups[cells.group], self.sweep.words(cells)))
    }
}

/// How often a tree looks for changes that nobody tells it of.
const POLL: Duration = Duration::from_millis(100);
/// And how often it goes on with what is too much for one look.
const POLL_AGAIN: Duration = Duration::from_millis(5);
/// Refused processes are collected up to this number.
const MAX_REFUSED: usize = 1 << 10;
/// Attempts to settle until a writer is taken for one that will never let it.
const ATTEMPTS: u32 = 5;
/// And how long a clear tries where blocks are torn. Whoever does nothing but count overtakes a reader until an
/// interrupt or somebody else has its processor, which happens some times within this time.
const CLEARING: Duration = Duration::from_millis(100);
/// Blocks that are just being cut off which one look waits for, one after the other.
const CUTS: u32 = 50;

/// One part in so many of a processor's time that one user's clears may take, and how much of it in advance.
const CLEARS_PART: u32 = 5;
const CLEARS_BURST: Duration = Duration::from_secs(2);

/// Before one more attempt: whoever is in the middle of a change may wait for a processor.
fn let_writers_run(attempt: u32) {
    match attempt {
        0..10 => {}
        10..50 => std::thread::sleep(Duration::from_micros(100)),
        _ => std::thread::sleep(Duration::from_millis(1)),
    }
}

impl Tree {
    /// A tree of one process, which never leaves: the one that asks, with its own segments.
    ///
    /// # Errors
    /// [`TreeError`]: the segments can not be had, or are refused.
    pub fn new(feed: impl Feed, options: impl Into<TreeOptions>) -> Result<Self, TreeError> {
        let options = options.into();
        let Owner { uid, gid } = options.owner;
        let identity = Identity { uid, gid, ..Identity::this_process() };
        let tree = Self::with(options, false);
        tree.join(feed, identity)?;
        Ok(tree)
    }

    /// A tree of a host's processes, of which there are none yet. It shows nothing hidden at the top level,
    /// and there nothing but the host's own is called `statsfs`.
    pub fn host(options: TreeOptions) -> Self {
        Self::with(options, true)
    }

    fn with(options: TreeOptions, is_host: bool) -> Self {
        Self {
            state: RwLock::new(State::new(options.clone(), is_host)),
            options,
            sleeper: Sleeper::default(),
            refused: Mutex::default(),
            gone: Mutex::default(),
            awaited: AtomicBool::new(false),
            seen: Mutex::new(0),
            clears: is_host.then(Mutex::default),
        }
    }

    /// Has whoever waits for changes look now.
    pub fn poke(&self) {
        self.sleeper.wake();
    }

    /// What the tree keeps now.
    pub fn usage(&self) -> TreeUsage {
        drop(self.read());
        self.last_usage()
    }

    /// What the tree kept when it was last brought up to date.
    pub fn last_usage(&self) -> TreeUsage {
        let state = self.lock_to_read();
        TreeUsage {
            processes: state.processes.len(),
            detached: state.processes.iter().filter(|(_, member)| member.detached).count(),
            refused: state.refused_so_far,
            left: state.ledger.len(),
            groups: state.groups.len(),
            sources: state.sources.keys().filter(|key| key.1 != ROOT_ID).count(),
            directories: state.dirs.keys().filter(|dir| **dir != BY_NAME_DIR).count(),
            baselines: state.baselines.count(),
            left_out: state.left_out(),
            clashes: state.clashes.so_far(),
        }
    }

    fn lock(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    fn lock_to_read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// The tree as of now.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.look(|_| Look::All)
    }

    /// The tree as of now, as far as somebody looks at it.
    fn look(&self, at: impl FnOnce(&State) -> Look) -> RwLockReadGuard<'_, State> {
        let state = self.lock_to_read();
        if !state.is_stale(at(&state)) {
            return state;
        }
        drop(state);
        drop(self.write());
        // What changed since then is seen by the next look.
        self.lock_to_read()
    }

    /// The tree as of now, to change its baselines.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        loop {
            let mut state = self.lock();
            state.refresh(|_| false);
            self.collect(&mut state);
            if !state.has_more() {
                return state;
            }
        }
    }

    /// Takes over what is to be told to others.
    fn collect(&self, state: &mut State) {
        state.keep_grants();
        let gone = std::mem::take(&mut state.gone);
        if !gone.is_empty() {
            let mut all = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            // Where nobody waits for them, any more or yet, they would gather for ever. A kernel that does know
            // them is told when it opens them: what is not there answers ESTALE.
            if self.awaited.load(Ordering::Relaxed) && all.len() < MAX_GONE {
                all.extend(gone);
            }
        }
        if !state.refused.is_empty() {
            let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            all.append(&mut state.refused);
            all.truncate(MAX_REFUSED);
        }
    }

    /// Looks at every record, whatever the change counters say: what a writer changed but did not live to
    /// announce is seen as well. To be called when a process is known to have died.
    pub fn refresh(&self) {
        let mut state = self.lock();
        state.refresh(|_| true);
        self.collect(&mut state);
    }

    /// Reads every cell.
    pub fn snapshot(&self, snapshot: &mut Snapshot) {
        let Snapshot { sweep, groups } = snapshot;
        self.show(Request::WHOLE, sweep, |state, _| {
            if groups.len() != state.groups.len() {
                groups.clone_from(&state.groups);
            }
        });
    }

    /// Takes what somebody may see of a subtree, with what was counted or only with what there is. It is empty if
    /// that is gone.
    ///
    /// # Errors
    /// [`Full`], before much more than `most` bytes are taken.
    fn take(
        &self,
        view: View,
        counted: bool,
        access: &Access,
        most: Option<usize>,
        subtree: &mut Subtree,
    ) -> Result<(), Full> {
        let mut sweep = std::mem::take(&mut subtree.sweep);
        sweep.room = Room::of(most);
        if counted {
            self.show(State::view_request(view), &mut sweep, |state, sweep| {
                state.capture(view, access, sweep, subtree);
            });
        } else {
            sweep.clear();
            self.look(|_| Look::In(view.dir)).capture(view, access, &sweep, subtree);
        }
        if subtree.room.is_full {
            *subtree = Subtree::default();
            return Err(Full);
        }
        subtree.arrange(sweep);
        Ok(())
    }

    /// Reads what is asked for, and shows it as part of the tree that it was read from. Every count is in
    /// there once, however fast sources come and go.
    fn show<T>(
        &self,
        request: Request,
        sweep: &mut Sweep,
        show: impl FnOnce(&State, &Sweep) -> T,
    ) -> T {
        // A fold that overtakes a sweep is seldom followed by one that overtakes the next.
        for _ in 0..2 {
            let state = self.look(|_| Look::In(request.dir));
            state.sweep(request, sweep);
            if !sweep.outdated || state.is_in_vain(sweep, Duration::ZERO) {
                self.tell_of(sweep);
                return show(&state, sweep);
            }
        }
        show(&self.settle(request, sweep), sweep)
    }

    /// What is about to be shown may be what was found, since nothing better was.
    fn tell_of(&self, sweep: &Sweep) {
        if let Some(events) = &self.options.events
            && sweep.outdated
        {
            events.gave_up();
        }
    }

    /// Reads what is asked for whatever is folded meanwhile, and keeps everybody else out of the tree as
    /// long as the answer is held. The sweep is outdated only if a hostile writer wants it so.
    fn settle(&self, request: Request, sweep: &mut Sweep) -> RwLockWriteGuard<'_, State> {
        let start = Instant::now();
        let (mut unsettled, mut cuts) = (0, 0);
        // The last block that was waited for, and since when.
        let mut waiting = None;
        for attempt in 0.. {
            let mut state = self.write();
            state.sweep_settled(request, sweep);
            self.collect(&mut state);
            if let Some((process, cut)) = sweep.cut
                && let Some(member) = state.processes.get(process)
            {
                let this = (member.key, cut);
                let since = match waiting {
                    Some((last, since)) if last == this => since,
                    _ => {
                        cuts += 1;
                        Instant::now()
                    }
                };
                waiting = Some((this, since));
                let enough = member.is_enough(cut, since.elapsed());
                if enough && cuts < CUTS {
                    continue;
                }
            } else {
                unsettled += 1;
            }
            let enough = !sweep.outdated || unsettled >= ATTEMPTS || cuts >= CUTS;
            if enough || state.is_in_vain(sweep, start.elapsed()) {
                self.tell_of(sweep);
                return state;
            }
            drop(state);
            let_writers_run(attempt);
        }
        unreachable!("there is an end to attempts")
    }

    /// Clears for a user. Each clear is kept before it is answered, with all else that is, so a user who
    /// clears all the time would have the others wait: beyond a share of a processor's time it is `EAGAIN`.
    /// Whoever owns the tree, or has one alone, may do as they like.
    fn at_the_expense_of(
        &self,
        uid: u32,
        clear: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(shares) = self.clears.as_ref().filter(|_| uid != self.options.owner.uid) else {
            return clear();
        };
        let lock = || shares.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if lock().get(&uid).is_some_and(|share| share.is_spent(now)) {
            return Err(Errno(libc::EAGAIN));
        }
        let start = thread_time();
        let cleared = clear();
        let cost = thread_time().saturating_sub(start);
        let mut shares = lock();
        shares.retain(|_, share| !share.is_untouched(now));
        let share = shares.entry(uid).or_insert_with(|| Share::new(now, CLEARS_PART, CLEARS_BURST));
        share.spend(now, cost);
        cleared
    }

    /// Clears, and answers what that took away. `EBUSY` if a writer changed the structure, or the cells,
    /// faster than they could be read, again and again: only a hostile one can. `EIO` if it can not be kept, `EDQUOT`
    /// if there is no room for it.
    fn clear_scope(&self, dir: DirId, scope: Scope, by_owner: bool) -> Result<Cleared, Errno> {
        let (request, mut sweep) = (scope.request(dir), Sweep::default());
        let start = Instant::now();
        let mut state = self.write();
        state.sweep(request, &mut sweep);
        for attempt in 0.. {
            if !sweep.outdated && sweep.torn == 0 {
                let cleared = state
                    .clear(dir, scope, &sweep, by_owner)
                    .map_err(|error| state.can_not_clear(&error))?;
                if let Some(events) = &self.options.events {
                    events.cleared();
                }
                return Ok(cleared);
            }
            drop(state);
            if start.elapsed() > CLEARING && attempt >= ATTEMPTS {
                break;
            }
            let_writers_run(attempt);
            state = self.settle(request, &mut sweep);
        }
        Err(Errno(libc::EBUSY))
    }

    /// Makes a running [`wait`](Self::wait) return early.
    pub(crate) fn interrupt(&self) {
        self.poke();
    }

    /// Waits for changes and brings the tree up to date; appends what the kernel must doubt.
    pub(crate) fn wait(&self, timeout: Duration, gone: &mut Vec<Ino>) {
        self.awaited.store(true, Ordering::Relaxed);
        let end = Instant::now() + timeout;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // What nobody can wait for is gone on with as soon as may be.
            let poll = if self.lock_to_read().has_put_off() { POLL_AGAIN } else { POLL };
            let wakes = self.sleeper.wait(*seen, left.min(poll));
            let woken = std::mem::replace(&mut *seen, wakes) != wakes;
            drop(self.read());
            if self.lock_to_read().has_unkept() {
                self.lock().keep_grants();
            }
            gone.append(&mut self.gone.lock().unwrap_or_else(PoisonError::into_inner));
            if woken || !gone.is_empty() || left <= POLL {
                return;
            }
        }
    }
}

impl State {
    /// Whether all processes that keep a sweep from being right have been waited for as long as they may be.
    fn is_in_vain(&self, sweep: &Sweep, waited: Duration) -> bool {
        let now = Instant::now();
        let mut by = sweep.outdated_by.iter().filter_map(|process| self.processes.get(*process));
        by.all(|process| {
            process.budget.as_ref().is_some_and(|budget| {
                let in_vain = !budget.is_hopeless(now) && waited > budget.patience(now);
                if in_vain {
                    budget.give_up(now);
                }
                in_vain || budget.is_hopeless(now)
            })
        })
    }

    /// A clear is refused, and nothing is cleared.
    fn can_not_clear(&mut self, error: &TreeError) -> Errno {
        let uid = match error {
            TreeError::Commit(error) => {
                tracing::error!(%error, "cannot keep what a clear took; nothing is cleared");
                return Errno(libc::EIO);
            }
            TreeError::Limit { uid, .. } => *uid,
            _ => u32::MAX,
        };
        if let Some(unsaid) = self.no_room.say(uid, Instant::now()) {
            tracing::warn!(%error, unsaid, "there is no room for what a clear took; nothing is cleared");
        }
        Errno(libc::EDQUOT)
    }

    /// The tree's number for a group that it has met.
    fn group_id(&self, group: &GroupDescriptor) -> Option<GroupId> {
        let mut all = self.groups_by_name.get(group.name())?.iter();
        all.find(|id| *self.groups[**id] == *group).copied()
    }

    /// The tree's number for a group of a process, if it has met it.
    fn group_of(&self, process: ProcessId, group: &Arc<GroupDescriptor>) -> Option<GroupId> {
        self.processes[process].group(group).or_else(|| self.group_id(group))
    }

    /// The tree's number for a group of a process.
    fn group(&mut self, process: ProcessId, group: &Arc<GroupDescriptor>) -> GroupId {
        if let Some(id) = self.processes[process].group(group) {
            return id;
        }
        let id = self.group_id(group).unwrap_or_else(|| {
            let values = self.identities.new_in(group);
            let identity = self.processes[process].identity;
            if self.charges(identity) {
                let brought = self.users.bring(identity.uid);
                brought.groups += 1;
                brought.values += values;
            }
            let by = self.charges(identity).then_some(identity.uid);
            self.users.keep(by, group_bytes(group));
            self.granted_to(process);
            self.add_group(group)
        });
        self.processes[process].note_group(group, id);
        id
    }

    /// Takes in a group that is new.
    fn add_group(&mut self, group: &Arc<GroupDescriptor>) -> GroupId {
        let id = self.groups.len();
        self.groups.push(group.clone());
        self.groups_by_name.entry(group.name().to_owned()).or_default().push(id);
        self.identities.add(id, group);
        id
    }
}
