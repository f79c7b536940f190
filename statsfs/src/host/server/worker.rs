//! Takes processes in and folds them: what may take longer than others should wait for an answer.
//!
//! One thread does it, one job at a time, in turns between users, so that a user with a thousand processes
//! keeps nobody else waiting for more than one of them, and one who comes and goes all the time has a share of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::clients::Who;
use super::keep::{JoinError, Keep, TakenOver, Unseen};
use super::received::Received;
use super::rights;
use crate::share::{Share, thread_time};
use crate::tree::{ProcessKey, Tree, TreeError};

/// One part in so many of the thread's time for each user, and how much of it in advance: a thousand honest
/// processes that come at the same time are taken in at once.
const PART: u32 = 2;
const BURST: Duration = Duration::from_secs(60);
/// How long to wait while all that is to be done is of users who have none left.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the thread goes on at the end with what would be lost otherwise.
const LAST_FOLDS: Duration = Duration::from_secs(5);
/// Users that are remembered, until there are too many.
const REMEMBERED: usize = 1024;

/// A client's number, never reused.
pub(super) type ClientId = u64;
/// Of no client.
pub(super) const NOBODY: ClientId = 0;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Take a process in, whose directories are public or not.
    Join(Who, Received, bool),
    /// Fold it.
    Fold(ProcessKey),
    /// Take over a process that the server before had.
    TakeOver(Unseen),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Joined(Result<ProcessKey, JoinError>),
    Folded(Result<(), TreeError>),
    /// Of this publisher.
    TakenOver(u128, TakenOver),
}

/// A job that was done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) client: ClientId,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    /// By user; no list is empty.
    jobs: BTreeMap<u32, VecDeque<(ClientId, Job)>>,
    /// Whose turn it was last.
    last: Option<u32>,
    /// What each user may take of the thread's time.
    shares: HashMap<u32, Share>,
    /// Whose job is being done.
    busy: Option<ClientId>,
    done: Vec<Done>,
    stop: bool,
}

impl Queue {
    /// The next job of the user after the last one, so that all have their turns, but for those who have used
    /// up their shares.
    fn next(&mut self, now: Instant) -> Option<(u32, ClientId, Job)> {
        let after = self.last.map(|last| last + 1).unwrap_or_default();
        let mut all = self.jobs.range(after..).chain(self.jobs.iter()).map(|(uid, _)| *uid);
        let is_spent = |uid: &u32| self.shares.get(uid).is_some_and(|share| share.is_spent(now));
        let uid = all.find(|uid| !is_spent(uid))?;
        self.last = Some(uid).filter(|uid| *uid < u32::MAX);
        let jobs = self.jobs.get_mut(&uid)?;
        let (client, job) = jobs.pop_front()?;
        if jobs.is_empty() {
            self.jobs.remove(&uid);
        }
        Some((uid, client, job))
    }

    /// Those that wait to be folded, in turns.
    fn folds(&mut self) -> Vec<ProcessKey> {
        let jobs = std::mem::take(&mut self.jobs).into_values();
        let mut jobs: Vec<_> = jobs.flat_map(|jobs| jobs.into_iter().enumerate()).collect();
        jobs.sort_by_key(|(n, _)| *n);
        let fold = |(_, (_, job))| match job {
            Job::Fold(process) => Some(process),
            Job::Join(..) | Job::TakeOver(_) => None,
        };
        jobs.into_iter().filter_map(fold).collect()
    }

    /// A user's job took so much of the thread's time.
    fn charge(&mut self, uid: u32, now: Instant, cost: Duration) {
        if self.shares.len() >= REMEMBERED {
            self.shares.retain(|_, share| !share.is_untouched(now));
        }
        self.shares.entry(uid).or_insert_with(|| Share::new(now, PART, BURST)).spend(now, cost);
    }
}

#[derive(Debug)]
struct Desk {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Readable when something was done.
    done: EventFd,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread. When this is dropped it ends with what it is doing, and folds those that wait for it: nobody else
/// would keep what they counted.
#[derive(Debug)]
pub(super) struct Worker {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// # Errors
    /// If the thread, or what it says it has done with, can not be had.
    pub(super) fn start(
        tree: Arc<Tree>,
        keep: Arc<Keep>,
        gives_up_rights: bool,
    ) -> io::Result<Self> {
        let desk =
            Arc::new(Desk { queue: Mutex::default(), wake: Condvar::new(), done: EventFd::new()? });
        let its = desk.clone();
        let thread = thread::Builder::new().name("statsfs-worker".into());
        let work = move || {
            if gives_up_rights {
                rights::give_up_those_to_end();
            }
            work(&its, &tree, &keep);
        };
        let thread = Some(thread.spawn(work)?);
        Ok(Self { desk, thread })
    }

    /// Has a job done for a client of this user.
    pub(super) fn give(&self, uid: u32, client: ClientId, job: Job) {
        self.desk.lock().jobs.entry(uid).or_default().push_back((client, job));
        self.desk.wake.notify_one();
    }

    /// Has a job done that may be waiting already.
    pub(super) fn again(&self, uid: u32, client: ClientId, job: Job) {
        let mut queue = self.desk.lock();
        let is_waiting = queue.busy == Some(client)
            || queue.jobs.get(&uid).is_some_and(|jobs| jobs.iter().any(|(of, _)| *of == client));
        if !is_waiting {
            queue.jobs.entry(uid).or_default().push_back((client, job));
            self.desk.wake.notify_one();
        }
    }

    /// Whether the thread has ended, by a panic: it does not by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Readable when something has been done.
    pub(super) fn signal(&self) -> &EventFd {
        &self.desk.done
    }

    /// What was done since the last time.
    pub(super) fn done(&self) -> Vec<Done> {
        // Another one after this look makes it readable again.
        let _ = self.desk.done.read();
        std::mem::take(&mut self.desk.lock().done)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.desk.lock().stop = true;
        self.desk.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(desk: &Desk, tree: &Tree, keep: &Keep) {
    let mut queue = desk.lock();
    loop {
        if queue.stop {
            let left = queue.folds();
            drop(queue);
            return fold_last(tree, &left);
        }
        let Some((uid, client, job)) = queue.next(Instant::now()) else {
            // Those whose jobs wait have used up their shares.
            let pause = if queue.jobs.is_empty() { Duration::MAX } else { PAUSE };
            let woken = desk.wake.wait_timeout(queue, pause);
            (queue, _) = woken.unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        queue.busy = Some(client);
        drop(queue);
        let (start, used) = (Instant::now(), thread_time());
        let outcome = match job {
            Job::Join(who, received, public) => {
                Outcome::Joined(keep.join(tree, received, who, public))
            }
            Job::Fold(process) => Outcome::Folded(tree.fold(process)),
            Job::TakeOver(unseen) => {
                let publisher = unseen.publisher();
                Outcome::TakenOver(publisher, keep.take_over(tree, unseen, false))
            }
        };
        queue = desk.lock();
        queue.busy = None;
        queue.charge(uid, Instant::now(), thread_time().saturating_sub(used));
        queue.done.push(Done { client, outcome, took: start.elapsed() });
        let _ = desk.done.write(1);
    }
}

/// Folds what has left before the server ends.
fn fold_last(tree: &Tree, processes: &[ProcessKey]) {
    let start = Instant::now();
    for (n, process) in processes.iter().enumerate() {
        if start.elapsed() >= LAST_FOLDS {
            let lost = processes.len() - n;
            return tracing::error!(
                lost,
                "what processes counted that have left can not be kept: there is no time"
            );
        }
        match tree.fold(*process) {
            Ok(()) | Err(TreeError::NoProcess) => {}
            Err(error) => {
                tracing::error!(%error, "what a process counted that has left is not kept")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_turns_and_no_more_than_their_shares() {
        let start = Instant::now();
        let mut queue = Queue::default();
        let give = |queue: &mut Queue, uid: u32, client| {
            let job =
                Job::Join(Who { pid: 1, uid, gid: 1, start_time: 1 }, Received::default(), true);
            queue.jobs.entry(uid).or_default().push_back((client, job));
        };
        (0..1000).for_each(|client| give(&mut queue, 7, client));
        (1000..1002).for_each(|client| give(&mut queue, 8, client));
        let next = |queue: &mut Queue, now| {
            let (uid, client, _) = queue.next(now)?;
            queue.charge(uid, now, Duration::from_secs(1));
            Some(client)
        };
        let first: Vec<_> = (0..5).map_while(|_| next(&mut queue, start)).collect();
        assert_eq!(first, [0, 1000, 1, 1001, 2]);
        let at_once = 3 + (0..).map_while(|_| next(&mut queue, start)).count();
        assert_eq!(at_once as u32, BURST.as_secs() as u32 / PART + 1);
        // Another user does not wait for that.
        give(&mut queue, 8, 1002);
        assert_eq!(next(&mut queue, start), Some(1002));
        assert_eq!(next(&mut queue, start), None);
        let later = start + Duration::from_secs(10);
        let since = (0..).map_while(|_| next(&mut queue, later)).count();
        assert_eq!(since as u32, 10 / PART);
    }
}
