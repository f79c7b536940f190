//! Publishing to a host's server.
//!
//! A thread of its own connects, introduces the process, tells of new segments, and connects again when the
//! connection is lost. Whoever counts, or changes the structure, never waits for it, and nothing fails because
//! there is no server. See [`protocol`](super::protocol) for what is said.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use super::protocol::{
    Buffer, ClientMessage, Hello, Incoming, MAX_FDS, SendError, ServerMessage, Socket,
};
use super::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use crate::fd_groups::FdGroup;
use crate::registry::Registry;
use crate::threads::{ThreadKind, ThreadStart};
use crate::tree::Waker;

/// How often a lost connection, or one that could not be made, is tried again.
pub const RETRY: Duration = Duration::from_millis(500);
/// How often, where the server has said that it is worth trying again, but not why not now.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// How often, where it has said that it is not: another server may think otherwise.
const RETRY_HOPELESS: Duration = Duration::from_secs(60);
/// How long to wait until there may be room again for what could not be sent. That the socket can be written
/// to says nothing: there may be too many descriptors on their way.
const NO_ROOM: Duration = Duration::from_millis(50);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long the server may take to answer a hello.
const ANSWER: Duration = Duration::from_secs(30);

/// Where and how to publish.
#[derive(Clone, Debug, Default)]
pub struct PublishOptions {
    /// The server's socket. Unless set, what `STATSFS_SOCKET` says, or else `/run/statsfs.sock`.
    pub socket: Option<PathBuf>,
    /// Whether everybody may look into the directories of this process, as far as their sources are not
    /// private; else its user and the host's readers.
    pub public: bool,
    /// What the thread that publishes calls first.
    pub thread_start: ThreadStart,
    /// What it calls whenever the state is another one.
    pub on_change: OnChange,
}

/// What is called with each new state.
type Hook = dyn Fn(&PublishState) + Send + Sync;

/// What to call with each new state of publishing.
#[derive(Clone, Default)]
pub struct OnChange(Option<Arc<Hook>>);

impl OnChange {
    /// Has the thread that publishes call `hook`. The default is nothing.
    pub fn new(hook: impl Fn(&PublishState) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }
}

impl fmt::Debug for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnChange").field(&self.0.is_some()).finish()
    }
}

impl PublishOptions {
    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        let by_environment = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        let socket = self.socket.clone().or_else(|| by_environment().map(PathBuf::from));
        socket.unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

/// Why a process can not even try to publish.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// This process was forked from the one that made the registry.
    #[error("a forked child cannot publish its parent's statistics")]
    Forked,
    /// It is being published already.
    #[error("this registry is being published already")]
    Twice,
    /// The thread could not be started.
    #[error("cannot start the thread that publishes: {0}")]
    Thread(#[source] io::Error),
}

/// How far publishing has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishState {
    /// There was no time for an attempt yet.
    Trying,
    /// Nobody answers at the socket, or not any more, for this reason. It is tried again and again.
    Unreachable(String),
    /// The server has refused it, for this reason.
    Refused {
        /// Why.
        reason: String,
        /// Whether it is tried again.
        again: bool,
    },
    /// It is published. The names of its directories begin with this process id.
    Published {
        /// This process as the server sees it.
        pid: u32,
        /// Where the server's mount is, in the server's view of the file system.
        mount: PathBuf,
    },
}

#[derive(Debug)]
struct Shared {
    on_change: OnChange,
    state: Mutex<PublishState>,
    changed: Condvar,
    stop: Mutex<bool>,
    /// Readable when something has changed, or it is to stop.
    wake: EventFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, PublishState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: PublishState) {
        let before = std::mem::replace(&mut *self.state(), state.clone());
        self.changed.notify_all();
        if let Some(hook) = &self.on_change.0
            && before != state
        {
            hook(&state);
        }
    }

    fn is_to_stop(&self) -> bool {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl crate::tree::Wake for Shared {
    fn wake(&self) {
        // It is full only if nobody has looked for 2^64 changes.
        let _ = self.wake.write(1);
    }
}

/// A registry that is published, as long as this is there. Dropping it says goodbye: what was counted stays in
/// the host's totals, and the registry can not be published again.
#[derive(Debug)]
#[must_use = "it is published as long as this is there"]
pub struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    published: Published,
}

/// That a registry is being published.
#[derive(Debug)]
struct Published(Registry);

impl Drop for Published {
    fn drop(&mut self) {
        self.0.0.is_published.store(false, Ordering::Release);
    }
}

impl Registry {
    /// Publishes everything in this registry to the host's server, now and whenever there is one.
    ///
    /// Once for a registry: the server counts what it counted once.
    ///
    /// ```no_run
    /// use statsfs::Registry;
    /// use statsfs::host::PublishOptions;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let published = Registry::global()?.publish(PublishOptions::default())?;
    /// // As long as it is there:
    /// println!("{:?}", published.state());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PublishError`]. That there is no server is no error: see [`Publisher::state`].
    pub fn publish(&self, options: PublishOptions) -> Result<Publisher, PublishError> {
        if self.0.is_forked() {
            return Err(PublishError::Forked);
        }
        if self.0.is_published.swap(true, Ordering::AcqRel) {
            return Err(PublishError::Twice);
        }
        // Until there is a publisher that sees to it.
        let published = Published(self.clone());
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| PublishError::Thread(error.into()))?;
        let shared = Arc::new(Shared {
            on_change: options.on_change.clone(),
            state: Mutex::new(PublishState::Trying),
            changed: Condvar::new(),
            stop: Mutex::new(false),
            wake,
        });
        let as_wake: Arc<dyn crate::tree::Wake> = shared.clone();
        self.0.wake(Waker::of(&as_wake));
        let (its, registry) = (shared.clone(), self.clone());
        let thread = thread::Builder::new().name("statsfs-publish".into());
        let thread = thread.spawn(move || {
            options.thread_start.call(ThreadKind::Publish);
            let socket = options.socket();
            Talk { shared: &its, registry: &registry, socket: &socket, public: options.public }
                .run();
        });
        let thread = Some(thread.map_err(PublishError::Thread)?);
        Ok(Publisher { shared, thread, published })
    }
}

impl Publisher {
    /// How far it has come.
    pub fn state(&self) -> PublishState {
        self.shared.state().clone()
    }

    /// Waits, at most for `timeout`, until the first attempt has had an end, and answers the state.
    pub fn wait_tried(&self, timeout: Duration) -> PublishState {
        let is_trying = |state: &mut PublishState| *state == PublishState::Trying;
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), timeout, is_trying)
            .unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if self.published.0.0.is_forked() {
            // A forked child has no such thread, and must not stop its parent's.
            return;
        }
        *self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a connection came to its end.
enum End {
    /// It is lost, or could not be made.
    Lost(String),
    /// The server has refused it.
    Refused { reason: String, again: bool },
    /// It is to stop.
    Stopped,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// What the server was told of on one connection.
#[derive(Debug, Default)]
struct Told {
    segments: usize,
    /// The numbers of the descriptors of what the kernel counts, as of so many changes of these.
    statistics: BTreeSet<u32>,
    changes: u64,
}

/// What is said on one connection after the other.
struct Talk<'a> {
    shared: &'a Shared,
    registry: &'a Registry,
    socket: &'a Path,
    public: bool,
}

impl Talk<'_> {
    fn run(&self) {
        let mut buffer = Buffer::default();
        let mut was_said = false;
        while !self.shared.is_to_stop() {
            let socket = self.socket.display();
            let pause = match self.connection(&mut buffer) {
                End::Stopped => return,
                End::Lost(reason) => {
                    // Once: it is the usual thing where there is no server.
                    if !std::mem::replace(&mut was_said, true) {
                        tracing::info!(%socket, "not published now: {reason}");
                    }
                    self.shared.set(PublishState::Unreachable(reason));
                    RETRY
                }
                End::Refused { reason, again } => {
                    tracing::warn!(%socket, again, "not published: {reason}");
                    self.shared.set(PublishState::Refused { reason, again });
                    if again { RETRY_REFUSED } else { RETRY_HOPELESS }
                }
            };
            self.pause(pause);
        }
    }

    /// Why nobody can be connected to.
    fn unreachable(&self, error: &io::Error) -> End {
        let at = self.socket.display();
        End::Lost(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no server listens at {at}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("{at} may not be used by this user, who is not in the socket's group")
            }
            _ => format!("cannot connect to {at}: {error}"),
        })
    }

    /// Waits for this long, or until it is to stop.
    fn pause(&self, pause: Duration) {
        let end = Instant::now().checked_add(pause);
        while !self.shared.is_to_stop() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) || self.wait(None, PollFlags::empty(), left).is_err() {
                return;
            }
        }
    }

    /// Waits until something has changed, or there is something on the socket, at most for `timeout`.
    fn wait(
        &self,
        socket: Option<&Socket>,
        events: PollFlags,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            // Not to be early, and so to wait for nothing again and again.
            let ms = timeout.as_micros().div_ceil(1000);
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), events)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Looked at before what it tells of is.
        let _ = self.shared.wake.read();
        Ok(())
    }

    /// One connection, from its beginning to its end.
    fn connection(&self, buffer: &mut Buffer) -> End {
        let socket = match Socket::connect(self.socket) {
            Ok(socket) => socket,
            Err(error) => return self.unreachable(&error),
        };
        let mut told = Told::default();
        let end = self.talk(&socket, buffer, &mut told);
        if !told.statistics.is_empty() {
            // Nobody reads them any more: what the next server finds is no less than what the last one has shown.
            self.registry.0.keeper.sample_now();
        }
        end
    }

    fn talk(&self, socket: &Socket, buffer: &mut Buffer, told: &mut Told) -> End {
        let answer_due = Instant::now() + ANSWER;
        loop {
            if let Err(end) = self.receive(socket, buffer) {
                return end;
            }
            let is_published = matches!(*self.shared.state(), PublishState::Published { .. });
            if told.segments > 0 && !is_published && Instant::now() > answer_due {
                return End::Lost("the server does not answer".into());
            }
            if self.shared.is_to_stop() {
                if told.segments == 0 {
                    return End::Stopped;
                }
                self.say_goodbye(socket, buffer);
                return End::Stopped;
            }
            let told_all = match self.tell(socket, told) {
                Ok(told_all) => told_all,
                Err(end) => return end,
            };
            let timeout = match (told_all, is_published) {
                (false, _) => Some(NO_ROOM),
                (true, false) => Some(ANSWER),
                (true, true) => None,
            };
            if let Err(error) = self.wait(Some(socket), PollFlags::POLLIN, timeout) {
                return error.into();
            }
        }
    }

    /// Takes what the server says.
    fn receive(&self, socket: &Socket, buffer: &mut Buffer) -> Result<(), End> {
        let mut fds = Vec::new();
        let lost = || End::Lost("the server has closed the connection".into());
        loop {
            match socket.receive(buffer, &mut fds) {
                Ok(Incoming::Message(ServerMessage::Welcome { pid, mount })) => {
                    tracing::info!(pid, mount = %mount.display(), "published");
                    let mount = mount.to_path_buf();
                    self.shared.set(PublishState::Published { pid, mount });
                }
                Ok(Incoming::Message(ServerMessage::Refused { reason, again })) => {
                    return Err(End::Refused { reason: reason.to_owned(), again });
                }
                Ok(Incoming::Message(ServerMessage::Bye)) => return Err(End::Stopped),
                Ok(Incoming::Message(_)) => {}
                Ok(Incoming::Nothing) => return Ok(()),
                Ok(Incoming::End) => return Err(lost()),
                Err(error) => return Err(End::Lost(error.to_string())),
            }
        }
    }

    /// Tells of the segments and descriptors that were not told of yet, or that something has changed. Whether that
    /// is all.
    fn tell(&self, socket: &Socket, told: &mut Told) -> Result<bool, End> {
        // Their blocks are in these segments, or in earlier ones.
        let statistics = self.registry.0.fd_groups.list_unless(told.changes);
        let segments = self.registry.segments()?;
        if told.segments > 0 && told.segments >= segments.len() {
            // Without this the server looks by itself, a little later.
            match socket.send(&ClientMessage::Changed, &[]) {
                Ok(()) | Err(SendError::Full) => {}
                Err(error) => return Err(End::Lost(error.to_string())),
            }
        }
        while told.segments < segments.len() {
            let next = &segments[told.segments..segments.len().min(told.segments + MAX_FDS)];
            let message = if told.segments == 0 {
                let (publisher, segments) = (self.registry.publisher(), segments.len() as u32);
                ClientMessage::Hello(Hello { publisher, public: self.public, segments })
            } else {
                ClientMessage::Segments { first: told.segments as u32 }
            };
            let fds: Vec<_> = next.iter().map(OwnedFd::as_fd).collect();
            match socket.send(&message, &fds) {
                Ok(()) => told.segments += next.len(),
                Err(SendError::Full) => return Ok(false),
                Err(error) => return Err(End::Lost(error.to_string())),
            }
        }
        statistics
            .map_or(Ok(true), |(changes, all)| self.tell_statistics(socket, told, changes, &all))
    }

    /// Tells of the descriptors of what the kernel counts that were not told of yet, of these.
    fn tell_statistics(
        &self,
        socket: &Socket,
        told: &mut Told,
        changes: u64,
        all: &[(u32, Arc<FdGroup>)],
    ) -> Result<bool, End> {
        let there: BTreeSet<_> = all.iter().map(|(number, _)| *number).collect();
        told.statistics.retain(|number| there.contains(number));
        let new: Vec<_> =
            all.iter().filter(|(number, _)| !told.statistics.contains(number)).collect();
        for together in new.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
            for some in together.chunks(MAX_FDS) {
                let message = ClientMessage::Statistics { first: some[0].0 };
                let fds: Vec<_> = some.iter().map(|(_, group)| group.as_fd()).collect();
                match socket.send(&message, &fds) {
                    Ok(()) => told.statistics.extend(some.iter().map(|(number, _)| *number)),
                    Err(SendError::Full) => return Ok(false),
                    Err(error) => return Err(End::Lost(error.to_string())),
                }
            }
        }
        told.changes = changes;
        Ok(true)
    }

    /// Says goodbye, and waits for the answer, so that what was counted is kept when this returns. Without an
    /// answer the server does that when this process has ended.
    fn say_goodbye(&self, socket: &Socket, buffer: &mut Buffer) {
        let end = Instant::now() + GOODBYE;
        let mut is_said = false;
        while Instant::now() < end {
            if !is_said {
                match socket.send(&ClientMessage::Goodbye, &[]) {
                    Ok(()) => is_said = true,
                    Err(SendError::Full) => {}
                    Err(_) => return,
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let left = if is_said { left } else { left.min(NO_ROOM) };
            if self.wait(Some(socket), PollFlags::POLLIN, Some(left)).is_err()
                || self.receive(socket, buffer).is_err()
            {
                return;
            }
        }
    }
}
