//! What one user may have of the server, over all of the user's processes, and what all users together.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What is limited, for each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limited {
    /// Connections, whether or not they publish; and processes in the tree that have none: whose connection is
    /// lost, or that the server before had and that have not come back yet. One that comes back is counted once.
    Connections,
    /// Segments.
    Segments,
    /// Bytes of segments.
    Bytes,
    /// Sources.
    Sources,
    /// Descriptors of what the kernel counts.
    Descriptors,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Segments => "segments",
            Self::Bytes => "bytes of segments",
            Self::Sources => "sources",
            Self::Descriptors => "statistics descriptors",
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
    /// Descriptors of what the kernel counts.
    pub descriptors: u64,
}

impl Amounts {
    /// What a user may have unless told: a thousand machines of 64 vCPUs.
    pub const DEFAULT: Self = Self {
        connections: 2048,
        segments: 8192,
        bytes: 1 << 30,
        sources: 1 << 18,
        descriptors: 1 << 17,
    };

    const KINDS: [Limited; 5] = [
        Limited::Connections,
        Limited::Segments,
        Limited::Bytes,
        Limited::Sources,
        Limited::Descriptors,
    ];

    pub(super) fn of(&self, what: Limited) -> u64 {
        match what {
            Limited::Connections => self.connections,
            Limited::Segments => self.segments,
            Limited::Bytes => self.bytes,
            Limited::Sources => self.sources,
            Limited::Descriptors => self.descriptors,
        }
    }

    /// This with one part of it replaced.
    fn replaced(&self, part: &Self, by: &Self) -> Self {
        self.combined(part, u64::saturating_sub).combined(by, u64::saturating_add)
    }

    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        self.combined(other, u64::saturating_add)
    }

    /// What came with messages replaced: segments and their bytes, and descriptors.
    pub(super) fn with_received(&self, Self { segments, bytes, descriptors, .. }: Self) -> Self {
        Self { segments, bytes, descriptors, ..*self }
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            connections: with(self.connections, other.connections),
            segments: with(self.segments, other.segments),
            bytes: with(self.bytes, other.bytes),
            sources: with(self.sources, other.sources),
            descriptors: with(self.descriptors, other.descriptors),
        }
    }
}

/// How much all users together may have: what they have takes memory of the server's own. When there is no room
/// those who come are to come later, but for users who have less than [a part of it](Self::PART_OF_EACH); what is
/// there may grow all the same, and whoever has most has one process less then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLimits {
    /// Bytes of segments.
    pub bytes: u64,
    /// Sources.
    pub sources: u64,
}

impl HostLimits {
    /// One part in so many of that, or of what one user may have, is nobody refused because of others.
    pub const PART_OF_EACH: u64 = 16;
    /// What they may have unless told: twice what one user may.
    pub const DEFAULT: Self =
        Self { bytes: 2 * Amounts::DEFAULT.bytes, sources: 2 * Amounts::DEFAULT.sources };

    fn of(&self, what: Limited) -> Option<u64> {
        match what {
            Limited::Bytes => Some(self.bytes),
            Limited::Sources => Some(self.sources),
            Limited::Connections | Limited::Segments | Limited::Descriptors => None,
        }
    }
}

/// The option that says how much all users together may have.
fn option_for(what: &Limited) -> &'static str {
    if *what == Limited::Bytes { "--max-host-mib" } else { "--max-host-sources" }
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
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
    /// By all users together.
    #[error(
        "all users together have reached the limit of {limit} {what} (raise `{option}`)",
        option = option_for(.what)
    )]
    Host {
        /// What there is too much of.
        what: Limited,
        /// How much is allowed.
        limit: u64,
    },
    /// By all users together: the server can not have more open.
    #[error(
        "all users together have reached the limit of {limit} statistics descriptors (raise the server's limit of open files, `ulimit -n`)"
    )]
    Descriptors {
        /// How many there may be.
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
    host_limits: HostLimits,
    /// Segments that all users together may have, and descriptors of what the kernel counts.
    most_segments: u64,
    most_descriptors: u64,
    all: Amounts,
    used: HashMap<u32, Amounts>,
}

impl Accounts {
    pub(super) fn new(
        limits: Amounts,
        host_limits: HostLimits,
        most_segments: u64,
        most_descriptors: u64,
    ) -> Self {
        let (all, used) = (Amounts::default(), HashMap::new());
        Self { limits, host_limits, most_segments, most_descriptors, all, used }
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
        let (used, all) = (self.used(uid).replaced(had, &has), self.all.replaced(had, &has));
        let grows = |what: &Limited| has.of(*what) > had.of(*what);
        for what in Amounts::KINDS.into_iter().filter(grows) {
            let limit = self.limits.of(what);
            if used.of(what) > limit {
                return Err(Exceeded::User { uid, what, limit });
            }
            let others = |limit: &u64| {
                let own = self.limits.of(what).min(*limit) / HostLimits::PART_OF_EACH;
                all.of(what) > *limit && used.of(what) > own
            };
            if let Some(limit) = self.host_limits.of(what).filter(others) {
                return Err(Exceeded::Host { what, limit });
            }
            if what == Limited::Descriptors && others(&self.most_descriptors) {
                return Err(Exceeded::Descriptors { limit: self.most_descriptors });
            }
        }
        if grows(&Limited::Segments) && all.segments > self.most_segments {
            return Err(Exceeded::Mappings { limit: self.most_segments });
        }
        self.set(uid, had, has);
        Ok(())
    }

    /// The same, whether or not that is too much: it is there.
    pub(super) fn set(&mut self, uid: u32, had: &mut Amounts, has: Amounts) {
        let used = self.used(uid).replaced(had, &has);
        self.all = self.all.replaced(had, &has);
        *had = has;
        if used == Amounts::default() {
            self.used.remove(&uid);
        } else {
            self.used.insert(uid, used);
        }
    }

    /// Gives back what a process had.
    pub(super) fn release(&mut self, uid: u32, had: &mut Amounts) {
        self.set(uid, had, Amounts::default());
    }

    /// What a user has now.
    pub(super) fn used(&self, uid: u32) -> Amounts {
        self.used.get(&uid).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Amounts =
        Amounts { connections: 2, segments: 10, bytes: 100, sources: 5, descriptors: 3 };
    const HOST_LIMITS: HostLimits = HostLimits { bytes: 150, sources: 7 };

    #[test]
    fn all_users_together_have_limits_too() {
        let mut accounts = Accounts::new(LIMITS, HOST_LIMITS, 10, 100);
        let (mut a, mut b) = Default::default();
        let of = |sources, bytes| Amounts { sources, bytes, ..Amounts::default() };
        accounts.change(7, &mut a, of(5, 100)).unwrap();
        let exceeded = accounts.change(8, &mut b, of(3, 0)).unwrap_err();
        assert_eq!(exceeded, Exceeded::Host { what: Limited::Sources, limit: 7 });
        let text =
            "all users together have reached the limit of 7 sources (raise `--max-host-sources`)";
        assert_eq!(exceeded.to_string(), text);
        let exceeded = accounts.change(8, &mut b, of(0, 51)).unwrap_err();
        assert_eq!(exceeded, Exceeded::Host { what: Limited::Bytes, limit: 150 });
        // What is there is charged, however much it is; then nobody's may grow.
        accounts.set(8, &mut b, of(9, 0));
        accounts.change(7, &mut a, of(4, 100)).unwrap();
        assert!(accounts.change(7, &mut a, of(5, 100)).is_err());
        accounts.release(8, &mut b);
        accounts.release(7, &mut a);
        assert_eq!((accounts.all, accounts.used.len()), (Amounts::default(), 0));
    }

    #[test]
    fn others_leave_each_user_something() {
        let limits = Amounts { sources: 160, ..LIMITS };
        let host_limits = HostLimits { sources: 320, ..HOST_LIMITS };
        let mut accounts = Accounts::new(limits, host_limits, 10, 100);
        let of = |sources| Amounts { sources, ..Amounts::default() };
        for uid in 7..9 {
            accounts.change(uid, &mut Amounts::default(), of(160)).unwrap();
        }
        let mut c = Amounts::default();
        accounts.change(9, &mut c, of(10)).unwrap();
        let exceeded = accounts.change(9, &mut c, of(11)).unwrap_err();
        assert_eq!(exceeded, Exceeded::Host { what: Limited::Sources, limit: 320 });
    }

    #[test]
    fn whoever_has_all_descriptors_leaves_others_some() {
        let limits = Amounts { descriptors: 64, ..LIMITS };
        let mut accounts = Accounts::new(limits, HOST_LIMITS, 10, 32);
        let of = |descriptors| Amounts { descriptors, ..Amounts::default() };
        let (mut a, mut b) = Default::default();
        accounts.change(7, &mut a, of(32)).unwrap();
        let exceeded = accounts.change(7, &mut a, of(33)).unwrap_err();
        assert_eq!(exceeded, Exceeded::Descriptors { limit: 32 });
        accounts.change(8, &mut b, of(2)).unwrap();
        assert_eq!(accounts.change(8, &mut b, of(3)), Err(exceeded));
        accounts.release(7, &mut a);
        accounts.change(8, &mut b, of(32)).unwrap();
    }

    #[test]
    fn each_user_has_limits_of_their_own() {
        let mut accounts = Accounts::new(LIMITS, HOST_LIMITS, 10, 100);
        let one = Amounts { connections: 1, segments: 6, bytes: 1, sources: 1, descriptors: 2 };
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
        assert_eq!(accounts.all, Amounts::default());
    }

    #[test]
    fn what_is_there_is_not_held_against_what_does_not_grow() {
        let mut accounts = Accounts::new(LIMITS, HOST_LIMITS, 10, 100);
        let (mut a, mut b) = Default::default();
        accounts
            .change(7, &mut a, Amounts { connections: 1, sources: 5, ..Amounts::default() })
            .unwrap();
        accounts.change(7, &mut b, Amounts { connections: 1, ..Amounts::default() }).unwrap();
        accounts.limits.sources = 3;
        // It may shrink, or gain something else.
        let has = Amounts { sources: 4, segments: 1, bytes: 1, ..a };
        accounts.change(7, &mut a, has).unwrap();
        let more = Amounts { sources: 1, ..b };
        assert!(accounts.change(7, &mut b, more).is_err());
    }
}
