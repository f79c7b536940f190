//! The kernel comes up, with all that the machine has.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::linux::Linux;
use tests::nested::LINUX;
use tests::running::wait_until;
use tests::soak::rounds;
use tests::tracepoint::KvmReturns;

use super::{assert_powered_off, cpu_counts};

/// What a guest says about its CPUs and memory.
const SELF: &str = "
echo ONLINE $(cat /sys/devices/system/cpu/online) $(grep -c ^processor /proc/cpuinfo)
echo MEMORY $(grep MemTotal: /proc/meminfo)
";

fn comes_up(cpus: u32, change: impl FnOnce(Linux) -> Linux) {
    let kernel = KvmReturns::watch_all();
    let guest = Linux::new(SELF).with(|vmm| vmm.cpus(cpus));
    let (ended, flat) = assert_powered_off(change(guest).run(), &kernel);
    let online = if cpus == 1 { "0".to_string() } else { format!("0-{}", cpus - 1) };
    assert_eq!(ended.line("ONLINE "), format!("{online} {cpus}"));
    let machine = flat.machine();
    assert_eq!(flat.vcpus(&machine).len(), cpus as usize);
    for vcpu in flat.vcpus(&machine) {
        assert!(flat.get(&format!("{vcpu}/user_exits")) > 0, "{vcpu} ran");
    }
    assert_eq!(flat.get("kvm/vm_vcpus"), u64::from(cpus));
    assert!(flat.get("kvm/vm_start_ns") > 0);
}

pub fn one_vcpu_comes_up() {
    comes_up(1, |guest| guest);
}

pub fn four_vcpus_come_up() {
    for cpus in [4, 16].into_iter().take(if rounds(1) > 1 { 2 } else { 1 }) {
        comes_up(cpus, |guest| guest);
    }
}

/// The ELF image that is packed in a bzImage (Documentation/arch/x86/boot.rst in Linux's source).
fn unpacked() -> PathBuf {
    let image = File::open(LINUX).expect("this is the nested host");
    let word = |at| {
        let mut word = [0; 4];
        image.read_exact_at(&mut word, at).unwrap();
        u64::from(u32::from_le_bytes(word))
    };
    // `setup_sects`, `payload_offset` and `payload_length`, which counts the size behind the payload.
    let setup = word(0x1f1) & 0xff;
    let (offset, length) = ((setup + 1) * 512 + word(0x248), word(0x24c) - 4);
    let mut payload = vec![0; length as usize];
    image.read_exact_at(&mut payload, offset).unwrap();
    let magic: [u8; 4] = payload[..4].try_into().unwrap();
    let tool = match magic {
        [0x02, 0x21, 0x4c, 0x18] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
        [0xfd, b'7', b'z', b'X'] => "xz",
        [0x1f, 0x8b, _, _] => "gzip",
        _ => panic!("the kernel is compressed in an unknown way: {magic:x?}"),
    };
    let path = std::env::temp_dir().join("vmlinux");
    let mut unpack = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(File::create(&path).unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool}: {error}"));
    unpack.stdin.take().unwrap().write_all(&payload).unwrap();
    assert!(unpack.wait().unwrap().success());
    path
}

pub fn an_elf_image_comes_up() {
    let path = unpacked();
    assert_eq!(&fs::read(&path).unwrap()[..4], b"\x7fELF");
    comes_up(1, |guest| guest.kernel(&path));
    fs::remove_file(path).unwrap();
}

pub fn memory_above_the_gap_is_used() {
    // Half a GiB of it. The kernel hands out the highest memory first.
    let script = format!(
        "{SELF}
        grep 'System RAM' /proc/iomem | sed 's/^/RAM /'
        mount -t tmpfs tmpfs /tmp
        dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null
        cp /tmp/a /tmp/b && cmp /tmp/a /tmp/b && echo SAME"
    );
    let kernel = KvmReturns::watch_all();
    let guest = Linux::new(&script).with(|vmm| vmm.args(["--memory", "3584M"]));
    let (ended, flat) = assert_powered_off(guest.run(), &kernel);
    assert_eq!(flat.get("kvm/vm_memory_bytes"), 3584 << 20);
    let console = String::from_utf8_lossy(&ended.stdout).into_owned();
    let above = console.lines().filter(|line| line.starts_with("RAM 1"));
    assert!(above.into_iter().any(|line| line.contains("100000000-11fffffff")), "{console}");
    let memory: u64 = ended.line("MEMORY MemTotal:").strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(memory > 3 << 20, "{memory} KiB");
    ended.line("SAME");
}

pub fn random_bytes_come_from_the_host() {
    cpu_counts().for_each(random_bytes_come);
}

fn random_bytes_come(cpus: u32) {
    let script = "
        echo CURRENT $(cat /sys/class/misc/hw_random/rng_current)
        dd if=/dev/hwrng of=/random bs=512 count=8 2>/dev/null
        echo DIFFERENT $(od -An -v -tx8 -w8 /random | sort -u | wc -l)";
    let kernel = KvmReturns::watch_all();
    let guest = Linux::new(script).with(|vmm| vmm.cpus(cpus));
    let (ended, flat) = assert_powered_off(guest.run(), &kernel);
    assert!(ended.line("CURRENT ").starts_with("virtio_rng."));
    assert_eq!(ended.line("DIFFERENT "), "512");
    // The driver has asked for some on its own account.
    assert!(flat.get("kvm/rng_bytes") >= 4096);
    assert_eq!(flat.get("kvm/rng_requests"), flat.get("kvm/rng_request_time/count"));
    assert_eq!(flat.get("kvm/rng_errors"), 0);
}

/// What is typed on the console, line by line.
const TYPED: [&str; 3] = ["first", "and a second one, which is longer than a receive FIFO", "end"];

pub fn the_console_takes_input() {
    let script = "
        while read line; do echo \"GOT $line.\"; [ \"$line\" = end ] && break; done";
    let kernel = KvmReturns::watch_all();
    let (reader, mut writer) = io::pipe().unwrap();
    let mut running = Linux::new(script).with(|vmm| vmm.stdin(reader)).start();
    running.wait_for_line("INIT ");
    for line in TYPED {
        writeln!(writer, "{line}").unwrap();
        assert_eq!(running.wait_for_line(&format!("GOT {line}.")), "");
    }
    let (_, flat) = assert_powered_off(running.wait(), &kernel);
    let typed: usize = TYPED.iter().map(|line| line.len() + 1).sum();
    assert_eq!(flat.get("kvm/serial_rx_bytes"), typed as u64);
    assert_eq!(flat.get("kvm/serial_rx_lost_bytes"), 0);
}

pub fn what_is_seen_meanwhile_is_what_happens() {
    let cpus = 2;
    let script = "
        (while :; do cat /proc/interrupts > /dev/null; done) &
        dmesg
        echo READY
        read line";
    let kernel = KvmReturns::watch_all();
    let (reader, mut writer) = io::pipe().unwrap();
    let mut running = Linux::new(script).with(|vmm| vmm.cpus(cpus).stdin(reader)).start();
    let machine = running.machine();
    assert_eq!(running.value(&format!("{machine}/vm_state")), 1);
    let mut before = running.flat();
    let mut sweeps = 0;
    // Consistent at every instant, and never more than the kernel has seen, which is known after it was read.
    while !String::from_utf8_lossy(&running.console()).contains("\nREADY") {
        let flat = running.flat();
        for directory in flat.vcpus(&machine).iter().chain([&machine, &"kvm".to_string()]) {
            flat.assert_balanced(directory);
            let name = format!("{directory}/user_exits");
            assert!(flat.get(&name) >= before.get(&name), "{name} went back");
        }
        assert!(flat.get("kvm/user_exits") <= kernel.all());
        assert!(!running.has_ended());
        (before, sweeps) = (flat, sweeps + 1);
    }
    assert!(sweeps >= 3);
    running.wait_for_line("READY");
    // The last bytes were counted after they were written.
    wait_until("the console's bytes", || {
        let sent = running.console().len() as u64;
        (running.value(&format!("{machine}/serial0/serial_tx_bytes")) == sent).then_some(())
    });
    let threads: Vec<_> = running.flat().vcpus(&machine);
    for vcpu in threads {
        let thread = running.value(&format!("{vcpu}/thread_id"));
        let task = format!("/proc/{}/task/{thread}/comm", running.pid());
        assert!(Path::new(&task).exists(), "{task}");
    }
    writer.write_all(b"go on\n").unwrap();
    assert_powered_off(running.wait(), &kernel);
}
