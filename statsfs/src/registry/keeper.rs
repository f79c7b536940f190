//! The registry's own thread: it samples callback groups and does folds that had to wait. Started when
//! there is first something to do.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Shared;

/// What samples a callback group, with its slot.
pub(crate) struct Callback {
    pub(crate) source: u64,
    pub(crate) interval: Duration,
    due: Instant,
    call: Arc<Mutex<dyn FnMut() + Send>>,
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("source", &self.source)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl Callback {
    pub(crate) fn new(
        source: u64,
        interval: Duration,
        call: impl FnMut() + Send + 'static,
    ) -> Self {
        Self { source, interval, due: Instant::now(), call: Arc::new(Mutex::new(call)) }
    }

    /// Samples now.
    pub(crate) fn run(&self) {
        run(&self.call);
    }
}

fn run(call: &Mutex<dyn FnMut() + Send>) {
    // A callback that panicked once is not called again: its state is anyone's guess.
    if let Ok(mut call) = call.lock() {
        call();
    }
}

#[derive(Debug, Default)]
struct Work {
    callbacks: Vec<Callback>,
    fold: Option<Instant>,
    running: bool,
    stop: bool,
}

/// Keeps the registry's thread.
#[derive(Debug, Default)]
pub(crate) struct Keeper(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    work: Mutex<Work>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Has the thread fold at `due`, or earlier if it is to fold earlier already.
    pub(crate) fn fold_at(&self, shared: &Arc<Shared>, due: Instant) {
        let mut work = self.0.lock();
        if work.fold.is_none_or(|at| due < at) {
            work.fold = Some(due);
        }
        self.start(&mut work, shared);
    }

    /// Has the thread sample a callback group from now on.
    pub(crate) fn sample(&self, shared: &Arc<Shared>, callback: Callback) {
        let mut work = self.0.lock();
        work.callbacks.push(callback);
        self.start(&mut work, shared);
    }

    /// Takes the callbacks of these sources away.
    pub(crate) fn take(&self, sources: &[u64]) -> Vec<Callback> {
        let mut work = self.0.lock();
        let (gone, stay) = std::mem::take(&mut work.callbacks)
            .into_iter()
            .partition(|callback| sources.contains(&callback.source));
        work.callbacks = stay;
        gone
    }

    fn start(&self, work: &mut Work, shared: &Arc<Shared>) {
        if work.running {
            self.0.wake.notify_one();
            return;
        }
        let desk = self.0.clone();
        let shared = Arc::downgrade(shared);
        let thread = std::thread::Builder::new().name("statsfs-keeper".into());
        match thread.spawn(move || keep(&desk, &shared)) {
            Ok(_) => work.running = true,
            // Folds happen with the next change of structure instead; samples are taken at removal.
            Err(error) => tracing::warn!(%error, "cannot start the thread that samples statistics"),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let callbacks = {
            let mut work = self.0.lock();
            work.stop = true;
            std::mem::take(&mut work.callbacks)
        };
        self.0.wake.notify_one();
        drop(callbacks);
    }
}

fn keep(desk: &Desk, shared: &Weak<Shared>) {
    let mut work = desk.lock();
    while !work.stop {
        let now = Instant::now();
        if work.fold.is_some_and(|due| due <= now) {
            work.fold = None;
            drop(work);
            if let Some(shared) = shared.upgrade() {
                let mut state = shared.lock();
                if !state.is_forked() {
                    state.fold();
                }
            }
            work = desk.lock();
            continue;
        }
        let due = work.callbacks.iter_mut().filter(|callback| callback.due <= now);
        let calls: Vec<_> = due
            .map(|callback| {
                callback.due = now + callback.interval;
                callback.call.clone()
            })
            .collect();
        if !calls.is_empty() {
            drop(work);
            calls.iter().for_each(|call| run(call));
            drop(calls);
            work = desk.lock();
            continue;
        }
        let next = work.callbacks.iter().map(|callback| callback.due).chain(work.fold).min();
        let wait =
            next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now));
        work = desk.wake.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}
