//! Files as text.

use std::collections::{BTreeMap, HashMap};

use super::State;
use super::access::Access;
use super::clear::word_range;
use super::dirs::ROOT_DIR;
use super::files::{File, Files, IdentityId, is_own};
use super::inode::{DirId, Field, Part};
use super::sweep::{Account, Request, Sweep, Want};
use crate::aggregate::{Buckets, Number, Scalar};
use crate::value::{Descriptor, GroupDescriptor, Semantics};

/// A value over any number of instances.
#[derive(Clone, Debug)]
pub(crate) enum Total {
    /// Anything but a histogram.
    Scalar(Scalar),
    /// The cells of a histogram, added up.
    Histogram(Vec<u64>),
}

impl Total {
    fn new(value: &Descriptor) -> Self {
        if value.ty.is_histogram() {
            Self::Histogram(vec![0; value.ty.cells()])
        } else {
            Self::Scalar(Scalar::default())
        }
    }

    fn add(&mut self, value: &Descriptor, shown: &[u64], departed: bool) {
        match self {
            Self::Scalar(scalar) if departed => scalar.add_sum(shown[0]),
            Self::Scalar(scalar) => scalar.add(value.ty, shown[0]),
            Self::Histogram(cells) => add(cells, shown),
        }
    }

    fn merge(&mut self, value: &Descriptor, other: &Self) {
        match (self, other) {
            (Self::Scalar(scalar), Self::Scalar(other)) => scalar.merge(value.ty, other),
            (Self::Histogram(cells), Self::Histogram(other)) => add(cells, other),
            _ => debug_assert!(false, "one identity is one type"),
        }
    }

    /// What a part of the value shows.
    fn number(&self, value: &Descriptor, part: Part) -> Number {
        match (self, part) {
            (Self::Scalar(scalar), Part::Aggregate(kind)) => scalar.get(value.ty, kind),
            (Self::Scalar(scalar), _) => scalar.get(value.ty, crate::value::Aggregations::SUM),
            (Self::Histogram(cells), Part::Field(field)) => {
                let buckets = Buckets::new(value.ty, cells);
                Number::unsigned(match field {
                    Field::Sum => buckets.sum().unwrap_or(0),
                    Field::Mean => buckets.mean().unwrap_or(0),
                    Field::Percentile(percent) => buckets.percentile(percent.into()),
                    Field::Max => buckets.max(),
                    Field::Count | Field::Buckets => buckets.count(),
                })
            }
            (Self::Histogram(_), _) => Number::unsigned(0),
        }
    }
}

fn add(cells: &mut [u64], other: &[u64]) {
    for (cell, other) in cells.iter_mut().zip(other) {
        *cell = cell.wrapping_add(*other);
    }
}

/// One value of what a sweep read on one account.
struct Shown<'a> {
    account: Account,
    /// Whether it counts as what departed.
    departed: bool,
    identity: IdentityId,
    value: &'a Descriptor,
    /// Its words, since its last clear.
    words: &'a [u64],
}

/// Totals by identity.
type Totals = BTreeMap<IdentityId, Total>;

/// What a directory shows: its own instances, and all in and below it.
#[derive(Debug, Default)]
struct DirTotals {
    own: Totals,
    all: Totals,
}

/// Writes a histogram's buckets, a line each: the exclusive upper bound, or `inf`, and the count.
fn write_buckets(value: &Descriptor, cells: &[u64], prefix: &[u8], out: &mut Vec<u8>) {
    let buckets = Buckets::new(value.ty, cells);
    for (n, count) in buckets.counts().iter().enumerate() {
        out.extend_from_slice(prefix);
        match buckets.upper(n) {
            Some(upper) => Number::unsigned(upper).write(out),
            None => out.extend_from_slice(b"inf"),
        }
        out.push(b' ');
        Number::unsigned(*count).write(out);
        out.push(b'\n');
    }
}

impl State {
    /// Calls `add` with everything that a sweep read of each value, as it is shown.
    fn each_shown(&self, sweep: &Sweep, want: Want, mut add: impl FnMut(Shown<'_>)) {
        for cells in &sweep.cells {
            let departed = self.is_departed(cells.account);
            let group: &GroupDescriptor = &self.groups[cells.group];
            for (value, identity) in self.identities.of(cells.group).iter().enumerate() {
                let Some(identity) = *identity else { continue };
                let words = match want {
                    Want::All => &sweep.words(cells)[word_range(group, value)],
                    Want::Value(wanted) if wanted == identity => sweep.words(cells),
                    Want::Value(_) => continue,
                };
                let descriptor = &group.values()[value];
                if departed && descriptor.semantics != Semantics::Cumulative {
                    continue;
                }
                let words = &self.shown(cells, value, words);
                let (account, value) = (cells.account, descriptor);
                add(Shown { account, departed, identity, value, words });
            }
        }
    }

    /// One value's total in a directory: over its own sources, over all in and below it, or over what
    /// departed right below it.
    fn total(
        &self,
        dir: DirId,
        departed: bool,
        identity: IdentityId,
        part: Part,
        sweep: &Sweep,
    ) -> Total {
        let value = self.identities.get(identity).expect("identities are never forgotten");
        let mut total = Total::new(value);
        if !self.dirs.contains_key(&dir) {
            return total;
        }
        let own = is_own(value, part);
        self.each_shown(sweep, Want::Value(identity), |shown| {
            let counts = match (departed, shown.departed) {
                (true, gone) => gone && self.departs_in(shown.account) == Some(dir),
                (false, gone) => !(gone && own),
            };
            if counts {
                total.add(shown.value, shown.words, shown.departed);
            }
        });
        total
    }

    /// What must be read to show a value's file.
    pub(crate) fn value_request(
        &self,
        dir: DirId,
        departed: bool,
        identity: IdentityId,
        part: Part,
    ) -> Request {
        let own = self.identities.get(identity).is_some_and(|value| is_own(value, part));
        let below = departed || !own;
        Request { dir, below, want: Want::Value(identity), process: None }
    }

    /// Appends a value's file.
    pub(crate) fn write_value(
        &self,
        dir: DirId,
        departed: bool,
        identity: IdentityId,
        part: Part,
        sweep: &Sweep,
        out: &mut Vec<u8>,
    ) {
        let Some(value) = self.identities.get(identity) else { return };
        let total = self.total(dir, departed, identity, part, sweep);
        if let (Part::Field(Field::Buckets), Total::Histogram(cells)) = (part, &total) {
            write_buckets(value, cells, b"", out);
        } else {
            total.number(value, part).write(out);
            out.push(b'\n');
        }
    }

    /// Appends `path value` for every file in and below a directory, of which the sweep is; those in
    /// directories below only as far as these may be entered.
    pub(crate) fn write_flat(&self, dir: DirId, access: &Access, sweep: &Sweep, out: &mut Vec<u8>) {
        let mut totals = self.own_totals(sweep);
        self.sum_up(dir, &mut totals);
        let mut path = self.path(dir);
        self.flat_dir(dir, &mut path, &totals, access, out);
    }

    /// Appends `path value` for every file of a directory's `.departed`.
    pub(crate) fn write_flat_departed(
        &self,
        dir: DirId,
        files: &Files,
        sweep: &Sweep,
        out: &mut Vec<u8>,
    ) {
        if !self.dirs.contains_key(&dir) {
            return;
        }
        let mut totals = DirTotals::default();
        self.each_shown(sweep, Want::All, |Shown { account, departed, identity, value, words }| {
            if departed && self.departs_in(account) == Some(dir) {
                let total = totals.all.entry(identity).or_insert_with(|| Total::new(value));
                total.add(value, words, true);
            }
        });
        let mut path = self.path(dir);
        if dir != ROOT_DIR {
            path.push('/');
        }
        path.push_str(".departed");
        flat_files(files.iter(), &path, &totals, out);
    }

    /// What each directory's own sources count, and what is counted right below it without a directory.
    fn own_totals(&self, sweep: &Sweep) -> HashMap<DirId, DirTotals> {
        let mut totals: HashMap<DirId, DirTotals> = HashMap::new();
        self.each_shown(sweep, Want::All, |Shown { account, departed, identity, value, words }| {
            let (dir, own) = match account {
                Account::Left(dir) => (Some(dir), false),
                Account::Live(key) | Account::Departed(key) => {
                    let source = self.sources.get(&key);
                    (self.shown_in(key), source.is_some_and(|source| source.dir.is_some()))
                }
            };
            let Some(dir) = dir else { return };
            let at = totals.entry(dir).or_default();
            let total = at.all.entry(identity).or_insert_with(|| Total::new(value));
            total.add(value, words, departed);
            if own && !departed {
                let total = at.own.entry(identity).or_insert_with(|| Total::new(value));
                total.add(value, words, false);
            }
        });
        totals
    }

    /// Adds to every directory's totals those of the directories below.
    fn sum_up(&self, dir: DirId, totals: &mut HashMap<DirId, DirTotals>) {
        let Some(directory) = self.dirs.get(&dir) else { return };
        for &child in &directory.children {
            self.sum_up(child, totals);
            let Some(below) = totals.remove(&child) else { continue };
            let above = &mut totals.entry(dir).or_default().all;
            for (identity, total) in &below.all {
                let Some(value) = self.identities.get(*identity) else { continue };
                if !value.aggregations.is_empty() {
                    let sum = above.entry(*identity).or_insert_with(|| Total::new(value));
                    sum.merge(value, total);
                }
            }
            totals.insert(child, below);
        }
    }

    fn flat_dir(
        &self,
        dir: DirId,
        path: &mut String,
        totals: &HashMap<DirId, DirTotals>,
        access: &Access,
        out: &mut Vec<u8>,
    ) {
        let (Some(directory), Some(files)) = (self.dirs.get(&dir), self.files(dir)) else { return };
        let none = DirTotals::default();
        flat_files(files.iter(), path, totals.get(&dir).unwrap_or(&none), out);
        for &child in &directory.children {
            let Some(below) = self.dirs.get(&child) else { continue };
            if !access.may_enter(below) {
                continue;
            }
            let len = path.len();
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(&below.name);
            self.flat_dir(child, path, totals, access, out);
            path.truncate(len);
        }
    }
}

/// Appends the lines of some files of one directory.
fn flat_files<'a>(
    files: impl Iterator<Item = &'a File>,
    path: &str,
    totals: &DirTotals,
    out: &mut Vec<u8>,
) {
    let slash = if path.is_empty() { "" } else { "/" };
    for file in files {
        let value = &*file.value;
        let own =
            file.part == Part::Own || (value.ty.is_histogram() && value.aggregations.is_empty());
        let found = if own { &totals.own } else { &totals.all }.get(&file.identity);
        let nothing;
        let total = match found {
            Some(total) => total,
            None => {
                nothing = Total::new(value);
                &nothing
            }
        };
        let prefix = format!("{path}{slash}{}", file.name);
        let Total::Histogram(cells) = total else {
            out.extend_from_slice(prefix.as_bytes());
            out.push(b' ');
            total.number(value, file.part).write(out);
            out.push(b'\n');
            continue;
        };
        let has_sum = Buckets::new(value.ty, cells).sum().is_some();
        for field in Field::ALL {
            if !has_sum && !field.without_sum() {
                continue;
            }
            if field == Field::Buckets {
                write_buckets(value, cells, format!("{prefix}/buckets/").as_bytes(), out);
                continue;
            }
            out.extend_from_slice(format!("{prefix}/{} ", field.name()).as_bytes());
            total.number(value, Part::Field(field)).write(out);
            out.push(b'\n');
        }
    }
}
