//! What a snapshot has, as text: for people as `.stats/summary` has it, and as the JSON of `.stats/json`.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{Dir, Value};
use crate::aggregate::Buckets;
use crate::people;
use crate::tree::inode::{Field, Part};
use crate::tree::render::Total;

impl Value<'_> {
    /// Whether it shows a 0 that means nothing else: that of a state is one of the states.
    pub fn is_zero(&self) -> bool {
        people::shown(self.descriptor, self.part, &self.shown).is_none()
    }

    /// The files that show it, by their names, with their numbers: of a histogram those in its directory but for `buckets`
    /// as `name/count` and so on, of any other value it itself.
    pub fn numbers(&self) -> Vec<(String, i128)> {
        let Some(histogram) = self.histogram() else {
            return self
                .number()
                .map(|number| (self.name.to_owned(), number))
                .into_iter()
                .collect();
        };
        let fields = Field::of(histogram.sum().is_some()).filter(|field| *field != Field::Buckets);
        let number = |field| self.shown.number(self.descriptor, Part::Field(field)).exact();
        fields.map(|field| (format!("{}/{}", self.name, field.name()), number(field))).collect()
    }
}

/// For people: in the units that they think in, a histogram as how many, their mean and percentiles.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = people::shown(self.descriptor, self.part, &self.shown);
        f.pad(shown.as_deref().unwrap_or("0"))
    }
}

/// As `.stats/json` has it: a number, or an object for a histogram.
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Total::Histogram(cells) = &self.shown else {
            return self.number().unwrap_or(0).serialize(to);
        };
        let buckets = Buckets::new(self.descriptor.ty, cells);
        let mut object = to.serialize_map(None)?;
        for field in Field::of(buckets.sum().is_some()) {
            if field == Field::Buckets {
                let pairs = buckets.counts().iter().enumerate();
                let pairs: Vec<_> = pairs.map(|(n, count)| (buckets.upper(n), *count)).collect();
                object.serialize_entry(field.name(), &pairs)?;
            } else {
                let number = self.shown.number(self.descriptor, Part::Field(field)).exact();
                object.serialize_entry(field.name(), &number)?;
            }
        }
        object.end()
    }
}

/// As `.stats/json` has it: values by name, and the directories in it.
impl Serialize for Dir<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut object = to.serialize_map(None)?;
        for value in self.values() {
            object.serialize_entry(value.name(), &value)?;
        }
        for child in self.children() {
            object.serialize_entry(child.name(), &child)?;
        }
        object.end()
    }
}
