//! One tree for all processes of a host: a server that mounts it, and processes that publish to the server.
//!
//! * [`Registry::publish`](crate::Registry::publish) is all that a program needs (`client`);
//! * [`protocol`] is what both say to each other, [`state`] what the server keeps;
//! * [`server`] is the server, which the command `statsfs serve` runs.

mod ask;
mod client;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
pub mod state;

pub use ask::{AskError, ask_status};
pub use client::{OnChange, PublishError, PublishOptions, PublishState, Publisher, RETRY};

/// The server's socket unless told.
pub const DEFAULT_SOCKET: &str = "/run/statsfs.sock";
/// The environment variable that names the server's socket.
pub const SOCKET_VARIABLE: &str = "STATSFS_SOCKET";
/// The host's mount unless told.
pub const DEFAULT_MOUNT: &str = "/run/statsfs";
/// The directory of what the server keeps unless told.
pub const DEFAULT_STATE: &str = "/run/statsfs.state";
