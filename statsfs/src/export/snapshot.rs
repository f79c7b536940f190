//! Everything of a subtree, for programs: [`crate::snapshot::format`] has the format.
//!
//! What is cells there is copied as it was read; nothing is looked up or formatted for each of them. First it is
//! decided what goes where, of which only references are kept, then all is written at once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Full, fits};
use crate::pages::will_be_filled;
use crate::segment::layout::pair;
use crate::segment::schema::{base_code, semantics_code, type_code};
use crate::snapshot::format::{MAGIC, VERSION, flag, header, section};
use crate::tree::files::{File, Files, IdentityId, is_own};
use crate::tree::inode::Part;
use crate::tree::render::{Shown, Total};
use crate::tree::subtree::{Place, Subtree};
use crate::value::{Aggregations, Descriptor, GroupDescriptor};

/// None of what is numbered.
const NONE: u32 = u32::MAX;

/// Appends a snapshot, unless it has more than `most` bytes.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut writer = Writer::new(subtree, most);
    // What of a group is shown one by one has names that are to be seen.
    let is_shown = |place: &&Place| {
        let has_left = || subtree.words_of(place).0.iter().any(|word| *word != 0);
        place.own && !place.departed || place.departs_here && has_left()
    };
    for place in subtree.all_places().iter().filter(is_shown) {
        writer.known(subtree.group_of(place));
    }
    for n in 0..subtree.dirs().len() {
        writer.directory(n);
        fits(writer.len(), most)?;
    }
    writer.finish(out)
}

/// Words that are to be written.
enum Source<'a> {
    /// As they were read.
    Read(&'a [u64]),
    /// As they were made.
    Made(Range<usize>),
}

/// Texts, each at its place.
#[derive(Default)]
struct Texts(Vec<u8>);

impl Texts {
    fn add(&mut self, text: &str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        let at = self.0.len();
        self.0.extend_from_slice(text.as_bytes());
        pair(at as u32, text.len() as u32)
    }
}

/// What is not shown one by one, of one value.
struct Rest {
    identity: IdentityId,
    own: bool,
    raw: Total,
    shown: Total,
}

struct Writer<'a> {
    subtree: &'a Subtree,
    most: usize,
    texts: Texts,
    directories: Vec<u64>,
    labels: Vec<u64>,
    kinds: Vec<u64>,
    files: Vec<u64>,
    groups: Vec<u64>,
    values: Vec<u64>,
    cells: Vec<u64>,
    parts: Vec<u64>,
    sources: Vec<Source<'a>>,
    /// How many words these are.
    words: usize,
    made: Vec<u64>,
    kind_of: HashMap<*const Files, Kind>,
    /// By the address of its description, a group's number.
    group_of: HashMap<*const GroupDescriptor, u32>,
    /// By the tree's number, the number of a group of which there are cells.
    known: Vec<Option<u32>>,
    /// By group and identity, a value's number.
    value_of: HashMap<(u32, IdentityId), u32>,
    /// The kind of the last directory: the next one is often of the same.
    last_kind: Option<(*const Files, u32)>,
    /// How many sources of each group a directory has.
    owners: Vec<u32>,
    /// What is not shown one by one in a directory, and where in it each identity is: of the directory's own, of others.
    rests: Vec<Rest>,
    rest_of: [Vec<u32>; 2],
}

/// What the directories of a kind show.
struct Kind {
    number: u32,
    /// The identities that are shown over all in and below the directory.
    shared: HashMap<IdentityId, ShownAs>,
    /// Those that are shown of the directory's own.
    own: HashMap<IdentityId, ShownAs>,
}

/// What files show of an identity.
#[derive(Clone, Copy)]
struct ShownAs {
    /// The number of its value.
    value: u32,
    kinds: Aggregations,
}

impl<'a> Writer<'a> {
    fn new(subtree: &'a Subtree, most: usize) -> Self {
        let dirs = subtree.dirs().len();
        Self {
            subtree,
            most,
            texts: Texts::default(),
            directories: Vec::with_capacity(dirs * section::SIZES[section::DIRECTORIES] / 8),
            labels: Vec::new(),
            kinds: Vec::new(),
            files: Vec::new(),
            groups: Vec::new(),
            values: Vec::new(),
            cells: Vec::new(),
            parts: Vec::new(),
            sources: Vec::with_capacity(dirs),
            words: 0,
            made: Vec::new(),
            kind_of: HashMap::new(),
            group_of: HashMap::new(),
            known: vec![None; subtree.group_limit()],
            value_of: HashMap::new(),
            last_kind: None,
            owners: vec![0; subtree.group_limit()],
            rests: Vec::new(),
            rest_of: [Vec::new(), Vec::new()],
        }
    }

    /// The sections of records, in their order.
    fn sections(&self) -> [&Vec<u64>; 8] {
        [
            &self.directories,
            &self.labels,
            &self.kinds,
            &self.files,
            &self.groups,
            &self.values,
            &self.cells,
            &self.parts,
        ]
    }

    /// Bytes so far.
    fn len(&self) -> usize {
        let records = self.sections().iter().map(|section| section.len()).sum::<usize>();
        let words = header::WORDS + self.words + records;
        let texts = self.texts.0.len() + self.subtree.root().len();
        words * 8 + texts.next_multiple_of(8)
    }

    /// A number of records as they are counted.
    fn count(section: &[u64], of: usize) -> u32 {
        (section.len() / (section::SIZES[of] / 8)) as u32
    }

    fn directory(&mut self, n: usize) {
        let subtree = self.subtree;
        let dir = &subtree.dirs()[n];
        let kind = self.kind(dir.files());
        let labels = Self::count(&self.labels, section::LABELS);
        for (key, value) in dir.labels() {
            let (key, value) = (self.texts.add(key), self.texts.add(value));
            self.labels.extend([key, value]);
        }
        let (cells, parts) =
            (Self::count(&self.cells, section::CELLS), Self::count(&self.parts, section::PARTS));
        self.places_of(n);
        let counted = |from: u32, section: &[u64], of| pair(from, Self::count(section, of) - from);
        let called = dir.called();
        let bare = dir.name().len() - called.bare().len();
        let name = self.texts.add(dir.name());
        self.directories.extend([
            dir.id(),
            dir.created(),
            pair(dir.parent() as u32, dir.end() as u32),
            name,
            pair(called.pid().unwrap_or(0), bare as u32),
            pair(kind, dir.children() as u32),
            pair(labels, dir.labels().len() as u32),
            counted(cells, &self.cells, section::CELLS),
            counted(parts, &self.parts, section::PARTS),
        ]);
    }

    /// The number of a kind of directories.
    fn kind(&mut self, files: &'a Arc<Files>) -> u32 {
        let address = Arc::as_ptr(files);
        if let Some((_, number)) = self.last_kind.filter(|(last, _)| *last == address) {
            return number;
        }
        if let Some(&Kind { number, .. }) = self.kind_of.get(&address) {
            self.last_kind = Some((address, number));
            return number;
        }
        let first = Self::count(&self.files, section::FILES);
        let (mut shared, mut own) = (HashMap::new(), HashMap::new());
        for file in files.iter() {
            let value = self.value_of(file);
            let (part, kind) = match file.part {
                Part::Own => (0, Aggregations::SUM),
                Part::Aggregate(kind) => (1 + kind.bits().trailing_zeros(), kind),
                Part::Histogram | Part::Field(_) => (8, Aggregations::SUM),
            };
            let of = if is_own(&file.value, file.part) { &mut own } else { &mut shared };
            let new = ShownAs { value, kinds: Aggregations::NONE };
            let shown: &mut ShownAs = of.entry(file.identity).or_insert(new);
            shown.kinds = shown.kinds | kind;
            let name = self.texts.add(&file.name);
            self.files.extend([name, pair(value, part)]);
        }
        let number = self.kinds.len() as u32;
        self.kinds.push(pair(first, Self::count(&self.files, section::FILES) - first));
        self.kind_of.insert(address, Kind { number, shared, own });
        number
    }

    /// The number of the value that a file shows: its group's, or one that stands alone.
    fn value_of(&mut self, file: &'a File) -> u32 {
        let group = match self.group_of.get(&Arc::as_ptr(&file.group)) {
            Some(group) => *group,
            None => self.group(&file.group),
        };
        if let Some(value) = self.value_of.get(&(group, file.identity)) {
            return *value;
        }
        self.value(&file.value, file.identity, group)
    }

    fn group(&mut self, group: &Arc<GroupDescriptor>) -> u32 {
        let (name, help) = (self.texts.add(group.name()), self.texts.add(group.help()));
        self.groups.extend([name, help, 0, 0]);
        let number = Self::count(&self.groups, section::GROUPS) - 1;
        self.group_of.insert(Arc::as_ptr(group), number);
        number
    }

    fn value(&mut self, value: &Descriptor, identity: IdentityId, group: u32) -> u32 {
        let (code, buckets, sum) = type_code(value.ty);
        let (base, semantics) = (base_code(value.unit.base), semantics_code(value.semantics));
        let bits = value.aggregations.bits();
        let exponent = value.unit.exponent as u8;
        let what = [code, buckets, sum, base, exponent, semantics, bits, 0];
        let (key, label) = value.label.as_ref().map_or(("", ""), |(key, label)| (&**key, &**label));
        let texts = &mut self.texts;
        self.values.extend([
            texts.add(&value.name),
            texts.add(&value.help),
            u64::from_le_bytes(what),
            pair(identity as u32, group),
            texts.add(value.family.as_deref().unwrap_or("")),
            texts.add(key),
            texts.add(label),
            texts.add(&value.states.join(",")),
        ]);
        let number = Self::count(&self.values, section::VALUES) - 1;
        self.value_of.insert((group, identity), number);
        number
    }

    /// The number of a group of which there are cells, with all of its values.
    fn known(&mut self, group: usize) -> u32 {
        if let Some(number) = self.known[group] {
            return number;
        }
        let Some((descriptor, identities)) = self.subtree.group(group) else { return NONE };
        let number = match self.group_of.get(&Arc::as_ptr(descriptor)) {
            Some(number) => *number,
            None => self.group(descriptor),
        };
        let first = Self::count(&self.values, section::VALUES);
        for (value, identity) in descriptor.values().iter().zip(identities) {
            // What is not told apart any more has no identity, and no file.
            self.value(value, identity.unwrap_or(NONE as usize), number);
        }
        let at = number as usize * section::SIZES[section::GROUPS] / 8;
        self.groups[at + 2] = pair(first, descriptor.values().len() as u32);
        self.groups[at + 3] = descriptor.words() as u64;
        self.known[group] = Some(number);
        number
    }

    /// Decides how everything in a directory is shown, and what is not to be seen right below it.
    fn places_of(&mut self, n: usize) {
        let subtree = self.subtree;
        let places = subtree.places(n);
        let is_one = |place: &&Place| place.own && !place.departed;
        for place in places.iter().filter(is_one) {
            self.owners[subtree.group_of(place)] += 1;
        }
        let mut departed: Vec<(usize, bool, Vec<&'a Place>)> = Vec::new();
        for place in places {
            let group = subtree.group_of(place);
            if place.departs_here {
                match departed.iter_mut().find(|(of, own, _)| (*of, *own) == (group, place.own)) {
                    Some((_, _, all)) => all.push(place),
                    None => departed.push((group, place.own, vec![place])),
                }
            } else if place.own && !place.departed && self.owners[group] == 1 {
                let (raw, baseline) = subtree.words_of(place);
                let baseline = baseline.map(Source::Read);
                self.push_cells(group, flag::OWN, Source::Read(raw), baseline, raw.len());
            } else {
                self.add_rest(place);
            }
        }
        for place in places.iter().filter(is_one) {
            self.owners[subtree.group_of(place)] = 0;
        }
        for (group, own, places) in departed {
            self.departed(group, own, &places);
        }
        self.push_rests(n);
    }

    fn push_cells(
        &mut self,
        group: usize,
        flags: u32,
        raw: Source<'a>,
        baseline: Option<Source<'a>>,
        len: usize,
    ) {
        let number = self.known(group);
        let flags = flags | if baseline.is_some() { flag::CLEARED } else { 0 };
        let first = self.words as u64;
        let of_baseline = if baseline.is_some() { first + len as u64 } else { 0 };
        self.cells.extend([pair(number, flags), first, of_baseline]);
        for source in [Some(raw), baseline].into_iter().flatten() {
            self.words += len;
            self.sources.push(source);
        }
    }

    /// Words that were made.
    fn made(&mut self, words: impl IntoIterator<Item = u64>) -> Source<'a> {
        let start = self.made.len();
        self.made.extend(words);
        Source::Made(start..self.made.len())
    }

    /// Adds up what departed.
    fn departed(&mut self, group: usize, own: bool, places: &[&'a Place]) {
        let Some((descriptor, _)) = self.subtree.group(group) else { return };
        let len = descriptor.words();
        let (mut raw, mut cleared) = (vec![0u64; len], vec![0u64; len]);
        for place in places {
            let (_, baseline) = self.subtree.words_of(place);
            for (to, baseline) in [(&mut raw, None), (&mut cleared, baseline)] {
                self.subtree.each_since(
                    place,
                    baseline,
                    |_| true,
                    |first, shown| {
                        for (to, word) in to[first..].iter_mut().zip(&*shown.words) {
                            *to = to.wrapping_add(*word);
                        }
                    },
                );
            }
        }
        if raw.iter().chain(&cleared).all(|word| *word == 0) {
            return;
        }
        for (shown, raw) in cleared.iter_mut().zip(&raw) {
            *shown = raw.wrapping_sub(*shown);
        }
        let flags = flag::DEPARTED | if own { flag::OWN } else { 0 };
        let is_cleared = cleared.iter().any(|word| *word != 0);
        let raw = self.made(raw);
        let baseline = is_cleared.then(|| self.made(cleared));
        self.push_cells(group, flags, raw, baseline, len);
    }

    /// Adds a place to what is not shown one by one.
    fn add_rest(&mut self, place: &'a Place) {
        let Self { subtree, rests, rest_of, .. } = self;
        let of = &mut rest_of[usize::from(place.own)];
        let (_, baseline) = subtree.words_of(place);
        for (is_raw, baseline) in [(true, None), (false, baseline)] {
            subtree.each_since(
                place,
                baseline,
                |_| true,
                |_, shown| {
                    let Shown { identity, value, .. } = shown;
                    if of.len() <= identity {
                        of.resize(identity + 1, NONE);
                    }
                    if of[identity] == NONE {
                        of[identity] = rests.len() as u32;
                        let (raw, total) = (Total::new(value), Total::new(value));
                        rests.push(Rest { identity, own: place.own, raw, shown: total });
                    }
                    let rest = &mut rests[of[identity] as usize];
                    let total = if is_raw { &mut rest.raw } else { &mut rest.shown };
                    total.add(&shown);
                },
            );
        }
    }

    /// Writes down what is not shown one by one in a directory, as far as a file shows it, there or above.
    fn push_rests(&mut self, n: usize) {
        let mut rests = std::mem::take(&mut self.rests);
        for Rest { identity, own, raw, shown } in rests.drain(..) {
            self.rest_of[usize::from(own)][identity] = NONE;
            let Some(ShownAs { value, kinds }) = self.shown_by(n, identity, own) else { continue };
            let words = |total| match total {
                Total::Scalar(scalar) => scalar.for_kinds(kinds).to_words().to_vec(),
                Total::Histogram(cells) => cells,
            };
            let (raw, shown) = (words(raw), words(shown));
            let cleared = Some(shown).filter(|shown| *shown != raw);
            let is_cleared = if cleared.is_some() { flag::CLEARED } else { 0 };
            let flags = if own { flag::OWN } else { 0 } | is_cleared;
            self.parts.extend([pair(value, flags), self.words as u64]);
            for words in [Some(raw), cleared].into_iter().flatten() {
                self.words += words.len();
                let made = self.made(words);
                self.sources.push(made);
            }
        }
        self.rests = rests;
    }

    /// What of an identity a directory shows, and those above it. Nothing is said of what none shows.
    fn shown_by(&self, n: usize, identity: IdentityId, own: bool) -> Option<ShownAs> {
        let dirs = self.subtree.dirs();
        let kind = |dir: usize| self.kind_of.get(&Arc::as_ptr(dirs[dir].files()));
        let mut found = kind(n).filter(|_| own).and_then(|kind| kind.own.get(&identity)).copied();
        let mut at = n;
        loop {
            if let Some(more) = kind(at).and_then(|kind| kind.shared.get(&identity)) {
                let shown = found.get_or_insert(*more);
                shown.kinds = shown.kinds | more.kinds;
            }
            if at == 0 {
                return found;
            }
            at = dirs[at].parent();
        }
    }

    /// Writes it all.
    fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Full> {
        let len = self.len();
        fits(out.len() + len, self.most)?;
        let start = out.len();
        let mut texts = std::mem::take(&mut self.texts);
        let sections = self.sections();
        let mut head = vec![0; header::WORDS];
        let taken = self.subtree.taken();
        let path = self.subtree.root();
        head[header::MAGIC] = MAGIC;
        head[header::VERSION] = pair(VERSION, header::WORDS as u32 * 8);
        head[header::LENGTH] = len as u64;
        (head[header::REALTIME], head[header::MONOTONIC]) = (taken.realtime, taken.monotonic);
        head[header::PATH] = texts.add(path);
        out.reserve_exact(len);
        will_be_filled(out.spare_capacity_mut());
        let mut at = header::WORDS * 8;
        let lens = sections.map(|section| section.len()).into_iter().chain([self.words]);
        let lens = lens.map(|words| words * 8).chain([texts.0.len()]);
        for (n, (len, size)) in lens.zip(section::SIZES).enumerate() {
            head[header::SECTIONS + 2 * n] = at as u64;
            head[header::SECTIONS + 2 * n + 1] = (len / size) as u64;
            at += len;
        }
        out.extend_from_slice(head.as_bytes());
        sections.iter().for_each(|section| out.extend_from_slice(section.as_bytes()));
        for source in &self.sources {
            let words = match source {
                Source::Read(words) => words,
                Source::Made(range) => &self.made[range.clone()],
            };
            out.extend_from_slice(words.as_bytes());
        }
        out.extend_from_slice(&texts.0);
        out.resize(start + len, 0);
        Ok(())
    }
}
