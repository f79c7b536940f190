//! A block device, from its driver's side, with a real file behind it.

mod driver;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use devices::virtio::block::{Block, Disk};
use devices::virtio::stats::BlockCounters;
use driver::{
    BUFFERS, DRIVER_OK, EVENT_IDX, Guest, HIGH, HIGH_SIZE, INDIRECT, NEEDS_RESET, Piece, Queue,
    VERSION_1, into, out,
};
use tempfile::NamedTempFile;

const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

const SECTORS: u64 = 2048;
/// What the driver agrees to unless a test is about just that.
const FEATURES: u64 = VERSION_1 | INDIRECT | FLUSH | DISCARD | WRITE_ZEROES;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A file whose sectors each say which they are.
fn file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS).flat_map(sector).collect();
    fs::write(file.path(), content).unwrap();
    file
}

fn sector(number: u64) -> [u8; 512] {
    std::array::from_fn(|i| number.to_le_bytes()[i % 8] ^ (i / 8) as u8)
}

fn guest(path: &Path, read_only: bool) -> Guest {
    Guest::new(|source| {
        let disk = Disk::open(path, read_only).unwrap();
        Block::new(disk, "blk0", BlockCounters::new(source.add_values().unwrap()))
    })
}

/// A device that is ready.
fn start(path: &Path) -> (Guest, Queue) {
    let guest = guest(path, false);
    let [queue] = guest.start(FEATURES, 64);
    (guest, queue)
}

fn header(guest: &Guest, kind: u32, sector: u64) {
    guest.put(HEADER, &[kind.to_le_bytes(), [0; 4]].concat());
    guest.put(HEADER + 8, &sector.to_le_bytes());
    guest.put(STATUS, &[0xaa]);
}

/// A request with these pieces between header and status. Returns the status and the bytes written.
fn request(guest: &Guest, queue: &mut Queue, kind: u32, at: u64, data: &[Piece]) -> (u8, u32) {
    header(guest, kind, at);
    let pieces = [&[out(HEADER, 16)], data, &[into(STATUS, 1)]].concat();
    let written = guest.submit(queue, &pieces);
    (guest.get(STATUS, 1)[0], written)
}

#[test]
fn it_says_what_it_is() {
    let file = file();
    let guest = guest(file.path(), false);
    assert_eq!(guest.read(0), 0x7472_6976);
    assert_eq!((guest.read(4), guest.read(8)), (2, 2));
    let offered = guest.offered();
    let sure = VERSION_1 | INDIRECT | EVENT_IDX | FLUSH | 1 << 2 | 1 << 6;
    assert_eq!(offered & !(DISCARD | WRITE_ZEROES), sure, "{offered:#x}");
    assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(guest.config(12)), 254, "most pieces of a request");
    assert_eq!(u32::from_le_bytes(guest.config(20)), 512, "size of a block");
    drop(guest);

    let guest = self::guest(file.path(), true);
    assert_eq!(guest.offered(), sure | READ_ONLY);
}

#[test]
fn what_is_read_is_what_the_file_has() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    let all = (0..4).flat_map(|n| sector(7 + n)).collect::<Vec<_>>();
    let (status, written) = request(&guest, &mut queue, 0, 7, &[into(DATA, 2048)]);
    assert_eq!((status, written), (OK, 2049));
    assert_eq!(guest.get(DATA, 2048), all);
    // In pieces of any size, in any order, up to the last byte of memory.
    let last = HIGH + HIGH_SIZE - 1000;
    let pieces = [into(DATA + 4096, 1), into(last, 1000), into(DATA, 1047)];
    assert_eq!(request(&guest, &mut queue, 0, 7, &pieces), (OK, 2049));
    let got = [guest.get(DATA + 4096, 1), guest.get(last, 1000), guest.get(DATA, 1047)].concat();
    assert_eq!(got, all);
    // The last sector; nothing; all of it at once.
    assert_eq!(request(&guest, &mut queue, 0, SECTORS - 1, &[into(DATA, 512)]), (OK, 513));
    assert_eq!(guest.get(DATA, 512), sector(SECTORS - 1));
    assert_eq!(request(&guest, &mut queue, 0, 3, &[]), (OK, 1));
    let whole = SECTORS as u32 * 512;
    assert_eq!(request(&guest, &mut queue, 0, 0, &[into(DATA, whole)]), (OK, whole + 1));
    assert_eq!(guest.get(DATA, whole as usize), fs::read(file.path()).unwrap());

    assert_eq!(guest.stats.get("blk_reads"), 5);
    assert_eq!(guest.stats.get("blk_read_bytes"), 2048 + 2048 + 512 + SECTORS * 512);
    assert_eq!(guest.stats.get("blk_request_time/count"), 5);
    assert_eq!(guest.stats.get("blk_in_flight"), 0);
    assert_eq!(guest.stats.get("virtio_notifications"), 5);
    assert_eq!(guest.stats.get("virtio_interrupts"), 5);
    assert_eq!(guest.stats.get("virtio_activations"), 1);
    assert_eq!(guest.stats.get("virtio_bad_accesses"), 0);
}

#[test]
fn what_is_written_is_in_the_file() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    let data: Vec<u8> = (0..1536_u32).map(|i| (i * 7) as u8).collect();
    guest.put(DATA, &data);
    let pieces = [out(DATA, 5), out(DATA + 5, 1000), out(DATA + 1005, 531)];
    assert_eq!(request(&guest, &mut queue, 1, 100, &pieces), (OK, 1));
    let mut expected: Vec<u8> = (0..SECTORS).flat_map(sector).collect();
    expected[100 * 512..103 * 512].copy_from_slice(&data);
    assert!(fs::read(file.path()).unwrap() == expected);
    assert_eq!(request(&guest, &mut queue, 4, 0, &[]), (OK, 1));
    assert_eq!(guest.stats.get("blk_writes"), 1);
    assert_eq!(guest.stats.get("blk_write_bytes"), 1536);
    assert_eq!(guest.stats.get("blk_flushes"), 1);
    assert_eq!(guest.stats.get("blk_read_bytes"), 0);
}

/// virtio 1.2, 2.7.4: how a request is cut into descriptors means nothing.
#[test]
fn a_request_may_be_cut_anywhere() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    header(&guest, 0, 5);
    let header_in_three = [out(HEADER, 1), out(HEADER + 1, 10), out(HEADER + 11, 5)];
    let data_and_status = [into(DATA, 500), into(DATA + 500, 13)];
    let pieces = [&header_in_three[..], &data_and_status].concat();
    assert_eq!(guest.submit(&mut queue, &pieces), 513);
    assert_eq!(guest.get(DATA, 512), sector(5));
    assert_eq!(guest.get(DATA + 512, 1), [OK]);
    // Header and data in one; pieces of nothing, wherever they are.
    header(&guest, 1, 6);
    guest.put(HEADER + 16, &[0x5a; 512]);
    let pieces = [out(HEADER, 528), out(u64::MAX, 0), into(0, 0), into(STATUS, 1), into(0, 0)];
    // A piece to be read after one to be written is wrong, but one of nothing is not there.
    assert_eq!(guest.submit(&mut queue, &pieces), 1);
    assert_eq!(guest.get(STATUS, 1), [OK]);
    let mut content = [0; 512];
    File::open(file.path()).unwrap().read_exact_at(&mut content, 6 * 512).unwrap();
    assert_eq!(content, [0x5a; 512]);
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn descriptors_may_be_in_a_table_of_their_own() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    header(&guest, 0, 9);
    // As many as a request can have, more than the queue has.
    let data = (0..254).map(|i| into(DATA + 16 * i, if i < 253 { 2 } else { 6 }));
    let pieces: Vec<_> =
        [out(HEADER, 16)].into_iter().chain(data).chain([into(STATUS, 1)]).collect();
    assert_eq!(pieces.len(), 256);
    queue.add_indirect(&pieces);
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take(), [(0, 513)]);
    let got: Vec<u8> = (0..253).flat_map(|i| guest.get(DATA + 16 * i, 2)).collect();
    assert_eq!(got, sector(9)[..506]);
    assert_eq!(guest.get(STATUS, 1), [OK]);
}

#[test]
fn a_wrong_request_fails_and_reads_as_zeroes() {
    let file = file();
    let before = fs::read(file.path()).unwrap();
    let (guest, mut queue) = start(file.path());
    for (kind, at, len) in [
        (0, SECTORS, 512),
        (0, SECTORS - 1, 1024),
        (0, u64::MAX, 512),
        (0, u64::MAX / 512, 512),
        (0, 0, 511),
        (0, 0, 513),
        (0, SECTORS + 1, 0),
        (8, 0, 19),
    ] {
        guest.put(DATA, &[0xee; 1025]);
        let answer = request(&guest, &mut queue, kind, at, &[into(DATA, len)]);
        assert_eq!(answer, (IOERR, len + 1), "{kind} at {at}, {len} bytes");
        assert_eq!(guest.get(DATA, len as usize), vec![0; len as usize]);
        assert_eq!(guest.get(DATA + u64::from(len), 1), [0xee]);
    }
    for (at, len) in [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (0, 1), (0, 700)] {
        let answer = request(&guest, &mut queue, 1, at, &[out(DATA, len)]);
        assert_eq!(answer, (IOERR, 1), "{len} bytes at {at}");
    }
    for kind in [2, 3, 5, 9, 14, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&guest, &mut queue, kind, 0, &[into(DATA, 4)]), (UNSUPPORTED, 5));
    }
    assert!(fs::read(file.path()).unwrap() == before);
    assert_eq!(guest.stats.get("blk_invalid"), 13);
    assert_eq!(guest.stats.get("blk_unsupported"), 8);
    assert_eq!(guest.stats.get("blk_reads") + guest.stats.get("blk_writes"), 0);
    assert_eq!(guest.stats.get("blk_read_bytes") + guest.stats.get("blk_write_bytes"), 0);
    assert_eq!(guest.status() & NEEDS_RESET, 0, "the device goes on");
}

#[test]
fn the_name_is_told() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    assert_eq!(request(&guest, &mut queue, 8, 0, &[into(DATA, 20)]), (OK, 21));
    assert_eq!(guest.get(DATA, 20), *b"blk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(guest.stats.get("blk_get_ids"), 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = file();
    let before = fs::read(file.path()).unwrap();
    let guest = guest(file.path(), true);
    let [mut queue] = guest.start(FEATURES | READ_ONLY, 64);
    assert_eq!(request(&guest, &mut queue, 0, 1, &[into(DATA, 512)]), (OK, 513));
    assert_eq!(guest.get(DATA, 512), sector(1));
    assert_eq!(request(&guest, &mut queue, 1, 0, &[out(DATA, 512)]), (IOERR, 1));
    guest.put(DATA, &range(0, 8, 0));
    assert_eq!(request(&guest, &mut queue, 11, 0, &[out(DATA, 16)]), (IOERR, 1));
    assert_eq!(request(&guest, &mut queue, 13, 0, &[out(DATA, 16)]), (IOERR, 1));
    assert_eq!(request(&guest, &mut queue, 4, 0, &[]), (OK, 1));
    assert!(fs::read(file.path()).unwrap() == before);
    assert_eq!(guest.stats.get("blk_read_only_errors"), 3);
    assert_eq!(guest.stats.get("blk_reads"), 1);
    assert_eq!(guest.stats.get("blk_writes"), 0);
}

/// A range for a request to discard, or to write zeroes.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn ranges_are_discarded_and_set_to_zero() {
    use std::os::unix::fs::MetadataExt;
    let file = file();
    let (guest, mut queue) = start(file.path());
    assert_eq!(
        guest.offered() & (DISCARD | WRITE_ZEROES),
        DISCARD | WRITE_ZEROES,
        "the file system of {} can not give storage back: set TMPDIR to one that can (ext4, xfs, \
         btrfs, tmpfs)",
        file.path().display()
    );
    File::open(file.path()).unwrap().sync_all().unwrap();
    let mut expected = fs::read(file.path()).unwrap();
    let storage = || fs::metadata(file.path()).unwrap().blocks();
    let before = storage();
    for (kind, at, sectors, flags) in
        [(11, 8, 64, 0), (13, 100, 3, 0), (13, 256, 256, 1), (13, SECTORS - 1, 1, 0), (11, 5, 0, 0)]
    {
        guest.put(DATA, &range(at, sectors, flags));
        let answer = request(&guest, &mut queue, kind, u64::MAX, &[out(DATA, 16)]);
        assert_eq!(answer, (OK, 1), "{kind}: {sectors} at {at}");
        expected[at as usize * 512..][..sectors as usize * 512].fill(0);
        assert!(fs::read(file.path()).unwrap() == expected, "{kind}: {sectors} at {at}");
    }
    assert!(storage() + 64 + 200 < before, "{} of {before} left", storage());
    for (kind, range, len, status) in [
        (11, range(SECTORS, 1, 0), 16, IOERR),
        (11, range(SECTORS - 1, 2, 0), 16, IOERR),
        (11, range(u64::MAX, u32::MAX, 0), 16, IOERR),
        (11, range(0, 8, 1), 16, UNSUPPORTED),
        (13, range(0, 8, 2), 16, UNSUPPORTED),
        (13, range(0, u32::MAX, 0), 16, IOERR),
        (11, range(0, 8, 0), 15, IOERR),
        (11, [range(0, 8, 0), range(16, 8, 0)].concat(), 32, IOERR),
        (13, range(0, 8, 0), 0, IOERR),
    ] {
        guest.put(DATA, &range);
        let answer = request(&guest, &mut queue, kind, 0, &[out(DATA, len)]);
        assert_eq!(answer, (status, 1), "{kind}: {range:?}");
    }
    assert!(fs::read(file.path()).unwrap() == expected);
    assert_eq!(guest.stats.get("blk_discards"), 2);
    assert_eq!(guest.stats.get("blk_discard_bytes"), 64 * 512);
    assert_eq!(guest.stats.get("blk_write_zeroes"), 3);
    assert_eq!(guest.stats.get("blk_write_zeroes_bytes"), 260 * 512);
    assert_eq!((guest.stats.get("blk_invalid"), guest.stats.get("blk_unsupported")), (7, 2));
    assert_eq!(u32::from_le_bytes(guest.config(40)), 1, "ranges of a request");
}

#[test]
fn a_range_has_the_size_that_is_offered() {
    // All of it a hole.
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(2 << 30).unwrap();
    let (guest, mut queue) = start(file.path());
    for (kind, field) in [(11, 36), (13, 48)] {
        let most = u32::from_le_bytes(guest.config(field));
        assert!((1 << 17..1 << 22).contains(&most), "{most}");
        for (sectors, status) in [(most, OK), (most + 1, IOERR)] {
            guest.put(DATA, &range(1, sectors, 0));
            let answer = request(&guest, &mut queue, kind, 0, &[out(DATA, 16)]);
            assert_eq!(answer, (status, 1), "{kind}: {sectors}");
        }
    }
}

#[test]
fn a_file_that_has_become_shorter_fails_to_be_read() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    file.as_file().set_len(512 * 10).unwrap();
    guest.put(DATA, &[0xee; 1024]);
    assert_eq!(request(&guest, &mut queue, 0, 9, &[into(DATA, 1024)]), (IOERR, 1025));
    assert_eq!(guest.get(DATA, 1024), [0; 1024], "not even the sector that there was");
    assert_eq!(request(&guest, &mut queue, 0, 9, &[into(DATA, 512)]), (OK, 513));
    assert_eq!(guest.stats.get("blk_io_errors"), 1);
    assert_eq!(guest.stats.get("blk_read_bytes"), 512);
}

#[test]
fn requests_of_a_batch_have_one_interrupt_and_the_driver_may_want_none() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    header(&guest, 0, 0);
    let batch = |queue: &mut Queue| {
        let pieces = [out(HEADER, 16), into(DATA, 0), into(STATUS, 1)];
        (0..20).for_each(|_| _ = queue.add(&pieces));
        guest.notify(queue);
        guest.serve();
        assert_eq!(queue.take().len(), 20);
    };
    assert!(queue.is_notification_wanted());
    batch(&mut queue);
    let (times, why) = guest.interrupts();
    assert!((1..20).contains(&times), "{times}");
    assert_eq!(why, 1);
    assert_eq!(guest.read(0x60), 0, "it was acknowledged");
    queue.want_interrupts(false);
    batch(&mut queue);
    assert_eq!(guest.interrupts(), (0, 0));
    queue.want_interrupts(true);
    batch(&mut queue);
    assert_eq!(guest.interrupts().1, 1);
    assert_eq!(guest.stats.get("virtio_notifications"), 3);
    assert!(guest.stats.get("virtio_interrupts_suppressed") >= 1);
    assert!(queue.is_notification_wanted());
}

#[test]
fn a_long_batch_is_told_of_in_parts() {
    let file = file();
    let (guest, mut queue) = start(file.path());
    header(&guest, 0, 0);
    // No machine reads 20 MiB before it is time to tell.
    let pieces = [out(HEADER, 16), into(DATA, SECTORS as u32 * 512), into(STATUS, 1)];
    (0..20).for_each(|_| _ = queue.add(&pieces));
    guest.notify(&queue);
    guest.serve();
    assert_eq!(queue.take().len(), 20);
    let (times, _) = guest.interrupts();
    assert!((2..=20).contains(&times), "{times}");
    assert_eq!(guest.stats.get("virtio_interrupts"), times);
}

#[test]
fn the_driver_says_for_which_request_it_wants_an_interrupt() {
    let file = file();
    let guest = guest(file.path(), false);
    let [mut queue] = guest.start(FEATURES | EVENT_IDX, 16);
    header(&guest, 0, 0);
    let pieces = [out(HEADER, 16), into(STATUS, 1)];
    let mut done = 0_u16;
    // Many times around, also where the numbers wrap.
    for round in 0..20_000_u32 {
        let batch = (round % 7 + 1) as u16;
        let wanted_ahead = (round % 9) as u16;
        queue.want_interrupt_for(done.wrapping_add(wanted_ahead));
        assert!(queue.is_notification_wanted(), "{round}");
        (0..batch).for_each(|_| _ = queue.add(&pieces));
        guest.notify(&queue);
        guest.serve();
        assert_eq!(queue.take().len(), usize::from(batch));
        // The one asked for is among these, or it is not.
        let expected = u64::from(wanted_ahead < batch);
        assert_eq!(guest.interrupts().0, expected, "{round}: {batch}, {wanted_ahead}");
        done = done.wrapping_add(batch);
    }
}

#[test]
fn without_flushes_every_write_is_durable_and_nothing_else_changes() {
    // That it is on the disk can not be seen from here; that it works and is counted can.
    let file = file();
    let guest = guest(file.path(), false);
    let [mut queue] = guest.start(VERSION_1, 8);
    guest.put(DATA, &[7; 512]);
    assert_eq!(request(&guest, &mut queue, 1, 0, &[out(DATA, 512)]), (OK, 1));
    assert_eq!(fs::read(file.path()).unwrap()[..512], [7; 512]);
    assert_eq!(guest.stats.get("blk_writes"), 1);
    assert_eq!(guest.stats.get("blk_flushes"), 0, "the driver asked for none");
}

#[test]
fn a_reset_in_the_middle_leaves_a_device_that_starts_anew() {
    let file = file();
    let mut guest = guest(file.path(), false);
    guest.spawn();
    let mut answered = 0;
    for round in 0..200 {
        let [mut queue] = guest.start(FEATURES, 64);
        header(&guest, 0, 0);
        let pieces = [out(HEADER, 16), into(DATA, 64 << 10), into(STATUS, 1)];
        (0..20).for_each(|_| _ = queue.add(&pieces));
        thread::scope(|scope| {
            let notify = scope.spawn(|| guest.notify(&queue));
            if round % 2 == 0 {
                notify.join().unwrap();
            }
            guest.write(0x70, 0);
            assert_eq!(guest.status(), 0);
        });
        // Nothing is written any more.
        guest.put(DATA, &[0x11; 64 << 10]);
        let before = queue.take().len();
        answered += before;
        thread::yield_now();
        assert_eq!(queue.take().len(), 0, "{before} before");
        assert_eq!(guest.get(DATA, 64 << 10), [0x11; 64 << 10]);
        assert_eq!(guest.read(0x60), 0, "no interrupt is left from before");
    }
    assert_eq!(guest.status() & DRIVER_OK, 0);
    // Whole requests only.
    assert_eq!(guest.stats.get("blk_reads"), answered as u64);
    assert_eq!(guest.stats.get("virtio_resets"), 400);
    assert_eq!(guest.stats.get("blk_in_flight"), 0);
}
