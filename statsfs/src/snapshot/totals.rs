//! What files show, of the cells and parts of directories.

use std::collections::HashMap;
use std::ops::Range;

use super::format::{flag, section};
use super::value::Value;
use super::{Dir, Snapshot};
use crate::aggregate::{Scalar, since};
use crate::segment::layout::split_pair;
use crate::tree::files::is_own;
use crate::tree::inode::Part;
use crate::tree::render::Total;
use crate::value::{Aggregations, Descriptor, Semantics, ValueType};

/// No sum.
const NONE: u32 = u32::MAX;

/// The sums that some files show.
pub(super) struct Sums<'a> {
    snapshot: &'a Snapshot,
    /// Name, value, what of it is shown, and which sum that is.
    files: Vec<(&'a str, usize, Part, u32)>,
    /// Which sum is of each identity: of the directory's own, and of all.
    of: [Vec<u32>; 2],
    sums: Vec<Sum>,
    /// What is added of the cells of a group, of the directory's own and of others: as it was found out for the first of many.
    steps: HashMap<(u32, bool), Box<[Step]>>,
}

/// A value over any number of instances.
struct Sum {
    raw: Total,
    /// None as long as it is the same.
    shown: Option<Total>,
}

/// A value of a group, and a sum that it is in.
#[derive(Clone, Copy)]
struct Step {
    word: usize,
    ty: ValueType,
    is_cumulative: bool,
    sum: u32,
}

impl Sum {
    /// What is shown, where that becomes something else than what is raw.
    fn shown(&mut self) -> &mut Total {
        self.shown.get_or_insert_with(|| self.raw.clone())
    }
}

const OWN: usize = 0;
const ALL: usize = 1;

impl<'a> Sums<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, files: Vec<(&'a str, usize, u32)>) -> Self {
        let of = [(); 2].map(|()| vec![NONE; snapshot.identities]);
        let all = Vec::with_capacity(files.len());
        let mut all = Self { snapshot, files: all, of, sums: Vec::new(), steps: HashMap::new() };
        for (name, value, part) in files {
            let descriptor = &snapshot.values[value].descriptor;
            let Some(identity) = snapshot.values[value].identity else { continue };
            let part = match part {
                0 => Part::Own,
                8 => Part::Histogram,
                kind => {
                    Part::Aggregate(Aggregations::from_bits(1 << (kind - 1)).unwrap_or_default())
                }
            };
            let of = &mut all.of[if is_own(descriptor, part) { OWN } else { ALL }][identity];
            if *of == NONE {
                *of = all.sums.len() as u32;
                all.sums.push(Sum { raw: Total::new(descriptor), shown: None });
            }
            all.files.push((name, value, part, *of));
        }
        all
    }

    /// The sums that an identity is in.
    fn find(&self, identity: Option<usize>, own: bool) -> impl Iterator<Item = usize> + use<> {
        let of = |which: usize| identity.map_or(NONE, |identity| self.of[which][identity]);
        let found = [if own { of(OWN) } else { NONE }, of(ALL)];
        found.into_iter().filter(|n| *n != NONE).map(|n| n as usize)
    }

    /// Adds all in directories, of which the first is the one that the files are in.
    pub(super) fn add_all(&mut self, dirs: Range<usize>) {
        for n in dirs.clone() {
            let is_below = n != dirs.start;
            let dir = Dir { snapshot: self.snapshot, n };
            for (_, flags, cells) in dir.cells(0) {
                self.add_cells(cells, flags & flag::OWN != 0 && !is_below);
            }
            let (first, count) = split_pair(dir.record()[8]);
            for part in (first as usize..).take(count as usize) {
                self.add_part(part, is_below);
            }
        }
    }

    /// Adds what sources left in a directory that are gone.
    pub(super) fn add_departed(&mut self, n: usize) {
        let dir = Dir { snapshot: self.snapshot, n };
        for (_, _, cells) in dir.cells(flag::DEPARTED) {
            self.add_cells(cells, true);
        }
    }

    /// What is to be added of each cells of a group.
    fn steps(&self, group: u32, own: bool) -> Box<[Step]> {
        let [.., values, _] = self.snapshot.record::<4>(section::GROUPS, group as usize);
        let (first, count) = split_pair(values);
        let values = &self.snapshot.values[first as usize..][..count as usize];
        let steps = values.iter().flat_map(|value| {
            let Descriptor { ty, semantics, .. } = value.descriptor;
            let (word, is_cumulative) = (value.word, semantics == Semantics::Cumulative);
            let sums = self.find(value.identity, own);
            sums.map(move |sum| Step { word, ty, is_cumulative, sum: sum as u32 })
        });
        steps.collect()
    }

    fn add_cells(&mut self, n: usize, own: bool) {
        let snapshot = self.snapshot;
        let [what, raw, baseline] = snapshot.record(section::CELLS, n);
        let (group, flags) = split_pair(what);
        if !self.steps.contains_key(&(group, own)) {
            self.steps.insert((group, own), self.steps(group, own));
        }
        let steps = &self.steps[&(group, own)];
        let [.., len] = snapshot.record::<4>(section::GROUPS, group as usize);
        let words = |first: u64| snapshot.words(first as usize, len as usize);
        let (raw, baseline) = (words(raw), (flags & flag::CLEARED != 0).then(|| words(baseline)));
        let departed = flags & flag::DEPARTED != 0;
        for Step { word, ty, is_cumulative, sum } in steps {
            if departed && !is_cumulative {
                continue;
            }
            let range = *word..*word + ty.cells();
            let (raw, sum) = (&raw[range.clone()], &mut self.sums[*sum as usize]);
            match baseline.filter(|_| *is_cumulative) {
                None => {
                    if let Some(shown) = &mut sum.shown {
                        shown.add_words(*ty, raw, departed);
                    }
                }
                Some(baseline) => {
                    let shown = raw.iter().zip(&baseline[range]);
                    let shown: Vec<_> = shown
                        .map(|(raw, from)| match departed {
                            true => raw.wrapping_sub(*from),
                            false => since(*ty, *raw, *from),
                        })
                        .collect();
                    sum.shown().add_words(*ty, &shown, departed);
                }
            }
            sum.raw.add_words(*ty, raw, departed);
        }
    }

    fn add_part(&mut self, n: usize, is_below: bool) {
        let snapshot = self.snapshot;
        let [what, first] = snapshot.record(section::PARTS, n);
        let (value, flags) = split_pair(what);
        let value = &snapshot.values[value as usize];
        let ty = value.descriptor.ty;
        let len = if ty.is_histogram() { ty.cells() } else { Scalar::WORDS };
        let raw = snapshot.words(first as usize, len);
        let is_cleared = flags & flag::CLEARED != 0;
        for n in self.find(value.identity, flags & flag::OWN != 0 && !is_below) {
            let sum = &mut self.sums[n];
            if is_cleared {
                merge(sum.shown(), ty, snapshot.words(first as usize + len, len));
            } else if let Some(shown) = &mut sum.shown {
                merge(shown, ty, raw);
            }
            merge(&mut sum.raw, ty, raw);
        }
    }

    /// What the files show.
    pub(super) fn values(self) -> Vec<Value<'a>> {
        let Self { snapshot, files, sums, .. } = self;
        let value = |(name, value, part, sum): (_, usize, _, u32)| {
            let Sum { raw, shown } = &sums[sum as usize];
            let descriptor = &snapshot.values[value].descriptor;
            let shown = shown.as_ref().unwrap_or(raw).clone();
            Value { name, descriptor, part, raw: raw.clone(), shown }
        };
        files.into_iter().map(value).collect()
    }
}

/// Adds the words of a part.
fn merge(total: &mut Total, ty: ValueType, words: &[u64]) {
    match total {
        Total::Histogram(_) => total.add_words(ty, words, false),
        Total::Scalar(scalar) => {
            if let Some(words) = words.first_chunk() {
                scalar.merge(ty, &Scalar::from_words(*words));
            }
        }
    }
}
