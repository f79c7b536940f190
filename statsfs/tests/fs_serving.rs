//! Serving: content, listings under churn, entries that go, limits, bulk files.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Tree, eventually, mounted, mounted_with, temp};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use statsfs::fs::{Mount, MountOptions, ROOT};

fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn content_is_made_when_it_is_read() {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let path = mount.path().join("vm/exits");
    let file = File::open(&path).unwrap();
    sample.exits.store(100, Relaxed);
    let mut room = [0; 16];
    assert_eq!(file.read_at(&mut room, 0).unwrap(), 4);
    assert_eq!(&room[..4], b"100\n", "of now, not of when it was opened");
    sample.exits.store(2222, Relaxed);
    assert_eq!(file.read_at(&mut room, 1).unwrap(), 3);
    assert_eq!(&room[..3], b"00\n", "elsewhere what the last read at 0 made");
    assert_eq!(file.read_at(&mut room, 0).unwrap(), 5);
    assert_eq!(&room[..5], b"2222\n");
    assert_eq!(file.read_at(&mut room, 4).unwrap(), 1);
    // Each open has its own.
    sample.exits.store(3, Relaxed);
    assert_eq!(read(&path).unwrap(), "3\n");
    assert_eq!(file.read_at(&mut room, 2).unwrap(), 3);
    // A file that is only written to is not rendered, nor one that is only opened.
    let before = tree.rendered.load(Relaxed);
    File::create(&path).unwrap().write_all(b"0\n").unwrap();
    drop(File::open(&path).unwrap());
    assert_eq!(tree.rendered.load(Relaxed), before);
    assert_eq!(sample.exits.load(Relaxed), 0);
}

#[test]
fn attributes() {
    let (tree, sample) = Tree::sample();
    let private = tree.directory(ROOT, "private");
    tree.own(private, 1234, 0o750);
    let (_dir, mount) = mounted(&tree);
    let meta = |path: &str| mount.path().join(path).symlink_metadata().unwrap();
    let root = mount.path().metadata().unwrap();
    assert_eq!((root.ino(), root.mode(), root.uid()), (ROOT, 0o040755, 0));
    let vm = meta("vm");
    assert_eq!((vm.ino(), vm.mode(), vm.nlink()), (sample.vm, 0o040755, 1));
    assert_eq!(vm.mtime(), 1_600_000_000);
    assert_eq!(meta("private").mode(), 0o040750);
    assert_eq!((meta("private").uid(), meta("private").gid()), (1234, 1234));
    assert_eq!(meta("vm/exits").mode(), 0o100644);
    assert_eq!(meta("vm/level").mode(), 0o100444);
    assert_eq!(meta("vm/link").mode(), 0o120777);
    let target = std::fs::read_link(mount.path().join("vm/link")).unwrap();
    assert_eq!(target, Path::new("vcpu0/exits"));
}

#[test]
fn names_and_attributes_are_remembered_and_misses_are_not() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let path = mount.path().join("vm/exits");
    path.metadata().unwrap();
    let before = tree.looked_up.load(Relaxed);
    for _ in 0..100 {
        path.metadata().unwrap();
        read(&path).unwrap();
    }
    assert_eq!(tree.looked_up.load(Relaxed), before, "no further lookup");
    for round in 0..100 {
        let name = format!("new{round}");
        assert_eq!(errno(read(&mount.path().join(&name))), libc::ENOENT);
        tree.cumulative(ROOT, &name);
        assert_eq!(read(&mount.path().join(&name)).unwrap(), "0\n", "there at once");
    }
}

#[test]
fn entries_that_go() {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let (vcpu, file) = (mount.path().join("vm/vcpu0"), mount.path().join("vm/vcpu0/exits"));
    let open = File::open(&file).unwrap();
    let half = File::open(&file).unwrap();
    assert_eq!(half.read_at(&mut [0; 3], 0).unwrap(), 3);
    let inside = File::open(&vcpu).unwrap();
    assert_eq!(read(&file).unwrap(), "12345\n");
    tree.remove(sample.vm, "vcpu0");
    let start = Instant::now();
    eventually("the path is gone", || !vcpu.exists());
    assert!(start.elapsed() < Duration::from_secs(60), "by invalidation, not by a time limit");
    assert_eq!(errno(read(&file)), libc::ENOENT);
    assert_eq!(errno(vcpu.metadata()), libc::ENOENT);
    // Who has it open is told.
    let mut room = [0; 16];
    assert_eq!(errno(open.read_at(&mut room, 0)), libc::ENODEV);
    assert_eq!(errno(open.read_at(&mut room, 1)), libc::ENODEV, "nothing was made for it");
    assert_eq!(half.read_at(&mut room, 3).unwrap(), 3, "the rest of what it has begun to read");
    assert_eq!(&room[..3], b"45\n");
    assert_eq!(errno(half.read_at(&mut room, 0)), libc::ENODEV);
    let writer = File::options().write(true).open(mount.path().join("vm/exits")).unwrap();
    tree.remove(sample.vm, "exits");
    assert_eq!(errno((&writer).write(b"0")), libc::ENODEV);
    assert_eq!(sample.exits.load(Relaxed), 5);
    drop(inside);
    // The same name again is another file.
    let again = tree.cumulative(sample.vm, "exits");
    again.store(77, Relaxed);
    assert_eq!(read(&mount.path().join("vm/exits")).unwrap(), "77\n");
}

#[test]
fn the_kernel_heals_without_being_told() {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let file = mount.path().join("vm/vcpu0/exits");
    let directory = mount.path().join("vm/vcpu0");
    for round in 1..20 {
        read(&file).unwrap();
        directory.read_dir().unwrap();
        // Nothing is invalidated: names and attributes stay remembered for an hour.
        tree.remove_with(sample.vm, "vcpu0", false);
        assert_eq!(errno(read(&file)), libc::ENOENT, "opening it looks again");
        assert_eq!(errno(directory.read_dir().map(drop)), libc::ENOENT);
        let vcpu = tree.directory(sample.vm, "vcpu0");
        tree.cumulative(vcpu, "exits").store(round, Relaxed);
        assert_eq!(read(&file).unwrap(), format!("{round}\n"));
        // Replaced without a moment between.
        tree.remove_with(sample.vm, "vcpu0", false);
        let vcpu = tree.directory(sample.vm, "vcpu0");
        tree.cumulative(vcpu, "exits").store(100 + round, Relaxed);
        assert_eq!(directory.read_dir().unwrap().count(), 1);
        assert_eq!(read(&file).unwrap(), format!("{}\n", 100 + round));
    }
}

/// Names in one listing, in its order, with `.` and `..`.
fn list(path: &Path) -> Vec<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut dir = Dir::open(path, flags, Mode::empty()).unwrap();
    dir.iter().map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect()
}

#[test]
fn listings() {
    let (tree, sample) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    assert_eq!(list(mount.path()), [".", "..", "vm"]);
    let vm = mount.path().join("vm");
    assert_eq!(list(&vm), [".", "..", "exits", "level", "vcpu0", "all", "link"]);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut dir = Dir::open(&vm.join("vcpu0"), flags, Mode::empty()).unwrap();
    let inodes: Vec<_> = dir.iter().map(|entry| entry.unwrap().ino()).collect();
    let file = vm.join("vcpu0/exits").metadata().unwrap().ino();
    assert_eq!(inodes, [sample.vcpu, sample.vm, file]);
    // An empty one, and one of many requests.
    let empty = tree.directory(ROOT, "empty");
    assert_eq!(list(&mount.path().join("empty")), [".", ".."]);
    for number in 0..5000 {
        tree.cumulative(empty, &format!("a_longer_name_{number}"));
    }
    let names = list(&mount.path().join("empty"));
    assert_eq!(names.len(), 5002);
    assert_eq!(names[5001], "a_longer_name_4999");
}

/// Entries by getdents64 with a small buffer, from a cookie on: name, and the cookie behind it.
fn list_from(path: &Path, cookie: i64) -> Vec<(String, i64)> {
    let dir = File::open(path).unwrap();
    // SAFETY: a number for an open descriptor.
    let at = unsafe { libc::lseek(dir.as_raw_fd(), cookie, libc::SEEK_SET) };
    assert_eq!(at, cookie);
    let mut entries = Vec::new();
    let mut room = [0_u8; 200];
    loop {
        let (fd, at, size) = (dir.as_raw_fd(), room.as_mut_ptr(), room.len());
        // SAFETY: the buffer and its length.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, fd, at, size) };
        let mut rest = &room[..usize::try_from(got).unwrap()];
        if rest.is_empty() {
            return entries;
        }
        while !rest.is_empty() {
            // struct linux_dirent64: inode, offset, record length, type, name.
            let offset = i64::from_ne_bytes(rest[8..16].try_into().unwrap());
            let length = usize::from(u16::from_ne_bytes(rest[16..18].try_into().unwrap()));
            let name = std::ffi::CStr::from_bytes_until_nul(&rest[19..length]).unwrap();
            entries.push((name.to_str().unwrap().to_owned(), offset));
            rest = &rest[length..];
        }
    }
}

#[test]
fn a_cookie_is_a_place_in_every_listing() {
    let (tree, sample) = Tree::sample();
    for number in 0..300 {
        tree.cumulative(sample.vm, &format!("a_longer_name_{number}"));
    }
    let (_dir, mount) = mounted(&tree);
    let vm = mount.path().join("vm");
    let all = list_from(&vm, 0);
    assert_eq!(all.len(), 307);
    assert_eq!((all[0].0.as_str(), all[0].1, all[1].0.as_str(), all[1].1), (".", 1, "..", 2));
    assert!(all.is_sorted_by_key(|(_, cookie)| *cookie));
    for (index, (name, cookie)) in all.iter().enumerate() {
        assert!(list_from(&vm, *cookie) == all[index + 1..], "from behind {name}");
    }
    // From behind an entry that has gone since.
    tree.remove(sample.vm, "level");
    let behind = list_from(&vm, all[3].1);
    assert!(all[3].0 == "level" && behind == all[4..]);
}

#[test]
fn listings_under_churn_lose_and_repeat_nothing_that_stayed() {
    let tree = Tree::new();
    let dir = tree.directory(ROOT, "vms");
    let stay = |number: usize| format!("stay{number:04}");
    for number in 0..1000 {
        tree.cumulative(dir, &stay(number));
        tree.cumulative(dir, &format!("go{number}"));
    }
    let (_dir, mount) = mounted(&tree);
    let path = mount.path().join("vms");
    let (done, changed) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let mut oldest = 0_u32;
            while !done.load(Relaxed) {
                // One goes at the front, one comes at the end, sometimes one under its old name.
                tree.remove(dir, &format!("go{oldest}"));
                let name = format!("go{}", oldest + 1000);
                tree.cumulative(dir, &name);
                if oldest.is_multiple_of(3) {
                    tree.remove(dir, &name);
                    tree.cumulative(dir, &name);
                }
                oldest += 1;
                changed.fetch_add(1, Relaxed);
                // Not so fast that the readers wait for the lock most of the time.
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    // On a busy machine the changes may be slow to come.
                    let mut listings = 0_u32;
                    while listings < 100 || changed.load(Relaxed) < 1000 {
                        let mut seen: HashMap<String, u32> = HashMap::new();
                        for name in list(&path) {
                            *seen.entry(name).or_default() += 1;
                        }
                        for number in 0..1000 {
                            assert_eq!(seen.get(&stay(number)), Some(&1), "{}", stay(number));
                        }
                        // One that was removed and came again during the listing may be seen as both.
                        for (name, times) in seen {
                            assert!(times == 1 || name.starts_with("go"), "{name}: {times} times");
                        }
                        listings += 1;
                    }
                })
            })
            .collect();
        // All of them, before a failure of one can end this: else the churn would go on for ever.
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        done.store(true, Relaxed);
        churn.join().unwrap();
        for result in results {
            result.unwrap();
        }
    });
    // Everything has settled: the listing is what there is.
    eventually("the last invalidation", || list(&path).len() == 2002);
}

#[test]
fn lookups_race_with_removals() {
    let tree = Tree::new();
    let dir = tree.directory(ROOT, "vms");
    let (_dir, mount) = mounted(&tree);
    let path = mount.path().join("vms/one");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    match read(&path) {
                        Ok(text) => assert_eq!(text, "0\n"),
                        Err(error) => {
                            let errno = error.raw_os_error();
                            let gone =
                                matches!(errno, Some(libc::ENOENT | libc::ENODEV | libc::ESTALE));
                            assert!(gone, "{error}");
                        }
                    }
                }
            });
        }
        for _ in 0..2000 {
            tree.cumulative(dir, "one");
            tree.remove(dir, "one");
        }
        done.store(true, Relaxed);
    });
    // Whatever was remembered in the race is forgotten.
    eventually("gone", || path.metadata().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT)));
    tree.cumulative(dir, "one");
    assert_eq!(read(&path).unwrap(), "0\n");
}

#[test]
fn bulk_files() {
    let (tree, _) = Tree::sample();
    let (_dir, mount) = mounted(&tree);
    let expected: String = (0..100_000).map(|line| format!("{line} a line\n")).collect();
    let path = mount.path().join("vm/all");
    let before = tree.rendered.load(Relaxed);
    // In many reads, of one rendering.
    assert!(read(&path).unwrap() == expected);
    assert_eq!(tree.rendered.load(Relaxed), before + 1);
    let file = File::open(&path).unwrap();
    let mut room = vec![0; 4 << 20];
    // One read(2) of more than one request.
    let got = file.read_at(&mut room, 0).unwrap();
    assert!(room[..got] == *expected.as_bytes());
    assert_eq!(tree.rendered.load(Relaxed), before + 2);
    // Somewhere first: rendered for that.
    let file = File::open(&path).unwrap();
    let got = file.read_at(&mut room, 1000).unwrap();
    assert!(room[..got] == expected.as_bytes()[1000..]);
    assert_eq!(tree.rendered.load(Relaxed), before + 3);
}

#[test]
fn nothing_that_takes_less_is_behind_bulk_files_of_much() {
    let (tree, _) = Tree::sample();
    tree.held(ROOT, "held");
    tree.total(ROOT, "total");
    tree.bulk(ROOT, "small", 1, Duration::ZERO);
    let (_dir, mount) = mounted_with(&tree, MountOptions::new().bulk(1, 8));
    let before = tree.rendered.load(Relaxed);
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..3).map(|_| scope.spawn(|| read(&mount.path().join("held")))).collect();
        eventually("a worker is at it", || tree.rendered.load(Relaxed) > before);
        let others = [("total", "5\n"), ("small", "0 a line\n")].map(|(name, text)| {
            let path = mount.path().join(name);
            (scope.spawn(move || read(&path)), name, text)
        });
        let end = Instant::now() + Duration::from_secs(60);
        while others.iter().any(|(other, ..)| !other.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let in_time = others.each_ref().map(|(other, ..)| other.is_finished());
        tree.let_go();
        for ((other, name, text), in_time) in others.into_iter().zip(in_time) {
            assert_eq!(other.join().unwrap().unwrap(), text);
            assert!(in_time, "{name} waited for bulk files");
        }
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap().is_ok()));
    });
}

#[test]
fn bulk_rendering_holds_up_nobody_else() {
    let (tree, _) = Tree::sample();
    tree.bulk(ROOT, "slow", 1, Duration::from_millis(1500));
    let options = MountOptions::new().bulk(1, 3);
    let (_dir, mount) = mounted_with(&tree, options);
    let slow = mount.path().join("slow");
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let before = tree.rendered.load(Relaxed);
        let readers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let result = read(&slow);
                    finished.store(true, Relaxed);
                    result
                })
            })
            .collect();
        eventually("a worker is at it", || tree.rendered.load(Relaxed) > before);
        // More of them than threads that serve; and everything else goes on.
        let refused = || readers.iter().filter(|reader| reader.is_finished()).count();
        eventually("some do not even wait", || refused() >= 4);
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(read(&mount.path().join("vm/exits")).unwrap(), "5\n");
            assert_eq!(list(mount.path()).len(), 4);
        }
        let took = start.elapsed();
        assert!(readers.iter().any(|reader| !reader.is_finished()), "took {took:?}");
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        let done = results.iter().filter(|result| result.is_ok()).count();
        assert!((3..=4).contains(&done), "one at work and three waiting: {results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        }
    });
    assert_eq!(read(&slow).unwrap(), "0 a line\n", "there is room again");
}

#[test]
fn limits() {
    let (tree, _) = Tree::sample();
    tree.bulk(ROOT, "small", 100, Duration::ZERO);
    let options = MountOptions::new().max_open_files(10).max_open_bytes(2500);
    let (_dir, mount) = mounted_with(&tree, options);
    let path = mount.path().join("vm/exits");
    let open: Vec<_> = (0..10).map(|_| File::open(&path).unwrap()).collect();
    assert_eq!(errno(File::open(&path)), libc::ENFILE);
    assert!(path.metadata().is_ok());
    drop(open);
    eventually("closed files make room", || File::open(&path).is_ok());

    // 990 bytes each.
    let small = mount.path().join("small");
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut file = File::open(&small).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text.lines().count(), 100);
            file
        })
        .collect();
    assert_eq!(errno(read(&small)), libc::ENOMEM);
    assert_eq!(errno(read(&mount.path().join("vm/all"))), libc::ENOMEM);
    assert_eq!(read(&path).unwrap(), "5\n", "a small one still fits");
    // Reading again is not a second one.
    assert_eq!(held[0].read_at(&mut [0; 10], 0).unwrap(), 10);
    drop(held);
    eventually("closed files give their memory back", || read(&small).is_ok());
}

#[test]
fn a_panic_is_an_error_of_one_request() {
    let (tree, _) = Tree::sample();
    tree.broken(ROOT, "broken");
    let (_dir, mount) = mounted(&tree);
    for _ in 0..5 {
        assert_eq!(errno(read(&mount.path().join("broken"))), libc::EIO);
        assert_eq!(read(&mount.path().join("vm/exits")).unwrap(), "5\n");
    }
    mount.unmount().unwrap();
}

#[test]
fn many_readers_see_whole_values() {
    let (tree, sample) = Tree::sample();
    let dir = temp();
    let options = MountOptions::new().threads(4);
    let mount = Mount::new(tree, &dir.path().join("mnt"), options).unwrap();
    let path = mount.path().join("vm/exits");
    let shared = File::open(&path).unwrap();
    sample.exits.store(0, Relaxed);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                sample.exits.fetch_add(1, Relaxed);
            }
        });
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    for _ in 0..2000 {
                        let value: u64 = read(&path).unwrap().trim_end().parse().unwrap();
                        assert!(value >= last, "{value} after {last}");
                        let mut room = [0; 32];
                        let got = shared.read_at(&mut room, 0).unwrap();
                        let text = std::str::from_utf8(&room[..got]).unwrap();
                        last = text.strip_suffix('\n').unwrap().parse().unwrap();
                        assert!(last >= value, "{last} after {value}");
                    }
                })
            })
            .collect();
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        done.store(true, Relaxed);
        for result in results {
            result.unwrap();
        }
    });
}
