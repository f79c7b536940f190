//! A subtree by families of values, with labels for what they are of: what exports by label show.
//!
//! A family is a value, or several that a label tells apart. Its series are of the directories right below the top
//! level, a machine's each, and of those below that are no vCPUs; what vCPUs count is added up, unless they are asked for. What is in
//! directories that somebody may not see, and what departed, is only in a family of its own with what all have
//! counted. All is raw: a clear is none here.
//!
//! Anybody may publish, so no name, label or help is taken as it is: what can not be a metric, or would be another's, is left
//! out and counted, and nobody's values can be in the place of a machine's or the server's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use super::GroupId;
use super::dirs::HOST_NAME;
use super::names::{
    MACHINES, MetricName, RESERVED, base_name, claim, is_prefix, label_name, label_value,
    vcpu_number,
};
use super::nodes::DEPARTED;
use super::render::{Shown, Total};
use super::subtree::{Place, Subtree, SubtreeDir};
use crate::value::{Aggregations, Descriptor, Semantics, ValueType};

/// How far down what is counted is told apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Detail<'a> {
    /// Machines and their devices, and vCPUs in families of these names.
    Machines { vcpus: &'a [MetricName] },
    /// And their vCPUs.
    Vcpus,
}

impl Detail<'_> {
    /// Whether vCPUs are told apart in this family.
    fn tells_vcpus_apart(self, family: &str) -> bool {
        match self {
            Self::Machines { vcpus } => vcpus.iter().any(|name| name.is_of(family)),
            Self::Vcpus => true,
        }
    }
}

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// What is to be left out.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    /// Directories right below the top level of which nothing is shown by itself, and such at the top level of which
    /// nothing is shown, by their places in a subtree.
    pub(crate) dirs: HashSet<usize>,
    /// Families over all that there is, by their names.
    pub(crate) totals: HashSet<String>,
}

/// A family of series.
#[derive(Debug)]
pub(crate) struct Family<'a> {
    /// Its name, with the unit and without what says of what kind it is.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) help: &'a str,
    /// Whether it is over all that there is, and that has departed.
    pub(crate) is_total: bool,
    /// Type, unit and states of each of its values.
    pub(crate) value: &'a Descriptor,
    /// Its values, and where there are cells of each.
    members: &'a [(Member<'a>, &'a Vec<&'a Place>)],
}

impl Family<'_> {
    /// The users whose processes have something in it, private or not; not those of processes that are gone.
    pub(crate) fn users(&self) -> BTreeSet<u32> {
        let places = self.members.iter().flat_map(|(_, places)| places.iter());
        places.filter_map(|place| place.uid()).collect()
    }
}

/// Takes what there is: each family, and then its series.
pub(crate) trait Series {
    type Error;

    /// A family begins, of a top-level directory, by its place in the subtree.
    fn family(&mut self, family: &Family<'_>, top: usize) -> Result<(), Self::Error>;

    /// One of its series: its labels, as they are written in exports, and the directory that it is of, by its place in
    /// the subtree: one right below the top level, or the top-level one.
    fn series(
        &mut self,
        family: &Family<'_>,
        of: usize,
        labels: &str,
        total: &Total,
    ) -> Result<(), Self::Error>;
}

/// What there is beside the series, and what there is not.
#[derive(Debug, Default)]
pub(crate) struct About {
    /// Machines, also those that are not to be seen; none if that is not known of the subtree.
    pub(crate) machines: Option<usize>,
    /// The machines that are to be seen.
    pub(crate) infos: Vec<Info>,
    /// Directories at the top level and right below that were to be left out.
    pub(crate) sources_left_out: usize,
    /// Families over all that there is that were to be left out.
    pub(crate) totals_left_out: usize,
    /// vCPUs that were added up, be it in one family only.
    pub(crate) vcpus_left_out: usize,
    /// Values that were left out, since others of the name are of another kind.
    pub(crate) values_left_out: usize,
}

/// What is said of a machine.
#[derive(Debug)]
pub(crate) struct Info {
    /// Its directory, by its place in the subtree.
    pub(crate) entity: usize,
    /// Its labels, as they are written in exports.
    pub(crate) labels: String,
    /// Those that its program has given it.
    pub(crate) own: Vec<(String, String)>,
}

/// A value of a group, of those of a family.
#[derive(Clone, Copy, Debug)]
struct Member<'a> {
    group: GroupId,
    /// Which of the group's values, and its first word.
    at: (usize, usize),
    value: &'a Descriptor,
}

/// Of what a directory is.
#[derive(Clone, Copy)]
struct Of {
    /// Which top-level directory it is in.
    top: Option<usize>,
    /// The one right below that.
    entity: Option<usize>,
    /// Which labels what is counted here has where vCPUs are added up, and where they are told apart.
    labels: [usize; 2],
    /// Whether it is a vCPU, or in one.
    is_vcpus: bool,
}

/// What leads to a directory.
struct Way<'a> {
    top: Option<&'a str>,
    entity: Option<(&'a str, Option<u32>)>,
    vcpu: Option<&'a str>,
    device: Option<String>,
}

impl<'a> Way<'a> {
    const ROOT: Self = Self { top: None, entity: None, vcpu: None, device: None };

    /// What leads to a directory in this one.
    fn down(&self, name: &'a str, bare: &'a str, pid: Option<u32>) -> Self {
        let Self { top, entity, vcpu, device } = self;
        let (top, entity, vcpu, device) = (*top, *entity, *vcpu, device.clone());
        if top.is_none() {
            return Self { top: Some(name), ..Self::ROOT };
        }
        if entity.is_none() {
            return Self { top, entity: Some((bare, pid)), vcpu, device };
        }
        match vcpu_number(name)
            .filter(|_| top == Some(MACHINES) && vcpu.is_none() && device.is_none())
        {
            Some(number) => Self { top, entity, vcpu: Some(number), device },
            None => {
                let device = device.map_or_else(|| name.to_owned(), |above| above + "/" + name);
                Self { top, entity, vcpu, device: Some(device) }
            }
        }
    }

    /// As labels; that of a vCPU only if it is asked for. Nothing in a name is to be escaped.
    fn labels(&self, with_vcpu: bool) -> String {
        let mut text = String::new();
        let mut add = |label: &str, value: &str| {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{label}=\"{value}\"");
        };
        let is_machine = self.top == Some(MACHINES);
        if let Some((name, pid)) = self.entity {
            add(if is_machine { "vm" } else { "source" }, name);
            if let Some(pid) = pid {
                add("pid", &pid.to_string());
            }
        }
        if let Some(vcpu) = self.vcpu.filter(|_| with_vcpu) {
            add("vcpu", vcpu);
        }
        if let Some(device) = &self.device {
            add(if is_machine { "device" } else { "part" }, device);
        }
        text
    }
}

fn kind(value: &Descriptor) -> Kind {
    match (value.ty, value.semantics) {
        (ValueType::Histogram { .. }, _) => Kind::Histogram,
        (_, Semantics::Cumulative) => Kind::Counter,
        _ => Kind::Gauge,
    }
}

/// Whether two values can be of one family.
fn is_alike(a: &Descriptor, b: &Descriptor) -> bool {
    (kind(a), a.ty, a.unit, a.semantics) == (kind(b), b.ty, b.unit, b.semantics)
        && (a.aggregations, &a.states) == (b.aggregations, &b.states)
}

/// The label that tells a family's values apart; nothing if there is just one.
fn own_label(value: &Descriptor) -> String {
    let label = value.label.as_ref();
    label.map_or_else(String::new, |(key, name)| {
        format!("{}=\"{}\"", label_name(key), label_value(name))
    })
}

/// Both labels, or those that there are.
fn both(some: &str, more: &str) -> String {
    let comma = if some.is_empty() || more.is_empty() { "" } else { "," };
    [some, comma, more].concat()
}

/// What is made of a subtree.
struct Maker<'a> {
    subtree: &'a Subtree,
    detail: Detail<'a>,
    left_out: &'a LeftOut,
    dirs: Vec<Of>,
    /// The top-level directories that there are, with their places in `dirs`, or the one that all is in.
    tops: Vec<(&'a str, usize)>,
    labels: Vec<String>,
    /// By top-level directory and group, where something is shown.
    places: HashMap<(usize, GroupId), Vec<&'a Place>>,
    vcpus: usize,
    /// Whether something of theirs is added up.
    are_added_up: bool,
    about: About,
}

impl<'a> Maker<'a> {
    fn new(subtree: &'a Subtree, detail: Detail<'a>, left_out: &'a LeftOut) -> Self {
        let mut made = Self {
            subtree,
            detail,
            left_out,
            dirs: Vec::new(),
            tops: Vec::new(),
            labels: Vec::new(),
            places: HashMap::new(),
            vcpus: 0,
            are_added_up: false,
            about: About::default(),
        };
        made.find_dirs();
        for place in subtree.all_places() {
            if let Some(top) = made.dirs[place.dir()].top {
                let group = subtree.group_of(place);
                made.places.entry((top, group)).or_default().push(place);
            }
        }
        made
    }

    fn find_dirs(&mut self) {
        let subtree = self.subtree;
        let mut ways: Vec<Way<'a>> = Vec::new();
        let mut known = HashMap::<String, usize>::new();
        for (n, dir) in subtree.dirs().iter().enumerate() {
            let way = if n == 0 { way_to(subtree, dir) } else { down(&ways[dir.parent()], dir) };
            let above = (n > 0).then(|| self.dirs[dir.parent()]);
            let top = match (way.top, above.and_then(|above| above.top)) {
                (_, Some(top)) => Some(top),
                (Some(name), None) => {
                    self.tops.push((name, n));
                    Some(self.tops.len() - 1)
                }
                (None, None) => None,
            };
            let above_entity = above.and_then(|above| above.entity);
            let entity = above_entity.or_else(|| way.entity.is_some().then_some(n));
            if above_entity.is_none() {
                known.clear();
            }
            let is_vcpus = way.vcpu.is_some();
            let mut labels = |with_vcpu| {
                *known.entry(way.labels(with_vcpu)).or_insert_with_key(|text| {
                    self.labels.push(text.clone());
                    self.labels.len() - 1
                })
            };
            let of_machine = labels(false);
            let labels = [of_machine, if is_vcpus { labels(true) } else { of_machine }];
            if is_vcpus && way.device.is_none() && n > 0 {
                self.vcpus += 1;
            }
            let is_machines = way.top == Some(MACHINES);
            if is_machines && way.entity.is_none() && dir.name() == MACHINES {
                self.about.machines = Some(dir.children());
            }
            let is_machine = is_machines && entity == Some(n);
            let is_machine = is_machine && way.vcpu.is_none() && way.device.is_none();
            if is_machine && !self.left_out.dirs.contains(&n) {
                let (labels, own) = (self.labels[of_machine].clone(), dir.labels().to_vec());
                self.about.infos.push(Info { entity: n, labels, own });
            }
            self.dirs.push(Of { top, entity, labels, is_vcpus });
            ways.push(way);
        }
    }

    /// The members of each family, by its name.
    fn families(&mut self) -> BTreeMap<String, Vec<Member<'a>>> {
        let mut left_out = 0;
        let mut families: BTreeMap<String, Vec<Member<'a>>> = BTreeMap::new();
        for (group, values) in self.subtree.groups() {
            let with_labels = values.iter().filter(|value| value.label.is_some());
            let names: HashSet<_> = with_labels.map(base_name).collect();
            // Two values of one name and label can not be told apart.
            let mut known = HashSet::new();
            let mut word = 0;
            for (n, value) in values.iter().enumerate() {
                let (name, at) = (base_name(value), (n, word));
                word += value.ty.cells();
                // What it is the sum of is there.
                let is_sum = value.label.is_none() && names.contains(&name);
                let label =
                    value.label.as_ref().map(|(key, value)| (label_name(key), value.clone()));
                if !is_sum && !known.insert((name.clone(), label)) {
                    left_out += 1;
                } else if !is_sum {
                    families.entry(name).or_default().push(Member { group, at, value });
                }
            }
        }
        self.about.values_left_out += left_out;
        families
    }

    /// The help of a family: that of the sum over it if there is one.
    fn help(&self, member: Member<'a>) -> &'a str {
        let family = member.value.family.as_deref().filter(|_| member.value.label.is_some());
        let values = self.subtree.values_of(member.group);
        let sum = values.iter().find(|value| family.is_some_and(|family| *value.name == *family));
        &sum.unwrap_or(member.value).help
    }

    /// One family of one top-level directory.
    fn family<S: Series>(
        &mut self,
        (top, base): (usize, &str),
        members: &[Member<'a>],
        used: &mut HashSet<String>,
        to: &mut S,
    ) -> Result<(), S::Error> {
        let mut members: Vec<_> = members
            .iter()
            .filter_map(|member| Some((*member, self.places.get(&(top, member.group))?)))
            .collect();
        let Some((first, _)) = members.first().copied() else { return Ok(()) };
        let before = members.len();
        members.retain(|(member, _)| is_alike(member.value, first.value));
        self.about.values_left_out += before - members.len();
        let (prefix, top_dir) = self.tops[top];
        let family = |infix: &str, is_total| Family {
            name: format!("{prefix}_{infix}{base}"),
            kind: kind(first.value),
            help: self.help(first),
            is_total,
            value: first.value,
            members: &members,
        };
        let over_all = if self.is_departed() { "departed_" } else { "host_" };
        let (own, total) = (family("", false), family(over_all, true));
        if !is_prefix(prefix) || !claim(used, &own.name) || !claim(used, &total.name) {
            self.about.values_left_out += members.len();
            return Ok(());
        }
        let tells_apart = self.detail.tells_vcpus_apart(&own.name);
        // Those of one label are of one series, and each has the number of its own.
        let (mut known, mut own_labels) = (HashMap::new(), Vec::new());
        let own_label_of = members.iter().map(|(member, _)| {
            *known.entry(own_label(member.value)).or_insert_with_key(|label| {
                own_labels.push(label.clone());
                own_labels.len() - 1
            })
        });
        let own_label_of: Vec<usize> = own_label_of.collect();
        let mut totals: Vec<Option<Total>> = own_labels.iter().map(|_| None).collect();
        let mut is_more_than_own = false;
        let mut cursors = vec![0; members.len()];
        let mut has_begun = false;
        loop {
            // The next directory right below the top level, or the top level itself, of which there is something.
            let next = members.iter().zip(&cursors).filter_map(|((_, places), at)| {
                let place = places.get(*at)?;
                Some(self.dirs[place.dir()].entity)
            });
            let Some(entity) = next.min() else { break };
            let is_left_out = entity.is_some_and(|entity| self.left_out.dirs.contains(&entity));
            let mut shown = Shows::default();
            let cursors = cursors.iter_mut().zip(&own_label_of);
            for ((member, places), (at, own_label)) in members.iter().zip(cursors) {
                while let Some(place) = places.get(*at) {
                    let of = self.dirs[place.dir()];
                    if of.entity != entity {
                        break;
                    }
                    *at += 1;
                    let Some(instance) = self.subtree.raw(place, member.at) else { continue };
                    let all = totals[*own_label].get_or_insert_with(|| Total::new(member.value));
                    all.add(&instance);
                    // What is at the top level itself has no other labels; what is there of others is in the total.
                    let is_tops_own = entity.is_none() && place.own && !place.departed;
                    is_more_than_own |= !is_tops_own;
                    // A value that is not added up is of each vCPU, or not there.
                    let is_added_up = of.is_vcpus && !tells_apart;
                    self.are_added_up |= is_added_up;
                    let is_lost = is_added_up && member.value.aggregations.is_empty();
                    let is_lost = is_lost || place.is_hidden || is_left_out;
                    if (entity.is_some() || is_tops_own) && !is_lost {
                        let labels = (of.labels[usize::from(tells_apart)], *own_label);
                        shown.add(labels, &instance, member.value, !place.departed);
                    }
                }
            }
            for (labels, Showing { total, is_there }) in shown.0 {
                if !is_there {
                    continue;
                }
                if !has_begun {
                    to.family(&own, top_dir)?;
                    has_begun = true;
                }
                let labels = both(&self.labels[labels.0], &own_labels[labels.1]);
                to.series(&own, entity.unwrap_or(top_dir), &labels, &total)?;
            }
        }
        let is_whole = self.subtree.above().is_empty() || self.is_departed();
        let has_room = !self.left_out.totals.contains(&total.name);
        if is_whole && is_more_than_own && has_room && !first.value.aggregations.is_empty() {
            to.family(&total, top_dir)?;
            for (label, of) in own_labels.iter().zip(&totals) {
                if let Some(of) = of {
                    to.series(&total, top_dir, label, of)?;
                }
            }
        }
        Ok(())
    }

    /// Whether it is of what departed from the top level.
    fn is_departed(&self) -> bool {
        let first = self.subtree.dirs().first();
        self.subtree.above().len() == 1 && first.is_some_and(|dir| dir.name() == DEPARTED)
    }
}

/// A series that is being made, and whether there is anything but what departed.
struct Showing {
    total: Total,
    is_there: bool,
}

/// The series of one directory right below the top level, by the numbers of their labels and of their own.
#[derive(Default)]
struct Shows(BTreeMap<(usize, usize), Showing>);

impl Shows {
    fn add(
        &mut self,
        labels: (usize, usize),
        instance: &Shown<'_>,
        value: &Descriptor,
        is_there: bool,
    ) {
        let new = || Showing { total: Total::new(value), is_there: false };
        let showing = self.0.entry(labels).or_insert_with(new);
        showing.total.add(instance);
        showing.is_there |= is_there;
    }
}

fn way_to<'a>(subtree: &'a Subtree, first: &'a SubtreeDir) -> Way<'a> {
    let mut way = Way::ROOT;
    for above in subtree.above() {
        way = way.down(above.name(), above.bare(), above.pid());
    }
    let is_named = !subtree.root().is_empty() && first.name() != DEPARTED;
    if is_named { down(&way, first) } else { way }
}

fn down<'a>(way: &Way<'a>, dir: &'a SubtreeDir) -> Way<'a> {
    let called = dir.called();
    way.down(dir.name(), called.bare(), called.pid())
}

/// The one aggregate that a series shows of a value.
pub(crate) fn aggregate(value: &Descriptor) -> Aggregations {
    let all = value.aggregations;
    [Aggregations::SUM, Aggregations::MAX, Aggregations::MIN]
        .into_iter()
        .find(|kind| all.contains(*kind))
        .unwrap_or(Aggregations::SUM)
}

/// Whether a directory of this name at the top level is the host's, and nobody's who publishes.
pub(crate) fn is_hosts(top: &str) -> bool {
    [MACHINES, HOST_NAME].contains(&top)
}

/// Gives all families of a subtree, and their series, but for those that are to be left out: directories right below the
/// top level are in totals only then.
///
/// # Errors
/// What `to` answers.
pub(crate) fn write<S: Series>(
    subtree: &Subtree,
    detail: Detail<'_>,
    left_out: &LeftOut,
    to: &mut S,
) -> Result<About, S::Error> {
    let mut maker = Maker::new(subtree, detail, left_out);
    let families = maker.families();
    // What exports say beside.
    let mut used = HashSet::new();
    for name in RESERVED {
        claim(&mut used, name);
    }
    // Nobody's names come before those of machines and of the server.
    let mut tops: Vec<_> = (0..maker.tops.len()).collect();
    tops.retain(|top| !left_out.dirs.contains(&maker.tops[*top].1));
    tops.sort_by_key(|top| !is_hosts(maker.tops[*top].0));
    for top in tops {
        for (base, members) in &families {
            maker.family((top, base), members, &mut used, to)?;
        }
    }
    let vcpus_left_out = if maker.are_added_up { maker.vcpus } else { 0 };
    let (sources_left_out, totals_left_out) = (left_out.dirs.len(), left_out.totals.len());
    Ok(About { vcpus_left_out, sources_left_out, totals_left_out, ..maker.about })
}
