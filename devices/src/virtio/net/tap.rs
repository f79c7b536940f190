//! A tap interface of the host, as the other end of a guest's network interface.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::{Backend, HEADER, Offloads};
use crate::sys;

/// The driver of tap interfaces.
const TUN: &str = "/dev/net/tun";

/// Why a tap interface can not be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has no tap interfaces, or this process may not use them.
    #[error("the driver of tap interfaces, {TUN}, can not be opened: {error}{}", hint(.error))]
    Driver {
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no such interface.
    #[error(
        "there is no network interface {0}: make it with `ip tuntap add {0} mode tap` and `ip link set {0} up`"
    )]
    Missing(String),
    /// It is of another kind.
    #[error(
        "the network interface {0} is no tap interface with a single queue: make one of another name with `ip tuntap add NAME mode tap` and `ip link set NAME up`"
    )]
    Kind(String),
    /// Another process uses it.
    #[error("the tap interface {0} is in use by another process")]
    InUse(String),
    /// This user may not use it.
    #[error(
        "the tap interface {0} may not be used by this user: make it with `ip tuntap add {0} mode tap user USER`"
    )]
    NotPermitted(String),
    /// It can not do what a guest needs.
    #[error("the tap interface {name} can not be set up ({what}): {error}")]
    SetUp {
        /// The interface.
        name: String,
        /// What it was asked for.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// What to do about the driver.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": load it with `modprobe tun`",
        io::ErrorKind::PermissionDenied => ": allow it with `chmod a+rw /dev/net/tun`",
        _ => "",
    }
}

/// A tap interface, opened for this process alone.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Opens the tap interface of this name.
    ///
    /// # Errors
    /// [`TapError`] says why it can not be used.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(|error| TapError::Driver { error })?;
        // It would be made, and go again with us.
        if !sys::interface_exists(name) {
            return Err(TapError::Missing(name.to_string()));
        }
        let set_up = |what| move |error| TapError::SetUp { name: name.to_string(), what, error };
        sys::tap_attach(file.as_fd(), name).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::Kind(name.to_string()),
            Some(libc::EBUSY) => TapError::InUse(name.to_string()),
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.to_string()),
            _ => set_up("TUNSETIFF")(error),
        })?;
        sys::tap_set_header_size(file.as_fd(), HEADER).map_err(set_up("TUNSETVNETHDRSZ"))?;
        // Whoever had it before may have set others.
        sys::tap_set_offload(file.as_fd(), 0).map_err(set_up("TUNSETOFFLOAD"))?;
        Ok(Self(file))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Backend for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
        ];
        let set = flags.into_iter().filter(|(on, _)| *on).fold(0, |set, (_, flag)| set | flag);
        sys::tap_set_offload(self.as_fd(), set)
    }
}
