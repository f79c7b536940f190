//! The end that somebody asks for.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// Ctrl-C, SIGTERM and a terminal that is closed: the first ends what is being done when it is whole, the second at once.
pub struct Ends(Receiver<()>);

impl Ends {
    /// From now on. No thread has been started yet.
    pub fn new() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let (asked, ends) = channel();
        thread::Builder::new().name("signals".into()).spawn(move || {
            // A server that hangs keeps the other thread in the kernel.
            for n in 0.. {
                match signals.wait() {
                    Ok(_) if n == 0 => drop(asked.send(())),
                    Ok(signal) => std::process::exit(128 + signal as i32),
                    Err(_) => break,
                }
            }
        })?;
        Ok(Self(ends))
    }

    /// Waits so long for it. Whether it was asked for.
    pub fn within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}
