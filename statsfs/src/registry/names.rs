//! Which names a directory has, so that one that would exist twice is refused when it is added.

use std::collections::HashMap;

use crate::value::{Aggregations, Descriptor, GroupDescriptor};

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A value, by the registry's number for its identity.
    Value(usize),
    /// A subordinate, by its id.
    Source(u64),
}

/// The names of one directory, each with how many reasons there are for it.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<Box<str>, (Meaning, u32)>);

impl Names {
    /// Whether `name` may be there with this meaning.
    pub(crate) fn admits(&self, name: &str, meaning: Meaning) -> bool {
        self.0.get(name).is_none_or(|(there, _)| *there == meaning)
    }

    /// Adds a reason for a name that was admitted.
    pub(crate) fn add(&mut self, name: &str, meaning: Meaning) {
        if let Some((_, reasons)) = self.0.get_mut(name) {
            *reasons += 1;
        } else {
            self.0.insert(name.into(), (meaning, 1));
        }
    }

    /// Takes a reason away, and the name with the last one.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some((_, reasons)) = self.0.get_mut(name) {
            *reasons -= 1;
            if *reasons == 0 {
                self.0.remove(name);
            }
        }
    }
}

/// The file names under which an ancestor shows the aggregates of a value, with their kinds: with one
/// kind the value's own name; with several the sum has the plain name, the others a suffix.
pub(crate) fn aggregate_names(value: &Descriptor) -> impl Iterator<Item = (Aggregations, String)> {
    let kinds = value.aggregations;
    [
        (Aggregations::SUM, ""),
        (Aggregations::MIN, ".min"),
        (Aggregations::MAX, ".max"),
        (Aggregations::AVG, ".avg"),
        (Aggregations::COUNT_ZERO, ".zero"),
        (Aggregations::COUNT_NONZERO, ".nonzero"),
    ]
    .into_iter()
    .filter(move |(kind, _)| kinds.contains(*kind))
    .map(move |(kind, suffix)| {
        let suffix = if kinds.len() == 1 { "" } else { suffix };
        (kind, format!("{}{suffix}", value.name))
    })
}

/// Numbers for the identities of values: group name, value name, type, unit and semantics. The
/// aggregations belong to it as well, since they decide what an ancestor shows.
#[derive(Debug, Default)]
pub(crate) struct Identities(HashMap<(String, Descriptor), usize>);

impl Identities {
    /// The number of a value's identity.
    pub(crate) fn number(&mut self, group: &str, value: &Descriptor) -> usize {
        let next = self.0.len();
        *self.0.entry((group.to_owned(), identity(value))).or_insert(next)
    }
}

/// The part of a descriptor that makes two values the same. Names of states are no part of it: a program's next
/// version may have more.
pub(crate) fn identity(value: &Descriptor) -> Descriptor {
    let value = value.clone();
    Descriptor {
        help: "".into(),
        family: None,
        label: None,
        mode: 0,
        states: Default::default(),
        ..value
    }
}

/// A group as the registry knows it.
#[derive(Debug)]
pub(crate) struct KnownGroup {
    pub(crate) group: std::sync::Arc<GroupDescriptor>,
    /// Number of cells, the length of an accumulator.
    pub(crate) words: usize,
    /// Bytes of its description in a segment.
    pub(crate) record: usize,
    /// Names in the source itself.
    pub(crate) own: Vec<(String, Meaning)>,
    /// Names in ancestors.
    pub(crate) aggregates: Vec<(String, Meaning)>,
}

impl KnownGroup {
    pub(crate) fn new(
        group: &std::sync::Arc<GroupDescriptor>,
        identities: &mut Identities,
    ) -> Self {
        let mut own = Vec::new();
        let mut aggregates = Vec::new();
        for value in group.values() {
            let meaning = Meaning::Value(identities.number(group.name(), value));
            own.push((value.name.to_string(), meaning));
            aggregates.extend(aggregate_names(value).map(|(_, name)| (name, meaning)));
        }
        let record = 8 * (1 + crate::segment::schema::encode(group).len());
        Self { words: group.words(), record, group: group.clone(), own, aggregates }
    }
}
