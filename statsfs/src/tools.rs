//! What command-line tools that look at a mount have in common: where that is, numbers for people, columns, and where the
//! output goes.

use std::borrow::Cow;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::export;
use crate::host::DEFAULT_MOUNT;
use crate::snapshot::{ReadError, Snapshot};
use crate::value::Descriptor;

pub use crate::people::{in_unit, per_second, thousands};

/// There is no mount where one is looked for.
#[derive(Debug, Error)]
#[error(
    "no statistics are mounted at {0}: start `statsfs serve`, or say where they are with --mount"
)]
pub struct NoMount(String);

/// Where the statistics are mounted: where the user says, or else `/run/statsfs`, or else `$XDG_RUNTIME_DIR/statsfs`.
///
/// # Errors
/// [`NoMount`] if the user does not say, and nothing is mounted there.
pub fn find_mount(said: Option<&Path>) -> Result<PathBuf, NoMount> {
    if let Some(said) = said {
        return Ok(said.to_owned());
    }
    find(candidates(std::env::var_os("XDG_RUNTIME_DIR")))
}

fn candidates(runtime_dir: Option<OsString>) -> Vec<PathBuf> {
    let own = runtime_dir.filter(|dir| !dir.is_empty()).map(|dir| Path::new(&dir).join("statsfs"));
    [PathBuf::from(DEFAULT_MOUNT)].into_iter().chain(own).collect()
}

fn find(candidates: Vec<PathBuf>) -> Result<PathBuf, NoMount> {
    let look = |dir: &PathBuf| dir.join(".stats").metadata().map_err(|error| error.raw_os_error());
    let is_open = |dir: &&PathBuf| look(dir).is_ok();
    // One that is dead or closed to this user is there all the same: reading it says so.
    let is_there = |dir: &&PathBuf| !matches!(look(dir), Err(Some(libc::ENOENT | libc::ENOTDIR)));
    let found = candidates.iter().find(is_open).or_else(|| candidates.iter().find(is_there));
    if let Some(found) = found {
        return Ok(found.clone());
    }
    let all: Vec<_> = candidates.iter().map(|dir| dir.display().to_string()).collect();
    Err(NoMount(all.join(" or ")))
}

/// How long a server may take to be started again.
const RESTART: Duration = Duration::from_secs(3);

/// Reads a directory of a mount. A server that is just being started again is waited for, some seconds.
///
/// # Errors
/// As [`Snapshot::read`].
pub fn look(dir: &Path) -> Result<Snapshot, ReadError> {
    let end = Instant::now() + RESTART;
    loop {
        match Snapshot::read(dir) {
            Err(ReadError::Restarted(_)) if Instant::now() < end => {
                sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// What a value is, as `.stats/schema` says it.
pub fn describe<'a>(group: &'a str, value: &'a Descriptor) -> impl Serialize + use<'a> {
    export::schema::value(group, value)
}

/// Writes to the standard output, at once. False if nobody reads it any more, which is no error: there is nothing more to do.
///
/// # Errors
/// If it can not be written for any other reason.
pub fn say(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let why = format!("the standard output can not be written: {error}");
            Err(io::Error::new(error.kind(), why))
        }
    }
}

/// Text of others as it can be shown: what would command a terminal or change the direction of the text around it (Unicode's
/// `Bidi_Control`) is U+FFFD, and so is what would begin a line.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(is_command) {
        text.replace(is_command, "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// An error with what it comes from, in one line.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say it themselves.
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

/// Which side of a column its text is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As words are.
    Left,
    /// As numbers are.
    Right,
}

/// Text in columns that are as wide as they must be.
#[derive(Debug)]
pub struct Columns {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// So many columns.
    pub fn new(sides: impl IntoIterator<Item = Side>) -> Self {
        Self { sides: sides.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row, of which each text is made [`plain`].
    pub fn row<T: AsRef<str>>(&mut self, row: impl IntoIterator<Item = T>) {
        self.rows.push(row.into_iter().map(|cell| plain(cell.as_ref()).into_owned()).collect());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows as lines, each after this indent and without blanks at its end.
    pub fn text(&self, indent: &str) -> String {
        let width = |n: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(n));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.sides.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::from(indent);
            for (n, ((cell, side), width)) in row.iter().zip(&self.sides).zip(&widths).enumerate() {
                if n > 0 {
                    line.push_str("  ");
                }
                line += &match side {
                    Side::Left => format!("{cell:<width$}"),
                    Side::Right => format!("{cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_text() {
        let mut columns = Columns::new([Side::Left, Side::Right, Side::Left]);
        columns.row(["NAME", "TIME", ""]);
        columns.row(["a", "12.3 µs", "and"]);
        columns.row(["longer", "1 s", ""]);
        let lines = ["  NAME       TIME", "  a       12.3 µs  and", "  longer      1 s", ""];
        assert_eq!(columns.text("  "), lines.join("\n"));
        assert_eq!(columns.len(), 3);
    }

    #[test]
    fn what_is_shown_commands_nobody() {
        let bidi = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}";
        let evil = format!("a\u{1b}[31m\u{9b}\n\u{2028}{bidi}\u{2029}z");
        assert_eq!(plain(&evil), format!("a\u{fffd}[31m{}z", "\u{fffd}".repeat(11)));
        assert!(matches!(plain("ä שלום 日本 µs"), Cow::Borrowed("ä שלום 日本 µs")));
        let mut columns = Columns::new([Side::Left, Side::Left]);
        columns.row([&*evil, "next"]);
        assert_eq!(columns.text(""), format!("{}  next\n", plain(&evil)));
    }

    #[test]
    fn the_mount_is_the_first_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let error = find(vec![one.clone(), two.clone()]).unwrap_err().to_string();
        assert!(error.contains(&format!("{} or {}:", one.display(), two.display())), "{error}");
        std::fs::create_dir_all(two.join(".stats")).unwrap();
        assert_eq!(find(vec![one.clone(), two.clone()]).unwrap(), two);
        std::fs::create_dir_all(one.join(".stats")).unwrap();
        assert_eq!(find(vec![one.clone(), two]).unwrap(), one);
        assert_eq!(find_mount(Some(&one.join("x"))).unwrap(), one.join("x"));
        let usual = PathBuf::from(DEFAULT_MOUNT);
        assert_eq!(candidates(Some("".into())).len(), 1);
        assert_eq!(candidates(Some("/r".into())), [usual, "/r/statsfs".into()]);
    }
}
