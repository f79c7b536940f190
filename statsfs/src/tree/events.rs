//! What a tree tells whoever counts it. It knows nothing of how that is done, or whether.

use std::fmt;
use std::time::{Duration, Instant};

use super::State;
use super::sweep::Sweep;

/// Cells that were read: those of one value, or all in and below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Time that it took.
    pub took: Duration,
    /// Blocks: one for each slot of each group, and for what departed.
    pub blocks: usize,
    /// Cells, those of several slots of one source once.
    pub cells: usize,
    /// Blocks whose cells a writer changed faster than they could be read together.
    pub torn: usize,
    /// Whether the structure changed meanwhile, so that it is of no use, and is made again.
    pub outdated: bool,
}

/// What happens in a tree. Every method is called by the thread on which it happens, perhaps with the tree's
/// lock, which it must not ask for.
pub trait TreeEvents: fmt::Debug + Send + Sync + 'static {
    /// Cells were read.
    fn swept(&self, _swept: Swept) {}

    /// A writer did not let its structure settle for so long that what was found is shown, or that nothing is
    /// cleared.
    fn gave_up(&self) {}

    /// Something was cleared.
    fn cleared(&self) {}
}

impl State {
    /// When a sweep begins, if somebody wants to know.
    pub(super) fn sweep_begins(&self) -> Option<Instant> {
        self.options.events.as_ref().map(|_| Instant::now())
    }

    /// A sweep has ended.
    pub(super) fn sweep_ends(&self, since: Option<Instant>, blocks: usize, sweep: &Sweep) {
        if let (Some(events), Some(since)) = (&self.options.events, since) {
            let (took, cells) = (since.elapsed(), sweep.len());
            let Sweep { torn, outdated, .. } = *sweep;
            events.swept(Swept { took, blocks, cells, torn, outdated });
        }
    }
}
