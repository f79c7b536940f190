//! Models of the protocol for loom, which runs every interleaving and every value that a relaxed load may
//! answer, on the code of `segment/latch.rs` and `segment/protocol.rs` itself, compiled here with loom's atomics:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p statsfs --release --test models
//! ```
//!
//! Where it makes no difference a block's cells are written by the thread that changes the structure, which
//! keeps the models small.

#![cfg(loom)]

#[path = "../../src/segment/latch.rs"]
mod latch;
#[path = "../../src/segment/layout.rs"]
#[allow(dead_code)]
mod layout;
#[path = "../../src/segment/protocol.rs"]
#[allow(dead_code)]
mod protocol;
mod region;
mod sync;

use loom::sync::Arc;
use loom::thread;

use layout::{
    BLOCK_HEADER, CUT, UNIT, block_shape, head, header, is_published, kind, pair, role,
    unit_offset, word,
};
use protocol::Selected;
use region::Region;
use sync::{AtomicU64, Ordering, kill_after, only_writer};

/// The units of the model: two accumulators, of which the second departs, and one that blocks use in
/// turn.
const OUTER: u32 = 0;
const INNER: u32 = 1;
const BLOCK: u32 = 2;
const UNITS: usize = 3;
/// Their memory, behind the units. Only what is used of it is modelled.
const CELLS: usize = unit_offset(UNITS as u32);
const MEMORY: [usize; UNITS] = [CELLS, CELLS + 2 * UNIT, CELLS + 4 * UNIT];
/// The group: one cell, so that a copy of an accumulator is two words.
const WORDS: usize = 1;
/// The cell of a slot's block, in a group that is not consistent.
const CELL: usize = block_shape(0, 8).plain;

struct Model {
    first: Region,
    segment: Region,
    /// Whether the writer is taken for dead.
    given_up: bool,
}

impl Model {
    fn new() -> Self {
        let model = Self {
            first: Region::new(header::FOLDS, 1),
            segment: Region::new(unit_offset(0), UNITS * UNIT / 8 + 5 * UNIT / 8),
            given_up: false,
        };
        model.publish(OUTER, role::ACCUMULATOR, 10);
        model.publish(INNER, role::ACCUMULATOR, 11);
        model
    }

    fn publish(&self, unit: u32, role: u8, source: u64) {
        let mut words = [0; 6];
        words[0] = head(kind::BLOCK, role, 0, 0, 0);
        words[word::BLOCK_SOURCE - 1] = source;
        protocol::publish(&self.segment, unit, &words);
    }

    /// Publishes a slot's block and counts in it.
    fn start(&self, source: u64, counts: &[u64]) {
        protocol::zero(&self.segment, MEMORY[2] + BLOCK_HEADER, 8);
        self.publish(BLOCK, role::SLOT, source);
        let cell = self.segment.word(MEMORY[2] + CELL);
        for count in counts {
            cell.store(*count, Ordering::Relaxed);
        }
    }

    fn retire(&self, unit: u32, target: u32, number: u64) {
        protocol::retire(&self.segment, unit, pair(target, 0), number);
    }

    /// Retires the block though its slot counts.
    fn retire_cut(&self, number: u64) {
        protocol::retire(&self.segment, BLOCK, pair(OUTER, 0) | CUT, number);
    }

    fn cell(&self) -> &AtomicU64 {
        self.segment.word(MEMORY[2] + CELL)
    }

    fn cut(&self) {
        protocol::cut(&self.first);
    }

    fn fold(&self, target: u32, upto: u64, add: u64) {
        protocol::fold(&self.segment, target, MEMORY[target as usize], upto, &[add]);
    }

    fn folded(&self) {
        protocol::folded(&self.first);
    }

    fn free(&self, unit: u32) {
        protocol::free(&self.segment, unit);
    }

    fn folds(&self) -> u64 {
        protocol::acquire(&self.first, header::FOLDS)
    }

    fn select(&self, unit: u32) -> Selected {
        protocol::accumulator(&self.segment, unit, MEMORY[unit as usize], WORDS)
    }

    /// The block's record, as a scan finds it: its generation.
    fn scan(&self) -> Option<u64> {
        // That a record is copied whole is another model's matter; here it would only multiply the runs.
        Some(protocol::generation(&self.segment, BLOCK)).filter(|g| is_published(*g))
    }

    /// What a sweep adds for one block, if it is there and not folded; `Err` if it is being cut.
    fn count(
        &self,
        unit: u32,
        generation: u64,
        cell: usize,
        select: &[Selected],
    ) -> Result<Option<u64>, Cutting> {
        let mut value = 0;
        let read = protocol::read_block(&self.segment, unit, generation, || {
            value = self.segment.word(cell).load(Ordering::Relaxed);
        });
        let Some((number, target)) = read else { return Ok(None) };
        let upto = select[target as u32 as usize].upto;
        self.judge(number, target, upto).map(|counts| counts.then_some(value))
    }

    /// Whether a block counts, by its retire number and target, and that one's *upto*.
    fn judge(&self, number: u64, target: u64, upto: u64) -> Result<bool, Cutting> {
        if protocol::is_folded(number, upto) {
            return Ok(false);
        }
        if number != 0 && target & CUT != 0 && !self.given_up { Err(Cutting) } else { Ok(true) }
    }

    /// One sweep in the documented order; `None` if a fold overtook it, or a cut is going on. The
    /// accumulators may be selected in any order.
    fn sweep(&self, order: [u32; 2]) -> Option<u64> {
        let (folds, sum) = self.sweep_unchecked(order).ok()?;
        protocol::is_current(&self.first, folds).then_some(sum)
    }

    /// The same, but for the last look: also the number of folds that it must find.
    fn sweep_unchecked(&self, order: [u32; 2]) -> Result<(u64, u64), Cutting> {
        let folds = self.folds();
        let block = self.scan();
        let inner = protocol::generation(&self.segment, INNER);
        let mut select = [Selected { upto: 0, cells: 0 }; 2];
        for unit in order {
            select[unit as usize] = self.select(unit);
        }
        let mut sum = self.segment.word(select[0].cells).load(Ordering::Relaxed);
        if inner == 2 {
            sum += self.count(INNER, 2, select[1].cells, &select)?.unwrap_or(0);
        }
        if let Some(generation) = block {
            sum += self.count(BLOCK, generation, MEMORY[2] + CELL, &select)?.unwrap_or(0);
        }
        Ok((folds, sum))
    }

    /// One sweep that settles; `None` if it could not in as many rounds as there are blocks and one, or if a
    /// cut is going on.
    fn settled(&self) -> Option<u64> {
        let mut blocks = [protocol::Block::default(); UNITS];
        let generations: [u64; UNITS] =
            std::array::from_fn(|unit| protocol::generation(&self.segment, unit as u32));
        let mut cells = [0; UNITS];
        for (unit, block) in blocks.iter_mut().enumerate() {
            block.is_there = is_published(generations[unit]);
            block.is_accumulator = unit != BLOCK as usize;
        }
        if blocks[BLOCK as usize].is_there {
            let read = protocol::read_block(&self.segment, BLOCK, generations[2], || {
                cells[2] = self.cell().load(Ordering::Relaxed);
            });
            blocks[BLOCK as usize].is_there = read.is_some();
        }
        let cells = std::cell::Cell::from_mut(&mut cells[..]).as_slice_of_cells();
        let settled = protocol::settle(
            &mut blocks,
            UNITS + 1,
            |unit| {
                let (at, generation) = (MEMORY[unit], generations[unit]);
                let mut sum = [0];
                let upto = protocol::copy_accumulator(
                    &self.segment,
                    unit as u32,
                    generation,
                    at,
                    &mut sum,
                );
                cells[unit].set(sum[0]);
                upto
            },
            |unit| protocol::read_block(&self.segment, unit as u32, generations[unit], || {}),
        );
        let mut sum = 0;
        for (block, cell) in blocks.iter().zip(cells).filter(|(block, _)| block.is_there) {
            let (number, target) = block.retired;
            if self.judge(number, target, blocks[target as u32 as usize].upto).ok()? {
                sum += cell.get();
            }
        }
        settled.then_some(sum)
    }
}

/// A block is retired as cut, and not folded.
#[derive(Debug)]
struct Cutting;

/// Explores a model. `bound` limits how often threads are preempted in one execution: without one the
/// larger models take hours, and the number of executions grows some tenfold with each. Every hole that
/// was ever put into them showed with two.
fn explore(bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let runs = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.max_branches = 100_000;
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    if runs.load(Relaxed) > 1 {
        println!("{} executions", runs.load(Relaxed));
    }
}

/// A writer on its own thread and a sweep on this one, once without and once with settling; then another
/// sweep when all is done. `bound` is for those that do not settle, which are smaller.
fn with_writer(
    bound: Option<usize>,
    prepare: fn(&Model),
    writer: fn(&Model),
    order: [u32; 2],
    allowed: &'static [u64],
) {
    explore(bound, move || {
        let model = Model::new();
        prepare(&model);
        let model = Arc::new(model);
        let writing = model.clone();
        let thread = thread::spawn(move || {
            only_writer();
            writer(&writing);
        });
        if let Some(sum) = model.sweep(order) {
            assert!(allowed.contains(&sum), "a sweep found {sum}, not one of {allowed:?}");
        }
        thread.join().unwrap();
        let sum = model.sweep(order);
        assert_eq!(sum, allowed.last().copied(), "at rest");
    });
    explore(Some(2), move || {
        let model = Model::new();
        prepare(&model);
        let model = Arc::new(model);
        let writing = model.clone();
        let thread = thread::spawn(move || {
            only_writer();
            writer(&writing);
        });
        let sum = model.settled().expect("whatever is folded meanwhile");
        assert!(allowed.contains(&sum), "settled at {sum}, not one of {allowed:?}");
        thread.join().unwrap();
        assert_eq!(model.settled(), allowed.last().copied(), "at rest");
    });
}

#[test]
fn latch_gives_whole_copies() {
    explore(Some(4), || {
        let sequence = Arc::new(AtomicU64::new(0));
        let cells: Arc<[AtomicU64; 4]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
        let writer = {
            let (sequence, cells) = (sequence.clone(), cells.clone());
            thread::spawn(move || {
                only_writer();
                for n in 1..=2 {
                    latch::update(&sequence, |copy| {
                        cells[2 * copy].store(n, Ordering::Relaxed);
                        cells[2 * copy + 1].store(n, Ordering::Relaxed);
                    });
                }
            })
        };
        let mut seen = [0; 2];
        // Each failed attempt takes one of the four changes of the sequence: a reader never waits for a
        // writer that has stopped, wherever it has.
        let whole = latch::read(&sequence, 5, |copy| {
            seen = std::array::from_fn(|n| cells[2 * copy + n].load(Ordering::Relaxed));
        });
        assert!(whole, "the reader gave up");
        assert_eq!(seen[0], seen[1], "the reader has half an update");
        writer.join().unwrap();
        let whole = latch::read(&sequence, 1, |copy| {
            seen = std::array::from_fn(|n| cells[2 * copy + n].load(Ordering::Relaxed));
        });
        assert_eq!((whole, seen), (true, [2, 2]));
    });
}

#[test]
fn latch_survives_the_writer() {
    for life in 0..=8 {
        explore(None, move || {
            let sequence = AtomicU64::new(0);
            let cells: [AtomicU64; 4] = std::array::from_fn(|_| AtomicU64::new(0));
            kill_after(life);
            for n in 1..=2 {
                latch::update(&sequence, |copy| {
                    cells[2 * copy].store(n, Ordering::Relaxed);
                    cells[2 * copy + 1].store(n, Ordering::Relaxed);
                });
            }
            let mut seen = [0; 2];
            assert!(latch::read(&sequence, 1, |copy| {
                seen = std::array::from_fn(|n| cells[2 * copy + n].load(Ordering::Relaxed));
            }));
            assert_eq!(seen[0], seen[1], "killed after {life} stores");
        });
    }
}

#[test]
fn records_are_whole() {
    explore(Some(3), || {
        let region = Arc::new(Region::new(unit_offset(0), UNIT / 8));
        let writing = region.clone();
        let writer = thread::spawn(move || {
            only_writer();
            protocol::publish(&writing, 0, &[0x10, 1, 1]);
            protocol::free(&writing, 0);
            protocol::publish(&writing, 0, &[0x10, 2, 2]);
        });
        if let Some(copy) = protocol::read_unit(&region, 0) {
            let n = copy[0] / 2;
            assert!(n == 1 || n == 2, "generation {}", copy[0]);
            assert_eq!(copy[1..4], [0x10, n, n], "a mixture of records");
        }
        writer.join().unwrap();
        assert_eq!(protocol::read_unit(&region, 0).unwrap()[..4], [4, 0x10, 2, 2]);
    });
}

#[test]
fn cells_belong_to_their_record() {
    explore(None, || {
        let model = Model::new();
        model.start(20, &[5]);
        let model = Arc::new(model);
        let writing = model.clone();
        let writer = thread::spawn(move || {
            only_writer();
            writing.free(BLOCK);
            writing.start(21, &[7]);
        });
        let select = [Selected { upto: 0, cells: 0 }; 2];
        if let Some(generation) = model.scan()
            && let Ok(Some(value)) = model.count(BLOCK, generation, MEMORY[2] + CELL, &select)
        {
            let allowed: &[u64] = if generation == 2 { &[5] } else { &[0, 7] };
            assert!(allowed.contains(&value), "generation {generation} seems to have {value}");
        }
        writer.join().unwrap();
    });
}

#[test]
fn departure_loses_nothing() {
    // 3 counts are folded and their block reused by another source, which counts 4.
    with_writer(
        Some(4),
        |model| model.start(20, &[3]),
        |model| {
            model.retire(BLOCK, OUTER, 1);
            model.fold(OUTER, 1, 3);
            model.folded();
            model.free(BLOCK);
            model.start(21, &[4]);
        },
        [OUTER, INNER],
        &[3, 7],
    );
}

#[test]
fn a_second_fold_tears_nothing() {
    with_writer(
        Some(3),
        |model| {
            model.start(20, &[3]);
            model.retire(BLOCK, OUTER, 1);
        },
        |model| {
            model.fold(OUTER, 1, 3);
            model.folded();
            model.free(BLOCK);
            model.start(21, &[4]);
            model.retire(BLOCK, OUTER, 2);
            model.fold(OUTER, 2, 4);
            model.folded();
            model.free(BLOCK);
        },
        [OUTER, INNER],
        &[3, 7],
    );
}

#[test]
fn folds_follow_each_other() {
    // Nothing new is published in between, whose fences would hide that a fold lacks its own.
    with_writer(
        Some(4),
        |model| {
            model.start(20, &[3]);
            model.fold(INNER, 0, 5);
            model.retire(BLOCK, OUTER, 1);
            model.retire(INNER, OUTER, 2);
        },
        |model| {
            model.fold(OUTER, 1, 3);
            model.folded();
            model.fold(OUTER, 2, 5);
            model.folded();
        },
        [OUTER, INNER],
        &[8],
    );
}

/// A block goes into the accumulator of its departed parent, and that into the one above.
fn fold_twice_up(model: &Model) {
    model.fold(INNER, 1, 3);
    model.folded();
    model.free(BLOCK);
    model.retire(INNER, OUTER, 2);
    model.fold(OUTER, 2, 3);
    model.folded();
    model.free(INNER);
}

fn prepare_two_levels(model: &Model) {
    model.start(20, &[3]);
    model.retire(BLOCK, INNER, 1);
}

#[test]
fn a_chain_of_folds_is_exact() {
    for order in [[INNER, OUTER], [OUTER, INNER]] {
        with_writer(Some(4), prepare_two_levels, fold_twice_up, order, &[3]);
    }
}

/// Shows that the models find holes, and why *folds* is bumped between dependent folds.
#[test]
#[should_panic(expected = "a sweep found")]
fn a_chain_must_be_announced() {
    with_writer(
        Some(3),
        prepare_two_levels,
        |model| {
            model.fold(INNER, 1, 3);
            model.retire(INNER, OUTER, 2);
            model.fold(OUTER, 2, 3);
            model.folded();
            model.free(BLOCK);
            model.free(INNER);
        },
        [INNER, OUTER],
        &[3],
    );
}

/// Shows why a block is judged by the copy of its accumulator that the sweep reads.
#[test]
#[should_panic(expected = "lost or twice")]
fn a_later_upto_must_not_judge() {
    explore(Some(3), || {
        let model = Model::new();
        model.start(20, &[3]);
        model.retire(BLOCK, OUTER, 1);
        let model = Arc::new(model);
        let writing = model.clone();
        let writer = thread::spawn(move || {
            only_writer();
            writing.fold(OUTER, 1, 3);
            writing.folded();
            writing.free(BLOCK);
        });
        let folds = model.folds();
        let generation = model.scan().unwrap_or(0);
        let before = model.select(OUTER);
        let mut sum = model.segment.word(before.cells).load(Ordering::Relaxed);
        let later = [model.select(OUTER); 2];
        sum += model.count(BLOCK, generation, MEMORY[2] + CELL, &later).unwrap().unwrap_or(0);
        if protocol::is_current(&model.first, folds) {
            assert_eq!(sum, 3, "lost or twice");
        }
        writer.join().unwrap();
    });
}

#[test]
fn every_count_survives_the_writer() {
    // Everything above in one life, ended after each of its stores: whoever reads then finds every count
    // that was stored, once.
    let lives = 200;
    for life in 0..=lives {
        explore(None, move || {
            let model = Model::new();
            model.start(20, &[3]);
            kill_after(life);
            model.retire(BLOCK, INNER, 1);
            fold_twice_up(&model);
            model.start(21, &[4]);
            model.retire(BLOCK, OUTER, 3);
            model.fold(OUTER, 3, 4);
            model.folded();
            model.free(BLOCK);
            kill_after(usize::MAX);
            let sum = model.sweep([OUTER, INNER]).unwrap();
            assert_eq!(model.settled(), Some(sum));
            assert!(sum == 3 || sum == 7, "{sum} after {life} stores");
            if life == lives {
                assert_eq!(sum, 7);
            }
        });
    }
}

/// A slot counts from 3 to 5 while its block is cut by `writer`, and `sweep` looks.
fn with_counting_slot(writer: fn(&Model), sweep: fn(&Model) -> Option<u64>) {
    explore(Some(2), move || {
        let model = Model::new();
        model.start(20, &[3]);
        model.cell().has_several_writers();
        let model = Arc::new(model);
        let (counting, writing) = (model.clone(), model.clone());
        let slot = thread::spawn(move || {
            counting.cell().store(4, Ordering::Relaxed);
            counting.cell().store(5, Ordering::Relaxed);
        });
        let thread = thread::spawn(move || {
            only_writer();
            writer(&writing);
        });
        let seen = sweep(&model).unwrap_or(3);
        assert!((3..=5).contains(&seen), "a sweep found {seen}");
        thread.join().unwrap();
        let cut = model.sweep([OUTER, INNER]).unwrap();
        assert!(seen <= cut && cut <= 5, "{seen} was shown and {cut} is left");
        slot.join().unwrap();
        assert_eq!(model.sweep([OUTER, INNER]), Some(cut), "nobody counts any more");
    });
}

fn cut(model: &Model) {
    model.retire_cut(1);
    model.cut();
    model.fold(OUTER, 1, model.cell().load(Ordering::Relaxed));
    model.folded();
    model.free(BLOCK);
}

fn sweep(model: &Model) -> Option<u64> {
    model.sweep([OUTER, INNER])
}

#[test]
fn a_cut_takes_nothing_back() {
    with_counting_slot(cut, sweep);
    with_counting_slot(cut, Model::settled);
}

/// Shows why a cut is announced before the fold looks.
#[test]
#[should_panic(expected = "was shown and")]
fn a_cut_must_be_announced() {
    with_counting_slot(
        |model| {
            let look = model.cell().load(Ordering::Relaxed);
            model.retire_cut(1);
            model.cut();
            model.fold(OUTER, 1, look);
            model.folded();
            model.free(BLOCK);
        },
        sweep,
    );
}

/// Shows why a sweep settles by looking at every block again.
#[test]
#[should_panic(expected = "was shown and")]
fn a_cut_must_be_marked() {
    with_counting_slot(
        |model| {
            model.cut();
            let look = model.cell().load(Ordering::Relaxed);
            model.retire_cut(1);
            model.fold(OUTER, 1, look);
            model.folded();
            model.free(BLOCK);
        },
        Model::settled,
    );
}

/// Shows why a sweep ends with a full fence.
#[test]
#[should_panic(expected = "was shown and")]
fn a_sweep_must_end_with_a_full_fence() {
    with_counting_slot(cut, |model| {
        let (folds, sum) = model.sweep_unchecked([OUTER, INNER]).ok()?;
        loom::sync::atomic::fence(Ordering::Acquire);
        (model.folds() == folds).then_some(sum)
    });
}

/// A block is folded and reused, and its next slot counts in a thread of its own.
fn with_next_slot(writer: fn(&Model), sweep: fn(&Model) -> Option<u64>) {
    explore(Some(2), move || {
        let model = Model::new();
        model.start(20, &[3]);
        model.retire(BLOCK, OUTER, 1);
        model.cell().has_several_writers();
        let model = Arc::new(model);
        let (counting, writing) = (model.clone(), model.clone());
        let handed = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let handing = handed.clone();
        let thread = thread::spawn(move || {
            only_writer();
            writer(&writing);
            handing.store(true, Ordering::Release);
        });
        let slot = thread::spawn(move || {
            if handed.load(Ordering::Acquire) {
                counting.cell().store(4, Ordering::Relaxed);
            }
        });
        if let Some(sum) = sweep(&model) {
            assert!([3, 7].contains(&sum), "a sweep found {sum}");
        }
        thread.join().unwrap();
        slot.join().unwrap();
    });
}

fn fold_and_reuse(model: &Model) {
    model.fold(OUTER, 1, 3);
    model.folded();
    model.free(BLOCK);
    protocol::freed();
    model.start(21, &[]);
}

#[test]
fn counts_of_the_next_slot_are_told_apart() {
    with_next_slot(fold_and_reuse, sweep);
    with_next_slot(fold_and_reuse, Model::settled);
}

/// Shows why there is a full fence between the freeing of a block and its reuse.
#[test]
#[should_panic(expected = "a sweep found")]
fn reuse_must_be_fenced() {
    with_next_slot(
        |model| {
            model.fold(OUTER, 1, 3);
            model.folded();
            model.free(BLOCK);
            model.start(21, &[]);
        },
        Model::settled,
    );
}

#[test]
fn a_writer_killed_in_a_cut_leaves_every_count() {
    let lives = 20;
    for life in 0..=lives {
        explore(None, move || {
            let mut model = Model::new();
            model.start(20, &[3]);
            kill_after(life);
            cut(&model);
            kill_after(usize::MAX);
            model.given_up = true;
            let sum = model.sweep([OUTER, INNER]);
            assert_eq!((sum, model.settled()), (Some(3), Some(3)), "killed after {life} stores");
        });
    }
}
