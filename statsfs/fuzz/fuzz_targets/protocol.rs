//! Arbitrary bytes as a datagram of either side: what is accepted is the same when it is written again.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bits 0–4: number of descriptors; bit 7: the length in the header is made to fit |
//! | … | the datagram |
#![no_main]

use libfuzzer_sys::fuzz_target;
use statsfs::host::protocol::{ClientMessage, MAX_MESSAGE, Message, ServerMessage};

fn written_again<'a>(message: impl Message<'a>, fds: usize, bytes: &[u8]) {
    let mut again = [0; MAX_MESSAGE];
    let len = message.encode(fds, &mut again).expect("it was accepted");
    // A refusal is accepted in every version.
    assert_eq!((&again[..4], &again[6..len]), (&bytes[..4], &bytes[6..]));
}

fuzz_target!(|input: &[u8]| {
    let Some((head, datagram)) = input.split_first() else { return };
    let fds = usize::from(head & 31);
    let mut bytes = datagram.to_vec();
    if head & 0x80 != 0 && bytes.len() >= 12 {
        let len = bytes.len() as u32;
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
    }
    if let Ok(message) = ClientMessage::decode(&bytes, fds) {
        written_again(message, fds, &bytes);
    }
    if let Ok(message) = ServerMessage::decode(&bytes, fds) {
        written_again(message, fds, &bytes);
    }
});
