//! `vmm run` from outside: statuses, messages, the console and the final statistics.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[macro_use]
#[path = "common/guest.rs"]
mod guest;

guest!(
    counts,
    "mov ecx, 300",
    "2: out 0x80, al",
    "in al, 0x80",
    "dec ecx",
    "jnz 2b",
    "mov ebx, 0xd0000000",
    "mov ecx, 20",
    "2: mov eax, [rbx]",
    "mov [rbx], eax",
    "mov [rbx], ax",
    "hlt",
    "dec ecx",
    "jnz 2b",
    "mov al, 33",
    "out 0xf4, al",
);

guest!(
    echo,
    // Sends back what comes, in upper case, until a newline.
    "2: mov edx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, 0x3f8",
    "in al, dx",
    "cmp al, 10",
    "je 3f",
    "and al, 0xdf",
    "3: out dx, al",
    "cmp al, 10",
    "jne 2b",
    "xor eax, eax",
    "out 0xf4, al",
);

guest!(crash, "ud2");
guest!(for_ever, "2: out 0x80, al", "jmp 2b");
guest!(large_status, "mov al, 200", "out 0xf4, al");

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn vmm(program: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.arg("run").arg("--flat").arg(program).stdin(Stdio::null());
    command
}

fn output(mut command: Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().expect("it exits by itself"), String::from_utf8(stderr).unwrap())
}

/// The values of a file in `flat` form.
fn flat(path: &Path) -> HashMap<String, u64> {
    let value = |line: &str| {
        let (path, value) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        (path.to_string(), value.parse().unwrap_or_else(|_| panic!("{line:?}")))
    };
    fs::read_to_string(path).unwrap().lines().map(value).collect()
}

#[test]
fn final_statistics_are_exact_and_where_they_belong() {
    let dir = Dir::new();
    let program = dir.file("guest", &counts());
    let out = dir.path("out");
    let mut command = vmm(&program);
    command.args(["--no-publish", "--name", "web1", "--cpus", "1", "--stats-out"]).arg(&out);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let vm = format!("kvm/{}-web1", child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(33));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");

    let values = flat(&out);
    for directory in ["kvm", &vm, &format!("{vm}/vcpu0")] {
        let get = |name: &str| values[&format!("{directory}/{name}")];
        for (name, n) in [
            ("user_exit_io_out", 301),
            ("user_exit_io_in", 300),
            ("user_exit_mmio_read", 20),
            ("user_exit_mmio_write", 40),
            ("user_exit_hlt", 20),
            ("user_exit_shutdown", 0),
            ("user_handle_time_hlt/count", 20),
            ("user_handle_time_mmio_write/count", 40),
            ("bus_unclaimed_io_writes", 300),
            ("bus_unclaimed_io_reads", 300),
            ("bus_unclaimed_mmio_reads", 20),
            ("bus_unclaimed_mmio_writes", 40),
        ] {
            assert_eq!(get(name), n, "{directory}/{name}");
        }
        let parts: u64 = values
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("{directory}/user_exit_")))
            .map(|(_, n)| n)
            .sum();
        assert_eq!(get("user_exits"), parts, "{directory}");
        assert_eq!(get("user_handle_time/count"), parts, "{directory}");
        assert_eq!(get("user_run_time/count"), parts, "{directory}");
        assert!(get("user_run_time/sum") > 0);
    }
    for (name, n) in [
        ("vm_memory_bytes", 64 << 20),
        ("vm_vcpus", 1),
        ("vm_state", 3),
        ("exit0/exit_requests", 1),
        ("exit0/exit_status", 33),
        ("vcpu0/exit0/io_writes", 1),
        ("vcpu0/exit0/io_write_bytes", 1),
    ] {
        assert_eq!(values[&format!("{vm}/{name}")], n, "{name}");
    }
    assert!(values[&format!("{vm}/vcpu0/thread_id")] > 0);
    assert!(values[&format!("{vm}/vm_start_ns")] > 0);
    assert!(values[&format!("{vm}/vcpu0/exit0/io_time_ns")] > 0);
    assert!(!values.contains_key("kvm/thread_id"), "it means nothing above its vCPU");
}

#[test]
fn the_console_is_standard_input_and_output() {
    let dir = Dir::new();
    let program = dir.file("guest", &echo());
    let out = dir.path("out");
    let text = "abcdefghij".repeat(20) + "\n";

    // A file as input, longer than the receive FIFO.
    let input = dir.file("input", text.as_bytes());
    let mut command = vmm(&program);
    command.args(["--no-publish", "--stats-out"]).arg(&out);
    command.stdin(fs::File::open(&input).unwrap());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text.to_uppercase());
    let values = flat(&out);
    for (name, n) in [("kvm/serial_tx_bytes", 201), ("kvm/serial_rx_reads", 201)] {
        assert_eq!(values[name], n, "{name}");
    }
    assert!(values["kvm/serial_rx_bytes"] >= 201);

    // A pipe.
    let mut command = vmm(&program);
    command.arg("--no-publish").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text.to_uppercase());
}

#[test]
fn a_crash_is_status_124_and_one_line_and_leaves_statistics() {
    let dir = Dir::new();
    let out = dir.path("out");
    let mut command = vmm(&dir.file("guest", &crash()));
    command.args(["--no-publish", "--stats-out"]).arg(&out);
    let (status, stderr) = output(command);
    assert_eq!(status, 124);
    // Processors of AMD forget the place.
    let amd = Path::new("/sys/module/kvm_amd").exists();
    let place = if amd { "" } else { ", RIP 0x10000" };
    assert_eq!(
        stderr,
        format!("vmm: the guest crashed: vCPU 0: triple fault (KVM_EXIT_SHUTDOWN){place}\n")
    );
    assert_eq!(flat(&out)["kvm/user_exit_shutdown"], 1);

    let mut command = vmm(&dir.file("guest", &large_status()));
    command.arg("--no-publish");
    let (status, stderr) = output(command);
    assert_eq!(status, 124);
    assert!(stderr.contains("status 200") && stderr.contains("at most 123"), "{stderr}");
}

#[test]
fn what_the_vmm_can_not_do_is_status_125_and_one_line() {
    let dir = Dir::new();
    let program = dir.file("guest", &crash());
    let failed = |change: &dyn Fn(&mut Command), program: &Path| {
        let mut command = vmm(program);
        change(&mut command);
        let (status, stderr) = output(command);
        assert_eq!(status, 125, "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("vmm: "), "{stderr}");
        stderr
    };
    let none = |_: &mut Command| {};
    let missing = dir.path("missing");
    assert!(failed(&none, &missing).contains("missing"));
    assert!(failed(&none, &dir.file("empty", b"")).contains("is empty"));
    let bad_out = |c: &mut Command| {
        c.arg("--stats-out").arg("/nonexistent/out");
    };
    assert!(failed(&bad_out, &program).contains("/nonexistent/out"));
    let large = dir.file("large", &vec![0x90; 2 << 20]);
    let small = |c: &mut Command| {
        c.args(["--no-publish", "--memory", "1M"]);
    };
    assert!(failed(&small, &large).contains("--memory"));

    // A wrong command line is clap's: status 2.
    let mut command = vmm(&program);
    command.args(["--cpus", "65"]);
    let (status, stderr) = output(command);
    assert_eq!(status, 2);
    assert!(stderr.contains("1 to 64"), "{stderr}");
}

fn wait_at_most(child: &mut Child, limit: Duration) -> i32 {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().expect("it exits by itself");
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_end_it_with_statistics_and_their_status() {
    let dir = Dir::new();
    let program = dir.file("guest", &for_ever());
    for (signal, status) in [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let (out, mount) = (dir.path("out"), dir.path("mount"));
        let mut command = vmm(&program);
        command.args(["--cpus", "3", "--mount"]).arg(&mount).arg("--stats-out").arg(&out);
        // If the tests were started by nohup(1), the VMM would rightly ignore SIGHUP too.
        // SAFETY: signal(2) is async-signal-safe, and installs no code.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let exits = mount.join("kvm/user_exits");
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::read_to_string(&exits).map_or(0, |n| n.trim().parse().unwrap_or(0)) < 10 {
            assert!(Instant::now() < deadline, "the guest does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(wait_at_most(&mut child, Duration::from_secs(30)), status);
        let values = flat(&out);
        assert_eq!(
            values["kvm/user_exits"],
            values["kvm/user_exit_io_out"] + values["kvm/user_exit_intr"]
        );
        assert_eq!(values["kvm/bus_unclaimed_io_writes"], values["kvm/user_exit_io_out"]);
        assert!(!mount.exists(), "it was made for the mount, and goes with it");
    }
}
