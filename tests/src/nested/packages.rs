//! Debian's packages: fetched by apt, which knows where from and what depends on what, and unpacked into a
//! directory. Nothing is installed on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The kernel's metapackage: it depends on the package of the kernel that is current.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Fails with the line that fixes it if a command is missing.
///
/// # Errors
/// If it is.
pub fn require(command: &str, package: &str) -> Result<()> {
    let mut sh = Command::new("sh");
    sh.args(["-c", "command -v \"$0\"", command]).stdout(Stdio::null());
    let found = sh.status().context("sh can not be started")?;
    ensure!(found.success(), "{command} is missing: `apt-get install -y {package}`");
    Ok(())
}

/// Runs a command, and returns what it says.
fn output(command: &mut Command, fix: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}: {fix}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {fix}\n{}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const UPDATE: &str = "`apt-get update` may help";

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where the package was unpacked.
    root: PathBuf,
    /// The release, as uname(1) says it.
    pub release: String,
}

impl Kernel {
    /// The current kernel for clouds, from this directory if it is there.
    ///
    /// # Errors
    /// If apt does not know it or can not fetch it.
    pub fn fetch(cache: &Path) -> Result<Self> {
        let depends = output(Command::new("apt-cache").args(["depends", KERNEL]), UPDATE)?;
        let package = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|package| package.starts_with("linux-image-"))
            .with_context(|| format!("apt knows no kernel that {KERNEL} depends on: {UPDATE}"))?;
        let root = unpacked(cache, package, |packages| {
            let mut fetch = Command::new("apt-get");
            output(fetch.args(["download", package]).current_dir(packages), UPDATE).map(drop)
        })?;
        Ok(Self { root, release: package["linux-image-".len()..].to_string() })
    }

    /// The kernel's image, a bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Modules and those that they depend on, in the order in which they can be loaded.
    ///
    /// # Errors
    /// If one is not there or can not be read.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        // Either may be a symbolic link to the other's place.
        let lib = ["usr/lib", "lib"].map(|lib| self.root.join(lib).join("modules"));
        let modules =
            lib.into_iter().find(|lib| lib.is_dir()).context("the kernel has no modules")?;
        let mut all = BTreeMap::new();
        find_modules(&modules.join(&self.release).join("kernel"), &mut all)?;
        let mut ordered = Vec::new();
        for name in names {
            add_with_dependencies(name, &all, &mut ordered)?;
        }
        Ok(ordered)
    }
}

/// A module's name, in which hyphens and underscores are the same.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Finds all modules below a directory.
fn find_modules(directory: &Path, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, all)?;
        } else if let Some(name) =
            entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko"))
        {
            all.insert(module_name(name), path);
        }
    }
    Ok(())
}

/// Adds a module, after all that it says it depends on (`depends=` in its section `.modinfo`).
fn add_with_dependencies(
    name: &str,
    all: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<PathBuf>,
) -> Result<()> {
    const KEY: &[u8] = b"\0depends=";
    let path =
        all.get(&module_name(name)).with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = fs::read(path)?;
    let at = bytes.windows(KEY.len()).position(|window| window == KEY);
    let value = at.and_then(|at| bytes[at + KEY.len()..].split(|byte| *byte == 0).next());
    let value = std::str::from_utf8(value.with_context(|| format!("{name} is no module"))?)?;
    for dependency in value.split(',').filter(|name| !name.is_empty()) {
        add_with_dependencies(dependency, all, ordered)?;
    }
    if !ordered.contains(path) {
        ordered.push(path.clone());
    }
    Ok(())
}

/// Fetches packages and all that they depend on, down to libc, and unpacks them into one directory, which
/// is returned. If that has been done before, that is all.
///
/// # Errors
/// If apt does not know them or can not fetch them.
pub fn userland(cache: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    unpacked(cache, &format!("{name} {}", packages.join(" ")), |directory| {
        fs::create_dir_all(directory.join("partial"))?;
        // For apt, this is a machine on which nothing is installed yet.
        let status = directory.join("status");
        fs::write(&status, "")?;
        let mut fetch = Command::new("apt-get");
        fetch.args(["install", "--download-only", "--no-install-recommends", "-y", "-q"]);
        for (option, path) in
            [("Dir::State::status", &*status), ("Dir::Cache::archives", directory)]
        {
            fetch.arg("-o").arg(format!("{option}={}", path.display()));
        }
        output(fetch.args(["-o", "Debug::NoLocking=1"]).args(packages), UPDATE).map(drop)
    })
}

/// The directory with the unpacked contents of what `fetch` puts as packages into the directory that it is
/// given. A description that has been unpacked before is not fetched again.
fn unpacked(cache: &Path, what: &str, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let name = what.split(' ').next().unwrap_or(what);
    let (root, packages) = (cache.join(name), cache.join(format!("{name}.packages")));
    // It is written last.
    let done = cache.join(format!("{name}.done"));
    if fs::read_to_string(&done).is_ok_and(|text| text == what) {
        return Ok(root);
    }
    let _ = fs::remove_file(&done);
    for directory in [&root, &packages] {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)
            .with_context(|| format!("{} can not be made", directory.display()))?;
    }
    fetch(&packages)
        .with_context(|| format!("Debian's packages for {what:?} can not be fetched"))?;
    let mut count = 0;
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg");
            output(unpack.arg("-x").arg(&path).arg(&root), "`apt-get install -y dpkg`")?;
            count += 1;
        }
    }
    ensure!(count > 0, "apt fetched nothing for {what:?}: {UPDATE}");
    fs::remove_dir_all(&packages)?;
    fs::write(&done, what)?;
    Ok(root)
}
