//! Values, as the files of a directory show them.

use crate::aggregate::{Buckets, since};
use crate::tree::inode::{Field, Part};
use crate::tree::render::Total;
use crate::value::{Aggregations, Descriptor, Semantics, ValueType};

/// What a file of a directory shows, or the files of a histogram's directory; and what there is without clears.
#[derive(Clone, Debug)]
pub struct Value<'a> {
    pub(super) name: &'a str,
    pub(super) descriptor: &'a Descriptor,
    pub(super) part: Part,
    pub(super) raw: Total,
    pub(super) shown: Total,
}

impl<'a> Value<'a> {
    /// The file's name: the value's, with the kind of aggregate after a dot where there are several.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// What the value is.
    pub fn descriptor(&self) -> &'a Descriptor {
        self.descriptor
    }

    /// Which aggregate of all in and below the directory the file shows; none if it shows the directory's own value.
    pub fn aggregate(&self) -> Option<Aggregations> {
        match self.part {
            Part::Aggregate(kind) => Some(kind),
            Part::Own => None,
            Part::Histogram | Part::Field(_) => {
                Some(self.descriptor.aggregations).filter(|all| !all.is_empty())
            }
        }
    }

    /// Whether it only grows, but for clears: a sum of what is counted. Then its rate is of interest.
    pub fn is_cumulative(&self) -> bool {
        self.descriptor.semantics == Semantics::Cumulative
            && matches!(self.part, Part::Own | Part::Histogram | Part::Aggregate(Aggregations::SUM))
    }

    /// What the file shows; none of a histogram.
    pub fn number(&self) -> Option<i128> {
        self.scalar(&self.shown)
    }

    /// The same, whatever was cleared.
    pub fn raw_number(&self) -> Option<i128> {
        self.scalar(&self.raw)
    }

    fn scalar(&self, total: &Total) -> Option<i128> {
        matches!(total, Total::Scalar(_)).then(|| total.number(self.descriptor, self.part).exact())
    }

    /// What the files of a histogram show; none of any other value.
    pub fn histogram(&self) -> Option<Histogram<'_>> {
        histogram(&self.shown, self.descriptor.ty)
    }

    /// The same, whatever was cleared.
    pub fn raw_histogram(&self) -> Option<Histogram<'_>> {
        histogram(&self.raw, self.descriptor.ty)
    }

    /// By how much it grew since an earlier snapshot of the same directory, whatever was cleared, came or went meanwhile: of
    /// a histogram by how many. None if it is no [count](Self::is_cumulative), or became less, which it does only if a process
    /// was let go of. A count of fewer than 64 bits may wrap once in between.
    pub fn increase_since(&self, earlier: &Value<'_>) -> Option<u64> {
        let (old, new) = (earlier.raw_count()?, self.raw_count()?);
        let ty = self.descriptor.ty;
        match new.checked_sub(old) {
            _ if ty != earlier.descriptor.ty => None,
            // What a sum of them lost is as many times what one has room for.
            None if !ty.is_histogram() && ty.width() < 8 => Some(since(ty, new, old)),
            grown => grown,
        }
    }

    /// What came since an earlier snapshot of the same directory, as a value of its own, whatever was cleared meanwhile: the
    /// [increase](Self::increase_since), of a histogram that of its sum and of each bucket. None if there is none.
    pub fn grown_since(&self, earlier: &Value<'_>) -> Option<Value<'a>> {
        let increase = self.increase_since(earlier)?;
        let raw = match (&self.raw, &earlier.raw) {
            (Total::Histogram(new), Total::Histogram(old)) => {
                let cells = new.iter().zip(old);
                Total::Histogram(cells.map(|(new, old)| new.saturating_sub(*old)).collect())
            }
            _ => {
                let mut total = Total::new(self.descriptor);
                total.add_words(self.descriptor.ty, &[increase], true);
                total
            }
        };
        Some(Value { shown: raw.clone(), raw, ..*self })
    }

    /// What it would show if nothing had been cleared.
    pub(super) fn uncleared(&self) -> Value<'a> {
        Value { raw: self.raw.clone(), shown: self.raw.clone(), ..*self }
    }

    /// What was counted, whatever was cleared: of a histogram, how many. None if it is no [count](Self::is_cumulative).
    pub fn raw_count(&self) -> Option<u64> {
        match &self.raw {
            _ if !self.is_cumulative() => None,
            Total::Scalar(_) => self.raw_number().map(|number| number as u64),
            Total::Histogram(_) => self.raw_histogram().map(|histogram| histogram.count()),
        }
    }

    /// What a file shows that is called so in a histogram's directory, or the value's own if that is no name.
    pub(super) fn field(&self, path: &str) -> Option<i128> {
        let Some(histogram) = self.histogram() else {
            return self.number().filter(|_| path.is_empty());
        };
        if let Some(bound) = path.strip_prefix("buckets/") {
            let is_it = |upper: Option<u64>| match upper {
                Some(upper) => bound == upper.to_string(),
                None => bound == "inf",
            };
            let mut buckets = histogram.buckets();
            return buckets.find(|(upper, _)| is_it(*upper)).map(|(_, count)| count.into());
        }
        let fields = Field::of(histogram.sum().is_some()).filter(|field| *field != Field::Buckets);
        let field = { fields }.find(|field| field.name() == path)?;
        Some(self.shown.number(self.descriptor, Part::Field(field)).exact())
    }
}

fn histogram(total: &Total, ty: ValueType) -> Option<Histogram<'_>> {
    match total {
        Total::Histogram(cells) => Some(Histogram(Buckets::new(ty, cells))),
        Total::Scalar(_) => None,
    }
}

/// What was recorded, by size.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a>(pub(super) Buckets<'a>);

impl<'a> Histogram<'a> {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.count()
    }

    /// Their sum, if it is known.
    pub fn sum(&self) -> Option<u64> {
        self.0.sum()
    }

    /// Their mean, if their sum is known; 0 over nothing.
    pub fn mean(&self) -> Option<u64> {
        self.0.mean()
    }

    /// The value below which so many of a hundred lie, as the files `p50`, `p90` and `p99` have it.
    pub fn percentile(&self, percent: u8) -> u64 {
        self.0.percentile(percent.into())
    }

    /// The largest that there can have been.
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// Each bucket: its exclusive upper bound, which the last does not have, and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + use<'a> {
        let buckets = self.0;
        buckets.counts().iter().enumerate().map(move |(n, count)| (buckets.upper(n), *count))
    }
}
