//! Who may look at what through a real server's mount: each file, each directory and each bulk file, for every
//! kind of user.

#[path = "../../tests/src/bulk.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod bulk;
#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clients::{
    A, B, Machine, PUBLISHERS, READERS, as_user, directory, for_users, options, small_registry,
};
use server::Server;
use statsfs::host::{PublishState, Publisher};
use statsfs::{Registry, Slot, Source};
use support::{PATIENCE, Work, below, until};

/// Somebody of no group.
const OTHER: u32 = 20_003;
/// Every file that shows a whole subtree.
const BULK: [&str; 10] = [
    "flat",
    "json",
    "summary",
    "schema",
    "prometheus",
    "prometheus-full",
    "openmetrics",
    "openmetrics-full",
    "snapshot",
    "binary",
];

/// Whether something of a directory is in a bulk file, whichever it is. The names of directories that are asked for
/// occur nowhere else.
fn shows(text: &str, directory: &str) -> bool {
    let name = directory.rsplit('/').next().unwrap();
    // In labels a machine is called what its program calls it.
    let machine = name.split_once('-').filter(|(pid, _)| pid.parse::<u32>().is_ok());
    let is_label = |(_, name): (&str, &str)| text.contains(&format!("vm=\"{name}\""));
    text.contains(name) || machine.is_some_and(is_label)
}

fn read_bulk(server: &Server, dir: &str, file: &str) -> io::Result<String> {
    let bytes = std::fs::read(server.path(dir).join(".stats").join(file))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a cell with this number is in a snapshot.
fn has_cell(server: &Server, dir: &str, number: u64) -> bool {
    let bytes = std::fs::read(server.path(dir).join(".stats/snapshot")).unwrap();
    bytes.chunks_exact(8).any(|word| word == number.to_le_bytes())
}

fn errno<T>(result: &io::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

/// A machine with a device that is its owner's alone, and with something that has left it.
struct Guest {
    _registry: Registry,
    _sources: [Source; 3],
    slots: [Slot<Work>; 2],
    publisher: Publisher,
}

impl Guest {
    fn publish(server: &Server, name: &str, public: bool) -> Self {
        let registry = small_registry();
        let kvm = registry.create_source("kvm").unwrap();
        kvm.register().unwrap();
        let machine = below(&registry, &kvm, name);
        let device = registry.source(&format!("secret-{name}")).private().create().unwrap();
        machine.add_subordinate(&device).unwrap();
        let slots = [machine.add_values().unwrap(), device.add_values().unwrap()];
        let left = below(&registry, &machine, "left");
        left.add_values::<Work>().unwrap().update(|counters| counters.work_done.add(5));
        machine.remove_subordinate(&left).unwrap();
        let publisher = registry.publish(options(server, public)).unwrap();
        let state = publisher.wait_tried(PATIENCE);
        assert!(matches!(state, PublishState::Published { .. }), "{state:?}\n{}", server.log());
        Self { _registry: registry, _sources: [kvm, machine, device], slots, publisher }
    }

    /// Counts in itself, and in the device.
    fn count(&self) {
        self.slots[0].update(|counters| counters.work_done.add(1));
        self.slots[1].update(|counters| counters.work_done.add(10));
    }

    /// Counts what nobody else does, in itself and in the device.
    fn count_alone(&self, number: u64) {
        self.slots[0].update(|counters| counters.work_failed.add(number));
        self.slots[1].update(|counters| counters.work_failed.add(3));
    }
}

/// What the machines count alone.
const ALONE: [u64; 3] = [0x5ec_a01_7a1, 0x5ec_b02_3c5, 0x5ec_0c3_9f7];

/// What it counts, with what left it.
const COUNTED: u64 = 1 + 10 + 5;

#[test]
fn who_may_not_read_reads_nothing() {
    let server = &for_users(&[]);
    let publish = |uid, name: &'static str, public| {
        as_user(uid, uid, &[PUBLISHERS], || Guest::publish(server, name, public))
    };
    // One that has left: the totals of those that did are a directory, too.
    let gone = publish(A, "gone", false);
    gone.count();
    drop(gone.publisher);
    until("it has left", || server.try_number("kvm/.departed/work_done").is_ok_and(|n| n > 0));
    let machines = [publish(A, "a", false), publish(B, "b", false), publish(B, "open", true)];
    machines.iter().for_each(Guest::count);
    machines.iter().zip(ALONE).for_each(|(machine, number)| machine.count_alone(number));
    let names = ["a", "b", "open"];
    let device = |name: &str| format!("{}/secret-{name}", directory(name));
    for (name, uid, gid, mode) in
        [("a", A, READERS, 0o750), ("b", B, READERS, 0o750), ("open", B, B, 0o755)]
    {
        let attributes = |path: String| {
            let metadata = server.path(&path).metadata().unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        assert_eq!(attributes(directory(name)), (uid, gid, mode), "{name}");
        // A private device is nobody else's, wherever it is.
        assert_eq!(attributes(device(name)), (uid, READERS, 0o750), "{name}");
    }
    let may = [
        // Who, groups, and whether they may look into each, and into its device.
        (A, vec![], [true, false, true], [true, false, false]),
        (B, vec![], [false, true, true], [false, true, true]),
        (B, vec![PUBLISHERS], [false, true, true], [false, true, true]),
        (OTHER, vec![], [false, false, true], [false, false, false]),
        (OTHER, vec![READERS], [true; 3], [true; 3]),
        (0, vec![], [true; 3], [true; 3]),
    ];
    let mut snapshots = Vec::new();
    for (uid, groups, into, into_device) in may {
        as_user(uid, uid, &groups, || {
            let who = format!("user {uid} with groups {groups:?}");
            // What all may know: the totals, and which machines there are.
            assert_eq!(server.number("kvm/work_done"), 4 * COUNTED, "{who}");
            assert_eq!(server.number("kvm/.departed/work_done"), COUNTED, "{who}");
            let listed: BTreeSet<_> = std::fs::read_dir(server.path("kvm"))
                .unwrap()
                .flatten()
                .map(|e| e.file_name())
                .collect();
            for file in BULK {
                let of_all = ["", "kvm"].map(|dir| read_bulk(server, dir, file).unwrap());
                let departed = read_bulk(server, "kvm/.departed", file).unwrap();
                assert!(departed.contains("work_done"), "{who}: {departed}");
                for (n, name) in names.iter().enumerate() {
                    let (of, device) = (directory(name), device(name));
                    for text in &of_all {
                        let seen = (shows(text, &of), shows(text, &device));
                        // That is of one directory.
                        let is_one = file == "binary";
                        let expected = (into[n] && !is_one, into_device[n] && !is_one);
                        assert_eq!(seen, expected, "{who}: {name} in {file}");
                    }
                    assert!(!shows(&departed, &of) && !shows(&departed, &device), "{who}");
                    // Of itself, of what has left it, and of its device.
                    for dir in [of.clone(), format!("{of}/.departed")] {
                        let text = read_bulk(server, &dir, file);
                        let expected = (!into[n]).then_some(libc::EACCES);
                        assert_eq!(errno(&text), expected, "{who}: {dir}, {file}");
                    }
                    if let Ok(text) = read_bulk(server, &of, file) {
                        let expected = into_device[n] && file != "binary";
                        assert_eq!(shows(&text, &device), expected, "{who}: {of}, {file}");
                    }
                    let text = read_bulk(server, &device, file);
                    let expected = (!into_device[n]).then_some(libc::EACCES);
                    assert_eq!(errno(&text), expected, "{who}: {device}, {file}");
                }
            }
            // Each format says what the files say to them, and no cell is in a snapshot that is not theirs.
            let all = bulk::agree(&server.mount(), "kvm", |_| true);
            for (n, number) in ALONE.into_iter().enumerate() {
                for dir in ["", "kvm"] {
                    assert_eq!(has_cell(server, dir, number), into[n], "{who}: {}", names[n]);
                }
            }
            let snapshot = server.mount().join("kvm/.stats/snapshot");
            snapshots.push((who.clone(), std::fs::read(snapshot).unwrap(), all));
            for (n, name) in names.iter().enumerate() {
                let (of, device) = (directory(name), device(name));
                assert!(listed.contains(Path::new(&of).file_name().unwrap()), "{who}");
                let read = server.try_number(&format!("{of}/work_done"));
                let by_name = std::fs::read_dir(server.path(&format!("by-name/{name}")));
                for errno in [errno(&read), errno(&by_name)] {
                    assert_eq!(errno, (!into[n]).then_some(libc::EACCES), "{who}: {name}");
                }
                // Totals leave out nothing, whoever asks.
                assert!(read.is_err() || read.is_ok_and(|n| n == COUNTED), "{who}: {name}");
                let read = server.try_number(&format!("{device}/work_done"));
                let expected = (!into_device[n]).then_some(libc::EACCES);
                assert_eq!(errno(&read), expected, "{who}: {device}");
            }
            // Only the owner clears, and root.
            for (name, of) in names.iter().zip([A, B, B]) {
                for dir in [directory(name), device(name)] {
                    let cleared = std::fs::write(server.path(&dir).join("work_failed"), "0\n");
                    assert_eq!(cleared.is_ok(), uid == 0 || uid == of, "{who}: {dir}: {cleared:?}");
                }
            }
            // And each is told of their own connections.
            if groups.contains(&PUBLISHERS) || uid == 0 {
                let clients = server.status().clients.len();
                assert_eq!(clients, if uid == 0 { 3 } else { 2 }, "{who}");
            }
        });
    }
    let place = tempfile::NamedTempFile::new().unwrap();
    for (who, bytes, all) in snapshots {
        std::fs::write(place.path(), bytes).unwrap();
        eprintln!("what {who} sees");
        bulk::agree_by_script(place.path(), &all, |_| true);
    }
    // Who is in no group may not publish.
    let state =
        as_user(A, A, &[], || Machine::new(server, "no", false).publisher.wait_tried(PATIENCE));
    assert!(
        matches!(&state, PublishState::Unreachable(why) if why.contains("may not be used by this user")),
        "{state:?}"
    );
}

#[test]
fn every_bulk_file_that_there_is_was_looked_at() {
    let server = Server::start();
    let stats = std::fs::read_dir(server.path(".stats")).unwrap();
    let there: BTreeSet<_> =
        stats.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let looked_at = BULK.into_iter().chain(["clear"]).map(str::to_owned).collect();
    assert_eq!(there, looked_at);
}
