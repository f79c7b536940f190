//! What each operation means: the rules of the tree, independent of the transport.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::files::{Budget, OpenFile, OpenFiles, Rendering};
use super::options::MountOptions;
use super::workers::{Go, Threads, Workers};
use super::{Attr, Caller, Entry, Errno, Ino, Kind, Nodes};

/// The longest write that can mean something: a zero in any notation, with white space.
const MAX_WRITE: usize = 32;

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// What SETATTR asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// A new size.
    pub(super) size: Option<u64>,
    /// New permission bits, or a new owner or group.
    pub(super) ownership: bool,
}

/// What a request says of the open file that it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle {
    /// What its [`Server::open`] answered, or that of the server before.
    pub(super) number: u64,
    /// Which file.
    pub(super) ino: Ino,
    /// Who makes the request: perhaps not who opened it.
    pub(super) caller: Caller,
}

/// Takes the answer of a read, perhaps on another thread.
pub(super) trait ReadReply: FnOnce(Result<&[u8], Errno>) + Send + 'static {}
impl<F: FnOnce(Result<&[u8], Errno>) + Send + 'static> ReadReply for F {}

/// The file system: the nodes, and what is open.
pub(super) struct Server {
    nodes: Arc<dyn Nodes>,
    files: OpenFiles,
    budget: Arc<Budget>,
    workers: Workers,
    ending: AtomicBool,
    /// We unmount, or try to.
    unmounting: AtomicBool,
    complaints: Limited,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("open", &self.files.len()).finish_non_exhaustive()
    }
}

impl Server {
    /// The file system of `nodes`. Its threads count in `threads`.
    pub(super) fn new(
        nodes: Arc<dyn Nodes>,
        options: &MountOptions,
        threads: &Threads,
    ) -> io::Result<Self> {
        let (bulk, queue) = (options.bulk_threads, options.bulk_queue);
        Ok(Server {
            nodes,
            files: OpenFiles::new(options.max_open_files),
            budget: Budget::new(options.max_open_bytes),
            workers: Workers::start(bulk, queue, threads, &options.thread_start)?,
            ending: AtomicBool::new(false),
            unmounting: AtomicBool::new(false),
            complaints: Limited::default(),
        })
    }

    /// The mount ends: no more waiting, no more work. Whether nobody had said so before.
    pub(super) fn end(&self) -> bool {
        let is_first = !self.ending.swap(true, Relaxed);
        if is_first {
            self.nodes.interrupt_wait();
            self.workers.close();
        }
        is_first
    }

    /// From now on an end is ours, or not.
    pub(super) fn unmounting(&self, are: bool) {
        self.unmounting.store(are, Relaxed);
    }

    /// Whether an end would be ours.
    pub(super) fn is_unmounting(&self) -> bool {
        self.unmounting.load(Relaxed)
    }

    /// Whether [`end`](Self::end) was called.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// Nodes that have gone, see [`Nodes::wait_gone`].
    pub(super) fn wait_gone(&self, timeout: std::time::Duration, gone: &mut Vec<Ino>) {
        let waited = guarded(|| {
            self.nodes.wait_gone(timeout, gone);
            Ok(())
        });
        if waited.is_err() {
            // It would fail again at once.
            std::thread::sleep(timeout);
        }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, Errno> {
        // Names are ASCII.
        let name = name.to_str().ok_or(Errno(libc::ENOENT))?;
        guarded(|| self.nodes.lookup(parent, name))
    }

    pub(super) fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        guarded(|| self.nodes.attr(ino))
    }

    /// Truncating to nothing is what `echo 0 > file` does before it writes: it must succeed, and must
    /// not clear. A file that shows the size 0 can not get another one.
    pub(super) fn set_attr(&self, ino: Ino, change: Change) -> Result<Attr, Errno> {
        match change {
            Change { ownership: true, .. } | Change { size: None, .. } => Err(Errno(libc::EPERM)),
            Change { size: Some(0), .. } => self.attr(ino),
            Change { size: Some(_), .. } => Err(Errno(libc::EINVAL)),
        }
    }

    pub(super) fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        guarded(|| self.nodes.readlink(ino))
    }

    /// Opens a file; nothing is rendered before the first read.
    pub(super) fn open(&self, ino: Ino, caller: Caller, write: bool) -> Result<u64, Errno> {
        guarded(|| self.nodes.open(ino, caller, write))?;
        self.files.open(ino, caller).ok_or_else(|| {
            let open = self.files.len();
            self.complaints.complain(|missed| {
                tracing::warn!(open, missed, "too many open files: refusing further ones (ENFILE)");
            });
            Errno(libc::ENFILE)
        })
    }

    pub(super) fn release(&self, handle: u64) {
        self.files.close(handle);
    }

    /// The open file that a request is for. One that a server before this had opened is taken over: the kernel
    /// has checked who may, and what it shows is the same for all. But what a bulk file shows depends on who
    /// opened it, which nobody knows any more: it can only be written to.
    fn file(&self, handle: Handle, write: bool) -> Result<Arc<OpenFile>, Errno> {
        let Handle { number, ino, caller } = handle;
        if let Some(file) = self.files.get(number) {
            return Ok(file);
        }
        if !self.files.is_older(number) {
            return Err(Errno(libc::EBADF));
        }
        guarded(|| match write {
            true => self.nodes.open(ino, caller, true),
            false if self.nodes.is_bulk(ino) => Err(Errno(libc::ESTALE)),
            false => Ok(()),
        })?;
        // Beyond the limit it is not kept, and is served all the same: it was let in before.
        Ok(self.files.take_over(number, ino, caller))
    }

    /// Reads: renders anew at the beginning, and serves what that made elsewhere.
    pub(super) fn read(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        size: u32,
        reply: impl ReadReply,
    ) {
        let file = match self.file(handle, false) {
            Ok(file) => file,
            Err(error) => return reply(Err(error)),
        };
        if offset != 0 {
            if let Some(rendering) = file.rendering() {
                return reply(Ok(rendering.piece(offset, size)));
            }
            if file.is_taken_over {
                // Who has read the beginning of something has read all of it, but for those who read a number
                // in pieces: what would follow is of another number.
                return reply(Ok(&[]));
            }
        }
        let bulk = guarded(|| Ok(self.nodes.is_bulk(file.ino)));
        if bulk == Ok(false) {
            return self.render_and_reply(&file, offset, size, reply);
        }
        let server = Arc::clone(self);
        self.workers.submit(Box::new(move |go| match go {
            Go::Work if server.is_ending() => reply(Err(Errno(libc::ENODEV))),
            Go::Work => server.render_and_reply(&file, offset, size, reply),
            Go::Refuse => {
                server.complaints.complain(|missed| {
                    tracing::warn!(
                        missed,
                        "too many bulk files are being read: try again (EAGAIN)"
                    );
                });
                reply(Err(Errno(libc::EAGAIN)));
            }
        }));
    }

    fn render_and_reply(&self, file: &OpenFile, offset: u64, size: u32, reply: impl ReadReply) {
        // The old content goes first: a large one must not have to fit twice.
        file.set_rendering(None);
        match self.render(file) {
            Ok(rendering) => {
                // Kept for the reads that follow, before anyone can make them.
                file.set_rendering(Some(Arc::clone(&rendering)));
                reply(Ok(rendering.piece(offset, size)));
            }
            Err(errno) => reply(Err(errno)),
        }
    }

    fn render(&self, file: &OpenFile) -> Result<Arc<Rendering>, Errno> {
        let mut bytes = Vec::with_capacity(24);
        guarded(|| self.nodes.render(file.ino, file.caller, &mut bytes))?;
        let size = bytes.len();
        Rendering::new(&self.budget, bytes).ok_or_else(|| {
            let (used, limit) = (self.budget.used(), self.budget.limit());
            self.complaints.complain(|missed| {
                tracing::warn!(
                    size,
                    used,
                    limit,
                    missed,
                    "open files hold too many rendered bytes: refusing another (ENOMEM)"
                );
            });
            Errno(libc::ENOMEM)
        })
    }

    /// Takes one whole write. In pieces `1` and `2` a 12 would be two numbers, so only the beginning
    /// of a file, or its end with `O_APPEND`, can be written to.
    pub(super) fn write(
        &self,
        handle: Handle,
        offset: u64,
        append: bool,
        data: &[u8],
    ) -> Result<(), Errno> {
        let file = self.file(handle, true)?;
        if (offset != 0 && !append) || data.len() > MAX_WRITE {
            return Err(Errno(libc::EINVAL));
        }
        guarded(|| self.nodes.write(file.ino, file.caller, data))
    }

    /// A directory that is gone must say `ESTALE` here: then the kernel forgets its name and looks again.
    pub(super) fn open_dir(&self, ino: Ino) -> Result<(), Errno> {
        self.attr(ino).map(drop)
    }

    /// Calls `add` for the entries after the cookie `after`, until it says that there is no more room.
    pub(super) fn read_dir(
        &self,
        dir: Ino,
        after: u64,
        add: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        guarded(|| {
            let kind = Kind::Directory;
            if after < DOT && !add(Entry { cookie: DOT, ino: dir, kind, name: "." }) {
                return Ok(());
            }
            let parent = self.nodes.parent(dir);
            if after < DOT_DOT && !add(Entry { cookie: DOT_DOT, ino: parent, kind, name: ".." }) {
                return Ok(());
            }
            self.nodes.list(dir, after.max(DOT_DOT), add)
        })
    }
}

/// Turns a panic of the nodes into `EIO`: else it would end a thread of the session, and with the last
/// one every process that touches the mount would hang.
fn guarded<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        tracing::error!("serving a request panicked; answering EIO");
        Err(Errno(libc::EIO))
    })
}

/// Lets a complaint through every ten seconds, and counts those between.
#[derive(Debug, Default)]
struct Limited {
    next_ms: AtomicU64,
    missed: AtomicU64,
}

impl Limited {
    fn complain(&self, log: impl FnOnce(u64)) {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        // Anyone may make us refuse something, so that nobody may fill the log by it.
        let now = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next_ms.load(Relaxed);
        if now >= next
            && self.next_ms.compare_exchange(next, now + 10_000, Relaxed, Relaxed).is_ok()
        {
            log(self.missed.swap(0, Relaxed));
        } else {
            self.missed.fetch_add(1, Relaxed);
        }
    }
}
