//! Telling threads that their work is over.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Tells other threads to stop when it is dropped, also by a panic: else whoever waits for them would wait
/// for ever.
#[derive(Debug)]
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
