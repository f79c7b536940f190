//! What was counted in a subtree, for people: in units that they think in, and without what is 0.

use std::fmt::Write;

use super::{Full, fits};
use crate::aggregate::Buckets;
use crate::tree::files::File;
use crate::tree::inode::{Field, Part};
use crate::tree::render::Total;
use crate::tree::subtree::Subtree;
use crate::tree::totals::Totals;
use crate::value::{Aggregations, BaseUnit, Descriptor, GroupDescriptor, Unit, ValueType};

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
        match shown(file, total) {
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

/// What a file shows, unless that is 0.
fn shown(file: &File, total: &Total) -> Option<String> {
    let value = &*file.value;
    if let Total::Histogram(cells) = total {
        let buckets = Buckets::new(value.ty, cells);
        return (buckets.count() > 0).then(|| histogram(value, total, buckets));
    }
    let number = total.number(value, file.part).exact();
    let is_count = matches!(
        file.part,
        Part::Aggregate(Aggregations::COUNT_ZERO | Aggregations::COUNT_NONZERO)
    );
    // Of what 0 means something, it is shown.
    if !is_count && let Some(name) = usize::try_from(number).ok().and_then(|n| value.states.get(n))
    {
        return Some(format!("{name} ({number})"));
    }
    if number == 0 {
        return None;
    }
    Some(match value.ty {
        _ if is_count => thousands(number),
        ValueType::Bool if file.part == Part::Own => "yes".into(),
        _ => in_unit(number, value.unit),
    })
}

fn histogram(value: &Descriptor, total: &Total, buckets: Buckets<'_>) -> String {
    let mut text = format!("{} times:", thousands(buckets.count().into()));
    let is_told = |field: &Field| !matches!(field, Field::Count | Field::Sum | Field::Buckets);
    for field in Field::of(buckets.sum().is_some()).filter(is_told) {
        let number = total.number(value, Part::Field(field)).exact();
        let _ = write!(text, " {} {},", field.name(), in_unit(number, value.unit));
    }
    text.pop();
    text
}

/// A number with a comma before each three digits.
fn thousands(number: i128) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn in_unit(number: i128, unit: Unit) -> String {
    // In the smallest unit that has a name; whole numbers stay whole.
    let least = |smallest: i32| number as f64 * 10f64.powi(i32::from(unit.exponent) - smallest);
    match unit.base {
        BaseUnit::None | BaseUnit::Cycles if unit.exponent != 0 => {
            let name = if unit.base == BaseUnit::None { "" } else { " cycles" };
            format!("{}e{}{name}", thousands(number), unit.exponent)
        }
        BaseUnit::None => thousands(number),
        BaseUnit::Cycles => format!("{} cycles", thousands(number)),
        BaseUnit::Bytes => {
            let names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
            scaled(least(0), 1024.0, &names)
        }
        BaseUnit::Seconds => scaled(least(-9), 1000.0, &["ns", "µs", "ms", "s"]),
    }
}

/// A number of the first unit, in the largest of which it is at least one; each is `step` times the last.
fn scaled(mut number: f64, step: f64, names: &[&str]) -> String {
    let mut names = names.iter();
    let mut name = names.next().copied().unwrap_or_default();
    // What would be shown as a whole one of the next: large numbers have no decimals.
    while number.abs() >= step - 0.5
        && let Some(next) = names.next()
    {
        (number, name) = (number / step, next);
    }
    // Three digits, or all that are before the point.
    let decimals = match number.abs() {
        n if n == n.trunc() || n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.decimals$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_units_of_people() {
        for (number, unit, expected) in [
            (0, Unit::NONE, "0"),
            (999, Unit::NONE, "999"),
            (-1_234_567, Unit::NONE, "-1,234,567"),
            (1_000, Unit::CYCLES, "1,000 cycles"),
            (1_023, Unit::BYTES, "1023 B"),
            (1_024, Unit::BYTES, "1 KiB"),
            (134_217_728, Unit::BYTES, "128 MiB"),
            (1_600, Unit::BYTES, "1.56 KiB"),
            (i128::from(u64::MAX), Unit::BYTES, "16 EiB"),
            (7, Unit::NANOSECONDS, "7 ns"),
            (12_345, Unit::NANOSECONDS, "12.3 µs"),
            (123_456, Unit::NANOSECONDS, "123 µs"),
            (999_499, Unit::NANOSECONDS, "999 µs"),
            (999_500, Unit::NANOSECONDS, "1.00 ms"),
            (999_999, Unit::NANOSECONDS, "1.00 ms"),
            (1_048_300, Unit::BYTES, "1.00 MiB"),
            (5_000_000_000, Unit::NANOSECONDS, "5 s"),
            (90_000, Unit::MILLISECONDS, "90 s"),
            (3, Unit { base: BaseUnit::None, exponent: 3 }, "3e3"),
        ] {
            assert_eq!(in_unit(number, unit), expected, "{number} {unit:?}");
        }
    }
}
