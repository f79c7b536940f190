//! Recordings: snapshots of a directory one after the other, each with its time, in one file, as `statsfs record` writes
//! them. Version 1 of the format:
//!
//! A header, then frames, one for each look. All numbers are little-endian. A recording is appended to with whole frames, so one whose
//! writer was killed ends in the middle of a frame at worst, and is whole up to it.
//!
//! # Header
//!
//! | bytes | |
//! |---|---|
//! | 0–7 | magic `STATSREC` |
//! | 8–11 | version |
//! | 12–15 | length of the rest: a JSON object, at most 65,536 bytes, UTF-8 |
//! | 16– | the object: `host`, the name of the host; `kernel`, its release; `program`, who recorded it; `dir`, where; `interval_ns`, between two looks. What is missing is not known, what else there is has no meaning yet |
//!
//! # Frames
//!
//! | bytes | |
//! |---|---|
//! | 0–7 | magic `STATSFRM` |
//! | 8–11 | kind: 1 a snapshot, 2 a gap, 3 the end |
//! | 12–15 | CRC-32 of the other 36 bytes of this table |
//! | 16–23 | when: `CLOCK_REALTIME`, nanoseconds |
//! | 24–31 | length of the content in the file |
//! | 32–39 | length of the content |
//! | 40– | the content, in zlib's format (RFC 1950), whose checksum is of what was compressed |
//!
//! * **A snapshot** is what [`.stats/snapshot`](super::format) had, byte by byte.
//! * **A gap** says, in one line of at most 4096 bytes, why there was none. The next snapshot ends it.
//! * **The end** has a content of no bytes, and nothing is behind it. Without one the recording goes on, or its writer was killed.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use statsfs::{Embedded, Registry, fs::MountOptions};
//! use statsfs::snapshot::{Snapshot, recording::{About, Content, Reader, Writer}};
//!
//! # let registry = Registry::new()?;
//! # let dir = tempfile::tempdir()?;
//! # let mount = dir.path().join("mount");
//! # let mounted = Embedded::mount(&registry, &mount, MountOptions::new())?;
//! # let file = dir.path().join("recording");
//! let mut writer = Writer::new(std::fs::File::create_new(&file)?, &About::default())?;
//! writer.snapshot(&Snapshot::read(&mount)?)?;
//! writer.end(std::time::SystemTime::now())?;
//!
//! let mut reader = Reader::open(&file)?;
//! while let Some(frame) = reader.next_frame()? {
//!     if let Content::Snapshot(snapshot) = frame.content {
//!         println!("{} directories", snapshot.dirs().len());
//!     }
//! }
//! assert!(reader.has_ended());
//! # mounted.unmount()?;
//! # Ok(())
//! # }
//! ```

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Snapshot, SnapshotError};

pub use self::read::Reader;
pub use self::write::Writer;

/// What a recording begins with.
pub const MAGIC: [u8; 8] = *b"STATSREC";
/// What a frame begins with.
pub const FRAME_MAGIC: [u8; 8] = *b"STATSFRM";
/// Version of the format.
pub const VERSION: u32 = 1;
/// Most bytes of the object in the header.
pub const MAX_ABOUT: u32 = 64 << 10;
/// Most bytes of the reason for a gap.
pub const MAX_GAP: u64 = 4096;
/// Bytes of a frame before its content.
pub const FRAME_HEADER: usize = 40;

/// Kinds of frames.
pub mod kind {
    #![allow(missing_docs)]
    pub const SNAPSHOT: u32 = 1;
    pub const GAP: u32 = 2;
    pub const END: u32 = 3;
}

/// What a recording is of. What is not known is empty, or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The name of the host.
    pub host: String,
    /// The release of its kernel.
    pub kernel: String,
    /// Who recorded it, with its version.
    pub program: String,
    /// The directory that was looked at.
    pub dir: String,
    /// Nanoseconds between two looks.
    pub interval_ns: u64,
}

/// One look.
#[derive(Debug)]
pub struct Frame {
    /// When.
    pub time: SystemTime,
    /// What there was.
    pub content: Content,
}

/// What a look found.
#[derive(Debug)]
pub enum Content {
    /// What was counted.
    Snapshot(Snapshot),
    /// Nothing, for this reason, until the next snapshot.
    Gap(String),
}

/// What is wrong with a recording.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// It does not begin as recordings do.
    #[error("this is no recording: it does not begin with \"STATSREC\"")]
    Magic,
    /// It is of another version.
    #[error(
        "the recording is of version {0}, of which nothing is known here: read it with a newer program"
    )]
    Version(u32),
    /// The header says what can not be.
    #[error("the recording's header {0}")]
    Header(&'static str),
    /// It ends in the middle of a frame: what is before that is whole.
    #[error("the recording ends in the middle of a frame, which begins at byte {0}")]
    Cut(u64),
    /// A frame is not what was written.
    #[error("the recording is damaged: the frame at byte {at} {why}")]
    Frame {
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A frame has no snapshot that can be.
    #[error("the recording is damaged: in the frame at byte {at} is no snapshot")]
    Snapshot {
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        #[source]
        error: SnapshotError,
    },
    /// It can not be read.
    #[error("the recording can not be read from byte {at} on")]
    Io {
        /// From where on.
        at: u64,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn at_nanoseconds(since: u64) -> SystemTime {
    let since = Duration::from_nanos(since);
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The CRC-32 of a frame's header, but for itself.
fn checksum(header: &[u8; FRAME_HEADER]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(&header[..12]);
    crc.update(&header[16..]);
    crc.sum()
}
