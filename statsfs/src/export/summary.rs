//! What was counted in a subtree, for people: in units that they think in, and without what is 0.

use std::fmt::Write;

use super::{Full, fits};
use crate::people::shown;
use crate::tree::subtree::Subtree;
use crate::tree::totals::Totals;
use crate::value::GroupDescriptor;

/// Appends a paragraph for each directory that has files. Stops after the file with which there are more than `most`
/// bytes.
pub(super) fn write(subtree: &Subtree, most: usize, out: &mut Vec<u8>) -> Result<(), Full> {
    let mut totals = Totals::of(subtree);
    let mut text = String::new();
    subtree.try_each_dir(|dir, _, path| {
        text.clear();
        write_dir(&mut totals, dir, path, most.saturating_sub(out.len()), &mut text)?;
        if !out.is_empty() && !text.is_empty() {
            out.push(b'\n');
        }
        out.extend_from_slice(text.as_bytes());
        fits(out.len(), most)
    })
}

/// A file that does not show 0.
struct Line<'a> {
    name: &'a str,
    /// Its group, of which something stands above the first file.
    group: &'a GroupDescriptor,
    shown: String,
}

fn write_dir(
    totals: &mut Totals<'_>,
    dir: usize,
    path: &str,
    most: usize,
    text: &mut String,
) -> Result<(), Full> {
    let (mut lines, mut zeros, mut len) = (Vec::new(), 0, 0);
    totals.try_each_file(dir, |file, total| {
        match shown(&file.value, file.part, total) {
            None => zeros += 1,
            Some(shown) => {
                len += file.name.len() + shown.len();
                lines.push(Line { name: &file.name, group: &file.group, shown });
            }
        }
        fits(len, most)
    })?;
    if lines.is_empty() && zeros == 0 {
        return Ok(());
    }
    text.push_str(path);
    text.push('\n');
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or_default();
    let mut above = None;
    for Line { name, group, shown } in &lines {
        if above.replace(group.name()) != Some(group.name()) {
            text.push_str("  # ");
            text.push_str(if group.help().is_empty() { group.name() } else { group.help() });
            text.push('\n');
        }
        // A String takes whatever is written.
        let _ = writeln!(text, "  {name:width$}  {shown}");
        fits(text.len(), most)?;
    }
    if zeros > 0 {
        let _ = writeln!(text, "  ({zeros} more are 0)");
    }
    Ok(())
}
