//! What the files of a subtree's directories show.
//!
//! What was read is gone through twice: from the bottom up for the totals of directories that others are in,
//! which are few, and kept; and from the top down by who shows it. What is in a directory without others is
//! worked out when its turn comes.

use std::borrow::Cow;

use super::GroupId;
use super::files::{File, IdentityId, is_own};
use super::render::{Shown, Total};
use super::subtree::{Place, Subtree};
use crate::value::Descriptor;

/// What every file of a subtree shows.
#[derive(Debug)]
pub(crate) struct Totals<'a> {
    subtree: &'a Subtree,
    /// Of directories that others are in.
    sums: Vec<Option<DirSums>>,
    leaf: Leaf<'a>,
}

/// What a directory shows: its own instances, and all in and below it.
#[derive(Debug, Default)]
struct DirSums {
    own: Sums,
    all: Sums,
}

impl DirSums {
    /// Adds what is in the directory.
    fn add(&mut self, subtree: &Subtree, place: &Place) {
        let group = subtree.group_id(place);
        let all = self.all.of(subtree, group);
        subtree.each_shown(place, |n, shown| all[n].add(&shown));
        if place.own {
            let own = self.own.of(subtree, group);
            subtree.each_shown(place, |n, shown| own[n].add(&shown));
        }
    }

    /// Adds what is in a directory below that has no others in it.
    fn add_from_below(&mut self, subtree: &Subtree, place: &Place) {
        let all = self.all.of(subtree, subtree.group_id(place));
        subtree.each_shown(place, |n, shown| {
            if !shown.value.aggregations.is_empty() {
                all[n].add(&shown);
            }
        });
    }

    /// Adds what a directory below shows that has others in it.
    fn merge_from_below(&mut self, subtree: &Subtree, below: &Self) {
        for (group, totals) in &below.all.0 {
            let values = subtree.described(*group).0;
            let all = self.all.of(subtree, *group);
            for ((all, total), value) in all.iter_mut().zip(totals).zip(values) {
                if !value.aggregations.is_empty() {
                    all.merge(value, total);
                }
            }
        }
    }
}

/// Totals by group, in the order of its values.
#[derive(Debug, Default)]
struct Sums(Vec<(GroupId, Box<[Total]>)>);

impl Sums {
    /// Those of a group.
    fn of(&mut self, subtree: &Subtree, group: GroupId) -> &mut [Total] {
        // A directory has few.
        let at = self.0.iter().position(|(id, _)| *id == group).unwrap_or_else(|| {
            let values = subtree.described(group).0;
            self.0.push((group, values.iter().map(Total::new).collect()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// All of them, in the order of their files.
    fn in_order<'a>(&'a self, subtree: &'a Subtree) -> Vec<(IdentityId, &'a Total)> {
        let mut all = Vec::new();
        for (group, totals) in &self.0 {
            let identities = subtree.described(*group).1;
            let totals = identities.iter().zip(totals);
            all.extend(totals.filter_map(|(identity, total)| Some(((*identity)?, total))));
        }
        all.sort_by_key(|(identity, _)| *identity);
        all
    }
}

impl<'a> Totals<'a> {
    /// Those of a subtree.
    pub(crate) fn of(subtree: &'a Subtree) -> Self {
        let mut sums: Vec<Option<DirSums>> = Vec::new();
        sums.resize_with(subtree.dirs().len(), || None);
        // Whatever is in a directory comes after it.
        for (n, dir) in subtree.dirs().iter().enumerate().rev() {
            let above = (n > 0).then_some(dir.parent());
            if dir.has_others() {
                let mut of_dir = sums[n].take().unwrap_or_default();
                subtree.places(n).iter().for_each(|place| of_dir.add(subtree, place));
                if let Some(above) = above {
                    let above = sums[above].get_or_insert_with(DirSums::default);
                    above.merge_from_below(subtree, &of_dir);
                }
                sums[n] = Some(of_dir);
            } else if let Some(above) = above {
                let above = sums[above].get_or_insert_with(DirSums::default);
                let places = subtree.places(n).iter();
                places.for_each(|place| above.add_from_below(subtree, place));
            }
        }
        Self { subtree, sums, leaf: Leaf::default() }
    }

    /// Calls `visit` with each file of a directory, in listing order, and what it shows.
    pub(crate) fn each_file(&mut self, dir: usize, mut visit: impl FnMut(&File, &Total)) {
        let Self { subtree, sums, leaf } = self;
        let files = subtree.dirs()[dir].files().iter();
        if let Some(sums) = &sums[dir] {
            let (own, all) = (sums.own.in_order(subtree), sums.all.in_order(subtree));
            let (mut of_own, mut of_all) = (InOrder::new(&own), InOrder::new(&all));
            for file in files {
                let own_only = is_own(&file.value, file.part);
                let totals = if own_only { &mut of_own } else { &mut of_all };
                visit(file, &totals.total(file));
            }
            return;
        }
        leaf.fill(subtree, dir);
        let mut shown = InOrder::new(&leaf.0);
        for file in files {
            let own_only = is_own(&file.value, file.part);
            let mut total = Total::new(&file.value);
            let of_file = shown.of(file.identity, |(shown, _)| shown.identity).iter();
            of_file.filter(|(_, own)| *own || !own_only).for_each(|(shown, _)| total.add(shown));
            visit(file, &total);
        }
    }
}

/// What is in a directory without others, and whether it is its own, in the order of its files.
#[derive(Debug, Default)]
struct Leaf<'a>(Vec<(Shown<'a>, bool)>);

impl<'a> Leaf<'a> {
    fn fill(&mut self, subtree: &'a Subtree, dir: usize) {
        self.0.clear();
        for place in subtree.places(dir) {
            subtree.each_shown(place, |_, shown| self.0.push((shown, place.own)));
        }
        self.0.sort_by_key(|(shown, _)| shown.identity);
    }
}

/// Something in the order of files, as far as these have been gone through.
struct InOrder<'a, T> {
    all: &'a [T],
    from: usize,
}

impl<'a, T> InOrder<'a, T> {
    fn new(all: &'a [T]) -> Self {
        Self { all, from: 0 }
    }

    /// What is of the value of the next file, which may be the last one's.
    fn of(&mut self, identity: IdentityId, identity_of: impl Fn(&T) -> IdentityId) -> &'a [T] {
        let rest = &self.all[self.from..];
        self.from += rest.iter().take_while(|item| identity_of(item) < identity).count();
        let rest = &self.all[self.from..];
        &rest[..rest.iter().take_while(|item| identity_of(item) == identity).count()]
    }
}

impl<'a> InOrder<'a, (IdentityId, &'a Total)> {
    fn total(&mut self, file: &File) -> Cow<'a, Total> {
        let value: &Descriptor = &file.value;
        match self.of(file.identity, |(identity, _)| *identity) {
            [] => Cow::Owned(Total::new(value)),
            [(_, total)] => Cow::Borrowed(total),
            // Groups that differ have it in common.
            [(_, first), others @ ..] => {
                let mut total = (*first).clone();
                others.iter().for_each(|(_, other)| total.merge(value, other));
                Cow::Owned(total)
            }
        }
    }
}
