//! A small real tree for the tests of the file system: directories and files that come and go.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use statsfs::fs::{
    Attr, Caller, Effort, Entry, Errno, Ino, Kind, Mount, MountOptions, Nodes, ROOT,
};

/// A node of the tree.
enum Node {
    /// Entries by cookie.
    Directory(BTreeMap<u64, (String, Ino)>),
    /// Grows; cleared by a zero.
    Cumulative(Arc<AtomicU64>),
    /// Goes both ways; read only.
    Floating(Arc<AtomicI64>),
    /// Many lines, made by a worker, which takes a while.
    Bulk { lines: usize, time: Duration },
    /// One line, made by a worker, which waits until all such are let go.
    Held,
    /// A number that is made by a worker, the same for everybody.
    Total,
    /// Panics when it is rendered.
    Broken,
    /// A link.
    Symlink(String),
}

struct Placed {
    node: Node,
    parent: Ino,
    mode: u16,
    uid: u32,
}

#[derive(Default)]
struct State {
    nodes: HashMap<Ino, Placed>,
    next: u64,
    gone: Vec<Ino>,
    interrupted: bool,
    /// Whether those who make what is held need not wait any more.
    let_go: bool,
    /// The users for whom they made it.
    held_for: Vec<u32>,
}

/// The tree.
pub struct Tree {
    state: Mutex<State>,
    wake: Condvar,
    /// Calls of `render` so far.
    pub rendered: AtomicU64,
    /// Of `lookup`.
    pub looked_up: AtomicU64,
}

impl Tree {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        let mut state = State { next: 2, ..State::default() };
        let root = Node::Directory(BTreeMap::new());
        state.nodes.insert(ROOT, Placed { node: root, parent: ROOT, mode: 0o755, uid: 0 });
        Arc::new(Tree {
            state: Mutex::new(state),
            wake: Condvar::new(),
            rendered: AtomicU64::new(0),
            looked_up: AtomicU64::new(0),
        })
    }

    /// `vm/{exits, level, all, link, broken}`, `vm/vcpu0/exits`: what most tests need.
    pub fn sample() -> (Arc<Self>, Sample) {
        let tree = Tree::new();
        let vm = tree.directory(ROOT, "vm");
        let exits = tree.cumulative(vm, "exits");
        let level = tree.floating(vm, "level");
        let vcpu = tree.directory(vm, "vcpu0");
        let vcpu_exits = tree.cumulative(vcpu, "exits");
        tree.bulk(vm, "all", 100_000, Duration::ZERO);
        tree.symlink(vm, "link", "vcpu0/exits");
        exits.store(5, Relaxed);
        level.store(-7, Relaxed);
        vcpu_exits.store(12345, Relaxed);
        (tree, Sample { vm, vcpu, exits, level, vcpu_exits })
    }

    fn add(&self, parent: Ino, name: &str, node: Node, mode: u16) -> Ino {
        let mut state = self.state.lock().unwrap();
        // One number serves as inode and as cookie: never reused, and growing.
        let ino = state.next + 1;
        state.next = ino;
        state.nodes.insert(ino, Placed { node, parent, mode, uid: 0 });
        let Some(Placed { node: Node::Directory(entries), .. }) = state.nodes.get_mut(&parent)
        else {
            panic!("{parent} is not a directory");
        };
        entries.insert(ino, (name.to_owned(), ino));
        ino
    }

    pub fn directory(&self, parent: Ino, name: &str) -> Ino {
        self.add(parent, name, Node::Directory(BTreeMap::new()), 0o755)
    }

    pub fn cumulative(&self, parent: Ino, name: &str) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(0));
        self.add(parent, name, Node::Cumulative(Arc::clone(&cell)), 0o644);
        cell
    }

    pub fn floating(&self, parent: Ino, name: &str) -> Arc<AtomicI64> {
        let cell = Arc::new(AtomicI64::new(0));
        self.add(parent, name, Node::Floating(Arc::clone(&cell)), 0o444);
        cell
    }

    pub fn bulk(&self, parent: Ino, name: &str, lines: usize, time: Duration) -> Ino {
        self.add(parent, name, Node::Bulk { lines, time }, 0o444)
    }

    /// Something that is not made before [`let_go`](Self::let_go).
    pub fn held(&self, parent: Ino, name: &str) -> Ino {
        self.add(parent, name, Node::Held, 0o444)
    }

    /// A number that takes long.
    pub fn total(&self, parent: Ino, name: &str) -> Ino {
        self.add(parent, name, Node::Total, 0o444)
    }

    pub fn let_go(&self) {
        self.state.lock().unwrap().let_go = true;
        self.wake.notify_all();
    }

    /// The users for whom what is held was made, in this order.
    pub fn held_for(&self) -> Vec<u32> {
        self.state.lock().unwrap().held_for.clone()
    }

    pub fn broken(&self, parent: Ino, name: &str) -> Ino {
        self.add(parent, name, Node::Broken, 0o444)
    }

    pub fn symlink(&self, parent: Ino, name: &str, target: &str) -> Ino {
        self.add(parent, name, Node::Symlink(target.to_owned()), 0o777)
    }

    /// Changes owner and mode of a node that the kernel has not seen yet.
    pub fn own(&self, ino: Ino, uid: u32, mode: u16) {
        let mut state = self.state.lock().unwrap();
        let placed = state.nodes.get_mut(&ino).unwrap();
        (placed.uid, placed.mode) = (uid, mode);
    }

    /// Removes an entry with all that is below it, and announces it.
    pub fn remove(&self, parent: Ino, name: &str) {
        self.remove_with(parent, name, true);
    }

    /// Removes an entry; tells the kernel only if `announce`.
    pub fn remove_with(&self, parent: Ino, name: &str, announce: bool) {
        let mut state = self.state.lock().unwrap();
        let Some(Placed { node: Node::Directory(entries), .. }) = state.nodes.get_mut(&parent)
        else {
            panic!("{parent} is not a directory");
        };
        let cookie = *entries.iter().find(|(_, (entry, _))| entry == name).unwrap().0;
        let (_, ino) = entries.remove(&cookie).unwrap();
        let mut left = vec![ino];
        while let Some(ino) = left.pop() {
            if let Some(Placed { node: Node::Directory(entries), .. }) = state.nodes.remove(&ino) {
                left.extend(entries.values().map(|(_, ino)| *ino));
            }
        }
        if announce {
            state.gone.push(ino);
            self.wake.notify_all();
        }
    }

    fn with<T>(&self, ino: Ino, gone: i32, f: impl FnOnce(&Placed) -> T) -> Result<T, Errno> {
        let state = self.state.lock().unwrap();
        state.nodes.get(&ino).map(f).ok_or(Errno(gone))
    }
}

/// A zero in decimal, octal or hexadecimal.
fn is_zero(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"0x").or(text.strip_prefix(b"0X")).unwrap_or(text);
    !digits.is_empty() && digits.iter().all(|digit| *digit == b'0')
}

/// What is in [`Tree::sample`].
pub struct Sample {
    pub vm: Ino,
    pub vcpu: Ino,
    pub exits: Arc<AtomicU64>,
    pub level: Arc<AtomicI64>,
    pub vcpu_exits: Arc<AtomicU64>,
}

fn attr(ino: Ino, placed: &Placed) -> Attr {
    let (kind, nlink) = match placed.node {
        Node::Directory(_) => (Kind::Directory, 1),
        Node::Symlink(_) => (Kind::Symlink, 1),
        _ => (Kind::Text, 1),
    };
    let created_ns = 1_600_000_000_000_000_000;
    Attr { ino, kind, mode: placed.mode, uid: placed.uid, gid: placed.uid, nlink, created_ns }
}

impl Nodes for Tree {
    fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        self.looked_up.fetch_add(1, Relaxed);
        let state = self.state.lock().unwrap();
        let parent = state.nodes.get(&parent).ok_or(Errno(libc::ESTALE))?;
        let Node::Directory(entries) = &parent.node else {
            return Err(Errno(libc::ENOTDIR));
        };
        let (_, ino) =
            entries.values().find(|(entry, _)| entry == name).ok_or(Errno(libc::ENOENT))?;
        Ok(attr(*ino, &state.nodes[ino]))
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.with(ino, libc::ESTALE, |placed| attr(ino, placed))
    }

    fn list(
        &self,
        dir: Ino,
        after: u64,
        push: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let state = self.state.lock().unwrap();
        let dir = state.nodes.get(&dir).ok_or(Errno(libc::ESTALE))?;
        let Node::Directory(entries) = &dir.node else {
            return Err(Errno(libc::ENOTDIR));
        };
        for (&cookie, (name, ino)) in entries.range(after + 1..) {
            let kind = attr(*ino, &state.nodes[ino]).kind;
            if !push(Entry { cookie, ino: *ino, kind, name }) {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, ino: Ino, _caller: Caller, write: bool) -> Result<(), Errno> {
        let writable =
            self.with(ino, libc::ESTALE, |placed| matches!(placed.node, Node::Cumulative(_)))?;
        if write && !writable { Err(Errno(libc::EACCES)) } else { Ok(()) }
    }

    fn render(
        &self,
        ino: Ino,
        caller: Caller,
        _most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        self.rendered.fetch_add(1, Relaxed);
        let (text, time) = self.with(ino, libc::ENODEV, |placed| match &placed.node {
            Node::Cumulative(cell) => (format!("{}\n", cell.load(Relaxed)), Duration::ZERO),
            Node::Floating(cell) => (format!("{}\n", cell.load(Relaxed)), Duration::ZERO),
            Node::Bulk { lines, time } => {
                ((0..*lines).map(|line| format!("{line} a line\n")).collect(), *time)
            }
            Node::Held => ("a line\n".to_owned(), Duration::ZERO),
            Node::Total => ("5\n".to_owned(), Duration::ZERO),
            Node::Broken => (String::new(), Duration::MAX),
            Node::Directory(_) | Node::Symlink(_) => unreachable!("not a file"),
        })?;
        assert!(time != Duration::MAX, "a broken file, on purpose");
        std::thread::sleep(time);
        if self.with(ino, libc::ENODEV, |placed| matches!(placed.node, Node::Held))? {
            let mut state = self.state.lock().unwrap();
            state.held_for.push(caller.uid);
            drop(self.wake.wait_while(state, |state| !state.let_go));
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn write(&self, ino: Ino, _caller: Caller, data: &[u8]) -> Result<(), Errno> {
        self.with(ino, libc::ENODEV, |placed| match &placed.node {
            Node::Cumulative(cell) if is_zero(data.trim_ascii()) => {
                cell.store(0, Relaxed);
                Ok(())
            }
            _ => Err(Errno(libc::EINVAL)),
        })?
    }

    fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        self.with(ino, libc::ESTALE, |placed| match &placed.node {
            Node::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno(libc::EINVAL)),
        })?
    }

    fn wait_gone(&self, timeout: Duration, gone: &mut Vec<Ino>) {
        let state = self.state.lock().unwrap();
        let waiting = |state: &mut State| state.gone.is_empty() && !state.interrupted;
        let mut state = self.wake.wait_timeout_while(state, timeout, waiting).unwrap().0;
        gone.append(&mut state.gone);
    }

    fn interrupt_wait(&self) {
        self.state.lock().unwrap().interrupted = true;
        self.wake.notify_all();
    }

    fn effort(&self, ino: Ino) -> Effort {
        let effort = self.with(ino, 0, |placed| match placed.node {
            Node::Bulk { time, .. } if time.is_zero() => Effort::Some,
            Node::Bulk { .. } | Node::Held | Node::Total => Effort::Much,
            _ => Effort::Little,
        });
        effort.unwrap_or(Effort::Little)
    }

    fn depends_on_opener(&self, ino: Ino) -> bool {
        self.with(ino, 0, |placed| matches!(placed.node, Node::Bulk { .. } | Node::Held))
            .unwrap_or(false)
    }

    fn parent(&self, dir: Ino) -> Ino {
        self.with(dir, 0, |placed| placed.parent).unwrap_or(ROOT)
    }
}

/// A fresh directory, which all users may enter.
pub fn temp() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    require_root();
    let all = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix("statsfs-test-").permissions(all).tempdir().unwrap()
}

/// Mounts a tree at `mnt` in a fresh directory.
pub fn mounted(tree: &Arc<Tree>) -> (tempfile::TempDir, Mount) {
    mounted_with(tree, MountOptions::new())
}

/// As [`mounted`], with options.
pub fn mounted_with(tree: &Arc<Tree>, options: MountOptions) -> (tempfile::TempDir, Mount) {
    let dir = temp();
    let mount = Mount::new(tree.clone(), &dir.path().join("mnt"), options).unwrap();
    (dir, mount)
}

/// These tests mount file systems.
pub fn require_root() {
    assert!(
        std::fs::metadata("/dev/fuse").is_ok(),
        "/dev/fuse is missing: load the module with `modprobe fuse`"
    );
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests must be run as root: `sudo -E cargo test`"
    );
}

/// The line of `/proc/self/mountinfo` for a mount point, the uppermost.
pub fn mount_line(point: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // As the kernel writes it.
    let point = point.to_str().unwrap().replace('\\', "\\134");
    let point = point.replace(' ', "\\040").replace('\t', "\\011");
    let line = table.lines().rev().find(|line| line.split(' ').nth(4) == Some(&point));
    line.map(str::to_owned)
}

/// Waits until `done`, for 20 seconds: the machine may be busy.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The path as a C string, for calls that std lacks.
pub fn c_path(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// `path` with the file `name` in it.
pub fn under(path: &Path, name: &str) -> PathBuf {
    path.join(name)
}
