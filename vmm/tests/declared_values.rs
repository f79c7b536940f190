//! Every declared value is written somewhere: a value that nothing writes would show 0 for ever and be
//! believed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use devices::stats::{
    AcpiPowerStats, ExitPortStats, I8042Stats, PvpanicStats, SerialInterruptStats, SerialStats,
};
use devices::virtio::stats::{BlockStats, EntropyStats, NetStats, VirtioStats};
use statsfs::value::Group;
use vmm::stats::{BusStats, SchedStats, VcpuDeviceStats, VcpuStats, VmStartStats, VmStats};

const KINDS: [&str; 6] = ["Counter", "Gauge", "Peak", "Flag", "Histogram", "PerLabel"];
const WRITES: [&str; 5] = ["inc(", "add(", "sub(", "set(", "record("];

fn crates() -> [PathBuf; 2] {
    let vmm = Path::new(env!("CARGO_MANIFEST_DIR"));
    [vmm.join("src"), vmm.parent().unwrap().join("devices/src")]
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            // Tests write values too, which does not count.
            let code = text.split("#[cfg(test)]").next().unwrap();
            found.push(code.to_string());
        }
    }
}

/// Names of the fields declared in the `stats!` invocations of a source.
fn declared(code: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for declaration in code.split("stats! {").skip(1) {
        for line in declaration.lines().take_while(|line| !line.starts_with('}')) {
            let Some((name, kind)) = line.trim().split_once(": ") else { continue };
            if KINDS.iter().any(|k| kind.starts_with(k)) {
                fields.insert(name.trim_start_matches("pub ").to_string());
            }
        }
    }
    fields
}

/// Whether some code writes the field: `.field.inc(` or `.field[label].inc(`, however it is laid out.
fn is_written(field: &str, code: &str) -> bool {
    let access = format!(".{field}");
    code.match_indices(&access).any(|(at, _)| {
        let rest = &code[at + access.len()..];
        let rest = match rest.strip_prefix('[') {
            Some(index) => index.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        rest.strip_prefix('.').is_some_and(|call| WRITES.iter().any(|w| call.starts_with(w)))
    })
}

#[test]
fn every_declared_value_is_written() {
    let mut code = Vec::new();
    crates().iter().for_each(|directory| sources(directory, &mut code));
    let fields: BTreeSet<_> = code.iter().flat_map(|code| declared(code)).collect();

    // The scan sees what the declarations declare: each value belongs to a field, and each field has
    // values.
    let groups = [
        VcpuStats::descriptor(),
        SchedStats::descriptor(),
        VcpuDeviceStats::descriptor(),
        BusStats::descriptor(),
        VmStats::descriptor(),
        VmStartStats::descriptor(),
        SerialStats::descriptor(),
        SerialInterruptStats::descriptor(),
        I8042Stats::descriptor(),
        PvpanicStats::descriptor(),
        AcpiPowerStats::descriptor(),
        ExitPortStats::descriptor(),
        VirtioStats::descriptor(),
        BlockStats::descriptor(),
        NetStats::descriptor(),
        EntropyStats::descriptor(),
    ];
    let mut with_values = BTreeSet::new();
    for value in groups.iter().flat_map(|group| group.values()) {
        let field = fields
            .iter()
            .filter(|field| {
                value.name == field.as_str()
                    || value
                        .label
                        .as_ref()
                        .is_some_and(|(_, label)| value.name == format!("{field}_{label}"))
            })
            .max_by_key(|field| field.len())
            .unwrap_or_else(|| panic!("the scan of the sources missed {}", value.name));
        with_values.insert(field.clone());
    }
    assert_eq!(fields, with_values, "a group is declared that this test does not know");

    let code: String = code.concat().split_whitespace().collect();
    let forgotten: Vec<_> = fields.iter().filter(|field| !is_written(field, &code)).collect();
    assert!(forgotten.is_empty(), "declared, but nothing writes them: {forgotten:?}");
}

#[test]
fn the_scan_tells_writes_from_other_uses() {
    for written in ["slot.x.inc()", "self.0.x.add(1)", "c.x[reason].add(ns)", "s.x.record(7)"] {
        assert!(is_written("x", written), "{written}");
    }
    for not in ["slot.x.get()", "slot.xy.inc()", "slot.x[r].get()", "x: Counter", "max.inc()"] {
        assert!(!is_written("x", not), "{not}");
    }
    let code = "stats! {\n    /// D.\n    pub struct S: \"s\" {\n        /// V.\n        pub x: Counter,\n        y: Gauge<u8> { aggregate: none },\n    }\n}\nlet z: Counter = 1;\n";
    assert_eq!(declared(code).into_iter().collect::<Vec<_>>(), ["x", "y"]);
}
