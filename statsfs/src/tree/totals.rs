//! What the files of a subtree's directories show.
//!
//! Each directory is totalled when its turn comes, from what was read in and below it, which is all in one
//! place: so what it takes is one directory's totals, however many there are, and to look at each of the
//! sweep's cells once for each directory that it is in or below.

use std::sync::Arc;

use super::files::{File, Files, IdentityId, is_own};
use super::render::Total;
use super::subtree::{Place, Subtree};

/// What every file of a subtree shows.
#[derive(Debug)]
pub(crate) struct Totals<'a> {
    subtree: &'a Subtree,
    sums: Sums<'a>,
}

/// The sums that the files of one kind of directories show.
#[derive(Debug, Default)]
struct Sums<'a> {
    /// The files that they are for.
    files: Option<&'a Arc<Files>>,
    /// Where they are of each identity that a file shows.
    of_identities: Vec<Slots>,
    totals: Vec<Total>,
}

/// Which totals are of one identity.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    /// Over the directory's own instances.
    own: Option<u32>,
    /// Over all in and below it.
    all: Option<u32>,
}

impl Slots {
    fn of(&mut self, file: &File) -> &mut Option<u32> {
        if is_own(&file.value, file.part) { &mut self.own } else { &mut self.all }
    }
}

impl<'a> Sums<'a> {
    /// Makes them 0, of these files.
    fn begin(&mut self, files: &'a Arc<Files>) {
        if self.files.is_some_and(|of| Arc::ptr_eq(of, files)) {
            self.totals.iter_mut().for_each(Total::reset);
            return;
        }
        for file in self.files.into_iter().flat_map(|files| files.iter()) {
            self.of_identities[file.identity] = Slots::default();
        }
        self.totals.clear();
        self.files = Some(files);
        for file in files.iter() {
            if self.of_identities.len() <= file.identity {
                self.of_identities.resize(file.identity + 1, Slots::default());
            }
            self.of_identities[file.identity].of(file).get_or_insert_with(|| {
                self.totals.push(Total::new(&file.value));
                self.totals.len() as u32 - 1
            });
        }
    }

    /// Adds what is shown in the directory, or below it.
    fn add(&mut self, subtree: &'a Subtree, place: &Place, is_below: bool) {
        let Self { of_identities, totals, .. } = self;
        let slots = |identity: IdentityId| {
            let slots = of_identities.get(identity).copied().unwrap_or_default();
            let own = slots.own.filter(|_| place.own && !is_below);
            own.into_iter().chain(slots.all)
        };
        let is_shown = |identity| slots(identity).next().is_some();
        subtree.each_shown(place, is_shown, |shown| {
            slots(shown.identity).for_each(|slot| totals[slot as usize].add(&shown));
        });
    }

    /// What a file shows.
    fn of(&mut self, file: &File) -> &Total {
        let slot = *self.of_identities[file.identity].of(file);
        &self.totals[slot.expect("each file was given one") as usize]
    }
}

impl<'a> Totals<'a> {
    /// Those of a subtree.
    pub(crate) fn of(subtree: &'a Subtree) -> Self {
        Self { subtree, sums: Sums::default() }
    }

    /// Calls `visit` with each file of a directory, in listing order, and what it shows, until that fails.
    pub(crate) fn try_each_file<E>(
        &mut self,
        dir: usize,
        mut visit: impl FnMut(&'a File, &Total) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { subtree, sums } = self;
        let files = subtree.dirs()[dir].files();
        if files.iter().len() == 0 {
            return Ok(());
        }
        sums.begin(files);
        subtree.places(dir).iter().for_each(|place| sums.add(subtree, place, false));
        subtree.places_below(dir).iter().for_each(|place| sums.add(subtree, place, true));
        files.iter().try_for_each(|file| visit(file, sums.of(file)))
    }
}
