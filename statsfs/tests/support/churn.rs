//! Threads that create, add, count in, remove, revoke and drop sources at random, and keep a ledger of
//! every count: before it is made, and after. What a tree shows lies between both at any time, and at
//! rest both are the same.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use statsfs::{Registry, Slot, Source, SourceError};

use super::{Random, Work};

/// What is accounted for by itself: a pool.
#[derive(Debug)]
#[repr(C)]
pub struct Account {
    pub intended_done: AtomicU64,
    pub intended_times: AtomicU64,
    pub counted_done: AtomicU64,
    pub counted_times: AtomicU64,
    /// Sources that were made for it.
    pub created: AtomicU64,
    /// Of what was counted, what was so in the pool itself and in nothing that is below it.
    pub own_done: AtomicU64,
}

impl Account {
    pub const fn new() -> Self {
        Self {
            intended_done: AtomicU64::new(0),
            intended_times: AtomicU64::new(0),
            counted_done: AtomicU64::new(0),
            counted_times: AtomicU64::new(0),
            created: AtomicU64::new(0),
            own_done: AtomicU64::new(0),
        }
    }

    /// `count` says whether it did.
    pub fn add(&self, done: u64, times: u64, count: impl FnOnce() -> bool) {
        // Each thread has accounts of its own, so these are plain increments in effect. SeqCst: a reader
        // that looks here, then at the tree, must see them in that order.
        self.intended_done.fetch_add(done, Ordering::SeqCst);
        self.intended_times.fetch_add(times, Ordering::SeqCst);
        if !count() {
            self.intended_done.fetch_sub(done, Ordering::SeqCst);
            self.intended_times.fetch_sub(times, Ordering::SeqCst);
            return;
        }
        self.counted_done.fetch_add(done, Ordering::SeqCst);
        self.counted_times.fetch_add(times, Ordering::SeqCst);
    }
}

/// The sum over some accounts of one of the four.
pub fn total<'a>(
    accounts: impl IntoIterator<Item = &'a Account>,
    which: impl Fn(&Account) -> &AtomicU64,
) -> u64 {
    accounts.into_iter().map(|account| which(account).load(Ordering::SeqCst)).sum()
}

/// A slot and the pool in which it counts; none while it counts nowhere.
type Counting = (Option<usize>, Slot<Work>);
/// Slots on their way from one thread to another.
pub type Exchange = Mutex<Vec<Counting>>;

#[derive(Default)]
struct Branch {
    /// From the top down.
    sources: Vec<Source>,
    slots: Vec<Slot<Work>>,
    /// Counted before it was attached.
    early: (u64, u64),
    pool: usize,
    attached: bool,
    /// Whether slots of it may be anywhere.
    given_away: bool,
}

/// What one thread does.
pub struct Churner<'a> {
    thread: usize,
    random: Random,
    registry: Registry,
    pools: &'a [Source],
    accounts: &'a [Account],
    exchange: &'a Exchange,
    branches: [Branch; 6],
    /// Slots whose sources are removed, and others' slots.
    loose: Vec<Counting>,
    /// Slots of the pools themselves.
    fixed: Vec<Slot<Work>>,
    pub created: u64,
}

/// What was done, or nothing where there was no room for it.
fn with_room<T>(result: Result<T, SourceError>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(SourceError::SegmentFull { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn count(slot: &Slot<Work>, n: u64) -> bool {
    slot.update(|c| {
        c.work_done.add(n);
        c.work_failed.add(2 * n);
    });
    slot.work_time.record(3);
    slot.work_queue.add(1);
    true
}

impl<'a> Churner<'a> {
    /// `accounts`: this thread's, one for each pool.
    pub fn new(
        thread: usize,
        seed: u64,
        registry: &Registry,
        pools: &'a [Source],
        accounts: &'a [Account],
        exchange: &'a Exchange,
    ) -> Self {
        let fixed = pools.iter().map(|pool| pool.add_values().unwrap()).collect();
        Self {
            thread,
            random: Random::new(seed.wrapping_add(thread as u64)),
            registry: registry.clone(),
            pools,
            accounts,
            exchange,
            branches: Default::default(),
            loose: Vec::new(),
            fixed,
            created: 0,
        }
    }

    /// Does one thing.
    pub fn step(&mut self) {
        let at = self.random.below(6) as usize;
        match self.random.below(100) {
            0..60 => self.count_in_branch(at),
            60..70 => self.count_loose(),
            70..74 => self.count_fixed(),
            74..84 => self.grow(at),
            84..90 => self.remove(at),
            90..94 => self.drop_loose(),
            94..96 => self.exchange(),
            96..98 => self.remove_inner(at),
            _ => self.revoke(at),
        }
    }

    fn count_in_branch(&mut self, at: usize) {
        let n = 1 + self.random.below(3);
        let branch = &mut self.branches[at];
        if branch.slots.is_empty() {
            return;
        }
        let slot = &branch.slots[self.random.below(branch.slots.len() as u64) as usize];
        if branch.attached {
            self.accounts[branch.pool].add(n, 1, || count(slot, n));
        } else {
            count(slot, n);
            branch.early = (branch.early.0 + n, branch.early.1 + 1);
        }
    }

    fn count_loose(&mut self) {
        let n = 1 + self.random.below(3);
        let len = self.loose.len() as u64;
        if len > 0 {
            match &self.loose[self.random.below(len) as usize] {
                (Some(pool), slot) => self.accounts[*pool].add(n, 1, || count(slot, n)),
                (None, slot) => drop(count(slot, n)),
            }
        }
    }

    fn count_fixed(&mut self) {
        let pool = self.random.below(self.pools.len() as u64) as usize;
        self.accounts[pool].add(1, 1, || count(&self.fixed[pool], 1));
        self.accounts[pool].own_done.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes a branch, or one more source or slot of it, or attaches it.
    fn grow(&mut self, at: usize) {
        let pool = self.random.below(self.pools.len() as u64) as usize;
        let branch = &mut self.branches[at];
        let depth = branch.sources.len();
        if depth == 0 {
            branch.pool = pool;
        }
        if depth < 3 && (depth == 0 || self.random.one_in(3)) {
            let name = format!("t{}-{at}-{depth}", self.thread);
            let mut builder = self.registry.source(&name);
            if self.random.one_in(4) {
                builder = builder.hidden();
            }
            if self.random.one_in(4) {
                builder = builder.label("thread", self.thread.to_string());
            }
            let Some(source) = with_room(builder.create()) else { return };
            self.created += 1;
            self.accounts[branch.pool].created.fetch_add(1, Ordering::SeqCst);
            let slot = if self.random.one_in(2) { with_room(source.add_values()) } else { None };
            if let Some(above) = branch.sources.last()
                && with_room(above.add_subordinate(&source)).is_none()
            {
                return;
            }
            branch.sources.push(source);
            branch.slots.extend(slot);
        } else if !branch.attached && self.random.one_in(2) {
            let (done, times) = branch.early;
            let parent = &self.pools[branch.pool];
            self.accounts[branch.pool].add(done, times, || {
                branch.attached = with_room(parent.add_subordinate(&branch.sources[0])).is_some();
                branch.attached
            });
        } else if branch.slots.len() < 4 {
            let source = &branch.sources[self.random.below(depth as u64) as usize];
            branch.slots.extend(with_room(source.add_values()));
        } else if self.random.one_in(2) {
            branch.slots.swap_remove(self.random.below(branch.slots.len() as u64) as usize);
        }
    }

    /// Removes a branch, with or without its slots; or drops it if it is attached to nothing.
    fn remove(&mut self, at: usize) {
        let branch = std::mem::take(&mut self.branches[at]);
        if !branch.attached {
            return;
        }
        self.pools[branch.pool].remove_subordinate(&branch.sources[0]).unwrap();
        let pool = Some(branch.pool);
        if self.random.one_in(2) {
            self.loose.extend(branch.slots.into_iter().map(|slot| (pool, slot)));
        }
    }

    /// Removes the lowest source of a branch from within it.
    fn remove_inner(&mut self, at: usize) {
        let branch = &mut self.branches[at];
        if let [.., above, below] = &branch.sources[..] {
            above.remove_subordinate(below).unwrap();
            assert!(matches!(below.add_values::<Work>(), Err(SourceError::Removed)));
            branch.sources.pop();
        }
    }

    /// Removes a branch whose slots are all here, so that none of them counts any more.
    fn revoke(&mut self, at: usize) {
        if self.branches[at].given_away || self.branches[at].sources.is_empty() {
            return;
        }
        let branch = std::mem::take(&mut self.branches[at]);
        branch.sources[0].revoke().unwrap();
        for slot in branch.slots {
            // Those of sources that were removed before still count: they are told apart by nobody
            // here, so they are not used again.
            drop(slot);
        }
    }

    fn drop_loose(&mut self) {
        let len = self.loose.len() as u64;
        if len > 0 {
            self.loose.swap_remove(self.random.below(len) as usize);
        }
    }

    /// Gives a slot away or takes one.
    fn exchange(&mut self) {
        let at = self.random.below(6) as usize;
        let branch = &mut self.branches[at];
        let mut exchange = self.exchange.lock().unwrap();
        if self.random.one_in(2) && branch.attached {
            if let Some(slot) = branch.slots.pop() {
                branch.given_away = true;
                exchange.push((Some(branch.pool), slot));
            }
        } else {
            self.loose.extend(exchange.pop());
        }
        if self.loose.len() > 20 {
            let surplus = self.loose.swap_remove(0);
            drop(exchange);
            drop(surplus);
        }
    }

    /// Removes and drops everything.
    pub fn finish(mut self) -> u64 {
        for at in 0..self.branches.len() {
            self.remove(at);
        }
        self.created
    }
}
