//! The checksum that a bzImage has from its build (CRC-32, boot protocol 2.08 and newer): with its own four
//! bytes, which are the last, the remainder over the whole image is 0.
//!
//! A signature for Secure Boot comes later. It is behind the image, but makes two entries in the PE header that
//! is in the image: the file's checksum, and where the signature is. They were 0 when the image was built, and
//! are taken for 0 here; so the signed images of distributions agree as well.
//!
//! Linux has none since its commit 9c54baab4401 of 2025: the four bytes are 0. And nothing keeps other tools from
//! changing an image's header, so that a wrong checksum is a reason to be told, and not to be refused.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes that are read at once: the first ones have all of the PE header that is looked at.
const PIECE: usize = 64 << 10;
/// What an image begins with that EFI firmware can start, and where it says where its PE header is.
const DOS_MAGIC: &[u8] = b"MZ";
const PE_OFFSET: usize = 0x3c;
const PE_MAGIC: &[u8] = b"PE\0\0";
/// In the PE header: that it is for 64 bits, the file's checksum, and where the signature is.
const PE_FORMAT: Range<usize> = 24..26;
const PE32_PLUS: &[u8] = &[0x0b, 0x02];
const PE_CHECKSUM: Range<usize> = 88..92;
const PE_SIGNATURE: Range<usize> = 168..176;

/// Whether an image, which has this size without a signature, is as it was built; `None` if it has no checksum.
///
/// # Errors
/// If it can not be read.
pub fn is_right(file: &File, size: u64) -> io::Result<Option<bool>> {
    let mut piece = vec![0; PIECE];
    let mut crc = crc32fast::Hasher::new();
    let mut stored = [0; 4];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(PIECE as u64) as usize;
        let piece = &mut piece[..length];
        file.read_exact_at(piece, offset)?;
        if offset == 0 {
            unsign(piece);
        }
        crc.update(piece);
        // The last piece may have fewer.
        let end = &piece[length.saturating_sub(4)..];
        stored.rotate_left(end.len());
        stored[4 - end.len()..].copy_from_slice(end);
        offset += length as u64;
    }
    // Images are not inverted at the end, as `finalize` does.
    Ok((stored != [0; 4]).then(|| crc.finalize() == !0))
}

/// Takes what a signature changes out of the first bytes of an image, if they have a PE header.
fn unsign(head: &mut [u8]) {
    if !head.starts_with(DOS_MAGIC) {
        return;
    }
    let Some((offset, _)) = head.get(PE_OFFSET..).and_then(|rest| rest.split_first_chunk()) else {
        return;
    };
    let Some(pe) = head.get_mut(u32::from_le_bytes(*offset) as usize..) else { return };
    if pe.starts_with(PE_MAGIC) && pe.get(PE_FORMAT) == Some(PE32_PLUS) {
        for range in [PE_CHECKSUM, PE_SIGNATURE] {
            if let Some(field) = pe.get_mut(range) {
                field.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A bit at a time, without the last inversion.
    fn crc(bytes: &[u8]) -> u32 {
        bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        })
    }

    fn image(size: usize) -> Vec<u8> {
        let mut image: Vec<u8> = (0..size - 4).map(|n| (n * n / 7) as u8).collect();
        image[..2].copy_from_slice(DOS_MAGIC);
        image[PE_OFFSET..0x40].copy_from_slice(&[0x40, 0, 0, 0]);
        let pe = &mut image[0x40..];
        pe[..4].copy_from_slice(PE_MAGIC);
        pe[PE_FORMAT].copy_from_slice(PE32_PLUS);
        pe[PE_CHECKSUM].fill(0);
        pe[PE_SIGNATURE].fill(0);
        let checksum = crc(&image);
        image.extend(checksum.to_le_bytes());
        image
    }

    fn look(image: &[u8], size: usize) -> Option<bool> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        is_right(&file, size as u64).unwrap()
    }

    #[test]
    fn images_agree_signed_or_not_and_damaged_ones_do_not() {
        assert_eq!(crc(b"123456789") ^ !0, 0xcbf4_3926, "the check value of CRC-32");
        for size in [1024, PIECE, PIECE + 1, PIECE + 5, 3 * PIECE] {
            let built = image(size);
            assert_eq!(look(&built, size), Some(true), "{size}");
            let mut signed = built.clone();
            signed[0x40..][PE_CHECKSUM].copy_from_slice(&[1, 2, 3, 4]);
            signed[0x40..][PE_SIGNATURE].copy_from_slice(&[5, 6, 7, 8, 9, 10, 11, 12]);
            signed.extend([0x55; 1000]);
            assert_eq!(look(&signed, size), Some(true), "{size}");
            for at in [0, 2, 0x40 + PE_CHECKSUM.end, size / 2, size - 5, size - 1] {
                let mut damaged = signed.clone();
                damaged[at] ^= 1;
                assert_eq!(look(&damaged, size), Some(false), "{size}, {at}");
            }
        }
    }

    #[test]
    fn an_image_without_a_checksum_is_not_judged() {
        let mut image = image(1024);
        image[1020..].fill(0);
        assert_eq!(look(&image, 1024), None);
    }

    #[test]
    fn no_header_is_trusted() {
        for (at, value) in [(PE_OFFSET + 3, 0xff), (PE_OFFSET + 1, 3), (0x40, 0), (0x58, 0x0c)] {
            let mut image = image(1024);
            image[at] = value;
            assert_eq!(look(&image, 1024), Some(false), "{at:#x}");
        }
        assert_eq!(look(b"MZ", 2), Some(false));
        assert_eq!(look(b"", 0), None);
        let file = tempfile::tempfile().unwrap();
        assert!(is_right(&file, 1024).is_err(), "it is shorter");
    }
}
