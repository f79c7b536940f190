//! The demo's table: text, and how to repaint it in place on a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use super::sample::{REASONS, Row};

/// How wide a table may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// As wide as exact numbers need.
    Full,
    /// At most so many columns: large numbers are rounded, and what does not fit is left out whole.
    Narrow(usize),
}

/// Columns that a full table needs.
const FULL: usize = 117;

/// Renders rows as aligned text, a line each, the header first.
pub fn render(rows: &[Row], width: Width) -> Vec<String> {
    let narrow = width != Width::Full;
    let names: [&str; REASONS.len()] = if narrow {
        ["IN", "OUT", "MMIOR", "MMIOW", "HLT"]
    } else {
        ["IO_IN", "IO_OUT", "MMIO_READ", "MMIO_WRITE", "HLT"]
    };
    let count = |n: u64| if narrow { rounded(n) } else { n.to_string() };
    // The widths of the exits, of the times and of the other counts.
    let (all, time, each) = if narrow { (8, 7, 5) } else { (11, 9, 10) };
    let line =
        |guest: &str, vcpu: &str, rate: &str, exits: &str, times: [&str; 2], parts: &[String]| {
            let mut line = format!("{guest:<6}{vcpu:>4} {rate:>7} {exits:>all$}");
            let times = times.into_iter().map(|text| format!(" {text:>time$}"));
            let parts = parts.iter().map(|text| format!(" {text:>each$}"));
            for cell in times.chain(parts) {
                // A number that is cut off would be another number.
                if matches!(width, Width::Narrow(most) if line.len() + cell.len() > most) {
                    break;
                }
                line.push_str(&cell);
            }
            line
        };
    let header: Vec<_> = names.into_iter().chain(["OTHER"]).map(str::to_string).collect();
    let mut lines = vec![line("GUEST", "VCPU", "EXITS/S", "EXITS", ["MEAN", "P99"], &header)];
    lines.extend(rows.iter().map(|row| {
        let sample = &row.sample;
        let parts: Vec<_> =
            sample.by_reason.into_iter().chain([sample.others()]).map(count).collect();
        line(
            &row.guest,
            &row.vcpu,
            &format!("{:.0}", row.rate),
            &count(sample.exits),
            [&duration(sample.mean_ns), &duration(sample.p99_ns)],
            &parts,
        )
    }));
    lines
}

/// A count in at most five characters.
fn rounded(n: u64) -> String {
    const UNITS: [(u64, char); 6] = [
        (10_u64.pow(18), 'E'),
        (10_u64.pow(15), 'P'),
        (10_u64.pow(12), 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
        (1_000, 'k'),
    ];
    if n < 100_000 {
        return n.to_string();
    }
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| n >= *unit).unwrap_or((1, ' '));
    let (whole, tenth) = (n / unit, n % unit / (unit / 10).max(1));
    if whole < 100 { format!("{whole}.{tenth}{name}") } else { format!("{whole}{name}") }
}

/// A time of so many nanoseconds for people.
fn duration(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{:.1}us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}ms", value / 1e6),
        _ => format!("{:.1}s", value / 1e9),
    }
}

/// Shows tables on standard output: in place of each other on a terminal, one after the other elsewhere.
pub struct Display {
    terminal: bool,
    /// Lines shown that the next table takes the place of.
    shown: usize,
    /// The terminal's columns when they were shown: lines may have been wrapped since.
    columns: usize,
}

impl Display {
    /// For the standard output as it is.
    pub fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), shown: 0, columns: 0 }
    }

    /// Shows a table.
    ///
    /// # Errors
    /// What writing says.
    pub fn show(&mut self, rows: &[Row]) -> io::Result<()> {
        let size = self.terminal.then(terminal_size).flatten();
        let text = self.paint(&render(rows, self.width(size)), size);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The width for tables on this terminal; elsewhere nothing limits it.
    pub fn width_now(&self) -> Width {
        self.width(self.terminal.then(terminal_size).flatten())
    }

    fn width(&self, size: Option<(usize, usize)>) -> Width {
        match size {
            Some((columns, _)) if columns >= FULL => Width::Full,
            _ if !self.terminal => Width::Full,
            size => Width::Narrow(size.map_or(80, |(columns, _)| columns)),
        }
    }

    fn paint(&mut self, lines: &[String], size: Option<(usize, usize)>) -> String {
        let mut text = String::new();
        if !self.terminal {
            lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
            text.push('\n');
            return text;
        }
        let (columns, rows) = size.unwrap_or((80, 24));
        if self.shown > 0 && self.columns == columns {
            // To the first line shown, and clear from there on.
            write!(text, "\x1b[{}A\x1b[J", self.shown).expect("writing to a string");
        } else if self.shown > 0 {
            // Nobody knows where that is now: the whole screen.
            text.push_str("\x1b[2J\x1b[H");
        }
        self.columns = columns;
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
    fn columns_are_aligned_complete_and_fit() {
        for (width, most) in [(Width::Full, FULL), (Width::Narrow(80), 80)] {
            let lines = render(&rows(2), width);
            assert_eq!(lines.len(), 3);
            assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{lines:#?}");
            assert!(lines[0].len() <= most, "{}", lines[0].len());
            for column in ["GUEST", "EXITS/S", "MEAN", "P99", "IN ", "OUT ", "HLT", "OTHER"] {
                assert!(lines[0].contains(column), "{column}");
            }
            assert!(lines[1].contains(" 100 ") && lines[1].ends_with(" 85"), "{}", lines[1]);
            assert!(lines[1].contains("950ns") && lines[1].contains("12.3us"), "{}", lines[1]);
        }
    }

    #[test]
    fn rounded_counts_have_at_most_five_characters() {
        for (n, text) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_250_000, "1.2M"),
            (99_990_000, "99.9M"),
            (123_456_789, "123M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(rounded(n), text);
        }
    }

    #[test]
    fn without_a_terminal_there_are_no_control_codes() {
        let mut display = Display { terminal: false, shown: 0, columns: 0 };
        for _ in 0..2 {
            let text = display.paint(&render(&rows(3), Width::Full), None);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert_eq!(text.lines().count(), 5);
        }
    }

    #[test]
    fn a_terminal_is_repainted_in_place_and_never_overflows() {
        let mut display = Display { terminal: true, shown: 0, columns: 0 };
        let lines = render(&rows(10), Width::Full);
        let first = display.paint(&lines, Some((40, 24)));
        assert!(!first.contains('\x1b'));
        assert!(first.lines().all(|line| line.chars().count() <= 40));
        let second = display.paint(&lines, Some((40, 8)));
        assert!(second.starts_with("\x1b[11A\x1b[J"), "{second:?}");
        assert_eq!(second.lines().count(), 7);
        assert!(second.contains("5 more"), "{second}");
        assert!(display.paint(&lines, Some((40, 24))).starts_with("\x1b[7A\x1b[J"));
        // After a change of width nobody knows where the lines are.
        assert!(display.paint(&lines, None).starts_with("\x1b[2J\x1b[H"));
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole() {
        let whole = render(&rows(1), Width::Narrow(80));
        for most in 0..80 {
            let lines = render(&rows(1), Width::Narrow(most));
            assert_eq!(lines[0].len(), lines[1].len());
            assert!(lines[1].len() <= most.max(28), "{lines:#?}");
            assert!(whole[1].starts_with(&lines[1]));
            let rest = &whole[1][lines[1].len()..];
            assert!(rest.is_empty() || rest.starts_with(' '), "{rest:?} is left of {lines:#?}");
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.0us"),
            (2_500_000, "2.5ms"),
            (3_000_000_000, "3.0s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
