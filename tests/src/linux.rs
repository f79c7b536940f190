//! Guests that run Linux: the kernel and modules of the [nested host](crate::nested), a busybox, and a
//! script that the test writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::nested::{GUEST, KEPT, LINUX};
use crate::newc::Archive;
use crate::running::{Ended, Running};
use crate::vmm::Vmm;

/// What the first process says first; the rest of the line is the kernel's uptime in seconds.
pub const INIT: &str = "INIT ";
/// What it says before it powers off.
pub const DONE: &str = "DONE";

/// The first process, up to the test's script. All commands are busybox's own.
const BEGIN: &str = "#!/bin/busybox sh
# The others are found by /proc/self/exe.
/bin/busybox mount -t proc proc /proc
read up idle < /proc/uptime
echo INIT $up
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod $module; done
";

/// What follows.
const END: &str = "
echo DONE
poweroff -f
";

/// Parameters of the kernel. Mitigations are for real processors, and the emulated one is slow enough.
pub const CMDLINE: &str = "quiet mitigations=off";

/// The initial RAM file system of a guest.
#[derive(Debug)]
pub struct Initrd(Archive);

impl Initrd {
    /// Of a guest whose first process loads all modules, runs these commands of the shell, and powers off.
    ///
    /// # Panics
    /// If this is not the nested host, where all parts are.
    pub fn new(script: &str) -> Self {
        let mut archive = Archive::new();
        for directory in ["dev", "mnt", "proc", "sys", "tmp"] {
            archive.directory(directory, 0o755);
        }
        // The kernel opens it for the first process.
        archive.device("dev/console", 0o600, 5, 1);
        archive.file("bin/busybox", 0o755, "/usr/bin/busybox");
        archive.bytes("init", 0o755, format!("{BEGIN}{script}{END}"));
        for (name, path) in modules() {
            archive.file(Path::new("modules").join(name), 0o644, path);
        }
        Self(archive)
    }

    /// Takes the modules away whose names contain this.
    fn remove_modules(&mut self, part: &str) {
        for (name, _) in modules().into_iter().filter(|(name, _)| name.contains(part)) {
            self.0.remove(Path::new("modules").join(name));
        }
    }

    /// Writes it to a file.
    ///
    /// # Panics
    /// If that can not be done.
    pub fn write_to(&self, path: &Path) {
        self.0.write_to(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A guest that is to run Linux, in the [nested host](crate::nested).
#[derive(Debug)]
pub struct Linux {
    vmm: Vmm,
    initrd: Initrd,
    kernel: PathBuf,
    cmdline: String,
}

impl Linux {
    /// A guest with [this](Initrd::new) script.
    pub fn new(script: &str) -> Self {
        Self {
            vmm: Vmm::of_nothing(),
            initrd: Initrd::new(script),
            kernel: LINUX.into(),
            cmdline: CMDLINE.to_string(),
        }
    }

    /// Without the modules whose names contain this.
    #[must_use]
    pub fn without_modules(mut self, part: &str) -> Self {
        self.initrd.remove_modules(part);
        self
    }

    /// With another kernel.
    #[must_use]
    pub fn kernel(mut self, path: &Path) -> Self {
        self.kernel = path.to_path_buf();
        self
    }

    /// With more parameters for the kernel.
    #[must_use]
    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
    }

    /// With a change to how it is run: CPUs, arguments, standard input.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(Vmm) -> Vmm) -> Self {
        self.vmm = change(self.vmm);
        self
    }

    /// A private directory, for the guest's disks.
    pub fn directory(&self) -> &Path {
        self.vmm.directory()
    }

    /// Puts it together.
    pub fn build(self) -> Vmm {
        let initrd = self.vmm.directory().join("initrd");
        self.initrd.write_to(&initrd);
        let vmm = match log() {
            Some(file) => self.vmm.log(file),
            None => self.vmm,
        };
        vmm.args(["--kernel".as_ref(), self.kernel.as_os_str()])
            .args(["--initrd".as_ref(), initrd.as_os_str()])
            .args(["--cmdline", &self.cmdline])
    }

    /// Starts it, mounted.
    pub fn start(self) -> Running {
        self.build().start_mounted()
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.build().run()
    }
}

/// The modules of guests, by names that say their order.
fn modules() -> Vec<(String, PathBuf)> {
    let directory = Path::new(GUEST).join("modules");
    let entries = fs::read_dir(&directory).expect("this is the nested host");
    let path = entries.map(|entry| entry.expect("it can be read").path());
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(String::from);
    path.filter_map(|path| Some((name(&path)?, path))).collect()
}

/// The file for the next guest's console, if files are kept.
fn log() -> Option<File> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let directory = PathBuf::from(std::env::var_os(KEPT)?);
    let path = directory.join(format!("console{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    Some(File::create(path).expect("the directory is for that"))
}
