//! What a server finds that the one before it had put into the service manager's store.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::fd_store::{FdStore, Inherited, LAST_MOMENT};
use super::keep::Keep;
use super::options::ServeOptions;
use crate::fs::{KeptMount, Mount, MountError};
use crate::segment::{Limits, SegmentReader};
use crate::tree::Tree;

/// The length of the name of a publisher's segments.
pub(super) const SEGMENTS_NAME: usize = "seg.".len() + 2 * size_of::<u128>();

/// The name of a publisher's segments.
pub(super) fn segments_name(publisher: u128) -> String {
    format!("seg.{publisher:032x}")
}

/// The name of a mount's devices. Its inode numbers are those of a state, so it says which.
pub(super) fn mount_name(state: u64, kept: &KeptMount) -> String {
    let place = if kept.made_place { "made" } else { "found" };
    format!("fuse.{state:x}.{place}.{}", kept.source)
}

enum Name {
    Mount { state: u64, made_place: bool, source: String },
    Segments(u128),
}

impl Name {
    fn of(name: &str) -> Option<Self> {
        match name.split_once('.')? {
            ("seg", publisher) => {
                let publisher = u128::from_str_radix(publisher, 16).ok()?;
                // What else is so called could not be removed by name.
                (segments_name(publisher) == name).then_some(Self::Segments(publisher))
            }
            ("fuse", rest) => {
                let (state, rest) = rest.split_once('.')?;
                let (place, source) = rest.split_once('.')?;
                let made_place = match place {
                    "made" => true,
                    "found" => false,
                    _ => return None,
                };
                let state =
                    u64::from_str_radix(state, 16).ok().filter(|n| format!("{n:x}") == state)?;
                Some(Self::Mount { state, made_place, source: source.to_owned() })
            }
            _ => None,
        }
    }
}

/// What is there, by what it is.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Mounts, with the number of the state that their inode numbers are of.
    pub(super) mounts: Vec<(u64, KeptMount)>,
    /// Segments by publisher, as far as their names say so.
    pub(super) segments: BTreeMap<u128, Vec<OwnedFd>>,
}

impl Found {
    /// Sorts what is there. What is of no use is not kept any longer.
    pub(super) fn sort(Inherited(all): Inherited, store: &FdStore) -> Self {
        let mut found = Self::default();
        let mut of_no_use = BTreeSet::new();
        for (name, fd) in all {
            match Name::of(&name) {
                Some(Name::Segments(publisher)) => {
                    found.segments.entry(publisher).or_default().push(fd);
                }
                Some(Name::Mount { state, made_place, source }) => {
                    let same = |(_, kept): &&mut (u64, KeptMount)| kept.source == source;
                    if let Some((_, kept)) = found.mounts.iter_mut().find(same) {
                        kept.devices.push(fd);
                    } else {
                        let kept = KeptMount { source, made_place, devices: vec![fd] };
                        found.mounts.push((state, kept));
                    }
                }
                None => {
                    of_no_use.insert(name);
                }
            }
        }
        for name in of_no_use {
            tracing::warn!(name, "the service manager has kept what is of no use here");
            store.remove(&name);
        }
        found
    }
}

/// The mount's devices in the store: they are kept no longer when this is dropped.
#[derive(Debug)]
pub(super) struct KeptDevices {
    store: Arc<FdStore>,
    name: String,
}

impl Drop for KeptDevices {
    fn drop(&mut self) {
        self.store.remove(&self.name);
        // Most likely this process ends.
        self.store.send_all(LAST_MOMENT);
    }
}

/// Carries on with the mount that was kept, or mounts anew; and has that kept.
pub(super) fn mount(
    tree: &Arc<Tree>,
    options: &ServeOptions,
    keep: &Keep,
    store: &Arc<FdStore>,
    found: Vec<(u64, KeptMount)>,
) -> Result<(Mount, Option<KeptDevices>), MountError> {
    let in_store = |name: String| KeptDevices { store: store.clone(), name };
    let mut carried_on = None;
    for (state, kept) in found {
        let devices = in_store(mount_name(state, &kept));
        let mounted = if carried_on.is_none() && keep.state_of_numbers() == Some(state) {
            let more = |more: KeptMount| store.put(&devices.name, &more.devices);
            let fs = options.mount_options.clone();
            Mount::carry_on(tree.clone(), &options.mount, fs, kept, more)
        } else {
            Err(Mount::take_away(&options.mount, kept))
        };
        match mounted {
            Ok(mount) => carried_on = Some((mount, Some(devices))),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    if let Some(carried_on) = carried_on {
        return Ok(carried_on);
    }
    let mut devices = None;
    let put = |kept: KeptMount| {
        let name = mount_name(keep.state(), &kept);
        store.put(&name, &kept.devices);
        devices = Some(in_store(name));
    };
    let fs = options.mount_options.clone();
    let mount = Mount::new_kept(tree.clone(), &options.mount, fs, put)?;
    Ok((mount, devices))
}

/// Segments in the order in which their publisher made them, as far as none is missing. What is not a segment
/// is left out.
pub(super) fn in_order(fds: Vec<OwnedFd>, limits: &Limits) -> Vec<OwnedFd> {
    let index = |fd: &OwnedFd| SegmentReader::attach(fd.as_fd(), limits).map(|it| it.index());
    let by_index: BTreeMap<u32, OwnedFd> =
        fds.into_iter().filter_map(|fd| Some((index(&fd).ok()?, fd))).collect();
    (0..).zip(by_index).take_while(|(n, (index, _))| n == index).map(|(_, (_, fd))| fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are_of() {
        let kept =
            KeptMount { source: "statsfs-7.1".into(), made_place: true, devices: Vec::new() };
        match Name::of(&mount_name(0xab, &kept)) {
            Some(Name::Mount { state: 0xab, made_place: true, source }) => {
                assert_eq!(source, "statsfs-7.1");
            }
            _ => panic!("{}", mount_name(0xab, &kept)),
        }
        assert!(matches!(Name::of(&segments_name(5)), Some(Name::Segments(5))));
        assert_eq!(segments_name(u128::MAX).len(), SEGMENTS_NAME);
        for name in
            ["", "seg", "seg.", "seg.x", "seg.5", "fuse.1", "fuse.1.new.statsfs-7", "stored"]
        {
            assert!(Name::of(name).is_none(), "{name}");
        }
    }
}
