//! Bulk files: every value of a subtree, a line each.
//!
//! What one sweep read is shown twice, from the bottom up for the totals and from the top down as text; what is
//! kept in between is the totals of directories that others are in, which are few. What is in a directory
//! without others is worked out when its turn comes.

use std::collections::{BTreeMap, HashMap};

use super::State;
use super::access::Access;
use super::dirs::{Dir, ROOT_DIR};
use super::files::{File, Files, IdentityId, is_own};
use super::inode::{DirId, Field, Part};
use super::render::{Shown, Total, write_buckets};
use super::sweep::{Account, Sweep};
use crate::aggregate::Buckets;

/// Totals by identity.
type Totals = BTreeMap<IdentityId, Total>;

/// What a directory shows: its own instances, and all in and below it.
#[derive(Debug, Default)]
struct DirTotals {
    own: Totals,
    all: Totals,
}

/// Cells of a sweep that a directory shows.
#[derive(Debug)]
struct Place {
    dir: DirId,
    /// Which of the sweep's.
    cells: usize,
    /// Whether they are of a source that has the directory, and not of one without right below it.
    own: bool,
}

/// What a sweep read, by directory.
struct ByDir<'a> {
    state: &'a State,
    sweep: &'a Sweep,
    places: Vec<Place>,
}

impl<'a> ByDir<'a> {
    fn new(state: &'a State, sweep: &'a Sweep) -> Self {
        let place = |(cells, found): (usize, &super::sweep::Cells)| match found.account {
            Account::Left(dir) => Some(Place { dir, cells, own: false }),
            Account::Live(key) | Account::Departed(key) => {
                let own = state.sources.get(&key).is_some_and(|source| source.dir.is_some());
                Some(Place { dir: state.shown_in(key)?, cells, own })
            }
        };
        let mut places: Vec<_> = sweep.cells.iter().enumerate().filter_map(place).collect();
        places.sort_by_key(|place| place.dir);
        Self { state, sweep, places }
    }

    /// Calls `add` with every value that a directory's own sources count, or that is counted right below it
    /// without a directory; and with whether it is the directory's own.
    fn each_in(&self, dir: DirId, mut add: impl FnMut(Shown<'a>, bool)) {
        let start = self.places.partition_point(|place| place.dir < dir);
        for place in self.places[start..].iter().take_while(|place| place.dir == dir) {
            let cells = &self.sweep.cells[place.cells];
            self.state.each_of(self.sweep, cells, |shown| {
                let own = place.own && !shown.departed;
                add(shown, own);
            });
        }
    }

    /// Adds up what a directory with others in it shows, and what those of them show that have some too.
    fn sum_up(&self, dir: DirId, directory: &Dir, sums: &mut HashMap<DirId, DirTotals>) {
        let mut totals = DirTotals::default();
        let add = |totals: &mut Totals, shown: &Shown<'_>| {
            totals.entry(shown.identity).or_insert_with(|| Total::new(shown.value)).add(shown);
        };
        self.each_in(dir, |shown, own| {
            add(&mut totals.all, &shown);
            if own {
                add(&mut totals.own, &shown);
            }
        });
        for &child in &directory.children {
            let Some(below) = self.state.dirs.get(&child) else { continue };
            if below.children.is_empty() {
                self.each_in(child, |shown, _| {
                    if !shown.value.aggregations.is_empty() {
                        add(&mut totals.all, &shown);
                    }
                });
                continue;
            }
            self.sum_up(child, below, sums);
            for (identity, total) in &sums[&child].all {
                let Some(value) = self.state.identities.get(*identity) else { continue };
                if !value.aggregations.is_empty() {
                    let sum = totals.all.entry(*identity).or_insert_with(|| Total::new(value));
                    sum.merge(value, total);
                }
            }
        }
        sums.insert(dir, totals);
    }
}

/// What is in a directory without others, in the order of its files.
#[derive(Default)]
struct Leaf<'a>(Vec<(Shown<'a>, bool)>);

impl<'a> Leaf<'a> {
    fn fill(&mut self, of: &ByDir<'a>, dir: DirId) {
        self.0.clear();
        of.each_in(dir, |shown, own| self.0.push((shown, own)));
        self.0.sort_by_key(|(shown, _)| shown.identity);
    }

    /// The total of a file; `from` is where those of its value begin, and moves on.
    fn total(&self, file: &File, from: &mut usize) -> Total {
        let next = |from: usize| self.0.get(from).map(|(shown, _)| shown.identity);
        while next(*from).is_some_and(|identity| identity < file.identity) {
            *from += 1;
        }
        let mut total = Total::new(&file.value);
        let all = self.0[*from..].iter().take_while(|(shown, _)| shown.identity == file.identity);
        let own_only = is_own(&file.value, file.part);
        all.filter(|(_, own)| *own || !own_only).for_each(|(shown, _)| total.add(shown));
        total
    }
}

impl State {
    /// Appends `path value` for every file in and below a directory, of which the sweep is; those in
    /// directories below only as far as these may be entered. Stops after the directory with which there are more
    /// than `most` bytes.
    pub(crate) fn write_flat(
        &self,
        dir: DirId,
        access: &Access,
        sweep: &Sweep,
        most: usize,
        out: &mut Vec<u8>,
    ) {
        let Some(directory) = self.dirs.get(&dir) else { return };
        let by_dir = ByDir::new(self, sweep);
        let mut sums = HashMap::new();
        if !directory.children.is_empty() {
            by_dir.sum_up(dir, directory, &mut sums);
        }
        let path = self.path(dir);
        Text { by_dir, sums, access, leaf: Leaf::default(), path, most, out }.write(dir, directory);
    }

    /// Appends `path value` for every file of a directory's `.departed`.
    pub(crate) fn write_flat_departed(
        &self,
        dir: DirId,
        files: &Files,
        sweep: &Sweep,
        out: &mut Vec<u8>,
    ) {
        if !self.dirs.contains_key(&dir) {
            return;
        }
        let mut totals = Totals::new();
        for cells in &sweep.cells {
            if self.departs_in(cells.account) == Some(dir) {
                self.each_of(sweep, cells, |shown| {
                    if shown.departed {
                        let total = totals.entry(shown.identity);
                        total.or_insert_with(|| Total::new(shown.value)).add(&shown);
                    }
                });
            }
        }
        let mut path = self.path(dir);
        if dir != ROOT_DIR {
            path.push('/');
        }
        path.push_str(".departed/");
        for file in files.iter() {
            let none;
            let total = match totals.get(&file.identity) {
                Some(total) => total,
                None => {
                    none = Total::new(&file.value);
                    &none
                }
            };
            write_file(file, &path, total, out);
        }
    }
}

/// What is written, from the top down.
struct Text<'a> {
    by_dir: ByDir<'a>,
    sums: HashMap<DirId, DirTotals>,
    access: &'a Access,
    leaf: Leaf<'a>,
    path: String,
    most: usize,
    out: &'a mut Vec<u8>,
}

impl Text<'_> {
    fn write(&mut self, dir: DirId, directory: &Dir) {
        let len = self.path.len();
        if len > 0 {
            self.path.push('/');
        }
        self.write_files(dir);
        for &child in &directory.children {
            if self.out.len() > self.most {
                break;
            }
            let Some(below) = self.by_dir.state.dirs.get(&child) else { continue };
            if self.access.may_enter(below) {
                let len = self.path.len();
                self.path.push_str(&below.name);
                self.write(child, below);
                self.path.truncate(len);
            }
        }
        self.path.truncate(len);
    }

    fn write_files(&mut self, dir: DirId) {
        let Some(files) = self.by_dir.state.files(dir) else { return };
        if let Some(totals) = self.sums.get(&dir) {
            for file in files.iter() {
                let totals = if is_own(&file.value, file.part) { &totals.own } else { &totals.all };
                match totals.get(&file.identity) {
                    Some(total) => write_file(file, &self.path, total, self.out),
                    None => write_file(file, &self.path, &Total::new(&file.value), self.out),
                }
            }
            return;
        }
        self.leaf.fill(&self.by_dir, dir);
        let mut from = 0;
        for file in files.iter() {
            let total = self.leaf.total(file, &mut from);
            write_file(file, &self.path, &total, self.out);
        }
    }
}

/// Appends the lines of one file, which is in the directory that the path leads into.
fn write_file(file: &File, path: &str, total: &Total, out: &mut Vec<u8>) {
    let value = &*file.value;
    let Total::Histogram(cells) = total else {
        out.extend_from_slice(path.as_bytes());
        out.extend_from_slice(file.name.as_bytes());
        out.push(b' ');
        total.number(value, file.part).write(out);
        out.push(b'\n');
        return;
    };
    let prefix = format!("{path}{}/", file.name);
    let has_sum = Buckets::new(value.ty, cells).sum().is_some();
    for field in Field::ALL {
        if !has_sum && !field.without_sum() {
            continue;
        }
        if field == Field::Buckets {
            write_buckets(value, cells, format!("{prefix}buckets/").as_bytes(), out);
            continue;
        }
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(field.name().as_bytes());
        out.push(b' ');
        total.number(value, Part::Field(field)).write(out);
        out.push(b'\n');
    }
}
