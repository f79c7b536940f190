//! The mount table of this process, and the examination of a place before something is mounted there.
//!
//! A place is held by an `O_PATH` descriptor, which can be had of a dead or hanging file system too, and
//! without asking its server; /proc says which mount it is on.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::MountError;
use super::fusermount;

/// The type that our mounts show.
pub(super) const FS_TYPE: &str = "fuse.statsfs";

/// How long a mounted file system may take to answer before it is said not to.
const PATIENCE: Duration = Duration::from_secs(2);

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// Mount id: unique while the mount exists.
    pub(super) id: u64,
    /// Device of the superblock, `major:minor`: unique while that exists.
    pub(super) device: String,
    /// Where.
    pub(super) point: PathBuf,
    /// File system type.
    pub(super) kind: String,
    /// Source.
    pub(super) what: String,
}

impl MountEntry {
    /// Whether this is the same mount, wherever it may have been moved to. Ids and devices are reused
    /// after a mount has gone; our sources are not (see `mount::source_name`).
    pub(super) fn is(&self, other: &MountEntry) -> bool {
        (self.id, &self.device, &self.kind, &self.what)
            == (other.id, &other.device, &other.kind, &other.what)
    }
}

/// The mounts of this process's namespace, in the order in which they cover each other.
#[derive(Clone, Debug)]
pub(super) struct MountTable(Vec<MountEntry>);

impl MountTable {
    /// Reads the table.
    pub(super) fn read() -> Result<Self, MountError> {
        let mut file = open_table()?;
        Self::read_from(&mut file)
    }

    /// Reads the table from an open file of it, at its beginning.
    pub(super) fn read_from(file: &mut File) -> Result<Self, MountError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| MountError::Proc { source })?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Self {
        MountTable(bytes.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
    }

    /// The mount with this id.
    pub(super) fn by_id(&self, id: u64) -> Option<&MountEntry> {
        self.0.iter().find(|entry| entry.id == id)
    }

    /// This mount, as it is now.
    pub(super) fn find(&self, mount: &MountEntry) -> Option<&MountEntry> {
        self.0.iter().find(|entry| entry.is(mount))
    }

    /// Our mount with this source at this place.
    pub(super) fn find_ours(&self, what: &str, point: &Path) -> Option<&MountEntry> {
        self.0
            .iter()
            .rev()
            .find(|entry| entry.kind == FS_TYPE && entry.what == what && entry.point == point)
    }
}

/// Opens `/proc/self/mountinfo`.
pub(super) fn open_table() -> Result<File, MountError> {
    File::open("/proc/self/mountinfo").map_err(|source| MountError::Proc { source })
}

/// `36 35 98:0 /root /point options shared:1 - type source superoptions`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let text = |field: &[u8]| Some(std::str::from_utf8(field).ok()?.to_owned());
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let what = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(MountEntry { id, device, point, kind, what })
}

/// Undoes the kernel's `\040` for a space, and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
        };
        match tail.get(..3).filter(|_| first == b'\\').and_then(octal) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// A directory, whatever is mounted there, and however dead that is.
#[derive(Debug)]
pub(super) struct Place {
    handle: File,
    /// Its path without symbolic links.
    pub(super) path: PathBuf,
    mount_id: u64,
}

impl Place {
    /// Holds the directory at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let handle = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let fd = handle.as_raw_fd();
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}"))?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let mount_id = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
            .ok_or_else(|| io::Error::other("no mount id in /proc/self/fdinfo"))?;
        Ok(Place { handle, path, mount_id })
    }

    /// The mount that it is on.
    pub(super) fn mount_id(&self) -> u64 {
        self.mount_id
    }

    /// A path that leads to exactly this directory, even when something else comes to its own path.
    pub(super) fn link(&self) -> PathBuf {
        fd_path(&self.handle)
    }
}

fn fd_path(handle: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// A directory that is ours to mount on. Removed when dropped, if it was created for this.
#[derive(Debug)]
pub(super) struct MountPoint {
    /// Its path without symbolic links.
    pub(super) path: PathBuf,
    created: bool,
    lock: Option<File>,
}

impl MountPoint {
    /// What an earlier process has mounted on, and has created for that or not.
    pub(super) fn of(path: &Path, created: bool) -> Self {
        Self { path: path.to_owned(), created, lock: None }
    }

    /// Whether it was created to be mounted on.
    pub(super) fn is_made(&self) -> bool {
        self.created
    }

    /// Lets others mount there from now on: they find our mount.
    pub(super) fn unlock(&mut self) {
        self.lock = None;
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Fails, rightly, if anything is in it or mounted on it by now.
        if self.created
            && let Err(error) = std::fs::remove_dir(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "the mount point stays");
        }
    }
}

/// Examines `path`, creates it if it is missing, and takes a dead mount of ours away.
pub(super) fn claim(path: &Path) -> Result<MountPoint, MountError> {
    // Nothing can be told, and nothing is to be created, without /proc.
    drop(MountTable::read()?);
    let mut created = None;
    // Each turn takes something out of the way; dead mounts may lie on each other.
    for _ in 0..64 {
        let place = match Place::open(path) {
            Ok(place) => place,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) if created.is_none() => {
                    created = Some(create(path)?);
                    continue;
                }
                _ => return Err(unreachable_place(path, error)),
            },
        };
        let table = MountTable::read()?;
        let entry = table.by_id(place.mount_id());
        match entry.filter(|entry| entry.point == place.path) {
            Some(entry) => clear(&place, entry)?,
            None => {
                let lock = lock_empty(&place)?;
                // Someone may have mounted there, and let go of the lock, after we looked.
                if Place::open(path).is_ok_and(|again| again.mount_id() != place.mount_id()) {
                    continue;
                }
                return Ok(MountPoint {
                    path: place.path,
                    created: created.take().is_some_and(|mut directory: Created| directory.keep()),
                    lock: Some(lock),
                });
            }
        }
    }
    Err(MountError::Examine {
        path: path.to_owned(),
        source: io::Error::other("others keep mounting there"),
    })
}

/// Our new directory: removed again when dropped before it is used.
#[derive(Debug)]
struct Created(Option<PathBuf>);

impl Created {
    fn keep(&mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Why there is no getting to a place.
fn unreachable_place(path: &Path, error: io::Error) -> MountError {
    let is_in_the_way = |above: &&Path| above.metadata().is_ok_and(|found| !found.is_dir());
    match error.raw_os_error() {
        Some(libc::ENOTDIR) => {
            let found = path.ancestors().find(is_in_the_way).unwrap_or(path);
            MountError::NotDirectory { path: found.to_owned() }
        }
        Some(libc::ENOTCONN | libc::ECONNABORTED) => match mount_above(path) {
            Some(MountEntry { point, kind, what, .. }) => {
                MountError::BelowDead { path: path.to_owned(), dead: point, kind, what }
            }
            None => MountError::Examine { path: path.to_owned(), source: error },
        },
        _ => MountError::Examine { path: path.to_owned(), source: error },
    }
}

/// The mount that a path is below, unless a symbolic link leads elsewhere: a dead one could not be asked.
fn mount_above(path: &Path) -> Option<MountEntry> {
    let path = std::path::absolute(path).ok()?;
    let mut table = MountTable::read().ok()?.0;
    table.retain(|entry| path.starts_with(&entry.point));
    // Of several at one place the last is on top.
    table.into_iter().max_by_key(|entry| entry.point.as_os_str().len())
}

fn create(path: &Path) -> Result<Created, MountError> {
    // With a slash at its end a link would be followed.
    let path = path.components().as_path();
    match std::fs::create_dir(path) {
        Ok(()) => Ok(Created(Some(path.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_symlink() => {
            let target = std::fs::read_link(path)
                .map_err(|source| MountError::Examine { path: path.to_owned(), source })?;
            Err(MountError::Dangling { path: path.to_owned(), target })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = path
                .parent()
                .is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir());
            let path = path.to_owned();
            Err(if there { MountError::NoPlace { path } } else { MountError::NoParent { path } })
        }
        Err(source) => Err(MountError::Create { path: path.to_owned(), source }),
    }
}

/// Says why what is mounted there is in the way, or takes it away if it is a dead one of ours.
fn clear(place: &Place, entry: &MountEntry) -> Result<(), MountError> {
    let MountEntry { kind, what, .. } = entry.clone();
    let path = place.path.clone();
    let fuse = kind == "fuse" || kind.starts_with("fuse.") || kind == "fuseblk";
    // Others are not asked: a network file system may take minutes to answer.
    let answer = if fuse {
        probe(place).map_err(|source| MountError::Examine { path: path.clone(), source })?
    } else {
        Answer::Alive
    };
    match answer {
        Answer::Dead if kind == FS_TYPE => {
            let result = if nix::unistd::geteuid().is_root() {
                nix::mount::umount2(&place.link(), nix::mount::MntFlags::MNT_DETACH)
                    .map_err(|errno| errno.desc().to_owned())
            } else {
                fusermount::unmount(&path)
            };
            result.map_err(|message| MountError::Stale {
                path: path.clone(),
                what: what.clone(),
                message,
            })?;
            tracing::info!(path = %path.display(), what, "took away a dead statsfs mount");
            Ok(())
        }
        Answer::Dead => Err(MountError::ForeignDead { path, kind, what }),
        Answer::Alive if kind == FS_TYPE => Err(MountError::InUse { path, what }),
        Answer::Silent if kind == FS_TYPE => Err(MountError::Silent { path, what }),
        Answer::Denied if kind == FS_TYPE => Err(MountError::OtherUser { path, what }),
        Answer::Alive | Answer::Silent | Answer::Denied => {
            Err(MountError::Foreign { path, kind, what })
        }
    }
}

enum Answer {
    Alive,
    Dead,
    Denied,
    Silent,
}

/// Opens the root directory of a FUSE mount: of all requests the one that no cache can answer.
fn probe(place: &Place) -> io::Result<Answer> {
    let handle = place.handle.try_clone()?;
    let (tell, told) = mpsc::channel();
    // If the server hangs this thread does, too; it can still be killed with the process.
    std::thread::Builder::new().name("statsfs-probe".into()).spawn(move || {
        let result = std::fs::read_dir(fd_path(&handle)).map(drop);
        let _ = tell.send(result.err().and_then(|error| error.raw_os_error()));
    })?;
    Ok(match told.recv_timeout(PATIENCE).ok() {
        None => Answer::Silent,
        // Nobody was asked.
        Some(Some(error @ (libc::EMFILE | libc::ENFILE))) => {
            return Err(io::Error::from_raw_os_error(error));
        }
        Some(Some(libc::ENOTCONN | libc::ECONNABORTED)) => Answer::Dead,
        Some(Some(libc::EACCES | libc::EPERM)) => Answer::Denied,
        Some(_) => Answer::Alive,
    })
}

/// Makes sure that the directory is empty and that nobody else is about to mount there.
fn lock_empty(place: &Place) -> Result<File, MountError> {
    let examine = |source| MountError::Examine { path: place.path.clone(), source };
    let lock = File::open(place.link()).map_err(examine)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(MountError::Racing { path: place.path.clone() });
        }
        // A guard against a race, not a condition: some file systems have no locks.
        Err(std::fs::TryLockError::Error(error)) => {
            tracing::debug!(path = %place.path.display(), %error, "the mount point is not locked");
        }
    }
    if std::fs::read_dir(place.link()).map_err(examine)?.next().is_some() {
        return Err(MountError::NotEmpty { path: place.path.clone() });
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let table = MountTable::parse(
            b"36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.statsfs statsfs-7 rw\n\
              22 27 0:21 / /proc rw,relatime - proc proc rw\n\
              not a line\n\
              23 27 0:22 / /sys rw - sysfs  rw\n",
        );
        assert_eq!(table.0.len(), 3);
        let ours = table.find_ours("statsfs-7", Path::new("/mnt/a b")).unwrap();
        assert_eq!((ours.id, ours.device.as_str()), (36, "98:0"));
        assert_eq!(table.by_id(22).unwrap().kind, "proc");
        assert_eq!(table.by_id(23).unwrap().what, "");
        let other = MountEntry { what: "statsfs-8".into(), ..ours.clone() };
        assert!(table.find(&other).is_none(), "same id and device, another mount");
        assert!(table.find(ours).is_some());
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\040b\\134c"), b"a b\\c");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }
}
