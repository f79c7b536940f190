//! The statistics' bulk form: lines of a path and a number.

use std::collections::BTreeMap;
use std::path::Path;

/// The values of a `.stats/flat` or a `--stats-out` file, by path from the mount's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat(BTreeMap<String, u64>);

impl Flat {
    /// Parses the form, strictly.
    ///
    /// # Panics
    /// If a line is anything but a path, a space and a number, or a path comes twice.
    pub fn parse(text: &str) -> Self {
        assert!(text.is_empty() || text.ends_with('\n'), "the last line ends like the others");
        let mut values = BTreeMap::new();
        for line in text.lines() {
            let (path, number) =
                line.split_once(' ').unwrap_or_else(|| panic!("a line is {line:?}"));
            let number = match number.strip_prefix('-') {
                Some(_) => number.parse::<i64>().map(|n| n as u64),
                None => number.parse::<u64>(),
            };
            let number = number.unwrap_or_else(|_| panic!("a line is {line:?}"));
            assert!(values.insert(path.to_string(), number).is_none(), "{path} comes twice");
        }
        Self(values)
    }

    /// Reads a file in this form.
    ///
    /// # Panics
    /// If it can not be read.
    pub fn read(path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// A value.
    ///
    /// # Panics
    /// If there is none at this path.
    pub fn get(&self, path: &str) -> u64 {
        self.find(path).unwrap_or_else(|| {
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let near: Vec<_> = self.0.keys().filter(|key| key.starts_with(directory)).collect();
            panic!("there is no {path}, only {} values there: {near:?}", near.len())
        })
    }

    /// A value, if there is one at this path.
    pub fn find(&self, path: &str) -> Option<u64> {
        self.0.get(path).copied()
    }

    /// All paths and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(path, value)| (path.as_str(), *value))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These values but for those that are sampled from time to time, and so may move while nothing counts.
    #[must_use]
    pub fn counted(&self) -> Self {
        let is_sampled =
            |path: &str| path.rsplit_once('/').is_some_and(|(_, name)| name.starts_with("sched_"));
        let counted = self.0.iter().filter(|(path, _)| !is_sampled(path));
        Self(counted.map(|(path, value)| (path.clone(), *value)).collect())
    }

    /// The exits by reason that a directory shows: `user_exit_*` without the prefix, those that are not 0.
    pub fn exits(&self, directory: &str) -> BTreeMap<&str, u64> {
        let prefix = format!("{directory}/user_exit_");
        let reasons =
            self.0.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        reasons.filter(|(_, n)| **n > 0).map(|(path, n)| (&path[prefix.len()..], *n)).collect()
    }

    /// The directories right below one, by the values in them.
    pub fn directories(&self, directory: &str) -> Vec<&str> {
        let prefix = format!("{directory}/");
        let mut names = Vec::new();
        for path in self.0.keys() {
            let Some(rest) = path.strip_prefix(&prefix) else { continue };
            if let Some((name, _)) = rest.split_once('/')
                && names.last() != Some(&name)
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The directories of a machine's vCPUs.
    pub fn vcpus(&self, machine: &str) -> Vec<String> {
        let names = self.directories(machine);
        let vcpus = names.iter().filter(|name| name.starts_with("vcpu"));
        vcpus.map(|name| format!("{machine}/{name}")).collect()
    }

    /// The only machine below `kvm`.
    ///
    /// # Panics
    /// If there is none, or more than one.
    pub fn machine(&self) -> String {
        let names = self.directories("kvm");
        let machines: Vec<_> =
            names.iter().filter(|name| name.starts_with(|c: char| c.is_ascii_digit())).collect();
        assert_eq!(machines.len(), 1, "one machine: {machines:?}");
        format!("kvm/{}", machines[0])
    }

    /// Asserts that in a directory the exits are the sum of those by reason.
    ///
    /// # Panics
    /// If they are not.
    pub fn assert_balanced(&self, directory: &str) {
        let (total, by_reason) =
            (self.get(&format!("{directory}/user_exits")), self.exits(directory));
        assert_eq!(total, by_reason.values().sum::<u64>(), "{directory}: {by_reason:?}");
    }

    /// Asserts that at rest every value that machine, vCPUs and `kvm` share adds up: a directory's
    /// exits are its vCPUs', and `kvm`'s are the machine's.
    ///
    /// # Panics
    /// If they are not.
    pub fn assert_sums(&self) {
        let machine = self.machine();
        let vcpus = self.vcpus(&machine);
        assert!(!vcpus.is_empty(), "{machine} has vCPUs");
        for directory in vcpus.iter().chain([&machine, &"kvm".to_string()]) {
            self.assert_balanced(directory);
        }
        self.assert_sums_of("user_");
    }

    /// Asserts that the vCPUs' values whose names begin like this add up to the machine's and `kvm`'s.
    ///
    /// # Panics
    /// If they do not.
    pub fn assert_sums_of(&self, prefix: &str) {
        let machine = self.machine();
        let vcpus = self.vcpus(&machine);
        let first = format!("{}/{prefix}", vcpus[0]);
        let values = self.0.range(first.clone()..).take_while(|(path, _)| path.starts_with(&first));
        for (path, _) in values {
            let name = &path[vcpus[0].len() + 1..];
            // Derived from the sums, not sums.
            if ["mean", "p50", "p90", "p99", "max"].iter().any(|d| name.ends_with(&format!("/{d}")))
            {
                continue;
            }
            let sum: u64 = vcpus.iter().map(|vcpu| self.get(&format!("{vcpu}/{name}"))).sum();
            for above in [&machine, "kvm"] {
                assert_eq!(self.get(&format!("{above}/{name}")), sum, "{above}/{name}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    const TEXT: &str = "\
kvm/user_exit_hlt 3
kvm/user_exit_io_out 4
kvm/user_exits 7
kvm/7-a/temperature -2
kvm/7-a/user_exit_hlt 3
kvm/7-a/user_exit_io_out 4
kvm/7-a/user_exits 7
kvm/7-a/vcpu0/user_exit_hlt 3
kvm/7-a/vcpu0/user_exit_io_out 0
kvm/7-a/vcpu0/user_exits 3
kvm/7-a/vcpu1/user_exit_hlt 0
kvm/7-a/vcpu1/user_exit_io_out 4
kvm/7-a/vcpu1/user_exits 4
";

    #[test]
    fn finds_what_is_there() {
        let flat = Flat::parse(TEXT);
        assert_eq!(flat.len(), 13);
        assert_eq!(flat.get("kvm/7-a/temperature") as i64, -2);
        assert_eq!(flat.machine(), "kvm/7-a");
        assert_eq!(flat.vcpus("kvm/7-a"), ["kvm/7-a/vcpu0", "kvm/7-a/vcpu1"]);
        assert_eq!(flat.exits("kvm"), BTreeMap::from([("hlt", 3), ("io_out", 4)]));
        assert_eq!(flat.exits("kvm/7-a/vcpu1"), BTreeMap::from([("io_out", 4)]));
        flat.assert_sums();
    }

    #[test]
    fn notices_every_count_that_is_off() {
        for (n, line) in TEXT.lines().enumerate() {
            let (path, value) = line.split_once(' ').unwrap();
            let Ok(value) = value.parse::<u64>() else { continue };
            let changed = TEXT.replacen(line, &format!("{path} {}", value + 1), 1);
            let noticed = catch_unwind(|| Flat::parse(&changed).assert_sums());
            assert!(noticed.is_err(), "line {n}, {path}");
        }
    }

    #[test]
    fn is_strict() {
        for text in ["a", "a 1", "a  1\n", "a b\n", "a 1 2\n", "a 1\na 1\n", "a 1.5\n", "\n"] {
            assert!(catch_unwind(|| Flat::parse(text)).is_err(), "{text:?}");
        }
    }
}
