//! Numbers for people: in units that they think in.

use std::fmt::Write;

use crate::aggregate::Buckets;
use crate::tree::inode::{Field, Part};
use crate::tree::render::Total;
use crate::value::{Aggregations, BaseUnit, Descriptor, Unit, ValueType};

/// What a file shows, unless that is 0.
pub(crate) fn shown(value: &Descriptor, part: Part, total: &Total) -> Option<String> {
    if let Total::Histogram(cells) = total {
        let buckets = Buckets::new(value.ty, cells);
        return (buckets.count() > 0).then(|| histogram(value, total, buckets));
    }
    let number = total.number(value, part).exact();
    let is_count =
        matches!(part, Part::Aggregate(Aggregations::COUNT_ZERO | Aggregations::COUNT_NONZERO));
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
        ValueType::Bool if part == Part::Own => "yes".into(),
        _ => in_unit(number, value.unit),
    })
}

/// What it has, in one line.
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
pub fn thousands(number: i128) -> String {
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

/// A number of a unit, in the unit that people take for one of that size: `12.3 µs`, `128 MiB`.
pub fn in_unit(number: i128, unit: Unit) -> String {
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

/// So much of a unit in a second: `12,345/s`, `0.25/s`, `1.5 MiB/s`; of time, how much of each second: `812 ms/s`.
pub fn per_second(rate: f64, unit: Unit) -> String {
    match unit.base {
        // Of few things, parts are told.
        BaseUnit::None | BaseUnit::Cycles if unit.exponent == 0 && rate.abs() < 9.995 => {
            let name = if unit.base == BaseUnit::None { "" } else { " cycles" };
            let text = format!("{rate:.2}");
            format!("{}{name}/s", text.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => in_unit(rate.round() as i128, unit) + "/s",
    }
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

    #[test]
    fn rates_of_few_things_have_parts() {
        for (rate, unit, expected) in [
            (0.0, Unit::NONE, "0/s"),
            (0.25, Unit::NONE, "0.25/s"),
            (9.5, Unit::NONE, "9.5/s"),
            (9.999, Unit::NONE, "10/s"),
            (12_345.4, Unit::NONE, "12,345/s"),
            (1_600.0, Unit::BYTES, "1.56 KiB/s"),
            (812_000_000.0, Unit::NANOSECONDS, "812 ms/s"),
        ] {
            assert_eq!(per_second(rate, unit), expected, "{rate} {unit:?}");
        }
    }
}
