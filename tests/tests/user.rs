//! An ordinary user who may use /dev/kvm: the statistics are mounted by fusermount3, for this user alone.

use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::binary;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::namespace::{Devices, mounted_at, private};
use tests::running::wait_until;
use tests::vmm::Vmm;

const USER: u32 = 65534;

/// Lets everyone use KVM and FUSE, in this thread's view of the machine.
fn open_devices() -> Devices {
    let found = Command::new("fusermount3").arg("--version").stdout(Stdio::null()).status();
    assert!(found.is_ok(), "fusermount3 is missing: `apt-get install -y fuse3`");
    let devices = Devices::new();
    devices.replace("kvm", 10, 232, 0o666);
    devices.replace("fuse", 10, 229, 0o666);
    devices
}

/// What a command of this user says; its errors are errors.
fn as_user(uid: u32, command: &str, path: &Path) -> io::Result<String> {
    let output = Command::new("sh")
        .args(["-c", command, "sh"])
        .arg(path)
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// The group of those who may read what is private, if the machine has it.
fn readers() -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    groups.lines().find_map(|line| line.strip_prefix("kvm:")?.split(':').nth(1)?.parse().ok())
}

#[test]
fn a_user_mounts_and_reads_and_nobody_else_does() {
    private(|| {
        let n = 100;
        let steps = [Step::new(Op::Out8, n, NO_PORT), park(), end(4)];
        let vmm = Vmm::new(Mode::Long, &steps).blocked_console();
        let _devices = open_devices();
        let running = vmm.as_user(USER).start_mounted();
        let kvm = running.path("kvm");
        let exits = kvm.join("user_exits");
        let expected = format!("{}\n", n + 1);
        wait_until("the exits", || {
            (as_user(USER, "cat \"$1\"", &exits).unwrap() == expected).then_some(())
        });
        assert_eq!(mounted_at(running.mount()), ["fuse.statsfs"]);
        let owner = as_user(USER, "stat -c '%u %g %a' \"$1\"", &exits).unwrap();
        assert_eq!(owner, format!("{USER} {} 644\n", readers().unwrap_or(USER)));
        let flat = as_user(USER, "cat \"$1\"/.stats/flat", running.mount()).unwrap();
        assert!(flat.contains(&format!("kvm/user_exit_io_out {expected}")), "{flat}");

        // It is private, even from root, as mounts of ordinary users are.
        for other in [0, 1234] {
            let error = as_user(other, "cat \"$1\"", &exits).unwrap_err().to_string();
            assert!(error.contains("Permission denied"), "{other}: {error}");
        }

        as_user(USER, "echo 0 > \"$1\"", &kvm.join("user_exit_io_out")).unwrap();
        let cleared = as_user(USER, "cat \"$1\"", &kvm.join("user_exit_io_out")).unwrap();
        assert_eq!(cleared, "0\n");

        running.wait().assert(4);
    });
}

#[test]
fn a_users_mount_is_gone_whatever_ends_the_vmm() {
    private(|| {
        let spin = [Step::new(Op::Spin, 1, 0)];
        let vmms = [Vmm::new(Mode::Long, &spin), Vmm::new(Mode::Long, &spin)];
        let _devices = open_devices();
        let [stopped, killed] = vmms.map(|vmm| vmm.as_user(USER).start_mounted());
        stopped.signal(libc::SIGTERM);
        stopped.wait().assert(143);
        // Even then: a process of its own waits for that.
        let mount = killed.mount().to_path_buf();
        killed.signal(libc::SIGKILL);
        wait_until("the mount to go", || mounted_at(&mount).is_empty().then_some(()));
        assert_eq!(killed.kill_and_wait(), Some(libc::SIGKILL));
    });
}

/// The process that takes the mount of a `vmm` away in the end.
fn keeper(vmm: u32) -> i32 {
    let parent = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, in parentheses: the state, and the parent.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    // Until that which has mounted has ended, there are two.
    wait_until("a single child", || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut children = pids.filter(|pid| parent(*pid) == Some(vmm));
        children.next().filter(|_| children.next().is_none())
    })
}

#[test]
fn a_mount_that_nobody_is_left_to_take_away_is_told_of() {
    private(|| {
        let vmm = Vmm::new(Mode::Long, &[Step::new(Op::Spin, 1, 0)]);
        let _devices = open_devices();
        let running = vmm.as_user(USER).start_mounted();
        // SAFETY: a signal to a process that was looked up just now.
        assert_eq!(unsafe { libc::kill(keeper(running.pid()), libc::SIGKILL) }, 0);
        running.signal(libc::SIGTERM);
        let ended = running.wait();
        assert_eq!(ended.code(), 125, "{}", ended.stderr);
        // The VMM can not start another by then.
        ended.assert_says(&["can not be unmounted", "was killed", "SIGKILL", "umount -l"]);
        ended.flat().assert_sums();
    });
}

#[test]
fn without_fusermount3_the_line_that_installs_it_is_said() {
    private(|| {
        let (mounted, unpublished) =
            (Vmm::new(Mode::Long, &[end(0)]), Vmm::new(Mode::Long, &[end(0)]).unmounted());
        let _devices = open_devices();
        let nowhere = |command: &mut Command| {
            command.env("PATH", "/nonexistent");
        };
        let ended = mounted.as_user(USER).with(nowhere).run().assert(125);
        ended.assert_says(&["fusermount3 is missing", "apt-get install", "fuse3"]);
        unpublished.as_user(USER).with(nowhere).run().assert(0);
    });
}

#[test]
fn a_place_that_is_not_the_users_is_refused() {
    private(|| {
        let vmm = Vmm::new(Mode::Long, &[end(0)]);
        let _devices = open_devices();
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        // Root's, and empty.
        let ended = vmm.as_user(USER).mount_at(place.path()).run();
        assert_eq!(ended.code(), 125, "{}", ended.stderr);
        ended.assert_says(&[place.path().to_str().unwrap()]);
        assert!(ended.mounts.is_empty());
    });
}

#[test]
fn the_demo_of_a_user_mounts_below_xdg_runtime_dir() {
    private(|| {
        let _devices = open_devices();
        let home = tempfile::tempdir().unwrap();
        chown(home.path(), Some(USER), Some(USER)).unwrap();
        let copy = binary::copy_vmm(home.path());
        let demo = |directory: Option<&Path>| {
            let mut demo = Command::new(&copy);
            demo.args(["demo", "--seconds", "1", "--quiet", "--guests", "1", "--vcpus", "1"]);
            demo.env_remove("XDG_RUNTIME_DIR").uid(USER).gid(USER).current_dir("/");
            directory.map(|directory| demo.env("XDG_RUNTIME_DIR", directory));
            let output = demo.stdin(Stdio::null()).output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let (status, stdout, stderr) = demo(Some(home.path()));
        assert_eq!((status, &*stderr), (Some(0), ""), "{stdout}");
        let mount = home.path().join("statsfs");
        assert!(stdout.contains(mount.to_str().unwrap()), "{stdout}");
        assert!(!mount.exists() && mounted_at(&mount).is_empty());

        let (status, _, stderr) = demo(None);
        assert_eq!(status, Some(125));
        assert!(stderr.contains("XDG_RUNTIME_DIR") && stderr.contains("--mount"), "{stderr}");
    });
}
