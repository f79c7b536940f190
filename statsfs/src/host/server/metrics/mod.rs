//! `/metrics` over HTTP, for those who collect statistics from afar.
//!
//! It shows what `.stats/prometheus` and `.stats/openmetrics` of the root show, without what is private unless that
//! is asked for. Whoever can connect may ask, so there are few connections at a time, of which each user and host has a
//! part, what was made is answered for a while, and who is slow is given up.

mod peer;
mod places;
mod request;
mod socket;
mod texts;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use self::peer::{Diag, Peer};
use self::places::{Place, Places};
use self::request::{Asked, asked};
use self::socket::Connection;
use self::texts::Text;
use super::options::ServeOptions;
use super::rights;
use crate::repeats::Repeats;
use crate::tree::{Exposition, Tree};

pub(super) use self::socket::Listening;
pub use self::socket::MetricsAddress;

/// How long who has connected may take to ask, and then to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one is waited for that has asked wrongly and says more: hung up on, it might not get the answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long a server that carries on from another one may take until all processes have come back that had published to
/// that: before that, totals would fall.
const COMING_BACK: Duration = Duration::from_secs(2);
/// The longest request, of which the headers are most.
const MAX_REQUEST: usize = 8 << 10;
/// The most text: of half a million series, more or less. Who reads slowly has one that was made before; of those that
/// take long to make there are few in the time that anybody may take.
const MAX_TEXT: usize = 64 << 20;

/// What is said where users of this host are not told apart, so that one may take all places of theirs.
const UNKNOWN: &str = "users of this host who ask for metrics are not told apart (AF_NETLINK): one can keep the others out";
/// What is said then.
const TOO_MANY: &str = "there are more metrics than can be served at once";

/// What is served.
struct Served {
    tree: Arc<Tree>,
    shows_private: bool,
    places: Arc<Places>,
    /// None where it is not needed, or not to be had.
    diag: Option<Diag>,
    /// When there can be all that there was before.
    whole_from: Instant,
    /// Whether there is.
    is_whole: Arc<AtomicBool>,
    /// In Prometheus' format and in that of OpenMetrics.
    texts: [Text; 2],
    complaints: Mutex<Repeats<&'static str>>,
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
        let diag = match address {
            MetricsAddress::Tcp(_) => {
                Diag::new().inspect_err(|error| tracing::warn!(%error, "{UNKNOWN}")).ok()
            }
            MetricsAddress::Unix(_) => None,
        };
        let served = Arc::new(Served {
            tree,
            shows_private,
            places: Arc::default(),
            diag,
            whole_from: Instant::now() + coming_back,
            is_whole,
            texts: Default::default(),
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
        let peer = connection.peer(served.diag.as_ref()).unwrap_or_else(|error| {
            served.complain(UNKNOWN, &error);
            Peer::Unknown
        });
        let connection = Arc::new(connection);
        let (place, is_for_another) = served.places.take(&connection, peer);
        if is_for_another {
            served.texts.iter().for_each(Text::wake);
        }
        let Some(place) = place else { continue };
        let its = served.clone();
        let answer = move || {
            // Whoever goes away, or is slow, is told nothing.
            let _ = its.answer(&connection, &place);
        };
        if let Err(error) = thread::Builder::new().name("statsfs-answer".into()).spawn(answer) {
            served.complain("a thread that answers for metrics is not started", &error);
        }
    }
}

impl Served {
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
        if !place.has_asked() {
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
        let Some(text) = self.text(format, place) else {
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
    fn text(&self, format: Exposition, place: &Place) -> Option<Arc<Vec<u8>>> {
        if Instant::now() < self.whole_from || !self.is_whole.load(Relaxed) {
            return None;
        }
        let make = || {
            let mut text = Vec::new();
            match self.tree.expose(format, self.shows_private, MAX_TEXT, &mut text) {
                Ok(0) => return Some(text),
                Ok(left_out) => {
                    let said = format!("{left_out} machines, other sources or totals are left out");
                    self.complain(TOO_MANY, &said);
                    return Some(text);
                }
                Err(error) => self.complain(TOO_MANY, &io::Error::from_raw_os_error(error.0)),
            }
            None
        };
        self.texts[usize::from(format == Exposition::OpenMetrics)].get(place, make)
    }

    /// Says something in the log once in a while.
    fn complain(&self, what: &'static str, error: &dyn fmt::Display) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unsaid) = complaints.say(what, Instant::now()) {
            tracing::warn!(%error, unsaid, "{what}");
        }
    }
}
