//! The least that a FUSE server can be: one file with constant content, on the same crate, mounted and
//! served in the same way as `statsfs::fs`. What it costs is what FUSE costs.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
    Session, SessionACL,
};

/// The file's name and content.
pub const NAME: &str = "value";
const CONTENT: &[u8] = b"1234567\n";
const FILE: INodeNo = INodeNo(2);
/// As long as statsfs lets the kernel remember.
const TTL: Duration = Duration::from_secs(365 * 86_400);

struct Minimal;

fn attr(ino: INodeNo) -> FileAttr {
    let directory = ino == INodeNo::ROOT;
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o444 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Minimal {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(CONTENT.get(offset as usize..).unwrap_or_default());
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
}

/// A mounted minimal file system; unmounted when dropped.
pub struct Mounted {
    point: PathBuf,
    thread: Option<std::thread::JoinHandle<io::Result<()>>>,
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

impl Mounted {
    /// Mounts on an existing empty directory.
    ///
    /// # Errors
    /// Without root and `/dev/fuse`.
    pub fn new(point: &Path, threads: usize) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let data = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        ))?;
        // SAFETY: all strings end with NUL and live until the call returns.
        let result = unsafe {
            libc::mount(
                c"minimal".as_ptr(),
                c_string(point).as_ptr(),
                c"fuse.minimal".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
                data.as_ptr().cast(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut mounted = Self { point: point.to_owned(), thread: None };
        let mut config = Config::default();
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let session = Session::from_fd(Minimal, OwnedFd::from(device), SessionACL::All, config)?;
        mounted.thread = Some(std::thread::spawn(move || session.run()));
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: the string ends with NUL and lives until the call returns.
        unsafe { libc::umount2(c_string(&self.point).as_ptr(), libc::MNT_DETACH) };
        if let Some(thread) = self.thread.take() {
            // It ends because the mount is gone; how does not matter here.
            let _ = thread.join();
        }
    }
}
