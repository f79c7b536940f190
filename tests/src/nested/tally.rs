//! What came of the tests, in whatever host they ran.

use std::collections::{BTreeMap, BTreeSet};

use super::Planned;
use super::report::Outcome;

/// What came of each test.
#[derive(Debug, Default)]
pub struct Tally {
    /// Hosts so far.
    hosts: u32,
    /// Those that ran when a host ended.
    interrupted: BTreeSet<String>,
    /// Those that have an outcome.
    pub ended: BTreeMap<String, Outcome>,
    /// What is known about the failures besides their outputs.
    pub remarks: BTreeMap<String, String>,
}

impl Tally {
    /// The number of the host that is booted next.
    pub fn next_host(&mut self) -> u32 {
        self.hosts += 1;
        self.hosts
    }

    /// A test has ended.
    pub fn end(&mut self, test: &str, outcome: Outcome) {
        self.ended.insert(test.to_string(), outcome);
        if outcome == Outcome::TimedOut {
            self.remarks.insert(test.to_string(), "it did not end, and was killed".into());
        }
    }

    /// A host that had these tests has ended before it was done. It is an emulated one, which may stall
    /// under load: what still ran is run once more, in the next one, and has failed if that ends, too. If
    /// nothing ran, nothing that waits ever will.
    pub fn host_ended(&mut self, mut running: BTreeSet<String>, tests: &[Planned]) {
        if running.is_empty() {
            running.extend(self.waiting(tests).into_iter().map(|test| test.name));
            self.interrupted.extend(running.iter().cloned());
        }
        for test in running {
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

    /// A host that had these tests is done: what has not reported never will.
    pub fn host_done(&mut self, tests: &[Planned]) {
        for test in self.waiting(tests) {
            self.remarks
                .insert(test.name.clone(), "the host was done without a report of it".into());
            self.ended.insert(test.name, Outcome::Failed);
        }
    }

    /// Those of the tests that have no outcome yet.
    pub fn waiting(&self, tests: &[Planned]) -> Vec<Planned> {
        tests.iter().filter(|test| !self.ended.contains_key(&test.name)).cloned().collect()
    }

    /// How many have passed, or not.
    pub fn count(&self, passed: bool) -> usize {
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

    fn running(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn names(tests: Vec<Planned>) -> Vec<String> {
        tests.into_iter().map(|test| test.name).collect()
    }

    #[test]
    fn what_ran_when_the_host_ended_is_run_once_more() {
        let tests = planned(&["a", "b", "c"]);
        let mut tally = Tally::default();
        tally.end("a", Outcome::Passed);
        tally.host_ended(running(&["b"]), &tests);
        assert_eq!(names(tally.waiting(&tests)), ["b", "c"]);
        tally.host_ended(running(&["b", "c"]), &tests);
        assert_eq!(names(tally.waiting(&tests)), ["c"]);
        assert_eq!((tally.count(true), tally.count(false)), (1, 1));
        assert!(tally.remarks["b"].contains("the host ended"));
    }

    #[test]
    fn a_host_that_runs_nothing_is_not_tried_again() {
        let mine = planned(&["a", "b"]);
        let others = planned(&["c"]);
        let mut tally = Tally::default();
        tally.host_ended(running(&[]), &mine);
        assert!(tally.waiting(&mine).is_empty());
        assert_eq!((tally.count(true), tally.count(false)), (0, 2));
        assert_eq!(names(tally.waiting(&others)), ["c"]);
    }

    #[test]
    fn what_has_not_reported_when_the_host_is_done_has_failed() {
        let tests = planned(&["a", "b"]);
        let mut tally = Tally::default();
        tally.end("a", Outcome::Passed);
        tally.host_done(&tests);
        assert!(tally.waiting(&tests).is_empty());
        assert_eq!((tally.count(true), tally.count(false)), (1, 1));
    }

    #[test]
    fn a_test_that_timed_out_has_failed() {
        let mut tally = Tally::default();
        tally.end("a", Outcome::TimedOut);
        assert_eq!((tally.count(true), tally.count(false)), (0, 1));
        assert!(tally.remarks["a"].contains("killed"));
    }
}
