//! Reading recordings. Nothing that they say is trusted.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::ZlibDecoder;
use zerocopy::IntoBytes;

use super::{About, Content, FRAME_HEADER, FRAME_MAGIC, Frame, MAGIC, MAX_ABOUT, MAX_GAP};
use super::{RecordingError, VERSION, at_nanoseconds, checksum, kind};
use crate::snapshot::parse;

/// More than deflate makes smaller: 1032 to 1, and what stands around it.
const MAX_RATIO: u64 = 1040;
/// Words that a content is believed to have before any of it has come.
const FIRST: usize = 8 << 10;

/// Reads the frames of a recording, one after the other. It needs the memory of one snapshot at a time, and takes none that has not
/// come: a length that is a lie is found to be one before.
#[derive(Debug)]
pub struct Reader<R> {
    from: BufReader<R>,
    about: About,
    /// Where the next frame begins.
    at: u64,
    has_ended: bool,
}

impl Reader<io::Take<File>> {
    /// Opens a file. Of one that goes on, what it has now is read: it may become longer faster than it is read.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RecordingError> {
        let open = || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            // What is no file has no length.
            let len = if metadata.is_file() { metadata.len() } else { u64::MAX };
            Ok(file.take(len))
        };
        Self::new(open().map_err(|error| RecordingError::Io { at: 0, error })?)
    }
}

impl<R: Read> Reader<R> {
    /// Takes the header of a recording.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong with it.
    pub fn new(from: R) -> Result<Self, RecordingError> {
        let mut from = BufReader::with_capacity(256 << 10, from);
        let mut header = [0; 16];
        let found = fill(&mut from, &mut header, 0)?;
        let (magic, rest) = header.split_at(8);
        if magic != MAGIC {
            return Err(RecordingError::Magic);
        }
        if found < header.len() {
            return Err(RecordingError::Header("is cut off"));
        }
        let word = |n: usize| u32::from_le_bytes([rest[n], rest[n + 1], rest[n + 2], rest[n + 3]]);
        let (version, len) = (word(0), word(4));
        if version != VERSION {
            return Err(RecordingError::Version(version));
        }
        if len > MAX_ABOUT {
            return Err(RecordingError::Header("is longer than any can be"));
        }
        let mut about = vec![0; len as usize];
        if fill(&mut from, &mut about, 16)? < about.len() {
            return Err(RecordingError::Header("is cut off"));
        }
        let about = serde_json::from_slice(&about);
        let about =
            about.map_err(|_| RecordingError::Header("is not the JSON that it is to be"))?;
        Ok(Self { from, about, at: 16 + u64::from(len), has_ended: false })
    }

    /// What it is of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Whether its end was found: that of a recording that goes on, or was cut off, is not.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The next frame; none at the end.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong, and where. After [`RecordingError::Cut`] there is nothing more, and all before
    /// it was whole.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, RecordingError> {
        let at = self.at;
        let bad = |why| Err(RecordingError::Frame { at, why });
        let mut header = [0; FRAME_HEADER];
        match fill(&mut self.from, &mut header, at)? {
            0 => return Ok(None),
            _ if self.has_ended => return bad("is behind the end"),
            FRAME_HEADER => {}
            _ => return Err(RecordingError::Cut(at)),
        }
        let number = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[n..n + 8]);
            u64::from_le_bytes(bytes)
        };
        let (what, time) = (number(8), number(16));
        let (kind, sum) = (what as u32, (what >> 32) as u32);
        let (stored, len) = (number(24), number(32));
        if header[..8] != FRAME_MAGIC || checksum(&header) != sum {
            return bad("has a header that is none");
        }
        if len > stored.saturating_mul(MAX_RATIO) {
            return bad("is said to be longer than it can be");
        }
        let limit = match kind {
            kind::SNAPSHOT => u64::MAX,
            kind::GAP => MAX_GAP,
            kind::END => 0,
            _ => return bad("is of a kind of which nothing is known here"),
        };
        if len > limit {
            return bad("is said to be longer than it can be");
        }
        let mut content = self.from.by_ref().take(stored);
        let decoded = decode(&mut ZlibDecoder::new(&mut content), len);
        let left = content.limit();
        let words = match decoded {
            Ok(Some(words)) if left == 0 => words,
            Err(error)
                if error.kind() != io::ErrorKind::InvalidInput
                    && error.kind() != io::ErrorKind::InvalidData
                    && error.kind() != io::ErrorKind::UnexpectedEof =>
            {
                return Err(RecordingError::Io { at, error });
            }
            _ => {
                // Is there less than it says, or something else?
                let found = io::copy(&mut content, &mut io::sink());
                found.map_err(|error| RecordingError::Io { at, error })?;
                if content.limit() > 0 {
                    return Err(RecordingError::Cut(at));
                }
                return bad("has a content that was not written so");
            }
        };
        self.at = at + FRAME_HEADER as u64 + stored;
        let content = match kind {
            kind::SNAPSHOT => {
                let snapshot = parse::check(words, len);
                let snapshot = snapshot.map_err(|error| RecordingError::Snapshot { at, error })?;
                Content::Snapshot(snapshot)
            }
            kind::GAP => match std::str::from_utf8(&words.as_bytes()[..len as usize]) {
                Ok(why) if !why.contains(char::is_control) => Content::Gap(why.to_owned()),
                _ => return bad("has a reason that is no line of text"),
            },
            _ => {
                self.has_ended = true;
                return self.next_frame();
            }
        };
        Ok(Some(Frame { time: at_nanoseconds(time), content }))
    }
}

/// Reads as much as there is room for, or as there is.
fn fill(from: &mut impl Read, room: &mut [u8], at: u64) -> Result<usize, RecordingError> {
    let mut len = 0;
    while len < room.len() {
        match from.read(&mut room[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RecordingError::Io { at: at + len as u64, error }),
        }
    }
    Ok(len)
}

/// So many bytes, as words, which are believed as they come; none if there are less or more.
fn decode(from: &mut impl Read, len: u64) -> io::Result<Option<Vec<u64>>> {
    let Ok(len) = usize::try_from(len) else { return Ok(None) };
    let all = len.div_ceil(8);
    let mut words = vec![0u64; all.min(FIRST)];
    let mut found = 0;
    loop {
        if found >= words.len() * 8 && words.len() < all {
            words.resize(all.min(words.len() * 2), 0);
        }
        let end = len.min(words.len() * 8);
        // And the end of the stream, with its checksum.
        let mut behind = [0];
        let room = if found < end { &mut words.as_mut_bytes()[found..end] } else { &mut behind };
        match from.read(room) {
            Ok(0) => return Ok((found == len).then_some(words)),
            Ok(_) if found >= len => return Ok(None),
            Ok(n) => found += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
