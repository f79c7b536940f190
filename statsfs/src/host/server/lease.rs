//! How clients come into the tree, and how they end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::clients::{Client, Phase, Who};
use super::keep::{JoinError, TakenOver};
use super::limits::Amounts;
use super::refusals::refused_for;
use super::run::Server;
use super::stats::RefusedFor;
use super::worker::{ClientId, Done, Job, Outcome};
use crate::host::protocol::{SendError, ServerMessage};
use crate::tree::{ProcessKey, TreeError};

impl Server {
    pub(super) fn done(&mut self, Done { client: id, outcome, took }: Done) {
        match outcome {
            Outcome::Joined(result) => {
                self.own.server_join_time.record(took.as_nanos() as u64);
                self.joined(id, result);
            }
            Outcome::Folded(result) => {
                self.own.server_fold_time.record(took.as_nanos() as u64);
                self.folded(id, result);
            }
            Outcome::TakenOver(publisher, resumed) => {
                if let TakenOver::Later(unseen) = resumed {
                    // Soon, but not at once.
                    return self.put_off.push(unseen);
                }
                self.unseen.remove(&publisher);
                self.is_whole.store(self.unseen.is_empty(), Relaxed);
                if let TakenOver::In(resumed) = resumed {
                    self.await_back(*resumed);
                }
            }
        }
    }

    fn joined(&mut self, id: ClientId, result: Result<ProcessKey, JoinError>) {
        // Nobody is removed while it is being taken in.
        let Some(client) = self.clients.get(id) else { return };
        client.phase = Phase::Silent;
        match result {
            Ok(process) => {
                self.own.server_joined.inc();
                self.is_in(id, process);
                self.charge_all(id, process);
            }
            Err(JoinError::Tree(TreeError::Joined(process))) => self.came_back(id, process),
            Err(error) => {
                let (reason, again) = match &error {
                    JoinError::Tree(error) => refused_for(error),
                    JoinError::Folded => (RefusedFor::Twice, false),
                };
                self.refuse(id, reason, error.to_string(), again);
            }
        }
    }

    fn is_in(&mut self, id: ClientId, process: ProcessKey) {
        self.clients.enter(id, Phase::Published(process));
        let Some(client) = self.clients.get(id) else { return };
        if client.is_over {
            self.hear_out(id);
            if let Some(Phase::Published(process)) = self.clients.get(id).map(|client| client.phase)
            {
                self.leave(id, process);
            }
            return;
        }
        let Some(socket) = &client.socket else {
            return self.detach(id, process, Phase::Lost(process));
        };
        let welcome = ServerMessage::Welcome { pid: client.who.pid, mount: self.mount.path() };
        // Its end is seen in its turn.
        if let Err(SendError::Full) = socket.send(&welcome, &[]) {
            let text = "it does not read its answers".to_owned();
            self.refuse(id, RefusedFor::Protocol, text, true);
        }
    }

    /// The segments are in the tree: the client that had them may have come back.
    fn came_back(&mut self, id: ClientId, process: ProcessKey) {
        let Some(who) = self.clients.get(id).map(|client| client.who) else { return };
        let before = self.clients.of_process(process);
        let Some((before, was)) =
            before.and_then(|before| Some((before, self.clients.get(before)?)))
        else {
            let text = "its segments are the server's own".to_owned();
            return self.refuse(id, RefusedFor::Twice, text, false);
        };
        let (phase, of) = (was.phase, was.who);
        if !of.is_process(&who) {
            let text = format!("its segments are published by process {}", of.pid);
            return self.refuse(id, RefusedFor::Twice, text, false);
        }
        if matches!(phase, Phase::Leaving(_)) {
            // What came over this connection is kept with the rest, if it is not too late.
            let theirs = was.received.clone();
            if let Some(client) = self.clients.get(id) {
                theirs.take_over(&client.received);
            }
            let text = "it has said goodbye, and what it counted is being kept".to_owned();
            return self.refuse(id, RefusedFor::Twice, text, false);
        }
        if matches!(phase, Phase::Lost(_))
            && let Err(error) = self.tree.reattach(process)
        {
            return self.refuse(id, RefusedFor::Server, error.to_string(), true);
        }
        self.own.server_rejoined.inc();
        // The connection of before is of no use any more, whether or not its end has been seen. What came over
        // it is what the tree reads.
        if let Some(was) = self.clients.remove(before) {
            let had = was.has;
            if let Some(client) = self.clients.get(id) {
                was.received.take_over(&client.received);
                client.received = was.received.clone();
            }
            self.part_with(was);
            if let Some(client) = self.clients.get(id) {
                client.before = None;
                let has = Amounts { connections: 1, ..had };
                // It is here, whether or not that is too much: it has not grown. However few of its segments it
                // sent again, it has them all.
                let has = has.with_received(client.received.amounts());
                self.accounts.set(who.uid, &mut client.has, has);
            }
        }
        self.is_in(id, process);
    }

    fn folded(&mut self, id: ClientId, result: Result<(), TreeError>) {
        match result {
            // It is kept; or it was let go meanwhile, which is said where that is seen.
            Ok(()) | Err(TreeError::NoProcess) => {
                if let Some(client) = self.clients.remove(id) {
                    self.keep.has_let_go(client.received.publisher());
                    self.own.server_folded.inc();
                    if let Some(socket) = &client.socket {
                        let _ = socket.send(&ServerMessage::Bye, &[]);
                    }
                    self.part_with(client);
                }
            }
            // It stays detached, and is tried again.
            Err(error) => {
                let Some(uid) = self.clients.get(id).map(|client| client.who.uid) else { return };
                if let Some(unsaid) = self.unfolded.say(uid, Instant::now()) {
                    tracing::error!(%error, uid, unsaid, "a process that has left stays in the tree");
                }
            }
        }
    }

    pub(super) fn lost(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let (uid, phase) = (client.who.uid, client.phase);
        match phase {
            Phase::Silent | Phase::Greeting(_) => {
                if let Some(client) = self.clients.remove(id) {
                    self.part_with(client);
                }
                return;
            }
            Phase::Joining
            | Phase::Published(_)
            | Phase::Awaited(_)
            | Phase::Lost(_)
            | Phase::Leaving(_) => {}
        }
        if let Some(socket) = client.socket.take() {
            let _ = self.epoll.delete(&socket);
            self.closer.hang_up(uid, socket);
        }
        if let Phase::Published(process) = phase {
            self.detach(id, process, Phase::Lost(process));
        }
    }

    pub(super) fn died(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        if let Some(pidfd) = client.pidfd.take() {
            let _ = self.epoll.delete(&pidfd);
        }
        client.is_over = true;
        // What it said before it died comes first: segments, perhaps.
        self.hear_out(id);
        match self.clients.get(id).map(|client| client.phase) {
            Some(Phase::Published(process) | Phase::Awaited(process) | Phase::Lost(process)) => {
                self.leave(id, process);
            }
            Some(Phase::Silent | Phase::Greeting(_) | Phase::Joining | Phase::Leaving(_))
            | None => {}
        }
    }

    /// Takes its directories away.
    pub(super) fn detach(&mut self, id: ClientId, process: ProcessKey, phase: Phase) {
        let start = Instant::now();
        // If it is not there any more, it was let go, which is seen at the next tick.
        let _ = self.tree.detach(process);
        self.own.server_lost.inc();
        self.own.server_lost_time.record(start.elapsed().as_nanos() as u64);
        self.clients.enter(id, phase);
    }

    /// It is over: what it counted is to be kept without it.
    pub(super) fn leave(&mut self, id: ClientId, process: ProcessKey) {
        match self.clients.get(id).map(|client| client.phase) {
            // Now, and not when the worker comes to it.
            Some(Phase::Published(_) | Phase::Awaited(_)) => {
                self.detach(id, process, Phase::Leaving(process));
            }
            _ => self.clients.enter(id, Phase::Leaving(process)),
        }
        if let Some(client) = self.clients.get(id) {
            self.worker.give(client.who.uid, id, Job::Fold(process));
        }
    }

    /// Refuses a client, or parts with it. What it counted stays as far as it was in the tree.
    pub(super) fn refuse(&mut self, id: ClientId, reason: RefusedFor, text: String, again: bool) {
        let Some(client) = self.clients.get(id) else { return };
        let Who { pid, uid, .. } = client.who;
        if let Some(socket) = client.socket.take() {
            let _ = socket.send(&ServerMessage::refused(&text, again), &[]);
            let _ = self.epoll.delete(&socket);
            self.closer.hang_up(uid, socket);
        }
        self.own.server_refused[reason].inc();
        self.refusals.add(pid, uid, reason, text);
        match client.phase {
            // What it counts until it may come back is lost otherwise.
            Phase::Joining => client.is_over |= !again,
            // It may come back, and goes on counting.
            Phase::Published(process) | Phase::Awaited(process) if again => {
                self.detach(id, process, Phase::Lost(process));
            }
            Phase::Lost(_) if again => {}
            Phase::Published(process) | Phase::Awaited(process) | Phase::Lost(process) => {
                self.leave(id, process);
            }
            Phase::Leaving(_) => {}
            Phase::Silent | Phase::Greeting(_) => {
                if let Some(client) = self.clients.remove(id) {
                    self.part_with(client);
                }
            }
        }
    }

    /// Gives back what a client had that is no client any more.
    fn part_with(&mut self, mut client: Client) {
        let uid = client.who.uid;
        self.accounts.release(uid, &mut client.has);
        if let Some(pidfd) = client.pidfd.take() {
            let _ = self.epoll.delete(&pidfd);
        }
        if let Some(socket) = client.socket.take() {
            let _ = self.epoll.delete(&socket);
            self.closer.hang_up(uid, socket);
        }
    }
}
