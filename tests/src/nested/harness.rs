//! The test program outside: as those that Rust's own harness makes, with its arguments and its output.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::host::Host;
use super::image::Image;
use super::report::{Message, Outcome};
use super::tally::Tally;
use super::{Plan, Planned, Suite};
use crate::binary::{Cargo, Executable};
use crate::packages::require;
use crate::soak::rounds;

/// Variables that tests in the host see as they are outside.
const PASSED_ON: [&str; 2] = ["STATSFS_SEED", "RUST_BACKTRACE"];

/// The part of the usual rounds and counts that test programs do in the host, where all takes many times
/// as long.
const PART: &str = "10";

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    list: bool,
    exact: bool,
    ignored: bool,
    filters: Vec<String>,
    skipped: Vec<String>,
}

impl Arguments {
    /// Those of Rust's harness, as far as they mean anything here.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self::default();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_string())),
                _ => (&*arg, None),
            };
            let mut value =
                || value.clone().or_else(|| args.next()).context(format!("{name} what?"));
            match name {
                "--list" => parsed.list = true,
                "--exact" => parsed.exact = true,
                "--ignored" => parsed.ignored = true,
                "--skip" => parsed.skipped.push(value()?),
                // A host runs one at a time, and output is kept in files.
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(value()?),
                "--bench" | "--nocapture" | "--no-capture" | "--show-output"
                | "--include-ignored" | "--quiet" | "-q" | "--report-time" | "--test" => {}
                _ if name.starts_with('-') => bail!("{name} is not known to this test program"),
                _ => parsed.filters.push(arg),
            }
        }
        Ok(parsed)
    }

    fn selects(&self, name: &str) -> bool {
        let matches =
            |filter: &String| if self.exact { name == filter } else { name.contains(&**filter) };
        (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skipped.iter().any(matches)
    }
}

/// The tests of a suite: what there is, and why some of it is not run.
#[derive(Default)]
struct Cases {
    programs: Vec<Executable>,
    tests: Vec<Planned>,
    ignored: BTreeMap<String, String>,
}

impl Cases {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.tests.iter().map(|test| &test.name).chain(self.ignored.keys())
    }
}

/// Names the tests to be run where no arguments do (measurements are all run), with commas between: what their names
/// contain. All of them if it is empty, and [`DEFAULT`] if it is not set.
const FILTERS: &str = "STATSFS_NESTED";
/// The guests' tests, which are run nowhere else. The integration tests are, and those of systemd want one more host.
const DEFAULT: &str = "guests::";

/// What the names of the tests contain that are to be run where no arguments say it, by the variable's value.
fn filters(variable: Option<String>) -> Vec<String> {
    let filters = variable.as_deref().unwrap_or(DEFAULT);
    filters.split(',').filter(|filter| !filter.is_empty()).map(str::to_string).collect()
}

/// Runs suites as a test program does, each in a host of its kind.
///
/// # Errors
/// If a host can not be made. Tests that fail are no error of this.
pub(super) fn run(suites: &[Suite]) -> Result<ExitCode> {
    let mut arguments = Arguments::parse(std::env::args().skip(1))?;
    let by_default = arguments.filters.is_empty() && !suites.iter().any(|suite| suite.live);
    if by_default {
        arguments.filters = filters(std::env::var(FILTERS).ok());
    }
    for (command, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("apt-get", "apt"),
        ("dpkg", "dpkg"),
        ("strip", "binutils"),
    ] {
        require(command, package)?;
    }
    let cargo = Cargo::of_this_test();
    let place = cargo.target().join("nested");
    let files = place.join("files");
    fs::create_dir_all(&place).with_context(|| format!("{} can not be made", place.display()))?;
    // Two at a time would use each other's files.
    let lock = fs::File::create(place.join("lock"))?;
    lock.lock().context("the lock can not be taken")?;

    let started = Instant::now();
    let (mut selected, mut all) = (Vec::new(), 0);
    for suite in suites {
        let mut cases = cases(suite, &cargo)?;
        all += cases.tests.len() + cases.ignored.len();
        cases.tests.retain(|test| arguments.selects(&test.name) && !arguments.ignored);
        cases.ignored.retain(|name, _| arguments.selects(name));
        selected.push((suite, cases));
    }
    let names: Vec<_> = selected.iter().flat_map(|(_, cases)| cases.names()).collect();
    if arguments.list {
        names.iter().for_each(|name| println!("{name}: test"));
        return Ok(ExitCode::SUCCESS);
    }
    if by_default && !arguments.filters.is_empty() {
        println!(
            "nested: of {all} tests those whose names contain {:?}; {FILTERS}= runs all",
            arguments.filters
        );
    }
    println!("\nrunning {} tests", names.len());
    let ignored: Vec<_> = selected.iter().flat_map(|(_, cases)| &cases.ignored).collect();
    ignored.iter().for_each(|(name, reason)| println!("test {name} ... ignored, {reason}"));
    let _ = fs::remove_dir_all(&files);
    fs::create_dir_all(&files)?;
    let tally = Mutex::new(Tally::default());
    for (suite, cases) in selected.iter().filter(|(_, cases)| !cases.tests.is_empty()) {
        let mut image = prepare(suite, cases, &cargo, &place)?;
        run_all(&mut image, suite, &cases.tests, &place, &files, &tally)?;
    }
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell_failures(&tally, &files);
    let (passed, failed) = (tally.count(true), tally.count(false));
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; {} ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        ignored.len(),
        all - names.len(),
        started.elapsed().as_secs_f64()
    );
    assert_eq!(passed + failed + ignored.len(), names.len(), "every test has an outcome");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) })
}

/// Makes what a host is made of.
fn prepare(suite: &Suite, cases: &Cases, cargo: &Cargo, place: &Path) -> Result<Image> {
    let mut image = say("Debian's packages", || Image::new(place, suite))?;
    cases.programs.iter().try_for_each(|program| image.test(program))?;
    for name in suite.commands {
        let what = format!("{name}, optimised");
        image.command(&say(&what, || Ok(cargo.command(name, &["--release"])))?)?;
        // Tests of its own package have this path built in.
        image.link(&cargo.command(name, &[]), &Path::new(super::BIN).join(name));
    }
    image.guests()?;
    Ok(image)
}

fn patience(suite: &Suite) -> Duration {
    Duration::from_secs(rounds(suite.patience).into())
}

/// Does a part of the preparation, and says how long it took.
fn say<T>(what: &str, prepare: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = prepare()?;
    println!("nested: {what}: ready after {:.1} s", started.elapsed().as_secs_f64());
    Ok(done)
}

/// Builds the workspace's test programs, and asks those of the suite which tests they have.
fn cases(suite: &Suite, cargo: &Cargo) -> Result<Cases> {
    let mut cases = Cases::default();
    let mut excluded: BTreeMap<_, _> = suite.excluded.iter().copied().collect();
    let build = || Ok(cargo.integration_tests());
    let built = if suite.programs.is_empty() { Vec::new() } else { say("test programs", build)? };
    let forgotten = forgotten(suite, &built);
    ensure!(
        forgotten.is_empty(),
        "name these test programs in `programs`, or in `left_out` with the reason: {forgotten:?}"
    );
    for (package, target, _) in suite.left_out {
        let is_built = built.iter().any(|built| built.package == *package && built.name == *target);
        ensure!(is_built, "{package}'s {target} is left out, and there is no such test program");
    }
    for (package, target) in suite.programs {
        let program = built.iter().find(|built| built.package == *package && built.name == *target);
        let program =
            program.with_context(|| format!("cargo has not built {package}'s {target}"))?;
        let path = Image::place_of_test(program);
        let ignored = list(&program.path, &["--ignored"])?;
        for test in list(&program.path, &[])? {
            let name = format!("{package}::{target}::{test}");
            if let Some(reason) = excluded.remove(&*name) {
                cases.ignored.insert(name, reason.to_string());
            } else if ignored.contains(&test) {
                cases.ignored.insert(name, "as outside".to_string());
            } else {
                cases.tests.push(Planned::test(&name, patience(suite), path.clone(), &test));
            }
        }
        cases.programs.push(program.clone());
    }
    ensure!(excluded.is_empty(), "there are no such tests: {:?}", excluded.keys());
    let soak = std::env::var("STATSFS_SOAK").unwrap_or_else(|_| "1".into());
    for test in &mut cases.tests {
        test.environment.push(("STATSFS_SOAK".into(), format!("{soak}/{PART}")));
    }
    for (name, _) in suite.functions {
        let mut function = Planned::function(name, patience(suite));
        function.live = suite.live;
        function.environment.push(("STATSFS_SOAK".into(), soak.clone()));
        cases.tests.push(function);
    }
    for name in PASSED_ON {
        let Ok(value) = std::env::var(name) else { continue };
        for test in &mut cases.tests {
            test.environment.push((name.to_string(), value.clone()));
        }
    }
    Ok(cases)
}

/// Test programs that a suite is to name and does not, or names as both run and left out.
fn forgotten(suite: &Suite, built: &[Executable]) -> Vec<String> {
    let left_out = suite.left_out.iter().map(|(package, target, _)| (*package, *target));
    let named: Vec<_> = suite.programs.iter().copied().chain(left_out).collect();
    built
        .iter()
        .map(|built| (&*built.package, &*built.name))
        .filter(|(package, _)| suite.whole.contains(package))
        .filter(|program| named.iter().filter(|named| *named == program).count() != 1)
        .map(|(package, target)| format!("{package}::{target}"))
        .collect()
}

/// The tests of a test program.
fn list(program: &Path, args: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).args(args).output()?;
    let text = String::from_utf8(output.stdout)?;
    let tests: Vec<_> =
        text.lines().filter_map(|line| line.strip_suffix(": test")).map(String::from).collect();
    ensure!(output.status.success(), "{} can not be asked for its tests", program.display());
    Ok(tests)
}

/// Runs tests, in hosts beside each other unless the suite's run alone, and in new ones what still ran in
/// those that end before they should.
fn run_all(
    image: &mut Image,
    suite: &Suite,
    tests: &[Planned],
    place: &Path,
    files: &Path,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let most = if suite.alone { 1 } else { thread::available_parallelism()?.get() };
    loop {
        let plans = deal(lock(tally).waiting(tests), most);
        if plans.is_empty() {
            return Ok(());
        }
        let mut hosts = Vec::new();
        for tests in plans {
            let number = lock(tally).next_host();
            let directory = files.join(format!("host{number}"));
            fs::create_dir_all(&directory)?;
            let initrd = place.join(format!("host{}.cpio", hosts.len()));
            let plan = Plan(tests);
            image.write(&plan, &initrd)?;
            println!(
                "nested: host {number} boots; consoles and outputs are kept in {}",
                files.display()
            );
            hosts.push((number, Host::boot(image.kernel(), &initrd, &directory)?, plan.0));
        }
        thread::scope(|scope| {
            for (number, host, tests) in hosts {
                scope.spawn(move || follow_to_its_end(number, host, &tests, tally, files));
            }
        });
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deals tests to at most so many hosts, neighbours to different ones: those of one program are alike.
fn deal(tests: Vec<Planned>, hosts: usize) -> Vec<Vec<Planned>> {
    let hosts = hosts.min(tests.len());
    let mut plans = vec![Vec::new(); hosts];
    for (index, test) in tests.into_iter().enumerate() {
        plans[index % hosts].push(test);
    }
    plans
}

/// Takes what a host reports until its end, as it should be or not.
fn follow_to_its_end(
    number: u32,
    mut host: Host,
    tests: &[Planned],
    tally: &Mutex<Tally>,
    files: &Path,
) {
    let mut running = BTreeSet::new();
    let followed = follow(number, &mut host, &mut running, tally, files);
    match followed.and_then(|()| host.finish()) {
        Ok(()) => lock(tally).host_done(tests),
        Err(error) => {
            println!("nested: host {number}: {error:#}");
            lock(tally).host_ended(running, tests);
        }
    }
}

/// Takes what a host reports until it says that it is done.
fn follow(
    number: u32,
    host: &mut Host,
    running: &mut BTreeSet<String>,
    tally: &Mutex<Tally>,
    files: &Path,
) -> Result<()> {
    loop {
        match host.message()? {
            Message::Up(uptime) => println!(
                "nested: host {number} up after {:.1} s, by its own clock {:.1} s",
                host.started().elapsed().as_secs_f64(),
                uptime.as_secs_f64()
            ),
            Message::Alive => {}
            Message::Begin(test) => drop(running.insert(test)),
            Message::Line(line) => println!("{line}"),
            Message::File(name, bytes) => keep(files, &name, &bytes)?,
            Message::End(test, outcome, took) => {
                let told = match outcome {
                    Outcome::Passed => "ok",
                    Outcome::Failed => "FAILED",
                    Outcome::TimedOut => "FAILED (timed out)",
                };
                println!("test {test} ... {told} <{:.3}s>", took.as_secs_f64());
                running.remove(&test);
                lock(tally).end(&test, outcome);
            }
            Message::Done => return Ok(()),
        }
    }
}

/// Where the files of a test are kept.
fn kept(files: &Path, name: &str) -> PathBuf {
    files.join(name.replace("::", "/"))
}

/// Keeps a file.
fn keep(files: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = kept(files, name);
    let below = path.strip_prefix(files)?;
    ensure!(
        below.components().all(|part| matches!(part, Component::Normal(_))),
        "{name:?} is no name"
    );
    fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
    fs::write(&path, bytes).with_context(|| format!("{} can not be written", path.display()))
}

/// Shows what failed tests have said.
fn tell_failures(tally: &Tally, files: &Path) {
    let failed: Vec<_> =
        tally.ended.iter().filter(|(_, outcome)| **outcome != Outcome::Passed).collect();
    if failed.is_empty() {
        return;
    }
    println!("\nfailures:\n");
    for (name, _) in &failed {
        let directory = kept(files, name);
        println!("---- {name} ---- (all of its files: {})", directory.display());
        if let Some(remark) = tally.remarks.get(*name) {
            println!("{remark}");
        }
        let mut paths: Vec<_> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        for path in paths {
            println!("--- the end of {}:", path.display());
            println!("{}", super::host::tail(&path, 40));
        }
    }
    println!("\nfailures:");
    failed.iter().for_each(|(name, _)| println!("    {name}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn arguments_are_those_of_rusts_harness() {
        let parsed =
            arguments("--nocapture boot --skip=net --test-threads 2 --exact x --skip y").unwrap();
        let expected = Arguments {
            exact: true,
            filters: vec!["boot".into(), "x".into()],
            skipped: vec!["net".into(), "y".into()],
            ..Arguments::default()
        };
        assert_eq!(parsed, expected);
        assert!(arguments("--list --format terse").unwrap().list);
        assert!(arguments("--frobnicate").is_err() && arguments("--skip").is_err());
    }

    #[test]
    fn names_are_selected_as_there() {
        let selects = |line: &str, name: &str| arguments(line).unwrap().selects(name);
        assert!(selects("", "a::b") && selects("b", "a::b") && selects("x b", "a::b"));
        assert!(!selects("c", "a::b") && !selects("b --exact", "a::b"));
        assert!(selects("a::b --exact", "a::b") && !selects("--skip b", "a::b"));
    }

    #[test]
    fn without_arguments_a_variable_says_what_is_run() {
        let given = |value: &str| filters(Some(value.into()));
        assert_eq!(filters(None), ["guests::"]);
        assert_eq!(given(""), [""; 0]);
        assert_eq!(given("guests::net,systemd::"), ["guests::net", "systemd::"]);
    }

    #[test]
    fn test_programs_that_a_suite_does_not_name_are_found() {
        let built = [("a", "run"), ("a", "left"), ("a", "both"), ("a", "new"), ("b", "other")];
        let built = built.map(|(package, name)| Executable {
            package: package.into(),
            kind: "test".into(),
            name: name.into(),
            path: PathBuf::new(),
        });
        let suite = Suite {
            programs: &[("a", "run"), ("a", "both")],
            whole: &["a"],
            left_out: &[("a", "left", "a reason"), ("a", "both", "a reason")],
            ..Suite::EMPTY
        };
        assert_eq!(forgotten(&suite, &built), ["a::both", "a::new"]);
        assert_eq!(forgotten(&Suite { whole: &[], ..suite }, &built), [""; 0]);
    }

    #[test]
    fn every_test_is_dealt_to_one_host() {
        let dealt = |names: &[&str], hosts| -> Vec<Vec<String>> {
            let tests = names.iter().map(|name| Planned::function(name, Duration::ZERO)).collect();
            let names = |plan: Vec<Planned>| plan.into_iter().map(|test| test.name).collect();
            deal(tests, hosts).into_iter().map(names).collect()
        };
        assert_eq!(dealt(&["a", "b", "c"], 2), [vec!["a", "c"], vec!["b"]]);
        assert_eq!(dealt(&["a", "b"], 1), [["a", "b"]]);
        assert_eq!(dealt(&["a"], 4), [["a"]]);
        assert!(dealt(&[], 2).is_empty());
    }
}
