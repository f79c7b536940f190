//! Arithmetic on values: slots into instances, instances into aggregates, buckets into percentiles.
//!
//! Pure functions on 64-bit words: a cell of any type is extended to 64 bits (signed ones in two's
//! complement) before it comes here.

use crate::value::{Aggregations, Semantics, ValueType};

/// Combines one more slot's cell into an instance's: cumulative and floating ones add up modulo the
/// width, peaks keep the maximum, bools are or-ed.
pub(crate) fn combine(ty: ValueType, semantics: Semantics, so_far: u64, cell: u64) -> u64 {
    match (ty, semantics) {
        (ValueType::Bool, _) => so_far | cell,
        (_, Semantics::Peak) if ty.is_signed() => (so_far as i64).max(cell as i64) as u64,
        (_, Semantics::Peak) => so_far.max(cell),
        _ => ty.extend(so_far.wrapping_add(cell)),
    }
}

/// What is shown of a cumulative cell: what came since the clear, modulo the width.
pub(crate) fn since(ty: ValueType, raw: u64, baseline: u64) -> u64 {
    ty.extend(raw.wrapping_sub(baseline))
}

/// A number as a file shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    bits: u64,
    signed: bool,
}

impl Number {
    pub(crate) const fn unsigned(bits: u64) -> Self {
        Self { bits, signed: false }
    }

    /// A value of this type.
    pub(crate) const fn of(ty: ValueType, bits: u64) -> Self {
        Self { bits, signed: ty.is_signed() }
    }

    /// Appends the number in decimal.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let negative = self.signed && (self.bits as i64) < 0;
        let mut left = if negative { self.bits.wrapping_neg() } else { self.bits };
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        if negative {
            out.push(b'-');
        }
        out.extend_from_slice(&digits[at..]);
    }
}

/// The aggregate of a scalar value over any number of instances; aggregates of disjoint sets merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scalar {
    /// Sum over the instances and the departed, wrapping.
    sum: u64,
    /// Exact sum over the instances, for the mean. Cannot overflow: 2^63 instances of 2^64.
    total: i128,
    count: u64,
    zero: u64,
    least: u64,
    greatest: u64,
}

impl Scalar {
    /// Adds an instance.
    pub(crate) fn add(&mut self, ty: ValueType, value: u64) {
        let first = self.count == 0;
        if first || below(ty, value, self.least) {
            self.least = value;
        }
        if first || below(ty, self.greatest, value) {
            self.greatest = value;
        }
        self.sum = self.sum.wrapping_add(value);
        self.total += if ty.is_signed() { i128::from(value as i64) } else { i128::from(value) };
        self.count += 1;
        self.zero += u64::from(value == 0);
    }

    /// Adds to the sum only: what departed instances left, or, wrapping, what a clear took away.
    pub(crate) fn add_sum(&mut self, value: u64) {
        self.sum = self.sum.wrapping_add(value);
    }

    /// Merges the aggregate of other instances.
    pub(crate) fn merge(&mut self, ty: ValueType, other: &Self) {
        if other.count > 0 {
            let first = self.count == 0;
            if first || below(ty, other.least, self.least) {
                self.least = other.least;
            }
            if first || below(ty, self.greatest, other.greatest) {
                self.greatest = other.greatest;
            }
        }
        self.sum = self.sum.wrapping_add(other.sum);
        self.total += other.total;
        self.count += other.count;
        self.zero += other.zero;
    }

    /// One kind of aggregate; 0 over nothing.
    pub(crate) fn get(&self, ty: ValueType, kind: Aggregations) -> Number {
        match kind {
            Aggregations::MIN => Number::of(ty, self.least),
            Aggregations::MAX => Number::of(ty, self.greatest),
            Aggregations::AVG if self.count == 0 => Number::of(ty, 0),
            // Truncated towards zero, and within the type since it lies between least and greatest.
            Aggregations::AVG => Number::of(ty, (self.total / i128::from(self.count)) as u64),
            Aggregations::COUNT_ZERO => Number::unsigned(self.zero),
            Aggregations::COUNT_NONZERO => Number::unsigned(self.count - self.zero),
            _ => Number::of(ty, self.sum),
        }
    }
}

fn below(ty: ValueType, a: u64, b: u64) -> bool {
    if ty.is_signed() { (a as i64) < b as i64 } else { a < b }
}

/// A histogram's cells, with what follows from them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets<'a> {
    sum: Option<u64>,
    buckets: &'a [u64],
}

impl<'a> Buckets<'a> {
    /// The histogram in `cells`: a sum if the type says so, then the buckets.
    pub(crate) fn new(ty: ValueType, cells: &'a [u64]) -> Self {
        let has_sum = matches!(ty, ValueType::Histogram { sum: true, .. });
        let (sum, buckets) = cells.split_at(usize::from(has_sum));
        Self { sum: sum.first().copied(), buckets }
    }

    pub(crate) fn sum(&self) -> Option<u64> {
        self.sum
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |n, b| n.wrapping_add(*b))
    }

    /// Sum over count, truncated; 0 over nothing.
    pub(crate) fn mean(&self) -> Option<u64> {
        Some(self.sum?.checked_div(self.count()).unwrap_or(0))
    }

    /// The exclusive upper bound of a bucket; `None` for the last, which is open.
    pub(crate) fn upper(&self, bucket: usize) -> Option<u64> {
        (bucket + 1 < self.buckets.len()).then(|| 1 << bucket)
    }

    /// The buckets' counts.
    pub(crate) fn counts(&self) -> &'a [u64] {
        self.buckets
    }

    fn lower(bucket: usize) -> u64 {
        if bucket == 0 { 0 } else { 1 << (bucket - 1) }
    }

    /// The value below which `percent` of the recorded ones lie, as the buckets know it: interpolated
    /// linearly within a bucket; the open bucket answers its lower bound. 0 over nothing.
    pub(crate) fn percentile(&self, percent: u64) -> u64 {
        let count = u128::from(self.count());
        if count == 0 {
            return 0;
        }
        let rank = (count * u128::from(percent)).div_ceil(100).max(1);
        let mut before = 0u128;
        for (bucket, n) in self.buckets.iter().enumerate() {
            let n = u128::from(*n);
            if n > 0 && before + n >= rank {
                let lower = Self::lower(bucket);
                let Some(upper) = self.upper(bucket) else { return lower };
                // The largest value of the bucket is `upper − 1`.
                let width = u128::from(upper - 1 - lower);
                return lower + (width * (rank - before) / n) as u64;
            }
            before += n;
        }
        0
    }

    /// The largest value that the highest non-empty bucket can hold; the open one answers its lower
    /// bound. 0 over nothing.
    pub(crate) fn max(&self) -> u64 {
        let Some(highest) = self.buckets.iter().rposition(|n| *n > 0) else { return 0 };
        self.upper(highest).map_or(Self::lower(highest), |upper| upper - 1)
    }
}
