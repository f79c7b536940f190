//! A state as bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{
    HostState, Left, MAX_WORDS, Process, Saved, SavedAccount, SavedDirectory, State, StateError,
};
use crate::segment::layout::UNIT_WORDS;
use crate::segment::schema::{self, MAX_GROUP_UNITS};
use crate::value::GroupDescriptor;

/// Appends a state to a payload.
pub(super) fn write(tree: &Saved, host: &HostState, out: &mut Vec<u8>) {
    count(out, tree.groups.len());
    for group in &tree.groups {
        let record = schema::encode(group);
        count(out, record.len());
        record.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }
    count(out, tree.identities.len());
    for (number, (group, value)) in &tree.identities {
        [*number, *group, *value].into_iter().for_each(|n| count(out, n));
    }
    count(out, host.processes.len());
    for process in &host.processes {
        let Process { publisher, pid, start_time, uid, gid, public, segments } = *process;
        id(out, publisher);
        for n in [pid.into(), start_time, uid.into(), gid.into(), public.into(), segments.into()] {
            number(out, n);
        }
    }
    number(out, tree.next_block);
    count(out, tree.grants.len());
    for ((publisher, high), block) in &tree.grants {
        id(out, *publisher);
        number(out, *high);
        number(out, *block);
    }
    count(out, tree.directories.len());
    for (name, directory) in &tree.directories {
        text(out, name);
        number(out, directory.number);
        count(out, directory.admitted.len());
        directory.admitted.iter().for_each(|identity| count(out, *identity));
    }
    count(out, tree.ledger.len());
    for ((directory, group), left) in &tree.ledger {
        text(out, directory);
        count(out, *group);
        words(out, &left.raw);
        words(out, &left.cleared);
    }
    accounts(out, &tree.baselines);
    count(out, tree.parents.len());
    for ((publisher, source), parent) in &tree.parents {
        id(out, *publisher);
        number(out, *source);
        number(out, *parent);
    }
    count(out, host.folded.len());
    host.folded.iter().for_each(|publisher| id(out, *publisher));
}

fn accounts(out: &mut Vec<u8>, accounts: &BTreeMap<SavedAccount, Box<[u64]>>) {
    count(out, accounts.len());
    for (account, of) in accounts {
        id(out, account.publisher);
        number(out, account.source);
        number(out, account.departed.into());
        count(out, account.group);
        words(out, of);
    }
}

fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn count(out: &mut Vec<u8>, n: usize) {
    number(out, n as u64);
}

fn id(out: &mut Vec<u8>, id: u128) {
    out.extend_from_slice(&id.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    let mut rest = words;
    while !rest.is_empty() {
        let zeros = rest.iter().take_while(|word| **word == 0).count();
        count(out, zeros);
        rest = &rest[zeros..];
        if let Some((word, more)) = rest.split_first() {
            number(out, *word);
            rest = more;
        }
    }
}

/// What is left of a payload, and in which table it is.
struct Reader<'a> {
    rest: &'a [u8],
    table: &'static str,
    /// How many more words there may be.
    words: usize,
}

/// Reads a state that takes up the whole of a payload. What the parts of it say of each other is not checked.
pub(super) fn read(payload: &[u8]) -> Result<State, StateError> {
    let mut reader = Reader { rest: payload, table: "groups", words: MAX_WORDS };
    let mut groups = Vec::new();
    for group in 0..reader.count()? {
        groups.push(Arc::new(reader.group(group)?));
    }
    let groups_ref = &groups;
    let identities = reader
        .map("identities", |reader| Ok((reader.count()?, (reader.count()?, reader.count()?))))?;
    reader.table = "processes";
    let mut processes = Vec::new();
    for _ in 0..reader.count()? {
        processes.push(reader.process()?);
    }
    reader.table = "numbers";
    let next_block = reader.number()?;
    let grants =
        reader.map("grants", |reader| Ok(((reader.id()?, reader.number()?), reader.number()?)))?;
    let directories = reader.map("directories", |reader| {
        let (name, number) = (reader.text()?, reader.number()?);
        let mut admitted = Vec::new();
        for _ in 0..reader.count()? {
            admitted.push(reader.count()?);
        }
        Ok((name, SavedDirectory { number, admitted }))
    })?;
    let ledger = reader.map("ledger", |reader| {
        let (directory, group) = (reader.text()?, reader.count()?);
        let (raw, cleared) = (reader.words(groups_ref, group)?, reader.words(groups_ref, group)?);
        Ok(((directory, group), Left { raw, cleared }))
    })?;
    let baselines = reader.map("baselines", |reader| reader.account(groups_ref))?;
    let parents =
        reader.map("parents", |reader| Ok(((reader.id()?, reader.number()?), reader.number()?)))?;
    reader.table = "folded";
    let mut folded = VecDeque::new();
    for _ in 0..reader.count()? {
        folded.push_back(reader.id()?);
    }
    if !reader.rest.is_empty() {
        return Err(StateError::Trailing(reader.rest.len()));
    }
    Ok(State {
        tree: Saved {
            groups,
            identities,
            next_block,
            grants,
            directories,
            ledger,
            baselines,
            parents,
        },
        host: HostState { processes, folded },
    })
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(StateError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, StateError> {
        let wrong = StateError::Encoding(self.table);
        let mut n = 0u64;
        for (at, byte) in self.rest.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if at >= 9 && (at > 9 || bits > 1) {
                return Err(wrong);
            }
            n |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return if *byte == 0 && at > 0 { Err(wrong) } else { Ok(n) };
            }
        }
        Err(StateError::Truncated)
    }

    fn count(&mut self) -> Result<usize, StateError> {
        self.narrow()
    }

    fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, StateError> {
        self.number()?.try_into().map_err(|_| StateError::Encoding(self.table))
    }

    fn flag(&mut self) -> Result<bool, StateError> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Encoding(self.table)),
        }
    }

    fn id(&mut self) -> Result<u128, StateError> {
        let bytes = self.bytes(16)?.first_chunk().ok_or(StateError::Truncated)?;
        Ok(u128::from_le_bytes(*bytes))
    }

    fn text(&mut self) -> Result<String, StateError> {
        let len = self.count()?;
        let bytes = self.bytes(len)?;
        // Names of which a directory can not have one are found later.
        let text = std::str::from_utf8(bytes).map_err(|_| StateError::Encoding(self.table))?;
        Ok(text.to_owned())
    }

    /// A table in ascending order of its keys.
    fn map<K: Ord, V>(
        &mut self,
        table: &'static str,
        mut entry: impl FnMut(&mut Self) -> Result<(K, V), StateError>,
    ) -> Result<BTreeMap<K, V>, StateError> {
        self.table = table;
        let mut map = BTreeMap::new();
        for _ in 0..self.count()? {
            let (key, value) = entry(self)?;
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(StateError::Order(table));
            }
            map.insert(key, value);
        }
        Ok(map)
    }

    fn group(&mut self, group: usize) -> Result<GroupDescriptor, StateError> {
        let len = self.count()?;
        if len >= MAX_GROUP_UNITS * UNIT_WORDS {
            return Err(StateError::Record(group));
        }
        // The generation, which is no part of it.
        let mut record = vec![0];
        let bytes = self.bytes(len * 8)?;
        record.extend(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
        let descriptor =
            schema::decode(&record).map_err(|error| StateError::Group { group, error })?;
        if schema::encode(&descriptor) != record[1..] {
            return Err(StateError::Record(group));
        }
        Ok(descriptor)
    }

    fn process(&mut self) -> Result<Process, StateError> {
        Ok(Process {
            publisher: self.id()?,
            pid: self.narrow()?,
            start_time: self.number()?,
            uid: self.narrow()?,
            gid: self.narrow()?,
            public: self.flag()?,
            segments: self.narrow()?,
        })
    }

    fn account(
        &mut self,
        groups: &[Arc<GroupDescriptor>],
    ) -> Result<(SavedAccount, Box<[u64]>), StateError> {
        let (publisher, source) = (self.id()?, self.number()?);
        let (departed, group) = (self.flag()?, self.count()?);
        Ok((SavedAccount { publisher, source, departed, group }, self.words(groups, group)?))
    }

    /// The words of a group: few bytes may be many words, so their number is limited.
    fn words(
        &mut self,
        groups: &[Arc<GroupDescriptor>],
        group: usize,
    ) -> Result<Box<[u64]>, StateError> {
        let table = self.table;
        let len = groups.get(group).ok_or(StateError::NoGroup { table, group })?.words();
        self.words = self.words.checked_sub(len).ok_or(StateError::TooLarge("words", MAX_WORDS))?;
        let mut words = vec![0; len].into_boxed_slice();
        let mut at = 0;
        while at < len {
            let zeros = self.count()?;
            at =
                at.checked_add(zeros).filter(|at| *at <= len).ok_or(StateError::Encoding(table))?;
            if let Some(word) = words.get_mut(at) {
                *word = self.number()?;
                if *word == 0 {
                    return Err(StateError::Encoding(table));
                }
                at += 1;
            }
        }
        Ok(words)
    }
}
