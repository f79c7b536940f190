//! A disk whose file fails: the guest is told with each request, and the user once.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::virtio::block::{BlockEvents, Operation, Outcome};
use devices::virtio::stats::BlockCounters;

/// Counts a disk's requests, and says the first failure of its file on standard error.
pub(super) struct Told {
    counters: BlockCounters,
    device: String,
    path: PathBuf,
    told: Cell<bool>,
}

impl Told {
    pub(super) fn new(counters: BlockCounters, device: &str, path: &Path) -> Self {
        let (device, path) = (device.to_string(), path.to_path_buf());
        Self { counters, device, path, told: Cell::new(false) }
    }

    fn message(&self, operation: Operation, offset: Option<u64>, error: &io::Error) -> String {
        let what = match operation {
            Operation::Read => "read",
            Operation::Write => "written",
            Operation::Flush => "flushed",
            Operation::Discard => "discarded",
            Operation::WriteZeroes => "zeroed",
            Operation::GetId | Operation::Other => "used",
        };
        let at = offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
        let Self { device, path, .. } = self;
        format!(
            "the disk {} ({device}) can not be {what}{at}: {error}; its guest gets an I/O error, and further ones are only counted (blk_io_errors)",
            path.display()
        )
    }
}

impl BlockEvents for Told {
    fn in_flight(&self, requests: u16) {
        self.counters.in_flight(requests);
    }

    fn done(&self, operation: Operation, outcome: Outcome, time: Duration) {
        self.counters.done(operation, outcome, time);
    }

    fn host_error(&self, operation: Operation, offset: Option<u64>, error: &io::Error) {
        self.counters.host_error(operation, offset, error);
        if !self.told.replace(true) {
            eprintln!("vmm: {}", self.message(operation, offset, error));
        }
    }
}
