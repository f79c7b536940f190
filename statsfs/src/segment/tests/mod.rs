//! Tests of the reader: against the real writer, and against segments made by hand.

mod cells;
mod churn;
mod crafted;
mod live;
mod mutated;
mod refused;
mod tolerated;

use super::process::{BlockRef, Process, Reading, SourceRecord};
use crate::Registry;
use crate::segment::Limits;

/// Attaches to a registry's segments, with the structure read.
fn attach(registry: &Registry) -> Process {
    let mut process = Process::attach(registry.segments().unwrap(), &Limits::default()).unwrap();
    process.refresh(true, &mut Vec::new()).unwrap();
    process
}

/// The only source of this name.
fn find<'a>(process: &'a Process, name: &str) -> Option<&'a SourceRecord> {
    let mut found = process.sources().filter(|source| source.name == name);
    let first = found.next();
    assert!(found.next().is_none(), "{name} is there twice");
    first
}

/// The cells of a block that is there and whole.
fn cells(process: &Process, block: &BlockRef) -> Vec<u64> {
    let mut out = vec![0; block.words()];
    let reading = process.read(block, &mut out);
    assert!(matches!(reading, Reading::Cells { .. }), "{reading:?}");
    out
}
