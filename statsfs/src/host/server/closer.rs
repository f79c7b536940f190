//! Closes descriptors that nobody has looked at.
//!
//! Those of the kernel's statistics may be the last that keep a VM, which takes its time to end.
//!
//! Closing the last reference is not what may hang: every close(2) of a FUSE file asks its server, which may
//! never answer. So strangers' descriptors are closed by threads that nobody waits for, and a user whose
//! descriptors have kept several of them waiting is not received from any more.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::protocol::Socket;
use crate::repeats::Repeats;

/// Threads that may hang for one user before nothing more is taken from that user.
const MAX_HANGING: usize = 4;
/// Threads that may hang for all users together: the service may have no more than some hundreds.
const ALL_HANGING: usize = 64;
/// How long a thread waits for the next descriptors before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Some descriptors, or what has them.
#[derive(Debug)]
struct Several {
    len: usize,
    _all: Box<dyn Any + Send>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u32, Several)>,
    /// How many threads are closing descriptors of a user.
    busy: HashMap<u32, usize>,
    idle: usize,
    /// Threads that were started and have not looked yet.
    starting: usize,
    unstarted: Repeats<()>,
}

impl Queue {
    /// What to close next: nothing of a user for whom enough threads hang.
    fn next(&mut self) -> Option<(u32, Several)> {
        let next = self.waiting.iter().position(|(uid, _)| !self.hangs(*uid))?;
        self.waiting.remove(next)
    }

    /// Whether there is nothing to close.
    fn next_is_none(&self) -> bool {
        self.waiting.iter().all(|(uid, _)| self.hangs(*uid))
    }

    /// Whether enough threads hang for a user; or so many for all that what there is of this one has to wait.
    fn hangs(&self, uid: u32) -> bool {
        self.busy.get(&uid).is_some_and(|threads| *threads >= MAX_HANGING)
            || (self.busy.values().sum::<usize>() >= ALL_HANGING
                && self.waiting.iter().any(|(of, _)| *of == uid))
    }
}

#[derive(Debug, Default)]
struct Desk {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes descriptors on threads of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Closer(Arc<Desk>);

impl Closer {
    /// Closes descriptors that came from a user, sooner or later; or whatever has them.
    pub(super) fn close<T: Send + 'static>(&self, uid: u32, fds: Vec<T>) {
        if fds.is_empty() {
            return;
        }
        let mut queue = self.0.lock();
        queue.waiting.push_back((uid, Several { len: fds.len(), _all: Box::new(fds) }));
        if queue.hangs(uid) {
            // They are closed when what hangs does so no more.
            return;
        }
        see_to_it(&self.0, &mut queue);
    }

    /// Closes a connection: at once unless that may hang. So whoever is not received from any more can not have
    /// the server keep more open than that user has descriptors on their way.
    pub(super) fn hang_up(&self, uid: u32, socket: Socket) {
        if let Err(socket) = socket.close_unless_it_may_hang() {
            self.close(uid, vec![OwnedFd::from(socket)]);
        }
    }

    /// How many of a user's wait to be closed.
    pub(super) fn waiting(&self, uid: u32) -> u64 {
        let queue = self.0.lock();
        let of_user = queue.waiting.iter().filter(|(of, _)| *of == uid);
        of_user.map(|(_, several)| several.len as u64).sum()
    }

    /// Whether closing what a user sent hangs, so that nothing more is to be taken from that user.
    pub(super) fn hangs(&self, uid: u32) -> bool {
        self.0.lock().hangs(uid)
    }
}

/// What a user is told whose descriptors hang.
pub(super) fn hanging(uid: u32) -> String {
    format!("what user {uid} has sent before can not be closed")
}

/// Has somebody look who does not hang: one is enough, however much there is to close, until that one hangs.
fn see_to_it(desk: &Arc<Desk>, queue: &mut Queue) {
    if queue.starting > 0 {
        return;
    }
    if queue.idle > 0 {
        desk.wake.notify_one();
        return;
    }
    let its = desk.clone();
    match thread::Builder::new().name("statsfs-close".into()).spawn(move || work(&its)) {
        Ok(_) => queue.starting += 1,
        // They stay open until the next ones come.
        Err(error) => {
            if let Some(unsaid) = queue.unstarted.say((), Instant::now()) {
                tracing::warn!(%error, unsaid, "cannot start a thread that closes descriptors");
            }
        }
    }
}

fn work(desk: &Arc<Desk>) {
    let mut queue = desk.lock();
    queue.starting -= 1;
    loop {
        while let Some((uid, fds)) = queue.next() {
            if !queue.next_is_none() {
                // This thread may hang now.
                see_to_it(desk, &mut queue);
            }
            *queue.busy.entry(uid).or_default() += 1;
            drop(queue);
            drop(fds);
            queue = desk.lock();
            let busy = queue.busy.entry(uid).or_default();
            *busy -= 1;
            if *busy == 0 {
                queue.busy.remove(&uid);
            }
        }
        queue.idle += 1;
        let (mut woken, timeout) =
            desk.wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
        woken.idle -= 1;
        if timeout.timed_out() && woken.next_is_none() {
            return;
        }
        queue = woken;
    }
}
