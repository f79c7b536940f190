//! What has to be kept elsewhere for a mount to outlast the process that serves it.

use std::os::fd::OwnedFd;

/// A mount, as another process needs it to [carry it on](super::Mount::carry_on). As long as somebody has its
/// devices open, whoever asks something of it waits for an answer, whether or not anybody serves it.
#[derive(Debug)]
pub struct KeptMount {
    /// What it is called in the mount table, as no other is.
    pub source: String,
    /// Whether its mount point was made for it, so that it is removed in the end.
    pub made_place: bool,
    /// The devices that requests are read from. A request that was read and not answered is lost once the device
    /// that it was read from is closed by all who have it, and can be had again until then.
    pub devices: Vec<OwnedFd>,
}
