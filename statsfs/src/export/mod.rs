//! Bulk files: everything about a subtree at once, each format a function of one [`Subtree`].

mod flat;
mod json;
mod kvm_binary;
mod metrics;
mod ration;
pub(crate) mod schema;
mod snapshot;
mod summary;

use self::metrics::Format;
use crate::tree::inode::Bulk;
use crate::tree::series::Detail;
use crate::tree::subtree::Subtree;
use crate::tree::{Exposition, MetricName};

/// There is more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Whether there is room for so many bytes.
fn fits(len: usize, most: usize) -> Result<(), Full> {
    if len > most { Err(Full) } else { Ok(()) }
}

/// Where else than at its beginning a read makes a bulk file anew, of which this is the content.
pub(crate) fn renewed_at(bulk: Bulk, content: &[u8]) -> Option<u64> {
    (bulk == Bulk::Binary).then(|| kvm_binary::data_offset(content))?
}

/// Appends what `/metrics` shows: the content of a bulk file, of which there may be `most` bytes. Where there are more,
/// those who have more than their part of that are shown in totals only, or not in these either; answers how many
/// machines, other sources and totals these are.
///
/// # Errors
/// [`Full`] if there is no room for what the server says of itself either.
pub(crate) fn expose(
    format: Exposition,
    subtree: &Subtree,
    vcpus: &[MetricName],
    most: usize,
    out: &mut Vec<u8>,
) -> Result<usize, Full> {
    let format = match format {
        Exposition::Prometheus => Format::Prometheus,
        Exposition::OpenMetrics => Format::OpenMetrics,
    };
    metrics::write_what_fits(subtree, format, Detail::Machines { vcpus }, most, out)
}

/// Appends a bulk file's content, of which there may be `most` bytes: where there are more, no more are written
/// than one value has. Metrics of these names are of each vCPU, too.
///
/// # Errors
/// [`Full`].
pub(crate) fn write(
    bulk: Bulk,
    subtree: &Subtree,
    vcpus: &[MetricName],
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Full> {
    match bulk {
        Bulk::Flat => flat::write(subtree, most, out),
        Bulk::Json => json::write(subtree, most, out),
        Bulk::Summary => summary::write(subtree, most, out),
        Bulk::Schema => schema::write(subtree, most, out),
        Bulk::Prometheus => {
            metrics::write(subtree, Format::Prometheus, Detail::Machines { vcpus }, most, out)
        }
        Bulk::PrometheusFull => {
            metrics::write(subtree, Format::Prometheus, Detail::Vcpus, most, out)
        }
        Bulk::OpenMetrics => {
            metrics::write(subtree, Format::OpenMetrics, Detail::Machines { vcpus }, most, out)
        }
        Bulk::OpenMetricsFull => {
            metrics::write(subtree, Format::OpenMetrics, Detail::Vcpus, most, out)
        }
        Bulk::Snapshot => snapshot::write(subtree, most, out),
        Bulk::Binary => kvm_binary::write(subtree, most, out),
        // It is there to be written to.
        Bulk::Clear => Ok(()),
    }
}
