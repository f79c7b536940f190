//! The statistics of another process, read as a host's server would: through its segments, which the
//! library's reader validates. The process itself may be stopped or dead.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use statsfs::fs::{Caller, Nodes, ROOT};
use statsfs::tree::{Feed, Identity, Owner, Tree, TreeOptions};

use crate::flat::Flat;

/// A process's segments, held open.
#[derive(Debug)]
struct Segments(Mutex<Vec<OwnedFd>>);

impl Feed for Segments {
    fn segments(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.lock().expect("nobody panics").iter().map(OwnedFd::try_clone).collect()
    }
}

/// Another process's tree.
#[derive(Debug)]
pub struct Outside(Tree);

impl Outside {
    /// Opens all segments of a process, in the order in which it made them.
    ///
    /// # Errors
    /// If the process is gone, or has no segments yet, or they are refused.
    pub fn attach(pid: u32) -> io::Result<Self> {
        // While one is being sent, there are two descriptors of it.
        let mut segments = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let link = entry?.path();
            let Ok(target) = std::fs::read_link(&link) else { continue };
            let target = target.to_string_lossy();
            let name =
                target.strip_prefix("/memfd:statsfs-").and_then(|t| t.strip_suffix(" (deleted)"));
            if let Some(index) = name.and_then(|name| name.parse::<u32>().ok()) {
                segments.insert(index, OwnedFd::from(File::open(&link)?));
            }
        }
        if segments.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let segments = segments.into_values().collect();
        let options = TreeOptions::new(Owner { uid: 0, gid: 0 });
        let tree = Tree::host(TreeOptions { pid_prefix: true, ..options });
        let identity = Identity { pid, uid: 0, gid: 0, is_public: true, is_host: false };
        tree.join(Segments(Mutex::new(segments)), identity).map_err(io::Error::other)?;
        Ok(Self(tree))
    }

    /// One file's number: what was counted, whatever was cleared where the process shows it.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn value(&self, path: &str) -> u64 {
        let found = path.split('/').try_fold(ROOT, |directory, name| {
            self.0.lookup(directory, name).map(|found| found.ino)
        });
        let mut text = Vec::new();
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let rendered = found.and_then(|ino| self.0.render(ino, caller, usize::MAX, &mut text));
        rendered.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let text = String::from_utf8(text).expect("numbers are text");
        text.trim_end().parse().unwrap_or_else(|_| panic!("{path} says {text:?}"))
    }

    /// All values, from one sweep.
    pub fn flat(&self) -> Flat {
        let mut text = Vec::new();
        self.0.flat(&mut text);
        Flat::parse(std::str::from_utf8(&text).expect("paths and numbers are text"))
    }
}
