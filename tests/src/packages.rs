//! Debian's packages: fetched by apt, which knows where from and what depends on what, and unpacked into a
//! directory. Nothing is installed on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The kernel's metapackage: it depends on the package of the kernel that is current.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Debian's key, in the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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

/// Where dpkg keeps what is installed. In what is unpacked here it says that all of that is.
pub const STATUS: &str = "var/lib/dpkg/status";

const UPDATE: &str = "`apt-get update` may help";

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where the package was unpacked.
    root: PathBuf,
    /// The release, as uname(1) says it.
    pub release: String,
}

/// apt, and where it takes packages from.
#[derive(Clone, Debug, Default)]
struct Apt(Vec<String>);

impl Apt {
    /// With what is backported to this machine's release, from where that itself comes from. Its lists are kept in this
    /// directory; nothing of this machine's own is changed.
    fn backports(cache: &Path) -> Result<Self> {
        let format = "$(REPO_URI) $(CODENAME) $(LABEL) $(COMPONENT)";
        let targets = ["indextargets", "--format", format, "Created-By: Packages"];
        let targets = output(Command::new("apt-get").args(targets), UPDATE)?;
        let (uri, release) = targets
            .lines()
            .find_map(|line| match *line.split(' ').collect::<Vec<_>>() {
                [uri, release, "Debian", "main"] if !release.contains('-') => Some((uri, release)),
                _ => None,
            })
            .with_context(|| {
                format!("apt does not know where Debian's own packages are: {UPDATE}")
            })?;
        let place = cache.join("backports");
        let (lists, list) = (place.join("lists"), place.join("sources.list"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::write(&list, format!("deb [signed-by={KEYRING}] {uri} {release}-backports main\n"))?;
        let options = [
            ("Dir::Etc::sourcelist", &*list),
            ("Dir::Etc::sourceparts", Path::new("-")),
            ("Dir::State::lists", &lists),
            ("Dir::Cache", &place),
        ];
        let options = options.map(|(option, path)| format!("-o{option}={}", path.display()));
        let apt = Self(options.into());
        output(apt.command("apt-get").arg("update"), "the backports can not be listed")?;
        Ok(apt)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args(&self.0);
        command
    }

    /// The package of the current kernel.
    fn kernel(&self) -> Result<String> {
        let depends = output(self.command("apt-cache").args(["depends", KERNEL]), UPDATE)?;
        let depends = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let package = depends.into_iter().find(|package| package.starts_with(IMAGE));
        let package = package
            .with_context(|| format!("apt knows no kernel that {KERNEL} depends on: {UPDATE}"))?;
        Ok(package.to_string())
    }
}

/// What the names of kernels' packages begin with; the release follows.
const IMAGE: &str = "linux-image-";

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

impl Kernel {
    /// The current kernel for clouds of this machine's Debian or, if that is older than `least`, of its backports;
    /// from this directory if it is there.
    ///
    /// # Errors
    /// If apt does not know it or can not fetch it.
    pub fn fetch(cache: &Path, least: (u32, u32)) -> Result<Self> {
        let is_new = |package: &str| version(&package[IMAGE.len()..]).is_some_and(|it| it >= least);
        let mut apt = Apt::default();
        let mut package = apt.kernel()?;
        if !is_new(&package) {
            apt = Apt::backports(cache)?;
            package = apt.kernel()?;
            ensure!(is_new(&package), "{package} is the newest kernel, and {least:?} is needed");
        }
        let root = unpacked(cache, &package, |packages| {
            let mut fetch = apt.command("apt-get");
            output(fetch.args(["download", &package]).current_dir(packages), UPDATE).map(drop)
        })?;
        Ok(Self { root, release: package[IMAGE.len()..].to_string() })
    }

    /// The kernel's image, a bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Modules and those that they depend on, in the order in which they can be loaded; but for those that are
    /// built into this kernel.
    ///
    /// # Errors
    /// If one is not there or can not be read.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        // Either may be a symbolic link to the other's place.
        let lib = ["usr/lib", "lib"].map(|lib| self.root.join(lib).join("modules"));
        let modules =
            lib.into_iter().find(|lib| lib.is_dir()).context("the kernel has no modules")?;
        let modules = modules.join(&self.release);
        let built_in = fs::read_to_string(modules.join("modules.builtin"))?;
        let built_in: BTreeSet<_> = built_in.lines().filter_map(named).collect();
        let mut all = BTreeMap::new();
        find_modules(&modules.join("kernel"), &mut all)?;
        let mut ordered = Vec::new();
        for name in names.iter().filter(|name| !built_in.contains(&module_name(name))) {
            add_with_dependencies(name, &all, &mut ordered)?;
        }
        Ok(ordered)
    }
}

/// A module's name, in which hyphens and underscores are the same.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module that is in a file, if one is, compressed or not.
fn named(file: &str) -> Option<String> {
    let file = file.rsplit('/').next()?;
    Some(module_name(file.strip_suffix(COMPRESSED).unwrap_or(file).strip_suffix(".ko")?))
}

const COMPRESSED: &str = ".xz";

/// Finds all modules below a directory.
fn find_modules(directory: &Path, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, all)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(named) {
            all.insert(name, path);
        }
    }
    Ok(())
}

/// The file with a module as it is loaded, made if it is not there.
fn decompressed(path: &Path) -> Result<PathBuf> {
    let Some(plain) = path.to_str().and_then(|path| path.strip_suffix(COMPRESSED)) else {
        return Ok(path.to_path_buf());
    };
    if path.exists() {
        output(Command::new("xz").arg("--decompress").arg(path), "`apt-get install -y xz-utils`")?;
    }
    Ok(plain.into())
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
    let path = decompressed(path)?;
    let bytes = fs::read(&path)?;
    let at = bytes.windows(KEY.len()).position(|window| window == KEY);
    let value = at.and_then(|at| bytes[at + KEY.len()..].split(|byte| *byte == 0).next());
    let value = std::str::from_utf8(value.with_context(|| format!("{name} is no module"))?)?;
    for dependency in value.split(',').filter(|name| !name.is_empty()) {
        add_with_dependencies(dependency, all, ordered)?;
    }
    if !ordered.contains(&path) {
        ordered.push(path);
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
        // For apt, this is a machine on which nothing is installed yet.
        let status = directory.join("status");
        fs::write(&status, "")?;
        let status = format!("Dir::State::status={}", status.display());
        download(directory, &["-o", &status], packages)
    })
}

/// As [`userland`], of a package and what this machine lacks of all that it depends on.
///
/// # Errors
/// If apt does not know it or can not fetch it.
pub fn beside(cache: &Path, package: &str) -> Result<PathBuf> {
    // The package itself is fetched though it may be installed.
    unpacked(cache, package, |directory| download(directory, &["--reinstall"], &[package]))
}

fn download(directory: &Path, options: &[&str], packages: &[&str]) -> Result<()> {
    fs::create_dir_all(directory.join("partial"))?;
    let mut fetch = Command::new("apt-get");
    fetch.args(["install", "--download-only", "--no-install-recommends", "-y", "-q"]);
    fetch.arg("-o").arg(format!("Dir::Cache::archives={}", directory.display()));
    fetch.args(["-o", "Debug::NoLocking=1"]).args(options).args(packages);
    output(&mut fetch, UPDATE).map(drop)
}

/// The directory with the unpacked contents of what `fetch` puts as packages into the directory that it is
/// given. A description that has been unpacked before is not fetched again.
fn unpacked(cache: &Path, what: &str, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let name = what.split(' ').next().unwrap_or(what);
    let (root, packages) = (cache.join(name), cache.join(format!("{name}.packages")));
    // It is written last.
    let done = cache.join(format!("{name}.done"));
    if fs::read_to_string(&done).is_ok_and(|text| text == what) && root.join(STATUS).exists() {
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
    let (mut count, mut status) = (0, String::new());
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg");
            output(unpack.arg("-x").arg(&path).arg(&root), "`apt-get install -y dpkg`")?;
            let control = output(Command::new("dpkg-deb").arg("--field").arg(&path), UPDATE)?;
            status += &format!("{}\nStatus: install ok installed\n\n", control.trim_end());
            count += 1;
        }
    }
    ensure!(count > 0, "apt fetched nothing for {what:?}: {UPDATE}");
    fs::remove_dir_all(&packages)?;
    let database = root.join(STATUS);
    fs::create_dir_all(database.parent().context("it is in a directory")?)?;
    fs::write(&database, status)?;
    fs::write(&done, what)?;
    Ok(root)
}

/// Removes what was unpacked.
///
/// # Errors
/// If it can not be removed.
pub fn forget(cache: &Path, name: &str) -> Result<()> {
    fs::remove_file(cache.join(format!("{name}.done")))?;
    fs::remove_dir_all(cache.join(name)).with_context(|| format!("{name} can not be removed"))
}
