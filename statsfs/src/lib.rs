//! Live statistics as a file tree, in the style of the statsfs RFC.
pub mod cell;
pub mod fs;
pub mod segment;
pub mod value;
