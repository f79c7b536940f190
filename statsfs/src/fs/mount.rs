//! A mount: made, served, watched and taken away by ourselves.

use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::abort::Abort;
use super::device;
use super::fusermount::{self, Keeper};
use super::kept::KeptMount;
use super::mountpoint::{self, FS_TYPE, MountEntry, MountPoint, MountTable, Place};
use super::options::MountOptions;
use super::server::Server;
use super::transport::{Fuser, Invalidate, MAX_READ, Serve, Setup, Transport};
use super::workers::Threads;
use super::{MountError, Nodes};
use crate::threads::ThreadKind;

/// How often the thread that sends invalidations looks whether the mount has ended.
const GONE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the threads of the session have to end by themselves after an unmount. Requires more than
/// [`GONE_TIMEOUT`].
const GRACE: Duration = Duration::from_millis(600);

/// How long after the connection was aborted: only a handler that hangs takes that long.
const PATIENCE: Duration = Duration::from_secs(2);

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
#[must_use = "the mount goes when this is dropped"]
pub struct Mount {
    server: Arc<Server>,
    entry: MountEntry,
    threads: Threads,
    /// Readable when a session has ended.
    session: PipeReader,
    live: Mutex<Option<Live>>,
}

/// What a mount has to give back.
#[derive(Debug)]
struct Live {
    joins: Vec<JoinHandle<()>>,
    /// None where it can not be had.
    abort: Option<Abort>,
    /// Only of a mount by `fusermount3`, until it has tried to unmount.
    keeper: Option<Keeper>,
    by_fusermount: bool,
    /// Dropped last.
    _point: Option<MountPoint>,
}

impl Mount {
    /// Mounts `nodes` at `path` and serves them on threads of its own.
    ///
    /// A missing mount point is created, and removed again in the end. A dead statsfs there, which a
    /// killed process left, is taken away. As root by mount(2), as an ordinary user by `fusermount3`.
    ///
    /// # Errors
    /// [`MountError`] says what is in the way and what to do; nothing is left behind.
    pub fn new(
        nodes: Arc<dyn Nodes>,
        path: &Path,
        options: MountOptions,
    ) -> Result<Self, MountError> {
        Self::new_kept(nodes, path, options, |_| {})
    }

    /// As [`new`](Self::new), and hands over what another process needs to [carry it on](Self::carry_on) when
    /// this one is killed. As an ordinary user there is nothing like that: then the mount goes with this process.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_kept(
        nodes: Arc<dyn Nodes>,
        path: &Path,
        options: MountOptions,
        keep: impl FnOnce(KeptMount),
    ) -> Result<Self, MountError> {
        let mut point = mountpoint::claim(path)?;
        let by_fusermount = !nix::unistd::geteuid().is_root();
        let device = open_device()?;
        let source = source_name();
        let mut keeper = None;
        let device = if by_fusermount {
            keeper = Some(start_keeper(&point.path, &source)?);
            let text = user_options(&source, options.allow_other);
            fusermount::mount(&point.path, &text)?
        } else {
            mount(device, &point.path, &source, options.allow_other)?
        };
        let path = point.path.clone();
        let found = MountTable::read().and_then(|table| {
            let gone = || MountError::Mount {
                path: path.clone(),
                source: io::Error::other("someone has unmounted it again at once"),
            };
            table.find_ours(&source, &path).cloned().ok_or_else(gone)
        });
        let entry = match found {
            Ok(entry) => entry,
            Err(error) => {
                // Without its entry we can not prove that what is there is ours: closing the device
                // leaves a dead mount, which the next start takes away.
                drop(device);
                return Err(error);
            }
        };
        point.unlock();
        let mounted = Mounted { entry, by_fusermount, keeper, point: Some(point) };
        let mount = mounted
            .serve(nodes, options, keep, |server, setup| Fuser::accept(device, server, setup))?;
        tracing::info!(path = %path.display(), source, "mounted");
        Ok(mount)
    }

    /// Carries on with a mount at `path` whose process was killed: it stays mounted, what is open stays open,
    /// and what was asked and not answered is answered. The `nodes` must have the inode numbers that they had.
    ///
    /// # Errors
    /// [`MountError`], if it is not there any more, or its connection is not: or if the kernel can not have
    /// requests answered that the other process had read. If it is still there, it is then taken away.
    pub fn carry_on(
        nodes: Arc<dyn Nodes>,
        path: &Path,
        options: MountOptions,
        kept: KeptMount,
        keep: impl FnOnce(KeptMount),
    ) -> Result<Self, MountError> {
        let (mounted, mut devices) = Mounted::find(path, kept)?;
        let superblock = &mounted.entry.device;
        devices.retain(|device| device::is_connected_to(device.as_fd(), superblock));
        if devices.is_empty() {
            return Err(cannot_carry_on(path, "it has no live connection"));
        }
        let had = devices.len();
        let more = |mut kept: KeptMount| {
            kept.devices.drain(..had);
            if !kept.devices.is_empty() {
                keep(kept);
            }
        };
        let source = mounted.entry.what.clone();
        let mount = mounted
            .serve(nodes, options, more, |server, setup| Fuser::carry_on(devices, server, setup))?;
        tracing::info!(path = %path.display(), source, "carrying on with the mount");
        Ok(mount)
    }

    /// Takes a mount at `path` away that was kept and can not be [carried on](Self::carry_on); answers why that
    /// is.
    pub fn take_away(path: &Path, kept: KeptMount) -> MountError {
        match Mounted::find(path, kept) {
            Ok(mounted) => drop(mounted),
            Err(error) => return error,
        }
        cannot_carry_on(path, "its inode numbers are of another state")
    }

    /// Where it is mounted: the path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.entry.point
    }

    /// Whether it is mounted and served: false after an unmount by anyone.
    pub fn is_mounted(&self) -> bool {
        !self.wait_ended(Duration::ZERO)
    }

    /// Waits, at most for `timeout`, until it is no longer mounted or served: someone has unmounted it
    /// from outside, or the connection was aborted. True if so. [`unmount`](Self::unmount) then only
    /// tidies up.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        // Opened before the look at the table: every change after that wakes us.
        let mut table = mountpoint::open_table();
        loop {
            if let Ok(file) = &mut table
                && let Ok(mounts) = MountTable::read_from(file)
                && mounts.find(&self.entry).is_none()
            {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = vec![PollFd::new(self.session.as_fd(), PollFlags::POLLIN)];
            if let Ok(file) = &table {
                fds.push(PollFd::new(file.as_fd(), PollFlags::POLLPRI));
            }
            let polled = nix::poll::poll(&mut fds, wait);
            if fds[0].any() == Some(true) {
                return true;
            }
            match polled {
                Ok(0) if left.is_zero() => return false,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "waiting for the end of the mount failed");
                    std::thread::sleep(left.min(Duration::from_millis(100)));
                }
            }
            if let Ok(file) = &mut table
                && io::Seek::rewind(file).is_err()
            {
                table = mountpoint::open_table();
            }
        }
    }

    /// Unmounts, whatever is open, and ends the session: readers of open files get an error. Does
    /// nothing the second time, or to a mount that someone else has put there meanwhile.
    ///
    /// # Errors
    /// [`MountError`] if it is covered by another mount or can not be unmounted; it may be tried again.
    pub fn unmount(&self) -> Result<(), MountError> {
        let mut slot = self.live();
        let Some(live) = slot.as_mut() else {
            return Ok(());
        };
        self.server.unmounting(true);
        detach(&self.entry, live.by_fusermount, &mut live.keeper)
            .inspect_err(|_| self.server.unmounting(false))?;
        self.server.end();
        if !self.threads.wait(GRACE) {
            // With files still open, an unmount from outside, or by an ordinary user, does not end the
            // session.
            if let Some(abort) = &live.abort
                && let Err(error) = abort.now()
            {
                tracing::debug!(%error, "the connection can not be aborted");
            }
            if !self.threads.wait(PATIENCE) {
                tracing::warn!(
                    path = %self.entry.point.display(),
                    "unmounted; files are still open, threads end when they are closed"
                );
                live.joins.clear();
            }
        }
        for join in live.joins.drain(..) {
            // A panic there has been reported by the panic hook.
            let _ = join.join();
        }
        // The keeper looks once more, and finds nothing; the directory goes.
        *slot = None;
        tracing::info!(path = %self.entry.point.display(), "unmounted");
        Ok(())
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // If the keeper could not do it, whoever tried was told.
        let tried = |live: &Live| live.by_fusermount && live.keeper.is_none();
        if self.live().as_ref().is_some_and(tried) {
            return;
        }
        if let Err(error) = self.unmount() {
            tracing::error!(%error, "the mount stays");
        }
    }
}

fn cannot_carry_on(path: &Path, why: &str) -> MountError {
    MountError::CarryOn { path: path.to_owned(), source: io::Error::other(why.to_owned()) }
}

/// What is mounted, and not served yet. Unmounted if it can not be.
struct Mounted {
    entry: MountEntry,
    by_fusermount: bool,
    keeper: Option<Keeper>,
    /// `None` once it is served.
    point: Option<MountPoint>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.point.is_some()
            && let Err(error) = detach(&self.entry, self.by_fusermount, &mut self.keeper)
        {
            tracing::error!(%error, "the mount stays");
        }
    }
}

impl Mounted {
    /// What another process has mounted at `path` until it was killed, and the devices that were kept.
    fn find(path: &Path, kept: KeptMount) -> Result<(Self, Vec<OwnedFd>), MountError> {
        let KeptMount { source, made_place, devices } = kept;
        let place = Place::open(path)
            .map_err(|source| MountError::CarryOn { path: path.to_owned(), source })?;
        let table = MountTable::read()?;
        let Some(entry) = table.find_ours(&source, &place.path) else {
            return Err(cannot_carry_on(path, "it is not mounted there any more"));
        };
        if entry.id != place.mount_id() {
            return Err(cannot_carry_on(path, "something else is mounted over it"));
        }
        let point = Some(MountPoint::of(&entry.point, made_place));
        let found = Self { entry: entry.clone(), by_fusermount: false, keeper: None, point };
        Ok((found, devices))
    }

    /// Has it served on threads of its own.
    fn serve(
        mut self,
        nodes: Arc<dyn Nodes>,
        options: MountOptions,
        keep: impl FnOnce(KeptMount),
        accept: impl FnOnce(Arc<Server>, Setup) -> io::Result<Fuser>,
    ) -> Result<Mount, MountError> {
        let path = self.entry.point.clone();
        let failed = |source| MountError::Serve { path: path.clone(), source };
        let abort = Abort::open(&self.entry.device)
            .inspect_err(|error| tracing::debug!(%error, "the connection can not be aborted"))
            .ok();
        let threads = Threads::default();
        let server = Arc::new(Server::new(nodes, &options, &threads).map_err(failed)?);
        let start = options.thread_start;
        let setup =
            Setup { threads: options.threads, ttl: options.ttl, thread_start: start.clone() };
        let transport = accept(Arc::clone(&server), setup).map_err(failed)?;
        if !self.by_fusermount {
            let devices = transport.devices();
            let devices = devices.iter().map(|device| device.try_clone_to_owned());
            keep(KeptMount {
                source: self.entry.what.clone(),
                made_place: self.point.as_ref().is_some_and(MountPoint::is_made),
                devices: devices.collect::<io::Result<_>>().map_err(failed)?,
            });
        }
        let invalidator = transport.invalidator();
        let (session, end) = io::pipe().map_err(failed)?;
        let end = Arc::new(end);
        let mut joins = Vec::new();
        for (number, session) in transport.sessions().into_iter().enumerate() {
            let (server, running, end) = (Arc::clone(&server), threads.enter(), Arc::clone(&end));
            let (path, start) = (path.clone(), start.clone());
            let thread = std::thread::Builder::new().name(format!("statsfs-fuse-{number}"));
            let spawned = thread.spawn(move || {
                start.call(ThreadKind::Session);
                serve(session, &server, &path);
                // Nobody waits any more, or is told.
                let _ = (&*end).write_all(&[0]);
                drop((end, running));
            });
            joins.push(spawned.map_err(failed)?);
        }
        let invalidate = {
            let (server, running) = (Arc::clone(&server), threads.enter());
            std::thread::Builder::new()
                .name("statsfs-inval".into())
                .spawn(move || {
                    start.call(ThreadKind::Invalidation);
                    invalidate(&server, &invalidator);
                    drop(running);
                })
                .map_err(failed)?
        };
        joins.push(invalidate);
        let (entry, by_fusermount) = (self.entry.clone(), self.by_fusermount);
        let (keeper, point) = (self.keeper.take(), self.point.take());
        let live = Live { joins, abort, keeper, by_fusermount, _point: point };
        Ok(Mount { server, entry, threads, session, live: Mutex::new(Some(live)) })
    }
}

/// A name that no other mount has had since this machine started, as far as process ids go: it tells our
/// mount from a later one with the same mount id and device, and users who serves it.
fn source_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    match COUNT.fetch_add(1, Relaxed) {
        0 => format!("statsfs-{pid}"),
        number => format!("statsfs-{pid}.{number}"),
    }
}

/// Opens `/dev/fuse`. An ordinary user must be able to, as well: `fusermount3` does it with their rights.
fn open_device() -> Result<File, MountError> {
    let file = device::open().map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
        Some(libc::EACCES | libc::EPERM) if nix::unistd::geteuid().is_root() => {
            MountError::DeviceForbidden { source }
        }
        Some(libc::EACCES | libc::EPERM) => MountError::DeviceClosed { source },
        Some(libc::EISDIR) => MountError::NotTheDevice,
        _ => MountError::Device { source },
    })?;
    if device::is_device(&file) { Ok(file) } else { Err(MountError::NotTheDevice) }
}

fn mount(
    device: File,
    point: &Path,
    source: &str,
    allow_other: bool,
) -> Result<OwnedFd, MountError> {
    let fd = device.as_raw_fd();
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut data = format!(
        "fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions,max_read={MAX_READ}"
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match nix::mount::mount(Some(source), point, Some(FS_TYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(device.into()),
        Err(nix::errno::Errno::EPERM) => Err(MountError::Forbidden { path: point.to_owned() }),
        Err(nix::errno::Errno::ENODEV) => Err(MountError::NoDevice),
        Err(errno) => Err(MountError::Mount { path: point.to_owned(), source: errno.into() }),
    }
}

fn user_options(source: &str, allow_other: bool) -> String {
    let mut text = format!(
        "fsname={source},subtype=statsfs,default_permissions,nosuid,nodev,noexec,max_read={MAX_READ}"
    );
    if allow_other && fusermount::allows_other() {
        text.push_str(",allow_other");
    }
    text
}

fn start_keeper(point: &Path, source: &str) -> Result<Keeper, MountError> {
    let keeper = Keeper::start(point, source)
        .map_err(|source| MountError::Keeper { path: point.to_owned(), source })?;
    tracing::debug!(pid = keeper.pid(), "the keeper of the mount");
    Ok(keeper)
}

fn serve(session: impl Serve, server: &Server, path: &Path) {
    let result = session.run();
    // All sessions end at once; one of them says so.
    let is_first = server.end();
    if let Err(error) = result {
        tracing::error!(path = %path.display(), %error, "serving the mount failed");
    } else if is_first && !server.is_unmounting() {
        tracing::info!(path = %path.display(), "unmounted from outside");
    }
}

fn invalidate(server: &Server, invalidator: &impl Invalidate) {
    let mut gone = Vec::new();
    while !server.is_ending() {
        server.wait_gone(GONE_TIMEOUT, &mut gone);
        for ino in gone.drain(..) {
            // It answers ESTALE, which heals it later.
            if let Err(error) = invalidator.node(ino) {
                tracing::debug!(%error, ino, "invalidating a node failed");
            }
        }
    }
}

/// Unmounts `entry`, and nothing else.
fn detach(
    entry: &MountEntry,
    by_fusermount: bool,
    keeper: &mut Option<Keeper>,
) -> Result<(), MountError> {
    // Twice if it is moved meanwhile.
    for _ in 0..2 {
        let table = MountTable::read()?;
        let Some(now) = table.find(entry) else {
            return Ok(());
        };
        let failed = |message: String| MountError::Unmount { path: now.point.clone(), message };
        let place = Place::open(&now.point).map_err(|error| failed(error.to_string()))?;
        if place.mount_id() != entry.id {
            if MountTable::read()?.find(entry).is_none_or(|again| again.point != now.point) {
                continue;
            }
            let cover = table.by_id(place.mount_id());
            return Err(MountError::Covered {
                path: now.point.clone(),
                kind: cover.map(|cover| cover.kind.clone()).unwrap_or_default(),
                what: cover.map(|cover| cover.what.clone()).unwrap_or_default(),
            });
        }
        let result = if by_fusermount {
            let point = now.point.clone();
            // Else it would be us who are using it.
            drop(place);
            match keeper.take() {
                Some(keeper) => keeper.unmount(),
                // It has tried before.
                None => fusermount::unmount(&point),
            }
        } else {
            // Lazy, as files may be open; by force, which ends the session and lets go who waits in it.
            // By this path nothing else can be meant, whatever has come to the mount point meanwhile.
            nix::mount::umount2(&place.link(), MntFlags::MNT_DETACH | MntFlags::MNT_FORCE)
                .map_err(|errno| errno.desc().to_owned())
        };
        // Someone else may have been faster.
        if MountTable::read()?.find(entry).is_none() {
            return Ok(());
        }
        return Err(failed(result.err().unwrap_or_else(|| "it is still there".to_owned())));
    }
    Ok(())
}
