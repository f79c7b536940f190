//! The steps of the shared-memory protocol, both sides, as [`layout`](super::layout) states it.
//!
//! Nothing here allocates, locks or decides: the writer's bookkeeping (`registry`) and the reader's
//! (`reader`) call these steps, and the models in `tests/models` explore the same code under loom.

use super::latch;
use super::layout::{
    BLOCK_HEADER, BLOCK_SEQUENCE, UNIT_WORDS, accumulator_copy, header, is_published, unit_offset,
    word,
};
use super::region::Region;
use super::sync::{Ordering, fence};

/// Attempts after which a reader takes a latched block as torn: each failed one means that the writer
/// completed half an update meanwhile. Whoever does nothing but count is overtaken at the latest when a timer interrupts it,
/// every 4 ms as a rule; without optimisation, where a copy takes far longer than an update, hardly ever before.
pub(crate) const LATCH_TRIES: usize = if cfg!(debug_assertions) { 100_000 } else { 10_000 };

// ---- writer ------------------------------------------------------------------------------------

/// Publishes a record in a free unit: `words` are its words from the head on.
pub(crate) fn publish(region: &Region, unit: u32, words: &[u64]) {
    let at = unit_offset(unit);
    let generation = region.word(at).load(Ordering::Relaxed);
    debug_assert!(!is_published(generation));
    let writing = generation | 1;
    region.word(at).store(writing, Ordering::Relaxed);
    fence(Ordering::Release);
    for (n, value) in words.iter().enumerate() {
        region.word(at + (1 + n) * 8).store(*value, Ordering::Relaxed);
    }
    region.word(at).store(writing + 1, Ordering::Release);
}

/// Frees a record's unit.
pub(crate) fn free(region: &Region, unit: u32) {
    let at = region.word(unit_offset(unit));
    let generation = at.load(Ordering::Relaxed);
    debug_assert!(is_published(generation));
    at.store(generation + 1, Ordering::Release);
}

/// Zeroes a block that no published record names.
pub(crate) fn zero(region: &Region, offset: usize, len: usize) {
    fence(Ordering::Release);
    for cell in region.words(offset, len / 8) {
        cell.store(0, Ordering::Relaxed);
    }
}

/// Stores a dynamic word of a published record: the commit of an attachment or a departure.
pub(crate) fn set_word(region: &Region, unit: u32, word: usize, value: u64) {
    region.word(unit_offset(unit) + word * 8).store(value, Ordering::Release);
}

/// Gives a block that nobody writes any more its retire number; or one whose slot still counts, if
/// `target` has the bit [`CUT`](super::layout::CUT), which [`cut`] must follow.
pub(crate) fn retire(region: &Region, unit: u32, target: u64, number: u64) {
    let at = unit_offset(unit);
    region.word(at + word::TARGET * 8).store(target, Ordering::Relaxed);
    region.word(at + word::RETIRE * 8).store(number, Ordering::Release);
}

/// Commits a fold: the accumulator at `offset` with `add.len()` cells takes `add`, and every block that
/// targets it with a retire number up to `upto`. [`folded`] must follow before anything is freed.
pub(crate) fn fold(region: &Region, unit: u32, offset: usize, upto: u64, add: &[u64]) {
    let selector = region.word(unit_offset(unit) + word::SELECTOR * 8);
    let selected = selector.load(Ordering::Relaxed);
    let stride = accumulator_copy(add.len());
    let from = region.words(offset + selected as usize * stride, 1 + add.len());
    let to = region.words(offset + (1 - selected as usize) * stride, 1 + add.len());
    to[0].store(upto, Ordering::Relaxed);
    for ((to, from), add) in to[1..].iter().zip(&from[1..]).zip(add) {
        to.store(from.load(Ordering::Relaxed).wrapping_add(*add), Ordering::Relaxed);
    }
    selector.store(1 - selected, Ordering::Release);
}

/// Announces, in segment 0, that blocks are cut. After this they may be looked at.
pub(crate) fn cut(first: &Region) {
    bump(first, header::FOLDS);
    fence(Ordering::SeqCst);
}

/// Announces committed folds, in segment 0, before anything that they took is freed, and before the next.
pub(crate) fn folded(first: &Region) {
    bump(first, header::FOLDS);
    fence(Ordering::Release);
}

/// Must come between the freeing of blocks and the reuse of their memory.
pub(crate) fn freed() {
    fence(Ordering::SeqCst);
}

/// Bumps a counter of the header.
pub(crate) fn bump(region: &Region, counter: usize) {
    let counter = region.word(counter);
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

// ---- reader ------------------------------------------------------------------------------------

/// Loads a word, ordered before everything that follows.
pub(crate) fn acquire(region: &Region, offset: usize) -> u64 {
    let value = region.word(offset).load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}

/// The generation of a unit, ordered before everything that follows.
pub(crate) fn generation(region: &Region, unit: u32) -> u64 {
    acquire(region, unit_offset(unit))
}

/// Whether everything read since still belongs to the record of that generation.
pub(crate) fn is_still(region: &Region, unit: u32, generation: u64) -> bool {
    fence(Ordering::Acquire);
    region.word(unit_offset(unit)).load(Ordering::Relaxed) == generation
}

/// A copy of a published record and its generation (word 0), or `None` if the unit holds none now.
pub(crate) fn read_unit(region: &Region, unit: u32) -> Option<[u64; UNIT_WORDS]> {
    // Bounded: to overtake us, an honest writer must free a record and publish another within the copy
    // of one; a hostile one gets a record that is not there.
    for _ in 0..8 {
        let generation = generation(region, unit);
        if !is_published(generation) {
            return None;
        }
        let mut copy = [0; UNIT_WORDS];
        copy[0] = generation;
        let words = region.words(unit_offset(unit), UNIT_WORDS);
        for (copy, word) in copy.iter_mut().zip(words).skip(1) {
            *copy = word.load(Ordering::Relaxed);
        }
        if is_still(region, unit, generation) {
            return Some(copy);
        }
    }
    None
}

/// A dynamic word of a record, ordered before everything that follows.
pub(crate) fn dynamic(region: &Region, unit: u32, word: usize) -> u64 {
    acquire(region, unit_offset(unit) + word * 8)
}

/// A copy of an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selected {
    /// What is retired into the accumulator with a number up to this is in the copy.
    pub(crate) upto: u64,
    /// Offset of its cells.
    pub(crate) cells: usize,
}

/// The copy of an accumulator of `words` cells that is selected now. It stays as it is until *folds*
/// moves.
pub(crate) fn accumulator(region: &Region, unit: u32, offset: usize, words: usize) -> Selected {
    // A hostile selector still selects one of the two.
    let selected = dynamic(region, unit, word::SELECTOR) as usize & 1;
    let at = offset + selected * accumulator_copy(words);
    Selected { upto: region.word(at).load(Ordering::Relaxed), cells: at + 8 }
}

/// Copies the cells of an accumulator to `out`, and answers the *upto* of the copy that was selected; `None`
/// if the unit holds another record, or folds overtook every attempt.
pub(crate) fn copy_accumulator(
    region: &Region,
    unit: u32,
    generation: u64,
    offset: usize,
    out: &mut [u64],
) -> Option<u64> {
    // Each failed attempt means that a fold was committed meanwhile.
    for _ in 0..100 {
        if self::generation(region, unit) != generation {
            return None;
        }
        let selected = accumulator(region, unit, offset, out.len());
        // The next fold but one may have been writing to the copy already.
        fence(Ordering::Acquire);
        if accumulator(region, unit, offset, out.len()) != selected {
            continue;
        }
        copy_words(region, selected.cells, out);
        fence(Ordering::Acquire);
        if accumulator(region, unit, offset, out.len()) == selected {
            return is_still(region, unit, generation).then_some(selected.upto);
        }
    }
    None
}

/// Copies words to `out`.
#[inline]
pub(crate) fn copy_words(region: &Region, at: usize, out: &mut [u64]) {
    let words = region.words(at, out.len());
    for (out, word) in out.iter_mut().zip(words) {
        *out = word.load(Ordering::Relaxed);
    }
}

/// Runs `copy`, which copies the cells of a block, and answers the block's retire number and target, if
/// all of it belongs to the record of that generation.
#[inline]
pub(crate) fn read_block(
    region: &Region,
    unit: u32,
    generation: u64,
    copy: impl FnOnce(),
) -> Option<(u64, u64)> {
    if self::generation(region, unit) != generation {
        return None;
    }
    copy();
    let number = dynamic(region, unit, word::RETIRE);
    let target = if number == 0 { 0 } else { dynamic(region, unit, word::TARGET) };
    is_still(region, unit, generation).then_some((number, target))
}

/// Whether *folds* is what it was when accumulators were selected, so that all that was read since adds up.
pub(crate) fn is_current(first: &Region, folds: u64) -> bool {
    fence(Ordering::SeqCst);
    first.word(header::FOLDS).load(Ordering::Relaxed) == folds
}

/// A block of which a settling sweep has the cells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    /// Whether it is still there.
    pub(crate) is_there: bool,
    pub(crate) is_accumulator: bool,
    /// Its retire number and target, as it was last looked at.
    pub(crate) retired: (u64, u64),
    /// Of an accumulator, the *upto* that goes with the cells.
    pub(crate) upto: u64,
}

/// Settles a sweep, as the layout says: `copy(n)` copies the cells of an accumulator and answers its *upto*,
/// `look(n)` answers a block's retire number and target; `None` means that it is gone. Afterwards those
/// that are still there count, unless they are folded. Gives up, and answers false, after `rounds`.
pub(crate) fn settle(
    blocks: &mut [Block],
    rounds: usize,
    mut copy: impl FnMut(usize) -> Option<u64>,
    mut look: impl FnMut(usize) -> Option<(u64, u64)>,
) -> bool {
    for _ in 0..rounds {
        let mut again = false;
        for (n, block) in blocks.iter_mut().enumerate() {
            if block.is_there && block.is_accumulator {
                let upto = copy(n);
                (block.is_there, block.upto) = (upto.is_some(), upto.unwrap_or(0));
                again |= !block.is_there;
            }
        }
        fence(Ordering::SeqCst);
        for (n, block) in blocks.iter_mut().enumerate().filter(|(_, block)| block.is_there) {
            let retired = look(n);
            (block.is_there, block.retired) = (retired.is_some(), retired.unwrap_or_default());
            again |= !block.is_there;
        }
        if !again {
            return true;
        }
    }
    false
}

/// Whether a retire number means that the block is in its target already, of which the copy with this
/// *upto* is read.
pub(crate) const fn is_folded(retire: u64, upto: u64) -> bool {
    retire != 0 && retire <= upto
}

/// Runs `read` on the offset of a whole latched copy; false if the writer overtook it `tries` times.
pub(crate) fn latched(
    region: &Region,
    block: usize,
    copy1: usize,
    tries: usize,
    mut read: impl FnMut(usize),
) -> bool {
    latch::read(region.word(block + BLOCK_SEQUENCE), tries, |copy| {
        read(block + if copy == 0 { BLOCK_HEADER } else { copy1 });
    })
}
