//! What the threads of the mount count, each in slots of its own: what they are asked, and what the tree does
//! for it. The file system and the tree know nothing of this: they tell whoever listens.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::LocalKey;

use super::refusals::{self, Refusal};
use super::stats::{MountStats, RefusedFor, TreeStats};
use crate::fs::{Answered, Exceeded, MountEvents, Operation};
use crate::tree::{Swept, TreeEvents};
use crate::value::Group;
use crate::{Slot, Source, SourceError};

/// A thread's slot, and the number of the counts that it is of.
type Local<G> = RefCell<Option<(u64, Slot<G>)>>;

thread_local! {
    static MOUNT: Local<MountStats> = const { RefCell::new(None) };
    static TREE: Local<TreeStats> = const { RefCell::new(None) };
}

/// Counts what it is told of, and remembers the last readers that were refused.
#[derive(Debug)]
pub(super) struct Counts {
    source: Source,
    /// Of all counts in this process: a thread may serve one after the other.
    number: u64,
    refused: Mutex<VecDeque<Refusal>>,
}

impl Counts {
    /// Counts in a source.
    pub(super) fn new(source: &Source) -> Result<Self, SourceError> {
        static SO_FAR: AtomicU64 = AtomicU64::new(0);
        // Their files are there from the beginning. The slots go to the first threads that need some.
        drop((source.add_values::<MountStats>()?, source.add_values::<TreeStats>()?));
        let number = SO_FAR.fetch_add(1, Relaxed);
        Ok(Self { source: source.clone(), number, refused: Mutex::default() })
    }

    /// Counts in this thread's slot, which is made if there is none.
    fn count<G: Group>(&self, local: &'static LocalKey<Local<G>>, count: impl FnOnce(&G)) {
        local.with(|local| {
            let mut local = local.borrow_mut();
            match &*local {
                Some((number, slot)) if *number == self.number => count(slot),
                _ => {
                    let slot = self.source.add_values().unwrap_or_else(|error| {
                        tracing::error!(%error, "a thread can not count");
                        Slot::dummy()
                    });
                    count(&slot);
                    *local = Some((self.number, slot));
                }
            }
        });
    }

    /// The last readers that were refused, each user and limit once, the last one last.
    pub(super) fn refused(&self) -> Vec<Refusal> {
        self.last().iter().cloned().collect()
    }

    fn last(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MountEvents for Counts {
    fn answered(&self, Answered { operation, took, bytes, error }: Answered) {
        self.count(&MOUNT, |mount| {
            mount.mount_requests[operation].inc();
            mount.mount_time[operation].record(took.as_nanos() as u64);
            if error.is_some() {
                mount.mount_errors[operation].inc();
            }
            match operation {
                Operation::Read => mount.mount_read_bytes.add(bytes as u64),
                Operation::ReadBulk => mount.mount_read_bulk_bytes.add(bytes as u64),
                _ => {}
            }
        });
    }

    fn forgotten(&self, lookups: u64) {
        self.count(&MOUNT, |mount| mount.mount_forgotten.add(lookups));
    }

    fn refused(&self, exceeded: Exceeded) {
        self.count(&MOUNT, |mount| mount.mount_refused[exceeded.limit].inc());
        let (caller, text) = (exceeded.caller, exceeded.to_string());
        let mut last = self.last();
        // However often: nobody may make those of others be forgotten.
        last.retain(|refusal| (refusal.uid, &refusal.text) != (caller.uid, &text));
        let refusal = Refusal::now(caller.pid, caller.uid, RefusedFor::Limit, text);
        refusals::remember(&mut last, refusal);
    }
}

impl TreeEvents for Counts {
    fn swept(&self, Swept { took, blocks, cells, torn, outdated }: Swept) {
        self.count(&TREE, |tree| {
            tree.tree_sweeps.inc();
            tree.tree_sweep_time.record(took.as_nanos() as u64);
            tree.tree_sweep_blocks.add(blocks as u64);
            tree.tree_sweep_cells.add(cells as u64);
            tree.tree_torn.add(torn as u64);
            tree.tree_retries.add(u64::from(outdated));
        });
    }

    fn gave_up(&self) {
        self.count(&TREE, |tree| tree.tree_gave_up.inc());
    }

    fn cleared(&self) {
        self.count(&TREE, |tree| tree.tree_clears.inc());
    }
}
