//! What came between two snapshots: rates that are right whatever was cleared, came or went meanwhile.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::{Dir, DirIdentity, Snapshot, Value};

/// Two snapshots of one directory, and what came in between.
#[derive(Debug)]
pub struct Changes<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    known: HashMap<DirIdentity, Dir<'a>>,
    time: Duration,
}

/// What a file shows, with what it was before.
#[derive(Debug)]
pub struct Change<'a> {
    /// What it is now.
    pub value: Value<'a>,
    /// What it was, if it was there.
    pub earlier: Option<Value<'a>>,
    /// By how much it grew: of a histogram, by how many. None if it is no count, or it is not known.
    pub increase: Option<u64>,
}

impl<'a> Change<'a> {
    /// What came in between, as a value of its own: of a histogram what was recorded, with its percentiles. None if
    /// [`increase`](Self::increase) is.
    pub fn grown(&self) -> Option<Value<'a>> {
        self.increase?;
        match &self.earlier {
            Some(earlier) => self.value.grown_since(earlier),
            None => Some(self.value.uncleared()),
        }
    }
}

/// Why nothing is to be said of two snapshots.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChangesError {
    /// They are not of the same directory.
    #[error("they are of different directories, {} and {}", path(.0), path(.1))]
    Different(String, String),
    /// The second is the first.
    #[error("the second was taken before the first: exchange them")]
    Exchanged,
    /// Monotonic time began anew.
    #[error("the host was started anew between them: no count goes on")]
    OtherBoot,
}

fn path(path: &str) -> &str {
    if path.is_empty() { "the whole mount" } else { path }
}

impl<'a> Changes<'a> {
    /// Compares two snapshots of one directory of one mount.
    ///
    /// # Errors
    /// [`ChangesError`] says why they can not be compared.
    pub fn between(before: &'a Snapshot, after: &'a Snapshot) -> Result<Self, ChangesError> {
        if before.path() != after.path() {
            let [one, other] = [before, after].map(|snapshot| snapshot.path().to_owned());
            return Err(ChangesError::Different(one, other));
        }
        let Some(time) = after.monotonic().checked_sub(before.monotonic()) else {
            let is_older = after.taken() < before.taken();
            return Err(if is_older { ChangesError::Exchanged } else { ChangesError::OtherBoot });
        };
        let known = before.dirs().map(|dir| (dir.identity(), dir)).collect();
        Ok(Self { before, after, known, time })
    }

    /// The time between them.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// So many in that time, in a second. 0 if there was no time.
    pub fn per_second(&self, increase: u64) -> f64 {
        let seconds = self.time.as_secs_f64();
        if seconds > 0.0 { increase as f64 / seconds } else { 0.0 }
    }

    /// What a directory of the second was in the first: it itself, not one that had its name.
    pub fn earlier(&self, dir: Dir<'_>) -> Option<Dir<'a>> {
        self.known.get(&dir.identity()).copied()
    }

    /// The directories of the second that are not in the first, each before those in it.
    pub fn came(&self) -> impl Iterator<Item = Dir<'a>> {
        self.after.dirs().filter(|dir| self.earlier(*dir).is_none())
    }

    /// The directories of the first that are not in the second.
    pub fn gone(&self) -> impl Iterator<Item = Dir<'a>> {
        let left: HashMap<_, _> = self.after.dirs().map(|dir| (dir.identity(), ())).collect();
        self.before.dirs().filter(move |dir| !left.contains_key(&dir.identity()))
    }

    /// What a directory of the second shows, with what it showed in the first.
    pub fn of(&self, dir: Dir<'a>) -> Vec<Change<'a>> {
        self.of_those(dir, |_| true)
    }

    /// What those of them whose names are wanted are, with what they were, at the cost of one sweep of each.
    pub fn of_those(&self, dir: Dir<'a>, wanted: impl Fn(&str) -> bool) -> Vec<Change<'a>> {
        let values = self.earlier(dir).map(|dir| dir.values_of(&wanted)).unwrap_or_default();
        let mut old: HashMap<_, _> =
            values.into_iter().map(|value| (value.name(), value)).collect();
        let change = |value: Value<'a>| {
            let earlier = old.remove(value.name());
            self.change(dir, value, earlier)
        };
        dir.values_of(&wanted).into_iter().map(change).collect()
    }

    /// What one value of a directory of the second is, with what it was in the first.
    pub fn value(&self, dir: Dir<'a>, name: &str) -> Option<Change<'a>> {
        let earlier = self.earlier(dir).and_then(|dir| dir.value(name));
        Some(self.change(dir, dir.value(name)?, earlier))
    }

    fn change(&self, dir: Dir<'a>, value: Value<'a>, earlier: Option<Value<'a>>) -> Change<'a> {
        let increase = match &earlier {
            Some(earlier) => value.increase_since(earlier),
            // All that it counted came since.
            None if self.earlier(dir).is_some() || self.is_younger(dir) => value.raw_count(),
            None => None,
        };
        Change { value, earlier, increase }
    }

    /// Whether a directory that was not there began to be after the first was taken. Another may have counted long before: it
    /// was not to be seen, or had nobody to publish to.
    fn is_younger(&self, dir: Dir<'_>) -> bool {
        dir.created().is_none_or(|created| created >= self.before.taken())
    }
}

impl Dir<'_> {
    /// When its source was made; none where sources of several processes meet.
    pub fn created(self) -> Option<SystemTime> {
        let since = Duration::from_nanos(self.identity().created);
        SystemTime::UNIX_EPOCH.checked_add(since).filter(|_| !since.is_zero())
    }
}
