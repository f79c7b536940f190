//! Rows and columns of text, in the order that the user wants.

use statsfs::snapshot::DirIdentity;
use statsfs::tools::{Side, in_unit, per_second, thousands};
use statsfs::value::{BaseUnit, Unit};

use super::model::{Device, Field, Reason, Row};
use super::select::Pattern;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    pub title: &'static str,
    pub side: Side,
    /// Where there is no room, those go first whose number is the highest; those of 0 stay.
    pub spare: u8,
    /// Shown as small bars of what it was.
    pub is_graph: bool,
}

const fn head(title: &'static str, side: Side, spare: u8) -> Head {
    Head { title, side, spare, is_graph: false }
}

/// How a cell is told from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    /// A name.
    Name,
    /// Nothing, or not known.
    Quiet,
    Guest,
    User,
    Halt,
    Steal,
    /// Something is wrong.
    Bad,
}

/// What is in a row and a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
    key: Key,
}

/// By what cells are sorted: what is not known comes after everything else.
#[derive(Clone, Debug, PartialEq)]
enum Key {
    Unknown,
    Number(f64),
    Text(String),
}

impl Cell {
    fn number(key: f64, text: String) -> Self {
        let tone = if key == 0.0 { Tone::Quiet } else { Tone::Plain };
        Self { text, tone, key: Key::Number(key) }
    }

    fn maybe<T: Copy>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self { text: "-".into(), tone: Tone::Quiet, key: Key::Unknown }, cell)
    }

    fn name(text: &str) -> Self {
        Self { text: text.to_owned(), tone: Tone::Name, key: Key::Text(text.to_owned()) }
    }

    fn word(text: &str) -> Self {
        Self { tone: Tone::Plain, ..Self::name(text) }
    }

    fn count(value: Option<u64>) -> Self {
        Self::maybe(value, |n| Self::number(n as f64, thousands(n.into())))
    }

    fn whole(value: Option<i128>) -> Self {
        Self::maybe(value, |n| Self::number(n as f64, n.to_string()))
    }

    fn rate(value: Option<f64>) -> Self {
        Self::maybe(value, |rate| Self::number(rate, rate_of(rate, Unit::NONE)))
    }

    fn bytes(value: Option<f64>) -> Self {
        Self::maybe(value, |rate| Self::number(rate, short_bytes(rate)))
    }

    fn time(value: Option<u64>) -> Self {
        Self::maybe(value, |ns| Self::number(ns as f64, in_unit(ns.into(), Unit::NANOSECONDS)))
    }

    fn percent(value: Option<f64>, tone: Tone) -> Self {
        Self::maybe(value, |part| {
            let cell = Self::number(part, percent(part));
            Self { tone: if cell.text == "0" { Tone::Quiet } else { tone }, ..cell }
        })
    }
}

/// So much a second, without saying so.
fn rate_of(rate: f64, unit: Unit) -> String {
    let text = per_second(rate, unit);
    text.strip_suffix("/s").map(str::to_owned).unwrap_or(text)
}

/// Of a whole, a part in hundredths.
pub fn percent(part: f64) -> String {
    let percent = part * 100.0;
    match percent {
        p if p < 0.05 => "0".into(),
        p if p < 9.95 => format!("{p:.1}"),
        p => format!("{p:.0}"),
    }
}

/// Bytes in four or five characters: `1.2M`.
pub fn short_bytes(bytes: f64) -> String {
    let text = in_unit(bytes.round() as i128, Unit::BYTES);
    match text.split_once(' ') {
        Some((number, "B")) => number.to_owned(),
        Some((number, unit)) => format!("{number}{}", &unit[..1]),
        None => text,
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is of.
    pub id: LineId,
    pub cells: Vec<Cell>,
    /// Numbers of which a column shows the last.
    pub graph: Vec<f32>,
    /// Whether nothing happened.
    pub is_zero: bool,
    /// What a filter looks at.
    name: String,
}

/// What a row is of, from look to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineId {
    /// A directory, and its path.
    Dir(DirIdentity, String),
    /// A name among others.
    Name(String),
}

/// What order rows are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub column: usize,
    pub is_reversed: bool,
}

/// Rows in columns.
#[derive(Clone, Debug)]
pub struct Grid {
    pub heads: Vec<Head>,
    pub lines: Vec<Line>,
    /// How many there are beside these, which a filter left out.
    pub hidden: usize,
}

impl Grid {
    /// Which of these columns is left out first where there is no room for all; none if all are needed.
    pub fn first_to_go(&self, columns: &[usize]) -> Option<usize> {
        let most = columns.iter().copied().max_by_key(|n| (self.heads[*n].spare, *n))?;
        (self.heads[most].spare > 0).then_some(most)
    }

    /// Leaves only rows of such names, and only those where something happened.
    pub fn keep(&mut self, filter: Option<&Pattern>, skip_zero: bool) {
        let before = self.lines.len();
        let is_kept = |line: &Line| {
            filter.is_none_or(|filter| filter.is_in(&line.name)) && !(skip_zero && line.is_zero)
        };
        self.lines.retain(is_kept);
        self.hidden += before - self.lines.len();
    }

    /// Sorts the rows: numbers the largest first, words as in a dictionary.
    pub fn sort(&mut self, order: Order) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let compare = |a: &Cell, b: &Cell| {
            let ordering = match (&a.key, &b.key) {
                (Key::Unknown, Key::Unknown) => Equal,
                // Whatever the order is.
                (Key::Unknown, _) => return Greater,
                (_, Key::Unknown) => return Less,
                (Key::Number(a), Key::Number(b)) => b.total_cmp(a),
                (Key::Text(a), Key::Text(b)) => natural(a).cmp(&natural(b)),
                (Key::Number(_), Key::Text(_)) => Less,
                (Key::Text(_), Key::Number(_)) => Greater,
            };
            if order.is_reversed { ordering.reverse() } else { ordering }
        };
        let names = |line: &Line| natural(&line.name);
        self.lines.sort_by(|a, b| {
            let cells = a.cells.get(order.column).zip(b.cells.get(order.column));
            cells.map_or(Equal, |(a, b)| compare(a, b)).then_with(|| names(a).cmp(&names(b)))
        });
    }
}

/// Text by which `vcpu10` comes after `vcpu9`.
fn natural(text: &str) -> (String, u64) {
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (name, number) = text.split_at(text.len() - digits);
    (name.to_lowercase(), number.parse().unwrap_or(0))
}

/// Guests, or vCPUs.
pub fn rows(rows: &[Row], is_vcpus: bool) -> Grid {
    let name = if is_vcpus { "VCPU" } else { "GUEST" };
    let mut heads = vec![head(name, Side::Left, 0)];
    if is_vcpus {
        heads.push(head("THREAD", Side::Right, 2));
    } else {
        heads.extend([head("PID", Side::Right, 2), head("VCPUS", Side::Right, 2)]);
    }
    heads.extend([
        head("EXITS/S", Side::Right, 0),
        head("GUEST%", Side::Right, 0),
        head("USER%", Side::Right, 0),
        head("HALT%", Side::Right, 0),
        head("STEAL%", Side::Right, 0),
        head("P50", Side::Right, 1),
        head("P99", Side::Right, 1),
    ]);
    if !is_vcpus {
        heads.extend([
            head("IO/S", Side::Right, 1),
            head("READ/S", Side::Right, 5),
            head("WRITE/S", Side::Right, 5),
            head("RX/S", Side::Right, 6),
            head("TX/S", Side::Right, 6),
        ]);
    }
    heads.extend([
        head("TOTAL", Side::Right, 8),
        head("KVM/S", Side::Right, 7),
        head("MOST", Side::Left, 3),
        Head { is_graph: true, ..head("LAST", Side::Left, 4) },
    ]);
    let line = |row: &Row| {
        let mut cells = vec![Cell::name(&row.name)];
        if is_vcpus {
            cells.push(Cell::whole(row.thread));
        } else {
            cells.extend([Cell::whole(row.pid.map(Into::into)), Cell::whole(row.vcpus)]);
        }
        let share = |part: fn(&super::model::Shares) -> f64| row.shares.as_ref().map(part);
        cells.extend([
            Cell::rate(row.exits),
            Cell::percent(share(|shares| shares.guest), Tone::Guest),
            Cell::percent(share(|shares| shares.user), Tone::User),
            Cell::percent(share(|shares| shares.halt), Tone::Halt),
            Cell::percent(row.shares.and_then(|shares| shares.steal), Tone::Steal),
            Cell::time(row.p50),
            Cell::time(row.p99),
        ]);
        if !is_vcpus {
            let io = &row.io;
            let all = [io.read, io.written, io.received, io.sent];
            let any = all.iter().any(Option::is_some).then(|| io.all());
            cells.push(Cell::bytes(any));
            cells.extend(all.map(Cell::bytes));
        }
        let reason = row.reason.as_ref();
        cells.extend([
            Cell::count(row.total),
            Cell::rate(row.kvm_exits),
            Cell::maybe(reason, |(name, part)| Cell::word(&format!("{name} {}%", percent(*part)))),
            Cell::number(0.0, String::new()),
        ]);
        Line {
            id: LineId::Dir(row.id, row.path.clone()),
            cells,
            graph: row.recent.clone(),
            is_zero: row.is_idle(),
            name: row.name.clone(),
        }
    };
    Grid { heads, lines: rows.iter().map(line).collect(), hidden: 0 }
}

/// Devices.
pub fn devices(devices: &[Device]) -> Grid {
    let heads = vec![
        head("DEVICE", Side::Left, 0),
        head("OPS/S", Side::Right, 0),
        head("TO GUEST/S", Side::Right, 0),
        head("FROM GUEST/S", Side::Right, 0),
        head("IRQ/S", Side::Right, 1),
        head("ERRORS/S", Side::Right, 1),
        head("TIME%", Side::Right, 2),
        head("P50", Side::Right, 1),
        head("P99", Side::Right, 1),
    ];
    let line = |device: &Device| {
        let errors = Cell::rate(device.errors);
        let is_bad = device.errors.is_some_and(|rate| rate > 0.0);
        let cells = vec![
            Cell::name(&device.name),
            Cell::rate(device.operations),
            Cell::bytes(device.to_guest),
            Cell::bytes(device.from_guest),
            Cell::rate(device.interrupts),
            Cell { tone: if is_bad { Tone::Bad } else { errors.tone }, ..errors },
            Cell::percent(device.time.map(|ns| ns / 1e9), Tone::User),
            Cell::time(device.p50),
            Cell::time(device.p99),
        ];
        let rates = [device.operations, device.to_guest, device.from_guest, device.interrupts];
        Line {
            id: LineId::Dir(device.id, device.path.clone()),
            cells,
            graph: Vec::new(),
            is_zero: rates.iter().flatten().all(|rate| *rate == 0.0),
            name: device.name.clone(),
        }
    };
    Grid { heads, lines: devices.iter().map(line).collect(), hidden: 0 }
}

/// Reasons of exits.
pub fn reasons(reasons: &[Reason]) -> Grid {
    let heads = vec![
        head("REASON", Side::Left, 0),
        head("TOTAL", Side::Right, 0),
        head("EXITS/S", Side::Right, 0),
        head("EXITS%", Side::Right, 0),
        head("TIME", Side::Right, 2),
        head("TIME%", Side::Right, 0),
        head("MEAN", Side::Right, 1),
        head("P50", Side::Right, 0),
        head("P99", Side::Right, 0),
    ];
    let line = |reason: &Reason| Line {
        id: LineId::Name(reason.name.clone()),
        cells: vec![
            Cell::name(&reason.name),
            Cell::count(reason.total),
            Cell::rate(reason.rate),
            Cell::percent(reason.part, Tone::Plain),
            Cell::time(reason.time),
            Cell::percent(reason.time_part, Tone::User),
            Cell::time(reason.mean),
            Cell::time(reason.p50),
            Cell::time(reason.p99),
        ],
        graph: Vec::new(),
        is_zero: reason.rate.is_none_or(|rate| rate == 0.0),
        name: reason.name.clone(),
    };
    Grid { heads, lines: reasons.iter().map(line).collect(), hidden: 0 }
}

/// All values of a directory.
pub fn fields(fields: &[Field]) -> Grid {
    let heads = vec![
        head("VALUE", Side::Left, 0),
        head("TOTAL", Side::Right, 0),
        head("RATE/S", Side::Right, 0),
        head("P50", Side::Right, 1),
        head("P99", Side::Right, 1),
        head("WHAT", Side::Left, 2),
    ];
    let lines = fields.iter().map(field).collect();
    Grid { heads, lines, hidden: 0 }
}

fn field(field: &Field) -> Line {
    let number = Cell::maybe(field.number, |n| {
        let text = match field.unit.base {
            BaseUnit::None if !field.is_count => field.text.clone(),
            _ => in_unit(n, field.unit),
        };
        Cell::number(n as f64, text)
    });
    let percentile = |n: usize| {
        Cell::maybe(field.percentiles.zip(field.recorded), |(both, unit)| {
            Cell::number(both[n] as f64, in_unit(both[n].into(), unit))
        })
    };
    let rate = Cell::maybe(field.rate, |rate| Cell::number(rate, rate_of(rate, field.unit)));
    let help = Cell { tone: Tone::Quiet, ..Cell::word(&field.help) };
    Line {
        id: LineId::Name(field.name.clone()),
        cells: vec![Cell::name(&field.name), number, rate, percentile(0), percentile(1), help],
        graph: Vec::new(),
        is_zero: field.number.is_none_or(|n| n == 0) && field.rate.is_none_or(|rate| rate == 0.0),
        name: field.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, number: Option<f64>) -> Line {
        Line {
            id: LineId::Name(name.into()),
            cells: vec![Cell::name(name), Cell::rate(number)],
            graph: Vec::new(),
            is_zero: number.is_none_or(|number| number == 0.0),
            name: name.into(),
        }
    }

    fn grid() -> Grid {
        let heads = vec![head("NAME", Side::Left, 0), head("RATE", Side::Right, 0)];
        let lines =
            [("web10", Some(1.0)), ("web9", Some(250.0)), ("db", None), ("Web1", Some(0.0))];
        let lines = lines.into_iter().map(|(name, number)| line(name, number)).collect();
        Grid { heads, lines, hidden: 0 }
    }

    fn names(grid: &Grid) -> Vec<&str> {
        grid.lines.iter().map(|line| line.name.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_as_people_expect() {
        let mut grid = grid();
        for (column, is_reversed, expected) in [
            (0, false, ["db", "Web1", "web9", "web10"]),
            (0, true, ["web10", "web9", "Web1", "db"]),
            // The most first; what is not known last, whatever the order is.
            (1, false, ["web9", "web10", "Web1", "db"]),
            (1, true, ["Web1", "web10", "web9", "db"]),
            (7, false, ["db", "Web1", "web9", "web10"]),
        ] {
            grid.sort(Order { column, is_reversed });
            assert_eq!(names(&grid), expected, "{column} {is_reversed}");
        }
    }

    #[test]
    fn rows_are_left_out_by_name_and_where_nothing_happened() {
        for (filter, skip_zero, expected, hidden) in [
            ("", false, &["web10", "web9", "db", "Web1"][..], 0),
            ("web", false, &["web10", "web9", "Web1"], 1),
            ("^web\\d$", true, &["web9"], 3),
            // No regular expression yet.
            ("web(", false, &[], 4),
        ] {
            let mut grid = grid();
            grid.keep(Pattern::typed(filter).as_ref(), skip_zero);
            assert_eq!((&*names(&grid), grid.hidden), (expected, hidden), "{filter}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let parts = [0.0, 0.0001, 0.001, 0.0949, 0.0995, 0.5, 1.0].map(percent);
        assert_eq!(parts, ["0", "0", "0.1", "9.5", "10", "50", "100"]);
        let sizes = [0.0, 1023.0, 1024.0, 1.5e6, 3e12].map(short_bytes);
        assert_eq!(sizes, ["0", "1023", "1K", "1.43M", "2.73T"]);
    }
}
