//! What the server of a host keeps, so that another one carries on where it was killed.
//!
//! A [`Store`] is a directory with one file, of which a [`Store::commit`] replaces the content as a whole:
//! killed at any instant, what was there before is there, or what was to come. A [`State`] is what it
//! holds, as plain data. It is of one boot of the host: all that it speaks of ends with that.
//!
//! # Payload, version 1
//!
//! Eleven tables, each as the number of its entries and the entries. A *number* is an unsigned LEB128 in its
//! shortest form, an *id* 16 bytes little-endian, a *text* the number of its bytes and these. The *words* of
//! a group are, until there are as many as the group has: the number of words that are 0, then, unless that
//! was the rest, a number other than 0.
//!
//! | table | entry | order |
//! |---|---|---|
//! | groups | number of words, the group's record as in [`segment::layout`](crate::segment::layout) from its head on, as 64-bit words, little-endian | of the tree's numbers for them |
//! | identities | number of the identity, group, number of the value in the group | ascending |
//! | processes | publisher's id, process id, start time, user, group, flags (bit 0 public), segments | of their coming |
//! | numbers, one entry, not counted | next block | |
//! | grants | publisher's id, source ids' upper bits, block | ascending |
//! | directories | name (text), number, number of identities admitted, these in the order of admission | ascending |
//! | ledger | directory's name (text; empty: the root), group, raw words, cleared words | ascending |
//! | baselines | publisher's id, source's id, account (0 its own, 1 what departed from it), group, words | ascending |
//! | parents | publisher's id, source's id, its parent's | ascending |
//! | folded | publisher's id | of their folding |
//!
//! There is one way to write a state, so whatever is accepted is what a server wrote, or could have.
//!
//! # What is checked
//! Everything, when read and before it is written: names by the library's rules, indexes, the numbers of words
//! by their groups, that no number, name or id is there twice. What is read takes no more memory than a fixed
//! multiple of the file, and [`MAX_WORDS`] words.

mod checksum;
mod error;
mod file;
mod payload;

use std::collections::{HashSet, VecDeque};

use crate::registry::names::identity;
use crate::segment::layout::{MAX_SEGMENTS, ROOT_ID, is_source_name};
use crate::tree::TreeOptions;
use crate::tree::inode::MAX_IDENTITIES;
use crate::tree::kept::LEAST_WORD;
use crate::tree::numbers::{MAX_BLOCKS, PLACE_BITS};
pub use crate::tree::{Left, Saved, SavedAccount, SavedDirectory};

pub use error::{CommitError, StateError, StoreError};
#[cfg(fuzzing)]
pub use file::fuzz_file;
pub use file::{Found, Step, Store, VERSION};

/// Most bytes of a payload: what the tree lets its users have of it, and what else there can be.
pub const MAX_PAYLOAD: usize = TreeOptions::KEPT_BYTES;
/// Most words in a state, those of the ledger and the baselines together: 1 GiB.
pub const MAX_WORDS: usize = 1 << 27;
// Whatever the tree lets its users have can be kept.
const _: () = assert!(TreeOptions::KEPT_BYTES / LEAST_WORD <= MAX_WORDS);
/// How many publishers that were folded are remembered. Only one whose segments somebody still has can come
/// back: the server that was killed while it folded it, or a publisher that is not honest.
pub const MAX_FOLDED: usize = 4096;

/// All that outlasts a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What of the tree does.
    pub tree: Saved,
    /// What else does.
    pub host: HostState,
}

/// What outlasts a server and is not the tree's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The publishers that are connected or detached, in the order of their coming.
    pub processes: Vec<Process>,
    /// The publishers that were folded, the last [`MAX_FOLDED`] of them, in that order.
    pub folded: VecDeque<u128>,
}

/// A publisher and its process, as the kernel described it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The publisher's id, which is in its segments.
    pub publisher: u128,
    /// Process id.
    pub pid: u32,
    /// When it began, in clock ticks since boot.
    pub start_time: u64,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether its directories are for all to read.
    pub public: bool,
    /// How many segments it has.
    pub segments: u32,
}

impl HostState {
    /// Forgets what it knows of a publisher, and remembers that it was folded.
    pub fn fold(&mut self, publisher: u128) {
        self.forget(publisher);
        self.folded.retain(|folded| *folded != publisher);
        while self.folded.len() >= MAX_FOLDED {
            self.folded.pop_front();
        }
        self.folded.push_back(publisher);
    }

    /// Forgets what it knows of a publisher.
    pub fn forget(&mut self, publisher: u128) {
        self.processes.retain(|process| process.publisher != publisher);
    }
}

impl State {
    /// The payload that says this.
    ///
    /// # Errors
    /// [`StateError`], if no reader would accept it.
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        let mut payload = Vec::new();
        encode(&self.tree, &self.host, &mut payload)?;
        Ok(payload)
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`StateError`] says what is wrong with it.
    pub fn decode(payload: &[u8]) -> Result<Self, StateError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(StateError::TooLarge("bytes", MAX_PAYLOAD));
        }
        let state = payload::read(payload)?;
        Parts { tree: &state.tree, host: &state.host }.check()?;
        Ok(state)
    }
}

/// Writes the payload that says this.
fn encode(tree: &Saved, host: &HostState, payload: &mut Vec<u8>) -> Result<(), StateError> {
    Parts { tree, host }.check()?;
    payload.clear();
    payload::write(tree, host, payload);
    if payload.len() > MAX_PAYLOAD {
        return Err(StateError::TooLarge("bytes", MAX_PAYLOAD));
    }
    Ok(())
}

/// A state to be checked.
struct Parts<'a> {
    tree: &'a Saved,
    host: &'a HostState,
}

impl Parts<'_> {
    /// Checks all that does not follow from what the fields are.
    fn check(&self) -> Result<(), StateError> {
        self.check_identities()?;
        self.check_processes()?;
        self.check_numbers()?;
        let mut words = 0;
        for ((directory, group), left) in &self.tree.ledger {
            if !directory.is_empty() {
                check_name(directory)?;
            }
            for of in [&left.raw, &left.cleared] {
                self.check_words("ledger", *group, of, &mut words)?;
            }
        }
        for (account, of) in &self.tree.baselines {
            if account.publisher == 0 || account.source == 0 {
                return Err(StateError::Zero("baselines"));
            }
            self.check_words("baselines", account.group, of, &mut words)?;
        }
        for ((publisher, source), parent) in &self.tree.parents {
            if *publisher == 0 {
                return Err(StateError::Zero("parents"));
            }
            // The root has no parent, and is not said to be one.
            if *source <= ROOT_ID || *parent <= ROOT_ID || source == parent {
                return Err(StateError::Parent { source_id: *source, parent: *parent });
            }
        }
        Ok(())
    }

    fn check_words(
        &self,
        table: &'static str,
        group: usize,
        words: &[u64],
        total: &mut usize,
    ) -> Result<(), StateError> {
        let of_group =
            self.tree.groups.get(group).ok_or(StateError::NoGroup { table, group })?.words();
        if words.len() != of_group {
            return Err(StateError::Words { table, group, words: words.len(), of_group });
        }
        *total += of_group;
        if *total > MAX_WORDS {
            return Err(StateError::TooLarge("words", MAX_WORDS));
        }
        Ok(())
    }

    fn check_identities(&self) -> Result<(), StateError> {
        let mut seen = HashSet::with_capacity(self.tree.identities.len());
        for (number, (group, value)) in &self.tree.identities {
            if *number >= MAX_IDENTITIES {
                return Err(StateError::TooLarge("identities", MAX_IDENTITIES));
            }
            let table = "identities";
            let descriptor =
                self.tree.groups.get(*group).ok_or(StateError::NoGroup { table, group: *group })?;
            let Some(value) = descriptor.values().get(*value) else {
                return Err(StateError::NoValue { group: *group, value: *value });
            };
            if !seen.insert((descriptor.name(), identity(value))) {
                return Err(StateError::Twice { table, what: value.name.to_string() });
            }
        }
        Ok(())
    }

    fn check_processes(&self) -> Result<(), StateError> {
        if self.host.folded.len() > MAX_FOLDED {
            return Err(StateError::TooLarge("folded publishers", MAX_FOLDED));
        }
        let mut seen = HashSet::with_capacity(self.host.folded.len() + self.host.processes.len());
        for publisher in &self.host.folded {
            new_publisher("folded", *publisher, &mut seen)?;
        }
        for process in &self.host.processes {
            // One that was folded is none any more.
            new_publisher("processes", process.publisher, &mut seen)?;
            let segments = 1..=MAX_SEGMENTS as u32;
            if i32::try_from(process.pid).is_err() || !segments.contains(&process.segments) {
                return Err(StateError::Process(process.pid));
            }
            if process.pid == 0 {
                return Err(StateError::Zero("processes"));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), StateError> {
        let blocks = 1..self.tree.next_block;
        if self.tree.next_block == 0 || self.tree.next_block > MAX_BLOCKS {
            return Err(StateError::Number(self.tree.next_block));
        }
        let mut granted = HashSet::with_capacity(self.tree.grants.len());
        for ((publisher, _), block) in &self.tree.grants {
            if *publisher == 0 {
                return Err(StateError::Zero("grants"));
            }
            if !blocks.contains(block) {
                return Err(StateError::Number(*block));
            }
            if !granted.insert(*block) {
                return Err(StateError::Twice { table: "grants", what: format!("block {block}") });
            }
        }
        // Those at the top level are in blocks of the tree's own.
        let is_own = |number: u64| {
            let block = number >> PLACE_BITS;
            blocks.contains(&block) && !granted.contains(&block)
        };
        let table = "directories";
        let mut seen = HashSet::with_capacity(self.tree.directories.len());
        for (name, directory) in &self.tree.directories {
            check_name(name)?;
            if !is_own(directory.number) {
                return Err(StateError::Number(directory.number));
            }
            if !seen.insert(directory.number) {
                return Err(StateError::Twice { table, what: name.clone() });
            }
            let mut admitted = HashSet::with_capacity(directory.admitted.len());
            for identity in &directory.admitted {
                if !self.tree.identities.contains_key(identity) {
                    return Err(StateError::NoIdentity(*identity));
                }
                if !admitted.insert(identity) {
                    return Err(StateError::Twice { table, what: format!("identity {identity}") });
                }
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), StateError> {
    if is_source_name(name.as_bytes()) { Ok(()) } else { Err(StateError::Name(name.to_owned())) }
}

fn new_publisher(
    table: &'static str,
    publisher: u128,
    seen: &mut HashSet<u128>,
) -> Result<(), StateError> {
    if publisher == 0 {
        return Err(StateError::Zero(table));
    }
    if !seen.insert(publisher) {
        return Err(StateError::Twice { table, what: format!("publisher {publisher:032x}") });
    }
    Ok(())
}
