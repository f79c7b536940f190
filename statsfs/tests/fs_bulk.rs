//! `.stats/schema`, which names every file that its reader can find, says what each is, and knows of no other;
//! `.stats/json`, which has the same numbers as the files; and `.stats/summary`, for people.

mod support;
#[path = "support/user.rs"]
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use statsfs::fs::MountOptions;
use statsfs::{Embedded, Registry, Slot, Source, stats};
use support::{Phase, Tick, Work};
use user::as_user;

/// In no group.
const A: u32 = 20_001;

stats! {
    /// What becomes of something.
    struct Life: "life", prefix "life_" {
        /// Where it is.
        life_state: Gauge<u8> { states: Phase },
        /// Bytes when {}.
        life_bytes: PerLabel<Counter<Bytes>, Phase> { mode: 0o600 },
        /// Sizes that are nobody else's concern.
        life_sizes: Histogram<Bytes> { buckets: 4, aggregate: none },
        /// Where things end up.
        life_ends: Gauge<i16> { states: Phase, aggregate: [zero, nonzero] },
    }

    /// What not all may know of.
    struct Secret: "secret" {
        /// Secrets.
        secrets: Counter,
    }
}

struct Sample {
    registry: Registry,
    top: Source,
    _sources: Vec<Source>,
    _slots: (Vec<Slot<Work>>, Slot<Life>, Vec<Slot<Secret>>),
}

fn sample() -> Sample {
    let registry = Registry::new().unwrap();
    let source = |name: &str| registry.source(name);
    let top = source("top").create().unwrap();
    let a = source("a").label("kind", "of \"a\"").label("n", "1").create().unwrap();
    let [b, hidden, below] = [
        source("b").create().unwrap(),
        source("h").hidden().create().unwrap(),
        source("below-hidden").create().unwrap(),
    ];
    let vault = source("vault").private().create().unwrap();
    let inner = source("nobody-knows").create().unwrap();
    let pairs = [
        (&top, &a),
        (&top, &b),
        (&top, &hidden),
        (&hidden, &below),
        (&top, &vault),
        (&vault, &inner),
    ];
    for (above, below) in pairs {
        above.add_subordinate(below).unwrap();
    }
    top.register().unwrap();
    let work: Vec<_> = [&a, &b, &below].map(|source| source.add_values().unwrap()).into();
    let life = a.add_values().unwrap();
    let secret = [&vault, &inner].map(|source| source.add_values().unwrap());
    let _sources = vec![a, b, hidden, below, vault, inner];
    Sample { registry, top, _sources, _slots: (work, life, secret.into()) }
}

fn mount(registry: &Registry) -> (tempfile::TempDir, Embedded) {
    let all = std::fs::Permissions::from_mode(0o755);
    let dir = tempfile::Builder::new().permissions(all).tempdir().unwrap();
    let mounted = Embedded::mount(registry, &dir.path().join("mnt"), MountOptions::new());
    (dir, mounted.expect("these tests must be run as root, with /dev/fuse"))
}

/// The files below a directory, as paths from the mount's root, each with its mode.
fn walk(root: &Path, dir: &Path) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let path = entry.path();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap();
            all.insert(path.to_owned(), metadata.permissions().mode() & 0o777);
        }
    }
    all
}

fn schema(dir: &Path) -> (Value, String) {
    let text = std::fs::read_to_string(dir.join(".stats/schema")).unwrap();
    assert!(text.ends_with("}\n") && !text.trim_end().contains('\n'), "one line");
    (serde_json::from_str(&text).unwrap(), text)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// What a schema says of a file.
#[derive(Debug)]
struct Said<'a> {
    semantics: &'a str,
    mode: u32,
    value: &'a Value,
    file: &'a Value,
}

/// Every file that a schema names.
fn named(schema: &Value) -> BTreeMap<String, Said<'_>> {
    let mut all = BTreeMap::new();
    for kind in list(&schema["kinds"]) {
        for path in list(&kind["paths"]) {
            for file in list(&kind["files"]) {
                let value = &schema["values"][file["value"].as_u64().unwrap() as usize];
                let mode = u32::from_str_radix(text(&file["mode"]), 8).unwrap();
                let path = format!("{}/{}", text(path), text(&file["name"]));
                let mut add = |path: String, semantics, mode| {
                    let said = Said { semantics, mode, value, file };
                    assert!(all.insert(path.clone(), said).is_none(), "{path} twice");
                };
                if value["type"] != "histogram" {
                    add(path, text(&file["semantics"]), mode);
                    continue;
                }
                for field in list(&schema["histogram"]) {
                    if field["needs_sum"] == false || value["buckets"]["sum"] == true {
                        let name = text(&field["name"]);
                        let mode = if name == "count" { mode } else { mode & 0o444 };
                        add(format!("{path}/{name}"), text(&field["semantics"]), mode);
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_file_is_named_and_no_other() {
    let sample = sample();
    let (dir, mounted) = mount(&sample.registry);
    let root = &dir.path().join("mnt");
    for path in ["", "top", "top/a", "top/vault", "top/below-hidden"] {
        let (schema, text) = schema(&root.join(path));
        assert_eq!(schema["path"], path);
        let named = named(&schema);
        let modes: BTreeMap<_, _> =
            named.iter().map(|(path, said)| (path.clone(), said.mode)).collect();
        assert_eq!(modes, walk(root, &root.join(path)), "{path}: {text}");
        assert!(!named.is_empty());
        // Only what counts upwards can be cleared.
        for (path, said) in &named {
            assert!(said.mode & 0o222 == 0 || said.semantics == "cumulative", "{path}: {said:?}");
        }
        // It is what `flat` shows, line by line, buckets too.
        let flat = std::fs::read_to_string(root.join(path).join(".stats/flat")).unwrap();
        let mut of_flat = BTreeSet::new();
        for line in flat.lines() {
            let path = line.split_once(' ').unwrap().0;
            let Some((file, bound)) = path.split_once("/buckets/") else {
                of_flat.insert(path.to_owned());
                continue;
            };
            let file = format!("{file}/buckets");
            let bounds = list(&named[&file].value["buckets"]["upper_bounds"]);
            let is_known = |bound: &str| bounds.iter().any(|b| b.as_u64() == bound.parse().ok());
            assert!(bound == "inf" || is_known(bound), "{path}");
            of_flat.insert(file);
        }
        let of_schema: BTreeSet<_> = named.into_keys().collect();
        assert_eq!(of_flat, of_schema, "{path}");
    }
    drop(mounted);
}

#[test]
fn values_are_what_was_declared() {
    let sample = sample();
    let (dir, _mounted) = mount(&sample.registry);
    let (schema, _) = schema(&dir.path().join("mnt"));
    assert_eq!(schema["version"], 1);
    assert_eq!(schema["groups"]["life"], "What becomes of something.");
    assert_eq!(schema["labels"], json!({"top/a": {"kind": "of \"a\"", "n": "1"}}));
    let value = |name: &str| {
        let mut all = list(&schema["values"]).iter().filter(|value| value["name"] == name);
        let value = all.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(all.next().is_none(), "{name} is described twice");
        value
    };
    assert_eq!(
        *value("life_state"),
        json!({
            "name": "life_state", "group": "life", "type": "u8", "unit": "none", "exponent": 0,
            "semantics": "instant", "aggregations": [], "help": "Where it is.",
            "states": ["begun", "over"],
        })
    );
    assert_eq!(
        *value("life_bytes_over"),
        json!({
            "name": "life_bytes_over", "group": "life", "type": "u64", "unit": "bytes",
            "exponent": 0, "semantics": "cumulative", "aggregations": ["sum"],
            "help": "Bytes when it has ended.", "family": "life_bytes",
            "label": {"phase": "over"},
        })
    );
    assert_eq!(
        *value("work_time"),
        json!({
            "name": "work_time", "group": "work", "type": "histogram", "unit": "seconds",
            "exponent": -9, "semantics": "cumulative", "aggregations": ["sum"],
            "help": "Time per thing.",
            "buckets": {"upper_bounds": [1, 2, 4, 8, 16, 32, 64], "sum": true},
        })
    );
    assert_eq!(value("work_queue_peak")["semantics"], "peak");
    assert_eq!(value("work_queue")["type"], "s32");
    let all = ["sum", "min", "max", "avg", "zero", "nonzero"];
    assert_eq!(value("work_queue")["aggregations"], json!(all));
    assert_eq!(value("life_ends")["aggregations"], json!(["zero", "nonzero"]));
    assert_eq!(value("work_running")["type"], "bool");

    let named = named(&schema);
    let said = |path: &str| {
        let said = &named[path];
        (said.semantics, text(&said.file["scope"]), text(&said.file["aggregate"]))
    };
    for (path, expected) in [
        ("top/a/work_done", ("cumulative", "subtree", "sum")),
        ("top/work_done", ("cumulative", "subtree", "sum")),
        ("top/work_queue", ("instant", "subtree", "sum")),
        ("top/work_queue.min", ("instant", "subtree", "min")),
        ("top/work_queue_peak", ("peak", "subtree", "max")),
        ("top/work_running", ("instant", "subtree", "nonzero")),
        ("top/a/work_queue_peak", ("peak", "own", "none")),
        ("top/a/life_state", ("instant", "own", "none")),
        ("top/life_ends.zero", ("instant", "subtree", "zero")),
        ("top/a/life_sizes/count", ("cumulative", "own", "none")),
        ("top/work_time/sum", ("cumulative", "subtree", "sum")),
        ("top/work_time/p99", ("instant", "subtree", "sum")),
    ] {
        assert_eq!(said(path), expected, "{path}");
    }
}

#[test]
fn who_may_not_look_into_a_directory_learns_nothing_of_it() {
    let sample = sample();
    let (dir, _mounted) = mount(&sample.registry);
    let root = &dir.path().join("mnt");
    for path in ["", "top"] {
        let (schema, text, walked) = as_user(A, A, &[], || {
            let (schema, text) = schema(&root.join(path));
            (schema, text, walk(root, &root.join(path)))
        });
        let modes: BTreeMap<_, _> =
            named(&schema).into_iter().map(|(path, said)| (path, said.mode)).collect();
        assert_eq!(modes, walked);
        // A total above shows that there is something, and what.
        assert!(modes.contains_key("top/secrets") && modes.contains_key("top/b/work_done"));
        assert!(!text.contains("vault") && !text.contains("nobody-knows"), "{text}");
        let (_, of_root) = self::schema(&root.join(path));
        assert!(of_root.contains("top/vault/nobody-knows"));
    }
    as_user(A, A, &[], || {
        let refused = std::fs::read_to_string(root.join("top/vault/.stats/schema"));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    });
}

#[test]
fn many_directories_of_a_kind_are_described_once() {
    let sample = sample();
    let (dir, _mounted) = mount(&sample.registry);
    let root = &dir.path().join("mnt");
    let (before, text) = schema(root);
    let more: Vec<_> = (0..300)
        .map(|n| {
            let source = sample.registry.create_source(&format!("more{n}")).unwrap();
            sample.top.add_subordinate(&source).unwrap();
            (source.add_values::<Work>().unwrap(), source)
        })
        .collect();
    let (after, longer) = schema(root);
    let count = |schema: &Value, what: &str| list(&schema[what]).len();
    assert_eq!(count(&after, "values"), count(&before, "values"));
    assert_eq!(count(&after, "kinds"), count(&before, "kinds"));
    assert_eq!(after["kinds"].to_string().matches("top/more").count(), 300);
    let each = (longer.len() - text.len()) / more.len();
    assert!(each < 20, "{each} bytes for each directory: its path, and nothing else");
}

#[test]
fn what_departed_is_described_as_well() {
    let sample = sample();
    let source = sample.registry.create_source("goes").unwrap();
    sample.top.add_subordinate(&source).unwrap();
    let slots = (source.add_values::<Work>().unwrap(), source.add_values::<Tick>().unwrap());
    let (dir, _mounted) = mount(&sample.registry);
    let root = &dir.path().join("mnt");
    slots.1.tick_count.add(3);
    sample.top.remove_subordinate(&source).unwrap();
    drop(slots);
    let departed = root.join("top/.departed");
    let (schema, text) = schema(&departed);
    assert_eq!(schema["path"], "top/.departed");
    let named = named(&schema);
    let modes: BTreeMap<_, _> =
        named.iter().map(|(path, said)| (path.clone(), said.mode)).collect();
    assert_eq!(modes, walk(root, &departed), "{text}");
    assert!(modes.contains_key("top/.departed/tick_count"));
    assert!(named.values().all(|said| said.value["semantics"] == "cumulative"));
}

/// The numbers in an object, by path as in `flat`.
fn flatten(path: &str, value: &Value, all: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let slash = if path.is_empty() { "" } else { "/" };
                flatten(&format!("{path}{slash}{name}"), value, all);
            }
        }
        Value::Array(buckets) => {
            for bucket in buckets {
                let bound = if bucket[0].is_null() { "inf".into() } else { bucket[0].to_string() };
                flatten(&format!("{path}/{bound}"), &bucket[1], all);
            }
        }
        number => {
            assert!(number.is_i64() || number.is_u64(), "{path}: {number}");
            assert!(all.insert(path.to_owned(), number.to_string()).is_none(), "{path} twice");
        }
    }
}

#[test]
fn json_has_the_numbers_that_the_files_have() {
    let sample = sample();
    let (works, life, secrets) = &sample._slots;
    for (n, work) in (1..).zip(works) {
        work.update(|counters| counters.work_done.add(u64::MAX / 3 + n));
        work.work_time.record(5 * n);
        work.work_queue.set(-3 * n as i32);
    }
    life.life_state.set(1);
    life.life_ends.set(-7);
    secrets[1].secrets.add(4);
    let (dir, _mounted) = mount(&sample.registry);
    let root = &dir.path().join("mnt");
    std::fs::write(root.join("top/a/work_done"), "0").unwrap();
    let check = |path: &str| {
        let read = |name: &str| std::fs::read_to_string(root.join(path).join(".stats").join(name));
        let json: Value = serde_json::from_str(&read("json").unwrap()).unwrap();
        let mut found = BTreeMap::new();
        flatten(path, &json, &mut found);
        let flat = read("flat").unwrap();
        let lines = flat.lines().map(|line| line.split_once(' ').unwrap());
        let expected: BTreeMap<_, _> =
            lines.map(|(path, number)| (path.to_owned(), number.to_owned())).collect();
        assert_eq!(found, expected, "{path}");
        found
    };
    let all = check("");
    assert_eq!(all["top/work_queue.min"], "-9");
    assert_eq!(all["top/work_time/buckets/8"], "1");
    assert_eq!(all["top/a/work_done"], "0");
    assert_eq!(all["top/vault/nobody-knows/secrets"], "4");
    assert_eq!(all["top/secrets"], "4");
    for path in ["top", "top/a", "top/.departed"] {
        check(path);
    }
    let of_other = as_user(A, A, &[], || check(""));
    assert_eq!(of_other["top/secrets"], "4", "the total over what is not to be seen");
    assert!(!of_other.keys().any(|path| path.contains("vault")));
    let hidden = all.keys().filter(|path| path.contains("vault")).count();
    assert_eq!((of_other.len(), hidden), (all.len() - hidden, 2));
}

#[test]
fn a_summary_says_what_is_not_zero() {
    let sample = sample();
    let (works, lives, _) = &sample._slots;
    works[0].update(|counters| counters.work_done.add(1_234_567));
    works[0].work_time.record(5);
    works[0].work_running.set(true);
    lives.life_bytes[Phase::Ended].add(3 << 20);
    let (dir, _mounted) = mount(&sample.registry);
    let path = dir.path().join("mnt/top/a/.stats/summary");
    let text = std::fs::read_to_string(&path).unwrap();
    let (shown, zeros) = text.split_at(text.find("  (").unwrap());
    let work = "  # What a worker counts.
  work_done        1,234,567
  work_time        1 times: mean 5 ns, p50 7 ns, p90 7 ns, p99 7 ns, max 7 ns
  work_running     yes
";
    let life = "  # What becomes of something.
  life_state       begun (0)
  life_bytes_over  3 MiB
  life_ends        begun (0)
";
    // Whichever group the tree met first.
    let expected = [(work, life), (life, work)].map(|(a, b)| format!("top/a\n{a}{b}"));
    assert!(expected.contains(&shown.to_owned()), "{text}");
    assert!(zeros.ends_with(" more are 0)\n"), "{text}");
    lives.life_state.set(1);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("  life_state       over (1)\n"), "{text}");
    // What has no file is not there, and a state that has no name is a number.
    lives.life_state.set(9);
    let text = std::fs::read_to_string(dir.path().join("mnt/.stats/summary")).unwrap();
    assert!(text.starts_with("top\n") && text.contains("\n\ntop/a\n"), "{text}");
    assert!(text.contains("  life_state       9\n"), "{text}");
}
