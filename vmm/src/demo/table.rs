//! The demo's table: text, and how to repaint it in place on a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use super::sample::{REASONS, Row};

/// Renders rows as aligned text, a line each, the header first.
pub fn render(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::with_capacity(rows.len() + 1);
    let mut header = format!("{:<8} {:>4} {:>9} {:>11}", "GUEST", "VCPU", "EXITS/S", "EXITS");
    for reason in REASONS {
        write!(header, " {:>10}", reason.to_uppercase()).expect("writing to a string");
    }
    write!(header, " {:>8} {:>9} {:>9}", "OTHER", "MEAN", "P99").expect("writing to a string");
    lines.push(header);
    for row in rows {
        let sample = &row.sample;
        let mut line =
            format!("{:<8} {:>4} {:>9.0} {:>11}", row.guest, row.vcpu, row.rate, sample.exits);
        for count in sample.by_reason {
            write!(line, " {count:>10}").expect("writing to a string");
        }
        write!(
            line,
            " {:>8} {:>9} {:>9}",
            sample.others(),
            duration(sample.mean_ns),
            duration(sample.p99_ns)
        )
        .expect("writing to a string");
        lines.push(line);
    }
    lines
}

/// A time of so many nanoseconds for people.
fn duration(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.1} s", value / 1e9),
    }
}

/// Shows tables on standard output: in place of each other on a terminal, one after the other elsewhere.
pub struct Display {
    terminal: bool,
    /// Lines shown that the next table takes the place of.
    shown: usize,
}

impl Display {
    /// For the standard output as it is.
    pub fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), shown: 0 }
    }

    /// Shows a table.
    ///
    /// # Errors
    /// What writing says.
    pub fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let size = self.terminal.then(terminal_size).flatten();
        let text = self.paint(lines, size);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn paint(&mut self, lines: &[String], size: Option<(usize, usize)>) -> String {
        let mut text = String::new();
        if !self.terminal {
            lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
            text.push('\n');
            return text;
        }
        if self.shown > 0 {
            // To the first line shown, and clear from there on.
            write!(text, "\x1b[{}A\x1b[J", self.shown).expect("writing to a string");
        }
        let (columns, rows) = size.unwrap_or((80, 24));
        // Lines that wrap, or scroll off the top, could not be repainted.
        let room = rows.saturating_sub(1).max(2);
        let fits = if lines.len() <= room { lines.len() } else { room - 1 };
        for line in &lines[..fits] {
            text.extend(line.chars().take(columns.max(1)));
            text.push('\n');
        }
        self.shown = fits;
        if fits < lines.len() {
            let more = format!("... {} more: make the terminal taller", lines.len() - fits);
            text.extend(more.chars().take(columns.max(1)));
            text.push('\n');
            self.shown += 1;
        }
        text
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

/// Columns and rows of the terminal on standard output.
fn terminal_size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request fills a `winsize`, which is valid for it.
    let asked = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (asked == 0 && size.ws_col > 0 && size.ws_row > 0)
        .then_some((size.ws_col.into(), size.ws_row.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::sample::Sample;

    fn rows(n: usize) -> Vec<Row> {
        let sample =
            Sample { exits: 100, by_reason: [1, 2, 3, 4, 5], mean_ns: 950, p99_ns: 12_345 };
        let row =
            |i: usize| Row { guest: "demo0".into(), vcpu: i.to_string(), sample, rate: 1234.5 };
        (0..n).map(row).collect()
    }

    #[test]
    fn columns_are_aligned_and_complete() {
        let lines = render(&rows(2));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{lines:#?}");
        for column in ["GUEST", "EXITS/S", "IO_IN", "MMIO_WRITE", "HLT", "OTHER", "MEAN", "P99"] {
            assert!(lines[0].contains(column));
        }
        assert!(lines[1].ends_with("      85    950 ns   12.3 us"), "{}", lines[1]);
    }

    #[test]
    fn without_a_terminal_there_are_no_control_codes() {
        let mut display = Display { terminal: false, shown: 0 };
        for _ in 0..2 {
            let text = display.paint(&render(&rows(3)), None);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert_eq!(text.lines().count(), 5);
        }
    }

    #[test]
    fn a_terminal_is_repainted_in_place_and_never_overflows() {
        let mut display = Display { terminal: true, shown: 0 };
        let lines = render(&rows(10));
        let first = display.paint(&lines, Some((40, 24)));
        assert!(!first.contains('\x1b'));
        assert!(first.lines().all(|line| line.chars().count() <= 40));
        let second = display.paint(&lines, Some((40, 8)));
        assert!(second.starts_with("\x1b[11A\x1b[J"), "{second:?}");
        assert_eq!(second.lines().count(), 7);
        assert!(second.contains("5 more"), "{second}");
        assert!(display.paint(&lines, None).starts_with("\x1b[7A\x1b[J"));
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.0 us"),
            (2_500_000, "2.5 ms"),
            (3_000_000_000, "3.0 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
