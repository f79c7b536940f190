//! The keys by which a user on the guest's console speaks to the VMM: those of QEMU.

/// Ctrl-A: what follows is for the VMM.
const ESCAPE: u8 = 0x01;

/// Takes the keys for the VMM out of what a user types.
#[derive(Debug, Default)]
pub struct Escape {
    /// The last key was Ctrl-A.
    escaped: bool,
}

/// What a user wants of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quit;

impl Escape {
    /// Passes what is the guest's to `guest`: all but Ctrl-A x, which ends the guest, and the first one of
    /// Ctrl-A Ctrl-A.
    pub fn filter(&mut self, typed: &[u8], guest: &mut impl Extend<u8>) -> Option<Quit> {
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return Some(Quit),
                (true, ESCAPE) => guest.extend([ESCAPE]),
                // Not for the VMM after all: nothing that is typed is lost.
                (true, _) => guest.extend([ESCAPE, key]),
                (false, _) => guest.extend([key]),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_vmms_keys_are_taken_out() {
        let mut escape = Escape::default();
        let mut type_keys = |keys: &[u8]| {
            let mut guest = Vec::new();
            let quit = escape.filter(keys, &mut guest);
            (guest, quit)
        };
        assert_eq!(type_keys(b"ls\r"), (b"ls\r".to_vec(), None));
        assert_eq!(type_keys(b"a\x01\x01x"), (b"a\x01x".to_vec(), None));
        assert_eq!(type_keys(b"\x01b"), (b"\x01b".to_vec(), None));
        assert_eq!(type_keys(b"x\x01xy"), (b"x".to_vec(), Some(Quit)));
        // Typed slowly.
        assert_eq!(type_keys(b"\x01"), (vec![], None));
        assert_eq!(type_keys(b"\x01"), (b"\x01".to_vec(), None));
        assert_eq!(type_keys(b"\x01"), (vec![], None));
        assert_eq!(type_keys(b"x"), (vec![], Some(Quit)));
    }
}
