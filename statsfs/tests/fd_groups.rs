//! Groups that are read from a descriptor: what they show, from when on, and what is left of them. The descriptors
//! are files in the kernel's format that the tests write; KVM's own are in `tests/tests/kernel_stats.rs`.

mod support;

use std::fs::{DirEntry, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use statsfs::tree::{Feed, Identity, Owner, Tree, TreeOptions};
use statsfs::{Registry, SourceError};
use support::{Tick, below, flat, number, top, try_number, until};

/// Types, units and bases, as in Linux' `include/uapi/linux/kvm.h`.
const CUMULATIVE: u32 = 0;
const INSTANT: u32 = 1;
const PEAK: u32 = 2;
const LINEAR: u32 = 3;
const LOG: u32 = 4;
const BYTES: u32 = 1 << 4;
const SECONDS: u32 = 2 << 4;
const BOOLEAN: u32 = 4 << 4;
const POW2: u32 = 1 << 8;

/// Where the parts of a file are: with gaps, and the data in no order, which the format allows.
const NAME: usize = 48;
const ID: usize = 32;
const DESCRIPTORS: usize = 128;
const DATA: usize = 8192;

/// One value: name, flags, exponent, number of cells, size of a bucket, place in the data.
type Value = (&'static str, u32, i16, u16, u32, u32);

const VALUES: [Value; 9] = [
    ("exits", CUMULATIVE, 0, 1, 0, 20),
    ("wait_ns", CUMULATIVE | SECONDS, -9, 1, 0, 1),
    ("blocking", INSTANT | BOOLEAN, 0, 1, 0, 0),
    ("pages", INSTANT, 0, 1, 0, 2),
    ("table_kib", INSTANT | BYTES | POW2, 10, 1, 0, 3),
    ("longest", PEAK, 0, 1, 0, 4),
    ("wait_hist", LOG | SECONDS, -9, 4, 0, 5),
    ("chain", LINEAR, 0, 3, 10, 10),
    ("Strange-Name", CUMULATIVE, 0, 1, 0, 30),
];

/// A descriptor in the kernel's format.
struct Counted {
    file: File,
    values: Vec<Value>,
}

impl Counted {
    fn new(values: &[Value]) -> Self {
        let counted = Self { file: tempfile::tempfile().unwrap(), values: values.to_vec() };
        let header =
            [0, NAME as u32, values.len() as u32, ID as u32, DESCRIPTORS as u32, DATA as u32];
        counted.put_words(0, &header);
        counted.file.write_all_at(b"kvm-42/vcpu-0\0", ID as u64).unwrap();
        for (n, (name, flags, exponent, cells, bucket, place)) in values.iter().enumerate() {
            let at = DESCRIPTORS + n * (16 + NAME);
            let sizes = u32::from(*exponent as u16) | u32::from(*cells) << 16;
            counted.put_words(at, &[*flags, sizes, place * 8, *bucket]);
            counted.file.write_all_at(name.as_bytes(), at as u64 + 16).unwrap();
        }
        counted.file.write_all_at(&[0; 512], DATA as u64).unwrap();
        counted
    }

    fn put_words(&self, at: usize, words: &[u32]) {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, at as u64).unwrap();
    }

    /// The kernel counts.
    fn set(&self, name: &str, cells: &[u64]) {
        let place = self.values.iter().find(|value| value.0 == name).unwrap().5;
        let bytes: Vec<_> = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, (DATA + place as usize * 8) as u64).unwrap();
    }

    fn fd(&self) -> OwnedFd {
        self.file.try_clone().unwrap().into()
    }
}

#[test]
fn what_the_kernel_counts_is_shown_as_it_is_now() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let [one, two] = [below(&registry, &vm, "vcpu0"), below(&registry, &vm, "vcpu1")];
    let tree = registry.tree().unwrap();
    let counted = [Counted::new(&VALUES), Counted::new(&VALUES)];
    for (source, counted) in [&one, &two].into_iter().zip(&counted) {
        let left_out = source.add_fd_group("kernel", counted.fd()).unwrap();
        assert_eq!(left_out, ["Strange-Name"]);
    }
    let all = flat(&tree);
    let shown = |path: &str| all.get(&format!("top/vcpu0/{path}")).map(String::as_str);
    for path in
        ["exits", "wait_ns", "blocking", "pages", "table_kib", "longest", "chain_0", "chain_20"]
    {
        assert_eq!(shown(path), Some("0"), "{path}");
    }
    assert_eq!(shown("wait_hist/count"), Some("0"));
    assert_eq!((shown("wait_hist/sum"), shown("chain")), (None, None));
    // Each reading is of now, however long it is until the next sample.
    for n in 1..50 {
        counted[0].set("exits", &[n]);
        counted[1].set("exits", &[1000 * n]);
        assert_eq!(number(&tree, "top/vcpu0/exits"), n.into());
        assert_eq!(number(&tree, "top/exits"), (1001 * n).into());
    }
    counted[0].set("wait_ns", &[7]);
    counted[0].set("blocking", &[3]);
    counted[1].set("blocking", &[1]);
    counted[0].set("pages", &[5]);
    counted[1].set("pages", &[6]);
    counted[0].set("longest", &[8]);
    counted[1].set("longest", &[9]);
    counted[0].set("wait_hist", &[1, 2, 3, 4]);
    counted[1].set("wait_hist", &[10, 20, 30, 40]);
    counted[0].set("chain", &[1, 2, 3]);
    counted[0].set("table_kib", &[12]);
    let all = flat(&tree);
    for (path, value) in [
        ("vcpu0/wait_ns", "7"),
        ("vcpu0/blocking", "1"),
        ("blocking", "2"),
        ("pages", "11"),
        ("vcpu0/longest", "8"),
        ("longest", "9"),
        ("vcpu0/wait_hist/count", "10"),
        // The last one is open.
        ("vcpu0/wait_hist/buckets/4", "3"),
        ("wait_hist/count", "110"),
        ("chain_0", "1"),
        ("chain_10", "2"),
        ("chain_20", "3"),
        ("vcpu0/table_kib", "12"),
    ] {
        let found = all.get(&format!("top/{path}")).map(String::as_str);
        assert_eq!(found, Some(value), "{path}");
    }
    // It goes both ways, and what only grows is cleared like anything else.
    counted[0].set("pages", &[1]);
    assert_eq!(number(&tree, "top/pages"), 7);
    tree.clear("top/exits").unwrap();
    counted[0].set("exits", &[60]);
    assert_eq!((number(&tree, "top/vcpu0/exits"), number(&tree, "top/exits")), (11, 11));
}

#[test]
fn there_may_be_any_number_of_them_and_of_trees() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let mut all = Vec::new();
    for n in 0..70 {
        let vcpu = below(&registry, &vm, &format!("vcpu{n}"));
        let counted = Counted::new(&VALUES);
        vcpu.add_fd_group("kernel", counted.fd()).unwrap();
        all.push((vcpu, counted));
    }
    for round in 1..20u64 {
        let tree = registry.tree().unwrap();
        for (n, (_, counted)) in all.iter().enumerate() {
            counted.set("exits", &[round * 1000 + n as u64]);
        }
        let sum: u64 = (0..70).map(|n| round * 1000 + n).sum();
        assert_eq!(number(&tree, "top/exits"), sum.into());
        assert_eq!(number(&tree, "top/vcpu69/exits"), (round * 1000 + 69).into());
    }
    let tree = registry.tree().unwrap();
    let mut left = 0;
    for (n, (vcpu, counted)) in all.into_iter().enumerate() {
        counted.set("exits", &[100_000 + n as u64]);
        left += 100_000 + n as i128;
        vm.remove_subordinate(&vcpu).unwrap();
    }
    assert_eq!(number(&tree, "top/.departed/exits"), left);
}

#[test]
fn counters_that_fall_go_on_from_where_they_were() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let tree = registry.tree().unwrap();
    let counted = Counted::new(&VALUES);
    vm.add_fd_group("kernel", counted.fd()).unwrap();
    let mut total = 0;
    for round in 0..5 {
        for n in [3, 10, 11] {
            counted.set("exits", &[n]);
            assert_eq!(number(&tree, "top/exits"), total + i128::from(n), "round {round}");
        }
        counted.set("wait_hist", &[round, 0, 1, 0]);
        total += 11;
    }
    counted.set("exits", &[0]);
    assert_eq!(number(&tree, "top/exits"), total);
    // A histogram's buckets do so each by itself.
    assert_eq!(number(&tree, "top/wait_hist/count"), 5);
    counted.set("wait_hist", &[0, 0, 2, 0]);
    assert_eq!(number(&tree, "top/wait_hist/count"), 6);
}

#[test]
fn what_is_left_is_what_was_counted_to_the_last() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let tree = registry.tree().unwrap();
    let mut total = 0;
    for round in 1..20u64 {
        let vcpu = below(&registry, &vm, "vcpu0");
        let counted = Counted::new(&VALUES);
        vcpu.add_fd_group("kernel", counted.fd()).unwrap();
        if round % 2 == 0 {
            assert_eq!(number(&tree, "top/vcpu0/exits"), 0);
        }
        // Nobody has looked since.
        counted.set("exits", &[round]);
        counted.set("pages", &[round]);
        counted.set("wait_hist", &[round, 0, 0, round]);
        total += i128::from(round);
        vm.remove_subordinate(&vcpu).unwrap();
        counted.set("exits", &[1000]);
        assert_eq!(number(&tree, "top/exits"), total);
        assert_eq!(number(&tree, "top/.departed/exits"), total);
        assert_eq!(number(&tree, "top/wait_hist/count"), 2 * total);
        assert!(try_number(&tree, "top/vcpu0/exits").is_err());
    }
    registry.usage();
    assert_eq!(number(&tree, "top/exits"), total);
}

#[test]
fn the_descriptor_is_closed_when_the_source_goes() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let tree = registry.tree().unwrap();
    let vcpu = below(&registry, &vm, "vcpu0");
    let counted = Counted::new(&VALUES);
    let inode = counted.file.metadata().unwrap().ino();
    let open = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let of = |fd: &DirEntry| std::fs::metadata(fd.path()).is_ok_and(|of| of.ino() == inode);
        all.filter(of).count()
    };
    vcpu.add_fd_group("kernel", counted.fd()).unwrap();
    assert_eq!(number(&tree, "top/vcpu0/exits"), 0);
    assert_eq!(open(), 2);
    vm.remove_subordinate(&vcpu).unwrap();
    assert_eq!(open(), 1, "the test's own");
}

#[test]
fn samples_are_there_for_who_has_no_descriptor() {
    /// Segments, and nothing else.
    struct Segments(Registry);
    impl Feed for Segments {
        fn segments(&self) -> std::io::Result<Vec<OwnedFd>> {
            self.0.segments()
        }
    }

    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let counted = Counted::new(&VALUES);
    counted.set("exits", &[5]);
    counted.set("wait_hist", &[1, 2, 0, 0]);
    vm.add_fd_group("kernel", counted.fd()).unwrap();
    let tree = Tree::host(TreeOptions::new(Owner { uid: 0, gid: 0 }));
    let _ = tree.join(Segments(registry.clone()), Identity::this_process()).unwrap();
    until("the first sample", || number(&tree, "top/exits") == 5);
    until("of all", || number(&tree, "top/wait_hist/count") == 3);
    // And then one each second.
    for n in [17, 3] {
        counted.set("exits", &[n]);
        let expected = if n == 3 { 20 } else { 17 };
        until("the next sample", || number(&tree, "top/exits") == expected);
    }
    // What somebody has seen who reads the descriptor is no less than what the samples say, and in the same
    // process no more than what is left.
    let own = registry.tree().unwrap();
    counted.set("exits", &[100]);
    assert_eq!(number(&own, "top/exits"), 117);
    counted.set("exits", &[1]);
    assert_eq!(number(&own, "top/exits"), 118);
    until("the samples follow", || number(&tree, "top/exits") == 118);
}

#[test]
fn names_that_are_taken_are_left_out_and_said() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let tree = registry.tree().unwrap();
    let _slot = vm.add_values::<Tick>().unwrap();
    let mut values = VALUES[..2].to_vec();
    values.push(("tick_count", CUMULATIVE, 0, 1, 0, 40));
    values.push(("vcpu0", CUMULATIVE, 0, 1, 0, 41));
    let _vcpu = below(&registry, &vm, "vcpu0");
    let counted = Counted::new(&values);
    counted.set("exits", &[3]);
    let mut left_out = vm.add_fd_group("kernel", counted.fd()).unwrap();
    left_out.sort();
    assert_eq!(left_out, ["tick_count", "vcpu0"]);
    assert_eq!(number(&tree, "top/exits"), 3);
    assert_eq!(number(&tree, "top/tick_count"), 0);
    // One of each name.
    let again = vm.add_fd_group("kernel", counted.fd()).unwrap_err();
    assert!(
        matches!(again, SourceError::FdGroup(_) | SourceError::AlreadyExists { .. }),
        "{again}"
    );
    assert_eq!(number(&tree, "top/exits"), 3);
}

#[test]
fn what_is_no_such_descriptor_is_refused() {
    let registry = Registry::new().unwrap();
    let vm = top(&registry);
    let refused = |fd: OwnedFd| vm.add_fd_group("kernel", fd).unwrap_err().to_string();
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(refused(reader.into()).starts_with("cannot read the statistics descriptor: "));
    let broken = |change: &dyn Fn(&Counted)| {
        let counted = Counted::new(&VALUES);
        change(&counted);
        refused(counted.fd())
    };
    for (what, change) in [
        ("it ends too early", &(|c: &Counted| c.file.set_len(10).unwrap()) as &dyn Fn(&Counted)),
        ("it ends too early", &|c| c.file.set_len(300).unwrap()),
        ("unknown flags", &|c| c.put_words(0, &[1])),
        ("impossible sizes", &|c| c.put_words(4, &[0])),
        ("impossible sizes", &|c| c.put_words(4, &[u32::MAX])),
        ("impossible sizes", &|c| c.put_words(8, &[u32::MAX])),
        ("unaligned", &|c| c.put_words(DESCRIPTORS + 8, &[4])),
        ("too far away", &|c| c.put_words(DESCRIPTORS + 8, &[u32::MAX - 7])),
        ("1 to 1024 values, not 0", &|c| c.put_words(8, &[0])),
    ] {
        let message = broken(change);
        assert!(message.contains(what), "{what}: {message}");
    }
    assert_eq!(registry.usage().units, 1, "nothing is left behind");
    // What is of an unknown kind, or is no histogram that there could be, is left out by name.
    let strange = [
        ("exits", CUMULATIVE, 0, 1, 0, 0),
        ("new_kind", 9, 0, 1, 0, 1),
        ("many", CUMULATIVE, 0, 2, 0, 1),
        ("none", CUMULATIVE, 0, 0, 0, 1),
        ("wide", LOG, 0, 65, 0, 1),
        ("no_width", LINEAR, 0, 3, 0, 1),
        ("exits", INSTANT, 0, 1, 0, 1),
    ];
    let left_out = vm.add_fd_group("kernel", Counted::new(&strange).fd()).unwrap();
    assert_eq!(left_out, ["new_kind", "many", "none", "wide", "no_width", "exits"]);
}
