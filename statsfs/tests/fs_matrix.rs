//! The errno table and the tool matrix, on a small tree.

mod common;
#[path = "../../tests/src/fs_matrix.rs"]
mod matrix;

use std::sync::atomic::Ordering::Relaxed;

use common::{Tree, mounted};

fn with_place(f: impl FnOnce(&matrix::Place<'_>)) {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let directory = mount.path().join("vm");
    f(&matrix::Place {
        mount: mount.path(),
        directory: &directory,
        cumulative: &directory.join("exits"),
        floating: &directory.join("level"),
        refill: &|| sample.exits.store(4711, Relaxed),
    });
    assert!(mount.is_mounted());
}

#[test]
fn errno_table() {
    with_place(matrix::errno_table);
}

#[test]
fn errno_table_of_other_user() {
    with_place(matrix::errno_table_of_other_user);
}

#[test]
fn tool_matrix() {
    with_place(matrix::tool_matrix);
}
