//! `/metrics` over HTTP, for those who collect statistics from afar.
//!
//! It shows what `.stats/prometheus` and `.stats/openmetrics` of the root show, without what is private unless that
//! is asked for. Whoever can connect may ask, so there are few connections at a time, what was made is answered for a
//! while, and who is slow is given up.

mod request;
mod socket;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use self::request::{Asked, asked};
use self::socket::Connection;
use super::options::ServeOptions;
use super::rights;
use crate::repeats::Repeats;
use crate::tree::{Exposition, Tree};

pub(super) use self::socket::Listening;
pub use self::socket::MetricsAddress;

/// Connections at a time. Prometheus makes one; who comes when there are as many takes the place of one that has been
/// silent for this long, or is hung up on.
const CONNECTIONS: usize = 8;
const SILENT: Duration = Duration::from_millis(500);
/// How long who has connected may take to ask, and then to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one is waited for that has asked wrongly and says more: hung up on, it might not get the answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long a text is answered that was made, at least, and how many times as long as it took to make: whoever asks all
/// the time has none made for it, and little of the server's time.
const MADE_FOR: Duration = Duration::from_millis(50);
const TIMES_AS_LONG: u32 = 5;
/// How long a server that carries on from another one may take until all processes have come back that had published to
/// that: before that, totals would fall.
const COMING_BACK: Duration = Duration::from_secs(2);
/// The longest request, of which the headers are most.
const MAX_REQUEST: usize = 8 << 10;
/// The most text: of half a million series, more or less. Each who reads slowly may have another one.
const MAX_TEXT: usize = 64 << 20;

/// What is said then.
const TOO_MANY: &str = "there are more metrics than can be served at once";

/// What is served.
struct Served {
    tree: Arc<Tree>,
    shows_private: bool,
    places: Mutex<Places>,
    /// When there can be all that there was before.
    whole_from: Instant,
    /// Whether there is.
    is_whole: Arc<AtomicBool>,
    /// What was made last, in Prometheus' format and in that of OpenMetrics.
    made: [Mutex<Option<Made>>; 2],
    complaints: Mutex<Repeats<&'static str>>,
}

/// A text, and when it was made.
struct Made {
    at: Instant,
    took: Duration,
    /// None if it could not be made, which takes as long.
    text: Option<Arc<Vec<u8>>>,
}

/// Who is connected, in the order in which they came; who has not asked yet, since when and how.
#[derive(Default)]
struct Places {
    all: BTreeMap<u64, Option<(Instant, Arc<Connection>)>>,
    so_far: u64,
}

/// A connection's place among those that there may be.
struct Place {
    served: Arc<Served>,
    number: u64,
}

impl Place {
    /// One for another connection, if there is one, or somebody who has been silent gives theirs up.
    fn take(served: &Arc<Served>, connection: &Arc<Connection>) -> Option<Self> {
        let mut places = served.places();
        if places.all.len() >= CONNECTIONS {
            let mut silent =
                places.all.iter().filter_map(|(n, silent)| Some((*n, silent.as_ref()?)));
            let (first, (since, its)) = silent.next()?;
            if since.elapsed() < SILENT {
                return None;
            }
            // Its thread finds that, and ends.
            its.hang_up();
            places.all.remove(&first);
        }
        places.so_far += 1;
        let number = places.so_far;
        places.all.insert(number, Some((Instant::now(), connection.clone())));
        drop(places);
        Some(Self { served: served.clone(), number })
    }

    /// Whoever has it has asked: from now on they keep it. False if they have given it up.
    fn keep(&self) -> bool {
        self.served.places().all.get_mut(&self.number).map(|silent| *silent = None).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.served.places().all.remove(&self.number);
    }
}

/// The endpoint. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Metrics {
    address: MetricsAddress,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Answers who connects: with metrics once all is there that was, as is told later.
    ///
    /// # Errors
    /// What the kernel says of a thread more.
    pub(super) fn start(
        asked: &MetricsAddress,
        listening: Listening,
        options: &ServeOptions,
        tree: Arc<Tree>,
        carries_on: bool,
        is_whole: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let address = listening.address(asked);
        let (shows_private, gives_up_rights) = (options.includes_private, options.gives_up_rights);
        let stop = Arc::new(EventFd::new()?);
        let its = stop.clone();
        let coming_back = if carries_on { COMING_BACK } else { Duration::ZERO };
        let served = Arc::new(Served {
            tree,
            shows_private,
            places: Mutex::default(),
            whole_from: Instant::now() + coming_back,
            is_whole,
            made: Default::default(),
            complaints: Mutex::default(),
        });
        let work = move || {
            if gives_up_rights {
                rights::give_up_those_to_end();
            }
            accept(&listening, &its, &served);
        };
        let thread = thread::Builder::new().name("statsfs-metrics".into()).spawn(work)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &MetricsAddress {
        &self.address
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let MetricsAddress::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn accept(listening: &Listening, stop: &EventFd, served: &Arc<Served>) {
    loop {
        let mut fds = [
            PollFd::new(listening.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].any().unwrap_or(false) {
            return;
        }
        let connection = match listening.accept() {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Too many files are open, most likely, which may pass.
                served.complain("a connection for metrics is not accepted", &error);
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let connection = Arc::new(connection);
        let Some(place) = Place::take(served, &connection) else { continue };
        let answer = move || {
            // Whoever goes away, or is slow, is told nothing.
            let _ = place.served.answer(&connection, &place);
        };
        if let Err(error) = thread::Builder::new().name("statsfs-answer".into()).spawn(answer) {
            served.complain("a thread that answers for metrics is not started", &error);
        }
    }
}

impl Served {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, connection: &Connection, place: &Place) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let (mut request, mut len) = ([0; MAX_REQUEST], 0);
        let asked = loop {
            match asked(&request[..len]) {
                Some(asked) => break asked,
                None if len == request.len() => {
                    break Asked::Refused(431, "Request Header Fields Too Large");
                }
                None => {}
            }
            match connection.read(&mut request[len..], end)? {
                0 => return Ok(()),
                n => len += n,
            }
        };
        if !place.keep() {
            return Ok(());
        }
        let (format, only_head) = match asked {
            Asked::Metrics { format, only_head } => (format, only_head),
            Asked::Refused(status, why) => {
                let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
                let text = format!(
                    "HTTP/1.1 {status} {why}\r\n{allow}Content-Type: text/plain; charset=utf-8\r\n\
                     Content-Length: {}\r\nConnection: close\r\n\r\n{why}: there is nothing but /metrics\n",
                    why.len() + ": there is nothing but /metrics\n".len()
                );
                connection.write_all(text.as_bytes(), end)?;
                return connection.finish(end.min(Instant::now() + LINGER));
            }
        };
        let Some(text) = self.text(format) else {
            let why = "not all is there yet, or there is too much: the server's log says which\n";
            let text = format!(
                "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
                 Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{why}",
                why.len()
            );
            return connection.write_all(text.as_bytes(), end);
        };
        let kind = match format {
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        let end = Instant::now() + PATIENCE;
        connection.write_all(head.as_bytes(), end)?;
        if !only_head {
            connection.write_all(&text, end)?;
        }
        Ok(())
    }

    /// The metrics as of now, or of just before; none if not all is there that was, or if there are too many.
    fn text(&self, format: Exposition) -> Option<Arc<Vec<u8>>> {
        if Instant::now() < self.whole_from || !self.is_whole.load(Relaxed) {
            return None;
        }
        // One after the other: who comes meanwhile has what the one before has.
        let last = &self.made[usize::from(format == Exposition::OpenMetrics)];
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |made: &&Made| made.at.elapsed() < MADE_FOR.max(made.took * TIMES_AS_LONG);
        if let Some(made) = last.as_ref().filter(is_new) {
            return made.text.clone();
        }
        let (at, mut text) = (Instant::now(), Vec::new());
        let made = self.tree.expose(format, self.shows_private, MAX_TEXT, &mut text);
        match &made {
            Ok(0) => {}
            Ok(left_out) => {
                let text = format!("{left_out} machines, other sources or totals are left out");
                self.complain(TOO_MANY, &text);
            }
            Err(error) => self.complain(TOO_MANY, &io::Error::from_raw_os_error(error.0)),
        }
        let text = made.is_ok().then(|| Arc::new(text));
        *last = Some(Made { at, took: at.elapsed(), text: text.clone() });
        text
    }

    /// Says something in the log once in a while.
    fn complain(&self, what: &'static str, error: &dyn fmt::Display) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unsaid) = complaints.say(what, Instant::now()) {
            tracing::warn!(%error, unsaid, "{what}");
        }
    }
}
