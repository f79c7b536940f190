//! Sources: the directories of the tree, as a program makes and removes them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::registry::{Callback, Registry, Shared};
use crate::segment::CreateError;
use crate::segment::layout::{ROOT_ID, flag};
use crate::slot::{DynSlot, Slot, SlotInner};
use crate::value::{Group, GroupDescriptor};

/// Why a registry could not be made, or could not get another segment.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// getrandom(2) failed.
    #[error("cannot get random bytes for a segment's id: {0}")]
    Random(#[source] io::Error),
    /// The segment size is out of range.
    #[error("a segment has 16 KiB to 64 MiB in whole pages of 4096 bytes, not {0} bytes")]
    SegmentSize(usize),
    /// The limit of segments is out of range.
    #[error("a registry has 1 to 256 segments, not {0}")]
    MaxSegments(usize),
    /// The segment's memory could not be had.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The registry's thread could not be started.
    #[error("cannot start the thread that samples statistics: {0}")]
    Thread(#[source] io::Error),
}

/// Why an operation on a source failed. Nothing has changed then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The name is not a source's.
    #[error(
        "{0:?} cannot name a source: 1 to 63 bytes of [A-Za-z0-9_.:-] that do not begin with a dot"
    )]
    Name(String),
    /// Too many labels.
    #[error("a source has at most 8 labels, not {0}")]
    Labels(usize),
    /// A label is not acceptable or stands twice.
    #[error(
        "label {0:?}={1:?} is not acceptable: a key [a-z][a-z0-9_]* of at most 32 bytes, once, and a \
         value of at most 64 bytes"
    )]
    Label(String, String),
    /// The name would stand twice in one directory.
    #[error("{name:?} already exists in source {directory:?}, or above it")]
    AlreadyExists {
        /// The name.
        name: String,
        /// The source in whose directory it stands.
        directory: String,
    },
    /// The source has another parent.
    #[error("source {name:?} is subordinate to {parent:?} already")]
    HasParent {
        /// The source.
        name: String,
        /// Its parent.
        parent: String,
    },
    /// The source would be below itself.
    #[error("source {0:?} cannot be below itself")]
    Cycle(String),
    /// The tree would be too deep.
    #[error("sources nest at most {0} deep")]
    TooDeep(usize),
    /// The source to remove is no subordinate of this one.
    #[error("source {name:?} is not subordinate to {parent:?}")]
    NotSubordinate {
        /// The source.
        name: String,
        /// Its supposed parent.
        parent: String,
    },
    /// The source was removed, or was below one that was; that is final.
    #[error("the source was removed")]
    Removed,
    /// The two sources are of different registries.
    #[error("the sources belong to different registries")]
    OtherRegistry,
    /// All segments are full.
    #[error(
        "the statistics segments are full: {segments} of at most {limit} segments of {size} bytes are \
         in use; raise RegistryOptions::max_segments or segment_size"
    )]
    SegmentFull {
        /// Segments in use.
        segments: usize,
        /// The limit.
        limit: usize,
        /// The size of a segment.
        size: usize,
    },
    /// A segment or the registry could not be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// This process was forked from the one that made the registry.
    #[error("a forked child cannot change its parent's sources")]
    Forked,
}

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

    /// Adds a label: a key of at most 32 bytes and a value of at most 64, up to 8 of them.
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
        let mut callbacks = Vec::new();
        let _ = self.shared.change(|state, _| {
            if state.live(self.id).is_ok_and(|node| node.parent.is_none()) {
                callbacks = self.shared.keeper.take(&state.subtree(self.id));
                state.abandon(self.id);
            }
            Ok(())
        });
    }
}

/// A source: a directory of values and of subordinate sources. Cheap to clone; all clones are the same
/// source.
///
/// A source is in no tree until it is [registered](Self::register) at the top level or
/// [added](Self::add_subordinate) to another, with all that is below it. Dropping the last handle of a
/// source that has a parent leaves it in the tree; of one that has none, frees it.
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

    fn slot(&self, group: &Arc<GroupDescriptor>) -> Result<Arc<SlotInner>, SourceError> {
        self.0.shared.change(|state, options| {
            state.add_slot(options, self.0.id, group, |arena, block| {
                Arc::new(SlotInner::new(&arena.segment, block.offset, block.len))
            })
        })
    }

    /// Adds a group of values, or one more slot of a group that the source has.
    ///
    /// # Errors
    /// [`SourceError`]: a name that exists here or above with another meaning, no room in the segments,
    /// or the source was removed.
    pub fn add_values<G: Group>(&self) -> Result<Slot<G>, SourceError> {
        Ok(Slot::new(self.slot(G::descriptor())?, self.0.id, &self.0.shared))
    }

    /// As [`add_values`](Self::add_values), for code that must go on in any case: where that fails, the
    /// slot counts into private memory, which is logged.
    pub fn add_values_or_dummy<G: Group>(&self) -> Slot<G> {
        self.add_values().unwrap_or_else(|error| {
            let (source, group) = (self.name(), G::descriptor().name());
            tracing::warn!(%error, source, group, "values are not published");
            Slot::dummy()
        })
    }

    /// Adds a group that was built at run time, or one more slot of it.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values).
    pub fn add_group(&self, group: &Arc<GroupDescriptor>) -> Result<DynSlot, SourceError> {
        Ok(DynSlot::new(self.slot(group)?, self.0.id, &self.0.shared, group))
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
        let callback = Callback::new(self.0.id, interval, move || sample(&slot));
        let shared = &self.0.shared;
        let mut callback = Some(callback);
        // Under the structure lock: whoever removes the source finds the callback, or we find it removed.
        // If so, the callback is dropped with its slot, after the lock is released.
        shared.change(|state, _| {
            state.live(self.0.id)?;
            callback.take().into_iter().for_each(|callback| shared.keeper.sample(shared, callback));
            Ok(())
        })
    }

    /// Shows a group's aggregates here even while nothing below has the group; they read 0 then. A hidden
    /// source shows nothing.
    ///
    /// # Errors
    /// As [`add_values`](Self::add_values).
    pub fn add_aggregates<G: Group>(&self) -> Result<(), SourceError> {
        self.0
            .shared
            .change(|state, options| state.add_aggregates(options, self.0.id, G::descriptor()))
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
