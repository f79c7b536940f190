//! Every value of a subtree as text, a line each.

use super::{Full, fits};
use crate::aggregate::Buckets;
use crate::tree::files::File;
use crate::tree::inode::{Field, Part};
use crate::tree::render::{Total, write_buckets};
use crate::tree::subtree::Subtree;
use crate::tree::totals::Totals;

/// Appends `path value` for every file of a subtree. Stops after the file with which there are more than
/// `most` bytes.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut totals = Totals::of(subtree);
    let mut prefix = String::new();
    subtree.try_each_dir(|dir, _, path| {
        prefix.clear();
        prefix.push_str(path);
        if !path.is_empty() {
            prefix.push('/');
        }
        totals.try_each_file(dir, |file, total| {
            write_file(file, &prefix, total, out);
            fits(out.len(), most)
        })
    })
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
    for field in Field::of(has_sum) {
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
