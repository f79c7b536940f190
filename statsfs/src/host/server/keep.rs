//! What must outlast the server, and the tree that is made of it.
//!
//! The tree has it committed before anybody sees what is new: see [`Keeper`]. What else is kept, which processes
//! there are and which were folded, goes along. Locks are taken in this order: the tree's, then this one's.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::clients::Who;
use super::fd_store::FdStore;
use super::inherited::{in_order, segments_name};
use super::options::{ServeError, ServeOptions};
use super::received::Received;
use super::stats::{Own, StateStats};
use crate::Slot;
use crate::host::protocol::Life;
use crate::host::state::{self, Found, HostState, Store};
use crate::tree::{Identity, Keeper, Occasion, ProcessKey, Saved, Tree, TreeError, TreeOptions};

/// Why a process was not taken in.
#[derive(Debug, Error)]
pub(super) enum JoinError {
    /// The tree does not take it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It was folded.
    #[error(
        "what these segments count was kept before, at a goodbye or a death: they can not come back"
    )]
    Folded,
}

/// The store, and what in it is not the tree's.
#[derive(Debug)]
struct Kept {
    store: Store,
    host: HostState,
    own: Slot<StateStats>,
}

impl Kept {
    fn commit(&mut self, saved: &Saved, host: &HostState) -> io::Result<()> {
        let start = Instant::now();
        let result = self.store.commit(saved, host);
        self.own.state_commits.inc();
        self.own.state_time.record(start.elapsed().as_nanos() as u64);
        match &result {
            Ok(bytes) => self.own.state_bytes.add(*bytes as u64),
            Err(_) => self.own.state_failures.inc(),
        }
        result.map(drop).map_err(io::Error::other)
    }
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Keep {
    kept: Mutex<Kept>,
    /// Keeps the segments.
    store: Arc<FdStore>,
    /// Whether it goes on from what an earlier server kept.
    carries_on: bool,
}

/// A process that an earlier server had, and that lives.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) who: Who,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) process: ProcessKey,
    pub(super) received: Received,
    /// Whether it is dead, and what it left could not be kept yet.
    pub(super) is_over: bool,
}

/// Has what the tree wants kept committed, with all else.
#[derive(Debug)]
struct Commits(Arc<Keep>);

impl Keeper for Commits {
    fn keep(&mut self, saved: &Saved, occasion: Occasion) -> io::Result<()> {
        let mut kept = self.0.lock();
        let mut host = kept.host.clone();
        if let Occasion::Folded(publisher) = occasion {
            host.fold(publisher);
        }
        kept.commit(saved, &host)?;
        kept.host = host;
        Ok(())
    }
}

impl Keep {
    /// Opens what was kept, and makes the tree that it is of.
    pub(super) fn open(
        options: &ServeOptions,
        own: &Own,
        store_of_fds: Arc<FdStore>,
    ) -> Result<(Arc<Self>, Tree), ServeError> {
        let (store, found) = Store::open(&options.state)?;
        let tree_options = TreeOptions {
            pid_prefix: true,
            limits: options.process_limits.clone(),
            events: Some(own.counts.clone()),
            ..TreeOptions::new(options.owner)
        };
        let anew = |why: &dyn std::fmt::Display| {
            tracing::error!(
                "what was kept is of no use, totals of processes that left begin at 0: {why}"
            );
            (Tree::host(tree_options.clone()), HostState::default(), false)
        };
        let (tree, host, carries_on) = match found {
            Found::State(state) => match Tree::host_from(state.tree, tree_options.clone()) {
                Ok(tree) => (tree, state.host, true),
                Err(error) => anew(&error),
            },
            Found::Nothing | Found::OtherBoot => {
                (Tree::host(tree_options), HostState::default(), false)
            }
            Found::Refused(error) => anew(&error),
        };
        let kept = Mutex::new(Kept { store, host, own: own.of_state()? });
        let keep = Arc::new(Self { kept, store: store_of_fds, carries_on });
        tree.keep_by(Commits(keep.clone()))
            .map_err(|source| ServeError::Keep { path: options.state.clone(), source })?;
        Ok((keep, tree))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells this state from others, if the tree has the numbers of an earlier server.
    pub(super) fn state_of_numbers(&self) -> Option<u64> {
        self.carries_on.then(|| self.state())
    }

    /// What tells this state from others.
    pub(super) fn state(&self) -> u64 {
        self.lock().store.number()
    }

    /// Takes in the processes that an earlier server had, of those segments that were kept, and folds those that
    /// have died since. What was kept of no process is not kept any longer.
    pub(super) fn resume(
        &self,
        tree: &Tree,
        mut segments: BTreeMap<u128, Vec<OwnedFd>>,
        options: &ServeOptions,
    ) -> Vec<Resumed> {
        // The kernel may know names of what is gone: they are to be told once it is served.
        tree.wait(Duration::ZERO, &mut Vec::new());
        let processes = self.lock().host.processes.clone();
        let mut resumed = Vec::new();
        for process in processes {
            let Some(fds) = segments.remove(&process.publisher) else { continue };
            let fds = in_order(fds, &options.process_limits);
            if fds.len() < process.segments as usize {
                // Its baselines are of all of them.
                let state::Process { publisher, pid, uid, .. } = process;
                tracing::warn!(
                    pid,
                    uid,
                    "what was kept of a process is not taken in: not all of it is there"
                );
                self.store.remove(&segments_name(publisher));
                continue;
            }
            match self.take_over(tree, &process, fds) {
                Ok(Some(process)) => resumed.push(process),
                Ok(None) => {}
                Err(error) => {
                    let state::Process { publisher, pid, uid, .. } = process;
                    tracing::warn!(%error, pid, uid, "what was kept of a process is not taken in");
                    // It may come by itself.
                    self.store.remove(&segments_name(publisher));
                }
            }
        }
        segments.keys().for_each(|publisher| self.store.remove(&segments_name(*publisher)));
        resumed
    }

    /// Takes in a process that an earlier server had, or folds it.
    fn take_over(
        &self,
        tree: &Tree,
        process: &state::Process,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Resumed>, TreeError> {
        let state::Process { publisher, pid, start_time, uid, gid, public, .. } = *process;
        let received = Received::kept(publisher, fds, self.store.clone());
        let identity = Identity { pid, uid, gid, is_public: public, is_host: false };
        let key = tree.join(received.clone(), identity)?;
        // All of it: what is open must be there.
        tree.adopt_all(key)?;
        let pidfd = match Life::of(pid) {
            Ok(life) => life.filter(|life| life.start_time == start_time).map(|life| life.pidfd),
            Err(error) => {
                // It is shown as long as it may come back.
                tracing::warn!(%error, pid, "nobody will tell when a process ends");
                let who = Who { pid, uid, gid, start_time };
                let (pidfd, is_over) = (None, false);
                return Ok(Some(Resumed { who, pidfd, process: key, received, is_over }));
            }
        };
        let is_dead = pidfd.as_ref().is_none_or(has_ended);
        if is_dead {
            match tree.fold(key) {
                Ok(()) => {
                    tracing::info!(
                        pid,
                        uid,
                        "died while there was no server: what it counted is kept"
                    );
                    self.has_let_go(publisher);
                    return Ok(None);
                }
                Err(TreeError::Commit(error)) => {
                    tracing::error!(%error, pid, "what a dead process counted can not be kept yet");
                }
                Err(error) => return Err(error),
            }
        }
        let who = Who { pid, uid, gid, start_time };
        Ok(Some(Resumed { who, pidfd, process: key, received, is_over: is_dead }))
    }

    /// Nothing of a process is in the tree any more, so its segments need not be kept.
    pub(super) fn has_let_go(&self, publisher: u128) {
        self.store.remove(&segments_name(publisher));
    }

    /// Takes a process in.
    pub(super) fn join(
        &self,
        tree: &Tree,
        received: Received,
        who: Who,
        public: bool,
    ) -> Result<ProcessKey, JoinError> {
        let (publisher, segments) = (received.publisher(), received.len() as u32);
        if self.lock().host.folded.contains(&publisher) {
            return Err(JoinError::Folded);
        }
        let Who { pid, uid, gid, start_time } = who;
        let identity = Identity { pid, uid, gid, is_public: public, is_host: false };
        let process = state::Process { publisher, pid, start_time, uid, gid, public, segments };
        let mut is_recorded = false;
        // Before anybody sees it: its segments are kept, and it is kept whose they are. What was seen of it stays
        // then, whenever it and this server end.
        let record = || {
            received.keep_in(&self.store);
            let processes = &mut self.lock().host.processes;
            processes.retain(|process| process.publisher != publisher);
            processes.push(process);
            is_recorded = true;
        };
        let joined = tree.join_recorded(received.clone(), identity, record);
        if joined.is_err() && is_recorded {
            self.lock().host.forget(publisher);
            self.has_let_go(publisher);
        }
        joined.map_err(JoinError::Tree)
    }

    /// Forgets a process that was let go: nothing of it is kept, and it may come again.
    pub(super) fn forget(&self, tree: &Tree, publisher: u128) {
        self.lock().host.forget(publisher);
        self.has_let_go(publisher);
        tree.forget(publisher);
        if let Err(error) = tree.keep() {
            tracing::error!(%error, "it can not be kept that a process is gone");
        }
    }

    /// Forgets the processes that the server before this one had, that have died since and that are not
    /// `here`. What they had counted is lost, which is said.
    pub(super) fn forget_dead(&self, tree: &Tree, here: &HashSet<u128>) {
        let absent = |process: &&state::Process| !here.contains(&process.publisher);
        let absent: Vec<_> = self.lock().host.processes.iter().filter(absent).copied().collect();
        let is_dead = |process: &state::Process| match Life::of(process.pid) {
            Ok(life) => life.is_none_or(|life| life.start_time != process.start_time),
            Err(_) => false,
        };
        let dead: Vec<_> = absent.into_iter().filter(is_dead).collect();
        for state::Process { publisher, pid, uid, .. } in &dead {
            tracing::warn!(pid, uid, "died while there was no server: what it counted is lost");
            self.lock().host.forget(*publisher);
            tree.forget(*publisher);
        }
        // All at once.
        if !dead.is_empty()
            && let Err(error) = tree.keep()
        {
            tracing::error!(%error, "it can not be kept that processes are gone");
        }
    }
}

/// Whether a process has ended that may not have been waited for.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}
