//! Sources: the directories of the tree, as a program makes and removes them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SourceError;
use crate::fd_groups::{Opened, SAMPLED_EVERY, Sampler};
use crate::registry::{Callback, Registry, Shared};
use crate::segment::layout::{ROOT_ID, flag};
use crate::slot::{DynSlot, Slot, SlotInner};
use crate::value::{Group, GroupDescriptor};

/// Makes a source that has labels, or is hidden or private.
#[derive(Debug)]
pub struct SourceBuilder {
    registry: Registry,
    name: String,
    flags: u8,
    labels: Vec<(String, String)>,
}

impl SourceBuilder {
    pub(crate) fn new(registry: &Registry, name: &str) -> Self {
        Self { registry: registry.clone(), name: name.to_owned(), flags: 0, labels: Vec::new() }
    }

    /// Gives the source no directory; it counts in the aggregates above it, and its visible
    /// subordinates appear in the nearest visible directory.
    pub fn hidden(mut self) -> Self {
        self.flags |= flag::HIDDEN;
        self
    }

    /// Lets only the owner and the readers' group into the directory.
    pub fn private(mut self) -> Self {
        self.flags |= flag::PRIVATE;
        self
    }

    /// Adds a label: a key of at most 32 bytes and a value of at most 64, up to 8 of them. Labels tell
    /// sources apart where they are exported by labels; the file tree does not show them.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Creates the source.
    ///
    /// # Errors
    /// [`SourceError`]: a bad name or label, or no room in the segments.
    pub fn create(self) -> Result<Source, SourceError> {
        let Self { registry, name, flags, labels } = self;
        let shared = registry.0;
        let (id, name) =
            shared.change(|state, options| state.create(options, &name, flags, &labels))?;
        Ok(Source(Arc::new(Handle { shared, id, name })))
    }
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    id: u64,
    name: Arc<str>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A source that has a parent stays in the tree. Its callbacks' slots are dropped after the
        // lock is released.
        let (mut callbacks, mut lost) = (Vec::new(), false);
        let _ = self.shared.change(|state, _| {
            if state.live(self.id).is_ok_and(|node| node.parent.is_none()) {
                let members = state.subtree(self.id);
                callbacks = self.shared.keeper.take(&members);
                lost =
                    callbacks.is_empty() && members.iter().any(|member| state.has_slots(*member));
                state.abandon(self.id);
            }
            Ok(())
        });
        if lost {
            let source = &*self.name;
            tracing::warn!(
                source,
                "a source in which is counted was never registered, and is gone"
            );
        }
    }
}

/// A source: a directory of values and of subordinate sources. Cheap to clone; all clones are the same
/// source.
///
/// A source is in no tree until it is [registered](Self::register) at the top level or
/// [added](Self::add_subordinate) to another, with all that is below it. Dropping the last handle of a
/// source that has a parent leaves it in the tree; of one that has none, frees it: what slots go on to
/// count in it is seen by nobody, which is logged.
#[derive(Clone, Debug)]
pub struct Source(Arc<Handle>);

impl Source {
    /// Creates a source in the process's [global registry](Registry::global).
    ///
    /// # Errors
    /// [`SourceError`]: a bad name, or no room in the segments.
    pub fn create(name: &str) -> Result<Self, SourceError> {
        Registry::global()?.create_source(name)
    }

    /// The source's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A group's descriptor. A forked child does not ask for it: a thread of its parent may have been
    /// making it at the fork, and then nobody will ever have made it.
    fn descriptor<G: Group>(&self) -> Result<&'static Arc<GroupDescriptor>, SourceError> {
        if self.0.shared.is_forked() {
            return Err(SourceError::Forked);
        }
        Ok(G::descriptor())
    }

    fn slot(&self, group: &Arc<GroupDescriptor>) -> Result<Arc<SlotInner>, SourceError> {
        self.slot_of(group, 0)
    }

    /// A slot that is sampled from the descriptor of this number, if it is not 0.
    fn slot_of(
        &self,
        group: &Arc<GroupDescriptor>,
        fd_group: u32,
    ) -> Result<Arc<SlotInner>, SourceError> {
        self.0.shared.change(|state, options| {
            state.add_slot(options, self.0.id, group, fd_group, |arena, block| {
                Arc::new(SlotInner::new(&arena.segment, block.offset, block.len))
            })
        })
    }

    fn dyn_slot(
        &self,
        group: &Arc<GroupDescriptor>,
        fd_group: u32,
    ) -> Result<DynSlot, SourceError> {
        let slot = self.slot_of(group, fd_group)?;
        Ok(DynSlot::new(slot, self.0.id, &self.0.shared, group))
    }

    /// Adds a group of values, or one more slot of a group that the source has.
    ///
    /// # Errors
    /// [`SourceError`]: a name that exists here or above with another meaning, no room in the segments,
    /// or the source was removed.
    pub fn add_values<G: Group>(&self) -> Result<Slot<G>, SourceError> {
        Ok(Slot::new(self.slot(self.descriptor::<G>()?)?, self.0.id, &self.0.shared))
    }

    /// As [`add_values`](Self::add_values), for code that must go on in any case: where that fails, the
    /// slot counts into private memory, which is logged, but for a forked child: who logs takes locks.
    pub fn add_values_or_dummy<G: Group>(&self) -> Slot<G> {
        self.add_values().unwrap_or_else(|error| {
            if !matches!(error, SourceError::Forked) {
                let (source, group) = (self.name(), G::descriptor().name());
                tracing::warn!(%error, source, group, "values are not published");
            }
            Slot::dummy()
        })
    }

    /// Adds a group that was built at run time, or one more slot of it.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values).
    pub fn add_group(&self, group: &Arc<GroupDescriptor>) -> Result<DynSlot, SourceError> {
        self.dyn_slot(group, 0)
    }

    /// Adds a group whose values no loop writes: `sample` is called with its slot by the registry's own
    /// thread, at once and then every `interval` (a millisecond at least), and a last time by whoever
    /// removes the source, before it goes. All callbacks of one interval are called together, so the second
    /// call comes earlier. `sample` is dropped, with its slot, when the source is removed or was attached to
    /// nothing and goes.
    ///
    /// `sample` may call the library, and even remove its own source. If it takes long, other samples wait
    /// for it, and so does the removal of its source. If it panics it is not called again. It should hold no
    /// [`Registry`](crate::Registry) or [`Source`] longer than its own source is there: the registry would
    /// keep itself alive.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values).
    pub fn add_callback<G: Group>(
        &self,
        interval: Duration,
        mut sample: impl FnMut(&Slot<G>) + Send + 'static,
    ) -> Result<(), SourceError> {
        let slot = self.add_values::<G>()?;
        self.add_sampler(interval, false, move || sample(&slot))
    }

    /// Has the registry's thread sample.
    fn add_sampler(
        &self,
        interval: Duration,
        is_hurried: bool,
        sample: impl FnMut() + Send + 'static,
    ) -> Result<(), SourceError> {
        let shared = &self.0.shared;
        let mut callback = Some(Callback::new(self.0.id, interval, is_hurried, sample));
        // Under the structure lock: whoever removes the source finds the callback, or we find it removed.
        // If so, the callback is dropped with its slot, after the lock is released.
        shared.change(|state, _| {
            state.live(self.0.id)?;
            callback.take().into_iter().for_each(|callback| shared.keeper.sample(shared, callback));
            Ok(())
        })
    }

    /// Adds what the kernel counts for a VM or a vCPU: the group, called `name`, that its statistics descriptor
    /// (`KVM_GET_STATS_FD`) says that it is, with the kernel's names, units and meanings. Answers the names of what
    /// is left out: because this source, or one above, has a value of that name, or there is no such kind of value
    /// here.
    ///
    /// Whoever reads these values reads the descriptor, in this process's own tree as well as in a host's server,
    /// to which it is sent. The registry's own thread reads it once a second, and when the source is removed: that
    /// is what is left of it, and what a reader sees that has no descriptor. It is closed when the source is
    /// removed, before which vCPUs must have stopped; the kernel keeps the VM until then. A host's server takes it from
    /// the process that made the VM.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values), and [`SourceError::FdGroup`] if that is no such descriptor. A source has
    /// one of them of each name.
    pub fn add_fd_group(&self, name: &str, fd: OwnedFd) -> Result<Vec<String>, SourceError> {
        let shared = &self.0.shared;
        if shared.is_forked() {
            return Err(SourceError::Forked);
        }
        let opened = Opened::new(fd).map_err(|(error, _)| error)?;
        let (number, mut but) = (shared.fd_groups.next_number(), Vec::new());
        let slot = loop {
            let group = shared.fd_groups.known(opened.group(name, &but)?);
            match self.dyn_slot(&group, number) {
                Err(SourceError::AlreadyExists { name, .. })
                    if group.values().iter().any(|value| value.name == *name) =>
                {
                    but.push(name);
                }
                slot => break slot?,
            }
        };
        but.extend_from_slice(opened.left_out());
        shared.fd_groups.insert(number, opened);
        let mut sampler = Sampler::new(shared.fd_groups.clone(), number, slot);
        self.add_sampler(SAMPLED_EVERY, true, move || sampler.sample())?;
        // There is one more to be told of.
        shared.announce();
        Ok(but)
    }

    /// Shows a group's aggregates here even while nothing below has the group; they read 0 then. A hidden
    /// source shows nothing.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values).
    pub fn add_aggregates<G: Group>(&self) -> Result<(), SourceError> {
        let group = self.descriptor::<G>()?;
        self.0.shared.change(|state, options| state.add_aggregates(options, self.0.id, group))
    }

    /// Puts `child`, with all that is below it, into this source's directory.
    ///
    /// # Errors
    /// [`SourceError`]: it has a parent, is this source or above it, a name would exist twice, the tree
    /// would be too deep, no room in the segments, or one of both was removed.
    pub fn add_subordinate(&self, child: &Self) -> Result<(), SourceError> {
        if !Arc::ptr_eq(&self.0.shared, &child.0.shared) {
            return Err(SourceError::OtherRegistry);
        }
        self.0.shared.change(|state, options| state.attach(options, self.0.id, child.0.id))
    }

    /// Removes `child`, with all that is below it, for good. What it counted stays in this source's
    /// totals, and so does what its slots that are not yet dropped go on counting.
    ///
    /// # Errors
    /// [`SourceError`]: it is not subordinate to this source, or was removed.
    pub fn remove_subordinate(&self, child: &Self) -> Result<(), SourceError> {
        if !Arc::ptr_eq(&self.0.shared, &child.0.shared) {
            return Err(SourceError::OtherRegistry);
        }
        child.leave(Some((self.0.id, self.name())), false)
    }

    /// Puts the source at the top level of the tree.
    ///
    /// # Errors
    /// As [`add_subordinate`](Self::add_subordinate).
    pub fn register(&self) -> Result<(), SourceError> {
        self.0.shared.change(|state, options| state.attach(options, ROOT_ID, self.0.id))
    }

    /// Removes the source from wherever it is, with all that is below it, and cuts off the slots of all
    /// of them: what was counted stays in the parent's totals, what they count from now on is not
    /// counted anywhere.
    ///
    /// # Errors
    /// `SourceError::Removed` if it was removed already.
    pub fn revoke(&self) -> Result<(), SourceError> {
        self.leave(None, true)
    }

    fn leave(&self, parent: Option<(u64, &str)>, revoke: bool) -> Result<(), SourceError> {
        let Handle { shared, id, .. } = &*self.0;
        let check = |state: &crate::registry::state::State| -> Result<(), SourceError> {
            let node = state.live(*id)?;
            match parent {
                Some((parent, name)) if node.parent != Some(parent) => {
                    Err(SourceError::NotSubordinate {
                        name: self.name().to_owned(),
                        parent: name.to_owned(),
                    })
                }
                _ => Ok(()),
            }
        };
        loop {
            let callbacks = shared.change(|state, _| {
                check(state)?;
                let members = state.subtree(*id);
                let callbacks = shared.keeper.take(&members);
                if !callbacks.is_empty() {
                    return Ok(callbacks);
                }
                match state.live(*id)?.parent {
                    Some(_) => {
                        state.depart(*id);
                        if revoke {
                            state.cut_off(&members);
                        }
                    }
                    None => state.abandon(*id),
                }
                Ok(callbacks)
            })?;
            if callbacks.is_empty() {
                return Ok(());
            }
            // The last samples, without the lock: the callbacks are the program's own code. Then once
            // more, for callbacks and subordinates that came meanwhile.
            callbacks.into_iter().for_each(Callback::run_last);
        }
    }
}
