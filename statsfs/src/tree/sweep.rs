//! Reading cells: every block of a set of sources, each counted exactly once, whatever comes, goes and
//! is folded meanwhile.
//!
//! Which blocks are read, and on whose account, is a [`Plan`], made from the model; reading it touches
//! nothing but cells. Each process's plan is kept until its structure changes, for what is asked at the top
//! level, where many processes meet. A process selects the copy of each accumulator when it is brought up to date, so a
//! sweep is right if no fold came between that and the sweep's end (`segment::process`, "Reading
//! sums"); if one did, the sweep is [outdated](Sweep::outdated), and is to be made again. Where one fold
//! follows the other, `settle` makes it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::clear::word_range;
use super::dirs::ROOT_DIR;
use super::files::IdentityId;
use super::inode::DirId;
use super::model::Reach;
use super::{GroupId, ProcessId, SourceKey, State};
use crate::aggregate::combine;
use crate::pages::will_be_filled;
use crate::segment::layout::ROOT_ID;
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
    /// How many words that is.
    words: usize,
    /// The source at the top level that it is below, or is.
    top: u64,
    /// Among the plan's.
    pub(super) blocks: Range<usize>,
    /// How many of them, at the beginning, belong to a live source.
    live: usize,
}

/// Which steps of a plan to take.
#[derive(Clone, Copy, Debug, Default)]
struct Only<'a> {
    /// Those below this source at the top level, or all.
    top: Option<u64>,
    /// For each group the one value that is wanted, if it has it; or what the plan says.
    value_of: Option<&'a [Option<usize>]>,
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

/// How much memory something may take.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    /// How many bytes, if there is a limit.
    most: Option<usize>,
    taken: usize,
    /// Whether there was too little.
    pub(super) is_full: bool,
}

impl Room {
    pub(super) fn of(most: Option<usize>) -> Self {
        Self { most, ..Self::default() }
    }

    /// Whether there is room for so many bytes more.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        self.taken = self.taken.saturating_add(bytes);
        self.is_full |= self.most.is_some_and(|most| self.taken > most);
        !self.is_full
    }

    fn clear(&mut self) {
        *self = Self::of(self.most);
    }
}

/// What a sweep read. May be used again, which saves its memory.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pub(crate) cells: Vec<Cells>,
    words: Vec<u64>,
    /// How many of them were read: what is beyond is there from the last time.
    read: usize,
    scratch: Vec<u64>,
    /// What does not fit is not read.
    pub(super) room: Room,
    /// How many blocks were read for them.
    pub(super) blocks: usize,
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
        self.read
    }

    /// Forgets what was read, but for the memory.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        (self.read, self.blocks) = (0, 0);
        (self.outdated, self.cut, self.torn) = (false, None, 0);
        self.outdated_by.clear();
        self.room.clear();
    }

    /// Something of a process is not as it must be.
    pub(super) fn is_outdated_by(&mut self, process: ProcessId) {
        self.outdated = true;
        self.outdated_by.insert(process);
    }

    /// Adds cells that come all at once.
    pub(super) fn push(&mut self, account: Account, group: GroupId, words: &[u64]) {
        if !self.room.take(size_of_val(words) + size_of::<Cells>()) {
            return;
        }
        let range = self.room(words.len());
        self.words[range.clone()].copy_from_slice(words);
        self.found(account, group, range);
    }

    /// Where the next words are to be read to.
    fn room(&mut self, words: usize) -> Range<usize> {
        let range = self.read..self.read + words;
        if self.words.is_empty() {
            // Zeroed by the kernel.
            self.words = vec![0; range.end];
            will_be_filled(&self.words);
        } else if self.words.len() < range.end {
            self.words.resize(range.end, 0);
        }
        range
    }

    /// The words that were read there count.
    fn found(&mut self, account: Account, group: GroupId, words: Range<usize>) {
        self.read = words.end;
        self.cells.push(Cells { account, group, words });
    }
}

impl Plan {
    /// How many bytes a sweep takes that reads it.
    fn bytes(&self) -> usize {
        self.words * size_of::<u64>() + self.steps.len() * size_of::<Cells>()
    }

    /// How many more it takes to read each block by itself.
    pub(super) fn bytes_of_blocks(&self) -> usize {
        let words: usize = self.steps.iter().map(|step| step.words * step.blocks.len()).sum();
        words * size_of::<u64>()
    }

    /// Takes the steps in the order of their blocks' addresses, which is how memory is read fastest: a
    /// segment's blocks are allocated downwards while its units are allocated upwards.
    fn lay_out(&mut self, mut steps: Vec<(Step, Vec<BlockRef>)>) {
        steps.sort_by_key(|(step, blocks)| {
            let place = blocks[0].place();
            (step.process, place.segment, std::cmp::Reverse(place.unit))
        });
        for (mut step, blocks) in steps {
            self.words += step.words;
            step.blocks = self.blocks.len()..self.blocks.len() + blocks.len();
            self.blocks.extend(blocks);
            self.steps.push(step);
        }
    }
}

impl State {
    /// The sources that a request is about; parents before children.
    pub(super) fn sources_in(&self, request: Request) -> Vec<SourceKey> {
        let members = self.dirs.get(&request.dir).map_or(&[][..], |dir| &dir.members);
        let is_asked = |key: &&SourceKey| request.process.is_none_or(|process| key.0 == process);
        let members = members.iter().filter(is_asked).copied().collect();
        if request.below { self.with_those_below(members) } else { members }
    }

    /// Whether more than so many sources, or slots of them, are looked at to read what is asked for: those without
    /// values as well, and those that departed. Takes no longer than to look at a few.
    pub(super) fn reads_many(&self, request: Request, few: usize) -> bool {
        let Some(dir) = self.dirs.get(&request.dir) else { return false };
        if request.below && request.dir == ROOT_DIR {
            return self.processes.iter().map(|(_, process)| process.source_count()).sum::<usize>()
                > few;
        }
        if dir.members.len() > few {
            return true;
        }
        if request.below && dir.parent == ROOT_DIR {
            // All that these processes have, whatever is asked for.
            let of_processes = dir.members.iter().map(|key| self.processes[key.0].source_count());
            return of_processes.sum::<usize>() > few;
        }
        let (mut found, mut at, mut looked_at) = (dir.members.clone(), 0, 0);
        while let Some(&key) = found.get(at) {
            at += 1;
            let record = self.processes[key.0].source(key.1);
            let slots = record.iter().flat_map(|r| &r.groups).map(|group| group.slots.len());
            looked_at += slots.sum::<usize>().max(1);
            if request.below
                && let Some(source) = self.sources.get(&key)
            {
                let room = (few + 1).saturating_sub(found.len());
                found.extend(source.children.iter().take(room).map(|child| (key.0, *child)));
            }
            if looked_at.max(found.len()) > few {
                return true;
            }
        }
        false
    }

    /// The plan that reads what is asked for.
    pub(super) fn plan(&self, request: Request) -> Plan {
        let (sources, want) = (&self.sources_in(request), request.want);
        let mut tops: HashMap<SourceKey, u64> = HashMap::new();
        let mut plan = Plan::default();
        let mut steps: Vec<(Step, Vec<BlockRef>)> = Vec::new();
        let mut departed: HashMap<(Account, GroupId), usize> = HashMap::new();
        for key in sources {
            let process = &self.processes[key.0];
            let (Some(model), Some(record)) = (self.sources.get(key), process.source(key.1)) else {
                continue;
            };
            let parent = (key.0, model.parent);
            let top = match tops.get(&parent) {
                Some(top) if parent.1 != ROOT_ID => *top,
                _ => key.1,
            };
            tops.insert(*key, top);
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
                            words,
                            // What departed at the top is below none that is there.
                            top: if account.key() == Some((key.0, ROOT_ID)) {
                                ROOT_ID
                            } else {
                                top
                            },
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
        out.clear();
        // But for what is below a hidden source.
        let is_top = |key: &SourceKey| {
            key.1 == ROOT_ID || self.sources.get(key).is_some_and(|s| s.parent == ROOT_ID)
        };
        let at_top = self.dirs.get(&request.dir).filter(|dir| {
            request.below && dir.parent == ROOT_DIR && dir.members.iter().all(is_top)
        });
        match at_top {
            None => self.read_plan(&self.plan(request), Only::default(), out),
            Some(dir) => {
                let value_of = match request.want {
                    Want::All => None,
                    Want::Value(identity) => Some(self.identities.values_of(identity)),
                };
                let asked = |key: &&SourceKey| request.process.is_none_or(|asked| key.0 == asked);
                for &(process, source) in dir.members.iter().filter(asked) {
                    let all = Request { process: Some(process), ..Request::WHOLE };
                    let plan = self.processes[process].plan.get_or_init(|| self.plan(all));
                    let top = (request.dir != ROOT_DIR).then_some(source);
                    self.read_plan(plan, Only { top, value_of: value_of.as_deref() }, out);
                }
            }
        }
        self.sweep_ledger(request, out);
        self.sweep_ends(since, out);
    }

    /// Reads the cells that a plan of this state of the model names.
    fn read_plan(&self, plan: &Plan, only: Only<'_>, out: &mut Sweep) {
        if only.value_of.is_none() {
            if !out.room.take(plan.bytes()) {
                return;
            }
            // At once, and the first time zeroed by the kernel.
            out.room(plan.words);
        }
        for step in &plan.steps {
            if only.top.is_some_and(|top| top != step.top) {
                continue;
            }
            let (value, words) = match only.value_of {
                None => (step.value, step.words),
                Some(value_of) => match value_of[step.group] {
                    None => continue,
                    Some(value) => {
                        (Some(value), self.groups[step.group].values()[value].ty.cells())
                    }
                },
            };
            let words = out.room(words);
            if self.read_step(step, value, &plan.blocks[step.blocks.clone()], words.clone(), out) {
                out.found(step.account, step.group, words);
            }
        }
        for &process in &plan.processes {
            if !self.processes[process].is_current() {
                out.is_outdated_by(process);
            }
        }
    }

    /// Reads the blocks of one step to these words. False if there was none that counts by itself.
    #[inline]
    fn read_step(
        &self,
        step: &Step,
        value: Option<usize>,
        blocks: &[BlockRef],
        words: Range<usize>,
        out: &mut Sweep,
    ) -> bool {
        let process = &self.processes[step.process];
        let departed = matches!(step.account, Account::Departed(_));
        out.blocks += blocks.len();
        let words = &mut out.words[words];
        if departed {
            words.fill(0);
        }
        let (mut found, mut outdated, mut is_sampled) = (false, false, false);
        for (n, block) in blocks.iter().enumerate() {
            is_sampled |= block.is_sampled();
            // What is alone on its account is read where it stays.
            let alone = !found && !departed;
            if !alone {
                out.scratch.resize(words.len(), 0);
            }
            let to = if alone { &mut *words } else { &mut out.scratch[..] };
            let reading = match value {
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
                        let values = match value {
                            None => self.groups[step.group].values(),
                            Some(value) => &self.groups[step.group].values()[value..=value],
                        };
                        add(values, departed, words, &out.scratch);
                    }
                }
                Reading::Gone => outdated = true,
            }
        }
        if is_sampled {
            self.not_before_cleared(step.account, step.group, value, words);
        }
        if outdated {
            out.is_outdated_by(step.process);
        }
        found
    }

    /// What is sampled, and was read at its source when it was cleared, may be older than that where it can not be
    /// read there any more: nothing has come since then. What is counted by the process itself never is.
    #[cold]
    pub(super) fn not_before_cleared(
        &self,
        account: Account,
        group: GroupId,
        value: Option<usize>,
        words: &mut [u64],
    ) {
        let Account::Live(_) = account else { return };
        let Some(baseline) = self.baselines.get(account, group) else { return };
        let begin = value.map_or(0, |value| word_range(&self.groups[group], value).start);
        for (word, baseline) in words.iter_mut().zip(&baseline[begin..]) {
            *word = (*word).max(*baseline);
        }
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
