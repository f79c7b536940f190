//! Reading cells: every block of a set of sources, each counted exactly once, whatever comes, goes and
//! is folded meanwhile.
//!
//! Which blocks are read, and on whose account, is a [`Plan`], made from the model; reading it touches
//! nothing but cells. A process selects the copy of each accumulator when it is brought up to date, so a
//! sweep is right if no fold came between that and the sweep's end (`segment::process`, "Reading
//! sums"); if one did, the sweep is [outdated](Sweep::outdated), and is to be made again. Where one fold
//! follows the other, `settle` makes it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::dirs::ROOT_DIR;
use super::files::IdentityId;
use super::inode::DirId;
use super::model::Reach;
use super::{GroupId, ProcessId, SourceKey, State};
use crate::aggregate::combine;
use crate::segment::process::{BlockRef, Reading, Retired};
use crate::value::{Descriptor, Semantics};

/// On whose account cells are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Account {
    /// A live source's own.
    Live(SourceKey),
    /// What departed sources left in this one.
    Departed(SourceKey),
    /// What processes that are gone left below this directory.
    Left(DirId),
}

impl Account {
    /// The source whose account it is, if one is.
    pub(crate) fn key(self) -> Option<SourceKey> {
        match self {
            Self::Live(key) | Self::Departed(key) => Some(key),
            Self::Left(_) => None,
        }
    }
}

/// Which values to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// All values of all groups.
    All,
    /// One value.
    Value(IdentityId),
}

/// What to read: cells of a directory's own sources, or of all in and below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) dir: DirId,
    pub(crate) below: bool,
    pub(crate) want: Want,
    /// The one process whose cells are wanted, or all.
    pub(crate) process: Option<ProcessId>,
}

impl Request {
    /// Everything in the tree.
    pub(crate) const WHOLE: Self =
        Self { dir: ROOT_DIR, below: true, want: Want::All, process: None };
}

/// The blocks of one group that are on one account.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) process: ProcessId,
    pub(super) account: Account,
    pub(super) group: GroupId,
    /// The one value that is wanted, or all.
    pub(super) value: Option<usize>,
    words: Range<usize>,
    /// Among the plan's.
    pub(super) blocks: Range<usize>,
    /// How many of them, at the beginning, belong to a live source.
    live: usize,
}

/// Which blocks to read.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) blocks: Vec<BlockRef>,
    pub(super) processes: BTreeSet<ProcessId>,
    words: usize,
}

/// The cells of one group on one account: raw, all slots combined.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    pub(crate) account: Account,
    pub(crate) group: GroupId,
    words: Range<usize>,
}

/// What a sweep read. May be used again, which saves its memory.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pub(crate) cells: Vec<Cells>,
    words: Vec<u64>,
    scratch: Vec<u64>,
    /// A fold came in between, or a block was freed: the model must be brought up to date and the sweep
    /// made again.
    pub(crate) outdated: bool,
    /// The processes of which that is so.
    pub(super) outdated_by: BTreeSet<ProcessId>,
    /// A block that a writer is just cutting off: it may not be shown before that is done.
    pub(crate) cut: Option<(ProcessId, Retired)>,
    /// Blocks that a writer changed faster than they could be read: only a hostile writer can.
    pub(crate) torn: usize,
}

impl Sweep {
    /// The words of some cells: all of the group's, or those of the one value that was asked for.
    pub(crate) fn words(&self, cells: &Cells) -> &[u64] {
        &self.words[cells.words.clone()]
    }

    /// How many cells were read.
    pub(super) fn len(&self) -> usize {
        if self.cells.is_empty() { 0 } else { self.words.len() }
    }

    /// Forgets what was read, but for the memory.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        (self.outdated, self.cut, self.torn) = (false, None, 0);
        self.outdated_by.clear();
    }

    /// Something of a process is not as it must be.
    pub(super) fn is_outdated_by(&mut self, process: ProcessId) {
        self.outdated = true;
        self.outdated_by.insert(process);
    }

    /// Adds cells that come all at once.
    pub(super) fn push(&mut self, account: Account, group: GroupId, words: &[u64]) {
        let start = if self.cells.is_empty() { 0 } else { self.words.len() };
        self.words.truncate(start);
        self.words.extend_from_slice(words);
        self.cells.push(Cells { account, group, words: start..self.words.len() });
    }
}

impl Plan {
    /// Takes the steps in the order of their blocks' addresses, which is how memory is read fastest: a
    /// segment's blocks are allocated downwards while its units are allocated upwards.
    fn lay_out(&mut self, mut steps: Vec<(Step, Vec<BlockRef>)>) {
        steps.sort_by_key(|(step, blocks)| {
            let place = blocks[0].place();
            (step.process, place.segment, std::cmp::Reverse(place.unit))
        });
        for (mut step, blocks) in steps {
            step.words = self.words..self.words + step.words.len();
            self.words = step.words.end;
            step.blocks = self.blocks.len()..self.blocks.len() + blocks.len();
            self.blocks.extend(blocks);
            self.steps.push(step);
        }
    }
}

impl State {
    /// The sources that a request is about; parents before children.
    pub(super) fn sources_in(&self, request: Request) -> Vec<SourceKey> {
        let mut all = match self.dirs.get(&request.dir) {
            Some(dir) if !request.below => dir.members.clone(),
            _ => self.sources_of(request.dir),
        };
        if let Some(process) = request.process {
            all.retain(|key| key.0 == process);
        }
        all
    }

    /// The plan that reads what is asked for.
    pub(super) fn plan(&self, request: Request) -> Plan {
        let (sources, want) = (&self.sources_in(request), request.want);
        let mut plan = Plan::default();
        let mut steps: Vec<(Step, Vec<BlockRef>)> = Vec::new();
        let mut departed: HashMap<(Account, GroupId), usize> = HashMap::new();
        for key in sources {
            let process = &self.processes[key.0];
            let (Some(model), Some(record)) = (self.sources.get(key), process.source(key.1)) else {
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
                let Some(id) = self.group_of(key.0, &group.group) else { continue };
                let value = match want {
                    Want::All => None,
                    Want::Value(identity) => match self.identities.value_of(id, identity) {
                        Some(value) => Some(value),
                        None => continue,
                    },
                };
                let words = value
                    .map_or_else(|| group.group.words(), |v| group.group.values()[v].ty.cells());
                let of_slots = (own, &group.slots[..]);
                let of_departed = (left, group.accumulator.as_slice());
                for (account, blocks) in [of_slots, of_departed] {
                    if blocks.is_empty() {
                        continue;
                    }
                    let next = steps.len();
                    let at = match account {
                        Account::Live(_) => next,
                        _ => *departed.entry((account, id)).or_insert(next),
                    };
                    if at == next {
                        let step = Step {
                            process: key.0,
                            account,
                            group: id,
                            value,
                            words: 0..words,
                            blocks: 0..0,
                            live: 0,
                        };
                        steps.push((step, Vec::with_capacity(blocks.len())));
                        plan.processes.insert(key.0);
                    }
                    let (step, of_step) = &mut steps[at];
                    of_step.extend_from_slice(blocks);
                    if model.reach == Reach::Live {
                        // A source comes before those that departed from it.
                        step.live = of_step.len();
                    }
                }
            }
        }
        plan.lay_out(steps);
        plan
    }

    /// Reads the cells that are asked for.
    pub(crate) fn sweep(&self, request: Request, out: &mut Sweep) {
        let since = self.sweep_begins();
        let made;
        let plan = if request == Request::WHOLE {
            // Kept until the structure changes.
            self.whole.get_or_init(|| self.plan(request))
        } else {
            made = self.plan(request);
            &made
        };
        self.read_plan(plan, out);
        self.sweep_ledger(request, out);
        self.sweep_ends(since, plan.blocks.len(), out);
    }

    /// Reads the cells that a plan of this state of the model names.
    fn read_plan(&self, plan: &Plan, out: &mut Sweep) {
        out.clear();
        // What is there from the last time is written over, step by step.
        out.words.resize(plan.words, 0);
        for step in &plan.steps {
            if self.read_step(step, &plan.blocks[step.blocks.clone()], out) {
                let Step { account, group, .. } = *step;
                out.cells.push(Cells { account, group, words: step.words.clone() });
            }
        }
        for &process in &plan.processes {
            if !self.processes[process].is_current() {
                out.is_outdated_by(process);
            }
        }
    }

    /// Reads the blocks of one step. False if there was none that counts by itself.
    #[inline]
    fn read_step(&self, step: &Step, blocks: &[BlockRef], out: &mut Sweep) -> bool {
        let process = &self.processes[step.process];
        let departed = matches!(step.account, Account::Departed(_));
        let words = &mut out.words[step.words.clone()];
        if departed {
            words.fill(0);
        }
        let (mut found, mut outdated) = (false, false);
        for (n, block) in blocks.iter().enumerate() {
            // What is alone on its account is read where it stays.
            let alone = !found && !departed;
            if !alone {
                out.scratch.resize(words.len(), 0);
            }
            let to = if alone { &mut *words } else { &mut out.scratch[..] };
            let reading = match step.value {
                None => process.read(block, to),
                Some(value) => process.read_value(block, value, to),
            };
            match reading {
                // It is in its target's cells. Where that was read in place, nothing was found. If its
                // source is live as far as we know, that is on another account than its baseline.
                Reading::Cells { retired: Some(retired), .. } if process.is_folded(retired) => {
                    outdated |= n < step.live;
                }
                Reading::Cells { retired: Some(retired), .. } if process.is_being_cut(retired) => {
                    outdated = true;
                }
                Reading::Cells { .. } | Reading::Torn => {
                    // Each cell of a torn copy is right by itself.
                    out.torn += usize::from(reading == Reading::Torn);
                    found = true;
                    if !alone {
                        let values = match step.value {
                            None => self.groups[step.group].values(),
                            Some(value) => &self.groups[step.group].values()[value..=value],
                        };
                        add(values, departed, words, &out.scratch);
                    }
                }
                Reading::Gone => outdated = true,
            }
        }
        if outdated {
            out.is_outdated_by(step.process);
        }
        found
    }
}

/// Adds the cells of one block to those of its account; of what departed only what is cumulative, and
/// in 64 bits whatever the width of the cells was.
pub(super) fn add(values: &[Descriptor], departed: bool, words: &mut [u64], cells: &[u64]) {
    let mut at = 0;
    for value in values {
        for _ in 0..value.ty.cells() {
            words[at] = match (value.semantics, departed) {
                (Semantics::Cumulative, true) => words[at].wrapping_add(cells[at]),
                (_, true) => 0,
                (semantics, false) => combine(value.ty, semantics, words[at], cells[at]),
            };
            at += 1;
        }
    }
}
