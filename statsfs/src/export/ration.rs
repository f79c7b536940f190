//! Who is left out where there are more series than there is room for: not whoever comes last, but those who have more
//! than their part of it.
//!
//! Users have equal parts of the room, but for what those leave who need less; so have the processes of each, and what
//! each top-level directory has in common, which is its first process's user's, or, once there is none, nobody's. Of a
//! process as many machines or sources are shown as fit, the small ones first.

use std::collections::{BTreeMap, HashSet};

use crate::tree::subtree::Subtree;

/// Directories right below the top level of which nothing is shown by itself, and such at the top level of which nothing
/// is shown, by their places in a subtree.
pub(super) type LeftOut = HashSet<usize>;

/// What is to be left out so that the rest takes no more than `room`, by what each directory takes.
pub(super) fn beyond(subtree: &Subtree, sizes: &BTreeMap<usize, usize>, room: usize) -> LeftOut {
    // Those that no process has alone are each of their own.
    let owner = |dir: usize| {
        let called = subtree.dirs()[dir].called();
        let process = called.pid().map_or((false, dir), |pid| (true, pid as usize));
        (called.uid(), process)
    };
    share(sizes.iter().map(|(dir, size)| (*dir, owner(*dir), *size)), room)
}

/// The same of directories, whose they are, and what they take.
fn share<U: Ord, P: Ord>(
    all: impl Iterator<Item = (usize, (U, P), usize)>,
    room: usize,
) -> LeftOut {
    let mut users: BTreeMap<U, BTreeMap<P, Vec<(usize, usize)>>> = BTreeMap::new();
    for (dir, (user, process), size) in all {
        users.entry(user).or_default().entry(process).or_default().push((size, dir));
    }
    let take = |dirs: &Vec<(usize, usize)>| dirs.iter().map(|(size, _)| size).sum::<usize>();
    let of_user = |processes: &BTreeMap<P, Vec<_>>| processes.values().map(take).sum::<usize>();
    let mut left_out = LeftOut::new();
    let parts = parts(&users.values().map(of_user).collect::<Vec<_>>(), room);
    for (processes, room) in users.into_values().zip(parts) {
        let parts = self::parts(&processes.values().map(take).collect::<Vec<_>>(), room);
        for (mut dirs, mut room) in processes.into_values().zip(parts) {
            dirs.sort_unstable();
            for (size, dir) in dirs {
                match room.checked_sub(size) {
                    Some(left) => room = left,
                    None => {
                        room = 0;
                        left_out.insert(dir);
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
                (1, (0, 11), 10),
                (2, (0, 11), 50),
                (3, (0, 11), 20),
                (4, (0, 12), 1000),
                (5, (7, 13), 5),
            ];
            let mut left_out: Vec<_> = share(all.into_iter(), room).into_iter().collect();
            left_out.sort_unstable();
            left_out
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
}
