//! Machines with virtio devices, driven by a few instructions: that notifications and interrupts pass by
//! the exit loop, and that what is counted is what the guest did.

use std::io::Write;

use super::*;
use crate::images::bzimage;
use crate::virtio::{DiskConfig, NetConfig, VirtioConfig, VirtioError};

/// How many sectors the guest reads, each on its own.
const READS: u64 = 40;

guest!(
    reads_a_disk,
    ".code64",
    // Pin 5 of the I/O APIC, the first virtio device's, leads to this CPU, whose APIC is on.
    "mov r8d, 0xfec00000",
    "mov dword ptr [r8], 0x1b",
    "mov dword ptr [r8 + 16], 0",
    "mov ebp, 0xfee00000",
    "mov dword ptr [rbp + 0xf0], 0x1ff",
    // A chain: 16 bytes at 0x33000, then 512 at 0x34000 and one at 0x35000 to be written.
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
    // The device, with VERSION_1 alone and a queue of 8. Twelve writes.
    "mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 0x70], 1",
    "mov dword ptr [rbx + 0x70], 3",
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
    "xor ecx, ecx",
    // For each request a vector of its own, from 0x41 on, of which nothing is pending yet.
    "2: lea eax, [rcx + 0x41]",
    "mov dword ptr [r8], 0x1a",
    "mov [r8 + 16], eax",
    "mov edx, eax",
    "shr edx, 5",
    "shl edx, 4",
    "mov esi, [rbp + rdx + 0x200]",
    "bt esi, eax",
    "jc 9f",
    "mov [0x33008], ecx", // the sector
    "mov byte ptr [0x35000], 0xff",
    "inc ecx",
    "mov [0x31002], cx",             // available
    "mov dword ptr [rbx + 0x50], 0", // the notification
    "3: cmp [0x32002], cx",          // used
    "jne 3b",
    "cmp byte ptr [0x35000], 0",
    "jne 9f",
    "lea eax, [ecx + 0x1000]", // what the sector begins with
    "cmp [0x34000], eax",
    "jne 9f",
    // Its interrupt has arrived: no other request is made before that, so that none is told together with
    // another.
    "lea eax, [rcx + 0x40]",
    "4: mov esi, [rbp + rdx + 0x200]",
    "bt esi, eax",
    "jnc 4b",
    "cmp ecx, 40",
    "jne 2b",
    // The device says why. Two more accesses.
    "cmp dword ptr [rbx + 0x60], 1",
    "jne 9f",
    "mov dword ptr [rbx + 0x64], 1",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "5: jmp 5b",
    "9: ud2",
);

fn config(code: &[u8], virtio: VirtioConfig) -> Config {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&bzimage(code)).unwrap();
    let kernel = Kernel::open(image.path(), None, String::new()).unwrap();
    Config {
        name: "test".into(),
        memory: 4 << 20,
        vcpus: 1,
        guest: Guest::Kernel { kernel, virtio },
        console: false,
        public: false,
        accounting: Detail::Full,
    }
}

/// A disk whose sectors begin with 0x1001, 0x1002 and so on.
fn disk() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sectors = (0..READS as u32).flat_map(|number| {
        let mut sector = [0; 512];
        sector[..4].copy_from_slice(&(number + 0x1001).to_le_bytes());
        sector
    });
    std::fs::write(file.path(), sectors.collect::<Vec<_>>()).unwrap();
    file
}

fn disks(files: &[&std::path::Path]) -> VirtioConfig {
    let disk = |path: &&std::path::Path| DiskConfig { path: path.to_path_buf(), read_only: true };
    VirtioConfig { disks: files.iter().map(disk).collect(), ..Default::default() }
}

fn wait_for_power_off(running: &mut RunningVm) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !running.lifecycle().is_stopping() {
        assert!(Instant::now() < deadline, "the guest does not end");
        thread::sleep(Duration::from_millis(1));
    }
    running.stop();
    assert!(matches!(running.ending(), Some(Ending::PoweredOff)), "{:?}", running.ending());
}

#[test]
fn notifications_and_interrupts_pass_by_the_exit_loop() {
    let registry = Registry::new().unwrap();
    let tree = KvmTree::register(&registry).unwrap();
    let hypervisor = Hypervisor::open().expect("these tests need KVM");
    let disk = disk();
    let config = config(&reads_a_disk(), disks(&[disk.path()]));
    let mut running = Vm::new(&hypervisor, &tree, &config, Moment::now()).unwrap().start().unwrap();
    wait_for_power_off(&mut running);

    let mut flat = Vec::new();
    registry.tree_of(crate::tree::tree_options()).unwrap().flat(&mut flat);
    let flat = String::from_utf8(flat).unwrap();
    let machine = format!("kvm/{}/", running.directory());
    let get = |name: &str| -> u64 {
        let line = flat.lines().find_map(|line| line.strip_prefix(&machine)?.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in:\n{flat}")).trim().parse().unwrap()
    };
    // Twelve writes and the acknowledgement; one read. No notification among them.
    assert_eq!((get("user_exit_mmio_write "), get("user_exit_mmio_read ")), (13, 1));
    assert_eq!((get("vcpu0/blk0/io_writes "), get("vcpu0/blk0/io_reads ")), (13, 1));
    assert_eq!(get("blk0/blk_reads "), READS);
    assert_eq!(get("blk0/blk_read_bytes "), READS * 512);
    assert_eq!(get("blk0/blk_request_time/count "), READS);
    // One of each for each, whenever the device came to look.
    assert_eq!(get("blk0/virtio_notifications "), READS);
    assert_eq!(get("blk0/virtio_interrupts "), READS);
    assert_eq!(get("blk0/virtio_bad_accesses ") + get("blk0/virtio_queue_errors "), 0);
    // Its name has a prefix, so that it can be seen here.
    assert_eq!(get("blk_reads "), READS);
}

guest!(
    breaks_a_queue,
    ".code64",
    "mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 1",
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x70], 11",
    "mov dword ptr [rbx + 0x80], 0x30000",
    "mov dword ptr [rbx + 0x90], 0x31000",
    "mov dword ptr [rbx + 0xa0], 0x32000",
    "mov dword ptr [rbx + 0x44], 1",
    "mov dword ptr [rbx + 0x70], 15",
    "mov word ptr [0x31002], 0x7777",
    "mov dword ptr [rbx + 0x50], 0",
    "2: test dword ptr [rbx + 0x70], 64", // DEVICE_NEEDS_RESET
    "jz 2b",
    "mov dword ptr [rbx + 0x70], 0",
    "cmp dword ptr [rbx + 0x70], 0",
    "jne 9f",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: jmp 3b",
    "9: ud2",
);

#[test]
fn a_guest_that_breaks_a_queue_has_a_device_to_reset_and_a_machine_that_goes_on() {
    let disk = disk();
    let config = config(&breaks_a_queue(), disks(&[disk.path()]));
    let mut running = make(&config).unwrap().start().unwrap();
    wait_for_power_off(&mut running);
}

#[test]
fn devices_that_can_not_be_had_are_told_in_one_line() {
    let code = breaks_a_queue();
    let error = |virtio| {
        let error = make(&config(&code, virtio)).err().expect("it is refused");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        (error, text)
    };
    let disk = disk();
    let twenty = vec![disk.path(); 20];
    let (refused, text) = error(disks(&twenty));
    assert!(matches!(refused, VmError::Virtio(VirtioError::TooMany(20))), "{text}");
    assert!(text.contains("at most 19"), "{text}");
    let (_, text) = error(disks(&["/nowhere/disk.img".as_ref()]));
    assert!(text.contains("/nowhere/disk.img") && text.contains("No such file"), "{text}");
    let writer = |path: &std::path::Path| DiskConfig { path: path.into(), read_only: false };
    let twice = vec![writer(disk.path()), writer(disk.path())];
    let (_, text) = error(VirtioConfig { disks: twice, ..Default::default() });
    assert!(text.contains("in use"), "{text}");
    let nets = vec![NetConfig { tap: "no-such-tap".into(), mac: None }];
    let (_, text) = error(VirtioConfig { nets, ..Default::default() });
    assert!(text.contains("ip tuntap add no-such-tap mode tap"), "{text}");
}
