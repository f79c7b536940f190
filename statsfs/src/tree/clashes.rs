//! Names that can not be shown: several processes want one in a directory that they share, or it is
//! reserved.
//!
//! Within one process its registry refuses a name that would stand twice. Between processes whoever came
//! first has it; a later one is left out there, which is logged and counted, until the name is free. What it
//! counts is in the totals all the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::dirs::ROOT_DIR;
use super::inode::DirId;
use super::model::Reach;
use super::processes::Identity;
use super::{SourceKey, State};
use crate::repeats::Repeats;

/// Why something is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// Another has the name.
    Taken,
    /// The name is the tree's own.
    Reserved,
    /// Nothing at the top level of a host may be hidden.
    Hidden,
}

/// What is left out, and how often something was.
#[derive(Debug, Default)]
pub(crate) struct Clashes {
    /// Sources that wait for a name in a directory, those below them not among them.
    waiting: BTreeMap<(DirId, Box<str>), BTreeSet<SourceKey>>,
    /// What each of them waits for.
    wanted: HashMap<SourceKey, (DirId, Box<str>)>,
    /// Names for which something waits that may have become free.
    freed: BTreeSet<(DirId, Box<str>)>,
    so_far: AtomicU64,
    /// By user, what is left out, and why.
    said: Mutex<Repeats<(u32, &'static str, Why)>>,
}

impl Clashes {
    /// A source waits for a name.
    pub(super) fn wait(&mut self, key: SourceKey, dir: DirId, name: &str) {
        self.wait_no_more(key);
        self.waiting.entry((dir, name.into())).or_default().insert(key);
        self.wanted.insert(key, (dir, name.into()));
    }

    /// A source is gone.
    pub(super) fn wait_no_more(&mut self, key: SourceKey) {
        let Some(wanted) = self.wanted.remove(&key) else { return };
        if let Some(waiting) = self.waiting.get_mut(&wanted) {
            waiting.remove(&key);
            if waiting.is_empty() {
                self.waiting.remove(&wanted);
            }
        }
    }

    /// Values may have gone from a directory.
    pub(super) fn free_values(&mut self, dir: DirId) {
        let here = (dir, Box::default())..(dir + 1, Box::default());
        self.freed.extend(self.waiting.range(here).map(|(at, _)| at.clone()));
    }

    /// A subordinate has gone from a directory.
    pub(super) fn free(&mut self, dir: DirId, name: &str) {
        if self.waiting.is_empty() {
            return;
        }
        let name = (dir, name.into());
        if self.waiting.contains_key(&name) {
            self.freed.insert(name);
        }
    }

    /// Something of a process begins to be left out; of one that may have gone if that is not known.
    pub(super) fn report(
        &self,
        of: Option<Identity>,
        what: &'static str,
        name: &str,
        directory: &str,
        why: Why,
    ) {
        self.so_far.fetch_add(1, Ordering::Relaxed);
        let (pid, uid) = of.map_or((0, u32::MAX), |of| (of.pid, of.uid));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(unsaid) = said.say((uid, what, why), Instant::now()) else { return };
        let why = match why {
            Why::Taken => "another process has its name there",
            Why::Reserved => "its name is reserved",
            Why::Hidden => "it is hidden, which nothing at the top level of a host may be",
        };
        tracing::warn!(pid, uid, name, directory, unsaid, "a {what} is left out: {why}");
    }

    /// How often something was left out.
    pub(super) fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Relaxed)
    }
}

impl State {
    /// What is left out now.
    pub(super) fn left_out(&self) -> usize {
        let sources = self.sources.values().filter(|source| source.left_out).count();
        // Elsewhere there is one process, whose registry sees to it.
        let shared = self.dirs[&ROOT_DIR].children.iter();
        let values = shared.filter_map(|dir| self.files(*dir)).map(|files| files.left_out.len());
        sources + values.sum::<usize>()
    }

    /// Whether a source, or one above it, is left out.
    pub(super) fn is_below_left_out(&self, key: SourceKey) -> bool {
        let mut at = self.sources.get(&key);
        while let Some(source) = at {
            if source.left_out {
                return true;
            }
            if source.dir.is_some() {
                return false;
            }
            at = self.sources.get(&(key.0, source.parent));
        }
        false
    }

    /// Whether a directory has no subordinate of this name, and no value that came first.
    pub(super) fn is_free(&self, dir: DirId, name: &str) -> bool {
        let Some(directory) = self.dirs.get(&dir) else { return false };
        // One process's own values and subordinates do not meet.
        let shared = directory.members.len() > 1;
        directory.child(name).is_none()
            && !(shared && self.files(dir).is_some_and(|files| files.get(name).is_some()))
    }

    /// Shows the sources whose names have become free.
    pub(super) fn readmit(&mut self) {
        while let Some((dir, name)) = self.clashes.freed.pop_first() {
            let first = |all: &BTreeSet<SourceKey>| all.first().copied();
            let at = (dir, name);
            while let Some(key) = self.clashes.waiting.get(&at).and_then(first) {
                if !self.is_free(dir, &at.1) {
                    break;
                }
                self.show_again(key);
                if self.clashes.waiting.get(&at).and_then(first) == Some(key) {
                    break;
                }
            }
        }
    }

    /// A source that was left out comes once more, with all below it.
    pub(super) fn show_again(&mut self, key: SourceKey) {
        self.reach(key, Reach::Not);
        self.settle(key);
    }
}
