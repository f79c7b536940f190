//! What comes of each test, in one host after the other.

use std::collections::{BTreeMap, BTreeSet};

use super::Planned;
use super::report::Outcome;

/// What came of each test.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Hosts so far.
    hosts: u32,
    /// Those that have begun and not ended.
    running: BTreeSet<String>,
    /// Those that ran when a host ended.
    interrupted: BTreeSet<String>,
    pub(super) ended: BTreeMap<String, Outcome>,
    /// Those that have failed once, in whatever host.
    pub(super) failed: BTreeSet<String>,
    /// Those that have failed in this host, and are to be run in the next one.
    again: BTreeSet<String>,
    /// What is known about the failures besides their outputs.
    pub(super) remarks: BTreeMap<String, String>,
}

impl Tally {
    /// The number of the host that is booted next.
    pub(super) fn next_host(&mut self) -> u32 {
        self.hosts += 1;
        self.hosts
    }

    pub(super) fn begin(&mut self, test: &str) {
        self.running.insert(test.to_string());
    }

    /// A test has failed that may have done so because of the host: on one machine guests crash in it now and then,
    /// and its own kernel did, for a reason that is not known yet. Whether it is to be run once more, in another
    /// host; that is told at the end.
    pub(super) fn is_to_run_again(&mut self, test: &str) -> bool {
        self.running.remove(test);
        let is_first = self.failed.insert(test.to_string());
        if is_first {
            self.again.insert(test.to_string());
        }
        is_first
    }

    pub(super) fn end(&mut self, test: &str, outcome: Outcome) {
        self.running.remove(test);
        self.ended.insert(test.to_string(), outcome);
        if outcome == Outcome::TimedOut {
            self.remarks.insert(test.to_string(), "it did not end, and was killed".into());
        }
    }

    /// The host has ended before it was done. It is an emulated one, which may stall under load: what still
    /// ran is run once more, in the next one, and has failed if that ends, too. If nothing ran, nothing that
    /// waits ever will.
    pub(super) fn host_ended(&mut self, waiting: &[Planned]) {
        self.again.clear();
        let mut stopped: Vec<_> = std::mem::take(&mut self.running).into_iter().collect();
        if stopped.is_empty() {
            stopped.extend(waiting.iter().map(|test| test.name.clone()));
            self.interrupted.extend(stopped.iter().cloned());
        }
        for test in stopped {
            if self.interrupted.insert(test.clone()) {
                println!("test {test} ... interrupted by the host's end, to be run once more");
            } else {
                self.remarks.insert(
                    test.clone(),
                    "the host ended while it ran, not for the first time".into(),
                );
                self.ended.insert(test, Outcome::Failed);
            }
        }
    }

    /// The host is done: what has not reported never will.
    pub(super) fn host_done(&mut self, waiting: &[Planned]) {
        self.running.clear();
        let again = std::mem::take(&mut self.again);
        for test in waiting.iter().filter(|test| !again.contains(&test.name)) {
            self.remarks
                .insert(test.name.clone(), "the host was done without a report of it".into());
            self.ended.insert(test.name.clone(), Outcome::Failed);
        }
    }

    pub(super) fn waiting(&self, tests: &[Planned]) -> Vec<Planned> {
        tests.iter().filter(|test| !self.ended.contains_key(&test.name)).cloned().collect()
    }

    pub(super) fn count(&self, passed: bool) -> usize {
        self.ended.values().filter(|outcome| (**outcome == Outcome::Passed) == passed).count()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn planned(names: &[&str]) -> Vec<Planned> {
        names.iter().map(|name| Planned::function(name, Duration::ZERO)).collect()
    }

    #[test]
    fn what_ran_when_the_host_ended_is_run_once_more() {
        let tests = planned(&["a", "b", "c"]);
        let names = |tally: &Tally| -> Vec<_> {
            tally.waiting(&tests).into_iter().map(|test| test.name).collect()
        };
        let mut tally = Tally::default();
        tally.begin("a");
        tally.begin("b");
        tally.end("a", Outcome::Passed);
        tally.host_ended(&tally.waiting(&tests));
        assert_eq!(names(&tally), ["b", "c"]);
        tally.begin("b");
        tally.begin("c");
        tally.host_ended(&tally.waiting(&tests));
        assert_eq!(names(&tally), ["c"]);
        assert_eq!((tally.count(true), tally.count(false)), (1, 1));
        assert!(tally.remarks["b"].contains("the host ended"));
    }

    #[test]
    fn a_host_that_runs_nothing_is_not_tried_again() {
        let tests = planned(&["a", "b"]);
        let mut tally = Tally::default();
        tally.host_ended(&tally.waiting(&tests));
        assert!(tally.waiting(&tests).is_empty());
        assert_eq!((tally.count(true), tally.count(false)), (0, 2));
    }

    #[test]
    fn what_has_not_reported_when_the_host_is_done_has_failed() {
        let tests = planned(&["a", "b"]);
        let mut tally = Tally::default();
        tally.begin("a");
        tally.end("a", Outcome::Passed);
        tally.begin("b");
        tally.host_done(&tally.waiting(&tests));
        assert!(tally.waiting(&tests).is_empty() && tally.running.is_empty());
        assert_eq!((tally.count(true), tally.count(false)), (1, 1));
    }

    #[test]
    fn what_failed_is_run_once_more_in_the_next_host() {
        let tests = planned(&["a", "b"]);
        let mut tally = Tally::default();
        tally.begin("a");
        assert!(tally.is_to_run_again("a"));
        tally.begin("b");
        tally.end("b", Outcome::Passed);
        tally.host_done(&tally.waiting(&tests));
        let waiting = tally.waiting(&tests);
        assert_eq!(waiting.iter().map(|test| &*test.name).collect::<Vec<_>>(), ["a"]);
        tally.begin("a");
        assert!(!tally.is_to_run_again("a"), "twice is enough");
        tally.end("a", Outcome::Failed);
        assert!(tally.waiting(&tests).is_empty());
        assert_eq!((tally.count(true), tally.count(false)), (1, 1));
        // Without a report it has failed, also then.
        let mut tally = Tally::default();
        assert!(tally.is_to_run_again("a"));
        tally.host_done(&tally.waiting(&tests));
        tally.host_done(&tally.waiting(&tests));
        assert_eq!((tally.count(true), tally.count(false)), (0, 2));
    }

    #[test]
    fn a_test_that_timed_out_has_failed() {
        let mut tally = Tally::default();
        tally.begin("a");
        tally.end("a", Outcome::TimedOut);
        assert_eq!((tally.count(true), tally.count(false)), (0, 1));
        assert!(tally.running.is_empty() && tally.remarks["a"].contains("killed"));
    }
}
