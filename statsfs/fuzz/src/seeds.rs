//! Writes the seeds of both targets anew, from segments that the library made: to be run when the format
//! changes.
//!
//! ```text
//! cargo run --manifest-path statsfs/fuzz/Cargo.toml --bin seeds -- statsfs/fuzz/corpus
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use statsfs::segment::layout::{HEADER_SIZE, UNIT, header, kind};
use statsfs::value::{
    Aggregations, Descriptor, GroupBuilder, GroupDescriptor, Semantics, Unit, ValueType,
};
use statsfs::{Registry, RegistryOptions};
use statsfs_fuzz::{SIZE, encode};

statsfs::stats! {
    /// Shown where there is none.
    struct Explicit: "explicit" {
        /// Things.
        explicit_things: Counter,
    }
}

fn groups() -> [Arc<GroupDescriptor>; 3] {
    let count = |name: &str, ty| Descriptor::new(name.to_owned(), ty, Semantics::Cumulative);
    let floating = |name: &str, ty| Descriptor::new(name.to_owned(), ty, Semantics::Floating);
    [
        GroupBuilder::new("plain").value(count("n", ValueType::U64)),
        GroupBuilder::new("latched")
            .prefix("x_")
            .help("Latched.")
            .consistent()
            .value(count("x_a", ValueType::U64).family("x_f").label("reason", "io_in"))
            .value(count("x_b", ValueType::U16))
            .value(floating("x_on", ValueType::Bool).aggregate(Aggregations::COUNT_NONZERO)),
        GroupBuilder::new("every")
            .value(
                count("h", ValueType::Histogram { buckets: 5, sum: true }).unit(Unit::NANOSECONDS),
            )
            .value(floating("s8", ValueType::S8))
            .value(floating("s64", ValueType::S64).unit(Unit::BYTES))
            .value(Descriptor::new("peak", ValueType::U32, Semantics::Peak))
            .value(floating("u8", ValueType::U8).aggregate(Aggregations::ALL).help("Help.")),
    ]
    .map(|group| group.build().expect("a group of ours"))
}

fn content(registry: &Registry) -> Vec<u8> {
    let fd = registry.segments().expect("segments").swap_remove(0);
    let mut content = vec![0; SIZE];
    File::from(fd).read_exact_at(&mut content, 0).expect("a segment is as long as it was made");
    content
}

fn main() {
    let root = PathBuf::from(std::env::args_os().nth(1).expect("the corpus directory"));
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    };
    let options = RegistryOptions { segment_size: SIZE, max_segments: 1, ..Default::default() };
    for (n, group) in groups().iter().enumerate() {
        let registry = Registry::with_options(options.clone()).expect("a registry");
        let top = registry.source("top").label("key", "value").create().expect("a source");
        top.register().expect("registered");
        let child = registry.source("child").private().create().expect("a source");
        top.add_subordinate(&child).expect("added");
        top.add_aggregates::<Explicit>().expect("aggregates");
        let slot = child.add_group(group).expect("a slot");
        let name = group.name();
        let save = |stage: &str| {
            let content = content(&registry);
            let units = content[header::UNITS];
            write(&root.join(format!("segment/{name}-{stage}")), &encode(&content, units));
        };
        save("live");
        if n != 0 {
            let other = registry.source("other").hidden().create().expect("a source");
            top.add_subordinate(&other).expect("added");
            drop(other.add_group(group));
            top.remove_subordinate(&other).expect("removed");
        }
        top.remove_subordinate(&child).expect("removed");
        save("departed");
        drop(slot);
        save("retired");
        registry.usage();
        save("folded");
        let content = content(&registry);
        let mut at = HEADER_SIZE;
        while at < HEADER_SIZE + content[header::UNITS] as usize * UNIT {
            let is_group = content[at + 8] == kind::GROUP;
            let units = if is_group { content[at + 12].into() } else { 1 };
            if is_group {
                let path = root.join(format!("schema/{name}-{}", at / UNIT));
                write(&path, &content[at..at + units * UNIT]);
            }
            at += units * UNIT;
        }
    }
    // A valid header of the input's own.
    let registry = Registry::with_options(options).expect("a registry");
    let mut bytes = vec![0, 0, 0];
    bytes.extend_from_slice(&content(&registry)[..HEADER_SIZE / 8]);
    write(&root.join("segment/header"), &bytes);
}
