//! The merged view of many processes' segments: directories, lookup, totals, clears.
//!
//! A tree holds, per process, a model of its sources (`model`) and the directories that show them.
//! `sweep` reads cells, `clear` keeps the baselines, `files` knows which files a directory has,
//! `render` writes them, `nodes` serves them to the file system. The tree is brought up to date when
//! someone looks, by comparing the segments' change counters; nothing else runs.

mod clashes;
mod clear;
mod files;
pub(crate) mod inode;
mod model;
mod nodes;
mod render;
mod settle;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::fs::Gone;
use crate::segment::SegmentError;
use crate::segment::layout::ROOT_ID;
use crate::segment::{Limits, Process};
use crate::value::GroupDescriptor;

use self::clashes::Clashes;
pub use self::clear::Cleared;
use self::clear::{Baselines, Scope};
use self::files::Identities;
use self::inode::DirId;
use self::model::{Dir, SourceModel};
use self::sweep::{Plan, Request, Sweep};

/// Names that the kernel must forget are collected up to about this number.
const MAX_GONE: usize = 1 << 16;

/// A process's place in the tree.
pub(crate) type ProcessId = usize;
/// The tree's number for a group, the same for the equal groups of all processes.
pub(crate) type GroupId = usize;
/// A source of a process.
pub(crate) type SourceKey = (ProcessId, u64);

/// Where a process's segments come from.
pub trait Feed: Send + Sync + 'static {
    /// Descriptors of all segments so far, in order.
    ///
    /// # Errors
    /// Whatever keeps them from being had.
    fn segments(&self) -> io::Result<Vec<OwnedFd>>;

    /// Waits until something may have changed since `seen` was answered, at most for `timeout`.
    fn wait_changed(&self, seen: u64, timeout: Duration) -> u64;

    /// Makes a running [`wait_changed`](Self::wait_changed) return early.
    fn interrupt(&self) {}
}

/// Why a tree could not take a process in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The segments could not be had.
    #[error("cannot get the segments: {0}")]
    Feed(#[source] io::Error),
    /// A segment was refused.
    #[error("the segment is refused: {0}")]
    Segment(#[from] SegmentError),
}

/// Who owns what the tree shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Owner of every node.
    pub uid: u32,
    /// Group of every node: the readers' group, which private directories are open to.
    pub gid: u32,
}

/// What a tree keeps: everything returns to where it was when sources have come and gone, but for the
/// baselines of the directories that they were in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeUsage {
    /// Processes that are shown.
    pub processes: usize,
    /// Sources that have a record, attached or not, departed ones that are not folded yet included.
    pub sources: usize,
    /// Directories of sources, the root included.
    pub directories: usize,
    /// Baselines that clears left, one for each group of each source, or of what departed from one.
    pub baselines: usize,
    /// Sources and values that are not shown in a directory that several processes share, since another
    /// has their name there. What they count is in the totals.
    pub left_out: usize,
    /// How often something was left out so far.
    pub clashes: u64,
}

/// The tree; shared by the threads of the file system.
pub struct Tree {
    state: RwLock<State>,
    feed: Box<dyn Feed>,
    owner: Owner,
    gone: Mutex<Vec<Gone>>,
    /// Whether somebody ever waited for `gone`.
    awaited: AtomicBool,
    seen: Mutex<u64>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("owner", &self.owner).finish_non_exhaustive()
    }
}

pub(crate) struct State {
    processes: Vec<Process>,
    sources: HashMap<SourceKey, SourceModel>,
    dirs: HashMap<DirId, Dir>,
    next_dir: DirId,
    groups: Vec<Arc<GroupDescriptor>>,
    identities: Identities,
    baselines: Baselines,
    clashes: Clashes,
    /// Names that the kernel must forget, collected by a refresh.
    gone: Vec<Gone>,
    /// Processes that are refused, whose sources are gone.
    refused: HashSet<ProcessId>,
    /// Processes some of whose segments could not be had.
    incomplete: HashSet<ProcessId>,
    /// How to read everything.
    whole: OnceLock<Plan>,
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

/// Attempts to settle, or to clear where blocks are torn, until a writer is taken for one that will never
/// let it.
const ATTEMPTS: u32 = 5;
/// Blocks that are just being cut off which one look waits for, one after the other.
const CUTS: u32 = 50;

/// Before one more attempt: whoever is in the middle of a change may wait for a processor.
fn let_writers_run(attempt: u32) {
    match attempt {
        0..10 => {}
        10..50 => std::thread::sleep(Duration::from_micros(100)),
        _ => std::thread::sleep(Duration::from_millis(1)),
    }
}

impl Tree {
    /// A tree of one process.
    ///
    /// # Errors
    /// [`TreeError`]: the segments can not be had, or are refused.
    pub fn new(feed: impl Feed, owner: Owner) -> Result<Self, TreeError> {
        let fds = feed.segments().map_err(TreeError::Feed)?;
        let process = Process::attach(fds, &Limits::default())?;
        let mut state = State::new();
        state.take_in(process)?;
        Ok(Self {
            state: RwLock::new(state),
            feed: Box::new(feed),
            owner,
            gone: Mutex::default(),
            awaited: AtomicBool::new(false),
            seen: Mutex::new(0),
        })
    }

    /// What the tree keeps now.
    pub fn usage(&self) -> TreeUsage {
        let state = self.read();
        TreeUsage {
            processes: state.processes.len() - state.refused.len(),
            sources: state.sources.keys().filter(|key| key.1 != ROOT_ID).count(),
            directories: state.dirs.len(),
            baselines: state.baselines.count(),
            left_out: state.left_out(),
            clashes: state.clashes.so_far(),
        }
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// The tree as of now.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if !state.is_stale() {
            return state;
        }
        drop(state);
        drop(self.write(false));
        // What changed since then is seen by the next look.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree as of now, to change its baselines. `force` looks at every record, whatever the change
    /// counters say.
    pub(crate) fn write(&self, force: bool) -> RwLockWriteGuard<'_, State> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.refresh(&*self.feed, force);
        self.collect_gone(&mut state);
        state
    }

    /// Takes over the names that the kernel must forget.
    fn collect_gone(&self, state: &mut State) {
        let gone = std::mem::take(&mut state.gone);
        if !gone.is_empty() {
            let mut all = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            // Where nobody waits for them, any more or yet, they would gather for ever. Forgetting them
            // costs a kernel that does know the names a round trip each: what is not there answers ESTALE.
            if self.awaited.load(Ordering::Relaxed) && all.len() < MAX_GONE {
                all.extend(gone);
            }
        }
    }

    /// Looks at every record, whatever the change counters say: what a writer changed but did not live to
    /// announce is seen as well. To be called when a process is known to have died.
    pub fn refresh(&self) {
        drop(self.write(true));
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

    /// Reads what is asked for, and shows it as part of the tree that it was read from. Every count is in
    /// there once, however fast sources come and go.
    fn show<T>(
        &self,
        request: Request,
        sweep: &mut Sweep,
        show: impl FnOnce(&State, &Sweep) -> T,
    ) -> T {
        // A fold that overtakes a sweep is seldom followed by one that overtakes the next.
        for again in [false, true] {
            if again {
                drop(self.write(true));
            }
            let state = self.read();
            state.sweep(request, sweep);
            if !sweep.outdated {
                return show(&state, sweep);
            }
        }
        show(&self.settle(request, sweep), sweep)
    }

    /// Reads what is asked for whatever is folded meanwhile, and keeps everybody else out of the tree as
    /// long as the answer is held. The sweep is outdated only if a hostile writer wants it so.
    fn settle(&self, request: Request, sweep: &mut Sweep) -> RwLockWriteGuard<'_, State> {
        let (mut unsettled, mut cuts) = (0, 0);
        // The last block that was waited for, and since when.
        let mut waiting = None;
        for attempt in 0.. {
            let mut state = self.write(true);
            state.sweep_settled(&*self.feed, request, sweep);
            self.collect_gone(&mut state);
            if let Some((process, cut)) = sweep.cut {
                let since = match waiting {
                    Some((last, since)) if last == (process, cut) => since,
                    _ => {
                        cuts += 1;
                        Instant::now()
                    }
                };
                waiting = Some(((process, cut), since));
                let enough = state.processes[process].is_enough(cut, since.elapsed());
                if enough && cuts < CUTS {
                    continue;
                }
            } else {
                unsettled += 1;
            }
            if !sweep.outdated || unsettled >= ATTEMPTS || cuts >= CUTS {
                return state;
            }
            drop(state);
            let_writers_run(attempt);
        }
        unreachable!("there is an end to attempts")
    }

    /// Clears, and answers what that took away. `None` if a writer changed the structure, or the cells,
    /// faster than they could be read, again and again: only a hostile one can.
    fn clear_scope(&self, dir: DirId, scope: Scope) -> Option<Cleared> {
        let (request, mut sweep) = (scope.request(dir), Sweep::default());
        let mut state = self.write(false);
        state.sweep(request, &mut sweep);
        for attempt in 0..ATTEMPTS {
            if !sweep.outdated && sweep.torn == 0 {
                return Some(state.clear(dir, scope, &sweep));
            }
            drop(state);
            let_writers_run(attempt);
            state = self.settle(request, &mut sweep);
        }
        None
    }

    /// Makes a running [`wait`](Self::wait) return early.
    pub(crate) fn interrupt(&self) {
        self.feed.interrupt();
    }

    /// Waits for changes and brings the tree up to date; appends what the kernel must forget.
    pub(crate) fn wait(&self, timeout: Duration, gone: &mut Vec<Gone>) {
        self.awaited.store(true, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = self.feed.wait_changed(*seen, timeout);
        drop(self.read());
        gone.append(&mut self.gone.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl State {
    fn is_stale(&self) -> bool {
        let processes = self.processes.iter().enumerate();
        let mut shown = processes.filter(|(id, _)| !self.refused.contains(id));
        shown.any(|(id, process)| process.is_stale() || self.incomplete.contains(&id))
    }

    /// Takes in what changed in the segments.
    fn refresh(&mut self, feed: &dyn Feed, force: bool) {
        for process in 0..self.processes.len() {
            let stale = self.processes[process].is_stale() || self.incomplete.contains(&process);
            if self.refused.contains(&process) || (!force && !stale) {
                continue;
            }
            let mut touched = Vec::new();
            match self.refresh_process(process, feed, force, &mut touched) {
                Ok(()) => self.reconcile(process, &touched),
                Err(error) => {
                    tracing::error!(%error, process, "a process's statistics are let go");
                    self.let_go(process);
                }
            }
        }
    }

    fn refresh_process(
        &mut self,
        process: ProcessId,
        feed: &dyn Feed,
        force: bool,
        touched: &mut Vec<u64>,
    ) -> Result<(), TreeError> {
        let id = process;
        let process = &mut self.processes[id];
        // A segment that comes between the two steps is met in the next round: once its coming is seen in
        // the change counter, it is seen here as well.
        for _ in 0..8 {
            let have = process.segments().len();
            let asks = process.segments_expected() > have;
            if asks {
                match feed.segments() {
                    Ok(fds) => {
                        for fd in fds.into_iter().skip(have) {
                            process.add_segment(fd)?;
                        }
                        self.incomplete.remove(&id);
                    }
                    // Most likely this process has too many files open, which may pass.
                    Err(error) => {
                        if self.incomplete.insert(id) {
                            tracing::warn!(%error, process = id, "cannot get all segments");
                        }
                    }
                }
            }
            process.refresh(force, touched)?;
            let now = process.segments().len();
            if now >= process.segments_expected() || (asks && now == have) {
                break;
            }
        }
        Ok(())
    }

    /// The tree's number for a group that it has met.
    fn group_id(&self, group: &Arc<GroupDescriptor>) -> Option<GroupId> {
        self.groups.iter().position(|g| Arc::ptr_eq(g, group) || **g == **group)
    }

    /// The tree's number for a group.
    fn group(&mut self, group: &Arc<GroupDescriptor>) -> GroupId {
        self.group_id(group).unwrap_or_else(|| {
            self.groups.push(group.clone());
            self.identities.add(self.groups.len() - 1, group);
            self.groups.len() - 1
        })
    }
}
