//! A segment's words as loom's atomics, in place of the library's `segment/region.rs`.

use super::sync::AtomicU64;

/// The same words, as loom's atomics.
#[derive(Debug)]
pub(crate) struct Region {
    first: usize,
    words: Vec<AtomicU64>,
}

impl Region {
    /// The words from offset `first` on.
    pub(crate) fn new(first: usize, words: usize) -> Self {
        Self { first, words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        &self.words[(offset - self.first) / 8]
    }

    pub(crate) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let start = (offset - self.first) / 8;
        &self.words[start..start + count]
    }
}
