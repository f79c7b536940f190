//! Values and groups: what a statistic is, before anything counts.
//!
//! A [`Descriptor`] says everything about one value (one file): its name, type, unit, semantics, how
//! it aggregates up the tree, its mode and one line of help. Descriptors come in [`GroupDescriptor`]s,
//! which also fix where each value's cell lives inside a block of shared memory. Groups are declared
//! with [`stats!`](crate::stats), or built at run time with [`GroupBuilder`].
//!
//! The two concepts, values and sources, are those of the statsfs RFC (Paolo Bonzini, 2019).

use std::borrow::Cow;
use std::sync::Arc;

use thiserror::Error;

/// Longest value name in bytes; 48 with the terminating NUL of KVM's binary format (`name_size`).
pub const MAX_VALUE_NAME: usize = 47;
/// Longest group name and prefix in bytes.
pub const MAX_GROUP_NAME: usize = 47;
/// Longest line of help in bytes.
pub const MAX_HELP: usize = 255;
/// Most values in one group.
pub const MAX_VALUES: usize = 1024;
/// Most buckets in a histogram: bucket 64 of KVM's rule would start at 2^63, and 64 buckets (0..=63)
/// already give the last one, which is open, everything from 2^62.
pub const MAX_BUCKETS: usize = 64;
/// Most bytes in one area (one latched copy, or the plain cells) of a group.
pub const MAX_AREA: usize = 1 << 17;
/// Longest label key in bytes.
pub const MAX_LABEL_KEY: usize = 32;
/// Longest label value in bytes.
pub const MAX_LABEL_VALUE: usize = 64;
/// Most bytes of the names of a value's states, with a comma between each two.
pub const MAX_STATES: usize = 255;

/// The type of a value's cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One byte; zero is false, anything else true. Shown as 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 8 bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Signed, 64 bits.
    S64,
    /// Log2 buckets of the value's unit by KVM's rule (`KVM_STATS_TYPE_LOG_HIST`): bucket 0 is
    /// [0, 1), bucket k is [2^(k−1), 2^k), the last one is open. Every bucket is a 64-bit cell.
    Histogram {
        /// Number of buckets, 2 to [`MAX_BUCKETS`].
        buckets: u8,
        /// Whether a 64-bit sum of all recorded values stands before the buckets.
        sum: bool,
    },
}

impl ValueType {
    /// Width in bytes of one cell (of one bucket, for a histogram). Cells are naturally aligned.
    pub const fn width(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U32 | Self::S32 => 4,
            Self::U64 | Self::S64 | Self::Histogram { .. } => 8,
        }
    }

    /// Number of cells: 1, or for a histogram its buckets and its sum.
    pub const fn cells(self) -> usize {
        match self {
            Self::Histogram { buckets, sum } => buckets as usize + sum as usize,
            _ => 1,
        }
    }

    /// Whether the value is signed.
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Whether the value is a histogram.
    pub const fn is_histogram(self) -> bool {
        matches!(self, Self::Histogram { .. })
    }

    /// Extends a raw cell of this type, as its low bytes, to 64 bits: sign-extended if signed, 0 or 1
    /// for a bool. The result of a signed type is two's complement.
    pub const fn extend(self, raw: u64) -> u64 {
        match self {
            Self::Bool => (raw & 0xff != 0) as u64,
            Self::U8 => raw as u8 as u64,
            Self::U16 => raw as u16 as u64,
            Self::U32 => raw as u32 as u64,
            Self::S8 => raw as i8 as i64 as u64,
            Self::S16 => raw as i16 as i64 as u64,
            Self::S32 => raw as i32 as i64 as u64,
            Self::U64 | Self::S64 | Self::Histogram { .. } => raw,
        }
    }
}

/// What a unit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum BaseUnit {
    /// Nothing: a number of things.
    #[default]
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Clock cycles.
    Cycles,
}

impl BaseUnit {
    /// Its name, as `.stats/schema` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Cycles => "cycles",
        }
    }
}

/// A unit: a base and a power of ten (`Seconds` with −9 are nanoseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Unit {
    /// What is measured.
    pub base: BaseUnit,
    /// The power of ten of one step.
    pub exponent: i8,
}

impl Unit {
    /// A plain number of things.
    pub const NONE: Self = Self { base: BaseUnit::None, exponent: 0 };
    /// Bytes.
    pub const BYTES: Self = Self { base: BaseUnit::Bytes, exponent: 0 };
    /// Clock cycles.
    pub const CYCLES: Self = Self { base: BaseUnit::Cycles, exponent: 0 };
    /// Seconds.
    pub const SECONDS: Self = Self { base: BaseUnit::Seconds, exponent: 0 };
    /// Thousandths of a second.
    pub const MILLISECONDS: Self = Self { base: BaseUnit::Seconds, exponent: -3 };
    /// Millionths of a second.
    pub const MICROSECONDS: Self = Self { base: BaseUnit::Seconds, exponent: -6 };
    /// Billionths of a second.
    pub const NANOSECONDS: Self = Self { base: BaseUnit::Seconds, exponent: -9 };
}

/// How a value behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Semantics {
    /// Only grows; unsigned; may be cleared; survives its source in the parent's `.departed`.
    Cumulative,
    /// Goes both ways; may not be cleared; leaves with its source.
    Floating,
    /// The largest seen so far; may not be cleared; leaves with its source.
    Peak,
}

/// The kinds of aggregate that every ancestor shows of a value: a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Aggregations(u8);

impl Aggregations {
    /// No aggregate: the value is seen in its own source only.
    pub const NONE: Self = Self(0);
    /// Sum of all instances (wrapping at 64 bits).
    pub const SUM: Self = Self(1);
    /// Smallest instance.
    pub const MIN: Self = Self(2);
    /// Largest instance.
    pub const MAX: Self = Self(4);
    /// Mean of all instances, truncated towards zero.
    pub const AVG: Self = Self(8);
    /// Number of instances that are zero.
    pub const COUNT_ZERO: Self = Self(16);
    /// Number of instances that are not zero.
    pub const COUNT_NONZERO: Self = Self(32);
    /// Every kind.
    pub const ALL: Self = Self(63);

    /// The set of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every kind of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of kinds in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The set as bits, in the order of the constants above; the form stored in a segment.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits.
    ///
    /// # Errors
    /// `None` if a bit has no meaning.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 { Some(Self(bits)) } else { None }
    }
}

impl std::ops::BitOr for Aggregations {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// Everything about one value but its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// The file's name: `[a-z][a-z0-9_]*`, at most [`MAX_VALUE_NAME`] bytes.
    pub name: Cow<'static, str>,
    /// Type of the cell.
    pub ty: ValueType,
    /// Unit and power.
    pub unit: Unit,
    /// Behaviour over time.
    pub semantics: Semantics,
    /// Aggregates that ancestors show.
    pub aggregations: Aggregations,
    /// Permission bits of the file: 0644 where it can be cleared, else 0444, unless declared.
    pub mode: u16,
    /// One line of help.
    pub help: Cow<'static, str>,
    /// The family that label-based exports put this value in, if it differs from its name.
    pub family: Option<Cow<'static, str>>,
    /// The label that tells this value apart within its family.
    pub label: Option<(Cow<'static, str>, Cow<'static, str>)>,
    /// If the value is a state: what its numbers mean, from 0 on. `[a-z0-9_]+` each, at most [`MAX_STATES`]
    /// bytes together.
    pub states: Vec<Cow<'static, str>>,
}

impl Descriptor {
    /// A descriptor with the defaults of its semantics: mode 0644 if cumulative, else 0444; aggregated
    /// by sum, or by maximum if a peak.
    pub fn new(name: impl Into<Cow<'static, str>>, ty: ValueType, semantics: Semantics) -> Self {
        Self {
            name: name.into(),
            ty,
            unit: Unit::NONE,
            semantics,
            aggregations: match semantics {
                Semantics::Peak => Aggregations::MAX,
                _ => Aggregations::SUM,
            },
            mode: default_mode(semantics),
            help: Cow::Borrowed(""),
            family: None,
            label: None,
            states: Vec::new(),
        }
    }

    /// Sets the unit.
    pub fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    /// Sets the aggregates that ancestors show.
    pub fn aggregate(mut self, aggregations: Aggregations) -> Self {
        self.aggregations = aggregations;
        self
    }

    /// Sets the permission bits. A value that is not cumulative never becomes writable by this.
    pub fn mode(mut self, mode: u16) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the line of help.
    pub fn help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.help = help.into();
        self
    }

    /// Sets the family.
    pub fn family(mut self, family: impl Into<Cow<'static, str>>) -> Self {
        self.family = Some(family.into());
        self
    }

    /// Sets the label within the family.
    pub fn label(
        mut self,
        key: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.label = Some((key.into(), value.into()));
        self
    }

    /// Makes the value a state, and names the numbers that it can be, from 0 on. Then it has no aggregates
    /// unless they are set afterwards: the sum of two states is none.
    pub fn states(mut self, names: impl IntoIterator<Item = impl Into<Cow<'static, str>>>) -> Self {
        self.states = names.into_iter().map(Into::into).collect();
        self.aggregations = Aggregations::NONE;
        self
    }
}

/// Where a cell lives inside its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// In both latched copies of a consistent group.
    Latched,
    /// In the single-copy part.
    Plain,
}

/// The place of a value's first cell: an area and an offset in bytes from the area's start. The cells
/// of a histogram follow each other: the sum, if there is one, then the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which part of the block.
    pub area: Area,
    /// Offset in bytes, a multiple of the cell's width.
    pub offset: u32,
}

/// A group: descriptors, and where their cells live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescriptor {
    name: Cow<'static, str>,
    prefix: Cow<'static, str>,
    help: Cow<'static, str>,
    values: Vec<Descriptor>,
    places: Vec<Place>,
    latched_size: u32,
    plain_size: u32,
}

/// Why a group's description is not acceptable.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[non_exhaustive]
pub enum GroupError {
    /// A group's or value's name is empty, too long, or has other characters than `[a-z0-9_]`.
    #[error("name {0:?} is not [a-z][a-z0-9_]* of at most 47 bytes")]
    Name(String),
    /// Two values of the group have one name.
    #[error("value {0:?} is declared twice in its group")]
    Duplicate(String),
    /// A value's name lacks the group's prefix.
    #[error("value {value:?} does not begin with its group's prefix {prefix:?}")]
    Prefix {
        /// The value.
        value: String,
        /// The prefix that it lacks.
        prefix: String,
    },
    /// The group has no value, or more than [`MAX_VALUES`].
    #[error("a group has 1 to 1024 values, not {0}")]
    Count(usize),
    /// Type, semantics, aggregations and mode of a value do not go together.
    #[error("value {value:?}: {reason}")]
    Value {
        /// The value.
        value: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// The size of a latched copy is not a multiple of 8: what follows it would be unaligned.
    #[error("a latched copy of {0} bytes is not a multiple of 8")]
    LatchedSize(u32),
    /// The group's help is too long or not one line, or has control characters.
    #[error("the group's help is not one line of at most 255 bytes without control characters")]
    Help,
    /// A cell is unaligned, outside its area, or overlaps another.
    #[error("the cells of value {0:?} are unaligned, outside the block, or overlap others")]
    Layout(String),
}

/// Whether `name` is a value's, group's or family's name: `[a-z][a-z0-9_]*`, at most `max` bytes.
pub fn is_value_name(name: &str, max: usize) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

impl GroupDescriptor {
    /// Checks and builds a group whose layout is given: `latched_size` and `plain_size` are the sizes
    /// in bytes of one latched copy and of the single-copy part.
    ///
    /// # Errors
    /// [`GroupError`] names the first value that is wrong, and how.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        prefix: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        values: Vec<(Descriptor, Place)>,
        latched_size: usize,
        plain_size: usize,
    ) -> Result<Self, GroupError> {
        let (values, places): (Vec<_>, Vec<_>) = values.into_iter().unzip();
        if latched_size > MAX_AREA || plain_size > MAX_AREA {
            return Err(GroupError::Count(values.len()));
        }
        let group = Self {
            name: name.into(),
            prefix: prefix.into(),
            help: help.into(),
            values,
            places,
            latched_size: latched_size as u32,
            plain_size: plain_size as u32,
        };
        group.check()?;
        Ok(group)
    }

    fn check(&self) -> Result<(), GroupError> {
        if !is_value_name(&self.name, MAX_GROUP_NAME) {
            return Err(GroupError::Name(self.name.to_string()));
        }
        if !self.prefix.is_empty() && !is_value_name(&self.prefix, MAX_GROUP_NAME) {
            return Err(GroupError::Name(self.prefix.to_string()));
        }
        if self.values.is_empty() || self.values.len() > MAX_VALUES {
            return Err(GroupError::Count(self.values.len()));
        }
        if !self.latched_size.is_multiple_of(8) {
            return Err(GroupError::LatchedSize(self.latched_size));
        }
        if !is_line(&self.help) {
            return Err(GroupError::Help);
        }
        let mut names = std::collections::HashSet::new();
        let mut spans = Vec::with_capacity(self.values.len());
        for (value, place) in self.values.iter().zip(&self.places) {
            check_value(value)?;
            if !value.name.starts_with(&*self.prefix) {
                return Err(GroupError::Prefix {
                    value: value.name.to_string(),
                    prefix: self.prefix.to_string(),
                });
            }
            if !names.insert(&*value.name) {
                return Err(GroupError::Duplicate(value.name.to_string()));
            }
            let width = value.ty.width() as u64;
            let size = match place.area {
                Area::Latched => self.latched_size,
                Area::Plain => self.plain_size,
            };
            let end = u64::from(place.offset) + width * value.ty.cells() as u64;
            if u64::from(place.offset) % width != 0 || end > u64::from(size) {
                return Err(GroupError::Layout(value.name.to_string()));
            }
            spans.push((place.area == Area::Plain, u64::from(place.offset), end, &value.name));
        }
        spans.sort();
        for pair in spans.windows(2) {
            if pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2 {
                return Err(GroupError::Layout(pair[1].3.to_string()));
            }
        }
        Ok(())
    }

    /// The group's name, by which values of several processes find each other.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What every value's name begins with; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// One line about the group.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// The values, in declaration order.
    pub fn values(&self) -> &[Descriptor] {
        &self.values
    }

    /// Where each value's cells live, in the order of [`values`](Self::values).
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether the group has latched cells.
    pub fn is_consistent(&self) -> bool {
        self.latched_size != 0
    }

    /// Size in bytes of one latched copy; 0 if the group is not consistent.
    pub fn latched_size(&self) -> usize {
        self.latched_size as usize
    }

    /// Size in bytes of the single-copy part.
    pub fn plain_size(&self) -> usize {
        self.plain_size as usize
    }

    /// Number of cells over all values: the length of a copy of the group as 64-bit words.
    pub fn words(&self) -> usize {
        self.values.iter().map(|v| v.ty.cells()).sum()
    }

    /// Whether any value is cumulative.
    pub fn has_cumulative(&self) -> bool {
        self.values.iter().any(|v| v.semantics == Semantics::Cumulative)
    }
}

/// The mode of a value's file unless it is declared: what can be cleared can be written by its owner.
pub(crate) fn default_mode(semantics: Semantics) -> u16 {
    if semantics == Semantics::Cumulative { 0o644 } else { 0o444 }
}

/// Whether a text can be a line of help: terminals show it.
pub(crate) fn is_line(help: &str) -> bool {
    help.len() <= MAX_HELP && !help.contains(char::is_control)
}

pub(crate) fn check_value(value: &Descriptor) -> Result<(), GroupError> {
    let bad = |reason| Err(GroupError::Value { value: value.name.to_string(), reason });
    if !is_value_name(&value.name, MAX_VALUE_NAME) {
        return Err(GroupError::Name(value.name.to_string()));
    }
    if value.semantics == Semantics::Cumulative
        && (value.ty.is_signed() || value.ty == ValueType::Bool)
    {
        return bad("a cumulative value is unsigned");
    }
    if let ValueType::Histogram { buckets, .. } = value.ty {
        if !(2..=MAX_BUCKETS as u8).contains(&buckets) {
            return bad("a histogram has 2 to 64 buckets");
        }
        if value.semantics != Semantics::Cumulative {
            return bad("a histogram is cumulative");
        }
        if !Aggregations::SUM.contains(value.aggregations) {
            return bad("a histogram aggregates by sum or not at all");
        }
    }
    if value.mode & !0o777 != 0 || value.mode & 0o111 != 0 {
        return bad("the mode has bits other than rw-rw-rw-");
    }
    if value.mode & 0o222 != 0 && value.semantics != Semantics::Cumulative {
        return bad("only a cumulative value is writable");
    }
    if !is_line(&value.help) {
        return bad("the help is not one line of at most 255 bytes without control characters");
    }
    if let Some(family) = &value.family
        && !is_value_name(family, MAX_VALUE_NAME)
    {
        return bad("the family is not a value name");
    }
    if let Some((key, label)) = &value.label
        && (!is_value_name(key, MAX_LABEL_KEY)
            || label.is_empty()
            || label.len() > MAX_LABEL_VALUE
            || label.chars().any(char::is_control))
    {
        return bad("the label is not key=value of at most 32 and 64 bytes");
    }
    match check_states(value) {
        Some(reason) => bad(reason),
        None => Ok(()),
    }
}

/// What is wrong with the states of a value, if it has any.
fn check_states(value: &Descriptor) -> Option<&'static str> {
    if value.states.is_empty() {
        return None;
    }
    let counts = Aggregations::COUNT_ZERO | Aggregations::COUNT_NONZERO;
    if value.semantics != Semantics::Floating || value.ty == ValueType::Bool {
        return Some("a state is an integer that goes both ways");
    }
    if !counts.contains(value.aggregations) {
        return Some("a state is aggregated by counts of zero and nonzero, or not at all");
    }
    let is_char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if value.states.iter().any(|name| name.is_empty() || !name.bytes().all(is_char)) {
        return Some("a state's name is not [a-z0-9_]+");
    }
    let length: usize = value.states.iter().map(|name| name.len() + 1).sum();
    if length - 1 > MAX_STATES {
        return Some("the names of the states are more than 255 bytes");
    }
    let mut names = std::collections::HashSet::new();
    if !value.states.iter().all(|name| names.insert(name)) {
        return Some("two states have one name");
    }
    None
}

/// Builds a group at run time, for values that are only known then.
#[derive(Debug)]
pub struct GroupBuilder {
    name: Cow<'static, str>,
    prefix: Cow<'static, str>,
    help: Cow<'static, str>,
    consistent: bool,
    values: Vec<Descriptor>,
}

impl GroupBuilder {
    /// A group with this name and no prefix.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            prefix: Cow::Borrowed(""),
            help: Cow::Borrowed(""),
            consistent: false,
            values: Vec::new(),
        }
    }

    /// Sets the prefix of all value names.
    pub fn prefix(mut self, prefix: impl Into<Cow<'static, str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the line of help.
    pub fn help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.help = help.into();
        self
    }

    /// Makes the group consistent: its scalar cumulative values are latched.
    pub fn consistent(mut self) -> Self {
        self.consistent = true;
        self
    }

    /// Adds a value.
    pub fn value(mut self, value: Descriptor) -> Self {
        self.values.push(value);
        self
    }

    /// Lays the values out, widest first within an area, and checks them.
    ///
    /// # Errors
    /// [`GroupError`] names the first value that is wrong, and how.
    pub fn build(self) -> Result<Arc<GroupDescriptor>, GroupError> {
        let mut sizes = [0usize; 2];
        let mut placed: Vec<(Descriptor, Place)> = Vec::with_capacity(self.values.len());
        for value in self.values {
            let latched = self.consistent
                && value.semantics == Semantics::Cumulative
                && !value.ty.is_histogram();
            let size = &mut sizes[usize::from(!latched)];
            let offset = size.next_multiple_of(value.ty.width());
            *size = offset + value.ty.width() * value.ty.cells();
            if *size > MAX_AREA {
                return Err(GroupError::Layout(value.name.to_string()));
            }
            let area = if latched { Area::Latched } else { Area::Plain };
            placed.push((value, Place { area, offset: offset as u32 }));
        }
        let [latched, plain] = sizes.map(|s| s.next_multiple_of(8));
        GroupDescriptor::new(self.name, self.prefix, self.help, placed, latched, plain)
            .map(Arc::new)
    }
}

/// A group declared with [`stats!`](crate::stats): a struct whose fields are cells.
///
/// # Safety
/// The implementor promises that `Self` and `Self::Latched` are `repr(C)`, consist of cells of
/// [`crate::cell`] only (so that every byte pattern is valid and nothing is dropped), are aligned to at
/// most 8 bytes, and that [`descriptor`](Self::descriptor) states their fields' true types, areas,
/// offsets and sizes, always the same. [`stats!`](crate::stats) sees to that.
pub unsafe trait Group: Sized + 'static {
    /// The latched cells, seen inside [`Slot::update`](crate::Slot::update); [`NoCells`] for a group
    /// that is not consistent.
    type Latched: 'static;

    /// The group's description.
    fn descriptor() -> &'static Arc<GroupDescriptor>;
}

/// A group with latched cells, which change together: `pub consistent struct` in
/// [`stats!`](crate::stats).
pub trait Consistent: Group {}

/// The latched cells of a group that has none.
#[derive(Debug)]
#[repr(C)]
pub struct NoCells;

/// A set of label values that a family of values is indexed by, such as exit reasons; derive it on an
/// enum without fields.
pub trait LabelSet: Copy {
    /// The label's key, such as `reason`.
    const KEY: &'static str;
    /// The label's values, in order: `[a-z0-9_]+`.
    const NAMES: &'static [&'static str];
    /// What each one means, to complete the help of the values declared over it.
    const HELP: &'static [&'static str];
    /// This one's place in [`NAMES`](Self::NAMES).
    fn index(self) -> usize;
}
