//! Reading cells: every block of a set of sources, each counted exactly once, whatever comes, goes and
//! is folded meanwhile.
//!
//! The order is the format's (`segment::layout`, "Reading"): *folds*; the accumulators, a target before
//! what is retired into it; the slots' blocks; *folds* again.

use std::collections::HashMap;
use std::ops::Range;

use super::files::IdentityId;
use super::model::Reach;
use super::{GroupId, ProcessId, SourceKey, State};
use crate::aggregate::combine;
use crate::segment::process::{BlockRef, Place, Reading};
use crate::value::{GroupDescriptor, Semantics};

/// Times that a process's blocks are read again because a fold came in between. An honest writer folds
/// rarely, and only then.
const TRIES: usize = 100;

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
    /// Some block was freed since the model was brought up to date: sources have gone that the model
    /// still has. Totals are right all the same.
    pub(crate) outdated: bool,
    /// Blocks that a writer changed faster than they could be read, or that a fold kept from being read:
    /// only a hostile writer can.
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
            let (cells, words) = (out.cells.len(), out.words.len());
            for attempt in 1.. {
                let folds = self.processes[process].folds();
                let torn = out.torn;
                let mut reader =
                    Reader { state: self, want, out, index: HashMap::new(), buffer: Vec::new() };
                reader.read(&sources);
                if self.processes[process].folds_after() == folds {
                    break;
                }
                if attempt == TRIES {
                    out.torn += 1;
                    break;
                }
                out.cells.truncate(cells);
                out.words.truncate(words);
                out.torn = torn;
            }
        }
    }
}

impl Reader<'_> {
    fn read(&mut self, sources: &[SourceKey]) {
        let state = self.state;
        // The upto of each accumulator, as it was read.
        let mut uptos: HashMap<Place, u64> = HashMap::new();
        for key in sources {
            let (Some(model), Some(record)) =
                (state.sources.get(key), state.processes[key.0].source(key.1))
            else {
                continue;
            };
            let into = match model.reach {
                Reach::Not => continue,
                Reach::Live => *key,
                Reach::Departed(into) => (key.0, into),
            };
            for group in &record.groups {
                let Some(block) = &group.accumulator else { continue };
                let Some(value) = self.wanted(&group.group) else { continue };
                let (reading, upto) = self.read_block(key.0, block, &group.group, value, true);
                match reading {
                    Reading::Cells { retired } => {
                        uptos.insert(block.place, upto);
                        if !is_folded(&uptos, retired) {
                            self.add(Account::Departed(into), &group.group, value, true);
                        }
                    }
                    Reading::Gone => self.out.outdated = true,
                    Reading::Torn => self.out.torn += 1,
                }
            }
        }
        for key in sources {
            let (Some(model), Some(record)) =
                (state.sources.get(key), state.processes[key.0].source(key.1))
            else {
                continue;
            };
            let account = match model.reach {
                Reach::Not => continue,
                Reach::Live => Account::Live(*key),
                Reach::Departed(into) => Account::Departed((key.0, into)),
            };
            let departed = matches!(account, Account::Departed(_));
            for group in &record.groups {
                if group.slots.is_empty() || departed && !group.group.has_cumulative() {
                    continue;
                }
                let Some(value) = self.wanted(&group.group) else { continue };
                for block in &group.slots {
                    match self.read_block(key.0, block, &group.group, value, false).0 {
                        Reading::Cells { retired } => {
                            if !is_folded(&uptos, retired) {
                                self.add(account, &group.group, value, departed);
                            }
                        }
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
        accumulator: bool,
    ) -> (Reading, u64) {
        let process = &self.state.processes[process];
        let len = value.map_or_else(|| group.words(), |v| group.values()[v].ty.cells());
        self.buffer.clear();
        self.buffer.resize(len, 0);
        match (accumulator, value) {
            (true, value) => process.read_accumulator(block, value, &mut self.buffer),
            (false, None) => (process.read(block, &mut self.buffer), 0),
            (false, Some(value)) => (process.read_value(block, value, &mut self.buffer), 0),
        }
    }

    /// Adds what is in the buffer to an account: all of it, or only what is cumulative.
    fn add(
        &mut self,
        account: Account,
        group: &std::sync::Arc<GroupDescriptor>,
        value: Option<usize>,
        cumulative: bool,
    ) {
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
                words[at] = match (value.semantics, cumulative) {
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

fn is_folded(uptos: &HashMap<Place, u64>, retired: Option<crate::segment::process::Retired>) -> bool {
    retired.is_some_and(|r| uptos.get(&r.target).is_some_and(|upto| r.number <= *upto))
}
