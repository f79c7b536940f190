//! `by-name/`: a link to each directory right below the top level, by the name that its program gave it.

use std::collections::{BTreeMap, HashMap};

use super::inode::DirId;

/// The name of the directory of links.
pub(crate) const BY_NAME: &str = "by-name";

/// The links.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_name: HashMap<Box<str>, DirId>,
    of: BTreeMap<DirId, Box<str>>,
}

impl Links {
    /// A link to a directory of a process called `name`: of this name, or of `<name>-<pid>` if another has
    /// that. False if another has that as well.
    pub(super) fn add(&mut self, name: &str, pid: u32, to: DirId) -> bool {
        let second = || format!("{name}-{pid}");
        let free = |name: &str| !self.by_name.contains_key(name);
        let Some(name) = [name.to_owned(), second()].into_iter().find(|name| free(name)) else {
            return false;
        };
        self.by_name.insert(name.as_str().into(), to);
        self.of.insert(to, name.into());
        true
    }

    /// A directory is gone; answers what its link was called.
    pub(super) fn remove(&mut self, to: DirId) -> Option<Box<str>> {
        let name = self.of.remove(&to)?;
        self.by_name.remove(&name);
        Some(name)
    }

    /// Where the link of this name goes.
    pub(super) fn get(&self, name: &str) -> Option<DirId> {
        self.by_name.get(name).copied()
    }

    /// Whether there is a link to a directory.
    pub(super) fn has(&self, to: DirId) -> bool {
        self.of.contains_key(&to)
    }

    /// The links to directories whose numbers are greater than `after`, in the order of these.
    pub(super) fn after(&self, after: DirId) -> impl Iterator<Item = (DirId, &str)> {
        self.of.range(after + 1..).map(|(to, name)| (*to, &**name))
    }
}
