//! The clients of a server: who each is, how far it has come, and what it has.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::limits::{Amounts, Exceeded};
use super::received::Received;
use super::worker::ClientId;
use crate::host::protocol::{Hello, Life, PeerError, Socket};
use crate::host::state;
use crate::tree::ProcessKey;

/// How long a client may take until it has said who it is and sent its segments.
pub(super) const GREETING: Duration = Duration::from_secs(5);

/// How long a client of the server before may take to come back until it is taken for lost.
pub(super) const COMING_BACK: Duration = Duration::from_secs(10);

/// A process, as the kernel knows it: never another one of the same boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// When it began, in clock ticks since boot.
    pub(super) start_time: u64,
}

impl Who {
    /// Whose segments were kept.
    pub(super) fn of(process: &state::Process) -> Self {
        let state::Process { pid, uid, gid, start_time, .. } = *process;
        Self { pid, uid, gid, start_time }
    }

    /// What it is watched by; `None` if it is gone, and waited for.
    ///
    /// # Errors
    /// [`PeerError`] if that can not be said now.
    pub(super) fn life(&self) -> Result<Option<Life>, PeerError> {
        Ok(Life::of(self.pid)?.filter(|life| life.start_time == self.start_time))
    }

    /// Whether it is the same process, whatever its user is by now.
    pub(super) fn is_process(&self, other: &Self) -> bool {
        (self.pid, self.start_time) == (other.pid, other.start_time)
    }
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has said nothing yet.
    Silent,
    /// It has not sent all its segments yet.
    Greeting(Hello),
    /// It is being taken in: whatever happens to it has to wait for that.
    Joining,
    /// It is in the tree.
    Published(ProcessKey),
    /// It is in the tree, and was that of the server before; it has not come back to this one yet.
    Awaited(ProcessKey),
    /// It is in the tree, detached: its connection is lost.
    Lost(ProcessKey),
    /// It is detached and being folded, or will be as soon as what it leaves can be kept.
    Leaving(ProcessKey),
}

/// Text on its way to a client, as far as it was sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) text: String,
    pub(super) sent: usize,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) who: Who,
    /// `None` once it is known to be dead, and as long as it can not be watched.
    pub(super) pidfd: Option<OwnedFd>,
    /// `None` once it is lost.
    pub(super) socket: Option<Socket>,
    pub(super) phase: Phase,
    /// Nothing is counted any more: it is dead, has said goodbye, or was refused.
    pub(super) is_over: bool,
    pub(super) received: Received,
    /// The client that it was before, if it has come back.
    pub(super) before: Option<ClientId>,
    /// What its user is charged for it: if it has come back, what it has beyond what is charged for it already.
    pub(super) has: Amounts,
    /// When it connected; of one that the server before had, when this one took it in.
    pub(super) since: Instant,
    pub(super) outgoing: Option<Outgoing>,
    /// It has no place among its user's connections, for this reason, and may only ask for the status.
    pub(super) only_asks: Option<Exceeded>,
    /// Nobody is there to be answered: what it had asked before is left.
    pub(super) is_deaf: bool,
}

impl Client {
    /// One that has said nothing yet.
    pub(super) fn new(
        who: Who,
        pidfd: Option<OwnedFd>,
        socket: Option<Socket>,
        has: Amounts,
    ) -> Self {
        Self {
            who,
            pidfd,
            socket,
            phase: Phase::Silent,
            is_over: false,
            received: Received::default(),
            before: None,
            has,
            since: Instant::now(),
            outgoing: None,
            only_asks: None,
            is_deaf: false,
        }
    }

    /// Whether it is of this process, which says that it is this publisher.
    fn is(&self, who: &Who, publisher: u128) -> bool {
        self.who.is_process(who) && self.received.publisher() == publisher
    }

    /// The process that it is in the tree.
    pub(super) fn process(&self) -> Option<ProcessKey> {
        match self.phase {
            Phase::Silent | Phase::Greeting(_) | Phase::Joining => None,
            Phase::Published(key)
            | Phase::Awaited(key)
            | Phase::Lost(key)
            | Phase::Leaving(key) => Some(key),
        }
    }

    /// Whether it has been given all the time that it has to introduce itself.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        // Who only asks for the status and reads the answer slowly is no publisher, but holds a connection.
        matches!(self.phase, Phase::Silent | Phase::Greeting(_)) && now > self.since + GREETING
    }

    /// The process, if it was awaited for long enough.
    pub(super) fn is_missed(&self, now: Instant) -> Option<ProcessKey> {
        match self.phase {
            Phase::Awaited(process) if now > self.since + COMING_BACK => Some(process),
            _ => None,
        }
    }
}

/// All clients, by numbers that are never used again.
#[derive(Debug, Default)]
pub(super) struct Clients {
    all: HashMap<ClientId, Client>,
    by_process: HashMap<ProcessKey, ClientId>,
    so_far: ClientId,
}

impl Clients {
    pub(super) fn add(&mut self, client: Client) -> ClientId {
        self.so_far += 1;
        self.all.insert(self.so_far, client);
        self.so_far
    }

    pub(super) fn get(&mut self, id: ClientId) -> Option<&mut Client> {
        self.all.get_mut(&id)
    }

    /// Goes on to the next phase.
    pub(super) fn enter(&mut self, id: ClientId, phase: Phase) {
        if let Some(client) = self.all.get_mut(&id) {
            client.phase = phase;
            if let Some(process) = client.process() {
                self.by_process.insert(process, id);
            }
        }
    }

    pub(super) fn remove(&mut self, id: ClientId) -> Option<Client> {
        let client = self.all.remove(&id)?;
        if let Some(process) = client.process()
            && self.by_process.get(&process) == Some(&id)
        {
            self.by_process.remove(&process);
        }
        Some(client)
    }

    /// The client that a process was before which says that it is this publisher, if it has been in the tree and
    /// no other connection says so.
    pub(super) fn before(&self, who: &Who, publisher: u128) -> Option<ClientId> {
        let is_it = |client: &Client| client.process().is_some() && client.is(who, publisher);
        let (before, _) = self.iter().find(|(_, client)| is_it(client))?;
        let is_claimed = self.all.values().any(|client| client.before == Some(before));
        (!is_claimed).then_some(before)
    }

    /// The client of a process that says that it is this publisher and is being taken in.
    pub(super) fn joining(&self, who: &Who, publisher: u128) -> Option<ClientId> {
        let is_it = |client: &Client| client.phase == Phase::Joining && client.is(who, publisher);
        self.iter().find(|(_, client)| is_it(client)).map(|(id, _)| id)
    }

    /// The client whose process this is.
    pub(super) fn of_process(&self, process: ProcessKey) -> Option<ClientId> {
        self.by_process.get(&process).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ClientId, &Client)> {
        self.all.iter().map(|(id, client)| (*id, client))
    }
}
