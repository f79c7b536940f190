//! What clients say, and what they are told.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::clients::{Client, Outgoing, Phase};
use super::closer;
use super::received::Received;
use super::run::{IN_TURN, ROOM_TO_RECEIVE, Server, full, pidfd_token, socket_token};
use super::stats::RefusedFor;
use super::status::{ClientStatus, Status};
use super::worker::{ClientId, Job};
use crate::host::protocol::{
    ClientMessage, Incoming, ProtocolError, ReceiveError, SendError, ServerMessage,
};
use crate::segment::memfd;

/// Status texts of one user that are on their way: each takes memory until it is read.
const MOST_UNREAD: usize = 4;
/// More messages than a socket holds that nobody writes to any more.
const MOST_QUEUED: usize = 4096;

impl Server {
    pub(super) fn client_event(&mut self, id: ClientId, token: u64, events: EpollFlags) {
        if token == pidfd_token(id) {
            return self.died(id);
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            self.send_status(id);
        }
        self.hear(id, IN_TURN);
    }

    /// Takes what a client that is dead has said, and nobody can add to.
    pub(super) fn hear_out(&mut self, id: ClientId) {
        self.hear(id, MOST_QUEUED);
    }

    /// Takes up to so many messages.
    fn hear(&mut self, id: ClientId, most: usize) {
        for _ in 0..most {
            let Some(client) = self.clients.get(id) else { return };
            let Some(socket) = &client.socket else { return };
            let (uid, mut fds) = (client.who.uid, Vec::new());
            if self.closer.hangs(uid) {
                return self.refuse(id, RefusedFor::Protocol, closer::hanging(uid), true);
            }
            let incoming = socket.receive(&mut self.buffer, &mut fds);
            if !matches!(incoming, Ok(Incoming::Nothing)) {
                self.own.server_messages.inc();
            }
            match incoming {
                Ok(Incoming::Message(message)) => self.said(id, message, fds),
                Ok(Incoming::Nothing) => return,
                Ok(Incoming::End) => return self.lost(id),
                Err(error) => {
                    self.closer.close(uid, fds);
                    // Most likely it is the server that has too many open.
                    let again = matches!(error, ReceiveError::Message(ProtocolError::LostFds));
                    let reason = if again { RefusedFor::Server } else { RefusedFor::Protocol };
                    return self.refuse(id, reason, error.to_string(), again);
                }
            }
        }
    }

    fn said(&mut self, id: ClientId, message: ClientMessage, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get(id) else { return };
        match (client.phase, message) {
            (Phase::Silent, ClientMessage::Hello(_)) if client.only_asks.is_some() => {
                let (uid, exceeded) = (client.who.uid, client.only_asks);
                self.closer.close(uid, fds);
                let text = exceeded.map(|exceeded| exceeded.to_string()).unwrap_or_default();
                self.refuse(id, RefusedFor::Limit, text, true);
            }
            (Phase::Silent, ClientMessage::Hello(hello)) => {
                client.phase = Phase::Greeting(hello);
                let who = client.who;
                client.received =
                    Received::of(hello.publisher, who.uid, self.keep.closer().clone());
                let before = self.clients.before(&who, hello.publisher);
                if let Some(client) = self.clients.get(id) {
                    client.before = before;
                }
                self.received(id, fds);
            }
            (
                Phase::Greeting(_) | Phase::Joining | Phase::Published(_),
                ClientMessage::Segments { first },
            ) if first as usize == client.received.len() => self.received(id, fds),
            (
                Phase::Greeting(_) | Phase::Joining | Phase::Published(_),
                ClientMessage::Statistics { first },
            ) => self.statistics(id, first, fds),
            (Phase::Joining | Phase::Published(_), ClientMessage::Changed) => {
                client.received.wake()
            }
            (Phase::Joining, ClientMessage::Goodbye) => client.is_over = true,
            // It was said before its end was known.
            (Phase::Leaving(_), _) => {
                let uid = client.who.uid;
                self.closer.close(uid, fds);
            }
            (Phase::Published(process), ClientMessage::Goodbye) => self.leave(id, process),
            // Who publishes is here for long, and might never read it.
            (Phase::Silent, ClientMessage::Status) => {
                if client.outgoing.is_none() && !client.is_deaf {
                    self.answer_status(id);
                }
            }
            (_, message) => {
                let uid = client.who.uid;
                self.closer.close(uid, fds);
                let text = format!("the message `{}` has no place here", message.name());
                self.refuse(id, RefusedFor::Protocol, text, false);
            }
        }
    }

    /// Takes segments from a client, and takes it in once it has sent all.
    fn received(&mut self, id: ClientId, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get(id) else { return };
        let who = client.who;
        // Nothing else is asked of a descriptor before this: it could hang.
        for fd in &fds {
            let size = memfd::checked_size(fd.as_fd(), self.options.process_limits.segment_size);
            if let Err(error) = size {
                self.closer.close(who.uid, fds);
                let text = format!("a segment is refused: {error}");
                let again = error.may_pass();
                let reason = if again { RefusedFor::Server } else { RefusedFor::Segment };
                return self.refuse(id, reason, text, again);
            }
        }
        if let Some(text) = fds.iter().find_map(|fd| full(fd, ROOM_TO_RECEIVE)) {
            drop(fds);
            return self.refuse(id, RefusedFor::Server, text, true);
        }
        // If it comes back, what is charged for it already is not charged again.
        let before = client.before.and_then(|before| self.clients.get(before));
        let before = before.map(|before| before.received.clone());
        let Some(client) = self.clients.get(id) else { return };
        let has = client.has.with_received(client.received.amounts_beyond(&fds, before.as_ref()));
        // What is not here yet may come later.
        let is_new = matches!(client.phase, Phase::Greeting(_));
        let charged = if is_new {
            self.accounts.change(who.uid, &mut client.has, has)
        } else {
            self.charge(id, has)
        };
        if let Err(exceeded) = charged {
            // They are memfds: closing them keeps nobody waiting.
            drop(fds);
            return self.refuse(id, RefusedFor::Limit, exceeded.to_string(), true);
        }
        let Some(client) = self.clients.get(id) else { return };
        client.received.add(fds);
        let Phase::Greeting(hello) = client.phase else { return };
        // It may have more by now than when it said how many there are.
        if client.received.len() >= hello.segments as usize {
            client.phase = Phase::Joining;
            let job = Job::Join(who, client.received.clone(), hello.public);
            self.worker.give(who.uid, id, job);
        }
    }

    /// What a user may know who asks over this connection.
    pub(super) fn status(&self, asks: ClientId, uid: u32) -> Status {
        let may = |of: u32| uid == 0 || uid == of;
        // Those that have no place among their user's connections can be nobody but askers.
        let is_shown = |id: ClientId, client: &Client| {
            id != asks && client.only_asks.is_none() && may(client.who.uid)
        };
        let clients = self.clients.iter().filter(|(id, client)| is_shown(*id, client));
        let mut clients: Vec<_> = clients.map(|(_, client)| ClientStatus::of(client)).collect();
        clients.sort_by_key(|client| client.pid);
        let mut refused: Vec<_> = self.refusals.last().cloned().collect();
        refused.extend(self.own.counts.refused());
        refused.retain(|refusal| may(refusal.uid));
        refused.sort_by_key(|refusal| refusal.at);
        Status {
            pid: std::process::id(),
            mount: self.mount.path().to_path_buf(),
            socket: self.options.socket.clone(),
            state: self.options.state.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            limits: self.options.limits,
            host_limits: self.options.host_limits,
            used: self.accounts.used(uid),
            clients,
            refused,
        }
    }

    fn answer_status(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let uid = client.who.uid;
        let is_unread = |(_, of): &(ClientId, &Client)| of.who.uid == uid && of.outgoing.is_some();
        if self.clients.iter().filter(is_unread).count() >= MOST_UNREAD {
            let text =
                format!("user {uid} has not read {MOST_UNREAD} answers that were asked for before");
            return self.refuse(id, RefusedFor::Limit, text, true);
        }
        let text = self.status(id, uid).to_string();
        if let Some(client) = self.clients.get(id) {
            client.outgoing = Some(Outgoing { text, sent: 0 });
        }
        self.send_status(id);
    }

    /// Sends as much of a status text as there is room for.
    pub(super) fn send_status(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let (Some(socket), Some(outgoing)) = (&client.socket, &mut client.outgoing) else { return };
        let (mut is_full, mut failed) = (false, None);
        for part in ServerMessage::status(&outgoing.text).skip(outgoing.sent) {
            match socket.send(&part, &[]) {
                Ok(()) => outgoing.sent += 1,
                Err(SendError::Full) => {
                    is_full = true;
                    break;
                }
                // Its end is seen in its turn, after all that it has said.
                Err(SendError::Closed) => {
                    client.is_deaf = true;
                    break;
                }
                Err(error) => {
                    failed = Some(format!("the server can not answer: {error}"));
                    break;
                }
            }
        }
        // What is missing of it would be waited for.
        if let Some(text) = failed {
            client.outgoing = None;
            return self.refuse(id, RefusedFor::Server, text, true);
        }
        let mut events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        if is_full {
            events |= EpollFlags::EPOLLOUT;
        } else {
            client.outgoing = None;
        }
        let _ = self.epoll.modify(socket, &mut EpollEvent::new(events, socket_token(id)));
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EventFd;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::host::protocol::{Hello, Socket};
    use crate::host::server::clients::{Client, Who};
    use crate::host::server::limits::Amounts;
    use crate::host::server::run::tests::server_in;

    #[test]
    fn who_can_not_be_answered_is_told_so_unless_nobody_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server_in(directory.path());
        let mut asks = |socket: OwnedFd| {
            let who = Who { pid: 1, uid: 7, gid: 7, start_time: 1 };
            let client = Client::new(who, None, Some(Socket::from(socket)), Amounts::default());
            let id = server.clients.add(client);
            server.said(id, ClientMessage::Status, Vec::new());
            server.clients.get(id).map(|client| client.is_deaf)
        };
        let (flags, kind) = (SockFlag::SOCK_CLOEXEC, SockType::SeqPacket);
        let (socket, other) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        drop(other);
        assert_eq!(asks(socket), Some(true));
        // Nothing can be sent there, whoever listens.
        assert_eq!(asks(EventFd::new().unwrap().into()), None);
    }

    #[test]
    fn who_does_not_read_answers_can_ask_so_often() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server_in(directory.path());
        let mut theirs = Vec::new();
        let mut asks = |server: &mut Server, uid, hello| {
            let (flags, kind) = (SockFlag::SOCK_CLOEXEC, SockType::SeqPacket);
            let (socket, other) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
            theirs.push(other);
            let socket = Socket::from(socket);
            // Nothing more fits.
            while socket.send(&ServerMessage::Bye, &[]).is_ok() {}
            let who = Who { pid: 1, uid, gid: 7, start_time: 1 };
            let id = server.clients.add(Client::new(who, None, Some(socket), Amounts::default()));
            if hello {
                let hello = Hello { publisher: 1, public: true, segments: 1 };
                server.said(id, ClientMessage::Hello(hello), Vec::new());
            }
            server.said(id, ClientMessage::Status, Vec::new());
            server.clients.get(id).is_some_and(|client| client.outgoing.is_some())
        };
        for uid in [7, 8] {
            assert!((0..MOST_UNREAD).all(|_| asks(&mut server, uid, false)));
            assert!(!asks(&mut server, uid, false));
        }
        let refused: Vec<_> = server.refusals.last().map(|last| (last.uid, last.reason)).collect();
        assert_eq!(refused, [(7, RefusedFor::Limit), (8, RefusedFor::Limit)]);
        // Who is about to publish asks nothing.
        assert!(!asks(&mut server, 9, true));
        assert_eq!(
            server.refusals.last().last().map(|last| last.reason),
            Some(RefusedFor::Protocol)
        );
    }
}
