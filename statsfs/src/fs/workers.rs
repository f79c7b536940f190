//! A few threads for what takes long, with a bounded queue and turns between users; and a count of threads
//! that run.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::events::Limit;
use super::files::Most;
use crate::threads::{ThreadKind, ThreadStart};
use crate::turns::Turns;

/// What a job is told when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// On a worker: do the work.
    Work,
    /// On the caller's thread: there is no room, say so to whoever waits.
    Refuse(Limit),
    /// On any thread: nothing is done any more.
    End,
}

/// A piece of work. It is called exactly once.
pub(super) type Job = Box<dyn FnOnce(Go) + Send>;

/// The pool. Its threads are there from the beginning: once the mount is made, none is started any more, so
/// that a process may forbid itself to.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    most: Most,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Turns<Job>,
    /// How many jobs of each user wait or are being done; of nobody none.
    of_users: HashMap<u32, usize>,
    closed: bool,
}

impl State {
    fn done(&mut self, uid: u32) {
        if let Some(jobs) = self.of_users.get_mut(&uid) {
            *jobs -= 1;
            if *jobs == 0 {
                self.of_users.remove(&uid);
            }
        }
    }
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
            if let Some((uid, job)) = state.jobs.next() {
                drop(state);
                job(Go::Work);
                state = self.lock();
                state.done(uid);
            } else if state.closed {
                return;
            } else {
                state = self.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        }
    }
}

impl Workers {
    /// A pool of `threads` threads, called `statsfs-` and the name and their number. Of all jobs so many may wait, and of one user's so many wait or be done.
    /// The threads count in `running`, and call `start` first.
    pub(super) fn start(
        name: &str,
        threads: usize,
        most: Most,
        running: &Threads,
        start: &ThreadStart,
    ) -> io::Result<Self> {
        let pool = Workers { shared: Arc::default(), most };
        for number in 0..threads {
            let (shared, guard, start) = (pool.shared.clone(), running.enter(), start.clone());
            let thread = std::thread::Builder::new().name(format!("statsfs-{name}-{number}"));
            thread.spawn(move || {
                let _guard = guard;
                start.call(ThreadKind::Bulk);
                shared.work();
            })?;
        }
        Ok(pool)
    }

    /// Has a user's `job` called on a worker, or at once when there is no room.
    pub(super) fn submit(&self, uid: u32, is_exempt: bool, job: Job) {
        let mut state = self.shared.lock();
        let of_user = state.of_users.get(&uid).copied().unwrap_or_default();
        let no = if state.closed {
            Some(Go::End)
        } else if of_user >= self.most.user && !is_exempt {
            Some(Go::Refuse(Limit::UserBulkReads))
        } else if state.jobs.len() >= self.most.for_one_more(of_user, is_exempt) {
            Some(Go::Refuse(Limit::BulkReads))
        } else {
            None
        };
        if let Some(no) = no {
            drop(state);
            return job(no);
        }
        state.of_users.insert(uid, of_user + 1);
        state.jobs.push(uid, job);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Takes no more jobs, ends those that wait, and lets the threads end after what they are at.
    pub(super) fn close(&self) {
        let mut waiting = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        self.shared.wake.notify_all();
        while let Some((_, job)) = waiting.next() {
            job(Go::End);
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
    use std::sync::mpsc::{self, Receiver, Sender};

    type Told = (u32, u32, Go);

    /// A pool of one thread, which is at a job of user 7 until it is told to go on.
    struct Busy {
        pool: Workers,
        running: Threads,
        release: Sender<()>,
        tell: Sender<Told>,
        told: Receiver<Told>,
    }

    impl Busy {
        fn new(most: Most) -> Self {
            let running = Threads::default();
            let pool = Workers::start("bulk", 1, most, &running, &ThreadStart::default()).unwrap();
            let (started, has_started) = mpsc::channel();
            let (release, released) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            pool.submit(
                7,
                false,
                Box::new(move |_| {
                    started.send(()).unwrap();
                    released.recv().unwrap();
                }),
            );
            has_started.recv().unwrap();
            Self { pool, running, release, tell, told }
        }

        fn submit(&self, uid: u32, number: u32) {
            let tell = self.tell.clone();
            let job = Box::new(move |go| tell.send((uid, number, go)).unwrap());
            self.pool.submit(uid, uid == 0, job);
        }
    }

    #[test]
    fn jobs_run_and_overflow_is_refused() {
        let busy = Busy::new(Most { all: 4, user: 3 });
        for number in 1..=3 {
            busy.submit(7, number);
        }
        let full = Go::Refuse(Limit::UserBulkReads);
        assert_eq!(busy.told.try_recv(), Ok((7, 3, full)), "one is at work and two wait");
        busy.submit(8, 1);
        busy.submit(0, 1);
        busy.submit(9, 1);
        assert_eq!(busy.told.try_recv(), Ok((9, 1, Go::Refuse(Limit::BulkReads))));
        busy.release.send(()).unwrap();
        for (uid, number) in [(8, 1), (0, 1), (7, 1), (7, 2)] {
            assert_eq!(busy.told.recv(), Ok((uid, number, Go::Work)), "they have turns");
        }
        // What is done makes room.
        for number in 4..=6 {
            busy.submit(7, number);
            assert_eq!(busy.told.recv(), Ok((7, number, Go::Work)));
        }
        drop(busy.pool);
        assert!(busy.running.wait(Duration::from_secs(10)), "the worker ends with its pool");
    }

    #[test]
    fn root_is_not_limited_as_a_user() {
        let busy = Busy::new(Most { all: 10, user: 1 });
        for number in 0..10 {
            busy.submit(0, number);
        }
        assert!(busy.told.try_recv().is_err(), "all wait");
        busy.submit(0, 10);
        assert_eq!(busy.told.try_recv(), Ok((0, 10, Go::Refuse(Limit::BulkReads))));
        busy.release.send(()).unwrap();
        assert_eq!(busy.told.iter().take(10).filter(|told| told.2 == Go::Work).count(), 10);
    }

    #[test]
    fn those_who_have_many_jobs_leave_room_for_those_who_have_few() {
        let busy = Busy::new(Most { all: 128, user: 64 });
        let taken = [7, 8, 9, 0].map(|uid| {
            (1..=128).find(|number| {
                busy.submit(uid, *number);
                busy.told.try_recv().is_ok()
            })
        });
        // Those before the first that was refused; user 7 has one at work.
        assert_eq!(taken.map(|refused| refused.unwrap() - 1), [63, 49, 2, 14]);
        busy.release.send(()).unwrap();
        drop(busy.pool);
        assert!(busy.running.wait(Duration::from_secs(10)));
    }

    #[test]
    fn closing_ends_what_waits() {
        let busy = Busy::new(Most { all: 8, user: 8 });
        busy.submit(7, 1);
        busy.pool.close();
        assert_eq!(busy.told.try_recv(), Ok((7, 1, Go::End)));
        busy.submit(7, 2);
        assert_eq!(busy.told.try_recv(), Ok((7, 2, Go::End)));
        assert!(!busy.running.wait(Duration::from_millis(10)), "it is still at the first");
        busy.release.send(()).unwrap();
        assert!(busy.running.wait(Duration::from_secs(10)));
    }
}
