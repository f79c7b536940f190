//! The file system on the real tree: every call and every usual tool, on values, totals and histograms.

use std::path::{Path, PathBuf};

use statsfs::fs::MountOptions;
use statsfs::{Embedded, Registry, Slot, Source, stats};
use tests::fs_matrix::{self, Place};

stats! {
    /// A disk.
    pub struct Disk: "disk", prefix "disk_" {
        /// Requests answered.
        disk_requests: Counter,
        /// Time to answer one.
        disk_time: Histogram<Nanoseconds> { buckets: 16 },
        /// Requests waiting.
        disk_queue: Gauge<i32> { aggregate: sum },
    }
}

struct Mounted {
    mount: Embedded,
    slot: Slot<Disk>,
    top: Source,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// `host/disk0/...`, mounted; every user may enter.
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::geteuid() }, 0, "must be run as root: `sudo -E cargo test`");
        let registry = Registry::new().unwrap();
        let top = registry.create_source("host").unwrap();
        let disk = registry.create_source("disk0").unwrap();
        top.add_subordinate(&disk).unwrap();
        top.register().unwrap();
        let slot = disk.add_values::<Disk>().unwrap();
        slot.disk_queue.set(-3);
        let all = std::fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().permissions(all).tempdir().unwrap();
        let path = dir.path().join("mnt");
        let mount = Embedded::mount(&registry, &path, MountOptions::new()).unwrap();
        Mounted { mount, slot, top, _dir: dir }
    }

    fn path(&self) -> &Path {
        self.mount.mounted().path()
    }

    /// Runs `f` on the totals, on the value itself, and on a histogram's count if `histogram`.
    fn each(&self, histogram: bool, f: impl Fn(&Place<'_>)) {
        let mount = self.path();
        let host = mount.join("host");
        let files: [(PathBuf, PathBuf); 3] = [
            (host.clone(), host.join("disk_requests")),
            (host.join("disk0"), host.join("disk0/disk_requests")),
            (host.join("disk0"), host.join("disk0/disk_time/count")),
        ];
        for (directory, cumulative) in files.into_iter().take(2 + usize::from(histogram)) {
            let floating = directory.join("disk_queue");
            assert_eq!(std::fs::read_to_string(&floating).unwrap(), "-3\n");
            let refill = || {
                self.slot.disk_requests.add(1234);
                for _ in 0..12 {
                    self.slot.disk_time.record(100);
                }
            };
            f(&Place {
                mount,
                directory: &directory,
                cumulative: &cumulative,
                floating: &floating,
                refill: &refill,
            });
        }
    }
}

#[test]
fn errno_table() {
    Mounted::new().each(true, fs_matrix::errno_table);
}

#[test]
fn errno_table_of_other_user() {
    Mounted::new().each(true, fs_matrix::errno_table_of_other_user);
}

#[test]
fn tool_matrix() {
    // The tools are also sent through the directory of the file, where there must be a directory.
    Mounted::new().each(false, fs_matrix::tool_matrix);
}

#[test]
fn a_source_that_goes() {
    let mounted = Mounted::new();
    let path = mounted.path().join("host/disk0");
    mounted.slot.disk_requests.add(7);
    let file = std::fs::File::open(path.join("disk_requests")).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("disk_requests")).unwrap(), "7\n");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 3);
    let flat = std::fs::read_to_string(mounted.path().join(".stats/flat")).unwrap();
    assert!(flat.contains("host/disk0/disk_requests 7\n"), "{flat}");
    mounted.top.revoke().unwrap();
    let start = std::time::Instant::now();
    while path.exists() {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "still there");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut room = [0; 8];
    let error = std::os::unix::fs::FileExt::read_at(&file, &mut room, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 0);
}
