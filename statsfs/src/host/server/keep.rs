//! What must outlast the server, and the tree that is made of it.
//!
//! The tree has it committed before anybody sees what is new: see [`Keeper`]. What else is kept, which processes
//! there are and which were folded, goes along. Locks are taken in this order: the tree's, then this one's.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use thiserror::Error;

use super::clients::Who;
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
pub(super) struct Keep(Mutex<Kept>);

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
    pub(super) fn open(options: &ServeOptions, own: &Own) -> Result<(Arc<Self>, Tree), ServeError> {
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
            (Tree::host(tree_options.clone()), HostState::default())
        };
        let (tree, host) = match found {
            Found::State(state) => match Tree::host_from(state.tree, tree_options.clone()) {
                Ok(tree) => (tree, state.host),
                Err(error) => anew(&error),
            },
            Found::Nothing | Found::OtherBoot => (Tree::host(tree_options), HostState::default()),
            Found::Refused(error) => anew(&error),
        };
        let keep = Arc::new(Self(Mutex::new(Kept { store, host, own: own.of_state()? })));
        tree.keep_by(Commits(keep.clone()))
            .map_err(|source| ServeError::Keep { path: options.state.clone(), source })?;
        Ok((keep, tree))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let key = tree.join(received, identity)?;
        let process = state::Process { publisher, pid, start_time, uid, gid, public, segments };
        {
            let processes = &mut self.lock().host.processes;
            processes.retain(|process| process.publisher != publisher);
            processes.push(process);
        }
        if let Err(error) = tree.keep() {
            // It is in the tree all the same, and is kept with whatever comes next.
            tracing::error!(%error, pid, "it can not be kept that a process is there");
        }
        Ok(key)
    }

    /// Forgets a process that was let go: nothing of it is kept, and it may come again.
    pub(super) fn forget(&self, tree: &Tree, publisher: u128) {
        self.lock().host.forget(publisher);
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
