//! Who may go into which directory, where the kernel does not see to it: in bulk files.

use super::dirs::Dir;
use crate::fs::Caller;

/// Somebody who owns nothing: no file can have these numbers.
const NOBODY: Caller = Caller { uid: u32::MAX, gid: u32::MAX, pid: 0 };

/// What somebody may see.
#[derive(Debug)]
pub(crate) struct Access {
    /// `None` may see everything.
    caller: Option<Caller>,
    /// Supplementary groups.
    groups: Vec<u32>,
}

impl Access {
    /// To everything.
    pub(crate) const fn all() -> Self {
        Self { caller: None, groups: Vec::new() }
    }

    /// To what everybody may see.
    pub(crate) const fn public() -> Self {
        Self { caller: Some(NOBODY), groups: Vec::new() }
    }

    /// What a caller may see. Asks the system, so nobody should have to wait for it.
    pub(crate) fn of(caller: Caller) -> Self {
        let groups = if caller.uid == 0 { Vec::new() } else { supplementary_groups(caller) };
        Self { caller: Some(caller), groups }
    }

    /// Whether a directory lets the caller in, by the rules of its mode: 0750 if it is private, else 0755.
    pub(crate) fn may_enter(&self, dir: &Dir) -> bool {
        let Some(caller) = self.caller else { return true };
        !dir.private
            || caller.uid == 0
            || caller.uid == dir.owner.uid
            || caller.gid == dir.owner.gid
            || self.groups.contains(&dir.owner.gid)
    }
}

/// The supplementary groups of a caller, as far as /proc tells.
fn supplementary_groups(caller: Caller) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid));
    groups_in(&status.unwrap_or_default(), caller)
}

/// The groups in a `status`, if it is that of the caller: who passed an open file on may be gone, and its
/// process id another's.
fn groups_in(status: &str, caller: Caller) -> Vec<u32> {
    let numbers = |key: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("");
        line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    // Real, effective, saved, and that for file systems, which is what a request comes with.
    if numbers("Uid:").get(3) == Some(&caller.uid) && numbers("Gid:").get(3) == Some(&caller.gid) {
        numbers("Groups:")
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_caller_and_nobody_elses() {
        let status = "Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t8 36 100 \n";
        let caller = Caller { uid: 4, gid: 8, pid: 1 };
        assert_eq!(groups_in(status, caller), [8, 36, 100]);
        assert!(groups_in(status, Caller { uid: 2, ..caller }).is_empty());
        assert!(groups_in(status, Caller { gid: 5, ..caller }).is_empty());
        assert!(groups_in("", caller).is_empty());
    }
}
