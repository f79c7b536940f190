//! Mounting, serving and unmounting on real FUSE.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::{Tree, mount_line, temp};
use statsfs::fs::{Mount, MountOptions};

#[test]
fn mounts_serves_and_unmounts() {
    let (tree, sample) = Tree::sample();
    let dir = temp();
    let path = dir.path().join("mnt");
    let mount = Mount::new(tree, &path, MountOptions::new()).unwrap();
    let line = mount_line(&path).expect("it is in the mount table");
    for part in [
        " rw,nosuid,nodev,noexec,",
        " - fuse.statsfs statsfs-",
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
    let (tree, _) = Tree::sample();
    let dir = temp();
    let mount = Mount::new(tree, dir.path(), MountOptions::new()).unwrap();
    let path = mount.path().to_owned();
    assert!(mount_line(&path).is_some());
    drop(mount);
    assert!(mount_line(&path).is_none());
    assert!(dir.path().is_dir());
}
