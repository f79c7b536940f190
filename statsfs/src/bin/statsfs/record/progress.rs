//! How far it is, for who looks on.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use statsfs::tools::{in_unit, plain, thousands};
use statsfs::value::Unit;

use super::Recording;

/// One line on a terminal that is written again and again.
pub struct Progress {
    begin: Instant,
    seconds: Option<Duration>,
    is_seen: bool,
}

impl Progress {
    pub fn new(seconds: Option<Duration>) -> Self {
        Self { begin: Instant::now(), seconds, is_seen: io::stderr().is_terminal() }
    }

    pub fn show(&mut self, recording: &Recording<'_>) {
        let of = self.seconds.map(|seconds| format!(" of {}", seconds.as_secs_f64()));
        let how = if of.is_some() { "" } else { ", until Ctrl-C" };
        let time = self.begin.elapsed().as_secs_f64();
        let gap = recording.gap.as_deref().map(|why| format!("; waiting: {why}"));
        let (of, gap) = (of.unwrap_or_default(), gap.unwrap_or_default());
        self.write(&format!("{}, {time:.0}{of} s{how}{gap}", Self::so_far(recording)), "");
    }

    pub fn end(&mut self, recording: &Recording<'_>) {
        let time = self.begin.elapsed().as_secs_f64();
        let (so_far, path) = (Self::so_far(recording), recording.path.display());
        self.write(&format!("{so_far}, {time:.1} s: `statsfs report {path} -o report.html`"), "\n");
    }

    fn so_far(recording: &Recording<'_>) -> String {
        let bytes = in_unit(recording.writer.written().into(), Unit::BYTES);
        format!("{} looks, {bytes}", thousands(recording.looks as i128))
    }

    fn write(&mut self, line: &str, end: &str) {
        if self.is_seen {
            // Who can not be told misses nothing.
            let line = format!("\r\x1b[K{}{end}", plain(line));
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}
