//! Sweeps that no fold outdates, for trees whose sources come and go faster than they can be read.
//!
//! All blocks are read so that each count is in them once, whatever is folded meanwhile (`Process::settle`).
//! What is left to do then is to find the accounts that they are on. Sources may have left since the plan was
//! made, and taken their counts along to `.departed`: so the model is brought up to date once more, with
//! everybody else kept out, and says where each source counts now, and where its baselines are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use super::budget::Budget;
use super::model::Reach;
use super::sweep::{Account, Request, Sweep, add};
use super::{GroupId, SourceKey, State};
use crate::segment::layout::ROOT_ID;
use crate::segment::process::{Found, ROUNDS};
use crate::value::Descriptor;

/// What was read of a block, before it is known on whose account that is.
struct Read {
    source: SourceKey,
    is_accumulator: bool,
    is_sampled: bool,
    group: GroupId,
    value: Option<usize>,
    words: Vec<u64>,
}

impl State {
    /// Reads the cells that are asked for, as [`sweep`](Self::sweep) does, whatever is folded meanwhile. Is
    /// outdated if a block is just being cut off, or if the writer never let it settle.
    pub(super) fn sweep_settled(&mut self, request: Request, out: &mut Sweep) {
        let since = self.sweep_begins();
        out.clear();
        let processes: HashSet<_> =
            self.sources_in(request).into_iter().map(|(process, _)| process).collect();
        self.refresh(|process| processes.contains(&process));
        let all = self.read_settled(request, out);
        out.blocks = all.len();
        let above: HashMap<_, _> =
            all.iter().map(|read| (read.source, self.above(read.source))).collect();
        self.refresh(|process| processes.contains(&process));
        let asked_for: HashSet<_> = self.sources_in(request).into_iter().collect();
        let mut accounts: BTreeMap<(Account, GroupId), Vec<u64>> = BTreeMap::new();
        for mut read in all {
            let account = self.account(read.source, &above[&read.source], read.is_accumulator);
            if read.is_sampled {
                // It is the only one of its group there.
                self.not_before_cleared(account, read.group, read.value, &mut read.words);
            }
            if !account.key().is_some_and(|key| asked_for.contains(&key)) {
                continue;
            }
            match accounts.get_mut(&(account, read.group)) {
                None => {
                    let words = self.first_words(account, &read);
                    accounts.insert((account, read.group), words);
                }
                Some(words) => {
                    let departed = !matches!(account, Account::Live(_));
                    add(self.values(&read), departed, words, &read.words);
                }
            }
        }
        for ((account, group), words) in accounts {
            out.push(account, group, &words);
        }
        self.sweep_ledger(request, out);
        self.sweep_ends(since, out);
    }

    /// The values that the words of a block are of.
    fn values(&self, read: &Read) -> &[Descriptor] {
        let values = self.groups[read.group].values();
        read.value.map_or(values, |value| &values[value..=value])
    }

    /// The words of the first block on an account.
    fn first_words(&self, account: Account, read: &Read) -> Vec<u64> {
        match account {
            Account::Live(_) => read.words.clone(),
            _ => {
                let mut words = vec![0; read.words.len()];
                add(self.values(read), true, &mut words, &read.words);
                words
            }
        }
    }

    /// Reads all blocks, as the model has them now, that are asked for.
    fn read_settled(&self, request: Request, out: &mut Sweep) -> Vec<Read> {
        let plan = self.plan(request);
        let mut all = Vec::new();
        if !out.room.take(plan.bytes_of_blocks()) {
            return all;
        }
        for &id in &plan.processes {
            let process = &self.processes[id];
            let budget = process.budget.as_ref();
            let hopeless = |budget: &Budget| budget.is_hopeless(Instant::now());
            let rounds = if budget.is_some_and(hopeless) { 1 } else { ROUNDS };
            let steps = plan.steps.iter().filter(|step| step.process == id);
            let of_steps = steps
                .flat_map(|step| plan.blocks[step.blocks.clone()].iter().map(move |b| (step, b)));
            let of_steps: Vec<_> = of_steps.collect();
            let blocks: Vec<_> =
                of_steps.iter().map(|(step, block)| (*block, step.value)).collect();
            let (found, settled) = process.settle(&blocks, rounds);
            if !settled {
                out.is_outdated_by(id);
            }
            for ((step, block), (found, words)) in of_steps.into_iter().zip(found) {
                match found {
                    Found::Folded => continue,
                    Found::Cells => {}
                    Found::Torn => out.torn += 1,
                    Found::Cut(retired) => {
                        out.is_outdated_by(id);
                        out.cut = Some((id, retired));
                    }
                }
                all.push(Read {
                    source: (id, block.source()),
                    is_accumulator: block.is_accumulator(),
                    is_sampled: block.is_sampled(),
                    group: step.group,
                    value: step.value,
                    words,
                });
            }
        }
        all
    }

    /// A source and those above it, from the top down, without the root.
    fn above(&self, (process, mut id): SourceKey) -> Vec<u64> {
        let mut all = Vec::new();
        while id != ROOT_ID {
            let Some(source) = self.sources.get(&(process, id)) else { break };
            all.push(id);
            id = source.parent;
        }
        all.reverse();
        all
    }

    /// On whose account a block of a source is, which may have gone, and all those above it. Of the topmost
    /// that has left, the parent has what it counted.
    fn account(&self, key: SourceKey, above: &[u64], is_accumulator: bool) -> Account {
        let mut parent = ROOT_ID;
        for &id in above {
            match self.sources.get(&(key.0, id)).map(|source| source.reach) {
                Some(Reach::Live) => parent = id,
                Some(Reach::Departed(into)) => return Account::Departed((key.0, into)),
                _ => return Account::Departed((key.0, parent)),
            }
        }
        if is_accumulator { Account::Departed(key) } else { Account::Live(key) }
    }
}
