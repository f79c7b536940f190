//! What the VMM tells its user: lines on standard error.

use std::fmt::Display;
use std::io::{self, Write};

/// Tells the user something, in one line and one write(2).
///
/// A user who can not be told is no reason to stop, and the exit status says the most important thing all the
/// same: errors are ignored, where `eprintln` would panic, and so would the panic's own message.
pub fn tell(message: impl Display) {
    let line = format!("vmm: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
