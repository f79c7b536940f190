//! What one user may have open, and that others and root go on when somebody has as much as that.

mod common;
#[path = "support/user.rs"]
mod user;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::{Tree, eventually, mounted_with};
use nix::mount::MsFlags;
use statsfs::fs::{MountOptions, ROOT};
use user::as_user;

const A: u32 = 20_001;
const B: u32 = 20_002;
const C: u32 = 20_003;

/// Runs `f` as another user, who is in no group.
fn by<T: Send>(uid: u32, f: impl FnOnce() -> T + Send) -> T {
    as_user(uid, uid, &[], f)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).expect("an error of the system")
}

/// Opens so many.
fn open(path: &Path, n: usize) -> Vec<File> {
    (0..n).map(|n| File::open(path).unwrap_or_else(|e| panic!("the {n}th: {e}"))).collect()
}

#[test]
fn open_files() {
    let (tree, _) = Tree::sample();
    let options = MountOptions::new().max_open_files(20).max_user_open_files(5);
    let (_dir, mount) = mounted_with(&tree, options);
    let path = &mount.path().join("vm/exits");
    let of_a = by(A, || {
        let files = open(path, 5);
        assert_eq!(errno(File::open(path)), libc::EMFILE);
        // It is no limit on anything else.
        assert!(path.metadata().is_ok());
        assert_eq!(files[4].read_at(&mut [0; 8], 0).unwrap(), 2);
        files
    });
    let of_b = by(B, || open(path, 5));
    let of_root = open(path, 10);
    // Now there is no room for anybody, and the reason is another one for who has none open.
    assert_eq!(by(C, || errno(File::open(path))), libc::ENFILE);
    assert_eq!(by(B, || errno(File::open(path))), libc::EMFILE);
    assert_eq!(errno(File::open(path)), libc::ENFILE);
    drop((of_root, of_b));
    assert_eq!(by(A, || errno(File::open(path))), libc::EMFILE);
    // A descriptor is its opener's, whoever has it.
    let one = &of_a[0];
    assert_eq!(by(B, || one.read_at(&mut [0; 8], 0).unwrap()), 2);
    drop(of_a);
    eventually("closed files make room", || by(A, || File::open(path).is_ok()));
    drop(by(A, || open(path, 4)));
}

#[test]
fn bytes_in_open_files() {
    let (tree, _) = Tree::sample();
    // 990 bytes.
    tree.bulk(ROOT, "small", 100, Duration::ZERO);
    let options = MountOptions::new().max_open_bytes(6500).max_user_open_bytes(2500);
    let (_dir, mount) = mounted_with(&tree, options);
    let (small, exits) = (&mount.path().join("small"), &mount.path().join("vm/exits"));
    let hold = |n: usize| {
        let files = open(small, n);
        for file in &files {
            assert_eq!(file.read_at(&mut [0; 2000], 0).unwrap(), 990);
        }
        files
    };
    let of_a = by(A, || {
        let files = hold(2);
        assert_eq!(errno(read(small)), libc::ENOMEM);
        assert_eq!(read(exits).unwrap(), "5\n", "a small one still fits");
        files
    });
    let of_b = by(B, || hold(2));
    let of_root = hold(2);
    assert_eq!(errno(read(small)), libc::ENOMEM, "there is no room for anybody");
    drop((of_root, of_b));
    eventually("closed files make room", || by(B, || read(small).is_ok()));
    let of_root = hold(3);
    assert_eq!(by(A, || errno(read(small))), libc::ENOMEM);
    drop((of_a, of_root));
    eventually("A's as well", || by(A, || read(small).is_ok()));
}

/// The kernel's account of a mount's requests: `fusectl`, mounted where nobody else looks.
struct Control(tempfile::TempDir, PathBuf);

impl Control {
    fn of(mount: &Path) -> Self {
        let place = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        nix::mount::mount(none, place.path(), Some("fusectl"), MsFlags::empty(), none).unwrap();
        let minor = nix::sys::stat::minor(mount.metadata().unwrap().dev());
        let waiting = place.path().join(minor.to_string()).join("waiting");
        Self(place, waiting)
    }

    /// Requests that are not answered yet.
    fn waiting(&self) -> usize {
        std::fs::read_to_string(&self.1).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Lets what is held go when something fails as well: else its readers would wait for ever.
struct LetGo<'a>(&'a Tree);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

#[test]
fn bulk_files_in_turns() {
    let (tree, _) = Tree::sample();
    tree.held(ROOT, "held");
    // One thread: what it has answered came after all that it had before.
    let options = MountOptions::new().threads(1).bulk(1, 16).max_user_bulk_reads(3);
    let (_dir, mount) = mounted_with(&tree, options);
    let held = &mount.path().join("held");
    held.metadata().unwrap();
    let control = Control::of(mount.path());
    let has_got = |n: usize| {
        // A name that is not there is asked for each time.
        assert!(mount.path().join("missing").metadata().is_err());
        control.waiting() == n
    };
    let refused = &Mutex::new(Vec::new());
    let read_by = move |uid: u32| {
        by(uid, || match read(held) {
            Ok(text) => assert_eq!(text, "a line\n"),
            Err(error) => refused.lock().unwrap().push((uid, error.raw_os_error())),
        });
    };
    std::thread::scope(|scope| {
        let let_go = LetGo(&tree);
        for _ in 0..6 {
            scope.spawn(move || read_by(A));
        }
        // One is at work and two wait.
        eventually("three do not", || refused.lock().unwrap().len() == 3);
        eventually("and nobody else does", || has_got(3));
        scope.spawn(move || read_by(B));
        // Users have turns in the order in which they came.
        eventually("one more is there", || has_got(4));
        // Root has as many as there is room for.
        for _ in 0..4 {
            scope.spawn(move || read_by(0));
        }
        eventually("all are there", || has_got(8));
        assert_eq!(tree.held_for(), [A]);
        drop(let_go);
    });
    assert_eq!(*refused.lock().unwrap(), vec![(A, Some(libc::EAGAIN)); 3]);
    // However late the others came: all have their turns.
    assert_eq!(tree.held_for(), [A, B, 0, A, 0, A, 0, 0]);
    assert_eq!(tree.rendered.load(Relaxed), 8, "what is refused is not rendered");
}
