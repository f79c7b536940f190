//! Tools of others that show statistics, as Debian has them. They are fetched once and kept in the target directory, not
//! installed: so none of their services begins to run.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::binary::Cargo;
use crate::namespace::{bind, mount};
use crate::packages;

/// Runs `fetch` with the directory in which they are kept, while no other test does.
pub(crate) fn kept<T>(fetch: impl FnOnce(&Path) -> Result<T>) -> T {
    let directory = Cargo::of_this_test().target().join("tools");
    let fetched = || {
        fs::create_dir_all(&directory)?;
        // It is let go when the file is closed.
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        fetch(&directory)
    };
    fetched().unwrap_or_else(|error| panic!("{error:#}"))
}

/// The kernel's own `kvm_stat`, a Python program, unmodified: Debian has it only in the kernel's source, of which
/// nothing else is kept.
///
/// # Panics
/// If it can not be fetched.
pub fn kvm_stat() -> PathBuf {
    const SOURCE: &str = "linux-source";
    kept(|directory| {
        let path = directory.join("kvm_stat");
        if path.exists() {
            return Ok(path);
        }
        let since = Instant::now();
        // Which is seen though the test succeeds.
        let mut terminal = std::io::stderr();
        writeln!(terminal, "fetching {SOURCE}, some 140 MB, for kvm_stat; this is done once")?;
        let root = packages::beside(directory, SOURCE)?;
        let archive = archive(&root.join("usr/src"))?;
        let new = directory.join("kvm_stat.new");
        let name = archive.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let member = name.trim_end_matches(".tar.xz").to_owned() + "/tools/kvm/kvm_stat/kvm_stat";
        // It ends at the first of that name: nobody waits for the rest.
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--to-stdout", "--occurrence=1", "--file"]);
        tar.arg(&archive).arg(&member).stdout(File::create(&new)?);
        let status = tar.status().context("`apt-get install -y tar xz-utils`")?;
        ensure!(status.success(), "{tar:?}: {status}: `apt-get install -y xz-utils`");
        packages::forget(directory, SOURCE)?;
        fs::rename(&new, &path)?;
        writeln!(terminal, "kvm_stat is there after {:.0} s", since.elapsed().as_secs_f32())?;
        Ok(path)
    })
}

/// The kernel's source in a directory.
fn archive(directory: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut archives = paths.filter(|path| path.to_string_lossy().ends_with(".tar.xz"));
    archives.next().with_context(|| format!("there is no source in {}", directory.display()))
}

/// The root directory of Performance Co-Pilot, with the libraries that this machine lacks.
///
/// # Panics
/// If it can not be fetched.
pub fn pcp() -> PathBuf {
    kept(|directory| packages::beside(directory, "pcp"))
}

/// The directory of the command `cargo-deb`, which cargo builds, since Debian does not have it.
///
/// # Panics
/// If it can not be built.
pub fn cargo_deb() -> PathBuf {
    const VERSION: &str = "3.8.0";
    kept(|directory| {
        let root = directory.join(format!("cargo-deb-{VERSION}"));
        let bin = root.join("bin");
        if bin.join("cargo-deb").exists() {
            return Ok(bin);
        }
        writeln!(std::io::stderr(), "building cargo-deb {VERSION}; this is done once")?;
        let target = directory.join("cargo-deb.target");
        let mut cargo = Command::new("cargo");
        // It has little to do: what is built fast is fast enough.
        cargo.args([
            "install",
            "cargo-deb",
            "--version",
            VERSION,
            "--locked",
            "--debug",
            "--quiet",
        ]);
        cargo.arg("--root").arg(&root).arg("--target-dir").arg(&target);
        let status = cargo.status().context("cargo can not be started")?;
        ensure!(status.success(), "{cargo:?}: {status}");
        fs::remove_dir_all(&target)?;
        Ok(bin)
    })
}

/// `prometheus-node-exporter`.
///
/// # Panics
/// If it can not be fetched.
pub fn node_exporter() -> PathBuf {
    const NAME: &str = "prometheus-node-exporter";
    kept(|directory| packages::beside(directory, NAME)).join("usr/bin").join(NAME)
}

/// Shows this thread, and what it starts, a directory in the place of KVM's in debugfs, and a processor that can virtualize:
/// `kvm_stat` looks for both. In a [private](crate::namespace::private) view of the machine only; `place` is for files.
///
/// # Panics
/// If it can not be.
pub fn show_kvm_stat(kvm: &Path, place: &Path) {
    let kvms = debugfs(place).join("kvm");
    bind(kvm, &kvms).unwrap_or_else(|error| panic!("{}: {error}", kvms.display()));
    say_it_virtualizes(place);
}

/// Where this thread's first debugfs is, which is the one that is looked at; one is mounted if there is none.
fn debugfs(spare: &Path) -> PathBuf {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("/proc");
    let places = mounts.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[2] == "debugfs").then(|| PathBuf::from(fields[1]))
    });
    places.into_iter().next().unwrap_or_else(|| {
        mount("debugfs", spare, "debugfs").expect("debugfs can be mounted");
        spare.to_path_buf()
    })
}

/// It wants to know whose processor this is, and ends where that can not virtualize by itself.
fn say_it_virtualizes(place: &Path) {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").expect("/proc");
    let is_flags = |line: &str| line.starts_with("flags");
    let mut flags = cpuinfo.lines().filter(|line| is_flags(line)).flat_map(str::split_whitespace);
    if flags.any(|flag| ["vmx", "svm"].contains(&flag)) {
        return;
    }
    let lines = cpuinfo.lines().map(|line| [line, if is_flags(line) { " svm\n" } else { "\n" }]);
    let doctored = place.with_extension("cpuinfo");
    fs::write(&doctored, lines.flatten().collect::<String>()).expect("a place for files");
    bind(&doctored, Path::new("/proc/cpuinfo")).expect("files can be bound");
    fs::remove_file(&doctored).expect("it was written");
}
