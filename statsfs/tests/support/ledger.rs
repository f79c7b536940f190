//! What many processes keep account of, each in its own part of memory that outlives it: what it is about to
//! count in two directories at the top level, and, after, that it did.

use std::os::fd::OwnedFd;

use super::churn::{Account, total};
use super::{Random, child, number};

/// Processes in all.
pub const MOST: usize = 1 << 14;
/// The directories.
pub const TOPS: [&str; 2] = ["kvm", "net"];
/// The files in each that tell what is counted there.
pub const FILES: [&str; 3] = ["work_done", "work_failed", "work_time/count"];

/// All accounts: of each process, for each directory.
pub type Ledger = [[Account; 2]; MOST];
/// What the files say, by directory.
pub type Totals = [[u64; 3]; 2];

/// What was certainly counted, or at most, by now.
pub fn bound(ledger: &Ledger, top: usize, file: usize, high: bool) -> u64 {
    let accounts = ledger.iter().map(|accounts| &accounts[top]);
    match (file, high) {
        (2, false) => total(accounts, |a| &a.counted_times),
        (2, true) => total(accounts, |a| &a.intended_times),
        (_, false) => (1 + file as u64) * total(accounts, |a| &a.counted_done),
        (_, true) => (1 + file as u64) * total(accounts, |a| &a.intended_done),
    }
}

/// What somebody knows who reads totals again and again.
#[derive(Default)]
pub struct Reader {
    last: Totals,
}

impl Reader {
    /// Reads one total of chance: it is what was counted, and never goes back.
    pub fn check(&mut self, ledger: &Ledger, random: &mut Random, read: impl FnOnce(&str) -> u64) {
        let (top, file) = (random.below(2) as usize, random.below(3) as usize);
        let path = format!("{}/{}", TOPS[top], FILES[file]);
        let low = bound(ledger, top, file, false);
        let there = read(&path);
        let high = bound(ledger, top, file, true);
        assert!(low <= there && there <= high, "{path}: {low} ≤ {there} ≤ {high}");
        let last = &mut self.last[top][file];
        assert!(*last <= there, "{path} went back from {last} to {there}");
        *last = there;
    }
}

/// The totals that the segments of a process hold that has ended.
pub fn held(segments: &[OwnedFd]) -> Totals {
    let alone = child::tree(segments);
    TOPS.map(|top| FILES.map(|file| number(&alone, &format!("{top}/{file}")) as u64))
}

/// Adds totals to others.
pub fn add(sums: &mut Totals, more: &Totals) {
    for (sum, more) in sums.iter_mut().flatten().zip(more.iter().flatten()) {
        *sum += more;
    }
}
