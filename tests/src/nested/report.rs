//! What the host tells the machine outside while it runs tests: lines, and files among them, over a serial
//! port that nothing else writes to.
//!
//! | message | meaning |
//! |---|---|
//! | `up SECONDS` | the host is up, so long after its kernel began |
//! | `alive` | it still is |
//! | `begin TEST` | the test was started |
//! | `line TEXT` | for the terminal |
//! | `file NAME SIZE` | that many bytes follow, to be kept under this name; slashes separate directories |
//! | `end TEST OUTCOME MILLISECONDS` | the test has ended: `ok`, `failed` or `timeout` |
//! | `done` | there is no more; the host powers off |

use std::io::{self, BufRead, Write};
use std::time::Duration;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not end in time, and was killed.
    TimedOut,
}

impl Outcome {
    const ALL: [(Outcome, &str); 3] =
        [(Outcome::Passed, "ok"), (Outcome::Failed, "failed"), (Outcome::TimedOut, "timeout")];
}

/// A message of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The host is up.
    Up(Duration),
    /// It still is.
    Alive,
    /// A test was started.
    Begin(String),
    /// A line for the terminal.
    Line(String),
    /// A file to be kept.
    File(String, Vec<u8>),
    /// A test has ended.
    End(String, Outcome, Duration),
    /// All have.
    Done,
}

/// Larger files are cut at their beginning.
pub const MAX_FILE: usize = 4 << 20;

impl Message {
    /// Sends it.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn send(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = match self {
            Self::Up(uptime) => format!("up {:.2}\n", uptime.as_secs_f64()),
            Self::Alive => "alive\n".to_string(),
            Self::Begin(test) => format!("begin {test}\n"),
            Self::Line(text) => format!("line {}\n", text.replace('\n', " ")),
            Self::File(name, bytes) => format!("file {name} {}\n", bytes.len()),
            Self::End(test, outcome, took) => {
                let outcome =
                    Outcome::ALL.iter().find(|(is, _)| is == outcome).expect("one of all");
                format!("end {test} {} {}\n", outcome.1, took.as_millis())
            }
            Self::Done => "done\n".to_string(),
        }
        .into_bytes();
        if let Self::File(_, contents) = self {
            bytes.extend_from_slice(contents);
        }
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Receives one. `None` at the end.
    ///
    /// # Errors
    /// If it can not be read, or is none.
    pub fn receive(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let wrong = || io::Error::other(format!("the host said {line:?}"));
        let text = line.strip_suffix('\n').ok_or_else(wrong)?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let message = match word {
            "up" => Self::Up(Duration::from_secs_f64(rest.parse().map_err(|_| wrong())?)),
            "alive" => Self::Alive,
            "begin" => Self::Begin(rest.to_string()),
            "line" => Self::Line(rest.to_string()),
            "file" => {
                let (name, size) = rest.rsplit_once(' ').ok_or_else(wrong)?;
                let size = size.parse().ok().filter(|size| *size <= MAX_FILE).ok_or_else(wrong)?;
                let mut bytes = vec![0; size];
                from.read_exact(&mut bytes)?;
                Self::File(name.to_string(), bytes)
            }
            "end" => {
                let mut words = rest.rsplitn(3, ' ');
                let took = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
                let outcome = words.next().ok_or_else(wrong)?;
                let outcome = Outcome::ALL.iter().find(|(_, name)| *name == outcome);
                let test = words.next().ok_or_else(wrong)?;
                let outcome = outcome.ok_or_else(wrong)?.0;
                Self::End(test.to_string(), outcome, Duration::from_millis(took))
            }
            "done" => Self::Done,
            _ => return Err(wrong()),
        };
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let mut messages = vec![
            Message::Up(Duration::from_millis(5020)),
            Message::Alive,
            Message::Begin("tests::exact::one".into()),
            Message::Line("a table  with columns".into()),
            Message::File("tests::exact::one/output".into(), b"end x ok 1\nno message\n".to_vec()),
            Message::File("empty".into(), vec![]),
            Message::Done,
        ];
        for (outcome, _) in Outcome::ALL {
            messages.push(Message::End("a::b".into(), outcome, Duration::from_millis(17)));
        }
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.send(&mut bytes).unwrap());
        let mut from = &bytes[..];
        for message in messages {
            assert_eq!(Message::receive(&mut from).unwrap(), Some(message));
        }
        assert_eq!(Message::receive(&mut from).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for text in
            ["up soon\n", "end a ok\n", "end a good 5\n", "file x 9\nshort", "what\n", "alive"]
        {
            assert!(Message::receive(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
