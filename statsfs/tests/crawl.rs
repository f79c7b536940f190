//! A real server under sources that come and go by the thousand, and under those who read all there is, in
//! every way: nothing is lost or shown twice, nothing leaks, and what honest processes count stays right.

#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use server::Server;
use statsfs::host::{PublishOptions, PublishState, Publisher};
use statsfs::{Registry, RegistryOptions, Slot, Source};
use support::child::{self, Shared, Writer};
use support::churn::{Churner, Exchange};
use support::ledger::{FILES, Ledger, Reader, TOPS, bound};
use support::{PATIENCE, Random, StopAtEnd, Work, below, forget_names, rounds, seed, until};

// ---- sources that come and go ----------------------------------------------------------------------

/// Processes.
const PROCESSES: usize = 10;
/// Sources of each that stay: half of them in its machine, half in a directory that all share.
const STAYING: u64 = 8;

fn publish(registry: &Registry, socket: PathBuf) -> Publisher {
    let options =
        PublishOptions { socket: Some(socket), public: true, ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(PATIENCE);
    assert!(matches!(state, PublishState::Published { .. }), "{state:?}");
    publisher
}

fn tops(registry: &Registry) -> [Source; 2] {
    TOPS.map(|name| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        top
    })
}

#[test]
#[ignore = "a process that the others start"]
fn churning_process() {
    let (ledger, mut socket, mode) = child::in_child::<Ledger>();
    let [at, seed, sources, to] = mode.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
    let (at, seed): (usize, u64) = (at.parse().unwrap(), seed.parse().unwrap());
    let sources: u64 = sources.parse().unwrap();
    let options =
        RegistryOptions { segment_size: 64 << 10, max_segments: 16, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let [kvm, net] = tops(&registry);
    let pools = [below(&registry, &kvm, "vm"), net];
    let accounts = &ledger[at];
    let stays: Vec<Slot<Work>> = (0..STAYING)
        .map(|n| {
            let pool = n as usize % 2;
            let source = below(&registry, &pools[pool], &format!("stays{n}"));
            let slot: Slot<Work> = source.add_values().unwrap();
            accounts[pool].add(n + 1, 0, || {
                slot.update(|counters| {
                    counters.work_done.add(n + 1);
                    counters.work_failed.add(2 * (n + 1));
                });
                true
            });
            slot
        })
        .collect();
    let exchange: Exchange = Mutex::new(Vec::new());
    let mut churner = Churner::new(0, seed, &registry, &pools, accounts, &exchange);
    let publisher = publish(&registry, PathBuf::from(to));
    // It begins when all are there.
    socket.write_all(&[1]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    let mut n = 0u64;
    while churner.created < sources {
        churner.step();
        n += 1;
        if n.is_multiple_of(32) {
            // Ten of them must leave time for readers.
            thread::sleep(Duration::from_millis(10));
        }
    }
    churner.finish();
    drop(exchange);
    socket.write_all(&[2]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    drop((publisher, stays));
    std::process::exit(0);
}

/// A process whose sources come and go.
struct Churning(Writer);

impl Churning {
    fn start(
        server: &Server,
        memory: &Shared<Ledger>,
        n: usize,
        seed: u64,
        sources: usize,
    ) -> Self {
        let mode = format!("{n} {} {sources} {}", seed + n as u64, server.socket().display());
        let writer = Writer::start("churning_process", memory, &mode);
        writer.socket.set_read_timeout(Some(Duration::from_secs(1200))).unwrap();
        Self(writer)
    }

    /// Waits until it says that it has come so far.
    fn wait(&mut self, step: u8) {
        let mut said = [0];
        self.0.socket.read_exact(&mut said).expect("it has failed, and said why");
        assert_eq!(said[0], step);
    }

    /// Has it go on.
    fn go_on(&mut self) {
        self.0.socket.write_all(&[0]).unwrap();
    }

    fn directory(&self) -> String {
        format!("kvm/{}-vm", self.0.pid())
    }

    /// The directories of those of its sources that stay, with what they count.
    fn staying(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        (0..STAYING).map(|n| {
            let directory = match n % 2 {
                0 => format!("{}/stays{n}", self.directory()),
                _ => format!("net/{}-stays{n}", self.0.pid()),
            };
            (directory, n + 1)
        })
    }
}

/// What may become of a file of a source that goes.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESTALE))
}

/// What is in a directory, each thing once. Its names: one that goes and comes again is another thing, which a
/// listing may show as well.
fn list(path: &Path) -> io::Result<HashSet<String>> {
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap();
        assert!(numbers.insert(entry.ino()), "{name} is there twice in {}", path.display());
        let is_new = names.insert(name.clone());
        assert!(is_new || !name.contains("stays"), "{name} is there twice in {}", path.display());
    }
    Ok(names)
}

/// Goes everywhere, as find(1) does, and calls `visit` with everything that is there. Whatever a directory's
/// source is, it may be gone when its turn comes.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path, &Metadata)) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let visited = path.symlink_metadata().and_then(|metadata| {
            visit(&path, &metadata);
            if metadata.is_dir() { walk(&path, visit) } else { Ok(()) }
        });
        match visited {
            Err(error) if !is_gone(&error) => panic!("{}: {error}", path.display()),
            _ => {}
        }
    }
    Ok(())
}

/// What readers do while sources come and go.
struct Readers<'a> {
    server: &'a Server,
    ledger: &'static Ledger,
    /// What stays: directories, and what is counted there.
    staying: BTreeMap<String, u64>,
    stop: AtomicBool,
    listings: AtomicU64,
    walks: AtomicU64,
    values: AtomicU64,
    bulk: AtomicU64,
}

impl Readers<'_> {
    fn again(&self, times: &AtomicU64) -> bool {
        times.fetch_add(1, SeqCst);
        !self.stop.load(SeqCst)
    }

    fn list(&self) {
        let directories: HashSet<_> =
            self.staying.keys().map(|path| path.rsplit_once('/').unwrap().0).collect();
        while self.again(&self.listings) {
            for directory in &directories {
                let names = list(&self.server.path(directory)).unwrap();
                for path in self.staying.keys() {
                    let (above, name) = path.rsplit_once('/').unwrap();
                    assert!(above != *directory || names.contains(name), "no {path} in {names:?}");
                }
            }
        }
    }

    fn walk(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mount = self.server.mount();
        while self.again(&self.walks) {
            let mut missed: HashSet<&str> = self.staying.keys().map(String::as_str).collect();
            let mut visit = |path: &Path, metadata: &Metadata| {
                let below = path.strip_prefix(&mount).unwrap().to_str().unwrap();
                missed.remove(below);
                if metadata.is_file() && random.one_in(16) {
                    match std::fs::read_to_string(path) {
                        Ok(text) => assert!(text.ends_with('\n') || text.is_empty(), "{text:?}"),
                        Err(error) => assert!(is_gone(&error), "{below}: {error}"),
                    }
                }
            };
            walk(&mount, &mut visit).unwrap();
            assert!(missed.is_empty(), "not found: {missed:?}");
        }
    }

    fn read_values(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mut reader = Reader::default();
        let staying: Vec<_> = self.staying.iter().collect();
        while self.again(&self.values) {
            reader.check(self.ledger, &mut random, |path| self.server.number(path));
            let (path, count) = staying[random.below(staying.len() as u64) as usize];
            assert_eq!(self.server.number(&format!("{path}/work_done")), *count, "{path}");
        }
    }

    fn read_bulk(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mut reader = Reader::default();
        while self.again(&self.bulk) {
            let mut flat = BTreeMap::new();
            let from = ["", "/kvm", "/net"][random.below(3) as usize];
            reader.check(self.ledger, &mut random, |path| {
                // That which all totals are in, or that of their directory.
                let top = path.split('/').next().unwrap();
                let from = if from.ends_with(top) { from } else { "" };
                flat = self.flat(from);
                flat[path]
            });
            for (path, count) in &self.staying {
                if let Some(shown) = flat.get(&format!("{path}/work_done")) {
                    assert_eq!(shown, count, "{path}");
                } else {
                    assert!(!from.is_empty(), "no {path} in it");
                }
            }
        }
    }

    /// A bulk file: each path once.
    fn flat(&self, of: &str) -> BTreeMap<String, u64> {
        let path = format!("{}/.stats/flat", of.trim_start_matches('/'));
        let text = std::fs::read_to_string(self.server.path(path.trim_start_matches('/'))).unwrap();
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let (path, value) = line.split_once(' ').unwrap();
            let value = value.parse::<i128>().unwrap_or_else(|_| panic!("{line}"));
            assert!(all.insert(path.to_owned(), value as u64).is_none(), "{path} is there twice");
        }
        all
    }
}

/// What a server has that could be more and more.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    files: usize,
    threads: usize,
    resident_kib: u64,
    /// Names that the kernel has looked up and not forgotten.
    names: u64,
}

impl Footprint {
    /// Once nothing is there but what stays, and what is gone is forgotten.
    fn at_rest(server: &Server) -> Self {
        let mut listed = 0;
        walk(&server.mount(), &mut |_, _| listed += 1).unwrap();
        // And what is in no listing, some of it twenty files. A name that is gone stays until it is looked up
        // again, or the kernel needs room.
        let most = listed + 64;
        until("the kernel forgets names that are gone", || {
            forget_names();
            Self::of(server).names <= most
        });
        Self::of(server)
    }

    fn of(server: &Server) -> Self {
        let own = |name: &str| server.number(&format!("statsfs/mount_{name}"));
        let forgotten = own("forgotten");
        let names = own("requests_lookup") - own("errors_lookup") - forgotten;
        Self {
            files: server.open_files(),
            threads: server.threads(),
            resident_kib: server.resident_kib(),
            names,
        }
    }
}

/// Processes come, their sources come and go under readers, and they leave.
fn churn(server: &Server, memory: &Shared<Ledger>, first: usize, seed: u64, sources: usize) {
    let processes = first..first + PROCESSES;
    let mut all: Vec<_> =
        processes.map(|n| Churning::start(server, memory, n, seed, sources)).collect();
    all.iter_mut().for_each(|one| one.wait(1));
    let readers = &Readers {
        server,
        ledger: memory.value,
        staying: all.iter().flat_map(Churning::staying).collect(),
        stop: AtomicBool::new(false),
        listings: AtomicU64::new(0),
        walks: AtomicU64::new(0),
        values: AtomicU64::new(0),
        bulk: AtomicU64::new(0),
    };
    for path in readers.staying.keys() {
        until(&format!("{path} is there"), || server.path(path).exists());
    }
    thread::scope(|scope| {
        let _stop = StopAtEnd(&readers.stop);
        scope.spawn(|| readers.list());
        scope.spawn(|| readers.walk(seed ^ 1));
        scope.spawn(|| readers.read_values(seed ^ 2));
        scope.spawn(|| readers.read_bulk(seed ^ 3));
        all.iter_mut().for_each(Churning::go_on);
        all.iter_mut().for_each(|one| one.wait(2));
    });
    let times = [&readers.listings, &readers.walks, &readers.values, &readers.bulk];
    println!(
        "{} sources; rounds of listings, walks, values and bulk files: {:?}",
        sources * PROCESSES,
        times.map(|times| times.load(SeqCst))
    );
    // At rest everything is exact, and nothing is there that has gone.
    check_totals(server, memory.value, "");
    for (path, count) in &readers.staying {
        assert_eq!(server.number(&format!("{path}/work_done")), *count, "{path}");
    }
    let is_source = |name: &String| name.contains("-stays") || name.contains("-t");
    let names = list(&server.path("net")).unwrap();
    let (stay, come) = (PROCESSES * STAYING as usize / 2, names.iter().filter(|n| is_source(n)));
    assert_eq!(come.count(), stay, "stale entries: {names:?}");
    for one in &all {
        let names = list(&server.path(&one.directory())).unwrap();
        let churned: Vec<_> = names.iter().filter(|name| name.starts_with('t')).collect();
        assert!(churned.is_empty(), "stale entries: {churned:?}");
    }
    let flat = readers.flat("");
    let stale = flat.keys().find(|path| path.contains("/t0-") || path.contains("-t0-"));
    assert_eq!(stale, None);

    for mut one in all {
        one.go_on();
        assert!(one.0.wait().success());
    }
    until("they are folded", || server.status().clients.is_empty());
    check_totals(server, memory.value, ".departed/");
    for top in TOPS {
        let names = list(&server.path(top)).unwrap();
        let left: Vec<_> = names.iter().filter(|name| name.contains('-')).collect();
        assert!(left.is_empty(), "stale entries in {top}: {left:?}");
    }
    assert_eq!(list(&server.path("by-name")).unwrap().len(), 0);
}

fn check_totals(server: &Server, ledger: &Ledger, within: &str) {
    for (top, name) in TOPS.iter().enumerate() {
        for (file, file_name) in FILES.iter().enumerate() {
            let (low, high) = (bound(ledger, top, file, false), bound(ledger, top, file, true));
            let path = format!("{name}/{within}{file_name}");
            assert_eq!((low, server.number(&path)), (high, high), "{path}");
        }
    }
}

#[test]
fn thousands_of_sources_come_and_go_under_readers() {
    let seed = seed();
    let memory = Shared::<Ledger>::new();
    let server = &Server::start();
    // First tables and allocators get their size, and every thread its slot.
    churn(server, &memory, 0, seed, 300);
    let mut all = vec![Footprint::at_rest(server)];
    let sources = rounds(350);
    // However fast it is, a soak goes on for so long.
    let time = Duration::from_secs(if rounds(1) < 10 { 0 } else { 60 });
    let start = Instant::now();
    let mut created = 0;
    for round in 1.. {
        churn(server, &memory, round * PROCESSES, seed + 100 * round as u64, sources);
        all.push(Footprint::at_rest(server));
        created += (sources * PROCESSES) as u64;
        if round >= 3 && start.elapsed() >= time {
            break;
        }
    }
    let took = start.elapsed();
    println!("{all:#?}");
    // What is closed or ends late, as what closes strangers' descriptors does, is waited for.
    until("files and threads as before", || {
        (server.open_files(), server.threads()) <= (all[0].files, all[0].threads)
    });
    let grew = all[all.len() - 1].resident_kib.saturating_sub(all[0].resident_kib);
    println!("{created} sources have come and gone in {took:?}, and {grew} KiB are left of them");
    assert!(grew < 2048 + created / 16, "64 bytes of each source, or more, are left");
    assert!(!server.log().contains("WARN") && !server.log().contains("ERROR"), "{}", server.log());
}

// ---- who reads all there is ------------------------------------------------------------------------

/// What a crawler has done, for all to see.
struct Crawled {
    files: AtomicU64,
    reads: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

/// Another user, who may not see everything.
const OTHER: u32 = 20_001;

#[test]
#[ignore = "a process that the others start"]
fn crawling_process() {
    let (crawled, mut socket, mode) = child::in_child::<Crawled>();
    let [seed, user, mount] = mode.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let user: u32 = user.parse().unwrap();
    nix::unistd::setresgid(user.into(), user.into(), user.into()).unwrap();
    nix::unistd::setresuid(user.into(), user.into(), user.into()).unwrap();
    let mut random = Random::new(seed.parse().unwrap());
    socket.set_nonblocking(true).unwrap();
    // Everything that is listed, and what is not.
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::from(mount)];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if user != 0 && error.raw_os_error() == Some(libc::EACCES) => continue,
            entries => entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display())),
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            match path.symlink_metadata().unwrap().file_type() {
                kind if kind.is_dir() => directories.push(path),
                kind if kind.is_file() => files.push(path),
                _ => {}
            }
        }
        let unlisted = [".departed", ".stats"].map(|name| directory.join(name));
        directories.extend(unlisted.into_iter().filter(|path| path.is_dir()));
    }
    crawled.files.fetch_add(files.len() as u64, SeqCst);
    let mut room = vec![0; 1 << 16];
    while socket.read_exact(&mut [0]).is_err() {
        let path = &files[random.below(files.len() as u64) as usize];
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match opened {
            Err(error) if user != 0 && error.raw_os_error() == Some(libc::EACCES) => {
                crawled.refused.fetch_add(1, SeqCst);
                continue;
            }
            file => file.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        };
        for _ in 0..1 + random.below(4) {
            let [offset, size] = [20, 17].map(|bits| {
                // Small ones as often as large ones.
                let bits = random.below(bits);
                random.below(1 << bits)
            });
            let offset = if random.one_in(2) { 0 } else { offset };
            let got = file.read_at(&mut room[..size as usize], offset);
            let got = got.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let is_value = !path.components().any(|part| part.as_os_str() == ".stats");
            if is_value && !path.ends_with("buckets") && offset == 0 && got < size as usize {
                let text = std::str::from_utf8(&room[..got]).unwrap();
                let number = text.strip_suffix('\n').and_then(|text| text.parse::<i128>().ok());
                assert!(number.is_some(), "{}: {text:?}", path.display());
            }
            crawled.reads.fetch_add(1, SeqCst);
            crawled.bytes.fetch_add(got as u64, SeqCst);
        }
    }
    std::process::exit(0);
}

/// A process that counts for itself what it counts, and shows it all the time.
struct Honest {
    _publisher: Publisher,
    slot: Mutex<Slot<Work>>,
    counted: AtomicU64,
    directory: String,
}

impl Honest {
    fn publish(server: &Server) -> Self {
        let registry = Registry::new().unwrap();
        let [kvm, _net] = tops(&registry);
        let vm = below(&registry, &kvm, "honest");
        for n in 0..20 {
            drop(below(&registry, &vm, &format!("vcpu{n}")).add_values::<Work>().unwrap());
        }
        let slot = vm.add_values().unwrap();
        let publisher = publish(&registry, server.socket());
        let directory = format!("kvm/{}-honest", std::process::id());
        let last = server.path(&directory).join("vcpu19");
        until("it is there", || last.exists());
        let counted = AtomicU64::new(0);
        Self { _publisher: publisher, slot: Mutex::new(slot), counted, directory }
    }

    /// Counts a while, and looks whether what is shown is what was counted.
    fn check(&self, server: &Server) {
        let slot = self.slot.lock().unwrap();
        for _ in 0..1000 {
            slot.update(|counters| counters.work_done.inc());
        }
        let counted = 1000 + self.counted.fetch_add(1000, SeqCst);
        for path in [&self.directory, "kvm"] {
            assert_eq!(server.number(&format!("{path}/work_done")), counted, "{path}");
        }
    }

    /// Does so until a time has passed, and something has been done in it.
    fn check_for(&self, server: &Server, time: Duration, mut is_done: impl FnMut() -> bool) {
        let start = Instant::now();
        let mut times = 0;
        while start.elapsed() < time || !is_done() {
            assert!(start.elapsed() < time + PATIENCE, "nothing is done");
            self.check(server);
            times += 1;
        }
        println!("{times} looks at what is counted in {:?}", start.elapsed());
    }
}

#[test]
fn crawlers_read_everything_in_every_way() {
    let seed = seed();
    let server = &Server::start();
    let honest = Honest::publish(server);
    honest.check(server);
    let before = Footprint::of(server);
    let memory = Shared::<Crawled>::new();
    let crawled = memory.value;
    let crawlers: Vec<_> = (0..6)
        .map(|n| {
            let user = if n % 3 == 2 { OTHER } else { 0 };
            let mode = format!("{} {user} {}", seed + n, server.mount().display());
            Writer::start("crawling_process", &memory, &mode)
        })
        .collect();
    let time = Duration::from_secs(rounds(3) as u64);
    honest.check_for(server, time, || crawled.reads.load(SeqCst) > 1000);
    for mut crawler in crawlers {
        crawler.socket.write_all(&[0]).unwrap();
        assert!(crawler.wait().success());
    }
    println!(
        "{} files crawled: {} reads, {} bytes; {} refused",
        crawled.files.load(SeqCst),
        crawled.reads.load(SeqCst),
        crawled.bytes.load(SeqCst),
        crawled.refused.load(SeqCst),
    );
    assert!(crawled.refused.load(SeqCst) > 0, "another user may not clear everything");
    honest.check(server);
    until("all files are closed", || server.open_files() <= before.files);
    let after = Footprint::of(server);
    println!("before {before:?}, after {after:?}");
    assert_eq!(after.threads, before.threads);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn stress_ng_takes_it_for_sysfs() {
    let server = &Server::start();
    let honest = Honest::publish(server);
    let asked = || server.number("statsfs/mount_requests_read");
    let (before, seconds) = (asked(), rounds(5).to_string());
    // In a mount namespace of its own nobody else sees what is over /sys.
    let script =
        r#"mount --bind "$1" /sys && exec stress-ng --sysfs 4 --timeout "$2" --metrics-brief"#;
    let mount = server.mount();
    let log = File::create(mount.parent().unwrap().join("stress-ng")).unwrap();
    let mut stress = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([mount.as_os_str(), seconds.as_ref()])
        .current_dir(mount.parent().unwrap())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("unshare is missing: `apt-get install -y util-linux`");
    let said = || std::fs::read_to_string(mount.parent().unwrap().join("stress-ng")).unwrap();
    let status = loop {
        if let Some(status) = stress.try_wait().unwrap() {
            break status;
        }
        honest.check(server);
    };
    assert_ne!(status.code(), Some(127), "stress-ng is missing: `apt-get install -y stress-ng`");
    assert!(status.success(), "{status}:\n{}", said());
    let reads = asked() - before;
    println!("{}{reads} reads of values", said());
    assert!(reads > 1000, "{reads} reads: it has not been there:\n{}", said());
    honest.check(server);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}
