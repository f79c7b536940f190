//! The loop: who connects, and what is looked at from time to time. What clients say is in `talk`, how they
//! come and end in `lease`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit};

use super::clients::{Client, Clients, GREETING, Phase, Who};
use super::closer::{self, Closer};
use super::fd_store::{FdStore, Inherited};
use super::inherited::{self, Found, KeptDevices};
use super::keep::{Keep, Resumed, Unseen};
use super::limits::{self, Accounts, Amounts, Exceeded};
use super::listen::Listening;
use super::metrics::{self, Metrics, MetricsAddress};
use super::options::{ServeError, ServeOptions};
use super::refusals::{Refusals, refused_for};
use super::rights;
use super::stats::{Own, RefusedFor};
use super::turns::{self, Turns};
use super::worker::{ClientId, Job, NOBODY, Worker};
use crate::fs::Mount;
use crate::host::protocol::{Buffer, PeerError, ServerMessage, Socket};
use crate::repeats::Repeats;
use crate::share::thread_time;
use crate::tree::{Identity, ProcessKey, Refused, Tree};

/// What an event is about.
const LISTENER: u64 = 0;
const UNTIL: u64 = 1;
const DONE: u64 = 2;
const FIRST: u64 = 4;

pub(super) fn socket_token(client: ClientId) -> u64 {
    FIRST + client * 2
}

pub(super) fn pidfd_token(client: ClientId) -> u64 {
    FIRST + client * 2 + 1
}

/// How often what nobody tells of is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often what users have is looked at, and what could not be kept is tried again.
const ROUND: Duration = Duration::from_secs(1);
/// Connections beyond the limit at a time that only ask for the status.
const ASKING_BEYOND: usize = 4;
/// Connections that are accepted, and messages of one client that are received, before others have a turn.
pub(super) const IN_TURN: usize = 32;

/// A server: its mount and its socket are there. Both go when it is dropped.
#[derive(Debug)]
pub struct Server {
    // In this order, after the socket's name: nothing is taken in or folded, nobody reads. Then what clients have
    // sent is closed, also those that were not accepted, and that can take as long as they like.
    pub(super) worker: Worker,
    metrics: Option<Metrics>,
    /// Whether all processes of the server before are in the tree that can be.
    pub(super) is_whole: Arc<AtomicBool>,
    pub(super) mount: Mount,
    /// Of no use without it.
    _devices: Option<KeptDevices>,
    pub(super) tree: Arc<Tree>,
    pub(super) keep: Arc<Keep>,
    pub(super) store: Arc<FdStore>,
    pub(super) options: ServeOptions,
    pub(super) epoll: Epoll,
    pub(super) clients: Clients,
    pub(super) accounts: Accounts,
    /// What all users together have grown to have too much of: room is made for it.
    pub(super) crowded: HashSet<Exceeded>,
    /// The publishers of the server before that have not been taken over yet.
    pub(super) unseen: HashSet<u128>,
    /// Those of them that are tried again with the next round.
    pub(super) put_off: Vec<Unseen>,
    pub(super) turns: Turns,
    pub(super) refusals: Refusals,
    /// By user, when it was said that what a process left can not be kept yet.
    pub(super) unfolded: Repeats<u32>,
    /// By user, when it was said that descriptors are not used.
    pub(super) left_out: Repeats<u32>,
    pub(super) closer: Closer,
    pub(super) buffer: Buffer,
    pub(super) own: Own,
    /// When there was no descriptor for a connection: nobody is accepted until the next tick.
    pub(super) is_full: bool,
    pub(super) started: Instant,
    pub(super) listening: Listening,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.forget_name();
    }
}

impl Server {
    /// Mounts, and listens.
    ///
    /// # Errors
    /// [`ServeError`] says what is in the way and what to do; nothing is left behind.
    pub fn start(options: ServeOptions) -> Result<Self, ServeError> {
        Self::start_again(options, FdStore::default(), Inherited::default())
    }

    /// As [`start`](Self::start), and has kept in a store what another server needs to carry on when this one is
    /// killed; and carries on itself with what was kept there.
    ///
    /// # Errors
    /// As [`start`](Self::start). What was kept is no reason: what is of no use is let go, and made anew.
    pub fn start_again(
        mut options: ServeOptions,
        store: FdStore,
        inherited: Inherited,
    ) -> Result<Self, ServeError> {
        let store = Arc::new(store);
        let found = Found::sort(inherited, &store);
        let own = Own::new()?;
        // However fast one grows: before it is seen that this is too much, it is not twice as much.
        let most = options.limits.sources.min(options.host_limits.sources).saturating_mul(2);
        let of_process = &mut options.process_limits.sources;
        *of_process = (*of_process).min(usize::try_from(most).unwrap_or(usize::MAX));
        // First what only one server can have.
        let (keep, tree) = Keep::open(&options, &own, store.clone())?;
        let listening = Listening::at(&options.socket, options.socket_group)?;
        // Before a mount is carried on with, which would go with it.
        let metrics =
            options.metrics.clone().map(|address| match metrics::Listening::at(&address) {
                Ok(listening) => Ok((address, listening)),
                Err(source) => Err(ServeError::Metrics { address, source }),
            });
        let metrics = metrics.transpose()?;
        let tree = Arc::new(tree);
        own.registry.join(&tree, Identity { is_host: true, ..Identity::this_process() })?;
        // Before anybody is answered: all is there that was.
        let (resumed, later) = keep.resume(&tree, found.segments, &options);
        options.mount_options = options.mount_options.events(own.counts.clone());
        if options.gives_up_rights {
            options.mount_options = options.mount_options.map_thread_start(rights::given_up_by);
        }
        let (mount, devices) = inherited::mount(&tree, &options, &keep, &store, found.mounts)?;
        if options.gives_up_rights {
            rights::give_up_those_to_begin();
        }
        let worker = Worker::start(tree.clone(), keep.clone(), options.gives_up_rights)
            .map_err(ServeError::Wait)?;
        let is_whole = Arc::new(AtomicBool::new(later.is_empty()));
        let metrics = metrics.map(|(address, listening)| {
            let (tree, carries_on, is_whole) = (tree.clone(), keep.carries_on(), is_whole.clone());
            Metrics::start(&address, listening, &options, tree, carries_on, is_whole)
                .map_err(|source| ServeError::Metrics { address, source })
        });
        let metrics = metrics.transpose()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(wait_error)?;
        let mappable = limits::mappable();
        let most_descriptors = most_open() / 2;
        let accounts =
            Accounts::new(options.limits, options.host_limits, mappable, most_descriptors);
        let mut server = Self {
            listening,
            worker,
            metrics,
            is_whole,
            mount,
            _devices: devices,
            tree,
            keep,
            store,
            options,
            epoll,
            clients: Clients::default(),
            accounts,
            crowded: HashSet::new(),
            unseen: HashSet::new(),
            put_off: Vec::new(),
            turns: Turns::default(),
            refusals: Refusals::default(),
            unfolded: Repeats::default(),
            left_out: Repeats::default(),
            closer: Closer::default(),
            buffer: Buffer::default(),
            own,
            is_full: false,
            started: Instant::now(),
        };
        server.watch(server.listening.listener(), LISTENER, EpollFlags::EPOLLIN)?;
        server.watch(server.worker.signal(), DONE, EpollFlags::EPOLLIN)?;
        resumed.into_iter().for_each(|resumed| server.await_back(resumed));
        for unseen in later {
            server.unseen.insert(unseen.publisher());
            server.worker.give(unseen.uid(), NOBODY, Job::TakeOver(unseen));
        }
        Ok(server)
    }

    /// A process that the server before had may come back.
    pub(super) fn await_back(&mut self, resumed: Resumed) {
        let Resumed { who, pidfd, process, received, mut is_over } = resumed;
        // What it sent to this server before it died is its own as well, and is being taken in: then it is over.
        let joining = self.clients.joining(&who, received.publisher());
        is_over &= joining.is_none();
        let all = received.amounts();
        let id = self.clients.add(Client {
            received: received.clone(),
            is_over,
            ..Client::new(who, pidfd, None, Amounts::default())
        });
        self.clients.enter(id, Phase::Awaited(process));
        let sources = self.tree.usage_of(process).map(|usage| usage.sources).unwrap_or_default();
        if let Some(client) = self.clients.get(id) {
            // It is here, whether or not that is too much.
            let has = Amounts { connections: 1, sources, ..all };
            self.accounts.set(who.uid, &mut client.has, has);
        }
        if let Some(client) = joining.and_then(|joining| self.clients.get(joining)) {
            // It is the same.
            client.before = Some(id);
            let has = client.received.amounts_beyond(&[], Some(&received));
            let has = client.has.with_received(has);
            self.accounts.set(client.who.uid, &mut client.has, has);
        }
        self.watch_life(id);
        if is_over {
            self.leave(id, process);
        }
    }

    /// Has the end of a client's process told. It is tried again if that can not be had now.
    fn watch_life(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let Some(pidfd) = &client.pidfd else { return };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, pidfd_token(id));
        if let Err(error) = self.epoll.add(pidfd, event) {
            tracing::warn!(%error, pid = client.who.pid, "it can not be watched yet when a process ends");
            client.pidfd = None;
        }
    }

    /// Looks after processes that could not be watched so far.
    fn watch_again(&mut self) {
        let unwatched =
            self.clients.iter().filter(|(_, client)| client.pidfd.is_none() && !client.is_over);
        for id in unwatched.map(|(id, _)| id).collect::<Vec<_>>() {
            let Some(client) = self.clients.get(id) else { continue };
            match client.who.life() {
                Ok(Some(life)) => {
                    client.pidfd = Some(life.pidfd);
                    self.watch_life(id);
                }
                Ok(None) => self.died(id),
                Err(_) => {}
            }
        }
    }

    /// What it was started with.
    pub fn options(&self) -> &ServeOptions {
        &self.options
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Where it serves metrics.
    pub fn metrics(&self) -> Option<&MetricsAddress> {
        self.metrics.as_ref().map(Metrics::address)
    }

    /// The tree.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Serves until `until` can be read.
    ///
    /// # Errors
    /// [`ServeError`]: the mount has gone, or the kernel refuses what is needed to wait.
    pub fn run(&mut self, until: &impl AsFd) -> Result<(), ServeError> {
        self.watch(until, UNTIL, EpollFlags::EPOLLIN)?;
        let mut events = [EpollEvent::empty(); 64];
        let (mut tick, mut round) = (Instant::now(), Instant::now());
        loop {
            let timeout = EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::ZERO);
            let n = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(wait_error(error)),
            };
            for event in &events[..n] {
                match event.data() {
                    LISTENER => self.accept()?,
                    UNTIL => return Ok(()),
                    DONE => self.worker.done().into_iter().for_each(|done| {
                        let id = done.client;
                        self.for_client(id, |server| server.done(done));
                    }),
                    token => self.turn((token - FIRST) / 2, token, event.events()),
                }
            }
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                self.tick(now)?;
            }
            if now >= round {
                round = now + ROUND;
                self.round();
            }
        }
    }

    /// A client has something to say, or has died.
    fn turn(&mut self, id: ClientId, token: u64, events: EpollFlags) {
        let Some(client) = self.clients.get(id) else { return };
        if token != pidfd_token(id) && self.turns.must_wait(client.who.uid) {
            // It would be told of again at once.
            if let Some(socket) = &client.socket {
                let _ = self.epoll.delete(socket);
            }
            return self.turns.put_off(id);
        }
        self.for_client(id, |server| server.client_event(id, token, events));
    }

    /// Does something at a client's user's expense.
    fn for_client(&mut self, id: ClientId, what: impl FnOnce(&mut Self)) {
        let uid = self.clients.get(id).map(|client| client.who.uid);
        let start = thread_time();
        what(self);
        if let Some(uid) = uid {
            self.turns.charge(uid, thread_time().saturating_sub(start));
        }
    }

    /// Looks whether those who were put off have their turn.
    fn turns(&mut self) {
        for id in self.turns.waiting() {
            let Some(client) = self.clients.get(id) else { continue };
            let Some(socket) = &client.socket else { continue };
            if self.turns.must_wait(client.who.uid) {
                self.turns.put_off(id);
                continue;
            }
            let mut events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            events.set(EpollFlags::EPOLLOUT, client.outgoing.is_some());
            let event = EpollEvent::new(events, socket_token(id));
            if let Err(error) = self.epoll.add(socket, event) {
                let text = format!("the server can not watch for it: {error}");
                self.refuse(id, RefusedFor::Server, text, true);
            }
        }
    }

    fn watch(&self, fd: &impl AsFd, token: u64, events: EpollFlags) -> Result<(), ServeError> {
        self.epoll.add(fd, EpollEvent::new(events, token)).map_err(wait_error)
    }

    // ---- who connects ----------------------------------------------------------------------------

    fn accept(&mut self) -> Result<(), ServeError> {
        for _ in 0..IN_TURN {
            match self.listening.listener().accept() {
                Ok(Some(socket)) => {
                    let (uid, start) = (socket.user(), thread_time());
                    self.connected(socket);
                    if let Ok(uid) = uid {
                        self.turns.charge(uid, thread_time().saturating_sub(start));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // Most likely too many files are open, which may pass; whoever waits goes on waiting.
                    let text = format!("the server can not accept a connection: {error}");
                    self.refusals.add(0, u32::MAX, RefusedFor::Server, text);
                    self.epoll.delete(self.listening.listener()).map_err(wait_error)?;
                    self.is_full = true;
                    break;
                }
            }
        }
        Ok(())
    }

    fn connected(&mut self, socket: Socket) {
        self.own.server_connections.inc();
        // Whatever else can be known of it costs more.
        let user = socket.user();
        if let Ok(uid) = user {
            let reason = if self.closer.hangs(uid) {
                Some((RefusedFor::Protocol, closer::hanging(uid)))
            } else if self.turns.must_wait(uid) {
                Some((RefusedFor::Limit, turns::busy(uid)))
            } else {
                full(&socket, ROOM_TO_ACCEPT).map(|text| (RefusedFor::Server, text))
            };
            if let Some((reason, text)) = reason {
                return self.turn_away(socket, 0, uid, reason, text, true);
            }
        }
        let peer = match socket.peer() {
            Ok(peer) => peer,
            Err(error) => {
                // What the server is short of may be there later.
                let (pid, again) = match error {
                    PeerError::Pidfd { pid, .. } | PeerError::Proc { pid, .. } => (pid, true),
                    _ => (0, false),
                };
                let (uid, text) = (user.unwrap_or(u32::MAX), error.to_string());
                return self.turn_away(socket, pid, uid, RefusedFor::Identity, text, again);
            }
        };
        let (pid, uid, gid) = (peer.pid, peer.uid, peer.gid);
        // One that is dead may have said something before.
        let is_over = peer.life.is_none();
        let (pidfd, start_time) =
            peer.life.map_or((None, 0), |life| (Some(life.pidfd), life.start_time));
        let who = Who { pid, uid, gid, start_time };
        let mut has = Amounts::default();
        let only_asks = match self.charge_connection(&who, &mut has) {
            Ok(()) => None,
            // How it has come to that is what they would ask.
            Err(exceeded) if self.may_ask_all_the_same(uid) => Some(exceeded),
            Err(exceeded) => {
                let text = exceeded.to_string();
                return self.turn_away(socket, pid, uid, RefusedFor::Limit, text, true);
            }
        };
        let client = Client::new(who, pidfd, Some(socket), has);
        let id = self.clients.add(Client { is_over, only_asks, ..client });
        let Some(client) = self.clients.get(id) else { return };
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let event = |token| EpollEvent::new(events, token);
        let watched = client
            .socket
            .as_ref()
            .map_or(Ok(()), |socket| self.epoll.add(socket, event(socket_token(id))))
            .and_then(|()| match &client.pidfd {
                Some(pidfd) => self.epoll.add(pidfd, event(pidfd_token(id))),
                None => Ok(()),
            });
        if let Err(error) = watched {
            self.refuse(
                id,
                RefusedFor::Server,
                format!("the server can not watch for it: {error}"),
                true,
            );
        }
    }

    /// Whether root, or the server's own user, may ask for the status beyond the limit of connections.
    fn may_ask_all_the_same(&self, uid: u32) -> bool {
        let is_asking = |(_, client): &(ClientId, &Client)| client.only_asks.is_some();
        (uid == 0 || uid == self.options.owner.uid)
            && self.clients.iter().filter(is_asking).count() < ASKING_BEYOND
    }

    /// Charges a user with a connection. If there is no room, one that comes back takes the place of the one that
    /// it lost.
    fn charge_connection(&mut self, who: &Who, has: &mut Amounts) -> Result<(), Exceeded> {
        let one = Amounts { connections: 1, ..*has };
        let charged = self.accounts.change(who.uid, has, one);
        if charged.is_ok() {
            return charged;
        }
        let is_away = |client: &Client| matches!(client.phase, Phase::Lost(_) | Phase::Awaited(_));
        let before = self.clients.iter().find(|(_, client)| {
            client.has.connections > 0 && is_away(client) && client.who.is_process(who)
        });
        let Some((before, _)) = before else { return charged };
        let Some(client) = self.clients.get(before) else { return charged };
        let none = Amounts { connections: 0, ..client.has };
        self.accounts.set(client.who.uid, &mut client.has, none);
        self.accounts.change(who.uid, has, one)
    }

    /// Refuses somebody who is no client yet.
    fn turn_away(
        &mut self,
        socket: Socket,
        pid: u32,
        uid: u32,
        reason: RefusedFor,
        text: String,
        again: bool,
    ) {
        let _ = socket.send(&ServerMessage::refused(&text, again), &[]);
        self.closer.hang_up(uid, socket);
        self.own.server_refused[reason].inc();
        self.refusals.add(pid, uid, reason, text);
    }

    // ---- from time to time -----------------------------------------------------------------------

    fn tick(&mut self, now: Instant) -> Result<(), ServeError> {
        if std::mem::take(&mut self.is_full) {
            self.watch(self.listening.listener(), LISTENER, EpollFlags::EPOLLIN)?;
        }
        self.turns();
        if self.worker.has_ended() {
            return Err(ServeError::Worker);
        }
        if !self.mount.is_mounted() {
            return Err(ServeError::Unmounted(self.options.mount.clone()));
        }
        self.store.send();
        let (mut refused, mut publishers) = (Vec::new(), Vec::new());
        for Refused { process, error, .. } in self.tree.refused() {
            let Some(id) = self.clients.of_process(process) else { continue };
            let Some(client) = self.clients.get(id) else { continue };
            publishers.push(client.received.publisher());
            refused.push((id, error));
        }
        self.forget(&refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), &publishers);
        for (id, error) in refused {
            let (reason, again) = refused_for(&error);
            self.refuse(id, reason, error.to_string(), again);
        }
        let missed =
            self.clients.iter().filter_map(|(id, client)| Some((id, client.is_missed(now)?)));
        for (id, process) in missed.collect::<Vec<_>>() {
            self.detach(id, process, Phase::Lost(process));
        }
        let overdue = self.clients.iter().filter(|(_, client)| client.is_overdue(now));
        for id in overdue.map(|(id, _)| id).collect::<Vec<_>>() {
            let text = format!("it has not introduced itself within {} s", GREETING.as_secs());
            self.refuse(id, RefusedFor::Silence, text, true);
        }
        Ok(())
    }

    /// Has kept that these processes are gone, at the expense of whose they were.
    fn forget(&mut self, clients: &[ClientId], publishers: &[u128]) {
        let start = thread_time();
        self.keep.forget(&self.tree, publishers);
        let each = thread_time().saturating_sub(start) / (clients.len() as u32).max(1);
        for client in clients {
            if let Some(client) = self.clients.get(*client) {
                self.turns.charge(client.who.uid, each);
            }
        }
    }

    /// Charges a user with all that a client has which is in the tree, and parts with it if that is too much.
    pub(super) fn charge_all(&mut self, id: ClientId, process: ProcessKey) {
        let (Some(client), Some(usage)) = (self.clients.get(id), self.tree.usage_of(process))
        else {
            return;
        };
        let has = Amounts { sources: usage.sources, ..client.has };
        let has = has.with_received(client.received.amounts());
        if let Err(exceeded) = self.charge(id, has) {
            // It is there until it has been folded.
            if let Some(client) = self.clients.get(id) {
                self.accounts.set(client.who.uid, &mut client.has, has);
            }
            self.refuse(id, RefusedFor::Limit, exceeded.to_string(), false);
        }
    }

    /// Charges a user with what a client has that is here. If that is too much because of what others have, it is
    /// not this one that has to go.
    pub(super) fn charge(&mut self, id: ClientId, has: Amounts) -> Result<(), Exceeded> {
        let Some(client) = self.clients.get(id) else { return Ok(()) };
        let uid = client.who.uid;
        let charged = self.accounts.change(uid, &mut client.has, has);
        if let Err(exceeded @ Exceeded::Host { .. }) = charged {
            self.accounts.set(uid, &mut client.has, has);
            self.crowded.insert(exceeded);
            return Ok(());
        }
        charged
    }

    /// Parts with a process, the largest one, of whoever has most of what there is too much of.
    fn make_room(&mut self, exceeded: Exceeded) {
        let Exceeded::Host { what, limit } = exceeded else { return };
        // Those that leave make room already.
        let here = || {
            let all = self.clients.iter().filter(|(_, client)| client.process().is_some());
            all.filter(|(_, client)| !matches!(client.phase, Phase::Leaving(_)))
        };
        let mut of_users = HashMap::<u32, u64>::new();
        for (_, client) in here() {
            *of_users.entry(client.who.uid).or_default() += client.has.of(what);
        }
        if of_users.values().sum::<u64>() <= limit {
            return;
        }
        let most = of_users.into_iter().max_by_key(|(uid, has)| (*has, *uid));
        let Some((uid, has)) = most else { return };
        let of_user = here().filter(|(_, client)| client.who.uid == uid);
        let largest = of_user.max_by_key(|(id, client)| (client.has.of(what), *id));
        let Some(id) = largest.map(|(id, _)| id) else { return };
        let text = format!("{exceeded}, and user {uid} has most of them, {has}");
        self.refuse(id, RefusedFor::Limit, text, false);
    }

    pub(super) fn round(&mut self) {
        let all: Vec<_> =
            self.clients.iter().filter_map(|(id, client)| Some((id, client.process()?))).collect();
        let (mut segments, mut bytes, mut sources, mut descriptors) = (0, 0, 0, 0);
        for (id, process) in all {
            let (Some(client), Some(usage)) = (self.clients.get(id), self.tree.usage_of(process))
            else {
                continue;
            };
            segments += usage.segments;
            bytes += usage.bytes;
            sources += usage.sources;
            client.received.close_gone();
            descriptors += client.received.amounts().descriptors;
            let (uid, phase) = (client.who.uid, client.phase);
            // One that has given its place to one that did not come back after all has one again, if there is one.
            let has = Amounts { connections: 1, ..client.has };
            let _ = self.accounts.change(uid, &mut client.has, has);
            if let Phase::Leaving(_) = phase {
                // What could not be kept is tried again.
                self.worker.again(uid, id, Job::Fold(process));
            } else {
                self.charge_all(id, process);
            }
        }
        for unseen in std::mem::take(&mut self.put_off) {
            self.worker.give(unseen.uid(), NOBODY, Job::TakeOver(unseen));
        }
        for exceeded in std::mem::take(&mut self.crowded) {
            self.make_room(exceeded);
        }
        self.watch_again();
        let here = self.clients.iter().map(|(_, client)| client.received.publisher());
        let here: HashSet<_> = here.chain(self.unseen.iter().copied()).collect();
        self.keep.forget_dead(&self.tree, &here);
        self.keep.keep_rest();
        let own = &self.own;
        own.server_segments.set(segments as u32);
        own.server_segment_bytes.set(bytes);
        own.server_sources.set(sources);
        own.server_descriptors.set(descriptors as u32);
        let clients = self.clients.iter().filter(|(_, client)| client.socket.is_some()).count();
        own.server_clients.set(clients as u32);
        // As it last was: this thread brings nobody's sources into the tree.
        let usage = self.tree.last_usage();
        own.server_processes.set(usage.processes as u32);
        own.server_detached.set(usage.detached as u32);
        own.server_left_out.set(usage.left_out as u32);
        let (room, numbers) = self.store.numbers();
        own.server_kept_room.set(room as u32);
        own.server_kept_segments.set(numbers.kept as u32);
        own.server_unkept_segments.set(numbers.unkept as u32);
    }
}

/// Descriptors that are left free: for what comes with a message, for which a thread may find no room but must
/// not close it, and for what the threads open.
pub(super) const ROOM_TO_RECEIVE: u64 = 512;
const ROOM_TO_ACCEPT: u64 = 2 * ROOM_TO_RECEIVE;

/// Why a new descriptor is one too many, if there are fewer than `room` left beyond it.
pub(super) fn full(new: &impl AsFd, room: u64) -> Option<String> {
    is_beyond(new, |limit| limit - room.min(limit / 4))
}

/// Descriptors that this process may have.
fn most_open() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Why a new descriptor is one too many, if it is not among so many as that of those that there may be.
pub(super) fn is_beyond(new: &impl AsFd, most: impl Fn(u64) -> u64) -> Option<String> {
    // The kernel gives the lowest one that is free.
    let limit = most_open();
    let new = new.as_fd().as_raw_fd().unsigned_abs();
    (u64::from(new) >= most(limit)).then(|| {
        format!("the server has too many files open: raise its limit of {limit} (`ulimit -n`)")
    })
}

fn wait_error(error: impl Into<io::Error>) -> ServeError {
    ServeError::Wait(error.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::host::protocol::Life;
    use crate::host::server::keep::JoinError;
    use crate::host::server::received::Received;
    use crate::host::server::worker::{Done, Outcome};
    use crate::tree::TreeError;
    use crate::{Registry, RegistryOptions};

    /// A server that has all that it needs in a directory.
    pub(in crate::host::server) fn server_in(directory: &Path) -> Server {
        Server::start(ServeOptions {
            mount: directory.join("mount"),
            socket: directory.join("socket"),
            state: directory.join("state"),
            ..ServeOptions::default()
        })
        .unwrap()
    }

    #[test]
    fn what_a_process_sent_before_it_died_is_kept_with_what_was_kept_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server_in(directory.path());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let start_time = Life::of(child.id()).unwrap().unwrap().start_time;
        let who = Who { pid: child.id(), uid: 7, gid: 7, start_time };
        child.kill().unwrap();
        child.wait().unwrap();
        let small = RegistryOptions { segment_size: 64 << 10, ..RegistryOptions::default() };
        let registry = Registry::with_options(small).unwrap();
        let top = registry.create_source("top").unwrap();
        top.register().unwrap();
        let mut made = 0;
        while registry.usage().segments < 2 {
            let source = registry.create_source(&format!("s{made}")).unwrap();
            top.add_subordinate(&source).unwrap();
            made += 1;
        }
        let segments = || registry.segments().unwrap();
        let of = |segments| {
            let received = Received::of(registry.publisher(), 7, Closer::default());
            received.add(segments);
            received
        };
        // The server before had one of its segments; this one is sent all, while the one is taken over.
        let received = of(segments().into_iter().take(1).collect());
        let process = server.keep.join(&server.tree, received.clone(), who, true).unwrap();
        let comes = Client { is_over: true, ..Client::new(who, None, None, Amounts::default()) };
        let id = server.clients.add(Client { received: of(segments()), ..comes });
        server.clients.enter(id, Phase::Joining);
        server.await_back(Resumed {
            who,
            pidfd: None,
            process,
            received: received.clone(),
            is_over: true,
        });
        let result = Err(JoinError::Tree(TreeError::Joined(process)));
        server.done(Done { client: id, outcome: Outcome::Joined(result), took: Duration::ZERO });
        assert_eq!(received.len(), 2);
        let is_leaving = |client: &Client| client.phase == Phase::Leaving(process);
        let all: Vec<_> =
            server.clients.iter().map(|(of, client)| (of, is_leaving(client))).collect();
        assert_eq!(all, [(id, true)]);
    }

    #[test]
    fn who_is_told_to_come_again_while_it_is_taken_in_may_come() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server_in(directory.path());
        let pid = std::process::id();
        let start_time = Life::of(pid).unwrap().unwrap().start_time;
        for again in [true, false] {
            let who = Who { pid, uid: 7, gid: 7, start_time };
            let registry = Registry::new().unwrap();
            registry.create_source("top").unwrap().register().unwrap();
            let received = Received::of(registry.publisher(), 7, Closer::default());
            received.add(registry.segments().unwrap());
            let client = Client::new(who, None, None, Amounts::default());
            let id = server.clients.add(Client { received: received.clone(), ..client });
            server.clients.enter(id, Phase::Joining);
            let result = server.keep.join(&server.tree, received, who, true);
            let process = *result.as_ref().unwrap();
            server.refuse(id, RefusedFor::Server, "it is short of something".into(), again);
            let outcome = Outcome::Joined(result);
            server.done(Done { client: id, outcome, took: Duration::ZERO });
            let phase = server.clients.get(id).map(|client| client.phase);
            let expected = if again { Phase::Lost(process) } else { Phase::Leaving(process) };
            assert_eq!(phase, Some(expected));
        }
    }

    #[test]
    fn a_process_that_could_not_be_watched_is_watched_later() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server_in(directory.path());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let start_time = Life::of(child.id()).unwrap().unwrap().start_time;
        let who = Who { pid: child.id(), uid: 7, gid: 7, start_time };
        let registry = Registry::new().unwrap();
        registry.create_source("top").unwrap().register().unwrap();
        let received = Received::of(registry.publisher(), 7, Closer::default());
        received.add(registry.segments().unwrap());
        let process = server.keep.join(&server.tree, received.clone(), who, true).unwrap();
        // As if there had been no descriptor for it.
        server.await_back(Resumed { who, pidfd: None, process, received, is_over: false });
        let is_watched = |server: &Server| server.clients.iter().any(|(_, c)| c.pidfd.is_some());
        assert!(!is_watched(&server));
        server.round();
        assert!(is_watched(&server));
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel tells of it, nobody else.
        let is_there = |server: &Server| server.tree.usage_of(process).is_some();
        let mut events = [EpollEvent::empty(); 8];
        while is_there(&server) {
            let n = server.epoll.wait(&mut events, EpollTimeout::from(60_000u16)).unwrap();
            assert!(n > 0, "nobody tells of it");
            for event in &events[..n] {
                match event.data() {
                    DONE => server.worker.done().into_iter().for_each(|done| server.done(done)),
                    token => server.turn((token - FIRST) / 2, token, event.events()),
                }
            }
        }
    }
}
