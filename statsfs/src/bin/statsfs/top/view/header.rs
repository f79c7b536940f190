//! The lines above the rows: where one is, and what all in it do together.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use statsfs::snapshot::What;
use statsfs::tools::{in_unit, per_second, thousands};
use statsfs::value::Unit;
use unicode_width::UnicodeWidthStr;

use super::super::app::App;
use super::super::grid::{Tone, percent, short_bytes};
use super::super::model::{Detail, Model, Row, Shares};
use super::{Theme, put, right, table};

pub fn draw(app: &App, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let [title, numbers, times, more] =
        [0, 1, 2, 3].map(|n| Rect { y: area.y + n, height: 1, ..area });
    self::title(app, theme, title, buffer);
    let width = area.width as usize;
    let detail = app.page().detail.as_ref();
    if let Some((why, since)) = &app.missing {
        let text = format!("{why} ({} s)", since.elapsed().as_secs());
        let text = table::cut(&text, width);
        put(buffer, area.x, numbers.y, text, width, theme.tone(Tone::Bad));
    } else if app.page().is_gone {
        let text = format!("{} is gone: this is what was last seen", app.page().name);
        let text = table::cut(&text, width);
        put(buffer, area.x, numbers.y, text, width, theme.tone(Tone::Bad));
    } else if let (Some(detail), Some(model)) = (detail, &app.model) {
        parts(&self::numbers(detail, model), theme, numbers, buffer);
    }
    if let Some(detail) = detail {
        self::times(&detail.row, theme, times, buffer);
        parts(&self::more(&detail.row), theme, more, buffer);
    }
}

/// Where one is, and how it is looked at.
fn title(app: &App, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut state = Vec::new();
    if app.is_paused {
        state.push("PAUSED".to_owned());
    }
    if let Some(zeroed) = app.model.as_ref().and_then(|model| model.zeroed) {
        state.push(format!("zero {} s ago", zeroed.as_secs()));
    }
    if !app.guests.is_all() {
        state.push("some guests".to_owned());
    }
    let every = in_unit(app.interval.as_nanos() as i128, Unit::NANOSECONDS);
    state.push(format!("every {every}"));
    let state = state.join("  ");
    let names: Vec<_> = app.pages.iter().map(|page| page.name.as_str()).collect();
    let place = format!("statsfs top  {}", names.join(" › "));
    let room = (area.width as usize).saturating_sub(state.width() + 2);
    let place = table::cut(&place, room);
    put(buffer, area.x, area.y, &place, room, theme.tone(Tone::Name));
    let mut rest = area;
    let used = place.width() as u16 + 2;
    rest.x += used.min(area.width);
    rest.width -= used.min(area.width);
    let style = if app.is_paused { theme.tone(Tone::Steal) } else { theme.quiet() };
    // Where it is, if there is room.
    let mount = app.mount.display().to_string();
    let text = match app.pages.len() {
        1 if mount.width() + state.width() + 4 < rest.width.into() => format!("{mount}  {state}"),
        _ => state,
    };
    right(&text, style, rest, buffer);
}

/// What is said in numbers, the most important first: what it is, and the number.
fn numbers(detail: &Detail, model: &Model) -> Vec<(&'static str, String)> {
    let row = &detail.row;
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| per_second(rate, Unit::NONE));
    let time =
        |ns: Option<u64>| ns.map_or("-".to_owned(), |ns| in_unit(ns.into(), Unit::NANOSECONDS));
    let mut found = Vec::new();
    match detail.what {
        What::Top => {
            let closed = match model.closed {
                0 => String::new(),
                closed => format!(" + {closed} closed"),
            };
            found.push(("guests", format!("{}{closed}", thousands(model.guests.len() as i128))));
        }
        What::Guest => {
            found.extend(row.pid.map(|pid| ("pid", pid.to_string())));
            found.extend(row.state.clone().map(|state| ("", state)));
            let memory = row.memory.map(|bytes| in_unit(bytes, Unit::BYTES));
            found.extend(memory.map(|memory| ("memory", memory)));
        }
        What::Vcpu => found.extend(row.thread.map(|thread| ("thread", thread.to_string()))),
        _ => {}
    }
    if let (Some(vcpus), true) = (row.vcpus, detail.what != What::Vcpu) {
        found.push(("vCPUs", thousands(vcpus)));
    }
    if row.exits.is_some() || row.total.is_some() {
        found.push(("exits", rate(row.exits)));
        found.push(("total", row.total.map_or("-".into(), |total| thousands(total.into()))));
        found.push(("p50", time(row.p50)));
        found.push(("p99", time(row.p99)));
    }
    found
}

/// What more is said of it.
fn more(row: &Row) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let (name, part) = row.reason.as_ref().map_or(("", 0.0), |(name, part)| (name, *part));
    if !name.is_empty() {
        found.push(("most", format!("{name} {}%", percent(part))));
    }
    if let Some(kvm) = row.kvm_exits {
        found.push(("KVM", per_second(kvm, Unit::NONE)));
    }
    let io = [
        ("read", row.io.read),
        ("write", row.io.written),
        ("rx", row.io.received),
        ("tx", row.io.sent),
    ];
    let io = io.into_iter().filter_map(|(name, rate)| Some((name, short_bytes(rate?) + "/s")));
    found.extend(io);
    found
}

/// Draws as many as there is room for.
fn parts(parts: &[(&str, String)], theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut x = area.x;
    for (name, number) in parts {
        let blank = usize::from(!name.is_empty());
        if usize::from(x) + name.width() + blank + number.width() > area.right().into() {
            continue;
        }
        x = put(buffer, x, area.y, name, area.width.into(), theme.quiet());
        x += blank as u16;
        let number = table::cut(number, area.width.into());
        x = put(buffer, x, area.y, number, area.width.into(), Style::new());
        x = (x + 2).min(area.right());
    }
}

/// Where the vCPUs' time went.
fn times(row: &Row, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let kinds = |shares: &Shares| {
        let [guest, user, halt, steal] = shares.parts();
        [
            ("guest", guest, Tone::Guest, "█"),
            ("user", user, Tone::User, "▓"),
            ("steal", steal, Tone::Steal, "▒"),
            ("halt", halt, Tone::Halt, "·"),
        ]
    };
    let mut x = area.x;
    if let Some(shares) = &row.shares {
        let kinds = kinds(shares);
        let legend: usize =
            kinds.iter().map(|(name, part, ..)| name.width() + percent(*part).width() + 4).sum();
        let room = (area.width as usize).saturating_sub(legend);
        // A bar that is too short says nothing.
        let width = if room >= 12 { room.min(60) } else { 0 };
        let mut drawn = 0;
        let mut sum = 0.0;
        for (_, part, tone, sign) in &kinds {
            sum += part;
            let end = (sum * width as f64).round() as usize;
            let text = sign.repeat(end.saturating_sub(drawn));
            x = put(buffer, x, area.y, text, width, theme.tone(*tone));
            drawn = end.max(drawn);
        }
        if width > 0 {
            x += 1;
        }
        for (name, part, tone, _) in &kinds {
            let room = area.right().saturating_sub(x) as usize;
            x = put(buffer, x, area.y, name, room, theme.quiet());
            let text = format!(" {}%", percent(*part));
            let room = area.right().saturating_sub(x) as usize;
            x = put(buffer, x, area.y, text, room, theme.tone(*tone));
            x = (x + 1).min(area.right());
        }
    }
}

/// Exits a second in the last minutes.
pub fn graph(detail: &Detail, theme: Theme, area: Rect, buffer: &mut Buffer) {
    if area.height == 0 || detail.history.is_empty() {
        return;
    }
    let label = 12.min(area.width);
    let room = (area.width - label) as usize;
    let shown = &detail.history[detail.history.len().saturating_sub(room)..];
    let most = shown.iter().copied().fold(0.0, f32::max);
    put(buffer, area.x, area.y, "exits/s", label.into(), theme.quiet());
    let text = format!("≤ {}", per_second(f64::from(most), Unit::NONE).trim_end_matches("/s"));
    let below = area.bottom() - 1;
    if below > area.y {
        put(buffer, area.x, below, table::cut(&text, label.into()), label.into(), theme.quiet());
    }
    let area = Rect { x: area.x + label, width: area.width - label, ..area };
    super::sparkline(&detail.history, theme, theme.tone(Tone::Guest), area, buffer);
}
