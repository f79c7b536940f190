//! The format of such a descriptor: KVM's binary statistics.
//!
//! Source of the layout and of all constants: `struct kvm_stats_header`, `struct kvm_stats_desc` and `KVM_STATS_*` in
//! Linux' `include/uapi/linux/kvm.h`, and section 4.133, `KVM_GET_STATS_FD`, of its `Documentation/virt/kvm/api.rst`.
//!
//! | offset | header |
//! |---|---|
//! | 0 | flags: 0 |
//! | 4 | size of a name, with its NUL |
//! | 8 | number of descriptors |
//! | 12, 16, 20 | where the id, the descriptors and the data begin |
//!
//! | offset | descriptor, with the name behind it |
//! |---|---|
//! | 0 | type (bits 0–3), unit (4–7), base (8–11) |
//! | 4 | exponent (signed, 16 bits), number of 64-bit cells (16 bits) |
//! | 8 | where the cells begin in the data |
//! | 12 | size of a linear histogram's buckets |
//!
//! The kernel is trusted to be the kernel, but not to be one that is known here: what has no counterpart among a
//! tree's values is left out by name, and everything is checked before it is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use thiserror::Error;

use crate::value::{
    BaseUnit, Descriptor, GroupBuilder, GroupDescriptor, GroupError, MAX_BUCKETS, MAX_VALUE_NAME,
    MAX_VALUES, Semantics, Unit, ValueType, is_value_name,
};

/// `sizeof(struct kvm_stats_header)`, and of `struct kvm_stats_desc` without the name.
pub(crate) const HEADER: usize = 24;
pub(crate) const DESCRIPTOR: usize = 16;
/// Where the unit begins in the flags of a descriptor, after the type.
pub(crate) const UNIT_SHIFT: u32 = 4;
/// Names of more bytes than this, and data of more, have never been.
const MAX_NAME: usize = 256;
const MAX_DATA: usize = 64 << 10;

pub(crate) const TYPE_CUMULATIVE: u32 = 0;
pub(crate) const TYPE_INSTANT: u32 = 1;
pub(crate) const TYPE_PEAK: u32 = 2;
const TYPE_LINEAR_HIST: u32 = 3;
pub(crate) const TYPE_LOG_HIST: u32 = 4;

pub(crate) const UNIT_NONE: u32 = 0;
pub(crate) const UNIT_BYTES: u32 = 1;
pub(crate) const UNIT_SECONDS: u32 = 2;
pub(crate) const UNIT_CYCLES: u32 = 3;
pub(crate) const UNIT_BOOLEAN: u32 = 4;

const BASE_POW10: u32 = 0;

/// Why a descriptor can not be read as a group of values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FdGroupError {
    /// Reading it failed.
    #[error("cannot read the statistics descriptor: {0}")]
    Read(#[source] io::Error),
    /// It is not in KVM's format.
    #[error("the descriptor is not in the format of KVM_GET_STATS_FD: {0}")]
    Format(&'static str),
    /// Nothing in it could be a value.
    #[error("the descriptor has nothing that could be shown: {0}")]
    Group(#[from] GroupError),
}

/// Where one value's cells are in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cells {
    name: Box<str>,
    /// In words from the beginning of the data.
    at: u32,
    words: u32,
}

/// Everything about a descriptor but its numbers: the same for all vCPUs of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Where the data are in the file, and how many words.
    data: u64,
    words: usize,
    cells: Vec<Cells>,
}

/// What is read of a descriptor when it comes.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) format: Format,
    /// Whose it is, `kvm-<pid>` or `kvm-<pid>/vcpu-<n>`.
    pub(super) id: String,
    pub(super) values: Vec<Descriptor>,
    /// What can not be shown, by name.
    pub(super) left_out: Vec<String>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Description {
    /// Reads header, id and descriptors.
    pub(super) fn read(file: &File) -> Result<Self, FdGroupError> {
        let read = |len: usize, at: u64| -> Result<Vec<u8>, FdGroupError> {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => FdGroupError::Format("it ends too early"),
                _ => FdGroupError::Read(error),
            })?;
            Ok(bytes)
        };
        let header = read(HEADER, 0)?;
        let [flags, name_size, count, id, descriptors, data] =
            [0, 4, 8, 12, 16, 20].map(|at| u32_at(&header, at));
        if flags != 0 {
            return Err(FdGroupError::Format("its header has unknown flags"));
        }
        let (name_size, count) = (name_size as usize, count as usize);
        if !(1..=MAX_NAME).contains(&name_size) || count > MAX_VALUES {
            return Err(FdGroupError::Format("its header has impossible sizes"));
        }
        let id = text(&read(name_size, id.into())?);
        let size = DESCRIPTOR + name_size;
        let table = read(size * count, descriptors.into())?;
        let mut description = Self {
            format: Format { data: data.into(), words: 0, cells: Vec::new() },
            id,
            values: Vec::new(),
            left_out: Vec::new(),
        };
        table.chunks_exact(size).try_for_each(|entry| description.add(entry))?;
        Ok(description)
    }

    /// Takes one descriptor with its name.
    fn add(&mut self, entry: &[u8]) -> Result<(), FdGroupError> {
        let (flags, sizes) = (u32_at(entry, 0), u32_at(entry, 4));
        let (exponent, len) = (sizes as u16 as i16, (sizes >> 16) as usize);
        let (offset, bucket_size) = (u32_at(entry, 8) as usize, u32_at(entry, 12));
        let name = text(&entry[DESCRIPTOR..]);
        if offset % 8 != 0 || offset + len * 8 > MAX_DATA {
            return Err(FdGroupError::Format(
                "the cells of a value are unaligned, or too far away",
            ));
        }
        let at = offset / 8;
        self.format.words = self.format.words.max(at + len);
        let mut add = |value: Descriptor, at: usize| {
            let is_new = self.values.iter().all(|other| other.name != value.name);
            if is_new {
                let (name, words) = (value.name.as_ref().into(), value.ty.cells() as u32);
                self.format.cells.push(Cells { name, at: at as u32, words });
                self.values.push(value);
            }
            is_new
        };
        let values = values_of(&name, flags, exponent, len, bucket_size);
        let shown = !values.is_empty()
            && values
                .into_iter()
                .enumerate()
                .fold(true, |shown, (n, value)| add(value, at + n) && shown);
        if !shown {
            self.left_out.push(name);
        }
        Ok(())
    }

    /// The group that it is, but for the values of these names.
    pub(super) fn group(
        &self,
        name: &str,
        but: &[String],
    ) -> Result<Arc<GroupDescriptor>, FdGroupError> {
        let group = GroupBuilder::new(name.to_owned())
            .help(format!("What the kernel counts ({name}): KVM_GET_STATS_FD."));
        let values = self.values.iter().filter(|value| !but.iter().any(|name| *name == value.name));
        let group = values.cloned().fold(group, GroupBuilder::value);
        Ok(group.build()?)
    }
}

/// What a tree shows of one descriptor: nothing if there is no counterpart, and of a linear histogram a value for
/// each bucket, since a tree's histograms are logarithmic.
fn values_of(
    name: &str,
    flags: u32,
    exponent: i16,
    len: usize,
    bucket_size: u32,
) -> Vec<Descriptor> {
    let (ty, unit, base) = (flags & 0xf, flags >> UNIT_SHIFT & 0xf, flags >> 8 & 0xf);
    let is_linear = ty == TYPE_LINEAR_HIST;
    if !is_value_name(name, MAX_VALUE_NAME) || len == 0 || is_linear && bucket_size == 0 {
        return Vec::new();
    }
    // Of the ASCII names, and short.
    let help = |what: &str| format!("The kernel's own: {what}.");
    let instant = if unit == UNIT_BOOLEAN { ValueType::Bool } else { ValueType::U64 };
    let single = |ty, semantics| {
        let (unit, steps) = unit_of(unit, base, exponent);
        let help = help(&format!("{name}{steps}"));
        vec![Descriptor::new(name.to_owned(), ty, semantics).unit(unit).help(help)]
    };
    match ty {
        TYPE_CUMULATIVE if len == 1 => single(ValueType::U64, Semantics::Cumulative),
        TYPE_INSTANT if len == 1 => single(instant, Semantics::Floating),
        TYPE_PEAK if len == 1 => single(ValueType::U64, Semantics::Peak),
        TYPE_LOG_HIST if (2..=MAX_BUCKETS).contains(&len) => {
            let ty = ValueType::Histogram { buckets: len as u8, sum: false };
            single(ty, Semantics::Cumulative)
        }
        TYPE_LINEAR_HIST => {
            let buckets = (0..len).map(|n| {
                let from = n as u64 * u64::from(bucket_size);
                // How often, whatever the unit is of what was measured.
                Descriptor::new(format!("{name}_{from}"), ValueType::U64, Semantics::Cumulative)
                    .help(help(&format!(
                        "times that {name} was {from} or more, but less than the next"
                    )))
                    .family(name.to_owned())
                    .label("from", from.to_string())
            });
            let buckets: Vec<_> = buckets.collect();
            let fit = buckets.iter().all(|bucket| is_value_name(&bucket.name, MAX_VALUE_NAME));
            if fit { buckets } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

/// The unit, and what is to be said of it where a tree has no such unit.
fn unit_of(unit: u32, base: u32, exponent: i16) -> (Unit, String) {
    let unit_base = match unit {
        UNIT_BYTES => BaseUnit::Bytes,
        UNIT_SECONDS => BaseUnit::Seconds,
        UNIT_CYCLES => BaseUnit::Cycles,
        _ => BaseUnit::None,
    };
    let is_known = matches!(unit, UNIT_NONE..=UNIT_BOOLEAN);
    match i8::try_from(exponent) {
        Ok(exponent) if is_known && (exponent == 0 || base == BASE_POW10) => {
            (Unit { base: unit_base, exponent }, String::new())
        }
        _ => {
            let step = if base == BASE_POW10 { "10" } else { "2" };
            let what = match unit {
                UNIT_BYTES => "bytes",
                UNIT_SECONDS => "seconds",
                UNIT_CYCLES => "cycles",
                _ => "unknown units",
            };
            (Unit::NONE, format!(", in {what} of {step}^{exponent}"))
        }
    }
}

/// Where a word of a group is in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is not there.
    Nowhere,
    /// One that only grows.
    Growing(u32),
    /// A truth value.
    Bool(u32),
    /// Any other.
    Other(u32),
}

impl Format {
    /// How many words the data have.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Where the words of a group are that has values of this descriptor, by their names: those of others are not
    /// there.
    pub(super) fn places(&self, group: &GroupDescriptor) -> Box<[Place]> {
        let values = group.values().iter().flat_map(|value| {
            let words = value.ty.cells() as u32;
            // Somebody else may say what a value is: no number may get into cells of another width.
            let fits =
                value.ty == ValueType::Bool || value.ty.width() == 8 && !value.ty.is_signed();
            let is_it = |cells: &&Cells| *cells.name == *value.name && cells.words == words;
            let found = self.cells.iter().find(is_it).filter(|_| fits);
            (0..words).map(move |n| match found {
                None => Place::Nowhere,
                Some(cells) if value.semantics == Semantics::Cumulative => {
                    Place::Growing(cells.at + n)
                }
                Some(cells) if value.ty == ValueType::Bool => Place::Bool(cells.at + n),
                Some(cells) => Place::Other(cells.at + n),
            })
        });
        values.collect()
    }

    /// Reads all data at once, as bytes: they are a few cache lines, and lie in no order.
    pub(super) fn read(&self, file: &File, out: &mut Vec<u8>) -> io::Result<()> {
        out.resize(self.words * 8, 0);
        file.read_exact_at(out, self.data)
    }
}
