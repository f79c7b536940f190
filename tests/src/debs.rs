//! Our own Debian packages, as `resources/debian/build` makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::binary::Cargo;
use crate::tools;

/// Copies of the packages, which go when this is dropped.
#[derive(Debug)]
pub struct Debs {
    /// The server and the tools.
    pub statsfs: PathBuf,
    /// The VMM.
    pub vmm: PathBuf,
    _directory: TempDir,
}

impl Debs {
    /// Builds them, of optimised programs, in the target directory of this test.
    ///
    /// # Panics
    /// If they can not be built.
    pub fn build() -> Self {
        let cargo_deb = tools::cargo_deb();
        let path = std::env::var("PATH").unwrap_or_default();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/debian/build");
        let mut build = Command::new(&script);
        build.env("CARGO_TARGET_DIR", Cargo::of_this_test().target());
        build.env("PATH", format!("{}:{path}", cargo_deb.display()));
        let directory = tempfile::tempdir().expect("a place");
        // One after the other: they write the same files.
        let copies = tools::kept(|_| {
            let output = build.stderr(Stdio::inherit()).output()?;
            ensure!(output.status.success(), "{}: {}", script.display(), output.status);
            let copy = |deb: &str| {
                let copy = directory.path().join(Path::new(deb).file_name().context("a path")?);
                fs::copy(deb, &copy)?;
                Ok(copy)
            };
            String::from_utf8(output.stdout)?.lines().map(copy).collect::<Result<Vec<_>>>()
        });
        let [statsfs, vmm] = copies.try_into().expect("two packages");
        Self { statsfs, vmm, _directory: directory }
    }

    /// Both.
    pub fn all(&self) -> [&Path; 2] {
        [&self.statsfs, &self.vmm]
    }
}
