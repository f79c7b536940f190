//! Every file of a tree, one by one, and what the bulk files say of them: at rest all are the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;
use statsfs::snapshot::{Snapshot, Value};

/// Numbers by path, of buckets with their bounds as in `flat`.
pub type Numbers = BTreeMap<String, i128>;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bulk(mount: &Path, dir: &str, name: &str) -> String {
    read(&mount.join(dir).join(".stats").join(name))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn insert(all: &mut Numbers, path: String, number: &str) {
    let number = number.trim_end().parse().unwrap_or_else(|_| panic!("{path}: {number:?}"));
    assert!(all.insert(path.clone(), number).is_none(), "{path} is there twice");
}

/// What each file in and below a directory shows that may be entered, each opened, read and closed; and the
/// directories themselves.
pub fn walk(mount: &Path, dir: &str) -> (Numbers, Vec<String>) {
    let (mut all, mut found) = (Numbers::new(), vec![]);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(mount.join(&dir)) else { continue };
        let names: Vec<_> = entries.map(|e| e.unwrap()).collect();
        for entry in &names {
            let path = join(&dir, entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && path.ends_with("/buckets") {
                for line in read(&entry.path()).lines() {
                    let (bound, count) = line.split_once(' ').unwrap();
                    insert(&mut all, format!("{path}/{bound}"), count);
                }
            } else if kind.is_file() {
                insert(&mut all, path, &read(&entry.path()));
            }
        }
        // A histogram's directory has values' files, and no `.stats`.
        if mount.join(&dir).join(".stats").is_dir() {
            found.push(dir);
        }
    }
    (all, found)
}

fn of_lines(text: &str) -> Numbers {
    let mut all = Numbers::new();
    for line in text.lines() {
        let (path, number) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        insert(&mut all, path.to_owned(), number);
    }
    all
}

/// The numbers in a JSON that is of this directory.
pub fn of_json(path: &str, value: &Json, all: &mut Numbers) {
    match value {
        Json::Object(entries) => {
            entries.iter().for_each(|(name, value)| of_json(&join(path, name), value, all));
        }
        Json::Array(buckets) => {
            for bucket in buckets {
                let bound = if bucket[0].is_null() { "inf".into() } else { bucket[0].to_string() };
                of_json(&format!("{path}/{bound}"), &bucket[1], all);
            }
        }
        number => insert(all, path.to_owned(), &number.to_string()),
    }
}

fn of_value(path: &str, value: &Value<'_>, all: &mut Numbers) {
    let mut add = |field: &str, number: i128| {
        assert!(all.insert(join(path, field), number).is_none(), "{path}/{field} twice");
    };
    let Some(histogram) = value.histogram() else {
        assert!(all.insert(path.to_owned(), value.number().unwrap()).is_none(), "{path} twice");
        return;
    };
    add("count", histogram.count().into());
    for (name, number) in [("sum", histogram.sum()), ("mean", histogram.mean())] {
        number.into_iter().for_each(|number| add(name, number.into()));
    }
    for percent in [50, 90, 99] {
        add(&format!("p{percent}"), histogram.percentile(percent).into());
    }
    add("max", histogram.max().into());
    for (upper, count) in histogram.buckets() {
        let bound = upper.map_or("inf".into(), |upper| upper.to_string());
        add(&format!("buckets/{bound}"), count.into());
    }
}

/// What a snapshot says that files show, by the library's reader.
pub fn of_snapshot(snapshot: &Snapshot) -> Numbers {
    let mut all = Numbers::new();
    for dir in snapshot.dirs() {
        let path = dir.path();
        for value in dir.values() {
            of_value(&join(&path, value.name()), &value, &mut all);
        }
        assert_eq!(snapshot.dir(&path).unwrap().identity(), dir.identity(), "{path}");
    }
    // Each by itself adds up anew all that is below its directory.
    for (path, number) in all.iter().step_by(7) {
        assert_eq!(snapshot.number(path), Some(*number), "{path}");
    }
    all
}

/// What a summary says in figures without units.
fn of_summary(text: &str) -> Numbers {
    let (mut all, mut dir) = (Numbers::new(), "");
    for line in text.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [name] if !line.starts_with(' ') => dir = name,
            [name, number] if number.bytes().all(|b| b.is_ascii_digit() || b"-,".contains(&b)) => {
                insert(&mut all, join(dir, name), &number.replace(',', ""));
            }
            _ => {}
        }
    }
    all
}

/// Everything in and below a directory in every format that has what files show, which must all say the same where it
/// is wanted. Answers that.
pub fn agree(mount: &Path, dir: &str, is_wanted: impl Fn(&str) -> bool) -> Numbers {
    let wanted = |mut all: Numbers| {
        all.retain(|path, _| is_wanted(path));
        all
    };
    let (files, dirs) = walk(mount, dir);
    let files = wanted(files);
    let same = |what: &str, found: Numbers| {
        let found = wanted(found);
        for (path, number) in &files {
            assert_eq!(found.get(path), Some(number), "{path} in {dir}/.stats/{what}");
        }
        let more = found.keys().find(|path| !files.contains_key(*path));
        assert_eq!(more, None, "{dir}/.stats/{what} has what there is not");
    };
    same("flat", of_lines(&bulk(mount, dir, "flat")));
    let mut json = Numbers::new();
    of_json(dir, &serde_json::from_str(&bulk(mount, dir, "json")).unwrap(), &mut json);
    same("json", json);
    let snapshot = Snapshot::read(mount.join(dir)).unwrap();
    assert_eq!(snapshot.path(), dir);
    same("snapshot", of_snapshot(&snapshot));
    let is_histogram = |path: &str| is_histogram(&snapshot, path);
    for (path, number) in wanted(of_summary(&bulk(mount, dir, "summary"))) {
        assert_eq!(files.get(&path), Some(&number), "{path} in {dir}/.stats/summary");
    }
    for dir in dirs {
        let statistics = KvmStatistics::read(&mount.join(&dir).join(".stats/binary"));
        let slash = if dir.is_empty() { "" } else { "/" };
        let id = format!("kvm-statsfs{slash}{dir}");
        assert!(id.len() > 63 || id == statistics.id, "{id}: {}", statistics.id);
        let of_dir = statistics.numbers(&dir);
        // All that are in the directory itself, and no others.
        let of_this = |path: &&String| {
            let above = |path: &str| path.rsplit_once('/').map_or("", |(above, _)| above) == dir;
            match path.split_once("/buckets/") {
                Some((histogram, _)) => above(histogram),
                None if !is_histogram(path) => above(path),
                None => path.strip_suffix("/sum").is_some_and(above),
            }
        };
        let own: Vec<_> = files.keys().filter(of_this).collect();
        for path in &own {
            assert_eq!(of_dir.get(*path), files.get(*path), "{path} in {dir}/.stats/binary");
        }
        let more = wanted(of_dir).into_keys().find(|path| !own.contains(&path));
        assert_eq!(more, None, "{dir}/.stats/binary has what there is not");
    }
    files
}

/// Whether a file is in a histogram's directory.
fn is_histogram(snapshot: &Snapshot, path: &str) -> bool {
    let name = path.rsplit('/').nth(1).unwrap_or("");
    let mut all = snapshot.descriptors();
    path.contains("/buckets/")
        || all.any(|(_, value)| value.name == name && value.ty.is_histogram())
}

/// What `resources/snapshot.py` prints of a snapshot is what its files show, but for histograms, where it is wanted.
pub fn agree_by_script(path: &Path, files: &Numbers, is_wanted: impl Fn(&str) -> bool) {
    let snapshot = Snapshot::parse(&std::fs::read(path).unwrap()).unwrap();
    let is_plain = |path: &str| is_wanted(path) && !is_histogram(&snapshot, path);
    let found = of_script(path);
    for (path, number) in files.iter().filter(|(path, _)| is_plain(path)) {
        assert_eq!(found.get(path), Some(number), "{path} by the script");
    }
    let more = found.keys().find(|path| is_wanted(path) && !files.contains_key(*path));
    assert_eq!(more, None, "the script has what there is not");
}

fn of_script(path: &Path) -> Numbers {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/snapshot.py");
    let python = Command::new("python3").arg(script).arg(path).output();
    let output = python.expect("`apt-get install -y python3`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    of_lines(std::str::from_utf8(&output.stdout).unwrap())
}

/// A value in KVM's format.
#[derive(Debug)]
pub struct KvmStatistic {
    /// Its name.
    pub name: String,
    /// Type, unit and base.
    pub flags: u32,
    /// Of the base.
    pub exponent: i16,
    /// One, or as many as there are buckets.
    pub values: Vec<u64>,
}

/// Binary statistics in KVM's format.
#[derive(Debug)]
pub struct KvmStatistics {
    /// What they are of.
    pub id: String,
    /// In the order of their descriptors.
    pub all: Vec<KvmStatistic>,
}

/// `KVM_STATS_TYPE_LOG_HIST`, of the flags.
pub const LOG_HIST: u32 = 4;

impl KvmStatistics {
    /// Reads a file of a tree.
    ///
    /// # Panics
    /// If it is not as the kernel's selftest wants it, and as long as such a file's names may be.
    pub fn read(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::of(&file, 64)
    }

    /// Reads it by pread(2) as the kernel's selftest `kvm_binary_stats_test` does, and asserts what that asserts, and
    /// that there is so much room for a name.
    ///
    /// # Panics
    /// If it is not as that wants it.
    pub fn of(file: &File, room: usize) -> Self {
        let pread = |offset: usize, len: usize| {
            let mut bytes = vec![0; len];
            let read = file.read_exact_at(&mut bytes, offset as u64);
            read.unwrap_or_else(|error| panic!("{len} at {offset}: {error}"));
            bytes
        };
        let number = |bytes: &[u8], at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
        };
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).expect("shorter than name_size");
            String::from_utf8(bytes[..end].to_vec()).unwrap()
        };
        const HEADER: usize = 24;
        let header = pread(0, HEADER);
        let [_, name_size, count, id_at, desc_at, data_at] =
            [0, 4, 8, 12, 16, 20].map(|at| number(&header, at));
        assert_eq!(name_size, room);
        // The selftest reads the id right after the header.
        assert_eq!(id_at, HEADER);
        let id = text(&pread(HEADER, name_size));
        assert!(id.starts_with("kvm"), "{id}");
        let size = 16 + name_size;
        assert!(desc_at >= HEADER && data_at >= HEADER);
        assert!(id_at + name_size <= desc_at || desc_at + count * size <= id_at);
        assert!(desc_at + count * size <= data_at || data_at <= desc_at);
        let descriptors = pread(desc_at, count * size);
        let mut all = Vec::new();
        let mut end = 0;
        for descriptor in descriptors.chunks(size) {
            let flags = number(descriptor, 0) as u32;
            let exponent = i16::from_le_bytes([descriptor[4], descriptor[5]]);
            let values = usize::from(u16::from_le_bytes([descriptor[6], descriptor[7]]));
            let (offset, bucket_size) = (number(descriptor, 8), number(descriptor, 12));
            let name = text(&descriptor[16..]);
            let (ty, unit, base) = (flags & 0xf, flags >> 4 & 0xf, flags >> 8 & 0xf);
            assert!(ty <= 4 && unit <= 4 && base <= 1 && flags >> 12 == 0, "{name}: {flags:#x}");
            match unit {
                0 | 1 | 3 => assert!(exponent >= 0, "{name}: {exponent}"),
                2 => assert!(exponent <= 0, "{name}: {exponent}"),
                _ => assert_eq!(exponent, 0, "{name}"),
            }
            assert!(!name.is_empty() && name.len() < name_size);
            assert_ne!(values, 0, "{name}");
            assert_eq!(bucket_size != 0, ty == 3, "{name}");
            end = end.max(offset + 8 * values);
            assert_eq!(offset % 8, 0);
            all.push((name, flags, exponent, offset, values));
        }
        assert!(data_at + end <= desc_at || data_at >= desc_at, "data and descriptors overlap");
        assert!(end >= count * 8, "there is a value for each");
        let words = |bytes: &[u8]| -> Vec<u64> {
            bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
        };
        let data = words(&pread(data_at, end));
        let one = |(name, flags, exponent, offset, values): (String, u32, i16, usize, usize)| {
            let values = data[offset / 8..][..values].to_vec();
            KvmStatistic { name, flags, exponent, values }
        };
        let all: Vec<_> = all.into_iter().map(one).collect();
        assert_eq!(file.read_at(&mut [0], (data_at + end) as u64).unwrap(), 0, "that is all");
        Self { id, all }
    }

    /// The numbers by path: of histograms the buckets, and their sums.
    pub fn numbers(&self, dir: &str) -> Numbers {
        let mut all = Numbers::new();
        let mut histogram = "";
        for KvmStatistic { name, flags, values, .. } in &self.all {
            if flags & 0xf == LOG_HIST {
                histogram = name;
                for (n, count) in values.iter().enumerate() {
                    let is_last = n + 1 == values.len();
                    let bound = if is_last { "inf".into() } else { (1u64 << n).to_string() };
                    let path = join(dir, &format!("{name}/buckets/{bound}"));
                    assert!(all.insert(path, (*count).into()).is_none(), "{name} twice");
                }
                continue;
            }
            let is_sum = name.strip_suffix("_sum") == Some(histogram)
                || name.strip_suffix(".sum") == Some(histogram);
            let path = if is_sum && !histogram.is_empty() {
                join(dir, &format!("{histogram}/sum"))
            } else {
                join(dir, name)
            };
            // Numbers below 0 are instant, and no count is that large.
            let is_signed = flags & 0xf == 1;
            let number = if is_signed { (values[0] as i64).into() } else { i128::from(values[0]) };
            assert!(all.insert(path, number).is_none(), "{name} twice");
        }
        all
    }
}
