//! How a file system is mounted and served.

use std::time::Duration;

use crate::threads::ThreadStart;

/// How to mount and serve.
#[derive(Clone, Debug)]
pub struct MountOptions {
    pub(super) threads: usize,
    pub(super) allow_other: bool,
    pub(super) ttl: Duration,
    pub(super) max_open_files: usize,
    pub(super) max_open_bytes: usize,
    pub(super) bulk_threads: usize,
    pub(super) bulk_queue: usize,
    pub(super) thread_start: ThreadStart,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            threads: 2,
            allow_other: true,
            ttl: Duration::from_secs(3600),
            max_open_files: 1 << 16,
            max_open_bytes: 64 << 20,
            bulk_threads: 2,
            bulk_queue: 256,
            thread_start: ThreadStart::default(),
        }
    }
}

impl MountOptions {
    /// The defaults: 2 threads, for all users where that is allowed, 65,536 open files, 64 MiB of rendered
    /// content, 2 threads for bulk files with 256 reads waiting, names and attributes remembered for an hour.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads that answer requests, at least 2.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(2);
        self
    }

    /// Whether other users may use the mount, as far as permissions allow. For an ordinary user only
    /// where `/etc/fuse.conf` has `user_allow_other`; without it the mount is theirs alone.
    #[must_use]
    pub fn allow_other(mut self, allow: bool) -> Self {
        self.allow_other = allow;
        self
    }

    /// How long the kernel may remember names and attributes. Entries that go are invalidated at once
    /// in any case.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The most files that may be open: opening another gives `ENFILE`.
    #[must_use]
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.max_open_files = files;
        self
    }

    /// The most bytes that the content of open files may take: reading another gives `ENOMEM`.
    #[must_use]
    pub fn max_open_bytes(mut self, bytes: usize) -> Self {
        self.max_open_bytes = bytes;
        self
    }

    /// Threads that render bulk files, at least 1, and how many reads may wait for them: a further one
    /// gives `EAGAIN`.
    #[must_use]
    pub fn bulk(mut self, threads: usize, queue: usize) -> Self {
        self.bulk_threads = threads.max(1);
        self.bulk_queue = queue;
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
}
