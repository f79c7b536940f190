//! Mounting and unmounting on real FUSE, and what may be in the way. What needs another process is in
//! `fs_processes.rs`.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use common::{Tree, eventually, mount_line, mounted, temp};
use nix::mount::{MntFlags, MsFlags};
use statsfs::fs::{Mount, MountError, MountOptions, ROOT};

fn try_mount(path: &Path) -> Result<Mount, MountError> {
    Mount::new(Tree::sample().0, path, MountOptions::new())
}

fn error(path: &Path) -> MountError {
    try_mount(path).expect_err("this place is taken")
}

/// Something else on a directory; lazily unmounted when dropped.
struct Other<'a>(&'a Path);

impl<'a> Other<'a> {
    fn tmpfs(path: &'a Path) -> Self {
        let none: Option<&str> = None;
        nix::mount::mount(Some("other"), path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        Other(path)
    }

    /// A FUSE mount that nobody serves: dead when the device is dropped, hanging until then.
    fn fuse(path: &'a Path, kind: &str) -> (Self, File) {
        use std::os::fd::AsRawFd;
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        let source = Some("other");
        nix::mount::mount(source, path, Some(kind), MsFlags::empty(), Some(data.as_str())).unwrap();
        (Other(path), device)
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE);
    }
}

#[test]
fn mounts_serves_and_unmounts() {
    let (tree, sample) = Tree::sample();
    let dir = temp();
    let path = dir.path().join("mnt");
    let mount = Mount::new(tree, &path, MountOptions::new()).unwrap();
    let line = mount_line(&path).expect("it is in the mount table");
    for part in [
        " rw,nosuid,nodev,noexec,",
        &format!(" - fuse.statsfs statsfs-{}", std::process::id()),
        "user_id=0,group_id=0,default_permissions,allow_other",
    ] {
        assert!(line.contains(part), "{part:?} in {line:?}");
    }
    assert!(line.ends_with(",max_read=1048576"), "{line:?}");
    assert!(mount.is_mounted());
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "5\n");
    sample.exits.store(6, Relaxed);
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "6\n");
    assert_eq!(std::fs::read_to_string(path.join("vm/link")).unwrap(), "12345\n");
    mount.unmount().unwrap();
    assert!(mount_line(&path).is_none());
    assert!(!path.exists(), "a directory that was created for it is removed");
    assert!(!mount.is_mounted());
    assert!(mount.wait_ended(Duration::from_secs(60)));
    mount.unmount().unwrap();
}

#[test]
fn drop_unmounts_and_leaves_a_directory_that_was_there() {
    let dir = temp();
    let mount = try_mount(dir.path()).unwrap();
    assert!(mount_line(dir.path()).is_some());
    drop(mount);
    assert!(mount_line(dir.path()).is_none());
    assert!(dir.path().is_dir());
}

#[test]
fn everything_ends_with_the_mount() {
    let (tree, _) = Tree::sample();
    let weak = std::sync::Arc::downgrade(&tree);
    let (_dir, mount) = mounted(&tree);
    drop(tree);
    std::fs::read(mount.path().join("vm/all")).unwrap();
    assert!(weak.upgrade().is_some());
    drop(mount);
    assert!(weak.upgrade().is_none(), "no thread holds the nodes any more");
}

#[test]
fn odd_paths() {
    let dir = temp();
    let real = dir.path().join("a b\\c\tü");
    std::fs::create_dir(&real).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mount = try_mount(&link).unwrap();
    assert_eq!(mount.path(), real, "the link is resolved");
    assert!(mount.is_mounted());
    assert_eq!(std::fs::read_to_string(link.join("vm/exits")).unwrap(), "5\n");
    mount.unmount().unwrap();
    assert!(real.is_dir());
    let dotted = dir.path().join("./x/../new");
    std::fs::create_dir(dir.path().join("x")).unwrap();
    let mount = try_mount(&dotted).unwrap();
    assert_eq!(mount.path(), dir.path().join("new"));
    drop(mount);
    assert!(!dotted.exists());
}

#[test]
fn unmounts_under_open_files_and_waiting_readers() {
    let (tree, _) = Tree::sample();
    // Far longer than the test takes on any machine.
    tree.bulk(ROOT, "slow", 10, Duration::from_secs(300));
    let (_dir, mount) = mounted(&tree);
    let open = File::open(mount.path().join("vm/exits")).unwrap();
    let listing = File::open(mount.path().join("vm")).unwrap();
    let slow = mount.path().join("slow");
    let reader = std::thread::spawn(move || std::fs::read(slow));
    eventually("the slow rendering has begun", || tree.rendered.load(Relaxed) > 0);
    let start = Instant::now();
    mount.unmount().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "nobody is waited for");
    assert!(mount_line(mount.path()).is_none());
    let error = reader.join().unwrap().unwrap_err();
    assert!(
        matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ENOTCONN)),
        "the waiting reader is let go: {error}"
    );
    let error = open.read_at(&mut [0; 8], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    drop(listing);
}

#[test]
fn notices_an_unmount_from_outside() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    assert!(!mount.wait_ended(Duration::from_millis(20)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let start = Instant::now();
            assert!(mount.wait_ended(Duration::from_secs(60)));
            start.elapsed()
        });
        std::thread::sleep(Duration::from_millis(50));
        nix::mount::umount(mount.path()).unwrap();
        let waited = waiter.join().unwrap();
        assert!(waited < Duration::from_secs(30), "woken, not timed out: {waited:?}");
    });
    assert!(!mount.is_mounted());
    mount.unmount().unwrap();
    assert!(!mount.path().exists());
}

#[test]
fn notices_a_lazy_unmount_and_does_not_hang_on_open_files() {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let mut open = File::open(mount.path().join("vm/exits")).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| mount.wait_ended(Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        nix::mount::umount2(mount.path(), MntFlags::MNT_DETACH).unwrap();
        assert!(waiter.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(30), "woken, not timed out");
    });
    sample.exits.store(99, Relaxed);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "99\n", "who has it open may go on reading until we end");
    mount.unmount().unwrap();
    let error = open.read_at(&mut [0; 8], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "the session has ended");
}

#[test]
fn never_unmounts_what_others_put_there() {
    let (tree, _) = Tree::sample();
    let (_dir, first) = mounted(&tree);
    let path = first.path().to_owned();
    nix::mount::umount(&path).unwrap();
    let other = Other::tmpfs(&path);
    first.unmount().unwrap();
    drop(first);
    assert!(mount_line(&path).unwrap().contains(" - tmpfs other "));
    drop(other);

    // The kernel gives mount ids and devices again: the next statsfs there has those of the first.
    let first = try_mount(&path).unwrap();
    let device = |line: &str| line.split(' ').nth(2).unwrap().to_owned();
    let old = device(&mount_line(&path).unwrap());
    nix::mount::umount(&path).unwrap();
    let second = try_mount(&path).unwrap();
    let new = device(&mount_line(&path).unwrap());
    drop(first);
    assert!(second.is_mounted(), "{old} {new}");
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "5\n");
    drop(second);
    assert!(mount_line(&path).is_none());
}

#[test]
fn a_covered_mount_is_left_alone_until_it_is_uncovered() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let path = mount.path().to_owned();
    let cover = Other::tmpfs(&path);
    let error = mount.unmount().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{0} is covered by a mount of tmpfs `other`: `umount {0}`, then unmount again",
            path.display()
        )
    );
    drop(cover);
    assert!(mount_line(&path).unwrap().contains("fuse.statsfs"));
    mount.unmount().unwrap();
    assert!(mount_line(&path).is_none());
}

#[test]
fn follows_a_mount_that_was_moved() {
    let dir = temp();
    // Moving is only allowed where nothing is shared with other namespaces.
    let here = Other::tmpfs(dir.path());
    let none: Option<&str> = None;
    nix::mount::mount(none, dir.path(), none, MsFlags::MS_PRIVATE, none).unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&to).unwrap();
    let mount = try_mount(&from).unwrap();
    nix::mount::mount(Some(&from), &to, none, MsFlags::MS_MOVE, none).unwrap();
    assert!(mount.is_mounted());
    mount.unmount().unwrap();
    assert!(mount_line(&to).is_none());
    drop(here);
}

#[test]
fn an_aborted_connection_is_noticed_and_tidied_up() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    // MNT_FORCE alone aborts the connection; the open file keeps the mount there.
    let open = File::open(mount.path().join("vm/exits")).unwrap();
    nix::mount::umount2(mount.path(), MntFlags::MNT_FORCE).unwrap_err();
    assert!(mount.wait_ended(Duration::from_secs(10)));
    assert!(mount_line(mount.path()).is_some(), "dead, but there");
    drop(open);
    mount.unmount().unwrap();
    assert!(mount_line(mount.path()).is_none());
}

#[test]
fn places_where_nothing_can_be_mounted() {
    let dir = temp();
    let show = |path: &Path| path.display().to_string();

    let path = dir.path().join("missing/mnt");
    let parent = dir.path().join("missing");
    let text = error(&path).to_string();
    let (p, q) = (show(&path), show(&parent));
    assert_eq!(text, format!("{p} can not be created, its parent is missing: `mkdir -p {q}`"));

    let path = dir.path().join("file");
    std::fs::write(&path, "").unwrap();
    let text = error(&path).to_string();
    assert_eq!(text, format!("{} is not a directory: choose another place", show(&path)));
    assert!(matches!(error(&path.join("below")), MountError::NotDirectory { .. }));

    let text = error(dir.path()).to_string();
    let p = show(dir.path());
    assert_eq!(text, format!("{p} is not empty: choose another place, or empty it"));

    let path = dir.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let text = error(&path).to_string();
    let rest =
        "a symbolic link to nowhere, which is missing: create that directory, or remove the link";
    assert_eq!(text, format!("{} is {rest}", show(&path)));
    // A slash at its end changes nothing.
    assert!(matches!(error(&path.join("")), MountError::Dangling { .. }));

    let path = dir.path().join("taken");
    std::fs::create_dir(&path).unwrap();
    let other = Other::tmpfs(&path);
    let p = show(&path);
    assert_eq!(
        error(&path).to_string(),
        format!("{p} is in use: tmpfs `other` is mounted there; choose another place")
    );
    drop(other);
    assert!(matches!(error(Path::new("/")), MountError::Foreign { .. }));
    assert!(matches!(error(Path::new("/proc")), MountError::Foreign { .. }));
    assert!(mount_line(&path).is_none());
}

#[test]
fn a_live_statsfs_is_refused() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let error = error(mount.path());
    let text = error.to_string();
    let own = format!("a live statsfs (statsfs-{}", std::process::id());
    assert!(text.contains(&own), "{text}");
    assert!(text.ends_with(&format!("`umount {}`", mount.path().display())), "{text}");
    assert!(!text.contains('\n'));
    assert!(mount.is_mounted());
}

#[test]
fn dead_mounts_of_our_kind_are_replaced_and_others_refused() {
    let dir = temp();
    let path = dir.path();
    // Two, on each other.
    let (_one, device) = Other::fuse(path, "fuse.statsfs");
    drop(device);
    let (_two, device) = Other::fuse(path, "fuse.statsfs");
    drop(device);
    let mount = try_mount(path).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "5\n");
    drop(mount);
    assert!(mount_line(path).is_none(), "none of them is left");

    let (other, device) = Other::fuse(path, "fuse.other");
    drop(device);
    assert_eq!(
        error(path).to_string(),
        format!(
            "{0} is a dead mount of fuse.other `other`: take it away with `umount -l {0}`",
            path.display()
        )
    );
    assert!(mount_line(path).is_some(), "it is not ours to take away");
    drop(other);
}

#[test]
fn a_hanging_statsfs_does_not_hang_us() {
    let dir = temp();
    let (_other, device) = Other::fuse(dir.path(), "fuse.statsfs");
    let start = Instant::now();
    let error = error(dir.path());
    assert!(matches!(error, MountError::Silent { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    drop(device);
}

#[test]
fn only_one_of_many_gets_a_place() {
    let dir = temp();
    for round in 0..30 {
        let path = dir.path().join(format!("mnt{round}"));
        std::fs::create_dir(&path).unwrap();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| try_mount(&path))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mounts = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(mounts, 1, "{results:?}");
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(
                matches!(error, MountError::Racing { .. } | MountError::InUse { .. }),
                "{error}"
            );
        }
        drop(results);
        assert!(mount_line(&path).is_none());
    }
}
