//! What is missing, forbidden, busy or wrong is said in one line, with what to do about it; the status is
//! not 0, and nothing is left behind. Devices are taken away in a private mount namespace only.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tests::guest::{Mode, Op, Step, end, program};
use tests::namespace::{
    Devices, forbid_devices, hide_proc, mount, mount_with, mounted_at, private, unmount,
};
use tests::running::{Ended, wait_until};
use tests::vmm::Vmm;

const KVM: (&str, u32, u32) = ("kvm", 10, 232);
const FUSE: (&str, u32, u32) = ("fuse", 10, 229);

/// Replaces /dev, in this thread's view, by one with these devices, and those that every program wants.
fn devices(with: &[(&str, u32, u32)]) -> Devices {
    let devices = Devices::new();
    for (name, major, minor) in [("null", 1, 3), ("zero", 1, 5), ("urandom", 1, 9)] {
        devices.add(name, major, minor, 0o666);
    }
    for (name, major, minor) in with {
        devices.add(name, *major, *minor, 0o600);
    }
    devices.replace_all();
    devices
}

/// A guest that would end at once.
fn quick() -> Vmm {
    Vmm::new(Mode::Long, &[end(0)])
}

/// It failed as a whole: nothing was run, and nothing is left.
#[track_caller]
fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status.code(), Some(125), "{}", ended.stderr);
    ended.assert_says(parts);
    ended.assert_clean();
    assert_eq!(ended.stats, None, "no statistics of a guest that did not run");
}

#[test]
fn kvm_is_missing() {
    private(|| {
        let started = quick();
        let _devices = devices(&[FUSE]);
        assert_refused(&started.run(), &["/dev/kvm does not exist", "modprobe kvm_"]);
    });
}

const KVM_IS_NOT: [&str; 2] =
    ["/dev/kvm is not the KVM device: remove it and create it", "`mknod /dev/kvm c 10 232`"];

#[test]
fn kvm_is_something_else() {
    private(|| {
        // /dev/null: it can be opened, and knows no ioctl.
        let started = quick();
        let _devices = devices(&[FUSE, ("kvm", 1, 3)]);
        assert_refused(&started.run(), &KVM_IS_NOT);
    });
    // A file, as a container image may have it, or a directory.
    private(|| {
        let started = quick();
        let devices = devices(&[FUSE]);
        fs::write(devices.path().join("kvm"), "").unwrap();
        assert_refused(&started.run(), &KVM_IS_NOT);
    });
    private(|| {
        let started = quick();
        let devices = devices(&[FUSE]);
        fs::create_dir(devices.path().join("kvm")).unwrap();
        assert_refused(&started.run(), &KVM_IS_NOT);
    });
}

#[test]
fn a_device_is_forbidden_even_to_root() {
    // As in a container: the node is there, and opening it is not allowed.
    private(|| {
        let started = quick();
        let devices = Devices::new();
        devices.replace(KVM.0, KVM.1, KVM.2, 0o600);
        forbid_devices(Path::new("/dev/kvm")).unwrap();
        assert_refused(&started.run(), &["/dev/kvm may not be opened"]);
    });
    private(|| {
        let started = quick();
        let devices = Devices::new();
        devices.replace(FUSE.0, FUSE.1, FUSE.2, 0o600);
        forbid_devices(Path::new("/dev/fuse")).unwrap();
        assert_refused(&started.run(), &["/dev/fuse may not be opened", "container"]);
    });
}

#[test]
fn kvm_is_forbidden_to_a_user() {
    private(|| {
        let started = quick();
        let devices = Devices::new();
        devices.replace(KVM.0, KVM.1, KVM.2, 0o600);
        let ended = started.as_user(65534).run();
        assert_refused(&ended, &["/dev/kvm may not be opened by this user", "usermod -aG kvm"]);
    });
}

#[test]
fn fuse_is_missing() {
    private(|| {
        let (started, unpublished) = (quick(), quick().unmounted());
        let _devices = devices(&[KVM]);
        assert_refused(&started.run(), &["/dev/fuse is missing", "modprobe fuse"]);
        // Who does not mount needs no FUSE.
        unpublished.run().assert(0);
    });
}

#[test]
fn fuse_is_something_else() {
    private(|| {
        let started = quick();
        let _devices = devices(&[KVM, ("fuse", 1, 3)]);
        assert_refused(&started.run(), &FUSE_IS_NOT);
    });
    private(|| {
        let started = quick();
        let devices = devices(&[KVM]);
        fs::create_dir(devices.path().join("fuse")).unwrap();
        assert_refused(&started.run(), &FUSE_IS_NOT);
    });
}

const FUSE_IS_NOT: [&str; 2] =
    ["/dev/fuse is not the FUSE device: remove it and create it", "`mknod /dev/fuse c 10 229`"];

#[test]
fn proc_is_missing() {
    // SAFETY: all that the child does before it becomes the VMM is async-signal-safe.
    let without = |vmm: Vmm| vmm.with(|command| _ = unsafe { command.pre_exec(hide_proc) }).run();
    // Of all that is missing without it, what keeps the guest from running, and nothing else.
    assert_refused(&without(quick()), &["/proc can not be read", "mount -t proc"]);
    // Else what is missing from the statistics.
    let ended = without(quick().unmounted()).assert(0);
    ended.assert_says(&["the scheduler's statistics of vCPUs are missing", "is /proc mounted?"]);
    assert!(ended.flat().find("kvm/sched_slices").is_none());
}

/// Refused because of its mount point, which is left as it is.
#[track_caller]
fn assert_place_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status.code(), Some(125), "{}", ended.stderr);
    ended.assert_says(parts);
    assert_eq!(ended.stats, None);
}

#[test]
fn the_mount_point_is_in_use() {
    let first = Vmm::new(Mode::Long, &[Step::new(Op::Spin, 1, 0)]).start_mounted();
    let ended = quick().mount_at(first.mount()).run();
    let place = first.mount().to_str().unwrap();
    assert_place_refused(&ended, &[place, "in use", "live statsfs", "another place"]);
    drop(ended);
    // The first one does not notice.
    assert_eq!(mounted_at(first.mount()), ["fuse.statsfs"]);
    assert_eq!(first.value("kvm/vm_vcpus"), 1);
    first.signal(libc::SIGTERM);
    first.wait().assert(143);
}

#[test]
fn the_mount_point_is_not_empty_no_directory_or_without_parent() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "kept").unwrap();
    assert_place_refused(&quick().mount_at(place.path()).run(), &["is not empty", "another place"]);
    assert_place_refused(&quick().mount_at(&file).run(), &["is not a directory", "another place"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    let orphan = place.path().join("missing/stats");
    assert_place_refused(&quick().mount_at(&orphan).run(), &["parent is missing", "mkdir -p"]);
    assert!(!place.path().join("missing").exists());
}

#[test]
fn the_mount_point_is_below_what_is_no_place_for_it() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "kept").unwrap();
    let is_none = format!("{} is not a directory", file.display());
    for below in ["file/x", "file/x/y"] {
        let ended = quick().mount_at(&place.path().join(below)).run();
        assert_place_refused(&ended, &[&is_none, "another place"]);
    }
    let ended = quick().mount_at(Path::new("/proc/statsfs-test")).run();
    let parts = ["/proc/statsfs-test can not be created", "/proc takes no new directories"];
    assert_place_refused(&ended, &parts);
    assert!(!ended.stderr.contains("mkdir"), "{}", ended.stderr);
}

#[test]
fn the_mount_point_is_below_a_dead_mount() {
    let dead = Vmm::new(Mode::Long, &[Step::new(Op::Spin, 1, 0)]).start_mounted();
    dead.signal(libc::SIGKILL);
    let remove = format!("`umount -l {}`", dead.mount().display());
    wait_until("its end", || fs::read_dir(dead.mount()).is_err().then_some(()));
    for below in ["x", "x/y"] {
        let ended = quick().mount_at(&dead.path(below)).run();
        assert_place_refused(&ended, &["is below", "a dead mount of fuse.statsfs", &remove]);
    }
    // It is left to whoever knows what it was.
    assert_eq!(mounted_at(dead.mount()), ["fuse.statsfs"]);
}

#[test]
fn the_mount_point_is_foreign() {
    private(|| {
        let place = tempfile::tempdir().unwrap();
        mount("mine", place.path(), "tmpfs").unwrap();
        let ended = quick().mount_at(place.path()).run();
        assert_place_refused(&ended, &["in use", "tmpfs `mine`", "another place"]);
        // Dropping what was started takes away what is mounted where it was to mount, so look before.
        assert_eq!(mounted_at(place.path()), ["tmpfs"]);
        drop(ended);
        let _ = unmount(place.path());
    });
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(tests::binary::vmm());
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// A wrong command line, or what it names is no good: says so, and touches nothing.
#[track_caller]
fn assert_wrong(directory: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let before = names(directory);
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: {part:?} is not in: {stderr}");
    }
    if status == 125 {
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.starts_with("vmm: "), "{args:?}: {stderr}");
    }
    assert!(output.stdout.is_empty());
    assert_eq!(names(directory), before, "{args:?}: nothing is left behind");
}

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn the_command_line_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let guest = directory.path().join("guest");
    fs::write(&guest, program(Mode::Long, &[end(0)])).unwrap();
    let guest = guest.to_str().unwrap();
    let long = "x".repeat(53);
    let cases: [(&[&str], &[&str]); 22] = [
        (&["--memory", "0"], &["--memory", "at least 1M"]),
        (&["--memory", "1023K"], &["--memory", "at least 1M"]),
        (&["--memory", "1048577"], &["--memory", "whole pages"]),
        (&["--memory", "64X"], &["--memory", "K, M, G"]),
        (&["--memory", "-1M"], &["-1"]),
        (&["--memory", "100T"], &["--memory", "at most"]),
        (&["--memory", "8193G"], &["--memory", "at most 8192G"]),
        (&["--memory", ""], &["--memory"]),
        (&["--cpus", "0"], &["--cpus", "1 to 64"]),
        (&["--cpus", "65"], &["--cpus", "1 to 64"]),
        (&["--cpus", "two"], &["--cpus", "1 to 64"]),
        (&["--name", ""], &["--name"]),
        (&["--name", "a/b"], &["--name", "A-Z"]),
        (&["--name", ".a"], &["--name", "A-Z"]),
        (&["--name", "a b"], &["--name", "A-Z"]),
        (&["--name", &long], &["--name", "1 to 52"]),
        (&["--entry", "protected"], &["--entry", "real", "long"]),
        (&["--mount", "m", "--no-publish"], &["--mount", "--no-publish"]),
        (&["--flat", "other"], &["--flat"]),
        (&["--frobnicate"], &["--frobnicate"]),
        (&["more"], &["more"]),
        (&["--mount"], &["--mount"]),
    ];
    for (more, parts) in cases {
        assert_wrong(directory.path(), &[&["run", "--flat", guest], more].concat(), 2, parts);
    }
    assert_wrong(directory.path(), &["run"], 2, &["--flat"]);
    assert_wrong(directory.path(), &["walk"], 2, &["walk"]);
    assert_wrong(directory.path(), &[], 2, &["Usage"]);
    for args in [
        ["--guests", "0"],
        ["--guests", "65"],
        ["--vcpus", "0"],
        ["--vcpus", "65"],
        ["--seconds", ""],
        ["--seconds", "x"],
        ["--seconds", "4294967296"],
    ] {
        assert_wrong(directory.path(), &["demo", args[0], args[1]], 2, &[args[0]]);
    }
    assert_wrong(
        directory.path(),
        &["demo", "--seconds", "1.5"],
        2,
        &["--seconds", "whole seconds"],
    );
}

#[test]
fn the_program_or_the_statistics_file_is_no_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (good, empty, large) = (path("good"), path("empty"), path("large"));
    fs::write(&good, program(Mode::Long, &[end(0)])).unwrap();
    fs::write(&empty, "").unwrap();
    fs::write(&large, vec![0x90; 1 << 20]).unwrap();
    // What it said before stays, too.
    let old = path("old");
    fs::write(&old, "kept").unwrap();
    let wrong = |args: &[&str], parts: &[&str]| {
        assert_wrong(directory.path(), &[&["run", "--no-publish"], args].concat(), 125, parts);
        // With a place for the final statistics it is just as it was.
        if !args.contains(&"--stats-out") {
            for out in [&path("new"), &old] {
                let args = [&["run", "--no-publish", "--stats-out", out], args].concat();
                assert_wrong(directory.path(), &args, 125, parts);
            }
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), "kept");
    };
    wrong(&["--flat", &path("missing")], &["missing", "No such file"]);
    wrong(&["--flat", &empty], &["empty", "objcopy"]);
    wrong(&["--flat", "/dev/zero"], &["/dev/zero", "not a regular file"]);
    wrong(&["--flat", &large, "--memory", "1M"], &["large", "does not fit", "--memory"]);
    wrong(&["--flat", directory.path().to_str().unwrap()], &["directory"]);
    let out = path("missing/out");
    wrong(&["--flat", &good, "--stats-out", &out], &["missing/out", "No such file"]);
    wrong(&["--flat", &good, "--stats-out", directory.path().to_str().unwrap()], &["directory"]);
    // A longer one is replaced as a whole.
    fs::write(&old, "x".repeat(1 << 20)).unwrap();
    assert!(run(&["run", "--no-publish", "--flat", &good, "--stats-out", &old]).status.success());
    assert_eq!(tests::flat::Flat::read(Path::new(&old)).get("kvm/user_exits"), 1);
    let full = run(&["run", "--no-publish", "--flat", &good, "--stats-out", "/dev/full"]);
    let stderr = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("/dev/full") && stderr.contains("No space"), "{stderr}");
}

#[test]
fn a_kernel_and_what_it_is_to_have_are_no_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (kernel, empty, missing) = (path("kernel"), path("empty"), path("missing"));
    fs::write(&kernel, tests::guest::virtio_kernel(0, 0)).unwrap();
    fs::write(&empty, "").unwrap();
    let large = path("large");
    fs::File::create(&large).unwrap().set_len(5 << 30).unwrap();
    let wrong = |args: &[&str], status: i32, parts: &[&str]| {
        let args = [&["run", "--no-publish", "--kernel"], args].concat();
        assert_wrong(directory.path(), &args, status, parts);
    };
    wrong(&[&missing], 125, &["missing", "check the path"]);
    wrong(&[&empty], 125, &["empty", "give a bzImage"]);
    wrong(&[&kernel, "--initrd", &missing], 125, &["missing", "check the path"]);
    wrong(&[&kernel, "--initrd", &empty], 125, &["empty", "leave --initrd out"]);
    wrong(&[&kernel, "--initrd", &large], 125, &["too large", "make it smaller"]);
    wrong(&[&kernel, "--disk", &missing], 125, &["missing", "truncate -s 1G"]);
    wrong(&[&kernel, "--cmdline", "quiet\nro"], 2, &["--cmdline", "one line"]);
}

#[test]
fn the_largest_memory_is_one_that_kvm_takes() {
    let ended = Vmm::new(Mode::Long, &[end(9)]).args(["--memory", "8192G"]).run();
    // The host may not promise as much, or have no such addresses.
    if ended.code() == 9 {
        assert_eq!(ended.flat().get("kvm/vm_memory_bytes"), 8 << 40);
    } else {
        assert_refused(&ended, &["bytes of guest memory", "--memory"]);
    }
}

#[test]
fn the_statistics_do_not_overwrite_what_the_guest_is_made_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (good, link, other, linked) = (path("good"), path("link"), path("other"), path("linked"));
    for file in [&good, &other] {
        fs::write(file, program(Mode::Long, &[end(0)])).unwrap();
    }
    fs::hard_link(&good, &link).unwrap();
    std::os::unix::fs::symlink(&good, &linked).unwrap();
    let wrong = |args: &[&str], what: &str| {
        let before = fs::read(&good).unwrap();
        let args = [&["run", "--no-publish"], args].concat();
        assert_wrong(
            directory.path(),
            &args,
            125,
            &[what, "overwrite", "another file", "--stats-out"],
        );
        assert_eq!(fs::read(&good).unwrap(), before);
    };
    for out in [&good, &link, &linked] {
        wrong(&["--flat", &good, "--stats-out", out], "program");
        wrong(&["--kernel", &good, "--stats-out", out], "kernel");
        wrong(&["--kernel", &other, "--initrd", &good, "--stats-out", out], "initrd");
        wrong(&["--kernel", &other, "--disk", &good, "--stats-out", out], "disk");
        wrong(&["--kernel", &other, "--disk", &format!("{good},ro"), "--stats-out", out], "disk");
    }
}

#[test]
fn a_pipe_gets_the_statistics_if_it_has_a_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (good, pipe) = (path("good"), path("pipe"));
    fs::write(&good, program(Mode::Long, &[end(0)])).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["run", "--no-publish", "--flat", &good, "--stats-out", &pipe];
    // Not for ever, as open(2) would wait for one.
    assert_wrong(directory.path(), &args, 125, &[&pipe, "nobody reads it"]);
    // A reader that comes late for what the pipe can hold.
    let mut options = fs::File::options();
    let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
    let mut child = Command::new(tests::binary::vmm())
        .args(args)
        .args(["--cpus", "64"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the statistics", || reader.read(&mut [0; 1]).is_ok_and(|n| n == 1).then_some(()));
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.len() > 1 << 17, "more than a pipe holds: {}", text.len());
    assert!(text.ends_with('\n') && text.contains("kvm/user_exits "));
    assert!(child.wait().unwrap().success());
}

#[test]
fn statistics_that_do_not_fit_on_the_disk_leave_what_was_there() {
    private(|| {
        let (place, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        mount_with("small", place.path(), "tmpfs", "size=32k").unwrap();
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_string();
        fs::write(path("old"), "kept").unwrap();
        let good = programs.path().join("good");
        fs::write(&good, program(Mode::Long, &[end(0)])).unwrap();
        for name in ["old", "new"] {
            let out = path(name);
            let args = ["run", "--no-publish", "--stats-out", &out, "--flat"];
            let args = [&args[..], &[good.to_str().unwrap()]].concat();
            assert_wrong(place.path(), &args, 125, &[&out, "No space left"]);
        }
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "kept");
        unmount(place.path()).unwrap();
    });
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, part) in [
        (&["--help"][..], "vmm demo"),
        (&["run", "--help"], "--stats-out"),
        (&["demo", "--help"], "--seconds"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = run(args);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && stdout.contains(part), "{args:?}: {stdout}");
    }
}
