//! Messages that can not be written change nothing else: neither what becomes of the guest, nor the exit status,
//! nor what is left behind.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::guest::{COM1, Mode, Op, Step, end, program};
use tests::namespace::{hide_proc, mounted_at};
use tests::running::wait_until;
use tests::vmm::{end_with_test, require_host};
use tests::{binary, flat::Flat};

/// What is wrong with a command's output.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// Writing gives ENOSPC.
    Full,
    /// Nobody has the other end of the pipe: EPIPE.
    Deaf,
}

impl Broken {
    fn output(self) -> Stdio {
        match self {
            Self::Full => File::options().write(true).open("/dev/full").unwrap().into(),
            Self::Deaf => io::pipe().unwrap().1.into(),
        }
    }
}

/// The programs, in a directory of their own.
fn programs() -> tempfile::TempDir {
    require_host();
    let directory = tempfile::tempdir().unwrap();
    for (name, steps) in [
        ("hello", &[Step::new(Op::Out8, 1, COM1), end(7)][..]),
        ("crash", &[Step::new(Op::Crash, 1, 0)]),
    ] {
        std::fs::write(directory.path().join(name), program(Mode::Long, steps)).unwrap();
    }
    directory
}

/// The status of a command in that directory.
fn status(directory: &Path, args: &str, change: impl FnOnce(&mut Command)) -> Option<i32> {
    let mut command = Command::new(binary::vmm());
    command.args(args.split_whitespace()).current_dir(directory).stdin(Stdio::null());
    end_with_test(&mut command);
    change(&mut command);
    let mut child: Child = command.spawn().unwrap();
    wait_until(args, || child.try_wait().unwrap()).code()
}

#[test]
fn a_standard_error_that_is_broken_is_no_reason_to_end() {
    let place = programs();
    for broken in [Broken::Full, Broken::Deaf] {
        for (args, expected) in [
            // Nothing to say.
            ("run --flat hello --no-publish", 7),
            // That the statistics are not published.
            ("run --flat hello", 7),
            ("run --flat hello --no-seccomp", 7),
            // What became of the guest.
            ("run --flat crash --no-publish", 124),
            ("run --flat crash --no-publish --no-seccomp", 124),
            ("run --flat crash --mount mount --stats-out out", 124),
            // Why the VMM failed, before and after the guest has run.
            ("run --flat missing --no-publish", 125),
            ("run --flat hello --mount missing/mount", 125),
            ("run --flat hello --no-publish --stats-out /dev/full", 125),
            ("demo --mount missing/mount", 125),
            // How a command line is wrong.
            ("run --flat hello --cpus 0", 2),
            ("run --flat hello --help", 0),
        ] {
            let ended = status(place.path(), args, |command| {
                command.stdout(Stdio::null()).stderr(broken.output());
            });
            assert_eq!(ended, Some(expected), "{broken:?}: {args}");
            let mount = place.path().join("mount");
            assert!(mounted_at(&mount).is_empty() && !mount.exists(), "{broken:?}: {args}");
        }
        // What the statistics lack.
        let ended =
            status(place.path(), "run --flat hello --no-publish --stats-out out", |command| {
                command.stdout(Stdio::null()).stderr(broken.output());
                // SAFETY: all that the child does before it becomes the VMM is async-signal-safe.
                unsafe { command.pre_exec(hide_proc) };
            });
        assert_eq!(ended, Some(7), "{broken:?}");
        let flat = Flat::read(&place.path().join("out"));
        assert!(flat.find("kvm/sched_slices").is_none(), "it had something to say");
    }
}

#[test]
fn nor_is_one_with_the_standard_output() {
    let place = programs();
    for (broken, args, expected) in [
        // A console that nobody takes is the guest's loss.
        (Broken::Full, "run --flat hello --mount mount", 7),
        (Broken::Deaf, "run --flat hello --mount mount", 7),
        // Not so the statistics, or the table.
        (Broken::Full, "run --flat hello --no-publish --stats-out /dev/stdout", 125),
        (Broken::Deaf, "run --flat hello --no-publish --stats-out /dev/stdout", 125),
        (Broken::Full, "demo --seconds 1 --mount mount", 125),
        // Whoever read it has seen enough.
        (Broken::Deaf, "demo --seconds 1 --mount mount", 0),
    ] {
        let ended = status(place.path(), args, |command| {
            command.stdout(broken.output()).stderr(broken.output());
        });
        assert_eq!(ended, Some(expected), "{broken:?}: {args}");
        let mount = place.path().join("mount");
        assert!(mounted_at(&mount).is_empty() && !mount.exists(), "{broken:?}: {args}");
    }
}
