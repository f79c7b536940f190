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

    /// The number.
    pub(crate) fn exact(self) -> i128 {
        if self.signed { i128::from(self.bits as i64) } else { i128::from(self.bits) }
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

/// The aggregate of a scalar value over any number of instances.
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

    /// Adds what another is over.
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
        // What comes out of a file can be anything.
        self.total = self.total.wrapping_add(other.total);
        self.count = self.count.wrapping_add(other.count);
        self.zero = self.zero.wrapping_add(other.zero);
    }

    /// What of it is needed for these kinds of aggregate, and nothing else.
    pub(crate) fn for_kinds(self, kinds: Aggregations) -> Self {
        let needs = |one: Aggregations| kinds.contains(one);
        let (least, greatest) = (needs(Aggregations::MIN), needs(Aggregations::MAX));
        let zero = needs(Aggregations::COUNT_ZERO) || needs(Aggregations::COUNT_NONZERO);
        let count = zero || least || greatest || needs(Aggregations::AVG);
        Self {
            sum: if needs(Aggregations::SUM) { self.sum } else { 0 },
            total: if needs(Aggregations::AVG) { self.total } else { 0 },
            count: if count { self.count } else { 0 },
            zero: if zero { self.zero } else { 0 },
            least: if least { self.least } else { 0 },
            greatest: if greatest { self.greatest } else { 0 },
        }
    }

    /// As words: sum; exact sum, its low half and its high half; number of instances, and of those that are zero;
    /// least and greatest instance.
    pub(crate) fn to_words(self) -> [u64; Self::WORDS] {
        let Self { sum, total, count, zero, least, greatest } = self;
        [sum, total as u64, (total >> 64) as u64, count, zero, least, greatest]
    }

    /// Number of its words.
    pub(crate) const WORDS: usize = 7;

    /// The aggregate with these words.
    pub(crate) fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [sum, low, high, count, zero, least, greatest] = words;
        let total = (u128::from(low) | u128::from(high) << 64) as i128;
        Self { sum, total, count, zero, least, greatest }
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
            Aggregations::COUNT_NONZERO => Number::unsigned(self.count.wrapping_sub(self.zero)),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCALARS: [ValueType; 9] = [
        ValueType::Bool,
        ValueType::U8,
        ValueType::U16,
        ValueType::U32,
        ValueType::U64,
        ValueType::S8,
        ValueType::S16,
        ValueType::S32,
        ValueType::S64,
    ];

    fn ty() -> impl Strategy<Value = ValueType> {
        prop::sample::select(&SCALARS[..])
    }

    /// Cells as they come from a block, extremes more often than chance has it.
    fn cells(max: usize) -> impl Strategy<Value = (ValueType, Vec<u64>)> {
        let cell = prop_oneof![
            Just(0),
            Just(1),
            Just(u64::MAX),
            Just(i64::MIN as u64),
            Just(i64::MAX as u64),
            (0..64u32).prop_map(|n| 1 << n),
            (0..64u32).prop_map(|n| (1u64 << n).wrapping_neg()),
            any::<u64>(),
        ];
        (ty(), prop::collection::vec(cell, 0..max))
            .prop_map(|(ty, cells)| (ty, cells.into_iter().map(|c| ty.extend(c)).collect()))
    }

    /// The number that 64 bits of a type are.
    fn exact(ty: ValueType, bits: u64) -> i128 {
        if ty.is_signed() { i128::from(bits as i64) } else { i128::from(bits) }
    }

    fn text(number: Number) -> String {
        let mut out = b"x".to_vec();
        number.write(&mut out);
        String::from_utf8(out).unwrap()[1..].to_owned()
    }

    fn aggregate(ty: ValueType, cells: &[u64]) -> Scalar {
        let mut all = Scalar::default();
        cells.iter().for_each(|cell| all.add(ty, *cell));
        all
    }

    proptest! {
        #[test]
        fn numbers_are_written_in_decimal((ty, cells) in cells(8)) {
            for bits in cells {
                prop_assert_eq!(text(Number::of(ty, bits)), exact(ty, bits).to_string());
                prop_assert_eq!(text(Number::unsigned(bits)), bits.to_string());
            }
        }

        #[test]
        fn slots_combine_modulo_the_width((ty, cells) in cells(8)) {
            let numbers: Vec<_> = cells.iter().map(|c| exact(ty, *c)).collect();
            for semantics in [Semantics::Cumulative, Semantics::Floating, Semantics::Peak] {
                let Some((first, rest)) = cells.split_first() else { continue };
                let all = rest.iter().fold(*first, |all, c| combine(ty, semantics, all, *c));
                let expected = if ty == ValueType::Bool {
                    i128::from(numbers.contains(&1))
                } else if semantics == Semantics::Peak {
                    *numbers.iter().max().unwrap()
                } else {
                    let modulus = 1i128 << (8 * ty.width());
                    let sum = numbers.iter().sum::<i128>().rem_euclid(modulus);
                    if ty.is_signed() && sum >= modulus / 2 { sum - modulus } else { sum }
                };
                prop_assert_eq!(exact(ty, all), expected, "{:?} {:?}", ty, semantics);
            }
        }

        #[test]
        fn what_came_since_a_clear_is_exact_over_a_wrap(
            ty in prop::sample::select(&SCALARS[1..5]),
            before in any::<u64>(),
            added in any::<u64>(),
        ) {
            let mask = ty.extend(u64::MAX);
            let baseline = before & mask;
            // The cell itself wraps at its width.
            let raw = ty.extend(baseline.wrapping_add(added));
            prop_assert_eq!(since(ty, raw, baseline), added & mask);
        }

        #[test]
        fn every_kind_is_what_a_list_says((ty, cells) in cells(12), departed in any::<u64>()) {
            let mut all = aggregate(ty, &cells);
            let numbers: Vec<_> = cells.iter().map(|c| exact(ty, *c)).collect();
            let get = |all: &Scalar, kind| text(all.get(ty, kind));
            let wrapped = |sum: i128| exact(ty, sum as u64).to_string();
            let sum: i128 = numbers.iter().sum();
            prop_assert_eq!(get(&all, Aggregations::SUM), wrapped(sum));
            let or_zero = |number: Option<i128>| number.unwrap_or(0).to_string();
            prop_assert_eq!(get(&all, Aggregations::MIN), or_zero(numbers.iter().min().copied()));
            prop_assert_eq!(get(&all, Aggregations::MAX), or_zero(numbers.iter().max().copied()));
            let mean = sum.checked_div(numbers.len() as i128);
            prop_assert_eq!(get(&all, Aggregations::AVG), or_zero(mean));
            let zero = numbers.iter().filter(|n| **n == 0).count();
            prop_assert_eq!(get(&all, Aggregations::COUNT_ZERO), zero.to_string());
            let nonzero = numbers.len() - zero;
            prop_assert_eq!(get(&all, Aggregations::COUNT_NONZERO), nonzero.to_string());
            // What departed is in the sum and nowhere else.
            let without = all;
            all.add_sum(departed);
            prop_assert_eq!(get(&all, Aggregations::SUM), wrapped(sum + exact(ty, departed)));
            for kind in [Aggregations::MIN, Aggregations::MAX, Aggregations::AVG] {
                prop_assert_eq!(get(&all, kind), get(&without, kind));
            }
        }

        #[test]
        fn a_histogram_knows_its_values_as_well_as_its_buckets(
            count in 2..=64u8,
            sum in any::<bool>(),
            mut values in prop::collection::vec(
                prop_oneof![0..100u64, any::<u64>(), (0..64u32).prop_map(|n| 1 << n)],
                0..50,
            ),
        ) {
            let ty = ValueType::Histogram { buckets: count, sum };
            let mut cells = vec![0u64; ty.cells()];
            for value in &values {
                let bucket = crate::cell::bucket_of(*value, count.into());
                cells[bucket + usize::from(sum)] += 1;
                if sum {
                    cells[0] = cells[0].wrapping_add(*value);
                }
            }
            let shown = Buckets::new(ty, &cells);
            values.sort_unstable();
            prop_assert_eq!(shown.count(), values.len() as u64);
            let total = values.iter().fold(0u64, |sum, n| sum.wrapping_add(*n));
            prop_assert_eq!(shown.sum(), sum.then_some(total));
            let mean = total.checked_div(values.len() as u64).unwrap_or(0);
            prop_assert_eq!(shown.mean(), sum.then_some(mean));
            // Every bucket holds what lies between its bounds.
            for (n, count) in shown.counts().iter().enumerate() {
                let lower = Buckets::lower(n);
                let within = |v: &&u64| **v >= lower && shown.upper(n).is_none_or(|upper| **v < upper);
                prop_assert_eq!(*count, values.iter().filter(within).count() as u64);
            }
            let mut before = 0;
            for percent in 1..=100 {
                let percentile = shown.percentile(percent);
                prop_assert!(percentile >= before, "p{} is below p{}", percent, percent - 1);
                before = percentile;
                let rank = (values.len() * percent as usize).div_ceil(100).max(1);
                let Some(value) = values.get(rank - 1) else {
                    prop_assert_eq!(percentile, 0);
                    continue;
                };
                // In the bucket of the value that has this rank.
                let bucket = crate::cell::bucket_of(*value, count.into());
                let (lower, upper) = (Buckets::lower(bucket), shown.upper(bucket));
                prop_assert!(percentile >= lower && upper.is_none_or(|upper| percentile < upper));
            }
            prop_assert!(shown.max() >= before);
            if let Some(largest) = values.last() {
                let bucket = crate::cell::bucket_of(*largest, count.into());
                let bound = shown.upper(bucket).map_or(Buckets::lower(bucket), |upper| upper - 1);
                prop_assert_eq!(shown.max(), bound);
            }
        }
    }

    #[test]
    fn an_aggregate_over_nothing_is_zero() {
        for ty in SCALARS {
            for bit in 0..6 {
                let kind = Aggregations::from_bits(1 << bit).unwrap();
                assert_eq!(text(Scalar::default().get(ty, kind)), "0", "{ty:?} {kind:?}");
            }
        }
        let ty = ValueType::Histogram { buckets: 64, sum: true };
        let cells = [0; 65];
        let empty = Buckets::new(ty, &cells);
        assert_eq!(
            (empty.count(), empty.mean(), empty.percentile(99), empty.max()),
            (0, Some(0), 0, 0)
        );
    }

    #[test]
    fn counts_near_the_end_of_their_range_do_not_overflow() {
        let ty = ValueType::Histogram { buckets: 64, sum: true };
        let mut cells = [0; 65];
        cells[1] = u64::MAX;
        cells[0] = u64::MAX;
        let full = Buckets::new(ty, &cells);
        assert_eq!((full.count(), full.mean(), full.percentile(99)), (u64::MAX, Some(1), 0));
        cells[64] = 1;
        // The number of values wraps; nothing else is known then, but nothing breaks.
        let over = Buckets::new(ty, &cells);
        assert_eq!((over.count(), over.percentile(50), over.max()), (0, 0, 1 << 62));
    }
}
