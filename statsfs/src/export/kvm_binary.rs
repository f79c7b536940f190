//! What a directory's own files show, in the format of KVM's binary statistics, for programs that read those.
//!
//! The format is that of `KVM_GET_STATS_FD` (Linux, Documentation/virt/kvm/api.rst; the constants are from
//! include/uapi/linux/kvm.h):
//!
//! ```text
//! 0    struct kvm_stats_header   flags, name_size, num_desc, id_offset, desc_offset, data_offset: 32 bits each
//! 24   id                        name_size bytes
//! 88   struct kvm_stats_desc     flags: 32 bits, exponent, size: 16, offset, bucket_size: 32; name: name_size bytes
//! …    data                      64 bits each, in the order of the descriptors
//! ```
//!
//! What is ours in it:
//! * The id is `kvm-statsfs`, and after a slash the directory's path from the root of the mount: readers of KVM's look for
//!   its beginning. Of a longer one than fits the middle is left out, where it has `...`.
//! * Values are as the files show them, since the last clear; signed ones in two's complement.
//! * A file that shows an aggregate has its name (`work_queue.min`), and is instant but for sums of what is cumulative, and maxima
//!   of peaks.
//! * A histogram is one of KVM's, whose buckets are ours. If its sum is known, that comes after it as `<name>_sum`, or `<name>.sum` where
//!   a file has that name.
//! * KVM has no fractions but of seconds, and no multiples of those: what is in such a unit has none.
//! * A read at the beginning makes it anew, and so does one where the data begin: whoever has read the descriptors reads
//!   just the data again, as of KVM's own. If they are not those that were read, since the directory has other values
//!   by now, that is `ESTALE`: then it is to be read from the beginning on.

use zerocopy::IntoBytes;

use super::{Full, fits, schema};
use crate::aggregate::Buckets;
use crate::fd_groups::format::{
    DESCRIPTOR, HEADER, TYPE_CUMULATIVE, TYPE_INSTANT, TYPE_LOG_HIST, TYPE_PEAK, UNIT_BOOLEAN,
    UNIT_BYTES, UNIT_CYCLES, UNIT_NONE, UNIT_SECONDS, UNIT_SHIFT,
};
use crate::tree::files::File;
use crate::tree::inode::Part;
use crate::tree::render::Total;
use crate::tree::subtree::Subtree;
use crate::tree::totals::Totals;
use crate::value::{Aggregations, BaseUnit, Semantics, Unit, ValueType};

/// Room for the longest name, with the zero at its end.
const NAME_SIZE: usize = 64;
/// What every id begins with.
const ID: &str = "kvm-statsfs";

/// Descriptors, and what they describe.
#[derive(Default)]
struct Statistics {
    descriptors: Vec<u8>,
    count: u32,
    data: Vec<u64>,
}

impl Statistics {
    fn push(&mut self, name: &str, flags: u32, exponent: i8, values: &[u64]) {
        let descriptors = &mut self.descriptors;
        descriptors.extend_from_slice(&flags.to_le_bytes());
        descriptors.extend_from_slice(&i16::from(exponent).to_le_bytes());
        descriptors.extend_from_slice(&(values.len() as u16).to_le_bytes());
        descriptors.extend_from_slice(&((self.data.len() * 8) as u32).to_le_bytes());
        descriptors.extend_from_slice(&0u32.to_le_bytes());
        push_text(name, descriptors);
        self.data.extend_from_slice(values);
        self.count += 1;
    }

    fn file(&mut self, file: &File, total: &Total, is_taken: impl Fn(&str) -> bool) {
        let value = &*file.value;
        let (unit, exponent) = unit_of(value.unit);
        match total {
            Total::Histogram(cells) => {
                let buckets = Buckets::new(value.ty, cells);
                self.push(
                    &file.name,
                    TYPE_LOG_HIST | unit << UNIT_SHIFT,
                    exponent,
                    buckets.counts(),
                );
                if let Some(sum) = buckets.sum() {
                    let mut name = format!("{}_sum", file.name);
                    if is_taken(&name) {
                        name = format!("{}.sum", file.name);
                    }
                    self.push(&name, TYPE_CUMULATIVE | unit << UNIT_SHIFT, exponent, &[sum]);
                }
            }
            Total::Scalar(_) => {
                let kind = match file.part {
                    Part::Aggregate(kind) => Some(kind),
                    _ => None,
                };
                let ty = match schema::semantics(value, kind) {
                    Semantics::Cumulative => TYPE_CUMULATIVE,
                    Semantics::Floating => TYPE_INSTANT,
                    Semantics::Peak => TYPE_PEAK,
                };
                let counts = Aggregations::COUNT_ZERO | Aggregations::COUNT_NONZERO;
                let (unit, exponent) = match kind {
                    Some(kind) if counts.contains(kind) => (UNIT_NONE, 0),
                    Some(Aggregations::SUM) if value.ty == ValueType::Bool => (UNIT_NONE, 0),
                    _ if value.ty == ValueType::Bool => (UNIT_BOOLEAN, 0),
                    _ => (unit, exponent),
                };
                // The low 64 bits are two's complement, if it is signed.
                let number = total.number(value, file.part).exact() as u64;
                self.push(&file.name, ty | unit << UNIT_SHIFT, exponent, &[number]);
            }
        }
    }
}

/// Appends a text, and zeros up to the size of a name.
fn push_text(text: &str, out: &mut Vec<u8>) {
    debug_assert!(text.len() < NAME_SIZE);
    let end = out.len() + NAME_SIZE;
    out.extend_from_slice(text.as_bytes());
    out.resize(end, 0);
}

fn unit_of(unit: Unit) -> (u32, i8) {
    let is_known = match unit.base {
        BaseUnit::Seconds => unit.exponent <= 0,
        _ => unit.exponent >= 0,
    };
    if !is_known {
        return (UNIT_NONE, 0);
    }
    let base = match unit.base {
        BaseUnit::None => UNIT_NONE,
        BaseUnit::Bytes => UNIT_BYTES,
        BaseUnit::Seconds => UNIT_SECONDS,
        BaseUnit::Cycles => UNIT_CYCLES,
    };
    (base, unit.exponent)
}

/// Where the data begin in statistics.
pub(super) fn data_offset(statistics: &[u8]) -> Option<u64> {
    let offset = statistics.get(HEADER - 4..HEADER)?;
    Some(u32::from_le_bytes(*offset.first_chunk()?).into())
}

/// What it is of. Paths are ASCII.
fn id(path: &str) -> String {
    const MOST: usize = NAME_SIZE - 1;
    let slash = if path.is_empty() { "" } else { "/" };
    let id = format!("{ID}{slash}{path}");
    if id.len() <= MOST {
        return id;
    }
    let (begin, gap) = (ID.len() + 1, "...");
    let rest = MOST - begin - gap.len();
    format!("{}{gap}{}", &id[..begin], &id[id.len() - rest..])
}

/// Appends the statistics of the first directory of a subtree.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut all = Statistics::default();
    let files = subtree.dirs()[0].files();
    let is_taken = |name: &str| files.get(name).is_some();
    Totals::of(subtree).try_each_file(0, |file, total| {
        all.file(file, total, is_taken);
        fits(all.descriptors.len() + all.data.len() * 8, most)
    })?;
    let descriptors = HEADER + NAME_SIZE;
    let data = descriptors + all.count as usize * (DESCRIPTOR + NAME_SIZE);
    let header = [0, NAME_SIZE as u32, all.count, HEADER as u32, descriptors as u32, data as u32];
    out.extend_from_slice(header.as_bytes());
    push_text(&id(subtree.root()), out);
    out.extend_from_slice(&all.descriptors);
    out.extend_from_slice(all.data.as_bytes());
    fits(out.len(), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_begins_as_kvms_and_fits() {
        assert_eq!(id(""), "kvm-statsfs");
        assert_eq!(id("kvm/4242-web1/vcpu0"), "kvm-statsfs/kvm/4242-web1/vcpu0");
        let longest = "a".repeat(NAME_SIZE - 1 - ID.len() - 1);
        assert_eq!(id(&longest), format!("kvm-statsfs/{longest}"));
        let longer = format!("{longest}/b");
        assert_eq!(id(&longer), format!("kvm-statsfs/...{}/b", &longest[5..]));
        assert_eq!(id(&longer).len(), NAME_SIZE - 1);
    }

    #[test]
    fn what_kvm_has_no_unit_for_has_none() {
        let unit = |base, exponent| unit_of(Unit { base, exponent });
        assert_eq!(unit(BaseUnit::Seconds, -9), (UNIT_SECONDS, -9));
        assert_eq!(unit(BaseUnit::Seconds, 1), (UNIT_NONE, 0));
        assert_eq!(unit(BaseUnit::Bytes, 3), (UNIT_BYTES, 3));
        assert_eq!(unit(BaseUnit::Cycles, -1), (UNIT_NONE, 0));
        assert_eq!(unit(BaseUnit::None, -3), (UNIT_NONE, 0));
    }
}
