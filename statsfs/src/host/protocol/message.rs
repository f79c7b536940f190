//! Messages as bytes: encoding, and decoding that trusts nothing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thiserror::Error;

use crate::segment::layout::MAX_SEGMENTS;

/// `SFSP`, as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SFSP");
/// Version of the protocol.
pub const VERSION: u16 = 1;
/// Size of the header.
const HEADER: usize = 16;
/// Most bytes in a message, header included.
pub const MAX_MESSAGE: usize = 8192;
/// Most descriptors in a message.
pub const MAX_FDS: usize = 16;
/// Most bytes in the reason of a refusal.
pub const MAX_REASON: usize = 1024;
/// Most bytes in the path of the mount.
pub const MAX_PATH: usize = 4095;
/// Most bytes of a status text in one message.
pub const MAX_PART: usize = MAX_MESSAGE - HEADER - 8;
/// Most bytes of a status text.
pub const MAX_STATUS: usize = 16 << 20;

/// Types of messages.
mod kind {
    pub const HELLO: u16 = 1;
    pub const SEGMENTS: u16 = 2;
    pub const CHANGED: u16 = 3;
    pub const GOODBYE: u16 = 4;
    pub const STATUS: u16 = 5;
    pub const STATISTICS: u16 = 6;
    pub const WELCOME: u16 = 0x101;
    pub const REFUSED: u16 = 0x102;
    pub const BYE: u16 = 0x103;
    pub const STATUS_PART: u16 = 0x104;
}

/// Bit 0 of the flags of *hello*.
const PUBLIC: u32 = 1;
/// Bit 0 of the flags of *refused*.
const AGAIN: u32 = 1;

/// What is wrong with a message.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// It is shorter than a header.
    #[error("a message of {0} bytes has no header")]
    Short(usize),
    /// It is longer than any message may be: the rest of it is lost.
    #[error("a message is longer than 8192 bytes")]
    Long,
    /// It does not begin with the magic number.
    #[error("a message begins with {0:#010x} instead of SFSP")]
    Magic(u32),
    /// It is of another version of the protocol.
    #[error("the other side speaks version {0} of the protocol; this one knows version 1")]
    Version(u16),
    /// It is not as long as its header says.
    #[error("a message of {actual} bytes says that it has {stated}")]
    Length {
        /// What the header says.
        stated: u32,
        /// What was received.
        actual: usize,
    },
    /// A field of no meaning is not 0.
    #[error("a field of a message's header that has no meaning is {0:#x} instead of 0")]
    Reserved(u32),
    /// There is no such message, or not from this side.
    #[error("a message is of the unknown type {0:#x}")]
    Type(u16),
    /// The body is too short or too long for a message of this type.
    #[error("the message `{message}` can not have {actual} bytes")]
    Size {
        /// The message.
        message: &'static str,
        /// Its length, header included.
        actual: usize,
    },
    /// It came with too few or too many descriptors.
    #[error(
        "the message `{message}` came with {actual} file descriptors instead of {min} to {max}"
    )]
    Fds {
        /// The message.
        message: &'static str,
        /// How many came.
        actual: usize,
        /// How many there must be.
        min: usize,
        /// How many there may be.
        max: usize,
    },
    /// Not all descriptors that came with it could be received: the receiver has too many open.
    #[error("file descriptors were lost: there were too many, or the receiver has too many open")]
    LostFds,
    /// A flag has no meaning.
    #[error("the message `{message}` has unknown flags {flags:#x}")]
    Flags {
        /// The message.
        message: &'static str,
        /// All its flags.
        flags: u32,
    },
    /// The publisher's id is zero.
    #[error("the publisher's id is zero")]
    ZeroId,
    /// The number of segments is zero, too large, or less than there are descriptors.
    #[error(
        "a publisher says that it has {segments} segments, and came with {fds}; it has 1 to 256"
    )]
    Segments {
        /// What it says.
        segments: u32,
        /// Descriptors that came with that.
        fds: usize,
    },
    /// The index of a further segment is out of range.
    #[error(
        "{fds} segments from index {first} on: there are at most 256, the first one comes with `hello`"
    )]
    First {
        /// What it says.
        first: u32,
        /// Descriptors that came with that.
        fds: usize,
    },
    /// The numbers of descriptors of what the kernel counts are out of range.
    #[error(
        "{fds} statistics descriptors from number {first} on: they have 32 bits, and are not 0"
    )]
    Numbers {
        /// The number of the first.
        first: u32,
        /// Descriptors that came with that.
        fds: usize,
    },
    /// The process id is zero.
    #[error("the server sees this process as process 0")]
    Pid,
    /// The path of the mount is none: empty, not absolute, too long, or with a zero in it.
    #[error("{0} bytes that are no absolute path say where the mount is")]
    MountPath(usize),
    /// The reason is not UTF-8.
    #[error("the reason of a refusal is not UTF-8")]
    Reason,
    /// The status text is not UTF-8.
    #[error("a status text is not UTF-8")]
    StatusText,
    /// A part of the status text lies outside it.
    #[error("{len} bytes at {offset} are no part of a status text of {total} bytes")]
    Part {
        /// Where it begins.
        offset: u32,
        /// Its length.
        len: usize,
        /// Size of the whole.
        total: u32,
    },
}

/// How a publisher introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The publisher's random id, which is in all its segments. Not 0.
    pub publisher: u128,
    /// Whether its directories are for all to read.
    pub public: bool,
    /// How many segments it has, 1 to [`MAX_SEGMENTS`]; the first ones, up to [`MAX_FDS`], come with this.
    pub segments: u32,
}

/// What a publisher says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientMessage {
    /// Who it is, with its first segments.
    Hello(Hello),
    /// Further segments come with this.
    Segments {
        /// Index of the first of them, 1 to 255.
        first: u32,
    },
    /// Something has another structure than before.
    Changed,
    /// Nothing is counted any more.
    Goodbye,
    /// Asks for the status text.
    Status,
    /// Descriptors of what the kernel counts come with this.
    Statistics {
        /// The number of the first of them, not 0; the others have those that follow.
        first: u32,
    },
}

/// What the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerMessage<'a> {
    /// The publisher is in the tree.
    Welcome {
        /// The publisher's process id as the server sees it, with which the names of its directories begin.
        pid: u32,
        /// Where the server's mount is, in the server's view of the file system: absolute, at most
        /// [`MAX_PATH`] bytes.
        mount: &'a Path,
    },
    /// The publisher, or what it asks for, is not taken.
    Refused {
        /// Why: what is wrong, or which limit there is; at most [`MAX_REASON`] bytes.
        reason: &'a str,
        /// Whether it is worth trying again later.
        again: bool,
    },
    /// What a publisher that said goodbye has counted is kept.
    Bye,
    /// A part of the status text.
    StatusPart {
        /// Where it begins.
        offset: u32,
        /// Size of the whole text.
        total: u32,
        /// The part: 1 to [`MAX_PART`] bytes. A character may lie across two.
        part: &'a [u8],
    },
}

impl<'a> ServerMessage<'a> {
    /// A refusal, with as much of the reason as there is room for.
    pub fn refused(reason: &'a str, again: bool) -> Self {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Self::Refused { reason: &reason[..end], again }
    }

    /// A status text, which is not empty, as messages in their order. What is beyond [`MAX_STATUS`] is left
    /// out.
    pub fn status(text: &'a str) -> impl Iterator<Item = Self> {
        let text = &text.as_bytes()[..text.len().min(MAX_STATUS)];
        text.chunks(MAX_PART).enumerate().map(|(n, part)| Self::StatusPart {
            offset: (n * MAX_PART) as u32,
            total: text.len() as u32,
            part,
        })
    }
}

/// A status text that is put together from its parts.
#[derive(Debug, Default)]
pub struct StatusText(Vec<u8>);

impl StatusText {
    /// Adds the next part, and answers whether it was the last one.
    ///
    /// # Errors
    /// [`ProtocolError::Part`] if it is not the next, or the text is larger than [`MAX_STATUS`].
    pub fn add(&mut self, offset: u32, total: u32, part: &[u8]) -> Result<bool, ProtocolError> {
        let end = self.0.len() + part.len();
        if offset as usize != self.0.len() || end > total as usize || total as usize > MAX_STATUS {
            return Err(ProtocolError::Part { offset, len: part.len(), total });
        }
        self.0.extend_from_slice(part);
        Ok(end == total as usize)
    }

    /// The text.
    ///
    /// # Errors
    /// [`ProtocolError::StatusText`] if it is not UTF-8.
    pub fn into_text(self) -> Result<String, ProtocolError> {
        String::from_utf8(self.0).map_err(|_| ProtocolError::StatusText)
    }
}

/// A message of one of the two sides.
pub trait Message<'a>: Sized + sealed::Sealed {
    /// Reads a datagram that came with this many descriptors.
    ///
    /// # Errors
    /// [`ProtocolError`] says what is wrong with it.
    fn decode(bytes: &'a [u8], fds: usize) -> Result<Self, ProtocolError>;

    /// Writes the datagram that says this, to be sent with this many descriptors, and answers its length.
    ///
    /// # Errors
    /// [`ProtocolError`], if the other side would find that wrong with it.
    fn encode(&self, fds: usize, out: &mut [u8; MAX_MESSAGE]) -> Result<usize, ProtocolError>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ClientMessage {}
    impl Sealed for super::ServerMessage<'_> {}
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Type and body of a message of any version, which is answered as well.
fn split(bytes: &[u8]) -> Result<(u16, u16, &[u8]), ProtocolError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(ProtocolError::Short(bytes.len()));
    };
    let [m0, m1, m2, m3, v0, v1, k0, k1, l0, l1, l2, l3, reserved @ ..] = *header;
    let magic = u32::from_le_bytes([m0, m1, m2, m3]);
    if magic != MAGIC {
        return Err(ProtocolError::Magic(magic));
    }
    let stated = u32::from_le_bytes([l0, l1, l2, l3]);
    if usize::try_from(stated) != Ok(bytes.len()) {
        return Err(ProtocolError::Length { stated, actual: bytes.len() });
    }
    if bytes.len() > MAX_MESSAGE {
        return Err(ProtocolError::Long);
    }
    let reserved = u32::from_le_bytes(reserved);
    if reserved != 0 {
        return Err(ProtocolError::Reserved(reserved));
    }
    Ok((u16::from_le_bytes([v0, v1]), u16::from_le_bytes([k0, k1]), body))
}

fn of_this_version(version: u16) -> Result<(), ProtocolError> {
    if version == VERSION { Ok(()) } else { Err(ProtocolError::Version(version)) }
}

/// A body of exactly this length.
fn exactly<'a, const N: usize>(
    message: &'static str,
    body: &'a [u8],
) -> Result<&'a [u8; N], ProtocolError> {
    body.try_into().map_err(|_| ProtocolError::Size { message, actual: HEADER + body.len() })
}

fn number_of_fds(
    message: &'static str,
    actual: usize,
    min: usize,
    max: usize,
) -> Result<(), ProtocolError> {
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    Err(ProtocolError::Fds { message, actual, min, max })
}

/// Writes a datagram.
struct Writer<'a> {
    out: &'a mut [u8; MAX_MESSAGE],
    len: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8; MAX_MESSAGE], kind: u16) -> Self {
        let mut writer = Self { out, len: 0 };
        writer.put(&MAGIC.to_le_bytes());
        writer.put(&VERSION.to_le_bytes());
        writer.put(&kind.to_le_bytes());
        writer.put(&[0; 8]);
        writer
    }

    /// What is put was checked to fit.
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn end(self) -> usize {
        self.out[8..12].copy_from_slice(&(self.len as u32).to_le_bytes());
        self.len
    }
}

impl ClientMessage {
    /// What it is called, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Segments { .. } => "segments",
            Self::Changed => "changed",
            Self::Goodbye => "goodbye",
            Self::Status => "status",
            Self::Statistics { .. } => "statistics",
        }
    }

    fn check(&self, fds: usize) -> Result<(), ProtocolError> {
        match *self {
            Self::Hello(Hello { publisher, segments, .. }) => {
                number_of_fds(self.name(), fds, 1, MAX_FDS)?;
                if publisher == 0 {
                    return Err(ProtocolError::ZeroId);
                }
                if segments > MAX_SEGMENTS as u32 || (segments as usize) < fds {
                    return Err(ProtocolError::Segments { segments, fds });
                }
                Ok(())
            }
            Self::Segments { first } => {
                number_of_fds(self.name(), fds, 1, MAX_FDS)?;
                let end = (first as usize).saturating_add(fds);
                if first == 0 || end > MAX_SEGMENTS {
                    return Err(ProtocolError::First { first, fds });
                }
                Ok(())
            }
            Self::Statistics { first } => {
                number_of_fds(self.name(), fds, 1, MAX_FDS)?;
                if first == 0 || first.checked_add(fds as u32).is_none() {
                    return Err(ProtocolError::Numbers { first, fds });
                }
                Ok(())
            }
            Self::Changed | Self::Goodbye | Self::Status => number_of_fds(self.name(), fds, 0, 0),
        }
    }
}

impl Message<'_> for ClientMessage {
    fn decode(bytes: &[u8], fds: usize) -> Result<Self, ProtocolError> {
        let (version, kind, body) = split(bytes)?;
        of_this_version(version)?;
        let empty = |message| exactly::<0>(message, body);
        let message = match kind {
            kind::HELLO => {
                let body: &[u8; 24] = exactly("hello", body)?;
                let (id, rest) = body.split_at(16);
                let flags = u32_at(rest, 0).unwrap_or(0);
                if flags & !PUBLIC != 0 {
                    return Err(ProtocolError::Flags { message: "hello", flags });
                }
                Self::Hello(Hello {
                    publisher: id.iter().rev().fold(0, |id, byte| id << 8 | u128::from(*byte)),
                    public: flags & PUBLIC != 0,
                    segments: u32_at(rest, 4).unwrap_or(0),
                })
            }
            kind::SEGMENTS => {
                Self::Segments { first: u32::from_le_bytes(*exactly("segments", body)?) }
            }
            kind::STATISTICS => {
                Self::Statistics { first: u32::from_le_bytes(*exactly("statistics", body)?) }
            }
            kind::CHANGED => empty("changed").map(|_| Self::Changed)?,
            kind::GOODBYE => empty("goodbye").map(|_| Self::Goodbye)?,
            kind::STATUS => empty("status").map(|_| Self::Status)?,
            unknown => return Err(ProtocolError::Type(unknown)),
        };
        message.check(fds)?;
        Ok(message)
    }

    fn encode(&self, fds: usize, out: &mut [u8; MAX_MESSAGE]) -> Result<usize, ProtocolError> {
        self.check(fds)?;
        let writer = match *self {
            Self::Hello(Hello { publisher, public, segments }) => {
                let mut writer = Writer::new(out, kind::HELLO);
                writer.put(&publisher.to_le_bytes());
                writer.put(&(if public { PUBLIC } else { 0 }).to_le_bytes());
                writer.put(&segments.to_le_bytes());
                writer
            }
            Self::Segments { first } => {
                let mut writer = Writer::new(out, kind::SEGMENTS);
                writer.put(&first.to_le_bytes());
                writer
            }
            Self::Statistics { first } => {
                let mut writer = Writer::new(out, kind::STATISTICS);
                writer.put(&first.to_le_bytes());
                writer
            }
            Self::Changed => Writer::new(out, kind::CHANGED),
            Self::Goodbye => Writer::new(out, kind::GOODBYE),
            Self::Status => Writer::new(out, kind::STATUS),
        };
        Ok(writer.end())
    }
}

impl ServerMessage<'_> {
    /// What it is called, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Welcome { .. } => "welcome",
            Self::Refused { .. } => "refused",
            Self::Bye => "bye",
            Self::StatusPart { .. } => "status part",
        }
    }

    fn check(&self, fds: usize) -> Result<(), ProtocolError> {
        number_of_fds(self.name(), fds, 0, 0)?;
        match *self {
            Self::Welcome { pid: 0, .. } => Err(ProtocolError::Pid),
            Self::Welcome { mount, .. } => {
                let path = mount.as_os_str().as_bytes();
                if !path.starts_with(b"/") || path.len() > MAX_PATH || path.contains(&0) {
                    return Err(ProtocolError::MountPath(path.len()));
                }
                Ok(())
            }
            Self::Refused { reason, .. } if reason.len() > MAX_REASON => Err(ProtocolError::Size {
                message: self.name(),
                actual: HEADER.saturating_add(4).saturating_add(reason.len()),
            }),
            Self::StatusPart { offset, total, part } => {
                let end = (offset as usize).checked_add(part.len());
                let inside = end.is_some_and(|end| end <= total as usize);
                if part.is_empty() || part.len() > MAX_PART || !inside {
                    return Err(ProtocolError::Part { offset, len: part.len(), total });
                }
                Ok(())
            }
            Self::Refused { .. } | Self::Bye => Ok(()),
        }
    }
}

impl<'a> Message<'a> for ServerMessage<'a> {
    fn decode(bytes: &'a [u8], fds: usize) -> Result<Self, ProtocolError> {
        let (version, kind, body) = split(bytes)?;
        // A refusal may be for speaking another version.
        if kind != kind::REFUSED {
            of_this_version(version)?;
        }
        let short = |message| ProtocolError::Size { message, actual: bytes.len() };
        let message = match kind {
            kind::WELCOME => {
                let Some((pid, mount)) = body.split_first_chunk() else {
                    return Err(short("welcome"));
                };
                let mount = Path::new(OsStr::from_bytes(mount));
                Self::Welcome { pid: u32::from_le_bytes(*pid), mount }
            }
            kind::REFUSED => {
                let Some((flags, reason)) = body.split_first_chunk() else {
                    return Err(short("refused"));
                };
                let flags = u32::from_le_bytes(*flags);
                if flags & !AGAIN != 0 {
                    return Err(ProtocolError::Flags { message: "refused", flags });
                }
                let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::Reason)?;
                Self::Refused { reason, again: flags & AGAIN != 0 }
            }
            kind::BYE => exactly::<0>("bye", body).map(|_| Self::Bye)?,
            kind::STATUS_PART => {
                let (Some(offset), Some(total), Some(part)) =
                    (u32_at(body, 0), u32_at(body, 4), body.get(8..))
                else {
                    return Err(short("status part"));
                };
                Self::StatusPart { offset, total, part }
            }
            unknown => return Err(ProtocolError::Type(unknown)),
        };
        message.check(fds)?;
        Ok(message)
    }

    fn encode(&self, fds: usize, out: &mut [u8; MAX_MESSAGE]) -> Result<usize, ProtocolError> {
        self.check(fds)?;
        let writer = match *self {
            Self::Welcome { pid, mount } => {
                let mut writer = Writer::new(out, kind::WELCOME);
                writer.put(&pid.to_le_bytes());
                writer.put(mount.as_os_str().as_bytes());
                writer
            }
            Self::Refused { reason, again } => {
                let mut writer = Writer::new(out, kind::REFUSED);
                writer.put(&(if again { AGAIN } else { 0 }).to_le_bytes());
                writer.put(reason.as_bytes());
                writer
            }
            Self::Bye => Writer::new(out, kind::BYE),
            Self::StatusPart { offset, total, part } => {
                let mut writer = Writer::new(out, kind::STATUS_PART);
                writer.put(&offset.to_le_bytes());
                writer.put(&total.to_le_bytes());
                writer.put(part);
                writer
            }
        };
        Ok(writer.end())
    }
}
