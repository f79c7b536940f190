//! What can not be booted is said in one line, with status 125; or the guest says it itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tests::inject::status;
use tests::linux::Linux;
use tests::nested::LINUX;
use tests::running::wait_until;
use tests::tap;
use tests::tracepoint::KvmReturns;

use super::assert_ended;

/// A `vmm run` with these arguments is refused for these reasons.
#[track_caller]
fn refused<A: AsRef<OsStr>>(args: &[A], parts: &[&str]) {
    let mut vmm = Command::new(tests::binary::vmm());
    vmm.args(["run", "--no-publish", "--kernel"]).args(args).stdin(Stdio::null());
    let output = vmm.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{vmm:?}: {stderr}");
    assert!(stderr.starts_with("vmm: ") && stderr.lines().count() == 1, "{vmm:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{vmm:?}: {part:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{vmm:?}: no guest ran");
}

/// A changed copy of the kernel.
fn changed(directory: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = fs::read(LINUX).unwrap();
    change(&mut bytes);
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_string()
}

pub fn kernels_and_ram_disks() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let changed = |name: &str, change: fn(&mut Vec<u8>)| changed(directory.path(), name, change);

    refused(&[&path("missing")], &["missing", "No such file", "check the path"]);
    refused(&["/proc"], &["/proc", "is a directory"]);
    refused(&[&changed("empty", Vec::clear)], &["is empty", "bzImage"]);
    let noise = changed("noise", |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x5a));
    refused(&[&noise], &["is not a kernel", "bzImage"]);
    refused(&[&changed("cut", |bytes| bytes.truncate(bytes.len() / 2))], &["is truncated"]);
    refused(&[&changed("head", |bytes| bytes.truncate(0x300))], &["is truncated"]);
    // `version` in the header: 2.11.
    let old = changed("old", |bytes| bytes[0x206..0x208].copy_from_slice(&[0x0b, 0x02]));
    refused(&[&old], &["2.11", "2.12 or newer"]);
    // An ELF header that tells of segments, which are not there.
    let elf = changed("elf", |bytes| {
        *bytes = fs::read("/init").unwrap();
        bytes.truncate(0x100);
    });
    refused(&[&elf], &["is truncated"]);

    refused(&[LINUX, "--initrd", &path("missing")], &["RAM disk", "No such file"]);
    let empty = changed("initrd", Vec::clear);
    refused(&[LINUX, "--initrd", &empty], &["RAM disk", "is empty", "leave --initrd out"]);
    // Of holes.
    let large = path("large");
    File::create(&large).unwrap().set_len(600 << 20).unwrap();
    refused(&[LINUX, "--initrd", &large], &["RAM disk", "--memory"]);
    File::create(&large).unwrap().set_len(5 << 30).unwrap();
    refused(&[LINUX, "--initrd", &large, "--memory", "8G"], &["RAM disk", "too large", "--disk"]);
    let long = "x".repeat(4096);
    refused(&[LINUX, "--cmdline", &long], &["command line", "shorten"]);
}

/// A kernel that can not unpack itself stops its processor, without a word. Its VMM said what it knew, and is
/// as responsive as any.
pub fn a_damaged_kernel_hangs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = changed(directory.path(), "damaged", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].iter_mut().for_each(|byte| *byte ^= 0x5a);
    });
    let kernel = KvmReturns::watch_all();
    let running = Linux::new("").kernel(Path::new(&damaged)).start();
    let vcpu = format!("{}/vcpu0", running.machine());
    let thread = wait_until("the vCPU", || {
        i32::try_from(running.value(&format!("{vcpu}/thread_id"))).ok().filter(|id| *id > 0)
    });
    // It sleeps, and a second later it has done nothing since.
    let asleep = || {
        let state = status(running.pid(), thread, "State").unwrap();
        state.starts_with('S').then(|| status(running.pid(), thread, "voluntary_ctxt_switches"))
    };
    wait_until("a guest that hangs", || {
        let before = asleep()?;
        sleep(Duration::from_secs(1));
        (asleep()? == before).then_some(())
    });
    assert_eq!(running.value(&format!("{}/vm_state", running.machine())), 1, "it runs");
    let exits = running.value(&format!("{vcpu}/user_exits"));
    running.signal(libc::SIGTERM);
    let ended = running.wait().assert(143);
    ended.assert_says(&["damaged has a wrong checksum", "hang"]);
    assert_eq!(ended.stdout, b"", "its console");
    let flat = ended.flat();
    assert!(flat.get("kvm/user_exits") >= exits);
    kernel.assert_agrees(&flat);
}

pub fn disks_and_interfaces() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    refused(&[LINUX, "--disk", &path("missing")], &["missing", "No such file", "truncate -s 1G"]);
    refused(
        &[LINUX, "--disk", directory.path().to_str().unwrap()],
        &[directory.path().to_str().unwrap()],
    );
    let odd = path("odd");
    fs::write(&odd, vec![0; 1000]).unwrap();
    refused(&[LINUX, "--disk", &odd], &["odd", "512"]);
    refused(&[LINUX, "--net", "tap=none0"], &["none0", "ip tuntap add none0"]);
    refused(&[LINUX, "--net", "tap=lo"], &["interface lo ", "no tap", "ip tuntap add"]);
    // One interface for two.
    tap::set_up();
    let net = format!("tap={}", tap::NAME);
    refused(&[LINUX, "--net", &net, "--net", &net], &[tap::NAME, "in use"]);
}

pub fn too_little_memory() {
    refused(&[LINUX, "--memory", "1M"], &["MiB of memory", "--memory"]);
    refused(&[LINUX, "--memory", "16M"], &["MiB of memory", "--memory"]);
    // Enough to start with: the kernel comes up and finds out.
    let kernel = KvmReturns::watch_all();
    let script = "
        echo 1 > /proc/sys/vm/panic_on_oom
        mount -t tmpfs -o size=100% tmpfs /tmp
        dd if=/dev/zero of=/tmp/all bs=1M
        echo STILL HERE";
    let guest = Linux::new(script).with(|vmm| vmm.args(["--memory", "128M"]));
    let (ended, _) = assert_ended(guest.run(), &kernel, 124);
    ended.assert_says(&["crashed", "panic"]);
}
