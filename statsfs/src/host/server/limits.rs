//! What one user may have of the server, over all of the user's processes.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What is limited, for each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limited {
    /// Connections, those that were lost by a process that lives on included.
    Connections,
    /// Segments.
    Segments,
    /// Bytes of segments.
    Bytes,
    /// Sources.
    Sources,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Segments => "segments",
            Self::Bytes => "bytes of segments",
            Self::Sources => "sources",
        })
    }
}

/// How much of each one user may have, and one process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Connections.
    pub connections: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of segments.
    pub bytes: u64,
    /// Sources.
    pub sources: u64,
}

impl Amounts {
    /// What a user may have unless told: a thousand machines of 64 vCPUs.
    pub const DEFAULT: Self =
        Self { connections: 2048, segments: 8192, bytes: 4 << 30, sources: 1 << 18 };

    const KINDS: [Limited; 4] =
        [Limited::Connections, Limited::Segments, Limited::Bytes, Limited::Sources];

    fn of(&self, what: Limited) -> u64 {
        match what {
            Limited::Connections => self.connections,
            Limited::Segments => self.segments,
            Limited::Bytes => self.bytes,
            Limited::Sources => self.sources,
        }
    }

    /// The larger of each.
    pub(super) fn most(&self, other: &Self) -> Self {
        self.combined(other, u64::max)
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            connections: with(self.connections, other.connections),
            segments: with(self.segments, other.segments),
            bytes: with(self.bytes, other.bytes),
            sources: with(self.sources, other.sources),
        }
    }
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// By a user.
    #[error("user {uid} has reached the limit of {limit} {what}")]
    User {
        /// The user.
        uid: u32,
        /// What there is too much of.
        what: Limited,
        /// How much is allowed.
        limit: u64,
    },
    /// By the server: it can not map more.
    #[error(
        "the server has reached its limit of {limit} segments (raise `sysctl vm.max_map_count`)"
    )]
    Mappings {
        /// Segments that it can map.
        limit: u64,
    },
}

/// How many mappings a process may have unless it is known.
const MAX_MAP_COUNT: u64 = 65_530;

/// How many segments the server can map: most of the mappings that a process may have. With none left its
/// own memory could not grow.
pub(super) fn mappable() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let most = most.ok().and_then(|most| most.trim().parse().ok()).unwrap_or(MAX_MAP_COUNT);
    most - most / 8
}

/// What all users have.
#[derive(Debug)]
pub(super) struct Accounts {
    limits: Amounts,
    /// Segments that all users together may have.
    most_segments: u64,
    segments: u64,
    used: HashMap<u32, Amounts>,
}

impl Accounts {
    pub(super) fn new(limits: Amounts, most_segments: u64) -> Self {
        Self { limits, most_segments, segments: 0, used: HashMap::new() }
    }

    /// Replaces what one of a user's processes had by what it has: all of it, or nothing.
    ///
    /// # Errors
    /// [`Exceeded`] if the user, or all users together, would have more of something than is allowed, and
    /// than before.
    pub(super) fn change(
        &mut self,
        uid: u32,
        had: &mut Amounts,
        has: Amounts,
    ) -> Result<(), Exceeded> {
        let used = self.used.get(&uid).copied().unwrap_or_default();
        let would = used.combined(had, u64::saturating_sub).combined(&has, u64::saturating_add);
        for what in Amounts::KINDS {
            let limit = self.limits.of(what);
            if would.of(what) > limit && has.of(what) > had.of(what) {
                return Err(Exceeded::User { uid, what, limit });
            }
        }
        let segments = self.segments - had.segments + has.segments;
        if has.segments > had.segments && segments > self.most_segments {
            return Err(Exceeded::Mappings { limit: self.most_segments });
        }
        self.segments = segments;
        *had = has;
        if would == Amounts::default() {
            self.used.remove(&uid);
        } else {
            self.used.insert(uid, would);
        }
        Ok(())
    }

    /// Gives back what a process had.
    pub(super) fn release(&mut self, uid: u32, had: &mut Amounts) {
        let less = self.change(uid, had, Amounts::default());
        debug_assert!(less.is_ok(), "less is always allowed");
    }

    /// What a user has now.
    pub(super) fn used(&self, uid: u32) -> Amounts {
        self.used.get(&uid).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Amounts = Amounts { connections: 2, segments: 10, bytes: 100, sources: 5 };

    #[test]
    fn each_user_has_limits_of_their_own() {
        let mut accounts = Accounts::new(LIMITS, 10);
        let one = Amounts { connections: 1, segments: 6, bytes: 1, sources: 1 };
        let (mut a, mut b, mut c) = Default::default();
        accounts.change(7, &mut a, one).unwrap();
        let exceeded = accounts.change(7, &mut b, one).unwrap_err();
        assert_eq!(exceeded, Exceeded::User { uid: 7, what: Limited::Segments, limit: 10 });
        assert_eq!(exceeded.to_string(), "user 7 has reached the limit of 10 segments");
        assert_eq!((b, accounts.used(7)), (Amounts::default(), one), "all or nothing");
        // All users together are one process's mappings.
        let exceeded = accounts.change(8, &mut c, one).unwrap_err();
        assert_eq!(exceeded, Exceeded::Mappings { limit: 10 });
        accounts.change(8, &mut c, Amounts { segments: 4, ..one }).unwrap();
        // Growing is as coming.
        let more = Amounts { sources: 6, ..one };
        let exceeded = accounts.change(7, &mut a, more).unwrap_err();
        assert_eq!(exceeded, Exceeded::User { uid: 7, what: Limited::Sources, limit: 5 });
        accounts.change(7, &mut a, Amounts { sources: 5, ..one }).unwrap();
        accounts.release(7, &mut a);
        accounts.release(8, &mut c);
        assert!(accounts.used.is_empty());
        assert_eq!(accounts.segments, 0);
    }

    #[test]
    fn what_is_there_is_not_held_against_what_does_not_grow() {
        let mut accounts = Accounts::new(LIMITS, 10);
        let (mut a, mut b) = Default::default();
        accounts
            .change(7, &mut a, Amounts { connections: 1, sources: 5, ..Amounts::default() })
            .unwrap();
        accounts.change(7, &mut b, Amounts { connections: 1, ..Amounts::default() }).unwrap();
        accounts.limits.sources = 3;
        // It may shrink, or gain something else.
        accounts
            .change(7, &mut a, Amounts { connections: 1, sources: 4, segments: 1, bytes: 1 })
            .unwrap();
        let more = Amounts { sources: 1, ..b };
        assert!(accounts.change(7, &mut b, more).is_err());
    }
}
