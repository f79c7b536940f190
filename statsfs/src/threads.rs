//! The library's own threads, and what a program has them do first.

use std::fmt;
use std::sync::Arc;

/// What a thread that the library starts is for.
///
/// All threads of a mount are started before [`Mount::new`](crate::fs::Mount::new) returns, but for those
/// that answer requests: each has a [`Session`](Self::Session) thread that starts it at once, from which it
/// inherits what a thread inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadKind {
    /// A registry's own, `statsfs-keeper`: calls the program's
    /// [callbacks](crate::Source::add_callback) and folds what departed sources left. Started when there is
    /// first one of both to do, or [before](crate::Registry::start_thread).
    Keeper,
    /// Of a mount, `statsfs-fuse-N`: starts a thread that answers requests, and waits for its end.
    Session,
    /// Of a mount, `fuser-0`, one for each session: answers requests. Calls the hook before its first answer, not when it starts:
    /// until then it only waits.
    Request,
    /// Of a mount, `statsfs-bulk-N`, and `statsfs-small-0` for those of few sources: renders bulk files and sends them.
    /// Opens `/proc/PID/status` of who reads one, for its groups. `statsfs-total-0` does the same with totals over many
    /// sources, and opens nothing.
    Bulk,
    /// Of a [publisher](crate::host::Publisher), `statsfs-publish`: connects to the host's server, sends it
    /// the segments, and waits for changes and for what the server says.
    Publish,
    /// Of a mount, `statsfs-inval`: tells the kernel which files to doubt.
    Invalidation,
}

/// What each thread that the library starts calls first: to bind it to a CPU, to give it a priority, to
/// restrict its system calls.
///
/// It runs on the thread itself. A panic ends the thread.
///
/// ```
/// use statsfs::{Registry, RegistryOptions, ThreadStart};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let thread_start = ThreadStart::new(|kind| println!("a thread starts: {kind:?}"));
/// let registry = Registry::with_options(RegistryOptions { thread_start, ..Default::default() })?;
/// # drop(registry);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ThreadStart(Option<Arc<dyn Fn(ThreadKind) + Send + Sync>>);

impl ThreadStart {
    /// Has each thread call `hook`. The default is nothing.
    pub fn new(hook: impl Fn(ThreadKind) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn call(&self, kind: ThreadKind) {
        if let Some(hook) = &self.0 {
            hook(kind);
        }
    }
}

impl fmt::Debug for ThreadStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ThreadStart").field(&self.0.is_some()).finish()
    }
}
