//! Groups as they stand in a segment: encoding by the writer, validating decoding by the reader.

use std::borrow::Cow;

use super::layout::{UNIT, UNIT_WORDS, VALUE_RECORD, head, kind, pair, split_pair, word};
use crate::value::{
    Aggregations, Area, BaseUnit, Descriptor, GroupDescriptor, GroupError, MAX_AREA, MAX_VALUES,
    Place, Semantics, Unit, ValueType,
};

use thiserror::Error;

/// Most units of a group's record: enough for [`MAX_VALUES`] values with the longest of strings.
pub(crate) const MAX_GROUP_UNITS: usize = MAX_VALUES * 768 / UNIT;

/// What is wrong with a group's record.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaError {
    /// The counts in the record do not fit its size.
    #[error("a group's record is shorter than it says")]
    Truncated,
    /// A string lies outside the pool or is not UTF-8.
    #[error("a group's string is outside its pool or not UTF-8")]
    String,
    /// Its strings are together longer than their pool: some are in the same place.
    #[error("a group's strings are together longer than their pool")]
    Shared,
    /// A number has no meaning.
    #[error("a value's {0} has no meaning")]
    Code(&'static str),
    /// The description is not acceptable.
    #[error(transparent)]
    Group(#[from] GroupError),
}

pub(crate) fn type_code(ty: ValueType) -> (u8, u8, u8) {
    match ty {
        ValueType::Bool => (0, 0, 0),
        ValueType::U8 => (1, 0, 0),
        ValueType::U16 => (2, 0, 0),
        ValueType::U32 => (3, 0, 0),
        ValueType::U64 => (4, 0, 0),
        ValueType::S8 => (5, 0, 0),
        ValueType::S16 => (6, 0, 0),
        ValueType::S32 => (7, 0, 0),
        ValueType::S64 => (8, 0, 0),
        ValueType::Histogram { buckets, sum } => (9, buckets, u8::from(sum)),
    }
}

pub(crate) fn type_of(code: u8, buckets: u8, sum: u8) -> Option<ValueType> {
    if code != 9 && (buckets != 0 || sum != 0) {
        return None;
    }
    Some(match code {
        0 => ValueType::Bool,
        1 => ValueType::U8,
        2 => ValueType::U16,
        3 => ValueType::U32,
        4 => ValueType::U64,
        5 => ValueType::S8,
        6 => ValueType::S16,
        7 => ValueType::S32,
        8 => ValueType::S64,
        9 if sum < 2 => ValueType::Histogram { buckets, sum: sum == 1 },
        _ => return None,
    })
}

pub(crate) fn base_code(base: BaseUnit) -> u8 {
    match base {
        BaseUnit::None => 0,
        BaseUnit::Bytes => 1,
        BaseUnit::Seconds => 2,
        BaseUnit::Cycles => 3,
    }
}

pub(crate) fn base_of(code: u8) -> Option<BaseUnit> {
    Some(match code {
        0 => BaseUnit::None,
        1 => BaseUnit::Bytes,
        2 => BaseUnit::Seconds,
        3 => BaseUnit::Cycles,
        _ => return None,
    })
}

pub(crate) fn semantics_code(semantics: Semantics) -> u8 {
    match semantics {
        Semantics::Cumulative => 0,
        Semantics::Floating => 1,
        Semantics::Peak => 2,
    }
}

pub(crate) fn semantics_of(code: u8) -> Option<Semantics> {
    Some(match code {
        0 => Semantics::Cumulative,
        1 => Semantics::Floating,
        2 => Semantics::Peak,
        _ => return None,
    })
}

/// The words of a group's record from the head on; a multiple of a unit, less the generation.
pub(crate) fn encode(group: &GroupDescriptor) -> Vec<u64> {
    let mut values = Vec::with_capacity(group.values().len() * VALUE_RECORD);
    let mut pool = Vec::new();
    for text in [group.name(), group.prefix(), group.help()] {
        pool.extend_from_slice(text.as_bytes());
    }
    for (value, place) in group.values().iter().zip(group.places()) {
        let family = value.family.as_deref().unwrap_or("");
        let (key, label) = value.label.as_ref().map_or(("", ""), |(k, v)| (&**k, &**v));
        let states = value.states.join(",");
        let texts = [&*value.name, family, key, label, &*value.help, &*states];
        let (code, buckets, sum) = type_code(value.ty);
        let (base, semantics) = (base_code(value.unit.base), semantics_code(value.semantics));
        let area = u8::from(place.area == Area::Plain);
        values.extend_from_slice(&[code, buckets, sum, base, value.unit.exponent as u8]);
        values.extend_from_slice(&[semantics, value.aggregations.bits(), area]);
        values.extend_from_slice(&value.mode.to_le_bytes());
        values.extend(texts.iter().map(|t| t.len() as u8));
        values.extend_from_slice(&place.offset.to_le_bytes());
        values.extend_from_slice(&(pool.len() as u32).to_le_bytes());
        values.extend_from_slice(&[0; 8]);
        texts.iter().for_each(|t| pool.extend_from_slice(t.as_bytes()));
    }
    let body = word::GROUP_BODY * 8 + values.len() + pool.len();
    let units = body.div_ceil(UNIT);
    let mut words = vec![0; units * UNIT_WORDS];
    words[word::HEAD] = head(kind::GROUP, 0, 0, 0, units as u32);
    words[word::GROUP_COUNTS] = pair(group.values().len() as u32, group.latched_size() as u32);
    words[word::GROUP_SIZES] = pair(group.plain_size() as u32, pool.len() as u32);
    words[word::GROUP_LENGTHS] = group.name().len() as u64
        | (group.prefix().len() as u64) << 8
        | (group.help().len() as u64) << 16;
    values.extend_from_slice(&pool);
    for (word, bytes) in words[word::GROUP_BODY..].iter_mut().zip(values.chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(all);
    }
    words.remove(word::GENERATION);
    words
}

/// Decodes and validates a copy of a group's whole record, generation included.
pub(crate) fn decode(words: &[u64]) -> Result<GroupDescriptor, SchemaError> {
    if words.len() < UNIT_WORDS {
        return Err(SchemaError::Truncated);
    }
    let (count, latched) = split_pair(words[word::GROUP_COUNTS]);
    let (plain, pool_len) = split_pair(words[word::GROUP_SIZES]);
    let lengths = words[word::GROUP_LENGTHS];
    let (count, pool_len) = (count as usize, pool_len as usize);
    if count > MAX_VALUES || latched as usize > MAX_AREA || plain as usize > MAX_AREA {
        return Err(SchemaError::Code("count or size"));
    }
    let body: Vec<u8> = words[word::GROUP_BODY..].iter().flat_map(|w| w.to_le_bytes()).collect();
    let records = body.get(..count * VALUE_RECORD).ok_or(SchemaError::Truncated)?;
    let pool = body[records.len()..].get(..pool_len).ok_or(SchemaError::Truncated)?;
    let text = |start: usize, len: usize| -> Result<Cow<'static, str>, SchemaError> {
        let end = start.checked_add(len).ok_or(SchemaError::String)?;
        let bytes = pool.get(start..end).ok_or(SchemaError::String)?;
        let text = std::str::from_utf8(bytes).map_err(|_| SchemaError::String)?;
        Ok(Cow::Owned(text.to_owned()))
    };
    let (name_len, prefix_len) = ((lengths & 0xff) as usize, (lengths >> 8 & 0xff) as usize);
    let help_len = (lengths >> 16 & 0xffff) as usize;
    // Each is kept by itself: what were in one place many times would be many times as large.
    let of_values = records.chunks_exact(VALUE_RECORD).flat_map(|record| &record[10..16]);
    let of_values: usize = of_values.map(|len| usize::from(*len)).sum();
    if name_len + prefix_len + help_len + of_values > pool_len {
        return Err(SchemaError::Shared);
    }
    let name = text(0, name_len)?;
    let prefix = text(name_len, prefix_len)?;
    let help = text(name_len + prefix_len, help_len)?;
    let mut values = Vec::with_capacity(count);
    for record in records.chunks_exact(VALUE_RECORD) {
        let number = |at: usize| {
            u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        let base = base_of(record[3]).ok_or(SchemaError::Code("unit"))?;
        let semantics = semantics_of(record[5]).ok_or(SchemaError::Code("semantics"))?;
        let area = match record[7] {
            0 => Area::Latched,
            1 => Area::Plain,
            _ => return Err(SchemaError::Code("area")),
        };
        let mut at = number(20) as usize;
        let mut next = |n: usize| {
            let len = usize::from(record[10 + n]);
            let text = text(at, len);
            at = at.saturating_add(len);
            text
        };
        let (name, family, key, label, help) = (next(0)?, next(1)?, next(2)?, next(3)?, next(4)?);
        let states = next(5)?;
        let states = states.split(',').filter(|_| !states.is_empty());
        values.push((
            Descriptor {
                name,
                ty: type_of(record[0], record[1], record[2]).ok_or(SchemaError::Code("type"))?,
                unit: Unit { base, exponent: record[4] as i8 },
                semantics,
                aggregations: Aggregations::from_bits(record[6])
                    .ok_or(SchemaError::Code("aggregation"))?,
                mode: u16::from_le_bytes([record[8], record[9]]),
                help,
                family: (!family.is_empty()).then_some(family),
                label: (!key.is_empty()).then_some((key, label)),
                states: states.map(|name| Cow::Owned(name.to_owned())).collect(),
            },
            Place { area, offset: number(16) },
        ));
    }
    Ok(GroupDescriptor::new(name, prefix, help, values, latched as usize, plain as usize)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::GroupBuilder;

    #[test]
    fn a_group_comes_back_as_it_was() {
        let mut group =
            GroupBuilder::new("every_kind").prefix("x_").help("All of them.").consistent();
        for (n, ty) in
            [ValueType::Bool, ValueType::S8, ValueType::U16, ValueType::S64, ValueType::U32]
                .into_iter()
                .enumerate()
        {
            group = group.value(
                Descriptor::new(format!("x_{n}"), ty, Semantics::Floating)
                    .unit(Unit::MILLISECONDS)
                    .aggregate(Aggregations::ALL)
                    .help("Help."),
            );
        }
        let group = group
            .value(
                Descriptor::new("x_count", ValueType::U64, Semantics::Cumulative)
                    .family("x_family")
                    .label("reason", "io_in"),
            )
            .value(Descriptor::new("x_peak", ValueType::U64, Semantics::Peak))
            .value(
                Descriptor::new("x_state", ValueType::U8, Semantics::Floating)
                    .states(["off", "on", "7"])
                    .aggregate(Aggregations::COUNT_NONZERO),
            )
            .value(Descriptor::new(
                "x_time",
                ValueType::Histogram { buckets: 40, sum: true },
                Semantics::Cumulative,
            ))
            .build()
            .unwrap();
        let mut words = encode(&group);
        words.insert(0, 2);
        assert_eq!(words.len() % UNIT_WORDS, 0);
        assert_eq!(decode(&words).as_ref(), Ok(&*group));
        for len in 0..words.len() / UNIT_WORDS {
            assert!(decode(&words[..len * UNIT_WORDS]).is_err());
        }
    }

    /// A group of one value, and its record with the value's states replaced by others that are as long.
    fn with_states(states: &[&str], forged: &str) -> Result<GroupDescriptor, SchemaError> {
        let value = Descriptor::new("s", ValueType::U8, Semantics::Floating);
        let value = value.states(states.iter().map(|name| name.to_string()));
        let words = encode(&GroupBuilder::new("g").value(value).build().unwrap());
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text = states.join(",");
        let at = bytes.windows(text.len()).position(|part| part == text.as_bytes()).unwrap();
        bytes[at..at + text.len()].copy_from_slice(forged.as_bytes());
        let mut words = vec![2];
        words.extend(bytes.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())));
        decode(&words)
    }

    #[test]
    fn strings_are_together_no_longer_than_their_pool() {
        let value = |name| Descriptor::new(name, ValueType::U8, Semantics::Floating);
        let group = GroupBuilder::new("g").value(value("aa")).value(value("bb")).build().unwrap();
        let mut words = encode(&group);
        words.insert(0, 2);
        assert!(decode(&words).is_ok());
        // The first value's help is the second one's name.
        words[word::GROUP_BODY + 1] |= 2 << 48;
        assert_eq!(decode(&words), Err(SchemaError::Shared));
    }

    #[test]
    fn states_are_names_that_differ() {
        let group = with_states(&["off", "on"], "off,on").unwrap();
        assert_eq!(group.values()[0].states, ["off", "on"]);
        for forged in
            ["off,,n", ",ff,on", "off,o,", "off,oN", "of\0,on", "o,ff,o", "on,,on", ",,,,,,"]
        {
            let error = with_states(&["off", "on"], forged).unwrap_err();
            assert!(matches!(error, SchemaError::Group(GroupError::Value { .. })), "{forged}");
        }
        // The longest of all fit, and a record says of no more than fits.
        let most: Vec<_> = (0..64).map(|n| format!("{n:03}")).collect();
        let most: Vec<_> = most.iter().map(String::as_str).collect();
        assert_eq!(most.join(",").len(), crate::value::MAX_STATES);
        assert_eq!(with_states(&most, &most.join(",")).unwrap().values()[0].states, most);
        // What a writer leaves zero that does not know of them is no states.
        let value = Descriptor::new("s", ValueType::U8, Semantics::Floating).states(["off"]);
        let mut words = encode(&GroupBuilder::new("g").value(value).build().unwrap());
        words.insert(0, 2);
        words[word::GROUP_BODY + 1] &= u64::MAX >> 8;
        assert!(decode(&words).unwrap().values()[0].states.is_empty());
    }
}
