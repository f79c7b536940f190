//! Processes come, are taken for lost, come back, and leave.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::budget::{Budget, UsersShare};
use super::dirs::{BY_NAME_DIR, ROOT_DIR};
use super::inode::DirId;
use super::model::ADOPT;
use super::processes::{Feed, Identity, Member, ProcessKey, ProcessUsage};
use super::sweep::{Request, Sweep};
use super::{ProcessId, Refused, State, Tree, TreeError};
use crate::segment::Process;
use crate::share::thread_time;

impl Tree {
    /// Takes a process in.
    ///
    /// # Errors
    /// [`TreeError`]: the segments can not be had, are refused, or are in the tree already, whether by this
    /// process or by another that has got hold of them.
    pub fn join(&self, feed: impl Feed, identity: Identity) -> Result<ProcessKey, TreeError> {
        self.join_as(feed, identity, |_| {})
    }

    /// As [`join`](Self::join). Calls `record` when nothing more is in the way, and has what that records
    /// [kept](super::Keeper) before anybody sees the process. Everybody is kept out of the tree meanwhile, so
    /// whoever records must not look into it.
    ///
    /// # Errors
    /// As [`join`](Self::join); rarely `record` was called.
    pub fn join_recorded(
        &self,
        feed: impl Feed,
        identity: Identity,
        record: impl FnOnce(),
    ) -> Result<ProcessKey, TreeError> {
        self.join_as(feed, identity, |state| {
            record();
            state.must_keep();
        })
    }

    fn join_as(
        &self,
        feed: impl Feed,
        identity: Identity,
        record: impl FnOnce(&mut State),
    ) -> Result<ProcessKey, TreeError> {
        let fds = feed.segments().map_err(TreeError::Feed)?;
        feed.wake_by(self.sleeper.waker());
        // This may take long, and is nobody else's concern.
        let mut process = Process::attach(fds, &self.options.limits)?;
        if feed.publisher().is_some_and(|publisher| publisher != process.publisher()) {
            return Err(TreeError::Publisher);
        }
        process.read_from(feed.fd_groups().0);
        let mut touched = Vec::new();
        process.refresh(true, &mut touched)?;
        let mut state = self.lock();
        if let Some(key) = state.processes.of_publisher(process.publisher()) {
            return Err(TreeError::Joined(key));
        }
        record(&mut state);
        let key = state.processes.next_key();
        let budget = state.is_host.then(|| {
            let now = Instant::now();
            let users = if state.charges(identity) {
                state.users.bring(identity.uid).share.clone()
            } else {
                UsersShare::new(now)
            };
            Budget::new(now, users)
        });
        let start = thread_time();
        state.take_in(Member::new(key, identity, Box::new(feed), process, budget), &touched)?;
        state.charge(key, start);
        self.collect(&mut state);
        drop(state);
        self.poke();
        Ok(key)
    }

    /// Takes a process's directories away, since nobody knows whether it is still there. What it counted and
    /// goes on to count in cumulative values stays in the totals, and is in the `.departed`, of its
    /// directories at the top level; the others are shown no more.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`].
    pub fn detach(&self, process: ProcessKey) -> Result<(), TreeError> {
        self.set_detached(process, true)
    }

    /// Puts a detached process's directories back, as if it had never been away.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`].
    pub fn reattach(&self, process: ProcessKey) -> Result<(), TreeError> {
        self.set_detached(process, false)
    }

    fn set_detached(&self, process: ProcessKey, detached: bool) -> Result<(), TreeError> {
        let mut state = self.lock();
        let id = state.processes.id(process).ok_or(TreeError::NoProcess)?;
        // What it changed but did not live to announce is seen as well.
        state.refresh_one(id, true);
        if state.processes.id(process).is_some() {
            state.set_detached(id, detached);
        }
        self.collect(&mut state);
        let still_there = state.processes.id(process).is_some();
        drop(state);
        self.poke();
        if still_there { Ok(()) } else { Err(TreeError::NoProcess) }
    }

    /// Forgets a process that is gone, but for what it left: its counts go into sums by top-level directory
    /// and group, from where they are shown as they were, and can be cleared. That is [kept](super::Keeper) before
    /// anything is changed, if there is somebody to keep it.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`], also if the process was let go on that occasion; [`TreeError::Commit`] if
    /// it could not be kept: then the process stays, detached.
    pub fn fold(&self, process: ProcessKey) -> Result<(), TreeError> {
        self.detach(process)?;
        let id = self.adopt_all(process)?;
        let mut sweep = Sweep::default();
        let mut state = self.settle(Request { process: Some(id), ..Request::WHOLE }, &mut sweep);
        // Meanwhile it may have been let go, or attached again.
        if state.processes.id(process) != Some(id) {
            return Err(TreeError::NoProcess);
        }
        state.set_detached(id, true);
        state.say_what_is_lost(id);
        let left = state.left_by(&sweep);
        let kept = state.keep_folded(id, &left).map_err(TreeError::Commit);
        if kept.is_ok() {
            state.fold(id, left);
        }
        self.collect(&mut state);
        drop(state);
        self.poke();
        kept
    }

    /// The id that a process's segments have; `None` if it is not in the tree.
    pub fn publisher_of(&self, process: ProcessKey) -> Option<u128> {
        let state = self.lock_to_read();
        Some(state.processes.get(state.processes.id(process)?)?.publisher())
    }

    /// What a process has in the tree; `None` if it is not in it.
    pub fn usage_of(&self, process: ProcessKey) -> Option<ProcessUsage> {
        let state = self.lock_to_read();
        let member = state.processes.get(state.processes.id(process)?)?;
        let segments = member.segments();
        Some(ProcessUsage {
            segments: segments.len() as u64,
            bytes: segments.iter().map(|segment| segment.size() as u64).sum(),
            sources: member.source_count() as u64,
        })
    }

    /// Takes over all sources of a process, whatever that costs; others may look in between.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`].
    pub(crate) fn adopt_all(&self, process: ProcessKey) -> Result<ProcessId, TreeError> {
        loop {
            if let Some(id) = self.adopt_some(process, usize::MAX)? {
                return Ok(id);
            }
        }
    }

    /// Takes over so many sources of a process at most; it is answered when that is all that it has. Others may look
    /// in between.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`].
    pub(crate) fn adopt_some(
        &self,
        process: ProcessKey,
        most: usize,
    ) -> Result<Option<ProcessId>, TreeError> {
        let mut left = most;
        loop {
            let piece = left.min(ADOPT);
            left -= piece;
            if let Some(id) = self.adopt_piece(process, piece)? {
                return Ok(Some(id));
            }
            if left == 0 {
                return Ok(None);
            }
            // Whoever takes a lock again at once leaves those who wait for it no time to wake up.
            std::thread::sleep(YIELD);
        }
    }

    fn adopt_piece(
        &self,
        process: ProcessKey,
        most: usize,
    ) -> Result<Option<ProcessId>, TreeError> {
        let mut state = self.lock();
        let id = state.processes.id(process).ok_or(TreeError::NoProcess)?;
        if let Err(error) = state.adopt(id, most) {
            state.refuse(id, error);
        }
        self.collect(&mut state);
        let id = state.processes.id(process).ok_or(TreeError::NoProcess)?;
        Ok(state.processes[id].pending.is_empty().then_some(id))
    }

    /// The processes that were let go since the last time: their segments were not what they must be, so
    /// their sources and all that they counted are gone.
    pub fn refused(&self) -> Vec<Refused> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long the others have the tree between two pieces of what takes long.
const YIELD: Duration = Duration::from_micros(200);

/// Attaches the segments that a process has beyond the first `have`.
fn add_segments(process: &mut Process, feed: &dyn Feed, have: usize) -> Result<(), TreeError> {
    for fd in feed.segments().map_err(TreeError::Feed)?.into_iter().skip(have) {
        process.add_segment(fd)?;
    }
    Ok(())
}

/// Whose changes somebody who looks must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Everybody's.
    All,
    /// Those of whoever is in a directory, or may come into it.
    In(DirId),
    /// Whatever takes a directory away.
    At(DirId),
}

impl State {
    /// Whether something changed that must be seen. Below the top level a directory is one process's, so
    /// what that shows costs the same however many processes there are; and a directory at the top is there
    /// as long as one process has it of which nothing is new.
    pub(super) fn is_stale(&self, look: Look) -> bool {
        let (Look::In(dir) | Look::At(dir)) = look else { return self.is_any_stale() };
        let Some(directory) = self.dirs.get(&dir) else { return self.is_any_stale() };
        let now = Instant::now();
        let mut members = directory.members.iter().map(|key| &self.processes[key.0]);
        let is_due = |member: &Member| self.is_due(member, now);
        match look {
            Look::At(_) if matches!(dir, ROOT_DIR | BY_NAME_DIR) || self.ledger.has(dir) => false,
            Look::At(_) => members.all(is_due),
            _ if dir == ROOT_DIR || directory.parent == ROOT_DIR => self.is_any_stale(),
            _ => members.any(is_due),
        }
    }

    fn is_any_stale(&self) -> bool {
        let now = Instant::now();
        self.processes.iter().any(|(_, process)| self.is_due(process, now))
    }

    /// Whether there is something to be taken in of a process by whoever looks now.
    fn is_due(&self, process: &Member, now: Instant) -> bool {
        process.needs_refresh() && !self.must_wait(process, now)
    }

    /// Whether a process must wait until those that are heavy may cost something again.
    fn must_wait(&self, process: &Member, now: Instant) -> bool {
        self.heavy.is_spent(now) && process.is_heavy(now)
    }

    /// Whether there is more to be taken over now than was at a time.
    pub(super) fn has_more(&self) -> bool {
        let now = Instant::now();
        let mut all = self.processes.iter();
        all.any(|(_, process)| process.has_more() && !self.must_wait(process, now))
    }

    /// Whether there is more to be taken over than may be now.
    pub(super) fn has_put_off(&self) -> bool {
        self.processes.iter().any(|(_, process)| process.has_more())
    }

    /// Takes in what changed in the segments. Of those that `force` picks every record is looked at,
    /// whatever their change counters say, and all new sources are taken over as far as budgets allow.
    pub(super) fn refresh(&mut self, force: impl Fn(ProcessId) -> bool) {
        let now = Instant::now();
        let due = self.processes.iter().filter(|(id, process)| {
            self.is_due(process, now) || (force(*id) && !process.has_spent_its_budget())
        });
        let mut due: Vec<_> = due.map(|(id, process)| (process.debt(now), id)).collect();
        due.sort_unstable();
        for (_, process) in due {
            let (member, force) = (&self.processes[process], force(process));
            let key = member.key;
            // Those before it may have used up what it shares with them.
            if member.has_spent_its_budget() || !force && self.must_wait(member, Instant::now()) {
                continue;
            }
            self.refresh_one(process, force);
            while force
                && self.processes.id(key) == Some(process)
                && self.processes[process].has_more()
            {
                self.refresh_one(process, false);
            }
        }
    }

    /// Takes in what changed in one process's segments, whatever that costs, and some of what is new.
    fn refresh_one(&mut self, process: ProcessId, force: bool) {
        let start = thread_time();
        let key = self.processes[process].key;
        match self.take_changes(process, force) {
            Ok(()) => self.charge(key, start),
            Err(error) => self.refuse(process, error),
        }
    }

    fn take_changes(&mut self, process: ProcessId, force: bool) -> Result<(), TreeError> {
        let member = &self.processes[process];
        let was_incomplete = member.incomplete;
        if force || was_incomplete || member.is_stale() {
            let mut touched = Vec::new();
            self.refresh_process(process, force, &mut touched)?;
            self.reconcile(process, &touched)?;
            if was_incomplete {
                self.find_gone(process);
            }
        }
        self.adopt(process, ADOPT)?;
        // Once one can have none, the others can have none either.
        for id in self.processes[process].unnumbered(ADOPT) {
            self.show_again((process, id));
            if !self.processes[process].is_numbered(id) {
                break;
            }
        }
        self.processes[process].lacks_room.take().map_or(Ok(()), Err)
    }

    /// Has a process pay for what was done since then.
    pub(super) fn charge(&mut self, process: ProcessKey, since: Duration) {
        let Some(id) = self.processes.id(process) else { return };
        if let Some(budget) = &mut self.processes[id].budget {
            let (now, cost) = (Instant::now(), thread_time().saturating_sub(since));
            if budget.is_heavy(now) {
                self.heavy.spend(now, cost);
            }
            budget.spend(now, cost);
        }
    }

    /// Says so if a process is about to be folded some of whose segments nobody has.
    fn say_what_is_lost(&mut self, process: ProcessId) {
        let member = &self.processes[process];
        let Identity { pid, uid, .. } = member.identity;
        let (have, made) = (member.segments().len(), member.segments_expected());
        if have < made
            && let Some(unsaid) = self.lost.say(uid, Instant::now())
        {
            tracing::warn!(
                pid,
                uid,
                have,
                made,
                unsaid,
                "a process left before all of its segments were here: what it counted in the others is lost"
            );
        }
    }

    /// Lets a process go that is not what it must be.
    fn refuse(&mut self, process: ProcessId, error: TreeError) {
        let Member { key, identity, .. } = self.processes[process];
        let Identity { pid, uid, .. } = identity;
        if let Some(unsaid) = self.let_go.say(uid, Instant::now()) {
            tracing::error!(%error, pid, uid, unsaid, "a process's statistics are let go");
        }
        self.let_go(process);
        self.refused.push(Refused { process: key, identity, error });
        self.refused_so_far += 1;
    }

    fn refresh_process(
        &mut self,
        process: ProcessId,
        force: bool,
        touched: &mut Vec<u64>,
    ) -> Result<(), TreeError> {
        let member = &mut self.processes[process];
        let (pid, mut incomplete) = (member.identity.pid, member.incomplete);
        let (process, feed) = member.parts();
        // A segment that comes between the two steps is met in the next round: once its coming is seen in
        // the change counter, it is seen here as well.
        for _ in 0..8 {
            let have = process.segments().len();
            let asks = process.segments_expected() > have;
            if asks {
                match add_segments(process, feed, have) {
                    // A host's server learns of a segment before it is sent one.
                    Ok(()) => incomplete = process.segments().len() < process.segments_expected(),
                    // Most likely this process has too many files open, or mapped.
                    Err(error) if error.may_pass() => {
                        if !std::mem::replace(&mut incomplete, true) {
                            tracing::warn!(%error, pid, "cannot get all segments");
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            process.refresh(force, touched)?;
            let now = process.segments().len();
            if now >= process.segments_expected() || (asks && now == have) {
                break;
            }
        }
        member.incomplete = incomplete;
        Ok(())
    }
}
