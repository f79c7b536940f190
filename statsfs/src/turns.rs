//! Turns between users, so that who has much to be done keeps nobody else waiting for more than a piece of it.

use std::collections::{BTreeMap, VecDeque};

/// What waits, by user.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// No list is empty.
    waiting: BTreeMap<u32, VecDeque<T>>,
    /// Whose turn it was last.
    last: Option<u32>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), last: None, len: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds something after all that the user has waiting.
    pub(crate) fn push(&mut self, uid: u32, what: T) {
        self.waiting.entry(uid).or_default().push_back(what);
        self.len += 1;
    }

    /// Takes the first of the user after the last one.
    pub(crate) fn next(&mut self) -> Option<(u32, T)> {
        let after = self.last.map(|last| last + 1).unwrap_or_default();
        let mut users = self.waiting.range(after..).chain(self.waiting.iter());
        let uid = users.next().map(|(uid, _)| *uid)?;
        self.last = Some(uid).filter(|uid| *uid < u32::MAX);
        let of_user = self.waiting.get_mut(&uid)?;
        let next = of_user.pop_front()?;
        if of_user.is_empty() {
            self.waiting.remove(&uid);
        }
        self.len -= 1;
        Some((uid, next))
    }

    /// How much is waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_turns() {
        let mut turns = Turns::default();
        for n in 0..3 {
            turns.push(u32::MAX, n);
            turns.push(7, n);
        }
        turns.push(0, 0);
        assert_eq!(turns.len(), 7);
        let mut order = vec![turns.next().unwrap(), turns.next().unwrap()];
        // Who comes late does not wait for all that is there.
        turns.push(8, 0);
        order.extend(std::iter::from_fn(|| turns.next()));
        let max = u32::MAX;
        let expected = [(0, 0), (7, 0), (8, 0), (max, 0), (7, 1), (max, 1), (7, 2), (max, 2)];
        assert_eq!(order, expected);
        assert_eq!((turns.len(), turns.next()), (0, None));
    }
}
