//! Departures: how a source leaves without losing a count.
//!
//! Removing a source is one store; its blocks go on counting in its parent as `.departed`. A block whose
//! slot was dropped is retired, and folded in time into an accumulator of the parent, which was reserved
//! when the group first came below that parent. An accumulator of a departed source is itself such a
//! block. Only a fold frees anything that somebody may be reading, and folds are rare: a revocation folds
//! at once, but leaves the freeing to the next.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::names::KnownGroup;
use super::state::{Block, CutOff, GroupKey, Life, Node, Place, State};
use crate::segment::layout::{BlockShape, CUT, block_shape, pair, state, word};
use crate::segment::protocol::{self, LATCH_TRIES};
use crate::segment::region::Region;
use crate::slot::SlotInner;
use crate::value::{Area, Semantics};

/// Least time between two folds, unless memory is short: a reader's sweep that a fold overtakes starts
/// again, so folds must be rare compared with sweeps.
const FOLD_INTERVAL: Duration = Duration::from_millis(50);
/// A sweep takes the longer the more sources there are. This is what it takes for each, many times over.
const FOLD_INTERVAL_PER_SOURCE: Duration = Duration::from_micros(5);

/// A block that waits to be folded, or to be freed.
#[derive(Debug)]
pub(crate) struct Retired {
    source: u64,
    key: GroupKey,
    block: Block,
    accumulator: bool,
    /// The source that has the accumulator to which it goes; none if it has nothing cumulative.
    target: Option<u64>,
}

impl State {
    /// Whether a fold is due at some time.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.folded.is_empty()
    }

    /// When the next fold should be.
    pub(crate) fn fold_due(&self) -> Instant {
        let sources = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.last_fold + FOLD_INTERVAL.max(FOLD_INTERVAL_PER_SOURCE * sources)
    }

    /// Removes a source, with all below it, from its parent.
    pub(crate) fn depart(&mut self, id: u64) {
        let Some(parent) = self.nodes[&id].parent else { return };
        let record = self.source_record(id);
        let region = self.arenas[record.segment].region();
        protocol::set_word(region, record.unit, word::STATE, state::DEPARTED);
        let groups = self.nodes[&id].subtree_groups();
        let mut chain = vec![parent];
        chain.extend(self.ancestors(parent));
        self.count_below(&chain, &groups, false);
        self.remove_shown(parent, id);
        let node = self.node(parent);
        node.children.remove(&id);
        node.leaving.insert(id);
        let members = self.subtree(id);
        for &member in &members {
            self.node(member).life = Life::Departed(id);
        }
        self.expect_folds(parent, &members);
        for &member in &members {
            self.settle(member);
        }
        self.changed();
    }

    /// Ends the counting of slots that are still held in a subtree that departed: what their blocks hold
    /// now is folded at once, and what is counted from here on is seen by nobody. The memory is given back
    /// when both the record is freed, as all are from time to time, and the slot dropped.
    pub(crate) fn cut_off(&mut self, members: &[u64]) {
        for member in members {
            let Some(node) = self.nodes.get_mut(member) else { continue };
            for block in node.groups.values_mut().flatten() {
                if let Some(slot) = block.slot.take() {
                    let cut_off = CutOff { block: block.block, record_freed: false };
                    self.cut_off.insert(slot.address(), cut_off);
                }
            }
            self.settle(*member);
        }
        self.commit();
        self.changed();
    }

    /// Lets go of a source that was never attached, with all below it: nobody can see it, so nothing
    /// of it is kept.
    pub(crate) fn abandon(&mut self, id: u64) {
        let members =
            |state: &Self| state.descend(id, |node| node.children.iter().chain(&node.leaving));
        // What is on its way into accumulators of the subtree must not outlive them.
        if members(self).iter().any(|member| self.is_target(*member)) {
            self.fold();
        }
        let members = members(self);
        for &member in &members {
            self.node(member).life = Life::Abandoned;
        }
        for &member in members.iter().rev() {
            self.settle(member);
        }
        self.changed();
    }

    /// Whether anything waits that goes, or went, into an accumulator of this source.
    fn is_target(&self, id: u64) -> bool {
        self.nodes[&id].accumulators.values().any(|accumulator| accumulator.outstanding > 0)
    }

    fn source_record(&self, id: u64) -> Place {
        *self.nodes[&id].records.last().expect("a source's own record is its last")
    }

    /// A source and all that is below it and has not left before; parents before children.
    pub(crate) fn subtree(&self, id: u64) -> Vec<u64> {
        self.descend(id, |node| node.children.iter())
    }

    fn descend<'a, I: Iterator<Item = &'a u64>>(
        &'a self,
        id: u64,
        below: impl Fn(&'a Node) -> I,
    ) -> Vec<u64> {
        let mut all = vec![id];
        let mut at = 0;
        while at < all.len() {
            all.extend(below(&self.nodes[&all[at]]));
            at += 1;
        }
        all
    }

    /// Every counting block and accumulator of the members will be folded into `parent`.
    fn expect_folds(&mut self, parent: u64, members: &[u64]) {
        for member in members {
            let node = &self.nodes[member];
            let slots = node.groups.iter().map(|(key, blocks)| (*key, blocks.len()));
            let accumulators = node.accumulators.keys().map(|key| (*key, 1));
            let expected: Vec<_> = slots.chain(accumulators).collect();
            for (key, n) in expected {
                if let Some(target) = self.node(parent).accumulators.get_mut(&key) {
                    target.outstanding += n;
                }
            }
        }
    }

    /// Retires or frees what a source that is no longer live does not need any more, and the source
    /// itself with the last of it.
    pub(crate) fn settle(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        if life == Life::Live {
            return;
        }
        let explicit: Vec<_> = node.explicit.drain().map(|(_, place)| place).collect();
        self.free_records(&explicit);
        let keys: Vec<_> = self.nodes[&id].groups.keys().copied().collect();
        for key in keys {
            let counts =
                matches!(life, Life::Departed(_)) && self.known[key].group.has_cumulative();
            let blocks = self.node(id).groups.get_mut(&key).expect("just listed");
            let (idle, busy) = std::mem::take(blocks).into_iter().partition(|b| b.slot.is_none());
            *blocks = busy;
            let idle: Vec<_> = idle;
            if blocks.is_empty() {
                self.node(id).groups.remove(&key);
            }
            for block in idle {
                let block = block.block;
                if counts {
                    self.retire(id, key, block, false);
                } else if life == Life::Abandoned {
                    self.free_block(&block);
                } else {
                    // Somebody may be reading it.
                    self.node(id).retired += 1;
                    let source = id;
                    let retired = Retired { source, key, block, accumulator: false, target: None };
                    self.folded.push(retired);
                }
            }
        }
        let ready: Vec<_> = self.nodes[&id]
            .accumulators
            .iter()
            .filter(|(_, a)| !a.retired && (a.outstanding == 0 || life == Life::Abandoned))
            .map(|(key, a)| (*key, a.block))
            .collect();
        for (key, block) in ready {
            if life == Life::Abandoned {
                self.node(id).accumulators.remove(&key);
                self.free_block(&block);
            } else {
                self.node(id).accumulators.get_mut(&key).expect("just listed").retired = true;
                self.retire(id, key, block, true);
            }
        }
        self.free_if_empty(id);
    }

    /// Where the blocks of a departed source go: the parent of the source with which it left.
    fn fold_target(&self, id: u64) -> Option<u64> {
        match self.nodes[&id].life {
            Life::Departed(boundary) => self.nodes[&boundary].parent,
            _ => None,
        }
    }

    fn retire(&mut self, source: u64, key: GroupKey, block: Block, accumulator: bool) {
        let target = self.fold_target(source).expect("only departed blocks are retired");
        let place = self.nodes[&target].accumulators[&key].block.place;
        let number = self.next_retire;
        self.next_retire += 1;
        let cut = if !accumulator && self.is_cut_off(&block) { CUT } else { 0 };
        let target_word = pair(place.unit, place.segment as u32) | cut;
        let region = self.arenas[block.place.segment].region();
        protocol::retire(region, block.place.unit, target_word, number);
        self.node(source).retired += 1;
        let retired = Retired { source, key, block, accumulator, target: Some(target) };
        self.pending.entry((target, key)).or_default().push(retired);
    }

    /// Folds everything that is retired into its accumulators and frees it. Answers whether there was
    /// anything.
    pub(crate) fn fold(&mut self) -> bool {
        self.last_fold = Instant::now();
        let any = self.has_pending();
        // Accumulators of departed sources follow when there is nothing more to come for them.
        while self.has_pending() {
            self.commit();
            self.reclaim();
        }
        if any {
            self.changed();
        }
        any
    }

    /// Folds everything that is retired into its accumulators.
    fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.pending);
        let upto = self.next_retire - 1;
        let first = self.arenas[0].region();
        if batch.values().flatten().any(|r| !r.accumulator && self.is_cut_off(&r.block)) {
            protocol::cut(first);
        }
        for (&(target, key), retired) in &batch {
            let known = &self.known[key];
            let mut add = vec![0u64; known.words];
            for Retired { block, accumulator, .. } in retired {
                let region = self.arenas[block.place.segment].region();
                if *accumulator {
                    add_accumulator(region, block.place.unit, block.offset, &mut add);
                } else {
                    add_words(&mut add, &cells(region, block.offset, known));
                }
            }
            let Block { place, offset, .. } = self.nodes[&target].accumulators[&key].block;
            protocol::fold(self.arenas[place.segment].region(), place.unit, offset, upto, &add);
        }
        protocol::folded(first);
        self.folded.extend(batch.into_values().flatten());
    }

    /// Frees everything that was folded.
    fn reclaim(&mut self) {
        let folded = std::mem::take(&mut self.folded);
        for retired in &folded {
            self.free_block(&retired.block);
            let source = self.node(retired.source);
            source.retired -= 1;
            if retired.accumulator {
                source.accumulators.remove(&retired.key);
            }
            if let Some(target) = retired.target {
                let accumulator = self.node(target).accumulators.get_mut(&retired.key);
                accumulator.expect("it is reserved").outstanding -= 1;
            }
        }
        protocol::freed();
        for retired in &folded {
            self.settle(retired.source);
            retired.target.into_iter().for_each(|target| self.settle(target));
        }
    }

    /// Frees a source that has nothing left, then what was waiting for it above.
    fn free_if_empty(&mut self, id: u64) {
        let node = &self.nodes[&id];
        if node.life == Life::Live
            || !node.groups.is_empty()
            || !node.accumulators.is_empty()
            || node.retired > 0
            || !node.children.is_empty()
            || !node.leaving.is_empty()
        {
            return;
        }
        let node = self.nodes.remove(&id).expect("just looked up");
        // The source's own record first: labels without a source are nothing.
        let records: Vec<_> = node.records.into_iter().rev().collect();
        self.free_records(&records);
        let Some(parent) = node.parent else { return };
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children.remove(&id);
            above.leaving.remove(&id);
            self.free_if_empty(parent);
        }
    }

    /// A slot was dropped: its block waits for the next slot, or leaves with its source.
    pub(crate) fn release(&mut self, source: u64, slot: &SlotInner) {
        if let Some(CutOff { block, record_freed }) = self.cut_off.remove(&slot.address()) {
            if record_freed {
                self.arenas[block.place.segment].give(block.offset, block.len);
            }
            return;
        }
        let Some(node) = self.nodes.get_mut(&source) else { return };
        for block in node.groups.values_mut().flatten() {
            if block.slot.as_deref().is_some_and(|s| std::ptr::eq(s, slot)) {
                block.slot = None;
                break;
            }
        }
        let live = node.life == Life::Live;
        self.settle(source);
        if !live {
            self.changed();
        }
    }
}

/// Rounds of attempts to get a whole copy of what a slot still writes.
const LATCH_ROUNDS: u32 = 100;

/// A slot block's cumulative cells, in the order of the group's words; 0 for the others.
fn cells(region: &Region, block: usize, known: &KnownGroup) -> Vec<u64> {
    let group = &known.group;
    let BlockShape { copy1, plain, .. } = block_shape(group.latched_size(), group.plain_size());
    // A slot that was cut off goes on counting. Between two of its updates there is little time: only to
    // copy, not to look at what is copied.
    let mut latched = vec![0; group.latched_size() / 8];
    let whole = (0..LATCH_ROUNDS).any(|round| {
        if round > 0 {
            std::thread::sleep(Duration::from_micros(20));
        }
        protocol::latched(region, block, copy1, LATCH_TRIES, |copy| {
            protocol::copy_words(region, copy, &mut latched);
        })
    });
    if !whole {
        tracing::error!(
            group = group.name(),
            "a slot that was revoked is never at rest: its counts may not agree"
        );
    }
    let mut cells = vec![0; known.words];
    let mut word = 0;
    for (value, place) in group.values().iter().zip(group.places()) {
        let width = value.ty.width();
        for cell in 0..value.ty.cells() {
            if value.semantics == Semantics::Cumulative {
                let at = place.offset as usize + cell * width;
                cells[word] = match place.area {
                    Area::Latched => part(&latched, at, width),
                    Area::Plain => region.cell(block + plain + at, width),
                };
            }
            word += 1;
        }
    }
    cells
}

/// The cell of `width` bytes at an offset in a copy.
fn part(words: &[u64], offset: usize, width: usize) -> u64 {
    let from = words[offset / 8] >> (offset % 8 * 8);
    from & u64::MAX >> (64 - width * 8)
}

fn add_words(to: &mut [u64], words: &[u64]) {
    for (to, word) in to.iter_mut().zip(words) {
        *to = to.wrapping_add(*word);
    }
}

/// Adds an accumulator's selected copy to `add`.
fn add_accumulator(region: &Region, unit: u32, offset: usize, add: &mut [u64]) {
    let selected = protocol::accumulator(region, unit, offset, add.len());
    let cells = region.words(selected.cells, add.len());
    for (add, cell) in add.iter_mut().zip(cells) {
        *add = add.wrapping_add(cell.load(Ordering::Relaxed));
    }
}
