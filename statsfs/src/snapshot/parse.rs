//! Checking a snapshot before anything is read of it.
//!
//! What is checked is all that the rest relies on: after it nothing is out of bounds, and looking at everything takes
//! as long as the snapshot is, since no two records share what they have. It allocates a copy of the snapshot, and a
//! description for each value.

use std::borrow::Cow;

use thiserror::Error;
use zerocopy::IntoBytes;

use super::format::{MAGIC, VERSION, flag, header, section};
use super::{Section, Snapshot, Valued};
use crate::aggregate::Scalar;
use crate::segment::layout::{MAX_DEPTH, MAX_LABELS, MAX_SOURCE_NAME, split_pair};
use crate::segment::schema::{base_of, semantics_of, type_of};
use crate::tree::nodes::DEPARTED;
use crate::value::{
    Aggregations, Descriptor, GroupError, MAX_GROUP_NAME, MAX_LABEL_KEY, MAX_LABEL_VALUE, Unit,
    check_value, default_mode, is_line, is_value_name,
};

/// Longest name of a directory: a process, a dash and what its program calls it.
const MAX_DIR_NAME: usize = MAX_SOURCE_NAME + "4294967295-".len();
/// Longest name of a file.
const MAX_FILE_NAME: usize = 63;
/// Most instances of one value: more than any host has, and few enough that nothing overflows.
const MAX_INSTANCES: u64 = 1 << 32;

/// What is wrong with a snapshot.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It does not begin as snapshots do.
    #[error("this is no snapshot of a statsfs tree: it does not begin with \"STATSNAP\"")]
    Magic,
    /// It is of another version.
    #[error(
        "the snapshot is of version {0}, of which nothing is known here: read it with a newer program"
    )]
    Version(u32),
    /// There is less or more than it says.
    #[error(
        "the snapshot has {found} bytes and says that they are {said}: read it whole, in one file"
    )]
    Length {
        /// How long it is.
        found: u64,
        /// How long it says that it is.
        said: u64,
    },
    /// A section or its header is not in it.
    #[error("the snapshot's {0} are outside of it")]
    Section(&'static str),
    /// A record says what can not be.
    #[error("the snapshot's {what} number {n} {why}")]
    Record {
        /// What the record is of.
        what: &'static str,
        /// Which.
        n: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A value is described as none can be.
    #[error("the snapshot's value number {n} can not be")]
    Value {
        /// Which.
        n: usize,
        /// Why.
        #[source]
        error: GroupError,
    },
    /// Texts are in the same place.
    #[error("the snapshot's texts are together longer than the section that they are in")]
    Texts,
}

const NAMES: [&str; 10] = [
    "directories",
    "labels",
    "kinds",
    "files",
    "groups",
    "values",
    "cells",
    "parts",
    "words",
    "texts",
];

fn bad<T>(what: &'static str, n: usize, why: &'static str) -> Result<T, SnapshotError> {
    Err(SnapshotError::Record { what, n, why })
}

/// Ranges of records that come one after the other.
#[derive(Default)]
struct Consecutive(usize);

impl Consecutive {
    /// Whether these are the next, and there are as many.
    fn take(&mut self, first: u64, count: usize, of: usize) -> bool {
        let end = self.0.checked_add(count).filter(|end| *end <= of);
        let is_next = first == self.0 as u64;
        self.0 = end.unwrap_or(self.0);
        is_next && end.is_some()
    }
}

/// A snapshot that is being checked.
struct Checker {
    snapshot: Snapshot,
    /// Bytes of texts that no record has had yet.
    texts_left: usize,
}

/// Checks a snapshot, of which this is a copy that is as long as it was found to be.
pub(super) fn check(words: Vec<u64>, found: u64) -> Result<Snapshot, SnapshotError> {
    if words.first() != Some(&MAGIC) {
        return Err(SnapshotError::Magic);
    }
    let word = |n: usize| words.get(n).copied().unwrap_or(0);
    let (version, header_size) = split_pair(word(header::VERSION));
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let said = word(header::LENGTH);
    if said != found || found != words.len() as u64 * 8 {
        return Err(SnapshotError::Length { found, said });
    }
    if (header_size as usize) < header::WORDS * 8 || u64::from(header_size) > found {
        return Err(SnapshotError::Section("header's words"));
    }
    let mut sections = [Section::default(); 10];
    for (n, (section, size)) in sections.iter_mut().zip(section::SIZES).enumerate() {
        let at = header::SECTIONS + 2 * n;
        let (start, count) = (word(at), word(at + 1));
        let end = count.checked_mul(size as u64).and_then(|len| len.checked_add(start));
        let is_in = start % 8 == 0 && start >= u64::from(header_size);
        if !is_in || end.is_none_or(|end| end > found) {
            return Err(SnapshotError::Section(NAMES[n]));
        }
        // Both are smaller than what is in memory.
        *section = Section { at: (start / 8) as usize, count: count as usize };
    }
    let texts_left = sections[section::TEXTS].count;
    let snapshot = Snapshot { words, sections, values: Vec::new(), identities: 0 };
    let mut checker = Checker { snapshot, texts_left };
    checker.path()?;
    checker.groups()?;
    checker.files()?;
    checker.directories()?;
    Ok(checker.snapshot)
}

impl Checker {
    fn count(&self, section: usize) -> usize {
        self.snapshot.sections[section].count
    }

    /// A text, which no other record has.
    fn text(
        &mut self,
        text: u64,
        (what, n): (&'static str, usize),
        is_right: impl FnOnce(&str) -> bool,
    ) -> Result<(), SnapshotError> {
        let (at, len) = split_pair(text);
        let (at, len) = (at as usize, len as usize);
        self.texts_left = self.texts_left.checked_sub(len).ok_or(SnapshotError::Texts)?;
        let texts = self.snapshot.sections[section::TEXTS];
        let all = &self.snapshot.words[texts.at..].as_bytes()[..texts.count];
        let bytes = at.checked_add(len).and_then(|end| all.get(at..end));
        match bytes.map(std::str::from_utf8) {
            Some(Ok(text)) if is_right(text) => Ok(()),
            Some(Ok(_)) => bad(what, n, "has a text that can not be"),
            _ => bad(what, n, "has a text that is outside of the texts, or is none"),
        }
    }

    fn path(&mut self) -> Result<(), SnapshotError> {
        let path = self.snapshot.words[header::PATH];
        self.text(path, ("path", 0), |path| {
            let depth = path.split('/').count();
            path.is_empty() || depth <= MAX_DEPTH + 2 && path.split('/').all(is_dir_name)
        })
    }

    /// Groups, and all values.
    fn groups(&mut self) -> Result<(), SnapshotError> {
        let (groups, values) = (self.count(section::GROUPS), self.count(section::VALUES));
        let mut identities = Vec::with_capacity(values);
        for n in 0..values {
            let record = self.snapshot.record::<8>(section::VALUES, n);
            let descriptor = self.value(n, record)?;
            let (identity, group) = split_pair(record[3]);
            if group as usize >= groups {
                return bad("value", n, "is of no group");
            }
            identities.push(identity);
            let valued = Valued { descriptor, identity: None, group: group as usize, word: 0 };
            self.snapshot.values.push(valued);
        }
        self.number_identities(&identities)?;
        let mut taken = Consecutive::default();
        for n in 0..groups {
            let [name, help, members, words] = self.snapshot.record(section::GROUPS, n);
            self.text(name, ("group", n), |name| is_value_name(name, MAX_GROUP_NAME))?;
            self.text(help, ("group", n), is_line)?;
            let (first, count) = split_pair(members);
            let (first, count) = (first as usize, count as usize);
            let at = if count == 0 { taken.0 } else { first };
            if !taken.take(at as u64, count, values) {
                return bad("group", n, "has values that are not the next");
            }
            let mut word = 0;
            for value in &mut self.snapshot.values[at..at + count] {
                if value.group != n {
                    return bad("group", n, "has values of another");
                }
                value.word = word;
                word += value.descriptor.ty.cells();
            }
            if words != word as u64 {
                return bad("group", n, "has other words than its values");
            }
        }
        Ok(())
    }

    /// Numbers the identities of values from 0 on. Values of one are of one type.
    fn number_identities(&mut self, identities: &[u32]) -> Result<(), SnapshotError> {
        let mut order: Vec<_> = (0..identities.len()).collect();
        order.sort_unstable_by_key(|n| (identities[*n], *n));
        let mut last: Option<usize> = None;
        let values = &mut self.snapshot.values;
        for n in order {
            if identities[n] == u32::MAX {
                break;
            }
            let number = match last {
                Some(last) if identities[last] == identities[n] => {
                    let [this, other] = [n, last].map(|n| &values[n].descriptor);
                    if (this.ty, this.semantics) != (other.ty, other.semantics) {
                        return bad("value", n, "is of another type than one that it is to be");
                    }
                    self.snapshot.identities - 1
                }
                _ => {
                    self.snapshot.identities += 1;
                    self.snapshot.identities - 1
                }
            };
            values[n].identity = Some(number);
            last = Some(n);
        }
        Ok(())
    }

    fn value(&mut self, n: usize, record: [u64; 8]) -> Result<Descriptor, SnapshotError> {
        let [name, help, what, _, family, key, label, states] = record;
        for text in [name, help, family, key, label, states] {
            // They are checked as what they are below.
            self.text(text, ("value", n), |text| text.len() <= 255)?;
        }
        let [code, buckets, sum, base, exponent, semantics, bits, _] = what.to_le_bytes();
        let (Some(ty), Some(base), Some(semantics), Some(aggregations)) = (
            type_of(code, buckets, sum),
            base_of(base),
            semantics_of(semantics),
            Aggregations::from_bits(bits),
        ) else {
            return bad(
                "value",
                n,
                "has a type, a unit, semantics or aggregations that there are not",
            );
        };
        let text = |text| self.snapshot.text(text);
        let some = |at| Some(text(at)).filter(|text| !text.is_empty());
        let owned = |text: &str| Cow::Owned(text.to_owned());
        let descriptor = Descriptor {
            name: owned(text(name)),
            ty,
            unit: Unit { base, exponent: exponent as i8 },
            semantics,
            aggregations,
            mode: default_mode(semantics),
            help: owned(text(help)),
            family: some(family).map(owned),
            label: some(key).map(|key| (owned(key), owned(text(label)))),
            states: some(states).into_iter().flat_map(|all| all.split(',')).map(owned).collect(),
        };
        check_value(&descriptor).map_err(|error| SnapshotError::Value { n, error })?;
        Ok(descriptor)
    }

    /// Kinds of directories, and their files.
    fn files(&mut self) -> Result<(), SnapshotError> {
        let files = self.count(section::FILES);
        for n in 0..files {
            let [name, what] = self.snapshot.record(section::FILES, n);
            self.text(name, ("file", n), is_file_name)?;
            let (value, part) = split_pair(what);
            let Some(value) = self.snapshot.values.get(value as usize) else {
                return bad("file", n, "shows no value");
            };
            let is_part = if value.descriptor.ty.is_histogram() { part == 8 } else { part <= 6 };
            if value.identity.is_none() || !is_part {
                return bad("file", n, "shows nothing that there is of a value");
            }
        }
        let mut taken = Consecutive::default();
        for n in 0..self.count(section::KINDS) {
            let [of_kind] = self.snapshot.record(section::KINDS, n);
            let (first, count) = split_pair(of_kind);
            if !taken.take(first.into(), count as usize, files) {
                return bad("kind", n, "has files that are not the next");
            }
        }
        Ok(())
    }

    fn directories(&mut self) -> Result<(), SnapshotError> {
        let count = self.count(section::DIRECTORIES);
        if count == 0 {
            return Err(SnapshotError::Section("directories"));
        }
        let [mut labels, mut cells, mut parts, mut words] =
            [(); 4].map(|()| Consecutive::default());
        // The directories that the next one may be in, and where each ends.
        let mut above: Vec<(usize, usize)> = Vec::new();
        for n in 0..count {
            let record = self.snapshot.record::<9>(section::DIRECTORIES, n);
            let is_called = |name: &str| (n == 0 && name.is_empty()) || is_dir_name(name);
            self.text(record[3], ("directory", n), is_called)?;
            let (parent, end) = split_pair(record[2]);
            let (parent, end) = (parent as usize, end as usize);
            while above.last().is_some_and(|(_, end)| *end <= n) {
                above.pop();
            }
            let (is_in, most) = match above.last() {
                Some((above, end)) => (*above == parent, *end),
                None => (n == 0 && parent == 0 && end == count, count),
            };
            if !is_in || end <= n || end > most || above.len() > MAX_DEPTH + 1 {
                return bad("directory", n, "is not in one that can be");
            }
            above.push((n, end));
            let (_, bare) = split_pair(record[4]);
            if bare as usize > split_pair(record[3]).1 as usize {
                return bad("directory", n, "has less of a name than it says");
            }
            if split_pair(record[5]).0 as usize >= self.count(section::KINDS) {
                return bad("directory", n, "is of no kind");
            }
            let range = |word: u64| (u64::from(split_pair(word).0), split_pair(word).1 as usize);
            let (first, own) = range(record[6]);
            if own > MAX_LABELS || !labels.take(first, own, self.count(section::LABELS)) {
                return bad("directory", n, "has labels that are not the next");
            }
            for n in labels.0 - own..labels.0 {
                self.label(n)?;
            }
            let (first, own) = range(record[7]);
            if !cells.take(first, own, self.count(section::CELLS)) {
                return bad("directory", n, "has cells that are not the next");
            }
            for n in cells.0 - own..cells.0 {
                self.cells(n, &mut words)?;
            }
            let (first, own) = range(record[8]);
            if !parts.take(first, own, self.count(section::PARTS)) {
                return bad("directory", n, "has parts that are not the next");
            }
            for n in parts.0 - own..parts.0 {
                self.part(n, &mut words)?;
            }
        }
        Ok(())
    }

    fn label(&mut self, n: usize) -> Result<(), SnapshotError> {
        let [key, value] = self.snapshot.record(section::LABELS, n);
        self.text(key, ("label", n), |key| is_value_name(key, MAX_LABEL_KEY))?;
        self.text(value, ("label", n), |value| {
            value.len() <= MAX_LABEL_VALUE && !value.contains(char::is_control)
        })
    }

    fn cells(&self, n: usize, taken: &mut Consecutive) -> Result<(), SnapshotError> {
        let [what, first, baseline] = self.snapshot.record(section::CELLS, n);
        let (group, flags) = split_pair(what);
        if group as usize >= self.count(section::GROUPS) || flags & !flag::ALL != 0 {
            return bad("cells", n, "are of no group, or of no kind");
        }
        let [.., words] = self.snapshot.record::<4>(section::GROUPS, group as usize);
        let (len, all) = (words as usize, self.count(section::WORDS));
        let is_cleared = flags & flag::CLEARED != 0;
        let is_next = len > 0
            && taken.take(first, len, all)
            && (!is_cleared || taken.take(baseline, len, all));
        if is_next { Ok(()) } else { bad("cells", n, "have words that are not the next") }
    }

    fn part(&self, n: usize, taken: &mut Consecutive) -> Result<(), SnapshotError> {
        let [what, first] = self.snapshot.record(section::PARTS, n);
        let (value, flags) = split_pair(what);
        let Some(value) = self.snapshot.values.get(value as usize) else {
            return bad("part", n, "is of no value");
        };
        if value.identity.is_none() || flags & !(flag::OWN | flag::CLEARED) != 0 {
            return bad("part", n, "is of no kind");
        }
        let ty = value.descriptor.ty;
        let len = if ty.is_histogram() { ty.cells() } else { Scalar::WORDS };
        let forms = if flags & flag::CLEARED != 0 { 2 } else { 1 };
        if !taken.take(first, forms * len, self.count(section::WORDS)) {
            return bad("part", n, "has words that are not the next");
        }
        if !ty.is_histogram() {
            let words = self.snapshot.words(first as usize, forms * len);
            for words in words.as_chunks::<{ Scalar::WORDS }>().0 {
                let [_, low, high, count, zero, ..] = *words;
                let total = (u128::from(low) | u128::from(high) << 64) as i128;
                let is_right = count <= MAX_INSTANCES
                    && zero <= count
                    && total.unsigned_abs() <= u128::from(count) << 64;
                if !is_right {
                    return bad("part", n, "is over no number of instances that can be");
                }
            }
        }
        Ok(())
    }
}

/// Whether a directory can be called so.
fn is_dir_name(name: &str) -> bool {
    let is_char = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
    name == DEPARTED
        || (!name.is_empty()
            && name.len() <= MAX_DIR_NAME
            && !name.starts_with('.')
            && name.bytes().all(is_char))
}

/// Whether a file can be called so: as a value, with the kind of an aggregate after a dot.
fn is_file_name(name: &str) -> bool {
    let (value, kind) = name.split_once('.').unwrap_or((name, "sum"));
    name.len() <= MAX_FILE_NAME
        && is_value_name(value, MAX_FILE_NAME)
        && is_value_name(kind, MAX_FILE_NAME)
}
