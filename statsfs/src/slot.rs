//! Slots: what a thread holds to count.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::registry::Shared;
use crate::segment::arena::Segment;
use crate::segment::latch;
use crate::segment::layout::{BLOCK_HEADER, BLOCK_SEQUENCE, BlockShape, UNIT, block_shape};
use crate::value::{Area, Consistent, Group, GroupDescriptor, Semantics, ValueType};

/// Private memory in the shape of a block, seen by nobody.
#[derive(Debug)]
#[repr(C, align(128))]
struct Line([AtomicU64; UNIT / 8]);

/// One thread's block: where it is, and what keeps it there.
#[derive(Debug)]
pub(crate) struct SlotInner {
    base: NonNull<u8>,
    len: usize,
    _memory: Memory,
}

/// What a block is part of.
#[derive(Debug)]
enum Memory {
    Segment {
        _segment: Arc<Segment>,
    },
    /// An `Arc`, since a `Box` must not move while there are other pointers into it.
    Private {
        _lines: Arc<[Line]>,
    },
}

// SAFETY: the block is accessed through its address only as atomics, and lives as long as this.
unsafe impl Send for SlotInner {}
// SAFETY: as for `Send`.
unsafe impl Sync for SlotInner {}

impl SlotInner {
    /// The slot of a block in a segment.
    pub(crate) fn new(segment: &Arc<Segment>, offset: usize, len: usize) -> Self {
        debug_assert!(offset + len <= segment.region.len());
        let base = segment.region.address(offset);
        Self { base, len, _memory: Memory::Segment { _segment: segment.clone() } }
    }

    /// The address of the block, by which the registry knows it.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// A slot over memory of its own.
    fn private(len: usize) -> Self {
        let lines: Arc<[Line]> = (0..len.div_ceil(UNIT))
            .map(|_| Line(std::array::from_fn(|_| AtomicU64::new(0))))
            .collect();
        Self {
            base: NonNull::from(&*lines).cast(),
            len,
            _memory: Memory::Private { _lines: lines },
        }
    }
}

/// What both kinds of slot hold: a block, and the way back to the registry.
#[derive(Debug)]
struct Held {
    inner: Arc<SlotInner>,
    source: u64,
    /// Weak: a callback's slot lives inside the registry.
    registry: Weak<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            // In a forked child there is nothing to give back.
            let _ = registry.change(|state, _| {
                state.release(self.source, &self.inner);
                Ok(())
            });
        }
    }
}

/// One thread's copy of a group's cells in a source: a block of its own, two cache lines aligned, that
/// nobody else writes.
///
/// A slot dereferences to the group's struct, whose fields are the cells:
/// `slot.blk_read_bytes.add(512)`. The counters of a consistent group are reached through
/// [`update`](Self::update) only. It can be sent to another thread but neither shared nor cloned, so the
/// compiler enforces the single writer that makes a plain store enough. When it is dropped its block
/// stays, values and all, and goes to the next slot of that source and group.
pub struct Slot<G: Group> {
    /// The block of `_held`. Here and constant, so that an increment needs no other load, and several
    /// in a row share it: the block stays the slot's until the slot is dropped, whatever becomes of its
    /// source.
    base: NonNull<u8>,
    _held: Held,
    _single: Single<G>,
}

/// Not `Sync`, and of a group.
type Single<G> = PhantomData<(Cell<()>, fn() -> G)>;

// SAFETY: the block is written through this slot alone, which moves as a whole.
unsafe impl<G: Group> Send for Slot<G> {}

impl<G: Group> std::fmt::Debug for Slot<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("group", &G::descriptor().name()).finish_non_exhaustive()
    }
}

impl<G: Group> Slot<G> {
    const SHAPE: BlockShape = block_shape(size_of::<G::Latched>(), size_of::<G>());

    pub(crate) fn new(inner: Arc<SlotInner>, source: u64, registry: &Arc<Shared>) -> Self {
        let group = G::descriptor();
        assert!(
            inner.len == Self::SHAPE.len
                && group.latched_size() == size_of::<G::Latched>()
                && group.plain_size() == size_of::<G>()
                && align_of::<G>() <= 8
                && align_of::<G::Latched>() <= 8,
            "the descriptor of group {} does not describe its struct",
            group.name()
        );
        let held = Held { inner, source, registry: Arc::downgrade(registry) };
        Self { base: held.inner.base, _held: held, _single: PhantomData }
    }

    /// A slot over private memory that nobody reads: for code that counts in any case.
    pub fn dummy() -> Self {
        let inner = Arc::new(SlotInner::private(Self::SHAPE.len));
        let held = Held { inner, source: 0, registry: Weak::new() };
        Self { base: held.inner.base, _held: held, _single: PhantomData }
    }
}

impl<G: Group> Deref for Slot<G> {
    type Target = G;

    /// The cells that are not latched.
    #[inline(always)]
    fn deref(&self) -> &G {
        // SAFETY: the block has `SHAPE.len` bytes (checked in `new`), is at least 8-byte aligned, and
        // stays mapped as long as `inner`, which outlives the reference: a block is freed only after
        // its slot was dropped. `G` consists of atomics (promised by
        // `Group`), for which any bytes are valid, and nobody else has them as other than atomics.
        unsafe { self.base.add(Self::SHAPE.plain).cast::<G>().as_ref() }
    }
}

impl<G: Consistent> Slot<G> {
    /// Changes the group's counters together: every reader sees either all that `change` does or
    /// nothing of it, and so it stays if the writer is stopped or killed inside.
    ///
    /// `change` runs twice, once on each copy, so it must do the same both times and nothing else. If it
    /// panics, the update is undone or completed.
    ///
    /// ```
    /// statsfs::stats! {
    ///     /// Requests, as a daemon answers them.
    ///     pub consistent struct Requests: "requests" {
    ///         /// Requests.
    ///         requests: Counter,
    ///         /// Requests that failed.
    ///         requests_failed: Counter,
    ///     }
    /// }
    /// let slot = statsfs::Slot::<Requests>::dummy();
    /// slot.update(|counters| {
    ///     counters.requests.inc();
    ///     counters.requests_failed.inc();
    /// });
    /// ```
    #[inline(always)]
    pub fn update(&self, change: impl Fn(&G::Latched)) {
        let base = self.base;
        // SAFETY: as in `deref`; the sequence is the block's first word, which all access atomically.
        let sequence = unsafe { base.add(BLOCK_SEQUENCE).cast::<AtomicU64>().as_ref() };
        let repair = Repair { base, copy1: Self::SHAPE.copy1 };
        latch::update(sequence, |copy| {
            let offset = if copy == 0 { BLOCK_HEADER } else { Self::SHAPE.copy1 };
            // SAFETY: as in `deref`, for a latched copy, which `SHAPE` puts inside the block.
            change(unsafe { base.add(offset).cast::<G::Latched>().as_ref() });
        });
        std::mem::forget(repair);
    }
}

/// Makes both copies the same again after a panic inside an update: the one that readers are sent to
/// is whole, and replaces the other.
struct Repair {
    base: NonNull<u8>,
    copy1: usize,
}

impl Drop for Repair {
    #[cold]
    fn drop(&mut self) {
        // SAFETY: the sequence and both latched copies are words inside the block, which the slot that
        // is being updated keeps alive; all are accessed as atomics. The copies' length is a multiple
        // of 8 (`block_shape` puts the second right behind the first, and the first at 16).
        let word = |offset: usize| unsafe { self.base.add(offset).cast::<AtomicU64>().as_ref() };
        let odd = word(BLOCK_SEQUENCE).load(Ordering::Relaxed) % 2 == 1;
        let (whole, broken) =
            if odd { (self.copy1, BLOCK_HEADER) } else { (BLOCK_HEADER, self.copy1) };
        for offset in (0..self.copy1 - BLOCK_HEADER).step_by(8) {
            let value = word(whole + offset).load(Ordering::Relaxed);
            word(broken + offset).store(value, Ordering::Relaxed);
        }
        if odd {
            let sequence = word(BLOCK_SEQUENCE);
            sequence.store(sequence.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }
}

/// A slot of a group that was built at run time: cells by the index of their value.
///
/// Checked at every call, so dearer than a declared group. The counters of a consistent group are
/// updated one at a time.
#[derive(Debug)]
pub struct DynSlot {
    held: Held,
    group: Arc<GroupDescriptor>,
    shape: BlockShape,
    _single: PhantomData<Cell<()>>,
}

impl DynSlot {
    pub(crate) fn new(
        inner: Arc<SlotInner>,
        source: u64,
        registry: &Arc<Shared>,
        group: &Arc<GroupDescriptor>,
    ) -> Self {
        let shape = block_shape(group.latched_size(), group.plain_size());
        assert!(inner.len == shape.len);
        let held = Held { inner, source, registry: Arc::downgrade(registry) };
        Self { held, group: group.clone(), shape, _single: PhantomData }
    }

    /// The group.
    pub fn group(&self) -> &Arc<GroupDescriptor> {
        &self.group
    }

    /// Adds `n` to a value that is not a histogram, modulo its width.
    ///
    /// # Panics
    /// If the group has no such value, or it is a histogram.
    pub fn add(&self, value: usize, n: u64) {
        self.change(value, |old| old.wrapping_add(n));
    }

    /// Sets a floating value, or raises a peak.
    ///
    /// # Panics
    /// If the group has no such value, or it is cumulative.
    pub fn set(&self, value: usize, to: u64) {
        let descriptor = &self.group.values()[value];
        assert!(descriptor.semantics != Semantics::Cumulative, "a cumulative value only grows");
        let ty = descriptor.ty;
        let peak = descriptor.semantics == Semantics::Peak;
        self.change(value, |old| {
            let (old, new) = (ty.extend(old), ty.extend(to));
            let below = if ty.is_signed() { (old as i64) < new as i64 } else { old < new };
            if peak && !below { old } else { new }
        });
    }

    /// Records one value in a histogram.
    ///
    /// # Panics
    /// If the group has no such value, or it is no histogram.
    pub fn record(&self, value: usize, n: u64) {
        let ValueType::Histogram { buckets, sum } = self.group.values()[value].ty else {
            panic!("value {value} of group {} is no histogram", self.group.name());
        };
        let at = self.shape.plain + self.group.places()[value].offset as usize;
        let bucket = crate::cell::bucket_of(n, buckets.into()) + usize::from(sum);
        self.store(at + bucket * 8, 8, |old| old.wrapping_add(1));
        if sum {
            self.store(at, 8, |old| old.wrapping_add(n));
        }
    }

    /// Sets all plain cells, whatever they are: to words in the order of the group's values. For values that
    /// somebody else has counted.
    pub(crate) fn store_all(&self, words: &[u64]) {
        let mut words = words.iter();
        for (value, place) in self.group.values().iter().zip(self.group.places()) {
            let (width, at) = (value.ty.width(), self.shape.plain + place.offset as usize);
            assert!(place.area == Area::Plain, "group {} is consistent", self.group.name());
            for (n, word) in words.by_ref().take(value.ty.cells()).enumerate() {
                self.store(at + n * width, width, |_| *word);
            }
        }
    }

    fn change(&self, value: usize, change: impl Fn(u64) -> u64) {
        let ty = self.group.values()[value].ty;
        assert!(!ty.is_histogram(), "value {value} of group {} is a histogram", self.group.name());
        let place = self.group.places()[value];
        let offset = place.offset as usize;
        match place.area {
            Area::Plain => self.store(self.shape.plain + offset, ty.width(), change),
            Area::Latched => {
                let base = self.held.inner.base;
                // SAFETY: as in `Slot::update`.
                let sequence = unsafe { base.add(BLOCK_SEQUENCE).cast::<AtomicU64>().as_ref() };
                latch::update(sequence, |copy| {
                    let area = if copy == 0 { BLOCK_HEADER } else { self.shape.copy1 };
                    self.store(area + offset, ty.width(), &change);
                });
            }
        }
    }

    fn store(&self, offset: usize, width: usize, change: impl Fn(u64) -> u64) {
        use crate::cell::Int;
        assert!(offset.is_multiple_of(width) && offset + width <= self.held.inner.len);
        let at = self.held.inner.base.as_ptr();
        macro_rules! cell {
            ($int:ty) => {{
                // SAFETY: the cell is inside the block and aligned (checked above), and everybody
                // accesses it as an atomic of this width; the block lives as long as the slot.
                let cell = unsafe { &*at.add(offset).cast::<<$int as Int>::Atomic>() };
                <$int>::store(cell, change(<$int>::load(cell).into()) as $int);
            }};
        }
        match width {
            1 => cell!(u8),
            2 => cell!(u16),
            4 => cell!(u32),
            _ => cell!(u64),
        }
    }
}
