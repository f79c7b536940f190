//! What one sweep found of a subtree, as somebody may see it: to be shown without the tree.
//!
//! Every bulk file is made in two steps. With the tree's lock, each group is copied once, and what it takes to
//! name what was found: names, lists of files and descriptions are shared and not copied. All else, totals and
//! text, is made of that when everybody else has gone on.
//!
//! What is below directories that somebody may not enter is in there as parts of the totals above, and nowhere
//! else: there are neither names nor cells to be had.

use std::sync::Arc;

use nix::time::ClockId;

use super::access::Access;
use super::dirs::{Dir, ROOT_DIR};
use super::files::{Files, IdentityId};
use super::inode::DirId;
use super::nodes::DEPARTED;
use super::render::Shown;
use super::sweep::{Request, Room, Sweep};
use super::{GroupId, State};
use crate::value::{Descriptor, GroupDescriptor};

/// A directory and those below it, and all that one sweep read of them. Used again, it needs no new memory.
#[derive(Debug, Default)]
pub(crate) struct Subtree {
    pub(super) sweep: Sweep,
    /// What the groups are that were found, by the tree's numbers.
    groups: Vec<Option<Group>>,
    root: String,
    /// What the first directory is in, from the top level on.
    above: Vec<Called>,
    dirs: Vec<SubtreeDir>,
    /// By directory.
    places: Vec<Place>,
    /// Where the places of each directory begin.
    of_dirs: Vec<usize>,
    baselines: Vec<u64>,
    /// When it was read.
    taken: Taken,
    /// What does not fit is not in it.
    pub(super) room: Room,
}

/// When a sweep ended, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// Since 1970.
    pub(crate) realtime: u64,
    /// Of the clock that nobody sets.
    pub(crate) monotonic: u64,
}

impl Taken {
    fn now() -> Self {
        // There are no systems without these clocks.
        let now = |clock| {
            let time = nix::time::clock_gettime(clock).map(std::time::Duration::from);
            time.map_or(0, |time| time.as_nanos() as u64)
        };
        Self { realtime: now(ClockId::CLOCK_REALTIME), monotonic: now(ClockId::CLOCK_MONOTONIC) }
    }
}

/// Which subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) dir: DirId,
    /// Of what departed right below the directory, and not of the directory.
    pub(crate) departed: bool,
}

impl View {
    /// Everything in the tree.
    pub(crate) const WHOLE: Self = Self { dir: ROOT_DIR, departed: false };
}

#[derive(Clone, Debug)]
struct Group {
    descriptor: Arc<GroupDescriptor>,
    identities: Arc<[Option<IdentityId>]>,
}

/// What a directory is called.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    name: Arc<str>,
    /// The process whose it is, of one right below the top level.
    pid: Option<u32>,
    /// Its user; of one at the top level, that of the first process that has it.
    uid: Option<u32>,
    /// Where what its program calls it begins in the name.
    bare: usize,
}

impl Called {
    /// The directory's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What its program calls it.
    pub(crate) fn bare(&self) -> &str {
        &self.name[self.bare..]
    }

    /// The process whose it is, of one right below the top level that one process has.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The user of that process; of one at the top level, of the first process that has it.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.uid
    }
}

/// A directory.
#[derive(Debug)]
pub(crate) struct SubtreeDir {
    id: DirId,
    /// The directory that it is in, which comes before it; of the first one itself.
    parent: usize,
    /// How many are between it and the first one.
    depth: usize,
    called: Called,
    /// How many directories are in it, also of those that are not to be seen.
    children: usize,
    files: Arc<Files>,
    labels: Option<Arc<[(String, String)]>>,
    /// When its source was made, in nanoseconds since 1970; 0 where those of several processes meet.
    created: u64,
    /// The first one that is not in or below it.
    end: usize,
    /// Whether it is not to be seen.
    is_hidden: bool,
}

impl SubtreeDir {
    /// How many directories are between it and the first one, itself included.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.called.name
    }

    /// What it is called.
    pub(crate) fn called(&self) -> &Called {
        &self.called
    }

    /// The directory that it is in; of the first one itself.
    pub(crate) fn parent(&self) -> usize {
        self.parent
    }

    /// How many directories are in it, also of those that are not to be seen.
    pub(crate) fn children(&self) -> usize {
        self.children
    }

    /// The files that it has, in listing order: the same for all directories of one kind.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// The tree's number for it, which no other has before or after.
    pub(crate) fn id(&self) -> DirId {
        self.id
    }

    /// When its source was made, in nanoseconds since 1970; 0 where those of several processes meet.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// The first directory that is not in or below it.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The labels of its source.
    pub(crate) fn labels(&self) -> &[(String, String)] {
        self.labels.as_deref().unwrap_or_default()
    }
}

/// Where cells are shown.
#[derive(Debug)]
pub(crate) struct Place {
    dir_id: DirId,
    dir: usize,
    /// Which of the sweep's.
    cells: usize,
    /// Whether they are of a source that has the directory, and not of one without right below it.
    pub(crate) own: bool,
    pub(crate) departed: bool,
    /// Whether it is the directory's own `.departed` in which they are shown.
    pub(crate) departs_here: bool,
    /// Whether they are to be seen in totals only.
    pub(crate) is_hidden: bool,
    /// Where their baseline begins, if they have one.
    baseline: Option<usize>,
    /// The user whose process counts there, or has counted what departed.
    uid: Option<u32>,
}

impl Place {
    /// The directory.
    pub(super) fn dir(&self) -> usize {
        self.dir
    }

    /// The user whose process it is of; of what processes left that are gone, and of the host's own, nobody.
    pub(super) fn uid(&self) -> Option<u32> {
        self.uid
    }
}

impl Subtree {
    /// Whether there is nothing in it, since what it was to be of is gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// The path of the first directory from the root of the mount, without a leading slash.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// What the first directory is in, from the top level on.
    pub(crate) fn above(&self) -> &[Called] {
        &self.above
    }

    /// The directories, each before those that are in it.
    pub(crate) fn dirs(&self) -> &[SubtreeDir] {
        &self.dirs
    }

    /// Calls `visit` with each directory, and its path from the root of the mount, without slashes at its ends,
    /// until that fails.
    pub(crate) fn try_each_dir<E>(
        &self,
        mut visit: impl FnMut(usize, &SubtreeDir, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut path = self.root.clone();
        // How long the path is of each directory that is above.
        let mut above: Vec<usize> = Vec::new();
        for (n, dir) in self.dirs.iter().enumerate() {
            above.truncate(dir.depth);
            if let Some(len) = above.last() {
                path.truncate(*len);
                if *len > 0 {
                    path.push('/');
                }
                path.push_str(dir.name());
            }
            above.push(path.len());
            visit(n, dir, &path)?;
        }
        Ok(())
    }

    /// A directory's path from the root of the mount, without slashes at its ends.
    pub(crate) fn path(&self, dir: usize) -> String {
        let mut names = Vec::new();
        let mut at = dir;
        while at > 0 {
            names.push(self.dirs[at].name());
            at = self.dirs[at].parent;
        }
        names.extend((!self.root.is_empty()).then_some(&*self.root));
        names.reverse();
        names.join("/")
    }

    /// What is shown of all that was found in a directory, or is without a directory right below it.
    pub(crate) fn places(&self, dir: usize) -> &[Place] {
        &self.places[self.places_from(dir)..self.places_from(dir + 1)]
    }

    /// The same of all directories below it: these come right after it.
    pub(super) fn places_below(&self, dir: usize) -> &[Place] {
        &self.places[self.places_from(dir + 1)..self.places_from(self.dirs[dir].end)]
    }

    /// Where the places of a directory, or of all after the last, begin.
    fn places_from(&self, dir: usize) -> usize {
        self.of_dirs.get(dir).copied().unwrap_or(self.places.len())
    }

    /// The values of a group of which something was found, and their identities.
    fn described(&self, group: GroupId) -> (&[Descriptor], &[Option<IdentityId>]) {
        match self.group(group) {
            Some((descriptor, identities)) => (descriptor.values(), identities),
            None => (&[], &[]),
        }
    }

    /// A group of which something was found, and the identities of its values.
    pub(crate) fn group(
        &self,
        group: GroupId,
    ) -> Option<(&Arc<GroupDescriptor>, &[Option<IdentityId>])> {
        let Group { descriptor, identities } = self.groups.get(group)?.as_ref()?;
        Some((descriptor, identities))
    }

    /// How many groups there may be.
    pub(crate) fn group_limit(&self) -> usize {
        self.groups.len()
    }

    /// When it was read.
    pub(crate) fn taken(&self) -> Taken {
        self.taken
    }

    /// The raw words of a place, and those of its baseline if it has one.
    pub(crate) fn words_of(&self, place: &Place) -> (&[u64], Option<&[u64]>) {
        let words = self.sweep.words(&self.sweep.cells[place.cells]);
        let baseline = place.baseline.map(|at| &self.baselines[at..at + words.len()]);
        (words, baseline)
    }

    /// All that was found, in the order of directories.
    pub(crate) fn all_places(&self) -> &[Place] {
        &self.places
    }

    /// Of which group what is at a place is.
    pub(crate) fn group_of(&self, place: &Place) -> GroupId {
        self.sweep.cells[place.cells].group
    }

    /// The groups of which something was found, with their values.
    pub(super) fn groups(&self) -> impl Iterator<Item = (GroupId, &[Descriptor])> {
        let groups = self.groups.iter().enumerate();
        groups.filter_map(|(id, group)| Some((id, group.as_ref()?.descriptor.values())))
    }

    /// The values of a group.
    pub(super) fn values_of(&self, group: GroupId) -> &[Descriptor] {
        self.described(group).0
    }

    /// One value of a place, which of the group's and its first word, whatever was cleared of it.
    pub(super) fn raw(&self, place: &Place, (n, word): (usize, usize)) -> Option<Shown<'_>> {
        let cells = &self.sweep.cells[place.cells];
        let (values, identities) = self.described(cells.group);
        let (value, identity) = (&values[n], identities[n]?);
        let words = &self.sweep.words(cells)[word..word + value.ty.cells()];
        Shown::new(cells.account, place.departed, identity, value, words, None)
    }

    /// Calls `add` with those values of one place that are wanted, as they are shown.
    pub(super) fn each_shown<'a>(
        &'a self,
        place: &Place,
        is_wanted: impl Fn(IdentityId) -> bool,
        mut add: impl FnMut(Shown<'a>),
    ) {
        let (_, baseline) = self.words_of(place);
        self.each_since(place, baseline, is_wanted, |_, shown| add(shown));
    }

    /// Calls `add` with those values of one place that are wanted, as they are since this baseline, and where in the
    /// group's words they begin.
    pub(crate) fn each_since<'a>(
        &'a self,
        place: &Place,
        baseline: Option<&'a [u64]>,
        is_wanted: impl Fn(IdentityId) -> bool,
        mut add: impl FnMut(usize, Shown<'a>),
    ) {
        let cells = &self.sweep.cells[place.cells];
        let (values, identities) = self.described(cells.group);
        let words = self.sweep.words(cells);
        let mut start = 0;
        for (value, identity) in values.iter().zip(identities) {
            let range = start..start + value.ty.cells();
            start = range.end;
            if let Some(identity) = identity.filter(|identity| is_wanted(*identity)) {
                let baseline = baseline.map(|baseline| &baseline[range.clone()]);
                let words = &words[range.clone()];
                let (account, departed) = (cells.account, place.departed);
                let shown = Shown::new(account, departed, identity, value, words, baseline);
                shown.into_iter().for_each(|shown| add(range.start, shown));
            }
        }
    }

    /// Forgets everything, but for the memory.
    fn clear(&mut self) {
        self.groups.iter_mut().for_each(|group| *group = None);
        self.root.clear();
        self.above.clear();
        self.dirs.clear();
        self.places.clear();
        self.of_dirs.clear();
        self.baselines.clear();
    }

    /// Puts in order what was captured with the tree's lock, and takes what was read.
    pub(super) fn arrange(&mut self, sweep: Sweep) {
        self.sweep = sweep;
        let Self { dirs, places, of_dirs, .. } = self;
        let mut by_id: Vec<_> = dirs.iter().enumerate().map(|(n, dir)| (dir.id, n)).collect();
        by_id.sort_unstable();
        // Where what is in each directory is shown, by what the directories' numbers will be.
        let mut shown_in: Vec<usize> = Vec::with_capacity(dirs.len());
        let mut seen = 0;
        for dir in dirs.iter() {
            shown_in.push(if dir.is_hidden { shown_in[dir.parent] } else { seen });
            seen += usize::from(!dir.is_hidden);
        }
        places.retain_mut(|place| {
            let Ok(at) = by_id.binary_search_by_key(&place.dir_id, |(id, _)| *id) else {
                return false;
            };
            let dir = by_id[at].1;
            place.dir = shown_in[dir];
            place.is_hidden = dirs[dir].is_hidden;
            place.own &= !place.is_hidden;
            place.departs_here &= !place.is_hidden;
            true
        });
        places.sort_unstable_by_key(|place| (place.dir, place.cells));
        dirs.iter_mut().for_each(|dir| dir.parent = shown_in[dir.parent]);
        dirs.retain(|dir| !dir.is_hidden);
        for n in (0..dirs.len()).rev() {
            let SubtreeDir { parent, end, .. } = dirs[n];
            dirs[n].end = end.max(n + 1);
            dirs[parent].end = dirs[parent].end.max(dirs[n].end);
        }
        let mut at = 0;
        of_dirs.extend((0..dirs.len()).map(|dir| {
            let first = at;
            at += places[first..].iter().take_while(|place| place.dir == dir).count();
            first
        }));
    }
}

impl State {
    /// What must be read of a subtree.
    pub(super) fn view_request(view: View) -> Request {
        Request { dir: view.dir, ..Request::WHOLE }
    }

    /// Takes what it needs to show without the tree what a sweep read, or only what there is. To be
    /// [arranged](Subtree::arrange) with the sweep when the tree's lock is given back.
    pub(super) fn capture(&self, view: View, access: &Access, sweep: &Sweep, to: &mut Subtree) {
        to.clear();
        to.taken = Taken::now();
        to.room = sweep.room.clone();
        let Some(directory) = self.dirs.get(&view.dir) else { return };
        to.root = self.path(view.dir);
        self.capture_above(view, directory, to);
        if view.departed {
            if view.dir != ROOT_DIR {
                to.root.push('/');
            }
            to.root.push_str(DEPARTED);
            let files = self.departed_files(view.dir).unwrap_or_default();
            to.dirs.push(SubtreeDir {
                id: view.dir,
                parent: 0,
                depth: 0,
                called: Called { name: DEPARTED.into(), pid: None, uid: None, bare: 0 },
                children: 0,
                files: Arc::new(files),
                labels: None,
                created: 0,
                end: 0,
                is_hidden: false,
            });
        } else {
            self.capture_dir(view.dir, directory, (0, 0), None, access, to);
        }
        self.capture_places(view, sweep, to);
    }

    /// What a directory is called, and by whom.
    fn called(&self, dir: &Dir) -> Called {
        let is_below_top = dir.parent != ROOT_DIR
            && self.dirs.get(&dir.parent).is_some_and(|above| above.parent == ROOT_DIR);
        let is_near_top = is_below_top || dir.parent == ROOT_DIR;
        let member = dir.members.first().filter(|_| is_near_top);
        let identity = member.map(|(process, _)| self.processes[*process].identity);
        let identity = identity.filter(|identity| !identity.is_host);
        let uid = identity.map(|of| of.uid);
        let pid = identity.filter(|_| is_below_top).map(|of| of.pid);
        let prefix = pid.filter(|_| self.options.pid_prefix).map(|pid| format!("{pid}-"));
        let bare = prefix.filter(|prefix| dir.name.starts_with(prefix.as_str()));
        Called { name: dir.name.clone(), pid, uid, bare: bare.map_or(0, |prefix| prefix.len()) }
    }

    fn capture_above(&self, view: View, directory: &Dir, to: &mut Subtree) {
        // What departed is called what the directory is that it departed from.
        let mut next = if view.departed { view.dir } else { directory.parent };
        while next != ROOT_DIR {
            let Some(dir) = self.dirs.get(&next) else { break };
            to.above.push(self.called(dir));
            next = dir.parent;
        }
        to.above.reverse();
    }

    fn capture_dir(
        &self,
        id: DirId,
        dir: &Dir,
        (parent, depth): (usize, usize),
        is_above_hidden: Option<bool>,
        access: &Access,
        to: &mut Subtree,
    ) {
        // With where it is by its number, and where its places begin.
        if !to.room.take(size_of::<SubtreeDir>() + size_of::<(DirId, usize)>() + size_of::<usize>())
        {
            return;
        }
        let number = to.dirs.len();
        // Whoever has the first one open was let into it.
        let is_hidden = is_above_hidden.is_some_and(|above| above || !access.may_enter(dir));
        to.dirs.push(SubtreeDir {
            id,
            parent,
            depth,
            called: self.called(dir),
            children: dir.children.len(),
            files: self.files_of(id, dir).clone(),
            labels: dir.labels.clone(),
            // What several processes have at the top level is the same whoever came first.
            created: if self.is_host && dir.parent == ROOT_DIR { 0 } else { dir.created_ns },
            end: 0,
            is_hidden,
        });
        for &child in &dir.children {
            if let Some(below) = self.dirs.get(&child) {
                let at = (number, depth + 1);
                self.capture_dir(child, below, at, Some(is_hidden), access, to);
            }
        }
    }

    /// Notes where what was read is shown, what it is, and what was cleared of it.
    fn capture_places(&self, view: View, sweep: &Sweep, to: &mut Subtree) {
        let Subtree { groups, places, baselines, room, .. } = to;
        if !room.take(sweep.cells.len() * size_of::<Place>()) {
            return;
        }
        groups.resize(self.groups.len(), None);
        places.reserve(sweep.cells.len());
        for (n, cells) in sweep.cells.iter().enumerate() {
            let departed = self.is_departed(cells.account);
            let mut departs_here = departed;
            let (dir_id, own) = if view.departed {
                match self.departs_in(cells.account) {
                    Some(dir) if dir == view.dir => (dir, true),
                    _ => continue,
                }
            } else {
                let Some((dir, own)) = self.shown_as(cells.account) else { continue };
                departs_here = departed && self.departs_in(cells.account) == Some(dir);
                (dir, own && !departed)
            };
            groups[cells.group].get_or_insert_with(|| Group {
                descriptor: self.groups[cells.group].clone(),
                identities: self.identities.of(cells.group).clone(),
            });
            let baseline = self.baseline(cells);
            if !room.take(baseline.map_or(0, size_of_val)) {
                return;
            }
            let baseline = baseline.map(|baseline| {
                baselines.extend_from_slice(baseline);
                baselines.len() - baseline.len()
            });
            let process = cells.account.key().map(|key| self.processes[key.0].identity);
            places.push(Place {
                uid: process.filter(|identity| !identity.is_host).map(|identity| identity.uid),
                dir_id,
                dir: 0,
                cells: n,
                own,
                departed,
                departs_here,
                is_hidden: false,
                baseline,
            });
        }
    }
}
