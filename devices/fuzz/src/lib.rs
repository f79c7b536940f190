//! What the fuzz targets share: a driver that does what bytes say. It is that of the crate's own tests.

#[path = "../../tests/driver/mod.rs"]
pub mod driver;
#[path = "../../tests/driver/garbage.rs"]
pub mod garbage;
#[path = "../../tests/driver/made.rs"]
pub mod made;
