//! The screen: what the application has, drawn.

mod header;
mod help;
mod histogram;
pub mod table;
mod theme;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::{Sparkline, Widget};
use unicode_width::UnicodeWidthStr;

use super::app::{App, Page, Tab};
use super::grid::Tone;
use super::model::{ALL, Detail, Reason, Span};

pub use self::theme::Theme;

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Areas {
    header: Rect,
    graph: Rect,
    pub tabs: Rect,
    pub heads: Rect,
    pub rows: Rect,
    /// How long handling takes.
    bars: Rect,
    footer: Rect,
}

/// From this width on there are bars beside the rows.
const WIDE: u16 = 132;
/// How wide these are.
const SIDE: u16 = 50;

impl Areas {
    pub fn of(screen: Rect, app: &App) -> Self {
        let mut left = screen;
        let mut take = |height: u16| {
            let taken = Rect { height: height.min(left.height), ..left };
            left = Rect { y: left.y + taken.height, height: left.height - taken.height, ..left };
            taken
        };
        let header = take(4);
        let graph = take(match screen.height {
            0..20 => 0,
            20..40 => 2,
            _ => 4,
        });
        let tabs = take(1);
        let footer = Rect { y: screen.bottom().saturating_sub(1), height: 1, ..screen };
        let mut heads = take(1);
        let mut rows = take(u16::MAX);
        rows.height = rows.height.saturating_sub(footer.height);
        let mut bars = Rect::default();
        let tab = app.page().tab();
        let has_bars = app.page().detail.as_ref().is_some_and(|detail| !detail.reasons.is_empty());
        if has_bars && screen.width >= WIDE && tab != Tab::Values && tab != Tab::Devices {
            let width = rows.width - SIDE - 2;
            bars = Rect { x: rows.x + width + 2, y: heads.y, width: SIDE, height: rows.height + 1 };
            (heads.width, rows.width) = (width, width);
        } else if has_bars && tab == Tab::Reasons && rows.height >= 12 {
            // Reasons are few, so most of the place is for the bars.
            let lines = app.grid.lines.len() as u16;
            let height = rows.height.saturating_sub(lines + 1).clamp(rows.height / 2, 24);
            rows.height -= height + 1;
            bars = Rect { y: rows.bottom() + 1, height, ..rows };
        }
        Self { header, graph, tabs, heads, rows, bars, footer }
    }
}

/// Less than this is no place for anything.
const LEAST: (u16, u16) = (30, 8);

pub fn draw(frame: &mut Frame<'_>, app: &App, theme: Theme) {
    let screen = frame.area();
    let buffer = frame.buffer_mut();
    if screen.width < LEAST.0 || screen.height < LEAST.1 {
        let width = screen.width as usize;
        put(buffer, 0, 0, "too small", width, Style::new());
        return;
    }
    let areas = Areas::of(screen, app);
    header::draw(app, theme, areas.header, buffer);
    let page = app.page();
    if let Some(detail) = &page.detail {
        header::graph(detail, theme, areas.graph, buffer);
    }
    tabs(app, theme, areas.tabs, buffer);
    table::heads(&app.grid, page.order(), theme, areas.heads, buffer);
    table::rows(&app.grid, page.first, page.at, theme, areas.rows, buffer);
    if app.grid.lines.is_empty() {
        let text = nothing(app);
        put(buffer, areas.rows.x, areas.rows.y, text, areas.rows.width.into(), theme.quiet());
    }
    if app.missing.is_some() || page.is_gone {
        // What is there is what was.
        for area in [areas.graph, areas.rows, areas.bars] {
            buffer.set_style(area, theme.quiet());
        }
    }
    if let Some(detail) = &page.detail
        && areas.bars.height > 1
    {
        bars(app, detail, theme, areas.bars, buffer);
    }
    footer(app, theme, areas.footer, buffer);
    if app.has_help {
        help::draw(theme, screen, buffer);
    }
}

/// Why there are no rows.
fn nothing(app: &App) -> &'static str {
    let page = app.page();
    match &app.model {
        None => "looking ...",
        Some(_) if app.grid.hidden > 0 => "nothing of this kind: Esc or n shows all",
        Some(model) if page.tab() == Tab::Guests => match (model.guests.len(), model.closed) {
            (0, 0) => "no guest runs",
            (0, _) => "no guest runs that this user may look into",
            _ => "no guest of these runs",
        },
        Some(_) if page.detail.is_none() => "looking ...",
        Some(_) => "nothing",
    }
}

/// What is between two tabs.
const BETWEEN: &str = "  ";

fn tab_text(tab: Tab) -> String {
    format!(" {} ", tab.title())
}

/// The tab at a column of their line.
pub fn tab_at(page: &Page, column: u16) -> Option<usize> {
    let mut end = 0;
    page.tabs().iter().position(|tab| {
        let begin = end;
        end += tab_text(*tab).width() + BETWEEN.width();
        (begin..end - BETWEEN.width()).contains(&usize::from(column))
    })
}

fn tabs(app: &App, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let page = app.page();
    let mut x = area.x;
    for tab in page.tabs() {
        let is_this = *tab == page.tab();
        let style = if is_this { theme.selected().bold() } else { theme.quiet() };
        let room = area.right().saturating_sub(x);
        x = put(buffer, x, area.y, tab_text(*tab), room.into(), style);
        x = (x + BETWEEN.width() as u16).min(area.right());
    }
    let mut text = String::new();
    if page.tab() == Tab::Reasons {
        text += match app.span {
            Span::Interval => "of the interval",
            Span::Total if app.is_zeroed => "since the zero",
            Span::Total => "of all time",
        };
    }
    if !page.filter.is_empty() && !app.is_typing {
        text += &format!("  only /{}/, {} more", page.filter, app.grid.hidden);
    } else if app.skip_zero && app.grid.hidden > 0 {
        text += &format!("  {} more are 0", app.grid.hidden);
    }
    let lines = app.grid.lines.len();
    if lines > 0 {
        text += &format!("  {}/{lines}", page.at + 1);
    }
    right(&text, theme.quiet(), Rect { x, width: area.right() - x, ..area }, buffer);
}

/// Draws text that is no longer than so many columns, and answers where it ends. What is outside of the screen is not drawn.
fn put(
    buffer: &mut Buffer,
    x: u16,
    y: u16,
    text: impl AsRef<str>,
    width: usize,
    style: impl Into<Style>,
) -> u16 {
    if !buffer.area.contains((x, y).into()) {
        return x;
    }
    buffer.set_stringn(x, y, text, width, style).0
}

/// Draws text at the right end.
fn right(text: &str, style: Style, area: Rect, buffer: &mut Buffer) {
    let text = table::cut(text.trim_start(), area.width.into());
    let x = area.right() - text.width() as u16;
    put(buffer, x, area.y, text, area.width.into(), style);
}

/// Reasons where there are none in the rows, and how long handling took.
fn bars(app: &App, detail: &Detail, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut area = area;
    let by_name = |name: &str| detail.reasons.iter().find(|reason| reason.name == name);
    let mut chosen = None;
    if app.page().tab() == Tab::Reasons {
        let line = app.grid.lines.get(app.page().at);
        let name = line.and_then(|line| line.cells.first()).map(|cell| cell.text.as_str());
        chosen = name.and_then(by_name);
    } else {
        let mut reasons: Vec<&Reason> = detail.reasons.iter().filter(|r| r.name != ALL).collect();
        reasons.retain(|reason| reason.part.is_some_and(|part| part > 0.0));
        reasons.sort_by(|a, b| b.part.unwrap_or(0.0).total_cmp(&a.part.unwrap_or(0.0)));
        reasons.truncate((area.height / 2).saturating_sub(3).into());
        let width = area.width as usize;
        let title = format!("exits of {} by reason", app.page().name);
        put(buffer, area.x, area.y, table::cut(&title, width), width, theme.tone(Tone::Name));
        for (reason, y) in reasons.iter().zip(area.y + 1..area.bottom()) {
            let part = reason.part.unwrap_or(0.0);
            let name = table::cut(&reason.name, 14);
            let text = format!("{name:14} {:>4}%", super::grid::percent(part));
            let x = put(buffer, area.x, y, &text, width, theme.tone(Tone::Plain));
            let room = area.right().saturating_sub(x + 1) as usize;
            put(buffer, x + 1, y, theme.bar(part, room), room, theme.tone(Tone::Guest));
        }
        let used = reasons.len() as u16 + 2;
        area = Rect { y: area.y + used, height: area.height.saturating_sub(used), ..area };
    }
    if let Some(reason) = chosen.or_else(|| by_name(ALL))
        && area.height > 1
    {
        histogram::draw(reason, theme, area, buffer);
    }
}

fn footer(app: &App, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let width = area.width as usize;
    if app.is_typing {
        let text = format!("/{}█", app.page().filter);
        put(buffer, area.x, area.y, table::cut(&text, width), width, theme.tone(Tone::Name));
        return;
    }
    let keys = [
        ("?", "help"),
        ("Enter", "into"),
        ("Esc", "out"),
        ("Tab", "view"),
        ("/", "filter"),
        ("s", "sort"),
        ("space", "pause"),
        ("z", "zero"),
        ("t", "span"),
        ("q", "quit"),
    ];
    let mut x = area.x;
    for (key, text) in keys {
        let needed = (key.width() + text.width() + 1) as u16;
        if x + needed > area.right() {
            break;
        }
        x = put(buffer, x, area.y, key, width, theme.tone(Tone::Name));
        x = put(buffer, x + 1, area.y, text, width, theme.quiet());
        x += 2;
    }
}

/// Draws numbers as a graph that ends at the right, as high as the largest of them.
fn sparkline(rates: &[f32], theme: Theme, style: Style, area: Rect, buffer: &mut Buffer) {
    let width = area.width as usize;
    let shown = &rates[rates.len().saturating_sub(width)..];
    let most = shown.iter().copied().fold(0.0, f32::max);
    if most <= 0.0 || shown.is_empty() {
        return;
    }
    // In thousandths: rates may be less than one. What there is at all is seen.
    let scaled = shown.iter().map(|rate| match rate / most {
        part if part > 0.0 => {
            ((part * 1000.0).round() as u64).max(1000 / (8 * u64::from(area.height.max(1))))
        }
        _ => 0,
    });
    let data: Vec<u64> = std::iter::repeat_n(0, width - shown.len()).chain(scaled).collect();
    Sparkline::default()
        .bar_set(theme.heights())
        .max(1000)
        .data(data)
        .style(style)
        .render(area, buffer);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::app::App;
    use super::super::input::Action;
    use super::super::look::Found;
    use super::super::model::{History, Pair};
    use super::super::select::Guests;
    use super::*;

    /// A host without guests, as `statsfs serve` has it before any comes.
    fn empty_host() -> statsfs::snapshot::Snapshot {
        let registry = statsfs::Registry::new().unwrap();
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let guest = registry.create_source("guest\u{2d}1").unwrap();
        kvm.add_subordinate(&guest).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = statsfs::fs::MountOptions::new();
        let mounted = statsfs::Embedded::mount(&registry, dir.path(), options).unwrap();
        let snapshot = statsfs::snapshot::Snapshot::read(dir.path()).unwrap();
        mounted.unmount().unwrap();
        snapshot
    }

    #[test]
    fn every_size_of_screen_can_be_drawn() {
        let snapshot = empty_host();
        let pair = Pair { now: &snapshot, changes: None, zero: None };
        let mut app = App::new("/run".into(), Duration::from_secs(1), Guests::default(), false);
        let theme = Theme { has_colours: true, has_parts: true };
        for round in 0..4 {
            let model = pair.model(&app.wanted(), &mut History::default(), true);
            app.found(Found::Model(Box::new(model)));
            app.has_help = round == 3;
            for (width, height) in
                (0..60).map(|n| (n * 4, n)).chain((0..60).map(|n| (240 - n * 4, n)))
            {
                app.act(Action::Size(width, height));
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| draw(frame, &app, theme)).unwrap();
            }
            app.act(Action::Tab(1));
        }
    }
}
