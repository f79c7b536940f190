//! What is on the screen, and what becomes of it: models and keys come in, and what is to be asked of the looks goes out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ratatui::layout::Rect;
use statsfs::snapshot::What;

use super::grid::{self, Grid, LineId, Order};
use super::input::Action;
use super::look::{Ask, Found};
use super::model::{Detail, Model, Place, Span, Wanted};
use super::select::{Guests, Pattern};
use super::view;

/// Intervals to choose from, in milliseconds.
const INTERVALS: [u64; 10] = [100, 200, 500, 1000, 2000, 3000, 5000, 10_000, 30_000, 60_000];

/// What is shown of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    Guests,
    Vcpus,
    Devices,
    Reasons,
    Values,
}

impl Tab {
    /// The column of guests by which they are sorted at first.
    pub const EXITS: usize = 3;

    pub const fn title(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Vcpus => "vCPUs",
            Self::Devices => "devices",
            Self::Reasons => "exits by reason",
            Self::Values => "all values",
        }
    }

    /// What there is to be shown of such a directory.
    pub const fn of(what: What) -> &'static [Self] {
        match what {
            What::Guest => &[Self::Vcpus, Self::Devices, Self::Reasons, Self::Values],
            What::Vcpu => &[Self::Reasons, Self::Devices, Self::Values],
            What::Device | What::Source => &[Self::Values],
            What::Mount | What::Links | What::Top => &[Self::Guests, Self::Reasons, Self::Values],
        }
    }

    /// How it is sorted at first: what is busy comes first, and what is numbered by its number.
    const fn order(self) -> Order {
        let column = match self {
            Self::Guests => Self::EXITS,
            Self::Reasons | Self::Values => 2,
            Self::Vcpus | Self::Devices => 0,
        };
        Order { column, is_reversed: false }
    }
}

/// A directory that is looked into, and how.
#[derive(Clone, Debug)]
pub struct Page {
    /// None of the host.
    pub place: Option<Place>,
    pub what: What,
    /// What it is called.
    pub name: String,
    /// What was last known of it.
    pub detail: Option<Detail>,
    /// Whether it is there no more.
    pub is_gone: bool,
    /// Which of its tabs is shown.
    tab: usize,
    orders: Vec<Order>,
    pub filter: String,
    /// None: what is first, whatever that is.
    selected: Option<LineId>,
    /// Where that is, and which row is the first that is shown.
    pub at: usize,
    pub first: usize,
}

impl Page {
    fn new(place: Option<Place>, what: What, name: String) -> Self {
        let orders = Tab::of(what).iter().map(|tab| tab.order()).collect();
        Self {
            place,
            what,
            name,
            detail: None,
            is_gone: false,
            tab: 0,
            orders,
            filter: String::new(),
            selected: None,
            at: 0,
            first: 0,
        }
    }

    pub fn tabs(&self) -> &'static [Tab] {
        Tab::of(self.what)
    }

    pub fn tab(&self) -> Tab {
        self.tabs()[self.tab]
    }

    pub fn order(&self) -> Order {
        self.orders[self.tab]
    }
}

/// All that the screen is made of.
#[derive(Debug)]
pub struct App {
    pub mount: PathBuf,
    pub interval: Duration,
    pub guests: Guests,
    pub model: Option<Model>,
    /// What is missing, and since when.
    pub missing: Option<(String, Instant)>,
    /// The directories that are looked into, the host first.
    pub pages: Vec<Page>,
    pub grid: Grid,
    pub span: Span,
    pub skip_zero: bool,
    pub is_paused: bool,
    pub is_zeroed: bool,
    /// Whether a filter is being typed.
    pub is_typing: bool,
    pub has_help: bool,
    pub size: Rect,
    pub is_over: bool,
}

impl App {
    pub fn new(mount: PathBuf, interval: Duration, guests: Guests, skip_zero: bool) -> Self {
        Self {
            mount,
            interval,
            guests,
            model: None,
            missing: None,
            pages: vec![Page::new(None, What::Top, "host".into())],
            grid: Grid { heads: Vec::new(), lines: Vec::new(), hidden: 0 },
            span: Span::Interval,
            skip_zero,
            is_paused: false,
            is_zeroed: false,
            is_typing: false,
            has_help: false,
            size: Rect::default(),
            is_over: false,
        }
    }

    pub fn page(&self) -> &Page {
        // The host's is always there.
        &self.pages[self.pages.len() - 1]
    }

    fn page_mut(&mut self) -> &mut Page {
        let last = self.pages.len() - 1;
        &mut self.pages[last]
    }

    /// What is to be looked at.
    pub fn wanted(&self) -> Wanted {
        let page = self.page();
        let values = page.tab() == Tab::Values;
        Wanted { place: page.place.clone(), span: self.span, values, is_last: false }
    }

    /// Takes in what was found.
    pub fn found(&mut self, found: Found) {
        match found {
            Found::Missing(why) => {
                let since = self.missing.take().map_or_else(Instant::now, |(_, since)| since);
                self.missing = Some((why, since));
            }
            Found::Model(model) => {
                self.missing = None;
                // One that was made before something else was wanted says nothing of that.
                if model.wanted.place == self.page().place {
                    let page = self.page_mut();
                    page.is_gone = model.detail.is_none() && page.place.is_some();
                    if model.detail.is_some() {
                        page.detail.clone_from(&model.detail);
                    }
                }
                self.model = Some(*model);
                self.arrange();
            }
        }
    }

    /// Has the rows of what is shown, in their order, and the selected one in view.
    pub fn arrange(&mut self) {
        let page = self.page();
        let detail = page.detail.as_ref();
        let mut grid = match (page.tab(), detail) {
            (Tab::Guests, _) => {
                let all = self.model.iter().flat_map(|model| &model.guests);
                let meant: Vec<_> = all.filter(|row| self.guests.is_meant(row)).cloned().collect();
                grid::rows(&meant, false)
            }
            (Tab::Vcpus, detail) => grid::rows(detail.map_or(&[], |detail| &detail.vcpus), true),
            (Tab::Devices, detail) => grid::devices(detail.map_or(&[], |detail| &detail.devices)),
            (Tab::Reasons, detail) => grid::reasons(detail.map_or(&[], |detail| &detail.reasons)),
            (Tab::Values, Some(detail)) => grid::fields(&detail.fields),
            (Tab::Values, None) => Grid { heads: Vec::new(), lines: Vec::new(), hidden: 0 },
        };
        grid.keep(Pattern::typed(&page.filter).as_ref(), self.skip_zero);
        grid.sort(page.order());
        self.grid = grid;
        let room = usize::from(view::Areas::of(self.size, self).rows.height).max(1);
        let lines = &self.grid.lines;
        let len = lines.len();
        let found = |id: &LineId| lines.iter().position(|line| line.id == *id);
        let page = &self.pages[self.pages.len() - 1];
        let at = match &page.selected {
            None => 0,
            // Where one was that is gone, the next one is.
            Some(id) => found(id).unwrap_or(page.at).min(len.saturating_sub(1)),
        };
        let selected =
            page.selected.as_ref().and_then(|_| lines.get(at)).map(|line| line.id.clone());
        let page = self.page_mut();
        (page.at, page.selected) = (at, selected);
        page.first = page.first.clamp((at + 1).saturating_sub(room), at);
        page.first = page.first.min(len.saturating_sub(room));
    }

    /// Does what the user wants, and answers what is to be asked of the looks.
    pub fn act(&mut self, action: Action) -> Vec<Ask> {
        let before = self.wanted();
        let mut asks = Vec::new();
        match action {
            // Whatever is over the screen goes first.
            Action::Help => self.has_help = !self.has_help,
            Action::Back if self.has_help => self.has_help = false,
            Action::Quit => self.is_over = true,
            Action::Back => self.back(),
            Action::Enter => self.enter(),
            Action::Move(rows) => self.select(self.page().at.saturating_add_signed(rows)),
            Action::Page(pages) => {
                let room = view::Areas::of(self.size, self).rows.height.max(1) as isize;
                self.select(self.page().at.saturating_add_signed(pages * room));
            }
            Action::First => self.select(0),
            Action::Last => self.select(usize::MAX),
            Action::Tab(step) => {
                let page = self.page_mut();
                let count = page.tabs().len() as isize;
                page.tab = (page.tab as isize + step).rem_euclid(count) as usize;
                (page.selected, page.first) = (None, 0);
            }
            Action::SortBy(step) => self.sort_by(step),
            Action::Reverse => {
                let page = self.page_mut();
                page.orders[page.tab].is_reversed ^= true;
            }
            Action::Slower(step) => {
                let now = self.interval.as_millis() as u64;
                let next = match step {
                    1.. => INTERVALS.into_iter().find(|ms| *ms > now),
                    _ => INTERVALS.into_iter().rev().find(|ms| *ms < now),
                };
                self.interval = next.map_or(self.interval, Duration::from_millis);
                asks.push(Ask::Interval(self.interval));
            }
            Action::Pause => {
                self.is_paused ^= true;
                asks.push(Ask::Pause(self.is_paused));
            }
            Action::Look => asks.push(Ask::Look),
            Action::Zero(set) => {
                self.is_zeroed = set && self.model.is_some();
                asks.push(Ask::Zero(set));
            }
            Action::Span => {
                self.span = match self.span {
                    Span::Interval => Span::Total,
                    Span::Total => Span::Interval,
                };
            }
            Action::SkipZero => self.skip_zero ^= true,
            Action::Type => self.is_typing = true,
            Action::Typed(char) => self.page_mut().filter.push(char),
            Action::Untype => drop(self.page_mut().filter.pop()),
            Action::EndTyping(keep) => {
                self.is_typing = false;
                if !keep {
                    self.page_mut().filter.clear();
                }
            }
            Action::Click(column, row) => self.click(column, row),
            Action::Size(width, height) => self.size = Rect::new(0, 0, width, height),
        }
        self.arrange();
        let wanted = self.wanted();
        if wanted != before {
            asks.push(Ask::Show(wanted));
        }
        asks
    }

    fn select(&mut self, at: usize) {
        let at = at.min(self.grid.lines.len().saturating_sub(1));
        let id = self.grid.lines.get(at).map(|line| line.id.clone());
        let page = self.page_mut();
        // What is first stays first, whatever comes to be that.
        page.selected = id.filter(|_| at > 0);
        page.at = at;
    }

    fn enter(&mut self) {
        let Some(line) = self.grid.lines.get(self.page().at) else { return };
        let LineId::Dir(id, path) = line.id.clone() else { return };
        let name = line.cells.first().map(|cell| cell.text.clone()).unwrap_or_default();
        let what = match self.page().tab() {
            Tab::Guests => What::Guest,
            Tab::Vcpus => What::Vcpu,
            _ => What::Device,
        };
        self.select_this();
        self.pages.push(Page::new(Some(Place { path, id }), what, name));
    }

    /// Has the row that is entered be the one to come back to.
    fn select_this(&mut self) {
        let id = self.grid.lines.get(self.page().at).map(|line| line.id.clone());
        self.page_mut().selected = id;
    }

    fn back(&mut self) {
        if !self.page().filter.is_empty() {
            self.page_mut().filter.clear();
        } else if self.pages.len() > 1 {
            self.pages.pop();
        }
    }

    fn sort_by(&mut self, step: isize) {
        let shown = view::table::shown_columns(&self.grid, self.size.width);
        let can: Vec<_> = shown.into_iter().filter(|n| !self.grid.heads[*n].is_graph).collect();
        let page = self.page_mut();
        let order = &mut page.orders[page.tab];
        let now = can.iter().position(|column| *column == order.column);
        let next = now.map_or(0, |now| (now as isize + step).rem_euclid(can.len() as isize));
        if let Some(column) = can.get(next as usize) {
            *order = Order { column: *column, is_reversed: false };
        }
    }

    fn click(&mut self, column: u16, row: u16) {
        if self.has_help {
            self.has_help = false;
            return;
        }
        let areas = view::Areas::of(self.size, self);
        if row == areas.tabs.y {
            let tab = view::tab_at(self.page(), column.saturating_sub(areas.tabs.x));
            if let Some(tab) = tab {
                let page = self.page_mut();
                (page.tab, page.selected, page.first) = (tab, None, 0);
            }
        } else if row == areas.heads.y {
            let at = column.saturating_sub(areas.heads.x);
            let clicked = view::table::column_at(&self.grid, areas.heads.width, at);
            let clicked = clicked.filter(|n| !self.grid.heads[*n].is_graph);
            let page = self.page_mut();
            let order = &mut page.orders[page.tab];
            match clicked {
                Some(column) if column == order.column => order.is_reversed ^= true,
                Some(column) => *order = Order { column, is_reversed: false },
                None => {}
            }
        } else if areas.rows.contains((column, row).into()) {
            let at = self.page().first + usize::from(row - areas.rows.y);
            if at < self.grid.lines.len() {
                // The one that is selected is entered.
                if at == self.page().at { self.enter() } else { self.select(at) }
            }
        }
    }
}
