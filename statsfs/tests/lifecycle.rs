//! Sources, slots and callbacks that come and go in every order.

mod support;

use statsfs::Registry;
use support::{Work, number};

#[test]
fn a_departed_leaf_counts_until_it_is_folded_and_after() {
    let registry = Registry::new().unwrap();
    let pool = registry.create_source("pool").unwrap();
    pool.register().unwrap();
    let tree = registry.tree().unwrap();
    let leaf = registry.create_source("leaf").unwrap();
    pool.add_subordinate(&leaf).unwrap();
    let slot = leaf.add_values::<Work>().unwrap();
    slot.update(|c| c.work_done.add(1000));
    assert_eq!(number(&tree, "pool/work_done"), 1000);
    registry.usage();
    pool.remove_subordinate(&leaf).unwrap();
    drop(slot);
    assert_eq!(number(&tree, "pool/work_done"), 1000);
    registry.usage();
    assert_eq!(number(&tree, "pool/work_done"), 1000);
}
