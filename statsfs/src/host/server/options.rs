//! How a server is made, and why it can not be.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::limits::{Amounts, HostLimits};
use super::metrics::MetricsAddress;
use super::stats::StatsError;
use crate::fs::{MountError, MountOptions};
use crate::host::state::StoreError;
use crate::host::{DEFAULT_MOUNT, DEFAULT_SOCKET, DEFAULT_STATE};
use crate::segment::Limits;
use crate::tree::{MetricName, Owner, TreeError, TreeOptions};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to mount.
    pub mount: PathBuf,
    /// The socket that processes publish to.
    pub socket: PathBuf,
    /// The group whose members may publish; nobody but the server's own user and root unless set.
    pub socket_group: Option<u32>,
    /// The directory of what must outlast the server.
    pub state: PathBuf,
    /// Who owns what the tree has of its own, and the group that may look into private directories.
    pub owner: Owner,
    /// What one user may have.
    pub limits: Amounts,
    /// What all users together may have.
    pub host_limits: HostLimits,
    /// What one process may have, beyond which it is let go with all that it counted; of sources no more than twice
    /// as many as its user.
    pub process_limits: Limits,
    /// How much of a processor's time the processes of an earlier server may take until anybody is answered, who has
    /// been waiting since that one ended. The rest comes after that: until then totals are too small.
    pub take_over_first: Duration,
    /// How many bytes of the tree's own memory one read of a bulk file may take.
    pub bulk_bytes: usize,
    /// How many bytes may be kept of what all processes bring, and of what is cleared; no more than
    /// [`MAX_PAYLOAD`](crate::host::state::MAX_PAYLOAD).
    pub kept_bytes: usize,
    /// How the mount is served. What happens in it is told to the server, which counts it.
    pub mount_options: MountOptions,
    /// Where `/metrics` is served over HTTP: nowhere unless set.
    pub metrics: Option<MetricsAddress>,
    /// Metrics that these, and the mount's, have of each vCPU, and not only of each machine.
    pub vcpu_metrics: Vec<MetricName>,
    /// Whether what is private is among these metrics, which whoever connects there may read.
    pub includes_private: bool,
    /// Whether the thread that starts the server, and the server's own, give up the capabilities that they do
    /// not need any more, for good.
    pub gives_up_rights: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            mount: DEFAULT_MOUNT.into(),
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            state: DEFAULT_STATE.into(),
            owner: Owner::this_process(),
            limits: Amounts::DEFAULT,
            host_limits: HostLimits::DEFAULT,
            process_limits: Limits::default(),
            take_over_first: Duration::from_secs(1),
            bulk_bytes: TreeOptions::BULK_BYTES,
            kept_bytes: TreeOptions::KEPT_BYTES,
            mount_options: MountOptions::default(),
            metrics: None,
            vcpu_metrics: Vec::new(),
            includes_private: false,
            gives_up_rights: false,
        }
    }
}

/// Why a server could not start, or ended: one line that says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another server has the socket.
    #[error("{at} is served already: end the other server, or choose another place with --socket",
        at = .0.display())]
    Served(PathBuf),
    /// What is there is no socket.
    #[error("{at} is not a socket: remove it, or choose another place with --socket", at = .0.display())]
    NotASocket(PathBuf),
    /// No socket.
    #[error("cannot listen at {at}: {source}", at = .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No endpoint for metrics.
    #[error("cannot serve metrics at {address}: {source}")]
    Metrics {
        /// Where.
        address: MetricsAddress,
        /// Why.
        source: io::Error,
    },
    /// What outlasts the server can not be had.
    #[error(transparent)]
    State(#[from] StoreError),
    /// What outlasts the server can not be written.
    #[error("cannot keep anything in {at}: {source}", at = .path.display())]
    Keep {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The server's own segments are not taken.
    #[error("cannot show the server's own statistics: {0}")]
    Tree(#[from] TreeError),
    /// The server's own statistics can not be had.
    #[error("cannot count: {0}")]
    Stats(#[from] StatsError),
    /// The kernel refused what the server needs to wait for its clients.
    #[error("cannot wait for clients: {0}")]
    Wait(#[source] io::Error),
    /// A thread has ended that is to last: a bug, which was reported where it ended.
    #[error("the thread that takes processes in has ended")]
    Worker,
    /// The mount has gone.
    #[error("{at} has been unmounted by somebody else", at = .0.display())]
    Unmounted(PathBuf),
}
