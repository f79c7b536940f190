//! A limit of the process that is too low is told in one line that says which, or is no more than a loss that
//! is counted; it never leaves anything behind.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;

use tests::guest::{COM1, Mode, Op, Step, end};
use tests::namespace::{Devices, private};
use tests::running::Ended;
use tests::vmm::Vmm;

/// With a limit set, which is as high as it may be raised, too.
fn limited(vmm: Vmm, resource: libc::__rlimit_resource_t, limit: u64) -> Vmm {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: the pointer is to a live rlimit.
        let set = unsafe { libc::setrlimit(resource, &limit) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the call is async-signal-safe, and nothing is allocated.
    vmm.with(|command| _ = unsafe { command.pre_exec(set) })
}

/// A guest that ends at once.
fn quick() -> Vmm {
    Vmm::new(Mode::Long, &[end(7)])
}

/// It failed, for this reason alone, and left nothing.
#[track_caller]
fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status.code(), Some(125), "{}: {}", ended.status, ended.stderr);
    ended.assert_says(parts);
    ended.assert_clean();
}

const FILE_SIZE: &str = "(`ulimit -f`)";

#[test]
fn a_file_that_can_not_get_larger_loses_the_console_and_not_the_guest() {
    let (room, sent) = (100, 1000);
    const LIMIT: u64 = 1 << 20;
    let vmm = Vmm::new(Mode::Long, &[Step::new(Op::Out8, sent, COM1), end(7)]);
    let path = vmm.directory().join("console");
    let file = File::create(&path).unwrap();
    file.set_len(LIMIT - u64::from(room)).unwrap();
    let file = File::options().append(true).open(&path).unwrap();
    let ended = limited(vmm.console_to(file), libc::RLIMIT_FSIZE, LIMIT).run().assert(7);
    let flat = ended.flat();
    assert_eq!(flat.get("kvm/serial_tx_bytes"), u64::from(room));
    assert_eq!(flat.get("kvm/serial_tx_lost_bytes"), u64::from(sent - room));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), LIMIT);
}

#[test]
fn files_that_are_too_small_for_the_statistics() {
    for limit in [0, 60 << 10, 100 << 10] {
        for vmm in [quick(), quick().unmounted()] {
            let ended = limited(vmm, libc::RLIMIT_FSIZE, limit).run();
            let most = format!("at most {limit}:");
            assert_refused(&ended, &["a statistics segment takes", &most, FILE_SIZE]);
            assert!(ended.stats.is_none());
        }
    }
    // What is shared is not too large, but what is written in the end: nothing is, rather than a part.
    let ended = limited(quick().cpus(64), libc::RLIMIT_FSIZE, 256 << 10).run();
    assert_refused(&ended, &["can not be written", "File too large", FILE_SIZE]);
    assert!(ended.stats.is_none());
}

#[test]
fn any_number_of_open_files_is_enough_or_too_few() {
    let mut enough = 0;
    for limit in 4..32 {
        let ended = limited(quick(), libc::RLIMIT_NOFILE, limit).run();
        if ended.status.code() == Some(7) {
            enough += 1;
            ended.assert_clean();
            // At most, that there are too few for everything.
            if !ended.stderr.is_empty() {
                ended.assert_says(&["are missing", "(`ulimit -n`)"]);
            }
        } else {
            assert_refused(&ended, &["Too many open files", "(`ulimit -n`)"]);
            for wrong in ["dmesg", "another place", "/proc mounted"] {
                assert!(!ended.stderr.contains(wrong), "{limit}: {}", ended.stderr);
            }
            // A thread that starts needs some for a moment: near the edge it depends on which is faster.
            assert!(enough < 4, "{limit}: fewer were enough; {}", ended.stderr);
        }
    }
    assert!((1..20).contains(&enough), "{enough}");
}

#[test]
fn any_number_of_threads_is_enough_or_too_few() {
    private(|| {
        let devices = Devices::new();
        devices.replace("kvm", 10, 232, 0o666);
        devices.replace("fuse", 10, 229, 0o666);
        // Threads are counted by user: others of this one's are only more.
        const USER: u32 = 65534;
        let mut enough = 0;
        for limit in 1..20 {
            let ended = limited(quick().as_user(USER), libc::RLIMIT_NPROC, limit).run();
            if ended.status.code() == Some(7) {
                enough += 1;
                ended.assert_clean();
                assert_eq!(ended.stderr, "", "{limit}");
            } else {
                assert_refused(&ended, &["Resource temporarily unavailable", "(`ulimit -u`)"]);
            }
        }
        assert!((1..19).contains(&enough), "{enough}");
    });
}

#[test]
fn any_address_space_is_enough_or_too_small() {
    let (mut enough, mut too_small) = (0, 0);
    // Less than what it takes to load the program itself, if that is built for debugging, would say nothing: to say what
    // failed, it maps all of its file.
    let program = std::fs::metadata(tests::binary::vmm()).unwrap().len() >> 20;
    for megabytes in (80.max(program + 36)..220).step_by(12) {
        let ended = limited(quick(), libc::RLIMIT_AS, megabytes << 20)
            .with(|command| _ = command.env("RUST_BACKTRACE", "1"))
            .run();
        if ended.status.code() == Some(7) {
            ended.assert_clean();
            assert_eq!(ended.stderr, "", "{megabytes}M");
            enough += 1;
        } else {
            assert_refused(&ended, &["(`ulimit -v`)"]);
            too_small += 1;
        }
    }
    assert!(enough > 0 && too_small > 0, "{enough} {too_small}");
}
