//! Tests in a stock Debian host with a real `kvm_amd`: see [`tests::nested`].

mod guests;

use std::process::ExitCode;

use tests::nested::{self, Suite};

const SUITE: Suite = Suite {
    programs: &[
        ("tests", "exact"),
        ("tests", "live"),
        ("tests", "endings"),
        ("tests", "missing"),
        ("tests", "killed"),
        ("tests", "user"),
        ("tests", "matrix"),
        ("tests", "fs_tree"),
        ("tests", "demo"),
        ("vmm", "run"),
        ("vmm", "demo"),
        ("statsfs", "fs_mount"),
        ("statsfs", "fs_processes"),
        ("statsfs", "fs_serving"),
        ("statsfs", "kill"),
        ("statsfs", "fork"),
    ],
    excluded: &[(
        "tests::fs_tree::tool_matrix",
        "tests::matrix::tools has the same tools, which take a minute there",
    )],
    functions: guests::TESTS,
    packages: &[],
    live: false,
};

fn main() -> ExitCode {
    nested::main(&SUITE)
}
