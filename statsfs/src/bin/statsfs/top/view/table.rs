//! Rows and columns on the screen.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use statsfs::tools::{Side, plain};
use unicode_width::UnicodeWidthStr;

use super::super::grid::{Grid, Head, Line, Order};
use super::{Theme, put};

/// Columns of a graph.
const GRAPH: usize = 16;
/// Narrower than this a text that can be cut is not shown at all.
const LEAST: usize = 8;

/// A column that is shown: which, where it begins, and how wide it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    column: usize,
    at: usize,
    width: usize,
}

/// Columns between two.
fn gap(width: usize) -> usize {
    if width < 100 { 1 } else { 2 }
}

/// Those columns for which there is room.
fn fit(grid: &Grid, width: usize) -> Vec<Shown> {
    let natural = |(n, head): (usize, &Head)| {
        if head.is_graph {
            return GRAPH;
        }
        let cells = grid.lines.iter().filter_map(|line| line.cells.get(n));
        let widest = cells.map(|cell| cell.text.width()).max().unwrap_or(0);
        // And the sign of the order.
        widest.max(head.title.width() + 1)
    };
    let natural: Vec<_> = grid.heads.iter().enumerate().map(natural).collect();
    let mut widths = natural.clone();
    // Names may be longer than all the rest, and so may the last text.
    if let Some(name) = widths.first_mut() {
        *name = (*name).min((width * 3 / 10).max(16));
    }
    let last = widths.len().saturating_sub(1);
    let is_text = |n: usize| n > 0 && n == last && grid.heads[n].side == Side::Left;
    if last > 0 && is_text(last) && !grid.heads[last].is_graph {
        widths[last] = widths[last].min(LEAST);
    }
    let mut columns: Vec<_> = (0..widths.len()).collect();
    let gap = gap(width);
    let needed = |columns: &[usize], widths: &[usize]| {
        columns.iter().map(|n| widths[*n] + gap).sum::<usize>().saturating_sub(gap)
    };
    while needed(&columns, &widths) > width {
        let Some(most) = grid.first_to_go(&columns) else { break };
        columns.retain(|n| *n != most);
    }
    let over = needed(&columns, &widths).saturating_sub(width);
    if let Some(name) = widths.first_mut() {
        *name = name.saturating_sub(over).max(LEAST.min(*name));
    }
    // Those that were cut get what is left.
    for n in [0, last] {
        let left = width.saturating_sub(needed(&columns, &widths));
        if columns.contains(&n) {
            widths[n] += left.min(natural[n].saturating_sub(widths[n]));
        }
    }
    let mut at = 0;
    let place = |column: usize| {
        let shown = Shown { column, at, width: widths[column].min(width.saturating_sub(at)) };
        at += widths[column] + gap;
        shown
    };
    columns.into_iter().map(place).filter(|shown| shown.width > 0).collect()
}

/// Which columns are shown on a screen of that width.
pub fn shown_columns(grid: &Grid, width: u16) -> Vec<usize> {
    fit(grid, width.into()).into_iter().map(|shown| shown.column).collect()
}

/// The column at a place.
pub fn column_at(grid: &Grid, width: u16, at: u16) -> Option<usize> {
    let shown = fit(grid, width.into());
    let is_here = |shown: &&Shown| usize::from(at) < shown.at + shown.width;
    shown.iter().find(is_here).map(|shown| shown.column)
}

/// Text that is no longer than that many columns, with a sign where it was cut.
pub fn cut(text: &str, width: usize) -> String {
    // What others called so is no command to the terminal.
    let text = plain(text);
    if text.width() <= width {
        return text.into_owned();
    }
    let mut short = String::new();
    for char in text.chars() {
        let longer = short.clone() + char.encode_utf8(&mut [0; 4]);
        if longer.width() + 1 > width {
            break;
        }
        short = longer;
    }
    if width > 0 { short + "…" } else { short }
}

/// Draws the titles of columns.
pub fn heads(grid: &Grid, order: Order, theme: Theme, area: Rect, buffer: &mut Buffer) {
    buffer.set_style(area, theme.head());
    for Shown { column, at, width } in fit(grid, area.width.into()) {
        let head = &grid.heads[column];
        let sign = match order {
            Order { column: by, .. } if by != column => "",
            Order { is_reversed: false, .. } => "▼",
            Order { is_reversed: true, .. } => "▲",
        };
        let text = side(&cut(&format!("{}{sign}", head.title), width), head.side, width);
        let style = if sign.is_empty() { Style::new() } else { Style::new().bold() };
        put(buffer, area.x + at as u16, area.y, text, width, style);
    }
}

/// Draws rows, from the first that is shown.
pub fn rows(grid: &Grid, first: usize, at: usize, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let columns = fit(grid, area.width.into());
    let lines = grid.lines.iter().enumerate().skip(first);
    for ((n, line), y) in lines.zip(area.top()..area.bottom()) {
        let is_selected = n == at;
        for shown in &columns {
            let x = area.x + shown.at as u16;
            if grid.heads[shown.column].is_graph {
                graph(line, theme, Rect { x, y, width: shown.width as u16, height: 1 }, buffer);
            } else if let Some(cell) = line.cells.get(shown.column) {
                let side_of = grid.heads[shown.column].side;
                let text = side(&cut(&cell.text, shown.width), side_of, shown.width);
                let style = if is_selected { Style::new() } else { theme.tone(cell.tone) };
                put(buffer, x, y, text, shown.width, style);
            }
        }
        if is_selected {
            buffer.set_style(Rect { y, height: 1, ..area }, theme.selected());
        }
    }
}

fn side(text: &str, side: Side, width: usize) -> String {
    let blanks = " ".repeat(width.saturating_sub(text.width()));
    match side {
        Side::Left => format!("{text}{blanks}"),
        Side::Right => format!("{blanks}{text}"),
    }
}

/// What a number was in the last intervals.
fn graph(line: &Line, theme: Theme, area: Rect, buffer: &mut Buffer) {
    super::sparkline(&line.graph, theme, theme.quiet(), area, buffer);
}

#[cfg(test)]
mod tests {
    use super::super::super::grid::rows;
    use super::*;

    #[test]
    fn text_is_cut_by_columns_and_can_not_command_the_terminal() {
        for (text, width, expected) in [
            ("web1", 4, "web1"),
            ("web10", 4, "web…"),
            ("web10", 1, "…"),
            ("web10", 0, ""),
            // Two columns each.
            ("漢字漢字", 8, "漢字漢字"),
            ("漢字漢字", 7, "漢字漢…"),
            ("漢字漢字", 6, "漢字…"),
            ("a\x1b[2Jb\r", 20, "a\u{fffd}[2Jb\u{fffd}"),
        ] {
            assert_eq!(cut(text, width), expected);
            assert!(cut(text, width).width() <= width);
        }
    }

    #[test]
    fn what_is_spare_goes_where_there_is_no_room_and_nothing_is_beyond_it() {
        let all = rows(&[], false);
        let titles = |width: u16| -> Vec<_> {
            shown_columns(&all, width).into_iter().map(|n| all.heads[n].title).collect()
        };
        assert_eq!(titles(300), all.heads.iter().map(|head| head.title).collect::<Vec<_>>());
        let at_80 = titles(80);
        for title in
            ["GUEST", "EXITS/S", "GUEST%", "USER%", "HALT%", "STEAL%", "P50", "P99", "IO/S"]
        {
            assert!(at_80.contains(&title), "{title} in {at_80:?}");
        }
        for width in 0..300 {
            let shown = fit(&all, width);
            assert!(
                shown.iter().all(|shown| shown.at + shown.width <= width),
                "{width}: {shown:?}"
            );
            let is_cut = |shown: &Shown| shown.width < all.heads[shown.column].title.width();
            assert!(width < 60 || !shown.iter().any(is_cut), "{width}: {shown:?}");
            for at in 0..width as u16 {
                let _ = column_at(&all, width as u16, at);
            }
        }
    }
}
