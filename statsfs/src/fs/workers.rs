//! A few threads for what takes long, with a bounded queue; and a count of threads that run.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::threads::{ThreadKind, ThreadStart};

/// What a job is told when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// On a worker: do the work.
    Work,
    /// On the caller's thread: there is no room, say so to whoever waits.
    Refuse,
}

/// A piece of work. It is called exactly once.
pub(super) type Job = Box<dyn FnOnce(Go) + Send>;

/// The pool. Its threads are there from the beginning: once the mount is made, none is started any more, so
/// that a process may forbid itself to.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    queue: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run without the lock, so that nothing can leave the state half changed.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What a worker does until the pool is closed.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job(Go::Work);
                state = self.lock();
            } else if state.closed {
                return;
            } else {
                state = self.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        }
    }
}

impl Workers {
    /// A pool of `threads` threads, at most `queue` jobs waiting. The threads count in `running`, and call
    /// `start` first.
    pub(super) fn start(
        threads: usize,
        queue: usize,
        running: &Threads,
        start: &ThreadStart,
    ) -> io::Result<Self> {
        let pool = Workers { shared: Arc::default(), queue };
        for number in 0..threads {
            let (shared, guard, start) = (pool.shared.clone(), running.enter(), start.clone());
            let thread = std::thread::Builder::new().name(format!("statsfs-bulk-{number}"));
            thread.spawn(move || {
                let _guard = guard;
                start.call(ThreadKind::Bulk);
                shared.work();
            })?;
        }
        Ok(pool)
    }

    /// Has `job` called on a worker, or at once with [`Go::Refuse`] when there is no room.
    pub(super) fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        if state.closed || state.jobs.len() >= self.queue {
            drop(state);
            return job(Go::Refuse);
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Takes no more jobs, refuses those that wait, and lets the threads end after what they are at.
    pub(super) fn close(&self) {
        let waiting = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        self.shared.wake.notify_all();
        for job in waiting {
            job(Go::Refuse);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.close();
    }
}

/// A count of running threads that can be waited on: a join with a time limit.
#[derive(Clone, Debug, Default)]
pub(super) struct Threads(Arc<(Mutex<usize>, Condvar)>);

/// One thread that runs. Dropped when it ends, by a panic too.
#[derive(Debug)]
pub(super) struct Running(Threads);

impl Threads {
    /// Counts a thread, from before it starts.
    pub(super) fn enter(&self) -> Running {
        *self.lock() += 1;
        Running(self.clone())
    }

    /// Waits until no thread runs; false if some still do after `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut count = self.lock();
        while *count > 0 {
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let waited = self.0.1.wait_timeout(count, deadline - now);
            count = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_run_and_overflow_is_refused() {
        let running = Threads::default();
        let pool = Workers::start(1, 2, &running, &ThreadStart::default()).unwrap();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (told, verdicts) = mpsc::channel();
        let first = told.clone();
        pool.submit(Box::new(move |go| {
            started.send(()).unwrap();
            released.recv().unwrap();
            first.send((0, go)).unwrap();
        }));
        has_started.recv().unwrap();
        for number in 1..=3 {
            let told = told.clone();
            pool.submit(Box::new(move |go| told.send((number, go)).unwrap()));
        }
        assert_eq!(verdicts.try_recv(), Ok((3, Go::Refuse)), "two wait, the third has no room");
        release.send(()).unwrap();
        for number in 0..3 {
            assert_eq!(verdicts.recv(), Ok((number, Go::Work)));
        }
        drop(pool);
        assert!(running.wait(Duration::from_secs(10)), "the worker ends with its pool");
    }

    #[test]
    fn closing_refuses_what_waits() {
        let running = Threads::default();
        let pool = Workers::start(1, 8, &running, &ThreadStart::default()).unwrap();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        pool.submit(Box::new(move |_| {
            started.send(()).unwrap();
            released.recv().unwrap();
        }));
        has_started.recv().unwrap();
        let (told, verdicts) = mpsc::channel();
        let waiting = told.clone();
        pool.submit(Box::new(move |go| waiting.send(go).unwrap()));
        pool.close();
        assert_eq!(verdicts.try_recv(), Ok(Go::Refuse));
        pool.submit(Box::new(move |go| told.send(go).unwrap()));
        assert_eq!(verdicts.try_recv(), Ok(Go::Refuse));
        assert!(!running.wait(Duration::from_millis(10)), "it is still at the first");
        release.send(()).unwrap();
        assert!(running.wait(Duration::from_secs(10)));
    }
}
