//! The tree as the file system serves it, and by path for programs.

use std::time::Duration;

use super::access::Access;
use super::clear::Scope;
use super::dirs::{BY_NAME_DIR, ROOT_DIR};
use super::files::{File, Files, file_mode};
use super::inode::{Bulk, DirId, Field, Node, Part};
use super::membership::Look;
use super::subtree::{Subtree, View};
use super::sweep::{Request, Sweep};
use super::{Cleared, State, Tree};
use crate::export::{self, Full};
use crate::fs::{Attr, Caller, Effort, Entry, Errno, Ino, Kind, Nodes};

pub(crate) const DEPARTED: &str = ".departed";
const STATS: &str = ".stats";
const NOT_THERE: Errno = Errno(libc::ENOENT);
const STALE: Errno = Errno(libc::ESTALE);
const NO_DEVICE: Errno = Errno(libc::ENODEV);
/// Sources that are read in less time than it takes to have somebody else do it, or not much more.
const FEW_SOURCES: usize = 512;
/// Longest text that is looked at for a zero.
const MAX_WRITE: usize = 32;

/// Whether a text is a zero: decimal, octal or hexadecimal, with white space around it.
fn is_zero(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    data.len() <= MAX_WRITE && !digits.is_empty() && digits.bytes().all(|b| b == b'0')
}

impl State {
    /// The files of a directory's `.departed`: of the groups that departed sources left totals of.
    pub(super) fn departed_files(&self, dir: DirId) -> Option<Files> {
        let by = self.descriptions(self.dirs.get(&dir)?);
        Some(Files::departed(by, self.departed_groups(dir).into_iter()))
    }

    /// The file or histogram directory that an inode number means, if it is there now.
    fn file(&self, node: Node) -> Option<File> {
        let Node::Value(dir, departed, identity, part) = node else { return None };
        let entry = if let Part::Field(_) = part { Part::Histogram } else { part };
        let file = if departed {
            self.departed_files(dir)?.has(identity, entry)?.clone()
        } else {
            self.files(dir)?.has(identity, entry)?.clone()
        };
        if let Part::Field(field) = part {
            let has_sum =
                matches!(file.value.ty, crate::value::ValueType::Histogram { sum: true, .. });
            if !has_sum && !field.without_sum() {
                return None;
            }
        }
        Some(file)
    }
}

/// What a listing's entry of a value is.
fn kind_of(part: Part) -> Kind {
    if part == Part::Histogram { Kind::Directory } else { Kind::Text }
}

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Tree {
    fn attributes(&self, state: &State, node: Node) -> Result<Attr, Errno> {
        let (dir, kind, mode) = match node {
            Node::Dir(dir) | Node::Departed(dir) | Node::Stats(dir, _) => {
                let private = state.dirs.get(&dir).ok_or(STALE)?.private;
                (dir, Kind::Directory, if private { 0o750 } else { 0o755 })
            }
            Node::Link(dir) if state.links.has(dir) => (dir, Kind::Symlink, 0o777),
            Node::Link(_) => return Err(STALE),
            Node::Bulk(dir, _, Bulk::Clear) => (dir, Kind::Text, 0o200),
            Node::Bulk(dir, ..) => (dir, Kind::Text, 0o444),
            Node::Value(dir, _, _, part) => {
                let file = state.file(node).ok_or(STALE)?;
                match kind_of(part) {
                    Kind::Directory => (dir, Kind::Directory, 0o755),
                    kind => (dir, kind, file_mode(&file.value, part)),
                }
            }
        };
        let directory = state.dirs.get(&dir).ok_or(STALE)?;
        let (created_ns, owner) = (directory.created_ns, directory.owner);
        Ok(Attr {
            ino: node.ino(),
            kind,
            mode,
            uid: owner.uid,
            gid: owner.gid,
            // Directories come and go below, and attributes are cached: not counted, as on btrfs.
            nlink: 1,
            created_ns,
        })
    }

    /// The node of this name in a directory.
    fn find(&self, state: &State, parent: Node, name: &str) -> Result<Node, Errno> {
        let found = match parent {
            Node::Dir(BY_NAME_DIR) => state.links.get(name).map(Node::Link),
            Node::Dir(dir) => {
                let directory = state.dirs.get(&dir).ok_or(STALE)?;
                match name {
                    DEPARTED => Some(Node::Departed(dir)),
                    STATS => Some(Node::Stats(dir, false)),
                    _ => directory.child(name).map(Node::Dir).or_else(|| {
                        let file = state.files(dir)?.get(name)?;
                        Some(Node::Value(dir, false, file.identity, file.part))
                    }),
                }
            }
            Node::Departed(dir) => {
                let files = state.departed_files(dir).ok_or(STALE)?;
                match name {
                    STATS => Some(Node::Stats(dir, true)),
                    _ => files.get(name).map(|f| Node::Value(dir, true, f.identity, f.part)),
                }
            }
            Node::Stats(dir, departed) => {
                state.dirs.get(&dir).ok_or(STALE)?;
                let bulk = Bulk::ALL.into_iter().find(|bulk| bulk.name() == name);
                bulk.map(|bulk| Node::Bulk(dir, departed, bulk))
            }
            Node::Value(dir, departed, identity, Part::Histogram) => {
                state.file(parent).ok_or(STALE)?;
                let field = Field::ALL.into_iter().find(|field| field.name() == name);
                field
                    .map(|field| Node::Value(dir, departed, identity, Part::Field(field)))
                    .filter(|node| state.file(*node).is_some())
            }
            Node::Value(..) | Node::Bulk(..) | Node::Link(_) => {
                return Err(Errno(libc::ENOTDIR));
            }
        };
        found.ok_or(NOT_THERE)
    }

    /// Appends every file in and below the root, `path value` a line: what `.stats/flat` of the root
    /// shows its owner.
    pub fn flat(&self, out: &mut Vec<u8>) {
        let mut subtree = Subtree::default();
        // Without a limit there is room.
        let _ = self.take(View::WHOLE, true, &Access::all(), None, &mut subtree);
        // There is as much room as it takes.
        let _ = export::write(Bulk::Flat, &subtree, &[], usize::MAX, out);
    }

    /// Appends what `.stats/prometheus` or `.stats/openmetrics` of the root shows: to somebody who may see everything,
    /// or what everybody may. Where that is more than `most` bytes, machines and other sources of those users and
    /// processes that have more than their part of it are in totals only, and totals of those users are not there;
    /// answers how many these are.
    ///
    /// # Errors
    /// `EFBIG` if what the server says of itself is more than `most` bytes, or more is to be read than there may be at
    /// once.
    pub fn expose(
        &self,
        format: Exposition,
        with_private: bool,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, Errno> {
        let access = if with_private { Access::all() } else { Access::public() };
        let mut subtree = Subtree::default();
        self.take(View::WHOLE, true, &access, Some(self.options.bulk_bytes), &mut subtree)
            .and_then(|()| export::expose(format, &subtree, &self.options.vcpu_metrics, most, out))
            .map_err(|Full| Errno(libc::EFBIG))
    }

    /// Clears as writing a 0 to the file at `path` would, and answers what that took away: a value's
    /// file, a histogram's `count`, or a directory's `.stats/clear`.
    ///
    /// # Errors
    /// As open(2) and write(2) of that file by whoever owns the tree: `ENOENT`, `EACCES`, `ENODEV`; `EBUSY` if a
    /// writer did not let its cells be read whole; `EDQUOT` if there is [no room](super::TreeOptions::kept_bytes).
    pub fn clear(&self, path: &str) -> Result<Cleared, Errno> {
        let node = {
            let state = self.read();
            let mut node = Node::Dir(ROOT_DIR);
            for name in path.split('/').filter(|name| !name.is_empty()) {
                node = self.find(&state, node, name)?;
            }
            node
        };
        self.clear_node(node, true)
    }

    fn clear_node(&self, node: Node, by_owner: bool) -> Result<Cleared, Errno> {
        let (dir, scope) = match node {
            Node::Bulk(dir, false, Bulk::Clear) => (dir, Scope::Subtree),
            Node::Bulk(dir, true, Bulk::Clear) => (dir, Scope::DepartedSubtree),
            Node::Value(dir, departed, identity, part) => {
                let state = self.look(|_| node.needs());
                let file = state.file(node).ok_or(NO_DEVICE)?;
                if file_mode(&file.value, part) & 0o222 == 0 {
                    return Err(Errno(libc::EACCES));
                }
                // A value that is aggregated nowhere is cleared where it is.
                let own = part == Part::Own || file.value.aggregations.is_empty();
                let scope = match (departed, own) {
                    (true, _) => Scope::Departed(identity),
                    (false, true) => Scope::Own(identity),
                    (false, false) => Scope::All(identity),
                };
                (dir, scope)
            }
            _ => return Err(Errno(libc::EACCES)),
        };
        if !self.look(|_| Look::At(dir)).dirs.contains_key(&dir) {
            return Err(NO_DEVICE);
        }
        self.clear_scope(dir, scope, by_owner)
    }
}

impl Node {
    /// Whose changes must be seen to say whether this is there, and what it is.
    fn needs(self) -> Look {
        match self {
            Self::Dir(dir)
            | Self::Departed(dir)
            | Self::Stats(dir, _)
            | Self::Bulk(dir, ..)
            | Self::Link(dir) => Look::At(dir),
            Self::Value(dir, ..) => Look::In(dir),
        }
    }

    /// Whose changes must be seen to say what is in this.
    fn needs_within(self) -> Look {
        match self {
            Self::Dir(BY_NAME_DIR) => Look::All,
            Self::Dir(dir) | Self::Departed(dir) | Self::Value(dir, ..) => Look::In(dir),
            node => node.needs(),
        }
    }
}

fn node_of(ino: Ino) -> Result<Node, Errno> {
    Node::of(ino).ok_or(STALE)
}

impl Nodes for Tree {
    fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        let parent = node_of(parent)?;
        let state = self.look(|state| match self.find(state, parent, name) {
            Ok(found) => found.needs(),
            Err(_) => parent.needs_within(),
        });
        let node = self.find(&state, parent, name)?;
        self.attributes(&state, node)
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        let node = node_of(ino)?;
        self.attributes(&self.look(|_| node.needs()), node)
    }

    fn list(
        &self,
        dir: Ino,
        after: u64,
        push: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        // Cookies: a file's place in its directory, then, above all of those, subordinates' numbers.
        const CHILDREN: u64 = 1 << 32;
        let node = node_of(dir)?;
        let state = self.look(|_| node.needs_within());
        let mut files = |files: &Files, dir: DirId, departed: bool| {
            files.iter().filter(|file| file.slot() > after).all(|file| {
                let node = Node::Value(dir, departed, file.identity, file.part);
                let (cookie, kind) = (file.slot(), kind_of(file.part));
                push(Entry { cookie, ino: node.ino(), kind, name: &file.name })
            })
        };
        match node {
            Node::Dir(BY_NAME_DIR) => {
                state.dirs.get(&BY_NAME_DIR).ok_or(STALE)?;
                for (to, name) in state.links.after(after.saturating_sub(CHILDREN)) {
                    let (cookie, ino) = (CHILDREN + to, Node::Link(to).ino());
                    if !push(Entry { cookie, ino, kind: Kind::Symlink, name }) {
                        break;
                    }
                }
            }
            Node::Dir(dir) => {
                let directory = state.dirs.get(&dir).ok_or(STALE)?;
                if !files(state.files(dir).ok_or(STALE)?, dir, false) {
                    return Ok(());
                }
                let seen = after.saturating_sub(CHILDREN);
                for &child in directory.children.range(seen + 1..) {
                    let Some(below) = state.dirs.get(&child) else { continue };
                    let (cookie, ino) = (CHILDREN + child, Node::Dir(child).ino());
                    if !push(Entry { cookie, ino, kind: Kind::Directory, name: &below.name }) {
                        break;
                    }
                }
            }
            Node::Departed(dir) => {
                files(&state.departed_files(dir).ok_or(STALE)?, dir, true);
            }
            Node::Stats(dir, departed) => {
                state.dirs.get(&dir).ok_or(STALE)?;
                for (cookie, bulk) in (16..).zip(Bulk::ALL) {
                    let ino = Node::Bulk(dir, departed, bulk).ino();
                    let entry = Entry { cookie, ino, kind: Kind::Text, name: bulk.name() };
                    if cookie > after && !push(entry) {
                        break;
                    }
                }
            }
            node @ Node::Value(dir, departed, identity, Part::Histogram) => {
                state.file(node).ok_or(STALE)?;
                for (cookie, field) in (16..).zip(Field::ALL) {
                    let node = Node::Value(dir, departed, identity, Part::Field(field));
                    let entry =
                        Entry { cookie, ino: node.ino(), kind: Kind::Text, name: field.name() };
                    if cookie > after && state.file(node).is_some() && !push(entry) {
                        break;
                    }
                }
            }
            Node::Value(..) | Node::Bulk(..) | Node::Link(_) => {
                return Err(Errno(libc::ENOTDIR));
            }
        }
        Ok(())
    }

    fn open(&self, ino: Ino, _caller: Caller, write: bool) -> Result<(), Errno> {
        let node = node_of(ino)?;
        let state = self.look(|_| node.needs());
        let attr = self.attributes(&state, node)?;
        if write && attr.mode & 0o222 == 0 {
            return Err(Errno(libc::EACCES));
        }
        Ok(())
    }

    fn render(
        &self,
        ino: Ino,
        caller: Caller,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let node = Node::of(ino).ok_or(NO_DEVICE)?;
        match node {
            Node::Value(dir, departed, identity, part) => {
                let request = self.lock_to_read().value_request(dir, departed, identity, part);
                self.show(request, &mut Sweep::default(), |state, sweep| {
                    state.file(node).ok_or(NO_DEVICE)?;
                    state.write_value(dir, departed, identity, part, sweep, out);
                    Ok(())
                })
            }
            Node::Bulk(dir, departed, bulk) => {
                // Whoever opened a file may go into its directory, but perhaps not into all those below.
                let access = Access::of(caller);
                let mut subtree = Subtree::default();
                let view = View { dir, departed };
                let room = Some(self.options.bulk_bytes);
                let taken = self.take(view, bulk.is_counted(), &access, room, &mut subtree);
                taken.map_err(|Full| Errno(libc::EFBIG))?;
                if subtree.is_empty() {
                    return Err(NO_DEVICE);
                }
                let vcpus = &self.options.vcpu_metrics;
                export::write(bulk, &subtree, vcpus, most, out).map_err(|Full| Errno(libc::EFBIG))
            }
            _ => self.attr(ino).map(|_| ()).map_err(|_| NO_DEVICE),
        }
    }

    fn write(&self, ino: Ino, caller: Caller, data: &[u8]) -> Result<(), Errno> {
        if !is_zero(data) {
            return Err(Errno(libc::EINVAL));
        }
        let node = Node::of(ino).ok_or(NO_DEVICE)?;
        let by_owner = caller.uid == self.options.owner.uid;
        self.at_the_expense_of(caller.uid, || self.clear_node(node, by_owner).map(|_| ()))
    }

    fn parent(&self, ino: Ino) -> Ino {
        let node = match Node::of(ino) {
            Some(Node::Dir(dir)) => {
                Node::Dir(self.lock_to_read().dirs.get(&dir).map_or(ROOT_DIR, |d| d.parent))
            }
            Some(Node::Departed(dir) | Node::Stats(dir, false) | Node::Value(dir, false, ..)) => {
                Node::Dir(dir)
            }
            Some(Node::Stats(dir, true) | Node::Value(dir, true, ..)) => Node::Departed(dir),
            Some(Node::Bulk(dir, departed, _)) => Node::Stats(dir, departed),
            Some(Node::Link(_)) => Node::Dir(BY_NAME_DIR),
            None => Node::Dir(ROOT_DIR),
        };
        node.ino()
    }

    fn interrupt_wait(&self) {
        self.interrupt();
    }

    fn effort(&self, ino: Ino) -> Effort {
        match Node::of(ino) {
            Some(Node::Bulk(dir, ..)) => {
                let request = Request { dir, ..Request::WHOLE };
                let state = self.lock_to_read();
                if state.reads_many(request, FEW_SOURCES) { Effort::Much } else { Effort::Some }
            }
            Some(Node::Value(dir, departed, identity, part)) => {
                let state = self.lock_to_read();
                let request = state.value_request(dir, departed, identity, part);
                if state.reads_many(request, FEW_SOURCES) { Effort::Much } else { Effort::Little }
            }
            _ => Effort::Little,
        }
    }

    fn renewed_at(&self, ino: Ino, content: &[u8]) -> Option<u64> {
        match Node::of(ino) {
            Some(Node::Bulk(_, _, bulk)) => export::renewed_at(bulk, content),
            _ => None,
        }
    }

    fn depends_on_opener(&self, ino: Ino) -> bool {
        matches!(Node::of(ino), Some(Node::Bulk(..)))
    }

    fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        let Node::Link(dir) = node_of(ino)? else { return Err(Errno(libc::EINVAL)) };
        let state = self.look(|_| Look::At(dir));
        if state.links.has(dir) { Ok(format!("../{}", state.path(dir))) } else { Err(STALE) }
    }

    fn wait_gone(&self, timeout: Duration, gone: &mut Vec<Ino>) {
        self.wait(timeout, gone);
    }
}
