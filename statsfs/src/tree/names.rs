//! What families of values, and their labels, are called in exports by label.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::value::{BaseUnit, Descriptor};

/// The top-level directory whose sources are machines.
pub(crate) const MACHINES: &str = "kvm";

/// The number of a vCPU whose directory, in its machine's, is called this; none of any other.
pub(crate) fn vcpu_number(name: &str) -> Option<&str> {
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("vcpu").filter(is_number)
}

/// Names of what exports say that is no value's.
pub(super) const RESERVED: [&str; 4] =
    ["kvm_vms", "kvm_vm", "statsfs_build", "statsfs_export_left_out"];
/// What is put between a top-level directory's name and a value's, where the family is over all that there is, or that
/// has departed: no value's name begins so in exports.
pub(super) const OVER_ALL: [&str; 2] = ["host_", "departed_"];
/// Labels that are not a value's own.
const OWN_LABELS: [&str; 8] = ["vm", "pid", "source", "vcpu", "device", "part", "le", "state"];
/// What the samples of a family are called beside it, or may be in one of the formats.
const SUFFIXES: [&str; 7] = ["", "_total", "_created", "_bucket", "_sum", "_count", "_info"];

/// The name of a metric of vCPUs, as exports have it: of a family, such as `kvm_user_exits`, or of its samples, such as
/// `kvm_user_exits_total`. One that ends in `*` is of all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricName {
    name: String,
    is_beginning: bool,
}

/// Why something is no [`MetricName`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MetricNameError {
    /// There is nothing.
    #[error("a metric's name is missing")]
    Missing,
    /// No metric can be called so.
    #[error(
        "`{0}` can not be a metric's name: these are of `a` to `z`, digits and `_`, and only a `*` may follow, for all \
         that begin so"
    )]
    NotAName(String),
    /// No metric of vCPUs is called so.
    #[error("`{0}` is no metric of vCPUs: their names begin with `kvm_`, as kvm_user_exits does")]
    NotOfVcpus(String),
    /// It is over all machines.
    #[error("`{0}` is of all machines together, and has nothing of each vCPU")]
    OverAll(String),
}

impl FromStr for MetricName {
    type Err = MetricNameError;

    fn from_str(text: &str) -> Result<Self, MetricNameError> {
        let (name, is_beginning) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text, false),
        };
        if text.is_empty() {
            return Err(MetricNameError::Missing);
        }
        let is_start = |c: char| c.is_ascii_lowercase() || c == '_';
        if name.starts_with(|c| !is_start(c))
            || !name.chars().all(|c| is_start(c) || c.is_ascii_digit())
        {
            return Err(MetricNameError::NotAName(text.to_owned()));
        }
        match name.strip_prefix(MACHINES).and_then(|rest| rest.strip_prefix('_')) {
            Some(rest) if OVER_ALL.iter().any(|over_all| rest.starts_with(over_all)) => {
                return Err(MetricNameError::OverAll(text.to_owned()));
            }
            Some(rest) if is_beginning || !rest.is_empty() => {}
            None if is_beginning && format!("{MACHINES}_").starts_with(name) => {}
            _ => return Err(MetricNameError::NotOfVcpus(text.to_owned())),
        }
        Ok(Self { name: name.to_owned(), is_beginning })
    }
}

impl fmt::Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.is_beginning { "*" } else { "" })
    }
}

impl MetricName {
    /// Whether it is the name of this family, or of samples of it.
    pub(super) fn is_of(&self, family: &str) -> bool {
        if self.is_beginning {
            return family.starts_with(&self.name);
        }
        self.name.strip_prefix(family).is_some_and(|suffix| SUFFIXES.contains(&suffix))
    }
}

/// Takes a family's name, with all that its samples may be called; false if some of that is another's.
pub(super) fn claim(used: &mut HashSet<String>, name: &str) -> bool {
    let names = SUFFIXES.map(|suffix| format!("{name}{suffix}"));
    let is_free = names.iter().all(|name| !used.contains(name));
    if is_free {
        used.extend(names);
    }
    is_free
}

/// Whether a top-level directory's name can be the beginning of metrics' names, and of no other directory's totals.
pub(super) fn is_prefix(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !OVER_ALL
            .iter()
            .any(|over_all| name.ends_with(&format!("_{}", over_all.trim_end_matches('_'))))
}

/// A label's name as metrics have them, which is none of those that are not a value's own.
pub(crate) fn label_name(key: &str) -> String {
    let plain: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let is_taken = OWN_LABELS.contains(&plain.as_str());
    let is_name = plain.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_taken || !is_name { format!("exported_{plain}") } else { plain }
}

/// A label's value as it is written between quotation marks.
pub(crate) fn label_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A value's name in exports: in its base unit, which is at its end, and not as what is over all.
pub(super) fn base_name(value: &Descriptor) -> String {
    let name = in_base_unit(value);
    let is_over_all = OVER_ALL.iter().any(|over_all| name.starts_with(over_all));
    if is_over_all { format!("exported_{name}") } else { name }
}

fn in_base_unit(value: &Descriptor) -> String {
    let name = value.family.as_ref().unwrap_or(&value.name);
    let (unit, others): (&str, &[&str]) = match value.unit.base {
        BaseUnit::None => return name.to_string(),
        BaseUnit::Bytes => ("bytes", &["bytes"]),
        BaseUnit::Seconds => ("seconds", &["time", "ns", "us", "ms", "seconds"]),
        BaseUnit::Cycles => ("cycles", &["cycles"]),
    };
    let mut parts: Vec<_> = name.split('_').collect();
    if let Some(at) = parts.iter().rposition(|part| others.contains(part))
        && parts.len() > 1
    {
        parts.remove(at);
    }
    parts.push(unit);
    parts.join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_a_family_and_its_samples() {
        let is_of = |name: &str, family: &str| name.parse::<MetricName>().unwrap().is_of(family);
        for name in ["kvm_user_exits", "kvm_user_exits_total", "kvm_user_e*", "kvm_*", "kv*", "*"] {
            assert!(is_of(name, "kvm_user_exits"), "{name}");
            assert_eq!(name.parse::<MetricName>().unwrap().to_string(), name);
        }
        assert!(is_of("kvm_user_run_seconds_bucket", "kvm_user_run_seconds"));
        for name in ["kvm_user_exit", "kvm_user_exits_", "kvm_user_exits_x", "kvm_user_exits_t*"] {
            assert!(!is_of(name, "kvm_user_exits"), "{name}");
        }
    }

    #[test]
    fn what_no_metric_of_vcpus_is_called_is_refused() {
        use MetricNameError::{Missing, NotAName, NotOfVcpus, OverAll};
        let error = |text: &str| text.parse::<MetricName>().unwrap_err();
        assert_eq!(error(""), Missing);
        for text in [
            "kvm-exits",
            "kvm_a b",
            "2kvm",
            "kvm_*_a",
            "kvm_**",
            "kvm_Exits",
            "kvm_\u{e9}",
            "kvm_a{",
        ] {
            assert_eq!(error(text), NotAName(text.into()));
        }
        for text in ["user_exits", "kvm", "kvm_", "statsfs_server_joined", "s*", "kvmx*"] {
            assert_eq!(error(text), NotOfVcpus(text.into()));
        }
        for text in ["kvm_host_user_exits", "kvm_departed_*"] {
            assert_eq!(error(text), OverAll(text.into()));
        }
    }
}
