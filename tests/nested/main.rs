//! Tests in stock Debian hosts with a real `kvm_amd`, one of them with a real systemd: see [`tests::nested`].

mod guests;
mod package;
mod systemd;

use std::process::ExitCode;

use tests::nested::{self, Suite};

/// Why a tool matrix is not run: starting a tool takes a hundred times as long as on a real machine.
const SAME_TOOLS: &str = "statsfs::fs_matrix::tool_matrix is run, with the same tools";
/// Why a test program is not run.
const NOT_THERE: &str = "it needs programs that the host does not have";
/// Why a test of many thousands of calls is not run.
const MINUTES: &str = "it would take minutes there, and depends on nothing that is different there";

const GUESTS: Suite = Suite {
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
        ("tests", "host"),
        ("tests", "tools"),
        ("tests", "record"),
        ("tests", "limits"),
        ("tests", "unheard"),
        ("tests", "memory"),
        ("tests", "hostile_guest"),
        ("tests", "confined"),
        ("tests", "sched"),
        ("tests", "kernel_stats"),
        ("vmm", "run"),
        ("vmm", "demo"),
        ("vmm", "kernel"),
        ("vmm", "terminal"),
        ("vmm", "seccomp"),
        ("vmm", "lost"),
        ("statsfs", "fs_matrix"),
        ("statsfs", "fs_mount"),
        ("statsfs", "fs_processes"),
        ("statsfs", "fs_serving"),
        ("statsfs", "kill"),
        ("statsfs", "fork"),
    ],
    whole: &["tests", "vmm"],
    left_out: &[
        ("tests", "bulk", MINUTES),
        ("tests", "dashboard", NOT_THERE),
        ("tests", "kvm_stat", NOT_THERE),
        ("tests", "manual", NOT_THERE),
        ("tests", "metrics", NOT_THERE),
        ("tests", "node_exporter", NOT_THERE),
        ("tests", "package", NOT_THERE),
        ("tests", "pcp", NOT_THERE),
        ("tests", "prometheus", NOT_THERE),
        ("tests", "report", NOT_THERE),
        ("tests", "top", NOT_THERE),
        ("tests", "top_written", NOT_THERE),
        ("tests", "nested", "it is this one"),
        ("vmm", "declared_values", "it reads source code, and runs nothing"),
    ],
    excluded: &[
        ("tests::fs_tree::tool_matrix", SAME_TOOLS),
        ("tests::matrix::tools", SAME_TOOLS),
        ("statsfs::fs_serving::a_cookie_is_a_place_in_every_listing", MINUTES),
        ("statsfs::fs_serving::listings_under_churn_lose_and_repeat_nothing_that_stayed", MINUTES),
        ("statsfs::fs_serving::many_readers_see_whole_values", MINUTES),
    ],
    functions: guests::TESTS,
    commands: &["vmm", "statsfs"],
    ..Suite::EMPTY
};

fn main() -> ExitCode {
    nested::main(&[GUESTS, systemd::SUITE, package::SUITE])
}
