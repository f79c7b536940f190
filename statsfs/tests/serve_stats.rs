//! The server's own statistics: what is asked of its mount is counted, to the last request, and who is refused
//! is named.

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/user.rs"]
mod user;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use server::Server;
use statsfs::host::server::RefusedFor;
use statsfs::host::{PublishOptions, PublishState, Publisher};
use statsfs::{Registry, RegistryOptions, Slot, Source};
use support::{PATIENCE, StopAtEnd, Work, below, forget_names, until};
use user::as_user;

const OPERATIONS: [&str; 10] = [
    "lookup",
    "getattr",
    "readlink",
    "open",
    "read",
    "read_bulk",
    "write",
    "opendir",
    "readdir",
    "other",
];

/// A registry that publishes machines for all to see.
struct Machines {
    _publisher: Publisher,
    registry: Registry,
    kvm: Source,
    slots: Vec<Slot<Work>>,
}

impl Machines {
    fn publish(server: &Server, names: impl IntoIterator<Item = String>) -> Self {
        let registry = Registry::with_options(RegistryOptions::default()).unwrap();
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let socket = Some(server.socket());
        let options = PublishOptions { socket, public: true, ..PublishOptions::default() };
        let publisher = registry.publish(options).unwrap();
        let state = publisher.wait_tried(PATIENCE);
        assert!(matches!(state, PublishState::Published { .. }), "{state:?}\n{}", server.log());
        let mut machines = Self { _publisher: publisher, registry, kvm, slots: Vec::new() };
        let mut last = String::new();
        for name in names {
            let source = below(&machines.registry, &machines.kvm, &name);
            machines.slots.push(source.add_values().unwrap());
            last = name;
        }
        let last = server.path(&directory(&last));
        until("they are there", || last.exists());
        machines
    }
}

fn directory(name: &str) -> String {
    format!("kvm/{}-{name}", std::process::id())
}

/// What the server counts, as a bulk file that is kept open says: one request, which counts for the next.
struct Own(File);

type Counts = BTreeMap<String, u64>;

impl Own {
    fn of(server: &Server) -> Self {
        Self(File::open(server.path("statsfs/.stats/flat")).unwrap())
    }

    /// The counts, and the bytes that it took to say so.
    fn read(&self) -> (Counts, u64) {
        let mut text = vec![0; 1 << 20];
        let n = self.0.read_at(&mut text, 0).unwrap();
        let text = std::str::from_utf8(&text[..n]).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap());
        let number = |(path, number): (&str, &str)| {
            (path.strip_prefix("statsfs/").unwrap().to_owned(), number.parse().unwrap())
        };
        (lines.map(number).collect(), n as u64)
    }
}

/// What to expect: what was more after than before, by the names of files.
#[derive(Default)]
struct Expected(BTreeMap<String, u64>);

impl Expected {
    fn add(mut self, name: &str, n: u64) -> Self {
        *self.0.entry(name.to_owned()).or_default() += n;
        self
    }

    /// So many requests of a kind.
    fn ask(self, operation: &str, n: u64) -> Self {
        self.add(&format!("mount_requests_{operation}"), n)
    }

    /// So many that fail.
    fn fail(self, operation: &str, n: u64) -> Self {
        self.ask(operation, n).add(&format!("mount_errors_{operation}"), n)
    }
}

/// Has something done, and compares all that is counted of requests with what is expected.
fn check(own: &Own, what: &str, act: impl FnOnce(), expected: Expected) {
    let (before, bytes) = own.read();
    act();
    let Expected(mut expected) =
        expected.ask("read_bulk", 1).add("mount_read_bulk_bytes", bytes).add("tree_sweeps", 1);
    for operation in OPERATIONS {
        let requests = expected.get(&format!("mount_requests_{operation}")).copied();
        expected.insert(format!("mount_time_{operation}/count"), requests.unwrap_or(0));
    }
    let has_all = |after: &Counts, names: &dyn Fn(&str) -> bool| {
        let mut names = after.keys().filter(|name| names(name));
        names.find_map(|name| {
            let expected = expected.get(name).copied().unwrap_or(0);
            let counted = after[name] - before[name];
            (counted != expected)
                .then(|| format!("{what}: {name} is {counted} more, not {expected}"))
        })
    };
    // A file is closed without waiting for an answer. Looking again is one more request.
    let (after, _) = own.read();
    let is_mount = |name: &str| {
        let counts = ["mount_requests_", "mount_errors_", "mount_read_", "mount_refused_"];
        let is_time = name.starts_with("mount_time_") && name.ends_with("/count");
        (is_time || counts.iter().any(|count| name.starts_with(count))) && !name.contains("_other")
    };
    assert_eq!(has_all(&after, &is_mount), None);
    // What is overtaken by a change of structure is read again.
    let sweeps = |counts: &Counts| counts["tree_sweeps"] - counts["tree_retries"];
    let expected_sweeps = expected["tree_sweeps"];
    assert_eq!(sweeps(&after) - sweeps(&before), expected_sweeps, "{what}: sweeps");
    assert_eq!(
        after["tree_clears"] - before["tree_clears"],
        expected.get("tree_clears").copied().unwrap_or(0),
        "{what}: clears"
    );
    let is_other = |name: &str| {
        ["mount_requests_other", "mount_errors_other", "mount_time_other/count"].contains(&name)
    };
    until(&format!("{what}: what is not waited for"), || {
        has_all(&own.read().0, &is_other).is_none()
    });
}

/// A file's status as the server has it now, whatever the kernel remembers.
fn ask_for_attributes(file: &File) {
    // SAFETY: the path is an empty C string and the result is written to a live struct of the right type.
    unsafe {
        let mut status = std::mem::zeroed::<libc::statx>();
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
        let mask = libc::STATX_BASIC_STATS;
        let result = libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &mut status);
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// Something whose name is in use as long as this is there.
fn in_use(path: &Path) -> File {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(path).unwrap()
}

#[test]
fn every_request_is_counted() {
    let server = &Server::start();
    let machines = Machines::publish(server, ["web".to_owned()]);
    machines.slots[0].update(|counters| counters.work_done.add(7));
    let vm = server.path(&directory("web"));
    let (value, bulk, link) =
        (vm.join("work_done"), vm.join(".stats/flat"), server.path("by-name/web"));
    // What the kernel is to know already, and not to forget meanwhile, whoever else has it forget what is not in use.
    let ways = [&value, &bulk, &link, &vm.join("work_queue"), &server.path("by-name")];
    let known = ways.map(|path| in_use(path));
    // What it was told along with their names it believes for 50 ms, and what it has asked for since then for long.
    std::thread::sleep(Duration::from_millis(100));
    ways.into_iter().for_each(|path| assert!(path.symlink_metadata().is_ok()));
    // And what it asks but once.
    std::fs::write(vm.join("work_time/count"), "0").unwrap();
    let held = File::open(&value).unwrap();
    let own = &Own::of(server);
    // The first time each thread makes itself a slot.
    own.read();

    check(own, "nothing", || {}, Expected::default());
    let mut text = [0; 64];
    let expected = Expected::default().ask("open", 10).ask("read", 20).ask("other", 10);
    check(
        own,
        "values",
        || {
            for _ in 0..10 {
                let file = File::open(&value).unwrap();
                assert_eq!(file.read_at(&mut text, 0).unwrap(), 2);
                // The rest, and nothing is rendered for it.
                assert_eq!(file.read_at(&mut text, 2).unwrap(), 0);
            }
        },
        expected.add("mount_read_bytes", 20).add("tree_sweeps", 10),
    );
    let flat = std::fs::read(&bulk).unwrap();
    let expected = Expected::default().ask("open", 1).ask("read_bulk", 1).ask("other", 1);
    check(
        own,
        "a bulk file",
        || {
            let file = File::open(&bulk).unwrap();
            assert_eq!(file.read_at(&mut vec![0; 1 << 20], 0).unwrap(), flat.len());
        },
        expected.add("mount_read_bulk_bytes", flat.len() as u64).add("tree_sweeps", 1),
    );
    let missing = vm.join("missing");
    check(
        own,
        "names that are not there",
        || (0..5).for_each(|_| assert!(missing.metadata().is_err())),
        Expected::default().fail("lookup", 5),
    );
    check(
        own,
        "a name that is new to the kernel",
        || assert!(vm.join("work_failed").metadata().is_ok()),
        Expected::default().ask("lookup", 1),
    );
    check(
        own,
        "attributes",
        || (0..4).for_each(|_| ask_for_attributes(&held)),
        Expected::default().ask("getattr", 4),
    );
    check(
        own,
        "links",
        || (0..3).for_each(|_| assert!(link.read_link().is_ok())),
        Expected::default().ask("readlink", 3),
    );
    check(
        own,
        "a listing",
        || assert_eq!(std::fs::read_dir(server.path("by-name")).unwrap().count(), 1),
        // What there is, and that there is no more.
        Expected::default().ask("opendir", 1).ask("readdir", 2).ask("other", 1),
    );
    let commits = own.read().0["state_commits"];
    let expected = Expected::default().ask("open", 1).ask("write", 2).fail("write", 1);
    check(
        own,
        "clears",
        || {
            let mut file = File::options().write(true).open(&value).unwrap();
            let writes = [b"0\n" as &[u8], b"7\n", b"0"].map(|text| file.write_at(text, 0).is_ok());
            assert_eq!(writes, [true, false, true]);
            assert!(file.flush().is_ok());
        },
        expected.ask("other", 1).add("tree_clears", 2).add("tree_sweeps", 2),
    );
    let (after, _) = own.read();
    assert_eq!(after["state_commits"] - commits, 2);
    assert_eq!((after["state_failures"], after["state_time/count"]), (0, after["state_commits"]));
    assert!(after["state_bytes"] > 0 && after["state_time/sum"] > 0);
    check(
        own,
        "what is refused",
        || {
            assert!(File::options().write(true).open(vm.join("work_queue")).is_err());
            assert!(std::fs::create_dir(&missing).is_err());
            held.sync_all().unwrap();
        },
        // Whether there is something of that name is asked first; nobody is asked again for what is not there.
        Expected::default().fail("open", 1).fail("lookup", 1).fail("other", 2),
    );
    // Times are of the order of what was measured, and the kernel may forget what has gone.
    let (counts, _) = own.read();
    for operation in OPERATIONS {
        let times = |field| counts[&format!("mount_time_{operation}/{field}")];
        println!("{operation}: {} requests, mean {} ns", times("count"), times("mean"));
        assert!(times("sum") > 0 && times("max") >= times("mean"), "{operation}");
    }
    assert!(counts["tree_sweep_time/sum"] > 0 && counts["tree_sweep_cells"] > 0);
    assert!(counts["tree_sweep_blocks"] >= counts["tree_sweeps"]);
    let forgotten = counts["mount_forgotten"];
    drop((machines, held, known));
    until("its names are forgotten", || {
        forget_names();
        own.read().0["mount_forgotten"] > forgotten
    });
}

/// What the mount refused for a limit.
fn refused(server: &Server, limit: &str) -> u64 {
    server.number(&format!("statsfs/mount_refused_{limit}"))
}

const A: u32 = 20_001;
const B: u32 = 20_002;

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).expect("an error of the system")
}

/// That a limit was named: in the log, in the status, and in a number.
fn check_named(server: &Server, text: &str, label: &str, times: u64) {
    let log = server.log();
    let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&format!("uid={A}")) && line.contains("pid="), "{line}");
    let status = server.status().refused;
    let named: Vec<_> = status.iter().filter(|refusal| refusal.text == text).collect();
    assert_eq!(named.len(), 1, "once, however often: {status:?}");
    assert_eq!((named[0].uid, named[0].reason), (A, RefusedFor::Limit));
    assert!(named[0].pid > 0);
    assert_eq!(refused(server, label), times);
}

#[test]
fn one_users_readers_leave_room_for_others() {
    let server = &Server::with(&[
        "--max-user-open-files",
        "5",
        "--max-user-open-mib",
        "1",
        "--max-user-bulk-reads",
        "2",
    ]);
    let _machines = Machines::publish(server, (0..1000).map(|n| format!("vm{n}")));
    let (value, bulk) = (&server.path("kvm/work_done"), &server.path("kvm/.stats/flat"));
    let size = std::fs::read(bulk).unwrap().len();
    assert!((600 << 10..1 << 20).contains(&size), "one fits, two do not: {size} bytes");

    let open = |n: usize| -> Vec<File> { (0..n).map(|_| File::open(value).unwrap()).collect() };
    let of_a = as_user(A, A, &[], || {
        let files = open(5);
        for _ in 0..100 {
            assert_eq!(errno(File::open(value)), libc::EMFILE);
        }
        files
    });
    drop((as_user(B, B, &[], || open(5)), open(20)));
    let text = format!("user {A} has reached the limit of 5 open files");
    check_named(server, &text, "user_open_files", 100);
    drop(of_a);
    until("it may open files again", || as_user(A, A, &[], || File::open(value).is_ok()));

    let read = |file: &File| file.read_at(&mut [0; 4096], 0);
    let hold = || File::open(bulk).inspect(|file| assert_eq!(read(file).unwrap(), 4096)).unwrap();
    let of_a = as_user(A, A, &[], || {
        let file = hold();
        let another = File::open(bulk).unwrap();
        assert_eq!(errno(read(&another)), libc::ENOMEM);
        let number = std::fs::read_to_string(value).unwrap();
        assert_eq!(number, "0\n", "a small one still fits");
        file
    });
    drop((as_user(B, B, &[], hold), hold(), hold()));
    let text = format!("user {A} has reached the limit of {} bytes in open files", 1 << 20);
    check_named(server, &text, "user_open_bytes", 1);
    drop(of_a);

    // A flood of one user's, who is refused now and then, while others read on.
    let (flooded, stop) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let read_all = || std::fs::read(bulk).map(|text| text.len());
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(stop);
        for _ in 0..4 {
            scope.spawn(|| {
                as_user(A, A, &[], || {
                    while !stop.load(SeqCst) {
                        if let Err(error) = read_all() {
                            // Two of them do not fit together.
                            let errno = error.raw_os_error();
                            assert!(
                                matches!(errno, Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE)),
                                "{error}"
                            );
                            flooded.fetch_or(errno == Some(libc::EAGAIN), SeqCst);
                        }
                    }
                });
            });
        }
        until("it is refused", || flooded.load(SeqCst));
        for _ in 0..10 {
            assert_eq!(as_user(B, B, &[], read_all).unwrap(), size);
            assert_eq!(read_all().unwrap(), size);
        }
    });
    let text = format!(
        "user {A} has reached the limit of 2 bulk files and totals over many sources being read at once"
    );
    check_named(server, &text, "user_bulk_reads", refused(server, "user_bulk_reads"));
    assert_eq!(refused(server, "open_files") + refused(server, "bulk_reads"), 0);
}
