//! Reading cells: every block of a set of sources, each counted exactly once, whatever comes, goes and
//! is folded meanwhile.
//!
//! A process selects the copy of each accumulator when it is brought up to date. A sweep is right if no
//! fold came between that and the sweep's end (`segment::process`, "Reading sums"); if one did, the sweep
//! is [outdated](Sweep::outdated), and is to be made again.

use std::collections::HashMap;
use std::ops::Range;

use super::files::IdentityId;
use super::model::Reach;
use super::{GroupId, ProcessId, SourceKey, State};
use crate::aggregate::combine;
use crate::segment::process::{BlockRef, Reading};
use crate::value::{GroupDescriptor, Semantics};

/// On whose account cells are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// A live source's own.
    Live(SourceKey),
    /// What departed sources left in this one.
    Departed(SourceKey),
}

/// The cells of one group on one account: raw, all slots combined.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    pub(crate) account: Account,
    pub(crate) group: GroupId,
    words: Range<usize>,
}

/// What a sweep read.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pub(crate) cells: Vec<Cells>,
    words: Vec<u64>,
    /// A fold came in between, or a block was freed: the model must be brought up to date and the sweep
    /// made again.
    pub(crate) outdated: bool,
    /// Blocks that a writer changed faster than they could be read: only a hostile writer can.
    pub(crate) torn: usize,
}

impl Sweep {
    /// The words of some cells: all of the group's, or those of the one value that was asked for.
    pub(crate) fn words(&self, cells: &Cells) -> &[u64] {
        &self.words[cells.words.clone()]
    }

    fn clear(&mut self) {
        self.cells.clear();
        self.words.clear();
        self.outdated = false;
        self.torn = 0;
    }
}

/// What to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// All values of all groups.
    All,
    /// One value.
    Value(IdentityId),
}

/// Accumulates the cells of one account and group.
struct Reader<'a> {
    state: &'a State,
    want: Want,
    out: &'a mut Sweep,
    index: HashMap<(Account, GroupId), usize>,
    buffer: Vec<u64>,
}

impl State {
    /// Reads the cells of `sources`, which are in order from the top down.
    pub(crate) fn sweep(&self, sources: &[SourceKey], want: Want) -> Sweep {
        let mut out = Sweep::default();
        self.sweep_into(sources, want, &mut out);
        out
    }

    /// As [`sweep`](Self::sweep), into a buffer that was used before.
    pub(crate) fn sweep_into(&self, sources: &[SourceKey], want: Want, out: &mut Sweep) {
        out.clear();
        let mut of_process: HashMap<ProcessId, Vec<SourceKey>> = HashMap::new();
        for key in sources {
            of_process.entry(key.0).or_default().push(*key);
        }
        for (process, sources) in of_process {
            let mut reader =
                Reader { state: self, want, out, index: HashMap::new(), buffer: Vec::new() };
            reader.read(&sources);
            out.outdated |= !self.processes[process].is_current();
        }
    }
}

impl Reader<'_> {
    fn read(&mut self, sources: &[SourceKey]) {
        let state = self.state;
        for key in sources {
            let process = &state.processes[key.0];
            let (Some(model), Some(record)) = (state.sources.get(key), process.source(key.1))
            else {
                continue;
            };
            let (own, left) = match model.reach {
                Reach::Not => continue,
                Reach::Live => (Account::Live(*key), Account::Departed(*key)),
                Reach::Departed(into) => {
                    (Account::Departed((key.0, into)), Account::Departed((key.0, into)))
                }
            };
            for group in &record.groups {
                let Some(value) = self.wanted(&group.group) else { continue };
                let slots = group.slots.iter().map(|block| (block, own));
                let accumulator = group.accumulator.iter().map(|block| (block, left));
                for (block, account) in slots.chain(accumulator) {
                    match self.read_block(key.0, block, &group.group, value) {
                        Reading::Cells { retired: Some(retired), .. }
                            if process.is_folded(retired) => {}
                        Reading::Cells { .. } => self.add(account, &group.group, value),
                        Reading::Gone => self.out.outdated = true,
                        Reading::Torn => self.out.torn += 1,
                    }
                }
            }
        }
    }

    /// Whether a group is wanted, and which of its values: `None` of them means all.
    fn wanted(&self, group: &std::sync::Arc<GroupDescriptor>) -> Option<Option<usize>> {
        match self.want {
            Want::All => Some(None),
            Want::Value(identity) => {
                let id = self.state.group_id(group)?;
                self.state.identities.value_of(id, identity).map(Some)
            }
        }
    }

    fn read_block(
        &mut self,
        process: ProcessId,
        block: &BlockRef,
        group: &GroupDescriptor,
        value: Option<usize>,
    ) -> Reading {
        let process = &self.state.processes[process];
        let len = value.map_or_else(|| block.words(), |v| group.values()[v].ty.cells());
        self.buffer.clear();
        self.buffer.resize(len, 0);
        match value {
            None => process.read(block, &mut self.buffer),
            Some(value) => process.read_value(block, value, &mut self.buffer),
        }
    }

    /// Adds what is in the buffer to an account; of departed cells only what is cumulative.
    fn add(
        &mut self,
        account: Account,
        group: &std::sync::Arc<GroupDescriptor>,
        value: Option<usize>,
    ) {
        let departed = matches!(account, Account::Departed(_));
        let Some(id) = self.state.group_id(group) else { return };
        let out = &mut *self.out;
        let known = *self.index.entry((account, id)).or_insert_with(|| {
            let start = out.words.len();
            out.words.resize(start + self.buffer.len(), 0);
            let words = start..out.words.len();
            out.cells.push(Cells { account, group: id, words });
            out.cells.len() - 1
        });
        let words = &mut out.words[out.cells[known].words.clone()];
        let values = match value {
            Some(value) => std::slice::from_ref(&group.values()[value]),
            None => group.values(),
        };
        let mut at = 0;
        for value in values {
            for _ in 0..value.ty.cells() {
                let cell = self.buffer[at];
                words[at] = match (value.semantics, departed) {
                    // Departed counts are 64-bit sums, whatever the width of the cells was.
                    (Semantics::Cumulative, true) => words[at].wrapping_add(cell),
                    (_, true) => 0,
                    (semantics, false) => combine(value.ty, semantics, words[at], cell),
                };
                at += 1;
            }
        }
    }
}
