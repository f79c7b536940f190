//! Disks: what is on them, what is written to them, and what is counted meanwhile.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::flat::Flat;
use tests::linux::Linux;
use tests::running::Ended;
use tests::tracepoint::KvmReturns;

use super::{assert_powered_off, cpu_counts};

/// Bytes of the known file: more than a request can be.
const KNOWN: usize = 3 << 20;

/// Bytes that are all different in every block.
fn known() -> Vec<u8> {
    (0..KNOWN as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

fn tool(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output.stdout
}

/// Makes an ext4 file system with the known file.
fn file_system(directory: &Path) -> PathBuf {
    let (source, image) = (directory.join("source"), directory.join("disk"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("known"), known()).unwrap();
    let mut make = Command::new("mke2fs");
    tool(make.args(["-q", "-t", "ext4", "-d"]).arg(&source).arg(&image).arg("24M"));
    image
}

/// A file of a file system that is not mounted.
fn file_of(image: &Path, file: &str) -> Vec<u8> {
    tool(Command::new("debugfs").arg("-R").arg(format!("cat {file}")).arg(image))
}

fn sum(file: &Path) -> String {
    let text = String::from_utf8(tool(Command::new("sha256sum").arg(file))).unwrap();
    text.split(' ').next().unwrap().to_string()
}

/// What a guest's kernel counted of a disk (a line of Documentation/admin-guide/iostats.rst), against the tree.
#[track_caller]
fn assert_counted(line: &str, flat: &Flat, index: usize) {
    let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    let device = format!("{}/blk{index}", flat.machine());
    let of = |name: &str| flat.get(&format!("{device}/blk_{name}"));
    let flushes = numbers[15];
    assert_eq!(of("reads"), numbers[0], "{line}");
    assert_eq!(of("read_bytes"), numbers[2] * 512, "{line}");
    // For the kernel, setting to zero is writing, and so is a flush that nothing is written with: of nothing.
    let writes = of("writes") + of("write_zeroes");
    assert!((writes..=writes + flushes).contains(&numbers[4]), "{line}");
    assert_eq!(of("write_bytes") + of("write_zeroes_bytes"), numbers[6] * 512, "{line}");
    assert_eq!((of("discards"), of("discard_bytes")), (numbers[11], numbers[13] * 512), "{line}");
    assert_eq!(of("flushes"), flushes, "{line}");
    for error in ["io_errors", "invalid", "read_only_errors", "unsupported"] {
        assert_eq!(of(error), 0, "{error}");
    }
    assert_eq!(of("in_flight"), 0);
    let done: u64 = ["reads", "writes", "flushes", "get_ids", "discards", "write_zeroes"]
        .into_iter()
        .map(of)
        .sum();
    assert_eq!(of("request_time/count"), done);
}

/// Says what the kernel counted of all disks, after everything else, and waits to be told to go on.
const STATS: &str = "
    sync
    grep ' vd[a-z] ' /proc/diskstats | while read major minor name rest; do echo STATS $name $rest; done
    echo READY
    read line";

/// Runs a guest with these disks, whose script ends with [`STATS`]: the tree says what its kernel counted while it
/// still runs, and when it has ended.
#[track_caller]
fn run_counted(guest: Linux, disks: &[&str]) -> (Ended, Flat) {
    let kernel = KvmReturns::watch_all();
    let (reader, mut writer) = io::pipe().unwrap();
    let mut running = guest.with(|vmm| vmm.stdin(reader)).start();
    running.wait_for_line("READY");
    let flat = running.flat();
    for (index, disk) in disks.iter().enumerate() {
        // A request is counted before the guest knows that it is done: there is nothing to wait for.
        assert_counted(&running.wait_for_line(&format!("STATS {disk} ")), &flat, index);
    }
    writer.write_all(b"go on\n").unwrap();
    let (ended, flat) = assert_powered_off(running.wait(), &kernel);
    for (index, disk) in disks.iter().enumerate() {
        assert_counted(&ended.line(&format!("STATS {disk} ")), &flat, index);
    }
    (ended, flat)
}

pub fn a_file_system_is_read_and_written() {
    cpu_counts().for_each(read_and_write);
}

fn read_and_write(cpus: u32) {
    let script = format!(
        "mount -t ext4 /dev/vda /mnt
        echo KNOWN $(sha256sum < /mnt/known)
        echo SERIAL $(cat /sys/block/vda/serial)
        dd if=/mnt/known of=/mnt/written bs=8k 2>/dev/null
        echo more >> /mnt/written
        dd if=/dev/zero of=/mnt/synced bs=4k count=10 oflag=sync 2>/dev/null
        umount /mnt && echo UNMOUNTED
        {STATS}"
    );
    let guest = Linux::new(&script).with(|vmm| vmm.cpus(cpus));
    let disk = file_system(guest.directory());
    let expected = sum(&guest.directory().join("source/known"));
    let guest = guest.with(|vmm| vmm.args(["--disk".as_ref(), disk.as_os_str()]));
    let (ended, flat) = run_counted(guest, &["vda"]);
    assert_eq!(ended.line("KNOWN "), format!("{expected} -"));
    ended.line("UNMOUNTED");
    assert!(flat.get("kvm/blk_flushes") >= 10);
    assert!(flat.get("kvm/blk_get_ids") >= 1);
    assert_ne!(ended.line("SERIAL "), "");
    // As the host sees it.
    let mut written = known();
    written.extend_from_slice(b"more\n");
    assert!(file_of(&disk, "written") == written, "the file is another");
    tool(Command::new("e2fsck").args(["-f", "-n"]).arg(&disk));
}

pub fn a_read_only_disk_is_not_written() {
    let script = format!(
        "echo RO $(cat /sys/block/vda/ro)
        echo x | dd of=/dev/vda bs=512 conv=notrunc 2>&1 | sed 's/^/DD /'
        mount -t ext4 /dev/vda /mnt 2>&1 | sed 's/^/MOUNT /'
        echo x > /mnt/new 2>/dev/null || echo REFUSED
        echo KNOWN $(sha256sum < /mnt/known)
        umount /mnt
        {STATS}"
    );
    let guest = Linux::new(&script);
    let disk = file_system(guest.directory());
    let (before, known) = (sum(&disk), sum(&guest.directory().join("source/known")));
    let mut arg = disk.clone().into_os_string();
    arg.push(",ro");
    let guest = guest.with(|vmm| vmm.args(["--disk".into(), arg]));
    let (ended, flat) = run_counted(guest, &["vda"]);
    assert_eq!(ended.line("RO "), "1");
    assert!(ended.line("DD ").contains("Operation not permitted"), "{}", ended.line("DD "));
    ended.line("REFUSED");
    assert_eq!(ended.line("KNOWN "), format!("{known} -"));
    assert_eq!(flat.get("kvm/blk_writes"), 0);
    assert_eq!(sum(&disk), before, "nothing was written");
}

pub fn several_disks_are_told_apart() {
    let script = format!(
        "for disk in vda vdb vdc; do
            echo SIZE $disk $(cat /sys/block/$disk/size)
            echo $disk | dd of=/dev/$disk bs=512 seek=3 conv=notrunc,sync 2>/dev/null
        done
        dd if=/dev/vdb of=/dev/null bs=64k count=4 2>/dev/null
        {STATS}"
    );
    let mut guest = Linux::new(&script);
    let names = ["vda", "vdb", "vdc"];
    for (index, name) in names.iter().enumerate() {
        let path = guest.directory().join(name);
        fs::write(&path, vec![0; (index + 1) << 20]).unwrap();
        guest = guest.with(|vmm| vmm.args(["--disk".as_ref(), path.as_os_str()]));
    }
    let directory = guest.directory().to_path_buf();
    let (ended, _) = run_counted(guest, &names);
    for (index, name) in names.iter().enumerate() {
        assert_eq!(ended.line(&format!("SIZE {name} ")), ((index + 1) * 2048).to_string());
        let bytes = fs::read(directory.join(name)).unwrap();
        assert_eq!(&bytes[3 * 512..][..4], format!("{name}\n").as_bytes());
    }
}
