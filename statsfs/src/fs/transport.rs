//! The way between the kernel and the [`Server`]: the only module that knows the FUSE crate.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::device;
use super::server::{Change, Handle, Server};
use super::{Attr, Caller, Errno, Ino, Kind};
use crate::threads::{ThreadKind, ThreadStart};

/// The most that one READ may ask for.
pub(super) const MAX_READ: u32 = 1 << 20;

/// A connection to the kernel.
pub(super) trait Transport: Sized + Send + 'static {
    /// What sends invalidations.
    type Invalidator: Invalidate;
    /// What serves, on a thread of its own.
    type Session: Serve;

    /// Takes a device that was just mounted, and comes to terms with the kernel.
    fn accept(device: OwnedFd, server: Arc<Server>, setup: Setup) -> io::Result<Self>;

    /// Takes all devices of a connection that another process had served until it was killed. What that had
    /// not answered is asked again.
    ///
    /// # Errors
    /// `EINVAL` if the kernel can not ask again.
    fn carry_on(devices: Vec<OwnedFd>, server: Arc<Server>, setup: Setup) -> io::Result<Self>;

    /// All devices of the connection.
    fn devices(&self) -> Vec<BorrowedFd<'_>>;

    /// To be used while the sessions run.
    fn invalidator(&self) -> Self::Invalidator;

    /// What is to be run: nothing is served before.
    fn sessions(self) -> Vec<Self::Session>;
}

/// Answers requests.
pub(super) trait Serve: Send + 'static {
    /// Serves until the file system is unmounted or the connection aborted.
    fn run(self) -> io::Result<()>;
}

/// Tells the kernel what to doubt.
///
/// Not what to forget: to take a name away the kernel locks its directory, which it has locked for whoever waits
/// for an answer about a name in there. If this process were killed while it waits for that, neither would ever
/// go on. Whoever comes to a node that is doubted has its attributes asked for, on the way through a directory
/// too; is told that there is none (`ESTALE`); and looks its name up again.
pub(super) trait Invalidate: Send + 'static {
    /// The node is gone. Succeeds if the kernel did not know it.
    fn node(&self, ino: Ino) -> io::Result<()>;
}

/// How to serve.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Threads that serve requests.
    pub(super) threads: usize,
    /// How long the kernel may remember names and attributes.
    pub(super) ttl: Duration,
    /// What those threads call first.
    pub(super) thread_start: ThreadStart,
}

/// [`Transport`] by fuser: a session of one thread for each device. The crate would make devices for further
/// threads by itself; but if nobody else has those, what was read from them is lost with this process.
#[derive(Debug)]
pub(super) struct Fuser {
    first: FuserSession,
    others: Vec<FuserSession>,
}

/// A device and the thread that answers what comes from it.
#[derive(Debug)]
pub(super) struct FuserSession(Session<Adapter>);

impl Serve for FuserSession {
    fn run(self) -> io::Result<()> {
        self.0.run()
    }
}

impl FuserSession {
    /// Of a device whose connection the kernel has not begun yet.
    fn begin(device: OwnedFd, adapter: Adapter) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(1);
        // Who may use the mount is the kernel's to check (`allow_other`), not the crate's.
        Session::from_fd(adapter, device, SessionACL::All, config).map(Self)
    }

    /// Of a device whose connection has long begun. The crate begins with a socket, at whose other end we are
    /// the kernel, and then finds the device in the socket's place.
    fn join(device: OwnedFd, adapter: Adapter) -> io::Result<Self> {
        let (kernel, socket) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let kernel = File::from(kernel);
        (&kernel).write_all(&init_request())?;
        let session = Self::begin(socket, adapter)?;
        let mut answer = [0; 256];
        let len = (&kernel).read(&mut answer)?;
        // Length, error, number of the request.
        if len < 16 || answer[4..8] != [0; 4] {
            return Err(io::Error::other("the crate and we did not come to terms"));
        }
        device::put_in_place_of(session.0.as_fd(), device)?;
        Ok(session)
    }
}

/// A FUSE_INIT as the kernel sends it: see linux/fuse.h. The crate keeps nothing of what it says, and the
/// connection stays as the kernel and the first session have agreed on.
fn init_request() -> Vec<u8> {
    const FUSE_INIT: u32 = 26;
    const LEN: u32 = 40 + 64;
    let capabilities = InitFlags::FUSE_PARALLEL_DIROPS.bits() as u32;
    // Length, opcode, number (8 bytes), node (8), user, group, process, padding; then the version, the largest
    // read-ahead, and what the kernel can do.
    let words = [LEN, FUSE_INIT, 1, 0, 0, 0, 0, 0, 0, 0, 7, 31, MAX_READ, capabilities];
    let mut request: Vec<_> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    request.resize(LEN as usize, 0);
    request
}

impl Fuser {
    /// With so many further devices, and one more for each thread that has none yet.
    fn with(
        first: FuserSession,
        devices: Vec<OwnedFd>,
        adapter: &Adapter,
        threads: usize,
    ) -> io::Result<Self> {
        let mut others = Vec::new();
        for device in devices {
            others.push(FuserSession::join(device, adapter.clone())?);
        }
        while others.len() + 1 < threads {
            let device = device::clone(first.0.as_fd())?;
            others.push(FuserSession::join(device, adapter.clone())?);
        }
        Ok(Self { first, others })
    }
}

impl Transport for Fuser {
    type Invalidator = FuserInvalidator;
    type Session = FuserSession;

    fn accept(device: OwnedFd, server: Arc<Server>, setup: Setup) -> io::Result<Self> {
        let Setup { threads, ttl, thread_start } = setup;
        check_memory(threads)?;
        let adapter = Adapter { server, ttl, thread_start };
        let first = FuserSession::begin(device, adapter.clone())?;
        Self::with(first, Vec::new(), &adapter, threads)
    }

    fn carry_on(mut devices: Vec<OwnedFd>, server: Arc<Server>, setup: Setup) -> io::Result<Self> {
        let Setup { threads, ttl, thread_start } = setup;
        check_memory(threads.max(devices.len()))?;
        if devices.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let first = devices.remove(0);
        device::resend(first.as_fd())?;
        // What has gone while nobody was there. An older kernel is told of some of it, and of the rest finds out
        // when it opens that.
        if let Err(error) = device::doubt_all_names(first.as_fd()) {
            tracing::debug!(%error, "names that have gone may be shown for a while");
        }
        let adapter = Adapter { server, ttl, thread_start };
        let first = FuserSession::join(first, adapter.clone())?;
        Self::with(first, devices, &adapter, threads)
    }

    fn devices(&self) -> Vec<BorrowedFd<'_>> {
        let all = std::iter::once(&self.first).chain(&self.others);
        all.map(|session| session.0.as_fd()).collect()
    }

    fn invalidator(&self) -> FuserInvalidator {
        FuserInvalidator(self.first.0.notifier())
    }

    fn sessions(self) -> Vec<FuserSession> {
        std::iter::once(self.first).chain(self.others).collect()
    }
}

/// What each of fuser's threads takes for requests: the largest that it knows, and a page.
const REQUEST_BUFFER: usize = (16 << 20) + 4096;

/// What a thread takes beside: its stack, unless the environment says otherwise.
const STACK: usize = 2 << 20;

/// Whether there is room for what fuser's threads take, as far as can be told before. Later its lack would abort
/// the process, and leave a dead mount.
fn check_memory(threads: usize) -> io::Result<()> {
    // Each has another that waits for it; the invalidations' thread, and room for what is small.
    let all = threads * (REQUEST_BUFFER + 2 * STACK) + 3 * STACK;
    Vec::<u8>::new().try_reserve_exact(all).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// [`Invalidate`] by fuser.
#[derive(Debug)]
pub(super) struct FuserInvalidator(Notifier);

impl Invalidate for FuserInvalidator {
    fn node(&self, ino: Ino) -> io::Result<()> {
        // Before its beginning: its attributes only. Of content the kernel has none, and looking for it takes locks.
        self.0.inval_inode(INodeNo(ino), -1, 0)
    }
}

/// Translates requests and answers.
#[derive(Clone)]
struct Adapter {
    server: Arc<Server>,
    ttl: Duration,
    thread_start: ThreadStart,
}

thread_local! {
    /// Whether this thread has called the hook of threads that answer requests.
    static STARTED: Cell<bool> = const { Cell::new(false) };
}

impl Adapter {
    /// What answers. The crate starts the threads, and has nothing that they would call first: so each calls
    /// the hook with its first request.
    fn server(&self) -> &Arc<Server> {
        if !STARTED.replace(true) {
            self.thread_start.call(ThreadKind::Request);
        }
        &self.server
    }

    /// What a request is answered that needs no server.
    fn refusal(&self, error: fuser::Errno) -> fuser::Errno {
        self.server().answer_other(Some(Errno(error.code())));
        error
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").finish_non_exhaustive()
    }
}

/// Inode numbers are never reused, so that there is only one generation.
const GENERATION: Generation = Generation(0);

/// How long the kernel may believe the attributes that come with a name, or with what was changed. It takes an answer in when whoever
/// asked is scheduled, and may have been told before that the node is gone: of a node that it did not know then it
/// takes no note of that. Attributes that it has asked for by themselves it does not believe then, so those are
/// remembered.
const UNSURE: Duration = Duration::from_millis(50);

/// Content is generated: no page cache; no FLUSH, nothing is written back.
const OPEN_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Text => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(attr.created_ns);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Answers for what this file system never does. The crate's own answer is `ENOSYS`, which tools take
/// for a broken kernel.
const REFUSED: fuser::Errno = fuser::Errno::EPERM;

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Sets the size of the largest request, of reads too. Every write beyond a few bytes is refused.
        // Not asked for: READDIRPLUS, which pins an inode in the kernel for every entry ever listed.
        if let Err(nearest) = config.set_max_write(MAX_READ) {
            tracing::debug!(nearest, "the transport has smaller requests");
        }
        if config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS).is_err() {
            tracing::debug!("lookups in one directory are one by one on this kernel");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.server().lookup(parent.0, name) {
            Ok(attr) => {
                let unsure = self.ttl.min(UNSURE);
                reply.entry_with_ttls(&unsure, &self.ttl, &file_attr(&attr), GENERATION);
            }
            // An error is never remembered: a name that comes up is there at once.
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _request: &Request, _ino: INodeNo, lookups: u64) {
        self.server().forget(lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.server().attr(ino.0) {
            Ok(attr) => reply.attr(&self.ttl, &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times come along with a truncation, where they mean nothing; alone they are refused.
        let change = Change { size, ownership: mode.is_some() || uid.is_some() || gid.is_some() };
        match self.server().set_attr(ino.0, change) {
            Ok(attr) => reply.attr(&self.ttl.min(UNSURE), &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.server().readlink(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.server().open(ino.0, caller(request), write) {
            Ok(handle) => reply.opened(FileHandle(handle), OPEN_FLAGS),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.server().read(
            Handle { number: handle.0, ino: ino.0, caller: caller(request) },
            offset,
            size,
            move |result: Result<&[u8], Errno>| match result {
                Ok(data) => reply.data(data),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let append = flags.0 & libc::O_APPEND != 0;
        let handle = Handle { number: handle.0, ino: ino.0, caller: caller(request) };
        match self.server().write(handle, offset, append, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A kernel without FOPEN_NOFLUSH asks once, and never again after this.
        reply.error(self.refusal(fuser::Errno::ENOSYS));
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.server().release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // "Nothing to do", asked once: the caller's fsync succeeds.
        reply.error(self.refusal(fuser::Errno::ENOSYS));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.server().open_dir(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.server().read_dir(ino.0, offset, &mut |entry| {
            !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.server().answer_other(None);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(self.refusal(fuser::Errno::ENOSYS));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.server().answer_other(None);
        // No blocks and no inodes, as proc and sysfs say, so that `df` leaves it out.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        // Asked once: the kernel answers EOPNOTSUPP by itself from then on.
        reply.error(self.refusal(fuser::Errno::ENOSYS));
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(self.refusal(fuser::Errno::ENOSYS));
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // A regular file is always ready. ENOSYS would turn polling off for good.
        let ready = PollEvents::POLLIN
            | PollEvents::POLLOUT
            | PollEvents::POLLRDNORM
            | PollEvents::POLLWRNORM;
        self.server().answer_other(None);
        reply.poll(events & ready);
    }

    // What never happens here.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.refusal(REFUSED));
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.refusal(REFUSED));
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refusal(REFUSED));
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refusal(REFUSED));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(self.refusal(REFUSED));
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refusal(REFUSED));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(self.refusal(REFUSED));
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(self.refusal(REFUSED));
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refusal(REFUSED));
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refusal(REFUSED));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // As on sysfs.
        reply.error(self.refusal(fuser::Errno::EOPNOTSUPP));
    }
}
