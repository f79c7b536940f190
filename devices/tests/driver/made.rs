//! Devices whose outside is made of memory, for tests that make many of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use devices::virtio::NoEvents;
use devices::virtio::block::{Block, Disk};
use devices::virtio::entropy::Entropy;
use devices::virtio::net::{Backend, Mac, Net, Offloads};

use crate::driver::Guest;
use crate::garbage::{self, Command};

/// Bytes of the disk.
const DISK: u64 = 64 << 10;

/// A file without a name.
fn memory_file() -> File {
    // SAFETY: a C string; the descriptor is new and ours alone.
    let file =
        unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(DISK).unwrap();
    file
}

/// Commands for a block device.
pub fn block(commands: &[Command], read_only: bool) {
    let file = memory_file();
    file.write_all_at(&[0x5a; 4096], 0).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let disk = Disk::open(&path, read_only).unwrap();
    let guest = Guest::uncounted(Block::new(disk, "blk0", NoEvents));
    garbage::run::<1>(&guest, commands, |_| ());
    assert_eq!(file.metadata().unwrap().len(), DISK);
    garbage::assert_reads(&guest, || {
        let mut sector = vec![0; 512];
        file.read_exact_at(&mut sector, 0).unwrap();
        if read_only {
            assert_eq!(sector, [0x5a; 512]);
        }
        sector
    });
}

/// Commands for a source of random bytes.
pub fn entropy(commands: &[Command]) {
    let guest = Guest::uncounted(Entropy::new(NoEvents).unwrap());
    garbage::run::<1>(&guest, commands, |_| ());
    garbage::assert_gives_random_bytes(&guest);
}

/// One end of a pair of sockets that keep packets apart, as a tap interface does.
struct Socket(UnixDatagram);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Backend for Socket {
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// Commands for a network interface.
pub fn net(commands: &[Command]) {
    let (inside, outside) = UnixDatagram::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    outside.set_nonblocking(true).unwrap();
    let mac = Mac::new([2, 0, 0, 0, 0, 1]);
    let guest = Guest::uncounted(Net::new(Socket(inside), mac, NoEvents));
    garbage::run::<2>(&guest, commands, |len| {
        // Full is full.
        let _ = outside.send(&vec![0x33; len]);
    });
    // What was sent meanwhile is of no interest.
    let mut packet = vec![0; 70_000];
    while outside.recv(&mut packet).is_ok() {}
    garbage::assert_sends_and_receives(
        &guest,
        |packet| _ = outside.send(packet).unwrap(),
        || {
            let mut packet = vec![0; 100];
            let len = outside.recv(&mut packet).unwrap();
            packet.truncate(len);
            packet
        },
    );
}
