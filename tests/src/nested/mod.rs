//! Tests in a stock Debian host that this machine emulates, with its virtualization, in software: so a real
//! `kvm_amd` and the distribution's FUSE, as root, whatever this machine has.
//!
//! One executable has all roles. Outside, it is a test program that cargo runs ([`harness`]): it fetches
//! Debian's packages ([`packages`](crate::packages)), composes the file system of a host of some kind ([`image`]) with itself as the
//! first process and what is tested, and boots it ([`host`]). Inside, it sets the host up, or leaves that to
//! systemd, and runs what is planned ([`agent`]), which reports over a serial port ([`report`]): test programs of
//! the workspace, each test in a process of its own, and functions of the executable itself.
//!
//! A test that does not report has failed. If the host itself ends, what ran and what had not begun is run in
//! another host; what ran when that ends has failed, too.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

pub mod agent;
pub mod harness;
pub mod host;
pub mod image;
pub mod report;
mod tally;

/// What a host's first process is, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// This executable.
    Own,
    /// Debian's systemd, which is to be among the packages. The kernel is one of Linux 6.9 or newer.
    Systemd,
}

/// What runs in one kind of host.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// The first process.
    pub init: Init,
    /// Integration tests of the workspace: package and target.
    pub programs: &'static [(&'static str, &'static str)],
    /// Packages all of whose integration tests are in `programs` or in `left_out`.
    pub whole: &'static [&'static str],
    /// Integration tests of those packages that are not run there, each with the reason.
    pub left_out: &'static [(&'static str, &'static str, &'static str)],
    /// Those of the programs' tests that can not hold there, each with the reason.
    pub excluded: &'static [(&'static str, &'static str)],
    /// Functions of this executable, which fail by a panic.
    pub functions: &'static [Function],
    /// Commands of the workspace that are there.
    pub commands: &'static [&'static str],
    /// How many seconds each test may take: several times what the slowest takes on a quiet machine.
    pub patience: u32,
    /// Debian's packages that are needed besides what is always there.
    pub packages: &'static [&'static str],
    /// Text files that are there: path and contents.
    pub files: &'static [(&'static str, &'static str)],
    /// Symbolic links that are there: path and target.
    pub links: &'static [(&'static str, &'static str)],
    /// Whether our own packages are there, in [`DEBS`], and dpkg knows of all others that are.
    pub debs: bool,
    /// Whether what they print goes to the terminal, and arguments alone say what is run: for measurements.
    pub live: bool,
    /// Whether to run them in one host after the other, with nothing beside it.
    pub alone: bool,
}

impl Suite {
    /// One of nothing, in a host that has its own first process.
    pub const EMPTY: Self = Self {
        init: Init::Own,
        programs: &[],
        whole: &[],
        left_out: &[],
        excluded: &[],
        functions: &[],
        commands: &[],
        patience: 300,
        packages: &[],
        files: &[],
        links: &[],
        debs: false,
        live: false,
        alone: false,
    };
}

/// A function that runs in the host: its name and itself.
pub type Function = (&'static str, fn());

/// Where commands under test are in the host.
pub const BIN: &str = "/nested/bin";
/// Where test programs are, by package.
pub const TESTS: &str = "/nested/tests";
/// Where our own packages are, if they are there.
pub const DEBS: &str = "/nested/debs";
/// What guests are made of: `modules`, in files whose names say their order.
pub const GUEST: &str = "/nested/guest";
/// The kernel's image, for guests.
pub const LINUX: &str = "/nested/guest/vmlinuz";
/// What is to be run.
const PLAN: &str = "/nested/plan";
/// Where each test has a directory, by its name.
const FILES: &str = "/nested/files";

/// The environment variable that names a test's directory in the host: files in it are kept outside.
pub const KEPT: &str = "STATSFS_NESTED_FILES";
/// The environment variable that says what this executable is to be.
const ROLE: &str = "STATSFS_NESTED_ROLE";

/// What this executable is to be, when it is neither a test program nor the first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Agent,
    Function,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Function => "function",
        }
    }
}

/// The whole test program, in whatever role it was started.
pub fn main(suites: &[Suite]) -> ExitCode {
    if std::process::id() == 1 {
        agent::init();
    }
    let role = std::env::var(ROLE).ok();
    let is = |asked: Role| role.as_deref() == Some(asked.name());
    let done = if is(Role::Agent) {
        agent::run().map(|()| ExitCode::SUCCESS)
    } else if is(Role::Function) {
        run_function(suites).map(|()| ExitCode::SUCCESS)
    } else {
        harness::run(suites)
    };
    done.unwrap_or_else(|error| {
        eprintln!("nested: {error:#}");
        ExitCode::from(101)
    })
}

fn run_function(suites: &[Suite]) -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_default();
    let (_, function) = suites
        .iter()
        .flat_map(|suite| suite.functions)
        .find(|(is, _)| *is == name)
        .with_context(|| format!("no function {name}"))?;
    function();
    Ok(())
}

/// A test that is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether what it prints is for the terminal.
    pub live: bool,
    /// The program, in the host.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// More variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Planned {
    /// A function of this executable.
    pub fn function(name: &str, timeout: Duration) -> Self {
        Self {
            name: name.into(),
            timeout,
            live: false,
            program: "/init".into(),
            args: vec![name.into()],
            environment: vec![(ROLE.into(), Role::Function.name().into())],
        }
    }

    /// A test of a test program.
    pub fn test(name: &str, timeout: Duration, program: PathBuf, test: &str) -> Self {
        Self {
            name: name.into(),
            timeout,
            live: false,
            program,
            args: vec!["--exact".into(), test.into()],
            environment: Vec::new(),
        }
    }
}

/// What a host is to run, one after the other: it has one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan(pub Vec<Planned>);

impl Plan {
    /// As lines of fields with tabs between them.
    fn to_text(&self) -> String {
        let mut text = String::new();
        for test in &self.0 {
            let live = if test.live { "live" } else { "kept" };
            let program = test.program.to_str().expect("paths in the host are text");
            let mut fields = vec![
                test.name.clone(),
                test.timeout.as_secs().to_string(),
                live.into(),
                program.into(),
            ];
            fields.push(test.args.len().to_string());
            fields.extend(test.args.iter().cloned());
            for (name, value) in &test.environment {
                fields.push(format!("{name}={value}"));
            }
            text.push_str(&(fields.join("\t") + "\n"));
        }
        text
    }

    fn from_text(text: &str) -> Result<Self> {
        let tests = text.lines().map(|line| {
            let parse = || {
                let mut fields = line.split('\t').map(String::from);
                let (name, timeout) = (fields.next()?, fields.next()?.parse().ok()?);
                let (live, program) = (fields.next()? == "live", fields.next()?.into());
                let args = fields.next()?.parse().ok()?;
                let args = fields.by_ref().take(args).collect();
                let environment = fields
                    .map(|field| {
                        field.split_once('=').map(|(name, value)| (name.into(), value.into()))
                    })
                    .collect::<Option<_>>()?;
                let timeout = Duration::from_secs(timeout);
                Some(Planned { name, timeout, live, program, args, environment })
            };
            parse().with_context(|| format!("this is no test: {line:?}"))
        });
        Ok(Self(tests.collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_text() {
        let second = Duration::from_secs(1);
        let mut plan = Plan(vec![
            Planned::function("guests::boot", second * 30),
            Planned::test("tests::exact::one", second, "/nested/tests/tests/exact".into(), "one"),
        ]);
        plan.0[1].environment =
            vec![("STATSFS_SOAK".into(), "2".into()), ("EMPTY".into(), "".into())];
        assert_eq!(Plan::from_text(&plan.to_text()).unwrap(), plan);
        plan.0.pop();
        plan.0[0].live = true;
        assert_eq!(Plan::from_text(&plan.to_text()).unwrap(), plan);
        assert!(Plan::from_text("guests::boot\tsoon").is_err());
    }
}
