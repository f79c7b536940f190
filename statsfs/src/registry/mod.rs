//! The registry: a process's sources, and the segments that they live in.

pub(crate) mod departure;
mod directory;
mod keeper;
mod memory;
pub(crate) mod names;
pub(crate) mod state;
mod structure;

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use self::keeper::Callback;
use self::keeper::Keeper;
use self::state::State;
use crate::error::{RegistryError, SourceError};
use crate::fd_groups::FdGroups;
use crate::fork;
use crate::segment::layout::{DEFAULT_SEGMENT, MAX_SEGMENT, MAX_SEGMENTS, MIN_SEGMENT};
use crate::source::{Source, SourceBuilder};
use crate::threads::ThreadStart;
use crate::tree::Waker;

/// How a registry uses memory and threads.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Size of a segment in bytes, a multiple of 4096; 256 KiB unless set. A larger one is made where
    /// a single block needs it.
    pub segment_size: usize,
    /// Most segments; 64 unless set.
    pub max_segments: usize,
    /// What the registry's own thread calls first; nothing unless set.
    pub thread_start: ThreadStart,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            segment_size: DEFAULT_SEGMENT,
            max_segments: 64,
            thread_start: ThreadStart::default(),
        }
    }
}

/// What a registry's structure uses: everything returns to where it was when sources have come and
/// gone, but for the accumulators of the directories that they were in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Segments made so far.
    pub segments: usize,
    /// Sources that have a record.
    pub sources: usize,
    /// Units that hold records other than groups.
    pub units: usize,
    /// Bytes of cells, accumulators included.
    pub block_bytes: usize,
}

/// A process's own set of sources; cheap to clone. A process publishes to one place, so most programs
/// use the one of [`Registry::global`]; tests and simulations may have several.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = statsfs::Registry::new()?;
/// let source = registry.create_source("web")?;
/// source.register()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Registry(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) options: RegistryOptions,
    changes: Mutex<u64>,
    changed: Condvar,
    /// Whether somebody publishes it.
    pub(crate) is_published: AtomicBool,
    /// Trees to wake.
    wakers: Mutex<Vec<Waker>>,
    pub(crate) keeper: Keeper,
    pub(crate) fd_groups: Arc<FdGroups>,
    /// The generation of the process that made the registry.
    origin: u32,
}

impl Registry {
    /// A registry with the default options.
    ///
    /// # Errors
    /// [`RegistryError`] if its first segment can not be made.
    pub fn new() -> Result<Self, RegistryError> {
        Self::with_options(RegistryOptions::default())
    }

    /// A registry with these options.
    ///
    /// # Errors
    /// [`RegistryError`] if an option is out of range, or the first segment can not be made.
    pub fn with_options(options: RegistryOptions) -> Result<Self, RegistryError> {
        let size = options.segment_size;
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&size) || !size.is_multiple_of(4096) {
            return Err(RegistryError::SegmentSize(size));
        }
        if !(1..=MAX_SEGMENTS).contains(&options.max_segments) {
            return Err(RegistryError::MaxSegments(options.max_segments));
        }
        let state = State::new(&options)?;
        Ok(Self(Arc::new(Shared {
            origin: fork::generation(),
            state: Mutex::new(state),
            options,
            changes: Mutex::new(0),
            changed: Condvar::new(),
            is_published: AtomicBool::new(false),
            wakers: Mutex::default(),
            keeper: Keeper::new(),
            fd_groups: Arc::default(),
        })))
    }

    /// The registry of this process, made at first use.
    ///
    /// # Errors
    /// [`RegistryError`] if its first segment can not be made.
    pub fn global() -> Result<&'static Self, RegistryError> {
        static GLOBAL: OnceLock<Registry> = OnceLock::new();
        if let Some(registry) = GLOBAL.get() {
            return Ok(registry);
        }
        let registry = Self::new()?;
        Ok(GLOBAL.get_or_init(|| registry))
    }

    /// Creates a source, which is in no tree until it is registered or added to another.
    ///
    /// # Errors
    /// [`SourceError`]: a bad name, or no room in the segments.
    pub fn create_source(&self, name: &str) -> Result<Source, SourceError> {
        self.source(name).create()
    }

    /// Starts to create a source that has labels or is hidden or private.
    pub fn source(&self, name: &str) -> SourceBuilder {
        SourceBuilder::new(self, name)
    }

    /// Starts the registry's own thread now, and not when there is first something for it to do: for a process
    /// that is about to forbid itself to start threads.
    ///
    /// # Errors
    /// [`RegistryError::Thread`] if there can be none, as in a forked child.
    pub fn start_thread(&self) -> Result<(), RegistryError> {
        let started = if self.0.is_forked() {
            Err(std::io::ErrorKind::Unsupported.into())
        } else {
            self.0.keeper.start(&self.0)
        };
        started.map_err(RegistryError::Thread)
    }

    /// Descriptors of the sealed memfds that hold the segments, in order; whoever gets them can read
    /// everything that this registry publishes, now and later.
    ///
    /// # Errors
    /// What dup(2) says; `Unsupported` in a forked child.
    pub fn segments(&self) -> std::io::Result<Vec<OwnedFd>> {
        if self.0.is_forked() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        self.0.lock().arenas.iter().map(|arena| arena.segment.fd.try_clone()).collect()
    }

    /// The random id that all segments of this registry have in their headers; 0 in a forked child.
    pub fn publisher(&self) -> u128 {
        if self.0.is_forked() {
            return 0;
        }
        let [low, high] = self.0.lock().publisher;
        u128::from(low) | u128::from(high) << 64
    }

    /// What the structure uses now, after folding what is retired. Nothing in a forked child.
    pub fn usage(&self) -> Usage {
        if self.0.is_forked() {
            return Usage { segments: 0, sources: 0, units: 0, block_bytes: 0 };
        }
        let mut state = self.0.lock();
        state.fold();
        Usage {
            segments: state.arenas.len(),
            sources: state.nodes.len() - 1,
            units: state.arenas.iter().map(|a| a.used_units() as usize).sum(),
            block_bytes: state.arenas.iter().map(|a| a.used_bytes()).sum(),
        }
    }

    /// Waits until the structure has changed since the answer was `seen`, at most for `timeout`, and
    /// answers a number to wait with next.
    pub fn wait_changed(&self, seen: u64, timeout: Duration) -> u64 {
        if self.0.is_forked() {
            std::thread::sleep(timeout);
            return seen;
        }
        let changes = self.0.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, _) = self
            .0
            .changed
            .wait_timeout_while(changes, timeout, |changes| *changes == seen)
            .unwrap_or_else(PoisonError::into_inner);
        *changes
    }
}

impl Shared {
    /// Whether this process was forked from the one that made the registry. Asked before any lock is
    /// taken: another thread of the parent may have held it at the fork, and in the child nobody will
    /// ever release it.
    pub(crate) fn is_forked(&self) -> bool {
        fork::generation() != self.origin
    }

    /// Takes the structure lock.
    ///
    /// A panic under the lock is a bug of ours; what it left is then still the best there is.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the structure: runs `change` under the lock, then folds or has the keeper fold what is
    /// retired, and wakes whoever waits for changes.
    ///
    /// # Errors
    /// What `change` says; `Forked` in a child of the process that made the registry.
    pub(crate) fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, &RegistryOptions) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        if self.is_forked() {
            return Err(SourceError::Forked);
        }
        let mut state = self.lock();
        let result = change(&mut state, &self.options);
        if state.has_pending() {
            let due = state.fold_due();
            if due <= Instant::now() {
                state.fold();
            } else {
                self.keeper.fold_at(self, due);
            }
        }
        drop(state);
        self.announce();
        result
    }

    /// Wakes whoever waits for changes.
    pub(crate) fn announce(&self) {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.iter().for_each(Waker::wake);
    }

    /// Has a tree woken after each change, as long as it is there.
    pub(crate) fn wake(&self, waker: Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(Waker::is_of_use);
        wakers.push(waker);
    }
}
