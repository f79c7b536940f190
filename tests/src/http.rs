//! Asks for what is served over HTTP.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Of what type its text is.
    pub kind: String,
    /// The text.
    pub text: String,
}

/// How long one that answers may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Asks for a URL in the format that is accepted.
///
/// # Panics
/// If there is no answer.
pub fn ask(url: &str, accept: &str) -> Answer {
    try_ask(url, accept).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// As [`ask`], and says why there is no answer.
///
/// # Errors
/// If nobody answers, or what is answered is not HTTP.
///
/// # Panics
/// If the URL is none of a host, a port and a path.
pub fn try_ask(url: &str, accept: &str) -> io::Result<Answer> {
    let of = url.strip_prefix("http://").and_then(|url| url.split_at_checked(url.find('/')?));
    let (address, path) = of.expect("http://ADDRESS:PORT/PATH");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE))?;
    // Of this version the text is all that comes until the connection ends, and not in pieces.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parsed = || {
        let (head, text) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let field = |name: &str| {
            fields.clone().find(|(is, _)| is.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        // Of one that was cut off there would be a part.
        let length = field("content-length").map_or(Some(text.len()), |n| n.parse().ok())?;
        let kind = field("content-type").unwrap_or_default().to_owned();
        (text.len() == length).then(|| Answer { status, kind, text: text.to_owned() })
    };
    parsed().ok_or_else(|| io::Error::other(format!("this is no answer: {answer:?}")))
}
