//! The Debian packages: what is in them, what lintian says, and that they are installed, used, removed and purged in a root
//! directory like that of a container, in which no systemd runs. One in which it does is a nested host's (`package::`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;
use tests::binary::Cargo;
use tests::debs::Debs;
use tests::guest::{Mode, NO_PORT, Op, Step, program};
use tests::namespace::{bind, mount, mount_with, mounted_at, private, unmount};
use tests::packages::require;
use tests::running::wait_until;
use tests::vmm::{end_with_test, require_host};

/// What a command says on both outputs, and whether it succeeds.
fn outcome(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.success(), text(stdout) + &text(stderr))
}

/// What a command says that succeeds.
#[track_caller]
fn said(command: &mut Command) -> String {
    let (succeeds, said) = outcome(command);
    assert!(succeeds, "{command:?}: {said}");
    said
}

/// The files of a package, each with its mode.
fn files(deb: &Path) -> BTreeSet<(String, String)> {
    let listed = said(Command::new("dpkg-deb").arg("--contents").arg(deb));
    let lines = listed.lines().filter(|line| !line.starts_with('d'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let (mode, owner) = (words.next().unwrap(), words.next().unwrap());
            assert_eq!(owner, "0/0", "{line}");
            (words.nth(3).unwrap().trim_start_matches("./").to_string(), mode.to_string())
        })
        .collect()
}

/// What there is of a command: itself, its completions, and a page for it and for each subcommand.
fn of_command(command: &Path, package: &str) -> Vec<String> {
    let name = command.file_name().unwrap().to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    said(Command::new(command).arg("generate").arg(directory.path()));
    let pages = fs::read_dir(directory.path().join("man/man1")).unwrap();
    let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    let pages = pages.map(|page| format!("usr/share/man/man1/{page}.gz"));
    let others = [
        format!("usr/bin/{name}"),
        format!("usr/share/bash-completion/completions/{name}"),
        format!("usr/share/zsh/vendor-completions/_{name}"),
        format!("usr/share/fish/vendor_completions.d/{name}.fish"),
        format!("usr/share/doc/{package}/copyright"),
        format!("usr/share/doc/{package}/changelog.Debian.gz"),
    ];
    pages.chain(others).collect()
}

/// The files of a directory of `resources`.
fn resources(directory: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources").join(directory);
    let entries = fs::read_dir(&path).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_packages_have_all_that_they_should_and_lintian_is_content() {
    require("lintian", "--no-install-recommends lintian").unwrap();
    let debs = Debs::build();
    let release = Cargo::of_this_test().target().join("release");
    let mut of_statsfs = of_command(&release.join("statsfs"), "statsfs");
    for (directory, place) in [
        ("systemd", "lib/systemd/system"),
        ("sysusers.d", "lib/sysusers.d"),
        ("tmpfiles.d", "lib/tmpfiles.d"),
        ("grafana", "share/statsfs/grafana"),
        ("prometheus", "share/statsfs/prometheus"),
    ] {
        of_statsfs.extend(resources(directory).iter().map(|name| format!("usr/{place}/{name}")));
    }
    of_statsfs.extend(
        ["README.md", "examples/snapshot.py"].map(|name| format!("usr/share/doc/statsfs/{name}")),
    );
    let of_vmm = of_command(&release.join("vmm"), "statsfs-vmm");
    for (deb, expected) in debs.all().into_iter().zip([of_statsfs, of_vmm]) {
        let with_mode = |path: String| {
            let mode = if path.starts_with("usr/bin/") { "-rwxr-xr-x" } else { "-rw-r--r--" };
            (path, mode.to_string())
        };
        assert_eq!(files(deb), expected.into_iter().map(with_mode).collect());
        let field = |name: &str| said(Command::new("dpkg-deb").arg("--field").arg(deb).arg(name));
        // Of the workspace, and not of each by itself.
        assert_eq!(field("Version").trim(), format!("{}-1", env!("CARGO_PKG_VERSION")));
        assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
        let mut lintian = Command::new("lintian");
        lintian.args([
            "--allow-root",
            "--fail-on",
            "error,warning,override",
            "--tag-display-limit",
            "0",
        ]);
        // Which is of what is uploaded to Debian.
        lintian.args(["--suppress-tags", "initial-upload-closes-no-bugs"]);
        let (succeeds, complaints) = outcome(lintian.args(["--profile", "debian"]).arg(deb));
        assert!(succeeds, "{complaints}");
    }
    let changelog = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/debian/changelog");
    let changelog = fs::read_to_string(changelog).unwrap();
    let first = format!("statsfs ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "the changelog is of another version: {changelog}");
    // Of the same programs come the same packages.
    let bytes = |debs: &Debs| debs.all().map(|deb| fs::read(deb).unwrap());
    let before = bytes(&debs);
    assert!(before == bytes(&Debs::build()), "the packages are not the same, byte by byte");
}

/// A root directory like this machine's, in which what is written is nobody else's. For a thread with a mount
/// namespace of its own.
struct Root {
    place: TempDir,
    root: PathBuf,
}

impl Root {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        mount("statsfs-test", place.path(), "tmpfs").unwrap();
        let [root, upper, work] = ["root", "upper", "work"].map(|name| place.path().join(name));
        [&root, &upper, &work].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        mount_with("statsfs-test", &root, "overlay", &layers).unwrap();
        for (at, kind) in [("proc", "proc"), ("run", "tmpfs"), ("tmp", "tmpfs")] {
            mount("statsfs-test", &root.join(at), kind).unwrap();
        }
        for at in ["dev", "sys"] {
            bind(&Path::new("/").join(at), &root.join(at)).unwrap();
        }
        Self { place, root }
    }

    /// A command that runs in it.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(program).args(args).current_dir("/");
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        said(&mut self.command(program, args))
    }

    /// Starts what goes on until it is told to end.
    fn start(&self, program: &str, args: &[&str]) -> Ended {
        let mut command = self.command(program, args);
        end_with_test(&mut command);
        Ended(command.stderr(Stdio::inherit()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether there is something at a path, not following links.
    fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// What was written and is still there, below these directories.
    fn written(&self) -> Vec<String> {
        let upper = self.place.path().join("upper");
        let mut found = Vec::new();
        walk(&upper, &mut |path, metadata| {
            // What was removed that this machine has: a device with the numbers 0 and 0.
            let is_removed = metadata.file_type().is_char_device() && metadata.rdev() == 0;
            if !metadata.is_dir() && !is_removed {
                found.push(path.strip_prefix(&upper).unwrap().to_str().unwrap().to_string());
            }
        });
        found
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = unmount(&self.root);
        let _ = unmount(self.place.path());
    }
}

fn walk(directory: &Path, look: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        look(&path, &metadata);
        if metadata.is_dir() {
            walk(&path, look);
        }
    }
}

/// What runs. Told to end when dropped.
struct Ended(Child);

impl Ended {
    /// Its status after it was told to end.
    fn end(mut self) -> Option<i32> {
        self.signal();
        self.0.wait().unwrap().code()
    }

    fn signal(&self) {
        // SAFETY: no pointers; it has not been waited for, so the process id is its.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGTERM) };
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal();
            let _ = self.0.wait();
        }
    }
}

#[test]
fn they_are_installed_used_and_removed_where_no_systemd_runs() {
    require_host();
    let debs = Debs::build();
    private(|| {
        let root = Root::new();
        fs::create_dir(root.path("packages")).unwrap();
        let inside = debs.all().map(|deb| {
            let path = format!("/packages/{}", deb.file_name().and_then(OsStr::to_str).unwrap());
            fs::copy(deb, root.path(&path)).unwrap();
            path
        });
        let install = || root.run("dpkg", &["--install", &inside[0], &inside[1]]);
        install();
        let files = |package: &str| -> Vec<String> {
            let listed = root.run("dpkg", &["--listfiles", package]);
            let is_file = |path: &&str| root.path(path).is_file();
            listed.lines().filter(is_file).map(str::to_string).collect()
        };
        let installed: Vec<_> = ["statsfs", "statsfs-vmm"].into_iter().flat_map(files).collect();
        assert!(installed.len() > 25, "{installed:?}");
        assert_eq!(root.run("dpkg", &["--verify", "statsfs", "statsfs-vmm"]), "");
        // It would be started at the next boot; the timer is for those who want it.
        const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/statsfs.service";
        assert!(root.has(WANTS));
        assert!(!root.has("/etc/systemd/system/timers.target.wants/statsfs-textfile.timer"));
        assert!(root.run("getent", &["group", "kvm"]).starts_with("kvm:"));

        // Used, as root and with no options.
        for (page, about) in [("statsfs-serve", "Serve one mount"), ("vmm-run", "Run a guest")] {
            let path = root.run("man", &["--where", page]);
            assert_eq!(path.trim(), format!("/usr/share/man/man1/{page}.1.gz"));
            assert!(root.run("man", &["--pager=cat", page]).contains(about));
        }
        let completes = ". /usr/share/bash-completion/completions/statsfs; complete -p statsfs";
        root.run("bash", &["--norc", "-c", completes]);
        root.run("promtool", &["check", "config", "/usr/share/statsfs/prometheus/prometheus.yml"]);
        let steps = [Step::new(Op::In8, u32::MAX, NO_PORT)];
        fs::write(root.path("packages/guest.bin"), program(Mode::Long, &steps)).unwrap();
        let server = root.start("statsfs", &["serve"]);
        wait_until("the server", || root.path("run/statsfs.sock").exists().then_some(()));
        assert!(root.run("statsfs", &["status"]).contains("/run/statsfs"));
        let guest = ["run", "--flat", "/packages/guest.bin", "--name", "packed", "--memory", "2M"];
        let guest = root.start("vmm", &guest);
        wait_until("the guest", || {
            let reads = fs::read_to_string(root.path("run/statsfs/by-name/packed/user_exit_io_in"));
            reads.ok().filter(|reads| reads.trim() != "0")
        });
        assert!(root.run("statsfs", &["ls", "kvm"]).contains("-packed"));
        assert!(root.run("vmm", &["list"]).contains("packed"));
        let reader = "/usr/share/doc/statsfs/examples/snapshot.py";
        let snapshot = root.run("python3", &[reader, "/run/statsfs/kvm/.stats/snapshot"]);
        assert!(snapshot.contains("user_exits"), "{snapshot}");
        assert_eq!(guest.end(), Some(143));

        // Once more, as an update would be.
        install();
        assert_eq!(server.end(), Some(0));
        assert_eq!(mounted_at(&root.path("run/statsfs")), Vec::<String>::new());
        fs::write(root.path("run/statsfs.state/left"), "").unwrap();

        root.run("dpkg", &["--remove", "statsfs", "statsfs-vmm"]);
        let left: Vec<_> = installed.iter().filter(|path| root.has(path)).collect();
        assert_eq!(left, Vec::<&String>::new());
        root.run("dpkg", &["--purge", "statsfs", "statsfs-vmm"]);
        assert!(!root.has(WANTS) && !root.has("/run/statsfs") && !root.has("/run/statsfs.state"));
        assert!(!outcome(&mut root.command("dpkg", &["--status", "statsfs"])).0);
        // But for what dpkg and man keep for themselves, and the group.
        let kept = [
            "var/lib/dpkg/",
            "var/log/",
            "var/cache/",
            "packages/",
            "etc/group",
            "etc/gshadow",
            "etc/.pwd.lock",
        ];
        let is_ours = |path: &String| !kept.iter().any(|kept| path.starts_with(kept));
        let ours: Vec<_> = root.written().into_iter().filter(is_ours).collect();
        assert_eq!(ours, Vec::<String>::new());
    });
}
