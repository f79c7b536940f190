//! The file that a state is kept in: two halves, of which one is whole whatever happens.
//!
//! | offset | content |
//! |---|---|
//! | 0 | header of half 0, 80 bytes |
//! | 4096 | header of half 1 |
//! | 8192 | payloads, wherever their headers say |
//!
//! A header, all numbers little-endian; a half that was never written has zeros:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `STATSFSH` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | size of the header: 80 |
//! | 16 | 16 | boot id |
//! | 32 | 8 | sequence: one more than the other half's was |
//! | 40 | 8 | offset of the payload, a multiple of 4096 |
//! | 48 | 8 | length of the payload |
//! | 56 | 8 | CRC-64/XZ of the payload |
//! | 64 | 8 | 0 |
//! | 72 | 8 | CRC-64/XZ of the 72 bytes before |
//!
//! A commit writes a payload where the newest half's is not, then the older half's header: that is the commit.
//! Up to there the newest half is as it was. The halves grow, since there is a place for any payload behind the
//! newest one, and none that is larger than necessary stays so.
//!
//! Nothing is ever synchronised with a disk. A state is of no use after the boot that it is from, so it need
//! not survive what a page cache does not survive; and of a process that is killed, everything that it wrote
//! is there, in the order in which it was written.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::checksum::crc64;
use super::{CommitError, HostState, MAX_PAYLOAD, Saved, State, StateError, StoreError};

/// `STATSFSH`, as a little-endian number.
const MAGIC: u64 = u64::from_le_bytes(*b"STATSFSH");
/// Version of the format.
pub const VERSION: u32 = 1;
const HEADER: usize = 80;
/// Alignment of what is in the file.
const PAGE: u64 = 4096;
/// Where payloads begin.
const PAYLOADS: u64 = 2 * PAGE;
/// A payload is written in pieces of this size.
const PIECE: usize = 64 << 10;
/// What a buffer may keep for the next commit.
const KEPT_BUFFER: usize = 1 << 20;
/// Sequences are below this: no server commits so often.
const MAX_SEQUENCE: u64 = 1 << 62;

/// A whole half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    /// Which one.
    slot: u64,
    boot: u128,
    sequence: u64,
    offset: u64,
    len: usize,
    payload_crc: u64,
}

/// What a header is.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// Never written.
    Empty,
    Whole(Half),
    /// Of another version.
    Foreign(u32),
    Damaged,
}

impl Half {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(8, &VERSION.to_le_bytes());
        put(12, &(HEADER as u32).to_le_bytes());
        put(16, &self.boot.to_le_bytes());
        put(32, &self.sequence.to_le_bytes());
        put(40, &self.offset.to_le_bytes());
        put(48, &(self.len as u64).to_le_bytes());
        put(56, &self.payload_crc.to_le_bytes());
        let crc = crc64(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(slot: u64, bytes: &[u8; HEADER]) -> Header {
        if *bytes == [0; HEADER] {
            return Header::Empty;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        let (version, size) = (word(8) as u32, (word(8) >> 32) as u32);
        if word(0) != MAGIC || version == 0 {
            return Header::Damaged;
        }
        if version != VERSION {
            return Header::Foreign(version);
        }
        let half = Self {
            slot,
            boot: u128::from(word(16)) | u128::from(word(24)) << 64,
            sequence: word(32),
            offset: word(40),
            len: usize::try_from(word(48)).unwrap_or(usize::MAX),
            payload_crc: word(56),
        };
        let is_whole = word(72) == crc64(&bytes[..HEADER - 8])
            && size == HEADER as u32
            && (1..MAX_SEQUENCE).contains(&half.sequence)
            && half.offset >= PAYLOADS
            && half.offset.is_multiple_of(PAGE)
            && half.len <= MAX_PAYLOAD
            && half.offset.checked_add(half.len as u64).is_some()
            && word(64) == 0;
        if is_whole { Header::Whole(half) } else { Header::Damaged }
    }

    /// Where the next payload may begin behind it.
    fn end(&self) -> u64 {
        (self.offset + self.len as u64).next_multiple_of(PAGE)
    }
}

/// What was in the file when it was opened.
#[derive(Debug)]
pub enum Found {
    /// Nothing yet.
    Nothing,
    /// A state of another boot, of which nothing is left.
    OtherBoot,
    /// A state.
    State(Box<State>),
    /// Something that is not to be trusted; it is replaced by the first commit.
    Refused(StateError),
}

/// What a commit is about to do, or has done; in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove what is in the file, since that is of no use.
    StartAnew,
    /// Write a piece of the payload, from this byte on.
    Payload(usize),
    /// Write the header.
    Header,
    /// It is committed; give back what the file does not need.
    Shrink,
    /// That was all.
    Done,
}

type OnStep = Box<dyn FnMut(Step) + Send>;

/// A directory in which one server keeps its state. As long as it is open no other one can use it.
pub struct Store {
    path: PathBuf,
    /// Locked, and never replaced by another file.
    file: File,
    boot: u128,
    newest: Option<Half>,
    buffer: Vec<u8>,
    on_step: Option<OnStep>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Store");
        debug.field("path", &self.path).field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a directory, which is created, for this user alone, if it is not there, and reads what is kept in
    /// it.
    ///
    /// # Errors
    /// [`StoreError`]: it can not be used, or another server uses it. What is in it is no reason:
    /// that is [`Found::Refused`].
    pub fn open(directory: &Path) -> Result<(Self, Found), StoreError> {
        let path = || directory.to_owned();
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Create { path: path(), source: error });
            }
            _ => {}
        }
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory);
        let opened = opened.map_err(|source| StoreError::Open { path: path(), source })?;
        check_owner(&opened, directory, 0o022)?;
        let path = directory.join("state");
        let read = |source| StoreError::Read { path: path.clone(), source };
        // Whatever it is, opening it does not wait.
        let flags = OFlag::O_RDWR
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let file = openat(&opened, "state", flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(file.map_err(|error| read(error.into()))?);
        if !file.metadata().map_err(read)?.is_file() {
            return Err(StoreError::NotFile { path });
        }
        check_owner(&file, &path, 0o077)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(StoreError::Read { path, source }),
        }
        let boot = boot_id().map_err(StoreError::Boot)?;
        let (newest, found) = read_newest(&file, boot).map_err(read)?;
        Ok((Self { path, file, boot, newest, buffer: Vec::new(), on_step: None }, found))
    }

    /// What tells this store from others that are there at the same time: its file's inode number.
    pub fn number(&self) -> u64 {
        self.file.metadata().map_or(0, |file| file.ino())
    }

    /// Has a function called before each step of a commit, and at its end: for tests that end the process
    /// there.
    pub fn on_step(&mut self, on_step: impl FnMut(Step) + Send + 'static) {
        self.on_step = Some(Box::new(on_step));
    }

    /// Replaces what is kept: a [`State`] of these two. Answers how many bytes that has.
    ///
    /// # Errors
    /// [`CommitError`]; what was kept before still is.
    pub fn commit(&mut self, tree: &Saved, host: &HostState) -> Result<usize, CommitError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let encoded = super::encode(tree, host, &mut buffer).map_err(CommitError::from);
        let result = encoded.and_then(|()| {
            self.write(&buffer).map(|()| buffer.len()).map_err(|source| {
                // Whatever there was room for is of no use. It is only in the way if that fails.
                let _ = self.file.set_len(self.newest.map_or(0, |newest| newest.end()));
                CommitError::Write { path: self.path.clone(), source }
            })
        });
        if buffer.capacity() <= KEPT_BUFFER {
            self.buffer = buffer;
        }
        result
    }

    fn step(&mut self, step: Step) {
        if let Some(on_step) = &mut self.on_step {
            on_step(step);
        }
    }

    fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        if self.newest.is_none() {
            self.step(Step::StartAnew);
            self.file.set_len(0)?;
            // From now on there is room for headers.
            self.file.write_all_at(&[0; PAYLOADS as usize], 0)?;
        }
        let half = next(self.newest, self.boot, payload);
        for (n, piece) in payload.chunks(PIECE).enumerate() {
            self.step(Step::Payload(n * PIECE));
            self.file.write_all_at(piece, half.offset + (n * PIECE) as u64)?;
        }
        self.step(Step::Header);
        self.file.write_all_at(&half.encode(), half.slot * PAGE)?;
        self.newest = Some(half);
        self.step(Step::Shrink);
        if self.file.metadata().is_ok_and(|file| file.len() > 2 * half.end()) {
            // It is only too large if that fails.
            let _ = self.file.set_len(half.end());
        }
        self.step(Step::Done);
        Ok(())
    }
}

/// The half that follows the newest one: the other one, with its payload where the newest's is not.
fn next(newest: Option<Half>, boot: u128, payload: &[u8]) -> Half {
    let (slot, sequence, offset) = match newest {
        None => (0, 1, PAYLOADS),
        Some(newest) => {
            let fits_before = PAYLOADS + payload.len() as u64 <= newest.offset;
            let offset = if fits_before { PAYLOADS } else { newest.end() };
            (1 - newest.slot, newest.sequence + 1, offset)
        }
    };
    Half { slot, boot, sequence, offset, len: payload.len(), payload_crc: crc64(payload) }
}

/// The newest whole half, and what it holds. Without a state that is of use there is no newest half.
fn read_newest(file: &File, boot: u128) -> io::Result<(Option<Half>, Found)> {
    let mut halves = Vec::new();
    let mut wrong = None;
    for slot in 0..2 {
        let mut header = [0; HEADER];
        read_at_most(file, &mut header, slot * PAGE)?;
        match Half::decode(slot, &header) {
            Header::Empty => {}
            Header::Whole(half) => halves.push(half),
            Header::Foreign(version) => wrong = Some(StateError::Version(version)),
            Header::Damaged => wrong = wrong.or(Some(StateError::Damaged)),
        }
    }
    halves.sort_by_key(|half| std::cmp::Reverse(half.sequence));
    let size = file.metadata()?.len();
    for half in &halves {
        let mut payload = Vec::new();
        // Not made longer than the file is.
        if half.offset + half.len as u64 <= size {
            payload.resize(half.len, 0);
            read_at_most(file, &mut payload, half.offset)?;
        }
        if payload.len() != half.len || crc64(&payload) != half.payload_crc {
            wrong = wrong.or(Some(StateError::Damaged));
            continue;
        }
        if half.boot != boot {
            return Ok((None, Found::OtherBoot));
        }
        return Ok(match State::decode(&payload) {
            Ok(state) => (Some(*half), Found::State(Box::new(state))),
            Err(error) => (None, Found::Refused(error)),
        });
    }
    Ok((None, wrong.map_or(Found::Nothing, Found::Refused)))
}

/// Reads until the end of the file; what is behind it is 0.
fn read_at_most(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(n) => {
                bytes = &mut bytes[n..];
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// That it is this user's, and has none of these permission bits.
fn check_owner(file: &File, path: &Path, mask: u32) -> Result<(), StoreError> {
    let at = || path.to_owned();
    let metadata = file.metadata().map_err(|source| StoreError::Read { path: at(), source })?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if uid != nix::unistd::geteuid().as_raw() {
        return Err(StoreError::Foreign { path: at(), uid });
    }
    if mode & mask != 0 {
        return Err(StoreError::Mode { path: at(), mode });
    }
    Ok(())
}

/// The id of this boot: random(4).
fn boot_id() -> io::Result<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads arbitrary bytes as the file, with checksums that fit; a state that is accepted is written again as
/// it was.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_file(mut image: Vec<u8>, file: &File) {
    for slot in 0..2 {
        let Some(header) = image.get(slot * PAGE as usize..).and_then(<[u8]>::first_chunk) else {
            break;
        };
        let mut header: [u8; HEADER] = *header;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| header[at + n])) as usize;
        let end = word(40).saturating_add(word(48));
        let crc = image.get(word(40)..end).map(crc64);
        header[56..64].copy_from_slice(&crc.unwrap_or(0).to_le_bytes());
        let crc = crc64(&header[..HEADER - 8]);
        header[HEADER - 8..].copy_from_slice(&crc.to_le_bytes());
        image[slot * PAGE as usize..][..HEADER].copy_from_slice(&header);
    }
    file.set_len(0).expect("a memfd");
    file.write_all_at(&image, 0).expect("a memfd");
    if let (Some(half), Found::State(state)) = read_newest(file, 1).expect("a memfd") {
        let payload = state.encode().expect("it was accepted");
        assert_eq!(payload, image[half.offset as usize..][..half.len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(image: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(image, 0).unwrap();
        file
    }

    fn image(file: &File) -> Vec<u8> {
        let mut image = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut image, 0).unwrap();
        image
    }

    fn state(n: u32) -> State {
        let folded = (1..=n).map(u128::from).collect();
        State { host: HostState { folded, ..HostState::default() }, ..State::default() }
    }

    fn store(file: File, newest: Option<Half>) -> Store {
        Store { path: PathBuf::new(), file, boot: 1, newest, buffer: Vec::new(), on_step: None }
    }

    fn commit(store: &mut Store, n: u32) -> Result<(), CommitError> {
        let State { tree, host } = state(n);
        store.commit(&tree, &host).map(drop)
    }

    fn found(image: &[u8]) -> Found {
        read_newest(&file(image), 1).unwrap().1
    }

    /// How many were folded in the state that is found.
    fn count(image: &[u8]) -> u32 {
        match found(image) {
            Found::State(state) => state.host.folded.len() as u32,
            Found::Nothing => 0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn torn_at_any_byte_it_is_the_old_or_the_new() {
        let mut store = store(file(&[]), None);
        for n in 1..=6 {
            let old = image(&store.file);
            let before = store.newest;
            commit(&mut store, n).unwrap();
            let new = image(&store.file);
            let half = store.newest.unwrap();
            let (start, end) = (half.offset as usize, half.offset as usize + half.len);
            assert!(before.is_none_or(|before| before.slot != half.slot));
            // Bytes of the payload, the rest of them still as before.
            let mut torn = old.clone();
            torn.resize(new.len().max(old.len()), 0);
            for at in start..=end {
                torn[start..at].copy_from_slice(&new[start..at]);
                assert_eq!(count(&torn), n - 1, "payload torn at {at}");
            }
            // Bytes of the header.
            let header = half.slot as usize * PAGE as usize;
            for len in 0..=HEADER {
                torn[header..header + len].copy_from_slice(&new[header..header + len]);
                // Without the first commit there is nothing but the torn one.
                let now = match found(&torn) {
                    Found::Refused(_) if n == 1 => 0,
                    _ => count(&torn),
                };
                assert!(now == n - 1 || (now == n && len == HEADER), "header torn at {len}: {now}");
            }
            assert_eq!(count(&torn), n);
            let (newest, _) = read_newest(&store.file, 1).unwrap();
            assert_eq!(newest, store.newest);
        }
    }

    #[test]
    fn halves_grow_and_shrink_and_never_overlap() {
        let mut store = store(file(&[]), None);
        let mut random = 1u64;
        let mut largest = 0;
        for n in 0..500 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = if n > 450 { 1 } else { (random >> 40) as u32 % (1 + n.min(400) * 10) };
            let before = store.newest;
            commit(&mut store, size).unwrap();
            let half = store.newest.unwrap();
            if let Some(before) = before {
                assert!(half.end() <= before.offset || half.offset >= before.end());
                assert_eq!(half.sequence, before.sequence + 1);
            }
            let (newest, found) = read_newest(&store.file, 1).unwrap();
            assert_eq!(newest, Some(half));
            assert!(matches!(found, Found::State(found) if *found == state(size)));
            largest = largest.max(half.len as u64);
            let len = store.file.metadata().unwrap().len();
            assert!(len <= PAYLOADS + 3 * (largest + PAGE), "{len} with at most {largest}");
        }
        let len = store.file.metadata().unwrap().len();
        assert!(len <= PAYLOADS + 3 * PAGE, "{len} for nearly nothing");
    }

    #[test]
    fn a_file_that_is_not_as_it_must_be_is_refused() {
        let mut store = store(file(&[]), None);
        commit(&mut store, 3).unwrap();
        commit(&mut store, 4).unwrap();
        let good = image(&store.file);
        // A newest half that is not whole makes the other one the newest.
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(count(&damaged), 3);
        damaged[PAYLOADS as usize] ^= 1;
        assert!(matches!(found(&damaged), Found::Refused(StateError::Damaged)));
        // Cut off anywhere it is refused, old, or new; never anything else, and never a panic.
        for len in 0..good.len() {
            match found(&good[..len]) {
                Found::State(state) => assert_eq!(state.host.folded.len(), 3),
                Found::Refused(StateError::Damaged) => assert!(len > 0),
                Found::Nothing => assert_eq!(len, 0),
                other => panic!("{other:?} at {len}"),
            }
        }
        assert!(matches!(found(&[0; 20_000]), Found::Nothing));
        assert!(matches!(found(&[1; 20_000]), Found::Refused(StateError::Damaged)));
        assert!(matches!(read_newest(&store.file, 2).unwrap(), (None, Found::OtherBoot)));
        let other = |change: &dyn Fn(&mut Half), version: Option<u32>| {
            let mut image = good.clone();
            let mut half = store.newest.unwrap();
            change(&mut half);
            let mut header = half.encode();
            if let Some(version) = version {
                header[8..12].copy_from_slice(&version.to_le_bytes());
            }
            image[..PAGE as usize].fill(0);
            image[PAGE as usize..][..HEADER].copy_from_slice(&header);
            found(&image)
        };
        assert!(matches!(other(&|_| {}, None), Found::State(_)));
        assert!(matches!(other(&|_| {}, Some(2)), Found::Refused(StateError::Version(2))));
        let changes: [&dyn Fn(&mut Half); 8] = [
            &|half| half.sequence = 0,
            &|half| half.sequence = u64::MAX,
            &|half| half.offset = 4096,
            &|half| half.offset += 1,
            &|half| half.offset = u64::MAX - 4095,
            &|half| half.len = usize::MAX,
            &|half| half.len = MAX_PAYLOAD,
            &|half| half.payload_crc ^= 1,
        ];
        for (n, change) in changes.iter().enumerate() {
            let found = other(change, None);
            assert!(matches!(found, Found::Refused(StateError::Damaged)), "{n}: {found:?}");
        }
        // Whole, and yet no state.
        let mut image = good;
        let payload = [0xff; 20];
        let half = next(store.newest, 1, &payload);
        image.resize(half.end() as usize, 0);
        image[half.offset as usize..][..20].copy_from_slice(&payload);
        image[half.slot as usize * PAGE as usize..][..HEADER].copy_from_slice(&half.encode());
        assert!(matches!(found(&image), Found::Refused(StateError::Encoding("groups"))));
    }
}
