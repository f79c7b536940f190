//! What each operation means: the rules of the tree, independent of the transport.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::events::{Answered, Exceeded, Limit, MountEvents, Operation};
use super::files::{Budget, Most, OpenFile, OpenFiles, Rendering};
use super::options::MountOptions;
use super::workers::{Go, Threads, Workers};
use super::{Attr, Caller, Effort, Entry, Errno, Ino, Kind, Nodes};
use crate::repeats::Repeats;

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

/// A request that is to be answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    operation: Operation,
    /// `None` if nobody wants to know.
    since: Option<Instant>,
}

/// The file system: the nodes, and what is open.
pub(super) struct Server {
    nodes: Arc<dyn Nodes>,
    files: OpenFiles,
    budget: Arc<Budget>,
    /// Who renders bulk files of much and of little, and who renders totals over many sources: what one user has
    /// rendered may take so long that nobody would wait for a number behind it.
    bulk: Workers,
    small: Workers,
    totals: Workers,
    ending: AtomicBool,
    /// We unmount, or try to.
    unmounting: AtomicBool,
    limits: Limits,
    /// By user and limit.
    complaints: Mutex<Repeats<(u32, Limit)>>,
    events: Option<Arc<dyn MountEvents>>,
}

/// What there may be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    files: Most,
    bytes: Most,
    bulk: Most,
}

impl Limits {
    fn of(&self, limit: Limit) -> usize {
        match limit {
            Limit::OpenFiles => self.files.all,
            Limit::UserOpenFiles => self.files.user,
            Limit::OpenBytes => self.bytes.all,
            Limit::UserOpenBytes => self.bytes.user,
            Limit::BulkReads => self.bulk.all,
            Limit::UserBulkReads => self.bulk.user,
        }
    }
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
        let MountOptions { open_files: files, open_bytes: bytes, bulk_reads: bulk, .. } = *options;
        // Whoever it is that serves may do without it.
        let owner = nix::unistd::geteuid().as_raw();
        let start =
            |name, number| Workers::start(name, number, bulk, threads, &options.thread_start);
        Ok(Server {
            nodes,
            files: OpenFiles::new(files, owner),
            budget: Budget::new(bytes),
            bulk: start("bulk", options.bulk_threads)?,
            small: start("small", 1)?,
            totals: start("total", 1)?,
            ending: AtomicBool::new(false),
            unmounting: AtomicBool::new(false),
            limits: Limits { files, bytes, bulk },
            complaints: Mutex::default(),
            events: options.events.clone(),
        })
    }

    /// The mount ends: no more waiting, no more work. Whether nobody had said so before.
    pub(super) fn end(&self) -> bool {
        let is_first = !self.ending.swap(true, Relaxed);
        if is_first {
            self.nodes.interrupt_wait();
            self.bulk.close();
            self.small.close();
            self.totals.close();
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

    /// A request has come.
    fn asked(&self, operation: Operation) -> Asked {
        Asked { operation, since: self.events.as_ref().map(|_| Instant::now()) }
    }

    /// It is about to be answered: afterwards would be too late for whoever has the answer and looks.
    fn answered(&self, Asked { operation, since }: Asked, bytes: usize, error: Option<Errno>) {
        if let (Some(events), Some(since)) = (&self.events, since) {
            events.answered(Answered { operation, took: since.elapsed(), bytes, error });
        }
    }

    /// Answers a request by a call.
    fn answer<T>(
        &self,
        operation: Operation,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let asked = self.asked(operation);
        let answer = guarded(call);
        self.answered(asked, 0, answer.as_ref().err().copied());
        answer
    }

    /// A request for which nothing is to be done here is answered.
    pub(super) fn answer_other(&self, error: Option<Errno>) {
        self.answered(self.asked(Operation::Other), 0, error);
    }

    /// The kernel has forgotten what it had looked up so often. Nothing is kept of it here.
    pub(super) fn forget(&self, lookups: u64) {
        if let Some(events) = &self.events {
            events.forgotten(lookups);
        }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, Errno> {
        self.answer(Operation::Lookup, || {
            // Names are ASCII.
            self.nodes.lookup(parent, name.to_str().ok_or(Errno(libc::ENOENT))?)
        })
    }

    pub(super) fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.answer(Operation::Getattr, || self.nodes.attr(ino))
    }

    /// Truncating to nothing is what `echo 0 > file` does before it writes: it must succeed, and must
    /// not clear. A file that shows the size 0 can not get another one.
    pub(super) fn set_attr(&self, ino: Ino, change: Change) -> Result<Attr, Errno> {
        self.answer(Operation::Other, || match change {
            Change { ownership: true, .. } | Change { size: None, .. } => Err(Errno(libc::EPERM)),
            Change { size: Some(0), .. } => self.nodes.attr(ino),
            Change { size: Some(_), .. } => Err(Errno(libc::EINVAL)),
        })
    }

    pub(super) fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        self.answer(Operation::Readlink, || self.nodes.readlink(ino))
    }

    /// Opens a file; nothing is rendered before the first read.
    pub(super) fn open(&self, ino: Ino, caller: Caller, write: bool) -> Result<u64, Errno> {
        self.answer(Operation::Open, || {
            self.nodes.open(ino, caller, write)?;
            let opened = self.files.open(ino, self.nodes.depends_on_opener(ino), caller);
            opened.map_err(|limit| self.refuse(caller, limit))
        })
    }

    pub(super) fn release(&self, handle: u64) {
        self.files.close(handle);
        self.answer_other(None);
    }

    /// Says that there is a limit.
    fn refuse(&self, caller: Caller, limit: Limit) -> Errno {
        let exceeded = Exceeded { caller, limit, most: self.limits.of(limit) };
        let said = {
            let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
            complaints.say((caller.uid, limit), Instant::now())
        };
        let Caller { uid, pid, .. } = caller;
        match said {
            None => {}
            Some(0) => tracing::warn!(pid, uid, "refused: {exceeded}"),
            Some(unsaid) => tracing::warn!(pid, uid, unsaid, "refused: {exceeded}"),
        }
        if let Some(events) = &self.events {
            events.refused(exceeded);
        }
        limit.errno()
    }

    /// The open file that a request is for. One that a server before this had opened is taken over: the kernel
    /// has checked who may, and what it shows is the same for all. Where that depends on who opened it, which
    /// nobody knows any more, it can only be written to.
    fn file(&self, handle: Handle, write: bool) -> Result<Arc<OpenFile>, Errno> {
        let Handle { number, ino, caller } = handle;
        let file = match self.files.get(number) {
            Some(file) => file,
            None if !self.files.is_older(number) => return Err(Errno(libc::EBADF)),
            None => {
                let is_openers = guarded(|| {
                    if write {
                        self.nodes.open(ino, caller, true)?;
                    }
                    Ok(self.nodes.depends_on_opener(ino))
                })?;
                // Beyond the limit it is not kept, and is served all the same: it was let in before.
                self.files.take_over(number, ino, is_openers, caller)
            }
        };
        if file.is_taken_over && file.is_openers && !write {
            return Err(Errno(libc::ESTALE));
        }
        Ok(file)
    }

    /// Reads: renders anew at the beginning, and where else a file says so, and serves what that made elsewhere.
    pub(super) fn read(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        size: u32,
        reply: impl ReadReply,
    ) {
        let mut asked = self.asked(Operation::Read);
        let file = match self.file(handle, false) {
            Ok(file) => file,
            Err(error) => return self.give(asked, Err(error), reply),
        };
        if file.is_openers {
            asked.operation = Operation::ReadBulk;
        }
        if offset != 0 {
            let is_renewed = |rendering: &Arc<Rendering>| {
                self.nodes.renewed_at(file.ino, rendering.bytes()) == Some(offset)
            };
            if let Some(rendering) = file.rendering().filter(|rendering| !is_renewed(rendering)) {
                return self.give(asked, Ok(rendering.piece(offset, size)), reply);
            }
            if file.is_taken_over {
                // Who has read the beginning of something has read all of it, but for those who read a number
                // in pieces: what would follow is of another number.
                return self.give(asked, Ok(&[]), reply);
            }
        }
        // What can not be told is left to a worker.
        let effort = guarded(|| Ok(self.nodes.effort(file.ino))).unwrap_or(Effort::Much);
        if effort == Effort::Little {
            return self.render_and_give(asked, &file, offset, size, reply);
        }
        asked.operation = Operation::ReadBulk;
        let (server, uid, is_exempt) = (Arc::clone(self), file.caller.uid, file.user.is_exempt);
        let workers = match effort {
            Effort::Little | Effort::Some => &self.small,
            Effort::Much if file.is_openers => &self.bulk,
            Effort::Much => &self.totals,
        };
        let job = move |go| match go {
            Go::Work if !server.is_ending() => {
                server.render_and_give(asked, &file, offset, size, reply);
            }
            Go::Work | Go::End => server.give(asked, Err(Errno(libc::ENODEV)), reply),
            Go::Refuse(limit) => {
                let errno = server.refuse(file.caller, limit);
                server.give(asked, Err(errno), reply);
            }
        };
        workers.submit(uid, is_exempt, Box::new(job));
    }

    /// Answers a read.
    fn give(&self, asked: Asked, result: Result<&[u8], Errno>, reply: impl ReadReply) {
        let (bytes, error) = match result {
            Ok(piece) => (piece.len(), None),
            Err(errno) => (0, Some(errno)),
        };
        self.answered(asked, bytes, error);
        reply(result);
    }

    fn render_and_give(
        &self,
        asked: Asked,
        file: &OpenFile,
        offset: u64,
        size: u32,
        reply: impl ReadReply,
    ) {
        // What was read before a place where it is renewed, it goes with.
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let before = file.rendering().filter(|_| offset != 0);
        // The old content goes first: a large one must not have to fit twice.
        file.set_rendering(None);
        let rendering = self.render(file).and_then(|rendering| match before {
            Some(before) if before.bytes().get(..begin) != rendering.bytes().get(..begin) => {
                // It is so until the beginning is read again.
                file.set_rendering(Some(before));
                Err(Errno(libc::ESTALE))
            }
            _ => Ok(rendering),
        });
        match rendering {
            Ok(rendering) => {
                // Kept for the reads that follow, before anyone can make them.
                file.set_rendering(Some(Arc::clone(&rendering)));
                self.give(asked, Ok(rendering.piece(offset, size)), reply);
            }
            Err(errno) => self.give(asked, Err(errno), reply),
        }
    }

    fn render(&self, file: &OpenFile) -> Result<Arc<Rendering>, Errno> {
        let mut bytes = Vec::with_capacity(24);
        let (most, limit) = self.budget.room(&file.user);
        match guarded(|| self.nodes.render(file.ino, file.caller, most, &mut bytes)) {
            Err(Errno(libc::EFBIG)) => return Err(self.refuse(file.caller, limit)),
            rendered => rendered?,
        }
        let rendering = Rendering::new(&self.budget, &file.user, bytes);
        rendering.map_err(|limit| self.refuse(file.caller, limit))
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
        self.answer(Operation::Write, || {
            let file = self.file(handle, true)?;
            if (offset != 0 && !append) || data.len() > MAX_WRITE {
                return Err(Errno(libc::EINVAL));
            }
            self.nodes.write(file.ino, file.caller, data)
        })
    }

    /// A directory that is gone must say `ESTALE` here: then the kernel forgets its name and looks again.
    pub(super) fn open_dir(&self, ino: Ino) -> Result<(), Errno> {
        self.answer(Operation::Opendir, || self.nodes.attr(ino).map(drop))
    }

    /// Calls `add` for the entries after the cookie `after`, until it says that there is no more room.
    pub(super) fn read_dir(
        &self,
        dir: Ino,
        after: u64,
        add: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.answer(Operation::Readdir, || {
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
