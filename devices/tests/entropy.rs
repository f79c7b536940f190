//! A source of random bytes, from its driver's side.

mod driver;

use devices::virtio::entropy::{Entropy, MAX_BYTES};
use devices::virtio::stats::EntropyCounters;
use driver::{BUFFERS, EVENT_IDX, Guest, HIGH, HIGH_SIZE, INDIRECT, VERSION_1, into};

fn guest() -> Guest {
    Guest::new(|source| Entropy::new(EntropyCounters::new(source.add_values().unwrap())).unwrap())
}

#[test]
fn memory_is_filled_with_random_bytes_and_nothing_else_is() {
    let guest = guest();
    let [mut queue] = guest.start(VERSION_1 | INDIRECT | EVENT_IDX, 64);
    let last = HIGH + HIGH_SIZE - 100;
    guest.put(BUFFERS, &[0; 1000]);
    assert_eq!(guest.submit(&mut queue, &[into(BUFFERS + 100, 400), into(last, 100)]), 500);
    let (first, second) = (guest.get(BUFFERS, 1000), guest.get(last, 100));
    assert_eq!(first[..100], [0; 100]);
    assert_eq!(first[500..], [0; 500]);
    for bytes in [&first[100..500], &second] {
        // That so few of 256 values occur in 100 random bytes happens once in 10^40 times.
        let values = bytes.iter().collect::<std::collections::HashSet<_>>().len();
        assert!(values > 30, "{bytes:?}");
    }
    assert_eq!(guest.submit(&mut queue, &[into(BUFFERS + 100, 400)]), 400);
    assert_ne!(guest.get(BUFFERS + 100, 400), first[100..500]);

    assert_eq!(guest.stats.get("rng_requests"), 2);
    assert_eq!(guest.stats.get("rng_bytes"), 900);
    assert_eq!(guest.stats.get("rng_request_time/count"), 2);
    assert_eq!(guest.stats.get("rng_errors") + guest.stats.get("rng_in_flight"), 0);
    assert_eq!(guest.interrupts().1, 1);
}

#[test]
fn a_request_gets_no_more_than_is_good_for_it() {
    let guest = guest();
    let [mut queue] = guest.start(VERSION_1 | INDIRECT, 64);
    let len = 1 << 20;
    guest.put(BUFFERS, &vec![0; len]);
    assert_eq!(guest.submit(&mut queue, &[into(BUFFERS, len as u32)]), MAX_BYTES as u32);
    let all = guest.get(BUFFERS, len);
    assert!(all[MAX_BYTES - 64..MAX_BYTES].iter().any(|byte| *byte != 0));
    assert!(all[MAX_BYTES..].iter().all(|byte| *byte == 0));
    // In many pieces.
    guest.put(BUFFERS, &vec![0; len]);
    let pieces: Vec<_> = (0..64).map(|i| into(BUFFERS + 16 * i, 8)).collect();
    queue.add_indirect(&pieces);
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take()[0].1, 512);
    let all = guest.get(BUFFERS, 1024);
    assert!(all.chunks(16).all(|piece| piece[8..] == [0; 8] && piece[..8] != [0; 8]));
}
