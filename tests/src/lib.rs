//! Integration tests.

pub mod fs_matrix;
