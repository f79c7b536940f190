//! What files show, of the cells and parts of directories.

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
}

/// A value over any number of instances.
struct Sum {
    raw: Total,
    shown: Total,
}

const OWN: usize = 0;
const ALL: usize = 1;

impl<'a> Sums<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, files: Vec<(&'a str, usize, u32)>) -> Self {
        let of = [(); 2].map(|()| vec![NONE; snapshot.identities]);
        let mut all =
            Self { snapshot, files: Vec::with_capacity(files.len()), of, sums: Vec::new() };
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
                let total = Total::new(descriptor);
                all.sums.push(Sum { raw: total.clone(), shown: total });
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

    fn add_cells(&mut self, n: usize, own: bool) {
        let snapshot = self.snapshot;
        let [what, raw, baseline] = snapshot.record(section::CELLS, n);
        let (group, flags) = split_pair(what);
        let [.., values, len] = snapshot.record::<4>(section::GROUPS, group as usize);
        let (first, count) = split_pair(values);
        let words = |first: u64| snapshot.words(first as usize, len as usize);
        let (raw, baseline) = (words(raw), (flags & flag::CLEARED != 0).then(|| words(baseline)));
        let departed = flags & flag::DEPARTED != 0;
        for value in &snapshot.values[first as usize..][..count as usize] {
            let Descriptor { ty, semantics, .. } = value.descriptor;
            if departed && semantics != Semantics::Cumulative {
                continue;
            }
            let range = value.word..value.word + ty.cells();
            let (raw, baseline) = (&raw[range.clone()], baseline.map(|words| &words[range]));
            let baseline = baseline.filter(|_| semantics == Semantics::Cumulative);
            for n in self.find(value.identity, own) {
                let sum = &mut self.sums[n];
                sum.raw.add_words(ty, raw, departed);
                match baseline {
                    None => sum.shown.add_words(ty, raw, departed),
                    Some(baseline) => {
                        let shown = raw.iter().zip(baseline);
                        let shown: Vec<_> = shown
                            .map(|(raw, from)| match departed {
                                true => raw.wrapping_sub(*from),
                                false => since(ty, *raw, *from),
                            })
                            .collect();
                        sum.shown.add_words(ty, &shown, departed);
                    }
                }
            }
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
        let shown = if is_cleared { snapshot.words(first as usize + len, len) } else { raw };
        for n in self.find(value.identity, flags & flag::OWN != 0 && !is_below) {
            let sum = &mut self.sums[n];
            merge(&mut sum.raw, ty, raw);
            merge(&mut sum.shown, ty, shown);
        }
    }

    /// What the files show.
    pub(super) fn values(self) -> Vec<Value<'a>> {
        let Self { snapshot, files, sums, .. } = self;
        let value = |(name, value, part, sum): (_, usize, _, u32)| {
            let Sum { raw, shown } = &sums[sum as usize];
            let descriptor = &snapshot.values[value].descriptor;
            Value { name, descriptor, part, raw: raw.clone(), shown: shown.clone() }
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
