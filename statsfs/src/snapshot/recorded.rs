//! What histograms recorded in some time.

use super::Change;
use super::value::{Histogram, Value};
use crate::aggregate::Buckets;
use crate::tree::render::Total;
use crate::value::ValueType;

/// What a histogram recorded between two snapshots, whatever was cleared; over several times and directories, if they are added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    ty: ValueType,
    cells: Vec<u64>,
}

impl Recorded {
    /// As a histogram.
    pub fn histogram(&self) -> Histogram<'_> {
        Histogram(Buckets::new(self.ty, &self.cells))
    }

    /// Adds what another one recorded. False, and nothing is changed, if it has other buckets.
    pub fn add(&mut self, other: &Self) -> bool {
        let is_alike = self.ty == other.ty;
        if is_alike {
            for (cell, more) in self.cells.iter_mut().zip(&other.cells) {
                *cell = cell.wrapping_add(*more);
            }
        }
        is_alike
    }
}

impl Change<'_> {
    /// What a histogram recorded; none of any other value, and where the [increase](Self::increase) is not known.
    pub fn recorded(&self) -> Option<Recorded> {
        self.increase?;
        let ty = self.value.descriptor.ty;
        let mut cells = raw(&self.value)?.to_vec();
        if let Some(earlier) = &self.earlier {
            // A sum lags behind its buckets, and never goes backwards.
            for (cell, old) in cells.iter_mut().zip(raw(earlier)?) {
                *cell = cell.saturating_sub(*old);
            }
        }
        Some(Recorded { ty, cells })
    }
}

fn raw<'v>(value: &'v Value<'_>) -> Option<&'v [u64]> {
    match &value.raw {
        Total::Histogram(cells) => Some(cells),
        Total::Scalar(_) => None,
    }
}
