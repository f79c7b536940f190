//! The validating reader of one segment: from an unknown file to records that can be relied on.
//!
//! Nothing that a writer does is trusted. The file is checked before it is mapped; every record is
//! copied once and the copy validated; cells are loaded at offsets that were validated. What belongs
//! together across records and segments is [`process`](super::process)'s to check.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::error::SegmentError;
use super::layout::{
    HEADER_SIZE, MAGIC, MAX_LABELS, MAX_SEGMENT, MAX_SEGMENTS, ROOT_ID, UNIT, UNIT_WORDS, VERSION,
    flag, header, is_source_name, kind, role, split_head, split_pair, state, unit_limit,
    unit_offset, word,
};
use super::memfd;
use super::plan::Plan;
use super::protocol;
use super::region::Region;
use super::schema::{self, MAX_GROUP_UNITS};
use super::sync::{Ordering, fence};
use crate::value::{MAX_LABEL_KEY, MAX_LABEL_VALUE, is_value_name};

/// What a reader accepts of one publisher.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest segment in bytes; 64 MiB unless set.
    pub segment_size: usize,
    /// Most segments; 256, the format's own limit, unless set.
    pub segments: usize,
    /// Most bytes over all segments; as many as there can be unless set.
    pub bytes: usize,
    /// Most sources over all segments; 2^20 unless set.
    pub sources: usize,
    /// Most bytes of all records of groups, equal ones once, that there ever were; 16 MiB unless set. What they
    /// describe is kept in memory, where it takes several times as much.
    pub group_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_size: MAX_SEGMENT,
            segments: MAX_SEGMENTS,
            bytes: usize::MAX,
            sources: 1 << 20,
            group_bytes: 16 << 20,
        }
    }
}

/// A source's record.
#[derive(Debug)]
pub(crate) struct SourceUnit {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) flags: u8,
    pub(crate) labels: u8,
    pub(crate) created_ns: u64,
    /// As far as it was adopted: see [`process`](super::process).
    pub(crate) parent: u64,
    pub(crate) departed: bool,
}

/// A label's record.
#[derive(Debug)]
pub(crate) struct LabelUnit {
    pub(crate) source: u64,
    pub(crate) index: u8,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// A block's record.
#[derive(Clone, Debug)]
pub(crate) struct BlockUnit {
    pub(crate) role: u8,
    pub(crate) source: u64,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// The descriptor from which its cells are sampled; 0 if there is none.
    pub(crate) fd_group: u32,
    pub(crate) plan: Arc<Plan>,
}

/// What a unit holds, validated.
#[derive(Debug)]
pub(crate) enum Record {
    /// Nothing that counts.
    Vacant,
    Source(Box<SourceUnit>),
    Label(Box<LabelUnit>),
    Block(BlockUnit),
    /// A group, and the number of units that its record takes.
    Group(Arc<Plan>, u32),
    /// The rest of a group's record.
    Continued,
}

/// A unit as it was when it was last looked at.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) generation: u64,
    pub(crate) record: Record,
}

/// What a scan found new in a segment.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Records that are gone, with what they were.
    pub(crate) gone: Vec<(u32, Record)>,
    /// Copies of records that are new; word 0 is the generation.
    pub(crate) new: Vec<(u32, [u64; UNIT_WORDS])>,
    /// Sources whose dynamic words moved: unit, departed, parent.
    pub(crate) moved: Vec<(u32, bool, u64)>,
}

/// The groups of one process, each once. Whether any source has them does not matter.
#[derive(Debug)]
pub(crate) struct Groups {
    /// By their canonical encoding, since equal groups have equal ones.
    known: HashMap<Vec<u64>, Arc<Plan>>,
    /// How many bytes these are, and may be.
    bytes: usize,
    most: usize,
}

impl Groups {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { known: HashMap::new(), bytes: 0, most: limits.group_bytes }
    }

    fn intern(&mut self, unit: u32, copy: &[u64]) -> Result<Arc<Plan>, SegmentError> {
        let group = schema::decode(copy).map_err(|error| SegmentError::Group { unit, error })?;
        let encoding = schema::encode(&group);
        if let Some(plan) = self.known.get(&encoding) {
            return Ok(plan.clone());
        }
        let bytes = self.bytes + encoding.len() * size_of::<u64>();
        if bytes > self.most {
            return Err(SegmentError::TooManyGroupBytes(self.most));
        }
        self.bytes = bytes;
        let plan = Arc::new(Plan::new(Arc::new(group), self.known.len() as u32));
        self.known.insert(encoding, plan.clone());
        Ok(plan)
    }
}

/// One segment, mapped and validated.
#[derive(Debug)]
pub struct SegmentReader {
    pub(crate) region: Region,
    id: u128,
    publisher: u128,
    index: u32,
    created_ns: u64,
    pid: u64,
    pub(crate) units: Vec<Cached>,
    /// Published blocks by offset: length and unit.
    extents: BTreeMap<u32, (u32, u32)>,
}

impl SegmentReader {
    /// Checks a file of unknown origin and maps it, and checks the header. Nothing that could hang is
    /// done before the file is known to be a sealed memfd.
    ///
    /// # Errors
    /// [`SegmentError`] says what is wrong with the file or the header.
    pub fn attach(fd: BorrowedFd<'_>, limits: &Limits) -> Result<Self, SegmentError> {
        let region = memfd::accept(fd, limits.segment_size.min(MAX_SEGMENT))?;
        let get = |at| region.word(at).load(Ordering::Relaxed);
        let get_id = |at| u128::from(get(at)) | u128::from(get(at + 8)) << 64;
        if protocol::acquire(&region, header::MAGIC) != MAGIC {
            return Err(SegmentError::Magic);
        }
        let (version, header_size) = split_pair(get(header::VERSION));
        if version != VERSION {
            return Err(SegmentError::Version(version));
        }
        if header_size as usize != HEADER_SIZE {
            return Err(SegmentError::HeaderSize(header_size));
        }
        let (id, publisher) = (get_id(header::ID), get_id(header::PUBLISHER));
        if id == 0 {
            return Err(SegmentError::ZeroId("own"));
        }
        if publisher == 0 {
            return Err(SegmentError::ZeroId("publisher's"));
        }
        let index = get(header::INDEX);
        if index >= MAX_SEGMENTS as u64 {
            return Err(SegmentError::Index(index));
        }
        let (size, file) = (get(header::SIZE), region.len() as u64);
        if size != file {
            return Err(SegmentError::SizeWord { header: size, file });
        }
        let (created_ns, pid) = (get(header::CREATED), get(header::PID));
        Ok(Self {
            id,
            publisher,
            index: index as u32,
            created_ns,
            pid,
            units: Vec::new(),
            extents: BTreeMap::new(),
            region,
        })
    }

    /// The segment's random id.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// The publisher's random id, the same in all its segments.
    pub fn publisher(&self) -> u128 {
        self.publisher
    }

    /// Place of this segment among the publisher's, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// When the segment was made, nanoseconds since 1970, as its writer says.
    pub fn created_ns(&self) -> u64 {
        self.created_ns
    }

    /// The process id that the writer says it has. Informational: never an identity.
    pub fn claimed_pid(&self) -> u64 {
        self.pid
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.region.len()
    }

    /// Compares every unit with what it held before. Records that are gone are taken out of the
    /// segment's own tables; groups that are new are put in; everything else is for the caller to
    /// adopt or not: what is not adopted stays new.
    pub(crate) fn scan(
        &mut self,
        groups: &mut Groups,
        found: &mut Findings,
    ) -> Result<(), SegmentError> {
        let limit = unit_limit(self.region.len());
        let units = protocol::acquire(&self.region, header::UNITS);
        if units > u64::from(limit) {
            return Err(SegmentError::Units { units, limit });
        }
        if units < self.units.len() as u64 {
            return Err(SegmentError::UnitsFell(self.units.len() as u32, units));
        }
        self.units.resize_with(units as usize, || Cached { generation: 0, record: Record::Vacant });
        let mut unit = 0;
        while (unit as usize) < self.units.len() {
            unit += self.look_at(unit, groups, found)?;
        }
        // Blocks that were freed are out of the table now; the others must be clear of the units.
        if let Some((&offset, &(_, unit))) = self.extents.first_key_value()
            && (offset as usize) < unit_offset(units as u32)
        {
            return Err(SegmentError::UnitsOverBlock(unit));
        }
        Ok(())
    }

    /// Looks at one unit; answers how many to step on.
    #[inline]
    fn look_at(
        &mut self,
        unit: u32,
        groups: &mut Groups,
        found: &mut Findings,
    ) -> Result<u32, SegmentError> {
        let at = unit_offset(unit);
        let generation = self.region.word(at).load(Ordering::Relaxed);
        let cached = &mut self.units[unit as usize];
        if generation == cached.generation {
            match &cached.record {
                Record::Source(source) => {
                    let (departed, parent) = (source.departed, source.parent);
                    self.look_at_source(unit, departed, parent, found)?;
                }
                // The rest of a group's record is never looked at as units of their own.
                Record::Group(_, units) => return Ok(*units),
                _ => {}
            }
            return Ok(1);
        }
        match std::mem::replace(&mut cached.record, Record::Vacant) {
            Record::Vacant => {}
            Record::Group(..) | Record::Continued => return Err(SegmentError::GroupChanged(unit)),
            record => {
                if let Record::Block(block) = &record {
                    self.extents.remove(&block.offset);
                }
                found.gone.push((unit, record));
            }
        }
        cached.generation = 0;
        let Some(copy) = protocol::read_unit(&self.region, unit) else { return Ok(1) };
        let (kind, _, _, _, units) = split_head(copy[word::HEAD]);
        if kind == kind::GROUP {
            self.adopt_group(unit, copy[word::GENERATION], units, groups)?;
            return Ok(units);
        }
        found.new.push((unit, copy));
        Ok(1)
    }

    fn look_at_source(
        &self,
        unit: u32,
        departed: bool,
        parent: u64,
        found: &mut Findings,
    ) -> Result<(), SegmentError> {
        let at = unit_offset(unit);
        let load = |word: usize| self.region.word(at + word * 8).load(Ordering::Relaxed);
        let (state, now) = (load(word::STATE), load(word::PARENT));
        let was = if departed { state::DEPARTED } else { state::LIVE };
        if state == was && now == parent {
            return Ok(());
        }
        // Another record's words, if the unit was reused since its generation was compared.
        let generation = self.units[unit as usize].generation;
        if !protocol::is_still(&self.region, unit, generation) {
            return Ok(());
        }
        if state > state::DEPARTED || state < was {
            return Err(SegmentError::State { unit, state });
        }
        if now != parent && parent != 0 {
            return Err(SegmentError::Moved { unit, from: parent, to: now });
        }
        found.moved.push((unit, state == state::DEPARTED, now));
        Ok(())
    }

    fn adopt_group(
        &mut self,
        unit: u32,
        generation: u64,
        units: u32,
        groups: &mut Groups,
    ) -> Result<(), SegmentError> {
        let room = self.units.len() as u32 - unit;
        if units == 0 || units > room || units > MAX_GROUP_UNITS as u32 {
            return Err(SegmentError::GroupUnits { unit, units });
        }
        let rest = unit + 1..unit + units;
        for other in rest.clone() {
            if !matches!(self.units[other as usize].record, Record::Vacant) {
                return Err(SegmentError::GroupOverlap { unit, other });
            }
        }
        let words = self.region.words(unit_offset(unit), units as usize * UNIT_WORDS);
        let copy: Vec<u64> = words.iter().map(|w| w.load(Ordering::Relaxed)).collect();
        if !protocol::is_still(&self.region, unit, generation) {
            return Err(SegmentError::GroupChanged(unit));
        }
        let plan = groups.intern(unit, &copy)?;
        self.units[unit as usize] = Cached { generation, record: Record::Group(plan, units) };
        for other in rest {
            self.units[other as usize].record = Record::Continued;
        }
        Ok(())
    }

    /// Validates the copy of a record that is no group's, by itself.
    pub(crate) fn parse(
        &self,
        unit: u32,
        copy: &[u64; UNIT_WORDS],
    ) -> Result<Parsed, SegmentError> {
        let (kind, a, b, c, d) = split_head(copy[word::HEAD]);
        match kind {
            kind::SOURCE => self.parse_source(unit, copy, (a, b, c)),
            kind::LABEL => parse_label(unit, copy, (a, b, c)),
            kind::BLOCK => self.parse_block(unit, copy, a, d),
            _ => Err(SegmentError::Kind { unit, kind }),
        }
    }

    fn parse_source(
        &self,
        unit: u32,
        copy: &[u64; UNIT_WORDS],
        (flags, name_len, labels): (u8, u8, u8),
    ) -> Result<Parsed, SegmentError> {
        if flags & !flag::ALL != 0 {
            return Err(SegmentError::Flags { unit, flags });
        }
        let name = bytes(&copy[word::NAME..]);
        let name = name.get(..name_len.into()).filter(|name| is_source_name(name));
        let name = name.ok_or(SegmentError::SourceName(unit))?;
        if usize::from(labels) > MAX_LABELS {
            return Err(SegmentError::LabelCount { unit, labels });
        }
        let (id, state) = (copy[word::ID], copy[word::STATE]);
        if id <= ROOT_ID {
            return Err(SegmentError::SourceId { unit, id });
        }
        if state > state::DEPARTED {
            return Err(SegmentError::State { unit, state });
        }
        Ok(Parsed::Record(Record::Source(Box::new(SourceUnit {
            id,
            // Names are ASCII.
            name: String::from_utf8_lossy(name).into_owned(),
            flags,
            labels,
            created_ns: copy[word::CREATED],
            parent: copy[word::PARENT],
            departed: state == state::DEPARTED,
        }))))
    }

    fn parse_block(
        &self,
        unit: u32,
        copy: &[u64; UNIT_WORDS],
        role: u8,
        group: u32,
    ) -> Result<Parsed, SegmentError> {
        if role > role::AGGREGATE {
            return Err(SegmentError::Role { unit, role });
        }
        let id = copy[word::BLOCK_SOURCE];
        // The root has no values of its own, but keeps what departed below it.
        if id == 0 || id == ROOT_ID && role == role::SLOT {
            return Err(SegmentError::SourceId { unit, id });
        }
        let (offset, len) = split_pair(copy[word::EXTENT]);
        let empty = role == role::AGGREGATE;
        let end = offset as usize + len as usize;
        let inside = offset as usize >= unit_offset(self.units.len() as u32)
            && end <= self.region.len()
            && (offset as usize).is_multiple_of(UNIT);
        if empty && (offset, len) != (0, 0) || !empty && !inside {
            return Err(SegmentError::Extent { unit, offset, len });
        }
        let known = self.units.get(group as usize);
        let plan = match known {
            Some(Cached { record: Record::Group(plan, _), .. }) => plan,
            Some(_) => return Err(SegmentError::NoGroup { unit, group }),
            None => return Ok(Parsed::NoGroup { group }),
        };
        let expected = match role {
            role::SLOT => plan.slot_len(),
            role::ACCUMULATOR => plan.accumulator_len(),
            _ => 0,
        };
        if len as usize != expected {
            return Err(SegmentError::Length { unit, len, expected });
        }
        // A number that is none names no descriptor that there could be.
        let fd_group = u32::try_from(copy[word::FD_GROUP]).unwrap_or(0);
        let fd_group = if role == role::SLOT { fd_group } else { 0 };
        let plan = plan.clone();
        let block = BlockUnit { role, source: id, offset, len, fd_group, plan };
        Ok(Parsed::Record(Record::Block(block)))
    }

    /// The unit of a block that shares memory with `block`.
    pub(crate) fn overlapping(&self, block: &BlockUnit) -> Option<u32> {
        let end = block.offset + block.len;
        let before = self.extents.range(..end).next_back();
        before
            .filter(|&(&offset, &(len, _))| block.len > 0 && offset + len > block.offset)
            .map(|(_, &(_, unit))| unit)
    }

    /// Takes a record into the segment's own tables.
    pub(crate) fn adopt(&mut self, unit: u32, generation: u64, record: Record) {
        if let Record::Block(block) = &record
            && block.len > 0
        {
            self.extents.insert(block.offset, (block.len, unit));
        }
        self.units[unit as usize] = Cached { generation, record };
    }

    /// Whether the header's counter at `offset` still has this value, ordered after all that was read
    /// before.
    pub(crate) fn still_counts(&self, offset: usize, value: u64) -> bool {
        fence(Ordering::Acquire);
        self.region.word(offset).load(Ordering::Relaxed) == value
    }
}

/// What became of a record's copy.
pub(crate) enum Parsed {
    Record(Record),
    /// A block whose group is beyond the units that were in use when the scan began.
    NoGroup {
        group: u32,
    },
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn parse_label(
    unit: u32,
    copy: &[u64; UNIT_WORDS],
    (index, key_len, value_len): (u8, u8, u8),
) -> Result<Parsed, SegmentError> {
    if usize::from(index) >= MAX_LABELS {
        return Err(SegmentError::LabelIndex { unit, index });
    }
    let source = copy[word::LABEL_SOURCE];
    if source <= ROOT_ID {
        return Err(SegmentError::SourceId { unit, id: source });
    }
    let text = |words: &[u64], len: u8, max: usize| {
        let bytes = bytes(words);
        let bytes = bytes.get(..len.into()).filter(|b| b.len() <= max);
        bytes.and_then(|b| String::from_utf8(b.to_vec()).ok())
    };
    let key = text(&copy[word::LABEL_KEY..word::LABEL_VALUE], key_len, MAX_LABEL_KEY)
        .filter(|key| is_value_name(key, MAX_LABEL_KEY));
    let value = text(&copy[word::LABEL_VALUE..], value_len, MAX_LABEL_VALUE)
        .filter(|value| !value.chars().any(char::is_control));
    let (Some(key), Some(value)) = (key, value) else {
        return Err(SegmentError::LabelText(unit));
    };
    Ok(Parsed::Record(Record::Label(Box::new(LabelUnit { source, index, key, value }))))
}
