//! Who is left out where there are more series than there is room for: not whoever comes last, but those who have more
//! than their part of it.
//!
//! Users have equal parts of the room, but for what those leave who need less; so have the processes of each, and what
//! each top-level directory has in common, which is its first process's user's, or, once there is none, nobody's. Of a
//! process as many machines or sources are shown as fit, the small ones first.
//!
//! A total of machines is of that user's part who needs least of those who count in it: who counts in others' totals
//! takes no room of theirs. One in which only those have counted that are gone is nobody's. Of a user's part
//! totals have half, and what all else leaves, the small ones first.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::tree::series::LeftOut;
use crate::tree::subtree::Subtree;

/// What can be left out, and what it takes.
#[derive(Debug)]
pub(super) enum Item {
    /// A directory, by its place in a subtree.
    Dir { dir: usize, size: usize },
    /// A family over all machines, and who counts in it.
    Total { name: String, users: BTreeSet<u32>, size: usize },
}

/// What has half of a user's part, and what the others leave, comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Total,
    Dir,
}

/// What is to be left out so that the rest takes no more than `room`.
pub(super) fn beyond(subtree: &Subtree, items: Vec<Item>, room: usize) -> LeftOut {
    // Those that no process has alone are each of their own.
    let owner = |dir: usize| {
        let called = subtree.dirs()[dir].called();
        let process = called.pid().map_or((false, dir), |pid| (true, pid as usize));
        (called.uid(), Rank::Dir, process)
    };
    let mut needs: BTreeMap<u32, usize> = BTreeMap::new();
    for item in &items {
        if let Item::Dir { dir, size } = item
            && let Some(uid) = subtree.dirs()[*dir].called().uid()
        {
            *needs.entry(uid).or_default() += size;
        }
    }
    let need = |uid: &u32| needs.get(uid).copied().unwrap_or_default();
    let all = items.iter().enumerate().map(|(n, item)| match item {
        Item::Dir { dir, size } => (n, owner(*dir), *size),
        Item::Total { users, size, .. } => {
            (n, (users.iter().copied().min_by_key(need), Rank::Total, (false, 0)), *size)
        }
    });
    let beyond = share(all, room);
    let mut left_out = LeftOut::default();
    let items = items.into_iter().enumerate().filter(|(n, _)| beyond.contains(n));
    for (_, item) in items {
        match item {
            Item::Dir { dir, .. } => drop(left_out.dirs.insert(dir)),
            Item::Total { name, .. } => drop(left_out.totals.insert(name)),
        }
    }
    left_out
}

/// The same of numbers, what they take, and whose they are: of which user, of what rank among those of the user, and of
/// which process.
fn share<U: Ord, P: Ord>(
    all: impl Iterator<Item = (usize, (U, Rank, P), usize)>,
    room: usize,
) -> HashSet<usize> {
    type Ranks<P> = BTreeMap<Rank, BTreeMap<P, Vec<(usize, usize)>>>;
    let mut users: BTreeMap<U, Ranks<P>> = BTreeMap::new();
    for (dir, (user, rank, process), size) in all {
        let ranks = users.entry(user).or_default();
        ranks.entry(rank).or_default().entry(process).or_default().push((size, dir));
    }
    let take = |dirs: &Vec<(usize, usize)>| dirs.iter().map(|(size, _)| size).sum::<usize>();
    let of_user = |ranks: &Ranks<P>| ranks.values().flat_map(BTreeMap::values).map(take).sum();
    let mut left_out = HashSet::new();
    let parts = parts(&users.values().map(of_user).collect::<Vec<_>>(), room);
    for (ranks, mut room) in users.into_values().zip(parts) {
        let mut later: usize = of_user(&ranks);
        for processes in ranks.into_values() {
            let needs: Vec<_> = processes.values().map(take).collect();
            later -= needs.iter().sum::<usize>();
            let most = if later == 0 { room } else { (room / 2).max(room.saturating_sub(later)) };
            let parts = self::parts(&needs, most);
            for (mut dirs, mut part) in processes.into_values().zip(parts) {
                dirs.sort_unstable();
                for (size, dir) in dirs {
                    match part.checked_sub(size) {
                        Some(left) => {
                            part = left;
                            room -= size;
                        }
                        None => {
                            part = 0;
                            left_out.insert(dir);
                        }
                    }
                }
            }
        }
    }
    left_out
}

/// How much each has of a room: what it needs, or as much as any other that needs more than that.
fn parts(needs: &[usize], mut room: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..needs.len()).collect();
    order.sort_unstable_by_key(|n| needs[*n]);
    let mut parts = vec![0; needs.len()];
    for (at, n) in order.into_iter().enumerate() {
        parts[n] = needs[n].min(room / (needs.len() - at));
        room -= parts[n];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(left_out: HashSet<usize>) -> Vec<usize> {
        BTreeSet::from_iter(left_out).into_iter().collect()
    }

    #[test]
    fn parts_are_equal_but_for_those_who_need_less() {
        assert_eq!(parts(&[10, 100, 30, 100], 100), [10, 30, 30, 30]);
        assert_eq!(parts(&[10, 100, 20, 100], 100), [10, 35, 20, 35]);
        assert_eq!(parts(&[1, 2], 100), [1, 2]);
        assert_eq!(parts(&[5, 5], 0), [0, 0]);
        assert_eq!(parts(&[], 7), [0; 0]);
    }

    #[test]
    fn who_has_much_is_left_out_and_nobody_else() {
        let beyond = |room| {
            let all = [
                // A process with machines of many sizes, one with a large one, and another user's.
                (1, (0, Rank::Dir, 11), 10),
                (2, (0, Rank::Dir, 11), 50),
                (3, (0, Rank::Dir, 11), 20),
                (4, (0, Rank::Dir, 12), 1000),
                (5, (7, Rank::Dir, 13), 5),
            ];
            sorted(share(all.into_iter(), room))
        };
        assert_eq!(beyond(1085), [0; 0]);
        assert_eq!(beyond(1084), [4]);
        assert_eq!(beyond(165), [4], "there is room for the other process");
        assert_eq!(beyond(164), [2, 4], "each process of the user has 79");
        assert_eq!(beyond(65), [2, 4]);
        assert_eq!(beyond(64), [2, 3, 4]);
        assert_eq!(beyond(10), [1, 2, 3, 4]);
        assert_eq!(beyond(9), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn totals_take_neither_the_room_of_machines_nor_that_of_other_users() {
        let beyond = |room| {
            let all = [
                (1, (0, Rank::Total, 0), 30),
                (2, (0, Rank::Total, 0), 40),
                (3, (0, Rank::Dir, 11), 20),
                (4, (7, Rank::Total, 0), 10),
                (5, (7, Rank::Dir, 13), 10),
            ];
            sorted(share(all.into_iter(), room))
        };
        assert_eq!(beyond(110), [0; 0]);
        assert_eq!(beyond(109), [2], "there is room for machines");
        assert_eq!(beyond(89), [2], "the small one is first");
        assert_eq!(beyond(69), [1, 2]);
        assert_eq!(beyond(40), [1, 2]);
        assert_eq!(beyond(39), [1, 2, 4]);
    }
}
