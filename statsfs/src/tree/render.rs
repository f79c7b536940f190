//! Values' files as text.

use std::borrow::Cow;

use super::State;
use super::clear::{shown, word_range};
use super::files::{IdentityId, is_own};
use super::inode::{DirId, Field, Part};
use super::sweep::{Account, Request, Sweep, Want};
use crate::aggregate::{Buckets, Number, Scalar};
use crate::value::{Descriptor, GroupDescriptor, Semantics, ValueType};

/// A value over any number of instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Total {
    /// Anything but a histogram.
    Scalar(Scalar),
    /// The cells of a histogram, added up.
    Histogram(Vec<u64>),
}

impl Total {
    /// One over no instances.
    pub(crate) fn new(value: &Descriptor) -> Self {
        if value.ty.is_histogram() {
            Self::Histogram(vec![0; value.ty.cells()])
        } else {
            Self::Scalar(Scalar::default())
        }
    }

    pub(crate) fn add(&mut self, Shown { value, departed, words, .. }: &Shown<'_>) {
        self.add_words(value.ty, words, *departed);
    }

    /// Adds an instance's words, or what departed.
    pub(crate) fn add_words(&mut self, ty: ValueType, words: &[u64], departed: bool) {
        match self {
            Self::Scalar(scalar) if departed => scalar.add_sum(words[0]),
            Self::Scalar(scalar) => scalar.add(ty, words[0]),
            Self::Histogram(cells) => {
                for (cell, word) in cells.iter_mut().zip(words) {
                    *cell = cell.wrapping_add(*word);
                }
            }
        }
    }

    /// Makes it one over no instances.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Scalar(scalar) => *scalar = Scalar::default(),
            Self::Histogram(cells) => cells.fill(0),
        }
    }

    /// What a part of the value shows.
    pub(crate) fn number(&self, value: &Descriptor, part: Part) -> Number {
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

/// One value of what a sweep read on one account.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    account: Account,
    /// Whether it counts as what departed.
    departed: bool,
    pub(crate) identity: IdentityId,
    pub(crate) value: &'a Descriptor,
    /// Its words, since its last clear.
    pub(crate) words: Cow<'a, [u64]>,
}

impl<'a> Shown<'a> {
    /// A value of which these words were read, and those were cleared; none if nothing is shown of it, since
    /// of what departed there is nothing but sums.
    #[inline]
    pub(super) fn new(
        account: Account,
        departed: bool,
        identity: IdentityId,
        value: &'a Descriptor,
        words: &'a [u64],
        baseline: Option<&[u64]>,
    ) -> Option<Self> {
        (!departed || value.semantics == Semantics::Cumulative).then(|| {
            let words = shown(account, value, words, baseline);
            Self { account, departed, identity, value, words }
        })
    }
}

/// Writes a histogram's buckets, a line each: the exclusive upper bound, or `inf`, and the count.
pub(crate) fn write_buckets(value: &Descriptor, cells: &[u64], prefix: &[u8], out: &mut Vec<u8>) {
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
    /// Calls `add` with every instance of one value that a sweep of it read, as it is shown.
    fn each_shown<'a>(
        &'a self,
        sweep: &'a Sweep,
        identity: IdentityId,
        mut add: impl FnMut(Shown<'a>),
    ) {
        let value_of = self.identities.values_of(identity);
        for cells in &sweep.cells {
            let Some(value) = value_of[cells.group] else { continue };
            let group: &GroupDescriptor = &self.groups[cells.group];
            let baseline = self.baseline(cells);
            let baseline = baseline.map(|baseline| &baseline[word_range(group, value)]);
            let (value, words) = (&group.values()[value], sweep.words(cells));
            let (account, departed) = (cells.account, self.is_departed(cells.account));
            Shown::new(account, departed, identity, value, words, baseline).map(&mut add);
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
        self.each_shown(sweep, identity, |shown| {
            let counts = match (departed, shown.departed) {
                (true, gone) => gone && self.departs_in(shown.account) == Some(dir),
                (false, gone) => !(gone && own),
            };
            if counts {
                total.add(&shown);
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
}
