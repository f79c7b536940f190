//! Writing recordings.

use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::{About, FRAME_HEADER, FRAME_MAGIC, MAGIC, MAX_ABOUT, MAX_GAP, VERSION};
use super::{checksum, kind, nanoseconds};
use crate::snapshot::Snapshot;

/// Appends to a recording. Each frame is written at once.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    frame: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a recording.
    ///
    /// # Errors
    /// If it can not be written, or what it is of is too long to be told.
    pub fn new(mut to: W, about: &About) -> io::Result<Self> {
        let about = serde_json::to_vec(about)?;
        let len = u32::try_from(about.len()).ok().filter(|len| *len <= MAX_ABOUT);
        let len = len.ok_or_else(|| io::Error::other("what the recording is of is too long"))?;
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend(len.to_le_bytes());
        header.extend(about);
        to.write_all(&header)?;
        Ok(Self { to, frame: Vec::new(), written: header.len() as u64 })
    }

    /// Bytes of all that was written whole: where it could not go on, this is where the recording ends.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Where it is written to.
    pub fn get_ref(&self) -> &W {
        &self.to
    }

    /// Appends a snapshot.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn snapshot(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.append(kind::SNAPSHOT, snapshot.taken(), snapshot.as_bytes())
    }

    /// Appends that there is nothing to be seen, and why: one line, cut off if it is too long.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn gap(&mut self, time: SystemTime, why: &str) -> io::Result<()> {
        let most = why.len().min(MAX_GAP as usize);
        let len = (0..=most).rfind(|len| why.is_char_boundary(*len)).unwrap_or(0);
        self.append(kind::GAP, time, &why.as_bytes()[..len])
    }

    /// Appends that this is the end.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn end(mut self, time: SystemTime) -> io::Result<()> {
        self.append(kind::END, time, &[])
    }

    fn append(&mut self, kind: u32, time: SystemTime, content: &[u8]) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.resize(FRAME_HEADER, 0);
        // Most words are small numbers: the fastest is good enough.
        let mut encoder = ZlibEncoder::new(frame, Compression::fast());
        encoder.write_all(content)?;
        frame = encoder.finish()?;
        let stored = (frame.len() - FRAME_HEADER) as u64;
        let mut header = [0; FRAME_HEADER];
        header[..8].copy_from_slice(&FRAME_MAGIC);
        header[8..12].copy_from_slice(&kind.to_le_bytes());
        header[16..24].copy_from_slice(&nanoseconds(time).to_le_bytes());
        header[24..32].copy_from_slice(&stored.to_le_bytes());
        header[32..].copy_from_slice(&(content.len() as u64).to_le_bytes());
        let sum = checksum(&header);
        header[12..16].copy_from_slice(&sum.to_le_bytes());
        frame[..FRAME_HEADER].copy_from_slice(&header);
        self.to.write_all(&frame)?;
        self.written += frame.len() as u64;
        self.frame = frame;
        Ok(())
    }
}
