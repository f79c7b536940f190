//! Colours and signs: as many as the terminal has.

use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;

use super::super::grid::Tone;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub has_colours: bool,
    /// Whether there are signs for parts of a full block.
    pub has_parts: bool,
}

impl Theme {
    /// As the environment says: nothing is coloured if `NO_COLOR` is set, and Linux' own console has few signs.
    pub fn of_environment() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            has_colours: var("NO_COLOR").is_none(),
            has_parts: var("TERM").is_none_or(|term| term != "linux"),
        }
    }

    fn coloured(self, colour: Color, else_: Modifier) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new().add_modifier(else_) }
    }

    pub fn tone(self, tone: Tone) -> Style {
        match tone {
            Tone::Plain => Style::new(),
            Tone::Name => Style::new().add_modifier(Modifier::BOLD),
            Tone::Quiet => self.quiet(),
            Tone::Guest => self.coloured(Color::Green, Modifier::empty()),
            Tone::User => self.coloured(Color::Cyan, Modifier::empty()),
            Tone::Halt => self.coloured(Color::Blue, Modifier::empty()),
            Tone::Steal => self.coloured(Color::Yellow, Modifier::BOLD),
            Tone::Bad => self.coloured(Color::Red, Modifier::BOLD),
        }
    }

    pub fn quiet(self) -> Style {
        self.coloured(Color::DarkGray, Modifier::DIM)
    }

    pub fn head(self) -> Style {
        self.coloured(Color::Gray, Modifier::empty()).add_modifier(Modifier::UNDERLINED)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Signs of a graph, by height.
    pub fn heights(self) -> bar::Set<'static> {
        if self.has_parts { bar::NINE_LEVELS } else { bar::THREE_LEVELS }
    }

    /// A bar of such a part of so many columns.
    pub fn bar(self, part: f64, width: usize) -> String {
        const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let eighths = (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
        let mut bar = "█".repeat(eighths / 8);
        // What there is at all is seen.
        let rest = if part > 0.0 && eighths == 0 { 1 } else { eighths % 8 };
        match rest {
            0 => {}
            rest if self.has_parts => bar += PARTS[rest],
            rest if rest >= 4 || bar.is_empty() => bar += "▌",
            _ => {}
        }
        bar
    }
}
