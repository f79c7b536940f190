//! Prometheus' text format 0.0.4, and OpenMetrics 1.0: families of values with labels.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use super::ration::{self, Item};
use super::{Full, fits};
use crate::aggregate::Buckets;
use crate::tree::inode::Part;
use crate::tree::names::{MACHINES, label_name, label_value};
use crate::tree::render::Total;
use crate::tree::series::{self, About, Detail, Family, Info, Kind, LeftOut, Series};
use crate::tree::subtree::Subtree;
use crate::value::Unit;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own.
    Prometheus,
    /// OpenMetrics.
    OpenMetrics,
}

/// Appends all families of a subtree. Stops after the series with which there are more than `most` bytes.
pub(super) fn write(
    subtree: &Subtree,
    format: Format,
    detail: Detail<'_>,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Full> {
    write_but(subtree, format, detail, &LeftOut::default(), most, out)
}

/// Appends the families of a subtree, of which there may be `most` bytes: where there are more, without series of those
/// who have more than their part of that. What the server says of itself is always there. Answers how many directories
/// and totals of machines there is nothing of.
///
/// # Errors
/// [`Full`] if there is not even room for these.
pub(super) fn write_what_fits(
    subtree: &Subtree,
    format: Format,
    detail: Detail<'_>,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<usize, Full> {
    let before = out.len();
    if write(subtree, format, detail, most, out).is_ok() {
        return Ok(0);
    }
    out.truncate(before);
    let (items, rest) = sizes(subtree, format, detail);
    let room = most.checked_sub(before + rest).ok_or(Full)?;
    let left_out = ration::beyond(subtree, items, room);
    write_but(subtree, format, detail, &left_out, most, out)?;
    Ok(left_out.dirs.len() + left_out.totals.len())
}

/// Appends all families of a subtree, but for series of what is to be left out. Stops after the series with which there
/// are more than `most` bytes.
fn write_but(
    subtree: &Subtree,
    format: Format,
    detail: Detail<'_>,
    left_out: &LeftOut,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Full> {
    let mut text = Text { format, most, out };
    let about = series::write(subtree, detail, left_out, &mut text)?;
    text.about(&about);
    fits(text.out.len(), most)
}

/// What takes how much of what can be left out, and how much all else takes.
fn sizes(subtree: &Subtree, format: Format, detail: Detail<'_>) -> (Vec<Item>, usize) {
    let mut out = Vec::new();
    let text = Text { format, most: usize::MAX, out: &mut out };
    let mut sizes = Sizes { subtree, text, of: BTreeMap::new(), totals: Vec::new(), rest: 0 };
    // It never fails: what it writes it forgets.
    let Ok(about) = series::write(subtree, detail, &LeftOut::default(), &mut sizes) else {
        return (Vec::new(), usize::MAX);
    };
    for info in &about.infos {
        sizes.text.info(info);
        sizes.take(info.entity);
    }
    sizes.text.about(&About {
        infos: Vec::new(),
        sources_left_out: usize::MAX,
        totals_left_out: usize::MAX,
        ..about
    });
    // What infos begin with.
    sizes.text.begin_infos();
    sizes.rest += sizes.text.out.len();
    let dirs = sizes.of.into_iter().map(|(dir, size)| Item::Dir { dir, size });
    (dirs.chain(sizes.totals).collect(), sizes.rest)
}

/// Writes series to know how long they are.
struct Sizes<'a> {
    subtree: &'a Subtree,
    text: Text<'a>,
    of: BTreeMap<usize, usize>,
    /// Totals of machines.
    totals: Vec<Item>,
    rest: usize,
}

impl Sizes<'_> {
    /// Adds what was written since of a directory.
    fn take(&mut self, dir: usize) {
        let len = self.text.out.len();
        self.text.out.clear();
        // The first one is what is looked at itself.
        let is_top = self.subtree.above().is_empty() && self.subtree.dirs()[dir].depth() == 1;
        if dir == 0 || is_top && series::is_hosts(self.subtree.dirs()[dir].name()) {
            self.rest += len;
        } else {
            *self.of.entry(dir).or_default() += len;
        }
    }

    /// Whether it is a total of machines: anybody may have such.
    fn is_of_machines(&self, family: &Family<'_>, top: usize) -> bool {
        family.is_total && self.subtree.dirs()[top].name() == MACHINES
    }
}

impl Series for Sizes<'_> {
    type Error = Full;

    fn family(&mut self, family: &Family<'_>, top: usize) -> Result<(), Full> {
        let result = self.text.family(family, top);
        if self.is_of_machines(family, top) {
            let size = std::mem::take(self.text.out).len();
            let users = family.users();
            self.totals.push(Item::Total { name: family.name.clone(), users, size });
        } else {
            self.take(top);
        }
        result
    }

    fn series(
        &mut self,
        family: &Family<'_>,
        of: usize,
        labels: &str,
        total: &Total,
    ) -> Result<(), Full> {
        let result = self.text.series(family, of, labels, total);
        let is_of_machines = self.is_of_machines(family, of);
        match self.totals.last_mut() {
            Some(Item::Total { size, .. }) if is_of_machines => {
                *size += std::mem::take(self.text.out).len();
            }
            _ => self.take(of),
        }
        result
    }
}

struct Text<'a> {
    format: Format,
    most: usize,
    out: &'a mut Vec<u8>,
}

/// Appends formatted text.
macro_rules! say {
    ($out:expr, $($text:tt)*) => {
        // Memory takes everything.
        let _ = write!($out, $($text)*);
    };
}

impl Text<'_> {
    /// Begins a family. Those of counters are called otherwise than their series in OpenMetrics.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let is_total = kind == "counter" && self.format == Format::Prometheus;
        let total = if is_total { "_total" } else { "" };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let help =
            if self.format == Format::OpenMetrics { help.replace('"', "\\\"") } else { help };
        say!(self.out, "# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}\n");
        if self.format == Format::OpenMetrics {
            for unit in ["seconds", "bytes", "cycles"] {
                if name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')) {
                    say!(self.out, "# UNIT {name} {unit}\n");
                }
            }
        }
    }

    /// One sample.
    fn sample(&mut self, name: &str, suffix: &str, labels: &str, number: i128, unit: Unit) {
        say!(self.out, "{name}{suffix}");
        if !labels.is_empty() {
            say!(self.out, "{{{labels}}}");
        }
        self.out.push(b' ');
        write_scaled(number, unit.exponent, self.out);
        self.out.push(b'\n');
    }

    fn histogram(&mut self, family: &Family<'_>, labels: &str, cells: &[u64]) {
        let (name, unit) = (&family.name, family.value.unit);
        let buckets = Buckets::new(family.value.ty, cells);
        let comma = if labels.is_empty() { "" } else { "," };
        let mut so_far = 0u64;
        for (n, count) in buckets.counts().iter().enumerate() {
            so_far = so_far.wrapping_add(*count);
            let bound = match buckets.upper(n) {
                // What is recorded is a whole number.
                Some(upper) => go_float(scaled((upper - 1) as f64, unit.exponent)),
                None => "+Inf".to_owned(),
            };
            say!(self.out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {so_far}\n");
        }
        // OpenMetrics has both of these or none.
        let sum = buckets.sum();
        if let Some(sum) = sum {
            self.sample(name, "_sum", labels, sum.into(), unit);
        }
        if sum.is_some() || self.format == Format::Prometheus {
            self.sample(name, "_count", labels, so_far.into(), Unit::NONE);
        }
    }

    /// What is no value's, and the end.
    fn about(&mut self, about: &About) {
        if let Some(machines) = about.machines {
            self.begin(
                "kvm_vms",
                "gauge",
                "Virtual machines, also those that may not be seen here.",
            );
            self.sample("kvm_vms", "", "", machines as i128, Unit::NONE);
        }
        if !about.infos.is_empty() {
            self.begin_infos();
        }
        about.infos.iter().for_each(|info| self.info(info));
        self.begin("statsfs_export_left_out", "gauge", "What is not shown one by one here: vCPUs, which are added up, values of the name of another of another kind, and machines, other sources and totals for which there is no room.");
        let left_out = [
            ("vcpu", about.vcpus_left_out),
            ("value", about.values_left_out),
            ("source", about.sources_left_out),
            ("total", about.totals_left_out),
        ];
        for (what, n) in left_out {
            let labels = format!("what=\"{what}\"");
            self.sample("statsfs_export_left_out", "", &labels, n as i128, Unit::NONE);
        }
        self.begin_info("statsfs_build", "What made this.");
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        self.sample("statsfs_build", "_info", &version, 1, Unit::NONE);
        if self.format == Format::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
    }

    fn begin_infos(&mut self) {
        self.begin_info("kvm_vm", "A virtual machine, and the labels that it was given.");
    }

    fn info(&mut self, Info { labels, own, .. }: &Info) {
        let (mut labels, mut known) = (labels.clone(), HashSet::new());
        for (key, value) in own {
            let (key, value) = (label_name(key), label_value(value));
            if known.insert(key.clone()) {
                labels += &format!(",{key}=\"{value}\"");
            }
        }
        self.sample("kvm_vm", "_info", &labels, 1, Unit::NONE);
    }

    /// Begins a family of what is always 1.
    fn begin_info(&mut self, name: &str, help: &str) {
        match self.format {
            Format::Prometheus => self.begin(&format!("{name}_info"), "gauge", help),
            Format::OpenMetrics => self.begin(name, "info", help),
        }
    }
}

impl Series for Text<'_> {
    type Error = Full;

    fn family(&mut self, family: &Family<'_>, _top: usize) -> Result<(), Full> {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let own = if family.help.is_empty() { &family.value.name } else { family.help };
        let help = if family.is_total { format!("All together: {own}") } else { own.to_owned() };
        self.begin(&family.name, kind, &help);
        fits(self.out.len(), self.most)
    }

    fn series(
        &mut self,
        family: &Family<'_>,
        _of: usize,
        labels: &str,
        total: &Total,
    ) -> Result<(), Full> {
        let value = family.value;
        match total {
            Total::Histogram(cells) => self.histogram(family, labels, cells),
            Total::Scalar(_) => {
                let number = total.number(value, Part::Aggregate(series::aggregate(value))).exact();
                let suffix = if family.kind == Kind::Counter { "_total" } else { "" };
                if value.states.is_empty() {
                    self.sample(&family.name, suffix, labels, number, value.unit);
                }
                let comma = if labels.is_empty() { "" } else { "," };
                for (n, state) in value.states.iter().enumerate() {
                    let labels = format!("{labels}{comma}state=\"{state}\"");
                    let is_it = i128::from(number == n as i128);
                    self.sample(&family.name, suffix, &labels, is_it, Unit::NONE);
                }
            }
        }
        fits(self.out.len(), self.most)
    }
}

/// A number times a power of ten, as near as can be: a division by a power of ten is, a multiplication by its inverse is not.
fn scaled(number: f64, exponent: i8) -> f64 {
    let power = 10f64.powi(i32::from(exponent).abs());
    if exponent < 0 { number / power } else { number * power }
}

/// Appends a number times a power of ten, exactly.
fn write_scaled(number: i128, exponent: i8, out: &mut Vec<u8>) {
    if exponent >= 0 {
        say!(out, "{number}");
        if number != 0 {
            out.extend(std::iter::repeat_n(b'0', exponent as usize));
        }
        return;
    }
    let places = usize::from(exponent.unsigned_abs());
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = places + 1);
    let (whole, part) = digits.split_at(digits.len() - places);
    let part = part.trim_end_matches('0');
    let (sign, point) = (if number < 0 { "-" } else { "" }, if part.is_empty() { "" } else { "." });
    say!(out, "{sign}{whole}{point}{part}");
}

/// A bound as Go writes floating-point numbers, which is how strict readers of OpenMetrics want it: the shortest that is
/// read as the same, never without a point or an exponent.
fn go_float(number: f64) -> String {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..21).contains(&exponent) || exponent >= 6 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_scaled_exactly() {
        let scaled = |number, exponent| {
            let mut out = Vec::new();
            write_scaled(number, exponent, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(scaled(0, -9), "0");
        assert_eq!(scaled(1, -9), "0.000000001");
        assert_eq!(scaled(1_500_000_000, -9), "1.5");
        assert_eq!(scaled(u64::MAX.into(), -9), "18446744073.709551615");
        assert_eq!(scaled(-12, -1), "-1.2");
        assert_eq!(scaled(7, 3), "7000");
        assert_eq!(scaled(0, 3), "0");
    }

    #[test]
    fn bounds_are_as_go_writes_them() {
        assert_eq!(go_float(scaled(4095.0, -9)), "4.095e-06");
        assert_eq!(go_float(scaled(1048575.0, -9)), "0.001048575");
        for (number, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (1e-9, "1e-09"),
            (127e-9, "1.27e-07"),
            (0.0001, "0.0001"),
            (0.5, "0.5"),
            (1023.0, "1023.0"),
            (1e6, "1e+06"),
            (1048575.0, "1.048575e+06"),
            (1e22, "1e+22"),
        ] {
            assert_eq!(go_float(number), text);
        }
    }
}
