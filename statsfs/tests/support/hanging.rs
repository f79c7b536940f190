//! Files whose closing waits until the test lets it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen, Request, SessionACL,
};
use tempfile::TempDir;

use super::support::child::{self, Shared, Writer};

/// How many close the file now.
pub type Waiting = AtomicU64;

/// A file system with one file, whose closing is never answered.
struct OneFile {
    waiting: &'static Waiting,
    unanswered: Mutex<Vec<ReplyEmpty>>,
}

const FILE: INodeNo = INodeNo(2);
const LONG: Duration = Duration::from_secs(3600);

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, perm) =
        if ino == FILE { (FileType::RegularFile, 0o666) } else { (FileType::Directory, 0o755) };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: 1 << 20,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&LONG, &attr(FILE), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // At once not true any more: whoever wants to know asks again.
        reply.attr(&Duration::ZERO, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.unanswered.lock().unwrap().push(reply);
        self.waiting.fetch_add(1, SeqCst);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EIO);
    }
}

/// The process that serves it: with its end, everybody who waits is let go, also if the test ends otherwise than
/// it should. The test's own would wait for itself.
pub fn serve() {
    let (waiting, mut socket, directory) = child::in_child::<Waiting>();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let files = OneFile { waiting, unanswered: Mutex::default() };
    let session = fuser::spawn_mount(files, &directory, &config).unwrap();
    socket.write_all(&[1]).unwrap();
    let _ = socket.read(&mut [0]);
    std::mem::forget(session);
    std::process::exit(0);
}

/// A mount with a file that hangs whoever closes it, as long as this is there.
pub struct Hanging {
    waiting: Shared<Waiting>,
    process: Writer,
    /// Processes that have the file open: they can end when it can be closed.
    pub others: Vec<Writer>,
    directory: TempDir,
}

impl Hanging {
    /// `process`: the name of the test that calls [`serve`].
    pub fn mount(process: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("statsfs-hangs-").tempdir().unwrap();
        let waiting = Shared::new();
        let mut process = Writer::start(process, &waiting, directory.path().to_str().unwrap());
        process.socket.read_exact(&mut [0]).unwrap();
        Self { waiting, process, others: Vec::new(), directory }
    }

    /// Where the file is. Whoever opens it can neither end nor start a program: that closes it.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("file")
    }

    /// How many have tried to close it.
    pub fn waiting(&self) -> u64 {
        self.waiting.value.load(SeqCst)
    }

    /// Lets everybody close it, now and later.
    pub fn let_go(&mut self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait();
        self.others.clear();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            self.let_go();
        }
        let _ = nix::mount::umount2(self.directory.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A socket whose closing takes an hour: it has sent what the other end, which is answered as well, does not
/// read, and lingers (`SO_LINGER` of socket(7)).
pub fn lingering() -> (OwnedFd, OwnedFd) {
    use std::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 1 << 16]).is_ok() {}
    ours.set_nonblocking(false).unwrap();
    let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
    // SAFETY: the pointer is to a live value of the size that is given.
    let set = unsafe {
        libc::setsockopt(
            ours.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
    (ours.into(), theirs.into())
}
