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
    pub(super) fn sweep_ends(&self, since: Option<Instant>, sweep: &Sweep) {
        if let (Some(events), Some(since)) = (&self.options.events, since) {
            let (took, cells) = (since.elapsed(), sweep.len());
            let Sweep { blocks, torn, outdated, .. } = *sweep;
            events.swept(Swept { took, blocks, cells, torn, outdated });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex, MutexGuard};

    use super::*;
    use crate::Registry;
    use crate::segment::process::meanwhile;
    use crate::tree::tests::number;
    use crate::tree::{Owner, Tree, TreeOptions};
    use crate::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};

    /// What a tree has told.
    #[derive(Debug, Default)]
    pub(in crate::tree) struct Told {
        pub(in crate::tree) sweeps: Vec<Swept>,
        pub(in crate::tree) gave_up: u32,
        cleared: u32,
    }

    /// Who is told.
    #[derive(Debug, Default)]
    pub(in crate::tree) struct Listener(Mutex<Told>);

    impl Listener {
        pub(in crate::tree) fn told(&self) -> MutexGuard<'_, Told> {
            self.0.lock().unwrap()
        }

        /// Blocks, cells and whether it was in vain of each sweep since the last time.
        fn sweeps(&self) -> Vec<(usize, usize, bool)> {
            let sweeps = std::mem::take(&mut self.told().sweeps);
            sweeps.iter().map(|swept| (swept.blocks, swept.cells, swept.outdated)).collect()
        }
    }

    impl TreeEvents for Listener {
        fn swept(&self, swept: Swept) {
            self.told().sweeps.push(swept);
        }

        fn gave_up(&self) {
            self.told().gave_up += 1;
        }

        fn cleared(&self) {
            self.told().cleared += 1;
        }
    }

    fn group() -> Arc<GroupDescriptor> {
        let value = |name| Descriptor::new(name, ValueType::U64, Semantics::Cumulative);
        let group = GroupBuilder::new("g").value(value("n")).value(value("m")).value(value("o"));
        group.build().unwrap()
    }

    fn tree(registry: &Registry) -> (Tree, Arc<Listener>) {
        let listener = Arc::new(Listener::default());
        let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
        let events = Some(listener.clone() as Arc<dyn TreeEvents>);
        (registry.tree_of(TreeOptions { events, ..options }).unwrap(), listener)
    }

    #[test]
    fn what_is_read_and_cleared_is_told() {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        let slots = [0, 1].map(|_| top.add_group(&group()).unwrap());
        slots.iter().for_each(|slot| slot.add(0, 3));
        let (tree, listener) = tree(&registry);
        assert_eq!(number(&tree, "top/n"), 6);
        assert_eq!(listener.sweeps(), [(2, 1, false)], "one value of two slots");
        tree.flat(&mut Vec::new());
        assert_eq!(listener.sweeps(), [(3, 6, false)], "three, and of what departed");
        assert_eq!(tree.clear("top/n").unwrap().0["n"], 6);
        assert_eq!(listener.sweeps(), [(2, 1, false)]);
        assert!(tree.clear("top/missing").is_err());
        let told = listener.told();
        assert_eq!((told.cleared, told.gave_up, told.sweeps.len()), (1, 0, 0));
    }

    #[test]
    fn what_is_made_again_is_told() {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        let mut sources = ["a", "b"].map(|name| {
            let source = registry.create_source(name).unwrap();
            top.add_subordinate(&source).unwrap();
            let slot = source.add_group(&group()).unwrap();
            slot.add(0, 3);
            Some((source, slot))
        });
        let (tree, listener) = tree(&registry);
        assert_eq!(number(&tree, "top/n"), 6);
        listener.sweeps();
        // It goes while the first block is read.
        let revoke = move || {
            if let Some((source, _)) = sources[0].take() {
                source.revoke().unwrap();
            }
        };
        assert_eq!(meanwhile::with(revoke, || number(&tree, "top/n")), 6);
        let sweeps = listener.sweeps();
        let in_vain: Vec<_> = sweeps.iter().map(|(.., outdated)| *outdated).collect();
        assert_eq!(in_vain, [true, false], "{sweeps:?}");
        assert_eq!(listener.told().gave_up, 0);
    }
}
