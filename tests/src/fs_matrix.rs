//! What every call and every usual tool makes of a mounted tree: the errno table and the tool matrix.
//!
//! To be run against any tree whose values stand still meanwhile. Needs nothing but std and libc, so that the
//! library's own tests can include this file.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tree that is examined.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "holds a closure")]
pub struct Place<'a> {
    /// The mount point.
    pub mount: &'a Path,
    /// A directory in it, with the two files and at least one directory in it.
    pub directory: &'a Path,
    /// A cumulative file, mode 0644, owned by root.
    pub cumulative: &'a Path,
    /// A floating file, mode 0444, owned by root.
    pub floating: &'a Path,
    /// Makes the cumulative value something other than 0 again.
    pub refill: &'a dyn Fn(),
}

impl Place<'_> {
    /// What the cumulative file says, which is not 0.
    fn filled(&self) -> String {
        (self.refill)();
        let text = std::fs::read_to_string(self.cumulative).unwrap();
        assert_ne!(text, "0\n", "the cumulative value must be something to lose");
        text
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> =
            std::fs::read_dir(self.directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

/// What a call must give: an errno, or 0 for success.
fn expect(what: &str, result: io::Result<()>, errno: i32) {
    let got = match &result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    let name = |errno: i32| match errno {
        0 => "success".to_owned(),
        _ => format!("{} ({errno})", io::Error::from_raw_os_error(errno)),
    };
    assert_eq!(got, errno, "{what}: {} instead of {}", name(got), name(errno));
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A system call; -1 is its failure.
macro_rules! sys {
    ($call:expr) => {{
        // SAFETY: what is called here gets descriptors, numbers, C strings that live across the call, and
        // values or buffers that fit what it writes.
        check(unsafe { $call })
    }};
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    // The access mode is given by the flags alone.
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)
}

/// open(2) with flags that std does not pass on.
fn raw_open(path: &Path, flags: i32) -> io::Result<()> {
    let path = c(path);
    // SAFETY: the path is a valid C string.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    sys!(libc::close(fd))
}

type Call<'a> = (&'a str, i32, Box<dyn Fn() -> io::Result<()> + 'a>);

/// Calls that would change the tree, by name, with what each must give root.
fn changes<'a>(place: &Place<'a>) -> Vec<Call<'a>> {
    let (file, dir) = (place.cumulative, place.directory);
    let new = dir.join("statsfs_matrix_new");
    let (f, d, n) = (c(file), c(dir), c(&new));
    let elsewhere = c(&std::env::temp_dir().join("statsfs_matrix_elsewhere"));
    let attribute = c"user.test";
    let mut calls: Vec<Call<'a>> = Vec::new();
    let mut add = |name, errno, call: Box<dyn Fn() -> io::Result<()> + 'a>| {
        calls.push((name, errno, call));
    };
    let create = libc::O_CREAT | libc::O_WRONLY;
    add("open(O_CREAT)", libc::EPERM, Box::new(move || raw_open(&new, create)));
    let path = n.clone();
    add("mkdir", libc::EPERM, Box::new(move || sys!(libc::mkdir(path.as_ptr(), 0o755))));
    let path = n.clone();
    add(
        "mknod(fifo)",
        libc::EPERM,
        Box::new(move || sys!(libc::mknod(path.as_ptr(), libc::S_IFIFO | 0o644, 0))),
    );
    let path = f.clone();
    add("unlink", libc::EPERM, Box::new(move || sys!(libc::unlink(path.as_ptr()))));
    let path = d.clone();
    add("rmdir", libc::EPERM, Box::new(move || sys!(libc::rmdir(path.as_ptr()))));
    let (from, to) = (f.clone(), n.clone());
    add("rename", libc::EPERM, Box::new(move || sys!(libc::rename(from.as_ptr(), to.as_ptr()))));
    let (from, to) = (f.clone(), n.clone());
    add(
        "renameat2(RENAME_NOREPLACE)",
        libc::EPERM,
        Box::new(move || {
            let (at, flags) = (libc::AT_FDCWD, libc::RENAME_NOREPLACE);
            sys!(libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags))
        }),
    );
    let (from, to) = (f.clone(), elsewhere);
    add(
        "rename to another file system",
        libc::EXDEV,
        Box::new(move || sys!(libc::rename(from.as_ptr(), to.as_ptr()))),
    );
    let (from, to) = (f.clone(), n.clone());
    add("link", libc::EPERM, Box::new(move || sys!(libc::link(from.as_ptr(), to.as_ptr()))));
    let (from, to) = (f.clone(), n);
    add("symlink", libc::EPERM, Box::new(move || sys!(libc::symlink(from.as_ptr(), to.as_ptr()))));
    let path = f.clone();
    add("chmod", libc::EPERM, Box::new(move || sys!(libc::chmod(path.as_ptr(), 0o666))));
    let path = f.clone();
    add("chown", libc::EPERM, Box::new(move || sys!(libc::chown(path.as_ptr(), 1, 1))));
    let path = f.clone();
    add(
        "utimensat(now)",
        libc::EPERM,
        Box::new(move || sys!(libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0))),
    );
    let path = f.clone();
    add(
        "utimensat(times)",
        libc::EPERM,
        Box::new(move || {
            let times = [libc::timespec { tv_sec: 1, tv_nsec: 1 }; 2];
            sys!(libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0))
        }),
    );
    let path = f.clone();
    add(
        "setxattr",
        libc::EPERM,
        Box::new(move || {
            let (name, value) = (attribute.as_ptr(), b"x".as_ptr().cast());
            sys!(libc::setxattr(path.as_ptr(), name, value, 1, 0))
        }),
    );
    let path = f.clone();
    add(
        "removexattr",
        libc::EPERM,
        Box::new(move || sys!(libc::removexattr(path.as_ptr(), attribute.as_ptr()))),
    );
    let path = f;
    add("truncate(5)", libc::EINVAL, Box::new(move || sys!(libc::truncate(path.as_ptr(), 5))));
    add("ftruncate(5)", libc::EINVAL, Box::new(move || open(file, libc::O_WRONLY)?.set_len(5)));
    add(
        "fallocate",
        libc::EOPNOTSUPP,
        Box::new(move || {
            let file = open(file, libc::O_WRONLY)?;
            sys!(libc::fallocate(file.as_raw_fd(), 0, 0, 10))
        }),
    );
    add(
        "open(O_TMPFILE)",
        libc::EOPNOTSUPP,
        Box::new(move || raw_open(dir, libc::O_TMPFILE | libc::O_WRONLY)),
    );
    add(
        "open(directory for writing)",
        libc::EISDIR,
        Box::new(move || raw_open(dir, libc::O_WRONLY)),
    );
    calls
}

/// The errno table, as root: every call that could change the tree, and what it gives; what may be
/// written, and what it does.
pub fn errno_table(place: &Place<'_>) {
    let before = (place.filled(), place.names());
    for (name, errno, call) in changes(place) {
        expect(name, call(), errno);
        let after = (std::fs::read_to_string(place.cumulative).unwrap(), place.names());
        assert_eq!(after, before, "{name} must change nothing");
    }
    queries(place);
    writes(place);
}

/// Calls that look, or do nothing.
fn queries(place: &Place<'_>) {
    let (file, dir) = (place.cumulative, place.directory);
    let content = place.filled();
    expect("stat(missing)", dir.join("missing").metadata().map(drop), libc::ENOENT);
    expect("stat(below a file)", file.join("x").metadata().map(drop), libc::ENOTDIR);
    let long = dir.join("x".repeat(255));
    expect("stat(long name)", long.metadata().map(drop), libc::ENOENT);
    expect("readlink(file)", std::fs::read_link(file).map(drop), libc::EINVAL);
    expect("opendir(file)", std::fs::read_dir(file).map(drop), libc::ENOTDIR);
    let mut buffer = [0; 8];
    let read = File::open(dir).and_then(|mut dir| dir.read(&mut buffer)).map(drop);
    expect("read(directory)", read, libc::EISDIR);
    expect("open(floating, O_WRONLY)", raw_open(place.floating, libc::O_WRONLY), libc::EACCES);
    expect("open(floating, O_RDWR)", raw_open(place.floating, libc::O_RDWR), libc::EACCES);
    expect("exec", Command::new(file).spawn().map(drop), libc::EACCES);

    let path = c(file);
    let mut room = [0u8; 64];
    // SAFETY: valid C strings, and a buffer with its length.
    let got = unsafe {
        let name = c"user.test".as_ptr();
        libc::getxattr(path.as_ptr(), name, room.as_mut_ptr().cast(), room.len())
    };
    expect("getxattr", check(got as i64), libc::EOPNOTSUPP);
    // SAFETY: a valid C string, and a buffer with its length.
    let got = unsafe { libc::listxattr(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    // What the kernel makes of it differs with the security modules; no attribute in any case.
    assert!(got <= 0, "listxattr");

    let open_file = File::open(file).unwrap();
    let fd = open_file.as_raw_fd();
    expect("fsync", open_file.sync_all(), 0);
    expect("flock", sys!(libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB)), 0);
    expect("ioctl", sys!(libc::ioctl(fd, libc::TCGETS, room.as_mut_ptr())), libc::ENOTTY);
    expect("write(O_RDONLY)", (&open_file).write(b"0").map(drop), libc::EBADF);
    let mut poll = libc::pollfd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 };
    // SAFETY: one entry.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 5000) }, 1, "a regular file is ready");
    assert_eq!(poll.revents, libc::POLLIN | libc::POLLOUT);
    // SAFETY: a new mapping, which is not looked at.
    let mapping =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
    expect(
        "mmap(MAP_SHARED)",
        check(if mapping == libc::MAP_FAILED { -1 } else { 0 }),
        libc::ENODEV,
    );

    // SAFETY: plain numbers.
    let mut space: libc::statfs = unsafe { std::mem::zeroed() };
    let mount = c(place.mount);
    expect("statfs", sys!(libc::statfs(mount.as_ptr(), &mut space)), 0);
    assert_eq!(space.f_type, 0x6573_5546, "FUSE_SUPER_MAGIC");
    assert_eq!((space.f_bsize, space.f_namelen, space.f_blocks), (4096, 255, 0));

    let meta = file.metadata().unwrap();
    assert!(meta.is_file() && meta.len() == 0 && meta.blocks() == 0 && meta.nlink() == 1);
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o644, 0));
    assert_eq!(place.floating.metadata().unwrap().mode() & 0o7777, 0o444);
    assert_eq!(meta.dev(), place.mount.metadata().unwrap().dev());
    assert!(dir.metadata().unwrap().is_dir());

    // A poller keeps its descriptor: at 0 it sees the value of now, elsewhere the rest of that.
    let mut room = [0; 64];
    let got = open_file.read_at(&mut room, 0).unwrap();
    assert_eq!(&room[..got], content.as_bytes());
    let got = open_file.read_at(&mut room, 1).unwrap();
    assert_eq!(&room[..got], &content.as_bytes()[1..]);
    assert_eq!(open_file.read_at(&mut room, 1 << 40).unwrap(), 0);
    let mut again = &open_file;
    again.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    again.read_to_string(&mut text).unwrap();
    assert_eq!(text, content);
}

/// Writes: what clears, and what must not.
fn writes(place: &Place<'_>) {
    let file = place.cumulative;
    let value = || std::fs::read_to_string(file).unwrap();
    let write = |flags: i32, data: &[u8]| {
        open(file, libc::O_WRONLY | flags)?.write(data).map(|n| assert_eq!(n, data.len()))
    };
    let trunc = libc::O_TRUNC;
    let padded = [&b"0"[..], &[b' '; 31]].concat();
    for zero in [&b"0"[..], b"0\n", b" 0 \n", b"\t0", b"00", b"0x0", b"0X00\n", &padded] {
        let text = String::from_utf8_lossy(zero).into_owned();
        for flags in [0, trunc, libc::O_APPEND] {
            place.filled();
            expect(&format!("write({text:?})"), write(flags, zero), 0);
            assert_eq!(value(), "0\n", "{text:?} clears");
        }
    }
    let full = place.filled();
    let long = [&b"0"[..], &[b' '; 32]].concat();
    for wrong in [
        &b"1"[..],
        b"12",
        b"-1",
        b"-0x",
        b"x",
        b"0x",
        b"0 0",
        b"0\n0",
        b"01",
        b"0x1",
        b"\n",
        b" ",
        b"0.0",
        b"\0",
        b"\xff",
        &long,
        &[b'0'; 4096],
    ] {
        let text = String::from_utf8_lossy(wrong).into_owned();
        for flags in [0, trunc, libc::O_APPEND] {
            expect(&format!("write({text:?})"), write(flags, wrong), libc::EINVAL);
            assert_eq!(value(), full, "{text:?} changes nothing");
        }
    }
    expect("open(O_TRUNC)", raw_open(file, libc::O_WRONLY | trunc), 0);
    expect("open(O_CREAT), existing", raw_open(file, libc::O_WRONLY | libc::O_CREAT | trunc), 0);
    let exclusive = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    expect("open(O_EXCL), existing", raw_open(file, exclusive), libc::EEXIST);
    let path = c(file);
    expect("truncate(0)", sys!(libc::truncate(path.as_ptr(), 0)), 0);
    expect("ftruncate(0)", open(file, libc::O_WRONLY).and_then(|file| file.set_len(0)), 0);
    expect("write(nothing)", write(0, b""), 0);
    let at = |offset| open(file, libc::O_WRONLY).and_then(|file| file.write_at(b"0", offset));
    expect("pwrite at 1", at(1).map(drop), libc::EINVAL);
    expect("pwrite at 4096", at(4096).map(drop), libc::EINVAL);
    assert_eq!(value(), full, "none of these clears");
    let mut twice = open(file, libc::O_WRONLY).unwrap();
    expect("first write", twice.write(b"0").map(drop), 0);
    expect("second write", twice.write(b"0").map(drop), libc::EINVAL);
    twice.seek(SeekFrom::Start(0)).unwrap();
    expect("write after lseek(0)", twice.write(b"0").map(drop), 0);
    let mut appending = open(file, libc::O_WRONLY | libc::O_APPEND).unwrap();
    // The kernel puts each behind the one before; every one is whole.
    for _ in 0..3 {
        expect("appending", appending.write(b"0\n").map(drop), 0);
    }
    assert_eq!(value(), "0\n");
    place.filled();
    expect("pwrite at 0", at(0).map(drop), 0);
    assert_eq!(value(), "0\n");
    // What was written is not what is shown, and the size stays 0.
    assert_eq!(file.metadata().unwrap().len(), 0);
    place.filled();
}

/// Runs `f` on a thread of its own with the credentials of another user, without capabilities.
pub fn as_user<T: Send>(uid: u32, gid: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the raw calls change the credentials of this thread alone, which ends here.
            unsafe {
                let none = std::ptr::null::<libc::gid_t>();
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, none), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The errno table for a user who owns nothing there: may look, may change nothing. Needs a tree that all
/// may enter.
pub fn errno_table_of_other_user(place: &Place<'_>) {
    let full = place.filled();
    let (directory, cumulative) = (place.directory, place.cumulative);
    let (mount, floating) = (place.mount, place.floating);
    as_user(65534, 65534, || {
        let nothing = || {};
        let place = Place { mount, directory, cumulative, floating, refill: &nothing };
        assert_eq!(std::fs::read_to_string(cumulative).unwrap(), full);
        for (name, errno, call) in changes(&place) {
            // Permissions come first: EACCES for what needs to write the directory or the file.
            let errno = match name {
                "chmod" | "chown" | "utimensat(times)" => libc::EPERM,
                // `protected_hardlinks` forbids it before that.
                "link" => {
                    let got = call().unwrap_err().raw_os_error();
                    assert!(matches!(got, Some(libc::EPERM | libc::EACCES)), "link: {got:?}");
                    continue;
                }
                "rename to another file system"
                | "open(directory for writing)"
                | "open(O_TMPFILE)" => {
                    assert!(call().is_err(), "{name}");
                    continue;
                }
                _ => {
                    assert!(errno != 0);
                    libc::EACCES
                }
            };
            expect(name, call(), errno);
        }
        let write = libc::O_WRONLY;
        expect("open(O_WRONLY)", raw_open(cumulative, write), libc::EACCES);
        expect("open(O_RDWR)", raw_open(cumulative, libc::O_RDWR), libc::EACCES);
        expect("open(O_TRUNC)", raw_open(cumulative, write | libc::O_TRUNC), libc::EACCES);
        expect("open(floating)", raw_open(floating, write), libc::EACCES);
        let path = c(cumulative);
        expect("truncate(0)", sys!(libc::truncate(path.as_ptr(), 0)), libc::EACCES);
    });
    assert_eq!(std::fs::read_to_string(cumulative).unwrap(), full);
}

/// What a command must do.
#[derive(Clone, Copy, Debug)]
enum Outcome<'a> {
    /// Succeed, and print this.
    Prints(&'a str),
    /// Succeed, whatever it prints.
    Works,
    /// Fail, and name this reason.
    Fails(&'a str),
}

/// Runs a shell command with `$F` the cumulative file, `$L` the floating one, `$D` the directory, `$M` the
/// mount point and `$T` an empty directory elsewhere.
fn shell(place: &Place<'_>, scratch: &Path, uid: u32, command: &str) -> (bool, String, String) {
    let mut shell = Command::new("bash");
    shell
        .args(["-c", command])
        .env("LC_ALL", "C")
        .env("F", place.cumulative)
        .env("L", place.floating)
        .env("D", place.directory)
        .env("M", place.mount)
        .env("T", scratch)
        .stdin(Stdio::null());
    if uid != 0 {
        shell.uid(uid).gid(uid);
    }
    let output = shell.output().expect("bash is missing: `apt-get install bash`");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn run(place: &Place<'_>, scratch: &Path, command: &str, outcome: Outcome<'_>) {
    let (success, stdout, stderr) = shell(place, scratch, 0, command);
    let told = format!("`{command}`\nstdout: {stdout}\nstderr: {stderr}");
    match outcome {
        Outcome::Prints(text) => {
            assert!(success && stdout == text, "should print {text:?}: {told}");
            assert!(stderr.is_empty(), "should say nothing: {told}");
        }
        Outcome::Works => assert!(success && stderr.is_empty(), "should work: {told}"),
        Outcome::Fails(reason) => {
            assert!(!success && stderr.contains(reason), "should fail with {reason:?}: {told}");
        }
    }
}

/// The tool matrix: what people use on such files.
pub fn tool_matrix(place: &Place<'_>) {
    for (tool, package) in [
        ("awk", "mawk"),
        ("bash", "bash"),
        ("cmp", "diffutils"),
        ("find", "findutils"),
        ("grep", "grep"),
        ("md5sum", "coreutils"),
        ("python3", "python3"),
        ("sed", "sed"),
        ("tar", "tar"),
    ] {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output().unwrap();
        assert!(found.status.success(), "{tool} is missing: `apt-get install {package}`");
    }
    let scratch = Scratch::new();
    reading_tools(place, &scratch.0);
    writing_tools(place, &scratch.0);
}

/// A directory elsewhere.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("statsfs-matrix-{}-{}", std::process::id(), unique());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn unique() -> usize {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn reading_tools(place: &Place<'_>, scratch: &Path) {
    use Outcome::{Prints, Works};
    let line = place.filled();
    let number = line.trim_end();
    let (first, last) = (&line[..1], &line[line.len() - 2..]);
    let size = format!("{}\n", line.len());
    let run = |command: &str, outcome: Outcome<'_>| run(place, scratch, command, outcome);
    run("cat $F", Prints(&line));
    run("cat $F $F", Prints(&line.repeat(2)));
    run("cat < $F", Prints(&line));
    run("head $F", Prints(&line));
    run("head -n1 $F", Prints(&line));
    run("head -c1 $F", Prints(first));
    run("tail $F", Prints(&line));
    run("tail -n1 $F", Prints(&line));
    run("tail -c2 $F", Prints(last));
    run("tail -c+1 $F", Prints(&line));
    run("wc -c < $F", Prints(&size));
    run("wc -l < $F", Prints("1\n"));
    run("wc -w < $F", Prints("1\n"));
    run("od -An -tx1 -v $F | tr -d ' \\n' | wc -c", Prints(&format!("{}\n", 2 * line.len())));
    run("grep -c . $F", Prints("1\n"));
    run("grep -rhc '' $F", Prints("1\n"));
    run("grep -rh '' $D | grep -xF -m1 -- \"$(cat $F)\"", Prints(&line));
    run("grep -rl '' $D | grep -xF $F", Prints(&format!("{}\n", place.cumulative.display())));
    run("find $D -type f | grep -cxF $F", Prints("1\n"));
    run("find $D -mindepth 1 -type d | wc -l | grep -v '^0$' > $T/o", Works);
    run("find $M -xdev -size +0 -type f", Prints(""));
    run("awk '{ print $1 + 0 }' $F", Prints(&line));
    run("awk '{ s += $1 } END { print s }' $F $F | wc -l", Prints("1\n"));
    run("sed -n p $F", Prints(&line));
    run("sort $F", Prints(&line));
    run("read x < $F; echo $x", Prints(&line));
    run("echo $(< $F)", Prints(&line));
    run("mapfile x < $F; echo -n \"${x[0]}\"", Prints(&line));
    run("dd if=$F bs=1 status=none", Prints(&line));
    run("dd if=$F bs=1M status=none", Prints(&line));
    run("dd if=$F bs=1 skip=1 status=none", Prints(&line[1..]));
    run("cp $F $T/copy && cat $T/copy", Prints(&line));
    run("cmp $F $T/copy && diff $F $T/copy", Prints(""));
    run("md5sum < $F | cmp - <(md5sum < $T/copy)", Prints(""));
    run("cp -r $D $T/tree && cat $T/tree/$(basename $F)", Prints(&line));
    run("cp -a $F $T/archived && cat $T/archived", Prints(&line));
    run("ls -lAR $D > $T/o", Works);
    run("ls $D | grep -cx $(basename $F)", Prints("1\n"));
    run("ls -l $F | cut -c1-10", Prints("-rw-r--r--\n"));
    run("ls -l $L | cut -c1-10", Prints("-r--r--r--\n"));
    run("stat -c '%s %b %h %a %F' $F", Prints("0 0 1 644 regular empty file\n"));
    run("stat -f -c '%T %l' $M", Prints("fuseblk 255\n"));
    run("df --output=fstype $M | tail -n1", Prints("fuse.statsfs\n"));
    run("du -s $D | cut -f1", Prints("0\n"));
    run("test -r $F && test -f $F && test -d $D && test ! -s $F && test ! -x $F", Works);
    run("xargs < $F", Prints(&line));
    run("tee < $F", Prints(&line));
    run("paste -sd+ $F $F | head -n1", Prints(&line));
    // It calls the file truncated: the size 0 is less than what it has read.
    run("timeout 10 tail -f --pid=1073741823 $F 2> /dev/null | head -n1", Prints(&line));
    // Sizes are 0, as in proc: what believes them stores empty files, and does so without complaint.
    run("tar -C $D -cf $T/o.tar . && tar -tf $T/o.tar | grep -cxF ./$(basename $F)", Prints("1\n"));
    run("python3 -c 'import sys; sys.stdout.write(open(sys.argv[1]).read())' $F", Prints(&line));
    run("python3 -c 'import sys; print(int(next(open(sys.argv[1]))))' $F", Prints(&line));
    run(
        "python3 -c 'import os,sys; f=os.open(sys.argv[1],0)\nfor i in 1,2: sys.stdout.write(os.pread(f,99,0).decode())' $F",
        Prints(&line.repeat(2)),
    );
    // Since Linux 6.5, FUSE in the kernel believes the size when it splices: sendfile(2) of a file of size
    // 0 sends nothing (of a file in proc it does). So busybox's `cat` and `cp` and Python's
    // `shutil.copyfile`, which do not try read(2) then, see empty files, too: README says so.
    run(
        "python3 -c 'import os,sys; f=os.open(sys.argv[1],0); os.sendfile(1,f,0,99)' $F > $T/sent
         test ! -s $T/sent || cmp $T/sent $T/copy",
        Works,
    );
    run(
        "python3 -c 'import sys,pathlib; print(pathlib.Path(sys.argv[1]).read_text(),end=\"\")' $F",
        Prints(&line),
    );
    run(
        "python3 -c 'import os,sys; print(sum(1 for _ in os.walk(sys.argv[1])) > 1)' $D",
        Prints("True\n"),
    );
    run(
        "cd $D && cat $(basename $F) && cat ./../$(basename $D)/$(basename $F)",
        Prints(&line.repeat(2)),
    );
    run("cd $D && ls -a | head -n2 | tr '\\n' ' '", Prints(". .. "));
    run("echo $(( $(cat $F) - $(cat $F) ))", Prints("0\n"));
    run("[ $(cat $L) = $(cat $L) ]", Works);
    assert_eq!(std::fs::read_to_string(place.cumulative).unwrap().trim_end(), number);
    let (success, stdout, _) = shell(place, scratch, 65534, "cat $F; cat $L > /dev/null");
    assert!(success && stdout == line, "another user may read");
}

fn writing_tools(place: &Place<'_>, scratch: &Path) {
    use Outcome::{Fails, Works};
    let cleared = [
        "echo 0 > $F",
        "echo -n 0 > $F",
        "printf '0' > $F",
        "printf ' 0x0 \\n' > $F",
        "echo 0 >> $F",
        "echo 0 | tee $F > /dev/null",
        "echo 0 | tee -a $F > /dev/null",
        "echo 0 | dd of=$F status=none",
        "echo 0 | dd of=$F conv=notrunc status=none",
        "echo 0 | dd of=$F oflag=append conv=notrunc status=none",
        "echo 0 > $T/zero; cp $T/zero $F",
        "python3 -c 'import sys; open(sys.argv[1], \"w\").write(\"0\")' $F",
    ];
    for command in cleared {
        place.filled();
        run(place, scratch, command, Works);
        assert_eq!(std::fs::read_to_string(place.cumulative).unwrap(), "0\n", "{command}");
    }
    let invalid = "Invalid argument";
    let forbidden = "Operation not permitted";
    let unchanged = [
        ("printf '' > $F", Works),
        (": > $F", Works),
        ("truncate -s 0 $F", Works),
        ("cp /dev/null $F", Works),
        ("cat < /dev/null > $F", Works),
        ("exec 3<> $F; read x <&3", Works),
        ("test -w $F", Works),
        ("echo 1 > $F", Fails(invalid)),
        ("echo x > $F", Fails(invalid)),
        ("echo > $F", Fails(invalid)),
        ("echo -1 >> $F", Fails(invalid)),
        ("printf %033d 0 > $F", Fails(invalid)),
        ("printf 12 | dd of=$F bs=1 status=none", Fails(invalid)),
        ("printf 10 | dd of=$F bs=1 seek=1 conv=notrunc status=none", Fails(invalid)),
        ("dd if=/dev/zero of=$F bs=1M count=2 status=none", Fails(invalid)),
        ("truncate -s 5 $F", Fails(invalid)),
        ("cp $F $F.new", Fails(forbidden)),
        ("touch $D/new", Fails(forbidden)),
        ("touch $F", Fails(forbidden)),
        ("mkdir $D/new", Fails(forbidden)),
        ("mkfifo $D/new", Fails(forbidden)),
        ("echo 0 > $D/new", Fails(forbidden)),
        ("ln $F $D/new", Fails(forbidden)),
        ("ln -s $F $D/new", Fails(forbidden)),
        ("mv $F $F.old", Fails(forbidden)),
        ("mv -n $F $D/new", Fails(forbidden)),
        ("mv $D $D.old", Fails(forbidden)),
        ("mv $F $T/moved", Fails(forbidden)),
        ("rm $F", Fails(forbidden)),
        ("rm -rf $D", Fails(forbidden)),
        ("rmdir $D", Fails(forbidden)),
        ("chmod 600 $F", Fails(forbidden)),
        ("chmod -R a+w $D", Fails(forbidden)),
        ("chown 1 $F", Fails(forbidden)),
        ("chown -R 1:1 $D", Fails(forbidden)),
        ("sed -i s/x/y/ $F", Fails("couldn't open temporary file")),
        ("echo 0 > $L", Fails("Permission denied")),
        ("echo 0 >> $L", Fails("Permission denied")),
        ("echo 0 > $D", Fails("Is a directory")),
        ("cat $D/missing", Fails("No such file or directory")),
        ("ls $F/x", Fails("Not a directory")),
        ("$F", Fails("Permission denied")),
    ];
    let before = (place.filled(), place.names());
    for (command, outcome) in unchanged {
        run(place, scratch, command, outcome);
        let after = (std::fs::read_to_string(place.cumulative).unwrap(), place.names());
        assert_eq!(after, before, "{command}");
    }
    for command in ["echo 0 > $F", ": > $F", "rm -f $F", "mkdir $D/new", "touch $F", "chmod 777 $F"]
    {
        let (success, _, stderr) = shell(place, scratch, 65534, command);
        let reason = stderr.contains("Permission denied") || stderr.contains("not permitted");
        assert!(!success && reason, "as another user, {command}: {stderr}");
    }
    let after = (std::fs::read_to_string(place.cumulative).unwrap(), place.names());
    assert_eq!(after, before, "another user changes nothing");
    // As dd sees it: the first byte is a whole zero, the second is refused.
    run(place, scratch, "printf '0\\n' | dd of=$F bs=1 status=none", Fails(invalid));
    assert_eq!(std::fs::read_to_string(place.cumulative).unwrap(), "0\n");
    place.filled();
}
