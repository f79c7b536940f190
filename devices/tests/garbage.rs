//! Random commands to every kind of device: it comes to rest, and works again after a reset.

mod driver;
#[path = "driver/garbage.rs"]
mod garbage;
#[path = "driver/made.rs"]
mod made;

use garbage::{Command, decode};
use proptest::prelude::*;

/// Mostly what a driver does, in any order; and always set going first.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    let queue = 0..2_u8;
    let describe =
        (
            queue.clone(),
            0..20_u8,
            any::<bool>(),
            any::<u8>(),
            prop_oneof![Just(16), Just(512), Just(1), 0..600_u16, any::<u16>()],
            prop_oneof![Just(0), Just(1), Just(2), Just(3), Just(4), 0..8_u8],
            0..20_u8,
        )
            .prop_map(|(queue, index, indirect, address, len, flags, next)| {
                Command::Describe { queue, index, indirect, address, len, flags, next }
            });
    let header = (0..16_u8, 0..200_u8)
        .prop_map(|(kind, sector)| [kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0]);
    let command = prop_oneof![
        8 => describe,
        6 => (queue.clone(), 0..20_u8).prop_map(|(queue, head)| Command::Offer { queue, head }),
        5 => queue.clone().prop_map(|queue| Command::Notify { queue }),
        5 => Just(Command::Serve),
        3 => (any::<u8>(), header).prop_map(|(buffer, bytes)| Command::Fill { buffer, bytes }),
        2 => any::<u16>().prop_map(|len| Command::Outside { len: len % 3000 }),
        1 => any::<u16>().prop_map(|len| Command::Outside { len }),
        1 => (queue, any::<u16>()).prop_map(|(queue, index)| Command::Index { queue, index }),
        1 => any::<u32>().prop_map(|features| Command::Start { features }),
        1 => Just(Command::Reset),
        2 => (any::<u8>(), prop_oneof![0..32_u32, any::<u32>()])
            .prop_map(|(register, value)| Command::Write { register, value }),
        1 => (any::<u16>(), any::<u64>()).prop_map(|(offset, value)| Command::Poke { offset, value }),
        1 => (0..0x140_u16, any::<u8>(), any::<bool>())
            .prop_map(|(offset, len, write)| Command::Access { offset, len, write }),
    ];
    (any::<u32>(), proptest::collection::vec(command, 0..60)).prop_map(
        |(features, mut commands)| {
            commands.insert(0, Command::Start { features });
            commands
        },
    )
}

/// `STATSFS_SOAK=N` multiplies the number of cases by N.
fn cases() -> ProptestConfig {
    let soak = std::env::var("STATSFS_SOAK").map_or(1, |text| text.parse().expect("a number"));
    // The failures that are found are to become tests by themselves.
    ProptestConfig { cases: 400 * soak, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_block_device_survives(commands in commands(), read_only in any::<bool>()) {
        made::block(&commands, read_only);
    }

    #[test]
    fn a_network_interface_survives(commands in commands()) {
        made::net(&commands);
    }

    #[test]
    fn a_source_of_random_bytes_survives(commands in commands()) {
        made::entropy(&commands);
    }

    #[test]
    fn every_device_survives_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let commands = decode(&bytes);
        made::block(&commands, false);
        made::net(&commands);
        made::entropy(&commands);
    }
}
