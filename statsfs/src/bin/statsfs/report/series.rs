//! What came between the looks of a recording, by guest.

use std::collections::HashMap;

use statsfs::snapshot::{Changes, Dir, DirIdentity, Snapshot, What};

use super::columns::{self, Column};
use super::part::{Names, Part};

/// Most guests of which something is kept at a time: of those that are gone, those that did least are let go of.
const MOST_PARTS: usize = 4096;

/// What the parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All guests of a host.
    Host,
    /// The vCPUs of a guest.
    Guest,
    /// One vCPU, which has no parts.
    Vcpu,
}

impl Scope {
    /// Of a recording of this directory; none if there are no guests in it.
    pub fn of(snapshot: &Snapshot) -> Option<Self> {
        let root = snapshot.root();
        Some(match root.what() {
            What::Mount => Self::Host,
            What::Top if root.path() == "kvm" => Self::Host,
            What::Guest => Self::Guest,
            What::Vcpu => Self::Vcpu,
            _ => return None,
        })
    }

    /// The directory that has the totals.
    pub fn whole(self, snapshot: &Snapshot) -> Option<Dir<'_>> {
        if self == Self::Host { snapshot.dir("kvm") } else { Some(snapshot.root()) }
    }

    fn is_part(self, dir: Dir<'_>) -> bool {
        match self {
            Self::Host => dir.what() == What::Guest,
            Self::Guest => dir.what() == What::Vcpu,
            Self::Vcpu => false,
        }
    }
}

/// All of it.
#[derive(Debug)]
pub struct Series {
    pub scope: Scope,
    pub columns: Vec<Column>,
    pub whole: Part,
    parts: HashMap<DirIdentity, Part>,
    names: Names,
    /// Looks that a column is made of.
    looks: usize,
    /// Those that the last one has.
    last: usize,
    /// All guests that there were.
    pub seen: usize,
}

impl Series {
    /// Nothing yet, but what is there at the beginning.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            columns: Vec::new(),
            whole: Part::default(),
            parts: HashMap::new(),
            names: Names::default(),
            looks: 1,
            last: 1,
            seen: 0,
        }
    }

    /// Adds what came between two looks.
    pub fn add(&mut self, changes: &Changes<'_>, after: &Snapshot, column: Column) {
        let n = self.column(column);
        let Some(whole) = self.scope.whole(after) else { return };
        if self.whole.path.is_empty() {
            self.whole = Part::new(whole, 0);
        }
        self.whole.vcpus = 0;
        self.whole.add(changes, whole, n, &mut self.names);
        let (scope, mut vcpus) = (self.scope, 0);
        if scope == Scope::Guest {
            self.whole.add_devices(changes, whole);
        }
        for dir in whole.children().filter(|dir| scope.is_part(*dir)) {
            vcpus += 1;
            let part = self.parts.entry(dir.identity()).or_insert_with(|| {
                self.seen += 1;
                Part::new(dir, n)
            });
            part.add(changes, dir, n, &mut self.names);
            if scope == Scope::Host {
                part.add_devices(changes, dir);
            }
        }
        if scope == Scope::Guest {
            self.whole.vcpus = vcpus;
        }
        self.let_go();
    }

    /// The number of the column that this time is in.
    fn column(&mut self, column: Column) -> usize {
        let last = self.columns.last_mut().filter(|last| last.end == column.start);
        if let Some(last) = last.filter(|_| self.last < self.looks) {
            (last.end, last.gap) = (column.end, last.gap || column.gap);
            self.last += 1;
            return self.columns.len() - 1;
        }
        if self.columns.len() == columns::MOST {
            columns::halve(&mut self.columns);
            self.parts.values_mut().chain(Some(&mut self.whole)).for_each(Part::halve);
            self.looks *= 2;
        }
        self.columns.push(column);
        self.last = 1;
        self.columns.len() - 1
    }

    fn let_go(&mut self) {
        let too_many = self.parts.len().saturating_sub(MOST_PARTS);
        if too_many == 0 {
            return;
        }
        let now = self.columns.len();
        let gone = self.parts.iter().filter(|(_, part)| part.to < now);
        let mut gone: Vec<_> = gone.map(|(identity, part)| (part.weight(), *identity)).collect();
        gone.sort_unstable();
        gone.truncate(too_many);
        gone.iter().for_each(|(_, identity)| _ = self.parts.remove(identity));
    }

    /// The whole, the parts that did most, and what is in none of these, if there is any.
    pub fn finish(self, most: usize) -> Finished {
        let Self { scope, columns, mut whole, parts, seen, .. } = self;
        let mut parts: Vec<_> = parts.into_values().collect();
        parts.sort_by(|a, b| (b.weight(), &a.path).cmp(&(a.weight(), &b.path)));
        parts.truncate(most);
        let mut rest = whole.without(&parts.iter().collect::<Vec<_>>());
        // Each is sampled at times of its own.
        if scope == Scope::Vcpu {
            whole.spread(&columns);
        } else {
            parts.iter_mut().chain([&mut rest]).for_each(|part| part.spread(&columns));
            whole.sum_sampled(parts.iter().chain([&rest]));
        }
        let rest = Some(rest).filter(|rest| {
            scope != Scope::Vcpu && (seen > parts.len() || rest.sum("user_exits") > 0)
        });
        Finished { scope, columns, whole, parts, rest, seen }
    }
}

/// What is shown.
#[derive(Debug)]
pub struct Finished {
    pub scope: Scope,
    pub columns: Vec<Column>,
    pub whole: Part,
    /// Those that did most first.
    pub parts: Vec<Part>,
    /// What is in no part: of the others, and of those that left between two looks.
    pub rest: Option<Part>,
    /// How many parts there were.
    pub seen: usize,
}
