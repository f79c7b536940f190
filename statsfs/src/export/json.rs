//! JSON: every value of a subtree, in objects that are in each other as the directories are.

use std::io::{self, Write};

use serde::Serialize;

use super::{Full, fits};
use crate::aggregate::{Buckets, Number};
use crate::tree::files::File;
use crate::tree::inode::{Field, Part};
use crate::tree::render::Total;
use crate::tree::subtree::Subtree;
use crate::tree::totals::Totals;

/// Appends an object for the first directory of a subtree: by name its files' numbers, histograms as objects, and
/// the directories in it. Stops after the file or directory with which there are more than `most` bytes.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut totals = Totals::of(subtree);
    let mut open = 0;
    subtree.try_each_dir(|n, dir, _| {
        for _ in dir.depth()..open {
            out.push(b'}');
        }
        if dir.depth() > 0 {
            write_key(dir.name(), out);
        }
        out.push(b'{');
        open = dir.depth() + 1;
        fits(out.len(), most)?;
        totals.try_each_file(n, |file, total| {
            write_file(file, total, out);
            fits(out.len(), most)
        })
    })?;
    (0..open).for_each(|_| out.push(b'}'));
    out.push(b'\n');
    fits(out.len(), most)
}

/// Appends what comes before an entry of an object. Nothing in a name of ours is to be escaped.
fn write_key(name: &str, out: &mut Vec<u8>) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn write_file(file: &File, total: &Total, out: &mut Vec<u8>) {
    let value = &*file.value;
    write_key(&file.name, out);
    let Total::Histogram(cells) = total else {
        return total.number(value, file.part).write(out);
    };
    let buckets = Buckets::new(value.ty, cells);
    let has_sum = buckets.sum().is_some();
    out.push(b'{');
    for field in Field::of(has_sum) {
        write_key(field.name(), out);
        if field == Field::Buckets {
            write_buckets(buckets, out);
        } else {
            total.number(value, Part::Field(field)).write(out);
        }
    }
    out.push(b'}');
}

/// Appends pairs of an exclusive upper bound, or null, and a count.
fn write_buckets(buckets: Buckets<'_>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (n, count) in buckets.counts().iter().enumerate() {
        out.extend_from_slice(if n > 0 { b",[" } else { b"[" });
        match buckets.upper(n) {
            Some(upper) => Number::unsigned(upper).write(out),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b',');
        Number::unsigned(*count).write(out);
        out.push(b']');
    }
    out.push(b']');
}

/// Writes to the end of a buffer until there is too much.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    most: usize,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.out.len() + bytes.len() > self.most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends something as one line.
pub(super) fn write_line(
    value: &impl Serialize,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Full> {
    // Nothing else than the room can be the matter: keys are strings, and numbers are finite.
    let mut to = Bounded { out, most };
    serde_json::to_writer(&mut to, value).map_err(|_| Full)?;
    to.write_all(b"\n").map_err(|_| Full)
}
