//! Which files a directory has: the values of its own groups, and the aggregates of those below.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::GroupId;
use super::dirs::Dir;
use super::inode::{MAX_IDENTITIES, Part};
use crate::registry::names::{aggregate_names, identity};
use crate::value::{Aggregations, Descriptor, GroupDescriptor, Semantics, default_mode};

/// Number of a value's identity: values of equal group name, name, type, unit and semantics are one.
pub(crate) type IdentityId = usize;

/// All identities that the tree has met.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    all: Vec<(Arc<Descriptor>, Arc<GroupDescriptor>)>,
    by_identity: HashMap<(String, Descriptor), IdentityId>,
    /// For every group, the identity of each value; `None` past the limit.
    of_group: Vec<Arc<[Option<IdentityId>]>>,
}

impl Identities {
    /// Takes in a group, whose number is the next.
    pub(crate) fn add(&mut self, group: GroupId, descriptor: &Arc<GroupDescriptor>) {
        debug_assert_eq!(group, self.of_group.len());
        let values = descriptor.values().iter().map(|value| {
            let key = (descriptor.name().to_owned(), identity(value));
            if let Some(id) = self.by_identity.get(&key) {
                return Some(*id);
            }
            if self.all.len() >= MAX_IDENTITIES {
                return None;
            }
            self.all.push((Arc::new(value.clone()), descriptor.clone()));
            self.by_identity.insert(key, self.all.len() - 1);
            Some(self.all.len() - 1)
        });
        let values = values.collect();
        self.of_group.push(values);
    }

    /// How many identities a group would bring that the tree has not met.
    pub(super) fn new_in(&self, group: &GroupDescriptor) -> usize {
        let is_new = |value: &&Descriptor| {
            !self.by_identity.contains_key(&(group.name().to_owned(), identity(value)))
        };
        group.values().iter().filter(is_new).count()
    }

    /// The first group, and the value in it, that each identity came with.
    pub(super) fn places(&self) -> BTreeMap<IdentityId, (GroupId, usize)> {
        let mut places = BTreeMap::new();
        for (group, values) in self.of_group.iter().enumerate() {
            for (value, identity) in values.iter().enumerate() {
                if let Some(identity) = identity {
                    places.entry(*identity).or_insert((group, value));
                }
            }
        }
        places
    }

    /// The descriptor that first came with an identity.
    pub(crate) fn get(&self, identity: IdentityId) -> Option<&Arc<Descriptor>> {
        self.all.get(identity).map(|(value, _)| value)
    }

    /// The identities of a group's values.
    pub(crate) fn of(&self, group: GroupId) -> &Arc<[Option<IdentityId>]> {
        &self.of_group[group]
    }

    /// Which value of a group has this identity.
    pub(crate) fn value_of(&self, group: GroupId, identity: IdentityId) -> Option<usize> {
        self.of_group[group].iter().position(|id| *id == Some(identity))
    }

    /// Which value of each group has this identity.
    pub(super) fn values_of(&self, identity: IdentityId) -> Vec<Option<usize>> {
        (0..self.of_group.len()).map(|group| self.value_of(group, identity)).collect()
    }
}

/// One file (or histogram directory) of a directory.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) name: Box<str>,
    pub(crate) identity: IdentityId,
    pub(crate) part: Part,
    pub(crate) value: Arc<Descriptor>,
    /// The group that the value came with.
    pub(crate) group: Arc<GroupDescriptor>,
}

impl File {
    /// The file's place in listings.
    pub(crate) fn slot(&self) -> u64 {
        self.part.slot(self.identity)
    }
}

/// Permission bits of a value's file: writable only if it shows what a clear can take away.
pub(crate) fn file_mode(value: &Descriptor, part: Part) -> u16 {
    let clears = value.semantics == Semantics::Cumulative
        && match part {
            Part::Own | Part::Aggregate(Aggregations::SUM) => true,
            Part::Field(field) => field == super::inode::Field::Count,
            _ => false,
        };
    if clears { value.mode } else { value.mode & 0o444 }
}

/// Whether a part of a value shows the directory's own sources only: its own value, or a histogram that
/// is aggregated nowhere.
pub(crate) fn is_own(value: &Descriptor, part: Part) -> bool {
    part == Part::Own || (value.ty.is_histogram() && value.aggregations.is_empty())
}

/// The files of one directory, in listing order.
#[derive(Debug, Default)]
pub(crate) struct Files {
    all: Vec<File>,
    by_name: HashMap<Box<str>, usize>,
    /// The names of values that are not there since another came first, and what the values are.
    pub(super) left_out: Vec<(Box<str>, IdentityId)>,
}

/// By what a directory's files are described.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptions<'a> {
    pub(super) identities: &'a Identities,
    pub(super) groups: &'a [Arc<GroupDescriptor>],
    /// Whether processes of several users meet in the directory.
    pub(super) is_shared: bool,
}

impl Descriptions<'_> {
    /// Notes for each identity in some groups where it is described, if that is not known yet.
    fn find<T: Default>(
        &self,
        groups: impl Iterator<Item = GroupId>,
        found: &mut BTreeMap<IdentityId, (Place, T)>,
        mut note: impl FnMut(&mut T),
    ) {
        for group in groups {
            for (value, identity) in self.identities.of(group).iter().enumerate() {
                if let Some(identity) = identity {
                    let place = Place { group, value };
                    note(&mut found.entry(*identity).or_insert((place, T::default())).1);
                }
            }
        }
    }

    /// A value as it is described in a place, and its group.
    fn of(
        &self,
        identity: IdentityId,
        place: Place,
    ) -> Option<(Arc<Descriptor>, Arc<GroupDescriptor>)> {
        let (first, group) = self.identities.all.get(identity)?;
        if self.is_shared {
            // Nobody opens to all, or closes, what others count.
            let mode = default_mode(first.semantics);
            let is_it = first.mode == mode;
            let anew = || Arc::new(Descriptor { mode, ..Descriptor::clone(first) });
            return Some((if is_it { first.clone() } else { anew() }, group.clone()));
        }
        let group = self.groups.get(place.group)?;
        let value = group.values().get(place.value)?;
        let is_it = *value == **first;
        Some((if is_it { first.clone() } else { Arc::new(value.clone()) }, group.clone()))
    }
}

/// Which value of which group.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: GroupId,
    value: usize,
}

/// The groups that a directory knows: its own, and those below.
type Known = (Box<[GroupId]>, Box<[GroupId]>);

/// Files that directories have in common, so that there are as many as there are kinds of directories.
#[derive(Debug, Default)]
pub(crate) struct FileSets(Mutex<HashMap<Known, Weak<Files>>>);

impl FileSets {
    /// The files of a directory whose subordinates' names are all free, and in which it does not matter what
    /// came first.
    pub(super) fn of(&self, by: Descriptions, dir: &Dir) -> Arc<Files> {
        let known = (dir.own.groups().collect(), dir.below.groups().collect());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = all.get(&known).and_then(Weak::upgrade) {
            return files;
        }
        if all.len() == all.capacity() {
            all.retain(|_, files| files.strong_count() > 0);
        }
        let files = Arc::new(Files::new(by, dir, |_| false));
        all.insert(known, Arc::downgrade(&files));
        files
    }
}

impl Files {
    /// The files of a directory, but for those whose names are taken by subordinates.
    pub(super) fn new(by: Descriptions, dir: &Dir, is_taken: impl Fn(&str) -> bool) -> Self {
        // For every identity, whether the directory itself and whether something below has it. The directory
        // itself says what its own values are.
        let mut found: BTreeMap<IdentityId, (Place, (bool, bool))> = BTreeMap::new();
        by.find(dir.own.groups(), &mut found, |(own, _)| *own = true);
        by.find(dir.below.groups(), &mut found, |(_, below)| *below = true);
        let mut files = Self::default();
        let mut found: Vec<_> = found.into_iter().collect();
        // Whoever came first holds a name.
        found.sort_by_key(|(identity, _)| dir.admitted.get(identity).map(|(when, _)| *when));
        for (identity, (place, (own, below))) in found {
            let Some((value, group)) = by.of(identity, place) else { continue };
            for (name, part) in names(&value, own, below) {
                // Another process's subordinate may have the name; it keeps it.
                if is_taken(&name) {
                    files.left_out.push((name.into(), identity));
                    continue;
                }
                let (name, value, group) = (name.into(), value.clone(), group.clone());
                files.push(File { name, identity, part, value, group });
            }
        }
        files.in_order()
    }

    /// The files of a `.departed`: sums of the cumulative values among the totals.
    pub(super) fn departed(by: Descriptions, groups: impl Iterator<Item = GroupId>) -> Self {
        let mut found: BTreeMap<IdentityId, (Place, ())> = BTreeMap::new();
        by.find(groups, &mut found, |()| {});
        let mut files = Self::default();
        for (identity, (place, ())) in found {
            let Some((value, group)) = by.of(identity, place) else { continue };
            if value.semantics == Semantics::Cumulative {
                let part = if value.ty.is_histogram() {
                    Part::Histogram
                } else {
                    Part::Aggregate(Aggregations::SUM)
                };
                let name = (*value.name).into();
                files.push(File { name, identity, part, value, group });
            }
        }
        files.in_order()
    }

    /// The first identity that came holds a name; a later one is left out here.
    fn push(&mut self, file: File) {
        if self.by_name.contains_key(&file.name) {
            self.left_out.push((file.name, file.identity));
            return;
        }
        self.by_name.insert(file.name.clone(), self.all.len());
        self.all.push(file);
    }

    /// In the order of listings, once all are there.
    fn in_order(mut self) -> Self {
        self.all.sort_by_key(File::slot);
        self.by_name =
            self.all.iter().enumerate().map(|(n, file)| (file.name.clone(), n)).collect();
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&File> {
        self.by_name.get(name).map(|n| &self.all[*n])
    }

    pub(crate) fn has(&self, identity: IdentityId, part: Part) -> Option<&File> {
        let slot = part.slot(identity);
        self.all.binary_search_by_key(&slot, File::slot).ok().map(|n| &self.all[n])
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, File> {
        self.all.iter()
    }
}

/// The files of a value in a directory that has it itself, or has something below that has it, or both.
fn names(value: &Descriptor, own: bool, below: bool) -> Vec<(String, Part)> {
    if value.ty.is_histogram() {
        let shown = own || !value.aggregations.is_empty();
        return shown.then(|| (value.name.to_string(), Part::Histogram)).into_iter().collect();
    }
    let kinds = value.aggregations;
    let mut all = Vec::new();
    if own {
        // In the source itself the plain name is its value, which may be cleared. The sum over one
        // instance is that too, and remains the same file when more come below.
        if kinds.contains(Aggregations::SUM) {
            if !below {
                all.push((value.name.to_string(), Part::Aggregate(Aggregations::SUM)));
            }
        } else if !(below && kinds.len() == 1) {
            all.push((value.name.to_string(), Part::Own));
        }
    }
    if below {
        all.extend(aggregate_names(value).map(|(kind, name)| (name, Part::Aggregate(kind))));
    }
    all
}
