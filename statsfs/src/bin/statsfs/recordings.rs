//! Recordings, where one snapshot is wanted.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use statsfs::snapshot::Snapshot;
use statsfs::snapshot::recording::{Content, MAGIC, Reader, RecordingError};
use statsfs::tools::told;

/// Whether a file begins as recordings do.
pub fn is_one(file: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == MAGIC
}

/// A snapshot that was saved, or the last one of a recording.
pub fn last(file: &Path) -> Result<Snapshot, Box<dyn Error>> {
    if is_one(file) { Ok(ends(file)?.1) } else { Ok(Snapshot::load(file)?) }
}

/// The first and the last snapshot of a recording. One that is cut off is read as far as it is whole.
pub fn ends(file: &Path) -> Result<(Snapshot, Snapshot), Box<dyn Error>> {
    let name = file.display();
    let said = |error: RecordingError| format!("{name}: {}", told(&error));
    let mut reader = Reader::open(file).map_err(said)?;
    let (mut first, mut last) = (None, None);
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                if let Content::Snapshot(snapshot) = frame.content {
                    let slot = if first.is_none() { &mut first } else { &mut last };
                    *slot = Some(snapshot);
                }
            }
            Ok(None) | Err(RecordingError::Cut(_)) => break,
            Err(error) => return Err(said(error).into()),
        }
    }
    let first = first.ok_or_else(|| format!("{name} has no whole look"))?;
    let last = last.unwrap_or_else(|| first.clone());
    Ok((first, last))
}
