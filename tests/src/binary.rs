//! The commands under test, freshly built.
//!
//! An integration test of another package is not given the path of a command by cargo, and a command that
//! lies in the target directory may be older than its source. So each test process has cargo build it
//! once, with the profile and into the target directory that the test itself was built with: usually there
//! is nothing to do, and it takes a fraction of a second.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The `vmm` command.
pub fn vmm() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build("vmm"))
}

/// Copies the `vmm` command into a directory: the target directory may be closed to other users.
pub fn copy_vmm(directory: &Path) -> PathBuf {
    let copy = directory.join("vmm");
    // By a process of its own: if this one had it open for writing, a child that another thread starts at
    // that moment would have so too for a while, and nobody could execute it.
    let copied = Command::new("install").args(["-m", "755"]).arg(vmm()).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} can not be copied", vmm().display());
    copy
}

fn build(name: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let test = std::env::current_exe().expect("a test has a path");
    let target = test
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .expect("tests are run from cargo's target directory");
    // The target directory, a target's name if one was given, the profile's directory, `deps`.
    let below: Vec<_> = test.strip_prefix(target).expect("an ancestor").iter().collect();
    let profile = below[below.len().checked_sub(3).expect("…/profile/deps/test")];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    cargo.current_dir(workspace).args(["build", "--quiet", "--message-format=json"]);
    // Of the whole workspace, though it is one command of one package: so its dependencies have the features
    // that they were built with for `cargo test --workspace`, and are not built again.
    cargo.args(["--workspace", "--bin", name]).arg("--target-dir").arg(target);
    // The directory of the profile `dev` has a name of its own.
    cargo.arg("--profile").arg(if profile == "debug" { "dev".as_ref() } else { profile });
    if below.len() > 3 {
        cargo.arg("--target").arg(below[0]);
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo can be started");
    assert!(output.status.success(), "{name} can not be built: {cargo:?}");
    let messages = String::from_utf8(output.stdout).expect("JSON is text");
    let key = "\"executable\":\"";
    let path = messages
        .lines()
        .filter_map(|line| line.split_once(key)?.1.split('"').next())
        .next_back()
        .unwrap_or_else(|| panic!("cargo does not say where {name} is:\n{messages}"));
    PathBuf::from(path)
}
