//! What a server says of itself: `statsfs status`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::clients::{Client, Phase};
use super::limits::{Amounts, HostLimits};
use super::refusals::Refusal;

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientState {
    /// It has not introduced itself yet, or is being taken in.
    Joining,
    /// It is in the tree.
    Published,
    /// It is in the tree, and was that of the server before this one, to which it has not come back yet.
    Awaited,
    /// Its connection is lost, and it lives: what it counted is in the totals.
    Lost,
    /// What it counted is being kept.
    Leaving,
}

/// A client, and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// How far it has come.
    pub state: ClientState,
    /// For how long it has been connected; one that is [awaited](ClientState::Awaited), for how long this server
    /// has been awaiting it.
    pub seconds: u64,
    /// What it has.
    pub has: Amounts,
}

impl ClientStatus {
    pub(super) fn of(client: &Client) -> Self {
        let state = match client.phase {
            Phase::Silent | Phase::Greeting(_) | Phase::Joining => ClientState::Joining,
            Phase::Published(_) => ClientState::Published,
            Phase::Awaited(_) => ClientState::Awaited,
            Phase::Lost(_) => ClientState::Lost,
            Phase::Leaving(_) => ClientState::Leaving,
        };
        let (who, seconds) = (client.who, client.since.elapsed().as_secs());
        Self { pid: who.pid, uid: who.uid, gid: who.gid, state, seconds, has: client.has }
    }
}

/// What a server says of itself to a user: root is told of all clients, anybody else of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The server's process.
    pub pid: u32,
    /// Where its mount is.
    pub mount: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// Where it keeps what outlasts it.
    pub state: PathBuf,
    /// For how long it has been serving.
    pub uptime_seconds: u64,
    /// What a user may have.
    pub limits: Amounts,
    /// What all users together may have.
    pub host_limits: HostLimits,
    /// What the user who asks has.
    pub used: Amounts,
    /// The clients, by process.
    pub clients: Vec<ClientStatus>,
    /// The last ones that were refused, the newest last.
    pub refused: Vec<Refusal>,
}

/// As JSON.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
