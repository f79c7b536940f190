//! What a publisher and the server of a host say to each other, over a `SOCK_SEQPACKET` socket.
//!
//! One datagram is one message; descriptors come with it by `SCM_RIGHTS` (unix(7)). All numbers are
//! little-endian. Neither side trusts the other: a message that is not exactly as below is an
//! [error](ProtocolError), after which the connection is of no use.
//!
//! # Header
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `SFSP` |
//! | 4 | 2 | version of the protocol: 1 |
//! | 6 | 2 | type |
//! | 8 | 4 | length of the message, header included; at most 8192 |
//! | 12 | 4 | 0 |
//!
//! # From the publisher
//!
//! | type | message | descriptors | body |
//! |---|---|---|---|
//! | 1 | hello | the first segments: 1 to 16 | 16: publisher's id (16 bytes, not 0), 32: flags (4: bit 0 its directories are public), 36: number of segments that it has (4: 1 to 256) |
//! | 2 | segments | further ones: 1 to 16 | 16: index of the first (4: 1 to 255) |
//! | 3 | changed | none | – |
//! | 4 | goodbye | none | – |
//! | 5 | status | none | – |
//! | 6 | statistics | of what the kernel counts: 1 to 16 | 16: number of the first (4, not 0) |
//!
//! # From the server
//!
//! | type | message | descriptors | body |
//! |---|---|---|---|
//! | 0x101 | welcome | none | 16: the publisher's process id as the server sees it (4, not 0), 20: path of the mount, absolute, of at most 4095 bytes |
//! | 0x102 | refused | none | 16: flags (4: bit 0 it is worth trying again), 20: the reason, text of at most 1024 bytes |
//! | 0x103 | bye | none | – |
//! | 0x104 | status part | none | 16: offset of the part (4), 20: size of the whole (4), 24: the part, at least one byte |
//!
//! # Who says what when
//!
//! * A publisher begins with *hello*. What segments it has beyond 16 follow in *segments* messages, in
//!   order. The answer is *welcome* or, now or at any time later, *refused*, with which the server closes
//!   the connection.
//! * *Segments* also announce what is added later, and *changed* that something in them has another
//!   structure; it may be dropped when the socket is full, since the server looks by itself as well.
//! * *Statistics* are descriptors that `KVM_GET_STATS_FD` made, of the sender's own VMs and vCPUs. They have the numbers
//!   from the first one on that blocks have in its segments, and come after *hello*, when those are published.
//!   What the server has no room for, or can not tell to be the sender's, it closes and does without.
//! * *Goodbye* says that nothing is counted any more; it is answered by *bye* once what was counted is kept.
//! * Whoever may connect may ask for the *status* instead, without *hello*: text, in parts.
//! * *Refused* has the same form in every version, so that it is understood whichever version the server
//!   speaks.

mod message;
mod peer;
mod socket;
mod sys;

pub use message::{
    ClientMessage, Hello, MAGIC, MAX_FDS, MAX_MESSAGE, MAX_PART, MAX_PATH, MAX_REASON, MAX_STATUS,
    Message, ProtocolError, ServerMessage, StatusText, VERSION,
};
pub use peer::{Life, Peer, PeerError};
pub use socket::{Buffer, Incoming, Listener, ReceiveError, SendError, Socket};
#[cfg(feature = "server")]
pub(super) use sys::{inherited, set_capabilities};
