//! A few threads for what takes long, with a bounded queue; and a count of threads that run.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

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

/// The pool. Its threads start when the first job comes: most trees are small.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: usize,
    queue: usize,
    running: Threads,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    started: usize,
    idle: usize,
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
}

impl Workers {
    /// A pool of at most `threads` threads, at most `queue` jobs waiting; its threads count in `running`.
    pub(super) fn new(threads: usize, queue: usize, running: Threads) -> Self {
        Workers { shared: Arc::default(), threads: threads.max(1), queue, running }
    }

    /// Has `job` called on a worker, or at once with [`Go::Refuse`] when there is no room.
    pub(super) fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        if state.closed || state.jobs.len() >= self.queue {
            drop(state);
            return job(Go::Refuse);
        }
        if state.idle <= state.jobs.len() && state.started < self.threads {
            match self.start(state.started) {
                Ok(()) => state.started += 1,
                Err(error) if state.started == 0 => {
                    drop(state);
                    tracing::warn!(%error, "no thread can be started to render a bulk file");
                    return job(Go::Refuse);
                }
                // The others will come to it.
                Err(error) => tracing::debug!(%error, "no further worker can be started"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
    }

    fn start(&self, number: usize) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let guard = self.running.enter();
        std::thread::Builder::new().name(format!("statsfs-bulk-{number}")).spawn(move || {
            let _guard = guard;
            let mut state = shared.lock();
            loop {
                if let Some(job) = state.jobs.pop_front() {
                    drop(state);
                    job(Go::Work);
                    state = shared.lock();
                } else if state.closed {
                    return;
                } else {
                    state.idle += 1;
                    state =
                        shared.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                    state.idle -= 1;
                }
            }
        })?;
        Ok(())
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
        let pool = Workers::new(1, 2, running.clone());
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
        let pool = Workers::new(1, 8, running.clone());
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
