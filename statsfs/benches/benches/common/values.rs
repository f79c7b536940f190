//! Sets of labels without enums, for as many values as a busy vCPU has.

use statsfs::value::LabelSet;

/// One of `N` values, at most 100.
#[derive(Clone, Copy)]
pub struct Nth<const N: usize>(pub usize);

macro_rules! tens {
    ($($ten:literal)*) => {
        [$(
            concat!($ten, "0"), concat!($ten, "1"), concat!($ten, "2"), concat!($ten, "3"),
            concat!($ten, "4"), concat!($ten, "5"), concat!($ten, "6"), concat!($ten, "7"),
            concat!($ten, "8"), concat!($ten, "9"),
        )*]
    };
}

const NAMES: [&str; 100] = tens!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9");

impl<const N: usize> LabelSet for Nth<N> {
    const KEY: &'static str = "nth";
    const NAMES: &'static [&'static str] = NAMES.split_at(N).0;
    const HELP: &'static [&'static str] = &["one of many"; N];
    fn index(self) -> usize {
        self.0
    }
}
