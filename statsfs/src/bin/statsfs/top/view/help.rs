//! What is shown on `?`.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::{Block, Clear, Widget};

use super::super::grid::Tone;
use super::{Theme, put};

const KEYS: [(&str, &str); 13] = [
    ("↑↓ PgUp PgDn Home End", "choose a row (also k j g G, the wheel)"),
    ("Enter → / Esc ←", "into a guest, vCPU or device / out (clicks, too)"),
    ("Tab", "what is shown: rows, exits by reason, all values"),
    ("s S / r", "sort by next, previous column / reverse (click)"),
    ("/", "only names with this text or regular expression"),
    ("n", "only where something happened, or all"),
    ("space / ^L", "pause / look now"),
    ("+ -", "longer or shorter intervals"),
    ("z / Z", "totals from now on, for you alone / all there is"),
    ("t", "reasons and bars of the interval, or of the totals"),
    ("q ^C / ^Z", "quit / suspend"),
    ("EXITS/S KVM/S", "returns of KVM_RUN to user space / all that KVM had"),
    ("P50 P99 IO/S", "time to handle an exit / bytes of disks, networks"),
];
const SHARES: [(&str, Tone, &str); 4] = [
    ("GUEST%", Tone::Guest, "of its vCPUs' time: in the guest"),
    ("USER%", Tone::User, "... handling exits in user space"),
    ("HALT%", Tone::Halt, "... halted or asleep"),
    ("STEAL%", Tone::Steal, "... ready, and waiting for a processor"),
];

/// Where the meanings begin.
const AT: u16 = 23;

pub fn draw(theme: Theme, screen: Rect, buffer: &mut Buffer) {
    let (width, height) = (78, (KEYS.len() + SHARES.len() + 2) as u16);
    let area = Rect {
        x: screen.width.saturating_sub(width) / 2,
        y: screen.height.saturating_sub(height) / 2,
        width: width.min(screen.width),
        height: height.min(screen.height),
    };
    Clear.render(area, buffer);
    let block = Block::bordered().title(" statsfs top: keys and columns ");
    let inside = block.inner(area);
    block.render(area, buffer);
    let keys = KEYS.into_iter().map(|(key, text)| (key, Tone::Name, text));
    for ((key, tone, text), y) in keys.chain(SHARES).zip(inside.top()..inside.bottom()) {
        let width = inside.width as usize;
        put(buffer, inside.x + 1, y, key, width.saturating_sub(1), theme.tone(tone));
        let room = width.saturating_sub(AT.into());
        put(buffer, inside.x + AT, y, text, room, theme.tone(Tone::Plain));
    }
}
