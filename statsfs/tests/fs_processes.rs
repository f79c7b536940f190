//! What takes another process: servers that are killed, ordinary users, machines without FUSE.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::{Tree, eventually, mount_line, temp};
use statsfs::fs::{Mount, MountError, MountOptions};

/// An ordinary user.
const NOBODY: u32 = 65534;

/// Not a test: what the children of the tests run. Mounts at `$STATSFS_TEST_MOUNT`, says so or why not,
/// and unmounts when its input ends or says `end`.
#[test]
#[ignore = "run by the other tests"]
fn child() {
    let Some(path) = std::env::var_os("STATSFS_TEST_MOUNT") else {
        return;
    };
    let (tree, sample) = Tree::sample();
    let mount = match Mount::new(tree, Path::new(&path), MountOptions::new()) {
        Ok(mount) => mount,
        Err(error) => {
            println!("\nchild: {error}");
            std::process::exit(3);
        }
    };
    println!("\nchild: mounted");
    let mut line = String::new();
    loop {
        line.clear();
        std::io::stdin().read_line(&mut line).unwrap();
        match line.trim() {
            "count" => {
                sample.exits.fetch_add(1, Relaxed);
                println!("child: counted");
            }
            "unmount" => {
                mount.unmount().unwrap();
                println!("child: unmounted");
            }
            "alone" => {
                let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: a limit that lives across the call.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &limit) }, 0);
                assert!(Command::new("true").spawn().is_err());
                println!("child: alone");
            }
            "ended" => {
                assert!(mount.wait_ended(Duration::from_secs(10)));
                println!("child: ended");
            }
            _ => break,
        }
    }
    match mount.unmount() {
        Ok(()) => println!("child: unmounted"),
        Err(error) => println!("child: {error}"),
    }
    std::process::exit(0);
}

struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
    /// The first word from it.
    said: String,
    _executable: tempfile::TempDir,
}

impl Server {
    /// Starts a child that mounts at `path`; `wrap` is put before its command line.
    fn start(path: &Path, wrap: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let (dir, own) = executable();
        let mut words: Vec<&std::ffi::OsStr> = wrap.iter().map(std::ffi::OsStr::new).collect();
        words.push(own.as_os_str());
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("STATSFS_TEST_MOUNT", path)
            .env("TMPDIR", "/tmp")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut server = Server { child, input, output, said: String::new(), _executable: dir };
        server.said = server.hear();
        server
    }

    fn root(path: &Path) -> Self {
        Server::start(path, &[], |_| {})
    }

    fn user(path: &Path) -> Self {
        Server::start(path, &[], |command| {
            command.uid(NOBODY).gid(NOBODY);
        })
    }

    /// The next line of the child itself; libtest talks as well.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(said) = line.strip_prefix("child: ") {
                return said.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("the child ended without a word: {:?}", self.child.wait());
    }

    fn tell(&mut self, word: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{word}").unwrap();
        self.hear()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This test program, where every user can start it: the build directory may be in a home that others
/// may not enter.
fn executable() -> (tempfile::TempDir, PathBuf) {
    let dir = temp();
    let (own, path) = (std::env::current_exe().unwrap(), dir.path().join("child"));
    if std::fs::hard_link(&own, &path).is_err() {
        std::fs::copy(&own, &path).unwrap();
    }
    (dir, path)
}

/// A directory of an ordinary user, on a machine where they can mount.
fn user_dir() -> tempfile::TempDir {
    let found = Command::new("fusermount3").arg("--version").output();
    assert!(found.is_ok(), "fusermount3 is missing: `apt-get install fuse3`");
    let dir = temp();
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    dir
}

fn as_nobody(command: &str, path: &Path) -> (bool, String, String) {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("P", path).env("LC_ALL", "C").uid(NOBODY).gid(NOBODY);
    let output = shell.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_mount_left_by_a_killed_process_is_replaced() {
    let dir = temp();
    let path = dir.path().join("mnt");
    let mut server = Server::root(&path);
    assert_eq!(server.said, "mounted");
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "5\n");
    let second = Server::root(&path);
    let pid = server.child.id();
    assert_eq!(
        second.said,
        format!(
            "{0} is in use: a live statsfs (statsfs-{pid}) is mounted there; choose another place, or \
             end it with `umount {0}`",
            path.display()
        )
    );
    server.kill();
    assert!(mount_line(&path).is_some(), "root has no keeper: the mount stays");
    let error = std::fs::read_dir(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let mut third = Server::root(&path);
    assert_eq!(third.said, "mounted");
    assert_eq!(std::fs::read_to_string(path.join("vm/exits")).unwrap(), "5\n");
    assert_eq!(third.tell("end"), "unmounted");
    assert!(mount_line(&path).is_none());
    // The first has created it and could not remove it; the third has found it there.
    assert!(path.is_dir());
}

#[test]
fn ordinary_users() {
    let dir = temp();
    let script = "mount -t tmpfs none \"$D\"; mknod -m 666 \"$D/fuse\" c 10 229
        mount --bind \"$D/fuse\" /dev/fuse
        mountpoint -q /sys/fs/fuse/connections || mount -t fusectl none /sys/fs/fuse/connections
        exec \"$0\" --ignored user::";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", script])
        .arg(std::env::current_exe().unwrap())
        .env("D", dir.path())
        .output()
        .expect("unshare is missing: `apt-get install util-linux`");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok. 5 passed"), "{text}");
}

/// What ordinary users do. fusermount3 opens `/dev/fuse` with their rights, which udev gives them on most
/// machines; so that it is the same everywhere, and nothing is changed for others, these tests run in a
/// mount namespace of their own with a node for all.
mod user {
    use super::*;

    #[test]
    #[ignore = "run by `ordinary_users`"]
    fn an_ordinary_user_mounts_for_themselves() {
        let dir = user_dir();
        let path = dir.path().join("mnt");
        let mut server = Server::user(&path);
        assert_eq!(server.said, "mounted");
        let line = mount_line(&path).unwrap();
        let pid = server.child.id();
        for part in [
            " rw,nosuid,nodev,noexec,".to_owned(),
            format!(" - fuse.statsfs statsfs-{pid} "),
            "user_id=65534,group_id=65534,default_permissions,max_read=1048576".to_owned(),
        ] {
            assert!(line.contains(&part), "{part:?} in {line:?}");
        }
        let allowed = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        let allowed = allowed.lines().any(|line| line.trim() == "user_allow_other");
        assert_eq!(line.contains("allow_other"), allowed);
        let (success, text, _) = as_nobody("cat $P/vm/exits; ls $P", &path);
        assert!(success);
        assert_eq!(text, "5\nvm\n");
        assert_eq!(server.tell("count"), "counted");
        assert_eq!(as_nobody("cat $P/vm/exits", &path).1, "6\n");
        let (success, _, told) = as_nobody("echo 0 > $P/vm/exits", &path);
        assert!(!success && told.contains("Permission denied"), "it belongs to root: {told}");
        if !allowed {
            // Not even root may look; and so it can not tell whether that mount is alive.
            let error = std::fs::read_dir(&path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            let error = Mount::new(Tree::new(), &path, MountOptions::new()).unwrap_err();
            assert!(matches!(error, MountError::OtherUser { .. }), "{error}");
        }
        let other = Server::user(&path);
        assert!(other.said.contains(&format!("a live statsfs (statsfs-{pid})")), "{}", other.said);
        // A process that has locked itself in can not start anything to unmount with.
        assert_eq!(server.tell("alone"), "alone");
        assert_eq!(server.tell("end"), "unmounted");
        assert!(mount_line(&path).is_none());
        assert!(!path.exists());
        assert!(server.child.wait().unwrap().success());
    }

    /// The keeper of a server, once it has become what it is.
    fn keepers(pid: u32) -> Vec<u32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let mut children = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = std::fs::read_to_string(task.unwrap().path().join("children"));
            children.extend(
                text.unwrap_or_default().split_whitespace().map(|p| p.parse::<u32>().unwrap()),
            );
        }
        assert!(!children.is_empty(), "{path}");
        children
    }

    #[test]
    #[ignore = "run by `ordinary_users`"]
    fn a_killed_server_of_an_ordinary_user_leaves_no_mount() {
        let dir = user_dir();
        let path = dir.path().join("mnt with space");
        let mut server = Server::user(&path);
        assert_eq!(server.said, "mounted");
        let keepers = keepers(server.child.id());
        // Ctrl-C on the terminal, a hangup: the keeper must be there afterwards.
        for keeper in &keepers {
            for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
                // SAFETY: a signal to a child of a child of ours.
                assert_eq!(unsafe { libc::kill(*keeper as i32, signal) }, 0);
            }
        }
        // Someone is inside, so that only a lazy unmount succeeds.
        let mut reader = Reader::start(&path);
        assert!(mount_line(&path).is_some());
        server.kill();
        eventually("the mount is gone", || mount_line(&path).is_none());
        assert!(reader.read().contains("not connected"));
        for keeper in keepers {
            eventually("the keeper has ended", || !Path::new(&format!("/proc/{keeper}")).exists());
        }
        // And another one can mount there.
        let mut next = Server::user(&path);
        assert_eq!(next.said, "mounted");
        assert_eq!(next.tell("end"), "unmounted");
    }

    /// A process of the ordinary user with a file of the mount open.
    struct Reader(Child);

    impl Reader {
        fn start(path: &Path) -> Self {
            let mut child = Command::new("sh")
                .args(["-c", "exec 3< \"$P/vm/exits\"; echo open; read go; cat <&3"])
                .env("P", path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .uid(NOBODY)
                .gid(NOBODY)
                .spawn()
                .unwrap();
            let mut word = [0; 5];
            child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
            Reader(child)
        }

        /// Reads the file; what the reader says.
        fn read(&mut self) -> String {
            drop(self.0.stdin.take());
            let mut text = String::new();
            self.0.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
            self.0.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
            text
        }
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    #[ignore = "run by `ordinary_users`"]
    fn an_ordinary_user_unmounts_under_open_files() {
        let dir = user_dir();
        let path = dir.path().join("mnt");
        let mut server = Server::user(&path);
        assert_eq!(server.said, "mounted");
        let mut reader = Reader::start(&path);
        assert_eq!(server.tell("unmount"), "unmounted");
        assert!(mount_line(&path).is_none());
        assert!(!path.exists());
        assert!(reader.read().contains("not connected"), "the session has ended");
        assert_eq!(server.tell("end"), "unmounted", "once more does nothing");
        assert!(server.child.wait().unwrap().success());
    }

    #[test]
    #[ignore = "run by `ordinary_users`"]
    fn an_ordinary_user_notices_an_unmount_and_touches_nothing_else() {
        let dir = user_dir();
        let path = dir.path().join("mnt");
        let mut server = Server::user(&path);
        assert_eq!(server.said, "mounted");
        let (success, _, told) = as_nobody("fusermount3 -u $P", &path);
        assert!(success, "{told}");
        assert_eq!(server.tell("ended"), "ended");
        let mut second = Server::user(&path);
        assert_eq!(second.said, "mounted");
        assert_eq!(server.tell("end"), "unmounted");
        assert!(server.child.wait().unwrap().success());
        assert_eq!(as_nobody("cat $P/vm/exits", &path).1, "5\n", "the second one is still there");
        // Nor does the keeper of a killed one.
        let (success, ..) = as_nobody("fusermount3 -u $P", &path);
        assert!(success);
        let keepers = keepers(second.child.id());
        let mut third = Server::user(&path);
        assert_eq!(third.said, "mounted");
        second.kill();
        for keeper in keepers {
            eventually("the keeper has ended", || !Path::new(&format!("/proc/{keeper}")).exists());
        }
        assert_eq!(as_nobody("cat $P/vm/exits", &path).1, "5\n", "the third one is still there");
        assert_eq!(third.tell("end"), "unmounted");
    }

    #[test]
    #[ignore = "run by `ordinary_users`"]
    fn what_fusermount_refuses_is_passed_on() {
        let dir = user_dir();
        // Not theirs to mount on.
        let path = dir.path().join("of root");
        std::fs::create_dir(&path).unwrap();
        let server = Server::user(&path);
        let p = path.display();
        assert_eq!(
            server.said,
            format!(
                "fusermount3 could not mount on {p}: user has no write access to mountpoint {p}"
            )
        );
        let server = Server::user(Path::new("/statsfs-test-of-nobody"));
        assert_eq!(
            server.said,
            "/statsfs-test-of-nobody can not be created: Permission denied (os error 13); create it, or \
         choose another place"
        );
        let path = dir.path().join("mnt");
        let server = Server::start(&path, &[], |command| {
            command.uid(NOBODY).gid(NOBODY).env("PATH", "/nonexistent");
        });
        assert_eq!(
            server.said,
            "fusermount3 is missing: install the package fuse3 (`apt-get install fuse3`)"
        );
        assert!(!path.exists(), "nothing is left behind");
    }
}

/// Starts a server in a mount namespace of its own, in which `script` was run before.
fn in_namespace(path: &Path, script: &str) -> Server {
    let unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"];
    let script = format!("{script}\nexec \"$0\" \"$@\"");
    let wrap: Vec<&str> = unshare.into_iter().chain([script.as_str()]).collect();
    Server::start(path, &wrap, |_| {})
}

#[test]
fn without_a_usable_device() {
    let dir = temp();
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let path = dir.path().join("mnt");
    // An empty /dev: nothing is changed but in that namespace.
    let server = in_namespace(&path, "mount -t tmpfs none /dev");
    assert_eq!(server.said, "/dev/fuse is missing: load the kernel module with `modprobe fuse`");
    // A node without a driver.
    let server = in_namespace(&path, "mount -t tmpfs none /dev; mknod /dev/fuse c 511 511");
    assert_eq!(server.said, "/dev/fuse is missing: load the kernel module with `modprobe fuse`");
    let server = in_namespace(&path, "mount --bind /dev/null /dev/fuse");
    assert_eq!(
        server.said,
        "/dev/fuse is not the FUSE device: remove it and create it with `mknod /dev/fuse c 10 229`"
    );
    let server = in_namespace(
        &path,
        "mount -t tmpfs -o nodev none /mnt; mknod /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse",
    );
    assert_eq!(
        server.said,
        "/dev/fuse may not be opened (Permission denied (os error 13)): allow this container the \
         device `c 10:229`"
    );
    let server = in_namespace(
        &path,
        "mount -t tmpfs none /mnt; mknod -m 600 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse
         set -- setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"; exec \"$@\"",
    );
    assert_eq!(
        server.said,
        "/dev/fuse may not be opened (Permission denied (os error 13)): `chmod 666 /dev/fuse`, as udev \
         does, or run as root"
    );
    let server = in_namespace(&path, "mount -t tmpfs none /proc");
    assert!(server.said.starts_with("/proc can not be read ("), "{}", server.said);
    assert!(server.said.ends_with("mount it with `mount -t proc proc /proc`"), "{}", server.said);
    assert!(!path.exists(), "nothing is left behind");
}

#[test]
fn root_without_the_right_to_mount() {
    let dir = temp();
    let path = dir.path().join("mnt");
    let wrap = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"];
    let server = Server::start(&path, &wrap, |_| {});
    assert_eq!(
        server.said,
        format!("not allowed to mount on {}: mounting needs CAP_SYS_ADMIN", path.display())
    );
    assert!(!path.exists(), "nothing is left behind");
}
