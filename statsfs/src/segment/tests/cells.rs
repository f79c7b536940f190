//! Cells of every type, wherever they lie, against a simple model of the format.

use std::sync::Arc;

use proptest::prelude::*;

use super::crafted::Crafted;
use crate::segment::Limits;
use crate::segment::layout::{
    BLOCK_HEADER, DEFAULT_SEGMENT, accumulator_copy, block_shape, role, word,
};
use crate::segment::process::Reading;
use crate::value::{Area, Descriptor, GroupDescriptor, Place, Semantics, ValueType};

fn types() -> impl Strategy<Value = ValueType> {
    use ValueType::*;
    prop_oneof![
        6 => proptest::sample::select(vec![Bool, U8, U16, U32, S8, S16, S32, S64]),
        6 => Just(U64),
        1 => (2u8..=64, any::<bool>()).prop_map(|(buckets, sum)| Histogram { buckets, sum }),
    ]
}

/// A group whose values were laid out in another order than they are declared in.
fn groups() -> impl Strategy<Value = Arc<GroupDescriptor>> {
    let value = (types(), any::<bool>(), any::<u32>());
    proptest::collection::vec(value, 1..40).prop_map(|values| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        // Half of the groups in order, so that there are long runs.
        if values[0].2 % 2 == 0 {
            order.sort_by_key(|n| values[*n].2);
        }
        let mut sizes = [0usize; 2];
        let mut places = vec![None; values.len()];
        for n in order {
            let (ty, latched, _) = values[n];
            let area = if latched { Area::Latched } else { Area::Plain };
            let size = &mut sizes[usize::from(!latched)];
            let offset = size.next_multiple_of(ty.width());
            *size = offset + ty.width() * ty.cells();
            places[n] = Some(Place { area, offset: offset as u32 });
        }
        let values = values.iter().zip(places).enumerate().map(|(n, ((ty, ..), place))| {
            let cumulative = ty.is_histogram() || matches!(ty, ValueType::U64);
            let semantics = if cumulative { Semantics::Cumulative } else { Semantics::Floating };
            (Descriptor::new(format!("v{n}"), *ty, semantics), place.unwrap())
        });
        let [latched, plain] = sizes.map(|size| size.next_multiple_of(8));
        Arc::new(GroupDescriptor::new("any", "", "", values.collect(), latched, plain).unwrap())
    })
}

/// What the format says of one value: straight from the bytes of a block.
fn expected(group: &GroupDescriptor, value: usize, block: &[u8]) -> Vec<u64> {
    let (ty, place) = (group.values()[value].ty, group.places()[value]);
    let shape = block_shape(group.latched_size(), group.plain_size());
    let area = match place.area {
        Area::Latched if block[0] % 2 == 0 => BLOCK_HEADER,
        Area::Latched => shape.copy1,
        Area::Plain => shape.plain,
    };
    let width = ty.width();
    (0..ty.cells())
        .map(|cell| {
            let at = area + place.offset as usize + cell * width;
            let mut wide = [0; 16];
            wide[..width].copy_from_slice(&block[at..at + width]);
            let raw = i128::from_le_bytes(wide);
            let limit = 1i128 << (8 * width);
            match ty {
                ValueType::Bool => u64::from(raw != 0),
                _ if ty.is_signed() && raw >= limit / 2 => (raw - limit) as i64 as u64,
                _ => raw as u64,
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn cells_are_what_the_format_says(
        group in groups(),
        seeds in proptest::collection::vec(any::<u64>(), 1..4),
        copy in 0..2u64,
    ) {
        let segment = Crafted::sized(0, DEFAULT_SEGMENT);
        let first = segment.group(0, &group);
        segment.source(first, 10, 1, "s");
        let len = block_shape(group.latched_size(), group.plain_size()).len;
        let mut blocks = Vec::new();
        for (n, seed) in seeds.iter().enumerate() {
            let at = DEFAULT_SEGMENT - (n + 1) * len;
            let mut bytes = Vec::new();
            let mut random = *seed;
            for offset in (0..len).step_by(8) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
                // Extremes more often than chance has them.
                let word = match random >> 61 {
                    0 => 0,
                    1 => u64::MAX,
                    2 => 0x8000_8080_8000_0080,
                    _ => random ^ random >> 32,
                };
                segment.set(at + offset, word);
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            segment.block(first + 1 + n as u32, role::SLOT, 0, 10, (at, len));
            blocks.push(bytes);
        }
        let words = group.words();
        let stride = accumulator_copy(words);
        let at = DEFAULT_SEGMENT - blocks.len() * len - 2 * stride;
        for n in 0..2 * stride / 8 {
            segment.set(at + n * 8, seeds[0].wrapping_mul(n as u64 + 1));
        }
        let unit = first + 1 + blocks.len() as u32;
        segment.block(unit, role::ACCUMULATOR, 0, 10, (at, 2 * stride));
        segment.put(unit, word::SELECTOR, copy);
        segment.units(u64::from(unit) + 1);

        let process = segment.attach(&Limits::default()).unwrap();
        let source = process.source(10).unwrap();
        prop_assert_eq!(&*source.groups[0].group, &*group);
        prop_assert_eq!(source.groups[0].slots.len(), blocks.len());
        for (block, bytes) in source.groups[0].slots.iter().zip(&blocks) {
            let each: Vec<_> =
                (0..group.values().len()).map(|n| expected(&group, n, bytes)).collect();
            let mut all = vec![0x5555; words];
            let reading = process.read(block, &mut all);
            prop_assert_eq!(reading, Reading::Cells { retired: None, upto: 0 });
            prop_assert_eq!(&all, &each.concat());
            for (n, expected) in each.iter().enumerate() {
                let mut one = vec![0x5555; expected.len() + 1];
                prop_assert_eq!(process.read_value(block, n, &mut one), reading);
                prop_assert_eq!(&one[..expected.len()], &expected[..]);
                prop_assert_eq!(one[expected.len()], 0x5555, "beyond the value");
            }
        }
        let accumulator = source.groups[0].accumulator.as_ref().unwrap();
        let word = |n: usize| seeds[0].wrapping_mul((copy as usize * stride / 8 + n) as u64 + 1);
        let mut all = vec![0; words];
        let reading = process.read(accumulator, &mut all);
        prop_assert_eq!(reading, Reading::Cells { retired: None, upto: word(0) });
        prop_assert_eq!(&all, &(1..=words).map(word).collect::<Vec<_>>());
        let mut at = 0;
        for (n, value) in group.values().iter().enumerate() {
            let mut one = vec![0; value.ty.cells()];
            prop_assert_eq!(process.read_value(accumulator, n, &mut one), reading);
            prop_assert_eq!(&one[..], &all[at..at + one.len()]);
            at += one.len();
        }
    }
}
