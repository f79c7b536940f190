//! The commands under test, freshly built.
//!
//! An integration test of another package is not given the path of a command by cargo, and a command that
//! lies in the target directory may be older than its source. So each test process has cargo build it
//! once, with the profile and into the target directory that the test itself was built with: usually there
//! is nothing to do, and it takes a fraction of a second.
//!
//! Where there is no cargo, such as in the [nested host](crate::nested), the environment variable
//! `STATSFS_BIN_DIR` names a directory in which the commands are; nothing is built then.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The environment variable that names a directory of built commands.
pub const DIRECTORY: &str = "STATSFS_BIN_DIR";

/// The `vmm` command.
pub fn vmm() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| command("vmm"))
}

/// The `statsfs` command.
pub fn statsfs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| command("statsfs"))
}

fn command(name: &str) -> PathBuf {
    match std::env::var_os(DIRECTORY) {
        Some(directory) => {
            let path = Path::new(&directory).join(name);
            assert!(path.is_file(), "{DIRECTORY} is set, but {} is not there", path.display());
            path
        }
        None => Cargo::of_this_test().command(name, &[]),
    }
}

/// Copies the `vmm` command into a directory: the target directory may be closed to other users.
pub fn copy_vmm(directory: &Path) -> PathBuf {
    copy(vmm(), directory)
}

/// Copies a command into a directory, for other users.
pub fn copy(command: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join(command.file_name().expect("a command has a name"));
    // By a process of its own: if this one had it open for writing, a child that another thread starts at
    // that moment would have so too for a while, and nobody could execute it.
    let copied = Command::new("install").args(["-m", "755"]).arg(command).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} can not be copied", command.display());
    copy
}

/// An executable file that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// The directory of its package in the workspace.
    pub package: String,
    /// What it is: `bin`, `test`, `lib`, `bench`.
    pub kind: String,
    /// The target's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Cargo, as it built the test that asks.
#[derive(Debug)]
pub struct Cargo {
    /// The target directory.
    target: PathBuf,
    /// The profile, as the directory is called.
    profile: OsString,
    /// The target's name if one was given.
    triple: Option<OsString>,
}

impl Cargo {
    /// With the profile and target directory of this process.
    ///
    /// # Panics
    /// If cargo has not built it.
    pub fn of_this_test() -> Self {
        let test = std::env::current_exe().expect("a test has a path");
        let target = test
            .ancestors()
            .find(|directory| directory.join("CACHEDIR.TAG").exists())
            .expect("tests are run from cargo's target directory");
        // The target directory, a target's name if one was given, the profile's directory, `deps`.
        let below: Vec<_> = test.strip_prefix(target).expect("an ancestor").iter().collect();
        let profile = below[below.len().checked_sub(3).expect("…/profile/deps/test")];
        Self {
            target: target.to_path_buf(),
            profile: profile.to_os_string(),
            triple: (below.len() > 3).then(|| below[0].to_os_string()),
        }
    }

    /// The target directory.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Builds a command. With the profile of this test, unless `args` name another.
    ///
    /// # Panics
    /// If it can not be built.
    pub fn command(&self, name: &str, args: &[&str]) -> PathBuf {
        let args = [&["build", "--bin", name][..], args].concat();
        let built = self.build(&args).into_iter().find(|built| built.name == name);
        built.unwrap_or_else(|| panic!("cargo does not say where {name} is")).path
    }

    /// Builds all integration tests of the workspace.
    ///
    /// # Panics
    /// If they can not be built.
    pub fn integration_tests(&self) -> Vec<Executable> {
        let mut built = self.build(&["test", "--no-run"]);
        built.retain(|built| built.kind == "test");
        built
    }

    /// Has cargo build something, and says which executable files there are then.
    fn build(&self, args: &[&str]) -> Vec<Executable> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let mut cargo =
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
        // Of the whole workspace, though it may be one command of one package: so its dependencies have the
        // features that they were built with for `cargo test --workspace`, and are not built again.
        cargo.current_dir(workspace).args(args).args(["--workspace", "--quiet"]);
        cargo.arg("--message-format=json").arg("--target-dir").arg(&self.target);
        // The directory of the profiles `dev` and `test`, which are the defaults, has a name of its own.
        if !args.contains(&"--release") && self.profile != "debug" {
            cargo.arg("--profile").arg(&self.profile);
        }
        if let Some(triple) = &self.triple {
            cargo.arg("--target").arg(triple);
        }
        let output = cargo.stderr(Stdio::inherit()).output().expect("cargo can be started");
        assert!(output.status.success(), "this can not be built: {cargo:?}");
        let messages = String::from_utf8(output.stdout).expect("JSON is text");
        messages.lines().filter_map(executable).collect()
    }
}

/// The executable file that one of cargo's messages is about, if it is about one.
fn executable(message: &str) -> Option<Executable> {
    // Keys that occur once in such a message, or whose first occurrence is meant; all in this order.
    let after =
        |key: &str| Some(message.split_once(&format!("\"{key}\":"))?.1.trim_start_matches('['));
    let text = |key: &str| after(key)?.strip_prefix('"')?.split('"').next();
    let path = PathBuf::from(text("executable")?);
    let package = Path::new(text("manifest_path")?).parent()?.file_name()?.to_str()?.to_string();
    Some(Executable { package, kind: text("kind")?.into(), name: text("name")?.into(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_messages_are_understood() {
        let message = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/tests#0.1.0",
            "manifest_path":"/w/tests/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],
            "name":"exact","src_path":"/w/tests/tests/exact.rs","edition":"2024","doc":false},
            "profile":{"opt_level":"0"},"features":[],"filenames":["/w/target/debug/deps/exact-1"],
            "executable":"/w/target/debug/deps/exact-1","fresh":true}"#;
        let exact = Executable {
            package: "tests".into(),
            kind: "test".into(),
            name: "exact".into(),
            path: "/w/target/debug/deps/exact-1".into(),
        };
        assert_eq!(executable(message), Some(exact));
        let none = message.replace("\"/w/target/debug/deps/exact-1\",\"fresh", "null,\"fresh");
        assert_eq!(executable(&none), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
