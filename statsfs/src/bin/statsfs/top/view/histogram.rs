//! How long handling took, as bars.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use statsfs::tools::{in_unit, thousands};
use statsfs::value::Unit;
use unicode_width::UnicodeWidthStr;

use super::super::grid::{Tone, percent};
use super::super::model::{Bucket, Reason};
use super::{Theme, put};

/// As many rows as there is room for, of what and how many: those at the ends are put together where there are more.
fn rows(buckets: &[Bucket], room: usize) -> Vec<(String, u64)> {
    let Some(first) = buckets.iter().position(|bucket| bucket.count > 0) else {
        return Vec::new();
    };
    let last = buckets.iter().rposition(|bucket| bucket.count > 0).unwrap_or(first);
    let (mut from, mut to) = (first, last);
    let (mut below, mut above) = (0, 0);
    while to - from + 1 > room.max(1) {
        let (least, most) = (below + buckets[from].count, above + buckets[to].count);
        // What is least lost by it.
        if least <= most {
            below = least;
            from += 1;
        } else {
            above = most;
            to -= 1;
        }
    }
    let time = |ns: u64| in_unit(ns.into(), Unit::NANOSECONDS);
    let mut found = Vec::new();
    for n in from..=to {
        let mut count = buckets[n].count;
        count += if n == from { below } else { 0 };
        count += if n == to { above } else { 0 };
        let lower = if n == 0 { None } else { buckets[n - 1].upper };
        let text = match (buckets[n].upper, lower) {
            (Some(upper), _) if !(n == to && above > 0) => format!("< {}", time(upper)),
            (_, Some(lower)) => format!("≥ {}", time(lower)),
            (_, None) => "any".into(),
        };
        found.push((text, count));
    }
    found
}

/// Draws how long exits of a reason took, under a line that says so.
pub fn draw(reason: &Reason, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let title = match (reason.p50, reason.p99) {
        (Some(p50), Some(p99)) => {
            let time = |ns: u64| in_unit(ns.into(), Unit::NANOSECONDS);
            format!("handling {}: p50 {}, p99 {}", reason.name, time(p50), time(p99))
        }
        _ => format!("handling {}", reason.name),
    };
    let width = area.width as usize;
    let title = super::table::cut(&title, width);
    put(buffer, area.x, area.y, title, width, theme.tone(Tone::Name));
    let area = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let rows = rows(&reason.buckets, area.height.into());
    if rows.is_empty() && area.height > 0 {
        let text = if reason.buckets.is_empty() {
            "times are not recorded one by one for this reason"
        } else {
            "nothing was handled"
        };
        put(buffer, area.x, area.y, text, width, theme.quiet());
    }
    let all: u64 = rows.iter().map(|(_, count)| count).sum();
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let label = rows.iter().map(|(text, _)| text.width()).max().unwrap_or(0);
    let number = |count: u64| {
        format!("{:>7} {:>4}%", thousands(count.into()), percent(count as f64 / all.max(1) as f64))
    };
    let numbers = rows.iter().map(|(_, count)| number(*count).width()).max().unwrap_or(0);
    let room = width.saturating_sub(label + numbers + 3);
    for ((text, count), y) in rows.iter().zip(area.top()..area.bottom()) {
        put(buffer, area.x, y, format!("{text:>label$}"), label, theme.quiet());
        let x = area.x + label as u16 + 1;
        let text = format!("{:>numbers$}", number(*count));
        let tone = if *count == 0 { Tone::Quiet } else { Tone::Plain };
        put(buffer, x, y, text, numbers, theme.tone(tone));
        let bar = theme.bar(*count as f64 / most as f64, room);
        put(buffer, x + numbers as u16 + 1, y, bar, room, theme.tone(Tone::User));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_put_together_where_there_is_no_room() {
        let counts = [0, 1, 2, 50, 30, 3, 0];
        let bucket = |(n, count): (usize, &u64)| Bucket {
            upper: (n + 1 < counts.len()).then_some(1 << n),
            count: *count,
        };
        let buckets: Vec<_> = counts.iter().enumerate().map(bucket).collect();
        let all = rows(&buckets, 10);
        assert_eq!(all.first(), Some(&("< 2 ns".into(), 1)));
        assert_eq!(all.last(), Some(&("< 32 ns".into(), 3)));
        assert_eq!(all.len(), 5);
        assert_eq!(
            rows(&buckets, 3),
            [("< 8 ns".into(), 53), ("< 16 ns".into(), 30), ("< 32 ns".into(), 3)]
        );
        assert_eq!(rows(&buckets, 2), [("< 8 ns".into(), 53), ("≥ 8 ns".into(), 33)]);
        assert_eq!(rows(&[], 3), []);
    }
}
