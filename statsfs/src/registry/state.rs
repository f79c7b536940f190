//! The writer's bookkeeping: sources, their groups and blocks, names and reservations. All of it is
//! under one lock, the structure lock, which no counting ever takes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::RegistryOptions;
use super::departure::Retired;
use super::names::{Identities, KnownGroup, Names};
use crate::error::{RegistryError, SourceError};
use crate::segment::arena::Arena;
use crate::segment::layout::{ROOT_ID, header};
use crate::segment::protocol;
use crate::slot::SlotInner;
use crate::value::GroupDescriptor;

/// The registry's number for a group.
pub(crate) type GroupKey = usize;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) segment: usize,
    pub(crate) unit: u32,
}

/// A block with its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) place: Place,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A slot's block: handed to the next slot when its own was dropped.
#[derive(Debug)]
pub(crate) struct SlotBlock {
    pub(crate) block: Block,
    pub(crate) slot: Option<Arc<SlotInner>>,
}

/// A block whose source was revoked and whose slot is still held.
#[derive(Debug)]
pub(crate) struct CutOff {
    pub(crate) block: Block,
    /// Whether its record is freed, so that its memory goes with the slot.
    pub(crate) record_freed: bool,
}

/// What departed sources left here of one group.
#[derive(Debug)]
pub(crate) struct Accumulator {
    pub(crate) block: Block,
    /// Blocks and accumulators that are to be folded into this one and were not yet.
    pub(crate) outstanding: usize,
    pub(crate) retired: bool,
}

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// In the tree, or not yet attached.
    Live,
    /// In the subtree that was removed with this source, which may be itself.
    Departed(u64),
    /// In a subtree that was never attached and that nobody holds any more.
    Abandoned,
}

/// One source.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) hidden: bool,
    /// Its records: the source's, then its labels'.
    pub(crate) records: Vec<Place>,
    pub(crate) parent: Option<u64>,
    pub(crate) life: Life,
    /// Subordinates that are there, or that left together with this source.
    pub(crate) children: BTreeSet<u64>,
    /// Subordinates that left before, and that still have records.
    pub(crate) leaving: BTreeSet<u64>,
    pub(crate) groups: HashMap<GroupKey, Vec<SlotBlock>>,
    pub(crate) explicit: HashMap<GroupKey, Place>,
    pub(crate) accumulators: HashMap<GroupKey, Accumulator>,
    /// Its blocks that are retired and wait to be folded. Readers find them through its record.
    pub(crate) retired: usize,
    /// How many sources strictly below have each group.
    pub(crate) below: HashMap<GroupKey, usize>,
    /// The groups whose aggregates' names are in `names`: those below, and those that left a total.
    pub(super) named: HashSet<GroupKey>,
    pub(crate) names: Names,
}

/// Everything under the structure lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) arenas: Vec<Arena>,
    pub(crate) publisher: [u64; 2],
    pub(crate) nodes: HashMap<u64, Node>,
    pub(crate) known: Vec<KnownGroup>,
    identities: Identities,
    pub(super) next_id: u64,
    pub(crate) next_retire: u64,
    /// Retired blocks by the accumulator that they go to.
    pub(crate) pending: HashMap<(u64, GroupKey), Vec<Retired>>,
    /// Blocks that are to be freed: those that were folded, and those that had nothing to fold.
    pub(crate) folded: Vec<Retired>,
    pub(crate) last_fold: Instant,
    /// Blocks, by the address of their memory, whose source was revoked and whose slot is still held.
    pub(crate) cut_off: HashMap<usize, CutOff>,
}

pub(super) fn random() -> Result<[u64; 2], RegistryError> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is as long as stated.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n != bytes.len() as isize {
        return Err(RegistryError::Random(std::io::Error::last_os_error()));
    }
    let half = |at| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    Ok([half(0), half(8)])
}

impl Node {
    pub(super) fn new(name: Arc<str>, hidden: bool) -> Self {
        Self {
            name,
            hidden,
            records: Vec::new(),
            parent: None,
            life: Life::Live,
            children: BTreeSet::new(),
            leaving: BTreeSet::new(),
            groups: HashMap::new(),
            explicit: HashMap::new(),
            accumulators: HashMap::new(),
            retired: 0,
            below: HashMap::new(),
            named: HashSet::new(),
            names: Names::default(),
        }
    }

    /// The groups in this subtree, with the number of sources that have each.
    pub(crate) fn subtree_groups(&self) -> HashMap<GroupKey, usize> {
        let mut all = self.below.clone();
        for key in self.groups.keys() {
            *all.entry(*key).or_default() += 1;
        }
        all
    }
}

impl State {
    pub(crate) fn new(options: &RegistryOptions) -> Result<Self, RegistryError> {
        let publisher = random()?;
        let first = Arena::create(publisher, random()?, 0, options.segment_size)?;
        first.region().word(header::SEGMENTS).store(1, std::sync::atomic::Ordering::Release);
        let root = Node::new("".into(), false);
        Ok(Self {
            arenas: vec![first],
            publisher,
            nodes: HashMap::from([(ROOT_ID, root)]),
            known: Vec::new(),
            identities: Identities::default(),
            next_id: ROOT_ID + 1,
            next_retire: 1,
            pending: HashMap::new(),
            folded: Vec::new(),
            last_fold: Instant::now(),
            cut_off: HashMap::new(),
        })
    }

    /// Tells readers that something changed.
    pub(crate) fn changed(&self) {
        protocol::bump(self.arenas[0].region(), header::CHANGES);
    }

    /// The registry's number for a group.
    pub(super) fn intern(&mut self, group: &Arc<GroupDescriptor>) -> GroupKey {
        let known =
            self.known.iter().position(|k| Arc::ptr_eq(&k.group, group) || *k.group == **group);
        known.unwrap_or_else(|| {
            self.known.push(KnownGroup::new(group, &mut self.identities));
            self.known.len() - 1
        })
    }

    /// A source that may be changed.
    pub(crate) fn live(&self, id: u64) -> Result<&Node, SourceError> {
        self.nodes.get(&id).filter(|n| n.life == Life::Live).ok_or(SourceError::Removed)
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a source that the structure lock protects")
    }

    /// Whether slots of a source are held.
    pub(crate) fn has_slots(&self, id: u64) -> bool {
        self.nodes[&id].groups.values().flatten().any(|block| block.slot.is_some())
    }

    /// A source's ancestors, nearest first, itself excluded.
    pub(crate) fn ancestors(&self, id: u64) -> Vec<u64> {
        let mut all = Vec::new();
        let mut at = self.nodes[&id].parent;
        while let Some(id) = at {
            all.push(id);
            at = self.nodes[&id].parent;
        }
        all
    }
}
