//! Arbitrary bytes as a recording: all that is whole is read, and of what is not it is said where.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: what follows is the content of a frame, behind a header of a recording and before an end; else it is all of it |
//! | 1 | its kind |
//! | 2 | how many bytes more of it are said to be in the file than there are (signed) |
//! | 3…5 | how long it is said to be: how far to be shifted, and 16 bits |
#![no_main]

use libfuzzer_sys::fuzz_target;
use statsfs::snapshot::recording::{About, Content, FRAME_HEADER, FRAME_MAGIC, Reader, RecordingError, Writer};

fn frame(kind: u32, stored: u64, len: u64) -> [u8; FRAME_HEADER] {
    let mut header = [0; FRAME_HEADER];
    header[..8].copy_from_slice(&FRAME_MAGIC);
    header[8..12].copy_from_slice(&kind.to_le_bytes());
    header[24..32].copy_from_slice(&stored.to_le_bytes());
    header[32..].copy_from_slice(&len.to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&header[..12]);
    sum.update(&header[16..]);
    header[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
    header
}

fuzz_target!(|input: &[u8]| {
    let Some((head, rest)) = input.split_first() else { return };
    let mut bytes = Vec::new();
    if head & 1 == 0 {
        bytes.extend(rest);
    } else {
        let Some((said, content)) = rest.split_first_chunk::<5>() else { return };
        let [kind, more, shift, a, b] = *said;
        let _ = Writer::new(&mut bytes, &About::default());
        let stored = (content.len() as u64).wrapping_add_signed((more as i8).into());
        bytes.extend(frame(kind.into(), stored, u64::from(u16::from_le_bytes([a, b])) << (shift % 48)));
        bytes.extend(content);
        bytes.extend(frame(3, 0, 0));
    }
    let mut reader = match Reader::new(&*bytes) {
        Ok(reader) => reader,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => match frame.content {
                Content::Snapshot(snapshot) => assert!(snapshot.dirs().len() > 0),
                Content::Gap(why) => assert!(!why.contains('\n')),
            },
            Ok(None) => break,
            Err(RecordingError::Cut(at)) => {
                assert!(at < bytes.len() as u64);
                break;
            }
            Err(_) => break,
        }
    }
});
