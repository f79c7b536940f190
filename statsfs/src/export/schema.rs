//! What there is to be read in a subtree, as JSON: every value once, every kind of directory once with the paths
//! of those that are of it. README, "What the values are", has the format.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{Full, json};
use crate::aggregate::Buckets;
use crate::tree::files::{File, Files, IdentityId, file_mode, is_own};
use crate::tree::inode::{Field, Part};
use crate::tree::subtree::Subtree;
use crate::value::{Aggregations, Descriptor, Semantics, ValueType};

/// Grows when something means another thing than before, not when something is added.
pub(crate) const VERSION: u32 = 1;

#[derive(Serialize)]
struct Schema<'a, V, K, L> {
    version: u32,
    /// The directory that it is of.
    path: &'a str,
    histogram: [HistogramFile; Field::ALL.len()],
    groups: BTreeMap<&'a str, &'a str>,
    values: V,
    kinds: K,
    labels: L,
}

/// A list of which each item is made when it is written: all together may be more than there is room for.
struct List<F>(F);

impl<I: IntoIterator<Item: Serialize>, F: Fn() -> I> Serialize for List<F> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0())
    }
}

/// The same by key.
struct Map<F>(F);

impl<K: Serialize, V: Serialize, I: IntoIterator<Item = (K, V)>, F: Fn() -> I> Serialize
    for Map<F>
{
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0())
    }
}

/// A file in every histogram's directory.
#[derive(Serialize)]
struct HistogramFile {
    name: &'static str,
    semantics: &'static str,
    /// Whether only histograms with a sum have it.
    needs_sum: bool,
}

#[derive(Serialize)]
struct Value<'a> {
    name: &'a str,
    group: &'a str,
    r#type: &'static str,
    unit: &'static str,
    exponent: i8,
    semantics: &'static str,
    aggregations: Vec<&'static str>,
    help: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<BTreeMap<&'a str, &'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buckets: Option<Layout>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    states: &'a [Text],
}

/// The layout of a histogram.
#[derive(Serialize)]
struct Layout {
    /// Exclusive upper bounds of all buckets but the last, which has none.
    upper_bounds: Vec<u64>,
    /// Whether the sum of what was recorded is known.
    sum: bool,
}

/// The directories that have the same files.
#[derive(Serialize)]
struct Kind<F, P> {
    files: F,
    paths: P,
}

#[derive(Serialize)]
struct FileOfKind<'a> {
    name: &'a str,
    /// Among the values.
    value: usize,
    scope: &'static str,
    aggregate: &'static str,
    semantics: &'static str,
    #[serde(serialize_with = "octal")]
    mode: u16,
}

fn octal<S: Serializer>(mode: &u16, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{mode:04o}"))
}

/// Appends the description of what a subtree is of.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut groups = BTreeMap::new();
    let mut values: Vec<&File> = Vec::new();
    // One value may be described in several ways: by every process for itself.
    let mut number_of: HashMap<Described<'_>, usize> = HashMap::new();
    // Directories of one kind have their files in common.
    let mut kinds: Vec<(&Files, Vec<usize>)> = Vec::new();
    let mut kind_of = HashMap::new();
    let mut labelled = Vec::new();
    for (n, dir) in subtree.dirs().iter().enumerate() {
        if !dir.labels().is_empty() {
            labelled.push((n, dir));
        }
        if dir.files().iter().len() == 0 {
            continue;
        }
        let kind = *kind_of.entry(Arc::as_ptr(dir.files())).or_insert_with(|| {
            for file in dir.files().iter() {
                number_of.entry(described(file)).or_insert_with(|| {
                    groups.entry(file.group.name()).or_insert(file.group.help());
                    values.push(file);
                    values.len() - 1
                });
            }
            kinds.push((&**dir.files(), Vec::new()));
            kinds.len() - 1
        });
        kinds[kind].1.push(n);
    }
    let number_of = &number_of;
    let schema = Schema {
        version: VERSION,
        path: subtree.root(),
        histogram: Field::ALL.map(histogram_file),
        groups,
        values: List(|| values.iter().map(|file| value(file.group.name(), &file.value))),
        kinds: List(|| {
            kinds.iter().map(|(files, dirs)| Kind {
                files: List(|| {
                    files.iter().map(|file| file_of_kind(file, number_of[&described(file)]))
                }),
                paths: List(|| dirs.iter().map(|dir| subtree.path(*dir))),
            })
        }),
        labels: Map(|| {
            labelled.iter().map(|(n, dir)| {
                let labels = dir.labels().iter().map(|(key, value)| (&**key, &**value));
                (subtree.path(*n), labels.collect::<BTreeMap<_, _>>())
            })
        }),
    };
    json::write_line(&schema, most, out)
}

/// A value, and what else is said of it.
type Described<'a> = (IdentityId, &'a str, &'a Option<Text>, &'a Option<(Text, Text)>, &'a [Text]);
type Text = std::borrow::Cow<'static, str>;

fn described(file: &File) -> Described<'_> {
    let Descriptor { help, family, label, states, .. } = &*file.value;
    (file.identity, help, family, label, states)
}

fn histogram_file(field: Field) -> HistogramFile {
    let semantics = match field {
        Field::Count | Field::Sum | Field::Buckets => "cumulative",
        Field::Mean | Field::Percentile(_) | Field::Max => "instant",
    };
    HistogramFile { name: field.name(), semantics, needs_sum: !field.without_sum() }
}

/// What is said of a value that was declared in this group.
pub(crate) fn value<'a>(group: &'a str, value: &'a Descriptor) -> impl Serialize + use<'a> {
    let label = value.label.as_ref().map(|(key, value)| BTreeMap::from([(&**key, &**value)]));
    Value {
        name: &value.name,
        group,
        r#type: type_name(value.ty),
        unit: value.unit.base.name(),
        exponent: value.unit.exponent,
        semantics: semantics_name(value.semantics),
        aggregations: KINDS
            .into_iter()
            .filter(|(kind, _)| value.aggregations.contains(*kind))
            .map(|(_, name)| name)
            .collect(),
        help: &value.help,
        family: value.family.as_deref(),
        label,
        buckets: layout(value.ty),
        states: &value.states,
    }
}

const KINDS: [(Aggregations, &str); 6] = [
    (Aggregations::SUM, "sum"),
    (Aggregations::MIN, "min"),
    (Aggregations::MAX, "max"),
    (Aggregations::AVG, "avg"),
    (Aggregations::COUNT_ZERO, "zero"),
    (Aggregations::COUNT_NONZERO, "nonzero"),
];

fn type_name(ty: ValueType) -> &'static str {
    match ty {
        ValueType::Bool => "bool",
        ValueType::U8 => "u8",
        ValueType::U16 => "u16",
        ValueType::U32 => "u32",
        ValueType::U64 => "u64",
        ValueType::S8 => "s8",
        ValueType::S16 => "s16",
        ValueType::S32 => "s32",
        ValueType::S64 => "s64",
        ValueType::Histogram { .. } => "histogram",
    }
}

fn semantics_name(semantics: Semantics) -> &'static str {
    match semantics {
        Semantics::Cumulative => "cumulative",
        Semantics::Floating => "instant",
        Semantics::Peak => "peak",
    }
}

fn layout(ty: ValueType) -> Option<Layout> {
    let ValueType::Histogram { buckets, sum } = ty else { return None };
    let cells = vec![0; ty.cells()];
    let bounds = Buckets::new(ty, &cells);
    Some(Layout { upper_bounds: (0..buckets.into()).map_while(|n| bounds.upper(n)).collect(), sum })
}

/// How what a file shows behaves over time: the value itself, or one kind of aggregate of it.
pub(super) fn semantics(value: &Descriptor, kind: Option<Aggregations>) -> Semantics {
    match (value.semantics, kind) {
        (Semantics::Cumulative, None | Some(Aggregations::SUM)) => Semantics::Cumulative,
        (Semantics::Peak, None | Some(Aggregations::MAX)) => Semantics::Peak,
        _ => Semantics::Floating,
    }
}

fn file_of_kind(file: &File, value: usize) -> FileOfKind<'_> {
    let File { value: of, part, .. } = file;
    let own = is_own(of, *part);
    let kind = match part {
        Part::Aggregate(kind) => Some(*kind),
        Part::Histogram | Part::Field(_) if !own => Some(Aggregations::SUM),
        _ => None,
    };
    let name = |kind| KINDS.into_iter().find(|(of, _)| *of == kind).map(|(_, name)| name);
    FileOfKind {
        name: &file.name,
        value,
        scope: if own { "own" } else { "subtree" },
        aggregate: kind.and_then(name).unwrap_or("none"),
        semantics: semantics_name(semantics(of, kind)),
        // A histogram is a directory: this is the mode of what takes a 0.
        mode: match part {
            Part::Histogram => file_mode(of, Part::Field(Field::Count)),
            part => file_mode(of, *part),
        },
    }
}
