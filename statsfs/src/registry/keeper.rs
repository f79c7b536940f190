//! The registry's own thread: it samples callback groups and does folds that had to wait. Started when
//! there is first something to do.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use crate::fork;
use crate::threads::ThreadKind;

/// Samples are not taken more often than this: the thread would do nothing else.
const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// Nor are they planned further ahead than this, a year, so that times do not overflow.
const MAX_INTERVAL: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    /// Whether this thread is inside a callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What samples a callback group, with its slot.
pub(crate) struct Callback {
    pub(crate) source: u64,
    interval: Duration,
    due: Instant,
    /// Whether it is sampled [at once](Keeper::sample_now) when nobody else reads what it samples any more.
    is_hurried: bool,
    call: Arc<Call>,
}

/// The program's closure.
struct Call {
    /// Set when the source goes: from then on there is only the last call.
    ended: AtomicBool,
    /// None after the last call, or after one that panicked.
    closure: Mutex<Option<Box<dyn FnMut() + Send>>>,
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
        is_hurried: bool,
        closure: impl FnMut() + Send + 'static,
    ) -> Self {
        let closure: Box<dyn FnMut() + Send> = Box::new(closure);
        let call = Call { ended: AtomicBool::new(false), closure: Mutex::new(Some(closure)) };
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Self { source, interval, due: Instant::now(), is_hurried, call: Arc::new(call) }
    }

    /// Samples for the last time, and drops the closure with its slot. The caller holds no lock.
    pub(crate) fn run_last(self) {
        self.call.run(true);
    }
}

impl Call {
    /// Calls the closure, unless the last call was made. The caller holds no lock.
    fn run(&self, last: bool) {
        let inside = INSIDE.get();
        let mut closure = if inside {
            // A callback that removes a source: it may be its own, and the callback this very one. It is
            // being sampled then, and goes with the last reference to it.
            match self.closure.try_lock() {
                Ok(closure) => closure,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            }
        } else {
            self.closure.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let mut ended = last;
        if last || !self.ended.load(Ordering::Acquire) {
            let Some(call) = closure.as_mut() else { return };
            INSIDE.set(true);
            let outcome = catch_unwind(AssertUnwindSafe(call));
            INSIDE.set(inside);
            if outcome.is_err() {
                tracing::error!(
                    "a callback that samples statistics panicked; it is not called again"
                );
                ended = true;
            }
        }
        let gone = if ended { closure.take() } else { None };
        drop(closure);
        // The slot in it goes back to the registry, and what else is in it is the program's.
        drop(gone);
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
#[derive(Debug)]
pub(crate) struct Keeper {
    desk: Arc<Desk>,
    /// The generation of the process that has the thread.
    origin: u32,
}

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
    /// For the registry that this process makes now.
    pub(crate) fn new() -> Self {
        Self { desk: Arc::default(), origin: fork::generation() }
    }

    /// Has the thread fold at `due`, or earlier if it is to fold earlier already.
    pub(crate) fn fold_at(&self, shared: &Arc<Shared>, due: Instant) {
        let mut work = self.desk.lock();
        if work.fold.is_none_or(|at| due < at) {
            work.fold = Some(due);
        }
        self.wake(&mut work, shared);
    }

    /// Has the thread sample a callback group from now on.
    pub(crate) fn sample(&self, shared: &Arc<Shared>, callback: Callback) {
        let mut work = self.desk.lock();
        work.callbacks.push(callback);
        self.wake(&mut work, shared);
    }

    /// Has the thread sample now, and not when it is due, what somebody else has read so far.
    pub(crate) fn sample_now(&self) {
        let mut work = self.desk.lock();
        let now = Instant::now();
        let hurried = work.callbacks.iter_mut().filter(|callback| callback.is_hurried);
        hurried.for_each(|callback| callback.due = callback.due.min(now));
        drop(work);
        self.desk.wake.notify_one();
    }

    /// Takes the callbacks of these sources away: they are not sampled any more, but for
    /// [a last time](Callback::run_last).
    pub(crate) fn take(&self, sources: &[u64]) -> Vec<Callback> {
        let mut work = self.desk.lock();
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut work.callbacks)
            .into_iter()
            .partition(|callback| sources.contains(&callback.source));
        work.callbacks = stay;
        for callback in &gone {
            callback.call.ended.store(true, Ordering::Release);
        }
        gone
    }

    /// Starts the thread, unless it runs.
    pub(crate) fn start(&self, shared: &Arc<Shared>) -> io::Result<()> {
        self.run(&mut self.desk.lock(), shared)
    }

    /// Has the thread look at its work, which may be the first.
    fn wake(&self, work: &mut Work, shared: &Arc<Shared>) {
        // Otherwise folds happen with the next change of structure, and samples are taken at removal.
        if let Err(error) = self.run(work, shared) {
            tracing::warn!(%error, "cannot start the thread that samples statistics");
        }
        self.desk.wake.notify_one();
    }

    fn run(&self, work: &mut Work, shared: &Arc<Shared>) -> io::Result<()> {
        if work.running {
            return Ok(());
        }
        let desk = self.desk.clone();
        let start = shared.options.thread_start.clone();
        let shared = Arc::downgrade(shared);
        let thread = std::thread::Builder::new().name("statsfs-keeper".into());
        thread.spawn(move || {
            start.call(ThreadKind::Keeper);
            keep(&desk, &shared);
        })?;
        work.running = true;
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if fork::generation() != self.origin {
            // A forked child has no such thread, and the lock may be held for ever.
            return;
        }
        let callbacks = {
            let mut work = self.desk.lock();
            work.stop = true;
            std::mem::take(&mut work.callbacks)
        };
        self.desk.wake.notify_one();
        drop(callbacks);
    }
}

/// When to sample next. All callbacks of one interval are due together, so that a thousand of them wake
/// the thread once an interval, not a thousand times.
fn next_due(start: Instant, now: Instant, interval: Duration) -> Instant {
    let into = (now - start).as_nanos() % interval.as_nanos();
    // Less than an interval, and those are at most a year.
    now + interval - Duration::from_nanos(into as u64)
}

fn keep(desk: &Desk, shared: &Weak<Shared>) {
    let start = Instant::now();
    let mut work = desk.lock();
    while !work.stop {
        let now = Instant::now();
        if work.fold.is_some_and(|due| due <= now) {
            work.fold = None;
            drop(work);
            if let Some(shared) = shared.upgrade() {
                shared.lock().fold();
            }
            work = desk.lock();
            continue;
        }
        let due = work.callbacks.iter_mut().filter(|callback| callback.due <= now);
        let calls: Vec<_> = due
            .map(|callback| {
                callback.due = next_due(start, now, callback.interval);
                callback.call.clone()
            })
            .collect();
        if !calls.is_empty() {
            drop(work);
            calls.iter().for_each(|call| call.run(false));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_of_one_interval_are_due_together() {
        let (start, interval) = (Instant::now(), Duration::from_secs(1));
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        for (now, due) in [(0.0, 1.0), (0.25, 1.0), (0.75, 1.0), (1.0, 2.0), (1.5, 2.0), (7.9, 8.0)]
        {
            let (next, due) = (next_due(start, at(now), interval), at(due));
            assert!(next - due.min(next) <= Duration::from_nanos(1), "{now}: {next:?}, {due:?}");
            assert!(due - next.min(due) <= Duration::from_nanos(1), "{now}: {next:?}, {due:?}");
        }
        // Neither the shortest nor the longest interval is ever due in the past.
        for interval in [MIN_INTERVAL, MAX_INTERVAL] {
            assert!(next_due(start, at(3.3), interval) > at(3.3));
        }
    }
}
