//! The server of a host: one tree and one mount for all processes that publish to its socket.
//!
//! # Who a client is
//! What the kernel says of who made the connection (`SO_PEERCRED`, a pidfd), never what the client says. A
//! process's *lease* is its connection and its pidfd: at the end of either its directories go at once and what
//! it counted stays in the totals (it is *detached*). Only when the pidfd says that it is dead, or when it has
//! said goodbye, is it *folded*: its counts go to what the tree keeps, and its segments are let go. Until then
//! it may come back with the same segments, as it does when the connection was lost for another reason.
//!
//! # Threads
//! One thread has the sockets and never waits for anything but them (`run`, `talk`, `lease`); one takes processes in and folds
//! them (`worker`), since that may take a while; a few close descriptors that nobody has looked at (`closer`),
//! since that may never end; and the mount has its own. `limits` says what one user may have, `turns` how much of
//! the first thread's time, `refusals` remembers who was refused and why, `keep` what must outlast the server.
//! `stats` are the server's own statistics, of which the mount's threads count theirs in `counts`.
//!
//! # When it is killed
//! What it keeps (`keep`) says what every process left and which process there is, and a service manager keeps
//! the mount's devices and the processes' segments (`fd_store`). The next server finds both (`inherited`), takes all
//! processes in again, folds those that have died since, and carries on with the mount: readers have waited, and
//! notice nothing. Processes come back to it in their own time. Without a service manager the mount is a new one,
//! and what a process counted that died meanwhile is lost.

mod clients;
mod closer;
mod counts;
mod fd_store;
mod inherited;
mod keep;
mod lease;
mod limits;
mod listen;
mod metrics;
mod options;
mod received;
mod refusals;
mod rights;
mod run;
mod statistics;
mod stats;
mod status;
mod talk;
mod turns;
mod worker;

pub use self::fd_store::{FdStore, Inherited};
pub use self::limits::{Amounts, Exceeded, HostLimits, Limited};
pub use self::metrics::MetricsAddress;
pub use self::options::{ServeError, ServeOptions};
pub use self::refusals::Refusal;
pub use self::run::Server;
pub use self::stats::{MountStats, RefusedFor, ServerStats, StateStats, StatsError, TreeStats};
pub use self::status::{ClientState, ClientStatus, Status};
