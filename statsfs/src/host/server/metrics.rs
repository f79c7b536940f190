//! `/metrics` over HTTP, for those who collect statistics from afar.
//!
//! It shows what `.stats/prometheus` and `.stats/openmetrics` of the root show, without what is private unless that
//! is asked for. Whoever can connect may ask, so there are few connections at a time, what was made is answered for a
//! while, and who is slow is given up.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::listen::There;
use super::options::ServeOptions;
use super::rights;
use crate::repeats::Repeats;
use crate::tree::{Exposition, Tree};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// An address and a port; port 0 is any that is free.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    /// `ADDRESS:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing after `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!(
                    "`{text}` is neither an address and a port, as 127.0.0.1:9101, nor unix:PATH"
                )
            }),
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Connections at a time. Prometheus makes one; who comes when there are as many is hung up on.
const CONNECTIONS: usize = 8;
/// How long who has connected may take to ask, and then to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a text is answered that was made, at least, and how many times as long as it took to make: whoever asks all
/// the time has none made for it, and little of the server's time.
const MADE_FOR: Duration = Duration::from_millis(50);
const TIMES_AS_LONG: u32 = 5;
/// How long a server that carries on from another one may take until all processes have come back that had published to
/// that: before that, totals would fall.
const COMING_BACK: Duration = Duration::from_secs(2);
/// The longest request, of which the headers are most.
const MAX_REQUEST: usize = 8 << 10;
/// The most headers.
const MAX_HEADERS: usize = 64;
/// The most text: of half a million series, more or less. Each who reads slowly may have another one.
const MAX_TEXT: usize = 64 << 20;

/// What is served.
struct Served {
    tree: Arc<Tree>,
    shows_private: bool,
    connections: AtomicUsize,
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
    text: Arc<Vec<u8>>,
}

/// A connection's place among those that there may be.
struct Place(Arc<Served>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// The endpoint. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Metrics {
    address: MetricsAddress,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// A socket that nobody is answered at yet.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listening {
    /// # Errors
    /// What the kernel says of the address.
    pub(super) fn at(address: &MetricsAddress) -> io::Result<Self> {
        let listening = match address {
            MetricsAddress::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            MetricsAddress::Unix(path) => {
                if There::at(path) == There::LeftOver {
                    std::fs::remove_file(path)?;
                }
                Self::Unix(UnixListener::bind(path)?)
            }
        };
        match &listening {
            Self::Tcp(listener) => listener.set_nonblocking(true)?,
            Self::Unix(listener) => listener.set_nonblocking(true)?,
        }
        Ok(listening)
    }

    fn address(&self, asked: &MetricsAddress) -> MetricsAddress {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| asked.clone(), MetricsAddress::Tcp)
            }
            Self::Unix(_) => asked.clone(),
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        let connection = match self {
            Self::Tcp(listener) => Connection::Tcp(listener.accept()?.0),
            Self::Unix(listener) => Connection::Unix(listener.accept()?.0),
        };
        match &connection {
            Connection::Tcp(stream) => stream.set_nonblocking(false)?,
            Connection::Unix(stream) => stream.set_nonblocking(false)?,
        }
        Ok(connection)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Connection {
    /// Has the next call wait no longer than until then.
    fn wait_until(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], end: Instant) -> io::Result<usize> {
        self.wait_until(end)?;
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, mut bytes: &[u8], end: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait_until(end)?;
            let written = match self {
                Self::Tcp(stream) => stream.write(bytes),
                Self::Unix(stream) => stream.write(bytes),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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
            connections: AtomicUsize::new(0),
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
        let is_full = served.connections.fetch_add(1, Relaxed) >= CONNECTIONS;
        let place = Place(served.clone());
        if is_full {
            continue;
        }
        let answer = move || {
            // Whoever goes away, or is slow, is told nothing.
            let _ = place.0.answer(connection);
        };
        if let Err(error) = thread::Builder::new().name("statsfs-answer".into()).spawn(answer) {
            served.complain("a thread that answers for metrics is not started", &error);
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics { format: Exposition, only_head: bool },
    Refused(u16, &'static str),
}

impl Served {
    fn answer(&self, mut connection: Connection) -> io::Result<()> {
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
        let (format, only_head) = match asked {
            Asked::Metrics { format, only_head } => (format, only_head),
            Asked::Refused(status, why) => {
                let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
                let text = format!(
                    "HTTP/1.1 {status} {why}\r\n{allow}Content-Type: text/plain; charset=utf-8\r\n\
                     Content-Length: {}\r\nConnection: close\r\n\r\n{why}: there is nothing but /metrics\n",
                    why.len() + ": there is nothing but /metrics\n".len()
                );
                return connection.write_all(text.as_bytes(), end);
            }
        };
        let Some(text) = self.text(format) else {
            let text = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n";
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
            return Some(made.text.clone());
        }
        let (at, mut text) = (Instant::now(), Vec::new());
        if let Err(error) = self.tree.expose(format, self.shows_private, MAX_TEXT, &mut text) {
            *last = None;
            let error = io::Error::from_raw_os_error(error.0);
            self.complain("there are more metrics than can be served at once", &error);
            return None;
        }
        let text = Arc::new(text);
        *last = Some(Made { at, took: at.elapsed(), text: text.clone() });
        Some(text)
    }

    /// Says something in the log once in a while.
    fn complain(&self, what: &'static str, error: &io::Error) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unsaid) = complaints.say(what, Instant::now()) {
            tracing::warn!(%error, unsaid, "{what}");
        }
    }
}

/// What a request asks for; `None` if there is more to come.
fn asked(request: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Refused(400, "Bad Request")),
    }
    let path = parsed.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path != "/metrics" {
        return Some(Asked::Refused(404, "Not Found"));
    }
    let only_head = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Some(Asked::Refused(405, "Method Not Allowed")),
    };
    let accepts = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let accepts: Vec<_> =
        accepts.filter_map(|header| std::str::from_utf8(header.value).ok()).collect();
    Some(Asked::Metrics { format: wanted(&accepts.join(",")), only_head })
}

/// The format that is rather wanted than the other, by the header `Accept` of RFC 9110.
fn wanted(accept: &str) -> Exposition {
    let quality = |kinds: &[&str]| -> f64 {
        let all = accept.split(',').filter_map(|one| {
            let mut parts = one.split(';').map(str::trim);
            let kind = parts.next()?;
            if !kinds.iter().any(|wanted| kind.eq_ignore_ascii_case(wanted)) {
                return None;
            }
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            Some(quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
        });
        all.fold(0.0, f64::max)
    };
    let open = quality(&["application/openmetrics-text"]);
    let plain = quality(&["text/plain", "text/*"]);
    if open > 0.0 && open >= plain { Exposition::OpenMetrics } else { Exposition::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_rather_wanted() {
        for (accept, format) in [
            ("", Exposition::Prometheus),
            ("*/*", Exposition::Prometheus),
            ("text/plain", Exposition::Prometheus),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                Exposition::OpenMetrics,
            ),
            ("application/openmetrics-text; q=0.2, text/plain; q=0.9", Exposition::Prometheus),
            ("application/openmetrics-text;q=0", Exposition::Prometheus),
        ] {
            assert_eq!(wanted(accept), format, "{accept}");
        }
    }

    #[test]
    fn requests_are_taken_apart() {
        let get = |format| Some(Asked::Metrics { format, only_head: false });
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: a\r\n"), None);
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), get(Exposition::Prometheus));
        assert_eq!(
            asked(b"GET /metrics?x=1 HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n"),
            get(Exposition::OpenMetrics)
        );
        let only_head = Asked::Metrics { format: Exposition::Prometheus, only_head: true };
        assert_eq!(asked(b"HEAD /metrics HTTP/1.0\r\n\r\n"), Some(only_head));
        let status = |request: &[u8]| match asked(request) {
            Some(Asked::Refused(status, _)) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 404);
        assert_eq!(status(b"POST /metrics HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status(b"\x16\x03\x01\x02\x00"), 400);
    }

    #[test]
    fn addresses_are_as_they_are_written() {
        for text in ["127.0.0.1:9101", "[::1]:0", "unix:/run/metrics.sock"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
        for text in ["", "9101", "localhost:9101", "unix:"] {
            assert!(text.parse::<MetricsAddress>().is_err(), "{text}");
        }
    }
}
