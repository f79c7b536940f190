//! How a file system is mounted and served.

use std::sync::Arc;
use std::time::Duration;

use super::events::MountEvents;
use super::files::Most;
use crate::threads::ThreadStart;

/// How to mount and serve.
#[derive(Clone, Debug)]
pub struct MountOptions {
    pub(super) threads: usize,
    pub(super) allow_other: bool,
    pub(super) ttl: Duration,
    pub(super) open_files: Most,
    pub(super) open_bytes: Most,
    pub(super) bulk_threads: usize,
    pub(super) bulk_reads: Most,
    pub(super) thread_start: ThreadStart,
    pub(super) events: Option<Arc<dyn MountEvents>>,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            threads: 2,
            allow_other: true,
            ttl: Duration::from_secs(3600),
            open_files: Most { all: 1 << 16, user: 1 << 14 },
            open_bytes: Most { all: 64 << 20, user: 32 << 20 },
            bulk_threads: 2,
            bulk_reads: Most { all: 256, user: 64 },
            thread_start: ThreadStart::default(),
            events: None,
        }
    }
}

impl MountOptions {
    /// The defaults: 2 threads, for all users where that is allowed, 65,536 open files, 16,384 of one user,
    /// 64 MiB of rendered content, 32 MiB of one user, 2 threads for bulk files with 256 reads waiting, 64
    /// of one user, and one with as many for totals over many sources, names and attributes remembered for an hour.
    ///
    /// Whoever serves the mount, and root, are limited only together with all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads that answer requests, at least 1. With one, whatever takes long has all others wait.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Whether other users may use the mount, as far as permissions allow. For an ordinary user only
    /// where `/etc/fuse.conf` has `user_allow_other`; without it the mount is theirs alone.
    #[must_use]
    pub fn allow_other(mut self, allow: bool) -> Self {
        self.allow_other = allow;
        self
    }

    /// How long the kernel may remember names and attributes. It is told at once which are to be doubted, since
    /// what they are of has gone.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The most files that may be open: opening another gives `ENFILE`.
    #[must_use]
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.open_files.all = files;
        self
    }

    /// The most files that one user may have open: opening another gives `EMFILE`.
    #[must_use]
    pub fn max_user_open_files(mut self, files: usize) -> Self {
        self.open_files.user = files;
        self
    }

    /// The most bytes that the content of open files may take: reading another gives `ENOMEM`. Those who have much
    /// leave some for others.
    #[must_use]
    pub fn max_open_bytes(mut self, bytes: usize) -> Self {
        self.open_bytes.all = bytes;
        self
    }

    /// The most bytes that the content of one user's open files may take: reading another gives `ENOMEM`.
    #[must_use]
    pub fn max_user_open_bytes(mut self, bytes: usize) -> Self {
        self.open_bytes.user = bytes;
        self
    }

    /// Threads that render bulk files, at least 1, and how many reads may wait for them: a further one gives
    /// `EAGAIN`. For bulk files of few sources there is one thread more, and one for totals over many, and as many may
    /// wait for each: whatever is made of a tree, neither is behind a bulk file of much.
    #[must_use]
    pub fn bulk(mut self, threads: usize, queue: usize) -> Self {
        self.bulk_threads = threads.max(1);
        self.bulk_reads.all = queue;
        self
    }

    /// How many of one user's reads of such files may wait or be rendered at once: a further one gives
    /// `EAGAIN`. Users have turns.
    #[must_use]
    pub fn max_user_bulk_reads(mut self, reads: usize) -> Self {
        self.bulk_reads.user = reads;
        self
    }

    /// Has each thread of the mount call first what `wrap` makes of what it was to call.
    #[cfg(feature = "server")]
    pub(crate) fn map_thread_start(mut self, wrap: fn(ThreadStart) -> ThreadStart) -> Self {
        self.thread_start = wrap(self.thread_start);
        self
    }

    /// What each thread of the mount calls first.
    #[must_use]
    pub fn thread_start(mut self, start: ThreadStart) -> Self {
        self.thread_start = start;
        self
    }

    /// Who is told what happens in the mount. Nobody unless set, and then it costs nothing.
    #[must_use]
    pub fn events(mut self, events: Arc<dyn MountEvents>) -> Self {
        self.events = Some(events);
        self
    }
}
