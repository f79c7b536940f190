//! `.stats/snapshot` and `.stats/binary`: what they say is what the files show, also of clears, of what departed and of what is
//! hidden; rates come right across all of that; and whatever the bytes are, the reader says so.

#[path = "../../tests/src/bulk.rs"]
mod bulk;
mod support;
#[path = "support/user.rs"]
mod user;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bulk::{KvmStatistics, agree, agree_by_script, of_snapshot};
use statsfs::fs::{MountOptions, Nodes, ROOT};
use statsfs::snapshot::{Changes, ReadError, Snapshot, SnapshotError, format};
use statsfs::tree::{Identity, Owner, Tree, TreeOptions};
use statsfs::value::{Aggregations, Group, Unit};
use statsfs::{Embedded, Registry, Slot, Source, stats};
use user::as_user;

use support::{Phase, Random, StopAtEnd, Tick, Work, below, rounds, seed};

stats! {
    /// What is narrow, signed, or both.
    pub struct Odd: "odd", prefix "odd_" {
        /// Wraps soon.
        odd_u8: Counter<u8>,
        /// Wraps late.
        odd_u32: Counter<u32> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Below 0.
        odd_s16: Gauge<i16> { aggregate: [sum, min, max, avg, zero, nonzero] },
        /// Far below 0.
        odd_s64: Gauge<i64> { aggregate: [min, max] },
        /// One kind only.
        odd_avg: Gauge<i8> { aggregate: avg },
        /// Not added up.
        odd_own: Counter { aggregate: none },
        /// Largest.
        odd_peak: Peak<u16, Bytes>,
        /// Whether.
        odd_flag: Flag { aggregate: [sum, zero, nonzero] },
        /// Sizes.
        odd_sizes: Histogram<Bytes> { buckets: 5 },
        /// Sizes of nobody else.
        odd_own_sizes: Histogram { buckets: 3, aggregate: none },
        /// A state.
        odd_state: Gauge<u8> { states: Phase },
        /// Things {}.
        odd_things: PerLabel<Counter<Seconds>, Phase>,
    }
}

stats! {
    /// What is nobody else's concern.
    pub struct Secret: "unknown_group" {
        /// Nobody knows of it.
        secret_own: Counter { aggregate: none },
        /// All know the sum.
        secret_sum: Counter,
        /// And how large the largest is.
        secret_max: Gauge<u32> { aggregate: max },
    }
}

/// Sources of every kind, with counts of every kind in them.
struct Sample {
    registry: Registry,
    top: Source,
    sources: Vec<Source>,
    work: Vec<Slot<Work>>,
    odd: Vec<Slot<Odd>>,
}

impl Sample {
    fn new() -> Self {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("top").unwrap();
        let mut sources = vec![];
        for name in ["a", "b", "hidden", "below-hidden", "vault", "inner", "empty"] {
            let source = match name {
                "hidden" => registry.source(name).hidden(),
                "vault" => registry.source(name).private(),
                "a" => registry.source(name).label("n", "1").label("x", "a \"b\""),
                _ => registry.source(name),
            };
            sources.push(source.create().unwrap());
        }
        let [a, b, hidden, below_hidden, vault, inner, empty] = &sources[..] else { panic!() };
        for (above, below) in [
            (&top, a),
            (a, b),
            (&top, hidden),
            (hidden, below_hidden),
            (&top, vault),
            (vault, inner),
            (&top, empty),
        ] {
            above.add_subordinate(below).unwrap();
        }
        top.register().unwrap();
        let with_work = [&top, a, b, hidden, below_hidden, vault, inner, a];
        let work = with_work.map(|source| source.add_values().unwrap()).into();
        let odd = [a, b, hidden, vault, inner].map(|source| source.add_values().unwrap()).into();
        empty.add_aggregates::<Tick>().unwrap();
        Self { registry, top, sources, work, odd }
    }

    fn count(&self, random: &mut Random) {
        for work in &self.work {
            let (done, failed) = (random.below(1 << 40), random.below(2));
            work.update(|counters| {
                counters.work_done.add(done);
                counters.work_failed.add(failed);
            });
            (0..random.below(9)).for_each(|_| work.work_time.record(random.below(200)));
            work.work_queue_peak.record(random.below(9) as u32);
            work.work_running.set(random.one_in(2));
        }
        // With one slot each.
        for work in &self.work[..self.work.len() - 1] {
            if !std::ptr::eq(work, &self.work[1]) {
                work.work_queue.set(random.below(100) as i32 - 50);
            }
        }
        for odd in &self.odd {
            odd.odd_u8.add(random.below(255) as u8);
            odd.odd_u32.add(random.below(1 << 31) as u32);
            odd.odd_s16.set(random.below(100) as i16 - 90);
            odd.odd_s64.set(i64::MIN / 4 + random.below(1 << 50) as i64);
            odd.odd_avg.set(random.below(200) as i8);
            odd.odd_own.add(random.below(9));
            odd.odd_peak.record(random.below(1 << 16) as u16);
            odd.odd_flag.set(random.one_in(2));
            odd.odd_sizes.record(random.below(40));
            odd.odd_own_sizes.record(random.below(4));
            odd.odd_state.set(random.below(3) as u8);
            odd.odd_things[Phase::Ended].add(random.below(5));
        }
    }

    /// A source that counts and goes.
    fn depart(&self, above: &Source, name: &str, random: &mut Random) {
        let source = below(&self.registry, above, name);
        let (work, odd) =
            (source.add_values::<Work>().unwrap(), source.add_values::<Odd>().unwrap());
        let done = random.below(1000);
        work.update(|counters| counters.work_done.add(done));
        work.work_time.record(random.below(100));
        odd.odd_u8.add(random.below(255) as u8);
        odd.odd_u32.add(7);
        odd.odd_own.add(3);
        odd.odd_sizes.record(5);
        odd.odd_s16.set(-5);
        above.remove_subordinate(&source).unwrap();
    }
}

fn mount(registry: &Registry) -> (tempfile::TempDir, PathBuf, Embedded) {
    let all = std::fs::Permissions::from_mode(0o755);
    let dir = tempfile::Builder::new().permissions(all).tempdir().unwrap();
    let root = dir.path().join("mnt");
    let mounted = Embedded::mount(registry, &root, MountOptions::new());
    (dir, root, mounted.expect("these tests must be run as root, with /dev/fuse"))
}

fn clear(root: &Path, path: &str) {
    std::fs::write(root.join(path), "0").unwrap_or_else(|error| panic!("{path}: {error}"));
}

#[test]
fn at_rest_every_format_says_what_the_files_say() {
    let mut random = Random::new(seed());
    let sample = Sample::new();
    let (_dir, root, _mounted) = mount(&sample.registry);
    let dirs = ["", "top", "top/a", "top/a/b", "top/below-hidden", "top/vault", "top/empty"];
    let check = || {
        for dir in dirs {
            let all = agree(&root, dir, |_| true);
            if dirs[..2].contains(&dir) {
                agree_by_script(&root.join(dir).join(".stats/snapshot"), &all, |_| true);
            }
            assert!(dir == "top/empty" || all.len() >= 20, "{dir}: {all:?}");
        }
        // What departed is there by name.
        let snapshot = Snapshot::read(&root).unwrap();
        let mut found = 0;
        for dir in ["top", "top/a", "top/vault"] {
            for (path, number) in bulk::walk(&root, &format!("{dir}/.departed")).0 {
                assert_eq!(snapshot.number(&path).unwrap_or(0), number, "{path}");
                found += usize::from(number != 0);
            }
            agree(&root, &format!("{dir}/.departed"), |_| true);
        }
        found
    };
    check();
    sample.count(&mut random);
    check();
    for (n, source) in sample.sources.iter().chain([&sample.top]).enumerate() {
        sample.depart(source, &format!("gone{n}"), &mut random);
    }
    sample.count(&mut random);
    assert!(check() > 20);
    for path in ["top/a/work_done", "top/a/b/odd_u8", "top/vault/odd_sizes/count", "top/odd_u32"] {
        clear(&root, path);
        check();
    }
    sample.count(&mut random);
    check();
    clear(&root, "top/.departed/.stats/clear");
    check();
    clear(&root, "top/.stats/clear");
    assert!(agree(&root, "top", |path| path.ends_with("work_done")).values().all(|n| *n == 0));
    sample.count(&mut random);
    sample.depart(&sample.sources[0], "last", &mut random);
    assert!(check() > 2);
}

#[test]
fn rates_are_right_whatever_is_cleared_comes_and_goes() {
    let sample = Sample::new();
    let (_dir, root, _mounted) = mount(&sample.registry);
    let dirs = ["top", "top/a", "top/a/b"];
    let mut random = Random::new(seed());
    let mut before = Snapshot::read(&root).unwrap();
    for round in 0..20u64 {
        let added = 1 + random.below(250);
        sample.work[2].update(|counters| counters.work_done.add(added));
        sample.odd[1].odd_u8.add(added as u8);
        sample.work[2].work_time.record(added);
        if random.one_in(2) {
            clear(
                &root,
                ["top/work_done", "top/a/b/.stats/clear", "top/odd_u8"][round as usize % 3],
            );
        }
        // It counts, and what it counted stays.
        let goes = below(&sample.registry, &sample.sources[1], "goes");
        let slot = goes.add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(5));
        if random.one_in(2) {
            clear(&root, "top/a/b/goes/.stats/clear");
        }
        sample.sources[1].remove_subordinate(&goes).unwrap();
        drop(slot);
        let after = Snapshot::read(&root).unwrap();
        assert!(after.monotonic() > before.monotonic());
        for dir in dirs {
            let grown = |name| {
                let value = |snapshot| Snapshot::dir(snapshot, dir).unwrap().value(name);
                value(&after).unwrap().increase_since(&value(&before).unwrap())
            };
            assert_eq!(grown("work_done"), Some(added + 5), "{dir} in round {round}");
            assert_eq!(grown("odd_u8"), Some(added), "{dir} in round {round}");
            assert_eq!(grown("work_time"), Some(1), "{dir} in round {round}");
            assert_eq!(grown("odd_s16"), None, "it is no count");
            // What has become less did not grow.
            for name in ["work_done", "work_time"] {
                let [old, new] = [&before, &after]
                    .map(|snapshot| Snapshot::dir(snapshot, dir).unwrap().value(name).unwrap());
                assert_eq!(old.increase_since(&new), None, "{dir}/{name}");
            }
            // The same as a value, from sweeps of those alone that are wanted.
            let changes = Changes::between(&before, &after).unwrap();
            let named = |name: &str| ["work_done", "work_time"].contains(&name);
            let of_those = changes.of_those(after.dir(dir).unwrap(), named);
            let grown: Vec<_> = of_those.iter().map(|change| change.grown().unwrap()).collect();
            // It is in the bucket of what was recorded, and in no other.
            let bucket = |n: u64| (0..7).map(|power| 1 << power).find(|upper| n < *upper);
            let numbers = |name: &str| {
                let value = grown.iter().find(|value| value.name() == name).unwrap();
                let recorded = value.histogram().map(|all| {
                    (all.count(), all.sum(), all.buckets().find(|(_, n)| *n > 0).unwrap().0)
                });
                (value.number(), recorded)
            };
            assert_eq!(numbers("work_done"), (Some(i128::from(added) + 5), None), "{dir}");
            let (none, recorded) = numbers("work_time");
            assert_eq!((none, recorded), (None, Some((1, Some(added), bucket(added)))), "{dir}");
            assert_eq!(grown.len(), 2);
        }
        before = after;
    }
    // A source that comes again is another.
    let identity = || Snapshot::read(&root).unwrap().dir("top/empty").unwrap().identity();
    let old = identity();
    assert_eq!(identity(), old);
    sample.top.remove_subordinate(&sample.sources[6]).unwrap();
    let _again = below(&sample.registry, &sample.top, "empty");
    assert_ne!(identity(), old);
}

#[test]
fn what_no_file_shows_is_not_in_it() {
    const OTHER: u32 = 20_001;
    let registry = Registry::new().unwrap();
    let top = support::top(&registry);
    let [vault, alone, second] = ["vault-dir", "alone-dir", "second-dir"]
        .map(|name| registry.source(name).private().create().unwrap());
    for source in [&vault, &second] {
        top.add_subordinate(source).unwrap();
    }
    // At the top level: no directory above shows anything of it.
    alone.register().unwrap();
    let open = top.add_values::<Tick>().unwrap();
    open.tick_count.add(5);
    let slots = [&vault, &second, &alone].map(|source| source.add_values::<Secret>().unwrap());
    let work = [&top, &vault, &second, &alone].map(|s| s.add_values::<Work>().unwrap());
    for (n, slot) in (1..).zip(&slots) {
        slot.secret_own.add(0x5ec_0e77 + n);
        slot.secret_sum.add(0x5ec_5a77 + n);
        slot.secret_max.set(0x5e_aa77 + n as u32);
    }
    for (n, slot) in (0..).zip(&work) {
        slot.update(|counters| counters.work_done.add(0x5ec_d077 + n));
    }
    let (_dir, root, _mounted) = mount(&registry);
    as_user(OTHER, OTHER, &[], || {
        for dir in ["", "top"] {
            agree(&root, dir, |_| true);
            let bytes = std::fs::read(root.join(dir).join(".stats/snapshot")).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            for name in ["vault", "alone", "second-dir", "secret_own"] {
                assert!(!text.contains(name), "{name} in {dir}");
            }
            let has = |n: u64| bytes.chunks(8).any(|word| word == n.to_le_bytes());
            for n in 1..=3 {
                assert!(!has(0x5ec_0e77 + n) && !has(0x5ec_5a77 + n), "{n} in {dir}");
            }
            // What the totals are, and nothing more of what they are made of.
            assert!(has(2 * 0x5ec_5a77 + 3) && has(0x5e_aa77 + 2) && !has(0x5e_aa77 + 1));
            assert!(!has(0x5e_aa77 + 3));
            // Its own, and the others' together.
            assert!(has(0x5ec_d077) && has(2 * 0x5ec_d077 + 3));
            assert!((1..=3).all(|n| !has(0x5ec_d077 + n)), "{dir}");
        }
        let denied = Snapshot::read(root.join("alone-dir")).unwrap_err();
        assert!(matches!(denied, ReadError::Denied(_)), "{denied}");
    });
    let all = agree(&root, "", |_| true);
    assert_eq!(all["alone-dir/secret_own"], 0x5ec_0e77 + 3);
}

#[test]
fn everything_that_was_declared_is_in_it() {
    let sample = Sample::new();
    let (_dir, root, _mounted) = mount(&sample.registry);
    let start = std::time::SystemTime::now();
    let snapshot = Snapshot::read(root.join("top")).unwrap();
    assert!(snapshot.taken() >= start && snapshot.taken() <= std::time::SystemTime::now());
    assert_eq!((snapshot.path(), snapshot.root().name()), ("top", "top"));
    let top = snapshot.root();
    assert_eq!((top.depth(), top.parent().is_none(), top.pid()), (0, true, None));
    let names: Vec<_> = top.children().map(|dir| dir.name()).collect();
    assert_eq!(names, ["a", "below-hidden", "vault", "empty"]);
    assert_eq!(top.child_count(), 4);
    let b = snapshot.dir("top/a/b").unwrap();
    assert_eq!((b.depth(), b.path().as_str(), b.bare_name()), (2, "top/a/b", "b"));
    assert_eq!(b.parent().unwrap().labels().collect::<Vec<_>>(), [("n", "1"), ("x", "a \"b\"")]);
    assert!(snapshot.dir("top/a/c").is_none() && snapshot.dir("elsewhere").is_none());
    assert_eq!((snapshot.number("top/a"), snapshot.number("top/nothing")), (None, None));
    // As they were declared, each once.
    let groups = [Work::descriptor(), Odd::descriptor(), Tick::descriptor()];
    let mut declared: Vec<_> = groups
        .iter()
        .flat_map(|group| group.values().iter().map(|value| (group.name(), value)))
        .collect();
    let mut found: Vec<_> = snapshot.descriptors().collect();
    let key = |(group, value): &(&str, &statsfs::value::Descriptor)| {
        (group.to_string(), value.name.to_string())
    };
    declared.sort_by_key(key);
    found.sort_by_key(key);
    assert_eq!(found, declared);
    let value = b.value("odd_state").unwrap();
    assert_eq!((value.aggregate(), value.is_cumulative()), (None, false));
    let all: Vec<_> = top.values().iter().map(|value| (value.name(), value.aggregate())).collect();
    assert!(all.contains(&("odd_s16.min", Some(Aggregations::MIN))), "{all:?}");
    assert_eq!(top.value("work_time").unwrap().descriptor().unit, Unit::NANOSECONDS);
    // KVM's format has its own words for that.
    let statistics = KvmStatistics::read(&root.join("top/a/.stats/binary"));
    let said = |name: &str| {
        let found = statistics.all.iter().find(|one| one.name == name);
        let one = found.unwrap_or_else(|| panic!("no {name}"));
        (one.flags & 0xf, one.flags >> 4 & 0xf, one.exponent, one.values.len())
    };
    for (name, expected) in [
        ("work_done", (0, 0, 0, 1)),
        ("work_time", (4, 2, -9, 8)),
        ("work_time_sum", (0, 2, -9, 1)),
        ("odd_peak", (2, 1, 0, 1)),
        ("odd_s16.min", (1, 0, 0, 1)),
        ("odd_u32.zero", (1, 0, 0, 1)),
        ("odd_flag.nonzero", (1, 0, 0, 1)),
        ("odd_state", (1, 0, 0, 1)),
        ("odd_own_sizes", (4, 0, 0, 3)),
    ] {
        assert_eq!(said(name), expected, "{name}");
    }
    let of_b = KvmStatistics::read(&root.join("top/a/b/.stats/binary"));
    let running = of_b.all.iter().find(|one| one.name == "work_running").unwrap();
    assert_eq!(running.flags, 1 | 4 << 4, "a boolean that goes both ways");
}

#[test]
fn what_has_the_name_of_one_that_is_gone_is_not_taken_for_it() {
    let registry = Registry::new().unwrap();
    let top = support::top(&registry);
    let (_dir, root, _mounted) = mount(&registry);
    let come = |n| {
        let source = below(&registry, &top, "a");
        let slot = source.add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(n));
        (source, slot)
    };
    let (source, slot) = come(5);
    let before = Snapshot::read(&root).unwrap();
    top.remove_subordinate(&source).unwrap();
    drop((source, slot));
    let _another = come(7);
    let after = Snapshot::read(&root).unwrap();
    let changes = Changes::between(&before, &after).unwrap();
    let dir = after.dir("top/a").unwrap();
    assert!(changes.earlier(dir).is_none());
    assert!(changes.came().map(|dir| dir.path()).eq(["top/a"]));
    assert!(changes.gone().map(|dir| dir.path()).eq(["top/a"]));
    let change = changes.value(dir, "work_done").unwrap();
    assert_eq!((change.earlier.is_none(), change.increase), (true, Some(7)));
    let whole = changes.value(after.dir("top").unwrap(), "work_done").unwrap();
    assert_eq!(whole.increase, Some(7));
}

#[test]
fn each_one_is_consistent_while_everything_counts() {
    let sample = Sample::new();
    let (_dir, root, _mounted) = mount(&sample.registry);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&done);
        let Sample { work, .. } = sample;
        for slot in work {
            let done = &done;
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    slot.update(|counters| {
                        counters.work_done.add(3);
                        counters.work_failed.add(3);
                    });
                }
            });
        }
        let mut last = 0;
        for _ in 0..rounds(200) {
            let snapshot = Snapshot::read(&root).unwrap();
            for dir in snapshot.dirs().filter(|dir| dir.value("work_done").is_some()) {
                let number = |name| dir.value(name).unwrap().raw_number().unwrap();
                assert_eq!(number("work_done"), number("work_failed"), "{}", dir.path());
            }
            let total = snapshot.number("top/work_done").unwrap();
            assert!(total >= last, "it goes on");
            last = total;
            let statistics = KvmStatistics::read(&root.join("top/.stats/binary")).numbers("top");
            assert_eq!(statistics["top/work_done"], statistics["top/work_failed"]);
        }
        assert!(last > 0);
    });
}

#[test]
fn who_has_read_the_descriptors_reads_just_the_data_again() {
    let registry = Registry::new().unwrap();
    let top = support::top(&registry);
    let slot = top.add_values::<Tick>().unwrap();
    let (_dir, root, _mounted) = mount(&registry);
    let file = File::open(root.join("top/.stats/binary")).unwrap();
    let statistics = KvmStatistics::of(&file, 64);
    assert_eq!((statistics.all.len(), statistics.all[0].values[0]), (1, 0));
    // Behind the header, the id, and a descriptor with its name.
    const DATA: u64 = 24 + 64 + 16 + 64;
    let number = |at: u64| {
        let mut word = [0; 8];
        let read = file.read_at(&mut word, at);
        read.map(|n| (n, u64::from_le_bytes(word)))
    };
    for n in 1..20 {
        slot.tick_count.inc();
        assert_eq!(number(DATA).unwrap(), (8, n));
    }
    // Elsewhere is what was made then.
    slot.tick_count.inc();
    let mut half = [0; 4];
    file.read_exact_at(&mut half, DATA + 4).unwrap();
    file.read_exact_at(&mut [0; 4], 4).unwrap();
    assert_eq!(number(DATA).unwrap(), (8, 20));
    // With other values the data are not those of the descriptors that were read.
    let _more = top.add_values::<Work>().unwrap();
    for _ in 0..3 {
        assert_eq!(number(DATA).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    }
    assert!(KvmStatistics::of(&file, 64).all.len() > 5);
    // Whatever has no values has no data.
    let root = File::open(root.join(".stats/binary")).unwrap();
    assert_eq!(KvmStatistics::of(&root, 64).all.len(), 0);
    assert_eq!(root.read_at(&mut [0; 8], 24 + 64).unwrap(), 0);
}

/// The bytes of a snapshot of everything, as whoever owns the tree sees it.
fn bytes(sample: &Sample) -> Vec<u8> {
    let tree = sample.registry.tree().unwrap();
    render(&tree)
}

fn render(tree: &Tree) -> Vec<u8> {
    let ino =
        [".stats", "snapshot"].iter().fold(ROOT, |ino, name| tree.lookup(ino, name).unwrap().ino);
    let mut out = Vec::new();
    tree.render(ino, support::ROOT_CALLER, usize::MAX, &mut out).unwrap();
    out
}

/// Looks at all that a snapshot has.
fn use_all(snapshot: &Snapshot) {
    for dir in snapshot.dirs() {
        let _ = (dir.path(), dir.bare_name(), dir.pid(), dir.identity(), dir.labels().count());
        let _ = (dir.children().count(), dir.depth());
        for value in dir.values() {
            let _ = (value.number(), value.raw_number(), value.increase_since(&value));
            let _ = value.grown_since(&value);
            if let Some(histogram) = value.histogram() {
                let _ = (histogram.mean(), histogram.percentile(99), histogram.buckets().count());
            }
            let _ = dir.departed(value.name());
        }
    }
    let _ = (snapshot.taken(), snapshot.monotonic(), snapshot.descriptors().count());
}

#[test]
fn whatever_the_bytes_are_the_reader_does_not_break() {
    let mut random = Random::new(seed());
    let sample = Sample::new();
    sample.count(&mut random);
    sample.depart(&sample.top, "gone", &mut random);
    // With parts in it: hidden sources are there.
    let good = bytes(&sample);
    let all = of_snapshot(&Snapshot::parse(&good).unwrap());
    assert!(all.len() > 200);
    assert_eq!(good.len() % 8, 0);
    assert_eq!(Snapshot::parse(b"").unwrap_err(), SnapshotError::Magic);
    assert_eq!(Snapshot::parse(b"STATSFS1").unwrap_err(), SnapshotError::Magic);
    for len in 0..good.len() {
        assert!(Snapshot::parse(&good[..len]).is_err(), "{len} bytes of {}", good.len());
    }
    let longer = [&good[..], &[0; 8]].concat();
    assert!(matches!(Snapshot::parse(&longer), Err(SnapshotError::Length { .. })));
    let mut bytes = good.clone();
    bytes[8] = 2;
    assert_eq!(Snapshot::parse(&bytes).unwrap_err(), SnapshotError::Version(2));
    // Every bit of what is not text, cells or parts; and many words at random.
    let mut refused = 0;
    let words_at = u64::from_le_bytes(good[48 + 8 * 16..][..8].try_into().unwrap()) as usize;
    for at in 0..words_at {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        match Snapshot::parse(&bytes) {
            Ok(snapshot) if at % 16 == 0 => use_all(&snapshot),
            Ok(_) => {}
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(refused > words_at / 2, "{refused} of {words_at}");
    for _ in 0..rounds(2000) {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(good.len() as u64 / 8) as usize * 8;
            let word = match random.below(4) {
                0 => 0,
                1 => u64::MAX,
                2 => random.below(1 << 16) | random.below(1 << 16) << 32,
                _ => random.next(),
            };
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        if let Ok(snapshot) = Snapshot::parse(&bytes) {
            use_all(&snapshot);
        }
    }
    assert_eq!(format::section::SIZES.len(), 10);
}

#[test]
fn what_is_no_tree_is_said_to_be_none() {
    let place = tempfile::tempdir().unwrap();
    let error = |path: &Path| Snapshot::read(path).unwrap_err();
    assert!(matches!(error(&place.path().join("nowhere")), ReadError::Missing(_)));
    assert!(matches!(error(place.path()), ReadError::NotMounted(_)));
    assert!(matches!(error(Path::new("/dev/null")), ReadError::NotMounted(_)));
    let stats = place.path().join(".stats");
    std::fs::create_dir(&stats).unwrap();
    std::fs::write(stats.join("snapshot"), "nothing of that kind").unwrap();
    let invalid = error(place.path());
    assert!(
        matches!(&invalid, ReadError::Invalid { error: SnapshotError::Magic, .. }),
        "{invalid}"
    );
    std::fs::write(stats.join("snapshot"), "STATSNAP".repeat(400_000)).unwrap();
    assert!(matches!(error(place.path()), ReadError::Invalid { .. }));
}

/// What one process publishes.
fn process(n: u64) -> (Registry, Vec<Source>, Slot<Work>, Slot<Work>) {
    let registry = Registry::new().unwrap();
    let kvm = support::top(&registry);
    let guest = below(&registry, &kvm, "guest");
    let slots = [&kvm, &guest].map(|source| source.add_values::<Work>().unwrap());
    for slot in &slots {
        slot.update(|counters| counters.work_done.add(n));
        slot.work_queue.set(-(n as i32));
    }
    let [own, of_guest] = slots;
    own.update(|counters| counters.work_failed.add(0x5ec_0000 + n));
    (registry, vec![kvm, guest], own, of_guest)
}

#[test]
fn several_processes_are_one_directory() {
    let tree =
        Tree::host(TreeOptions { pid_prefix: true, ..TreeOptions::new(Owner::this_process()) });
    let processes: Vec<_> = (1..=3).map(process).collect();
    let keys: Vec<_> = (1..)
        .zip(&processes)
        .map(|(pid, process)| {
            let identity = Identity { pid, ..Identity::this_process() };
            process.0.join(&tree, identity).unwrap()
        })
        .collect();
    let check = |guests: usize| {
        let snapshot = Snapshot::parse(&render(&tree)).unwrap();
        let expected: bulk::Numbers =
            support::flat(&tree).into_iter().map(|(path, n)| (path, n.parse().unwrap())).collect();
        assert_eq!(of_snapshot(&snapshot), expected);
        let top = snapshot.dir("top").unwrap();
        assert_eq!((top.children().count(), top.child_count()), (guests, guests));
        snapshot
    };
    let before = check(3);
    // What processes have in common is added up; what one has is there as it is.
    let bytes = render(&tree);
    let count = |section: usize| {
        let at = 8 * (format::header::SECTIONS + 2 * section + 1);
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    assert_eq!(count(format::section::CELLS), 3, "the guests'");
    assert!(count(format::section::PARTS) >= 6);
    let has = |n: u64| bytes.chunks(8).any(|word| word == n.to_le_bytes());
    assert!(has(3 * 0x5ec_0000 + 6) && (1..=3).all(|n| !has(0x5ec_0000 + n)));
    assert_eq!(before.number("top/work_done"), Some(2 * (1 + 2 + 3)));
    assert_eq!(before.number("top/work_queue.min"), Some(-3));
    let guest = before.dir("top/2-guest").unwrap();
    assert_eq!((guest.pid(), guest.bare_name()), (Some(2), "guest"));
    tree.clear("top/work_done").unwrap();
    check(3);
    tree.detach(keys[1]).unwrap();
    check(2);
    processes[2].2.update(|counters| counters.work_done.add(10));
    tree.fold(keys[1]).unwrap();
    let after = check(2);
    let value = |snapshot| Snapshot::dir(snapshot, "top").unwrap().value("work_done");
    assert_eq!(after.number("top/work_done"), Some(10));
    assert_eq!(value(&after).unwrap().raw_number(), Some(22));
    assert_eq!(value(&after).unwrap().increase_since(&value(&before).unwrap()), Some(10));
    assert_eq!(after.dir("top").unwrap().identity(), before.dir("top").unwrap().identity());
}
