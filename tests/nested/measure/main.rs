//! The VMM beside QEMU's microvm, in the [nested host](tests::nested), in one run: the same kernel, initial
//! RAM file system and command line, and the same work. `cargo bench -p tests --bench nested`.
//!
//! Both are measured from outside in the same way, in turns, and of several rounds the medians are shown.
//! The times are those of a machine whose processor is emulated, and mean something only beside each other.

mod collect;
mod compare;
mod side;

use std::process::ExitCode;

use tests::nested::{self, Suite};

const SUITE: Suite = Suite {
    functions: &[
        ("measure::starting", compare::starting),
        ("measure::memory", compare::memory),
        ("measure::disk", compare::disk),
        ("measure::net", compare::net),
        ("measure::collect", collect::collect),
    ],
    commands: &["vmm", "statsfs"],
    patience: 1800,
    packages: &["qemu-system-x86"],
    live: true,
    alone: true,
    ..Suite::EMPTY
};

fn main() -> ExitCode {
    nested::main(&[SUITE])
}
