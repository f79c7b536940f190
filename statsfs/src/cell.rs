//! Cells: what a hot loop increments.
//!
//! A cell is a naturally aligned atomic in shared memory with exactly one writer. The writer's side of
//! every operation is a relaxed load and a relaxed store, which x86-64 compiles to one instruction
//! without a lock prefix, as cheap as `x += 1` on ordinary memory. Cells are not `Sync`: a shared
//! reference cannot reach a second thread, so the compiler enforces the single writer.
//!
//! Cells exist only inside blocks that a [`Slot`](crate::Slot) hands out; programs never make one.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::Relaxed,
};

use crate::value::{LabelSet, Unit, ValueType};

mod sealed {
    pub trait Sealed {}
}

/// An integer that a cell can hold.
pub trait Int: sealed::Sealed + Copy + 'static {
    /// The atomic of the same width.
    type Atomic: 'static;
    /// The value type that a descriptor states.
    const TYPE: ValueType;
    /// One.
    const ONE: Self;
    /// Relaxed load.
    fn load(atomic: &Self::Atomic) -> Self;
    /// Relaxed store.
    fn store(atomic: &Self::Atomic, value: Self);
    /// Addition that wraps.
    fn wrapping_add(self, other: Self) -> Self;
    /// Subtraction that wraps.
    fn wrapping_sub(self, other: Self) -> Self;
    /// The larger of both.
    fn max(self, other: Self) -> Self;
}

/// An unsigned integer: what a counter can be.
pub trait Unsigned: Int {}

macro_rules! ints {
    ($($int:ty, $atomic:ty, $ty:ident;)*) => {$(
        impl sealed::Sealed for $int {}
        impl Int for $int {
            type Atomic = $atomic;
            const TYPE: ValueType = ValueType::$ty;
            const ONE: Self = 1;
            #[inline(always)]
            fn load(atomic: &$atomic) -> Self {
                atomic.load(Relaxed)
            }
            #[inline(always)]
            fn store(atomic: &$atomic, value: Self) {
                atomic.store(value, Relaxed);
            }
            #[inline(always)]
            fn wrapping_add(self, other: Self) -> Self {
                <$int>::wrapping_add(self, other)
            }
            #[inline(always)]
            fn wrapping_sub(self, other: Self) -> Self {
                <$int>::wrapping_sub(self, other)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                Ord::max(self, other)
            }
        }
    )*};
}

ints! {
    u8, AtomicU8, U8;
    u16, AtomicU16, U16;
    u32, AtomicU32, U32;
    u64, AtomicU64, U64;
    i8, AtomicI8, S8;
    i16, AtomicI16, S16;
    i32, AtomicI32, S32;
    i64, AtomicI64, S64;
}

impl Unsigned for u8 {}
impl Unsigned for u16 {}
impl Unsigned for u32 {}
impl Unsigned for u64 {}

/// A unit as a type, so that a declaration names it: `Counter<u64, Bytes>`.
pub trait UnitType: sealed::Sealed + 'static {
    /// The unit.
    const UNIT: Unit;
}

macro_rules! units {
    ($($(#[$doc:meta])* $name:ident = $unit:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl UnitType for $name {
            const UNIT: Unit = Unit::$unit;
        }
    )*};
}

units! {
    /// A plain number of things.
    Things = NONE;
    /// Bytes.
    Bytes = BYTES;
    /// Clock cycles.
    Cycles = CYCLES;
    /// Seconds.
    Seconds = SECONDS;
    /// Thousandths of a second.
    Milliseconds = MILLISECONDS;
    /// Millionths of a second.
    Microseconds = MICROSECONDS;
    /// Billionths of a second.
    Nanoseconds = NANOSECONDS;
}

/// Keeps a cell from being `Sync`, and carries its unit.
type Single<U> = PhantomData<(Cell<()>, fn() -> U)>;

/// A cumulative value: it only grows. Wraps at its width.
#[repr(transparent)]
pub struct Counter<T: Unsigned = u64, U: UnitType = Things>(T::Atomic, Single<U>);

impl<T: Unsigned, U: UnitType> Counter<T, U> {
    /// Adds one.
    #[inline(always)]
    pub fn inc(&self) {
        self.add(T::ONE);
    }

    /// Adds `n`.
    #[inline(always)]
    pub fn add(&self, n: T) {
        T::store(&self.0, T::load(&self.0).wrapping_add(n));
    }

    /// The raw value of this slot: no other slot's, and no clear, shows here.
    #[inline]
    pub fn get(&self) -> T {
        T::load(&self.0)
    }
}

/// A floating value: it goes both ways.
///
/// Slots of one group combine by sum. Where a value is [`set`](Self::set) rather than moved up and
/// down, the group should therefore have a single slot in its source.
#[repr(transparent)]
pub struct Gauge<T: Int = i64, U: UnitType = Things>(T::Atomic, Single<U>);

impl<T: Int, U: UnitType> Gauge<T, U> {
    /// Sets the value.
    #[inline(always)]
    pub fn set(&self, value: T) {
        T::store(&self.0, value);
    }

    /// Adds `n`.
    #[inline(always)]
    pub fn add(&self, n: T) {
        T::store(&self.0, T::load(&self.0).wrapping_add(n));
    }

    /// Subtracts `n`.
    #[inline(always)]
    pub fn sub(&self, n: T) {
        T::store(&self.0, T::load(&self.0).wrapping_sub(n));
    }

    /// The value of this slot.
    #[inline]
    pub fn get(&self) -> T {
        T::load(&self.0)
    }
}

/// A peak: the largest value recorded. Slots of one group combine by maximum.
#[repr(transparent)]
pub struct Peak<T: Int = u64, U: UnitType = Things>(T::Atomic, Single<U>);

impl<T: Int, U: UnitType> Peak<T, U> {
    /// Raises the peak to `value` if it is below.
    #[inline(always)]
    pub fn record(&self, value: T) {
        T::store(&self.0, T::load(&self.0).max(value));
    }

    /// The value of this slot.
    #[inline]
    pub fn get(&self) -> T {
        T::load(&self.0)
    }
}

/// A floating bool. Slots of one group combine by or.
#[repr(transparent)]
pub struct Flag(AtomicU8, Single<Things>);

impl Flag {
    /// Sets the flag.
    #[inline(always)]
    pub fn set(&self, value: bool) {
        self.0.store(u8::from(value), Relaxed);
    }

    /// Whether this slot's flag is set.
    #[inline]
    pub fn get(&self) -> bool {
        self.0.load(Relaxed) != 0
    }
}

/// A histogram with `N` log2 buckets of its unit, by KVM's rule, and a sum.
///
/// A record is two stores, first of the bucket, then of the sum: a reader may see the first without the
/// second, for each slot one record's.
#[repr(C)]
pub struct Histogram<U: UnitType = Things, const N: usize = 64> {
    sum: AtomicU64,
    buckets: [AtomicU64; N],
    single: Single<U>,
}

/// The bucket, among `buckets`, that `value` falls in: 0 for 0, k for [2^(k−1), 2^k), the last for
/// all above.
#[inline(always)]
pub const fn bucket_of(value: u64, buckets: usize) -> usize {
    // Twice the value and one has as many bits more than one as the value has bits. Bounded first, it
    // never overflows, and the last bucket takes the rest.
    let last = 1 << (buckets - 2);
    let value = if value < last { value } else { last };
    (2 * value + 1).ilog2() as usize
}

impl<U: UnitType, const N: usize> Histogram<U, N> {
    /// Number of buckets.
    pub const BUCKETS: usize = N;

    /// Records one value, in the histogram's unit.
    #[inline(always)]
    pub fn record(&self, value: u64) {
        let bucket = &self.buckets[bucket_of(value, N)];
        bucket.store(bucket.load(Relaxed).wrapping_add(1), Relaxed);
        self.sum.store(self.sum.load(Relaxed).wrapping_add(value), Relaxed);
    }

    /// The raw sum of this slot.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// The raw number of values recorded in this slot.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |n, b| n.wrapping_add(b.load(Relaxed)))
    }
}

/// One cell for each label of `L`: a family of values, indexed by what tells them apart.
#[repr(transparent)]
pub struct PerLabel<C, L: LabelSet, const N: usize>([C; N], PhantomData<fn() -> L>);

impl<C, L: LabelSet, const N: usize> Index<L> for PerLabel<C, L, N> {
    type Output = C;
    #[inline(always)]
    fn index(&self, label: L) -> &C {
        &self.0[label.index()]
    }
}

impl<C, L: LabelSet, const N: usize> PerLabel<C, L, N> {
    /// The cells in the order of the labels.
    pub fn iter(&self) -> std::slice::Iter<'_, C> {
        self.0.iter()
    }
}

/// What a declaration needs to know of a cell's type; used by [`stats!`](crate::stats).
#[doc(hidden)]
pub trait CellType {
    const TYPE: ValueType;
    const UNIT: Unit;
}

impl<T: Unsigned, U: UnitType> CellType for Counter<T, U> {
    const TYPE: ValueType = T::TYPE;
    const UNIT: Unit = U::UNIT;
}
impl<T: Int, U: UnitType> CellType for Gauge<T, U> {
    const TYPE: ValueType = T::TYPE;
    const UNIT: Unit = U::UNIT;
}
impl<T: Int, U: UnitType> CellType for Peak<T, U> {
    const TYPE: ValueType = T::TYPE;
    const UNIT: Unit = U::UNIT;
}
impl CellType for Flag {
    const TYPE: ValueType = ValueType::Bool;
    const UNIT: Unit = Unit::NONE;
}
impl<U: UnitType, const N: usize> CellType for Histogram<U, N> {
    const TYPE: ValueType = ValueType::Histogram { buckets: N as u8, sum: true };
    const UNIT: Unit = U::UNIT;
}
