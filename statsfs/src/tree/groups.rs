//! Small sets of groups, of which every source and every directory has some: sorted, and no larger than they
//! need to be.

use super::GroupId;

/// A set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupSet(Box<[GroupId]>);

impl GroupSet {
    /// The groups, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = GroupId> {
        self.0.iter().copied()
    }

    /// Those in this set or the other, in order.
    pub(super) fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }
}

impl FromIterator<GroupId> for GroupSet {
    fn from_iter<I: IntoIterator<Item = GroupId>>(groups: I) -> Self {
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable();
        groups.dedup();
        Self(groups.into())
    }
}

/// A number for each group that is not 0.
#[derive(Debug, Default)]
pub(crate) struct GroupCounts(Vec<(GroupId, usize)>);

impl GroupCounts {
    /// The groups, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.0.iter().map(|(group, _)| *group)
    }

    /// Counts one in or out; whether the group appeared or disappeared.
    pub(super) fn count(&mut self, group: GroupId, add: bool) -> bool {
        match (self.0.binary_search_by_key(&group, |(group, _)| *group), add) {
            (Ok(at), true) => {
                self.0[at].1 += 1;
                false
            }
            (Ok(at), false) => {
                self.0[at].1 -= 1;
                let is_gone = self.0[at].1 == 0;
                if is_gone {
                    self.0.remove(at);
                }
                is_gone
            }
            (Err(at), true) => {
                // Most have one or two.
                self.0.reserve_exact(usize::from(self.0.len() < 2));
                self.0.insert(at, (group, 1));
                true
            }
            (Err(_), false) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_sorted_and_have_each_once() {
        let set: GroupSet = [3, 1, 3, 2].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 2, 3]);
        let other: GroupSet = [4, 2, 0].into_iter().collect();
        assert_eq!(set.union(&other).iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn groups_appear_with_the_first_and_disappear_with_the_last() {
        let mut counts = GroupCounts::default();
        let groups = |counts: &GroupCounts| counts.groups().collect::<Vec<_>>();
        assert!(!counts.count(7, false));
        assert!(counts.count(7, true) && !counts.count(7, true) && counts.count(3, true));
        assert!(counts.count(5, true));
        assert_eq!(groups(&counts), [3, 5, 7]);
        assert!(!counts.count(7, false) && counts.count(7, false) && counts.count(3, false));
        assert_eq!(groups(&counts), [5]);
    }
}
