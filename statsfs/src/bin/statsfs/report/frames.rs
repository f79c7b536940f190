//! The frames of a recording, one after the other.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, SystemTime};

use statsfs::snapshot::recording::{About, Content, Reader, RecordingError};
use statsfs::snapshot::{Changes, Snapshot};
use statsfs::tools::told;

use super::columns::Column;
use super::series::{Finished, Scope, Series};

/// How long a server that was started again may lack what it had before: processes come back within half a second.
const RETURN: Duration = Duration::from_secs(5);

/// A recording that was read.
#[derive(Debug)]
pub struct Read {
    pub about: About,
    /// What was recorded, from the mount's root.
    pub path: String,
    /// When the first look was.
    pub begin: SystemTime,
    pub looks: usize,
    /// Whether it goes on, or was cut off.
    pub is_open: bool,
    /// Why it could not be read to its end.
    pub cut: Option<String>,
    pub gaps: Vec<Gap>,
    pub series: Finished,
}

/// A time in which there was nothing to be seen.
#[derive(Debug)]
pub struct Gap {
    /// Seconds since the first look.
    pub from: f64,
    pub to: f64,
    pub why: String,
}

/// The looks so far.
struct Looks {
    begin: SystemTime,
    origin: Duration,
    path: String,
    series: Series,
    /// What the next one is compared with.
    base: Snapshot,
    gap: Option<String>,
    gaps: Vec<Gap>,
    count: usize,
}

/// Reads a recording; so many of its guests are told apart.
pub fn read(file: &Path, most: usize) -> Result<Read, Box<dyn Error>> {
    let name = file.display();
    let said = |error: RecordingError| format!("{name}: {}", told(&error));
    let mut reader = Reader::open(file).map_err(said)?;
    let mut looks: Option<Looks> = None;
    let cut = loop {
        let frame = match reader.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break None,
            Err(error @ RecordingError::Cut(_)) => break Some(error.to_string()),
            Err(error) => return Err(said(error).into()),
        };
        match (frame.content, &mut looks) {
            (Content::Snapshot(first), None) => {
                let scope = Scope::of(&first).ok_or_else(|| {
                    let path = first.path();
                    format!("{name} is of {path}, in which there are no guests: `statsfs diff {name}` says what was counted")
                })?;
                looks = Some(Looks::new(first, scope));
            }
            (Content::Snapshot(next), Some(looks)) => looks.add(next),
            (Content::Gap(why), Some(looks)) => looks.gap = Some(why),
            (Content::Gap(_), None) => {}
        }
    };
    let looks = looks.filter(|looks| !looks.series.columns.is_empty());
    let looks =
        looks.ok_or_else(|| format!("{name} has less than two looks that can be compared"))?;
    Ok(looks.finish(reader.about().clone(), !reader.has_ended(), cut, most))
}

impl Looks {
    fn new(first: Snapshot, scope: Scope) -> Self {
        Self {
            begin: first.taken(),
            origin: first.monotonic(),
            path: first.path().to_owned(),
            series: Series::new(scope),
            base: first,
            gap: None,
            gaps: Vec::new(),
            count: 1,
        }
    }

    fn since(&self, snapshot: &Snapshot) -> f64 {
        snapshot.monotonic().saturating_sub(self.origin).as_secs_f64()
    }

    fn add(&mut self, next: Snapshot) {
        self.count += 1;
        let (from, to) = (self.since(&self.base), self.since(&next));
        match Changes::between(&self.base, &next) {
            Ok(changes) => {
                if self.lacks(&changes, &next) {
                    let why = "the server was started again, and not all were back";
                    self.gap.get_or_insert_with(|| why.into());
                    if changes.time() < RETURN {
                        return;
                    }
                }
                let column = Column { start: from, end: to, gap: self.gap.is_some() };
                self.series.add(&changes, &next, column);
            }
            // Another one of that name. What it counted before is not known here.
            Err(why) => _ = self.gap.get_or_insert_with(|| why.to_string()),
        }
        if let Some(why) = self.gap.take() {
            self.gaps.push(Gap { from, to, why });
        }
        self.base = next;
    }

    /// Whether counts went backwards, as they do only where something is missing for a while.
    fn lacks<'s>(&self, changes: &Changes<'s>, next: &'s Snapshot) -> bool {
        let scope = self.series.scope;
        let Some(whole) = scope.whole(next) else { return scope.whole(&self.base).is_some() };
        let change = ["user_exits", "exits"].iter().find_map(|name| changes.value(whole, name));
        change.is_some_and(|change| change.earlier.is_some() && change.increase.is_none())
    }

    fn finish(mut self, about: About, is_open: bool, cut: Option<String>, most: usize) -> Read {
        if let Some(why) = self.gap.take() {
            let from = self.since(&self.base);
            self.gaps.push(Gap { from, to: from, why });
        }
        Read {
            about,
            path: self.path,
            begin: self.begin,
            looks: self.count,
            is_open,
            cut,
            gaps: self.gaps,
            series: self.series.finish(most),
        }
    }
}
