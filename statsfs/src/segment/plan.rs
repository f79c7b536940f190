//! How the cells of a group's blocks become 64-bit words: worked out once per group, used by every
//! sweep.
//!
//! A copy of a group is one word per cell, values in the order of their declaration, the cells of a
//! histogram one after the other (the sum first, if there is one). Where cells of one type lie side by
//! side in the block and in the copy they are one *run*, so that a sweep over full-width counters is a
//! plain loop.

use crate::fd_groups::Maps;
use std::sync::Arc;

use super::layout::{BlockShape, accumulator_copy, block_shape};
use super::protocol;
use super::region::Region;
use super::sync::Ordering;
use crate::value::{Area, GroupDescriptor, ValueType};

/// Cells of one type that follow each other in their area and in the copy.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Offset in the area.
    offset: u32,
    /// First word of the copy.
    first: u32,
    /// Number of cells.
    cells: u32,
    /// Type, which says how a cell is extended to a word.
    ty: ValueType,
}

impl Run {
    fn is_wide(&self) -> bool {
        self.ty.width() == 8
    }

    /// Whether `next` goes on where this run ends.
    fn is_continued_by(&self, next: &Self) -> bool {
        let same = self.ty == next.ty || self.is_wide() && next.is_wide();
        let width = self.ty.width() as u32;
        same && next.offset == self.offset + self.cells * width
            && next.first == self.first + self.cells
    }

    /// Copies the run, whose area begins at `area`, to its words.
    #[inline]
    fn copy(&self, region: &Region, area: usize, out: &mut [u64]) {
        let at = area + self.offset as usize;
        let out = &mut out[self.first as usize..][..self.cells as usize];
        if self.is_wide() {
            for (out, cell) in out.iter_mut().zip(region.words(at, self.cells as usize)) {
                *out = cell.load(Ordering::Relaxed);
            }
        } else {
            let width = self.ty.width();
            for (n, out) in out.iter_mut().enumerate() {
                *out = self.ty.extend(region.cell(at + n * width, width));
            }
        }
    }
}

/// Where one value's cells are.
#[derive(Clone, Copy, Debug)]
struct ValuePlan {
    area: Area,
    run: Run,
}

/// A group and how to copy its blocks.
#[derive(Debug)]
pub(crate) struct Plan {
    group: Arc<GroupDescriptor>,
    /// Tells the groups of one process apart.
    id: u32,
    shape: BlockShape,
    words: usize,
    latched: Vec<Run>,
    plain: Vec<Run>,
    values: Vec<ValuePlan>,
    /// Where its words are in descriptors that are read as this group.
    fd_maps: Maps,
}

impl Plan {
    pub(crate) fn fd_maps(&self) -> &Maps {
        &self.fd_maps
    }

    pub(crate) fn new(group: Arc<GroupDescriptor>, id: u32) -> Self {
        let mut first = 0;
        let mut values = Vec::with_capacity(group.values().len());
        let (mut latched, mut plain) = (Vec::<Run>::new(), Vec::<Run>::new());
        for (value, place) in group.values().iter().zip(group.places()) {
            let cells = value.ty.cells() as u32;
            let run = Run { offset: place.offset, first, cells, ty: value.ty };
            first += cells;
            values.push(ValuePlan { area: place.area, run });
            let runs = if place.area == Area::Latched { &mut latched } else { &mut plain };
            match runs.last_mut() {
                Some(last) if last.is_continued_by(&run) => last.cells += cells,
                _ => runs.push(run),
            }
        }
        let shape = block_shape(group.latched_size(), group.plain_size());
        let words = first as usize;
        Self { words, group, id, shape, latched, plain, values, fd_maps: Maps::default() }
    }

    pub(crate) fn group(&self) -> &Arc<GroupDescriptor> {
        &self.group
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Words of a copy of the group.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Length of a slot's block.
    pub(crate) fn slot_len(&self) -> usize {
        self.shape.len
    }

    /// Length of an accumulator.
    pub(crate) fn accumulator_len(&self) -> usize {
        2 * accumulator_copy(self.words)
    }

    /// Copies all cells of the slot's block at `block`. False if the writer overtook every one of
    /// `tries` attempts at the latched ones.
    #[inline]
    pub(crate) fn copy(
        &self,
        region: &Region,
        block: usize,
        out: &mut [u64],
        tries: usize,
    ) -> bool {
        for run in &self.plain {
            run.copy(region, block + self.shape.plain, out);
        }
        self.latched.is_empty()
            || protocol::latched(region, block, self.shape.copy1, tries, |copy| {
                for run in &self.latched {
                    run.copy(region, copy, out);
                }
            })
    }

    /// Copies the cells of one value of the slot's block at `block` to the beginning of `out`; as
    /// [`copy`](Self::copy).
    pub(crate) fn copy_value(
        &self,
        region: &Region,
        block: usize,
        value: usize,
        out: &mut [u64],
        tries: usize,
    ) -> bool {
        let ValuePlan { area, run } = self.values[value];
        let run = Run { first: 0, ..run };
        match area {
            Area::Plain => {
                run.copy(region, block + self.shape.plain, out);
                true
            }
            Area::Latched => protocol::latched(region, block, self.shape.copy1, tries, |copy| {
                run.copy(region, copy, out);
            }),
        }
    }

    /// The words of one value in a copy of the group.
    pub(crate) fn value_words(&self, value: usize) -> std::ops::Range<usize> {
        let run = self.values[value].run;
        run.first as usize..(run.first + run.cells) as usize
    }
}
