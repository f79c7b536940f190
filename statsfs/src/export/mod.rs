//! Bulk files: everything about a subtree at once, each format a function of one [`Snapshot`].

mod flat;
mod json;
mod schema;
mod summary;

use crate::tree::inode::Bulk;
use crate::tree::snapshot::Snapshot;

/// There is more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Appends a bulk file's content, of which there may be `most` bytes: where there are more, not many more are
/// written.
///
/// # Errors
/// [`Full`].
pub(crate) fn write(
    bulk: Bulk,
    snapshot: &Snapshot,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Full> {
    match bulk {
        Bulk::Flat => flat::write(snapshot, most, out),
        Bulk::Json => json::write(snapshot, most, out),
        Bulk::Summary => summary::write(snapshot, most, out),
        Bulk::Schema => schema::write(snapshot, most, out),
        // It is there to be written to.
        Bulk::Clear => Ok(()),
    }
}
