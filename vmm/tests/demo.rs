//! `vmm demo` from outside.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn demo(mount: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.arg("demo").arg("--mount").arg(mount).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// The line of the totals for this guest and vCPU, in numbers from the column EXITS on.
fn totals(stdout: &str, guest: &str, vcpu: &str) -> Vec<u64> {
    let (_, totals) = stdout.split_once("Totals after").expect("totals are printed");
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let header = totals.lines().map(words).find(|w| w.first().is_some_and(|w| w == "GUEST"));
    assert_eq!(header.unwrap().len(), 12);
    let line = totals
        .lines()
        .map(words)
        .find(|w| w.len() >= 11 && w[0] == guest && (vcpu.is_empty() || w[1] == vcpu))
        .unwrap_or_else(|| panic!("no line of {guest} {vcpu} in {totals}"));
    line.iter().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_table_is_plain_and_its_totals_add_up_without_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    let output = demo(&mount, &["--seconds", "3"]).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""));
    assert!(stdout.chars().all(|c| c == '\n' || !c.is_control()), "{stdout:?}");
    assert!(stdout.starts_with("2 guests of 2 vCPUs; statistics are mounted at "), "{stdout}");
    for how in ["  ls ", "  cat ", "  grep -r . ", "  echo 0 > "] {
        assert!(stdout.contains(&format!("{how}{}", mount.display())), "{stdout}");
    }
    assert!(stdout.matches("EXITS/S").count() >= 2, "a table while it runs: {stdout}");
    assert!(!mount.exists(), "it was made for the mount, and goes with it");

    // Rate, exits, then the reasons; the vCPU's number stands before them.
    let vcpus: Vec<_> = [("demo0", "0"), ("demo0", "1"), ("demo1", "0"), ("demo1", "1")]
        .iter()
        .map(|(guest, vcpu)| totals(&stdout, guest, vcpu)[1..].to_vec())
        .collect();
    for vcpu in &vcpus {
        let (exits, reasons) = (vcpu[1], &vcpu[2..]);
        assert_eq!(exits, reasons.iter().sum::<u64>());
        assert_eq!(reasons.len(), 6);
        assert!(reasons[..5].iter().all(|n| *n > 0), "every kind of exit: {reasons:?}");
    }
    let all = totals(&stdout, "all", "");
    for column in 1..8 {
        assert_eq!(all[column], vcpus.iter().map(|vcpu| vcpu[column]).sum::<u64>());
    }
}

#[test]
fn ctrl_c_ends_it_and_others_can_read_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    for (seconds, sent, status) in
        [("0", libc::SIGINT, 0), ("60", libc::SIGINT, 130), ("0", libc::SIGTERM, 143)]
    {
        let args = ["--seconds", seconds, "--quiet", "--guests", "3", "--vcpus", "1"];
        let mut child = demo(&mount, &args).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        assert!(first.contains("3 guests of 1 vCPUs"), "{first}");
        for guest in 0..3 {
            let exits = mount.join(format!("kvm/{}-demo{guest}/vcpu0/user_exits", child.id()));
            let deadline = Instant::now() + Duration::from_secs(30);
            while fs::read_to_string(&exits).unwrap().trim().parse::<u64>().unwrap() == 0 {
                assert!(Instant::now() < deadline, "the guest does not run");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        signal(&child, sent);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert!(rest.starts_with("Totals after"), "{rest}");
        assert!(totals(&rest, "all", "")[1] > 0);
        assert!(!mount.exists());
    }
}

#[test]
fn a_mount_point_that_is_not_empty_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let output = demo(dir.path(), &["--seconds", "1"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&dir.path().display().to_string()), "{stderr}");
    assert!(dir.path().join("file").exists());
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    let mut child = demo(&mount, &["--seconds", "0"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("mounted at"), "{first}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    assert!(!mount.exists());
}
