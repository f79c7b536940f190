//! What the VMM tells its user: lines on standard error.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells the user something, in one line and one write(2).
///
/// A user who can not be told is no reason to stop, and the exit status says the most important thing all the
/// same: errors are ignored, where `eprintln` would panic, and so would the panic's own message.
pub fn tell(message: impl Display) {
    let line = format!("vmm: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// That something is missing, and why: the first reason is told, once, when nothing else has failed.
#[derive(Debug, Default)]
pub struct Missing {
    message: OnceLock<String>,
    told: AtomicBool,
}

impl Missing {
    /// Notes what is to be told, unless something is noted already.
    pub fn note(&self, message: impl FnOnce() -> String) {
        self.message.get_or_init(message);
    }

    /// Tells it, if it has not been told yet.
    pub fn tell(&self) {
        let Some(message) = self.message.get() else { return };
        if !self.told.swap(true, Ordering::Relaxed) {
            tell(message);
        }
    }
}
