//! What the host does not take of a guest's output, or fails to do for it: counted, and said once.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

#[macro_use]
#[path = "common/guest.rs"]
mod guest;
#[path = "common/images.rs"]
mod images;

guest!(
    sends,
    "mov ecx, 70",
    "mov edx, 0x3f8",
    "2: mov al, 0x61",
    "out dx, al",
    "dec ecx",
    "jnz 2b",
    "mov al, 7",
    "out 0xf4, al",
);

guest!(
    uses_a_disk,
    // Says that it runs, and is told on the console whether to read or to write.
    "mov edx, 0x3f8",
    "mov al, 0x3a", // ':'
    "out dx, al",
    "2: mov edx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, 0x3f8",
    "in al, dx",
    // A chain: 16 bytes at 0x33000, 512 at 0x34000, and one at 0x35000 for the status. All of sector 1.
    "mov edi, 0x30000",
    "mov dword ptr [rdi], 0x33000",
    "mov dword ptr [rdi + 8], 16",
    "mov dword ptr [rdi + 12], 0x10001",
    "mov dword ptr [rdi + 16], 0x34000",
    "mov dword ptr [rdi + 24], 512",
    "mov dword ptr [rdi + 28], 0x20003",
    "mov dword ptr [rdi + 32], 0x35000",
    "mov dword ptr [rdi + 40], 1",
    "mov dword ptr [rdi + 44], 2",
    "mov dword ptr [0x33008], 1",
    "cmp al, 0x77", // 'w'
    "jne 3f",
    "mov dword ptr [rdi + 28], 0x20001",
    "mov dword ptr [0x33000], 1",
    // The device, with VERSION_1 and FLUSH and a queue of 8.
    "3: mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 0x70], 1",
    "mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 0",
    "mov dword ptr [rbx + 0x20], 0x200",
    "mov dword ptr [rbx + 0x24], 1",
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x70], 11",
    "mov dword ptr [rbx + 0x30], 0",
    "mov dword ptr [rbx + 0x38], 8",
    "mov dword ptr [rbx + 0x80], 0x30000",
    "mov dword ptr [rbx + 0x90], 0x31000",
    "mov dword ptr [rbx + 0xa0], 0x32000",
    "mov dword ptr [rbx + 0x44], 1",
    "mov dword ptr [rbx + 0x70], 15",
    // Three times; the console gets each status as a digit.
    "xor ecx, ecx",
    "4: inc ecx",
    "mov byte ptr [0x35000], 9",
    "mov [0x31002], cx",
    "mov dword ptr [rbx + 0x50], 0",
    "5: cmp [0x32002], cx",
    "jne 5b",
    "mov al, [0x35000]",
    "add al, 0x30",
    "out dx, al",
    "cmp ecx, 3",
    "jne 4b",
    "mov edx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "6: jmp 6b",
);

fn value(stats: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(stats).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("kvm/")?.strip_prefix(name));
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}")).trim().parse().unwrap()
}

/// Runs a command of whose guest the console is a full device: its status, and what it says.
fn without_room(command: &mut Command) -> (Option<i32>, String) {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdin(Stdio::null()).stdout(full).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn output_that_is_lost_is_said_once_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (program, stats) = (dir.path().join("guest"), dir.path().join("stats"));
    fs::write(&program, sends()).unwrap();
    let vmm = || {
        let mut vmm = Command::new(env!("CARGO_BIN_EXE_vmm"));
        vmm.args(["run", "--no-publish", "--flat"]).arg(&program).arg("--stats-out").arg(&stats);
        vmm
    };
    let lost = |n: u64| {
        format!(
            "vmm: {n} bytes of the guest's console could not be written: No space left on device (os error 28)\n"
        )
    };
    assert_eq!(without_room(&mut vmm()), (Some(7), lost(70)));
    assert_eq!(value(&stats, "serial_tx_lost_bytes"), 70);
    assert_eq!(value(&stats, "serial_tx_bytes"), 0);
    assert_eq!(without_room(vmm().args(["--cpus", "1"])), (Some(7), lost(70)));
    // Where there is room, there is nothing to say.
    let output = vmm().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.len(), output.stderr.len()), (70, 0));
    assert_eq!(value(&stats, "serial_tx_lost_bytes"), 0);
}

/// A guest with a disk that waits for a word on its console.
struct Guest {
    dir: TempDir,
    command: Command,
}

impl Guest {
    /// `prepare` is a shell script for a mount namespace of its own, in which `$D` is a directory for the
    /// disk.
    fn new(prepare: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, images::bzimage(&uses_a_disk())).unwrap();
        fs::create_dir(dir.path().join("disks")).unwrap();
        let script = format!("{prepare}\nexec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
        command.env("D", dir.path().join("disks"));
        command.args([env!("CARGO_BIN_EXE_vmm"), "run", "--no-publish", "--memory", "4M"]);
        command.arg("--kernel").arg(&kernel).arg("--disk").arg(dir.path().join("disks/disk"));
        command.arg("--stats-out").arg(dir.path().join("stats"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { dir, command }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs it; has it told `word` after `change` was done. It gets an I/O error for each of its three
    /// requests, and the user one line, with this in it.
    fn fails(mut self, change: impl FnOnce(&Self), word: &[u8], said: &str) {
        let mut vmm =
            self.command.spawn().expect("unshare is missing: `apt-get install util-linux`");
        let (mut console, mut keys) = (vmm.stdout.take().unwrap(), vmm.stdin.take().unwrap());
        let mut text = vec![0];
        // If it ends before, what it says is to be seen.
        if console.read_exact(&mut text).is_ok() {
            change(&self);
            keys.write_all(word).unwrap();
        }
        drop(keys);
        console.read_to_end(&mut text).unwrap();
        let output = vmm.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(String::from_utf8(text).unwrap(), ":111", "{stderr}");
        let disk = self.path("disks/disk");
        let line = format!("vmm: the disk {} (blk0) can not be {said};", disk.display());
        assert!(stderr.starts_with(&line), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(value(&self.path("stats"), "blk_io_errors"), 3);
    }
}

#[test]
fn a_disk_that_became_shorter_is_said_once_with_its_place() {
    let guest = Guest::new("truncate -s 4096 \"$D/disk\"");
    let shorten = |guest: &Guest| {
        File::options().write(true).open(guest.path("disks/disk")).unwrap().set_len(700).unwrap();
    };
    guest.fails(shorten, b"r", "read at byte 700: unexpected end of file");
}

#[test]
fn a_disk_on_a_full_file_system_is_said_once_with_its_place() {
    let guest = Guest::new(
        "mount -t tmpfs -o size=64k none \"$D\"; truncate -s 1M \"$D/disk\"
        ! dd if=/dev/zero of=\"$D/other\" 2>/dev/null",
    );
    guest.fails(|_| (), b"w", "written at byte 512: No space left on device (os error 28)");
}
