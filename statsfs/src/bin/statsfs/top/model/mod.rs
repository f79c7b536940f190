//! What is shown, as plain data: made of two snapshots, and of what is remembered of those before.

mod detail;
mod history;
mod row;
mod shares;

use std::time::{Duration, SystemTime};

use statsfs::snapshot::{Change, Changes, Dir, DirIdentity, Snapshot, Value, What};

pub use self::detail::{ALL, Bucket, Detail, Device, Field, Reason, fields};
pub use self::history::History;
pub use self::row::Row;
pub use self::shares::Shares;

/// The top-level directory whose directories are guests.
pub const KVM: &str = "kvm";

/// A directory that is looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its path from the root of the mount.
    pub path: String,
    /// Which it is, of all that are or were called so.
    pub id: DirIdentity,
}

/// What exits and times are over that are shown of a directory, but for rates, which are over the last interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Span {
    /// The last interval.
    #[default]
    Interval,
    /// Since the zero, if one was set, or else all that there is.
    Total,
}

/// What is wanted of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The directory that is looked into; if none, the host.
    pub place: Option<Place>,
    pub span: Span,
    /// All values of it, too.
    pub values: bool,
    /// Nothing comes after this, so shares are of what the scheduler said in this interval, though it says that once a second.
    pub is_last: bool,
}

/// What two snapshots say.
#[derive(Clone, Debug)]
pub struct Model {
    pub taken: SystemTime,
    /// How long the interval was; none after the first look.
    pub seconds: Option<f64>,
    /// Since when totals are, if a zero was set.
    pub zeroed: Option<Duration>,
    /// All guests together, those that are gone and those that may not be looked into included.
    pub host: Row,
    pub guests: Vec<Row>,
    /// How many guests there are that may not be looked into.
    pub closed: usize,
    /// The directory that is looked into; none if it is gone.
    pub detail: Option<Detail>,
    pub wanted: Wanted,
}

/// What a model is made of.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub now: &'a Snapshot,
    /// Since the look before.
    pub changes: Option<&'a Changes<'a>>,
    /// Since the zero that the user set.
    pub zero: Option<&'a Changes<'a>>,
}

impl<'a> Pair<'a> {
    /// What those values of a directory are whose names are wanted, with what they were; what they were is not known at the
    /// first look.
    fn changes(&self, dir: Dir<'a>, wanted: impl Fn(&str) -> bool) -> Vec<Change<'a>> {
        match self.changes {
            Some(changes) => changes.of_those(dir, wanted),
            None => {
                let unknown = |value| Change { value, earlier: None, increase: None };
                dir.values_of(wanted).into_iter().map(unknown).collect()
            }
        }
    }

    /// The same values over all that totals are of: since the zero, or what the files show.
    fn totals(&self, dir: Dir<'a>, wanted: impl Fn(&str) -> bool) -> Option<Vec<Value<'a>>> {
        let zero = self.zero?;
        let since = |change: Change<'a>| match change.value.is_cumulative() {
            true => change.grown(),
            false => Some(change.value),
        };
        Some(zero.of_those(dir, wanted).into_iter().filter_map(since).collect())
    }

    fn seconds(&self) -> Option<f64> {
        self.changes.map(|changes| changes.time().as_secs_f64()).filter(|seconds| *seconds > 0.0)
    }

    /// What is wanted of it. It is remembered if this is the first time that this look is asked.
    pub fn model(&self, wanted: &Wanted, history: &mut History, is_new: bool) -> Model {
        if is_new {
            history.begin();
        }
        let mut rows = row::Rows { pair: *self, history, is_new, is_last: wanted.is_last };
        let kvm = self.now.dir(KVM);
        let machines = kvm.into_iter().flat_map(Dir::children);
        let machines: Vec<_> = machines.filter(|dir| dir.what() == What::Guest).collect();
        let host = match kvm {
            Some(kvm) => rows.row(kvm),
            None => Row::nothing(self.now.root()),
        };
        let guests: Vec<_> = machines.into_iter().map(|dir| rows.row(dir)).collect();
        let closed = kvm.map_or(0, |kvm| kvm.child_count().saturating_sub(kvm.children().count()));
        let dir = match &wanted.place {
            None => kvm,
            Some(place) => self.now.dir(&place.path).filter(|dir| dir.identity() == place.id),
        };
        let detail = dir.map(|dir| {
            let known = guests.iter().chain([&host]).find(|row| row.id == dir.identity());
            detail::detail(&mut rows, dir, known, wanted)
        });
        Model {
            taken: self.now.taken(),
            seconds: self.seconds(),
            zeroed: self.zero.map(Changes::time),
            host,
            guests,
            closed,
            detail,
            wanted: wanted.clone(),
        }
    }
}
