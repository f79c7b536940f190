//! What was refused, to whom and why: in the log once in a while for each user, and for `statsfs status`.

use std::collections::{HashMap, VecDeque};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::stats::RefusedFor;
use crate::repeats::Repeats;
use crate::segment::SegmentError;
use crate::tree::TreeError;

/// Refusals that are remembered.
const REMEMBERED: usize = 64;

/// A client that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Its process, as far as is known.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Why, in short.
    pub reason: RefusedFor,
    /// Why, as it was told.
    pub text: String,
}

impl Refusal {
    /// One of just now.
    pub(super) fn now(pid: u32, uid: u32, reason: RefusedFor, text: String) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { at: since.unwrap_or_default().as_secs(), pid, uid, reason, text }
    }
}

/// For what a process is refused that the tree does not take, or has let go, and whether it may try again.
pub(super) fn refused_for(error: &TreeError) -> (RefusedFor, bool) {
    match error {
        TreeError::LimitOfAll { .. } => (RefusedFor::Limit, true),
        TreeError::Limit { .. }
        | TreeError::Segment(SegmentError::TooManySources(_) | SegmentError::TooManyBytes { .. }) => {
            (RefusedFor::Limit, false)
        }
        error if error.may_pass() => (RefusedFor::Server, true),
        TreeError::Segment(_) | TreeError::Publisher => (RefusedFor::Segment, false),
        _ => (RefusedFor::Server, true),
    }
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last: VecDeque<Refusal>,
    /// By user and reason.
    logged: Repeats<(u32, RefusedFor)>,
}

impl Refusals {
    /// Remembers a refusal, and logs it unless the user's last one for that reason was just now.
    pub(super) fn add(&mut self, pid: u32, uid: u32, reason: RefusedFor, text: String) {
        match self.logged.say((uid, reason), Instant::now()) {
            None => {}
            Some(0) => tracing::warn!(pid, uid, "refused: {text}"),
            Some(unsaid) => tracing::warn!(pid, uid, unsaid, "refused: {text}"),
        }
        remember(&mut self.last, Refusal::now(pid, uid, reason, text));
    }

    /// The last ones, the newest last.
    pub(super) fn last(&self) -> impl Iterator<Item = &Refusal> {
        self.last.iter()
    }
}

/// Adds a refusal to the last ones. If there are too many the oldest goes of the user who has most of them, so that
/// nobody's are forgotten for another user's.
pub(super) fn remember(last: &mut VecDeque<Refusal>, refusal: Refusal) {
    if last.len() == REMEMBERED {
        let mut of_users = HashMap::<u32, usize>::new();
        for Refusal { uid, .. } in last.iter() {
            *of_users.entry(*uid).or_default() += 1;
        }
        let most = of_users.values().max().copied();
        let oldest = last.iter().position(|refusal| of_users.get(&refusal.uid).copied() == most);
        oldest.map(|oldest| last.remove(oldest));
    }
    last.push_back(refusal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let mut refusals = Refusals::default();
        let others = [(2000, 8), (2001, 0), (2002, 8)];
        for (pid, uid) in others {
            refusals.add(pid, uid, RefusedFor::Limit, "text".into());
        }
        for pid in 0..1000 {
            refusals.add(pid, 7, RefusedFor::Limit, "text".into());
        }
        let pids: Vec<_> = refusals.last().map(|refusal| refusal.pid).collect();
        let of_others = others.map(|(pid, _)| pid);
        let newest = 1000 - (REMEMBERED - others.len()) as u32..1000;
        assert_eq!(pids, of_others.into_iter().chain(newest).collect::<Vec<_>>());
    }
}
