//! The host's file system: Debian's userland, the kernel's modules, what is tested, and what is to be run.
//! All of it is an initial RAM file system.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{BIN, DEBS, GUEST, Init, LINUX, PLAN, Plan, Suite, TESTS, agent};
use crate::binary::Executable;
use crate::debs::Debs;
use crate::newc::Archive;
use crate::packages::{self, Kernel};

/// What tests and the tools that they run need, besides what these depend on.
const USERLAND: [&str; 16] = [
    "bash",
    "busybox-static",
    "coreutils",
    "diffutils",
    "e2fsprogs",
    "findutils",
    "fuse3",
    "grep",
    "iproute2",
    "libgcc-s1",
    "lz4",
    "mawk",
    "python3-minimal",
    "sed",
    "tar",
    "util-linux",
];

/// The oldest kernel that a host takes.
const LEAST_KERNEL: (u32, u32) = (5, 1);
/// ... in which the mount of a server that was killed is carried on by the next one.
const LEAST_KERNEL_TO_CARRY_ON: (u32, u32) = (6, 9);

/// Where there is systemd, this is not the first time that it runs.
const MACHINE_ID: &str = "5f7a3c1e9b2d4e6f8a0b1c2d3e4f5a6b\n";
/// Units of Debian's that are of no use in a host without disks, networks and people, and take time there.
const MASKED: [&str; 9] = [
    "dbus.service",
    "getty.target",
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-random-seed.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
];

/// The host's kernel modules.
const HOST_MODULES: [&str; 3] = ["kvm-amd", "fuse", "tun"];

/// Those of guests.
const GUEST_MODULES: [&str; 5] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "pvpanic-mmio"];

/// Where the host's modules are in it, in files whose names say their order.
pub(super) const MODULES: &str = "/nested/modules";

/// What the host is made of.
#[derive(Debug)]
pub struct Image {
    kernel: Kernel,
    archive: Archive,
    /// Where stripped copies are kept.
    stripped: PathBuf,
}

impl Image {
    /// Of Debian's packages, which are fetched and kept in this directory, and of this executable as init.
    ///
    /// # Errors
    /// If they can not be fetched or read.
    pub fn new(cache: &Path, suite: &Suite) -> Result<Self> {
        let least = match suite.init {
            Init::Own => LEAST_KERNEL,
            Init::Systemd => LEAST_KERNEL_TO_CARRY_ON,
        };
        let kernel = Kernel::fetch(cache, least)?;
        let root = packages::userland(cache, "userland", &USERLAND)?;
        let mut archive = Archive::new();
        for directory in [".", "dev", "mnt", "proc", "root", "run", "sys"] {
            archive.directory(directory, 0o755);
        }
        archive.directory("tmp", 0o1777);
        archive.device("dev/console", 0o600, 5, 1);
        archive.tree(&root, &|path| place(path))?;
        for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")] {
            archive.link(link, target);
        }
        archive.link("lib64", "usr/lib64");
        // What the packages' scripts would do.
        archive.link("usr/bin/awk", "mawk");
        archive.link("usr/bin/sh", "bash");
        archive.mode("usr/bin/fusermount3", 0o4755);
        archive.link("etc/mtab", "/proc/self/mounts");
        archive.bytes(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        );
        let groups = match suite.init {
            Init::Own => "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n",
            // It makes the others.
            Init::Systemd => "root:x:0:\nnogroup:x:65534:\n",
        };
        archive.bytes("etc/group", 0o644, groups);
        if suite.init == Init::Systemd {
            add_systemd(&mut archive);
        }
        add_modules(&mut archive, MODULES, &kernel.modules(&HOST_MODULES)?);
        let stripped = cache.join("stripped");
        fs::create_dir_all(&stripped)?;
        let mut image = Self { kernel, archive, stripped };
        image.executable("init", &std::env::current_exe()?)?;
        let mut status = fs::read_to_string(root.join(packages::STATUS))?;
        if !suite.packages.is_empty() {
            let root = image.packages(cache, suite.packages)?;
            status += &fs::read_to_string(root.join(packages::STATUS))?;
        }
        if suite.debs {
            image.debs(&status);
        }
        for (path, contents) in suite.files {
            image.archive.bytes(path, 0o644, *contents);
        }
        for (path, target) in suite.links {
            image.archive.link(path, target);
        }
        Ok(image)
    }

    /// The kernel that it is for.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Adds a command under test.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn command(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().context("a command has a name")?;
        self.executable(Path::new(BIN).join(name), path)
    }

    /// Where a test program is.
    pub fn place_of_test(test: &Executable) -> PathBuf {
        Path::new(TESTS).join(&test.package).join(&test.name)
    }

    /// Adds a test program.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn test(&mut self, test: &Executable) -> Result<()> {
        self.executable(Self::place_of_test(test), &test.path)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.archive.link(path, target);
    }

    /// Adds what guests are made of: the kernel, its modules, and a busybox.
    ///
    /// # Errors
    /// If they can not be read.
    pub fn guests(&mut self) -> Result<()> {
        self.archive.file(LINUX, 0o644, self.kernel.image());
        let modules = self.kernel.modules(&GUEST_MODULES)?;
        add_modules(&mut self.archive, &format!("{GUEST}/modules"), &modules);
        Ok(())
    }

    /// Adds more of Debian's packages, which are fetched and kept in this directory.
    fn packages(&mut self, cache: &Path, packages: &[&str]) -> Result<PathBuf> {
        let root = packages::userland(cache, packages[0], packages)?;
        self.archive.tree(&root, &|path| place(path))?;
        Ok(root)
    }

    /// Adds our own packages, and what dpkg keeps, by which all others are installed that are there.
    fn debs(&mut self, status: &str) {
        let debs = Debs::build();
        for (name, deb) in [("statsfs.deb", &debs.statsfs), ("statsfs-vmm.deb", &debs.vmm)] {
            let bytes = fs::read(deb).expect("it was built just now");
            self.archive.bytes(Path::new(DEBS).join(name), 0o644, bytes);
        }
        // One that two depend on is there twice.
        let packages: BTreeSet<_> = status.split_inclusive("\n\n").collect();
        self.archive.bytes(packages::STATUS, 0o644, packages.into_iter().collect::<String>());
        for directory in ["info", "updates", "triggers"] {
            self.archive.directory(format!("var/lib/dpkg/{directory}"), 0o755);
        }
        self.archive.directory("var/log", 0o755);
    }

    /// Writes it, with what is to be run in it.
    ///
    /// # Errors
    /// If something can not be read, or it can not be written.
    pub fn write(&mut self, plan: &Plan, path: &Path) -> Result<()> {
        self.archive.bytes(PLAN, 0o644, plan.to_text());
        self.archive
            .write_to(path)
            .with_context(|| format!("{} can not be written", path.display()))
    }

    /// Adds an executable file, without the symbols that make most of its size.
    fn executable(&mut self, at: impl AsRef<Path>, path: &Path) -> Result<()> {
        let name = path.file_name().context("an executable has a name")?;
        let copy = self.stripped.join(name);
        let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
        let original = time(path).with_context(|| format!("{} is not there", path.display()))?;
        if !time(&copy).is_ok_and(|copied| copied > original) {
            let stripped = Command::new("strip").arg("-o").arg(&copy).arg(path).status();
            let stripped = stripped.context("strip is missing: `apt-get install -y binutils`")?;
            ensure!(stripped.success(), "{} can not be stripped", path.display());
        }
        self.archive.file(at, 0o755, copy);
        Ok(())
    }
}

/// Adds what systemd needs to run the agent, and not much more.
fn add_systemd(archive: &mut Archive) {
    const UNITS: &str = "etc/systemd/system";
    archive.bytes("etc/machine-id", 0o444, MACHINE_ID);
    archive.bytes(format!("{UNITS}/nested.service"), 0o644, agent::unit());
    archive.link(format!("{UNITS}/sysinit.target.wants/nested.service"), "../nested.service");
    archive.link(format!("{UNITS}/default.target"), "/usr/lib/systemd/system/multi-user.target");
    for unit in MASKED {
        archive.link(format!("{UNITS}/{unit}"), "/dev/null");
    }
}

/// Adds modules by names that say their order.
fn add_modules(archive: &mut Archive, at: &str, modules: &[PathBuf]) {
    for (index, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(format!("{at}/{index:02}-{name}"), 0o644, module);
    }
}

/// Where a file of a package goes: directories that are merged into `usr` are looked for there, and what
/// nobody reads is left out.
fn place(path: &Path) -> Option<PathBuf> {
    const UNREAD: [&str; 12] = [
        "boot",
        "etc",
        "var",
        "usr/share/bash-completion",
        "usr/share/doc",
        "usr/share/info",
        "usr/share/lintian",
        "usr/share/locale",
        "usr/share/man",
        "usr/share/perl5",
        "usr/games",
        "usr/lib/x86_64-linux-gnu/gconv",
    ];
    let merged = ["bin", "sbin", "lib", "lib64"].map(OsStr::new);
    let first = path.components().next();
    let is_merged = matches!(first, Some(Component::Normal(name)) if merged.contains(&name));
    let path = if is_merged { Path::new("usr").join(path) } else { path.to_path_buf() };
    // The links of merged directories, and what is made otherwise.
    let mounts = ["dev", "proc", "sys", "run", "tmp", "root"];
    let left_out = UNREAD.iter().chain(&mounts).any(|unread| path.starts_with(unread));
    (!left_out).then_some(path)
}
