//! What must outlast the server, and the tree that is made of it.
//!
//! The tree has it committed before anybody sees what is new: see [`Keeper`]. What else is kept, which processes
//! there are and which were folded, goes along. Locks are taken in this order: the tree's, then this one's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::clients::Who;
use super::closer::Closer;
use super::fd_store::FdStore;
use super::inherited::{in_order, segments_name};
use super::options::{ServeError, ServeOptions};
use super::received::Received;
use super::stats::{Own, StateStats};
use crate::Slot;
use crate::host::state::{self, Found, HostState, Store};
use crate::segment::memfd;
use crate::share::thread_time;
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

/// Sources of one process that are taken over before that.
const AT_ONCE: usize = 4096;

/// The store, and what in it is not the tree's.
#[derive(Debug)]
struct Kept {
    store: Store,
    host: HostState,
    /// What the processes have sent, by publisher.
    received: HashMap<u128, Received>,
    own: Slot<StateStats>,
}

impl Kept {
    fn commit(&mut self, saved: &Saved, host: &mut HostState) -> io::Result<()> {
        let start = Instant::now();
        for process in &mut host.processes {
            // What is cleared may be in any of them.
            if let Some(received) = self.received.get(&process.publisher) {
                process.segments = received.len() as u32;
            }
        }
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
    /// Closes what keeps VMs in the kernel, which may take long and is nobody's fault.
    closer: Closer,
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

/// What became of a process that an earlier server had.
#[derive(Debug)]
pub(super) enum TakenOver {
    /// It is in the tree.
    In(Box<Resumed>),
    /// It need not be: it was folded, is there already, or is of no use.
    Done,
    /// The server is short of something now: it is to be tried again.
    Later(Unseen),
}

/// A process that an earlier server had, and that is still to be taken over.
#[derive(Debug)]
pub(super) struct Unseen {
    process: state::Process,
    segments: Vec<OwnedFd>,
}

impl Unseen {
    pub(super) fn publisher(&self) -> u128 {
        self.process.publisher
    }

    pub(super) fn uid(&self) -> u32 {
        self.process.uid
    }
}

/// The order in which users' processes are taken in, of each its user and how large it is: those of each user from
/// the smallest on, and no user's large ones before the others' small ones.
fn in_turns(all: &[(u32, u64)]) -> Vec<usize> {
    let mut order: Vec<_> = (0..all.len()).collect();
    order.sort_by_key(|n| all[*n].1);
    let mut so_far = HashMap::<u32, u64>::new();
    let mut ends = vec![0; all.len()];
    for &n in &order {
        let (uid, size) = all[n];
        let of_user = so_far.entry(uid).or_default();
        *of_user = of_user.saturating_add(size);
        ends[n] = *of_user;
    }
    order.sort_by_key(|n| ends[*n]);
    order
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
        kept.commit(saved, &mut host)?;
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
            bulk_bytes: options.bulk_bytes,
            kept_bytes: options.kept_bytes.min(state::MAX_PAYLOAD),
            vcpu_metrics: options.vcpu_metrics.clone(),
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
        let received = HashMap::new();
        let kept = Mutex::new(Kept { store, host, received, own: own.of_state()? });
        let keep =
            Arc::new(Self { kept, store: store_of_fds, carries_on, closer: Closer::default() });
        tree.keep_by(Commits(keep.clone()))
            .map_err(|source| ServeError::Keep { path: options.state.clone(), source })?;
        Ok((keep, tree))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who closes descriptors of what the kernel counts.
    pub(super) fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Whether it goes on from what an earlier server kept.
    pub(super) fn carries_on(&self) -> bool {
        self.carries_on
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
    /// have died since; as many as can be before somebody is answered. The others are [taken
    /// over](Self::take_over) later. What was kept of no process is not kept any longer.
    pub(super) fn resume(
        &self,
        tree: &Tree,
        mut segments: BTreeMap<u128, Vec<OwnedFd>>,
        options: &ServeOptions,
    ) -> (Vec<Resumed>, Vec<Unseen>) {
        let start = thread_time();
        // The kernel may know names of what is gone: they are to be told once it is served.
        tree.wait(Duration::ZERO, &mut Vec::new());
        let processes = self.lock().host.processes.clone();
        let mut all = Vec::new();
        for process in processes {
            // What was only about to be kept when that server ended is not there: then the process comes by itself,
            // or it is said that what it counted is lost.
            let Some(fds) = segments.remove(&process.publisher) else { continue };
            let held = fds.len();
            let segments = in_order(fds, &options.process_limits);
            let name = segments_name(process.publisher);
            let made = process.segments as usize;
            self.store.has_kept(&name, process.uid, held, segments.len(), made);
            if segments.len() < made && tree.has_cleared(process.publisher) {
                // Some of what was cleared may be in one that is not there: without it there would be less than nothing.
                let state::Process { pid, uid, .. } = process;
                tracing::warn!(
                    pid,
                    uid,
                    have = segments.len(),
                    made,
                    "what was kept of a process is not taken in: something was cleared, and not all of it is there"
                );
                self.store.remove(&name);
                continue;
            }
            all.push(Some(Unseen { process, segments }));
        }
        segments.keys().for_each(|publisher| self.store.remove(&segments_name(*publisher)));
        let size = |fd: &OwnedFd| {
            memfd::checked_size(fd.as_fd(), options.process_limits.segment_size).unwrap_or_default()
        };
        let sizes = all
            .iter()
            .flatten()
            .map(|unseen| (unseen.process.uid, unseen.segments.iter().map(size).sum()));
        let order = in_turns(&sizes.collect::<Vec<_>>());
        let (mut resumed, mut later, mut put_off) = (Vec::new(), Vec::new(), Vec::new());
        for unseen in order.into_iter().filter_map(|n| all[n].take()) {
            if thread_time().saturating_sub(start) < options.take_over_first {
                match self.take_over(tree, unseen, true) {
                    TakenOver::In(process) => resumed.push(*process),
                    TakenOver::Done => {}
                    TakenOver::Later(unseen) => put_off.push(unseen),
                }
            } else {
                later.push(unseen);
            }
        }
        if !later.is_empty() {
            tracing::warn!(
                processes = later.len(),
                "there is more than can be taken in before anybody is answered: the rest comes later"
            );
        }
        later.extend(put_off);
        (resumed, later)
    }

    /// Takes in a process that an earlier server had. If it has died since it is folded, unless it may have sent
    /// something to this server before: then whoever takes it in has to see to that.
    pub(super) fn take_over(&self, tree: &Tree, unseen: Unseen, folds: bool) -> TakenOver {
        let Unseen { process, segments } = unseen;
        let state::Process { publisher, pid, uid, .. } = process;
        let received = Received::kept(
            publisher,
            segments,
            self.store.clone(),
            Who::of(&process),
            self.closer.clone(),
        );
        match self.try_take_over(tree, &process, received.clone(), folds) {
            Ok(Some(resumed)) => TakenOver::In(Box::new(resumed)),
            // It has come by itself, or has come and gone.
            Ok(None) | Err(JoinError::Folded | JoinError::Tree(TreeError::Joined(_))) => {
                TakenOver::Done
            }
            Err(JoinError::Tree(error)) if error.may_pass() => {
                tracing::warn!(%error, pid, uid, "what was kept of a process can not be taken in yet");
                TakenOver::Later(Unseen { process, segments: received.take() })
            }
            Err(error) => {
                tracing::warn!(%error, pid, uid, "what was kept of a process is not taken in");
                // It may come by itself.
                self.has_let_go(publisher);
                TakenOver::Done
            }
        }
    }

    fn try_take_over(
        &self,
        tree: &Tree,
        process: &state::Process,
        received: Received,
        folds: bool,
    ) -> Result<Option<Resumed>, JoinError> {
        let state::Process { publisher, pid, uid, gid, public, .. } = *process;
        if self.lock().host.folded.contains(&publisher) {
            return Err(JoinError::Folded);
        }
        let identity = Identity { pid, uid, gid, is_public: public, is_host: false };
        let key = tree.join(received.clone(), identity)?;
        self.lock().received.insert(publisher, received.clone());
        // What is open must be there: all of it, unless it is so much that the others would wait too long.
        let is_whole = tree.adopt_some(key, AT_ONCE)?.is_some();
        let who = Who::of(process);
        let resumed =
            |pidfd, is_over| Some(Resumed { who, pidfd, process: key, received, is_over });
        let pidfd = match who.life() {
            Ok(life) => life.map(|life| life.pidfd),
            Err(error) => {
                // It is shown as long as it may come back.
                tracing::warn!(%error, pid, "it can not be watched yet when a process ends");
                return Ok(resumed(None, false));
            }
        };
        let is_dead = pidfd.as_ref().is_none_or(has_ended);
        if is_dead && is_whole && folds {
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
                Err(error) => return Err(error.into()),
            }
        }
        Ok(resumed(pidfd, is_dead))
    }

    /// Nothing of a process is in the tree any more, so its segments need not be kept.
    pub(super) fn has_let_go(&self, publisher: u128) {
        if let Some(received) = self.lock().received.remove(&publisher) {
            received.keep_no_more();
        }
        self.store.remove(&segments_name(publisher));
    }

    /// Has those segments kept for which there was no room before, if there is some now.
    pub(super) fn keep_rest(&self) {
        if self.store.has_more_room() {
            self.lock().received.values().for_each(Received::keep_rest);
        }
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
        // then, whenever it and this server end; but where the service manager has yet to read what was sent to
        // it before, its segments are on their way still, and a server that is killed just then takes them along.
        let record = || {
            received.keep_in(&self.store, who);
            let mut kept = self.lock();
            kept.received.insert(publisher, received.clone());
            let processes = &mut kept.host.processes;
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

    /// Forgets processes that were let go: nothing of them is kept, and they may come again.
    pub(super) fn forget(&self, tree: &Tree, publishers: &[u128]) {
        for publisher in publishers {
            self.lock().host.forget(*publisher);
            self.has_let_go(*publisher);
            tree.forget(*publisher);
        }
        // All at once.
        if !publishers.is_empty()
            && let Err(error) = tree.keep()
        {
            tracing::error!(%error, "it can not be kept that processes are gone");
        }
    }

    /// Forgets the processes that the server before this one had, that have died since and that are not
    /// `here`. What they had counted is lost, which is said.
    pub(super) fn forget_dead(&self, tree: &Tree, here: &HashSet<u128>) {
        let absent = |process: &&state::Process| !here.contains(&process.publisher);
        let absent: Vec<_> = self.lock().host.processes.iter().filter(absent).copied().collect();
        let is_dead = |process: &state::Process| matches!(Who::of(process).life(), Ok(None));
        let dead: Vec<_> = absent.into_iter().filter(is_dead).collect();
        for state::Process { pid, uid, .. } in &dead {
            tracing::warn!(pid, uid, "died while there was no server: what it counted is lost");
        }
        let dead: Vec<_> = dead.into_iter().map(|process| process.publisher).collect();
        self.forget(tree, &dead);
    }
}

/// Whether a process has ended that may not have been waited for.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::super::fd_store::{self, Numbers};
    use super::*;
    use crate::fs::{Nodes, ROOT};
    use crate::host::protocol::Life;
    use crate::tree::tests::number;
    use crate::{Registry, RegistryOptions, Source, stats};

    stats! {
        /// Something to count.
        struct Some: "some" {
            /// Things.
            things: Counter,
        }
    }

    #[test]
    fn no_users_processes_are_before_all_of_the_others() {
        // A user with much, one with many small ones, and one with a little.
        let all = [(7, 1000), (8, 10), (8, 10), (9, 30), (8, 10), (7, 20), (8, 10), (8, 3000)];
        assert_eq!(in_turns(&all), [1, 2, 5, 4, 3, 6, 0, 7]);
    }

    fn who() -> Who {
        let pid = std::process::id();
        let start_time = Life::of(pid).unwrap().unwrap().start_time;
        Who { pid, uid: 7, gid: 7, start_time }
    }

    fn segments(registry: &Registry) -> Vec<OwnedFd> {
        registry.segments().unwrap()
    }

    fn received(registry: &Registry) -> Received {
        let received = Received::of(registry.publisher(), 7, Closer::default());
        received.add(segments(registry));
        received
    }

    /// A keeper and its tree, and what counts what they do.
    fn opened(options: &ServeOptions) -> ((Arc<Keep>, Tree), Own) {
        let own = Own::new().unwrap();
        (Keep::open(options, &own, Arc::default()).unwrap(), own)
    }

    /// So many sources, with 1 counted in each.
    fn many(registry: &Registry, n: u64) -> Vec<Source> {
        let make = |n| {
            let source = registry.create_source(&format!("s{n}")).unwrap();
            source.add_values::<Some>().unwrap().things.inc();
            source
        };
        (0..n).map(make).collect()
    }

    #[test]
    fn what_was_cleared_stays_so_wherever_it_goes_before_those_above_are_there() {
        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
        let open = || opened(&options);
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        let all = AT_ONCE as u64 * 3;
        let sources = many(&registry, all);
        // What is above comes last, and what is above that after it.
        let inner = registry.create_source("inner").unwrap();
        let outer = registry.create_source("outer").unwrap();
        sources.iter().for_each(|source| inner.add_subordinate(source).unwrap());
        outer.add_subordinate(&inner).unwrap();
        top.add_subordinate(&outer).unwrap();
        top.register().unwrap();
        {
            let ((keep, tree), _own) = open();
            let key = keep.join(&tree, received(&registry), who(), true).unwrap();
            tree.adopt_all(key).unwrap();
            tree.clear("top/things").unwrap();
        }
        let cleared =
            |tree: &Tree| tree.save().baselines.values().map(|words| words[0]).sum::<u64>();
        let leaves = |n: usize| {
            inner.remove_subordinate(&sources[n]).unwrap();
            sources[n].revoke().ok();
        };
        // Twice: also the next server knows what is above.
        for n in 0..2 {
            let ((keep, tree), _own) = open();
            let kept = BTreeMap::from([(registry.publisher(), segments(&registry))]);
            let (resumed, _) = keep.resume(&tree, kept, &options);
            let key = resumed[0].process;
            // They were taken over, and go while nothing that is above them is there.
            let before = registry.usage().sources;
            (0..100).for_each(|of| leaves(2 * of + n));
            assert_eq!(registry.usage().sources, before - 100);
            tree.detach(key).unwrap();
            assert!(tree.last_usage().sources < 3 * AT_ONCE);
            assert_eq!(cleared(&tree), all);
            tree.reattach(key).unwrap();
            tree.keep().unwrap();
            if n == 1 {
                tree.adopt_all(key).unwrap();
                assert_eq!(cleared(&tree), all);
                let outer = format!("top/{}-outer", std::process::id());
                for of in ["top", &outer, &format!("{outer}/inner")] {
                    assert_eq!(number(&tree, &format!("{of}/things")), 0, "{of}");
                }
            }
        }
    }

    #[test]
    fn so_many_sources_are_taken_over_before_anybody_is_answered_and_all_in_the_end() {
        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
        let open = || opened(&options);
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        let all = AT_ONCE as u64 * 3;
        let sources = many(&registry, all);
        // What is above comes last.
        let inner = registry.create_source("inner").unwrap();
        sources.iter().for_each(|source| inner.add_subordinate(source).unwrap());
        top.add_subordinate(&inner).unwrap();
        top.register().unwrap();
        {
            let ((keep, tree), _own) = open();
            let key = keep.join(&tree, received(&registry), who(), true).unwrap();
            tree.adopt_all(key).unwrap();
            assert_eq!(number(&tree, "top/things"), all);
            tree.clear("top/things").unwrap();
        }
        // Some of those that were cleared are gone when it is back, and their counts are elsewhere.
        for source in sources.iter().step_by(3) {
            inner.remove_subordinate(source).unwrap();
            source.revoke().ok();
        }
        sources[1].add_values::<Some>().unwrap().things.add(5);
        let ((keep, tree), _own) = open();
        let kept = BTreeMap::from([(registry.publisher(), segments(&registry))]);
        let (resumed, later) = keep.resume(&tree, kept, &options);
        assert_eq!((resumed.len(), later.len()), (1, 0));
        let there = tree.last_usage().sources;
        assert!((AT_ONCE..2 * AT_ONCE).contains(&there), "{there}");
        // Whatever is kept meanwhile is for the next one as well.
        let before = tree.save();
        assert_eq!(before.baselines.values().map(|words| words[0]).sum::<u64>(), all);
        tree.adopt_all(resumed[0].process).unwrap();
        let after = tree.save();
        assert_eq!(after.baselines.values().map(|words| words[0]).sum::<u64>(), all);
        assert_eq!(number(&tree, "top/things"), 5);
        let inner = format!("top/{}-inner/things", std::process::id());
        assert_eq!(number(&tree, &inner), 5);
    }

    #[test]
    fn what_is_there_of_a_dead_process_is_counted_unless_it_was_cleared() {
        for is_cleared in [false, true] {
            let state = tempfile::tempdir().unwrap();
            let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let start_time = Life::of(child.id()).unwrap().unwrap().start_time;
            let who = Who { pid: child.id(), start_time, ..who() };
            let small = RegistryOptions { segment_size: 64 << 10, ..RegistryOptions::default() };
            let registry = Registry::with_options(small).unwrap();
            let top = registry.create_source("top").unwrap();
            top.register().unwrap();
            let mut all = 0;
            while registry.usage().segments < 2 {
                let source = registry.create_source(&format!("s{all}")).unwrap();
                source.add_values::<Some>().unwrap().things.inc();
                top.add_subordinate(&source).unwrap();
                all += 1;
            }
            {
                let own = Own::new().unwrap();
                let (keep, tree) = Keep::open(&options, &own, Arc::default()).unwrap();
                keep.join(&tree, received(&registry), who, true).unwrap();
                assert_eq!(number(&tree, "top/things"), all);
                if is_cleared {
                    tree.clear("top/things").unwrap();
                }
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let own = Own::new().unwrap();
            let (keep, tree) = Keep::open(&options, &own, Arc::default()).unwrap();
            // The last one had not reached the store.
            let first = segments(&registry).into_iter().take(1).collect();
            let (resumed, _) =
                keep.resume(&tree, BTreeMap::from([(registry.publisher(), first)]), &options);
            assert!(resumed.is_empty());
            if is_cleared {
                assert!(tree.lookup(ROOT, "top").is_err());
            } else {
                let there = number(&tree, "top/things");
                assert!(0 < there && there <= all, "{there} of {all}");
            }
        }
    }

    /// Takes a dead process over when there is no descriptor left, and when there are some again.
    #[test]
    #[ignore = "run in a process of its own"]
    fn take_over_without_descriptors() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};

        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let start_time = Life::of(child.id()).unwrap().unwrap().start_time;
        let who = Who { pid: child.id(), start_time, ..who() };
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        top.add_values::<Some>().unwrap().things.add(3);
        {
            let own = Own::new().unwrap();
            let (keep, tree) = Keep::open(&options, &own, Arc::default()).unwrap();
            keep.join(&tree, received(&registry), who, true).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let own = Own::new().unwrap();
        let (keep, tree) = Keep::open(&options, &own, Arc::default()).unwrap();
        let kept = BTreeMap::from([(registry.publisher(), segments(&registry))]);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // The kernel gives the lowest one that is free.
        let free = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
        setrlimit(Resource::RLIMIT_NOFILE, free as u64, hard).unwrap();
        let (resumed, mut later) = keep.resume(&tree, kept, &options);
        assert_eq!((resumed.len(), later.len()), (0, 1));
        let TakenOver::Later(unseen) = keep.take_over(&tree, later.remove(0), true) else {
            panic!("there is no descriptor for it");
        };
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(matches!(keep.take_over(&tree, unseen, true), TakenOver::Done));
        assert_eq!(number(&tree, "top/things"), 3);
    }

    #[test]
    fn what_can_not_be_taken_over_now_is_later() {
        let test = format!("{}::take_over_without_descriptors", module_path!());
        let test = test.split_once("::").unwrap().1;
        let exe = std::env::current_exe().unwrap();
        let out = std::process::Command::new(exe).args(["--exact", test, "--ignored"]).output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn what_was_let_go_is_not_kept_again() {
        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
        let registry = Registry::new().unwrap();
        registry.create_source("top").unwrap().register().unwrap();
        let (own, (store, _theirs)) = (Own::new().unwrap(), fd_store::tests::store(64));
        let store = Arc::new(store);
        let (keep, tree) = Keep::open(&options, &own, store.clone()).unwrap();
        let received = received(&registry);
        keep.join(&tree, received.clone(), who(), true).unwrap();
        received.add(segments(&registry));
        assert_eq!(store.numbers().1.kept, 2);
        keep.has_let_go(registry.publisher());
        received.add(segments(&registry));
        assert_eq!(store.numbers().1, Numbers::default());
    }

    #[test]
    fn what_is_kept_says_how_many_segments_there_are_now() {
        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions { state: state.path().into(), ..ServeOptions::default() };
        let registry = Registry::new().unwrap();
        registry.create_source("top").unwrap().register().unwrap();
        let own = Own::new().unwrap();
        let (keep, tree) = Keep::open(&options, &own, Arc::default()).unwrap();
        let received = received(&registry);
        keep.join(&tree, received.clone(), who(), true).unwrap();
        // One more has come; what it is does not matter here.
        received.add(segments(&registry));
        tree.keep().unwrap();
        assert_eq!(keep.lock().host.processes[0].segments, 2);
    }
}
