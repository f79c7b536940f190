//! A real server that is killed, and carried on by another one with what a service manager kept: readers wait
//! and see no error, files stay open, and nothing that anybody counted is lost, also of those who end
//! meanwhile.

#[path = "support/publishing.rs"]
mod publishing;
#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/trace.rs"]
mod trace;
#[path = "support/user.rs"]
mod user;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use publishing::{AT_ONCE, Publishing};
use server::Server;
use statsfs::host::server::ClientState;
use statsfs::host::{PublishOptions, Publisher};
use statsfs::{Registry, RegistryOptions, Slot};
use support::child::{self, Shared, Writer};
use support::ledger::{FILES, Ledger, Reader, TOPS, Totals, add, held};
use support::{Random, StopAtEnd, Work, below, rounds, seed, until};
use user::as_user;

#[test]
#[ignore = "a process that the others start"]
fn publishing_process() {
    publishing::process();
}

/// The line of the mount table that is about a server's mount: its number is another one once it was mounted
/// anew.
fn mounted(server: &Server) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = format!(" {} ", server.mount().display());
    table.lines().find(|line| line.contains(&point)).map(str::to_owned)
}

/// What an open file says now.
fn number_in(file: &File) -> u64 {
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0).unwrap_or_else(|error| panic!("an open file: {error}"));
    let text = std::str::from_utf8(&text[..len]).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
}

/// Ends the connection when something fails: else whoever waits for an answer would wait for ever, since this
/// process itself keeps the devices.
struct AbortAtPanic<'a>(&'a std::path::Path);

impl Drop for AbortAtPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let flags = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::MNT_FORCE;
            let _ = nix::mount::umount2(self.0, flags);
        }
    }
}

/// One that counts only when told, so that what was cleared of it can be seen.
struct Quiet {
    slot: Slot<Work>,
    directory: String,
    _publisher: Publisher,
    _registry: Registry,
}

impl Quiet {
    fn start(server: &Server) -> Self {
        let registry = Registry::new().unwrap();
        let top = support::top(&registry);
        let slot = below(&registry, &top, "below").add_values().unwrap();
        let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
        let publisher = registry.publish(options).unwrap();
        let directory = format!("top/{}-below", std::process::id());
        until("the quiet one", || server.path(&directory).exists());
        Self { slot, directory, _publisher: publisher, _registry: registry }
    }

    fn count(&self, n: u64) {
        self.slot.update(|counters| counters.work_done.add(n));
    }

    fn file(&self, server: &Server) -> File {
        let path = server.path(&format!("{}/work_done", self.directory));
        File::options().read(true).write(true).open(path).unwrap()
    }
}

/// What readers know of.
struct Run<'a> {
    server: &'a std::path::Path,
    ledger: &'static Ledger,
    stop: AtomicBool,
    checks: AtomicU64,
    longest_us: AtomicU64,
}

impl Run<'_> {
    /// Reads totals over and over, by path or from files that were opened once.
    fn read(&self, seed: u64, open_once: bool) {
        let (mut random, mut reader) = (Random::new(seed), Reader::default());
        let paths = TOPS.iter().flat_map(|top| FILES.map(|file| format!("{top}/{file}")));
        let open: HashMap<_, _> = paths
            .map(|path| {
                let file = File::open(self.server.join(&path)).unwrap();
                (path, file)
            })
            .collect();
        while !self.stop.load(SeqCst) {
            reader.check(self.ledger, &mut random, |path| {
                let start = Instant::now();
                let there = if open_once {
                    number_in(&open[path])
                } else {
                    let text = std::fs::read_to_string(self.server.join(path))
                        .unwrap_or_else(|error| panic!("{path}: {error}"));
                    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
                };
                self.longest_us.fetch_max(start.elapsed().as_micros() as u64, SeqCst);
                there
            });
            self.checks.fetch_add(1, SeqCst);
        }
    }

    /// Clears what only this thread counts, and reads that nothing else is there.
    fn clear(&self, quiet: &Quiet, server: &std::path::Path) {
        let total = server.join("top/work_done");
        let own = server.join(&quiet.directory).join("work_done");
        let open = File::options().read(true).write(true).open(&own).unwrap();
        let number = |path: &std::path::Path| {
            std::fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap()
        };
        let mut n = 1;
        while !self.stop.load(SeqCst) {
            quiet.count(n);
            assert_eq!((number(&total), number(&own), number_in(&open)), (n, n, n));
            match n % 3 {
                0 => open.write_all_at(b"0\n", 0).unwrap(),
                1 => std::fs::write(&own, "0\n").unwrap(),
                _ => std::fs::write(server.join("top/.stats/clear"), "0\n").unwrap(),
            }
            assert_eq!((number(&total), number(&own), number_in(&open)), (0, 0, 0));
            n += 1;
            self.checks.fetch_add(1, SeqCst);
        }
    }
}

#[test]
fn a_server_that_is_killed_is_carried_on_and_nobody_notices() {
    let seed = seed();
    let mut random = Random::new(seed);
    let memory = Shared::<Ledger>::new();
    let mut server = Server::kept();
    let ledger = memory.value;
    let quiet = Mutex::new(Quiet::start(&server));
    let mount = server.mount();
    let run = &Run {
        server: &mount,
        ledger,
        stop: AtomicBool::new(false),
        checks: AtomicU64::new(0),
        longest_us: AtomicU64::new(0),
    };
    let mut sums = Totals::default();
    let mut all: Vec<Publishing> = Vec::new();
    let (mut started, mut killed, mut ended_meanwhile, mut in_start) = (0, 0, 0, 0);
    let first = mounted(&server).unwrap();
    // One that stays, whose own file is open all along.
    let stays = Publishing::start(&server, &memory, 0, seed, false);
    started += 1;
    let own = File::open(server.path(&format!("{}/work_done", stays.directory())));
    thread::scope(|scope| {
        let _stop = StopAtEnd(&run.stop);
        let _abort = AbortAtPanic(&mount);
        until("its file", || number_in(own.as_ref().unwrap()) > 0);
        until("the other one", || server.path("net/work_time/count").exists());
        scope.spawn(move || run.read(seed + 1, false));
        scope.spawn(move || run.read(seed + 2, true));
        scope.spawn(|| run.clear(&quiet.lock().unwrap(), &mount));
        let mut last = 0;
        while killed < rounds(10) {
            while all.len() < AT_ONCE / 2 {
                let (n, seed) = (started, seed + started as u64);
                all.push(Publishing::start(&server, &memory, n, seed, false));
                started += 1;
            }
            let end_one = |all: &mut Vec<Publishing>, random: &mut Random| {
                let mut one = all.swap_remove(random.below(all.len() as u64) as usize);
                if random.one_in(2) {
                    one.writer.signal(libc::SIGKILL);
                } else {
                    one.writer.socket.write_all(&[1]).unwrap();
                }
                one
            };
            // Some end just before the server does: it has heard of that, or not, or is about to keep what
            // they counted.
            let mut ended = Vec::new();
            if random.one_in(2) {
                ended.push(end_one(&mut all, &mut random));
            }
            let inode = |one: &Publishing| {
                (server.path(&one.directory()).metadata().unwrap().ino(), one.writer.pid())
            };
            let inodes: Vec<_> = all.iter().map(inode).collect();
            thread::sleep(Duration::from_micros(random.below(20_000)));
            server.kill();
            killed += 1;
            for _ in 0..random.below(3) {
                ended.push(end_one(&mut all, &mut random));
                ended_meanwhile += 1;
            }
            for one in &mut ended {
                one.writer.wait();
                add(&mut sums, &held(&one.segments));
            }
            while random.one_in(3) {
                // One that does not come far.
                server.begin_again();
                thread::sleep(Duration::from_micros(random.below(60_000)));
                server.kill();
                in_start += 1;
            }
            server.start_again();
            assert_eq!(mounted(&server).as_ref(), Some(&first), "it is the same mount");
            for (ino, pid) in
                inodes.iter().filter(|(_, pid)| all.iter().any(|one| one.writer.pid() == *pid))
            {
                let path = server.path(&format!("kvm/{pid}-vm"));
                assert_eq!(path.metadata().unwrap().ino(), *ino, "{}", path.display());
            }
            let shown = number_in(own.as_ref().unwrap());
            assert!(last <= shown, "{last} ≤ {shown}");
            last = shown;
            if random.one_in(2) {
                until("all have come back", || {
                    let clients = server.status().clients;
                    clients.len() == all.len() + 2
                        && clients.iter().all(|client| client.state == ClientState::Published)
                });
            }
        }
        let before = run.checks.load(SeqCst);
        until("readers have seen the last one", || run.checks.load(SeqCst) > before + 20);
    });
    assert!(started > AT_ONCE / 2 && ended_meanwhile > 0);
    drop(own);
    all.push(stays);
    for mut one in all {
        one.writer.signal(libc::SIGKILL);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
    }
    until("all are folded", || server.status().clients.len() == 1);
    publishing::are_kept(&server, &sums, "in the end");
    publishing::are_within(ledger, &sums);
    println!(
        "{started} processes, {killed} servers killed and {in_start} that had just begun, {ended_meanwhile} \
         processes ended meanwhile; {} checks, the longest took {:?}",
        run.checks.load(SeqCst),
        Duration::from_micros(run.longest_us.load(SeqCst)),
    );
    // The mount's devices, and the segments of the one that is there.
    let names = server.holder().names();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[0].starts_with("fuse.") && names[1] == names[0], "{names:?}");
    assert!(names[2].starts_with("seg."), "{names:?}");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    assert!(!server.log().contains("WARN"), "{}", server.log());
    // In the end it is unmounted, as ever.
    assert!(server.stop().success());
    assert_eq!(mounted(&server), None);
    assert!(!server.mount().exists(), "it was made for it");
    let names = server.holder().names();
    assert!(names.iter().all(|name| name.starts_with("seg.")), "{names:?}");
}

#[test]
fn what_was_asked_of_a_server_that_was_killed_is_answered() {
    let mut server = Server::kept();
    let quiet = Quiet::start(&server);
    let file = &quiet.file(&server);
    for round in 0..rounds(4) as u64 {
        quiet.count(1);
        let mount = server.mount();
        let mut traced = Vec::new();
        // Threads have their names a little later.
        until("its threads", || {
            traced = trace::threads(server.pid(), "fuser-0");
            traced.len() == 2
        });
        thread::scope(|scope| {
            let _abort = AbortAtPanic(&mount);
            let (told, asks) = std::sync::mpsc::channel();
            // A clear or a read, which the server gets, and never answers.
            let held = trace::Held::after_read(&traced, || {
                scope.spawn(move || {
                    if round % 2 == 0 {
                        file.write_all_at(b"0\n", 0).unwrap();
                    }
                    told.send(number_in(file)).unwrap();
                });
            });
            assert!(asks.try_recv().is_err());
            server.strike();
            held.have_ended();
            server.kill();
            server.start_again();
            let shown = asks.recv_timeout(support::PATIENCE).expect("it is answered");
            assert_eq!(shown, round % 2);
        });
    }
}

#[test]
fn what_a_bulk_file_shows_is_for_who_opened_it() {
    let mut server = Server::kept();
    let quiet = Quiet::start(&server);
    quiet.count(7);
    let value = quiet.file(&server);
    let open = |path: &str, write: bool| {
        File::options().read(!write).write(write).open(server.path(path)).unwrap()
    };
    let (flat, clear) = (open(".stats/flat", false), open("top/.stats/clear", true));
    let read_only = open(&format!("{}/work_failed", quiet.directory), false);
    let mut text = vec![0; 1 << 16];
    assert!(flat.read_at(&mut text, 0).unwrap() > 0);
    server.kill();
    server.start_again();
    for offset in [0, 5] {
        let error = flat.read_at(&mut text, offset).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    }
    // Values are the same for all.
    assert_eq!(number_in(&value), 7);
    assert_eq!(number_in(&read_only), 0);
    // Who goes on where something was read before that nobody knows any more finds its end.
    server.kill();
    server.start_again();
    assert_eq!(value.read_at(&mut text, 1).unwrap(), 0);
    assert_eq!(number_in(&value), 7);
    assert_eq!(value.read_at(&mut text, 1).unwrap(), 1, "the newline");
    clear.write_all_at(b"0\n", 0).unwrap();
    assert_eq!(number_in(&value), 0);
    assert_eq!(value.write_at(b"1", 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    // Opened again it shows all of it.
    assert!(std::fs::read_to_string(server.path(".stats/flat")).unwrap().contains("below"));
}

#[test]
fn what_other_users_have_open_stays_open_and_theirs() {
    let mut server = Server::kept_with(&["--max-user-open-files", "3"]);
    let quiet = Quiet::start(&server);
    quiet.count(1);
    let mount = server.mount();
    let total = &mount.join("top/work_done");
    // Neither of them is among the readers.
    let (private, flat) =
        (&server.path(&format!("{}/work_done", quiet.directory)), &server.path(".stats/flat"));
    let (a, b, c) = (20_001, 20_002, 20_003);
    let fails = |opened: std::io::Result<File>| opened.err().and_then(|error| error.raw_os_error());
    let of_root = File::open(private).unwrap();
    let of_a = &as_user(a, a, &[], || [total, total, flat].map(|path| File::open(path).unwrap()));
    let (stop, reads) = (&AtomicBool::new(false), &[0, 0].map(AtomicU64::new));
    thread::scope(|scope| {
        let _stop = StopAtEnd(stop);
        let _abort = AbortAtPanic(&mount);
        // One reads what is open, and another one opens it each time.
        let read_as = move |uid: u32, n: usize, number: &dyn Fn() -> u64| {
            let mut last = 0;
            while !stop.load(SeqCst) {
                let now = number();
                assert!(last <= now, "user {uid}: {now} after {last}");
                last = now;
                reads[n].fetch_add(1, SeqCst);
            }
        };
        scope.spawn(move || as_user(a, a, &[], || read_as(a, 0, &|| number_in(&of_a[0]))));
        let anew = || number_in(&File::open(total).unwrap());
        scope.spawn(move || as_user(b, b, &[], || read_as(b, 1, &anew)));
        for n in 0..rounds(3) as u64 {
            server.kill();
            quiet.count(1);
            server.start_again();
            let before = reads.each_ref().map(|reads| reads.load(SeqCst));
            until("both go on", || (0..2).all(|n| reads[n].load(SeqCst) > before[n] + 1));
            as_user(a, a, &[], || {
                assert_eq!(number_in(&of_a[1]), n + 2);
                let error = of_a[2].read_at(&mut [0; 64], 0).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                assert_eq!(fails(File::open(private)), Some(libc::EACCES));
                assert_eq!(fails(File::open(total)), Some(libc::EMFILE), "these three are A's");
                // Who was let in reads on, though that is one more.
                assert_eq!(number_in(&of_root), n + 2);
            });
            as_user(c, c, &[], || {
                let files = [(); 3].map(|()| File::open(total).unwrap());
                assert_eq!(fails(File::open(total)), Some(libc::EMFILE));
                files.iter().for_each(|file| assert_eq!(number_in(file), n + 2));
            });
        }
    });
    // With what the servers before had opened it is as with what this one has.
    let more = as_user(a, a, &[], || fails(File::open(total)));
    assert_eq!(more, Some(libc::EMFILE));
    let text = as_user(c, c, &[], || std::fs::read_to_string(flat).unwrap());
    assert!(text.contains("top/work_done") && !text.contains("-below"), "{text}");
    assert!(std::fs::read_to_string(flat).unwrap().contains("-below"));
}

#[test]
fn closed_files_of_a_server_before_make_room() {
    let mut server = Server::kept_with(&["--max-user-open-files", "3"]);
    let _quiet = Quiet::start(&server);
    let (total, uid) = (server.path("top/work_done"), 20_001);
    let open = || as_user(uid, uid, &[], || File::open(&total));
    let files = [(); 3].map(|()| open().unwrap());
    server.kill();
    server.start_again();
    as_user(uid, uid, &[], || files.iter().for_each(|file| assert_eq!(number_in(file), 0)));
    assert!(open().is_err());
    drop(files);
    until("they are closed", || open().is_ok());
    let _files = [(); 3].map(|()| open().unwrap());
    assert!(open().is_err());
}

/// Kills the server, does something to what is kept, and starts it again: what that says of it.
fn kept_in_vain(harm: impl FnOnce(&Server)) -> String {
    let mut server = Server::kept();
    let quiet = Quiet::start(&server);
    quiet.count(3);
    let before = mounted(&server).unwrap();
    let file = quiet.file(&server);
    assert_eq!(number_in(&file), 3);
    server.kill();
    harm(&server);
    let log = server.log().len();
    server.start_again();
    assert_ne!(mounted(&server).as_ref(), Some(&before), "it is mounted anew");
    let error = file.read_at(&mut [0; 8], 0).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    until("the client is back", || server.path(&quiet.directory).exists());
    assert_eq!(server.number(&format!("{}/work_done", quiet.directory)), 3);
    until("nothing else is kept", || {
        let names = server.holder().names();
        names.iter().filter(|name| name.starts_with("fuse.")).count() == 2
            && names.iter().filter(|name| name.starts_with("seg.")).count() == 1
            && names.len() == 3
    });
    // It is kept, too.
    let again = mounted(&server);
    server.kill();
    server.start_again();
    assert_eq!(mounted(&server), again);
    server.log()[log..].to_owned()
}

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

/// A file that has no seals.
fn unsealed() -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string; the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"unsealed".as_ptr(), libc::MFD_CLOEXEC)) }
}

#[test]
fn a_mount_whose_connection_has_ended_is_made_anew() {
    let log = kept_in_vain(|server| {
        // By force what is in use is not unmounted, but nobody can answer any more.
        let busy = nix::mount::umount2(&server.mount(), nix::mount::MntFlags::MNT_FORCE);
        assert_eq!(busy, Err(nix::errno::Errno::EBUSY));
    });
    assert!(log.contains("it has no live connection"), "{log}");
}

#[test]
fn a_mount_that_was_taken_away_is_made_anew() {
    let log = kept_in_vain(|server| {
        nix::mount::umount2(&server.mount(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    assert!(log.contains("it is not mounted there any more"), "{log}");
}

#[test]
fn a_mount_of_another_state_is_made_anew() {
    let log = kept_in_vain(|server| {
        server.holder().rename(|name| match name.split('.').collect::<Vec<_>>()[..] {
            ["fuse", _, place, source] => format!("fuse.1.{place}.{source}"),
            _ => name.to_owned(),
        });
    });
    assert!(log.contains("inode numbers are of another state"), "{log}");
}

#[test]
fn a_mount_under_another_name_is_made_anew() {
    let log = kept_in_vain(|server| {
        server.holder().rename(|name| name.replace("fuse.", "fuse-"));
    });
    assert!(log.contains("kept what is of no use here"), "{log}");
}

#[test]
fn a_mount_whose_state_is_lost_is_made_anew() {
    let log = kept_in_vain(|server| {
        // The same file.
        let state = server.mount().with_file_name("state").join("state");
        std::fs::write(state, [0x5a; 30_000]).unwrap();
    });
    assert!(log.contains("inode numbers are of another state"), "{log}");
}

#[test]
fn what_was_kept_and_is_of_no_use_harms_nobody() {
    let mut server = Server::kept();
    let quiet = Quiet::start(&server);
    quiet.count(3);
    let (before, file) = (mounted(&server), quiet.file(&server));
    server.kill();
    let holder = server.holder();
    let names = holder.names();
    for name in ["", "stored", "seg", "seg.x", "seg.5", "fuse.1", "fuse.1.made.statsfs-1"] {
        holder.hold(name, pipe());
        holder.hold(name, unsealed());
    }
    // Among what is of use.
    for name in &names {
        holder.hold(name, pipe());
        holder.hold(name, File::options().read(true).write(true).open("/dev/fuse").unwrap().into());
        holder.hold(name, unsealed());
    }
    server.start_again();
    assert_eq!(mounted(&server), before);
    assert_eq!(number_in(&file), 3);
    quiet.count(4);
    assert_eq!(server.number("top/work_done"), 7);
    let is_of_use = |name: &String| names.contains(name);
    until("the rest is let go", || server.holder().names().iter().all(is_of_use));
}

#[test]
fn what_is_passed_and_has_no_name_that_can_be_told_is_closed() {
    let mut server = Server::kept();
    assert!(server.stop().success());
    let (read, _write) = std::io::pipe().unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).unwrap();
    // Names are told with colons in between.
    server.holder().hold("seg:", read.into());
    server.start_again();
    assert!(
        server.log().contains("what the service manager kept is of no use"),
        "{}",
        server.log()
    );
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let open: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()).collect();
    assert!(!open.contains(&link), "{open:?}");
}

#[test]
fn a_process_whose_segments_were_kept_in_vain_comes_by_itself() {
    let mut server = Server::kept();
    let quiet = Quiet::start(&server);
    quiet.count(3);
    server.kill();
    let holder = server.holder();
    let segments = holder.names().into_iter().find(|name| name.starts_with("seg.")).unwrap();
    holder.rename(|name| name.replace("seg.", "lost."));
    holder.hold(&segments, unsealed());
    server.start_again();
    until("it has come", || server.try_number("top/work_done").is_ok_and(|there| there == 3));
    until("its segments are kept again", || {
        let names = server.holder().names();
        names.len() == 3 && names[2] == segments
    });
    assert!(server.log().contains("what was kept of a process is not taken in"));
}

#[test]
fn a_process_that_has_all_that_it_may_comes_back() {
    let mut server = Server::kept_with(&["--max-segments", "1"]);
    let quiet = Quiet::start(&server);
    for n in 1..4 {
        server.kill();
        server.start_again();
        until("it has come back", || {
            let clients = server.status().clients;
            clients.len() == 1 && clients[0].state == ClientState::Published
        });
        quiet.count(1);
        assert_eq!(server.number("top/work_done"), n);
        assert_eq!(server.status().used.segments, 1);
    }
}

#[test]
fn a_process_that_has_more_than_it_may_by_now_comes_back() {
    let mut server = Server::kept();
    let registry = Registry::new().unwrap();
    let top = support::top(&registry);
    let slot = below(&registry, &top, "below").add_values::<Work>().unwrap();
    let _more: Vec<_> = (0..4).map(|n| below(&registry, &top, &format!("more{n}"))).collect();
    let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
    let _publisher = registry.publish(options).unwrap();
    let is_published = |server: &Server| {
        let clients = server.status().clients;
        clients.len() == 1 && clients[0].state == ClientState::Published
    };
    until("it is published", || {
        is_published(&server) && server.status().clients[0].has.sources > 5
    });
    let has = server.status().clients[0].has;
    for limits in [
        ["--max-sources", "4"],
        ["--max-host-sources", "4"],
        ["--max-mib", "0"],
        ["--max-segments", "0"],
    ] {
        server.kill();
        server.start_again_with(&limits);
        until(&format!("it has come back: {limits:?}"), || is_published(&server));
        slot.update(|counters| counters.work_done.add(1));
        // It stays, whenever it is looked at what it has.
        thread::sleep(Duration::from_millis(1200));
        assert!(is_published(&server), "{limits:?}: {}", server.log());
        assert_eq!(server.status().clients[0].has, has, "{limits:?}");
    }
    assert_eq!(server.number("top/work_done"), 4);
}

/// Publishes, and has one more segment when it is told to, in which it counts.
#[test]
#[ignore = "a process that the others start"]
fn growing_process() {
    let (_, mut socket, to) = child::in_child::<AtomicU64>();
    let small = RegistryOptions { segment_size: 64 << 10, ..RegistryOptions::default() };
    let registry = Registry::with_options(small).unwrap();
    let top = support::top(&registry);
    let first = below(&registry, &top, "first").add_values::<Work>().unwrap();
    first.update(|counters| counters.work_done.add(5));
    let options = PublishOptions { socket: Some(to.into()), ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(support::PATIENCE);
    assert!(matches!(state, statsfs::host::PublishState::Published { .. }), "{state:?}");
    socket.write_all(&[1]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    let mut slots = Vec::new();
    for n in 0.. {
        if registry.usage().segments > 1 {
            break;
        }
        let slot = below(&registry, &top, &format!("more{n}")).add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(1));
        slots.push(slot);
    }
    socket.write_all(&[1]).unwrap();
    let _ = socket.read(&mut [0]);
}

#[test]
fn what_nobody_has_kept_of_a_process_that_died_is_said_to_be_lost() {
    let memory = Shared::<AtomicU64>::new();
    let mut server = Server::kept();
    let to = server.socket().display().to_string();
    let mut writer = Writer::start("growing_process", &memory, &to);
    writer.socket.read_exact(&mut [0]).unwrap();
    assert_eq!(server.number("top/work_done"), 5);
    server.kill();
    writer.socket.write_all(&[1]).unwrap();
    writer.socket.read_exact(&mut [0]).unwrap();
    writer.signal(libc::SIGKILL);
    writer.wait();
    server.start_again();
    // What is in the first one is counted.
    assert!(server.number("top/work_done") >= 5);
    let log = server.log();
    let said = log.lines().find(|line| line.contains("what it counted in the others is lost"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("WARN") && said.contains(&format!("pid={}", writer.pid())), "{said}");
}

/// Kills the server when the thread that takes processes in and folds them has begun `n` system calls since it
/// was given something to do, or when all is done: how many it has begun then.
fn killed_at(
    n: usize,
    server: &mut Server,
    act: impl FnOnce(),
    is_done: impl FnMut() -> bool,
) -> Option<usize> {
    let mut worker = Vec::new();
    until("the thread", || {
        worker = trace::threads(server.pid(), "statsfs-worker");
        worker.len() == 1
    });
    let worker = trace::Traced::stop(worker[0]);
    worker.go_on();
    act();
    let begun = worker.run_to_call(n, is_done);
    server.strike();
    worker.reap();
    server.kill();
    begun
}

/// How many segments are kept.
fn segments_kept(server: &Server) -> usize {
    server.holder().names().iter().filter(|name| name.starts_with("seg.")).count()
}

#[test]
fn a_process_counts_once_whatever_step_of_its_coming_the_server_is_killed_at() {
    let mut server = Server::kept();
    let stays = Quiet::start(&server);
    stays.count(1);
    let open = File::open(server.path("top/work_done")).unwrap();
    let mut n = 0;
    loop {
        n += 1;
        let registry = Registry::new().unwrap();
        let top = support::top(&registry);
        let slot = below(&registry, &top, "comes").add_values::<Work>().unwrap();
        slot.update(|counters| counters.work_done.add(5));
        let before = 1 + 5 * (n as u64 - 1);
        assert_eq!(number_in(&open), before);
        let options = PublishOptions { socket: Some(server.socket()), ..PublishOptions::default() };
        let publisher = std::cell::OnceCell::new();
        let is_there = || {
            let state = publisher.get().map(Publisher::state);
            matches!(state, Some(statsfs::host::PublishState::Published { .. }))
        };
        let act = || publisher.set(registry.publish(options).unwrap()).unwrap();
        let begun = killed_at(n, &mut server, act, is_there);
        server.start_again();
        // Seen at once if it was seen before, and else when it has come.
        let seen = number_in(&open);
        assert!(seen == before + 5 || (seen == before && begun.is_none()), "step {n}: {seen}");
        until("it has come", || number_in(&open) == before + 5);
        let directory = server.path(&format!("top/{}-comes", std::process::id()));
        until("its directory", || directory.exists());
        until("it is published", is_there);
        until("its segment is kept", || segments_kept(&server) == 2);
        // It leaves.
        drop(publisher);
        until("it is folded", || segments_kept(&server) == 1);
        assert_eq!(number_in(&open), before + 5, "step {n}");
        assert_eq!(server.number("top/.departed/work_done"), before + 4);
        if let Some(begun) = begun {
            println!("killed at each of {begun} steps of a coming");
            assert!(begun > 4);
            break;
        }
    }
}

#[test]
fn a_process_counts_once_whatever_step_of_its_fold_the_server_is_killed_at() {
    let memory = Shared::<Ledger>::new();
    let mut server = Server::kept();
    let (mut sums, mut n) = (Totals::default(), 0);
    loop {
        n += 1;
        let mut one = Publishing::start(&server, &memory, n, n as u64, false);
        let open = File::open(server.path("kvm/work_done")).unwrap();
        until("it has counted", || number_in(&open) > sums[0][0] + 10);
        assert_eq!(segments_kept(&server), one.segments.len());
        let act = || one.writer.signal(libc::SIGKILL);
        let holder = server.holder().clone();
        let is_folded = || holder.names_now().iter().all(|name| !name.starts_with("seg."));
        let begun = killed_at(n, &mut server, act, is_folded);
        one.writer.wait();
        add(&mut sums, &held(&one.segments));
        server.start_again();
        assert_eq!(number_in(&open), sums[0][0], "killed at step {n}");
        until("it is folded", || segments_kept(&server) == 0);
        publishing::are_kept(&server, &sums, &format!("killed at step {n}"));
        if let Some(begun) = begun {
            println!("killed at each of {begun} steps of a fold");
            assert!(begun > 4);
            break;
        }
    }
}
