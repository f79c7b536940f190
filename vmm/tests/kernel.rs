//! `vmm run` with a kernel from outside: statuses, messages and statistics. The kernels are a few
//! instructions in the form of a bzImage.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

#[path = "common/images.rs"]
mod images;
use images::{bzimage, put};

/// mov dx, PORT; mov al, VALUE; out dx, al
const fn out(port: u16, value: u8) -> [u8; 7] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high, 0xb0, value, 0xee]
}
const POWER_OFF: [u8; 7] = out(0x600, 0x34);
const RESET: [u8; 7] = out(0x602, 1);
const I8042_RESET: [u8; 7] = out(0x64, 0xfe);
const PANIC: [u8; 7] = out(0x505, 1);
const FOR_EVER: [u8; 2] = [0xeb, 0xfe];
/// ud2
const CRASH: [u8; 2] = [0x0f, 0x0b];
/// mov word ptr [0x472], 0x1234
const WARM: [u8; 10] = [0x66, 0xc7, 0x04, 0x25, 0x72, 0x04, 0, 0, 0x34, 0x12];

fn code(parts: &[&[u8]]) -> Vec<u8> {
    [&parts.concat()[..], &FOR_EVER].concat()
}

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn vmm_with_memory(memory: &str, kernel: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(["run", "--no-publish", "--memory", memory, "--kernel"]).arg(kernel);
    command.stdin(Stdio::null());
    command
}

fn vmm(kernel: &Path) -> Command {
    vmm_with_memory("4M", kernel)
}

/// Status, and what is on standard error.
fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().expect("it exits by itself"), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_guests_end_is_a_status_and_a_message() {
    let dir = Dir::new();
    let triple_fault = "vmm: the guest reset itself (triple fault, vCPU 0)\n";
    let panicked = "vmm: the guest crashed: its kernel panicked\n";
    for (parts, arguments, status, message) in [
        (&[&POWER_OFF[..]][..], &[][..], 0, ""),
        (&[&RESET], &[], 0, ""),
        (&[&I8042_RESET], &[], 0, ""),
        (&[&CRASH], &[], 0, triple_fault),
        (&[&PANIC], &[], 124, panicked),
        // Only resets are told apart by the flag, and only by kernels that were asked to set it.
        (&[&WARM, &RESET], &[], 124, panicked),
        (&[&WARM, &CRASH], &["--cmdline", "quiet reboot=t"], 124, panicked),
        (&[&WARM, &POWER_OFF], &[], 0, ""),
        (&[&WARM, &RESET], &["--cmdline", "reboot=warm"], 0, ""),
    ] {
        let kernel = dir.file("vmlinuz", &bzimage(&code(parts)));
        let ended = run(vmm(&kernel).args(arguments));
        assert_eq!(ended, (status, message.to_string()), "{parts:x?} {arguments:?}");
    }
}

#[test]
fn what_is_wrong_is_one_line_that_names_it() {
    let dir = Dir::new();
    let image = bzimage(&code(&[&POWER_OFF]));
    let kernel = dir.file("vmlinuz", &image);
    let mut bits32 = image.clone();
    put(&mut bits32, 0x236, 2, 0);
    let refused = |command: &mut Command, parts: &[&str]| {
        let (status, message) = run(command);
        assert_eq!(status, 125, "{message}");
        assert!(message.starts_with("vmm: ") && message.ends_with('\n'), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    };
    refused(&mut vmm(&dir.path("none")), &["none", "No such file"]);
    refused(&mut vmm(&dir.file("cut", &image[..1500])), &["cut", "truncated"]);
    refused(&mut vmm(&dir.file("script", b"#!/bin/sh\n")), &["script", "not a kernel"]);
    refused(&mut vmm(&dir.file("old", &bits32)), &["old", "32-bit"]);
    refused(vmm(&kernel).arg("--initrd").arg(dir.path("no")), &["RAM disk", "No such file"]);
    refused(vmm(&kernel).arg("--initrd").arg(dir.file("e", b"")), &["RAM disk", "empty"]);
    let large = dir.file("large", b"");
    fs::File::options().write(true).open(&large).unwrap().set_len(16 << 20).unwrap();
    refused(vmm(&kernel).arg("--initrd").arg(&large), &["needs 19 MiB", "--memory"]);
    refused(&mut vmm_with_memory("2M", &kernel), &["needs 3 MiB", "--memory"]);
    let long = "x".repeat(3000);
    refused(vmm(&kernel).args(["--cmdline", &long]), &["at most 2047", "--cmdline"]);
    refused(vmm(&kernel).arg("--disk").arg(dir.path("gone")), &["gone", "No such file"]);
}

#[test]
fn a_wrong_checksum_is_told_and_no_reason_to_stop() {
    let dir = Dir::new();
    let mut image = bzimage(&code(&[&POWER_OFF]));
    let end = image.len();
    put(&mut image, end - 4, 4, 0x1234_5678);
    let (status, message) = run(&mut vmm(&dir.file("changed", &image)));
    assert_eq!(status, 0, "{message}");
    assert!(message.starts_with("vmm: the kernel ") && message.ends_with('\n'), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("changed has a wrong checksum"), "{message}");
}

#[test]
fn every_device_counts() {
    let dir = Dir::new();
    let parts =
        [&out(0x3f8, b'h')[..], &out(0x3f8, b'i'), &out(0x64, 0x20), &out(0x600, 0), &POWER_OFF];
    let (kernel, out) = (dir.file("vmlinuz", &bzimage(&code(&parts))), dir.path("out"));
    let mut command = vmm(&kernel);
    command.args(["--cpus", "3", "--name", "web1", "--stats-out"]).arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let vm = format!("kvm/{}-web1", child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hi"[..]));

    let text = fs::read_to_string(&out).unwrap();
    let values: HashMap<_, u64> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(path, value)| (path.to_string(), value.parse().unwrap()))
        .collect();
    for (name, value) in [
        ("vm_state", 3),
        ("vm_vcpus", 3),
        ("vm_memory_bytes", 4 << 20),
        ("serial0/serial_tx_bytes", 2),
        ("serial0/serial_interrupts", 0),
        ("i8042/i8042_resets", 0),
        ("i8042/i8042_ignored_writes", 1),
        ("power0/power_offs", 1),
        ("power0/power_resets", 0),
        ("power0/power_ignored_writes", 1),
        ("pvpanic0/pvpanic_panics", 0),
        ("vcpu0/user_exit_io_out", 5),
        ("vcpu0/serial0/io_writes", 2),
        ("vcpu0/power0/io_writes", 2),
        ("vcpu1/user_exit_io_out", 0),
        ("user_exit_io_out", 5),
    ] {
        assert_eq!(values.get(&format!("{vm}/{name}")), Some(&value), "{name} in\n{text}");
    }
    assert!(values[&format!("{vm}/vm_start_ns")] > 0);
    assert_eq!(values["kvm/serial_tx_bytes"], 2);
}
