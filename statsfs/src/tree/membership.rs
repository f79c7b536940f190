//! Processes come, are taken for lost, come back, and leave.

use std::io;
use std::sync::PoisonError;
use std::time::Instant;

use super::budget::{Budget, thread_time};
use super::ledger::Left;
use super::processes::{Feed, Identity, Member, ProcessKey};
use super::sweep::{Request, Sweep};
use super::{ProcessId, Refused, State, Tree, TreeError};
use crate::segment::Process;

impl Tree {
    /// Takes a process in.
    ///
    /// # Errors
    /// [`TreeError`]: the segments can not be had, are refused, or are in the tree already, whether by this
    /// process or by another that has got hold of them.
    pub fn join(&self, feed: impl Feed, identity: Identity) -> Result<ProcessKey, TreeError> {
        let fds = feed.segments().map_err(TreeError::Feed)?;
        feed.wake_by(self.sleeper.waker());
        // This may take long, and is nobody else's concern.
        let mut process = Process::attach(fds, &self.options.limits)?;
        let mut touched = Vec::new();
        process.refresh(true, &mut touched)?;
        let mut state = self.lock();
        if let Some(key) = state.processes.of_publisher(process.publisher()) {
            return Err(TreeError::Joined(key));
        }
        let key = state.processes.next_key();
        let budget = state.is_host.then(|| Budget::new(Instant::now()));
        state.take_in(Member::new(key, identity, Box::new(feed), process, budget), &touched);
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
    /// and group, from where they are shown as they were, and can be cleared. `commit` gets what it left
    /// before anything is changed, with everybody else kept out of the tree, so it must not look into it.
    ///
    /// # Errors
    /// [`TreeError::NoProcess`], also if the process was let go on that occasion; [`TreeError::Commit`] if
    /// `commit` failed: then the process stays, detached.
    pub fn fold(
        &self,
        process: ProcessKey,
        commit: impl FnOnce(&[Left]) -> io::Result<()>,
    ) -> Result<(), TreeError> {
        self.detach(process)?;
        let id = self.lock().processes.id(process).ok_or(TreeError::NoProcess)?;
        let mut sweep = Sweep::default();
        let mut state = self.settle(Request { process: Some(id), ..Request::WHOLE }, &mut sweep);
        // Meanwhile it may have been let go, or attached again.
        if state.processes.id(process) != Some(id) {
            return Err(TreeError::NoProcess);
        }
        state.set_detached(id, true);
        let left = state.left_by(&sweep);
        let in_order: Vec<_> = left.values().cloned().collect();
        let committed = commit(&in_order).map_err(TreeError::Commit);
        if committed.is_ok() {
            state.fold(id, left);
        }
        self.collect(&mut state);
        drop(state);
        self.poke();
        committed
    }

    /// What processes left that are gone.
    pub fn left(&self) -> Vec<Left> {
        self.lock_to_read().left()
    }

    /// Puts back what processes left, as a tree before this one [had it](Self::left).
    ///
    /// # Errors
    /// [`TreeError::Number`].
    pub fn restore(&self, left: &[Left]) -> Result<(), TreeError> {
        let mut state = self.lock();
        for left in left {
            let directory = || left.directory.clone();
            let number = |error| TreeError::Number { directory: directory(), error };
            state.restore(left).map_err(number)?;
        }
        Ok(())
    }

    /// The processes that were let go since the last time: their segments were not what they must be, so
    /// their sources and all that they counted are gone.
    pub fn refused(&self) -> Vec<Refused> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    pub(super) fn is_stale(&self) -> bool {
        self.processes.iter().any(|(_, process)| process.needs_refresh())
    }

    /// Takes in what changed in the segments. Of those that `force` picks every record is looked at,
    /// whatever their change counters say.
    pub(super) fn refresh(&mut self, force: impl Fn(ProcessId) -> bool) {
        let due = self.processes.iter().filter(|(id, process)| {
            process.needs_refresh() || (force(*id) && !process.has_spent_its_budget())
        });
        let due: Vec<_> = due.map(|(id, _)| id).collect();
        for process in due {
            self.refresh_one(process, force(process));
        }
    }

    /// Takes in what changed in one process's segments, whatever that costs.
    fn refresh_one(&mut self, process: ProcessId, force: bool) {
        let start = thread_time();
        let mut touched = Vec::new();
        match self.refresh_process(process, force, &mut touched) {
            Ok(()) => self.reconcile(process, &touched),
            Err(error) => {
                let Member { key, identity, .. } = self.processes[process];
                let pid = identity.pid;
                tracing::error!(%error, pid, "a process's statistics are let go");
                self.let_go(process);
                self.refused.push(Refused { process: key, identity, error });
                self.refused_so_far += 1;
                return;
            }
        }
        if let Some(budget) = &mut self.processes[process].budget {
            budget.spend(Instant::now(), thread_time().saturating_sub(start));
        }
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
                match feed.segments() {
                    Ok(fds) => {
                        for fd in fds.into_iter().skip(have) {
                            process.add_segment(fd)?;
                        }
                        incomplete = false;
                    }
                    // Most likely this process has too many files open, which may pass.
                    Err(error) => {
                        if !std::mem::replace(&mut incomplete, true) {
                            tracing::warn!(%error, pid, "cannot get all segments");
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
        member.incomplete = incomplete;
        Ok(())
    }
}
