//! Private mount namespaces: a view of the machine in which devices are missing or forbidden, while the
//! machine's own are never touched.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives this thread its own mount namespace, from which nothing gets out.
///
/// # Errors
/// What unshare(2) and mount(2) say.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no memory is involved; the thread's own view alone changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let (none, root, flags) = (std::ptr::null(), c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: C strings, and null where nothing is looked at.
    check(unsafe { libc::mount(none, root, none, flags, std::ptr::null()) })
}

/// Takes /proc away from a child that is to be a command. It is async-signal-safe.
///
/// # Errors
/// What unshare(2) and mount(2) say.
pub fn hide_proc() -> io::Result<()> {
    unshare_mounts()?;
    let (source, at, kind) = (c"none".as_ptr(), c"/proc".as_ptr(), c"tmpfs".as_ptr());
    // SAFETY: C strings, and no data.
    check(unsafe { libc::mount(source, at, kind, 0, std::ptr::null()) })
}

/// Mounts a new file system of this kind.
///
/// # Errors
/// What mount(2) says.
pub fn mount(source: &str, at: &Path, kind: &str) -> io::Result<()> {
    mount_with(source, at, kind, "")
}

/// As [`mount`], with options of the file system's own.
///
/// # Errors
/// What mount(2) says.
pub fn mount_with(source: &str, at: &Path, kind: &str, options: &str) -> io::Result<()> {
    let (source, at, kind) = (CString::new(source)?, c(at)?, CString::new(kind)?);
    let options = CString::new(options)?;
    // SAFETY: C strings that live across the call.
    check(unsafe {
        let (source, at, kind) = (source.as_ptr(), at.as_ptr(), kind.as_ptr());
        libc::mount(source, at, kind, 0, options.as_ptr().cast())
    })
}

/// Mounts a file or directory over another.
///
/// # Errors
/// What mount(2) says.
pub fn bind(source: &Path, at: &Path) -> io::Result<()> {
    let (source, at, none) = (c(source)?, c(at)?, std::ptr::null());
    // SAFETY: C strings that live across the call, and no data.
    check(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), none, libc::MS_BIND, none.cast()) })
}

/// Makes devices on a bind mount unusable, for root too.
///
/// # Errors
/// What mount(2) says.
pub fn forbid_devices(at: &Path) -> io::Result<()> {
    let (at, none) = (c(at)?, std::ptr::null());
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NODEV;
    // SAFETY: C strings that live across the call, and no data.
    check(unsafe { libc::mount(none, at.as_ptr(), none, flags, none.cast()) })
}

/// Runs a piece of a test on a thread with its own mount namespace, which what it starts shares.
///
/// # Panics
/// If it panics, or there is no such namespace.
pub fn private<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    // Cargo is not to be run in there.
    crate::binary::vmm();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare_mounts().expect("mount namespaces need root, `sudo -E cargo test`");
            run()
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Unmounts, even if it is in use.
///
/// # Errors
/// What umount2(2) says.
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = c(at)?;
    // SAFETY: a C string that lives across the call.
    check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) })
}

/// Device nodes to be mounted over the machine's own. They are on a file system of their own, since the
/// temporary directory's may not allow devices. For a thread in a namespace [of its own](private).
#[derive(Debug)]
pub struct Devices(TempDir);

impl Devices {
    /// None yet.
    ///
    /// # Panics
    /// If there is no such file system.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a place");
        mount("statsfs-test", directory.path(), "tmpfs").expect("a tmpfs can be mounted");
        let all = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), all).expect("it is ours");
        Self(directory)
    }

    /// The directory of the nodes.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds a node, and returns where it is.
    ///
    /// # Panics
    /// If it can not be made.
    pub fn add(&self, name: &str, major: u32, minor: u32, mode: u32) -> PathBuf {
        let node = self.0.path().join(name);
        let (path, device) = (c(&node).expect("a plain name"), libc::makedev(major, minor));
        // SAFETY: a C string that lives across the call.
        let made = check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | mode, device) });
        made.unwrap_or_else(|error| panic!("mknod {}: {error}", node.display()));
        // Whatever the umask is.
        std::fs::set_permissions(&node, PermissionsExt::from_mode(mode)).expect("it is ours");
        node
    }

    /// Puts a node over the machine's own of that name.
    ///
    /// # Panics
    /// If it can not be mounted there.
    pub fn replace(&self, name: &str, major: u32, minor: u32, mode: u32) {
        let node = self.add(name, major, minor, mode);
        bind(&node, &Path::new("/dev").join(name)).expect("it can be mounted over");
    }

    /// Puts all of them in the place of all that the machine has.
    ///
    /// # Panics
    /// If they can not be mounted there.
    pub fn replace_all(&self) {
        bind(self.0.path(), Path::new("/dev")).expect("it can be mounted over");
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // So that the directory can be removed.
        let _ = unmount(self.0.path());
    }
}

/// What is mounted at a path, as far as this thread sees: the types, from the bottom up.
pub fn mounted_at(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
    let path = path.to_str().expect("a plain path");
    let mut kinds = Vec::new();
    for line in table.lines() {
        let mut fields = line.split(' ');
        if fields.nth(4) == Some(path) {
            kinds.extend(fields.skip_while(|field| *field != "-").nth(1).map(str::to_string));
        }
    }
    kinds
}
